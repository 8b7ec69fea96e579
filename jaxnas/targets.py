"""Fitness as what a model learns, and what a model predicts as fitness.

`standard` takes mean and deviation out. `ranks` gives each fitness the quantile of a
normal distribution at its rank (Salinas, Shen and Perrone 2020, arXiv:1909.13595): so
a few architectures that learn nothing weigh no more than others. `clipped` is for who
looks for the best: what is further below the median than the best is above it counts as
just so far below, unless the median is the best, and then is as `standard`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxnas.base import Array, History
from jaxnas.checks import expect_one_of

TARGETS = ("clipped", "ranks", "standard")
OUTER = 0.1  # the part of the points whose slope goes on beyond the last


class Scale(NamedTuple):
    """A rising curve of fitness over targets, linear between P points."""

    target: Array  # float[P], ascending
    fitness: Array  # float[P], ascending
    slopes: Array  # float[2], before the first point and after the last


def check_targets(name: str) -> None:
    """Refuses a name that is not one of `TARGETS`.

    Raises:
      InputError: it is none.
    """
    expect_one_of("targets", name, TARGETS)


def usable(history: History) -> History:
    """Leaves out what is not finite."""
    known = history.known & jnp.isfinite(history.fitness)
    return History(history.arch, jnp.where(known, history.fitness, 0.0), known)


def to_targets(history: History, name: str) -> tuple[Array, Scale]:
    """Returns targets float[N], 0 where nothing is known, and the way back.

    Args:
      history: whose fitness is finite where it is known, see `usable`.
      name: of `TARGETS`.
    """
    if name == "ranks":
        return _ranks(history)
    if name == "clipped":
        known = jnp.where(history.known, history.fitness, jnp.nan)
        middle, best = jnp.nanmedian(known), jnp.nanmax(known)
        # Where half are as good as the best there is nothing to clip by.
        clips = history.known.any() & (middle < best)
        least = jnp.where(clips, 2 * middle - best, -jnp.inf)
        history = history._replace(fitness=jnp.maximum(history.fitness, least))
    return _standard(history)


def _standard(history):
    known, count = history.known, jnp.maximum(history.known.sum(), 1)
    # From the best on, or else what is equal would be apart by a rounded mean.
    best = jnp.max(jnp.where(known, history.fitness, -jnp.inf))
    best = jnp.where(known.any(), best, 0.0)
    fitness = jnp.where(known, history.fitness - best, 0.0)
    mean = fitness.sum() / count
    apart = jnp.where(known, fitness - mean, 0.0)
    most = jnp.max(jnp.abs(apart))
    most = jnp.where(most > 0, most, 1.0)  # by which squares stay finite
    deviation = most * jnp.sqrt(((apart / most) ** 2).sum() / count)
    deviation = jnp.where(deviation > 0, deviation, 1.0)
    mean = best + mean
    ends = jnp.array([-1.0, 1.0], fitness.dtype)
    slopes = jnp.full(2, deviation)
    return apart / deviation, Scale(ends, mean + deviation * ends, slopes)


def _ranks(history):
    known, count = history.known, jnp.maximum(history.known.sum(), 1)
    fitness = jnp.where(known, history.fitness, jnp.inf)
    ascending = jnp.sort(fitness)
    at_most = jnp.searchsorted(ascending, fitness, side="right")
    below = jnp.searchsorted(ascending, fitness, side="left")
    quantile = (below + at_most).astype(fitness.dtype) / (2 * count)
    target = ndtri(jnp.where(known, quantile, 0.5).astype(fitness.dtype))
    last = count - 1
    places = jnp.minimum(jnp.arange(len(fitness)), last)
    x = jnp.sort(jnp.where(known, target, jnp.inf))[places]
    y = jnp.where(known.any(), ascending[places], 0.0)
    x = jnp.where(known.any(), x, 0.0)
    inner = jnp.ceil(OUTER * count).astype(jnp.int32)
    high = _slope(x, y, jnp.maximum(last - inner, 0), last)
    low = _slope(x, y, 0, jnp.minimum(inner, last))
    return target, Scale(x, y, jnp.stack([low, high]))


def _slope(x, y, first, last):
    width = x[last] - x[first]
    return jnp.where(
        width > 0, (y[last] - y[first]) / jnp.where(width > 0, width, 1), 0
    )


def to_fitness(scale: Scale, target: Array) -> Array:
    """The fitness float[M] that targets float[M] stand for."""
    inside = jnp.interp(target, scale.target, scale.fitness)
    before = jnp.minimum(target - scale.target[0], 0.0)
    after = jnp.maximum(target - scale.target[-1], 0.0)
    return inside + scale.slopes[0] * before + scale.slopes[1] * after


def prediction(scale: Scale, mean: Array, deviation: Array) -> tuple[Array, Array]:
    """The fitness at the mean, and half of the way from a deviation below to above."""
    low = to_fitness(scale, mean - deviation)
    high = to_fitness(scale, mean + deviation)
    return to_fitness(scale, mean), (high - low) / 2
