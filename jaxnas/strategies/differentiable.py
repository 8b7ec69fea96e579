"""Differentiable search: gradient descent on the logits of a relaxed architecture.

DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055): each decision is a softmax
over its choices, whose logits (alpha in the paper) descend with Adam on the
validation loss; the strongest choices are the answer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import (
    Array,
    Feedback,
    InputError,
    Log,
    Proposal,
    PyTree,
    SearchSpace,
    Strategy,
)


class DifferentiableState(NamedTuple):
    """What is learnt of a space."""

    logits: Array  # float32[D, K]
    opt_state: PyTree


def softmax(key: Array, logits: Array) -> Array:
    """DARTS's relaxation: float32[D, K], -inf for choices that are none -> weights."""
    del key
    return jax.nn.softmax(logits)


def differentiable(
    space: SearchSpace,
    *,
    relax: Callable[[Array, Array], Array] = softmax,
    learning_rate: float = 3e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    weight_decay: float = 1e-3,
    init_scale: float = 1e-3,
) -> Strategy:
    """Makes a strategy for evaluators that give `Feedback.grad`.

    Args:
      space: what is searched.
      relax: `(key, logits) -> weights`, both float32[D, K], differentiable.
      learning_rate: of Adam.
      betas: of Adam.
      weight_decay: of the logits; as in the reference, part of their gradient.
      init_scale: standard deviation of the first logits.

    Raises:
      InputError: while tracing, for an evaluator without gradients.
    """
    num_choices = jnp.array(space.num_choices)
    shape = len(space.num_choices), max(space.num_choices)
    valid = jnp.arange(shape[1])[None] < num_choices[:, None]
    tx = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate, *betas),
    )

    def weights_of(key: Array, logits: Array) -> Array:
        return relax(key, jnp.where(valid, logits, -jnp.inf))

    def init(key: Array) -> DifferentiableState:
        logits = init_scale * jax.random.normal(key, shape, jnp.float32)
        return DifferentiableState(logits, tx.init(logits))

    def ask(key: Array, step: Array, state: DifferentiableState) -> Proposal:
        arch = weights_of(key, state.logits)[None]
        return Proposal(arch, jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32))

    def tell(
        key: Array,
        step: Array,
        state: DifferentiableState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> DifferentiableState:
        _, pull_back = jax.vjp(lambda logits: weights_of(key, logits), state.logits)
        if feedback.grad is None:
            raise InputError(
                "expected an evaluator that gives gradients by the architecture, as "
                "supernet does, but got none: choose another evaluator or strategy"
            )
        usable = jnp.isfinite(feedback.fitness[0]) & jnp.isfinite(feedback.grad).all()
        grad = jnp.where(usable, -feedback.grad[0], 0.0)
        updates, opt_state = tx.update(
            pull_back(grad)[0], state.opt_state, state.logits
        )
        new = DifferentiableState(optax.apply_updates(state.logits, updates), opt_state)
        return jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, state)

    def recommend(state: DifferentiableState, log: Log) -> Array:
        del log
        # Any key: the answer is what the relaxation tends to, not a sample.
        return space.discretize(
            jax.nn.softmax(jnp.where(valid, state.logits, -jnp.inf))
        )

    return Strategy(init, ask, tell, recommend)
