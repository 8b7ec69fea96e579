"""The one-shot methods that the table compares: searching, and scoring cells."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from one_shot_phases import METHODS as SINGLE_PATH
from one_shot_phases import phases
from retraining import prepare

from jaxnas import cli, data, runs
from jaxnas.base import Array, Log, Proposal, PyTree, SearchSpace, Table
from jaxnas.encoding import is_skip
from jaxnas.evaluators.one_shot import OneShotState, one_shot
from jaxnas.evaluators.supernet import supernet
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies import STRATEGIES
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd

RELAXED = {  # and how their supernets differ
    "differentiable": {},
    "gdas": {"single_path": True},
    "snas": {},
    "drnas": {},
    "pc_darts": {"partial": 4},
}
NAMES = {"differentiable": "darts"}
METHODS = (*SINGLE_PATH, *(NAMES.get(name, name) for name in RELAXED))
SEARCH = ("train_loss", "train_accuracy", "valid_accuracy")
BLOCK = 20  # cells that are scored by one call


class Problem(NamedTuple):
    """What all methods are given."""

    space: SearchSpace
    whole: Batch  # that proxies look at, in full size
    normalize: Any
    halves: tuple[Batch, Batch]
    prepare: tuple[Any, Any]
    num_classes: int
    cells: np.ndarray  # int32[N, D], those that are scored
    accuracies: np.ndarray  # float[N], of the table, in percent
    all_cells: np.ndarray
    all_accuracies: np.ndarray
    key: Array

    @classmethod
    def of(
        cls, config: Any, dataset: data.Dataset, whole: data.Dataset, table: Table
    ) -> "Problem":
        """Splits the data and draws the cells to score, each once."""
        key, key_split = jax.random.split(jax.random.key(config.seed))
        train = dataset.train_images, dataset.train_labels
        halves = tuple(Batch(*half) for half in data.split(key_split, *train))
        column = table.datasets.index("cifar10")
        accuracies = np.asarray(table.columns[config.column])[:, column]
        cells = np.asarray(table.archs)
        drawn = np.random.default_rng(config.seed).permutation(len(cells))
        drawn = drawn[: config.architectures]
        return cls(
            nasbench201(),
            Batch(whole.train_images, whole.train_labels),
            prepare(whole)[1],
            halves,
            prepare(dataset, cutout=0),
            len(dataset.class_names),
            cells[drawn],
            accuracies[drawn],
            cells,
            accuracies,
            key,
        )

    def worth(self, cell: np.ndarray) -> float:
        """The accuracy of int32[D] in the table, in percent."""
        return float(self.all_accuracies[(self.all_cells == cell).all(1)][0])


class Trained(NamedTuple):
    """What a method leaves for each of S seeds."""

    archs: Array  # int32[S, D], what it found
    weights: PyTree  # TrainState[S, ...] of the supernet


def run_method(
    config: Any, problem: Problem, run: runs.Run, name: str
) -> dict[str, Any]:
    """Searches with every seed, and scores the cells by the weights that are left."""
    archs, scores = [], []
    kind = dict(zip(METHODS, (*SINGLE_PATH, *RELAXED), strict=True))[name]
    method = run_relaxed if kind in RELAXED else run_single_path
    for first in range(0, config.seeds, config.together):
        keys = [
            jax.random.fold_in(problem.key, first + i) for i in range(config.together)
        ]
        key = jnp.stack(keys) if config.together > 1 else keys[0]
        found = method(config, problem, run, kind, f"{name}_{first}", key)
        if config.together == 1:
            found = jax.tree.map(lambda x: x[None], found)
        run.clock(f"{name}_{first}_scoring")
        for i in range(config.together):
            archs.append(np.asarray(found.archs[i]))
            weights = jax.tree.map(lambda x, i=i: x[i], found.weights)
            scores.append(score(config, problem, kind, weights))
        run.clock(None)
    skips = [int(is_skip(arch, problem.space.cells).sum()) for arch in archs]
    spent = {"searching": 0.0, "scoring": 0.0}  # over all starts, without compiling
    for phase, seconds in run.seconds.items():
        if phase.startswith(f"{name}_"):
            spent["scoring" if phase.endswith("_scoring") else "searching"] += seconds
    return {
        "archs": archs,
        "skips": skips,
        "scores": scores,
        "seconds": spent["searching"] / config.seeds,
        "scoring_seconds": spent["scoring"] / config.seeds,
    }


def network_of(config: Any, problem: Problem, kind: str, **more: Any) -> Any:
    """The supernet of a method, or that which scores by its weights."""
    how = RELAXED.get(kind, {"single_path": True}) | more
    if "partial" in how:
        how.pop("single_path", None)
    size = {"channels": config.channels, "cells": config.cells}
    return problem.space.network(num_classes=problem.num_classes, **size, **how)


def summarise(log: Log) -> dict[str, Any]:
    """A row of the log: of the steps of the weights, and of what was scored."""
    answer, asked = log.feedback, log.proposal.budget > 0
    row = {}
    for name in SEARCH:
        values = answer.metrics[name]
        # Weights that diverge have a loss that is not finite, which stops the run.
        rows = asked & (answer.cost > 0 if "train" in name else np.isfinite(values))
        if rows.any():
            row[name] = values[rows].mean()
    return row


def run_relaxed(
    config: Any, problem: Problem, run: runs.Run, kind: str, phase: str, key: Array
) -> Trained:
    """Searches with a relaxed architecture."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps, 0.04)
    evaluator = supernet(
        network_of(config, problem, kind),
        classification(),
        problem.halves,
        problem.prepare[0],
        learning_rate=schedule,
        batch_size=config.batch_size,
    )
    settings: dict[str, Any] = {"learning_rate": config.arch_learning_rate}
    if kind in ("gdas", "snas"):
        settings["num_steps"] = config.steps
    if kind == "pc_darts":
        settings["warmup"] = round(0.3 * config.steps)  # 15 of 50 epochs
    strategy = STRATEGIES[kind](problem.space, **settings)
    with cli.phase(run, phase, config.steps, config.chunk, summarise) as scan:
        (state, trained), log = search(key, strategy, evaluator, config.steps, scan)
    recommend = jax.vmap(strategy.recommend, (0, 1)) if key.ndim else strategy.recommend
    return Trained(recommend(state, log), trained.train)


