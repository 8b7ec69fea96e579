"""Training one network as it is built, and testing it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial

from jaxnas.base import Array, InputError
from jaxnas.data import batch_indices
from jaxnas.metrics import confusion_matrix
from jaxnas.tasks import Batch, Task
from jaxnas.training import TrainState, init_state, init_variables, make_update


def fit(
    key: Array,
    network: Any,
    task: Task,
    data: Batch,
    prepare: Callable[[Array, Array], Array],
    scan: Callable = lax.scan,
    *,
    tx: optax.GradientTransformation,
    num_steps: int,
    batch_size: int = 96,
    auxiliary: float = 0.0,
    drop_path: float = 0.0,
) -> tuple[TrainState, dict[str, Array]]:
    """Trains a network from scratch.

    Args:
      key: a key; what is trained follows from it alone.
      network: a Linen module, `network(images, drop_rate=..., train=...)`.
      task: what it is trained for.
      data: images uint8[N, H, W, colours], labels int32[N].
      prepare: `(key, uint8[B, H, W, colours]) -> float32`: normalises, augments.
      scan: a loop of `jaxnas.search`.
      tx: the optimizer.
      num_steps: T.
      batch_size: examples a step.
      auxiliary: weight of the loss of the auxiliary classifier, if there is one.
      drop_path: probability to lose an edge, which grows from zero to this.

    Returns:
      The state, and the metrics of each step: `loss`, `accuracy`, float32[T] each.

    Raises:
      InputError: a batch size below 1 or above N.
    """
    num_examples = len(data.labels)
    if not 0 < batch_size <= num_examples:
        raise InputError(
            f"expected a batch size from 1 to the {num_examples} training examples, "
            f"but got {batch_size}: choose one in this range"
        )

    def loss_fn(params, batch_stats, key, batch):
        (step, key_drop), images = key, batch.images
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = network.apply(
            variables,
            images,
            drop_rate=drop_path * step / num_steps if drop_path else None,
            train=True,
            mutable=["batch_stats", "auxiliary"],
            rngs={"drop_path": key_drop},
        )
        loss = task.loss(logits, batch)
        for more in changed.get("auxiliary", {}).get("logits", ()):
            loss += auxiliary * task.loss(more, batch)
        return loss, (changed["batch_stats"], task.metrics(logits, batch))

    update = make_update(loss_fn, tx)

    def step(key: Array, data: Batch, state: TrainState, step: Array):
        key_order, key_step = jax.random.split(key)
        key_prepare, key_drop = jax.random.split(jax.random.fold_in(key_step, step))
        index = batch_indices(key_order, step, num_examples, batch_size)
        batch = Batch(prepare(key_prepare, data.images[index]), data.labels[index])
        return update((step, key_drop), state, batch)

    key_init, key_steps = jax.random.split(key)
    image = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), jnp.float32)
    variables = init_variables(network, key_init, image, train=True)
    state = init_state(variables, tx)
    data = jax.tree.map(jnp.asarray, data)
    return scan(Partial(step, key_steps, data), state, jnp.arange(num_steps))


def confusion_of(
    network: Any,
    state: TrainState,
    data: Batch,
    prepare: Callable[[Array], Array],
    num_classes: int,
    batch_size: int = 250,
) -> np.ndarray:
    """Classifies the examples of a test set.

    Args:
      network: a Linen module, `network(images)`.
      state: its parameters and statistics.
      data: images uint8[N, H, W, colours], labels int32[N].
      prepare: `uint8[B, H, W, colours] -> float32`: normalises.
      num_classes: C.
      batch_size: examples at a time.

    Returns:
      int32[C, C], how many examples of one class were taken for another, see
      `jaxnas.metrics.classification_metrics`.
    """
    padding = -len(data.labels) % batch_size

    def batches(x: Array, fill: int) -> Array:
        widths = [(0, padding), *[(0, 0)] * (x.ndim - 1)]
        padded = np.pad(x, widths, constant_values=fill)
        return jnp.asarray(padded.reshape(-1, batch_size, *x.shape[1:]))

    @jax.jit
    def count(state: TrainState, data: Batch) -> Array:
        def one(total: Array, batch: Batch) -> tuple[Array, None]:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            guess = network.apply(variables, prepare(batch.images)).argmax(-1)
            return total + confusion_matrix(batch.labels, guess, num_classes), None

        total = jnp.zeros((num_classes, num_classes), jnp.int32)
        return lax.scan(one, total, data)[0]

    padded = Batch(batches(data.images, 0), batches(data.labels, -1))  # -1: uncounted
    return np.asarray(count(state, padded))
