"""A limit on skip connections, many of which mark a differentiable search's collapse.

P-DARTS (Chen, Xie, Wu and Tian 2019, arXiv:1904.12760).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError, SearchSpace
from jaxnas.checks import expect
from jaxnas.encoding import is_skip


def limit_skips(
    space: SearchSpace, max_skips: int | Array | None
) -> Callable[[Array], Array]:
    """Makes `space.discretize` with at most so many skip connections; any for None.

    While the normal cell has more, the weakest of those chosen loses its weight, and
    all is discretized again. So a node may take another operation or another edge.

    Args:
      space: one that has cells, unless max_skips is None.
      max_skips: 2 in the paper.

    Raises:
      InputError: max_skips is negative, or the space has no cells.
    """
    if max_skips is None:
        return space.discretize
    expect(0, max_skips=max_skips)
    if space.cells is None:
        raise InputError(
            "expected a space of cells, as darts and nasbench201 are, for max_skips, "
            f"but got {space.name}: leave max_skips out"
        )
    cells, skip = space.cells, space.cells.op_names.index("skip_connect")

    def drop(_, weights):
        skips = is_skip(space.discretize(weights), cells)
        weakest = jnp.argmin(jnp.where(skips, weights[:, skip], jnp.inf))
        # Below every weight, 0 too: it is never chosen again, so the turns suffice.
        dropped = weights.at[weakest, skip].set(-1.0)
        return jnp.where(skips.sum() > max_skips, dropped, weights)

    def discretize(weights: Array) -> Array:
        turns = cells.reduction.count(False)
        return space.discretize(jax.lax.fori_loop(0, turns, drop, weights))

    return discretize
