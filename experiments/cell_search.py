"""What experiments have in common that search with shared weights, then train."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax
from found_network import load_teacher
from retraining import train_network

from jaxnas import cli, data, runs
from jaxnas.base import Array, InputError
from jaxnas.nn.skeleton import reductions
from jaxnas.search import Scan, chunked_scan
from jaxnas.tasks import classification, distillation
from jaxnas.training import sgd


@dataclass(frozen=True)
class SearchConfig:
    """The flags that such experiments share."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes minutes on a CPU; the other flags change a preset's values."""
    dataset: Literal[data.DATASETS] = "auto"
    """auto takes cifar10 where it can be had, else digits."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/search")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""

    search_epochs: int | None = 50
    search_steps: int | None = None
    """Number of steps of the shared weights; counts instead of --search-epochs."""
    search_batch_size: int = 64
    search_channels: int = 16
    search_cells: int = 8
    search_learning_rate: float = 0.025

    epochs: int | None = 600
    steps: int | None = None
    """Number of training steps, which counts instead of --epochs."""
    batch_size: int = 96
    channels: int = 36
    cells: int = 20
    learning_rate: float = 0.025
    cutout: bool = True
    drop_path: float = 0.2
    """Probability at the end of the training that an image loses an edge."""
    auxiliary: float = 0.4
    """Weight of the auxiliary classifier's loss; 0 for none."""
    teacher: Path | None = None
    """Work folder of a finished run, whose network teaches the one that is found."""
    chunk: int = 100
    """Steps between two checkpoints."""


QUICK: dict[str, Any] = {
    "search_epochs": None,
    "search_batch_size": 32,
    "search_channels": 8,
    "search_cells": 3,
    "epochs": None,
    "steps": 300,
    "batch_size": 64,
    "channels": 16,
    "cells": 3,
    "learning_rate": 0.05,
    "cutout": False,
    "drop_path": 0.0,
    "auxiliary": 0.0,
    "chunk": 25,
}
"""What the quick presets share."""


def load(config: SearchConfig) -> data.Dataset:
    """Loads the dataset; a run that was begun on `auto` keeps the one it took."""
    name = config.dataset
    if name == "auto":
        name = runs.configuration(config.workdir).get("dataset", name)
    return data.load(name, config.data_dir)


def check_flags(
    config: SearchConfig,
    preset: SearchConfig,
    dataset: data.Dataset,
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles.

    Args:
      config: of the run.
      preset: which its flags changed.
      dataset: of the run.
      ranges: of the experiment's own flags, see `cli.check_ranges`.
    """
    num_train = len(dataset.train_labels)
    counts = "epochs", "steps", "channels", "cells"
    shared = {
        **{name: (1, inf) for count in counts for name in (count, f"search_{count}")},
        "chunk": (1, inf),
        "batch_size": (1, num_train),
        "search_batch_size": (1, num_train // 2),
        "learning_rate": (0, inf),
        "search_learning_rate": (0, inf),
        "auxiliary": (0, inf),
        "drop_path": (0, 1),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, {**shared, **ranges})
    for epochs, steps in (("search_epochs", "search_steps"), ("epochs", "steps")):
        is_asked = getattr(config, epochs) != getattr(preset, epochs)
        number, flag = getattr(config, steps), flag_of(steps)
        if is_asked and number:
            raise InputError(
                f"expected epochs or steps, but {flag} is {number}, which counts: add "
                f"{flag} None for epochs"
            )
        if getattr(config, epochs) is None and number is None:
            raise InputError(f"expected epochs or steps, but got neither: add {flag} N")
    if config.teacher:
        load_teacher(config.teacher, dataset)


def check_cells(config: SearchConfig, dataset: data.Dataset) -> None:
    """Refuses images that the cells of `darts` would halve too often."""
    height, width = dataset.train_images.shape[1:3]
    for name in ("search_cells", "cells"):
        halvings = len(set(reductions(getattr(config, name))))
        # The auxiliary classifier takes 2x2 pixels.
        least = 2**halvings + (name == "cells" and config.auxiliary > 0)
        if min(height, width) < least:
            raise InputError(
                f"expected images of {least}x{least} pixels or more, since "
                f"{flag_of(name)} {getattr(config, name)} halves them "
                f"{halvings} times, but those of {dataset.name} have {height}x{width}: "
                "ask for fewer cells, or for --auxiliary 0"
            )


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def num_steps_of(config: SearchConfig, num_examples: int, part: str = "") -> int:
    """Steps that are asked for, or as many as the epochs have."""
    steps, epochs, batch_size = (
        getattr(config, part + name) for name in ("steps", "epochs", "batch_size")
    )
    return steps or epochs * max(num_examples // batch_size, 1)


def cosine_restarts(
    rate: float, least: float, periods: int, num_steps: int
) -> optax.Schedule:
    """A rate that decays to a part of itself, again and again, each time twice as long.

    Loshchilov and Hutter 2017, arXiv:1608.03983.
    """
    ends = [
        round(num_steps * (2**i - 1) / (2**periods - 1)) for i in range(periods + 1)
    ]
    lengths = np.maximum(np.diff(ends), 1).tolist()
    decays = [optax.cosine_decay_schedule(rate, length, least) for length in lengths]
    return optax.join_schedules(decays, ends[1:-1])


def train_found(
    config: SearchConfig,
    dataset: data.Dataset,
    run: runs.Run,
    network: Any,
    key: Array,
    schedule: Callable[[int], optax.Schedule],
    weight_decay: float,
) -> dict[str, Any]:
    """Trains the network that was found, and tests it.

    Args:
      config, dataset, run, network, key: of the run.
      schedule: number of steps -> learning rate by step.
      weight_decay: of SGD with a momentum of 0.9.
    """
    num_steps = num_steps_of(config, len(dataset.train_labels))
    task, given = classification(), ()
    if config.teacher:
        teacher, given = load_teacher(config.teacher, dataset)
        task = distillation(task, teacher)
    tx = sgd(schedule(num_steps), 0.9, weight_decay)
    return train_network(
        run,
        dataset,
        network,
        key,
        tx=optax.chain(optax.clip_by_global_norm(5.0), tx),
        num_steps=num_steps,
        batch_size=config.batch_size,
        chunk=config.chunk,
        cutout=config.cutout,
        auxiliary=config.auxiliary,
        drop_path=config.drop_path,
        task=task,
        given=given,
    )


def with_states(
    chunk: int, checkpoints: Any, on_chunk: Callable, on_compiled: Callable
) -> Scan:
    """A `chunked_scan` for `cli.phase` whose summary is of (states, log)."""
    return chunked_scan(
        chunk,
        checkpoints,
        lambda step, states, log: on_chunk(step, states, (states, log)),
        on_compiled,
    )
