"""Train some, predict many, verify the best: one round of a predictor.

Wen, Liu, Li, Chen, Bender and Kindermans 2020, arXiv:1912.00848.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import (
    FULL,
    Array,
    Feedback,
    Proposal,
    PyTree,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.checks import expect
from jaxnas.search import incumbent
from jaxnas.strategies.memory import Memory, choose, empty, remember


class PredictorState(NamedTuple):
    """What was told, and what is verified once the surrogate was asked."""

    memory: Memory  # of N
    model: PyTree  # of the surrogate
    arch: Array  # int32[K, D], best first
    mean: Array  # float32[K], their fitness as predicted
    deviation: Array  # float32[K]
    is_new: Array  # bool[K]; false: there were fewer new ones, and it is padding


def predictor_search(
    space: SearchSpace,
    surrogate: Surrogate,
    *,
    num_train: int = 100,
    num_predict: int = 1000,
    num_verify: int = 10,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes the strategy.

    Its steps are ceil(N / B) of training and ceil(K / B) of verification; what is left
    of a batch, and all steps beyond, are padding.

    Args:
      space: what is searched.
      surrogate: fitted once, to those that were trained and did not fail.
      num_train: N, random architectures that are evaluated first.
      num_predict: random architectures, as far as they are new ones, that are
        predicted.
      num_verify: K, the best of those, which are evaluated.
      batch_size: B, architectures a step.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number is below 1, or more are verified than predicted.
    """
    expect(1, num_train=num_train, num_verify=num_verify)
    expect(1, batch_size=batch_size, budget=budget)
    expect(num_verify, num_predict=num_predict)
    train_steps = -(-num_train // batch_size)

    def init(key: Array) -> PredictorState:
        memory = empty(space, num_train)
        arch = jnp.zeros((num_verify, len(space.num_choices)), jnp.int32)
        zeros, none = jnp.zeros(num_verify), jnp.zeros(num_verify, bool)
        model = surrogate.init(key, memory.history)
        return PredictorState(memory, model, arch, zeros, zeros, none)

    def ask(key: Array, step: Array, state: PredictorState) -> Proposal:
        places = jnp.arange(batch_size)

        def train(_):
            drawn = jax.vmap(space.sample)(jax.random.split(key, batch_size))
            return drawn, step * batch_size + places < num_train

        def verify(state):
            place = (step - train_steps) * batch_size + places
            at = jnp.minimum(place, num_verify - 1)
            return state.arch[at], (place < num_verify) & state.is_new[at]

        arch, used = lax.cond(step < train_steps, train, verify, state)
        return Proposal(arch, jnp.where(used, budget, 0), jnp.full(batch_size, -1))

    def predict(key: Array, state: PredictorState) -> PredictorState:
        key_fit, key_sample = jax.random.split(key)
        model = surrogate.fit(key_fit, state.model, state.memory.history)
        arch = jax.vmap(space.sample)(jax.random.split(key_sample, num_predict))
        mean, deviation = surrogate.predict(model, arch)
        scores = jnp.broadcast_to(mean[None], (num_verify, num_predict))
        place, found = choose(space, state.memory, arch, scores)
        told = arch[place], mean[place], deviation[place], found > -jnp.inf
        return PredictorState(state.memory, model, *told)

    def tell(
        key: Array,
        step: Array,
        state: PredictorState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> PredictorState:
        def learn(state):
            place = step * batch_size + jnp.arange(batch_size)
            place = jnp.where(proposal.budget > 0, place, -1)
            told = proposal.arch, feedback.fitness
            return state._replace(memory=remember(space, state.memory, place, *told))

        # The step is the same for all seeds, so that these stay branches under vmap.
        state = lax.cond(step < train_steps, learn, lambda state: state, state)
        key = jax.random.fold_in(key, batch_size)  # none of those that `ask` splits
        is_last = step == train_steps - 1
        return lax.cond(is_last, predict, lambda _, state: state, key, state)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))
