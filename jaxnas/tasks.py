"""What a network is trained for: the loss and the metrics of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Array, PyTree
from jaxnas.metrics import confusion_matrix


class Batch(NamedTuple):
    """Examples with their labels."""

    images: Array  # float32[N, H, W, colours], normalised; or uint8, as stored
    labels: Array  # int32[N]


class Task(NamedTuple):
    """Functions of a network's outputs and the batch they answer to."""

    loss: Callable[[Array, Batch], Array]  # -> float32[]
    metrics: Callable[[Array, Batch], dict[str, Array]]  # -> float32[] each


def classification() -> Task:
    """Cross entropy in nats, and accuracy as a fraction, of logits float32[N, C]."""

    def loss(logits: Array, batch: Batch) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        return {"accuracy": jnp.mean(logits.argmax(-1) == batch.labels)}

    return Task(loss, metrics)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def judge(
    network: Any,
    prepare: Callable[[Array], Array],
    num_classes: int,
    batch_size: int,
    variables: PyTree,
    data: Batch,
    *weights: Array,
) -> tuple[Array, Array]:
    """The confusion matrix int32[C, C] and mean cross entropy (nats) on N examples.

    Args:
      network: a Linen module, `network(images, *weights)`.
      prepare: `uint8[B, H, W, colours] -> float32`: normalises.
      num_classes: C.
      batch_size: examples at a time.
      variables: its parameters and statistics.
      data: images uint8[N, H, W, colours], labels int32[N].
      *weights: further arguments of the network.
    """
    missing = -len(data.labels) % batch_size

    def cut(x: Array, fill: int) -> Array:
        pads = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(x, pads, constant_values=fill)
        return padded.reshape(-1, batch_size, *x.shape[1:])

    def one(total: tuple[Array, Array], batch: Batch) -> tuple[Any, None]:
        logits = network.apply(variables, prepare(batch.images), *weights)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(batch.labels, 0)
        )
        loss = jnp.sum(jnp.where(batch.labels >= 0, losses, 0.0))
        found = confusion_matrix(batch.labels, logits.argmax(-1), num_classes), loss
        return jax.tree.map(jnp.add, total, found), None

    zeros = jnp.zeros((num_classes, num_classes), jnp.int32), jnp.float32(0)
    batches = Batch(cut(data.images, 0), cut(data.labels, -1))  # -1: uncounted
    confusion, loss = lax.scan(one, zeros, batches)[0]
    return confusion, loss / len(data.labels)
