"""What experiments have in common that look cells up in the table of NAS-Bench-201."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from relaxed_methods import supernet_settings, weights_schedule
from retraining import prepare

from jaxnas import benchmarks, data
from jaxnas.base import (
    Array,
    Evaluator,
    Feedback,
    InputError,
    Proposal,
    SearchSpace,
    Table,
)
from jaxnas.evaluators.supernet import supernet
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.tasks import Batch, classification

NUM_CELLS = 15_625


@dataclass(frozen=True)
class CellConfig:
    """The flags that such experiments share."""

    preset: Literal["quick", "paper"] = "paper"
    """quick is for a CPU; the other flags change a preset's values."""
    benchmark: Path = Path("nasbench201.npz")
    """The table of NAS-Bench-201, as an .npz."""
    column: str = "test_acc_200ep"
    """Of the table, what cells are worth."""
    dataset: str = "cifar10"
    """What supernets learn; cells are looked up for CIFAR-10."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/cells")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""

    seeds: int = 3
    """Searches of each kind."""
    image_size: int | None = None
    """Pixels along a side that the supernets' images are resized to."""
    channels: int = 16
    cells: int = 5
    """Of each stage of the supernets."""
    steps: int = 97_500
    """Of the weights, in each search."""
    batch_size: int = 64
    learning_rate: float = 0.025
    arch_learning_rate: float = 3e-4
    """Of Adam on the logits of relaxed architectures, of whatever method."""
    chunk: int = 500
    """Steps between two checkpoints."""


def load_table(config: CellConfig) -> Table:
    """Reads the benchmark.

    Raises:
      InputError: it is of another space, or in part, or has no such column; the dataset
        is `auto`, which is not always the same.
    """
    if config.dataset == "auto":
        raise InputError("expected a --dataset by its name, but got auto: give cifar10")
    if not config.benchmark.exists():
        raise InputError(
            f"expected the table of NAS-Bench-201, but there is no {config.benchmark}: "
            "make it with python -m jaxnas.converters, or give another --benchmark"
        )
    table = benchmarks.load(config.benchmark)
    whole = table.space == "nasbench201" and len(table.archs) == NUM_CELLS
    if not whole or config.column not in table.columns:
        raise InputError(
            f"expected a table of all {NUM_CELLS} cells of nasbench201 with "
            f"{config.column}, but got {len(table.archs)} of {table.space} with "
            f"{', '.join(table.columns)}: give another --benchmark or --column"
        )
    if "cifar10" not in table.datasets:
        raise InputError(
            f"expected a table with cifar10, but got {', '.join(table.datasets)}: give "
            "another --benchmark"
        )
    return table


class CellTable(NamedTuple):
    """The cells of the table, and what they are worth on CIFAR-10."""

    space: SearchSpace
    archs: np.ndarray  # int32[A, 6]
    accuracies: np.ndarray  # float[A], in percent

    @classmethod
    def of(cls, table: Table, column: str) -> "CellTable":
        """Takes a column of the table."""
        values = np.asarray(table.columns[column])
        values = values[:, table.datasets.index("cifar10")]
        return cls(nasbench201(), np.asarray(table.archs), values)

    def worth(self, arch: np.ndarray) -> float:
        """The accuracy of int32[6], in percent."""
        return float(self.accuracies[(self.archs == np.asarray(arch)).all(1)][0])


class Images(NamedTuple):
    """What supernets learn."""

    halves: tuple[Batch, ...]
    prepare: tuple[Callable, Callable]
    num_classes: int

    @classmethod
    def of(cls, dataset: data.Dataset, key: Array) -> "Images":
        """Splits the training images."""
        halves = data.split(key, dataset.train_images, dataset.train_labels)
        batches = tuple(Batch(*half) for half in halves)
        return cls(batches, prepare(dataset, cutout=0), len(dataset.class_names))


def network_of(config: CellConfig, images: Images, **how: Any) -> Any:
    """A supernet in the size that is asked for."""
    size = {"channels": config.channels, "cells": config.cells}
    return nasbench201().network(num_classes=images.num_classes, **size, **how)


def make_supernet(
    config: CellConfig, images: Images, method: str, **more: Any
) -> Evaluator:
    """The evaluator of a relaxed method."""
    return supernet(
        network_of(config, images, **supernet_settings(method)),
        classification(),
        images.halves,
        images.prepare[0],
        learning_rate=weights_schedule(config.learning_rate, config.steps),
        batch_size=config.batch_size,
        **more,
    )


def in_blocks(
    ask: Callable[[Proposal], Feedback], archs: np.ndarray, size: int
) -> Iterator[Feedback]:
    """Asks for all architectures, so many at a time; answers are without the padding.

    Args:
      ask: of a proposal of so many; those of budget 0 are left out.
      archs: int32[N, D].
      size: of a block.
    """
    for first in range(0, len(archs), size):
        block = archs[first : first + size]
        filled = jnp.asarray(np.resize(block, (size, block.shape[1])))
        is_asked = np.arange(size) < len(block)
        budget = jnp.asarray(is_asked, jnp.int32)
        feedback = ask(Proposal(filled, budget, -jnp.ones(size, jnp.int32)))
        yield jax.tree.map(
            lambda x, is_asked=is_asked: np.asarray(x)[is_asked], feedback
        )
