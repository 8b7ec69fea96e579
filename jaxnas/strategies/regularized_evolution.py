"""Regularized evolution: the oldest of a population dies, whatever it was worth.

Real, Aggarwal, Huang and Le 2019, arXiv:1802.01548. One child a step, of the best of
a tournament, by mutation alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import FULL, Array, Feedback, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.draws import below
from jaxnas.search import incumbent
from jaxnas.strategies.batches import batched
from jaxnas.strategies.checks import expect_capacity, propose


class EvolutionState(NamedTuple):
    """The population, a ring in which the youngest takes the place of the oldest."""

    arch: Array  # int32[P, D]
    fitness: Array  # float32[P]; -inf: failed, or nobody yet


def regularized_evolution(
    space: SearchSpace,
    *,
    population_size: int | Array = 100,
    tournament_size: int = 25,
    capacity: int | None = None,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy with the paper's defaults.

    Args:
      space: what is searched.
      population_size: how many live at a time. The first so many are random. It may
        be traced, for `vmap` over sizes, where a capacity is given.
      tournament_size: how many are drawn, with replacement, of whom the best is the
        parent.
      capacity: the most that live at a time; population_size by default.
      batch_size: B, children a step, all of the population before it.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a size is below 1, or the population above its capacity.
    """
    expect(1, tournament_size=tournament_size, budget=budget)
    capacity = expect_capacity(population_size, capacity)

    def init(key: Array) -> EvolutionState:
        del key
        arch = jnp.zeros((capacity, len(space.num_choices)), jnp.int32)
        return EvolutionState(arch, jnp.full(capacity, -jnp.inf, jnp.float32))

    def breed(key: Array, state: EvolutionState) -> Array:
        key_draw, key_mutate = jax.random.split(key)
        drawn = below(key_draw, (tournament_size,), population_size)
        parent = state.arch[drawn[jnp.argmax(state.fitness[drawn])]]
        return space.mutate(key_mutate, parent)

    def ask(key: Array, step: Array, state: EvolutionState) -> Proposal:
        # The step is the same for all seeds, so that this stays a branch under vmap.
        arch = lax.cond(
            step < population_size, lambda key, _: space.sample(key), breed, key, state
        )
        return propose(arch, budget)

    def tell(
        key: Array,
        step: Array,
        state: EvolutionState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> EvolutionState:
        del key
        place, told = step % population_size, (proposal.arch, feedback.fitness)
        return jax.tree.map(
            lambda old, new: lax.dynamic_update_slice_in_dim(old, new, place, 0),
            state,
            EvolutionState(*told),
        )

    one = Strategy(init, ask, tell, lambda state, log: incumbent(log))
    return batched(one, batch_size)
