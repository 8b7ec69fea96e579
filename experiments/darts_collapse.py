"""DARTS's collapse on the space of NAS-Bench-201, and what guards do to it.

    python experiments/darts_collapse.py --benchmark nasbench201.npz

Searched for long, DARTS fills its cell with skip connections (Dong and Yang 2020,
arXiv:2001.00326: 54.30 % test accuracy). Zela et al. 2020 (arXiv:1909.09656) saw the
largest eigenvalue of the validation loss's Hessian rise before, and stop there;
P-DARTS (arXiv:1904.12760) limits skip connections. Every seed searches unguarded and
with early stopping; the limit is applied to where the unguarded search ends. The
skeleton is reduced and the logits' rate raised, so that a CPU sees it in minutes.
"""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import rich.console
import rich.table
from one_shot_table import load_table
from retraining import prepare

from jaxnas import cli, data, plots, runs
from jaxnas.base import Array, Log, Strategy, Table
from jaxnas.encoding import is_skip
from jaxnas.evaluators.supernet import supernet
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.early_stopping import early_stopping
from jaxnas.tasks import Batch, classification


@dataclass(frozen=True)
class Config:
    """Watch DARTS collapse on NAS-Bench-201, with guards and without."""

    preset: Literal["quick", "paper"] = "paper"
    """quick is for a CPU; the other flags change a preset's values."""
    benchmark: Path = Path("nasbench201.npz")
    """The table of NAS-Bench-201, as an .npz."""
    column: str = "test_acc_200ep"
    """Of the table, what cells are worth."""
    dataset: str = "cifar10"
    """What supernets learn; cells are looked up for CIFAR-10."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/darts_collapse")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""

    seeds: int = 3
    image_size: int | None = None
    """Pixels along a side that images are resized to."""
    channels: int = 16
    cells: int = 5
    """Of each stage of the supernet."""
    steps: int = 19_500
    batch_size: int = 64
    learning_rate: float = 0.025
    arch_learning_rate: float = 3e-4
    """Of Adam on the logits."""
    curvature_every: int = 390
    """Steps between two measurements of the largest eigenvalue."""
    window: int = 5
    """Measurements that early stopping averages over, and looks back."""
    threshold: float = 0.75
    """It stops where the eigenvalue before is below so much of the present one."""
    max_skips: int = 2
    """The limit on skip connections."""
    chunk: int = 390
    """Steps between two checkpoints."""


PRESETS = {
    "quick": Config(
        image_size=16,
        channels=8,
        cells=1,
        steps=1000,
        arch_learning_rate=1e-2,
        curvature_every=20,
        chunk=100,
    ),
    "paper": Config(),
}
SEARCH = ("train_loss", "valid_loss", "valid_curvature", "skips")
GUARDS = ("none", "early_stopping", "max_skips")


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    table = load_table(config)
    dataset = data.load(config.dataset, config.data_dir, image_size=config.image_size)
    counts = "seeds", "channels", "cells", "steps", "curvature_every", "window", "chunk"
    ranges = {
        **{name: (1, inf) for name in counts},
        "batch_size": (1, len(dataset.train_labels) // 2),
        "learning_rate": (0, inf),
        "arch_learning_rate": (0, inf),
        "threshold": (0, 1),
        "max_skips": (0, 6),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    with runs.open_run(config, SEARCH) as run:
        result = run.result()
        if result is None:
            result = run.finish(work(config, dataset, table, run))
        show(result)
        print(f"files are in {run.folder}")


def work(
    config: Config, dataset: data.Dataset, table: Table, run: runs.Run
) -> dict[str, Any]:
    """Searches with every seed; draws; returns what result.json says."""
    space = nasbench201()
    accuracies = np.asarray(table.columns[config.column])
    column = accuracies[:, table.datasets.index("cifar10")]
    worth = dict(zip(map(tuple, np.asarray(table.archs).tolist()), column, strict=True))
    plain = differentiable(space, learning_rate=config.arch_learning_rate)
    settings = {"window": config.window, "threshold": config.threshold}
    stopping = early_stopping(plain, **settings)
    limited = differentiable(space, max_skips=config.max_skips)
    found: dict[str, list] = {guard: [] for guard in GUARDS}
    panels: dict[str, dict] = {}
    for seed in range(config.seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        state, log = watch(config, dataset, run, plain, key, f"seed{seed}")
        stopped, _ = watch(config, dataset, run, stopping, key, f"seed{seed}_stopping")
        answers = (
            plain.recommend(state, log),
            stopping.recommend(stopped, log),
            limited.recommend(state, log),
        )
        for guard, arch in zip(GUARDS, answers, strict=True):
            row = {
                "cell": space.to_string(arch),
                "accuracy": float(worth[tuple(np.asarray(arch).tolist())]),
                "skips": int(is_skip(arch, space.cells).sum()),
            }
            if guard == "early_stopping":
                row["stopped"] = bool(stopped.stopped)
                row["measurements"] = int(stopped.num_measured)
            found[guard].append(row)
        trace(panels, config, space, worth, log, f"seed {seed}")
    figure = plots.plot_curves(panels, xlabel="step", title="DARTS", smooth=False)
    plots.save(figure, run.path("collapse.png"))
    return {"best_in_table": float(column.max()), "guards": found}


def watch(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    strategy: Strategy,
    key: Array,
    phase: str,
) -> tuple[Any, Log]:
    """Searches, and measures the curvature; the strategy's state and the log."""
    space = nasbench201()
    key_split, key_search = jax.random.split(key)
    train = dataset.train_images, dataset.train_labels
    evaluator = supernet(
        space.network(
            channels=config.channels,
            cells=config.cells,
            num_classes=len(dataset.class_names),
        ),
        classification(),
        tuple(Batch(*half) for half in data.split(key_split, *train)),
        prepare(dataset, cutout=0)[0],
        learning_rate=optax.cosine_decay_schedule(
            config.learning_rate, config.steps, 0.04
        ),
        batch_size=config.batch_size,
        curvature_every=config.curvature_every,
    )

    def summarise(log: Log) -> dict[str, Any]:
        asked = log.proposal.budget > 0  # a search that has stopped asks nothing
        arch = space.discretize(log.proposal.arch[-1, 0])
        row = {"skips": is_skip(arch, space.cells).sum()}
        for name, values in log.feedback.metrics.items():
            measured = asked & np.isfinite(values) if "curvature" in name else asked
            if name in SEARCH and measured.any():
                row[name] = values[measured].mean()
        return row

    with cli.phase(run, phase, config.steps, config.chunk, summarise) as scan:
        (state, _), log = search(key_search, strategy, evaluator, config.steps, scan)
    return state, log


