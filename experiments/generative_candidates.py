"""Generative networks as candidates of a search: how they learn, how good they are."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from image_extractor import Extractor, look
from image_generation import batch_of_step, to_levels, to_signs
from image_model import bits_per_dimension, evidence, generate, map_rows, model_of

from jaxnas.base import Array, PyTree, SearchSpace
from jaxnas.data import Dataset
from jaxnas.generators.adversarial import gan
from jaxnas.generators.variational import Examples
from jaxnas.metrics import frechet_distance
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.search import chunked_scan
from jaxnas.spaces.generative import Adversaries
from jaxnas.tasks import Batch


class Training(NamedTuple):
    """What trains and judges a network; images are uint8[N, H, W, colours]."""

    init: Callable[[Array], PyTree]  # key -> state
    # key, state, images -> state, metrics of the step
    update: Callable[[Array, PyTree, Array], tuple[PyTree, dict[str, Array]]]
    # key, state, images -> what it is worth
    judge: Callable[[Array, PyTree, np.ndarray], dict[str, float]]
    generate: Callable[[PyTree, Array], Array]  # state, z float32[N, L] -> images
    num_latent: int  # L
    # state, images -> the images that come back; None: it has no way back
    reconstruct: Callable[[PyTree, np.ndarray], Array] | None = None


class Model(NamedTuple):
    """One of the two models of the space `generative`."""

    fitness: str  # a metric
    label: str  # of the fitness, with its unit
    metrics: tuple[str, ...]
    learning_rate: float  # of Adam
    quantities: dict[str, tuple[str, str, float]]  # of a step: label, unit, factor
    # network, dataset, optimizer's schedule, extractor -> how it is trained
    training: Callable[[Any, Dataset, optax.Schedule, Any], Training]


def autoencoder(
    network: Autoencoder, dataset: Dataset, rate: optax.Schedule, extractor: Any
) -> Training:
    """Trains by the bound, and is worth it, in nats an image."""
    del extractor
    model = model_of(dataset, network, optax.adam(rate))
    made, shape = model.made, dataset.train_images.shape[1:]

    def judge(key: Array, state: PyTree, images: np.ndarray) -> dict[str, float]:
        labels = np.zeros(len(images), np.int32)  # which nobody is told
        bound, divergence = map(float, evidence(model, key, state, images, labels))
        bits = bits_per_dimension(bound, images)
        return {"elbo": bound, "divergence": divergence, "bits_per_dimension": bits}

    def decode(state: PyTree, z: Array) -> Array:
        return generate(model, state, z, np.zeros(len(z), np.int32))

    def reconstruct(state: PyTree, images: np.ndarray) -> Array:
        return decode(state, made.encode(state, model.prepare(images), None)[0])

    return Training(
        lambda key: made.init(key, Examples(jnp.zeros((2, *shape)))),
        lambda key, state, x: made.update(key, state, Examples(model.prepare(x))),
        judge,
        decode,
        network.encoder.num_latent,
        reconstruct,
    )


def adversaries(
    networks: Adversaries, dataset: Dataset, rate: optax.Schedule, by: Extractor
) -> Training:
    """Trains by the loss of Goodfellow et al.; is judged by features of a classifier.

    As many samples are compared as there are images; where a number of theirs is not
    finite, neither is the distance.
    """
    num_latent, shape = networks.num_latent, dataset.train_images.shape[1:]
    tx = optax.adam(rate, b1=0.5)
    made = gan(*networks[:2], "vanilla", tx, num_latent=num_latent)

    @jax.jit
    def draw(state: PyTree, z: Array) -> tuple[Array, Array]:
        def one(z: Array) -> tuple[Array, Array]:
            image = made.generate(jax.random.key(0), state, z[None], None)[0]
            # To be asked here: of NaN the levels are 0, as of a black pixel.
            return to_levels(image), jnp.isfinite(image).all()

        return map_rows(one, z)

    def judge(key: Array, state: PyTree, images: np.ndarray) -> dict[str, float]:
        z = jax.random.normal(key, (len(images), num_latent))
        samples, finite = map(np.asarray, draw(state, z))
        if not finite.all():
            return {"frechet_distance": math.nan}
        features = [look(by, x)[0] for x in (images, samples)]
        return {"frechet_distance": float(frechet_distance(*features))}

    return Training(
        lambda key: made.init(key, jnp.zeros((2, *shape)), None),
        lambda key, state, x: made.update(key, state, to_signs(x), None),
        judge,
        lambda state, z: draw(state, z)[0],
        num_latent,
    )


MODELS = {
    "vae": Model(
        "elbo",
        "ELBO (nats an image)",
        ("elbo", "divergence", "bits_per_dimension"),
        3e-3,
        {
            "bound": ("training batches", "bound (nats an image)", 1.0),
            "divergence": ("training batches", "divergence (nats an image)", 1.0),
        },
        autoencoder,
    ),
    "gan": Model(
        "frechet_distance",
        "negative Fréchet distance",
        ("frechet_distance",),
        2e-4,
        {
            "discriminator_loss": ("discriminator", "loss (nats)", 1.0),
            "generator_loss": ("generator", "loss (nats)", 1.0),
        },
        adversaries,
    ),
}


class Step(NamedTuple):
    """A step of training on a batch that follows from the key and its number."""

    update: Callable[[Array, PyTree, Array], tuple[PyTree, dict[str, Array]]]
    batch_size: int

    def __call__(self, key: Array, images: Array, state: PyTree, step: Array):
        key_step, index = batch_of_step(key, step, len(images), self.batch_size)
        return self.update(key_step, state, images[index])


def fit(
    key: Array,
    training: Training,
    images: np.ndarray,
    scan: Callable,
    num_steps: int,
    batch_size: int,
) -> tuple[PyTree, dict[str, np.ndarray]]:
    """Trains from scratch; gives the state and the metrics of each step.

    Args:
      key: what is trained follows from it alone.
      training: of the network.
      images: uint8[N, H, W, colours].
      scan: a loop of `jaxnas.search`.
      num_steps: T.
      batch_size: images a step, N at most.
    """
    key_init, key_steps = jax.random.split(key)
    step = jax.tree_util.Partial(
        Step(training.update, batch_size), key_steps, jnp.asarray(images)
    )
    return scan(step, training.init(key_init), jnp.arange(num_steps))


def learner(
    space: SearchSpace,
    make: Callable[[Any], Training],
    parts: dict[str, Batch],
    batch_size: int,
) -> Callable[[Array, np.ndarray, int], dict[str, float]]:
    """Makes what `evaluators.standalone.one_by_one` trains candidates by.

    Args:
      space: of the candidates.
      make: of a network.
      parts: "train" and "valid".
      batch_size: images a step.
    """
    train, valid = parts["train"].images, parts["valid"].images
    sizes = jax.jit(partial(space.sizes, image_shape=train.shape[1:]))

    def learn(key: Array, arch: np.ndarray, epochs: int) -> dict[str, float]:
        training = make(space.network(arch))
        key_fit, key_judge = jax.random.split(key)
        num_steps = epochs * (len(train) // batch_size)
        scan = chunked_scan(num_steps)
        state, _ = fit(key_fit, training, train, scan, num_steps, batch_size)
        parameters, operations = map(float, sizes(arch))
        worth = training.judge(key_judge, state, valid)
        return {**worth, "parameters": parameters, "flops": operations}

    return learn
