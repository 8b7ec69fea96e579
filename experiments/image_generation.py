"""What experiments have in common that learn to generate images."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from image_extractor import NEIGHBOURS, load_extractor

from jaxnas import cli, data, plots, runs
from jaxnas.base import Array, InputError, PyTree
from jaxnas.data import batch_indices
from jaxnas.tasks import Batch

SNAPSHOTS = 8  # pictures of what a run generates, evenly over its steps
SHOWN = 10  # images of each
ROWS = 8  # of the final grid
BETWEEN = 10  # images of an interpolation
COUNTS = "num_latent", "batch_size", "steps", "chunk", "samples", "classifier_epochs"


@dataclass(frozen=True)
class ImageConfig:
    """The flags that such experiments share."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes a minute or two; the other flags change a preset's values."""
    dataset: str = "auto"
    """A name (auto, cifar10, mnist, fashion_mnist, digits), an .npz or a folder."""
    image_size: int | None = None
    """Pixels along a side that images are resized to."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/images")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from, but for those of the classifier."""

    conditional: bool = True
    """Tell the networks the label of each image."""
    widths: tuple[int, ...] = (64, 32)
    """Channels from the smallest image to the largest; each stage doubles it."""
    num_latent: int = 64
    """Numbers that an image is generated from."""
    batch_size: int = 64
    steps: int = 8000
    learning_rate: float = 2e-4
    """Of Adam."""
    chunk: int = 200
    """Steps between two checkpoints, and two rows of the log."""

    samples: int = 5000
    """Images that are generated to be judged; 1,000 or more."""
    classifier_epochs: int = 3
    """Of the training of the classifier that judges them."""
    classifier: Path | None = None
    """Work folder of a finished run on the same images whose classifier is taken."""


def check_images(config: ImageConfig, dataset: data.Dataset, most: int) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles.

    Args:
      config: of the run.
      dataset: of the run.
      most: images that a batch may have.
    """
    shared: dict[str, tuple[float, float]] = {name: (1, inf) for name in COUNTS}
    shared |= {
        "samples": (1000, inf),
        "batch_size": (2, most),
        "learning_rate": (0, inf),
        "seed": (0, 2**31 - 1),
    }
    cli.check_ranges(config, shared)
    if not config.widths or min(config.widths) < 1:
        raise InputError(
            "expected --widths of a number of 1 or more for each stage, but got "
            f"{' '.join(map(str, config.widths)) or 'none'}: change it"
        )
    fewest = min(len(dataset.test_labels), len(dataset.train_labels))
    if fewest <= NEIGHBOURS:
        raise InputError(
            f"expected {NEIGHBOURS + 1} or more images to train and as many to test, "
            f"for samples to be compared with, but got {fewest}: add some to --dataset"
        )
    if config.classifier is not None:
        load_extractor(config.classifier, dataset)


def batch_of_step(
    key: Array, step: Array, count: int, batch_size: int
) -> tuple[Array, Array]:
    """What a step draws by, and the int32[batch_size] of so many images it learns from.

    Both follow from the key of the training and the step's number.
    """
    key_order, key_step = jax.random.split(key)
    index = batch_indices(key_order, step, count, batch_size)
    return jax.random.fold_in(key_step, step), index


class Step(NamedTuple):
    """A step of training; equal for equal members, so that jit compiles it once."""

    # key, state, images float32[B, H, W, colours], labels int32[B] or None
    update: Callable[[Array, PyTree, Array, Array | None], tuple[PyTree, dict]]
    prepare: Callable[[Array], Array]  # uint8[B, H, W, colours] -> float32
    # state, latents float32[SHOWN, L], labels int32[SHOWN] -> uint8 images of them
    show: Callable[[PyTree, Array, Array], Array]
    batch_size: int
    num_steps: int
    conditional: bool

    def __call__(self, key: Array, given: PyTree, carry: tuple[PyTree, Array], step):
        (data, shown), (state, pictures) = given, carry
        key_step, index = batch_of_step(key, step, len(data.labels), self.batch_size)
        labels = data.labels[index] if self.conditional else None
        images = self.prepare(data.images[index])
        state, metrics = self.update(key_step, state, images, labels)
        before, now = ((step + i) * len(pictures) // self.num_steps for i in (0, 1))
        pictures = jax.lax.cond(
            now > before,
            lambda: pictures.at[now - 1].set(self.show(state, *shown)),
            lambda: pictures,
        )
        return (state, pictures), metrics


def train(
    run: runs.Run,
    config: ImageConfig,
    phase: str,
    key: Array,
    state: PyTree,
    step: Step,
    images: Batch,
    shown: tuple[Array, np.ndarray],
    summarise: Callable[[PyTree, dict[str, np.ndarray]], dict[str, Any]],
    loop: Callable,
) -> tuple[PyTree, np.ndarray, list[int]]:
    """Trains in a phase of a run, with pictures of how far it was.

    Args:
      run, config: of the run.
      phase: its name.
      key: of all that is drawn.
      state: untrained.
      step: of the training.
      images: what is learnt from, as stored.
      shown: latents float32[SHOWN, L] and labels int32[SHOWN] of the pictures.
      summarise: takes state and metrics of a chunk, gives the numbers of its row.
      loop: `cell_search.with_states`.

    Returns:
      The state; pictures uint8[S, SHOWN, H, W, colours] and the S steps of them.
    """
    count = min(SNAPSHOTS, step.num_steps)
    shape = (count, SHOWN, *images.images.shape[1:])
    moments = [-(-(i + 1) * step.num_steps // count) for i in range(count)]

    def row(chunk: tuple[PyTree, dict[str, np.ndarray]]) -> dict[str, Any]:
        (state, _), metrics = chunk
        return summarise(state, metrics)

    given = jax.tree.map(jnp.asarray, (images, shown))
    with cli.phase(run, phase, step.num_steps, config.chunk, row, loop) as scan:
        (state, pictures), _ = scan(
            jax.tree_util.Partial(step, key, given),
            (state, jnp.zeros(shape, jnp.uint8)),
            jnp.arange(step.num_steps),
        )
    return state, np.asarray(pictures), moments


def to_signs(images: Array) -> Array:
    """Scales uint8 to float32 in [-1, 1]."""
    return images / jnp.float32(127.5) - 1


def to_levels(images: Array) -> Array:
    """Rounds float32 in [-1, 1] to uint8."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def shown_labels(dataset: data.Dataset, count: int = SHOWN) -> np.ndarray:
    """The classes by turns, int32[count]."""
    return np.arange(count, dtype=np.int32) % len(dataset.class_names)


