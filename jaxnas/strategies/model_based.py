"""What strategies share that think before they ask: a memory, and a model of it.

No strategy itself. They draw from the space at first; then a model learns from what was
told, and says what is asked next.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array, Feedback, Proposal, PyTree, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose
from jaxnas.strategies.memory import Memory, choose, empty, remember

SPARE = 4  # random architectures for each that is asked
LEAST = np.float32(-1e30)  # the score of those


class ModelBasedState(NamedTuple):
    """What was told, what is made of it, and what is asked next."""

    memory: Memory
    model: PyTree
    arch: Array  # int32[B, D]
    score: Array  # float32[B], theirs; 0: chosen without, or nothing new was left


class Thought(NamedTuple):
    """What a model says: its new state, and of which M candidates it thinks what."""

    model: PyTree
    arch: Array  # int32[M, D]
    scores: Array  # float32[B, M], higher is better: each row chooses one


def model_based(
    space: SearchSpace,
    init_model: Callable[[Array, Memory], PyTree],
    think: Callable[[Array, PyTree, Memory], Thought],
    *,
    num_initial: int,
    batch_size: int,
    num_queries: int,
    budget: int,
) -> Strategy:
    """Makes the strategy.

    An architecture that was asked, or one equal to it, is not asked again while there
    is another candidate.

    Args:
      space: what is searched.
      init_model: makes the model's state; nothing is remembered yet.
      think: what the model does after each step, from the last initial one on.
      num_initial: random architectures before, in whole batches, up to num_queries.
      batch_size: B, architectures a step.
      num_queries: the last so many evaluations are remembered.
      budget: of each evaluation, in epochs.

    Raises:
      InputError: a number is below its least.
    """
    expect(1, num_initial=num_initial, batch_size=batch_size, budget=budget)
    expect(batch_size, num_queries=num_queries)
    num_initial = min(num_initial, num_queries)  # or the first would be forgotten

    def init(key: Array) -> ModelBasedState:
        memory = empty(space, num_queries)
        arch = jnp.zeros((batch_size, len(space.num_choices)), jnp.int32)
        model = init_model(key, memory)
        return ModelBasedState(memory, model, arch, jnp.zeros(batch_size))

    def ask(key: Array, step: Array, state: ModelBasedState) -> Proposal:
        def begin(_):
            return jax.vmap(space.sample)(jax.random.split(key, batch_size))

        # The step is the same for all seeds, so that this stays a branch under vmap.
        is_initial = step * batch_size < num_initial
        return propose(
            lax.cond(is_initial, begin, lambda arch: arch, state.arch), budget
        )

    def plan(key: Array, state: ModelBasedState) -> ModelBasedState:
        key_think, key_sample = jax.random.split(key)
        model, arch, scores = think(key_think, state.model, state.memory)
        # Where no candidate is new, these are taken.
        keys = jax.random.split(key_sample, SPARE * batch_size)
        arch = jnp.concatenate([arch, jax.vmap(space.sample)(keys)])
        spare = jnp.full((batch_size, len(keys)), LEAST, scores.dtype)
        scores = jnp.concatenate([jnp.fmax(scores, LEAST), spare], 1)
        place, found = choose(space, state.memory, arch, scores)
        found = jnp.where(found > LEAST, found, 0.0)
        return ModelBasedState(state.memory, model, arch[place], found)

    def tell(
        key: Array,
        step: Array,
        state: ModelBasedState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> ModelBasedState:
        place = step * batch_size + jnp.arange(batch_size)
        told = proposal.arch, feedback.fitness
        state = state._replace(memory=remember(space, state.memory, place, *told))
        is_last = (step + 1) * batch_size >= num_initial
        key = jax.random.fold_in(key, batch_size)  # none of those that `ask` splits
        return lax.cond(is_last, plan, lambda _, state: state, key, state)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))
