"""Search a network for images by training candidates for real, then train the best.

    python experiments/search.py --space chain --strategy regularized_evolution \
        --evaluator population --dataset digits --evaluations 64

Any space, strategy and dataset by name; one's own images as an .npz (`images`,
`labels`) or a folder with a folder of images for each class:

    python experiments/search.py --dataset my_images --image-size 32

On digits the quick preset takes a minute on two CPU cores, compiling included, and ends
at about 99 % test accuracy.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from candidates import (
    EVALUATORS,
    SMALL,
    TrainingConfig,
    check_training,
    cost_of,
    load_images,
    make_evaluator,
    make_space,
    train_best,
)
from search_plan import plan, surrogate_of
from search_results import FAILURES, draw_front, draw_search, write_candidates

from jaxnas import cli, data, parallel, runs
from jaxnas.base import Evaluator, InputError, Log, SearchSpace, Strategy
from jaxnas.evaluators.objectives import with_objectives
from jaxnas.search import chunked_scan, search
from jaxnas.strategies import (
    NEED_GRADIENT,
    NEED_OBJECTIVES,
    NEED_SURROGATE,
    STRATEGIES,
)
from jaxnas.surrogates import SURROGATES

# Those that need a supernet, or whose next proposal follows from the last answer.
NOT_HERE = (*NEED_GRADIENT, "enas", "local_search")


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Search a network by training candidates, then train the best one."""

    workdir: Path = Path("runs/search")
    """Where results go; the same command goes on from what is there."""
    strategy: Literal[tuple(n for n in STRATEGIES if n not in NOT_HERE)] = (
        "regularized_evolution"
    )
    surrogate: Literal[tuple(SURROGATES)] = "gp"
    """Of bayesian_optimization, predictor_search and progressive."""
    evaluator: Literal[tuple(EVALUATORS)] = "population"
    """population trains candidates as one program, standalone each by itself."""
    evaluations: int = 256
    """Whole trainings of candidates; a part of the epochs counts as that part."""


PRESETS = {"quick": Config(evaluations=64, **SMALL), "paper": Config()}
SEARCH = ("evaluations", "fitness", "best_fitness", "failed", "train_loss")
SEARCH_COLUMNS = (*SEARCH, "train_accuracy")


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    config, dataset = load_images(config)
    check(config, dataset)
    members = build(config, dataset)
    cli.run_or_show(
        config, SEARCH_COLUMNS, lambda run: work(config, dataset, run, *members)
    )


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    check_training(config, dataset)
    cli.check_ranges(config, {"evaluations": (1, inf)})
    measured = config.strategy in NEED_OBJECTIVES and config.cost == "latency"
    if measured and config.evaluator == "population":
        raise InputError(
            "expected --evaluator standalone for --cost latency, but got population, "
            "which leaves no core to measure on: change one"
        )
    if config.batch > config.evaluations:
        raise InputError(
            f"expected --batch up to the {config.evaluations} evaluations, but got "
            f"{config.batch}: ask for fewer at a time"
        )


def build(
    config: Config, dataset: data.Dataset
) -> tuple[SearchSpace, Strategy, Evaluator, dict[str, Any], int]:
    """Makes the space, the strategy, the evaluator, the networks' size, and steps."""
    space, size = make_space(config, dataset)
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
    num_steps, num_slots = plan(config, strategy)
    evaluator = make_evaluator(
        config, dataset, space, size, config.evaluator, num_slots
    )
    if config.strategy in NEED_OBJECTIVES:
        shape = dataset.train_images.shape[1:]
        costs = {config.cost: cost_of(config, space, shape, size)}
        evaluator = with_objectives(evaluator, costs)
    return space, strategy, evaluator, size, num_steps


def work(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    space: SearchSpace,
    strategy: Strategy,
    evaluator: Evaluator,
    size: dict[str, Any],
    num_steps: int,
) -> dict[str, Any]:
    """Searches, draws and trains; returns what result.json says of it."""
    _, key_search, _ = jax.random.split(jax.random.key(config.seed), 3)

    def summarise(log: Log) -> dict[str, Any]:
        before = run.log.read("searching")  # of this start and earlier ones
        fitness = log.feedback.fitness[log.proposal.budget > 0]
        usable = fitness[np.isfinite(fitness)]
        done = float(log.feedback.cost.sum()) / config.epochs
        row = {
            "evaluations": sum(before["evaluations"][-1:]) + done,
            "failed": len(fitness) - len(usable),
        }
        best = np.nanmax([-inf, *before["best_fitness"], *usable])
        if np.isfinite(best):
            row["best_fitness"] = best
        return row | ({"fitness": usable.mean()} if len(usable) else {})

    compiled = config.evaluator == "population"
    if not compiled:
        run.path(FAILURES)
        functions = {"ask": jax.jit(strategy.ask), "tell": jax.jit(strategy.tell)}
        strategy = strategy._replace(**functions)
    loop = partial(chunked_scan, compiled=compiled)
    with cli.phase(run, "searching", num_steps, 1, summarise, loop) as scan:
        (state, _), log = search(key_search, strategy, evaluator, num_steps, scan)
    write_candidates(run.path("candidates.csv"), space, log, config.epochs)
    draw_search(run, log, config.fitness)
    if log.feedback.objectives is not None:
        draw_front(run, log, config.fitness, config.cost)
    if not np.isfinite(log.feedback.fitness).any():
        raise InputError(
            "expected a candidate that can be trained, but all failed: see "
            f"{run.path('candidates.csv')}, and try another --learning-rate or --space"
        )
    arch = strategy.recommend(state, log)
    trained = train_best(config, dataset, run, space, arch, size)
    found_by = (log.proposal.arch == np.asarray(arch)).all(-1) * log.proposal.budget
    value = log.feedback.metrics[config.fitness][found_by == found_by.max()].max()
    return {
        "dataset": dataset.name,
        "space": space.name,
        "strategy": config.strategy,
        "architecture": space.to_string(arch),
        "evaluations": float(log.feedback.cost.sum()) / config.epochs,
        f"validation_{config.fitness}": float(
            value if config.fitness == "cross_entropy" else 100 * value
        ),
        "failed": int((log.feedback.status > 0).sum()),
        **trained,
        "search_steps_per_second": run.rate("searching"),
        "retrain_steps_per_second": run.rate("retraining"),
    }


if __name__ == "__main__":
    parallel.use_cpu_cores()
    cli.main(main, PRESETS)
