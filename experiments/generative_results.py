"""What searches by generators leave: numbers with intervals, pictures, a summary."""

from collections.abc import Mapping
from math import nan
from typing import Any

import numpy as np
import rich.console
import rich.table

from jaxnas import plots, runs
from jaxnas.generation import Quality
from jaxnas.incumbents import bootstrap

# Of NAS-Bench-201's CIFAR-10 test accuracy, with the final accuracy as the signal.
PUBLISHED = (
    "published: AG-Net 94.37 (Lukasik et al. 2022, arXiv:2203.08734), DiNAS 94.37 "
    "(Asthana et al. 2024, arXiv:2403.06020), arch2vec 94.18 (Yan et al. 2020, "
    "arXiv:2006.06936): their numbers of queries and signals differ"
)


def interval(values: np.ndarray) -> dict[str, float]:
    """The mean over the seeds, its 95 % bootstrap interval, and their deviation."""
    low, high = bootstrap(values) if len(values) > 1 else (nan, nan)
    return {
        "mean": float(values.mean()),
        "ci95_low": low,
        "ci95_high": high,
        "std": float(values.std(ddof=1)) if len(values) > 1 else nan,
    }


def said(found: Quality) -> dict[str, Any]:
    """As result.json has it; says where a generator has collapsed."""
    if found.collapsed:
        print("the generator has collapsed: all of its samples are one architecture")
    return found._asdict()


def draw(
    run: runs.Run, title: str, signal: str, best: float, rows: Mapping[str, Any]
) -> None:
    """Draws the regret over the queries."""
    curves = {}
    for name, row in rows.items():
        regret = best - np.array(row["every"], np.float32).astype(float)
        curves[name] = np.arange(1, regret.shape[1] + 1), regret
    label = "mean regret of the test accuracy (points)"
    figure = plots.plot_regret(curves, ylabel=label, title=title)
    plots.save(figure, run.path(f"regret_{signal}.png"))


def show(result: dict[str, Any]) -> None:
    """Prints the summary of a finished run."""
    console = rich.console.Console(width=120)
    for signal, rows in result["incumbent_test_accuracy"].items():
        table = make_table(f"test accuracy by queries, {signal} as the signal")
        points = next(iter(rows.values()))
        for point in points:
            table.add_column(point, justify="right", no_wrap=True)
        for name, row in rows.items():
            table.add_row(name, *map(with_interval, row.values()))
        console.print(table)
    table = make_table("the generator, in percent")
    for name in ("validity", "uniqueness", "novelty", "reconstruction"):
        table.add_column(name, justify="right")
    table.add_row("after the search", *map(percent, generator_of(result)))
    for name, row in result["qualities"].items():
        table.add_row(name, *map(percent, generator_of(row)))
    console.print(table)
    for name, seconds in result.get("seconds", {}).items():
        print(
            f"{name} took {seconds:.3g} s of a core a search, pre-training and models "
            "included, compiling not"
        )
    if result["space"] == "nasbench201" and result["dataset"] == "cifar10":
        print(PUBLISHED)


def make_table(title: str) -> rich.table.Table:
    """An empty table whose first column is for names."""
    table = rich.table.Table(title=title, box=None, title_justify="left")
    table.add_column("", no_wrap=True)
    return table


def generator_of(row: Mapping[str, Any]) -> list[float | None]:
    """What is said of a generator."""
    return [row[name] for name in Quality._fields if name != "collapsed"]


def percent(value: float | None) -> str:
    """Writes a fraction."""
    return "-" if value is None else f"{100 * value:.1f}"


def with_interval(row: Mapping[str, float | None]) -> str:
    """Writes an accuracy and its interval."""
    low, high = row.get("ci95_low"), row.get("ci95_high")
    known = low is not None and high is not None
    return f"{row['mean']:.3f}" + (f" ({low:.3f}-{high:.3f})" if known else "")
