"""Which decisions matter, and which of their choices are good."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jaxnas.base import InputError
from jaxnas.importance import Importance
from jaxnas.plots.curves import LABEL, make_panels
from jaxnas.plots.figure import INK, PALE, PALETTE, typeset

DARK = 0.55  # from this part of the colour scale on, numbers are white


def plot_importance(
    found: Importance,
    names: Sequence[str],
    *,
    choices: Sequence[str] | None = None,
    label: str = "mean prediction",
    title: str = "Which decisions matter",
) -> Figure:
    """Plots main and total effects as bars, and beside them the mean by choice.

    Decisions stand from the largest total effect down, of equals in their order.

    Args:
      found: of `importance.importance`.
      names: D decisions, see `importance.decision_names`.
      choices: K names, where all decisions have the same; numbers by default.
      label: what is predicted, with its unit.
      title: what stands above both panels.

    Raises:
      InputError: names or choices are not as many as in `found`.
    """
    main, total, marginal = (
        np.asarray(part, float) for part in (found.main, found.total, found.marginal)
    )
    choices = list(map(str, range(marginal.shape[1]) if choices is None else choices))
    if (len(names), len(choices)) != marginal.shape:
        raise InputError(
            f"expected {marginal.shape[0]} names and {marginal.shape[1]} choices, but "
            f"got {len(names)} and {len(choices)}: name each once"
        )
    order = np.argsort(-total, kind="stable")
    size = max(3.6 + 0.8 * len(choices), 7.0), 0.34 * len(names) + 2.0
    figure, grid = make_panels(1, 2, size, title, sharey=True)
    bars, means = grid[0]
    _plot_bars(bars, main[order], total[order])
    _plot_means(figure, means, marginal[order], choices, label)
    bars.set_yticks(range(len(names)), [typeset(names[d]) for d in order])
    bars.set_ylim(len(names) - 0.5, -0.5)
    return figure


def _plot_bars(axes: Axes, main: NDArray, total: NDArray) -> None:
    places = np.arange(len(main))
    for values, name, color, up in ((main, "alone", 1, -1), (total, "in all", 3, 1)):
        axes.barh(
            places + 0.19 * up, 100 * values, 0.36, color=PALETTE[color], label=name
        )
    axes.set_xlabel("part of the variance (%)", **LABEL)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    # Above the panel, where no bar can be.
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _plot_means(
    figure: Figure, axes: Axes, marginal: NDArray, choices: list[str], label: str
) -> None:
    image = axes.imshow(np.ma.masked_invalid(marginal), cmap="Blues", aspect="auto")
    axes.set_facecolor(PALE)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelleft=False)
    long = max(map(len, choices)) > 6
    axes.set_xticks(
        range(len(choices)),
        choices,
        rotation=30 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
    )
    axes.set_xlabel("choice", **LABEL)
    low, high = np.nanmin(marginal), np.nanmax(marginal)
    largest = max(abs(low), abs(high))
    digits = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    for (d, k), value in np.ndenumerate(marginal):
        if np.isfinite(value):
            color = "white" if value > low + DARK * (high - low) else INK
            text = f"{value:.{digits}f}"
            axes.text(k, d, text, ha="center", va="center", size=8, color=color)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)
    bar.set_label(label, **LABEL)
    bar.ax.tick_params(length=0, labelcolor=INK, labelsize=8.5)
