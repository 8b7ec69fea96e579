"""Search a network for images by training candidates for real, then train the best.

    python experiments/search.py --space chain --strategy regularized_evolution \
        --evaluator population --dataset digits --evaluations 64

Any space, strategy and dataset by name; one's own images as an .npz (`images`,
`labels`) or a folder with a folder of images for each class:

    python experiments/search.py --dataset my_images --image-size 32

On digits the quick preset takes a minute on two CPU cores, compiling included, and ends
at about 99 % test accuracy.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from candidates import (
    EVALUATORS,
    SEARCH,
    SMALL,
    TrainingConfig,
    check_training,
    cost_of,
    load_images,
    make_evaluator,
    make_space,
    search_candidates,
    train_best,
    value_of,
)
from search_plan import NOT_HERE, check_evaluations, make_strategy
from search_results import draw_front

from jaxnas import cli, data, parallel, runs
from jaxnas.base import Evaluator, InputError, SearchSpace, Strategy
from jaxnas.evaluators.objectives import with_objectives
from jaxnas.strategies import NEED_OBJECTIVES, STRATEGIES
from jaxnas.surrogates import SURROGATES


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
SEARCH_COLUMNS = (*SEARCH, "train_loss", "train_accuracy")


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
    check_evaluations(config)


def build(
    config: Config, dataset: data.Dataset
) -> tuple[SearchSpace, Strategy, Evaluator, dict[str, Any], int]:
    """Makes the space, the strategy, the evaluator, the networks' size, and steps."""
    space, size = make_space(config, dataset)
    strategy, num_steps, num_slots = make_strategy(config, space)
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
    _, arch, log = search_candidates(
        config, run, space, strategy, evaluator, num_steps, config.fitness
    )
    if log.feedback.objectives is not None:
        draw_front(run, log, config.fitness, config.cost)
    trained = train_best(config, dataset, run, space, arch, size)
    value = value_of(log, arch, config.fitness)
    return {
        "dataset": dataset.name,
        "space": space.name,
        "strategy": config.strategy,
        "architecture": space.to_string(arch),
        "evaluations": float(log.feedback.cost.sum()) / config.epochs,
        f"validation_{config.fitness}": (
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
