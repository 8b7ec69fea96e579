"""A space without constraints: any combination of the choices of some decisions.

The space of a table of one's own. It has no networks.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError, SearchSpace
from jaxnas.draws import below
from jaxnas.encoding import mixed_radix, strongest


def categorical(num_choices: Sequence[int]) -> SearchSpace:
    """Makes the space of int32[D] with `num_choices[d]` choices at place d.

    It has N = sum(num_choices) - D one-edit neighbours, and keys of as many words as
    it takes to tell all architectures apart. Strings are numbers between dashes.

    Args:
      num_choices: D numbers, 1 or more each and one of them 2 or more.

    Raises:
      InputError: num_choices is empty, or has less; `network` and `restrict` always.
    """
    num_choices = tuple(int(k) for k in num_choices)
    if not num_choices or min(num_choices) < 1 or max(num_choices) < 2:
        raise InputError(
            f"expected numbers of choices of 1 or more, one of them 2 or more, but "
            f"got {list(num_choices)}: give one a decision"
        )
    sizes = np.array(num_choices, np.int32)
    # An edit adds a number, modulo its choices, to one decision.
    edits = np.concatenate(
        [
            by * np.eye(len(sizes), dtype=np.int32)[d : d + 1]
            for d, size in enumerate(num_choices)
            for by in range(1, size)
        ]
    )

    def sample(key: Array) -> Array:
        return below(key, sizes.shape, sizes)

    def neighbours(arch: Array) -> tuple[Array, Array]:
        return (arch[None] + edits) % sizes[None], jnp.ones(len(edits), bool)

    def mutate(key: Array, arch: Array) -> Array:
        return (arch + jnp.array(edits)[below(key, (), len(edits))]) % sizes

    def crossover(key: Array, first: Array, second: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, shape=sizes.shape), first, second)

    def no_network(*_, **__):
        raise InputError(
            "a categorical space has no networks: evaluate it by a table, or make a "
            "space that builds them"
        )

    def to_string(arch: Array) -> str:
        return "-".join(str(int(choice)) for choice in np.asarray(arch))

    def from_string(text: str) -> Array:
        parts = text.split("-") if isinstance(text, str) else []
        is_number = [part.isascii() and part.isdigit() for part in parts]
        if len(parts) == len(sizes) and all(is_number):
            arch = np.array([int(part[:10]) for part in parts])
            if (arch < sizes).all():
                return jnp.array(arch, jnp.int32)
        example = to_string(jnp.array(sizes - 1))
        raise InputError(
            f"expected {len(sizes)} numbers up to those of {example}, with dashes "
            f"between, but got {text!r:.100}"
        )

    return SearchSpace(
        name="categorical",
        num_choices=num_choices,
        sample=sample,
        mutate=mutate,
        crossover=crossover,
        neighbours=neighbours,
        discretize=lambda weights: strongest(weights, num_choices),
        canonical=lambda arch: mixed_radix(arch, num_choices),
        network=no_network,
        restrict=no_network,
        to_string=to_string,
        from_string=from_string,
    )
