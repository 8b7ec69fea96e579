"""What strategies with a surrogate remember, and how they choose the next.

No strategy itself. Architectures that the space's `canonical` calls equal are one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, History, SearchSpace


class Memory(NamedTuple):
    """The last N architectures that were told."""

    history: History
    key: Array  # uint32[N, W], canonical
    asked: Array  # bool[N], whether it was evaluated; it may have failed


def canonical_keys(space: SearchSpace, arch: Array) -> Array:
    """Of int32[M, D]: uint32[M, W]."""
    return jax.vmap(lambda one: jnp.atleast_1d(space.canonical(one)))(arch)


def equal_keys(one: Array, other: Array) -> Array:
    """Which keys uint32[M, W] equal which of uint32[N, W]: bool[M, N]."""
    return jnp.all(one[:, None] == other[None], 2)


def empty(space: SearchSpace, capacity: int) -> Memory:
    """Remembers nothing yet."""
    arch = jnp.zeros((capacity, len(space.num_choices)), jnp.int32)
    keys = jnp.zeros_like(canonical_keys(space, arch))
    nobody = jnp.zeros(capacity, bool)
    return Memory(History(arch, jnp.zeros(capacity), nobody), keys, nobody)


def remember(
    space: SearchSpace, memory: Memory, place: Array, arch: Array, fitness: Array
) -> Memory:
    """Puts int32[B, D] and float32[B] at the places int32[B], modulo the capacity.

    A place below 0 is none: padding.
    """
    capacity = len(memory.asked)
    place = jnp.where(place < 0, capacity, place % capacity)  # the former is dropped
    known = jnp.isfinite(fitness)
    told = Memory(
        History(arch, jnp.where(known, fitness, 0.0), known),
        canonical_keys(space, arch),
        jnp.ones_like(known),
    )
    return jax.tree.map(lambda old, new: old.at[place].set(new), memory, told)


def best_fitness(memory: Memory) -> Array:
    """The highest fitness known; 0 where none is."""
    known = memory.history.known
    highest = jnp.max(jnp.where(known, memory.history.fitness, -jnp.inf))
    return jnp.where(known.any(), highest, 0.0)


def best_known(memory: Memory, number: int) -> tuple[Array, Array]:
    """Places int32[number] of the best, best first, and how many of them there are."""
    fitness = jnp.where(memory.history.known, memory.history.fitness, -jnp.inf)
    highest, places = lax.top_k(fitness, number)
    return places, jnp.isfinite(highest).sum()


def was_asked(memory: Memory, keys: Array) -> Array:
    """Which of uint32[M, W] are keys of what is remembered: bool[M]."""

    return jnp.any(equal_keys(keys, memory.key) & memory.asked[None], 1)


def choose(
    space: SearchSpace, memory: Memory, arch: Array, scores: Array
) -> tuple[Array, Array]:
    """Takes the best for each of B scores, all different and none asked before.

    Args:
      space: of the architectures.
      memory: what was asked.
      arch: int32[M, D].
      scores: float32[B, M], higher is better; NaN is the least.

    Returns:
      The places of those taken, int32[B], and their scores float32[B]: -inf where none
      is left, and the place is then any.
    """
    keys = canonical_keys(space, arch)

    def take(taken, row):
        free = jnp.where(taken | jnp.isnan(row), -jnp.inf, row)
        place = jnp.argmax(free)
        return taken | equal_keys(keys, keys[place][None])[:, 0], (place, free[place])

    return lax.scan(take, was_asked(memory, keys), scores)[1]
