"""A GAN for images: DCGAN with any of four losses, told the labels or not.

    python experiments/image_gan.py
    python experiments/image_gan.py --preset paper
    python experiments/image_gan.py --no-conditional --loss lsgan

takes MNIST where it can be had, else scikit-learn's digits. Transposed convolutions,
batch norm, leaky ReLU and Adam are those of Radford, Metz and Chintala 2016
(arXiv:1511.06434), and so are the initial weights: with larger ones the same steps do
far less. Labels enter the discriminator by projection (Miyato and Koyama 2018,
arXiv:1802.05637). The optimizer is the same for all losses, also where a loss's paper
has another. Images are generated at the running statistics of the batch norms.

Samples are judged by a classifier of the project's own (`image_extractor`), whose name
stands beside each figure that it gave. Distances by other features are others.

On MNIST, with two cores of an AMD EPYC that other work had half of:

- `--preset paper`: 99.3 % of the samples are recognised as the label that they should
  have, and their Frechet distance from test images is 0.58, where training images have
  0.30 (mnist-28x28-cnn64-3ep, of 99.3 % test accuracy). The 8,000 steps took 10:25
  minutes, at 13 a second.
- `--preset quick --no-conditional`: all ten digits occur in 1,000 samples,
  the Frechet distance is 26.9, where training images have 0.53, precision 68 % and
  recall 81 %. The 1,500 steps took 2 minutes, the classifier 2:45 (99.3 %).
"""

from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from candidates import load_images
from cell_search import with_states
from image_extractor import COLUMNS, find_extractor, measure
from image_generation import (
    BETWEEN,
    ROWS,
    SHOWN,
    ImageConfig,
    Step,
    check_images,
    draw_grid,
    draw_snapshots,
    samples_title,
    shown_labels,
    slerp,
    to_levels,
    to_signs,
    train,
)
from image_model import map_rows
from retraining import draw_curves

from jaxnas import cli, data, runs
from jaxnas.base import Array, PyTree
from jaxnas.generators.adversarial import LOSSES, Gan, gan
from jaxnas.nn.image import Discriminator, Downward, Upward
from jaxnas.tasks import Batch

CRITIC_STEPS = {"wgan": 5, "wgan_gp": 5}


@dataclass(frozen=True)
class Config(ImageConfig):
    """Learn to generate images by two networks that compete."""

    workdir: Path = Path("runs/image_gan")
    """Where results go; the same command goes on from what is there."""
    loss: Literal[tuple(LOSSES)] = "vanilla"
    spectral: bool = False
    """Normalise the discriminator's layers by their largest singular value, instead
    of batches."""
    critic_steps: int | None = None
    """Steps of the discriminator to one of the generator; 5 for wgans by default, 1
    for the others."""


PRESETS = {
    "quick": Config(steps=1500, samples=2000, chunk=100),
    "paper": Config(),
}
TRAINING = {
    "discriminator_loss": "discriminator",
    "generator_loss": "generator",
    "real_output": "of real images",
    "fake_output": "of generated ones",
}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    config, dataset = load_images(config, "mnist")
    check(config, dataset)
    columns = (*COLUMNS, *TRAINING)
    cli.run_or_show(config, columns, lambda run: work(config, dataset, run))


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    ranges: dict[str, tuple[float, float]] = {"critic_steps": (1, inf)}
    cli.check_ranges(config, ranges)
    most = len(dataset.train_labels) // critic_steps_of(config)
    check_images(config, dataset, most)


def critic_steps_of(config: Config) -> int:
    """Steps of the discriminator to one of the generator."""
    if config.critic_steps is None:
        return CRITIC_STEPS.get(config.loss, 1)
    return config.critic_steps


