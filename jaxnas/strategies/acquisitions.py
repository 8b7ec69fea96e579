"""What an evaluation is worth to Bayesian optimisation, by a surrogate's word.

All are higher for who is more worth evaluating, in the unit of the fitness or monotone
in it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxnas.base import Array, PyTree, Surrogate

Acquisition = Callable[[Array, Surrogate, PyTree, Array, Array], Array]
"""key, surrogate, its state, int32[M, D], best fitness float32[] -> float32[M]."""

SMALL = 1e-12


def expected_improvement(
    key: Array, surrogate: Surrogate, state: PyTree, arch: Array, best: Array
) -> Array:
    """By how much the best is surpassed, on average: Jones, Schonlau and Welch 1998."""
    del key
    mean, deviation = surrogate.predict(state, arch)
    deviation = jnp.maximum(deviation, SMALL)
    apart = (mean - best) / deviation
    return deviation * (apart * norm.cdf(apart) + norm.pdf(apart))


def upper_confidence_bound(
    key: Array, surrogate: Surrogate, state: PyTree, arch: Array, best: Array
) -> Array:
    """Mean and two deviations: Srinivas et al. 2010, arXiv:0912.3995, at beta = 4."""
    del key, best
    mean, deviation = surrogate.predict(state, arch)
    return mean + 2 * deviation


def thompson_sampling(
    key: Array, surrogate: Surrogate, state: PyTree, arch: Array, best: Array
) -> Array:
    """A joint draw of all architectures' fitness: Thompson 1933."""
    del best
    return surrogate.sample(key, state, arch)


def independent_thompson_sampling(
    key: Array, surrogate: Surrogate, state: PyTree, arch: Array, best: Array
) -> Array:
    """A draw of each architecture's fitness: White et al. 2021, arXiv:1910.11858."""
    del best
    mean, deviation = surrogate.predict(state, arch)
    return mean + deviation * jax.random.normal(key, mean.shape, mean.dtype)


ACQUISITIONS: dict[str, Acquisition] = {
    "expected_improvement": expected_improvement,
    "independent_thompson_sampling": independent_thompson_sampling,
    "thompson_sampling": thompson_sampling,
    "upper_confidence_bound": upper_confidence_bound,
}
"""Every acquisition function by name."""
