"""Q-learning over the sequence of decisions, with experience replay.

After MetaQNN: Baker, Gupta, Naik and Raskar 2017, arXiv:1611.02167. Choices are
epsilon-greedy, random at first and greedier by stages.
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

EPSILONS = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], np.float32)
LENGTHS = np.array([1500, 100, 100, 100, 150, 150, 150, 150, 150, 150])
"""The paper's schedule: epsilons, and how many of its 2,700 queries each lasts."""


class QLearningState(NamedTuple):
    """Q-values, and a ring of what succeeded to replay; C its capacity."""

    values: Array  # float32[D, K + 1, K], by decision, previous choice + 1, choice
    arch: Array  # int32[C, D], as drawn
    fitness: Array  # float32[C]; 0: nothing yet
    stored: Array  # int32[], how many have succeeded


def q_learning(
    space: SearchSpace,
    *,
    num_queries: int | Array = 150,
    learning_rate: float | Array = 0.1,
    discount: float | Array = 1.0,
    replay_size: int = 128,
    capacity: int = 1000,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy of one replay a step.

    The state of a decision is the choice before it; the reward comes after the last.
    Rewards are fitness in standard deviations from the mean of what is remembered, so
    that Q-values start, at 0, from the average one. A sample that the space does not
    allow is repaired by `space.discretize`, and credit goes to the sample as drawn. A
    failure is neither remembered nor replayed after.

    Args:
      space: what is searched.
      num_queries: over which epsilon falls from 1 to 0.1, in the paper's proportions.
      learning_rate: of a Q-value, each time that an architecture replays it. The
        paper's 0.01, for 2,700 queries, is hardly better than random search at 150.
      discount: of the value of the next state.
      replay_size: R, architectures replayed a step, drawn with replacement.
      capacity: C, the most that are remembered; the oldest are forgotten.
      batch_size: B, architectures a step, C at most.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number or size is below 1; the rate or discount not from 0 to 1.
    """
    expect(1, num_queries=num_queries, replay_size=replay_size)
    expect(1, capacity=capacity, budget=budget)
    expect(1, capacity, batch_size=batch_size)
    expect(0, 1, learning_rate=learning_rate, discount=discount)
    num_decisions, most = len(space.num_choices), max(space.num_choices)
    is_choice = np.arange(most)[None] < np.array(space.num_choices)[:, None]

    def init(key: Array) -> QLearningState:
        del key
        return QLearningState(
            jnp.zeros((num_decisions, most + 1, most)),
            jnp.zeros((capacity, num_decisions), jnp.int32),
            jnp.zeros(capacity),
            jnp.int32(0),
        )

    def draw(key: Array, step: Array, values: Array) -> Array:
        """int32[B, D], with the epsilon of the queries that were asked before."""
        noise = jax.random.uniform(key, (batch_size, num_decisions, most + 1))
        epsilon = epsilon_at(step * batch_size, num_queries)
        return jax.vmap(walk, (None, None, 0, None))(epsilon, values, noise, is_choice)

    def ask(key: Array, step: Array, state: QLearningState) -> Proposal:
        archs = draw(jax.random.split(key)[0], step, state.values)
        encoded = jax.vmap(one_hot, (0, None))(archs, space.num_choices)
        return propose(jax.vmap(space.discretize)(encoded), budget)

    def tell(
        key: Array,
        step: Array,
        state: QLearningState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> QLearningState:
        del proposal
        key_draw, key_replay = jax.random.split(key)
        ok = feedback.fitness > -jnp.inf
        place = (state.stored + jnp.cumsum(ok) - 1) % capacity
        place = jnp.where(ok, place, capacity)  # capacity: nowhere
        arch = draw(key_draw, step, state.values)
        archs = state.arch.at[place].set(arch, mode="drop")
        all_fitness = state.fitness.at[place].set(feedback.fitness, mode="drop")
        stored = state.stored + ok.sum()
        size = jnp.minimum(stored, capacity)
        drawn = jax.random.randint(key_replay, (replay_size,), 0, jnp.maximum(size, 1))
        reward = rewards(all_fitness, size)[drawn]
        values = replay(
            state.values, archs[drawn], reward, is_choice, learning_rate, discount
        )
        values = jnp.where(ok.any(), values, state.values)
        return QLearningState(values, archs, all_fitness, stored)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


def walk(
    epsilon: Array, values: Array, noise: Array, is_choice: Array | np.ndarray
) -> Array:
    """Chooses along the decisions, greedily but for the part epsilon; int32[D].

    Args:
      epsilon: float32[].
      values: float32[D, K + 1, K].
      noise: float32[D, K + 1], uniform: for each choice, and last for exploring.
      is_choice: bool[D, K], which choices exist.
    """

    def decide(state, xs):
        values, noise, is_choice = xs
        value = jnp.where(is_choice, values[state], -jnp.inf)
        explores = noise[-1] < epsilon
        allowed = jnp.where(explores, is_choice, value == value.max())
        choice = jnp.argmax(jnp.where(allowed, noise[:-1], -1.0))
        choice = choice.astype(jnp.int32)
        return choice + 1, choice

    xs = values, noise, jnp.asarray(is_choice)
    return jax.lax.scan(decide, jnp.int32(0), xs)[1]


def epsilon_at(step: Array, num_queries: int | Array) -> Array:
    """How likely a choice is to be random at a step; float32[]."""
    ends = np.cumsum(LENGTHS)[:-1].astype(np.float32)
    progress = jnp.asarray(step, jnp.float32) * np.float32(LENGTHS.sum())
    stage = jnp.sum(progress >= ends * num_queries)
    return jnp.array(EPSILONS)[stage]


def rewards(fitness: Array, size: Array) -> Array:
    """Standardises float32[C] by its first int32[] entries; 0 where all are equal."""
    used = jnp.arange(len(fitness)) < size
    count = jnp.maximum(size, 1)
    mean = jnp.where(used, fitness, 0.0).sum() / count
    apart = jnp.where(used, fitness - mean, 0.0)
    variance = jnp.sum(apart**2) / count
    # Rounding makes a mean of equals another number: so no test of the variance.
    low = jnp.min(jnp.where(used, fitness, jnp.inf))
    differ = (jnp.max(jnp.where(used, fitness, -jnp.inf)) > low) & (variance > 0)
    return jnp.where(differ, apart / jnp.sqrt(jnp.where(differ, variance, 1.0)), 0.0)


def replay(
    values: Array,
    archs: Array,
    reward: Array,
    is_choice: Array | np.ndarray,
    learning_rate: float | Array,
    discount: float | Array = 1.0,
) -> Array:
    """Returns Q-values after the updates of int32[R, D] with rewards float32[R].

    The last decision is updated first, by the reward, and each one before it by the
    best value of the state that it led to. All R architectures take a decision
    together: n of them that meet in a Q-value move it as n updates would towards the
    mean of their targets.

    Args:
      values: float32[D, K + 1, K].
      archs: what is replayed.
      reward: of each.
      is_choice: bool[D, K], which choices exist.
      learning_rate: of one update.
      discount: of the value of the next state.
    """
    states = jnp.pad(archs[:, :-1] + 1, ((0, 0), (1, 0)))

    def update(target, xs):
        values, state, choice, is_choice = xs
        hits = jnp.zeros_like(values).at[state, choice].add(1.0)
        total = jnp.zeros_like(values).at[state, choice].add(target)
        mean = total / jnp.maximum(hits, 1.0)
        values = values + (1 - (1 - learning_rate) ** hits) * (mean - values)
        best = jnp.where(is_choice[None], values, -jnp.inf).max(-1)
        return discount * best[state], values

    xs = values, states.T, archs.T, jnp.asarray(is_choice)
    return jax.lax.scan(update, reward, xs, reverse=True)[1]
