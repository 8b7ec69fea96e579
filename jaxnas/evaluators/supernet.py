"""The supernet: all architectures of a space trained at once, with shared weights.

One evaluation is one step of DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055):
the weights descend on one half of the training data, then the other half gives the
gradient by the architecture. The paper's reference takes the architecture first,
which differs by half a step.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import OK, Array, Evaluator, Feedback, InputError, Proposal, PyTree
from jaxnas.data import batch_indices
from jaxnas.tasks import Batch, Task
from jaxnas.training import TrainState, init_state, init_variables, sgd

WEIGHTS, ARCHITECTURE = 0, 1  # which half, which stream of random numbers


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
) -> Evaluator:
    """Makes the evaluator of one relaxed architecture at a time, float32[1, D, K].

    Its fitness is minus the loss on the architecture's half, at the weights that
    the hypergradient is taken at, with batch statistics; `grad` is d fitness / d
    arch. Metrics: the loss and those of the task, `train_loss` and so on of the
    weights' batch before their step, `valid_loss` and so on of the other half. Cost is
    in epochs of the weights' half.

    Args:
      network: a Linen module, `network(images, weights, train=...)`.
      task: what the network is trained for.
      halves: images uint8[N, H, W, colours] and labels int32[N]; the first part
        trains the weights, the second the architecture.
      prepare: `(key, uint8[B, H, W, colours]) -> float32`: normalises, augments.
      hypergradient: a name in `HYPERGRADIENTS`, or a function like those.
      learning_rate: of the weights, float or a schedule by step.
      momentum: of the weights.
      weight_decay: of the weights.
      clip: largest norm of the weights' gradient.
      batch_size: examples a step, of each half.

    Raises:
      InputError: an unknown hypergradient; a batch below 1 or above a half.
    """
    search_step = (
        HYPERGRADIENTS.get(hypergradient)
        if isinstance(hypergradient, str)
        else hypergradient
    )
    if search_step is None:
        raise InputError(
            f"expected a hypergradient of {', '.join(HYPERGRADIENTS)}, but got "
            f"{hypergradient}: choose one of these"
        )
    fewest = min(len(half.labels) for half in halves)
    if not 0 < batch_size <= fewest:
        raise InputError(
            f"expected a batch size from 1 to {fewest}, half of the training data, "
            f"but got {batch_size}: choose one in this range"
        )
    tx = sgd(learning_rate, momentum, weight_decay)
    steps_per_epoch = len(halves[WEIGHTS].labels) // batch_size

    def loss_fn(params, weights, batch, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = network.apply(
            variables, batch.images, weights, train=True, mutable=["batch_stats"]
        )
        metrics = task.metrics(logits, batch)
        loss = task.loss(logits, batch)
        return loss, (changed["batch_stats"], {"loss": loss, **metrics})

    def draw(data, key, half, step):
        """The batch of a step, always the same for the same step."""
        key_order, key_prepare = jax.random.split(jax.random.fold_in(key, half))
        images, labels = data[half]
        index = batch_indices(key_order, step, len(labels), batch_size)
        key_prepare = jax.random.fold_in(key_prepare, step)
        return Batch(prepare(key_prepare, images[index]), labels[index])

    def init(key: Array) -> SupernetState:
        key_init, key_data = jax.random.split(key)
        shape = (1, *halves[WEIGHTS].images.shape[1:])
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        variables = init_variables(network, key_init, image)
        return SupernetState(init_state(variables, tx), key_data)

    def evaluate(key: Array, data: PyTree, state: SupernetState, proposal: Proposal):
        del key  # batches follow from the state's own key and step
        chex.assert_shape(proposal.arch, (1, None, None))
        weights = proposal.arch[0]
        step = state.train.step
        batches = (
            draw(data, state.key, WEIGHTS, step),
            draw(data, state.key, WEIGHTS, step + 1),
            draw(data, state.key, ARCHITECTURE, step),
        )
        train, metrics, valid, grad = search_step(
            loss_fn, tx, clip, state.train, weights, batches
        )
        feedback = Feedback(
            fitness=-valid["loss"][None],
            cost=jnp.full(1, 1 / steps_per_epoch, jnp.float32),
            status=jnp.full(1, OK, jnp.int32),
            metrics={
                f"{half}_{name}": value[None]
                for half, values in (("train", metrics), ("valid", valid))
                for name, value in values.items()
            },
            grad=-grad[None],
        )
        return SupernetState(train, state.key), feedback

    return Evaluator(jax.tree.map(jnp.asarray, halves), init, evaluate)


# Each of the following takes one step of the weights and gives the gradient of the
# loss on the architecture's half by the architecture, `weights`:
#   (loss_fn, tx, clip, state, weights, batches)
#     -> (state, metrics of the step, metrics of the other half, float32[D, K])
# `loss_fn(params, weights, batch, batch_stats) -> (loss, (batch_stats, metrics))`,
# `batches` are this step's, the next step's and the architecture's.


def first_order(loss_fn, tx, clip, state, weights, batches):
    """The gradient by the architecture alone, at the weights after the step."""
    batch, _, outer_batch = batches
    by_params = jax.grad(loss_fn, has_aux=True)
    grads, (stats, metrics) = by_params(state.params, weights, batch, state.batch_stats)
    state = _descend(tx, state, grads, stats, clip)
    by_arch = jax.grad(loss_fn, 1, has_aux=True)
    grad, (_, valid) = by_arch(state.params, weights, outer_batch, stats)
    return state, metrics, valid, grad


def exact(*problem):
    """The gradient through one more step of the weights, by nested differentiation.

    With w' = w - step(d inner / d w), the chain rule adds to the direct gradient
    c . d/d arch (d inner / d w), where c is d outer / d w' pulled back through the
    step. Second derivatives commute: that is the derivative of d inner / d arch
    along c, and forward over reverse needs no kernel gradients for it.
    """
    return _unrolled(_directional, *problem)


def finite_difference(*problem, distance=0.01):
    """The paper's approximation of `exact`: a central difference along c.

    The paper steps a distance of 0.01 in norm. With ReLU that crosses kinks, where
    the gradient jumps: the second-order term is often off by more than its own size
    (figures in BUILD.md).
    """
    return _unrolled(partial(_central_difference, distance=distance), *problem)


def _unrolled(derivative, loss_fn, tx, clip, state, weights, batches):
    def gradient_step(state, inputs):
        batch, clip = inputs
        by_both = jax.grad(loss_fn, (0, 1), has_aux=True)
        grads, (stats, metrics) = by_both(
            state.params, weights, batch, state.batch_stats
        )
        new = _descend(tx, state, grads[0], stats, clip)
        return new, (new, grads, metrics)

    # The step, the virtual step (unclipped) and the outer gradient differ in their
    # batch alone: in a loop the largest part of the program compiles once, not thrice.
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    clips = jnp.array([clip, jnp.inf, jnp.inf])
    _, results = lax.scan(gradient_step, state, (stacked, clips))
    at_step, at_virtual, at_outer = (
        jax.tree.map(itemgetter(i), results) for i in range(3)
    )
    stepped, _, metrics = at_step
    _, outer, valid = at_outer

    def virtual_step(grads):
        return tx.update(grads, stepped.opt_state, stepped.params)[0]

    _, pull_back = jax.vjp(virtual_step, at_virtual[1][0])
    (along,) = pull_back(outer[0])

    def by_arch(params):
        grad = jax.grad(loss_fn, 1, has_aux=True)
        return grad(params, weights, batches[1], stepped.batch_stats)[0]

    indirect = derivative(by_arch, stepped.params, along)
    return stepped, metrics, valid, outer[1] + indirect


def _directional(function, params, along):
    return jax.jvp(function, (params,), (along,))[1]


def _central_difference(function, params, along, distance):
    norm = optax.tree.norm(along)  # zero where the learning rate is
    size = distance / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)

    def shifted(sign):
        return function(jax.tree.map(lambda p, d: p + sign * size * d, params, along))

    ahead, behind = lax.map(shifted, jnp.array([1.0, -1.0]))
    return (ahead - behind) / (2 * size)


HYPERGRADIENTS = {
    "first_order": first_order,
    "exact": exact,
    "finite_difference": finite_difference,
}


def _descend(tx, state, grads, batch_stats, clip):
    """One step of the weights, its gradient's norm at most `clip`."""
    scale = jnp.minimum(1.0, clip / optax.tree.norm(grads))
    grads = jax.tree.map(lambda g: scale * g, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state)
