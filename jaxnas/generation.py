"""What generators of architectures draw, and how good it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array, Generator, InputError, PyTree, SearchSpace
from jaxnas.checks import expect
from jaxnas.encoding import is_valid, one_hot, strongest


def expect_of(space: SearchSpace, generator: Generator) -> None:
    """Refuses a generator of another space.

    Raises:
      InputError: it draws other decisions.
    """
    if generator.num_choices != space.num_choices:
        raise InputError(
            f"expected a generator of space {space.name} {list(space.num_choices)}, "
            f"but got one of {list(generator.num_choices)}: make one of this space"
        )


def draw_choices(
    key: Array, space: SearchSpace, generator: Generator, state: PyTree, z: Array
) -> Array:
    """Draws a choice for each decision, each by its logits: int32[M, D], as they come.

    They may be no architectures of the space; `repair` makes those of them.

    Args:
      key: PRNG key.
      space: of the decisions.
      generator: whose logits they are.
      state: of the generator.
      z: float32[M, L].
    """
    logits = generator.decode(state, z)
    noise = jax.random.gumbel(key, logits.shape)
    return strongest(logits + noise, space.num_choices)


def repair(space: SearchSpace, choices: Array) -> Array:
    """The architectures int32[M, D] that choices int32[M, D] stand for."""
    return jax.vmap(lambda one: space.discretize(one_hot(one, space.num_choices)))(
        choices
    )


def draw_architectures(
    key: Array, space: SearchSpace, generator: Generator, state: PyTree, num: int
) -> Array:
    """Draws latents from the prior, and architectures of them: int32[num, D]."""
    key_z, key = jax.random.split(key)
    z = jax.random.normal(key_z, (num, generator.num_latent))
    return repair(space, draw_choices(key, space, generator, state, z))


class Quality(NamedTuple):
    """How good samples are, as fractions in [0, 1]; NaN where there is nothing to say.

    What the literature since D-VAE counts (Zhang et al. 2019, arXiv:1904.11088).
    Architectures are the same if the space's `canonical` says so, here as in all
    searches: isomorphic ones are. In a small space many samples are the same whoever
    draws them, so hold uniqueness against that of as many draws of the space. An
    architecture is reconstructed by the mean of its latent.
    """

    validity: float  # of the samples as they come, not repaired
    uniqueness: float  # different ones of the valid; 1: all are different
    novelty: float  # of the different valid ones, those that are not known
    reconstruction: float  # of architectures drawn from the space
    collapsed: bool  # all samples are one


def quality(
    key: Array,
    space: SearchSpace,
    generator: Generator,
    state: PyTree,
    known: Array | np.ndarray,
    num: int = 10_000,
    num_reconstructed: int = 1000,
) -> Quality:
    """Measures a generator.

    Args:
      key: PRNG key.
      space: of the architectures.
      generator: what is measured.
      state: of the generator, fitted.
      known: int32[N, D], what is not new, such as what it has learnt from; N may be 0.
      num: samples, 2 or more.
      num_reconstructed: architectures that are drawn from the space, and encoded.

    Raises:
      InputError: a number is too small, or the generator is of another space or was
        not fitted.
    """
    expect_of(space, generator)
    expect(2, num=num)
    expect(1, num_reconstructed=num_reconstructed)
    key_z, key_draw, key_space = jax.random.split(key, 3)
    generator.decode(state, jnp.zeros((1, generator.num_latent)))  # refuses here

    @jax.jit
    def draw(state):
        z = jax.random.normal(key_z, (num, generator.num_latent))
        choices = draw_choices(key_draw, space, generator, state, z)
        return choices, jax.vmap(lambda one: is_valid(space, one))(choices)

    @jax.jit
    def identify(arch):
        return lax.map(space.canonical, arch, batch_size=500)  # some take much memory

    def equal_ones(arch):
        """One for each that differs from the others."""
        return set(map(bytes, np.asarray(identify(arch)))) if len(arch) else set()

    @jax.jit
    def reconstruct(state):
        arch = jax.vmap(space.sample)(jax.random.split(key_space, num_reconstructed))
        assert generator.encode is not None
        logits = generator.decode(state, generator.encode(state, arch))
        return arch, jax.vmap(space.discretize)(logits)

    def reconstruction():
        drawn, found = map(identify, reconstruct(state))
        return float((drawn == found).reshape(num_reconstructed, -1).all(1).mean())

    choices, valid = map(np.asarray, draw(state))
    different = equal_ones(choices[valid])
    new = len(different - equal_ones(np.asarray(known, np.int32)))
    return Quality(
        float(valid.mean()),
        len(different) / int(valid.sum()) if valid.any() else float("nan"),
        new / len(different) if different else float("nan"),
        reconstruction() if generator.encode else float("nan"),
        len(set(map(bytes, choices))) == 1,
    )
