"""The supernet: all architectures of a space trained at once, with shared weights.

One evaluation is one step of DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055):
the weights descend on one half of the training data, then the other half gives the
gradient by the architecture. The paper's reference takes the architecture first,
which differs by half a step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import OK, Array, Evaluator, Feedback, InputError, Proposal, PyTree
from jaxnas.evaluators.curvature import curvature
from jaxnas.evaluators.halves import (
    ARCHITECTURE,
    WEIGHTS,
    check_batch_size,
    draw,
    run_where,
)
from jaxnas.evaluators.hypergradients import HYPERGRADIENTS
from jaxnas.tasks import Batch, Task
from jaxnas.training import TrainState, init_state, init_variables, sgd

START = 2  # a stream of random numbers beside those of the halves


class SupernetState(NamedTuple):
    """The shared weights, and the key that the order of the data follows from."""

    train: TrainState
    key: Array


def supernet(
    network: Any,
    task: Task,
    halves: tuple[Batch, Batch],
    prepare: Callable[[Array, Array], Array],
    *,
    hypergradient: str | Callable = "first_order",
    learning_rate: optax.ScalarOrSchedule = 0.025,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip: float = 5.0,
    batch_size: int = 64,
    curvature_every: int = 0,
    curvature_iterations: int = 16,
) -> Evaluator:
    """Makes the evaluator of one relaxed architecture at a time, float32[1, D, K].

    Its fitness is minus the loss on the architecture's half, at the weights that
    the hypergradient is taken at, with batch statistics; `grad` is d fitness / d
    arch. Metrics: the loss and those of the task, `train_loss` and so on of the
    weights' batch before their step, `valid_loss` and so on of the other half;
    `valid_curvature`, see below. Cost is in epochs of the weights' half. A proposal of
    budget 0 costs nothing and changes nothing: no gradient, the rest is NaN.

    Args:
      network: a Linen module, `network(images, weights, train=...)`.
      task: what the network is trained for.
      halves: images uint8[N, H, W, colours], labels int32[N] and what is given to the
        task; the first part trains the weights, the second the architecture.
      prepare: `(key, uint8[B, H, W, colours]) -> float32`: normalises, augments.
      hypergradient: a name in `HYPERGRADIENTS`, or a function like those.
      learning_rate: of the weights, float or a schedule by step.
      momentum: of the weights.
      weight_decay: of the weights.
      clip: largest norm of the weights' gradient.
      batch_size: examples a step, of each half.
      curvature_every: every so many steps `valid_curvature` is the largest eigenvalue
        of the loss in the logits, on the architecture's batch at the weights after
        the step, see `curvature.curvature`; NaN in between. 0: there is no such metric.
      curvature_iterations: products with the Hessian for each.

    Raises:
      InputError: an unknown hypergradient; a batch below 1 or above a half; halves
        that differ in what is given; a curvature of no iterations.
    """
    search_step = _hypergradient(hypergradient)
    _check(halves, batch_size, curvature_every, curvature_iterations)
    tx = sgd(learning_rate, momentum, weight_decay)
    steps_per_epoch = len(halves[WEIGHTS].labels) // batch_size

    def init(key: Array) -> SupernetState:
        key_init, key_data = jax.random.split(key)
        shape = (1, *halves[WEIGHTS].images.shape[1:])
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = init_variables(network, key_init, image)
        return SupernetState(init_state(variables, tx), key_data)

    @partial(jax.jit, inline=True)  # so that what asks for its shapes traces it for all
    def step(data: PyTree, state: SupernetState, weights: Array):
        """One step: the new `state.train`, metrics, d loss / d weights."""
        count = state.train.step
        loss_fn = partial(_loss, network, task, data[WEIGHTS].given)

        def draw_ahead(half: int, ahead: int) -> Batch:
            batch = draw(prepare, batch_size, data, state.key, half, count + ahead)
            return batch._replace(given=())  # batches are stacked; it may be a network

        def measure(train: TrainState, weights: Array) -> Array:
            batch = draw_ahead(ARCHITECTURE, 0)
            key = jax.random.fold_in(state.key, START)

            def loss(weights: Array) -> Array:
                return loss_fn(train.params, weights, batch, train.batch_stats)[0]

            return curvature(key, loss, weights, curvature_iterations)

        given = loss_fn, tx, clip, state.train, weights, draw_ahead
        train, metrics, valid, grad = search_step(*given)
        if curvature_every:
            due = (count + 1) % curvature_every == 0
            unknown = jnp.full_like(weights, jnp.nan, shape=())
            found = run_where(due, measure, unknown, train, weights)
            valid = {**valid, "curvature": found}
        metrics = {
            f"{half}_{name}": value
            for half, values in (("train", metrics), ("valid", valid))
            for name, value in values.items()
        }
        return train, metrics, grad

    def evaluate(key: Array, data: PyTree, state: SupernetState, proposal: Proposal):
        del key  # batches follow from the state's own key and step
        chex.assert_shape(proposal.arch, (1, None, None))
        weights, asked = proposal.arch[0], proposal.budget[0] > 0
        _, shapes, _ = jax.eval_shape(step, data, state, weights)
        unknown = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
        nothing = state.train, unknown, jnp.zeros_like(weights)
        train, metrics, grad = run_where(asked, step, nothing, data, state, weights)
        feedback = Feedback(
            fitness=-metrics["valid_loss"][None],
            cost=jnp.where(asked, 1 / steps_per_epoch, 0.0)[None].astype(jnp.float32),
            status=jnp.full(1, OK, jnp.int32),
            metrics=jax.tree.map(lambda x: x[None], metrics),
            grad=-grad[None],
        )
        return SupernetState(train, state.key), feedback

    return Evaluator(jax.tree.map(jnp.asarray, halves), init, evaluate)


def _hypergradient(choice: str | Callable) -> Callable:
    found = HYPERGRADIENTS.get(choice) if isinstance(choice, str) else choice
    if found is None:
        raise InputError(
            f"expected a hypergradient of {', '.join(HYPERGRADIENTS)}, but got "
            f"{choice}: choose one of these"
        )
    return found


def _check(halves: tuple[Batch, Batch], batch_size: int, every: int, iterations: int):
    check_batch_size(halves, batch_size)
    if not _equal(*(half.given for half in halves)):
        raise InputError(
            "expected halves that give the task the same, but they differ: give both "
            "the same variables"
        )
    if every < 0 or iterations < 1:
        raise InputError(
            f"expected a curvature every 0 steps (never) or more, of 1 iteration or "
            f"more, but got {every} and {iterations}: raise them"
        )


def _equal(one: PyTree, other: PyTree) -> bool:
    """Whether two trees hold equal arrays."""
    trees: Any = (jax.tree.flatten(tree) for tree in (one, other))
    (leaves, structure), (others, likewise) = trees
    return structure == likewise and all(map(np.array_equal, leaves, others))


def _loss(network, task, given, params, weights, batch, batch_stats):
    """The `loss_fn` of hypergradients, after its first three arguments."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, changed = network.apply(
        variables, batch.images, weights, train=True, mutable=["batch_stats"]
    )
    batch = batch._replace(given=given)
    metrics, loss = task.metrics(logits, batch), task.loss(logits, batch)
    return loss, (changed["batch_stats"], {"loss": loss, **metrics})
