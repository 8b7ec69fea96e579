"""Bayesian optimisation: evaluate what a surrogate of the evaluations finds promising.

Mockus 1978; for architectures BANANAS (White, Neiswanger and Savani 2021,
arXiv:1910.11858): with its ensemble as the surrogate, independent Thompson sampling and
mutations of the best as candidates, this is it.
"""

import jax
import jax.numpy as jnp

from jaxnas.base import (
    FULL,
    Array,
    PyTree,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.checks import expect, expect_one_of
from jaxnas.draws import below
from jaxnas.strategies.acquisitions import ACQUISITIONS
from jaxnas.strategies.memory import Memory, best_fitness, best_known
from jaxnas.strategies.model_based import Thought, model_based


def bayesian_optimization(
    space: SearchSpace,
    surrogate: Surrogate,
    *,
    acquisition: str = "independent_thompson_sampling",
    num_initial: int = 10,
    num_parents: int = 10,
    num_mutants: int = 100,
    num_random: int = 100,
    batch_size: int = 5,
    num_queries: int = 150,
    budget: int = FULL,
) -> Strategy:
    """Makes the strategy.

    Candidates are mutants of the best architectures so far, half of them by one edit
    and half by two, and random ones. After the initial ones, an architecture that was
    asked, or one equal to it, is not asked again while there is another candidate.

    Args:
      space: what is searched.
      surrogate: fitted after each step to what was told; failures are left out.
      acquisition: of `ACQUISITIONS`. A batch takes the best by it or, by Thompson
        sampling, of a draw each.
      num_initial: random architectures before the surrogate is asked, in whole batches.
      num_parents: how many of the best have mutants.
      num_mutants: candidates by mutation.
      num_random: candidates drawn from the space.
      batch_size: B, architectures a step.
      num_queries: the last so many evaluations are remembered.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number is below its least, or the acquisition is unknown.
    """
    expect(1, num_parents=num_parents, num_mutants=num_mutants, num_random=num_random)
    expect_one_of("an acquisition", acquisition, ACQUISITIONS)
    acquire = ACQUISITIONS[acquisition]
    num_parents = min(num_parents, num_queries)

    def candidates(key: Array, memory: Memory) -> Array:
        key_parent, key_mutate, key_sample = jax.random.split(key, 3)
        parents, count = best_known(memory, num_parents)
        drawn = below(key_parent, (num_mutants,), jnp.maximum(count, 1))
        keys = jax.random.split(key_mutate, (2, num_mutants))
        once = jax.vmap(space.mutate)(keys[0], memory.history.arch[parents[drawn]])
        twice = jax.vmap(space.mutate)(keys[1], once)
        mutants = jnp.where(jnp.arange(num_mutants)[:, None] % 2 == 0, once, twice)
        keys = jax.random.split(key_sample, num_random)
        return jnp.concatenate([mutants, jax.vmap(space.sample)(keys)])

    def think(key: Array, model: PyTree, memory: Memory) -> Thought:
        key_fit, key_candidates, key_score = jax.random.split(key, 3)
        model = surrogate.fit(key_fit, model, memory.history)
        arch = candidates(key_candidates, memory)
        best = best_fitness(memory)
        scores = jax.vmap(lambda key: acquire(key, surrogate, model, arch, best))(
            jax.random.split(key_score, batch_size)
        )
        return Thought(model, arch, scores)

    return model_based(
        space,
        lambda key, memory: surrogate.init(key, memory.history),
        think,
        num_initial=num_initial,
        batch_size=batch_size,
        num_queries=num_queries,
        budget=budget,
    )
