"""A generational genetic algorithm: selection, crossover, mutation, elitism.

Holland 1975; as one searches architectures with it, Xie and Yuille 2017
(arXiv:1703.01513). A generation is as many steps as it has individuals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import FULL, Array, Feedback, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.draws import below
from jaxnas.search import incumbent
from jaxnas.strategies.batches import batched
from jaxnas.strategies.checks import expect_capacity, propose


class GeneticState(NamedTuple):
    """The parents and, until they are as many, their children."""

    arch: Array  # int32[2, P, D]: parents, children
    fitness: Array  # float32[2, P]; -inf: failed, or nobody
    children: Array  # int32[], how many so far
    first: Array  # bool[], whether the children are the first, random generation


def genetic_algorithm(
    space: SearchSpace,
    *,
    population_size: int | Array = 20,
    tournament_size: int = 2,
    crossover_rate: float | Array = 0.5,
    mutation_rate: float | Array = 0.8,
    elite_size: int = 2,
    capacity: int | None = None,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy.

    Population and mutation rate are those of Xie and Yuille; they cross less (0.2) and
    draw parents in proportion to fitness, without an elite.

    Args:
      space: what is searched.
      population_size: individuals of a generation; may be traced, see capacity.
      tournament_size: how many are drawn, with replacement, of whom the best is a
        parent.
      crossover_rate: probability that a child has two parents.
      mutation_rate: probability that a child is mutated by one edit.
      elite_size: how many of the best live on as they are, without a query.
      capacity: the most individuals; population_size by default.
      batch_size: B, individuals a step; best a divisor of those that are new in a
        generation, population_size - elite_size.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a size is below 1, the elite below 0 or no smaller than the
        population, a rate no probability.
    """
    capacity = expect_capacity(population_size, capacity)
    expect(1, tournament_size=tournament_size, budget=budget)
    expect(0, 1, crossover_rate=crossover_rate, mutation_rate=mutation_rate)
    expect(0, capacity - 1, elite_size=elite_size)
    if not isinstance(population_size, jax.core.Tracer):
        expect(0, int(population_size) - 1, elite_size=elite_size)

    def init(key: Array) -> GeneticState:
        del key
        arch = jnp.zeros((2, capacity, len(space.num_choices)), jnp.int32)
        nobody = jnp.full((2, capacity), -jnp.inf)
        return GeneticState(arch, nobody, jnp.int32(0), jnp.array(True))

    def select(key: Array, state: GeneticState) -> Array:
        """Two parents, int32[2, D], each the best of a tournament."""
        drawn = below(key, (2, tournament_size), population_size)
        best = jnp.argmax(state.fitness[0][drawn], 1)
        return state.arch[0][drawn[jnp.arange(2), best]]

    def ask(key: Array, step: Array, state: GeneticState) -> Proposal:
        del step
        keys = jax.random.split(key, 5)
        mother, father = select(keys[0], state)
        does_cross, does_mutate = jax.random.uniform(keys[1], (2,)) < jnp.stack(
            [jnp.float32(crossover_rate), jnp.float32(mutation_rate)]
        )
        crossed = space.crossover(keys[2], mother, father)
        child = jnp.where(does_cross, crossed, mother)
        child = jnp.where(does_mutate, space.mutate(keys[3], child), child)
        return propose(jnp.where(state.first, space.sample(keys[4]), child), budget)

    def tell(
        key: Array,
        step: Array,
        state: GeneticState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> GeneticState:
        del key, step
        arch = state.arch.at[1, state.children].set(proposal.arch[0])
        fitness = state.fitness.at[1, state.children].set(feedback.fitness[0])
        told = state._replace(arch=arch, fitness=fitness, children=state.children + 1)
        grown = jax.tree.map(
            lambda new, old: jnp.where(told.children >= population_size, new, old),
            _turn(told, elite_size, population_size),
            told,
        )
        return grown

    one = Strategy(init, ask, tell, lambda state, log: incumbent(log))
    return batched(one, batch_size)


def _turn(state, elite_size, population_size):
    """Makes parents of the children, and children of the elite among them.

    A traced population may be as small as the elite: then one child is still new.
    """
    kept = jnp.minimum(elite_size, population_size - 1)
    best, elite = jax.lax.top_k(state.fitness[1], elite_size)
    best = jnp.where(jnp.arange(elite_size) < kept, best, -jnp.inf)
    arch = jnp.stack(
        [state.arch[1], state.arch[0].at[:elite_size].set(state.arch[1][elite])]
    )
    nobody = jnp.full_like(state.fitness[1], -jnp.inf)
    fitness = jnp.stack([state.fitness[1], nobody.at[:elite_size].set(best)])
    return GeneticState(arch, fitness, jnp.int32(kept), jnp.array(False))
