"""Scores that stand for an accuracy, beside the accuracy."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxnas.base import InputError
from jaxnas.plots.curves import LABEL, make_panels
from jaxnas.plots.figure import PALETTE


def plot_scores(
    scores: Mapping[str, ArrayLike],
    accuracies: ArrayLike,
    *,
    ylabel: str,
    title: str,
) -> Figure:
    """Plots the ranks by each score against accuracies, one panel a score.

    Args:
      scores: name -> float[N], higher is better; what is not finite ranks last.
      accuracies: float[N].
      ylabel: what the accuracies are.
      title: what stands above all panels.

    Raises:
      InputError: there are no scores, or not one for each accuracy.
    """
    y = np.asarray(accuracies, float)
    found = {name: np.asarray(x, float) for name, x in scores.items()}
    if not found or any(x.shape != y.shape or y.ndim != 1 for x in found.values()):
        shapes = {name: x.shape for name, x in found.items()}
        raise InputError(
            f"expected a score or more for each of the accuracies {y.shape}, but got "
            f"{shapes}: pass {{name: float[N]}}"
        )
    columns = min(len(found), 4)
    rows = math.ceil(len(found) / columns)
    size = max(2.6 * columns, 5), 2.4 * rows + 0.8
    figure, grid = make_panels(rows, columns, size, title, sharey=True)
    for panel in grid.flat[len(found) :]:
        panel.remove()
    for panel, (name, x) in zip(grid.flat, found.items(), strict=False):
        order = np.argsort(np.where(np.isfinite(x), x, -np.inf), kind="stable")
        panel.scatter(np.arange(len(y)), y[order], s=7, color=PALETTE[1], linewidths=0)
        panel.set_title(name, pad=3, **LABEL)
    for panel in grid[-1]:
        panel.set_xlabel("rank by score", **LABEL)
    for panel in grid[:, 0]:
        panel.set_ylabel(ylabel, **LABEL)
    return figure
