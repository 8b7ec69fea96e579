"""What the experiment on tables leaves: parts, rows, a picture, a summary."""

from itertools import repeat
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.table

from jaxnas import benchmarks, files, plots
from jaxnas.base import InputError
from jaxnas.incumbents import Curves, accuracy_at, bootstrap, final_accuracy

COLUMNS = "strategy", "seed", "query", "cost", "fitness", "incumbent_test_accuracy"
UNITS = "queries", "seconds", "epochs"
# CIFAR-10 test accuracy, mean and standard deviation, of the paper below.
PUBLISHED = {
    "random_search": "93.70 ± 0.36",
    "regularized_evolution": "93.92 ± 0.30",
    "reinforce": "93.85 ± 0.37",
}
SETTING = (
    "arXiv:2001.00326 v2, on NAS-Bench-201 v1.0: another setting than ours, 12,000 "
    "simulated seconds of 12-epoch trainings"
)


class Part(NamedTuple):
    """What a strategy did; saved as soon as it is done."""

    curves: Curves
    compiling: float  # seconds
    rate: float  # queries a second


def spent(curves: Curves, unit: str) -> np.ndarray:
    """What the unit counts: float64[S, E]."""
    return curves.query if unit == "queries" else curves.cost


def save_part(path: Path, part: Part) -> None:
    """Writes what a strategy did, never by half."""
    partial = path.with_name(f".{path.name}.partial")
    arrays = part.curves._asdict() | {"compiling": part.compiling, "rate": part.rate}
    with files.writing(path):
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)


def load_part(path: Path) -> Part:
    """Reads what `save_part` wrote."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            curves = Curves(*(file[name] for name in Curves._fields))
            return Part(curves, float(file["compiling"]), float(file["rate"]))
    except benchmarks.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}): delete it") from error


def write_csv(path: Path, parts: dict[str, Part]) -> None:
    """Writes a row for every evaluation."""
    partial = path.with_name(f".{path.name}.partial")
    with files.writing(path):
        with partial.open("w") as file:
            file.write(",".join(COLUMNS) + "\n")
            for name, part in parts.items():
                curves, kept = part.curves, part.curves.asked
                seed = np.broadcast_to(np.arange(len(kept))[:, None], kept.shape)
                values = seed, curves.query, curves.cost, curves.fitness, curves.test
                columns = [texts(column[kept]) for column in values]
                rows = map(",".join, zip(repeat(name), *columns, strict=False))
                file.writelines(row + "\n" for row in rows)
        partial.replace(path)


def texts(values: np.ndarray) -> list[str]:
    """Writes numbers with nine digits, each different one once; NaN is empty."""
    different, places = np.unique(values, return_inverse=True)
    written = ["" if np.isnan(x) else f"{x:.9g}" for x in different.tolist()]
    return [written[place] for place in places.tolist()]


def summary(part: Part) -> dict[str, float]:
    """The final incumbents' test accuracy over the seeds, and how fast it went."""
    final = final_accuracy(part.curves)
    found = final[np.isfinite(final)]
    low, high = bootstrap(found) if len(found) > 1 else (nan, nan)
    return {
        "mean": float(found.mean()) if len(found) else nan,
        "std": float(found.std(ddof=1)) if len(found) > 1 else nan,
        "ci95_low": low,
        "ci95_high": high,
        "queries_per_second": part.rate,
        "absent": int(part.curves.absent.sum()),
        "seconds_compiling": part.compiling,
    }


def draw(
    path: Path,
    parts: dict[str, Part],
    best: float,
    most: float,
    unit: str,
    title: str,
) -> None:
    """Draws the regret over what was spent, at 500 points at most."""
    grid = np.linspace(0, most, 501)[1:]
    if unit == "queries":
        grid = np.unique(np.ceil(grid))
    curves = {}
    for name, (found, *_) in parts.items():
        curves[name] = grid, best - accuracy_at(found, spent(found, unit), grid)
    figure = plots.plot_regret(
        curves,
        xlabel=unit if unit == "queries" else f"simulated {unit} of training",
        ylabel="mean regret of the test accuracy (points)",
        title=title,
    )
    plots.save(figure, path)


def show(result: dict[str, Any]) -> None:
    """Prints the summary of a finished run."""
    found = result["strategies"]
    unit = next(unit for unit in UNITS if unit in result)
    published = PUBLISHED if result["space"] == "nasbench201" else {}
    if result["dataset"] != "cifar10" or not published.keys() & found.keys():
        published = {}
    what = ", ".join(result[key] for key in ("benchmark", "dataset", "signal"))
    title = f"{what}: test accuracy after {result[unit]:g} {unit}"
    title += f", {result['seeds']} seeds"
    table = rich.table.Table(title=title, box=None, title_justify="left")
    table.add_column("strategy", no_wrap=True)
    names = ["mean", "std", "95 % interval", *(["paper*"] if published else [])]
    for column in [*names, "absent", "queries/s"]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in sorted(found.items(), key=lambda item: -(item[1]["mean"] or 0)):
        numbers = [name, *(number(row[key]) for key in ("mean", "std"))]
        numbers += [f"{number(row['ci95_low'])} to {number(row['ci95_high'])}"]
        numbers += [published.get(name, "")] if published else []
        rate = f"{row['queries_per_second']:,.0f}"
        table.add_row(*numbers, str(row["absent"]), rate)
    console = rich.console.Console(width=100)
    console.print(table)
    print(f"the best in the table has {result['best_test_accuracy']:.3f}")
    if published:
        print(f"* {SETTING}")


def number(value: float | None) -> str:
    """Writes an accuracy."""
    return "-" if value is None or isnan(value) else f"{value:.3f}"
