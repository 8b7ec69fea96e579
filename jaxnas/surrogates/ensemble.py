"""The ensemble of multilayer perceptrons on path encodings, as BANANAS has.

White, Neiswanger and Savani 2021, arXiv:1910.11858; theirs have ten layers of twenty
units and learn absolute errors.
"""

from collections.abc import Sequence

import flax.linen as nn

from jaxnas.base import Array, SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.encoding import encoder
from jaxnas.surrogates.deep_ensemble import deep_ensemble


class Perceptron(nn.Module):
    """Maps features float32[F] to a float32[1]."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(1)(x)


def ensemble(
    space: SearchSpace,
    *,
    widths: Sequence[int] = (64, 64),
    encoding: str | None = None,
    targets: str = "ranks",
    num_members: int = 5,
    num_updates: int = 100,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
) -> Surrogate:
    """Makes the surrogate.

    Args:
      space: whose architectures are encoded.
      widths: units of each hidden layer, 1 or more.
      encoding: of `encoding.ENCODINGS`; by default `path` where the space has graphs,
        else `one_hot`.
      targets: of `TARGETS`.
      num_members: networks, 2 or more.
      num_updates: in each `fit`, which goes on from the last; 0 or more.
      learning_rate: of AdamW, 0 or more.
      weight_decay: of AdamW, times the learning rate; 0 or more.

    Raises:
      InputError: a number is too small, a name unknown, or the space has no such
        encoding.
    """
    for width in widths:
        expect(1, widths=width)
    return deep_ensemble(
        space,
        Perceptron(tuple(widths)),
        encoder(space, encoding),
        targets=targets,
        num_members=num_members,
        num_updates=num_updates,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
