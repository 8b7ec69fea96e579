"""What Gaussian processes compute: likelihood, posterior, joint draws.

Rasmussen and Williams 2006, https://gaussianprocess.org/gpml, algorithm 2.1. A point
that is not known has a row of the identity in the covariance and a target of 0: it
changes nothing, and shapes never change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array
from jaxnas.surrogates.kernels import Hyperparameters, Kernel, covariance
from jaxnas.surrogates.linalg import cholesky, inverse_factor, with_jitter


class Posterior(NamedTuple):
    """A process that has seen N points of F features."""

    hyper: Hyperparameters
    x: Array  # float[N, F]
    known: Array  # bool[N]
    inverse: Array  # float[N, N], of the covariance's lower Cholesky factor
    weights: Array  # float[N], the covariance's inverse times the targets


def gram(kernel: Kernel, hyper: Hyperparameters, x: Array, known: Array) -> Array:
    """The covariance of what is measured at float[N, F]: float[N, N]."""
    both = known[:, None] & known[None]
    noise = jnp.where(known, jnp.exp(hyper.noise), 1.0)
    return jnp.where(both, covariance(kernel, hyper, x, x), 0.0) + jnp.diag(noise)


@jax.custom_vjp
def log_likelihood(gram: Array, y: Array, known: Array) -> Array:
    """The log marginal likelihood float[], in nats, of targets float[N], 0 if unknown.

    NaN where the covariance float[N, N] is not positive definite. It has a gradient
    by the covariance alone, in closed form (equation 5.9).
    """
    return _forward(gram, y, known)[0]


def _forward(gram, y, known):
    inverse = inverse_factor(gram)
    white = inverse @ y
    determinant = -2 * jnp.log(jnp.diagonal(inverse)).sum()
    constant = known.sum().astype(gram.dtype) * np.log(2 * np.pi)
    return -0.5 * (white @ white + determinant + constant), (inverse, white)


def _backward(saved, tangent):
    inverse, white = saved
    weights = inverse.T @ white
    by_gram = weights[:, None] * weights[None] - inverse.T @ inverse
    return 0.5 * tangent * by_gram, None, None


log_likelihood.defvjp(_forward, _backward)


def condition(
    kernel: Kernel, hyper: Hyperparameters, x: Array, y: Array, known: Array
) -> Posterior:
    """Shows a process its data: float[N, F], targets float[N], bool[N]."""
    matrix = gram(kernel, hyper, x, known)
    inverse = with_jitter(inverse_factor, matrix, jnp.exp(hyper.scale))
    weights = inverse.T @ (inverse @ jnp.where(known, y, 0.0))
    return Posterior(hyper, x, known, inverse, weights)


def posterior_moments(
    kernel: Kernel, found: Posterior, x: Array
) -> tuple[Array, Array]:
    """Mean and variance, float[M] each, of the function at float[M, F]."""
    across, explained = _explained(kernel, found, x)
    variance = jnp.exp(found.hyper.scale) - (explained**2).sum(0)
    return across @ found.weights, jnp.maximum(variance, 0.0)


def posterior_draw(key: Array, kernel: Kernel, found: Posterior, x: Array) -> Array:
    """A draw of the function at float[M, F], all points together: float[M]."""
    across, explained = _explained(kernel, found, x)
    joint = covariance(kernel, found.hyper, x, x) - explained.T @ explained
    factor = with_jitter(cholesky, joint, jnp.exp(found.hyper.scale))
    noise = jax.random.normal(key, (len(x),), joint.dtype)
    return across @ found.weights + factor @ noise


def _explained(kernel, found, x):
    across = covariance(kernel, found.hyper, x, found.x)
    across = jnp.where(found.known[None], across, 0.0)
    return across, found.inverse @ across.T
