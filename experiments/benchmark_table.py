"""The small space of `build_benchmark`, the table of its networks, and its pictures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxnas import benchmarks, plots
from jaxnas.base import InputError, Table
from jaxnas.runs import Run
from jaxnas.spaces.chain import chain

SLOTS = (
    ("conv1x1-4", "conv3x3-4", "conv3x3-16"),
    ("identity", "relu", "sigmoid", "max_pool"),
    ("identity", "conv1x1-16", "conv3x3-4", "conv3x3-16"),
    ("identity", "relu", "avg_pool", "max_pool"),
    ("identity", "conv3x3-4", "conv3x3-16"),
    ("identity", "relu"),
)
NUM_CHOICES = tuple(map(len, SLOTS))
SPACE = chain((8, 8, 1), kernels=(1, 3), channels=(4, 16), trunk=len(SLOTS), head=0)
ACCURACIES = "valid_acc", "test_acc"
MEASURED = (*ACCURACIES, "cost")  # of each network at each budget


class Sizes(NamedTuple):
    """What a network has."""

    parameters: np.ndarray  # int32[A]
    flops: np.ndarray  # float32[A], of one image


def chain_of(archs: np.ndarray) -> np.ndarray:
    """The same architectures as `SPACE` has them: int32[A, D]."""
    words = [
        " ".join(slot[i] for slot, i in zip(SLOTS, arch, strict=True)) for arch in archs
    ]
    return np.stack([SPACE.from_string(f"{text} /") for text in words])


def sizes_of(archs: np.ndarray) -> Sizes:
    """Counts parameters and operations."""
    count = jax.vmap(lambda arch: SPACE.sizes(arch, (8, 8, 1)))
    return Sizes(*map(np.asarray, count(chain_of(archs))))


def make_table(
    archs: np.ndarray,
    sizes: Sizes,
    found: dict[str, np.ndarray],
    budgets: Sequence[int],
) -> Table:
    """Takes means and standard deviations of float64[A, S] over the seeds."""
    table = {}
    for budget in budgets:
        for name in MEASURED:
            values = found[f"{name}_{budget}ep"]
            table[f"{name}_{budget}ep"] = values.mean(1, keepdims=True)
            if name != "cost":
                std = values.std(1, ddof=1, keepdims=True)
                table[f"{name}_std_{budget}ep"] = std
        for name, value in sizes._asdict().items():
            table[f"{name}_{budget}ep"] = value[:, None].astype(np.float64)
    slots = ", ".join("|".join(slot) for slot in SLOTS)
    seeds = len(found[f"cost_{budgets[0]}ep"][0])
    source = f"jaxnas, experiments/build_benchmark.py: {seeds} seeds of {slots}"
    columns = {name: jnp.asarray(x, jnp.float32) for name, x in table.items()}
    where = ("digits",)
    return Table("digits", "categorical", NUM_CHOICES, where, archs, columns, source)


def summary(table: Table, run: Run) -> dict[str, Any]:
    """Draws the table; returns what result.json says of it."""
    plots.save(draw(table), run.path("table.png"))
    keys = jax.vmap(SPACE.canonical)(chain_of(np.asarray(table.archs)))
    found: dict[str, Any] = {
        "architectures": len(table.archs),
        "different_networks": len(np.unique(keys, axis=0)),
    }
    for name, column in table.columns.items():
        quantity, budget = benchmarks.split_column(name)
        if quantity in ACCURACIES:
            found[f"{name}_range"] = [float(column.min()), float(column.max())]
            found[f"{name}_seeds"] = spread_of(table.columns[deviation(name)])
        if quantity == "cost":
            found[f"core_seconds_{budget}ep"] = float(column.sum())
    return found | {"cores": jax.device_count()}


def draw(table: Table) -> Figure:
    """Draws accuracies and their spread, from the worst architecture to the best."""
    last = max(benchmarks.split_column(name)[1] for name in table.columns)
    order = np.argsort(np.asarray(table.columns[f"valid_acc_{last}ep"])[:, 0])
    accuracies: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for name, column in table.columns.items():
        quantity, budget = benchmarks.split_column(name)
        if quantity in ACCURACIES:
            label = f"{quantity.removesuffix('_acc')}, {budget} ep"
            rank = np.arange(len(order))
            spread = table.columns[deviation(name)]
            accuracies[label] = rank, np.asarray(column)[order, 0]
            deviations[label] = rank, np.asarray(spread)[order, 0]
    return plots.plot_curves(
        {"accuracy (%)": accuracies, "deviation over seeds (points)": deviations},
        xlabel="architectures, the worst first",
        title="Digits: what the table holds",
    )


def comparable(other: Table, archs: np.ndarray, budgets: Sequence[int]) -> None:
    """Refuses a table that lacks something to compare with.

    Raises:
      InputError: it lacks a column or an architecture.
    """
    names = [f"{name}_{b}ep" for b in budgets for name in ACCURACIES]
    names += [deviation(name) for name in list(names)]
    lacking = [name for name in names if name not in other.columns]
    rows = {tuple(arch) for arch in np.asarray(other.archs).tolist()}
    absent = [arch for arch in archs.tolist() if tuple(arch) not in rows]
    if lacking or absent or other.num_choices != NUM_CHOICES:
        what = (lacking or absent or [f"choices {list(NUM_CHOICES)}"])[0]
        raise InputError(
            f"expected --against a table of what this one has, but {other.name} lacks "
            f"{what}: give one that this experiment made, at these budgets"
        )


def compare(table: Table, other: Table) -> None:
    """Prints how far two tables are apart, in units of the seeds' spread."""
    rows = {tuple(arch): i for i, arch in enumerate(np.asarray(other.archs).tolist())}
    places = np.array([rows[tuple(arch)] for arch in np.asarray(table.archs).tolist()])
    print(f"apart from {other.name}, in units of the seeds' spread:")
    for name, new in table.columns.items():
        if benchmarks.split_column(name)[0] not in ACCURACIES:
            continue
        deviations = (x.columns[deviation(name)] for x in (table, other))
        spread = spread_of(*deviations)
        points = np.abs(np.asarray(new) - np.asarray(other.columns[name])[places])
        mean, most = points.mean() / (spread or 1), points.max() / (spread or 1)
        verdict = "within" if mean <= 1 else "NOT within"
        print(
            f"{name}: {mean:.3f} on average, {most:.3f} at most; a spread is "
            f"{spread:.2f} points; {verdict} the spread"
        )


def spread_of(*deviations: ArrayLike) -> float:
    """The root mean square of the standard deviations over seeds of all networks."""
    return float(np.sqrt(np.mean([np.mean(np.square(x)) for x in deviations])))


def deviation(name: str) -> str:
    """The column with the standard deviation of another."""
    quantity, budget = benchmarks.split_column(name)
    return f"{quantity}_std_{budget}ep"
