"""Models of fitness by architecture; `SURROGATES[name](space)` makes one."""

from collections.abc import Callable

from jaxnas.base import Surrogate
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
