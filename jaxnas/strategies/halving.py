"""Brackets of successive halving: a schedule that is known before the search begins.

A bracket evaluates some architectures at a small budget and the best of them at the
next, a rung up, until few are left. Shapes are fixed, so a step is one evaluation,
and which rung and whose turn it is follows from the number of the step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Feedback, InputError, Proposal, SearchSpace, Strategy
from jaxnas.search import incumbent
from jaxnas.strategies.batches import batched


class Schedule(NamedTuple):
    """One round of brackets, L steps; it is repeated for as long as a search lasts."""

    budget: Array  # int32[L]
    place: Array  # int32[L], in the rung; its size: padding
    previous: Array  # int32[L], size of the rung below; 0: a random architecture
    is_last: Array  # bool[L], whether the rung ends here


class HalvingState(NamedTuple):
    """The rung below and the present one; the place in a rung is a network's slot."""

    arch: Array  # int32[2, P, D]
    fitness: Array  # float32[2, P]; -inf: failed, or nobody
    slot: Array  # int32[2, P]


def check_budgets(budgets: Sequence[int]) -> tuple[int, ...]:
    """Returns budgets as integers.

    Raises:
      InputError: there are less than two, or they do not ascend from 1 or more.
    """
    found = tuple(int(budget) for budget in budgets)
    if len(found) < 2 or found[0] < 1 or sorted(set(found)) != list(found):
        raise InputError(
            f"expected two budgets or more that ascend from 1, but got {list(found)}: "
            "give those that the evaluator has, in epochs"
        )
    return found


def make_schedule(
    brackets: Sequence[Sequence[tuple[int, int]]], batch_size: int = 1
) -> Schedule:
    """Makes a schedule of brackets: of rungs (budget, how many), the lowest first.

    Rungs are filled up with padding (budget 0) to multiples of the batch size: what
    is asked for together is then of one rung.
    """
    rows = []
    for bracket in brackets:
        below = 0
        for budget, size in bracket:
            padding = -size % batch_size
            rung = [(budget, i, below) for i in range(size)]
            rung += [(0, size, below)] * padding
            rows += [(*row, i == len(rung) - 1) for i, row in enumerate(rung)]
            below = size
    *numbers, is_last = (np.array(column) for column in zip(*rows, strict=True))
    return Schedule(*(x.astype(np.int32) for x in numbers), is_last)  # type: ignore


def follow(space: SearchSpace, schedule: Schedule, batch_size: int = 1) -> Strategy:
    """Makes the strategy that follows a schedule, batch_size proposals a step.

    An architecture's slot is its place in the first rung, and stays that when it is
    promoted, so an evaluator that trains can go on.
    """
    capacity = int(schedule.place[schedule.budget > 0].max()) + 1

    def row(step: Array) -> Schedule:
        at = step % len(schedule.budget)
        return jax.tree.map(lambda column: jnp.asarray(column)[at], schedule)

    def init(key: Array) -> HalvingState:
        del key
        return HalvingState(
            jnp.zeros((2, capacity, len(space.num_choices)), jnp.int32),
            jnp.full((2, capacity), -jnp.inf),
            jnp.full((2, capacity), -1, jnp.int32),
        )

    def promoted(state: HalvingState, place: Array) -> Array:
        """The index of the best below that has not been promoted yet."""
        order = jnp.argsort(-state.fitness[0], stable=True)
        return order[place]

    def ask(key: Array, step: Array, state: HalvingState) -> Proposal:
        now = row(step)
        best = promoted(state, now.place)
        begins = now.previous == 0
        arch = jnp.where(begins, space.sample(key), state.arch[0, best])
        slot = jnp.where(begins, now.place, state.slot[0, best])
        # What has failed is not promoted: the step is padding.
        lives = begins | (state.fitness[0, best] > -jnp.inf)
        budget = jnp.where(lives, now.budget, 0)
        return Proposal(arch[None], budget[None], slot[None])

    def tell(
        key: Array,
        step: Array,
        state: HalvingState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> HalvingState:
        del key
        now = row(step)
        place = jnp.where(now.budget > 0, now.place, capacity)  # capacity: nowhere
        told = HalvingState(
            state.arch.at[1, place].set(proposal.arch[0], mode="drop"),
            state.fitness.at[1, place].set(feedback.fitness[0], mode="drop"),
            state.slot.at[1, place].set(proposal.slot[0], mode="drop"),
        )
        cleared = told.fitness.at[0].set(told.fitness[1]).at[1].set(-jnp.inf)
        risen = HalvingState(
            told.arch.at[0].set(told.arch[1]),
            cleared,
            told.slot.at[0].set(told.slot[1]),
        )
        return jax.tree.map(lambda a, b: jnp.where(now.is_last, a, b), risen, told)

    one = Strategy(init, ask, tell, lambda state, log: incumbent(log))
    return batched(one, batch_size)
