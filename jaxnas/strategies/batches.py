"""Strategies of one proposal a step, asked for several at a time.

No strategy itself: what those give to whom trains many networks together.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, Feedback, Proposal, PyTree, Strategy
from jaxnas.checks import expect


def batched(strategy: Strategy, batch_size: int) -> Strategy:
    """Asks a strategy B times of one state, and tells it the answers one by one.

    Its own steps are numbered as if there were no batches. What it tells itself may
    follow from the proposal, not from a replay of its draws: the state has moved on.

    Args:
      strategy: of one proposal a step.
      batch_size: B, 1 or more.

    Raises:
      InputError: batch_size is below 1.
    """
    expect(1, batch_size=batch_size)
    if batch_size == 1:
        return strategy
    places = jnp.arange(batch_size)

    def ask(key: Array, step: Array, state: PyTree) -> Proposal:
        def one(place):
            now = jax.random.fold_in(key, place), step * batch_size + place
            return strategy.ask(*now, state)

        return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(places))

    def tell(
        key: Array, step: Array, state: PyTree, proposal: Proposal, feedback: Feedback
    ) -> PyTree:
        def one(state, told):
            place, answer = told
            now = jax.random.fold_in(key, place), step * batch_size + place
            answer = jax.tree.map(lambda x: x[None], answer)
            return strategy.tell(*now, state, *answer), None

        return lax.scan(one, state, (places, (proposal, feedback)))[0]

    return strategy._replace(ask=ask, tell=tell)
