"""Which architectures generators learn from, and the loop in which they do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, History, InputError, PyTree, SearchSpace
from jaxnas.checks import expect


def rank_weights(history: History, sharpness: float) -> Array:
    """How often each is learnt from, by its rank: float32[N], of sum 1, or all 0.

    The weight of the r-th best of n, r from 0, is in proportion to 1 / (k n + r):
    weighted retraining (Tripp, Daxberger and Hernández-Lobato 2020, arXiv:2006.09191).
    The smaller k, the more are the best alone learnt from; the larger, the more alike
    are all.

    Args:
      history: what is known is ranked, equal ones as they come.
      sharpness: k, above 0.
    """
    fitness = jnp.where(history.known, history.fitness, -jnp.inf)
    order = jnp.argsort(-fitness)
    rank = jnp.zeros(len(order)).at[order].set(jnp.arange(len(order), dtype=float))
    count = history.known.sum()
    weights = jnp.where(history.known, 1 / (sharpness * count + rank), 0.0)
    return weights / jnp.maximum(weights.sum(), 1e-12)


def draw_told(key: Array, history: History, weights: Array, size: int) -> Array:
    """Places int32[size] of a history, by their weights; any where all are 0."""
    ends = jnp.cumsum(weights)
    drawn = jax.random.uniform(key, (size,)) * ends[-1]
    return jnp.minimum(jnp.searchsorted(ends, drawn, side="right"), len(ends) - 1)


def expect_fitted(step: Array) -> None:
    """Refuses to ask networks that have not learnt anything; a tracer passes.

    Raises:
      InputError: not one update was made.
    """
    if not isinstance(step, jax.core.Tracer) and not (step > 0).all():
        raise InputError(
            "expected a generator that was fitted, but it has made 0 updates: call fit "
            "first, or give it num_pretrain of 1 or more; if it had some, they ended "
            "with what is not finite: lower its learning_rate"
        )


def expect_updates(num_pretrain: int, num_updates: int) -> None:
    """Refuses numbers of updates, 0 or more each, by which nothing is ever learnt.

    Raises:
      InputError: one is below 0, or both are 0.
    """
    expect(0, num_pretrain=num_pretrain, num_updates=num_updates)
    if not num_pretrain and not num_updates:
        raise InputError(
            "expected num_pretrain or num_updates of 1 or more, but got 0 for both: "
            "raise one"
        )


def draw_any(key: Array, space: SearchSpace, size: int) -> Array:
    """Architectures int32[size, D] of the space."""
    return jax.vmap(space.sample)(jax.random.split(key, size))


def learn(
    key: Array,
    state: PyTree,
    update: Callable[[Array, PyTree, PyTree], tuple[PyTree, dict]],
    draw: Callable[[Array], PyTree],
    count: int,
) -> PyTree:
    """Updates a state so many times, each on a batch of its own.

    Where that ends with what is not finite, the state stays as it was.

    Args:
      key: PRNG key.
      state: what is trained.
      update: key, state, batch -> state, metrics.
      draw: key -> batch.
      count: how many times, 0 or more.
    """

    if not count:  # nothing is compiled
        return state

    def one(i, state):
        key_draw, key_update = jax.random.split(jax.random.fold_in(key, i))
        return update(key_update, state, draw(key_draw))[0]

    learnt = lax.fori_loop(0, count, one, state)
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(learnt)]
    kept = jnp.stack(finite).all()
    return jax.tree.map(lambda new, old: jnp.where(kept, new, old), learnt, state)
