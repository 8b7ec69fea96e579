"""A variational autoencoder over architectures, with a predictor of their fitness.

After arch2vec (Yan et al. 2020, arXiv:2006.06936), SVGe (Lukasik et al. 2021,
arXiv:2010.04683) and D-VAE (Zhang et al. 2019, arXiv:1904.11088): a sequence or graph
goes to a Gaussian latent, from which every decision is drawn by itself. The predictor
is trained with it, and what was told is learnt from by its rank.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxnas.base import Array, Generator, Graph, History, SearchSpace
from jaxnas.checks import expect, expect_one_of
from jaxnas.encoding import choices_exist, graphs_of, layout, one_hot
from jaxnas.generators.examples import (
    draw_any,
    draw_told,
    expect_fitted,
    expect_updates,
    learn,
    rank_weights,
)
from jaxnas.generators.variational import Examples, vae
from jaxnas.nn.architectures import (
    KINDS,
    ArchitectureEncoder,
    Perceptron,
    Reader,
    Writer,
)
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.nn.graph_network import GraphNetwork
from jaxnas.targets import Scale, check_targets, to_fitness, to_targets, usable
from jaxnas.tasks import categorical
from jaxnas.training import TrainState

ENCODERS = ("sequence", "graph")


class Architectures(NamedTuple):
    """What the encoder may look at."""

    weights: Array  # float32[N, D, K], one-hot
    graph: Graph  # of each


class ArchVaeState(NamedTuple):
    """Encoder, decoder and predictor in training, and what predictions mean."""

    training: TrainState
    scale: Scale


class _OfSequence(nn.Module):
    reader: Reader

    def __call__(self, x: Architectures) -> Array:
        return self.reader(x.weights)


class _OfGraph(nn.Module):
    width: int
    layers: int

    @nn.compact
    def __call__(self, x: Architectures) -> Array:
        network = GraphNetwork(self.width, self.layers, self.width, pooled=False)
        over = nn.vmap(
            lambda module, graph: module(graph),
            variable_axes={"params": None},
            split_rngs={"params": False},
        )
        return nn.leaky_relu(over(network, x.graph))


def arch_vae(
    space: SearchSpace,
    *,
    encoder: str = "sequence",
    network: str = "dense",
    encoding: str = "sequence",
    num_latent: int = 16,
    width: int = 128,
    layers: int = 2,
    beta: float = 0.1,
    predictor_weight: float = 10.0,
    targets: str = "ranks",
    sharpness: float = 0.1,
    num_pretrain: int = 2000,
    num_updates: int = 50,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> Generator:
    """Makes the generator of architectures; it has `encode` and `predict`.

    Args:
      space: whose architectures are generated.
      encoder: of `ENCODERS`: layers over the decisions, or over the graph.
      network: of `nn.architectures.KINDS`; of the decoder, and of a sequence's encoder.
      encoding: of `encoding.LAYOUTS`, over which those are.
      num_latent: L, 1 or more.
      width: units of each layer.
      layers: of each network.
      beta: weight of the divergence from the prior.
      predictor_weight: of the predictor's squared error.
      targets: of `TARGETS`, what the predictor learns.
      sharpness: see `examples.rank_weights`.
      num_pretrain: updates on architectures drawn from the space, by `init`.
      num_updates: in each `fit`, which goes on from the last.
      batch_size: architectures of an update, the half of them from the history.
      learning_rate: of Adam.

    Raises:
      InputError: a number is out of its range, a name unknown, or the space has no
        such encoding.
    """
    expect(1, num_latent=num_latent, width=width, layers=layers)
    expect(2, batch_size=batch_size)
    expect(0, learning_rate=learning_rate)
    expect_updates(num_pretrain, num_updates)
    expect(1e-6, sharpness=sharpness)
    expect_one_of("a network", network, KINDS)
    check_targets(targets)
    expect_one_of("an encoder", encoder, ENCODERS)
    grid, choices = layout(space, encoding), space.num_choices
    graph_of = graphs_of(space).of
    reader: Any = _OfGraph(width, layers)
    if encoder == "sequence":
        reader = _OfSequence(Reader(grid, network, width, layers))
    made = vae(
        Autoencoder(
            ArchitectureEncoder(reader, num_latent),
            Writer(grid, choices, network, width, layers),
            Perceptron(width, 2),
        ),
        lambda logits, x: categorical(_masked(logits, choices), x.weights),
        optax.adam(learning_rate),
        beta=beta,
        predictor_weight=predictor_weight,
    )
    num_told, num_any = batch_size // 2, -(-batch_size // 2)

    def encoded(arch: Array) -> Architectures:
        weights = jax.vmap(lambda one: one_hot(one, choices))(arch)
        return Architectures(weights, jax.vmap(graph_of)(arch))

    def init(key: Array, history: History) -> ArchVaeState:
        key, key_learn = jax.random.split(key)
        example = draw_any(key, space, 1)

        def draw(key):
            nothing = jnp.zeros(batch_size)
            x = encoded(draw_any(key, space, batch_size))
            return Examples(x, None, nothing, nothing)

        state = made.init(key, Examples(encoded(example)))
        scale = to_targets(usable(history), targets)[1]
        return ArchVaeState(
            learn(key_learn, state, made.update, draw, num_pretrain), scale
        )

    def fit(key: Array, state: ArchVaeState, history: History) -> ArchVaeState:
        history = usable(history)
        y, scale = to_targets(history, targets)
        weights = rank_weights(history, sharpness)

        def draw(key):
            key_told, key_any = jax.random.split(key)
            place = draw_told(key_told, history, weights, num_told)
            some = draw_any(key_any, space, num_any)
            told = jnp.where(history.known.any(), history.arch[place], some[:num_told])
            arch = jnp.concatenate([told, some])
            known = jnp.pad(history.known[place], (0, num_any))
            target = jnp.pad(y[place], (0, num_any))
            return Examples(encoded(arch), None, target, known.astype(jnp.float32))

        training = learn(key, state.training, made.update, draw, num_updates)
        return ArchVaeState(training, scale)

    def decode(state: ArchVaeState, z: Array) -> Array:
        expect_fitted(state.training.step)
        return made.decode(state.training, z, None)

    def encode(state: ArchVaeState, arch: Array) -> Array:
        expect_fitted(state.training.step)
        return made.encode(state.training, encoded(arch), None)[0]

    def score(state: ArchVaeState, arch: Array) -> Array:
        expect_fitted(state.training.step)

        # Of the same noise for each, or else it would choose.
        def one(arch):
            x = encoded(arch[None])
            return made.bound(jax.random.key(0), state.training, x, None)[0][0]

        return jax.vmap(one)(arch)

    def predict(state: ArchVaeState, z: Array) -> Array:
        expect_fitted(state.training.step)
        return to_fitness(state.scale, made.predict(state.training, z))

    return Generator(choices, num_latent, init, fit, decode, score, encode, predict)


def _masked(logits: Array, num_choices: tuple[int, ...]) -> Array:
    """Logits float32[N, D, K], very low where there is no such choice."""
    return jnp.where(choices_exist(num_choices)[None], logits, -1e9)
