"""Search algorithms as ask and tell; `STRATEGIES[name](space)` makes one."""

from collections.abc import Callable
from typing import Any

from jaxnas.base import Strategy
from jaxnas.strategies.bayesian_optimization import bayesian_optimization
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.drnas import drnas
from jaxnas.strategies.enas import enas
from jaxnas.strategies.evolution_strategy import evolution_strategy
from jaxnas.strategies.gan_search import gan_search
from jaxnas.strategies.gdas import gdas
from jaxnas.strategies.genetic_algorithm import genetic_algorithm
from jaxnas.strategies.hyperband import hyperband
from jaxnas.strategies.latent_search import latent_search
from jaxnas.strategies.local_search import local_search
from jaxnas.strategies.nsga2 import nsga2
from jaxnas.strategies.pc_darts import pc_darts
from jaxnas.strategies.predictor_search import predictor_search
from jaxnas.strategies.progressive import progressive
from jaxnas.strategies.q_learning import q_learning
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution
from jaxnas.strategies.reinforce import reinforce
from jaxnas.strategies.sms_emoa import sms_emoa
from jaxnas.strategies.snas import snas
from jaxnas.strategies.successive_halving import successive_halving

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "bayesian_optimization": bayesian_optimization,
    "differentiable": differentiable,
    "drnas": drnas,
    "enas": enas,
    "evolution_strategy": evolution_strategy,
    "gan_search": gan_search,
    "gdas": gdas,
    "genetic_algorithm": genetic_algorithm,
    "hyperband": hyperband,
    "latent_search": latent_search,
    "local_search": local_search,
    "nsga2": nsga2,
    "pc_darts": pc_darts,
    "predictor_search": predictor_search,
    "progressive": progressive,
    "q_learning": q_learning,
    "random_search": random_search,
    "regularized_evolution": regularized_evolution,
    "reinforce": reinforce,
    "sms_emoa": sms_emoa,
    "snas": snas,
    "successive_halving": successive_halving,
}
"""Every strategy by name; the space is the one argument that it needs, see below."""

NEED_GRADIENT = ("differentiable", "drnas", "gdas", "pc_darts", "snas")
"""Those of them that need `Feedback.grad`, which a supernet gives."""

NEED_SURROGATE = ("bayesian_optimization", "predictor_search", "progressive")
"""Those that take a `Surrogate` as their second argument."""

NEED_GENERATOR = ("gan_search", "latent_search")
"""Those that take a `Generator` as their second argument; a surrogate may follow."""

NEED_OBJECTIVES = ("nsga2", "sms_emoa")
"""Those that need `Feedback.objectives`: `evaluators.objectives.with_objectives`."""

SUPERNETS: dict[str, dict[str, Any]] = {
    "gdas": {"single_path": True},
    "pc_darts": {"partial": 4},
}
"""What `space.network` takes for the supernet of those that have one of their own."""
