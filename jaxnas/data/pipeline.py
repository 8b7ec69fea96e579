"""What happens to images between the arrays and the network.

All of it but `channel_statistics` and `split` is traceable and runs on the device
inside a training step, from a key.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError


class Augmentation(NamedTuple):
    """How much `augment` changes an image; its keyword arguments."""

    pad: int  # pixels, the largest shift of the crop in each direction
    flip: bool  # whether to mirror half of the images left to right
    cutout: int  # pixels, the side of the square that is cut out; 0 = none


FLIPPED = ("cifar10", "fashion_mnist")
"""Datasets whose images may be mirrored."""


def augmentation_of(name: str, image_shape: tuple[int, ...]) -> Augmentation:
    """The usual augmentation of CIFAR-10, in proportion to the image elsewhere.

    Args:
      name: of the dataset.
      image_shape: (height, width, channels).
    """
    side = min(image_shape[:2])
    return Augmentation(pad=side // 8, flip=name in FLIPPED, cutout=side // 2)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and standard deviation of each channel, for `normalize`.

    Args:
      images: uint8[N, height, width, channels], the training images.

    Returns:
      float32[channels] each, of intensities in [0, 1].
    """
    intensities = np.arange(256) / 255
    num_channels = images.shape[-1]
    offsets = 256 * np.arange(num_channels)
    # Counting is exact, and in blocks it takes no copy of all images in float64.
    blocks = np.array_split(images, len(images) // 1024 + 1)
    counts = sum(
        np.bincount((block + offsets).ravel(), minlength=256 * num_channels)
        for block in blocks
    )
    weights = np.reshape(counts, (num_channels, 256)) / (images.size / num_channels)
    mean = weights @ intensities
    variance = np.sum(weights * (intensities - mean[:, None]) ** 2, axis=1)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def normalize(images: Array, mean: Array, std: Array) -> Array:
    """Shifts and scales each channel to zero mean and unit deviation.

    Args:
      images: uint8[..., channels].
      mean: float32[channels], of intensities in [0, 1].
      std: float32[channels], likewise.

    Returns:
      float32[..., channels].
    """
    mean, std = (jnp.broadcast_to(value, images.shape) for value in (mean, std))
    return (images / jnp.float32(255) - mean) / std


def split(
    key: Array, images: np.ndarray, labels: np.ndarray, fraction: float = 0.5
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Divides examples at random in two, as DARTS does its training set.

    Args:
      key: a key; the same one gives the same parts.
      images: uint8[N, height, width, channels].
      labels: int32[N].
      fraction: share of the first part, in (0, 1).

    Returns:
      (images, labels) of the first `round(fraction * N)` drawn examples, and
      (images, labels) of the others.

    Raises:
      InputError: a part would be empty.
    """
    num_first = round(fraction * len(labels))
    if not 0 < num_first < len(labels):
        raise InputError(
            f"expected a fraction that leaves neither part of {len(labels)} examples "
            f"empty, but got {fraction}: choose one between 0 and 1"
        )
    order = np.asarray(jax.random.permutation(key, len(labels)))
    first, second = order[:num_first], order[num_first:]
    return (images[first], labels[first]), (images[second], labels[second])


def batch_indices(key: Array, step: Array, num_examples: int, batch_size: int) -> Array:
    """The examples of the batch at a step, drawn without replacement.

    Each epoch visits the examples in a new order and leaves out the
    `num_examples % batch_size` last ones. The batch follows from `key` and `step`
    alone, so a resumed run draws the batches of an uninterrupted one.

    Args:
      key: a key, the same one at every step.
      step: int32[], counts from 0 over all epochs; may be traced.
      num_examples: size of the dataset.
      batch_size: size of the batch.

    Returns:
      int32[batch_size], each in [0, num_examples), no two equal.

    Raises:
      InputError: a batch size below 1 or above `num_examples`.
    """
    if not 0 < batch_size <= num_examples:
        raise InputError(
            f"expected a batch size from 1 to the {num_examples} examples there are, "
            f"but got {batch_size}: choose one in this range"
        )
    steps_per_epoch = num_examples // batch_size
    key_epoch = jax.random.fold_in(key, step // steps_per_epoch)
    positions = step % steps_per_epoch * batch_size + jnp.arange(batch_size)
    return _permute(key_epoch, positions, num_examples)


def _permute(key: Array, positions: Array, size: int) -> Array:
    """Values at `positions` of a random permutation of [0, size).

    A Feistel network with random tables as its round functions (Luby & Rackoff
    1988, https://doi.org/10.1137/0217022) permutes [0, side**2) for the least
    side**2 >= size; applying it again to what falls outside of [0, size) permutes
    that (cycle walking, Black & Rogaway 2002). It costs O(sqrt(size) + batch):
    0.05 ms on a CPU for 50,000 examples, where `jax.random.permutation` takes 25.
    Of 4 and of 6 rounds, only 6 showed no trace of order in neighbouring values.
    """
    side = math.isqrt(size - 1) + 1
    tables = (jax.random.bits(key, (6, side)) % side).astype(jnp.int32)

    def apply_round(i: Array, halves: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = halves
        return right, (left + tables[i, right]) % side

    def apply_network(state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, is_outside = state
        halves = values // side, values % side
        left, right = jax.lax.fori_loop(0, 6, apply_round, halves)
        values = jnp.where(is_outside, left * side + right, values)
        return values, values >= size

    start = positions, jnp.ones_like(positions, bool)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), apply_network, start)[0]


def augment(key: Array, images: Array, *, pad: int, flip: bool, cutout: int) -> Array:
    """Crops, mirrors and cuts out at random, each image on its own.

    An image is shifted by up to `pad` pixels each way, with zeros where nothing was;
    mirrored left to right with probability 1/2; and a square around a pixel chosen
    uniformly is set to zero, less what of it lies outside of the image (DeVries &
    Taylor 2017, https://arxiv.org/abs/1708.04552). Of normalised images, zero is
    the mean colour.

    Args:
      key: a key.
      images: float32[B, height, width, channels], normalised.
      pad: pixels, the largest shift; 0 = none.
      flip: whether to mirror.
      cutout: pixels, the side of the square; 0 = none.

    Returns:
      float32[B, height, width, channels].
    """
    one = functools.partial(_augment_one, pad=pad, flip=flip, cutout=cutout)
    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def _augment_one(
    key: Array, image: Array, *, pad: int, flip: bool, cutout: int
) -> Array:
    """`augment` of one image, float32[height, width, channels]."""
    key_crop, key_flip, key_cutout = jax.random.split(key, 3)
    if pad:
        row, column = jax.random.randint(key_crop, (2,), 0, 2 * pad + 1)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    if flip:
        is_flipped = jax.random.bernoulli(key_flip)
        image = jnp.where(is_flipped, image[:, ::-1], image)
    if cutout:
        size = jnp.array(image.shape[:2])
        row, column = jax.random.randint(key_cutout, (2,), 0, size) - cutout // 2
        is_row_cut = _is_within(jnp.arange(image.shape[0]), row, cutout)
        is_column_cut = _is_within(jnp.arange(image.shape[1]), column, cutout)
        is_cut = is_row_cut[:, None] & is_column_cut[None, :]
        image = jnp.where(is_cut[..., None], 0, image)
    return image


def _is_within(index: Array, start: Array, length: int) -> Array:
    """Whether `index` lies in [start, start + length)."""
    return (index >= start) & (index < start + length)
