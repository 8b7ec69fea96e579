"""What evaluators of shared weights have in common: two halves, steps left out."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxnas.base import Array, InputError, PyTree
from jaxnas.data import batch_indices
from jaxnas.tasks import Batch

WEIGHTS, ARCHITECTURE = 0, 1  # which half, which stream of random numbers


def check_batch_size(halves: Sequence[Batch], batch_size: int) -> None:
    """Refuses batches that a half does not have.

    Raises:
      InputError: see above.
    """
    fewest = min(len(half.labels) for half in halves)
    if not 0 < batch_size <= fewest:
        raise InputError(
            f"expected a batch size from 1 to {fewest}, half of the training data, "
            f"but got {batch_size}: choose one in this range"
        )


def draw(
    prepare: Callable[[Array, Array], Array],
    batch_size: int,
    halves: Sequence[Batch],
    key: Array,
    half: int,
    step: Array,
) -> Batch:
    """Draws the batch of a step, always the same for the same key, half and step.

    Args:
      prepare: `(key, uint8[B, ...]) -> float32`.
      batch_size: B.
      halves: images uint8[N, H, W, colours], labels int32[N] and what is given.
      key: of both halves, the same one at every step.
      half: which one.
      step: int32[].
    """
    key_order, key_prepare = jax.random.split(jax.random.fold_in(key, half))
    images, labels, given = halves[half]
    index = batch_indices(key_order, step, len(labels), batch_size)
    key_prepare = jax.random.fold_in(key_prepare, step)
    return Batch(prepare(key_prepare, images[index]), labels[index], given)


@custom_vmap
def _any_of_batch(flag: Array) -> Array:
    """A bool[] that stays one for all under vmap: a `lax.cond` on it stays a branch."""
    return flag


@_any_of_batch.def_vmap
def _(_, batched: list[bool], flag: Array) -> tuple[Array, bool]:
    del batched
    return _any_of_batch(flag.any()), False


def run_where(flag: Array, function: Callable, otherwise: PyTree, *args: PyTree):
    """`function(*args)` where a flag, bool[], holds; where none does, it is not run."""

    def run(*args):
        new = function(*args)
        return jax.tree.map(partial(jnp.where, flag), new, otherwise)

    return lax.cond(_any_of_batch(flag), run, lambda *_: otherwise, *args)