def run_single_path(
    config: Any, problem: Problem, run: runs.Run, kind: str, phase: str, key: Array
) -> Trained:
    """Trains on one architecture at a time, then ranks by the weights."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps, 0.04)
    found = phases(
        kind,
        problem.space,
        network_of(config, problem, kind),
        classification(),
        problem.halves,
        problem.prepare,
        tx=optax.chain(optax.clip_by_global_norm(5.0), sgd(schedule, 0.9, 3e-4)),
        num_weight_steps=config.steps,
        samples=config.samples,
        batch_size=config.batch_size,
        score_batches=config.score_batches,
        calibration_batches=config.calibration_batches,
        weight_steps=min(config.weight_steps, config.steps),
        controller_learning_rate=config.controller_learning_rate,
    )
    steps = found.train.num_steps
    with cli.phase(run, phase, steps, config.chunk, summarise) as scan:
        states, _ = search(key, *found.train, scan)
    # Random numbers follow from the key and the number of the step.
    fold = partial(jax.random.fold_in, data=1)
    key = jax.vmap(fold)(key) if key.ndim else fold(key)
    initial, steps = found.hand_over(states), found.rank.num_steps
    with cli.phase(run, f"{phase}_ranking", steps, steps, summarise) as scan:
        (state, trained), log = search(key, *found.rank, scan, initial)
    strategy = found.rank.strategy
    recommend = jax.vmap(strategy.recommend, (0, 1)) if key.ndim else strategy.recommend
    return Trained(recommend(state, log), trained.train)


def score(config: Any, problem: Problem, kind: str, weights: PyTree) -> np.ndarray:
    """The validation accuracy of the cells by shared weights: float[N], fractions.

    Each edge counts for one, that of PC-DARTS too, whose shares of a node are left out.
    """
    evaluator = one_shot(
        network_of(config, problem, kind, single_path=True),
        problem.space.num_choices,
        classification(),
        problem.halves,
        problem.prepare,
        tx=optax.identity(),  # nothing is learnt
        weight_steps=0,
        score_steps=1,
        batch_size=config.batch_size,
        score_batches=config.score_batches,
        calibration_batches=config.calibration_batches,
    )
    state = OneShotState(weights, problem.key, jnp.int32(0))
    evaluate = jax.jit(evaluator.evaluate)
    found = []
    for first in range(0, len(problem.cells), BLOCK):
        cells = problem.cells[first : first + BLOCK]
        filled = jnp.asarray(np.resize(cells, (BLOCK, cells.shape[1])))
        budget = (jnp.arange(BLOCK) < len(cells)).astype(jnp.int32)
        proposal = Proposal(filled, budget, -jnp.ones(BLOCK, jnp.int32))
        _, feedback = evaluate(problem.key, evaluator.data, state, proposal)
        found.append(np.asarray(feedback.fitness)[: len(cells)])
    return np.concatenate(found)
