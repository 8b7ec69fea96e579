"""What is best by several objectives at once, each higher is better.

A point dominates another where it is no worse by any objective and better by one. All
functions are traceable; a point that is not finite is left out as one that is unknown.
"""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def dominates(objectives: Array) -> Array:
    """Whether each point dominates each other: bool[N, N], the row the column.

    Args:
      objectives: float32[N, M].
    """
    points = jnp.asarray(objectives)
    size = len(points)
    no_worse, better = jnp.ones((size, size), bool), jnp.zeros((size, size), bool)
    # By objective, so that XLA makes no array [N, N, M].
    for values in points.T:
        no_worse &= values[:, None] >= values[None]
        better |= values[:, None] > values[None]
    return no_worse & better


def pareto_front(objectives: Array, known: Array | None = None) -> Array:
    """Which points none dominates: bool[N]; of equal ones all.

    Args:
      objectives: float32[N, M].
      known: bool[N], those that there are; all by default.
    """
    known = usable(objectives, known)
    if objectives.shape[1] == 2:
        return known & ~_is_below_stairs(jnp.asarray(objectives), known)
    return known & ~jnp.any(dominates(objectives) & known[:, None], 0)


def _is_below_stairs(points, known):
    """Which of float32[N, 2] one of those known dominates, in O(N log N): bool[N]."""
    order = jnp.lexsort((-points[:, 1], -points[:, 0]))
    x, y = points[order].T
    y_known = jnp.where(known[order], y, -jnp.inf)
    best = jax.lax.cummax(y_known)  # of those with x as high, and of equal x better y
    starts = jnp.searchsorted(-x, -x, side="left")  # the first with this very x
    higher = jnp.where(starts > 0, best[jnp.maximum(starts - 1, 0)], -jnp.inf)
    equal = best > y  # some of as high x is better by y
    below = equal | ((higher >= y) & (higher > -jnp.inf))
    return jnp.zeros(len(points), bool).at[order].set(below)


def pareto_ranks(objectives: Array, known: Array | None = None) -> Array:
    """The front that each point is on: int32[N], 0 what none dominates.

    Front r is what none dominates once the fronts before it are taken away (Deb et al.
    2002). What is unknown is on front N.

    Args:
      objectives: float32[N, M].
      known: bool[N], those that there are; all by default.
    """
    beats, known = dominates(objectives), usable(objectives, known)
    size = len(known)

    def peel(state):
        ranks, left, rank = state
        front = left & ~jnp.any(beats & left[:, None], 0)
        return jnp.where(front, rank, ranks), left & ~front, rank + 1

    unknown = jnp.full(size, size, jnp.int32)
    state = unknown, known, jnp.int32(0)
    return jax.lax.while_loop(lambda state: state[1].any(), peel, state)[0]


def hypervolume(
    objectives: Array, reference: Array, known: Array | None = None
) -> Array:
    """The volume of what lies between the reference and a point: exact, float32[].

    A sweep along the last objective (the slices of Zitzler 2001 and While et al. 2006):
    each slice is as high as the gap between two points, and its base is the volume of
    the points above it by the other objectives. O(N log N) for M = 2, then a factor
    of N for each objective more, in time and memory.

    Args:
      objectives: float32[N, M], M of 1 or more.
      reference: float32[M]. A point that is not above it in all counts for nothing.
      known: bool[N], those that there are; all by default.

    Raises:
      AssertionError: the reference is not of as many objectives.
    """
    points, reference = jnp.asarray(objectives), jnp.asarray(reference)
    chex.assert_shape(reference, points.shape[1:])
    above = jnp.all(points > reference[None], 1) & usable(points)
    # Not by `known`: where only that is an axis, one order serves all.
    points = jnp.where(above[:, None], points - reference[None], 0.0)
    return _sweep(points, jnp.ones(len(points), bool) if known is None else known)


def usable(objectives: Array, known: Array | None = None) -> Array:
    """Which points are known and finite: bool[N]."""
    finite = jnp.all(jnp.isfinite(objectives), 1)
    return finite if known is None else known & finite


def _sweep(points: Array, known: Array) -> Array:
    """The volume between zero and points float32[N, M], 0 or more."""
    last = points[:, -1]
    if points.shape[1] == 1:
        return jnp.max(jnp.where(known, last, 0.0), initial=0.0)
    order = jnp.argsort(-last)
    points, known, last = points[order], known[order], last[order]
    heights = last - jnp.append(last[1:], 0.0)
    if points.shape[1] == 2:
        bases = jax.lax.cummax(jnp.where(known, points[:, 0], 0.0))
    else:
        first = jnp.tri(len(last), dtype=bool)  # row i: the points down to the i-th
        bases = jax.vmap(_sweep, (None, 0))(points[:, :-1], known[None] & first)
    return jnp.sum(heights * bases)
