import itertools
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex
from PIL import Image

from jaxnas.base import InputError
from jaxnas.plots import (
    draw_cell,
    draw_cells,
    plot_curves,
    plot_operation_weights,
    save,
)
from jaxnas.plots.layout import place_cell

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
INPUTS, OUTPUT = ("c_{k-2}", "c_{k-1}"), "c_{k}"
NODES = (*INPUTS, "0", "1", "2", "3")
DARTS_V2 = {
    "Normal cell": "sep_conv_3x3 0 sep_conv_3x3 1 sep_conv_3x3 0 sep_conv_3x3 1 "
    "sep_conv_3x3 1 skip_connect 0 skip_connect 0 dil_conv_3x3 2",
    "Reduction cell": "max_pool_3x3 0 max_pool_3x3 1 skip_connect 2 max_pool_3x3 1 "
    "max_pool_3x3 0 skip_connect 2 skip_connect 2 max_pool_3x3 1",
}


def darts_edges(gene):
    words = gene.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    edges = [(NODES[int(j)], str(i // 2), op) for i, (op, j) in enumerate(pairs)]
    return edges + [(str(i), OUTPUT, "") for i in range(4)]


@st.composite
def cells(draw):
    """Any graph of up to seven nodes, with parallel edges and dangling nodes."""
    names = [*INPUTS, *map(str, range(draw(st.integers(0, 4)))), OUTPUT]
    pairs = [
        (u, v)
        for u, v in itertools.combinations(names, 2)
        if v not in INPUTS and u != OUTPUT
    ]
    op = st.sampled_from(["", *OPS])
    edges = st.tuples(st.sampled_from(pairs), op).map(lambda edge: (*edge[0], edge[1]))
    return draw(st.lists(edges, max_size=14))


def artists(figure, gid):
    return figure.findobj(lambda artist: artist.get_gid() == gid)


def extents(figure, gid):
    return [artist.get_window_extent() for artist in artists(figure, gid)]


def inside(inner, outer):
    return (
        outer.x0 <= inner.x0
        and inner.x1 <= outer.x1
        and outer.y0 <= inner.y0
        and inner.y1 <= outer.y1
    )


@settings(max_examples=25, deadline=None)
@given(cells(), cells())
def test_draw_cells_lets_nothing_overlap(normal, reduction):
    pair = {"Normal cell": normal, "Reduction cell": reduction}
    figure = draw_cells(pair, inputs=INPUTS, output=OUTPUT)
    boxes = extents(figure, "node box") + extents(figure, "op box")
    labels = extents(figure, "node label") + extents(figure, "op label")
    solid = boxes + extents(figure, "title")
    assert not any(a.overlaps(b) for a, b in itertools.combinations(solid, 2))
    assert all(inside(a, b) for a, b in zip(labels, boxes, strict=True))
    assert all(inside(box, figure.bbox) for box in solid)
    for line in artists(figure, "line"):
        path = line.get_path().transformed(line.get_transform())
        # Lines begin and end at the border of a box; no other box is touched.
        inner = [box.padded(-1) for box in solid]
        assert not any(path.intersects_bbox(box, filled=False) for box in inner)


@settings(max_examples=25, deadline=None)
@given(cells())
def test_draw_cell_shows_every_operation_once_per_edge(edges):
    figure = draw_cell(edges, title="Cell", inputs=INPUTS, output=OUTPUT)
    shown = Counter(text.get_text() for text in artists(figure, "op label"))
    assert shown == Counter(op for *_, op in edges if op)
    nodes = {*INPUTS, OUTPUT, *(name for edge in edges for name in edge[:2])}
    shown = [text.get_text().strip("$") for text in artists(figure, "node label")]
    assert sorted(shown) == sorted(nodes)


@settings(max_examples=25, deadline=None)
@given(cells())
def test_place_cell_joins_the_nodes_that_the_edges_name(edges):
    layout = place_cell(edges, INPUTS, OUTPUT, len)
    graph = nx.DiGraph(layout.edges)
    left_to_right = [
        layout.places[u].right < layout.places[v].left for u, v in graph.edges
    ]
    assert all(left_to_right)
    found = set()
    for u, v in graph.edges:
        if v[0] == "line":
            continue
        while u[0] == "line":
            (u,) = graph.pred[u]
        if v[0] == "op":
            (target,) = graph.succ[v]
            found.add((u[1], target[1], v[1]))
        elif u[0] == "node":
            found.add((u[1], v[1], None))
    plain = {(u, v, None) for u, v, op in edges if not op}
    assert found == plain | {(u, v, i) for i, (u, v, op) in enumerate(edges) if op}


def test_place_cell_leaves_no_avoidable_crossing_and_a_chain_level():
    edges = [("a", "2", "x"), ("b", "1", "x"), ("1", "3", "x"), ("2", "4", "x")]
    edges += [("4", "out", ""), ("3", "out", "")]
    places = place_cell(edges, ("a", "b"), "out", len).places
    upper = {places[v].y for v in [("node", n) for n in "a24"] + [("op", 0), ("op", 3)]}
    lower = {places[v].y for v in [("node", n) for n in "b13"] + [("op", 1), ("op", 2)]}
    assert len(upper) == len(lower) == 1
    assert upper < lower or max(upper) < min(lower)


def test_draw_cells_gives_inputs_in_order_even_where_unused():
    edges = [("c_{k-1}", "0", "skip_connect"), ("0", OUTPUT, "")]
    figure = draw_cell(edges, title="Cell", inputs=INPUTS, output=OUTPUT)
    height = {t.get_text(): t.get_position()[1] for t in artists(figure, "node label")}
    assert height["$c_{k-2}$"] < height["$c_{k-1}$"]


@pytest.mark.parametrize(
    "edges",
    [
        [("0", "1", "x"), ("1", "0", "x")],
        [("0", "c_{k-1}", "x")],
        [(OUTPUT, "0", "x")],
    ],
)
def test_draw_cell_refuses_edges_that_lead_back(edges):
    with pytest.raises(InputError, match=r"^expected [^\n]*, got [^\n]*; [^\n]*$"):
        draw_cell(edges, title="Cell", inputs=INPUTS, output=OUTPUT)


def test_draw_cells_refuses_no_cell():
    with pytest.raises(InputError, match="got none"):
        draw_cells({}, inputs=INPUTS, output=OUTPUT)


def softmax_weights(num_steps=5, num_edges=14):
    logits = np.random.default_rng(0).normal(size=(num_steps, num_edges, len(OPS)))
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_plot_operation_weights_has_each_weight_in_its_panel_and_colour():
    weights, names = softmax_weights(), [f"c_{{k-1}} → {edge}" for edge in range(14)]
    figure = plot_operation_weights(np.arange(5), weights, names, OPS, "Weights")
    assert len(figure.axes) == 14
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colors)) == len(OPS)
    for edge, axes in enumerate(figure.axes):
        assert axes.get_title() == f"$c_{{k-1}}$ → {edge}"
        assert [line.get_color() for line in axes.lines] == colors
        shown = np.stack([line.get_ydata() for line in axes.lines], -1)
        np.testing.assert_array_equal(shown, weights[:, edge])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(OPS)
    assert [line.get_color() for line in legend.get_lines()] == colors


def test_draw_cells_colours_operations_as_plot_operation_weights_does():
    weights = softmax_weights(num_edges=1)
    curves = plot_operation_weights(np.arange(5), weights, ["edge"], OPS, "Weights")
    color = {line.get_label(): line.get_color() for line in curves.axes[0].lines}
    pair = {title: darts_edges(gene) for title, gene in DARTS_V2.items()}
    figure = draw_cells(pair, inputs=INPUTS, output=OUTPUT, op_names=OPS)
    labels = [text.get_text() for text in artists(figure, "op label")]
    edges = [to_hex(box.get_edgecolor()) for box in artists(figure, "op box")]
    assert edges == [color[label] for label in labels]


@pytest.mark.parametrize("num_edges", [1, 2, 6, 7, 14])
def test_plot_operation_weights_keeps_panels_and_legend_apart(num_edges):
    names = [f"c_{{k-2}} → {edge}" for edge in range(num_edges)]
    weights = softmax_weights(num_edges=num_edges)
    figure = plot_operation_weights(np.arange(5), weights, names, OPS, "Weights")
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    texts = [*figure.legends, *figure.texts]
    boxes += [artist.get_window_extent() for artist in texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(inside(box, figure.bbox) for box in boxes)


@pytest.mark.parametrize(
    ("steps", "shape"), [(5, (5, 2, 8)), (5, (4, 3, 8)), (5, (5, 3, 7)), (0, (0, 3, 8))]
)
def test_plot_operation_weights_refuses_what_does_not_fit(steps, shape):
    with pytest.raises(InputError, match=r"^expected weights[^\n]*; [^\n]*$"):
        plot_operation_weights(np.arange(steps), np.ones(shape), "abc", OPS, "Weights")


def test_plot_curves_draws_a_noisy_series_under_its_moving_mean():
    x = np.arange(200.0)
    y = 3 + 0.5 * x
    y[100] = np.nan
    figure = plot_curves({"loss": {"train": (x, y)}}, xlabel="step", title="Search")
    raw, mean = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), y)
    assert raw.get_alpha() < 0.5
    assert mean.get_label() == "train"
    # The window is 9: a straight line is its own mean away from the ends and the gap.
    same = np.r_[4:96, 105:196]
    np.testing.assert_allclose(mean.get_ydata()[same], y[same])
    np.testing.assert_allclose(mean.get_ydata()[0], y[:5].mean())
    np.testing.assert_allclose(mean.get_ydata()[98], np.nanmean(y[94:103]))
    assert np.isnan(mean.get_ydata()[100])


