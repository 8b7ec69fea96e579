"""A loop over those of its steps that there are, which is known while it runs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, PyTree


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sequence(
    step: Callable[..., tuple[PyTree, PyTree]],
    there: Array,
    fixed: PyTree,
    x: PyTree,
    params: PyTree,
) -> tuple[PyTree, PyTree]:
    """Takes some of L steps, `x, found = step(fixed[i], x, params[i])`, one by one.

    As `lax.scan` over L steps, but what is not there costs nothing. A gradient keeps
    the x before each step alone, and computes the rest again; there is none of `found`.

    Args:
      step: for a step that is not there it returns x as it is: under vmap, some are
        taken.
      there: bool[L], which steps there are.
      fixed: arrays [L, ...], what is not differentiated by.
      x: arrays.
      params: arrays [L, ...].

    Returns:
      The last x, and what was found, [L, ...], of the steps that there are.
    """
    x, found, _ = _run(step, there, fixed, x, params, keep=False)
    return x, found


def _run(step, there, fixed, x, params, keep: bool):
    order, count = _plan(there)
    slots = len(there)

    def take(i, carry):
        x, found, kept = carry
        at = order[i]
        y, new = step(_pick(fixed, at), x, _pick(params, at))
        if keep:
            kept = _put(kept, x, i)
        return y, _put(found, new, at), kept

    shapes = jax.eval_shape(step, _pick(fixed, 0), x, _pick(params, 0))[1]
    found, kept = (
        jax.tree.map(lambda one: jnp.zeros((slots, *one.shape), one.dtype), tree)
        for tree in (shapes, x if keep else ())
    )
    return lax.fori_loop(0, count, take, (x, found, kept))


def _forward(step, there, fixed, x, params):
    x, found, kept = _run(step, there, fixed, x, params, keep=True)
    return (x, found), (there, fixed, kept, params)


def _backward(step, saved, cotangent):
    there, fixed, kept, params = saved
    order, count = _plan(there)

    def take(i, carry):
        cotangent, grads = carry
        i = count - 1 - i
        at = order[i]
        one = partial(step, _pick(fixed, at))
        _, pull, _ = jax.vjp(one, _pick(kept, i), _pick(params, at), has_aux=True)
        cotangent, new = pull(cotangent)
        return cotangent, _put(grads, new, at)

    zeros = jax.tree.map(jnp.zeros_like, params)
    return None, None, *lax.fori_loop(0, count, take, (cotangent[0], zeros))


sequence.defvjp(_forward, _backward)


def _plan(there: Array) -> tuple[Array, Array]:
    """The steps' numbers in the order of taking, and how many are taken."""
    return jnp.argsort(~there, stable=True), _longest(jnp.sum(there))


@jax.custom_batching.custom_vmap
def _longest(count: Array) -> Array:
    """Under vmap the most of all, so that all are in the same step of one loop."""
    return count


@_longest.def_vmap
def _(size, is_batched, count):
    return jnp.max(count), False


def _pick(tree: PyTree, i: Array | int) -> PyTree:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, False), tree)


def _put(tree: PyTree, new: PyTree, i: Array) -> PyTree:
    put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
    return jax.tree.map(put, tree, new)
