"""Normalisation, splits, batches and augmentation, against numpy and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas import data
from jaxnas.base import InputError
from jaxnas.data.pipeline import _permute

KEY = jax.random.key(0)


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# Normalisation and splits


def test_channel_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (3000, 5, 4, 3), np.uint8)
    images[..., 2] //= 3
    mean, std = data.channel_statistics(images)
    np.testing.assert_allclose(mean, np.mean(images / 255, (0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, np.std(images / 255, (0, 1, 2)), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_normalize_gives_zero_mean_and_unit_deviation():
    images = np.random.default_rng(0).integers(0, 200, (100, 8, 8, 3), np.uint8)
    normalized = jax.jit(data.normalize)(images, *data.channel_statistics(images))
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(jnp.mean(normalized, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(normalized, (0, 1, 2)), 1, atol=1e-5)


def test_split_parts_the_examples_and_follows_the_key():
    labels = np.arange(11, dtype=np.int32)
    images = np.broadcast_to(
        labels.astype(np.uint8)[:, None, None, None], (11, 2, 2, 1)
    )
    first, second = data.split(KEY, images, labels, 0.6)
    assert len(first[1]) == 7
    assert sorted([*first[1], *second[1]]) == list(range(11))
    for part_images, part_labels in (first, second):
        np.testing.assert_array_equal(part_images[:, 0, 0, 0], part_labels)
    again, _ = data.split(KEY, images, labels, 0.6)
    np.testing.assert_array_equal(again[1], first[1])
    other, _ = data.split(jax.random.key(1), images, labels, 0.6)
    assert sorted(other[1]) != sorted(first[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.01, -0.5, 2.0])
def test_split_refuses_an_empty_part(fraction):
    with pytest.raises(InputError) as error:
        data.split(KEY, np.zeros((11, 2, 2, 1), np.uint8), np.zeros(11), fraction)
    assert_one_line(error, str(fraction))


# Batches


@functools.partial(jax.jit, static_argnums=1)
def permutation(key, size):
    return _permute(key, jnp.arange(size), size)


@functools.partial(jax.jit, static_argnums=(1, 2))
def two_epochs(key, num_examples, batch_size):
    steps = jnp.arange(2 * (num_examples // batch_size))
    draw = functools.partial(
        data.batch_indices, num_examples=num_examples, batch_size=batch_size
    )
    return jax.vmap(draw, in_axes=(None, 0))(key, steps)


# Each size compiles once; hypothesis varies the keys.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([1, 2, 3, 10, 16, 17, 1437, 50000]),
    seed=st.integers(0, 2**31 - 1),
)
def test_permute_is_a_permutation(size, seed):
    order = permutation(jax.random.key(seed), size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from([(1, 1), (10, 3), (64, 64), (101, 10), (1437, 64)]),
    seed=st.integers(0, 2**31 - 1),
)
def test_an_epoch_draws_without_replacement(sizes, seed):
    num_examples, batch_size = sizes
    batches = two_epochs(jax.random.key(seed), num_examples, batch_size)
    for epoch in batches.reshape(2, -1):
        assert len(np.unique(epoch)) == num_examples // batch_size * batch_size
        assert epoch.min() >= 0
        assert epoch.max() < num_examples


def test_epochs_and_keys_differ_and_repeat():
    def epochs(seed):
        return np.asarray(two_epochs(jax.random.key(seed), 1000, 100)).reshape(2, -1)

    orders = [*epochs(0), *epochs(1)]
    for i, order in enumerate(orders):
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
        for other in orders[:i]:
            assert np.mean(order == other) < 0.02
    np.testing.assert_array_equal(epochs(0), orders[:2])


def test_batch_indices_are_int32_and_trace_once():
    traces = []

    @jax.jit
    def draw(key, step):
        traces.append(step)
        return data.batch_indices(key, step, 50000, 64)

    batches = [draw(KEY, jnp.int32(step)) for step in (0, 1, 780, 781, 100000)]
    assert len(traces) == 1
    assert all(batch.dtype == jnp.int32 for batch in batches)
    assert all(len(np.unique(batch)) == 64 for batch in batches)


def test_positions_of_examples_are_uniform_over_keys():
    # 2,000 orders of 20 examples: each example is at each place about 100 times.
    orders = jax.vmap(permutation, (0, None))(jax.random.split(KEY, 2000), 20)
    counts = np.stack([np.bincount(place, minlength=20) for place in orders.T])
    chi_squared = np.sum((counts - 100) ** 2 / 100)
    # 19 * 19 degrees of freedom: mean 361, deviation 27.
    assert abs(chi_squared - 361) < 4 * 27


def test_class_counts_of_batches_vary_as_those_of_random_draws():
    # Sorted labels; hypergeometric variance, as of draws without replacement.
    num, batch, per_class = 1000, 50, 100
    orders = jax.vmap(permutation, (0, None))(jax.random.split(KEY, 300), num)
    in_class = (np.asarray(orders) // per_class == 3).reshape(300, -1, batch).sum(-1)
    share = per_class / num
    variance = batch * share * (1 - share) * (num - batch) / (num - 1)
    assert in_class.mean() == batch * share
    np.testing.assert_allclose(in_class.var(), variance, rtol=0.1)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_size_out_of_range_is_one_line(batch_size):
    with pytest.raises(InputError) as error:
        data.batch_indices(KEY, jnp.int32(0), 10, batch_size)
    assert_one_line(error, str(batch_size), "10")


# Augmentation


def test_augmentation_is_that_of_cifar10_in_proportion_to_the_image():
    assert set(data.FLIPPED) < set(data.DATASETS)
    for name, side, expected in (
        ("cifar10", 32, (4, True, 16)),
        ("cifar10", 8, (1, True, 4)),  # resized
        ("fashion_mnist", 28, (3, True, 14)),
        ("digits", 8, (1, False, 4)),
    ):
        assert data.augmentation_of(name, (side, side, 1)) == expected


def test_no_augmentation_changes_nothing():
    images = jax.random.normal(KEY, (4, 8, 8, 3))
    same = data.augment(KEY, images, pad=0, flip=False, cutout=0)
    np.testing.assert_array_equal(same, images)


def test_crop_and_flip_give_exactly_the_windows_of_the_padded_image():
    image = np.arange(1, 26, dtype=np.float32).reshape(5, 5, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = [padded[i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
    expected = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    images = jnp.broadcast_to(image, (1500, 5, 5, 1))
    augmented = jax.jit(
        lambda key: data.augment(key, images, pad=2, flip=True, cutout=0)
    )
    found = np.asarray(augmented(KEY))
    assert {window.tobytes() for window in found} == expected


def test_flip_happens_half_of_the_time():
    images = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (2000, 8, 8, 1))
    flipped = data.augment(KEY, images, pad=0, flip=True, cutout=0)[:, 0, 0, 0] == 7
    # 1,000 expected, with a deviation of 22.
    assert abs(int(flipped.sum()) - 1000) < 90


@pytest.mark.parametrize(("side", "cutout"), [(8, 4), (8, 3), (6, 16)])
def test_cutout_zeroes_a_square_around_each_pixel_alike(side, cutout):
    images = jnp.ones((2000, side, side, 2))
    found = np.asarray(data.augment(KEY, images, pad=0, flip=False, cutout=cutout))
    counts: dict[bytes, int] = {}
    for image in found:
        counts[image.tobytes()] = counts.get(image.tobytes(), 0) + 1
    expected: dict[bytes, int] = {}
    for row in range(side):
        for column in range(side):
            top, left = row - cutout // 2, column - cutout // 2
            image = np.ones((side, side, 2), np.float32)
            image[max(top, 0) : top + cutout, max(left, 0) : left + cutout] = 0
            expected[image.tobytes()] = expected.get(image.tobytes(), 0) + 1
    assert set(counts) == set(expected)
    for image, multiplicity in expected.items():
        share = multiplicity / side**2
        deviation = np.sqrt(2000 * share * (1 - share))
        assert abs(counts[image] - 2000 * share) < 5 * deviation + 1


def test_images_of_a_batch_are_augmented_apart():
    images = jnp.broadcast_to(jax.random.normal(KEY, (16, 16, 3)), (32, 16, 16, 3))
    change = functools.partial(data.augment, pad=4, flip=True, cutout=8)
    augmented = jax.jit(change)(KEY, images)
    assert len({np.asarray(image).tobytes() for image in augmented}) > 28
    assert augmented.dtype == jnp.float32
