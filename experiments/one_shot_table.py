"""One-shot methods and zero-cost proxies on equal terms, on the space of NAS-Bench-201.

    python experiments/one_shot_table.py --benchmark nasbench201.npz

Every method trains a supernet on CIFAR-10 for as many steps. The cell that it finds is
looked up in the table of NAS-Bench-201, and random cells are scored by its weights: how
alike that ranking is to the table's is Kendall's tau. Proxies score the same cells,
untrained, at the published size. The skeleton of the supernets is reduced, since that
is what a CPU can train: figures of papers, beside ours, are of the whole one.
"""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.console
import rich.table
from cell_table import NUM_CELLS, CellConfig, load_table
from one_shot_methods import METHODS, SEARCH, Problem, run_method
from one_shot_proxies import PROXIES, run_proxies
from published_one_shot import (
    ACCURACY,
    ACCURACY_SETTING,
    CORRELATION,
    CORRELATION_SETTING,
)
from rank_correlation import Correlation, correlate
from relaxed_methods import PARTS

from jaxnas import cli, data, plots, runs
from jaxnas.base import InputError


@dataclass(frozen=True)
class Config(CellConfig):
    """Compare one-shot methods and zero-cost proxies on NAS-Bench-201."""

    workdir: Path = Path("runs/one_shot_table")
    """Where results go; the same command goes on from what is there."""
    methods: tuple[Literal[tuple(METHODS)], ...] = tuple(METHODS)
    proxies: tuple[Literal[tuple(PROXIES)], ...] = tuple(PROXIES)
    architectures: int = 1000
    """Random cells that are scored, each once."""
    together: int = 1
    """Seeds that are trained side by side, where a single path costs what all do."""

    weight_steps: int = 300
    """Of the weights between two turns of ENAS's controller."""
    controller_learning_rate: float = 3.5e-3
    """Of ENAS's controller."""
    samples: int = 1000
    """Cells that enas, single_path and random_sharing rank in the end."""
    score_batches: int = 40
    """Batches that a cell's score is the accuracy on."""
    calibration_batches: int = 8
    """Batches that a cell's running statistics are made of."""

    proxy_channels: int = 16
    proxy_cells: int = 5
    proxy_batch_size: int | None = None
    """Examples that networks are looked at with; of each proxy its own number."""