def trace(
    panels: dict[str, dict],
    config: Config,
    space: Any,
    worth: dict[tuple, float],
    log: Log,
    label: str,
) -> None:
    """Adds a search to the panels: skips, eigenvalue, the cell's accuracy."""
    curvature = log.feedback.metrics["valid_curvature"][:, 0]
    steps = np.flatnonzero(np.isfinite(curvature))
    discretize = jax.jit(jax.vmap(space.discretize))
    cells = np.asarray(discretize(log.proposal.arch[steps, 0]))
    skips = np.asarray(jax.vmap(partial(is_skip, cells=space.cells))(cells)).sum(1)
    accuracies = [worth[tuple(cell)] for cell in cells.tolist()]
    for name, values in (
        ("skip connections of 6 edges", skips),
        ("largest eigenvalue", curvature[steps]),
        (f"{config.column} (%)", accuracies),
    ):
        panels.setdefault(name, {})[label] = steps, values


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    title = f"DARTS on NAS-Bench-201, best cell {result['best_in_table']:.2f} %"
    table = rich.table.Table(title=title)
    for name in ("guard", "skips of 6", "test accuracy %", "mean"):
        table.add_column(name)
    for guard, rows in result["guards"].items():
        accuracies = [row["accuracy"] for row in rows]
        table.add_row(
            guard.replace("_", " "),
            " ".join(str(row["skips"]) for row in rows),
            " ".join(f"{value:.2f}" for value in accuracies),
            f"{np.mean(accuracies):.2f}",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.main(main, PRESETS)
