"""Cholesky factors of many matrices, one after the other on a CPU.

There LAPACK is as fast in a loop (100 x 100, 80 of them: 0.04 ms each and 0.03), and
jaxlib 0.10's own loop over a batch, which shares it among threads, may wait for itself
for ever within a `while`. Elsewhere the batch goes as one.

A factor's inverse is products of blocks on a CPU: LAPACK's triangular solve shares
small matrices among threads that wait for each other (100 x 100: 0.07 ms by blocks, 0.2
to 8 ms by LAPACK, the most where other processes run).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular

from jaxnas.base import Array, PyTree

BLOCK = 8  # most rows of a block that is inverted row by row


def one_by_one(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Makes `vmap` of a function a loop on a CPU; it closes over no traced value."""
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(size, batched, *args):
        def stacked(leaf, is_batched):
            shape = size, *leaf.shape
            return leaf if is_batched else jnp.broadcast_to(leaf[None], shape)

        found = lax.platform_dependent(
            jax.tree.map(stacked, args, tuple(batched)),
            cpu=lambda stack: lax.map(lambda each: mapped(*each), stack),
            default=lambda stack: jax.vmap(function)(*stack),
        )
        return found, jax.tree.map(lambda _: True, found)

    return mapped


@one_by_one
def cholesky(matrix: Array) -> Array:
    """The lower factor of float[N, N]; NaN where it is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@one_by_one
def inverse_factor(matrix: Array) -> Array:
    """The inverse of that factor; lower too."""
    return lax.platform_dependent(
        jnp.linalg.cholesky(matrix), cpu=_by_blocks, default=_by_solving
    )


def _by_solving(factor):
    eye = jnp.eye(len(factor), dtype=factor.dtype)
    return solve_triangular(factor, eye, lower=True)


def _by_blocks(factor):
    """Inverts a lower matrix: its diagonal's blocks, then those of twice the size."""
    number = 1  # of blocks; there are rows of the identity below where it is no divisor
    while number * BLOCK < len(factor):
        number *= 2
    each = -(-len(factor) // number)
    size = number * each
    lower = jnp.eye(size, dtype=factor.dtype)
    lower = lower.at[: len(factor), : len(factor)].set(factor)

    def diagonal(width):
        which = jnp.arange(size // width)
        return lower.reshape(len(which), width, len(which), width)[which, :, which]

    inverses = _by_substitution(diagonal(each))
    while len(inverses) > 1:
        # [[A, 0], [B, C]] has the inverse [[1/A, 0], [-1/C B 1/A, 1/C]].
        first, last = inverses[::2], inverses[1::2]
        width = first.shape[1]
        below = diagonal(2 * width)[:, width:, :width]
        below = -last @ (below @ first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], 2)
        inverses = jnp.concatenate([upper, jnp.concatenate([below, last], 2)], 1)
    return inverses[0, : len(factor), : len(factor)]


def _by_substitution(blocks):
    """The inverses of float[B, W, W], row by row, for which W is small."""
    eye = jnp.eye(blocks.shape[1], dtype=blocks.dtype)
    rows: list[Array] = []
    for i in range(len(eye)):
        row = jnp.broadcast_to(eye[i][None], (len(blocks), len(eye)))
        for j, above in enumerate(rows):
            row = row - blocks[:, i, j][:, None] * above
        rows.append(row / blocks[:, i, i][:, None])
    return jnp.stack(rows, 1)


JITTERS = 7  # powers of ten that are tried, from 1e-6 of the unit on


def with_jitter(
    factorize: Callable[[Array], Array], matrix: Array, unit: Array
) -> Array:
    """Factorizes float[N, N] with the least jitter that makes it positive definite.

    Args:
      factorize: `cholesky` or `inverse_factor`.
      matrix: float[N, N]; what is left of a difference may be no more than rounding.
      unit: float[], the size of what it was computed from.
    """
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    least = 1e-6 * unit

    def fails(tried):
        number, factor = tried
        return (number < JITTERS) & ~jnp.isfinite(factor).all()

    def again(tried):
        number, _ = tried
        jitter = least * 10.0 ** number.astype(matrix.dtype)
        return number + 1, factorize(matrix + jitter * eye)

    return lax.while_loop(fails, again, (jnp.int32(0), factorize(matrix)))[1]