PRESETS = {
    "quick": Config(
        architectures=200,
        seeds=2,
        image_size=16,
        channels=8,
        cells=1,
        steps=1500,
        arch_learning_rate=3e-3,
        weight_steps=50,
        samples=100,
        score_batches=8,
        calibration_batches=4,
        chunk=100,
    ),
    "paper": Config(),
}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    table = load_table(config)
    dataset = whole = data.load(config.dataset, config.data_dir)
    check(config, whole)
    if (small := config.image_size) is not None:
        dataset = data.load(config.dataset, config.data_dir, image_size=small)
    problem = Problem.of(config, dataset, whole, table)
    cli.run_or_show(config, SEARCH, partial(work, config, problem), show)


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    counts = "seeds", "together", "channels", "cells", "steps", "samples", "chunk"
    counts += "score_batches", "proxy_channels", "proxy_cells", "weight_steps"
    half = len(dataset.train_labels) // 2
    ranges = {
        **{name: (1, inf) for name in counts},
        "architectures": (3, NUM_CELLS),
        "calibration_batches": (0, inf),
        "batch_size": (1, half),
        "proxy_batch_size": (2, half),
        "learning_rate": (0, inf),
        "arch_learning_rate": (0, inf),
        "controller_learning_rate": (0, inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    if config.seeds % config.together:
        raise InputError(
            f"expected --together to divide the {config.seeds} seeds, but got "
            f"{config.together}: change one of them"
        )
    if "pc_darts" in config.methods and config.channels % PARTS:
        raise InputError(
            f"expected --channels that {PARTS} divides, since operations of pc_darts "
            f"see a part of them, but got {config.channels}: change it, or leave "
            "pc_darts out"
        )
    if not (config.methods or config.proxies):
        raise InputError("expected a method or a proxy, but got none: name one")


def work(config: Config, problem: Problem, run: runs.Run) -> dict[str, Any]:
    """Runs what is not done yet; returns what result.json says."""
    rows: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for name in config.methods:
        found = run.once(name, partial(run_method, config, problem, run, name))
        scores[name] = as_floats(found["scores"])
        rows[name] = summary_of(problem, found, scores[name])
    proxies: dict[str, Any] = {}
    if config.proxies:
        found = run.once("proxies", partial(run_proxies, config, problem, run))
        for name in config.proxies:
            scores[name] = as_floats(found["scores"][name])
            proxies[name] = correlate(scores[name], problem.accuracies)._asdict()
    first = {name: np.atleast_2d(x)[0] for name, x in scores.items()}
    ylabel = f"{config.column} (%)"
    title = f"{config.architectures} cells by each score, first seed"
    figure = plots.plot_scores(first, problem.accuracies, ylabel=ylabel, title=title)
    plots.save(figure, run.path("scores.png"))
    pixels = problem.images.halves[0].images.shape[1]
    return {
        "architectures": config.architectures,
        "column": config.column,
        "best_in_table": float(problem.cells.accuracies.max()),
        "setting": f"{config.channels} channels, {config.cells} cells a stage, "
        f"{pixels}x{pixels} pixels, {config.steps} steps of {config.batch_size}, "
        f"{config.seeds} seeds",
        "methods": rows,
        "proxy_setting": f"{config.proxy_channels} channels, {config.proxy_cells} "
        "cells a stage, whole images",
        "proxies": proxies,
        "proxy_seconds_per_cell": found["seconds_per_cell"] if proxies else None,
    }


def as_floats(values: Any) -> np.ndarray:
    """Reads numbers of which null is one that failed."""
    return np.array(values, float)


def summary_of(problem: Problem, found: dict[str, Any], scores: Any) -> dict[str, Any]:
    """What a method found over its seeds, and how well it ranks."""
    archs = [np.array(arch) for arch in found["archs"]]
    accuracies = [problem.cells.worth(arch) for arch in archs]
    return {
        "accuracy": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
        "cells": [problem.cells.space.to_string(arch) for arch in archs],
        "skips": float(np.mean(found["skips"])),
        **correlate(scores, problem.accuracies)._asdict(),
        "seconds": found["seconds"],
        "scoring_seconds": found["scoring_seconds"],
    }


def show(result: dict[str, Any]) -> None:
    """Prints both tables."""
    console = rich.console.Console(width=110)
    best = f"best in the table {result['best_in_table']:.2f} %"
    methods = rich.table.Table(
        title=f"One-shot methods, {result['setting']}; {best}",
        caption="single_path and random_sharing rank with the same weights, so their "
        f"correlations are one; published: {ACCURACY_SETTING}",
    )
    names = (
        "",
        f"{result['column']} %",
        "skips",
        "tau (95 %)",
        "rho",
        "seconds",
        "published %",
    )
    for name in (*names, "by"):
        methods.add_column(name)
    for name, row in result["methods"].items():
        spread = f" +- {row['deviation']:.2f}" if row["deviation"] is not None else ""
        methods.add_row(
            name,
            f"{row['accuracy']:.2f}{spread}",
            f"{row['skips']:.1f}",
            *_correlation(row),
            f"{row['seconds']:.0f}",
            *ACCURACY.get(name, ("-", "-")),
        )
    if result["methods"]:
        console.print(methods)
    proxies = rich.table.Table(
        title=f"Proxies, {result['proxy_setting']}",
        caption=f"published: {CORRELATION_SETTING}",
    )
    for name in ("", "tau (95 %)", "rho", "published", "by"):
        proxies.add_column(name)
    for name, row in result["proxies"].items():
        proxies.add_row(name, *_correlation(row), *CORRELATION.get(name, ("-", "-")))
    if result["proxies"]:
        console.print(proxies)


def _correlation(row: dict[str, Any]) -> tuple[str, str]:
    found = Correlation(**{name: row[name] for name in Correlation._fields})
    interval = f"{found.tau:.2f} ({found.low:.2f} to {found.high:.2f})"
    return interval, f"{found.rho:.2f}"


if __name__ == "__main__":
    cli.main(main, PRESETS)
