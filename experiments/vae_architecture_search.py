"""Search the architecture of a network that generates images, then train the best.

    python experiments/vae_architecture_search.py --dataset digits

How deep and wide, kernels, latent size, norm and activation, as in the space
`generative`, of a variational autoencoder, by its bound on validation images, in nats
an image; with --model gan of a generative adversarial network, by the Frechet distance
of its samples from them, on the features of a classifier that is trained on the same
images first.

The command above, in the quick preset, takes 44 seconds on two cores of an Intel Xeon
once its programs are in the cache of compiled ones; the first time, compiling the eight
candidates takes 58 more. It finds three stages of 32, 32 and 64 channels and 8 latent
numbers: a bound of -163.7 nats an image on the test images, 3.69 bits per dimension.
That is of one seed, and the eight candidates lie within 9 nats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from candidates import (
    SEARCH,
    batches_of,
    load_images,
    search_candidates,
    value_of,
)
from generative_candidates import MODELS, Model, Training, fit, learner
from image_extractor import COLUMNS, Extractor, measure, train_extractor
from image_generation import (
    ROWS,
    SHOWN,
    draw_grid,
    draw_reconstructions,
    samples_title,
)
from retraining import draw_curves
from search_plan import NOT_HERE, check_evaluations, make_strategy
from search_results import FAILURES, note_failure

from jaxnas import cli, data, runs
from jaxnas.base import Evaluator, SearchSpace, Strategy
from jaxnas.evaluators.standalone import one_by_one
from jaxnas.spaces.generative import generative
from jaxnas.strategies import NEED_OBJECTIVES, STRATEGIES
from jaxnas.surrogates import SURROGATES

# Those that take more than a space: two objectives, or an empty architecture.
ELSEWHERE = (*NOT_HERE, *NEED_OBJECTIVES, "progressive")
COUNTS = "queries", "batch", "epochs", "final_epochs", "classifier_epochs", "chunk"


@dataclass(frozen=True)
class Config:
    """Search a network that generates images, then train the best one."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes minutes on a CPU; the other flags change a preset's values."""
    model: Literal[tuple(MODELS)] = "vae"
    dataset: str = "auto"
    """A name (auto, cifar10, mnist, fashion_mnist, digits), an .npz or a folder."""
    image_size: int | None = None
    """Pixels along a side that images are resized to."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/vae_architecture_search")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from, but for those of the classifier."""

    strategy: Literal[tuple(n for n in STRATEGIES if n not in ELSEWHERE)] = (
        "regularized_evolution"
    )
    surrogate: Literal[tuple(SURROGATES)] = "gp"
    """Of bayesian_optimization and predictor_search."""
    queries: int = 64
    """Whole trainings of candidates; a part of the epochs counts as that part."""
    batch: int = 4
    """Candidates a step of the search."""
    epochs: int = 10
    """Of a candidate's whole training; halving begins with a ninth and a third."""
    train_examples: int | None = None
    """Images that candidates learn from, the first of a shuffle, and as many at most
    that they are compared on; all by default."""
    batch_size: int = 64
    learning_rate: float | None = None
    """Of Adam, with cosine decay; 3e-3 for vae and 2e-4 for gan by default."""
    final_epochs: int = 50
    """Of the training of the best network on all training images."""
    classifier_epochs: int = 10
    """Of the classifier that judges the samples of a gan."""
    chunk: int = 200
    """Steps of that training between two checkpoints, at most."""

    @property
    def evaluations(self) -> int:
        """What the shared parts of searches call the queries."""
        return self.queries

    @property
    def evaluator(self) -> str:
        """Likewise: each network is trained as what it is."""
        return "standalone"


