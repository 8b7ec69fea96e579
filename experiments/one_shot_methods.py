"""The one-shot methods that the table compares: searching, and scoring cells."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cell_table import CellTable, Images, in_blocks, make_supernet, network_of
from one_shot_phases import METHODS as SINGLE_PATH
from one_shot_phases import phases
from relaxed_methods import METHODS as RELAXED
from relaxed_methods import make_strategy, supernet_settings, weights_schedule

from jaxnas import cli, data, runs
from jaxnas.base import Array, Log, PyTree, Table
from jaxnas.encoding import is_skip
from jaxnas.evaluators.one_shot import one_shot
from jaxnas.evaluators.shared_weights import OneShotState
from jaxnas.search import search
from jaxnas.tasks import classification
from jaxnas.training import sgd

METHODS = (*SINGLE_PATH, *RELAXED)
SEARCH = ("train_loss", "train_accuracy", "valid_accuracy")
BLOCK = 20  # cells that are scored by one call


class Problem(NamedTuple):
    """What all methods are given."""

    cells: CellTable
    images: Images
    whole: data.Dataset  # in full size, that proxies look at
    scored: np.ndarray  # int32[N, D], cells
    accuracies: np.ndarray  # float[N], of those, in percent
    key: Array

    @classmethod
    def of(
        cls, config: Any, dataset: data.Dataset, whole: data.Dataset, table: Table
    ) -> "Problem":
        """Splits the data and draws the cells to score, each once."""
        key, key_split = jax.random.split(jax.random.key(config.seed))
        cells = CellTable.of(table, config.column)
        drawn = np.random.default_rng(config.seed).permutation(len(cells.archs))
        drawn = drawn[: config.architectures]
        images = Images.of(dataset, key_split)
        scored = cells.archs[drawn], cells.accuracies[drawn]
        return cls(cells, images, whole, *scored, key)


class Trained(NamedTuple):
    """What a method leaves for each of S seeds."""

    archs: Array  # int32[S, D], what it found
    weights: PyTree  # TrainState[S, ...] of the supernet


def run_method(
    config: Any, problem: Problem, run: runs.Run, name: str
) -> dict[str, Any]:
    """Searches with every seed, and scores the cells by the weights that are left."""
    archs, scores = [], []
    method = run_relaxed if name in RELAXED else run_single_path
    for first in range(0, config.seeds, config.together):
        keys = [
            jax.random.fold_in(problem.key, first + i) for i in range(config.together)
        ]
        key = jnp.stack(keys) if config.together > 1 else keys[0]
        found = method(config, problem, run, name, f"{name}_{first}", key)
        if config.together == 1:
            found = jax.tree.map(lambda x: x[None], found)
        run.clock(f"{name}_{first}_scoring")
        for i in range(config.together):
            archs.append(np.asarray(found.archs[i]))
            weights = jax.tree.map(lambda x, i=i: x[i], found.weights)
            scores.append(score(config, problem, name, weights))
        run.clock(None)
    skips = [int(is_skip(arch, problem.cells.space.cells).sum()) for arch in archs]
    spent = {"searching": 0.0, "scoring": 0.0}  # over all starts
    for phase, seconds in run.seconds.items():
        if phase.startswith((f"{name}_", training_of(name))):
            spent["scoring" if phase.endswith("_scoring") else "searching"] += seconds
    return {
        "archs": archs,
        "skips": skips,
        "scores": scores,
        "seconds": spent["searching"] / config.seeds,
        "scoring_seconds": spent["scoring"] / config.seeds,
    }


def training_of(name: str) -> str:
    """The phase that trains a method's weights: one for all that draw uniformly."""
    return "uniform" if name in ("single_path", "random_sharing") else name


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
    config: Any, problem: Problem, run: runs.Run, name: str, phase: str, key: Array
) -> Trained:
    """Searches with a relaxed architecture."""
    evaluator = make_supernet(config, problem.images, name)
    rate = config.arch_learning_rate
    space = problem.cells.space
    strategy = make_strategy(name, space, config.steps, learning_rate=rate)
    with cli.phase(run, phase, config.steps, config.chunk, summarise) as scan:
        (state, trained), log = search(key, strategy, evaluator, config.steps, scan)
    recommend = jax.vmap(strategy.recommend, (0, 1)) if key.ndim else strategy.recommend
    return Trained(recommend(state, log), trained.train)


def run_single_path(
    config: Any, problem: Problem, run: runs.Run, name: str, phase: str, key: Array
) -> Trained:
    """Trains on one architecture at a time, then ranks by the weights."""
    schedule = weights_schedule(config.learning_rate, config.steps)
    images = problem.images
    found = phases(
        name,
        problem.cells.space,
        network_of(config, images, single_path=True),
        classification(),
        images.halves,
        images.prepare,
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
    training = phase.replace(name, training_of(name))
    with cli.phase(run, training, steps, config.chunk, summarise) as scan:
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


def score(config: Any, problem: Problem, name: str, weights: PyTree) -> np.ndarray:
    """The validation accuracy of the cells by shared weights: float[N], fractions.

    Each edge counts for one, that of PC-DARTS too, whose shares of a node are left out.
    """
    how = supernet_settings(name) if name in RELAXED else {}
    if "partial" not in how:
        how = {"single_path": True}
    evaluator = one_shot(
        network_of(config, problem.images, **how),
        problem.cells.space.num_choices,
        classification(),
        problem.images.halves,
        problem.images.prepare,
        tx=optax.identity(),  # nothing is learnt
        weight_steps=0,
        score_steps=1,
        batch_size=config.batch_size,
        score_batches=config.score_batches,
        calibration_batches=config.calibration_batches,
    )
    state = OneShotState(weights, problem.key, jnp.int32(0))
    evaluate = jax.jit(evaluator.evaluate)

    def ask(proposal):
        return evaluate(problem.key, evaluator.data, state, proposal)[1]

    found = in_blocks(ask, problem.scored, BLOCK)
    return np.concatenate([feedback.fitness for feedback in found])
