"""Pictures of a search: cells, operation weights, curves over time, what matters.

Figures are made without pyplot: they need no display and leave no global state,
and a notebook shows the one that a cell returns.
"""

from jaxnas.plots.cells import draw_cell, draw_cells
from jaxnas.plots.curves import plot_curves, plot_operation_weights
from jaxnas.plots.figure import save
from jaxnas.plots.images import plot_images
from jaxnas.plots.importance import plot_importance
from jaxnas.plots.predictions import plot_front, plot_learning, plot_predictions
from jaxnas.plots.ranks import plot_scores
from jaxnas.plots.regret import plot_regret

__all__ = [
    "draw_cell",
    "draw_cells",
    "plot_curves",
    "plot_front",
    "plot_images",
    "plot_importance",
    "plot_learning",
    "plot_operation_weights",
    "plot_predictions",
    "plot_regret",
    "plot_scores",
    "save",
]
