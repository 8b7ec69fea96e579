"""Cholesky factors of many matrices, one after the other on a CPU.

There LAPACK is as fast in a loop (100 x 100, 80 of them: 0.04 ms each and 0.03), and
jaxlib 0.10's own loop over a batch, which shares it among threads, may wait for itself
for ever within a `while`. Elsewhere the batch goes as one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular

from jaxnas.base import Array


def _one_by_one(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(size, batched, stack):
        del size, batched  # it has one argument
        found = lax.platform_dependent(
            stack, cpu=lambda stack: lax.map(mapped, stack), default=jax.vmap(function)
        )
        return found, True

    return mapped


@_one_by_one
def cholesky(matrix: Array) -> Array:
    """The lower factor of float[N, N]; NaN where it is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@_one_by_one
def inverse_factor(matrix: Array) -> Array:
    """The inverse of that factor; lower too."""
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return solve_triangular(jnp.linalg.cholesky(matrix), eye, lower=True)


JITTERS = 6  # powers of ten that are tried, from 1e-6 of the diagonal on


def with_jitter(factorize: Callable[[Array], Array], matrix: Array) -> Array:
    """Factorizes float[N, N] with the least jitter that makes it positive definite."""
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    least = 1e-6 * jnp.diagonal(matrix).mean()

    def fails(tried):
        number, factor = tried
        return (number < JITTERS) & ~jnp.isfinite(factor).all()

    def again(tried):
        number, _ = tried
        jitter = least * 10.0 ** number.astype(matrix.dtype)
        return number + 1, factorize(matrix + jitter * eye)

    return lax.while_loop(fails, again, (jnp.int32(0), factorize(matrix)))[1]
