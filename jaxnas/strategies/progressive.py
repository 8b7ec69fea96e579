"""Progressive search: from architectures of few operations to those of more.

PNAS: Liu, Zoph, Neumann, Shlens, Hua, Li, Fei-Fei, Yuille, Huang and Murphy 2018,
arXiv:1712.00559. Each level adds an operation, in all ways, to the architectures of the
last, and evaluates those that a predictor, fitted to all levels so far, finds best.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import (
    FULL,
    Array,
    Feedback,
    InputError,
    Proposal,
    PyTree,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.checks import expect
from jaxnas.search import incumbent
from jaxnas.strategies.memory import Memory, choose, empty, remember


class ProgressiveState(NamedTuple):
    """What was told, and the beam of the level at hand."""

    memory: Memory
    model: PyTree  # of the surrogate
    arch: Array  # int32[B, D], asked next
    score: Array  # float32[B], as predicted; -inf: nobody


def progressive(
    space: SearchSpace,
    surrogate: Surrogate,
    *,
    beam_size: int = 32,
    budget: int = FULL,
) -> Strategy:
    """Makes the strategy; its proposals are the beam of a level.

    Operations are decisions that differ from `space.empty`; where that is made of skip
    connections, none is an operation too. The first step asks the empty architecture
    and random ones of one operation, each later step those of one operation more, or
    of as few more as an edit can add. Where there is none with more, steps are padding.

    Args:
      space: what is searched; it must know an empty architecture.
      surrogate: fitted before each level to all before it; failures are left out.
      beam_size: B, architectures of a level.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number is below 1, or the space has no empty architecture.
    """
    expect(1, beam_size=beam_size, budget=budget)
    if space.empty is None:
        raise InputError(
            f"expected a space with an empty architecture, but {space.name} has none: "
            "choose another, or say what leaves a decision out (SearchSpace.empty)"
        )
    nothing = jnp.array(space.empty, jnp.int32)
    num_levels = len(space.empty) + 1

    def size(arch: Array) -> Array:
        return jnp.sum(arch != nothing)

    def grown(arch: Array) -> tuple[Array, Array]:
        """What has an operation more: int32[N, D], and which it is, bool[N]."""
        near, exist = space.neighbours(arch)
        return near, exist & (jax.vmap(size)(near) > size(arch))

    def beam(memory: Memory, arch: Array, scores: Array) -> tuple[Array, Array]:
        rows = jnp.broadcast_to(scores[None], (beam_size, len(scores)))
        place, found = choose(space, memory, arch, rows)
        return arch[place], found

    def init(key: Array) -> ProgressiveState:
        near, exist = grown(nothing)
        arch = jnp.concatenate([nothing[None], near])
        drawn = jnp.where(exist, jax.random.uniform(key, exist.shape), -jnp.inf)
        scores = jnp.concatenate([jnp.ones(1), drawn])  # the empty one first
        capacity = beam_size * num_levels
        memory = empty(space, capacity)
        model = surrogate.init(key, memory.history)
        return ProgressiveState(memory, model, *beam(memory, arch, scores))

    def ask(key: Array, step: Array, state: ProgressiveState) -> Proposal:
        del key, step
        used = state.score > -jnp.inf
        return Proposal(state.arch, jnp.where(used, budget, 0), jnp.full(beam_size, -1))

    def grow(key: Array, state: ProgressiveState) -> ProgressiveState:
        memory = state.memory
        model = surrogate.fit(key, state.model, memory.history)
        # What the empty one grows to is of the first level, or alone in the second.
        has_some = (jax.vmap(size)(state.arch) > 0) | (beam_size == 1)
        parents = (state.score > -jnp.inf) & has_some
        arch, exist = jax.vmap(grown)(state.arch)
        arch, exist = arch.reshape(-1, arch.shape[-1]), exist & parents[:, None]
        mean, _ = surrogate.predict(model, arch)
        scores = jnp.where(exist.ravel(), mean, -jnp.inf)
        return ProgressiveState(memory, model, *beam(memory, arch, scores))

    def tell(
        key: Array,
        step: Array,
        state: ProgressiveState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> ProgressiveState:
        place = jnp.where(
            proposal.budget > 0, step * beam_size + jnp.arange(beam_size), -1
        )
        told = proposal.arch, feedback.fitness
        state = state._replace(memory=remember(space, state.memory, place, *told))

        def end(key: Array, state: ProgressiveState) -> ProgressiveState:
            return state._replace(score=jnp.full_like(state.score, -jnp.inf))

        # Each level has an operation more. The step is the same for all seeds, so that
        # this stays a branch under vmap.
        return lax.cond(step + 1 < num_levels, grow, end, key, state)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))
