"""One-hot and mixed-radix encodings, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas.encoding import mixed_radix, one_hot, strongest

NUM_CHOICES = (3, 2, 4)
ALL = np.stack(np.unravel_index(np.arange(24), NUM_CHOICES), 1)

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def test_one_hot_has_a_one_at_each_choice():
    expected = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    encoded = one_hot(jnp.array([2, 0, 3]), NUM_CHOICES)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, expected)


def test_one_hot_masks_choices_that_a_decision_does_not_have():
    encoded = one_hot(jnp.array([3, 2, 3]), NUM_CHOICES)
    np.testing.assert_array_equal(encoded.sum(1), [0, 0, 1])


def test_strongest_inverts_one_hot():
    encoded = jax.vmap(lambda arch: one_hot(arch, NUM_CHOICES))(ALL)
    decoded = jax.vmap(lambda weights: strongest(weights, NUM_CHOICES))(encoded)
    assert decoded.dtype == jnp.int32
    np.testing.assert_array_equal(decoded, ALL)


def test_strongest_ignores_masked_choices_and_takes_the_first_of_equals():
    weights = jnp.array([[0.0, 1, 1, 9], [-2, -1, 9, 9], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(strongest(weights, NUM_CHOICES), [1, 1, 0])


def test_mixed_radix_numbers_architectures_in_order():
    keys = jax.vmap(lambda arch: mixed_radix(arch, NUM_CHOICES))(ALL)
    assert keys.dtype == jnp.uint32
    np.testing.assert_array_equal(keys[:, 0], np.arange(24))


@settings(deadline=None, max_examples=30)
@given(sizes, st.data())
def test_mixed_radix_tells_any_two_architectures_apart(num_choices, data):
    archs = st.tuples(*(st.integers(0, choices - 1) for choices in num_choices))
    first, second = data.draw(archs), data.draw(archs)
    keys = [
        tuple(np.asarray(mixed_radix(np.array(arch), num_choices)).tolist())
        for arch in (first, second)
    ]
    assert (keys[0] < keys[1]) == (first < second)
    assert (keys[0] == keys[1]) == (first == second)


def test_mixed_radix_fills_a_word_before_it_takes_another():
    assert mixed_radix(jnp.zeros(32, jnp.int32), (2,) * 32).shape == (1,)
    assert mixed_radix(jnp.zeros(33, jnp.int32), (2,) * 33).shape == (2,)
    largest = mixed_radix(jnp.ones(32, jnp.int32), (2,) * 32)
    assert int(largest[0]) == 2**32 - 1
