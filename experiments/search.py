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
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from retraining import draw_curves, prepare, train_network
from search_plan import plan
from search_results import FAILURES, draw_search, note_failure, write_candidates

from jaxnas import cli, data, parallel, runs
from jaxnas.base import (
    Evaluator,
    InputError,
    Log,
    SearchSpace,
    Strategy,
)
from jaxnas.evaluators.memory import largest_group
from jaxnas.evaluators.population import population
from jaxnas.evaluators.standalone import standalone
from jaxnas.search import chunked_scan, search
from jaxnas.spaces import SPACES
from jaxnas.strategies import NEED_GRADIENT, NEED_OBJECTIVES, STRATEGIES
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd

EVALUATORS = {"population": population, "standalone": standalone}
# Those that need a supernet or objectives, or whose next proposal follows from the
# last answer.
NOT_HERE = (*NEED_GRADIENT, *NEED_OBJECTIVES, "enas", "local_search")


@dataclass(frozen=True)
class Config:
    """Search a network by training candidates, then train the best one."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes minutes on a CPU; the other flags change a preset's values."""
    space: Literal[tuple(SPACES)] = "chain"
    strategy: Literal[tuple(n for n in STRATEGIES if n not in NOT_HERE)] = (
        "regularized_evolution"
    )
    evaluator: Literal[tuple(EVALUATORS)] = "population"
    """population trains candidates as one program, standalone each by itself."""
    dataset: str = "auto"
    """A name (auto, cifar10, mnist, fashion_mnist, digits), an .npz or a folder."""
    image_size: int | None = None
    """Pixels along a side that images are resized to."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/search")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""

    evaluations: int = 256
    """Whole trainings of candidates; a part of the epochs counts as that part."""
    batch: int = 16
    """Candidates a step of the search."""
    epochs: int = 12
    """Of a candidate's whole training; halving begins with a ninth and a third."""
    train_examples: int | None = None
    """Images that candidates learn from, the first of a shuffle, and as many at most
    that they are compared on; all by default."""
    fitness: Literal["accuracy", "precision", "recall", "f1", "cross_entropy"] = (
        "accuracy"
    )
    """What is searched for, on the validation set."""
    batch_size: int = 64
    learning_rate: float = 0.05
    channels: int | None = None
    """Of the first cell or block, for spaces that are made of those."""
    cells: int | None = None
    """Likewise; of each stage for nasbench201."""
    final_epochs: int = 100
    """Of the training of the best network on all training images."""
    chunk: int = 100
    """Steps of that training between two checkpoints, at most."""


