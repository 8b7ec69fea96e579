"""What experiments that search and then train a network have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxnas import cli, data, metrics, plots, runs
from jaxnas.base import Array, PyTree
from jaxnas.evaluators.fit import confusion_of, fit
from jaxnas.tasks import Batch, Task, classification

NETWORK = "network"  # where the checkpoint of the trained network lies
# What a column of the log is, by its last word, and what it is multiplied by.
PANELS: dict[str, tuple[str, float]] = {
    "loss": ("cross entropy (nats)", 1),
    "accuracy": ("accuracy (%)", 100),
    "entropy": ("entropy of the controller (nats)", 1),
    "curvature": ("largest eigenvalue", 1),
    "skips": ("skip connections", 1),
}


def prepare(dataset: data.Dataset, **changes: Any) -> tuple[Callable, Callable]:
    """How images are made float32: `(key, images)` for training, `images` for tests."""
    mean, std = data.channel_statistics(dataset.train_images)
    shape = dataset.train_images.shape[1:]
    how = data.augmentation_of(dataset.name, shape)._replace(**changes)._asdict()
    normalize = partial(data.normalize, mean=mean, std=std)
    return lambda key, x: data.augment(key, normalize(x), **how), normalize


def train_network(
    run: runs.Run,
    dataset: data.Dataset,
    network: Any,
    key: Array,
    *,
    tx: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    chunk: int,
    cutout: bool,
    auxiliary: float = 0.0,
    drop_path: float = 0.0,
    task: Task | None = None,
    given: PyTree = (),
    pad: int | None = None,
    phase: str = "retraining",
) -> dict[str, Any]:
    """Trains a network from scratch in a phase of the run and tests it.

    It learns to classify, or another task on what that is given. Its variables are a
    checkpoint of their own. Images are shifted by up to so many pixels (`pad`), by what
    is usual for the dataset by default.

    Returns:
      `test_accuracy` and the like in percent, by class too, and `parameters`.
    """
    changes = {} if cutout else {"cutout": 0}
    changes |= {} if pad is None else {"pad": pad}
    augmented, normalized = prepare(dataset, **changes)

    def summarise(log: dict[str, Any]) -> dict[str, Any]:
        return {f"train_{name}": log[name].mean() for name in ("loss", "accuracy")}

    with cli.phase(run, phase, num_steps, chunk, summarise) as scan:
        state, _ = fit(
            key,
            network,
            task or classification(),
            Batch(dataset.train_images, dataset.train_labels, given),
            augmented,
            scan,
            tx=tx,
            num_steps=num_steps,
            batch_size=batch_size,
            auxiliary=auxiliary,
            drop_path=drop_path,
        )
    kept = run.checkpoints(NETWORK)
    if kept.latest() is None:
        kept.save(num_steps, state.variables)
    test = Batch(dataset.test_images, dataset.test_labels)
    num_classes = len(dataset.class_names)
    confusion = confusion_of(network, state, test, normalized, num_classes)
    percent = metrics.classification_metrics(confusion)
    by_class = metrics.per_class_metrics(confusion)
    trained = {k: v for k, v in state.params.items() if k != "auxiliary"}
    return {
        **{f"test_{name}": 100 * value for name, value in percent.items()},
        **{f"test_{name}_by_class": 100 * x for name, x in by_class.items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained)),
    }


def draw_curves(
    run: runs.Run,
    phase: str,
    labels: dict[str, str],
    quantities: dict[str, tuple[str, float]] = PANELS,
) -> None:
    """Draws what the log has of a phase, by the names of its columns.

    Args:
      run: the work folder; the picture is curves_<phase>.png.
      phase: in the log.
      labels: of the columns, whose last word is one of the quantities.
      quantities: see `PANELS`.
    """
    log = run.log.read(phase)
    if not log["step"]:
        return
    panels: dict[str, dict] = {}
    for name, label in labels.items():
        steps, values = np.array(log["step"]), np.array(log[name], float)
        there = np.isfinite(values)
        if there.any():
            title, factor = quantities[name.split("_")[-1]]
            curve = steps[there], values[there] * factor
            panels.setdefault(title, {})[label] = curve
    figure = plots.plot_curves(panels, xlabel="step", title=phase.capitalize())
    plots.save(figure, run.path(f"curves_{phase}.png"))
