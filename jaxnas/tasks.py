"""What a network is trained for: the loss and the metrics of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxnas.base import Array


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
