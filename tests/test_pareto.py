"""Fronts, ranks and hypervolumes, against definitions and known volumes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxnas.pareto import dominates, hypervolume, pareto_front, pareto_ranks

KNOWN = np.array([True, False, True, True, False, True])
volume_of = jax.jit(hypervolume)

# Few values, so that there are ties, of which sums and products are exact.
points_of = st.integers(1, 3).flatmap(
    lambda m: arrays.arrays(np.float32, (6, m), elements=st.integers(-2, 5))
)
checked = settings(max_examples=40, deadline=None)


def beats(one, other):
    return bool((one >= other).all() and (one > other).any())


def front_by_definition(points, known):
    alive = [i for i, is_known in enumerate(known) if is_known]
    return [
        i in alive and not any(beats(points[j], points[i]) for j in alive)
        for i in range(len(points))
    ]


def volume_by_inclusion(points, reference):
    """Of a union of boxes: those of all subsets, added and taken away in turn."""
    sides = np.maximum(points.astype(float) - reference, 0)
    return sum(
        (-1) ** (size + 1) * sides[list(chosen)].min(0).prod()
        for size in range(1, len(sides) + 1)
        for chosen in itertools.combinations(range(len(sides)), size)
    )


@checked
@given(points_of)
def test_front_is_what_none_dominates(points):
    found = jax.jit(pareto_front)(points, KNOWN)
    np.testing.assert_array_equal(found, front_by_definition(points, KNOWN))


def test_all_of_equal_points_are_on_the_front():
    points = jnp.array([[1.0, 2], [1, 2], [2, 1], [1, 1], [0, 2]])
    np.testing.assert_array_equal(pareto_front(points), [1, 1, 1, 0, 0])


def test_what_is_not_finite_is_left_out():
    points = jnp.array([[1.0, 2], [jnp.nan, 9], [9, -jnp.inf], [jnp.inf, 9], [0, 1]])
    np.testing.assert_array_equal(pareto_front(points), [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(pareto_ranks(points), [0, 5, 5, 5, 1])
    assert hypervolume(points, jnp.zeros(2)) == 2


def test_reference_of_other_objectives_is_refused():
    with pytest.raises(AssertionError):
        hypervolume(jnp.ones((3, 2)), jnp.zeros(1))


@checked
@given(points_of)
def test_ranks_are_fronts_peeled_off(points):
    found, left, rank = np.full(6, 6), KNOWN.copy(), 0
    while left.any():
        front = np.array(front_by_definition(points, left))
        found[front], left, rank = rank, left & ~front, rank + 1
    np.testing.assert_array_equal(jax.jit(pareto_ranks)(points, KNOWN), found)


@checked
@given(points_of)
def test_hypervolume_is_that_of_the_union_of_boxes(points):
    reference = np.zeros(points.shape[1], np.float32)
    expected = volume_by_inclusion(points, 0)
    assert volume_of(points, reference) == expected
    expected = volume_by_inclusion(points[KNOWN], 0)
    assert volume_of(points, reference, KNOWN) == expected


@checked
@given(points_of)
def test_hypervolume_grows_with_points_and_with_their_objectives(points):
    reference = np.full(points.shape[1], -1, np.float32)
    volume = volume_of(points, reference)
    assert volume >= volume_of(points, reference, KNOWN)
    assert volume_of(points + 1, reference) >= volume
    on_front = volume_of(points, reference, pareto_front(jnp.asarray(points)))
    assert volume == on_front  # what is dominated adds nothing


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_hypervolume_of_random_points_is_that_of_many_boxes(num_objectives):
    points = np.random.default_rng(0).random((10, num_objectives), np.float32)
    reference = np.full(num_objectives, 0.25, np.float32)
    expected = volume_by_inclusion(points, reference)
    assert volume_of(points, reference) == pytest.approx(expected, rel=1e-5)


def test_hypervolume_under_a_straight_front_is_known():
    x = jnp.linspace(0, 1, 101)
    points = jnp.stack([x, 1 - x], 1)
    # Stairs below the diagonal of a square: a half, less a half of each of 100 steps.
    assert volume_of(points, jnp.zeros(2)) == pytest.approx(0.5 - 0.005, rel=1e-5)


def test_points_that_are_not_above_the_reference_count_for_nothing():
    points, reference = jnp.array([[2.0, 3], [9, 1], [0, 9]]), jnp.ones(2)
    assert volume_of(points, reference) == 2
    assert volume_of(points[1:], reference) == 0
    assert volume_of(points, reference, jnp.zeros(3, bool)) == 0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)
)
@settings(deadline=None, max_examples=60)
def test_front_of_two_objectives_is_that_of_all_pairs(points):
    values = np.array(points + [(0, 0)] * (12 - len(points)), np.float32)
    known = np.arange(12) < len(points)
    beats = np.asarray(dominates(values)) & known[:, None]
    expected = known & ~beats.any(0)
    np.testing.assert_array_equal(pareto_front(values, known), expected)
