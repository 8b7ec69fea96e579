"""How sharp the loss is in the architecture: what grows before DARTS collapses.

Zela, Elsken, Saikia, Marrakchi, Brox and Hutter 2020, arXiv:1909.09656: where the
largest eigenvalue of the Hessian of the validation loss by the logits of the
architecture is large, the discrete network is worse than the relaxed one. It is found
by Lanczos's iteration on products of the Hessian with vectors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array


def curvature(
    key: Array, loss: Callable[[Array], Array], weights: Array, num_iterations: int
) -> Array:
    """The largest eigenvalue of the Hessian of a loss by the logits, float32[].

    The weights are a softmax of the logits by rows, times a number that is held, as
    where edges are weighted too. A softmax is blind to a constant for each row, so
    that the eigenvalue is never negative; of weights that are one-hot it is 0.

    Args:
      key: of the first vector.
      loss: of weights.
      weights: float32[D, K], at least 0; 0 where there is no choice.
      num_iterations: see `largest_eigenvalue`.
    """
    sums = weights.sum(1, keepdims=True)

    def by_shift(shift: Array) -> Array:
        """The loss where the logits, which are log(weights), are shifted."""
        shifted = weights * jnp.exp(shift)
        total = shifted.sum(1, keepdims=True)
        return loss(sums * shifted / jnp.where(total > 0, total, 1))

    return largest_eigenvalue(key, by_shift, jnp.zeros_like(weights), num_iterations)


def largest_eigenvalue(
    key: Array, function: Callable[[Array], Array], x: Array, num_iterations: int
) -> Array:
    """The largest eigenvalue of the Hessian of a function at x, float32[].

    It is the largest of Lanczos's Ritz values, with full reorthogonalisation, and
    never above the eigenvalue but by rounding. An entry of x that does not matter adds
    an eigenvalue of 0, as it does to the Hessian.

    Args:
      key: of the first vector.
      function: of an array like x, -> float32[]; its products are forward over
        reverse.
      x: float32[...].
      num_iterations: products with the Hessian; more than the entries of x do not
        help and are not made.
    """
    size = min(num_iterations, x.size)
    epsilon = x.size * jnp.finfo(x.dtype).eps

    def product(vector: Array) -> Array:
        along = vector.reshape(x.shape)
        return jax.jvp(jax.grad(function), (x,), (along,))[1].ravel()

    def iterate(carry: tuple[Array, Array], i: Array):
        basis, vector = carry
        basis = basis.at[i].set(vector)
        curved = product(vector)
        rest = curved
        for _ in range(2):  # once leaves what rounding left
            rest = rest - _dot(_dot(basis, rest), basis)
        norm = jnp.linalg.norm(rest)
        ends = norm <= epsilon * jnp.linalg.norm(curved)
        following = jnp.where(ends, 0.0, rest / jnp.where(ends, 1.0, norm))
        outcome = _dot(vector, curved), jnp.where(ends, 0.0, norm), ends
        return (basis, following), outcome

    start = jax.random.normal(key, (x.size,), x.dtype)
    carry = jnp.zeros((size, x.size), x.dtype), start / jnp.linalg.norm(start)
    _, (diagonal, beside, ends) = lax.scan(iterate, carry, jnp.arange(size))
    # Past an invariant subspace vectors are 0, which is no Ritz value: the first of
    # the diagonal takes its place, since the largest eigenvalue is at least that.
    ended = jnp.cumsum(ends) - ends > 0
    diagonal = jnp.where(ended, diagonal[0], diagonal)
    above = jnp.diag(beside[:-1], 1)
    return jnp.linalg.eigvalsh(jnp.diag(diagonal) + above + above.T)[-1]


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)
