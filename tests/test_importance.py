"""Which decisions matter: against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.importance import Importance, decision_names, importance
from jaxnas.plots import plot_importance, save
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.darts import darts
from jaxnas.spaces.nasbench101 import nasbench101
from jaxnas.spaces.nasbench201 import nasbench201

SPACE = categorical((2, 3, 4, 3))
KEY = jax.random.key(0)
# Variances over uniform choices are 1/4, 2/3, 5/4 and 0 times the slopes squared.
SLOPES = np.array([4.0, 2.0, 1.0, 0.0], np.float32)
VARIANCES = SLOPES**2 * np.array([1 / 4, 2 / 3, 5 / 4, 2 / 3])


def additive(archs):
    return 90 + archs.astype(jnp.float32) @ SLOPES


def test_additive_function_has_its_shares_alone_and_in_all():
    found = jax.jit(lambda key: importance(key, additive, SPACE))(KEY)
    shares = VARIANCES / VARIANCES.sum()
    np.testing.assert_allclose(found.main, shares, atol=0.03)
    np.testing.assert_allclose(found.total, shares, atol=0.03)
    assert found.total[3] == 0
    assert found.variance == pytest.approx(VARIANCES.sum(), rel=0.05)


def test_marginals_are_the_means_by_choice():
    found = importance(KEY, additive, SPACE)
    sizes = np.array(SPACE.num_choices)
    middle = 90 + SLOPES @ (sizes - 1) / 2
    for d, size in enumerate(sizes):
        expected = middle + SLOPES[d] * (np.arange(size) - (size - 1) / 2)
        np.testing.assert_allclose(found.marginal[d, :size], expected, atol=0.3)
        assert np.isnan(found.marginal[d, size:]).all()


def test_pure_interaction_is_all_in_the_total():
    space = categorical((2, 2, 2))

    def either(archs):
        return jnp.where(archs[:, 0] == archs[:, 1], 1.0, -1.0)

    found = importance(KEY, either, space)
    np.testing.assert_allclose(found.main, 0, atol=0.005)
    # Redrawn, one of the two differs half of the time, which is a change of 2.
    np.testing.assert_allclose(found.total, [1, 1, 0], atol=0.06)


def test_main_effect_is_not_raised_by_few_samples():
    """Without the correction, 30 choices explain a third of noise by chance."""
    space = categorical((30, 2, 2))

    def other(archs):
        return jnp.where(archs[:, 1] == archs[:, 2], 1.0, -1.0)

    keys = jax.random.split(KEY, 100)
    found = jax.vmap(lambda key: importance(key, other, space, num_samples=100))(keys)
    assert np.mean(found.main[:, 0]) < 0.1


@pytest.mark.parametrize("value", [0.0, 93.1, -1e6])
def test_constant_has_nothing_that_matters(value):
    def constant(archs):
        return jnp.full(len(archs), value)

    found = importance(KEY, constant, SPACE, num_samples=1000)
    for part in (found.main, found.total, found.variance):
        np.testing.assert_array_equal(part, jnp.zeros_like(part))
    marginal = np.asarray(found.marginal)
    np.testing.assert_allclose(marginal[np.isfinite(marginal)], value, rtol=1e-6)


def test_constraints_are_held():
    """Nothing is asked about an architecture that the space does not have."""
    space = nasbench101()

    def edges(archs):
        is_valid = (jax.vmap(space.discretize)(one_hots(archs)) == archs).all(1)
        return jnp.where(is_valid, archs[:, :21].sum(1).astype(jnp.float32), jnp.nan)

    one_hots = jax.vmap(lambda arch: one_hot(arch, space.num_choices))
    found = importance(KEY, edges, space, num_samples=200)
    for part in (found.main, found.total, found.variance):
        assert np.isfinite(part).all()
    assert found.main.shape == found.total.shape == (26,)
    assert (found.total[:21] > 0).all()
    assert found.total[21:].max() == 0


def test_choice_that_is_never_drawn_has_no_mean():
    space = categorical((2, 1000))
    found = importance(KEY, lambda a: a[:, 0] * 1.0, space, num_samples=100)
    assert np.isnan(found.marginal[1]).sum() >= 900
    assert np.isfinite(found.main).all()


def test_single_sample_is_refused():
    with pytest.raises(InputError, match="2 samples or more, but got 1"):
        importance(KEY, additive, SPACE, num_samples=1)


def test_names_are_those_of_edges():
    found = decision_names(nasbench201())
    assert found == ["0 → 1", "0 → 2", "1 → 2", "0 → 3", "1 → 3", "2 → 3"]
    found = decision_names(darts())
    assert found[:3] == ["c_{k-2} → 0", "c_{k-1} → 0", "c_{k-2} → 1"]
    assert found[14:16] == ["reduction c_{k-2} → 0", "reduction c_{k-1} → 0"]
    assert (found[13], found[27]) == ("2 → 3", "reduction 2 → 3")
    assert decision_names(SPACE)[-1] == "decision 3"


FOUND = Importance(
    main=jnp.array([0.1, 0.6, 0.0]),
    total=jnp.array([0.2, 0.7, 0.3]),
    marginal=jnp.array([[90, 91, 92], [80, 95, jnp.nan], [91, 91.5, jnp.nan]]),
    variance=jnp.array(4.0),
)
NAMES = ["first", "c_{k-1} → 0", "third"]


def test_picture_shows_the_largest_total_effect_first(tmp_path):
    figure = plot_importance(FOUND, NAMES, label="accuracy (%)", title="What matters")
    save(figure, tmp_path / "importance.png")
    bars, means, scale = figure.axes
    labels = [text.get_text() for text in bars.get_yticklabels()]
    assert labels == ["$c_{k-1}$ → 0", "third", "first"]
    alone, total = ([bar.get_width() for bar in part] for part in bars.containers)
    np.testing.assert_allclose(alone, [60, 0, 10], rtol=1e-5)
    np.testing.assert_allclose(total, [70, 30, 20], rtol=1e-5)
    assert scale.get_ylabel() == "accuracy (%)"
    bottom, top = bars.get_ylim()
    assert bottom > top, "the first decision is not at the top"
    shown = {text.get_position(): text.get_text() for text in means.texts}
    assert shown[0, 0] == "80.0"
    assert (2, 0) not in shown
    assert len(shown) == 7


def test_picture_lets_no_labels_overlap():
    figure = plot_importance(FOUND, NAMES, choices=["none", "skip_connect", "conv_3x3"])
    figure.canvas.draw()
    texts = [*figure.axes[1].texts, *figure.axes[0].get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("choices", [None, ["a", "b"]])
def test_picture_refuses_names_that_do_not_fit(choices):
    with pytest.raises(InputError, match="3 names and 3 choices, but got"):
        plot_importance(FOUND, NAMES if choices else NAMES[:2], choices=choices)
