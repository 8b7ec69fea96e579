"""Search in the latent space of a generator that encodes architectures.

After Luo et al. 2018, arXiv:1808.07233 (gradients), arch2vec (Yan et al. 2020,
arXiv:2006.06936: Bayesian optimisation) and Tripp, Daxberger and Hernández-Lobato 2020,
arXiv:2006.09191 (weighted retraining on what was told).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import (
    FULL,
    Array,
    Generator,
    History,
    InputError,
    PyTree,
    SearchSpace,
    Strategy,
    Surrogate,
)
from jaxnas.checks import expect, expect_one_of
from jaxnas.draws import below
from jaxnas.generation import draw_choices, expect_of, repair
from jaxnas.strategies.acquisitions import ACQUISITIONS
from jaxnas.strategies.memory import Memory, best_fitness, best_known
from jaxnas.strategies.model_based import Thought, model_based

MOVES = ("prior", "gradient", "bayesian")


class LatentSearchState(NamedTuple):
    """What encodes and decodes, and what is thought of latents."""

    generator: PyTree
    surrogate: PyTree  # () without


def latent_search(
    space: SearchSpace,
    generator: Generator,
    surrogate: Surrogate | None = None,
    *,
    moves: str | None = None,
    acquisition: str = "independent_thompson_sampling",
    num_initial: int = 10,
    num_candidates: int = 300,
    num_parents: int = 10,
    num_ascents: int = 10,
    ascent: float = 0.1,
    batch_size: int = 5,
    num_queries: int = 150,
    budget: int = FULL,
) -> Strategy:
    """Makes the strategy.

    Moves: `prior` draws latents from the prior, and those are evaluated of which the
    generator's predictor thinks best. `gradient` ascends the predictor, from half of
    the candidates: draws of the prior, and what lies around the best so far. `bayesian`
    lets an acquisition of the surrogate choose, out of the prior and around the best so
    far. Every candidate is judged where it is encoded itself.

    Args:
      space: what is searched.
      generator: with `encode` and `predict`, refitted after each step.
      surrogate: of latents, for `bayesian`: its architectures are float32[L], as those
        of `gp(space, encoding="latent")`.
      moves: of `MOVES`; by default `bayesian` with a surrogate, else `gradient`.
      acquisition: of `ACQUISITIONS`, for `bayesian`.
      num_initial: random architectures before, in whole batches.
      num_candidates: M, of a step.
      num_parents: how many of the best there are candidates around.
      num_ascents: steps of `gradient`.
      ascent: length of each, as a part of how long a draw of the prior is.
      batch_size: B, architectures a step.
      num_queries: the last so many evaluations are remembered.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a number is below its least, a name unknown, the generator has no
        encoder or predictor or is of another space, or `bayesian` has no surrogate.
    """
    expect(2, num_candidates=num_candidates)
    expect(1, num_parents=num_parents)
    expect(0, num_ascents=num_ascents, ascent=ascent)
    if moves is None:
        moves = "gradient" if surrogate is None else "bayesian"
    expect_one_of("moves", moves, MOVES)
    expect_one_of("an acquisition", acquisition, ACQUISITIONS)
    encode, predict = generator.encode, generator.predict
    if encode is None or predict is None:
        raise InputError(
            "expected a generator with an encoder and a predictor, but got one "
            "without: take an autoencoder, arch_vae"
        )
    if moves == "bayesian" and surrogate is None:
        raise InputError(
            "expected a surrogate of latents for bayesian moves, but got none: give "
            'gp(space, encoding="latent"), or take other moves'
        )
    expect_of(space, generator)
    if moves != "bayesian" and surrogate is not None:
        raise InputError(
            f"expected no surrogate for the moves {moves}, which ask the generator's "
            "predictor, but got one: leave it out, or take bayesian"
        )
    num_parents = min(num_parents, num_queries)
    half = num_candidates // 2
    size = generator.num_latent
    acquire = ACQUISITIONS[acquisition]

    def latents(state: PyTree, memory: Memory) -> History:
        return memory.history._replace(arch=encode(state, memory.history.arch))

    def init_model(key: Array, memory: Memory) -> LatentSearchState:
        key_generator, key_surrogate = jax.random.split(key)
        state = generator.init(key_generator, memory.history)
        if surrogate is None:
            return LatentSearchState(state, ())
        history = latents(state, memory)
        return LatentSearchState(state, surrogate.init(key_surrogate, history))

    def around(key: Array, told: History, memory: Memory) -> Array:
        """Latents near those of the best, or between two of them: float32[half, L]."""
        key_parent, key_noise, key_scale = jax.random.split(key, 3)
        parents, count = best_known(memory, num_parents)
        drawn = below(key_parent, (2, half), jnp.maximum(count, 1))
        one, other = told.arch[parents[drawn]]
        noise = jax.random.normal(key_noise, (half, size))
        # How far a neighbour is, nobody knows: so all distances up to the prior's.
        scale = jax.random.uniform(key_scale, (half, 1))
        is_between = jnp.arange(half)[:, None] % 3 == 0
        return jnp.where(is_between, one + scale * (other - one), one + scale * noise)

    def ascend(state: PyTree, z: Array) -> Array:
        slope = jax.grad(lambda z: predict(state, z).sum())

        def one(_, z):
            by = slope(z)
            length = jnp.linalg.norm(by, axis=-1, keepdims=True)
            return z + ascent * jnp.sqrt(size) * by / jnp.maximum(length, 1e-12)

        return lax.fori_loop(0, num_ascents, one, z)

    def think(key: Array, model: LatentSearchState, memory: Memory) -> Thought:
        keys = jax.random.split(key, 6)
        state = generator.fit(keys[0], model.generator, memory.history)
        told = latents(state, memory)
        z = jax.random.normal(keys[1], (num_candidates, size))
        if moves != "prior":
            z = z.at[:half].set(around(keys[2], told, memory))
        if moves == "gradient":
            is_moved = jnp.arange(num_candidates)[:, None] % 2 == 0
            z = jnp.where(is_moved, ascend(state, z), z)
        arch = repair(space, draw_choices(keys[3], space, generator, state, z))
        places = encode(state, arch)
        if surrogate is None:
            score = predict(state, places)
            scores = jnp.broadcast_to(score[None], (batch_size, num_candidates))
            return Thought(LatentSearchState(state, ()), arch, scores)
        thought = surrogate.fit(keys[4], model.surrogate, told)
        best = best_fitness(memory)
        scores = jax.vmap(lambda key: acquire(key, surrogate, thought, places, best))(
            jax.random.split(keys[5], batch_size)
        )
        return Thought(LatentSearchState(state, thought), arch, scores)

    return model_based(
        space,
        init_model,
        think,
        num_initial=num_initial,
        batch_size=batch_size,
        num_queries=num_queries,
        budget=budget,
    )
