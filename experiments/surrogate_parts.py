"""What a surrogate is good for, besides the recipe: searching, fronts, explaining."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from surrogate_recipe import Problem

from jaxnas.base import Array, Evaluator, History, Strategy
from jaxnas.importance import importance
from jaxnas.incumbents import accuracy_at, bootstrap, final_accuracy, follow
from jaxnas.pareto import hypervolume, pareto_front
from jaxnas.search import search
from jaxnas.strategies.bayesian_optimization import bayesian_optimization
from jaxnas.strategies.nsga2 import nsga2
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.sms_emoa import sms_emoa
from jaxnas.surrogates import SURROGATES, refitted

FIRST = 10  # random architectures of a search


def acquired(config: Any, problem: Problem) -> dict[str, Any]:
    """Bayesian optimisation with all seeds: what was acquired, found and spent."""
    strategy = bayesian_optimization(
        problem.space,
        refitted(config.surrogate, problem.space),
        acquisition=config.acquisition,
        num_initial=FIRST,
        num_queries=config.queries,
    )
    size = jax.eval_shape(strategy.init, jax.random.key(0)).arch.shape[0]
    steps = max(config.queries // size, 1)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)

    def recording(f, init, xs):
        """Says with each step what was acquired of what it asks."""

        def recorded(carry, x):
            after, y = f(carry, x)
            score = carry[0].score  # 0 where nothing new was left to choose
            return after, (jnp.where(score == 0, jnp.nan, score), y)

        return jax.lax.scan(recorded, init, xs)

    def run(keys: Array, data: Any):
        evaluator = problem.evaluator._replace(data=data)
        _, (acquisition, log) = search(keys, strategy, evaluator, steps, recording)
        return log, acquisition

    program = jax.jit(run).lower(keys, problem.evaluator.data).compile()
    began = time.perf_counter()
    log, acquisition = jax.block_until_ready(program(keys, problem.evaluator.data))
    seconds = time.perf_counter() - began
    curves = follow(jax.device_get(log))
    grid = np.arange(1, steps + 1) * size
    is_asked = grid - size >= FIRST  # by the surrogate
    final = final_accuracy(curves)
    low, high = bootstrap(final)
    return {
        "name": config.acquisition,
        "queries": grid,
        "acquisition": np.where(is_asked, mean_of_known(acquisition), np.nan),
        "incumbent_test": accuracy_at(curves, curves.query, grid).mean(0),
        "test_accuracy": float(final.mean()),
        "ci95": [low, high],
        "surrogate_seconds": seconds / config.seeds,
        "training_cost": float(curves.cost[:, -1].mean()),
    }


def mean_of_known(values: Array) -> np.ndarray:
    """The mean over seeds and batch of [steps, seeds, batch], NaN where all are."""
    values = np.asarray(values)
    count = np.isfinite(values).sum((1, 2))
    total = np.nansum(values, (1, 2))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def fronts(config: Any, problem: Problem, evaluator: Evaluator) -> dict[str, Any]:
    """NSGA-II, SMS-EMOA and random search: their fronts, and how much they dominate.

    Args:
      config: of the experiment.
      problem: whose space is searched.
      evaluator: of a table, with one cost.
    """
    space, data = problem.space, evaluator.data
    worth, cost = np.asarray(data.fitness[:, -1]), np.asarray(data.costs[:, 0])
    every = jnp.stack([worth, -cost], 1)
    reference = jnp.array([config.reference, every[:, 1].min()])
    volume = jax.jit(partial(hypervolume, reference=reference))
    whole = float(volume(every))
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)

    def run(strategy: Strategy) -> tuple[np.ndarray, np.ndarray]:
        size = jax.eval_shape(
            lambda key: strategy.ask(key, 0, strategy.init(key)), keys[0]
        ).budget.size
        steps = max(config.front_queries // size, 1)

        @jax.jit
        def shares(keys, data):
            members = strategy, evaluator._replace(data=data)
            found = search(keys, *members, steps)[1].feedback.objectives
            found = jnp.moveaxis(found, 1, 0).reshape(len(keys), -1, 2)
            return jax.lax.map(volume, found), found

        volumes, found = jax.device_get(shares(keys, data))
        return volumes / whole, found

    rows: dict[str, Any] = {}
    points = {"the table": _front_of(np.asarray(every))}
    for make in (nsga2, sms_emoa, random_search):
        share, found = run(make(space))
        low, middle, high = np.quantile(share, (0.25, 0.5, 0.75))
        rows[make.__name__] = {"median": middle, "quartiles": [low, high]}
        typical = found[np.argsort(share)[len(share) // 2]]
        points[make.__name__] = _front_of(typical)
    return {
        "hypervolume": rows,
        "reference": reference,
        "points": points,
        "evaluated": [cost, worth],
        "cost": config.cost,
        "worth": "test accuracy (%)"
        if config.front_signal is None
        else config.front_signal,
    }


def front_of_evaluated(
    config: Any, problem: Problem, rows: list[dict[str, Any]], cost: Any
) -> dict[str, Any]:
    """The front of all that was trained for real, and how much it dominates."""
    archs = np.concatenate([row["archs"] for row in rows])
    worth = problem.factor * np.concatenate([row["fitness"] for row in rows])
    costs = np.asarray(jax.vmap(cost)(jnp.asarray(archs)))
    usable = np.isfinite(worth)
    every = np.stack([worth, -costs], 1)[usable]
    reference = np.array([config.reference, every[:, 1].min()])
    return {
        "hypervolume": float(hypervolume(jnp.asarray(every), jnp.asarray(reference))),
        "reference": reference,
        "points": {"evaluated": _front_of(every)},
        "evaluated": [costs[usable], worth[usable]],
        "cost": config.cost,
        "worth": problem.unit,
    }


def _front_of(objectives: np.ndarray) -> list[list[float]]:
    """Costs and worths of the Pareto front, from the cheapest on, each once."""
    front = objectives[np.asarray(pareto_front(jnp.asarray(objectives)))]
    front = np.unique(front, axis=0)
    return [(-front[::-1, 1]).tolist(), front[::-1, 0].tolist()]


def explained(config: Any, problem: Problem, row: dict[str, Any]) -> dict[str, Any]:
    """Which decisions matter to a surrogate of what the first seed trained."""
    surrogate = SURROGATES[config.surrogate](problem.space)
    fitness = jnp.asarray(np.array(row["fitness"], float), jnp.float32)
    known = jnp.isfinite(fitness)
    history = History(jnp.array(row["archs"], jnp.int32), fitness, known)

    @jax.jit
    def explain(key: Array, history: History):
        key_init, key_fit, key = jax.random.split(key, 3)
        model = surrogate.fit(key_fit, surrogate.init(key_init, history), history)
        return importance(key, lambda x: surrogate.predict(model, x)[0], problem.space)

    return jax.device_get(explain(jax.random.key(config.seed), history))._asdict()