def test_plot_curves_leaves_a_gap_for_values_that_are_not_finite():
    series = {"train": ([0, 1, 2], [1.0, np.inf, 2.0])}
    figure = plot_curves({"loss": series}, xlabel="step", title="Search")
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 2.0])


def test_plot_curves_puts_legends_where_no_data_are():
    x, y = np.arange(20), np.random.default_rng(0).normal(size=20)
    series = {"train": (x, y), "validation": (x, y + 1)}
    panels = {"loss": series, "accuracy (%)": series}
    figure = plot_curves(panels, xlabel="step", title="Search")
    figure.draw_without_rendering()
    assert [axes.get_ylabel() for axes in figure.axes] == list(panels)
    boxes = [axes.get_window_extent() for axes in figure.axes]
    boxes += [axes.get_legend().get_window_extent() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(inside(box, figure.bbox) for box in boxes)


def test_plot_curves_tells_more_series_apart_than_there_are_colours():
    series = {str(i): ([0, 1], [i, i + 1]) for i in range(14)}
    figure = plot_curves({"fitness": series}, xlabel="step", title="Searches")
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 14


@pytest.mark.parametrize(
    "panels", [{}, {"loss": {}}, {"loss": {"train": ([1, 2], [1])}}]
)
def test_plot_curves_refuses_what_it_cannot_draw(panels):
    with pytest.raises(InputError, match=r"^expected [^\n]*, got [^\n]*; [^\n]*$"):
        plot_curves(panels, xlabel="step", title="Search")


def test_save_writes_a_png_of_the_size_of_the_figure(tmp_path):
    path = tmp_path / "cells.png"
    pair = {title: darts_edges(gene) for title, gene in DARTS_V2.items()}
    figure = draw_cells(pair, inputs=INPUTS, output=OUTPUT, op_names=OPS)
    save(figure, path)
    save(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.all(np.abs(image.size - 160 * figure.get_size_inches()) <= 1)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert list(tmp_path.iterdir()) == [path]


def test_save_keeps_the_old_picture_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    figure = plot_curves({"loss": {"a": ([0], [1])}}, xlabel="step", title="Search")

    def fail(part, **_):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(InputError, match="disk full"):
        save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_a_path_that_is_no_png(tmp_path):
    figure = plot_curves({"loss": {"a": ([0], [1])}}, xlabel="step", title="Search")
    with pytest.raises(InputError, match=r"ends in \.png"):
        save(figure, tmp_path / "curves.pdf")


def test_figures_are_shown_by_a_notebook():
    figure = plot_curves({"loss": {"a": ([0], [1])}}, xlabel="step", title="Search")
    data, _ = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
