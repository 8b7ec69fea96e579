"""Pictures of predictions, of what surrogates learn, and of fronts."""

import numpy as np
import pytest

from jaxnas import plots
from jaxnas.base import InputError

MEAN = np.linspace(80, 90, 30)
MEASURED = MEAN + np.random.default_rng(0).normal(0, 1, 30)


def test_predictions_have_a_bar_and_a_point_each():
    groups = {"others": (MEAN, np.full(30, 2.0), MEASURED)}
    groups["verified"] = MEAN[-3:], np.ones(3), MEASURED[-3:]
    figure = plots.plot_predictions(groups, unit="accuracy (%)", title="T")
    (axes,) = figure.axes
    containers = axes.containers
    assert [len(c.lines[0].get_xdata()) for c in containers] == [30, 3]
    segments = containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segments[4][:, 0], MEAN[4] + 1.96 * np.array([-2, 2]))
    assert axes.get_xlabel() == "predicted accuracy (%)"
    assert axes.get_xlim() == axes.get_ylim()


def test_predictions_that_are_many_are_cut():
    many = np.arange(1000.0)
    groups = {"others": (many, np.ones(1000), many)}
    figure = plots.plot_predictions(groups, unit="%", title="T")
    assert len(figure.axes[0].containers[0].lines[0].get_xdata()) == 200


def test_learning_has_a_colour_for_each_name():
    x = np.array([25, 50, 100])
    panels = {
        "tau": {"a": (x, x / 200, None), "b": (x, x / 150, [x / 200, x / 120])},
        "covered": {"b": (x, x / 110, None)},
    }
    figure = plots.plot_learning(panels, xlabel="trained", title="T")
    first, second = figure.axes
    assert second.lines[0].get_color() == first.lines[1].get_color()
    assert first.lines[0].get_color() != first.lines[1].get_color()
    assert [*first.get_xticks()] == [25, 50, 100]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["a", "b"]


def test_front_is_stairs_from_the_cheapest_on():
    front = [3.0, 1.0], [95.0, 90.0]
    figure = plots.plot_front(
        {"found": front},
        evaluated=([1, 2, 3, 9], [90, 80, 95, 70]),
        xlabel="parameters",
        ylabel="accuracy (%)",
        title="T",
    )
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 3, 9])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [90, 95, 95])
    assert axes.lines[0].get_drawstyle() == "steps-post"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.plot_predictions({}, unit="%", title="T"),
        lambda: plots.plot_predictions(
            {"a": (MEAN, MEAN[1:], MEASURED)}, unit="%", title="T"
        ),
        lambda: plots.plot_learning({}, xlabel="x", title="T"),
        lambda: plots.plot_learning({"y": {}}, xlabel="x", title="T"),
        lambda: plots.plot_front(
            {"a": ([], [])}, evaluated=([], []), xlabel="x", ylabel="y", title="T"
        ),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(InputError, match="expected"):
        draw()
