"""DARTS's collapse on the space of NAS-Bench-201, and what guards do to it.

    python experiments/darts_collapse.py --benchmark nasbench201.npz

Searched for long, DARTS fills its cell with skip connections (Dong and Yang 2020,
arXiv:2001.00326: 54.30 % test accuracy). Zela et al. 2020 (arXiv:1909.09656) saw the
largest eigenvalue of the validation loss's Hessian rise before, and stop there;
P-DARTS (arXiv:1904.12760) limits skip connections. Every seed searches once, for as
long as asked; the table says what each guard would have answered. In the quick preset
the skeleton is reduced and the logits' rate raised.
"""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from cell_table import CellConfig, CellTable, Images, load_table, make_supernet
from relaxed_methods import make_strategy

from jaxnas import cli, data, plots, runs
from jaxnas.base import Array, InputError, Log, Strategy
from jaxnas.encoding import is_skip
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.early_stopping import early_stopping


@dataclass(frozen=True)
class Config(CellConfig):
    """Watch DARTS collapse on NAS-Bench-201, with guards and without."""

    workdir: Path = Path("runs/darts_collapse")
    """Where results go; the same command goes on from what is there."""
    steps: int = 19_500
    curvature_every: int = 390
    """Steps between two measurements of the largest eigenvalue."""
    window: int = 5
    """Measurements that early stopping averages over, and looks back."""
    threshold: float = 0.75
    """It stops where the eigenvalue before is below so much of the present one."""
    max_skips: int = 2
    """The limit on skip connections."""
    chunk: int = 390


PRESETS = {
    "quick": Config(
        image_size=8,
        channels=8,
        cells=3,
        steps=3000,
        arch_learning_rate=1e-3,
        curvature_every=50,
        chunk=100,
    ),
    "paper": Config(),
}
SEARCH = ("train_loss", "valid_loss", "valid_curvature", "skips")
GUARDS = ("none", "early_stopping", "max_skips")


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    cells = CellTable.of(load_table(config), config.column)
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
    measurements = config.steps // config.curvature_every
    if measurements < 2 * config.window:
        raise InputError(
            f"expected {2 * config.window} measurements or more, of which early "
            f"stopping needs two windows, but got {measurements}: ask for more "
            "--steps, a smaller --window or --curvature-every"
        )
    cli.run_or_show(config, SEARCH, partial(work, config, dataset, cells), show)


def work(
    config: Config, dataset: data.Dataset, cells: CellTable, run: runs.Run
) -> dict[str, Any]:
    """Searches with every seed; draws; returns what result.json says."""
    space = cells.space
    make = partial(make_strategy, "darts", space, config.steps)
    plain = make(learning_rate=config.arch_learning_rate)
    limited = make(max_skips=config.max_skips)
    found: dict[str, list] = {guard: [] for guard in GUARDS}
    panels: dict[str, dict] = {}
    for seed in range(config.seeds):
        key = jax.random.fold_in(jax.random.key(config.seed), seed)
        state, log = watch(config, dataset, run, plain, key, f"seed{seed}")
        last, step = plain.recommend(state, log), stop(config, log)
        weights = log.proposal.arch[:, 0]
        stopped = last if step is None else space.discretize(weights[step])
        answers = last, stopped, limited.recommend(state, log)
        for guard, arch in zip(GUARDS, answers, strict=True):
            skips = int(is_skip(arch, space.cells).sum())
            row = {"cell": space.to_string(arch), "skips": skips}
            found[guard].append(row | {"accuracy": cells.worth(arch)})
        found["early_stopping"][-1]["step"] = step
        for name, curve in trace(config, cells, log).items():
            panels.setdefault(name, {})[f"seed {seed}"] = curve
    figure = plots.plot_curves(panels, xlabel="step", title="DARTS", smooth=False)
    plots.save(figure, run.path("collapse.png"))
    best = float(cells.accuracies.max())
    return {"column": config.column, "best_in_table": best, "guards": found}


def watch(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    strategy: Strategy,
    key: Array,
    phase: str,
) -> tuple[Any, Log]:
    """Searches, and measures the curvature; the strategy's state and the log."""
    key_split, key_search = jax.random.split(key)
    images = Images.of(dataset, key_split)
    every = config.curvature_every
    evaluator = make_supernet(config, images, "darts", curvature_every=every)
    space = nasbench201()

    def summarise(log: Log) -> dict[str, Any]:
        arch = space.discretize(log.proposal.arch[-1, 0])
        row = {"skips": is_skip(arch, space.cells).sum()}
        metrics = log.feedback.metrics
        row |= {name: metrics[name].mean() for name in ("train_loss", "valid_loss")}
        curvatures = metrics["valid_curvature"]
        if np.isfinite(curvatures).any():  # most steps do not measure it
            row["valid_curvature"] = np.nanmean(curvatures)
        return row

    with cli.phase(run, phase, config.steps, config.chunk, summarise) as scan:
        (state, _), log = search(key_search, strategy, evaluator, config.steps, scan)
    return state, log


def stop(config: Config, log: Log) -> int | None:
    """The step whose architecture early stopping answers with, None if it never stops.

    A search that stops is this one up to there, so the guard is shown the log: what it
    guards does nothing but count steps.
    """
    key = jax.random.key(0)
    counter = Strategy(
        init=lambda _: jnp.int32(0),
        ask=lambda *_: log.proposal,
        tell=lambda _, step, *others: step + 1,
        recommend=lambda state, _: state,
    )
    guard = early_stopping(counter, window=config.window, threshold=config.threshold)

    def tell(state, seen):
        return guard.tell(key, state.inner, state, *seen), None

    state, _ = jax.lax.scan(tell, guard.init(key), (log.proposal, log.feedback))
    return int(state.inner) if state.stopped else None


def trace(
    config: Config, cells: CellTable, log: Log
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves of a search: skips, eigenvalue, what the cell is worth."""
    curvature = log.feedback.metrics["valid_curvature"][:, 0]
    steps = np.flatnonzero(np.isfinite(curvature))
    space = cells.space
    found = np.asarray(jax.vmap(space.discretize)(log.proposal.arch[steps, 0]))
    skips = jax.vmap(partial(is_skip, cells=space.cells))(found).sum(1)
    return {
        "skip connections of 6 edges": (steps, np.asarray(skips)),
        "largest eigenvalue": (steps, curvature[steps]),
        f"{config.column} (%)": (steps, np.array([*map(cells.worth, found)])),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    title = f"DARTS on NAS-Bench-201, best cell {result['best_in_table']:.2f} %"
    table = rich.table.Table(title=title)
    for name in ("guard", "skips of 6", f"{result['column']} %", "mean", "stopped at"):
        table.add_column(name)
    for guard, rows in result["guards"].items():
        accuracies = [row["accuracy"] for row in rows]
        table.add_row(
            guard.replace("_", " "),
            " ".join(str(row["skips"]) for row in rows),
            " ".join(f"{value:.2f}" for value in accuracies),
            f"{np.mean(accuracies):.2f}",
            " ".join(
                "-" if row["step"] is None else str(row["step"])
                for row in rows
                if "step" in row
            ),
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.main(main, PRESETS)
