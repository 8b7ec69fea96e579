"""Curves over time: operation weights, losses, accuracies."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from jaxnas.base import InputError
from jaxnas.plots.figure import INK, LINE, PALE, PALETTE, Picture, typeset

DASHES = ("-", "--", ":", "-.")  # once the colours are used up
SERIES = (1, 6, 4, 0, 7, 5, 3, 8, 9, 2)  # of the palette, the most unlike first
TITLE: dict[str, Any] = {"size": 13, "weight": "bold", "color": INK}
LABEL: dict[str, Any] = {"size": 9.5, "color": INK}


def plot_operation_weights(
    steps: ArrayLike,
    weights: ArrayLike,
    edge_names: Sequence[str],
    op_names: Sequence[str],
    title: str,
) -> Figure:
    """Plots the weights of all operations over a search, one panel an edge.

    Args:
      steps: float[T], the search step of each row.
      weights: float[T, E, K], the softmax of the logits of E edges.
      edge_names: E titles of panels, such as `c_{k-2} → 0`.
      op_names: K operations; an operation has the same colour in every panel.
      title: what stands above all panels.

    Raises:
      InputError: where shapes and names do not fit each other, or are empty.
    """
    x, y = np.asarray(steps, float), np.asarray(weights, float)
    expected = (x.size, len(edge_names), len(op_names))
    if x.ndim != 1 or y.shape != expected or 0 in expected:
        raise InputError(
            "expected weights[steps, edges, operations], none of them empty, got shape "
            f"{y.shape} for steps of shape {x.shape}, {len(edge_names)} edge names and "
            f"{len(op_names)} operation names; pass arrays and names that agree"
        )
    count = len(edge_names)
    columns = min(count, min((5, 4, 3), key=lambda columns: -count % columns))
    rows = math.ceil(count / columns)
    size = max(2 * columns, 6), 1.6 * rows + 1.2
    figure, grid = make_panels(rows, columns, size, title, sharex=True, sharey=True)
    figure.supylabel("operation weight", **LABEL)
    for panel in grid.flat[count:]:
        panel.remove()
    for edge, panel in enumerate(grid.flat[:count]):
        panel.set_title(typeset(edge_names[edge]), pad=3, **LABEL)
        panel.tick_params(labelbottom=edge + columns >= count)
        for op, name in enumerate(op_names):
            _plot(panel, x, y[:, edge, op], op, label=name)
    for panel in grid.flat[columns * (rows - 1) : count]:
        panel.set_xlabel("search step", **LABEL)
    first = grid[0, 0]
    first.set_ylim(0, 1.05 * np.max(y, where=np.isfinite(y), initial=1e-3))
    first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    first.yaxis.set_major_locator(MaxNLocator(4))
    figure.legend(
        *first.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
    return figure


def plot_curves(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    xlabel: str,
    title: str,
    smooth: bool = True,
) -> Figure:
    """Plots losses, accuracies and the like, one panel a quantity, side by side.

    A series of 50 points or more is drawn faintly, under its centred moving mean
    over a twenty-fifth of the points. Values that are not finite leave a gap.

    Args:
      panels: label of the y axis -> name of a series -> (x float[N], y float[N]).
      xlabel: label of every x axis.
      title: what stands above all panels.
      smooth: whether to draw moving means.

    Raises:
      InputError: for no panel or an empty one, or where x and y of a series are not
        of one length.
    """
    if not panels or not all(panels.values()):
        raise InputError(
            "expected one panel or more, with one series or more each, got "
            f"{ {label: list(series) for label, series in panels.items()} }; "
            "pass {y label: {name: (x, y)}}"
        )
    size = max(4.6 * len(panels), 6), 3.7
    figure, grid = make_panels(1, len(panels), size, title)
    for panel, (ylabel, series) in zip(grid.flat, panels.items(), strict=True):
        panel.set_xlabel(xlabel, **LABEL)
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        panel.set_ylabel(ylabel, **LABEL)
        numbers = itertools.chain(SERIES, itertools.count(len(SERIES)))
        for number, (name, points) in zip(numbers, series.items(), strict=False):
            _plot_series(panel, name, *points, number, smooth)
        # Above the panel, where no curve can be.
        panel.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            borderaxespad=0.2,
            borderpad=0.2,
        )
    return figure


def _plot_series(
    axes: Axes, name: str, x: ArrayLike, y: ArrayLike, number: int, smooth: bool
) -> None:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(
            f"expected x and y of one length for {name!r}, got shapes {x.shape} and "
            f"{y.shape}; pass one y for each x"
        )
    if smooth and len(y) >= 50:
        _plot(axes, x, y, number, linewidth=0.8, alpha=0.25, zorder=1.5)
        y = _moving_mean(y, 2 * (len(y) // 50) + 1)
    _plot(axes, x, y, number, label=name)


def _plot(axes: Axes, x: NDArray, y: NDArray, number: int, **style: Any) -> None:
    repeat, color = divmod(number, len(PALETTE))
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(x) <= 20 else {}
    axes.plot(
        x,
        np.where(np.isfinite(y), y, np.nan),
        color=PALETTE[color],
        linestyle=DASHES[repeat % len(DASHES)],
        **({"linewidth": 1.5} | dots | style),
    )


def _moving_mean(y: NDArray, window: int) -> NDArray:
    """Means over the finite values of an odd window; NaN where y itself is not."""
    finite, ones = np.isfinite(y), np.ones(window)
    total = np.convolve(np.where(finite, y, 0), ones, "same")
    count = np.convolve(finite, ones, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def make_panels(
    rows: int, columns: int, size: tuple[float, float], title: str, **share: Any
) -> tuple[Figure, NDArray]:
    """An empty figure of `size` (inches) and its Axes[rows, columns]."""
    figure = Picture(*size, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07))
    figure.suptitle(title, **TITLE)
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=INK, labelsize=8.5)
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, grid