PRESETS = {
    "quick": Config(
        evaluations=64,
        batch=8,
        epochs=6,
        batch_size=32,
        final_epochs=30,
        channels=8,
        cells=3,
    ),
    "paper": Config(),
}
SEARCH = ("evaluations", "fitness", "best_fitness", "failed", "train_loss")
SEARCH_COLUMNS = (*SEARCH, "train_accuracy")


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    name = config.dataset
    if name == "auto":  # a run that was begun keeps its dataset
        name = runs.configuration(config.workdir).get("dataset", name)
    dataset = data.load(name, config.data_dir, image_size=config.image_size)
    config = replace(config, dataset=dataset.name if name == "auto" else name)
    check(config, dataset)
    members = build(config, dataset)
    cli.run_or_show(
        config, SEARCH_COLUMNS, lambda run: work(config, dataset, run, *members)
    )


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    num_train = len(dataset.train_labels)
    counts = "evaluations", "batch", "epochs", "final_epochs", "chunk"
    ranges = {name: (1, inf) for name in (*counts, "channels", "cells", "image_size")}
    ranges |= {
        "train_examples": (config.batch_size, num_train * 4 // 5),
        "batch_size": (1, num_train // 2),
        "learning_rate": (0, inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    if config.batch > config.evaluations:
        raise InputError(
            f"expected --batch up to the {config.evaluations} evaluations, but got "
            f"{config.batch}: ask for fewer at a time"
        )


def build(
    config: Config, dataset: data.Dataset
) -> tuple[SearchSpace, Strategy, Evaluator, dict[str, Any], int]:
    """Makes the space, the strategy, the evaluator, the networks' size, and steps."""
    shape = dataset.train_images.shape[1:]
    chain = SPACES["chain"]
    space = chain(shape) if config.space == "chain" else SPACES[config.space]()
    network = space.network(space.sample(jax.random.key(0)))
    sized = {"channels": config.channels, "cells": config.cells}
    size = {k: v for k, v in sized.items() if v and hasattr(network, k)}
    budgets = sorted({ceil(config.epochs / 9), ceil(config.epochs / 3), config.epochs})
    given = {
        "batch_size": config.batch,
        "num_queries": config.evaluations,
        "population_size": min(config.evaluations // 2 or 1, 32),
        "tournament_size": 5,
        "budgets": budgets,
    }
    taken = inspect.signature(STRATEGIES[config.strategy]).parameters
    settings = {k: v for k, v in given.items() if k in taken}
    strategy = STRATEGIES[config.strategy](space, **settings)
    num_steps, num_slots = plan(config, strategy)
    parts = batches_of(config, dataset)
    is_population = config.evaluator == "population"
    own: dict[str, Any] = {"num_slots": num_slots}
    if not is_population:
        own = {"failed": partial(note_failure, config.workdir / FAILURES, space)}
    per_epoch = len(parts["train"].labels) // config.batch_size
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, config.epochs * per_epoch
    )
    make = partial(
        EVALUATORS[config.evaluator],
        space,
        classification(),
        parts,
        prepare(dataset, cutout=0),
        num_classes=len(dataset.class_names),
        tx=sgd(schedule, 0.9, 3e-4),
        epochs=config.epochs,
        batch_size=config.batch_size,
        fitness=config.fitness,
        **own,
        **size,
    )
    if is_population and jax.default_backend() != "cpu":  # there, one at a time
        num_decisions = len(space.num_choices)
        group = largest_group(
            lambda group: make(group=group), num_decisions, config.batch
        )
        return space, strategy, make(group=group), size, num_steps
    return space, strategy, make(), size, num_steps


def batches_of(config: Config, dataset: data.Dataset) -> dict[str, Batch]:
    """Four fifths of the training images to train candidates, a fifth to compare."""
    key, *_ = jax.random.split(jax.random.key(config.seed), 3)
    images, labels = dataset.train_images, dataset.train_labels
    train, valid = data.split(key, images, labels, 0.8)
    first = slice(config.train_examples)
    parts = {"train": train, "valid": valid}
    return {name: Batch(x[first], y[first]) for name, (x, y) in parts.items()}


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
    _, key_search, key_train = jax.random.split(jax.random.key(config.seed), 3)

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
    if not np.isfinite(log.feedback.fitness).any():
        raise InputError(
            "expected a candidate that can be trained, but all failed: see "
            f"{run.path('candidates.csv')}, and try another --learning-rate or --space"
        )
    arch = strategy.recommend(state, log)
    found = space.to_string(arch)
    run.write_json("architecture.json", {"space": space.name, "architecture": found})
    num_classes = len(dataset.class_names)
    network = space.network(arch, num_classes=num_classes, **size)
    per_epoch = len(dataset.train_labels) // config.batch_size
    num_final = config.final_epochs * per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, num_final)
    trained = train_network(
        run,
        dataset,
        network,
        key_train,
        tx=optax.chain(optax.clip_by_global_norm(5.0), sgd(schedule, 0.9, 3e-4)),
        num_steps=num_final,
        batch_size=config.batch_size,
        chunk=min(config.chunk, ceil(num_final / 20)),  # a curve of 20 points or more
        cutout=False,
    )
    draw_curves(
        run, "retraining", {f"train_{x}": "training" for x in ("loss", "accuracy")}
    )
    found_by = (log.proposal.arch == np.asarray(arch)).all(-1) * log.proposal.budget
    value = log.feedback.metrics[config.fitness][found_by == found_by.max()].max()
    return {
        "dataset": dataset.name,
        "space": space.name,
        "strategy": config.strategy,
        "architecture": found,
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
