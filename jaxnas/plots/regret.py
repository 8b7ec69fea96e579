"""Regret curves: how far from the best a search is, over what it has spent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from jaxnas.base import InputError
from jaxnas.plots.curves import DASHES, LABEL, SERIES, make_panels
from jaxnas.plots.figure import INK, PALETTE

RESAMPLES = 500


def plot_regret(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str = "queries",
    ylabel: str = "mean simple regret (percentage points)",
    title: str = "Regret",
) -> Figure:
    """Plots the mean regret of each strategy with its 95 % bootstrap band, log y.

    The legend has the least final regret last. Where a seed has no number yet (NaN),
    and where every seed has found the best, the curve has a gap; a dot is where it ends
    so. Where all have gaps alone, the axis is not logarithmic.

    Args:
      curves: name of a strategy -> (spent float[N], regret float[S, N] of S seeds, 0
        or more).
      xlabel: label of what is spent.
      ylabel: label of the regret.
      title: what stands above.

    Raises:
      InputError: for no curve, an empty one, a negative regret, or shapes that do not
        fit each other.
    """
    if not curves:
        raise InputError("expected one curve or more, got none; pass {name: (x, y)}")
    points = {name: _check(name, *pair) for name, pair in curves.items()}
    bands = {name: _band(regret) for name, (_, regret) in points.items()}
    figure, grid = make_panels(1, 1, (8.6, 4.6), title)
    axes = grid[0, 0]
    last = {name: mean[-1] for name, (mean, *_) in bands.items()}
    handles: dict[str, Any] = {}
    names = {name: name for name in points}
    for number, (name, (x, _)) in enumerate(points.items()):
        mean, low, high = bands[name]
        repeat, place = divmod(number, len(SERIES))
        color, dash = PALETTE[SERIES[place]], DASHES[repeat % len(DASHES)]
        shown = mean > 0
        axes.fill_between(x, low, high, where=shown, color=color, alpha=0.18, lw=0)
        mean = np.where(shown, mean, np.nan)
        (handles[name],) = axes.plot(
            x, mean, color=color, linestyle=dash, linewidth=1.6, label=name
        )
        if shown.any() and last[name] == 0:
            end = np.flatnonzero(shown)[-1]
            (dot,) = axes.plot(x[end], mean[end], "o", color=color, markersize=5)
            handles[name] = handles[name], dot
            names[name] = f"{name}, all at the best"
    if any((mean > 0).any() for mean, *_ in bands.values()):
        axes.set_yscale("log")
        _label_decades(axes.yaxis)
    axes.set_xlabel(xlabel, **LABEL)
    axes.set_ylabel(ylabel, **LABEL)
    axes.margins(x=0.01)
    order = sorted(handles, key=lambda name: -np.nan_to_num(last[name], nan=np.inf))
    figure.legend(
        [handles[name] for name in order],
        [names[name] for name in order],
        loc="outside right upper",
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
    return figure


def _check(name: str, x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or y.ndim != 2 or y.shape[1:] != x.shape or not y.size:
        raise InputError(
            f"expected x[N] and regret[seeds, N] for {name!r}, neither empty, got "
            f"shapes {x.shape} and {y.shape}; pass one row a seed"
        )
    if np.min(y, where=np.isfinite(y), initial=0) < 0:
        raise InputError(
            f"expected regrets of 0 or more for {name!r}, got {np.nanmin(y):.6g}; pass "
            "the best less what was found"
        )
    return x, y


def _band(regret: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The mean over seeds, and the 2.5 and 97.5 % quantiles of resampled means."""
    seeds = len(regret)
    # How often each seed is drawn; the means are then one matrix product.
    drawn = np.random.default_rng(0).multinomial(
        seeds, np.full(seeds, 1 / seeds), RESAMPLES
    )
    known = np.where(np.isfinite(regret), regret, 0)
    low, high = np.quantile(drawn @ known / seeds, (0.025, 0.975), axis=0)
    mean = np.where(np.isfinite(regret).all(0), known.mean(0), np.nan)
    # A logarithmic axis has no zero.
    return mean, np.maximum(low, mean / 10), high


def _label_decades(axis):
    """Writes plain numbers at 1, 2 and 5 of every decade."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
