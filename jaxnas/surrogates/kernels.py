"""Covariances of a Gaussian process, as functions of a squared scaled distance.

Rasmussen and Williams 2006, https://gaussianprocess.org/gpml, chapter 4. Features are
divided by their length scales first. On one-hot features, with a length scale for each
decision, `rbf` is `hamming`, a kernel on categories: a product of factors, one for each
decision in which two architectures differ (Hutter, Hoos and Leyton-Brown 2011).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxnas.base import Array

TINY = 1e-20  # keeps the gradient of a root finite


class Hyperparameters(NamedTuple):
    """Logarithms, since all are above 0."""

    lengths: Array  # float[G], of each group of features
    scale: Array  # float[], variance of the function
    noise: Array  # float[], variance of what is measured about it


def rbf(squared: Array) -> Array:
    """The squared exponential."""
    return jnp.exp(-0.5 * squared)


def matern12(squared: Array) -> Array:
    """Of functions that are continuous, and no more."""
    return jnp.exp(-_root(squared))


def matern32(squared: Array) -> Array:
    """Of functions that have one derivative."""
    distance = _root(3 * squared)
    return (1 + distance) * jnp.exp(-distance)


def matern52(squared: Array) -> Array:
    """Of functions that have two derivatives."""
    distance = _root(5 * squared)
    return (1 + distance + distance**2 / 3) * jnp.exp(-distance)


def _root(squared):
    return jnp.sqrt(jnp.maximum(squared, TINY))


KERNELS = {
    "rbf": rbf,
    "matern12": matern12,
    "matern32": matern32,
    "matern52": matern52,
    "hamming": rbf,
}
"""`hamming` has a length scale for each decision, the others one for all."""


class Kernel(NamedTuple):
    """A covariance but for its hyperparameters."""

    shape: Callable[[Array], Array]  # squared distance -> correlation
    groups: tuple[int, ...]  # F entries, which of the length scales a feature has


def covariance(kernel: Kernel, hyper: Hyperparameters, x: Array, z: Array) -> Array:
    """Of the function at float[M, F] and float[N, F]: float[M, N]."""
    lengths = jnp.exp(hyper.lengths)
    if len(lengths) == 1:
        # So these products leave the loop over updates, and their gradient is none.
        squared = _squared(x, z) / lengths[0] ** 2
    else:
        each = lengths[jnp.array(kernel.groups)][None]
        squared = _squared(x / each, z / each)
    return jnp.exp(hyper.scale) * kernel.shape(squared)


def _squared(x, z):
    sums = (x**2).sum(1)[:, None] + (z**2).sum(1)[None]
    return jnp.maximum(sums - 2 * x @ z.T, 0)
