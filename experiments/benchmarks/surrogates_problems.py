"""What surrogates are fitted to in surrogates.py: cells of NAS-Bench-201's space."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxnas import benchmarks
from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.spaces.nasbench201 import nasbench201

SPACE = nasbench201()


class Problems(NamedTuple):
    """P problems: what is known and what is predicted."""

    arch: np.ndarray  # int32[P, N, D]
    fitness: np.ndarray  # float32[P, N]
    wanted: np.ndarray  # int32[P, M, D]


Source = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""Draws a problem of so many architectures by its number: int32[A, D], float32[A]."""


def source(config: Any) -> Source:
    """What draws architectures and their fitness.

    Raises:
      InputError: the table is damaged, of another space, or too small.
    """
    if config.benchmark is None:
        return lambda number, size: synthetic(config.seed, number, size)
    table = benchmarks.load(config.benchmark)
    if table.space != SPACE.name or config.signal not in table.columns:
        raise InputError(
            f"expected a table of {SPACE.name} with {config.signal}, but got one of "
            f"{table.space} with {', '.join(table.columns)}: change either"
        )
    archs = np.asarray(table.archs)
    fitness = np.asarray(table.columns[config.signal])[:, 0]
    most = max((config.points, *config.sizes)) + config.predicted
    if most > len(archs):
        raise InputError(
            f"expected a table of {most} architectures or more, but got {len(archs)}: "
            "make --points, --predicted or --sizes smaller"
        )

    def draw(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((config.seed, number))
        chosen = rng.choice(len(archs), size, replace=False)
        return archs[chosen], fitness[chosen]

    return draw


def synthetic(seed: int, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws cells; operations add to their fitness, and pairs of them, and noise."""
    rng = np.random.default_rng((seed, number))
    archs = rng.integers(0, SPACE.num_choices, (size, len(SPACE.num_choices)))
    features = np.asarray(one_hot(archs, SPACE.num_choices)).reshape(size, -1)
    alone, pairs = rng.normal(size=features.shape[1]), rng.normal(size=(30, 30)) / 4
    fitness = features @ alone + ((features @ pairs) * features).sum(1)
    fitness += 0.3 * rng.normal(size=size)
    return archs.astype(np.int32), (70 + 5 * fitness).astype(np.float32)


def draw_problems(config: Any, draw: Source, number: int) -> Problems:
    """Draws so many problems."""
    size = config.points + config.predicted
    drawn = [draw(i, size) for i in range(number)]
    archs, fitness = (np.stack(part) for part in zip(*drawn, strict=True))
    known = config.points
    return Problems(archs[:, :known], fitness[:, :known], archs[:, known:])


def features(archs: np.ndarray) -> np.ndarray:
    """One-hot float32[..., D * K], as both sides have them."""
    encoded = np.asarray(one_hot(archs, SPACE.num_choices))
    return encoded.reshape(*archs.shape[:-1], -1)
