import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from jaxnas.base import InputError
from jaxnas.plots import plot_regret, save

X = np.arange(1, 31)


def falling(seeds=40, scale=1.0):
    noise = np.random.default_rng(0).uniform(0.5, 1.5, (seeds, 1))
    return X, scale * noise / X


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_curve_is_the_mean_over_seeds():
    x, regret = falling()
    line = lines(plot_regret({"random_search": (x, regret)}))["random_search"]
    np.testing.assert_array_equal(line.get_xdata(), x)
    np.testing.assert_allclose(line.get_ydata(), regret.mean(0))


def test_band_is_of_the_mean_of_bootstrapped_seeds():
    x, regret = falling(seeds=400)
    (band,) = plot_regret({"a": (x, regret)}).axes[0].collections
    vertices = band.get_paths()[0].vertices
    low, high = (f(vertices[vertices[:, 0] == 10, 1]) for f in (np.min, np.max))
    error = regret[:, 9].std() / np.sqrt(400)
    for end, sign in ((low, -1), (high, 1)):
        expected = regret[:, 9].mean() + sign * 1.96 * error
        assert end == pytest.approx(expected, abs=0.4 * error)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_curves_that_are_gaps_alone_make_a_picture(value, tmp_path):
    figure = plot_regret({"a": (X, np.full((3, len(X)), value))})
    save(figure, tmp_path / "regret.png")
    assert figure.axes[0].get_yscale() == "linear"


def test_dot_is_where_all_seeds_have_found_the_best():
    x, regret = falling()
    figure = plot_regret({"a": (x, np.where(x < 12, regret, 0)), "b": (x, regret)})
    curve, dot, other = figure.axes[0].lines
    assert np.nanmax(np.where(np.isfinite(curve.get_ydata()), x, np.nan)) == 11
    np.testing.assert_allclose(dot.get_xydata(), [[11, regret[:, 10].mean()]])
    assert np.isfinite(other.get_ydata()).all()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["b", "a, all at the best"]


def test_axis_of_regret_is_logarithmic():
    axes = plot_regret({"a": falling()}).axes[0]
    assert axes.get_yscale() == "log"


def test_every_strategy_looks_different_and_is_in_the_legend():
    names = [f"strategy_{i}" for i in range(12)]
    figure = plot_regret({name: falling(scale=i + 1) for i, name in enumerate(names)})
    looks = {(to_hex(a.get_color()), a.get_linestyle()) for a in lines(figure).values()}
    assert len(looks) == 12
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names[::-1]


def test_legend_lies_beside_the_curves():
    figure = plot_regret({"a_strategy_of_a_long_name": falling(), "b": falling()})
    figure.canvas.draw()
    (legend,), (axes,) = figure.legends, figure.axes
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.filterwarnings("error")
def test_optimum_and_unknown_leave_a_gap(tmp_path):
    x, regret = falling(seeds=3)
    regret[:, 20:] = 0
    regret[1, :2] = np.nan
    figure = plot_regret({"a": (x, regret)})
    found = np.isfinite(lines(figure)["a"].get_ydata())
    np.testing.assert_array_equal(found, (x > 2) & (x <= 20))
    save(figure, tmp_path / "regret.png")


def test_one_seed_has_a_band_without_width():
    x, regret = falling(seeds=1)
    (band,) = plot_regret({"a": (x, regret)}).axes[0].collections
    vertices = band.get_paths()[0].vertices
    np.testing.assert_allclose(
        np.unique(vertices[vertices[:, 0] == 5, 1]), regret[0, 4]
    )


def test_picture_is_saved_and_not_empty(tmp_path):
    save(plot_regret({"a": falling()}, title="T"), tmp_path / "regret.png")
    with Image.open(tmp_path / "regret.png") as image:
        assert min(image.size) > 600
        assert len(image.convert("L").getcolors()) > 50


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        ({}, "one curve or more"),
        ({"a": (X, np.ones(30))}, r"regret\[seeds, N\] for 'a'"),
        ({"a": (X, np.ones((2, 29)))}, r"\(30,\) and \(2, 29\)"),
        ({"a": (X, np.ones((0, 30)))}, "neither empty"),
        ({"a": (X, -np.ones((2, 30)))}, "0 or more for 'a', got -1"),
    ],
)
def test_wrong_curves_are_one_line(curves, says):
    with pytest.raises(InputError, match=says) as caught:
        plot_regret(curves)
    assert "\n" not in str(caught.value)
