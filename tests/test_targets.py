"""Fitness as what models learn and back, against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from jaxnas.base import History, InputError
from jaxnas.targets import (
    TARGETS,
    check_targets,
    prediction,
    to_fitness,
    to_targets,
    usable,
)

N = 12
EVERY = pytest.mark.parametrize("name", TARGETS)
# Compiled once each: all histories have one capacity.
TO = {
    name: jax.jit(lambda history, name=name: to_targets(history, name))
    for name in TARGETS
}
BACK = jax.jit(to_fitness)

# Few numbers make ties; the others have any size a fitness may have.
numbers = st.one_of(
    st.integers(-2, 2).map(float), st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
)
histories = st.tuples(
    st.lists(numbers, min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.sampled_from([np.nan, -np.inf, 0.0, 1e30]),
)


def history_of(fitness, known=None, hidden=-np.inf):
    known = np.ones(len(fitness), bool) if known is None else np.array(known)
    fitness = np.where(known, np.float32(fitness), np.float32(hidden))
    arch = jnp.zeros((len(fitness), 2), jnp.int32)
    return History(arch, jnp.array(fitness), jnp.array(known))


def tolerance(fitness):
    return 3e-5 * max(1e-3, np.abs(fitness).max(initial=0))


@EVERY
@settings(deadline=None, max_examples=60)
@given(histories)
@example(([0.0] * (N - 2) + [1.0] * 2, [False] * (N - 3) + [True] * 3, np.nan))
def test_targets_come_back_as_the_fitness_they_stand_for(name, drawn):
    fitness, known, hidden = drawn
    history = history_of(fitness, known, hidden)
    target, scale = TO[name](history)
    assert np.isfinite(target).all()
    assert all(np.isfinite(leaf).all() for leaf in scale)
    known = np.array(known)
    np.testing.assert_array_equal(np.asarray(target)[~known], 0.0)
    measured = np.float32(fitness)[known]
    expected = measured
    if name == "clipped" and known.any():
        middle, best = np.median(measured), measured.max()
        expected = np.maximum(measured, 2 * middle - best if middle < best else -np.inf)
    back = np.asarray(BACK(scale, target))[known]
    np.testing.assert_allclose(back, expected, atol=tolerance(measured))


@EVERY
@settings(deadline=None, max_examples=30)
@given(histories)
def test_more_fitness_is_never_a_lower_target_nor_the_other_way(name, drawn):
    fitness, known, hidden = drawn
    target, scale = TO[name](history_of(fitness, known, hidden))
    known = np.array(known)
    order = np.argsort(np.float32(fitness)[known], kind="stable")
    rising = np.asarray(target)[known][order]
    assert (np.diff(rising) >= 0).all()
    along = np.asarray(BACK(scale, jnp.linspace(-6, 6, N)))
    assert (np.diff(along) >= -tolerance(np.float32(fitness)[known])).all()


@settings(deadline=None, max_examples=60)
@given(histories)
def test_ranks_are_normal_quantiles(drawn):
    fitness, known, hidden = drawn
    known = np.array(known)
    target, _ = TO["ranks"](history_of(fitness, known, hidden))
    measured = np.float32(fitness)[known]
    expected = norm.ppf((rankdata(measured) - 0.5) / max(len(measured), 1))
    np.testing.assert_allclose(np.asarray(target)[known], expected, atol=2e-6)


def test_standard_has_mean_0_and_deviation_1():
    fitness = np.random.default_rng(0).normal(70, 5, N)
    known = np.arange(N) % 3 > 0
    target, _ = TO["standard"](history_of(fitness, known))
    kept = fitness[known]
    expected = (kept - kept.mean()) / kept.std()
    np.testing.assert_allclose(np.asarray(target)[known], expected, atol=1e-5)


def test_clipped_is_standard_from_twice_the_median_less_the_best_on():
    fitness = np.array([10.0, 90, 91, 92, 93, 94, 20, 90, 91, 92, 93, 94])
    least = 2 * np.median(fitness) - 94
    found = TO["clipped"](history_of(fitness))
    expected = TO["standard"](history_of(np.maximum(fitness, least)))
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert found[0][0] == found[0][6] == np.min(found[0])


@EVERY
@pytest.mark.parametrize("hidden", [np.nan, -np.inf, 1e30])
def test_what_is_not_known_changes_nothing(name, hidden):
    fitness = np.random.default_rng(1).normal(size=N)
    known = np.arange(N) < 7
    one = TO[name](history_of(fitness, known))
    other = TO[name](history_of(fitness, known, hidden))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.1, 71.3, -3e4])
@pytest.mark.parametrize("count", [1, 7, N])
def test_equal_fitness_is_a_target_of_0(name, value, count):
    target, scale = TO[name](history_of([value] * N, np.arange(N) < count))
    np.testing.assert_array_equal(target, 0.0)
    np.testing.assert_allclose(BACK(scale, target), value, rtol=1e-6)


@EVERY
def test_nothing_known_is_finite(name):
    target, scale = TO[name](history_of([1.0] * N, [False] * N, np.nan))
    np.testing.assert_array_equal(target, 0.0)
    assert np.isfinite(BACK(scale, jnp.linspace(-3, 3, N))).all()


def test_prediction_is_in_the_unit_of_the_fitness():
    fitness = np.random.default_rng(2).normal(70, 5, N)
    _, scale = TO["standard"](history_of(fitness))
    mean, deviation = prediction(scale, jnp.array([0.0, 1]), jnp.array([1.0, 0.5]))
    std = fitness.std()
    np.testing.assert_allclose(mean, [fitness.mean(), fitness.mean() + std], rtol=1e-5)
    np.testing.assert_allclose(deviation, [std, 0.5 * std], rtol=1e-4)


@EVERY
def test_curve_goes_on_beyond_the_best(name):
    # Equal steps of fitness: a model may say that something is better than all seen.
    target, scale = TO[name](history_of(np.arange(N)))
    beyond = np.asarray(BACK(scale, jnp.array([target.max() + 1, target.min() - 1])))
    assert beyond[0] > N - 1 + 0.5
    assert beyond[1] < -0.5 or name == "clipped"


def test_unknown_targets_are_refused():
    with pytest.raises(InputError, match="clipped, ranks, standard, but got raw"):
        check_targets("raw")


@pytest.mark.parametrize("name", TARGETS)
def test_targets_stay_finite_where_one_fitness_is_enormous(name):
    history = history_of(np.array([90.0, -1e20, 80.0, 85.0]))
    found = jax.tree.leaves(to_targets(history, name))
    assert all(np.isfinite(leaf).all() for leaf in found)


def test_usable_leaves_out_what_is_not_finite():
    history = history_of(np.array([90.0, np.nan, 80.0, np.inf]))
    found = usable(history)
    np.testing.assert_array_equal(found.known, [True, False, True, False])
    assert np.isfinite(found.fitness).all()


def test_clipped_is_standard_where_half_are_the_best():
    history = history_of(np.array([90.0, 90.0, 90.0, 80.0, 70.0]))
    clipped, standard = (to_targets(history, n)[0] for n in ("clipped", "standard"))
    np.testing.assert_allclose(clipped, standard)
    assert clipped[3] > clipped[4]
