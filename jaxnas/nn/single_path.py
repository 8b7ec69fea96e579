"""Cells of which each edge computes one operation, chosen while the program runs.

A supernet that is trained on one architecture at a time (Pham et al. 2018,
arXiv:1802.03268; Guo et al. 2020, arXiv:1904.00420) need not compute the others. Its
parameters are those of the whole supernet, with the edges first; here an edge takes its
row. The edges are a loop, so that an operation compiles once a cell. All that is kept
for the gradient are the states: the backward loop computes operations again.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array, PyTree
from jaxnas.nn.ops import OPS, Identity
from jaxnas.nn.probes import AGREEMENT


class Loop(NamedTuple):
    """What is static of edges whose operations have equal shapes, E of them."""

    op_names: tuple[str, ...]  # the K choices of each
    how: tuple  # channels, stride and norms of the operations
    sources: tuple[int, ...]  # states that edges leave
    targets: tuple[int, ...]  # and enter
    train: bool
    agreement: bool  # whether to tell how ReLUs agree, see `jaxnas.nn.probes`

    def build(self, k: int) -> Any:
        """The module of a choice for one edge; None: it contributes nothing."""
        name = self.op_names[k]
        return OPS[name](1, *self.how) if name in OPS else None

    def no_agreement(self, count: int) -> Array:
        """That of so many images, of no ReLUs."""
        return jnp.zeros((count, count) if self.agreement else (), jnp.float32)

    def rows(self, leaf: Array) -> np.ndarray:
        """The row of each edge where there is one for each, or for each source."""
        if len(leaf) == len(self.sources):
            return np.arange(len(leaf))
        states = list(dict.fromkeys(self.sources))
        return np.array([states.index(source) for source in self.sources])


class Found(NamedTuple):
    """What a loop over edges gives."""

    sums: Array  # float32[S, N, H, W, C], what entered the states
    batch_stats: Any  # float32[E, room] of the chosen ones; then as they were given
    agreement: Array  # float32[N, N] or, where it is not asked for, []


def choose(
    loop: Loop,
    x: Array | None,
    sums: Array,
    weights: Array,
    keep: Array | None,
    params: list[PyTree],
    batch_stats: list[PyTree],
) -> Found:
    """Adds the strongest operation of each edge, times its weight, to what it enters.

    There is no gradient by the weights of the others.

    Args:
      loop: see above.
      x: float32[S, N, H, W, C], what edges leave; None: what they enter.
      sums: float32[S, N, H', W', C], what they enter.
      weights: float32[E, K].
      keep: float32[E, N], factors from which a plain identity is exempt; or None.
      params: for each choice, with a row for each edge; {} where it has none.
      batch_stats: likewise, with a row for each edge or for each state that they leave.
    """
    index = jnp.argmax(weights, 1)
    factor = jnp.take_along_axis(weights, index[:, None], 1)[:, 0]
    fixed = index, keep, batch_stats
    found = _run(loop, fixed, x, sums, factor, params)
    stats = [
        _put(loop, found.batch_stats, index == k, old)
        for k, old in enumerate(batch_stats)
    ]
    return found._replace(batch_stats=stats)


def _operate(loop: Loop, k: int, e: Array, x, factor, keep, params, batch_stats):
    """Choice k for edge e: float32[1, N, H', W', C], statistics, agreement.

    Parameters and statistics are those of this edge and choice, with one row.
    """
    module, nothing = loop.build(k), loop.no_agreement(x.shape[1])
    if module is None:
        channels, stride, *_ = loop.how
        sides = (-(-side // stride) for side in x.shape[2:4])
        return jnp.zeros((1, x.shape[1], *sides, channels), x.dtype), {}, nothing
    mutable = ["batch_stats", *([AGREEMENT] if loop.agreement else [])]
    variables = {"params": params, "batch_stats": batch_stats}
    y, changed = module.apply(variables, x, loop.train, mutable=mutable)
    agreement = sum(jax.tree.leaves(changed.get(AGREEMENT, {})), nothing)
    if keep is not None and not isinstance(module, Identity):
        factor = factor * keep[e][None, :, None, None, None]
    return factor * y, changed.get("batch_stats", {}), agreement


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(loop: Loop, fixed, x, sums, factor, params) -> Found:
    return _forward(loop, fixed, x, sums, factor, params)[0]


def _forward(loop, fixed, x, sums, factor, params):
    index, keep, batch_stats = fixed
    packed = jnp.zeros((len(factor), _room(batch_stats)), sums.dtype)

    def take(k, e, seen, factor):
        rows = _row(loop, params[k], e), _row(loop, batch_stats[k], e)
        y, stats, agreement = _operate(loop, k, e, seen, factor, keep, *rows)
        return y, _pack(stats, packed[0]), agreement

    def step(found, edge):
        e, source, target = edge
        seen = (found.sums if x is None else x)[source][None]
        branches = [partial(take, k) for k in range(len(loop.op_names))]
        y, stats, agreement = lax.switch(index[e], branches, e, seen, factor[e])
        found = Found(
            found.sums.at[target].add(y[0]),
            found.batch_stats.at[e].set(stats),
            found.agreement + agreement,
        )
        return found, None

    start = Found(sums, packed, loop.no_agreement(sums.shape[1]))
    found = lax.scan(step, start, _edges(loop))[0]
    return found, (fixed, x, found.sums, factor, params)


def _backward(loop, saved, cotangents):
    (index, keep, batch_stats), x, sums, factor, params = saved
    packed = jnp.zeros((len(factor), _room(params)), sums.dtype)

    def pull(k, e, seen, factor, cotangent):
        stats = _row(loop, batch_stats[k], e)

        def value(seen, factor, row):
            return _operate(loop, k, e, seen, factor, keep, row, stats)[0]

        _, back = jax.vjp(value, seen, factor, _row(loop, params[k], e))
        by_seen, by_factor, by_row = back(cotangent)
        return by_seen, by_factor, _pack(by_row, packed[0])

    def step(found, edge):
        by_x, by_sums, by_factor, by_params = found
        e, source, target = edge
        seen = (sums if x is None else x)[source][None]
        branches = [partial(pull, k) for k in range(len(loop.op_names))]
        given = e, seen, factor[e], by_sums[target][None]
        by_seen, by_one, by_row = lax.switch(index[e], branches, *given)
        if x is None:
            by_sums = by_sums.at[source].add(by_seen[0])
        else:
            by_x = by_x.at[source].add(by_seen[0])
        by_factor, by_params = by_factor.at[e].set(by_one), by_params.at[e].set(by_row)
        return (by_x, by_sums, by_factor, by_params), None

    by_x, by_factor = jax.tree.map(jnp.zeros_like, (x, factor))
    start = by_x, cotangents.sums, by_factor, packed
    found, _ = lax.scan(step, start, _edges(loop), reverse=True)
    by_x, by_sums, by_factor, packed = found
    by_params = [
        _put(loop, packed, index == k, jax.tree.map(jnp.zeros_like, tree))
        for k, tree in enumerate(params)
    ]
    return None, by_x, by_sums, by_factor, by_params


_run.defvjp(_forward, _backward)


def _edges(loop: Loop) -> tuple[Array, ...]:
    """Edges, what they leave and enter, int32[E] each, in the order of the latter.

    So a state is whole before an edge leaves it, and its gradient in the other order.
    """
    order = np.argsort(loop.targets, kind="stable")
    columns = order, np.array(loop.sources)[order], np.array(loop.targets)[order]
    return tuple(jnp.asarray(column, jnp.int32) for column in columns)


def _row(loop: Loop, tree: PyTree, e: Array) -> PyTree:
    """What belongs to edge e, with one row."""
    return jax.tree.map(lambda x: x[jnp.asarray(loop.rows(x))[e]][None], tree)


def _room(trees: list[PyTree]) -> int:
    """The most numbers that a row of one of them has."""
    return max(sum(x[0].size for x in jax.tree.leaves(tree)) for tree in trees)


def _pack(tree: PyTree, room: Array) -> Array:
    """Puts a row's numbers one after another, at the beginning of zeros."""
    numbers = jnp.concatenate([room[:0], *(x.ravel() for x in jax.tree.leaves(tree))])
    return room.at[: len(numbers)].set(numbers)


def _put(loop: Loop, packed: Array, chosen: Array, tree: PyTree) -> PyTree:
    """Replaces the rows of the edges that chose it, bool[E], by what is packed.

    Edges that share a row have the same to put there.
    """
    leaves, structure = jax.tree.flatten(tree)
    found, start = [], 0
    for x in leaves:
        end = start + x[0].size
        owns = loop.rows(x)[None] == np.arange(len(x))[:, None]  # [rows, E]
        owns = owns & chosen[None]
        new = packed[jnp.argmax(owns, 1), start:end].reshape(x.shape)
        is_new = owns.any(1).reshape(-1, *[1] * (x.ndim - 1))
        found.append(jnp.where(is_new, new, x))
        start = end
    return jax.tree.unflatten(structure, found)
