"""Cells as graphs."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from jaxnas.base import InputError
from jaxnas.plots.figure import INK, LINE, PALE, PALETTE, Picture, typeset
from jaxnas.plots.layout import Edges, Layout, Vertex, place_cell, stretch

# Points. The font comes with matplotlib: the same picture on every machine.
FONT = FontProperties(family="DejaVu Sans", size=9.5)
TITLE_FONT = FontProperties(family="DejaVu Sans", size=13, weight="bold")
BOX = {"node": 24.0, "op": 20.0}  # height
PADDING, ARROW, MARGIN, TITLE, BETWEEN = 14.0, 7.0, 14.0, 24.0, 16.0


def draw_cell(
    edges: Edges,
    *,
    title: str,
    inputs: Sequence[str],
    output: str,
    op_names: Sequence[str] = (),
) -> Figure:
    """Draws one cell; the arguments and errors are those of `draw_cells`."""
    return draw_cells({title: edges}, inputs=inputs, output=output, op_names=op_names)


def draw_cells(
    cells: Mapping[str, Edges],
    *,
    inputs: Sequence[str],
    output: str,
    op_names: Sequence[str] = (),
) -> Figure:
    """Draws cells as graphs from left to right, one below the other.

    Args:
      cells: title of a cell -> its edges: (source node, target node, operation).
        An empty operation is a plain line. Nodes are shown by name; a subscript
        in braces, as in `c_{k-1}`, is set as one.
      inputs: names of the input nodes, from the top; drawn even where unused.
      output: name of the output node.
      op_names: operations in the order of `plot_operation_weights`, for the same
        colours as there. Operations that are not among them come after, by name.

    Raises:
      InputError: for no cell, for a cycle, for an edge into an input or out of the
        output.
    """
    if not cells:
        raise InputError("expected one cell or more, got none; pass {title: edges}")
    ops = {op for edges in cells.values() for *_, op in edges if op} - set(op_names)
    color = dict(zip([*op_names, *sorted(ops)], itertools.cycle(PALETTE), strict=False))
    layouts = [
        place_cell(edges, inputs, output, _box_width) for edges in cells.values()
    ]
    width = max(
        *(layout.width for layout in layouts),
        *(_text_width(title, TITLE_FONT) for title in cells),
    )
    height = sum(TITLE + layout.height + BETWEEN for layout in layouts) - BETWEEN
    size = np.array([width, height]) + 2 * MARGIN
    figure = Picture(*size / 72)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.set_axis_off()
    top = MARGIN
    for title, layout in zip(cells, layouts, strict=True):
        text = axes.text(MARGIN, top, title, fontproperties=TITLE_FONT, color=INK)
        text.set(va="top", gid="title")
        _draw(axes, stretch(layout, width), np.array([MARGIN, top + TITLE]), color)
        top += TITLE + layout.height + BETWEEN
    return figure


def _text_width(text: str, font: FontProperties) -> float:
    """Width of one line of text in points."""
    return text_to_path.get_text_width_height_descent(text, font, "$" in text)[0]


def _box_width(label: str) -> float:
    """Width of the box around a label in points."""
    return max(_text_width(typeset(label), FONT) + PADDING, BOX["node"])


def _draw(axes: Axes, layout: Layout, corner: NDArray, color: Mapping) -> None:
    """Draws a placed cell with its upper left corner at `corner` (points)."""
    for u, v in layout.edges:
        _draw_edge(axes, layout, u, v, corner)
    sources, targets = ({edge[i] for edge in layout.edges} for i in (0, 1))
    for vertex, place in layout.places.items():
        kind = vertex[0]
        if kind == "line":
            continue
        x, y = np.add(corner, (place.x, place.y))
        width, height = place.width, BOX[kind]
        box = FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={height / 2 if kind == 'op' else 4}",
            facecolor="white" if vertex in sources & targets else PALE,
            edgecolor=INK,
            linewidth=1.1,
            zorder=3,
            gid=f"{kind} box",
        )
        if kind == "op":
            box.set_edgecolor(color[place.label])
            box.set_facecolor((color[place.label], 0.22))
        axes.add_patch(box)
        text = axes.text(x, y, typeset(place.label), fontproperties=FONT, color=INK)
        text.set(ha="center", va="center_baseline", gid=f"{kind} label", zorder=4)


def _draw_edge(
    axes: Axes, layout: Layout, u: Vertex, v: Vertex, corner: NDArray
) -> None:
    """Draws from one column to the next: a curve between two level lines."""
    a, b = layout.places[u], layout.places[v]
    begin = a.right if u[0] == "line" else a.x + a.width / 2
    end = b.right if v[0] == "line" else b.x - b.width / 2
    bend = (a.right, b.left - ARROW * (v[0] == "node"))
    middle = sum(bend) / 2
    points = [(begin, a.y), (bend[0], a.y), (middle, a.y)]
    points += [(middle, b.y), (bend[1], b.y), (end, b.y)]
    codes = [Path.MOVETO, Path.LINETO, *[Path.CURVE4] * 3, Path.LINETO]
    path = Path(np.add(points, corner), codes)
    style = {"edgecolor": LINE, "linewidth": 1.2, "capstyle": "round", "fill": False}
    axes.add_patch(PathPatch(path, zorder=1, gid="line", **style))
    if v[0] == "node":
        tip = np.array([(0, 0), (-ARROW, -3.2), (-ARROW, 3.2)])
        tip += np.add(corner, (end, b.y))
        axes.add_patch(Polygon(tip, facecolor=LINE, linewidth=0, zorder=2))
