"""A variational autoencoder for images, whose bound is of the images as stored.

    python experiments/image_vae.py
    python experiments/image_vae.py --preset paper --seeds 3

takes CIFAR-10 where it can be had, else scikit-learn's digits. Kingma and Welling 2014
(arXiv:1312.6114) with strided convolutions; the likelihood is that of Kingma et al.
2016 (arXiv:1606.04934): a logistic distribution rounded to the 256 levels of a byte,
its scale learnt for each colour. So the bound is one on the log-probability of the
images as stored, in nats an image, and

    bits per dimension = -bound / (ln 2 * height * width * colours)

compares with other models of them. A tenth of the training images is held out for the
validation curve; the result is of the test images, at one draw of the latent each.
What is drawn and judged are the means of the pixels, not draws of them: these lack the
noise that the likelihood has, so the Frechet distance is large.

On CIFAR-10, with two cores that other work shared:

- `--preset paper` (Intel Xeon, one seed) took 12 minutes: 7:26 for the 4,000 steps and
  2:24 for the classifier that judges. It ended at 6.34 bits per dimension (-13,502 nats
  an image, of which 285 are divergence; scales of 10.3 to 11.1 of 255 levels), with a
  precision of 93 % and a recall of 4 % (cifar10-32x32-cnn64-3ep, 71.2 % test accuracy).
- `--preset quick --seeds 3` (AMD EPYC): -14,433 nats an image, with a deviation of 17
  over the seeds (6.778 bits per dimension, 0.008); each took 1:40 minutes. The Frechet
  distance is 39 to 48, where training images have 0.17, precision 90 % and recall 0.3 %
  (cifar10-32x32-cnn64-1ep, of 62.2 % test accuracy).
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from candidates import load_images
from cell_search import with_states
from image_extractor import COLUMNS, Extractor, find_extractor, measure
from image_generation import (
    BETWEEN,
    ROWS,
    SHOWN,
    ImageConfig,
    Step,
    check_images,
    draw_grid,
    draw_reconstructions,
    draw_snapshots,
    samples_title,
    shown_labels,
    slerp,
    train,
)
from image_model import (
    Model,
    bits_per_dimension,
    evidence,
    generate,
    model_of,
)
from retraining import draw_curves

from jaxnas import cli, data, runs
from jaxnas.base import PyTree
from jaxnas.generators.variational import Examples
from jaxnas.incumbents import bootstrap
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.nn.image import Downward, GaussianEncoder, Upward
from jaxnas.tasks import Batch
from jaxnas.training import TrainState


@dataclass(frozen=True)
class Config(ImageConfig):
    """Learn to generate images by a variational autoencoder."""

    workdir: Path = Path("runs/image_vae")
    """Where results go; the same command goes on from what is there."""
    conditional: bool = False
    """Tell the networks the label of each image."""
    widths: tuple[int, ...] = (128, 64, 32)
    """Channels from the smallest image to the largest; the encoder's are the same."""
    num_latent: int = 128
    """Numbers that an image is generated from."""
    batch_size: int = 64
    steps: int = 4000
    learning_rate: float = 1e-3
    """Of Adam."""
    beta: float = 1.0
    """Weight of the divergence while training; 1 is the bound."""
    seeds: int = 1
    """Trainings, with --seed and the numbers that follow."""


