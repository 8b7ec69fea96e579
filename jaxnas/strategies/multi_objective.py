"""The loop of evolution by several objectives; who survives is an argument.

No strategy itself: what `nsga2` and `sms_emoa` are made of. A step breeds B children,
and of the population and them together the best by `survive` live on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import (
    Array,
    Feedback,
    InputError,
    Log,
    Proposal,
    SearchSpace,
    Strategy,
)
from jaxnas.checks import expect
from jaxnas.draws import below
from jaxnas.pareto import pareto_front, usable
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose
from jaxnas.strategies.memory import canonical_keys, equal_keys

Survive = Callable[[Array, Array, int], Array]
"""`survive(objectives, known, size)`: the numbers of those who live on, int32[size].

Of objectives float32[N, M], which are finite where known, bool[N]. The best come first
where parents are to be the better of some, and in any case the known before others.
"""


class MultiObjectiveState(NamedTuple):
    """The population, in the order of `Survive`, and what was evaluated of late."""

    arch: Array  # int32[P, D]
    objectives: Array  # float32[P, M]; -inf: nobody
    seen: Array  # uint32[R, W], keys from the latest on
    num_seen: Array  # int32[], how many of them there are


def multi_objective(
    space: SearchSpace,
    survive: Survive,
    *,
    population_size: int,
    num_objectives: int,
    tournament_size: int,
    crossover_rate: float | Array,
    mutation_rate: float | Array,
    num_tries: int,
    memory: int,
    batch_size: int,
    budget: int,
) -> Strategy:
    """Makes a strategy that keeps the best by `Feedback.objectives`, float32[B, M].

    A failure, and what has an objective that is not finite, never enters. Nor does an
    architecture that the population has already, by `space.canonical`. That, and what
    was evaluated of late, is proposed only where no child and no random one is another.

    Args:
      space: what is searched.
      survive: who lives on.
      population_size: P. The first so many are random.
      num_objectives: M.
      tournament_size: how many are drawn, with replacement, of whom the first in the
        population is a parent.
      crossover_rate: probability that a child has two parents.
      mutation_rate: probability that a child is mutated by one edit.
      num_tries: children bred for each that is asked for, the first new ones.
      memory: R, how many evaluations are remembered, those that failed among them.
      batch_size: B, children a step.
      budget: of each evaluation, in epochs.

    Raises:
      InputError: a size is below 1, a rate no probability; while `tell` is traced,
        where there are no objectives or not so many.
    """
    expect(
        1,
        population_size=population_size,
        num_objectives=num_objectives,
        num_tries=num_tries,
        batch_size=batch_size,
        budget=budget,
    )
    expect(0, 1, crossover_rate=crossover_rate, mutation_rate=mutation_rate)
    expect(0, memory=memory)

    def init(key: Array) -> MultiObjectiveState:
        del key
        arch = jnp.zeros((population_size, len(space.num_choices)), jnp.int32)
        nobody = jnp.full((population_size, num_objectives), -jnp.inf, jnp.float32)
        words = jax.eval_shape(space.canonical, arch[0]).size
        seen = jnp.zeros((memory, words), jnp.uint32)
        return MultiObjectiveState(arch, nobody, seen, jnp.int32(0))

    def breed(key: Array, state: MultiObjectiveState) -> Array:
        keys = jax.random.split(key, 5)
        living = jnp.sum(usable(state.objectives))
        drawn = below(keys[0], (2, tournament_size), jnp.maximum(living, 1))
        mother, father = state.arch[drawn.min(1)]
        does_cross, does_mutate = jax.random.uniform(keys[1], (2,)) < jnp.stack(
            [jnp.float32(crossover_rate), jnp.float32(mutation_rate)]
        )
        crossed = space.crossover(keys[2], mother, father)
        child = jnp.where(does_cross, crossed, mother)
        child = jnp.where(does_mutate, space.mutate(keys[3], child), child)
        # All of the first ones may have failed.
        return jnp.where(living > 0, child, space.sample(keys[4]))

    def ask(key: Array, step: Array, state: MultiObjectiveState) -> Proposal:
        number = batch_size * num_tries
        keys, others = (
            jax.random.split(part, number) for part in jax.random.split(key)
        )
        random = jax.vmap(space.sample)(others)
        # The step is the same for all seeds, so that this stays a branch under vmap.
        archs = lax.cond(
            step * batch_size < population_size,
            lambda *_: random,
            jax.vmap(breed, (0, None)),
            keys,
            state,
        )
        archs = jnp.concatenate([archs, random])  # where no child is new
        new = _is_new(space, archs, state)
        first = jnp.argsort(~new, stable=True)[:batch_size]
        return propose(archs[first], budget)

    def tell(
        key: Array,
        step: Array,
        state: MultiObjectiveState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> MultiObjectiveState:
        del key, step
        objectives = _expect_objectives(feedback, num_objectives)
        keys = canonical_keys(space, proposal.arch)
        enters = (feedback.fitness > -jnp.inf) & ~_comes_before(keys)
        enters &= ~_lives(space, proposal.arch, state)
        objectives = jnp.where(enters[:, None], objectives, -jnp.inf)
        archs = jnp.concatenate([state.arch, proposal.arch])
        objectives = jnp.concatenate([state.objectives, objectives])
        kept = survive(objectives, usable(objectives), population_size)
        return MultiObjectiveState(
            archs[kept],
            objectives[kept],
            jnp.concatenate([keys, state.seen])[:memory],
            jnp.minimum(state.num_seen + len(keys), memory),
        )

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


def front(log: Log) -> Array:
    """Which evaluations of a log are Pareto-optimal among all of it: bool[T, B].

    Failures and padding are not; of evaluations with equal objectives all are.

    Args:
      log: of one search whose evaluator gives objectives; for seeds
        `vmap(front, 1, 1)(log)`.

    Raises:
      InputError: there are no objectives.
    """
    if log.feedback.objectives is None:
        raise InputError(
            "expected a log with objectives, but its evaluator gave none: wrap it in "
            "evaluators.objectives.with_objectives"
        )
    fitness = log.feedback.fitness
    is_point = (log.proposal.budget > 0) & (fitness > -jnp.inf)
    points = log.feedback.objectives.reshape(fitness.size, -1)
    return pareto_front(points, is_point.reshape(-1)).reshape(fitness.shape)


def _lives(space: SearchSpace, archs: Array, state: MultiObjectiveState) -> Array:
    """Whether the population has each of int32[N, D], or one like it: bool[N]."""
    keys, living = (canonical_keys(space, x) for x in (archs, state.arch))
    return jnp.any(equal_keys(keys, living) & usable(state.objectives)[None], 1)


def _is_new(space: SearchSpace, archs: Array, state: MultiObjectiveState) -> Array:
    """Whether each of int32[N, D] neither lives nor was seen, here or before."""
    keys = canonical_keys(space, archs)
    remembered = jnp.arange(len(state.seen)) < state.num_seen
    seen = jnp.any(equal_keys(keys, state.seen) & remembered[None], 1)
    return ~(seen | _comes_before(keys) | _lives(space, archs, state))


def _comes_before(keys: Array) -> Array:
    """Whether each of uint32[N, W] is among those before it: bool[N]."""
    return jnp.tril(equal_keys(keys, keys), -1).any(1)


def _expect_objectives(feedback: Feedback, number: int) -> Array:
    objectives = feedback.objectives
    if objectives is None or objectives.shape[1:] != (number,):
        came = "none" if objectives is None else str(list(objectives.shape))
        raise InputError(
            f"expected objectives float32[B, {number}] of the evaluator, but got "
            f"{came}: wrap it in evaluators.objectives.with_objectives, or change "
            "num_objectives"
        )
    return objectives
