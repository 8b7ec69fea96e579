"""Training states and the updates that move them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval

from jaxnas.base import Array, PyTree

LossFn = Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
"""`loss_fn(params, batch_stats, key, batch) -> (loss, (batch_stats, metrics))`."""


class TrainState(NamedTuple):
    """A network in training: data only, no functions inside."""

    step: Array  # int32[], finished updates
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `apply` of the Linen module takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(network: Any, key: Array, *args: Any, **kwargs: Any) -> PyTree:
    """Draws the initial variables of a Linen module without running it.

    They are `params` and `batch_stats` of `network.init(key, *args, **kwargs)`. That
    is traced, all but the draws is left out, and the draws run one by one: one
    program of them all compiles for longer than the rest of the start together.

    Args:
      network: a Linen module.
      key: PRNG key.
      args: inputs, as trees of arrays or, where no variable depends on their values,
        `jax.ShapeDtypeStruct`s.
      kwargs: static arguments.

    Raises:
      ValueError: a variable depends on the values of a `ShapeDtypeStruct`.
    """
    init = partial(network.init, mutable=["params", "batch_stats"], **kwargs)
    trace = jax.make_jaxpr(init, return_shape=True)
    closed, variables = trace(key, *args)
    outputs = [True] * len(closed.jaxpr.outvars)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, outputs)
    given = jax.tree.leaves((key, args))
    inputs = [x for x, is_used in zip(given, used, strict=True) if is_used]
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in inputs):
        raise ValueError("initial variables that depend on the inputs' values")
    values = jax.core.eval_jaxpr(jaxpr, closed.consts, *inputs)
    return jax.tree.unflatten(jax.tree.structure(variables), values)


def init_state(variables: Any, tx: optax.GradientTransformation) -> TrainState:
    """Makes the state of a network that has not been trained yet.

    Args:
      variables: what a Linen module's `init` returns.
      tx: the optimizer.
    """
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(jnp.int32(0), params, batch_stats, tx.init(params))


def make_update(loss_fn: LossFn, tx: optax.GradientTransformation):
    """Makes one step of training, `update(key, state, batch) -> (state, metrics)`.

    The metrics are those of `loss_fn`, of the batch and before the step, with the
    loss among them. Updates compose as optax transforms do: they are functions of
    a state, so several networks that learn from each other alternate theirs.

    Args:
      loss_fn: see `LossFn`.
      tx: the optimizer.
    """

    def update(key: Array, state: TrainState, batch: PyTree):
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, metrics)), grads = value_and_grad(
            state.params, state.batch_stats, key, batch
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, batch_stats, opt_state)
        return state, {"loss": loss, **metrics}

    return update


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Stochastic gradient descent as PyTorch has it: the decay is part of the gradient.

    Args:
      learning_rate: float, or a schedule by step.
      momentum: of the averaged gradient, without dampening.
      weight_decay: factor of the parameters that is added to the gradient.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
