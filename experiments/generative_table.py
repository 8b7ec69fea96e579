"""Searches by generators on a table, beside others."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from generative_parts import Method, Work, in_steps, judge, known_to, qualities
from generative_results import draw, interval
from jax import lax

from jaxnas import benchmarks, cli, runs
from jaxnas.base import Evaluator, PyTree, SearchSpace, Strategy
from jaxnas.evaluators.tabular import tabular
from jaxnas.incumbents import accuracy_at, follow
from jaxnas.parallel import population_mesh, spread
from jaxnas.search import search
from jaxnas.spaces import space_of
from jaxnas.strategies.bayesian_optimization import bayesian_optimization
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution
from jaxnas.surrogates import refitted

POINTS = 50, 100, 192, 400  # queries at which others report


def on_table(config: Any, method: Method) -> tuple[Any, Work]:
    """Reads the table; returns what runs the searches that are not done yet."""
    table = benchmarks.load(config.benchmark)
    space = space_of(table)
    cli.check_ranges(config, {"queries": (1, len(table.archs))})
    dataset = table.datasets[0] if config.dataset == "auto" else config.dataset
    signals = config.signals or (benchmarks.default_signal(table),)
    config = replace(config, dataset=dataset, signals=signals)
    evaluators = {
        signal: tabular(space, table, dataset, signal=signal) for signal in signals
    }
    made = method.generator(space)
    config = replace(config, qualities=known_to(method, config.qualities))
    strategies = {method.name: method.strategy(space, made, in_steps(config))}
    strategies |= baselines(config, space)
    judges = {method.name: partial(judge, config, space, made)}

    def work(run: runs.Run) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for signal, evaluator in evaluators.items():
            for name, strategy in strategies.items():
                given = config, name, strategy, evaluator, judges.get(name)
                one = partial(search_seeds, *given)
                found.setdefault(signal, {})[name] = run.once(f"{signal}_{name}", one)
            best = float(np.max(evaluator.data.test))
            draw(run, f"{table.name}, {dataset}, {signal}", signal, best, found[signal])
        return {
            "benchmark": table.name,
            "source": table.source,
            "dataset": dataset,
            "space": space.name,
            "seeds": config.seeds,
            "queries": config.queries,
            "method": method.name,
            **found[signals[0]][method.name]["generator"],
            "incumbent_test_accuracy": {
                signal: {name: row["accuracy"] for name, row in rows.items()}
                for signal, rows in found.items()
            },
            "generator_seconds": {
                signal: rows[method.name]["seconds"] for signal, rows in found.items()
            },
            "seconds": {
                name: row["seconds"]["whole"] for name, row in found[signals[0]].items()
            },
            "best_test_accuracy": best,
            "qualities": qualities(config, method, run),
        }

    return config, work


def baselines(config: Any, space: SearchSpace) -> dict[str, Strategy]:
    """What others do with as many queries, by settings that suit a few hundred."""
    size = min(30, config.queries)
    model = refitted("gp", space)
    batch = {"batch_size": config.batch, "num_queries": in_steps(config)}
    return {
        "bayesian_optimization": bayesian_optimization(space, model, **batch),
        "regularized_evolution": regularized_evolution(
            space, population_size=size, tournament_size=min(10, size)
        ),
        "random_search": random_search(space),
    }


def search_seeds(
    config: Any,
    name: str,
    strategy: Strategy,
    evaluator: Evaluator,
    judged: Callable[[PyTree, np.ndarray], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Searches with all seeds, each core one after the other; times it by its parts.

    Args:
      config: of the run.
      name: of the strategy.
      strategy: what searches.
      evaluator: of the table.
      judged: says of the generator of the first seed, once it has searched, and of
        what it asked for, how good it is; None: there is no generator.
    """
    print(f"{name}  searching", flush=True)
    key = jax.random.key(config.seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(config.seeds))
    keys, keys_init = jax.vmap(jax.random.split)(keys).T
    size = jax.eval_shape(lambda k: strategy.ask(k, 0, strategy.init(k)), key)
    steps = -(-config.queries // size.budget.size)
    seconds = dict.fromkeys(("pretraining", "searching", "compiling"), 0.0)

    def one(data, given):
        key, state = given
        given = strategy, evaluator._replace(data=data), steps
        (state, _), log = search(key, *given, initial=(state, None))
        return log, state.model.generator if judged else ()

    def timed(part, function, *args):
        """Of networks as small as these a core computes one seed's the fastest."""
        mapped = spread(
            lambda data, each: lax.map(partial(function, data), each), population_mesh()
        )
        began = time.perf_counter()
        run = jax.jit(mapped).lower(*args).compile()
        seconds["compiling"] += time.perf_counter() - began
        began = time.perf_counter()
        found = jax.block_until_ready(run(*args))
        # Of one core: seeds go to as many as there are.
        cores = min(jax.device_count(), config.seeds)
        seconds[part] = (time.perf_counter() - began) * cores / config.seeds
        return found

    alike = jnp.ones(config.seeds)
    data = jax.tree.map(jnp.asarray, evaluator.data)
    begin = partial(timed, "pretraining", lambda _, key: strategy.init(key))
    states = begin((), keys_init, alike)
    log, fitted = timed("searching", one, data, (keys, states), alike)
    log = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 0, 1), log)
    curves = follow(log)
    points = [q for q in POINTS if q < config.queries] + [config.queries]
    found = accuracy_at(curves, curves.query, points)
    every = accuracy_at(curves, curves.query, np.arange(1, config.queries + 1))
    first = jax.tree.map(lambda x: x[:, 0].reshape(-1, *x.shape[3:]), log)
    fitted = jax.tree.map(lambda x: x[0], fitted)
    return {
        "accuracy": {
            str(q): interval(column) for q, column in zip(points, found.T, strict=True)
        },
        "every": every,
        # Those of compiling are of all seeds together.
        "seconds": {**seconds, "whole": seconds["pretraining"] + seconds["searching"]},
        "told": {"arch": first.proposal.arch, "fitness": first.feedback.fitness},
        "generator": judged(fitted, first.proposal.arch) if judged else None,
    }
