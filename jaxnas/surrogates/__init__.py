"""Models of fitness by architecture; `SURROGATES[name](space)` makes one."""

from collections.abc import Callable
from typing import Any

from jaxnas.base import SearchSpace, Surrogate
from jaxnas.surrogates.ensemble import ensemble
from jaxnas.surrogates.gp import gp
from jaxnas.surrogates.graph_predictor import graph_predictor
from jaxnas.surrogates.random_forest import random_forest
from jaxnas.surrogates.svm import svm

SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "ensemble": ensemble,
    "gp": gp,
    "graph_predictor": graph_predictor,
    "random_forest": random_forest,
    "svm": svm,
}
"""Every surrogate by name, with the space as the one argument that it needs."""

REFITTED: dict[str, dict[str, Any]] = {
    "ensemble": {"num_updates": 60, "targets": "ranks"},
    "gp": {"num_starts": 1, "num_updates": 10, "targets": "clipped"},
    "graph_predictor": {"num_updates": 10, "targets": "ranks"},
    "random_forest": {"num_trees": 30, "targets": "clipped"},
    "svm": {"num_bags": 5, "targets": "clipped"},
}
"""Settings that are cheap enough for a surrogate that is fitted after every step."""


def refitted(name: str, space: SearchSpace) -> Surrogate:
    """Makes a surrogate for a search that looks for the best and fits after each step.

    Args:
      name: of `SURROGATES`.
      space: that is searched.
    """
    return SURROGATES[name](space, **REFITTED[name])
