"""DARTS and its kin: search a cell on images, draw it, train the network that it makes.

    python experiments/darts_cifar.py

takes CIFAR-10 where it can be had, else scikit-learn's digits, and the small preset
on a CPU. The paper's, the default on a GPU or TPU:

    python experiments/darts_cifar.py --preset paper --dataset cifar10

Liu, Simonyan and Yang 2019 (arXiv:1806.09055) report 97.24 % test accuracy for it in
second order, the best of four searches. BUILD.md says what was measured here.

`--method` takes its relatives: GDAS (Dong and Yang 2019, arXiv:1910.04465), SNAS (Xie
et al. 2019, arXiv:1812.09926), DrNAS (Chen et al. 2021, arXiv:2006.10355) without its
growing channels, PC-DARTS (Xu et al. 2020, arXiv:1907.05737), whose paper asks for
--search-batch-size 256 --search-learning-rate 0.1. `--early-stopping` (Zela et al.
2020, arXiv:1909.09656) and `--max-skips` (Chen et al. 2019, arXiv:1904.12760) are
guards against cells of skip connections alone.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import inf
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
    load,
    num_steps_of,
    train_found,
    with_states,
)
from found_network import make_network, write_found
from relaxed_methods import (
    METHODS,
    PARTS,
    SAMPLED,
    make_strategy,
    supernet_settings,
    weights_schedule,
)
from retraining import draw_curves, prepare

from jaxnas import cli, data, plots, runs
from jaxnas.base import Array, InputError, Log, PyTree, SearchSpace, Strategy
from jaxnas.encoding import is_skip
from jaxnas.evaluators.hypergradients import HYPERGRADIENTS
from jaxnas.evaluators.supernet import supernet
from jaxnas.search import search
from jaxnas.spaces.darts import darts
from jaxnas.spaces.genotype import INPUTS, OPS, SOURCES, TARGETS
from jaxnas.strategies.early_stopping import early_stopping
from jaxnas.tasks import Batch, classification


@dataclass(frozen=True)
class Config(SearchConfig):
    """Search a cell with DARTS, draw it, train the network that it makes."""

    workdir: Path = Path("runs/darts_cifar")
    """Where results go; the same command goes on from what is there."""
    method: Literal[tuple(METHODS)] = "darts"
    hypergradient: Literal[tuple(HYPERGRADIENTS)] | None = None
    """How the architecture's gradient follows the step of the weights; as in the
    papers by default, exact for darts and first_order for the others."""
    arch_learning_rate: float | None = None
    """Of Adam on the logits of the architecture; that of the method by default."""
    max_skips: int | None = None
    """Skip connections that the normal cell may have at most; any by default."""
    early_stopping: bool = False
    """Stop once the loss has become sharp in the architecture."""
    curvature_every: int | None = None
    """Steps between two measurements of that; with --early-stopping an epoch by
    default, or a fiftieth of the search if that is less, otherwise never."""
    genotype: str | None = None
    """Train this cell, in the literature's form, instead of searching one."""


PRESETS = {
    "quick": Config(
        **QUICK,
        search_steps=100,
        hypergradient="first_order",
        arch_learning_rate=1e-2,
    ),
    "paper": Config(),
}
LOSSES = {
    **{f"train_{name}": "weights' half" for name in ("loss", "accuracy")},
    **{f"valid_{name}": "architecture's half" for name in ("loss", "accuracy")},
}
SEARCH = {**LOSSES, "valid_curvature": "in the logits", "skips": "of the normal cell"}
TRAIN = {f"train_{name}": "training batches" for name in ("loss", "accuracy")}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    dataset = load(config)
    check(config, dataset)
    config = replace(config, dataset=dataset.name)
    cli.run_or_show(config, tuple(SEARCH), lambda run: work(config, dataset, run))


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    ranges = {
        "arch_learning_rate": (0, inf),
        "max_skips": (0, inf),
        "curvature_every": (1, inf),
    }
    check_flags(config, PRESETS[config.preset], dataset, ranges)
    if config.genotype is not None:
        darts().from_string(config.genotype)
    if config.method == "pc_darts" and config.search_channels % PARTS:
        raise InputError(
            f"expected --search-channels that {PARTS} divides, since operations of "
            f"pc_darts see a part of them, but got {config.search_channels}: change it"
        )
    if config.method in SAMPLED and (config.early_stopping or config.curvature_every):
        raise InputError(
            f"expected no curvature for {config.method}, whose networks are drawn at "
            "random, but got --early-stopping or --curvature-every: leave it out"
        )
    check_cells(config, dataset)


