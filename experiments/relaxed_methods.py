"""The differentiable methods by the names of their papers, and their settings."""

from collections.abc import Callable
from typing import Any

import optax

from jaxnas.base import SearchSpace, Strategy
from jaxnas.strategies import STRATEGIES, SUPERNETS

METHODS = {
    "darts": "differentiable",
    "gdas": "gdas",
    "snas": "snas",
    "drnas": "drnas",
    "pc_darts": "pc_darts",
}
SAMPLED = "gdas", "snas", "drnas"
"""Those whose networks are drawn at random."""
PARTS = SUPERNETS["pc_darts"]["partial"]
"""Operations of PC-DARTS see one channel in so many."""


def supernet_settings(method: str) -> dict[str, Any]:
    """What `space.network` takes for the supernet of a method."""
    return SUPERNETS.get(METHODS[method], {})


def make_strategy(
    method: str, space: SearchSpace, num_steps: int, **settings: Any
) -> Strategy:
    """Makes the strategy of a search of so many steps; settings are those of all."""
    if method in ("gdas", "snas"):
        settings["num_steps"] = num_steps
    if method == "pc_darts":
        settings["warmup"] = round(0.3 * num_steps)  # 15 of 50 epochs
    make: Callable[..., Strategy] = STRATEGIES[METHODS[method]]
    return make(space, **settings)


def weights_schedule(rate: float, num_steps: int) -> optax.Schedule:
    """The learning rate of shared weights: a cosine from 0.025 to 0.001, in DARTS."""
    return optax.cosine_decay_schedule(rate, num_steps, 0.04)
