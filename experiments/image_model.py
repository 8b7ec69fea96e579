"""An autoencoder of images, and the likelihood of their levels as stored."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import data
from jaxnas.base import Array, PyTree
from jaxnas.generators.variational import Examples, Vae, vae
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.tasks import discretized_logistic
from jaxnas.training import TrainState


def map_rows(function: Callable, rows: PyTree) -> PyTree:
    """What a function says of each row, computed in batches.

    As `jax.lax.map`, but all batches are of a size, up to 250 rows: the last one is
    filled up with rows that are cut off again. So there is one program to compile.

    Args:
      function: of the leaves of a row.
      rows: a tree of arrays [N, ...], N of 1 or more.
    """
    count = len(jax.tree.leaves(rows)[0])
    batches = -(-count // 250)
    size = -(-count // batches)
    more = batches * size - count
    filled = jax.tree.map(lambda x: jnp.concatenate([x, x[:more]]), rows)
    found = jax.lax.map(function, filled, batch_size=size)
    return jax.tree.map(lambda x: x[:count], found)


class Model(NamedTuple):
    """An autoencoder and how it looks at images."""

    made: Vae
    prepare: Callable[[Array], Array]  # uint8[N, H, W, colours] -> float32
    to_levels: Callable[[Array], Array]  # its inverse, rounded
    width: tuple[float, ...]  # of each colour, distance of two levels, normalised
    conditional: bool

    def told(self, labels: Array) -> Array | None:
        """What the networks are told."""
        return labels if self.conditional else None

    def update(self, key: Array, state: TrainState, x: Array, condition: Array | None):
        """A step of training."""
        return self.made.update(key, state, Examples(x, condition))

    def show(self, state: TrainState, z: Array, labels: Array) -> Array:
        """See `generate`."""
        return generate(self, state, z, labels)


def model_of(
    dataset: data.Dataset,
    network: Autoencoder,
    tx: optax.GradientTransformation,
    beta: float = 1.0,
    conditional: bool = False,
) -> Model:
    """Makes the update of an autoencoder by the likelihood of 256 levels.

    Args:
      dataset: whose training images say how images are normalised.
      network: its decoder's output is "logistic".
      tx: the optimizer.
      beta: weight of the divergence.
      conditional: whether the network is told the labels.
    """
    mean, std = data.channel_statistics(dataset.train_images)
    std = np.maximum(std, np.float32(1e-3))  # of one colour alone it would be 0
    low, high, width = -mean / std, (1 - mean) / std, 1 / (255 * std)
    normalize = partial(data.normalize, mean=mean, std=std)

    def to_levels(images: Array) -> Array:
        levels = (images * std[None, None, None] + mean[None, None, None]) * 255
        return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)

    made = vae(network, discretized_logistic(width, low, high), tx, beta=beta)
    return Model(made, normalize, to_levels, tuple(width.tolist()), conditional)


@partial(jax.jit, static_argnums=0)
def generate(model: Model, state: PyTree, z: Array, labels: Array) -> Array:
    """The means of what the decoder says, as uint8[N, H, W, colours]."""

    def one(given):
        z, label = (x[None] for x in given)
        mean, _ = model.made.decode(state, z, model.told(label))
        return model.to_levels(mean)[0]

    return map_rows(one, (z, labels))


@partial(jax.jit, static_argnums=0)
def evidence(
    model: Model, key: Array, state: PyTree, images: Array, labels: Array
) -> tuple[Array, Array]:
    """The mean bound and divergence of images, at a draw each: nats, float32[]."""

    def one(given):
        key, *example = given
        image, label = (x[None] for x in example)
        told = model.told(label)
        bound, divergence = model.made.bound(key, state, model.prepare(image), told)
        return bound[0], divergence[0]

    keys = jax.random.split(key, len(labels))
    each = map_rows(one, (keys, images, labels))
    return tuple(part.mean() for part in each)


def bits_per_dimension(bound: float, images: Array | np.ndarray) -> float:
    """A bound in nats an image of [N, H, W, colours], for each of its numbers."""
    return -bound / (math.log(2) * math.prod(images.shape[1:]))
