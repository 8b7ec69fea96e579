"""Search algorithms as ask and tell; `STRATEGIES[name](space)` makes one."""

from collections.abc import Callable

from jaxnas.base import Strategy
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.random_search import random_search

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "differentiable": differentiable,
    "random_search": random_search,
}
"""Every strategy by name, with the space as the one argument that it needs."""