def draw_grid(
    run: runs.Run, name: str, title: str, images: Any, columns: int, **names: Any
) -> None:
    """Draws images uint8[N, H, W, colours] in rows, see `plots.plot_images`."""
    grid = np.asarray(images).reshape(-1, columns, *images.shape[1:])
    plots.save(plots.plot_images(grid, title=title, **names), run.path(name))


def draw_reconstructions(run: runs.Run, images: Any, again: Any) -> None:
    """Draws images uint8[N, H, W, colours] above what was made of them, row by row.

    What is more than whole rows is left out; where there is less, all are a row.
    """
    columns = min(SHOWN, len(images))
    count = len(images) // columns * columns
    parts = [np.asarray(part)[:count] for part in (images, again)]
    pairs = [part.reshape(-1, columns, *part.shape[1:]) for part in parts]
    rows = np.stack(pairs, 1).reshape(-1, *images.shape[1:])
    sides = ("test images", "their means") * (count // columns)
    title = "Test images and their reconstructions"
    draw_grid(run, "reconstructions.png", title, rows, columns, row_names=sides)


def draw_snapshots(run: runs.Run, pictures: np.ndarray, steps: list[int]) -> None:
    """Draws what the same latents gave after so many steps, a row a moment."""
    rows = [f"step {step:,}" for step in steps]
    images = pictures.reshape(-1, *pictures.shape[2:])
    title = "Samples of the same latents over time"
    draw_grid(run, "samples_over_time.png", title, images, SHOWN, row_names=rows)


def samples_title(found: dict[str, Any]) -> str:
    """What stands above samples that were measured."""
    return (
        f"Samples: Fréchet distance {found['frechet_distance']:.3g}\n"
        f"on the features of {found['extractor']}"
    )


def slerp(one: Array, other: Array, count: int) -> Array:
    """Latents on the arc between two: float32[count, L].

    Spherical interpolation (Shoemake 1985; for latents White 2016, arXiv:1609.04468):
    what lies between two draws of a normal distribution is as long as such draws
    mostly are, where a straight line would pass closer to the centre. Of vectors of
    different length, the length goes from the one to the other.

    Args:
      one, other: float32[L], neither of them 0.
      count: of points, with both ends.
    """
    lengths = [jnp.linalg.norm(end) for end in (one, other)]
    ends = [end / length for end, length in zip((one, other), lengths, strict=True)]
    angle = jnp.arccos(jnp.clip(ends[0] @ ends[1], -1, 1))
    by = jnp.linspace(0, 1, count)[:, None]
    # Of the same direction the arc is the line.
    sine = jnp.sin(angle)
    is_line = sine < 1e-6
    safe = jnp.where(is_line, 1.0, sine)
    parts = (
        jnp.where(is_line, part, jnp.sin(part * angle) / safe) for part in (1 - by, by)
    )
    first, second = parts
    along = first * ends[0][None] + second * ends[1][None]
    return along * ((1 - by) * lengths[0] + by * lengths[1])