PRESETS = {
    "quick": Config(
        queries=8, batch=2, epochs=15, batch_size=32, final_epochs=60, chunk=100
    ),
    "paper": Config(),
}
STEPS = tuple(name for model in MODELS.values() for name in model.quantities)
ALL_COLUMNS = (*SEARCH, *COLUMNS, *STEPS)


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    config, dataset = load_images(config)
    check(config, dataset)
    space = generative(dataset.train_images.shape[1:], model=config.model)
    members = space, *make_strategy(config, space)[:2]
    cli.run_or_show(
        config, ALL_COLUMNS, lambda run: work(config, dataset, run, *members)
    )


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    num_train = len(dataset.train_labels)
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in COUNTS}
    ranges |= {
        "train_examples": (config.batch_size, num_train * 4 // 5),
        "batch_size": (2, num_train // 2),
        "learning_rate": (0, inf),
        "image_size": (2, inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    check_evaluations(config)


def work(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    space: SearchSpace,
    strategy: Strategy,
    num_steps: int,
) -> dict[str, Any]:
    """Searches, draws and trains; returns what result.json says of it."""
    model, extractor = MODELS[config.model], None
    if config.model == "gan":
        epochs = config.classifier_epochs
        extractor = train_extractor(run, dataset, epochs, config.chunk)
    make = partial(training_of, config, dataset, model, extractor)
    evaluator = make_evaluator(config, dataset, space, model, make)
    label = model.label + (f"\non {extractor.name}" if extractor else "")
    _, arch, log = search_candidates(
        config, run, space, strategy, evaluator, num_steps, label
    )
    training, state = train_best(config, dataset, run, space, arch, model, make)
    return {
        "dataset": dataset.name,
        "model": config.model,
        "strategy": config.strategy,
        "architecture": space.to_string(arch),
        "parameters": value_of(log, arch, "parameters"),
        "evaluations": float(log.feedback.cost.sum()) / config.epochs,
        "failed": int((log.feedback.status > 0).sum()),
        f"validation_{model.fitness}": value_of(log, arch, model.fitness),
        **judge(config, dataset, run, training, state, extractor),
        "search_steps_per_second": run.rate("searching"),
        "retrain_steps_per_second": run.rate("retraining"),
    }


def training_of(
    config: Config,
    dataset: data.Dataset,
    model: Model,
    extractor: Extractor | None,
    network: Any,
    num_steps: int,
) -> Training:
    """How a network is trained for so many steps."""
    rate = model.learning_rate if config.learning_rate is None else config.learning_rate
    schedule = optax.cosine_decay_schedule(rate, num_steps)
    return model.training(network, dataset, schedule, extractor)


def make_evaluator(
    config: Config,
    dataset: data.Dataset,
    space: SearchSpace,
    model: Model,
    make: Callable[[Any, int], Training],
) -> Evaluator:
    """Makes what trains candidates and compares them on validation images."""
    parts = batches_of(config, dataset)
    num_steps = config.epochs * (len(parts["train"].labels) // config.batch_size)
    return one_by_one(
        learner(space, partial(make, num_steps=num_steps), parts, config.batch_size),
        (*model.metrics, "parameters", "flops"),
        epochs=config.epochs,
        fitness=model.fitness,
        failed=partial(note_failure, config.workdir / FAILURES, space),
    )


def train_best(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    space: SearchSpace,
    arch: np.ndarray,
    model: Model,
    make: Callable[[Any, int], Training],
) -> tuple[Training, Any]:
    """Trains the best network on all training images; how, and its state."""
    found = {"space": space.name, "model": config.model}
    run.write_json(
        "architecture.json", {**found, "architecture": space.to_string(arch)}
    )
    *_, key = jax.random.split(jax.random.key(config.seed), 3)
    images = dataset.train_images
    num_steps = config.final_epochs * (len(images) // config.batch_size)
    training = make(space.network(arch), num_steps)

    def summarise(log: dict[str, np.ndarray]) -> dict[str, Any]:
        return {name: log[name].mean() for name in model.quantities}

    chunk = min(config.chunk, ceil(num_steps / 20))  # a curve of 20 points or more
    with cli.phase(run, "retraining", num_steps, chunk, summarise) as scan:
        state, _ = fit(key, training, images, scan, num_steps, config.batch_size)
    labels = {name: label for name, (label, *_) in model.quantities.items()}
    units = {
        name.split("_")[-1]: (unit, factor)
        for name, (_, unit, factor) in model.quantities.items()
    }
    draw_curves(run, "retraining", labels, units)
    return training, state


def judge(
    config: Config,
    dataset: data.Dataset,
    run: runs.Run,
    training: Training,
    state: Any,
    extractor: Extractor | None,
) -> dict[str, Any]:
    """What the network is worth on the test images, and pictures of what it makes."""
    key_test, key_samples = jax.random.split(jax.random.key(config.seed + 2**31))
    images = dataset.test_images
    count = max(len(images), ROWS * SHOWN)
    z = jax.random.normal(key_samples, (count, training.num_latent))
    samples = np.asarray(training.generate(state, z))
    title = "Samples"
    if training.reconstruct is not None:
        shown = images[: ROWS // 2 * SHOWN]
        draw_reconstructions(run, shown, training.reconstruct(state, shown))
    if extractor is None:
        judged = training.judge(key_test, state, images)
        found = {f"test_{name}": value for name, value in judged.items()}
    else:
        found = measure(extractor, dataset, samples)
        title = samples_title(found)
    draw_grid(run, "samples.png", title, samples[: ROWS * SHOWN], SHOWN)
    return found


if __name__ == "__main__":
    cli.main(main, PRESETS)
