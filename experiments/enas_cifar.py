"""ENAS and its kin: train shared weights on sampled networks, rank, retrain the best.

    python experiments/enas_cifar.py
    python experiments/enas_cifar.py --method single_path --space nasbench201

takes CIFAR-10 where it can be had, else scikit-learn's digits, and the small preset
on a CPU. The default on a GPU or TPU are the settings of ENAS's search of cells:

    python experiments/enas_cifar.py --preset paper --dataset cifar10

Pham et al. 2018 (arXiv:1802.03268) report 96.46 % test accuracy for it, 97.11 % with
cutout. The published code searches a space of its own, cells of 5 nodes with 5
operations; here cells are those of DARTS. There, dropout, drop path and a second
classifier help the shared weights, and momentum is Nesterov's. BUILD.md says what was
measured here.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from cell_search import (
    QUICK,
    SearchConfig,
    check_cells,
    check_flags,
    cosine_restarts,
    flag_of,
    load,
    num_steps_of,
    train_found,
    with_states,
)
from found_network import make_network, make_space, write_found
from one_shot_phases import METHODS, Phases, phases
from one_shot_results import (
    draw_ranking,
    entropy_of,
    summarise_ranking,
    summarise_training,
    write_candidates,
)
from retraining import draw_curves, prepare

from jaxnas import cli, data, runs
from jaxnas.base import Array, InputError, SearchSpace
from jaxnas.search import search
from jaxnas.strategies.policies import Policy, lstm
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd


@dataclass(frozen=True)
class Config(SearchConfig):
    """Train shared weights on sampled networks, rank others, retrain the best."""

    workdir: Path = Path("runs/enas_cifar")
    """Where results go; the same command goes on from what is there."""
    method: Literal[METHODS] = "enas"
    space: Literal["darts", "nasbench201", "chain"] = "darts"
    """Of cells, whose numbers are those of each stage in nasbench201; or of chains,
    which have none."""
    valid_share: float = 0.1
    """Part of the training images that judges; the others train the shared weights."""
    search_periods: int = 4
    """Times that the rate of the shared weights decays, each twice as long."""
    periods: int = 6
    """Likewise of the retraining."""

    samples: int = 1000
    """Architectures that are ranked with the trained weights, in whole batches."""
    rank_batch: int = 10
    """How many of them a step."""
    score_batches: int = 10
    """Of validation images, that each of them is ranked on."""
    calibration_batches: int = 20
    """Of training images, on which single_path finds its running statistics."""

    weight_steps: int | None = None
    """Of the shared weights between turns of the controller; an epoch by default."""
    controller_steps: int = 30
    """Of a turn of the controller."""
    controller_batch: int = 10
    """Architectures a step of the controller."""
    controller_learning_rate: float = 3.5e-3


OF_METHOD = {
    "calibration_batches": "single_path",
    "weight_steps": "enas",
    "controller_steps": "enas",
    "controller_batch": "enas",
    "controller_learning_rate": "enas",
}
PRESETS = {
    "quick": Config(
        **QUICK,
        search_steps=400,
        search_learning_rate=0.05,
        valid_share=0.3,
        search_periods=1,
        periods=1,
        samples=100,
        weight_steps=20,
        controller_steps=10,
    ),
    "paper": Config(
        search_epochs=150,
        search_batch_size=160,
        search_channels=20,
        search_learning_rate=0.05,
        epochs=630,
        batch_size=144,
        cells=17,
        learning_rate=0.05,
        drop_path=0.4,
    ),
}
LEAST = {"searching": 0.01, "retraining": 0.002}  # of a rate, at the end of a period
DECAY = {"searching": 1e-4, "retraining": 2e-4}
SEARCH = {
    "train_loss": "shared weights",
    "train_accuracy": "shared weights",
    "valid_loss": "validation",
    "valid_accuracy": "reward, on validation",
    "entropy": "of an architecture",
}
TRAIN = {f"train_{name}": "training batches" for name in ("loss", "accuracy")}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    dataset = load(config)
    check(config, dataset)
    config = replace(config, dataset=dataset.name)
    cli.run_or_show(config, tuple(SEARCH), lambda run: work(config, dataset, run))


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    preset, num_train = PRESETS[config.preset], len(dataset.train_labels)
    counts = ("samples", "rank_batch", "score_batches", "weight_steps")
    counts += ("controller_steps", "controller_batch")
    ranges = {name: (1, inf) for name in counts} | {
        "valid_share": (1 / num_train, 1 - 1 / num_train),
        "search_periods": (1, 20),
        "periods": (1, 20),
        "calibration_batches": (0, inf),
        "controller_learning_rate": (0, inf),
    }
    check_flags(config, preset, dataset, ranges)
    for name, method in OF_METHOD.items():
        if config.method != method and getattr(config, name) != getattr(preset, name):
            raise InputError(
                f"expected no {flag_of(name)}, which is of --method {method}, but got "
                f"it with {config.method}: leave it out"
            )
    learnt = round((1 - config.valid_share) * num_train)
    fewest = min(learnt, num_train - learnt)
    if config.search_batch_size > fewest:
        raise InputError(
            f"expected --search-batch-size up to the {fewest} images of the smaller "
            f"part, but got {config.search_batch_size}: change it or --valid-share"
        )
    num_steps = num_steps_of(config, learnt, "search_")
    if config.method == "enas" and period_of(config, learnt) > num_steps:
        raise InputError(
            f"expected --weight-steps up to the {num_steps} in all, or the controller "
            f"never learns, but got {period_of(config, learnt)}: ask for fewer"
        )
    if config.space == "darts":
        check_cells(config, dataset)
    elif config.auxiliary or (config.space == "chain" and config.drop_path):
        raise InputError(
            f"expected no second classifier and in chains no drop path, but got "
            f"{config.auxiliary} and {config.drop_path} for {config.space}: add "
            "--auxiliary 0 --drop-path 0"
        )


def period_of(config: Config, num_examples: int) -> int:
    """Steps of the shared weights between turns of the controller."""
    return config.weight_steps or max(num_examples // config.search_batch_size, 1)


def work(config: Config, dataset: data.Dataset, run: runs.Run) -> dict[str, Any]:
    """Searches, ranks, draws and trains; returns what result.json says of it."""
    space = make_space(config.space, dataset)
    key_search, key_train = jax.random.split(jax.random.key(config.seed))
    arch, ranked = search_network(config, dataset, run, space, key_search)
    found = write_found(run, space, arch)
    draw_curves(run, "searching", SEARCH)
    network = make_network(config, space, arch, dataset)
    schedule = partial(
        cosine_restarts, config.learning_rate, LEAST["retraining"], config.periods
    )
    trained = train_found(
        config, dataset, run, network, key_train, schedule, DECAY["retraining"]
    )
    draw_curves(run, "retraining", TRAIN)
    return {
        "dataset": dataset.name,
        "space": space.name,
        "method": config.method,
        **found,
        **ranked,
        **trained,
        "search_steps_per_second": run.rate("searching"),
        "rank_steps_per_second": run.rate("ranking"),
        "retrain_steps_per_second": run.rate("retraining"),
    }


def search_network(
    config: Config, dataset: data.Dataset, run: runs.Run, space: SearchSpace, key: Array
) -> tuple[Array, dict[str, Any]]:
    """Trains the shared weights and ranks; the best, int32[D], and what it is worth."""
    key_split, key_train, key_rank = jax.random.split(key, 3)
    policy = lstm(space.num_choices)
    both = make_phases(config, dataset, space, policy, key_split)
    strategy, evaluator, num_steps = both.train
    entropy = jax.jit(partial(entropy_of, policy)) if config.method == "enas" else None
    summarise = partial(summarise_training, entropy)
    with cli.phase(
        run, "searching", num_steps, config.chunk, summarise, with_states
    ) as scan:
        states, _ = search(key_train, strategy, evaluator, num_steps, scan)
    strategy, evaluator, num_steps = both.rank
    chunk = ceil(num_steps / 10)
    with cli.phase(run, "ranking", num_steps, chunk, summarise_ranking) as scan:
        (state, _), log = search(
            key_rank, strategy, evaluator, num_steps, scan, both.hand_over(states)
        )
    scores = log.feedback.fitness
    usable = scores[np.isfinite(scores)]
    if not usable.size:
        raise FloatingPointError("ranking: no architecture has a finite accuracy")
    write_candidates(run.path("candidates.csv"), space, log)
    draw_ranking(run, scores.ravel())
    return strategy.recommend(state, log), {
        "one_shot_accuracy": 100 * float(usable.max()),
        "one_shot_accuracy_mean": 100 * float(usable.mean()),
        "ranked": scores.size,
    }


def make_phases(
    config: Config,
    dataset: data.Dataset,
    space: SearchSpace,
    policy: Policy,
    key: Array,
) -> Phases:
    """Makes both searches of the method, on a split of the training images."""
    size = {"shared": True}
    if space.cells:
        size = {"single_path": True, "channels": config.search_channels}
        size["cells"] = config.search_cells
    train = dataset.train_images, dataset.train_labels
    learnt, judged = data.split(key, *train, 1 - config.valid_share)
    num_steps = num_steps_of(config, len(learnt[1]), "search_")
    rate, least = config.search_learning_rate, LEAST["searching"]
    schedule = cosine_restarts(rate, least, config.search_periods, num_steps)
    is_calibrated = config.method == "single_path"
    return phases(
        config.method,
        space,
        space.network(num_classes=len(dataset.class_names), **size),
        classification(),
        (Batch(*learnt), Batch(*judged)),
        prepare(dataset, cutout=0),
        tx=optax.chain(
            optax.clip_by_global_norm(5.0),
            sgd(schedule, 0.9, DECAY["searching"]),
        ),
        num_weight_steps=num_steps,
        samples=config.samples,
        batch_size=config.search_batch_size,
        rank_batch=config.rank_batch,
        score_batches=config.score_batches,
        calibration_batches=config.calibration_batches if is_calibrated else 0,
        policy=policy,
        weight_steps=period_of(config, len(learnt[1])),
        controller_steps=config.controller_steps,
        controller_batch=config.controller_batch,
        controller_learning_rate=config.controller_learning_rate,
    )


if __name__ == "__main__":
    cli.main(main, PRESETS)
