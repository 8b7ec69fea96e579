"""Differentiable search: gradient descent on the logits of a relaxed architecture.

DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055): each decision is a softmax
over its choices, whose logits (alpha in the paper) descend with Adam on the
validation loss; the strongest choices are the answer.
"""

from collections.abc import Callable
from functools import partial
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
from jaxnas.checks import expect
from jaxnas.strategies.skips import limit_skips


class DifferentiableState(NamedTuple):
    """What is learnt of a space."""

    logits: Array  # float32[D, K]
    edge_logits: Array  # float32[D], used by edge normalization alone
    opt_state: PyTree


def softmax(key: Array, step: Array, logits: Array) -> Array:
    """DARTS's relaxation: float32[D, K], -inf for choices that are none -> weights."""
    del key, step
    return jax.nn.softmax(logits)


def differentiable(
    space: SearchSpace,
    *,
    relax: Callable[[Array, Array, Array], Array] = softmax,
    mean: Callable[[Array], Array] = jax.nn.softmax,
    edge_normalization: bool = False,
    learning_rate: float = 3e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    weight_decay: float = 1e-3,
    init_scale: float = 1e-3,
    warmup: int = 0,
    max_skips: int | None = None,
) -> Strategy:
    """Makes a strategy for evaluators that give `Feedback.grad`.

    Args:
      space: what is searched.
      relax: `(key, step, logits) -> weights`, both float32[D, K], differentiable.
        Logits of choices that are none are -inf; their weights have to be 0.
      mean: `logits -> weights`, what `relax` draws around: the answer is read from it.
      edge_normalization: multiplies the weights of each decision by its edge's share of
        the node that it enters, see `edge_shares`; so a decision's weights sum to it.
      learning_rate: of Adam.
      betas: of Adam.
      weight_decay: of the logits; as in the reference, part of their gradient.
      init_scale: standard deviation of the first logits.
      warmup: steps that leave the logits as they are, while a supernet learns.
      max_skips: skip connections that the answer's normal cell may have, see
        `limit_skips`; any number by default.

    Raises:
      InputError: warmup or max_skips is negative, or there are max_skips for a space
        without cells; while tracing, for an evaluator without gradients.
    """
    expect(0, warmup=warmup)
    discretize = limit_skips(space, max_skips)
    shape = len(space.num_choices), max(space.num_choices)
    valid = jnp.arange(shape[1])[None] < jnp.array(space.num_choices)[:, None]
    targets = space.cells.targets if space.cells else tuple(range(shape[0]))
    tx = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.adam(learning_rate, *betas),
    )

    def weights_of(
        relax: Callable[[Array], Array], logits: Array, edge_logits: Array
    ) -> Array:
        weights = relax(jnp.where(valid, logits, -jnp.inf))
        if edge_normalization:
            weights = weights * edge_shares(edge_logits, targets)[:, None]
        return weights

    def draw(key: Array, step: Array, logits: Array, edge_logits: Array) -> Array:
        return weights_of(partial(relax, key, step), logits, edge_logits)

    def init(key: Array) -> DifferentiableState:
        key_edges = jax.random.fold_in(key, 1)
        logits = init_scale * jax.random.normal(key, shape, jnp.float32)
        edge_logits = init_scale * jax.random.normal(key_edges, shape[:1], jnp.float32)
        opt_state = tx.init((logits, edge_logits))
        return DifferentiableState(logits, edge_logits, opt_state)

    def ask(key: Array, step: Array, state: DifferentiableState) -> Proposal:
        arch = draw(key, step, state.logits, state.edge_logits)[None]
        return Proposal(arch, jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32))

    def tell(
        key: Array,
        step: Array,
        state: DifferentiableState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> DifferentiableState:
        if feedback.grad is None:
            raise InputError(
                "expected an evaluator that gives gradients by the architecture, as "
                "supernet does, but got none: choose another evaluator or strategy"
            )
        *both, opt_state = state  # the logits of choices and of edges
        _, pull_back = jax.vjp(partial(draw, key, step), *both)  # with ask's noise
        usable = jnp.isfinite(feedback.fitness[0]) & jnp.isfinite(feedback.grad).all()
        grad = jnp.where(usable, -feedback.grad[0], 0.0)
        updates, opt_state = tx.update(pull_back(grad), opt_state, tuple(both))
        logits, edge_logits = optax.apply_updates(tuple(both), updates)
        told = DifferentiableState(logits, edge_logits, opt_state)
        moves = usable & (step >= warmup)
        return jax.tree.map(lambda new, old: jnp.where(moves, new, old), told, state)

    def recommend(state: DifferentiableState, log: Log) -> Array:
        del log
        return discretize(weights_of(mean, state.logits, state.edge_logits))

    return Strategy(init, ask, tell, recommend)


def edge_shares(logits: Array, targets: tuple[int, ...]) -> Array:
    """The softmax of float32[D] over the edges that enter the same node: float32[D].

    Of targets all of which differ every share is 1.
    """
    nodes = jnp.array(targets)
    together = nodes[:, None] == nodes[None, :]
    return jnp.diagonal(jax.nn.softmax(jnp.where(together, logits[None], -jnp.inf)))
