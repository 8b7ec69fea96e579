"""What a search is given: steps for its evaluations, a surrogate for its strategy."""

import inspect
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import (
    Evaluator,
    Feedback,
    InputError,
    Proposal,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.search import search
from jaxnas.strategies import NEED_GENERATOR, NEED_GRADIENT, NEED_SURROGATE, STRATEGIES
from jaxnas.surrogates import SURROGATES, refitted

# Those that need a supernet or a generator, or one answer for the next proposal.
NOT_HERE = (*NEED_GRADIENT, *NEED_GENERATOR, "enas", "local_search")


def make_strategy(config: Any, space: SearchSpace) -> tuple[Strategy, int, int]:
    """Makes the strategy with settings for its evaluations; its steps and slots."""
    budgets = sorted({ceil(config.epochs / 9), ceil(config.epochs / 3), config.epochs})
    given: dict[str, Any] = {
        "batch_size": config.batch,
        "num_queries": config.evaluations,
        "population_size": min(config.evaluations // 2 or 1, 32),
        "tournament_size": 5,
        "budgets": budgets,
        "num_train": max(config.evaluations - config.batch, 1),
        "num_verify": config.batch,
        "beam_size": config.batch,
    }
    if config.strategy in NEED_SURROGATE:
        given["surrogate"] = surrogate_of(config.strategy, config.surrogate, space)
    taken = inspect.signature(STRATEGIES[config.strategy]).parameters
    settings = {k: v for k, v in given.items() if k in taken}
    strategy = STRATEGIES[config.strategy](space, **settings)
    return strategy, *plan(config, strategy)


def check_evaluations(config: Any) -> None:
    """Refuses more candidates a step than there are in all."""
    if config.batch > config.evaluations:
        raise InputError(
            f"expected --batch up to the {config.evaluations} evaluations, but got "
            f"{config.batch}: ask for fewer at a time"
        )


def surrogate_of(strategy: str, name: str, space: SearchSpace) -> Surrogate:
    """The surrogate with settings for how often a strategy fits it."""
    once = strategy == "predictor_search"
    return SURROGATES[name](space) if once else refitted(name, space)


def plan(config: Any, strategy: Strategy) -> tuple[int, int]:
    """The steps that spend the evaluations, and the slots for networks that go on."""

    def evaluate(key, data, state, proposal):  # budgets do not follow from answers
        ones = jnp.ones(len(proposal.budget))
        return state, Feedback(ones, ones, jnp.int32(ones), {})

    if "budgets" not in inspect.signature(STRATEGIES[config.strategy]).parameters:
        return ceil(config.evaluations / config.batch), 0
    toy = Evaluator((), lambda key: (), evaluate)
    most = config.evaluations * config.epochs
    _, log = search(jax.random.key(0), strategy, toy, most)
    budget = np.minimum(log.proposal.budget, config.epochs)
    if config.evaluator == "population":  # what goes on pays for the difference
        budget = budget - epochs_before(log.proposal, budget)
    spent = np.cumsum(budget.sum(1))
    num_steps = 1 + int(np.searchsorted(spent, config.evaluations * config.epochs))
    return min(num_steps, most), int(log.proposal.slot.max()) + 1


def epochs_before(asked: Proposal, budget: np.ndarray) -> np.ndarray:
    """The epochs that the slots' networks have behind them: int[T, B] of a log's."""
    before, held = np.zeros_like(budget), {}
    for place in np.ndindex(*budget.shape):
        slot, arch = int(asked.slot[place]), asked.arch[place].tobytes()
        if slot >= 0 and budget[place]:
            kept, epochs = held.get(slot, (None, 0))
            before[place] = epochs if kept == arch and epochs < budget[place] else 0
            held[slot] = arch, budget[place]
    return before