PRESETS = {
    "quick": Config(
        widths=(64, 32, 16),
        steps=1000,
        samples=2000,
        classifier_epochs=1,
        chunk=100,
    ),
    "paper": Config(),
}
TRAINING = {
    f"{part}_{name}": images
    for name in ("bound", "divergence")
    for part, images in (("train", "training batches"), ("valid", "validation"))
}
QUANTITIES = {
    "bound": ("bound (nats an image)", 1.0),
    "divergence": ("divergence (nats an image)", 1.0),
}
OVER_SEEDS = ("elbo_nats", "bits_per_dimension", "frechet_distance")
VALIDATED = 2000  # images, of the tenth that is held out, at each row of the log


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    config, dataset = load_images(config)
    check(config, dataset)
    columns = (*COLUMNS, *TRAINING)
    cli.run_or_show(config, columns, lambda run: work(config, dataset, run))


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    ranges: dict[str, tuple[float, float]] = {"beta": (0, inf), "seeds": (1, inf)}
    cli.check_ranges(config, ranges)
    check_images(config, dataset, len(dataset.train_labels) * 9 // 10)


def make_model(config: Config, dataset: data.Dataset) -> Model:
    """Makes the networks, and the model of them."""
    num_classes = len(dataset.class_names) if config.conditional else 0
    trunk = Downward(config.widths[::-1], activation="relu")
    shape = dataset.train_images.shape[1:]
    network = Autoencoder(
        GaussianEncoder(trunk, config.num_latent, num_classes),
        Upward(shape, config.widths, output="logistic", num_classes=num_classes),
    )
    tx = optax.adam(config.learning_rate)
    return model_of(dataset, network, tx, config.beta, config.conditional)


def work(config: Config, dataset: data.Dataset, run: runs.Run) -> dict[str, Any]:
    """Trains, draws and judges; returns what result.json says of it."""
    model = make_model(config, dataset)
    states = [train_one(config, dataset, run, model, i) for i in range(config.seeds)]
    extractor = find_extractor(run, config, dataset)
    found = [judge(config, dataset, model, extractor, state) for state in states]
    draw(run, config, dataset, model, states[0], found[0])
    result = {
        "dataset": dataset.name,
        "conditional": config.conditional,
        "beta": config.beta,
        **found[0],
        "steps_per_second": run.rate("training"),
    }
    if config.seeds > 1:
        for name in OVER_SEEDS:
            values = [one[name] for one in found]
            low, high = bootstrap(values)
            result[f"{name}_by_seed"] = values
            result[f"{name}_mean"] = float(np.mean(values))
            result[f"{name}_std"] = float(np.std(values, ddof=1))
            result[f"{name}_ci95"] = [low, high]
    return result


def train_one(
    config: Config, dataset: data.Dataset, run: runs.Run, model: Model, number: int
) -> TrainState:
    """Trains with one of the seeds; the first draws what it was on the way."""
    key_split, key_init, key_train, key_valid, key_shown = jax.random.split(
        jax.random.key(config.seed + number), 5
    )
    images = dataset.train_images, dataset.train_labels
    first, second = data.split(key_split, *images, 0.9)
    valid = [part[:VALIDATED] for part in second]
    latents = jax.random.normal(key_shown, (SHOWN, config.num_latent))

    def summarise(state: PyTree, log: dict[str, np.ndarray]) -> dict[str, Any]:
        bound, divergence = evidence(model, key_valid, state, *valid)
        return {
            "train_bound": log["bound"].mean(),
            "train_divergence": log["divergence"].mean(),
            "valid_bound": bound,
            "valid_divergence": divergence,
        }

    sizes = config.batch_size, config.steps, config.conditional
    step = Step(model.update, model.prepare, model.show, *sizes)
    x = model.prepare(first[0][:2])
    state = model.made.init(key_init, Examples(x, model.told(first[1][:2])))
    phase = f"training_{number}" if number else "training"
    shown = latents, shown_labels(dataset)
    state, pictures, steps = train(
        *(run, config, phase, key_train, state, step, Batch(*first), shown),
        summarise,
        with_states,
    )
    draw_curves(run, phase, TRAINING, QUANTITIES)
    if not number:
        draw_snapshots(run, pictures, steps)
    return state


def judge(
    config: Config,
    dataset: data.Dataset,
    model: Model,
    extractor: Extractor,
    state: TrainState,
) -> dict[str, Any]:
    """The bound on the test images, and what the extractor says of samples."""
    key_z, key_test = jax.random.split(jax.random.key(config.seed + 2**31))
    bound, divergence = map(
        float,
        evidence(model, key_test, state, dataset.test_images, dataset.test_labels),
    )
    z = jax.random.normal(key_z, (config.samples, config.num_latent))
    labels = shown_labels(dataset, config.samples)
    samples = np.asarray(generate(model, state, z, labels))
    (log_scale,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if "log_scale" in jax.tree_util.keystr(path)
    )
    return {
        "elbo_nats": bound,
        "reconstruction_nats": bound + divergence,
        "divergence_nats": divergence,
        "bits_per_dimension": bits_per_dimension(bound, dataset.test_images),
        "scale_levels": np.exp(log_scale) / np.array(model.width),
        **measure(extractor, dataset, samples, model.told(labels)),
    }


def draw(
    run: runs.Run,
    config: Config,
    dataset: data.Dataset,
    model: Model,
    state: TrainState,
    found: dict[str, Any],
) -> None:
    """Draws samples, reconstructions, and ways between images."""
    names = [dataset.class_names[label] for label in shown_labels(dataset)]
    by_class = names if config.conditional else ()
    z = jax.random.normal(
        jax.random.key(config.seed), (ROWS * SHOWN, config.num_latent)
    )
    grid = generate(model, state, z, shown_labels(dataset, ROWS * SHOWN))
    title = samples_title(found)
    draw_grid(run, "samples.png", title, grid, SHOWN, column_names=by_class)

    images, labels = (
        part[: 4 * SHOWN] for part in (dataset.test_images, dataset.test_labels)
    )
    latents, _ = model.made.encode(state, model.prepare(images), model.told(labels))
    again = generate(model, state, latents, labels)
    draw_reconstructions(run, images, again)

    rows = min(ROWS, len(images) // 2)
    ways = jnp.concatenate(
        [slerp(*latents[2 * row : 2 * row + 2], BETWEEN) for row in range(rows)]
    )
    told = np.repeat(labels[: 2 * rows : 2], BETWEEN)
    title = "Between two test images (spherical)"
    between = generate(model, state, ways, told)
    draw_grid(run, "interpolation.png", title, between, BETWEEN)


if __name__ == "__main__":
    cli.main(main, PRESETS)
