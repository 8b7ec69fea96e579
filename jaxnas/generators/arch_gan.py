"""A generative adversarial network over architectures.

Generator and discriminator see relaxed architectures: choices are drawn by the
straight-through Gumbel softmax (Jang, Gu and Poole 2017, arXiv:1611.01144). What is
learnt from are the best so far, as in GA-NAS (Changiz Rezaei et al. 2021,
arXiv:2105.09356).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Array, Generator, History, SearchSpace
from jaxnas.checks import expect, expect_one_of
from jaxnas.encoding import layout, one_hot
from jaxnas.generators.adversarial import GanState, gan
from jaxnas.generators.examples import (
    draw_any,
    draw_told,
    expect_fitted,
    expect_updates,
    learn,
    rank_weights,
)
from jaxnas.nn.architectures import (
    KINDS,
    ArchitectureDiscriminator,
    ArchitectureGenerator,
    Reader,
    Writer,
)


def arch_gan(
    space: SearchSpace,
    *,
    network: str = "dense",
    encoding: str = "sequence",
    loss: str = "vanilla",
    num_latent: int = 32,
    width: int = 128,
    layers: int = 2,
    temperature: float = 1.0,
    sharpness: float = 0.01,
    num_pretrain: int = 500,
    num_updates: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    critic_steps: int = 1,
) -> Generator:
    """Makes the generator of architectures.

    Args:
      space: whose architectures are generated.
      network: of `nn.architectures.KINDS`.
      encoding: of `encoding.LAYOUTS`, over which the networks are.
      loss: of `adversarial.LOSSES`.
      num_latent: L, 1 or more.
      width: units of each layer.
      layers: of both networks.
      temperature: of the Gumbel softmax, above 0.
      sharpness: see `examples.rank_weights`.
      num_pretrain: updates on architectures drawn from the space, by `init`.
      num_updates: in each `fit`, on the best so far.
      batch_size: architectures of an update.
      learning_rate: of Adam, whose beta1 is 0.5.
      critic_steps: updates of the discriminator for each one of the generator.

    Raises:
      InputError: a number is out of its range, a name unknown, or the space has no
        such encoding.
    """
    expect(1, num_latent=num_latent, width=width, layers=layers, batch_size=batch_size)
    expect_updates(num_pretrain, num_updates)
    expect(1e-6, temperature=temperature, sharpness=sharpness)
    expect(0, learning_rate=learning_rate)
    expect_one_of("a network", network, KINDS)
    grid, choices = layout(space, encoding), space.num_choices
    player = ArchitectureGenerator(
        Writer(grid, choices, network, width, layers), temperature
    )
    made = gan(
        player,
        ArchitectureDiscriminator(Reader(grid, network, width, layers)),
        loss,
        optax.adam(learning_rate, b1=0.5),
        num_latent=num_latent,
        critic_steps=critic_steps,
    )
    size = batch_size * critic_steps

    def encoded(arch: Array) -> Array:
        return jax.vmap(lambda one: one_hot(one, choices))(arch)

    def update(key: Array, state: GanState, arch: Array):
        return made.update(key, state, encoded(arch), None)

    def init(key: Array, history: History) -> GanState:
        del history
        key, key_learn = jax.random.split(key)
        example = jnp.zeros((1, len(choices), max(choices)))
        state = made.init(key, example, None)
        return learn(
            key_learn,
            state,
            update,
            lambda key: draw_any(key, space, size),
            num_pretrain,
        )

    def fit(key: Array, state: GanState, history: History) -> GanState:
        weights = rank_weights(history, sharpness)

        def draw(key):
            told = history.arch[draw_told(key, history, weights, size)]
            return jnp.where(history.known.any(), told, draw_any(key, space, size))

        return learn(key, state, update, draw, num_updates)

    def decode(state: GanState, z: Array) -> Array:
        expect_fitted(state.generator.step)
        params = {"params": state.generator.params}
        logits: Any = player.apply(params, z, method="logits")
        return logits

    def score(state: GanState, arch: Array) -> Array:
        expect_fitted(state.discriminator.step)
        return made.score(state, encoded(arch), None)

    return Generator(choices, num_latent, init, fit, decode, score)
