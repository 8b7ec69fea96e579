"""Evolution strategy: natural gradient on a distribution over architectures.

Wierstra et al. 2014 (natural evolution strategies), arXiv:1106.4487; for categorical
decisions, with two samples a step and a floor under probabilities, Akimoto et al. 2019
(ASNG-NAS), arXiv:1905.08537, without its adaptive step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import FULL, Array, Feedback, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.encoding import one_hot
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose

GRID = 2.0**20


class DistributionState(NamedTuple):
    """Independent categorical distributions, one a decision."""

    probs: Array  # float32[D, K], rows sum to 1; 0 for what is no choice


def evolution_strategy(
    space: SearchSpace,
    *,
    learning_rate: float | Array = 0.3,
    floor: float | Array = 0.1,
    batch_size: int = 5,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy of one step of natural gradient for each population.

    Utilities are by rank, so that only the order of fitness matters. A sample that
    the space does not allow is repaired by `space.discretize`, and credit goes to the
    sample as drawn. What failed is left out; fewer than two successes change nothing.

    Args:
      space: what is searched.
      learning_rate: of the probabilities.
      floor: under each probability, as a part of the uniform one.
      batch_size: B, the population and architectures of a step, 2 or more.
      budget: of each, in epochs; a whole one by default.

    Raises:
      InputError: batch_size is below 2 or budget below 1, learning_rate negative,
        floor not from 0 to 1.
    """
    expect(2, batch_size=batch_size)
    expect(1, budget=budget)
    expect(0, learning_rate=learning_rate)
    expect(0, 1, floor=floor)
    sizes = np.array(space.num_choices)[:, None]
    uniform = np.where(np.arange(sizes.max())[None] < sizes, 1 / sizes, 0)
    uniform = uniform.astype(np.float32)
    least = _on_grid(floor * jnp.array(uniform))

    def init(key: Array) -> DistributionState:
        del key
        return DistributionState(_on_grid(jnp.array(uniform)))

    def draw(key: Array, probs: Array) -> Array:
        logits = jnp.where(uniform > 0, jnp.log(jnp.maximum(probs, 1e-30)), -jnp.inf)
        noise = jax.random.gumbel(key, (batch_size, *probs.shape))
        return jnp.argmax(logits[None] + noise, -1).astype(jnp.int32)

    def ask(key: Array, step: Array, state: DistributionState) -> Proposal:
        del step
        encoded = encode(draw(key, state.probs))
        return propose(jax.vmap(space.discretize)(encoded), budget)

    def encode(archs: Array) -> Array:
        return jax.vmap(one_hot, (0, None))(archs, space.num_choices)

    def tell(
        key: Array,
        step: Array,
        state: DistributionState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> DistributionState:
        del step, proposal
        encoded = encode(draw(key, state.probs))
        change = learning_rate * natural_gradient(encoded, feedback.fitness)
        probs = _raise(state.probs + _on_grid(change), least)
        return DistributionState(jnp.where(change.any(), probs, state.probs))

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


def natural_gradient(encoded: Array, fitness: Array) -> Array:
    """Returns float32[D, K] for float32[B, D, K] in one-hot form and float32[B].

    It is the sum over samples of utility * (one_hot - probability), in which the
    probability cancels, since utilities sum to 0. These are ranks, evenly from -1/n to
    1/n for n successes; equals share, and a failure gets 0.
    """
    ok = fitness > -jnp.inf
    fitness = jnp.where(ok, fitness, 0.0)
    beats = jnp.sign(fitness[:, None] - fitness[None]) * (ok[:, None] & ok[None])
    wins = jnp.sum(beats.sum(1)[:, None, None] * encoded, 0)
    return wins * (1 / jnp.maximum(ok.sum() * (ok.sum() - 1), 1))


def _raise(probs: Array, least: Array) -> Array:
    """Brings rows of float32[D, K] to a sum of 1 with nothing under the least."""
    above = jnp.maximum(probs - least, 0.0)
    room = 1.0 - least.sum(-1, keepdims=True)
    # XLA divides by a row's number or multiplies by its inverse, as it finds it.
    scale = room * (1 / jnp.maximum(above.sum(-1, keepdims=True), 1e-30))
    return least + _on_grid(above * scale)


def _on_grid(numbers: Array) -> Array:
    """Rounds to millionths, in powers of two, which add up without another rounding.

    So a search has the same bits however its loop is compiled.
    """
    return jnp.round(numbers * GRID) / GRID
