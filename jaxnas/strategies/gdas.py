"""GDAS: a search by sampling one operation an edge, differentiably.

Dong and Yang 2019, arXiv:1910.04465. Weights are a one and zeros, drawn by Gumbel
noise; their gradient is taken for that of the softmax behind it (straight through).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnas.base import Array, SearchSpace, Strategy
from jaxnas.strategies.concrete import annealing, concrete
from jaxnas.strategies.differentiable import differentiable


def gdas(
    space: SearchSpace,
    *,
    num_steps: int = 97_500,
    temperatures: tuple[float, float] = (10.0, 0.1),
    **settings: Any,
) -> Strategy:
    """Makes the strategy; `Proposal.arch` is one-hot, float32[1, D, K].

    The network that it is meant for computes only the operation chosen on each edge, so
    `Feedback.grad` is 0 for the others, which learn by the softmax's denominator. With
    a supernet that computes all, their gradients count as well.

    Rate, betas and decay of the published code are those of `differentiable`.

    Args:
      space: what is searched.
      num_steps: over which the temperature falls linearly; the default is the 250
        epochs of the published code for NAS-Bench-201, of 390 batches of 64.
      temperatures: the first and the last, likewise.
      **settings: of `differentiable`.

    Raises:
      InputError: num_steps or a temperature is not positive; what `differentiable`
        raises.
    """
    temperature = annealing(temperatures, num_steps)

    def relax(key: Array, step: Array, logits: Array) -> Array:
        return straight_through(concrete(key, logits, temperature(step)))

    return differentiable(space, relax=relax, **settings)


def straight_through(weights: Array) -> Array:
    """The one-hot of the strongest of float32[D, K], with the gradient of weights."""
    hard = jax.nn.one_hot(jnp.argmax(weights, -1), weights.shape[-1])
    return hard + (weights - jax.lax.stop_gradient(weights))  # exactly 0 is added
