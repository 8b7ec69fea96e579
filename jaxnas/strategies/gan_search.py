"""Search by a generator of architectures that learns from the best so far.

Adversarial training on the best, many are generated, the most promising are evaluated,
and so on: GA-NAS (Changiz Rezaei et al. 2021, arXiv:2105.09356).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import (
    FULL,
    Array,
    Generator,
    PyTree,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.checks import expect, expect_one_of
from jaxnas.draws import below
from jaxnas.generation import draw_choices, expect_of, repair
from jaxnas.strategies.acquisitions import independent_thompson_sampling
from jaxnas.strategies.memory import Memory, best_fitness, best_known
from jaxnas.strategies.model_based import Thought, model_based

CHOOSERS = ("random", "evolution", "reinforcement")


class GanSearchState(NamedTuple):
    """What generates, and what chooses."""

    generator: PyTree
    surrogate: PyTree  # () without


def gan_search(
    space: SearchSpace,
    generator: Generator,
    surrogate: Surrogate | None = None,
    *,
    chooser: str = "evolution",
    num_initial: int = 10,
    num_generated: int = 200,
    num_parents: int = 10,
    num_policy_updates: int = 10,
    policy_rate: float = 0.3,
    batch_size: int = 5,
    num_queries: int = 150,
    budget: int = FULL,
) -> Strategy:
    """Makes the strategy.

    Choosers: `random` draws latents from the prior. `evolution` crosses what they
    give with one of the best architectures so far, and edits half of the children.
    `reinforcement` learns, anew in each step, the mean of the latents by REINFORCE
    (Williams 1992) with the standardised word of discriminator or surrogate as reward.

    Args:
      space: what is searched.
      generator: refitted after each step; its `score` chooses without a surrogate.
      surrogate: whose Thompson sample of each architecture chooses; None: none.
      chooser: of `CHOOSERS`.
      num_initial: random architectures before, in whole batches.
      num_generated: M, candidates of a step.
      num_parents: how many of the best are crossed.
      num_policy_updates: of the mean of the latents, in each step.
      policy_rate: of these, in deviations of the prior.
      batch_size: B, architectures a step.
      num_queries: the last so many evaluations are remembered.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number is below its least, the chooser is unknown, or the
        generator of another space.
    """
    expect(1, num_generated=num_generated, num_parents=num_parents)
    expect(0, num_policy_updates=num_policy_updates, policy_rate=policy_rate)
    expect_one_of("a chooser", chooser, CHOOSERS)
    expect_of(space, generator)
    num_parents = min(num_parents, num_queries)
    shape = num_generated, generator.num_latent

    def init_model(key: Array, memory: Memory) -> GanSearchState:
        key_generator, key_surrogate = jax.random.split(key)
        model = surrogate.init(key_surrogate, memory.history) if surrogate else ()
        state = generator.init(key_generator, memory.history)
        return GanSearchState(state, model)

    def generate(key: Array, state: PyTree, z: Array) -> Array:
        return repair(space, draw_choices(key, space, generator, state, z))

    def judge(key: Array, model: GanSearchState, memory: Memory, arch: Array) -> Array:
        if surrogate is None:
            return generator.score(model.generator, arch)
        given = key, surrogate, model.surrogate, arch, best_fitness(memory)
        return independent_thompson_sampling(*given)

    def breed(key: Array, memory: Memory, arch: Array) -> Array:
        """Children of what was generated and one of the best each."""
        key_parent, key_cross, key_mutate = jax.random.split(key, 3)
        parents, count = best_known(memory, num_parents)
        drawn = below(key_parent, (num_generated,), jnp.maximum(count, 1))
        others = memory.history.arch[parents[drawn]]
        keys = jax.random.split(key_cross, num_generated)
        child = jax.vmap(space.crossover)(keys, arch, others)
        keys = jax.random.split(key_mutate, num_generated)
        edited = jax.vmap(space.mutate)(keys, child)
        child = jnp.where(jnp.arange(num_generated)[:, None] % 2 == 0, child, edited)
        return jnp.where(count > 0, child, arch)

    def reinforce(key: Array, model: GanSearchState, memory: Memory) -> Array:
        """The mean of latents that discriminator or surrogate speak well of."""

        def one(i, mean):
            key_z, key_draw, key_judge = jax.random.split(jax.random.fold_in(key, i), 3)
            noise = jax.random.normal(key_z, shape)
            arch = generate(key_draw, model.generator, mean[None] + noise)
            reward = judge(key_judge, model, memory, arch)
            reward = (reward - reward.mean()) / (reward.std() + 1e-6)
            return mean + policy_rate * jnp.mean(reward[:, None] * noise, 0)

        return lax.fori_loop(0, num_policy_updates, one, jnp.zeros(shape[1]))

    def think(key: Array, model: GanSearchState, memory: Memory) -> Thought:
        keys = jax.random.split(key, 7)
        fitted = generator.fit(keys[0], model.generator, memory.history)
        model = model._replace(generator=fitted)
        if surrogate:
            told = surrogate.fit(keys[1], model.surrogate, memory.history)
            model = model._replace(surrogate=told)
        z = jax.random.normal(keys[3], shape)
        if chooser == "reinforcement":
            z += reinforce(keys[2], model, memory)[None]
        arch = generate(keys[4], fitted, z)
        if chooser == "evolution":
            arch = breed(keys[5], memory, arch)
        scores = jax.vmap(lambda key: judge(key, model, memory, arch))(
            jax.random.split(keys[6], batch_size)
        )
        return Thought(model, arch, scores)

    return model_based(
        space,
        init_model,
        think,
        num_initial=num_initial,
        batch_size=batch_size,
        num_queries=num_queries,
        budget=budget,
    )
