"""What surrogates predict, how well by what they have seen, and fronts."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from jaxnas.base import InputError
from jaxnas.plots.curves import DASHES, LABEL, SERIES, make_panels
from jaxnas.plots.figure import INK, LINE, PALETTE

MOST_BARS = 200  # points with error bars; more are a cloud


def plot_predictions(
    groups: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    unit: str,
    title: str,
) -> Figure:
    """Plots measured values over predicted ones with error bars, and the diagonal.

    Bars are 1.96 predicted deviations long to each side: of what is measured without
    noise, 95 of 100 should cross the diagonal; a surrogate's deviations leave noise
    out, so fewer do. Of a group with more than 200 points the first 200 are drawn. The
    axes leave out the lowest twentieth of what was measured.

    Args:
      groups: name -> (predicted float[N], deviation float[N], measured float[N]).
      unit: what is predicted, with its unit.
      title: what stands above.

    Raises:
      InputError: there is no group, or one is empty or of several lengths.
    """
    points = {
        name: tuple(np.asarray(x, float) for x in group)
        for name, group in groups.items()
    }
    for name, arrays in points.items():
        if (
            len({x.shape for x in arrays}) > 1
            or arrays[0].ndim != 1
            or not arrays[0].size
        ):
            raise InputError(
                f"expected predicted, deviation and measured [N] for {name!r}, not "
                f"empty, but got {[x.shape for x in arrays]}"
            )
    if not points:
        raise InputError("expected a group of points or more, but got none")
    figure, grid = make_panels(1, 1, (6.2, 5.2), title)
    axes = grid[0, 0]
    for number, (name, arrays) in enumerate(points.items()):
        mean, deviation, measured = (x[:MOST_BARS] for x in arrays)
        axes.errorbar(
            mean,
            measured,
            xerr=1.96 * deviation,
            fmt="o",
            markersize=3 + 2 * number,
            color=PALETTE[SERIES[number % len(SERIES)]],
            elinewidth=0.7,
            alpha=0.5 if len(mean) > 50 else 0.95,
            label=f"{name} ({len(arrays[0])})",
            zorder=2 + number,
        )
    values = np.concatenate([x[2][:MOST_BARS] for x in points.values()])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, 0.05), values.max()
    ends = np.array([low, high]) + 0.06 * max(high - low, 1e-6) * np.array([-1, 1])
    axes.plot(ends, ends, color=LINE, linewidth=1, zorder=1)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel(f"predicted {unit}", **LABEL)
    axes.set_ylabel(f"measured {unit}", **LABEL)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    return figure


def plot_front(
    fronts: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    evaluated: tuple[ArrayLike, ArrayLike],
    xlabel: str,
    ylabel: str,
    title: str,
) -> Figure:
    """Plots Pareto fronts as stairs over all that was evaluated, cost on a log axis.

    Args:
      fronts: name -> (cost float[N], less is better; worth float[N], more is).
      evaluated: cost and worth of the cloud behind them.
      xlabel: of the cost.
      ylabel: of the worth.
      title: what stands above.

    Raises:
      InputError: a front is empty.
    """
    if not fronts or any(not np.size(cost) for cost, _ in fronts.values()):
        raise InputError("expected a front or more, none of them empty")
    figure, grid = make_panels(1, 1, (7.2, 4.6), title)
    axes = grid[0, 0]
    cost, worth = (np.asarray(x, float) for x in evaluated)
    axes.scatter(cost, worth, s=6, color=PALETTE[0], alpha=0.45, linewidths=0)
    last = cost.max()
    for number, (name, (x, y)) in enumerate(fronts.items()):
        order = np.argsort(x)
        x, y = np.asarray(x, float)[order], np.asarray(y, float)[order]
        axes.step(
            np.append(x, last),
            np.append(y, y[-1]),
            where="post",
            color=PALETTE[SERIES[number % len(SERIES)]],
            linewidth=1.6,
            linestyle=("-", "--", ":")[number % 3],
            label=f"{name} ({len(x)})",
        )
    axes.set_xscale("log")
    low = min(np.min(y) for _, y in fronts.values())
    high = max(np.max(y) for _, y in fronts.values())
    space = 0.08 * max(high - low, 1e-6)
    axes.set_ylim(low - space, high + space)
    axes.set_xlabel(xlabel, **LABEL)
    axes.set_ylabel(ylabel, **LABEL)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    return figure


def plot_learning(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike | None]]],
    *,
    xlabel: str,
    title: str,
) -> Figure:
    """Plots quantities over how much was learnt from, on a log axis, with bands.

    Args:
      panels: label of the y axis -> name -> (x float[N], y float[N], the ends of its
        interval float[2, N] or None). A name has one colour in all panels.
      xlabel: of every x axis.
      title: what stands above.

    Raises:
      InputError: there is no panel, or one is empty.
    """
    if not panels or not all(panels.values()):
        raise InputError("expected a panel or more with a curve each, but got none")
    names = [*dict.fromkeys(name for curves in panels.values() for name in curves)]
    size = 3.6 * len(panels) + 2.6, 3.2 + 0.12 * max(len(names) - 10, 0)
    figure, grid = make_panels(1, len(panels), size, title)
    handles = {}
    for axes, (ylabel, curves) in zip(grid.flat, panels.items(), strict=True):
        for name, (x, y, ends) in curves.items():
            repeat, place = divmod(names.index(name), len(SERIES))
            color = PALETTE[SERIES[place]]
            style = {"color": color, "linestyle": DASHES[repeat % len(DASHES)]}
            (handles[name],) = axes.plot(x, y, marker="o", markersize=3, **style)
            if ends is not None:
                low, high = np.asarray(ends, float)
                axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        axes.set_xscale("log")
        ticks = np.unique(np.concatenate([np.asarray(c[0]) for c in curves.values()]))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(xlabel, **LABEL)
        axes.set_ylabel(ylabel, **LABEL)
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    return figure
