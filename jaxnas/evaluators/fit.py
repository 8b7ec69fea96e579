"""Training one network from scratch, and testing it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial

from jaxnas.base import Array, InputError
from jaxnas.data import batch_indices
from jaxnas.tasks import Batch, Task, judge
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
      data: images uint8[N, H, W, colours], labels int32[N], and what the task needs.
      prepare: `(key, uint8[B, H, W, colours]) -> float32`: normalises, augments.
      scan: a loop of `jaxnas.search`.
      tx: the optimizer.
      num_steps: T.
      batch_size: examples a step.
      auxiliary: weight of the loss of the auxiliary classifier, if there is one.
      drop_path: probability to lose an edge, which grows from zero to this.

    Returns:
      The state, and of each step `loss` and the metrics of the task, float32[T] each.

    Raises:
      InputError: a batch size below 1 or above N.
    """
    num_examples = len(data.labels)
    if not 0 < batch_size <= num_examples:
        raise InputError(
            f"expected a batch size from 1 to the {num_examples} training examples, "
            f"but got {batch_size}: choose one in this range"
        )

    step = Step(network, task, prepare, tx, num_steps, batch_size, auxiliary, drop_path)
    key_init, key_steps = jax.random.split(key)
    image = jax.ShapeDtypeStruct((1, *data.images.shape[1:]), jnp.float32)
    variables = init_variables(network, key_init, image, train=True)
    state = init_state(variables, tx)
    data = jax.tree.map(jnp.asarray, data)
    return scan(Partial(step, key_steps, data), state, jnp.arange(num_steps))


class Step(NamedTuple):
    """A step of training; equal for equal members, so that jit compiles it once."""

    network: Any  # of images and the weights that a step is given
    task: Task
    prepare: Callable[[Array, Array], Array]
    tx: optax.GradientTransformation
    num_steps: int
    batch_size: int
    auxiliary: float
    drop_path: float

    def __call__(
        self, key: Array, data: Batch, state: TrainState, step: Array, *weights: Array
    ):
        key_order, key_step = jax.random.split(key)
        key_prepare, key_drop = jax.random.split(jax.random.fold_in(key_step, step))
        index = batch_indices(key_order, step, len(data.labels), self.batch_size)
        images = self.prepare(key_prepare, data.images[index])
        update = make_update(self.loss, self.tx)
        batch = Batch(images, data.labels[index], data.given)
        return update((step, key_drop, weights), state, batch)

    def loss(self, params, batch_stats, key, batch):
        step, key_drop, weights = key
        variables = {"params": params, "batch_stats": batch_stats}
        drop_rate = self.drop_path * step / self.num_steps if self.drop_path else None
        logits, changed = self.network.apply(
            variables,
            batch.images,
            *weights,
            drop_rate=drop_rate,
            train=True,
            mutable=["batch_stats", "auxiliary"],
            rngs={"drop_path": key_drop},
        )
        loss = self.task.loss(logits, batch)
        for more in changed.get("auxiliary", {}).get("logits", ()):
            loss += self.auxiliary * self.task.loss(more, batch)
        stats = changed.get("batch_stats", {})  # a chain may have none
        return loss, (stats, self.task.metrics(logits, batch))


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
    how = network, prepare, num_classes, batch_size
    confusion, _ = judge(*how, state.variables, data)
    return np.asarray(confusion)