def make_gan(config: Config, dataset: data.Dataset) -> Gan:
    """Makes the networks and their updates."""
    num_classes = len(dataset.class_names) if config.conditional else 0
    # A penalty on each example's gradient, or a norm of weights, takes no batch norm.
    norm = "none" if config.spectral else "batch"
    norm = "layer" if config.loss == "wgan_gp" and not config.spectral else norm
    started: Any = {"deviation": 0.02}
    down = {"norm": norm, "spectral": config.spectral, **started}
    trunk = Downward(config.widths[::-1], **down)
    shape = dataset.train_images.shape[1:]
    return gan(
        Upward(shape, config.widths, num_classes=num_classes, **started),
        Discriminator(trunk, num_classes),
        config.loss,
        optax.adam(config.learning_rate, b1=0.5),
        num_latent=config.num_latent,
        critic_steps=critic_steps_of(config),
    )


def work(config: Config, dataset: data.Dataset, run: runs.Run) -> dict[str, Any]:
    """Trains both networks, draws and judges; returns what result.json says of it."""
    key_init, key_train, key_shown, key_judged = jax.random.split(
        jax.random.key(config.seed), 4
    )
    made = make_gan(config, dataset)
    batch = Batch(dataset.train_images, dataset.train_labels)

    @jax.jit
    def generate(state: PyTree, z: Array, labels: Array) -> Array:
        """Images uint8[N, H, W, colours] of latents; none is changed by another."""

        def one(given):
            z, label = (x[None] for x in given)
            told = label if config.conditional else None
            return to_levels(made.generate(key_shown, state, z, told)[0])

        return map_rows(one, (z, labels))

    latents = jax.random.normal(key_shown, (SHOWN * ROWS, config.num_latent))
    labels = shown_labels(dataset, SHOWN * ROWS)
    step = Step(
        made.update,
        to_signs,
        generate,
        config.batch_size * critic_steps_of(config),
        config.steps,
        config.conditional,
    )
    first = jnp.zeros((2, *dataset.train_images.shape[1:]))
    told = jnp.zeros(2, jnp.int32) if config.conditional else None
    state = made.init(key_init, first, told)
    shown = latents[:SHOWN], labels[:SHOWN]
    state, pictures, steps = train(
        *(run, config, "training", key_train, state, step, batch, shown),
        summarise,
        with_states,
    )
    quantities = {
        "loss": (f"{config.loss} loss", 1.0),
        "output": ("discriminator's output", 1.0),
    }
    draw_curves(run, "training", TRAINING, quantities)
    extractor = find_extractor(run, config, dataset)
    found = judge(config, dataset, extractor, partial(generate, state), key_judged)
    draw(run, config, dataset, partial(generate, state), latents, labels, found)
    draw_snapshots(run, pictures, steps)
    return {
        "dataset": dataset.name,
        "loss": config.loss,
        "conditional": config.conditional,
        **found,
        "steps_per_second": run.rate("training"),
    }


def summarise(state: PyTree, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """The row of a chunk."""
    del state
    names = {"real_output": "real", "fake_output": "fake"}
    return {name: metrics[names.get(name, name)].mean() for name in TRAINING}


def judge(config, dataset, extractor, generate, key) -> dict[str, Any]:
    """Measures samples of all classes alike."""
    z = jax.random.normal(key, (config.samples, config.num_latent))
    labels = shown_labels(dataset, config.samples)
    samples = np.asarray(generate(z, labels))
    told = labels if config.conditional else None
    return measure(extractor, dataset, samples, told)


def draw(run, config, dataset, generate, latents, labels, found) -> None:
    """Draws samples, by class where these are told, and ways between latents."""
    names = [dataset.class_names[label] for label in labels[:SHOWN]]
    by_class = names if config.conditional else ()
    grid = generate(latents, labels)
    title = samples_title(found)
    draw_grid(run, "samples.png", title, grid, SHOWN, column_names=by_class)
    ways = jnp.concatenate(
        [slerp(*latents[2 * row : 2 * row + 2], BETWEEN) for row in range(ROWS)]
    )
    between = generate(ways, np.repeat(labels[:ROWS], BETWEEN))
    title, by_row = "Between two latents (spherical)", by_class[:ROWS]
    draw_grid(run, "interpolation.png", title, between, BETWEEN, row_names=by_row)


if __name__ == "__main__":
    cli.main(main, PRESETS)