def work(config: Config, dataset: data.Dataset, run: runs.Run) -> dict[str, Any]:
    """Searches, draws and trains; returns what result.json says of it."""
    space = darts()
    key_search, key_train = jax.random.split(jax.random.key(config.seed))
    if config.genotype is None:
        arch, searched = search_cell(config, dataset, run, space, key_search)
        draw_curves(run, "searching", SEARCH)
    else:
        arch, searched = space.from_string(config.genotype), {}
    found = write_found(run, space, arch)
    network = make_network(config, space, arch, dataset)
    schedule = partial(optax.cosine_decay_schedule, config.learning_rate)
    trained = train_found(config, dataset, run, network, key_train, schedule, 3e-4)
    draw_curves(run, "retraining", TRAIN)
    return {
        "dataset": dataset.name,
        "method": config.method,
        **found,
        "skips": int(is_skip(arch, space.cells).sum()),
        **searched,
        **trained,
        "search_steps_per_second": run.rate("searching"),
        "retrain_steps_per_second": run.rate("retraining"),
    }


def search_cell(
    config: Config, dataset: data.Dataset, run: runs.Run, space: SearchSpace, key: Array
) -> tuple[Array, dict[str, Any]]:
    """Searches, and draws the weights of the operations; int32[28], and its steps."""
    key_split, key_search = jax.random.split(key)
    train = dataset.train_images, dataset.train_labels
    first, second = data.split(key_split, *train)
    batch_size = config.search_batch_size
    num_steps = num_steps_of(config, len(first[1]), "search_")
    strategy, every = guarded(config, space, num_steps, len(first[1]))
    evaluator = supernet(
        space.network(
            channels=config.search_channels,
            cells=config.search_cells,
            num_classes=len(dataset.class_names),
            **supernet_settings(config.method),
        ),
        classification(),
        (Batch(*first), Batch(*second)),
        prepare(dataset, cutout=0)[0],
        hypergradient=config.hypergradient
        or ("exact" if config.method == "darts" else "first_order"),
        learning_rate=weights_schedule(config.search_learning_rate, num_steps),
        batch_size=batch_size,
        curvature_every=every,
    )

    def summarise(chunk: tuple[PyTree, Log]) -> dict[str, Any]:
        ((state, _), log), row = chunk, {}
        metrics, asked = log.feedback.metrics, log.proposal.budget > 0
        if asked.any():  # a search that stopped early asks nothing
            row = {name: metrics[name][asked].mean() for name in LOSSES}
        curvatures = metrics.get("valid_curvature", np.empty(0))
        if np.isfinite(curvatures).any():
            row["valid_curvature"] = np.nanmean(curvatures)
        answer = strategy.recommend(state, log)
        return row | {"skips": is_skip(answer, space.cells).sum()}

    with cli.phase(
        run, "searching", num_steps, config.chunk, summarise, with_states
    ) as scan:
        (state, _), log = search(key_search, strategy, evaluator, num_steps, scan)
    asked = log.proposal.budget[:, 0] > 0
    draw_weights(run, log.proposal.arch[asked, 0], config.method in SAMPLED)
    return strategy.recommend(state, log), {"search_steps": int(asked.sum())}


def guarded(
    config: Config, space: SearchSpace, num_steps: int, num_examples: int
) -> tuple[Strategy, int]:
    """The method with its guards, and the steps between curvatures, 0 for never."""
    settings: dict[str, Any] = {"max_skips": config.max_skips}
    if config.arch_learning_rate is not None:
        settings["learning_rate"] = config.arch_learning_rate
    strategy = make_strategy(config.method, space, num_steps, **settings)
    every = config.curvature_every or 0
    if config.early_stopping:
        strategy = early_stopping(strategy)
        per_epoch = num_examples // config.search_batch_size
        every = every or max(min(per_epoch, num_steps // 50), 1)
    return strategy, every


def draw_weights(run: runs.Run, weights: np.ndarray, drawn: bool) -> None:
    """Draws the operation weights float32[T, 28, 8], at 200 steps at most.

    Weights that are drawn at random are shown as their mean over a fifth of the steps.
    """
    window = len(weights) // 5 + 1 if drawn else 1
    sums = np.cumsum(np.pad(weights, ((1, 0), (0, 0), (0, 0))), 0, dtype=float)
    weights = (sums[window:] - sums[:-window]) / window
    steps = np.unique(np.linspace(0, len(weights) - 1, 200).astype(int))
    states = [*INPUTS, "0", "1", "2", "3"]
    names = [
        f"{states[s]} → {states[t]}" for s, t in zip(SOURCES, TARGETS, strict=True)
    ]
    for title, part in (("Normal", slice(0, 14)), ("Reduction", slice(14, 28))):
        figure = plots.plot_operation_weights(
            steps + window - 1, weights[steps, part], names, OPS, f"{title} cell"
        )
        plots.save(figure, run.path(f"weights_{title.lower()}.png"))


if __name__ == "__main__":
    cli.main(main, PRESETS)
