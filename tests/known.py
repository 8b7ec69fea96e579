"""An evaluator whose best architecture is known."""

import jax.numpy as jnp
import numpy as np

from jaxnas.base import OK, Evaluator, Feedback


def known_evaluator(table) -> Evaluator:
    """Its fitness is the sum of the table weighted by the architecture."""

    def evaluate(key, data, state, proposal):
        fitness = jnp.sum(proposal.arch * data[None], (1, 2))
        ones = jnp.ones(1)
        feedback = Feedback(fitness, ones, jnp.full(1, OK), {}, grad=data[None])
        return state, feedback

    return Evaluator(np.asarray(table, np.float32), lambda key: (), evaluate)
