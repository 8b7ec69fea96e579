"""A classifier that judges generated images, and what it says of them.

A small network is trained on the training images of the dataset at hand; what it
computes before its last layer are the features that distributions are compared by. It
follows from the images and the epochs alone, so runs of all seeds share their judge;
its name says of which size they are, and a run takes no judge of other images.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from image_model import map_rows
from retraining import NETWORK, draw_curves, prepare, train_network

from jaxnas import data, runs
from jaxnas.base import Array, InputError, PyTree
from jaxnas.checkpoint import Checkpoints
from jaxnas.files import read_json
from jaxnas.metrics import frechet_distance, precision_recall
from jaxnas.nn.chain import ChainNetwork, Layer

PHASE, FACTS = "classifier", "classifier.json"
WIDTHS, NUM_FEATURES = (16, 32, 64, 64), 64
LAST = "head1"  # the layer whose outputs are the features
COLUMNS = ("train_loss", "train_accuracy")
NEIGHBOURS = 3
FEW = 1000  # samples in which classes are counted
SAME = 1.0  # of 255 levels: images that differ by less on average are one image


class Extractor(NamedTuple):
    """A trained classifier."""

    name: str
    accuracy: float  # percent, on the test images
    network: ChainNetwork
    variables: PyTree
    normalize: Any  # uint8[N, H, W, colours] -> float32


def make_classifier(num_classes: int) -> ChainNetwork:
    """Four convolutions, of which three are followed by pooling, and a dense layer."""
    trunk = []
    for stage, width in enumerate(WIDTHS):
        trunk += [Layer("conv", width, 3), Layer("relu")]
        trunk += [Layer("max_pool")] if stage + 1 < len(WIDTHS) else []
    head = Layer("dense", NUM_FEATURES), Layer("relu")
    return ChainNetwork(tuple(trunk), head, max(WIDTHS), num_classes)


def find_extractor(run: runs.Run, config: Any, dataset: data.Dataset) -> Extractor:
    """The classifier of the run that is asked for, or one of this run's own."""
    if config.classifier is not None:
        return load_extractor(config.classifier, dataset)
    return train_extractor(run, dataset, config.classifier_epochs, config.chunk)


