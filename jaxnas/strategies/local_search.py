"""Local search: hill climbing over one-edit neighbours, with restarts.

White, Nolen and Savani 2021, arXiv:2005.02960, here in the variant that evaluates the
neighbours in random order, moves to the first that is better, and begins anew where
none is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import FULL, Array, Feedback, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose


class LocalSearchState(NamedTuple):
    """Where the climb is, and which of its neighbours are still to be seen."""

    arch: Array  # int32[D]
    fitness: Array  # float32[]; -inf before the first of a climb is told
    order: Array  # float32[N], neighbours are seen from the smallest on; inf: not
    climbing: Array  # bool[], else the next proposal begins a climb


def local_search(space: SearchSpace, *, budget: int = FULL) -> Strategy:
    """Makes a strategy of one proposal a step.

    Args:
      space: what is searched; its neighbourhood is what a climb sees.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: budget is below 1.
    """
    expect(1, budget=budget)

    def shuffle(key: Array, arch: Array) -> Array:
        _, exist = space.neighbours(arch)
        return jnp.where(exist, jax.random.uniform(key, exist.shape), jnp.inf)

    def init(key: Array) -> LocalSearchState:
        arch = space.sample(key)
        unseen = jnp.full_like(shuffle(key, arch), jnp.inf)
        return LocalSearchState(arch, jnp.float32(-jnp.inf), unseen, jnp.array(False))

    def ask(key: Array, step: Array, state: LocalSearchState) -> Proposal:
        del step
        near, _ = space.neighbours(state.arch)
        begin = jnp.where(state.climbing, near[state.order.argmin()], space.sample(key))
        return propose(begin, budget)

    def tell(
        key: Array,
        step: Array,
        state: LocalSearchState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> LocalSearchState:
        del step
        arch, fitness = proposal.arch[0], feedback.fitness[0]
        # A climb that begins with a failure begins again.
        better = fitness > jnp.where(state.climbing, state.fitness, -jnp.inf)
        seen = state.order.at[state.order.argmin()].set(jnp.inf)
        order = jnp.where(better, shuffle(jax.random.fold_in(key, 1), arch), seen)
        return LocalSearchState(
            jnp.where(better, arch, state.arch),
            jnp.where(better, fitness, state.fitness),
            order,
            (better | state.climbing) & jnp.isfinite(order).any(),
        )

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))
