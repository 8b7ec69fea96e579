"""What experiments have in common that train candidates of a space for real."""

import math
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from retraining import draw_curves, prepare, train_network
from search_results import FAILURES, draw_search, note_failure, write_candidates

from jaxnas import cli, data, runs
from jaxnas.base import Evaluator, InputError, Log, PyTree, SearchSpace, Strategy
from jaxnas.evaluators.memory import largest_group
from jaxnas.evaluators.objectives import Cost, latency, size_costs
from jaxnas.evaluators.population import population
from jaxnas.evaluators.standalone import standalone
from jaxnas.search import chunked_scan, search
from jaxnas.spaces import GENERATIVE, SPACES
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd

EVALUATORS = {"population": population, "standalone": standalone}
COUNTS = "batch", "epochs", "final_epochs", "chunk", "channels", "cells", "image_size"


@dataclass(frozen=True)
class TrainingConfig:
    """The flags that such experiments share."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes minutes on a CPU; the other flags change a preset's values."""
    space: Literal[tuple(n for n in SPACES if n not in GENERATIVE)] = "chain"
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
    cost: Literal["parameters", "flops", "latency"] = "parameters"
    """What is to be little where there are two objectives; latency is measured."""
    final_epochs: int = 100
    """Of the training of the best network on all training images."""
    chunk: int = 100
    """Steps of that training between two checkpoints, at most."""


SMALL: dict[str, Any] = {
    "batch": 8,
    "epochs": 6,
    "batch_size": 32,
    "final_epochs": 30,
    "channels": 8,
    "cells": 3,
}
"""For the quick presets."""
SEARCH = ("evaluations", "fitness", "best_fitness", "failed")  # columns of the log


def load_images(config: Any, first: str = "cifar10") -> tuple[Any, data.Dataset]:
    """Reads the images, and names them in the configuration where that says auto.

    Where it does, `first` is taken if it can be had.
    """
    name = config.dataset
    if name == "auto":  # a run that was begun keeps its dataset
        name = runs.configuration(config.workdir).get("dataset", name)
    dataset = data.load(
        name, config.data_dir, image_size=config.image_size, first=first
    )
    return replace(config, dataset=dataset.name if name == "auto" else name), dataset


def check_training(config: TrainingConfig, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    num_train = len(dataset.train_labels)
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in COUNTS}
    ranges |= {
        "train_examples": (config.batch_size, num_train * 4 // 5),
        "batch_size": (1, num_train // 2),
        "learning_rate": (0, inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)


def make_space(
    config: TrainingConfig, dataset: data.Dataset
) -> tuple[SearchSpace, dict[str, Any]]:
    """Makes the space, and the size of its networks as far as it has one."""
    shape = dataset.train_images.shape[1:]
    chain = SPACES["chain"]
    space = chain(shape) if config.space == "chain" else SPACES[config.space]()
    network = space.network(space.sample(jax.random.key(0)))
    sized = {"channels": config.channels, "cells": config.cells}
    return space, {k: v for k, v in sized.items() if v and hasattr(network, k)}


def make_evaluator(
    config: TrainingConfig,
    dataset: data.Dataset,
    space: SearchSpace,
    size: dict[str, Any],
    name: str = "population",
    num_slots: int = 0,
) -> Evaluator:
    """Makes the evaluator that trains candidates, of `EVALUATORS`."""
    parts = batches_of(config, dataset)
    is_population = name == "population"
    own: dict[str, Any] = {"num_slots": num_slots}
    if not is_population:
        own = {"failed": partial(note_failure, config.workdir / FAILURES, space)}
    per_epoch = len(parts["train"].labels) // config.batch_size
    schedule = optax.cosine_decay_schedule(
        config.learning_rate, config.epochs * per_epoch
    )
    make = partial(
        EVALUATORS[name],
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
        return make(group=group)
    return make()


def batches_of(config: TrainingConfig, dataset: data.Dataset) -> dict[str, Batch]:
    """Four fifths of the training images to train candidates, a fifth to compare."""
    key, *_ = jax.random.split(jax.random.key(config.seed), 3)
    images, labels = dataset.train_images, dataset.train_labels
    train, valid = data.split(key, images, labels, 0.8)
    first = slice(config.train_examples)
    parts = {"train": train, "valid": valid}
    return {name: Batch(x[first], y[first]) for name, (x, y) in parts.items()}


def search_candidates(
    config: Any,
    run: runs.Run,
    space: SearchSpace,
    strategy: Strategy,
    evaluator: Evaluator,
    num_steps: int,
    label: str,
) -> tuple[PyTree, np.ndarray, Log]:
    """Searches in the phase "searching", writes the candidates and draws them.

    Args:
      config: with seed, epochs and evaluator; `population` is compiled as a whole.
      run: the work folder.
      space, strategy, evaluator: of the search.
      num_steps: of the strategy.
      label: of the fitness, in the picture.

    Returns:
      The strategy's last state, int32[D], what it recommends, and the log.

    Raises:
      InputError: all candidates failed.
    """
    _, key, _ = jax.random.split(jax.random.key(config.seed), 3)

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
        (state, _), log = search(key, strategy, evaluator, num_steps, scan)
    write_candidates(run.path("candidates.csv"), space, log, config.epochs)
    draw_search(run, log, label)
    if not np.isfinite(log.feedback.fitness).any():
        raise InputError(
            "expected a candidate that can be trained, but all failed: see "
            f"{run.path('candidates.csv')}, and try another --learning-rate"
        )
    return state, strategy.recommend(state, log), log


def value_of(log: Log, arch: np.ndarray, name: str) -> float:
    """A metric of an architecture where its fitness was best, at its largest budget.

    NaN where no training of it came to a finite fitness.
    """
    fitness, budget = (
        np.asarray(x) for x in (log.feedback.fitness, log.proposal.budget)
    )
    usable = (np.asarray(log.proposal.arch) == np.asarray(arch)).all(-1)
    usable &= (budget > 0) & np.isfinite(fitness)
    if not usable.any():
        return math.nan
    usable &= budget == budget[usable].max()
    best = np.where(usable, fitness, -inf).argmax()
    return float(np.asarray(log.feedback.metrics[name]).flat[best])


def cost_of(
    config: TrainingConfig,
    space: SearchSpace,
    shape: tuple[int, int, int],
    size: dict[str, Any],
) -> Cost:
    """Makes the cost that is asked for."""
    if config.cost == "latency":
        return latency(space, shape, **size)
    return size_costs(space, shape, **size)[config.cost]


def train_best(
    config: TrainingConfig,
    dataset: data.Dataset,
    run: runs.Run,
    space: SearchSpace,
    arch: np.ndarray,
    size: dict[str, Any],
) -> dict[str, Any]:
    """Trains the best network on all training images, tests it, draws the curves."""
    *_, key = jax.random.split(jax.random.key(config.seed), 3)
    found = {"space": space.name, "architecture": space.to_string(arch)}
    run.write_json("architecture.json", found)
    network = space.network(arch, num_classes=len(dataset.class_names), **size)
    per_epoch = len(dataset.train_labels) // config.batch_size
    num_steps = config.final_epochs * per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    trained = train_network(
        run,
        dataset,
        network,
        key,
        tx=optax.chain(optax.clip_by_global_norm(5.0), sgd(schedule, 0.9, 3e-4)),
        num_steps=num_steps,
        batch_size=config.batch_size,
        chunk=min(config.chunk, ceil(num_steps / 20)),  # a curve of 20 points or more
        cutout=False,
    )
    draw_curves(
        run, "retraining", {f"train_{x}": "training" for x in ("loss", "accuracy")}
    )
    return trained