def train_extractor(
    run: runs.Run, dataset: data.Dataset, epochs: int, chunk: int
) -> Extractor:
    """Trains the classifier in a phase of the run, or takes the one that is there."""
    network = make_classifier(len(dataset.class_names))
    batch_size = min(128, max(1, len(dataset.train_labels) // 20))
    num_steps = epochs * (len(dataset.train_labels) // batch_size)

    def train() -> dict[str, Any]:
        trained = train_network(
            run,
            dataset,
            network,
            jax.random.key(0),
            tx=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
            num_steps=num_steps,
            batch_size=batch_size,
            chunk=chunk,
            cutout=False,
            pad=1,
            phase=PHASE,
        )
        size = "x".join(map(str, dataset.train_images.shape[1:3]))
        name = f"{dataset.name}-{size}-cnn{NUM_FEATURES}-{epochs}ep"
        return {"name": name, **identity(dataset), **trained}

    facts = run.once(PHASE, train)
    draw_curves(run, PHASE, {name: "training batches" for name in COLUMNS})
    return _restored(run.folder, facts, network, dataset)


def identity(dataset: data.Dataset) -> dict[str, Any]:
    """What a classifier learns from: two datasets may have the same name."""
    parts = dataset.train_images, dataset.train_labels
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
    return {
        "dataset": dataset.name,
        "image_shape": list(dataset.train_images.shape[1:]),
        "classes": len(dataset.class_names),
        "checksum": f"{checksum:08x}",
    }


def load_extractor(folder: Path, dataset: data.Dataset) -> Extractor:
    """The classifier of another run.

    Raises:
      InputError: there is none, or it is of other images.
    """
    remedy = "choose another --classifier"
    facts = read_json(folder / FACTS, remedy) or {}
    wanted = identity(dataset)
    found = {name: facts.get(name) for name in wanted}
    if found != wanted:
        other = {name: x for name, x in found.items() if x != wanted[name]}
        said = ", ".join(f"{name} {x} not {wanted[name]}" for name, x in other.items())
        raise InputError(
            f"expected a run with a classifier of {dataset.name} in {folder}, but got "
            f"{said if facts else 'none'}: {remedy}, or leave it out"
        )
    network = make_classifier(len(dataset.class_names))
    return _restored(folder, facts, network, dataset)


def _restored(folder, facts, network, dataset) -> Extractor:
    image = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), jnp.float32)
    init = partial(network.init, train=True, mutable=["params", "batch_stats"])
    like = jax.eval_shape(init, jax.random.key(0), image)
    kept = Checkpoints(folder / "checkpoints" / NETWORK)
    steps = kept.latest()
    if steps is None:
        raise InputError(f"expected a checkpoint in {kept.folder}: delete {FACTS}")
    variables = kept.restore(steps, {**like})
    normalize = prepare(dataset)[1]
    return Extractor(
        facts["name"], facts["test_accuracy"], network, variables, normalize
    )


def look(extractor: Extractor, images: np.ndarray) -> tuple[Array, Array]:
    """Features float32[N, F] and classes int32[N] of uint8[N, H, W, colours]."""
    _, _, network, variables, normalize = extractor
    return _look(network, normalize, variables, images)


@partial(jax.jit, static_argnums=(0, 1))
def _look(network, normalize, variables, images):
    def one(image):
        logits, kept = network.apply(
            variables,
            normalize(image[None]),
            capture_intermediates=lambda module, _: module.name == LAST,
            mutable=["intermediates"],
        )
        (features,) = kept["intermediates"][LAST]["__call__"]
        return features[0], logits.argmax(-1)[0].astype(jnp.int32)

    return map_rows(one, images)


def spread(images: np.ndarray, labels: np.ndarray | None = None) -> float:
    """How much images differ: the mean deviation of a pixel, in levels of 255.

    With labels, among those of one label.

    Args:
      images: uint8[N, H, W, colours].
      labels: int32[N].
    """
    of = np.zeros(len(images), int) if labels is None else labels
    parts = [images[of == label].astype(np.float32) for label in np.unique(of)]
    return float(np.mean([part.std(0).mean() for part in parts]))


def measure(
    extractor: Extractor,
    dataset: data.Dataset,
    samples: np.ndarray,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """What the extractor says of samples, beside as many test images.

    Where all samples are one, that is printed.

    Args:
      extractor: what judges.
      dataset: of the real images; M to test with.
      samples: uint8[N, H, W, colours].
      labels: int32[N], what the samples should be.

    Returns:
      What result.json says of it. Percentages, but for the Frechet distance, which is
      in the squared unit of the features; that of training images says what there is
      to reach.
    """
    count = min(len(samples), len(dataset.test_labels), len(dataset.train_labels))
    order = np.random.default_rng(0)
    real, train = (
        look(extractor, images[order.permutation(len(images))[:count]])[0]
        for images in (dataset.test_images, dataset.train_images)
    )
    features, classes = look(extractor, samples)
    precision, recall = jax.jit(partial(precision_recall, k=NEIGHBOURS))(
        real, features[:count]
    )
    variety = spread(samples, labels)
    if variety < SAME:
        which = "samples" if labels is None else "samples of a class"
        print(
            f"the generator has collapsed: its {which} differ by {variety:.2g} of 255 "
            "levels; try another --seed or --loss"
        )
    found = {
        "extractor": extractor.name,
        "extractor_test_accuracy": extractor.accuracy,
        "samples": len(samples),
        "frechet_samples": count,
        "frechet_distance": float(frechet_distance(real, features[:count])),
        "frechet_distance_of_training_images": float(frechet_distance(real, train)),
        "precision": 100 * float(precision),
        "recall": 100 * float(recall),
        "classes_found": len(np.unique(classes[:FEW])),
        "classes": len(dataset.class_names),
        "spread_levels": variety,
        "collapsed": variety < SAME,
    }
    if labels is not None:
        found["recognised"] = 100 * float(np.mean(np.asarray(classes) == labels))
    return found
