"""DARTS: search a cell on real images, draw it, train the network that it makes.

    python experiments/darts_cifar.py

takes CIFAR-10 where it can be had, else scikit-learn's digits, and the small preset
on a CPU. The paper's, the default on a GPU or TPU:

    python experiments/darts_cifar.py --preset paper --dataset cifar10

Liu, Simonyan and Yang 2019 (arXiv:1806.09055) report 97.24 % test accuracy for it in
second order, the best of four searches. BUILD.md says what was measured here.
"""

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from retraining import draw_curves, prepare, train_network

from jaxnas import cli, data, plots, runs
from jaxnas.base import Array, InputError, Log, SearchSpace
from jaxnas.evaluators.supernet import HYPERGRADIENTS, supernet
from jaxnas.nn.skeleton import reductions
from jaxnas.search import search
from jaxnas.spaces.darts import darts
from jaxnas.spaces.genotype import INPUTS, OPS, OUTPUT, SOURCES, TARGETS, cell_edges
from jaxnas.strategies.differentiable import differentiable
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd


@dataclass(frozen=True)
class Config:
    """Search a cell with DARTS, draw it, train the network that it makes."""

    preset: Literal["quick", "paper"] = "paper"
    """quick takes minutes on a CPU; the other flags change a preset's values."""
    dataset: Literal[data.DATASETS] = "auto"
    """auto takes cifar10 where it can be had, else digits."""
    data_dir: Path | None = None
    """Folder of prepared datasets; that of tensorflow-datasets by default."""
    workdir: Path = Path("runs/darts_cifar")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""

    hypergradient: Literal[tuple(HYPERGRADIENTS)] = "exact"
    """How the architecture's gradient follows the step of the weights."""
    search_epochs: int | None = 50
    search_steps: int | None = None
    """Number of search steps, which counts instead of --search-epochs."""
    search_batch_size: int = 64
    search_channels: int = 16
    search_cells: int = 8
    search_learning_rate: float = 0.025
    arch_learning_rate: float = 3e-4
    """Of Adam on the logits of the architecture."""
    genotype: str | None = None
    """Train this cell, in the literature's form, instead of searching one."""

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
    chunk: int = 100
    """Steps between two checkpoints."""


PRESETS = {
    "quick": Config(
        hypergradient="first_order",
        search_epochs=None,
        search_steps=100,
        search_batch_size=32,
        search_channels=8,
        search_cells=3,
        arch_learning_rate=1e-2,
        epochs=None,
        steps=300,
        batch_size=64,
        channels=16,
        cells=3,
        learning_rate=0.05,
        cutout=False,
        drop_path=0.0,
        auxiliary=0.0,
        chunk=25,
    ),
    "paper": Config(),
}
SEARCH = {
    **{f"train_{name}": "weights' half" for name in ("loss", "accuracy")},
    **{f"valid_{name}": "architecture's half" for name in ("loss", "accuracy")},
}
TRAIN = {f"train_{name}": "training batches" for name in ("loss", "accuracy")}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    name = config.dataset
    if name == "auto":  # a run that was begun keeps its dataset
        name = runs.configuration(config.workdir).get("dataset", name)
    dataset = data.load(name, config.data_dir)
    check(config, dataset)
    config = replace(config, dataset=dataset.name)
    with runs.open_run(config, tuple(SEARCH)) as run:
        result = run.result()
        if result is None:
            result = run.finish(work(config, dataset, run))
        else:
            print("this run is finished; its result:")
        cli.show_result(result)
        print(f"files are in {run.folder}")


def check(config: Config, dataset: data.Dataset) -> None:
    """Refuses what cannot work, before a work folder is made or anything compiles."""
    num_train = len(dataset.train_labels)
    counts = "epochs", "steps", "channels", "cells"
    ranges = {
        **{name: (1, inf) for count in counts for name in (count, f"search_{count}")},
        "chunk": (1, inf),
        "batch_size": (1, num_train),
        "search_batch_size": (1, num_train // 2),
        "learning_rate": (0, inf),
        "search_learning_rate": (0, inf),
        "arch_learning_rate": (0, inf),
        "auxiliary": (0, inf),
        "drop_path": (0, 1),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    for epochs, steps in (("search_epochs", "search_steps"), ("epochs", "steps")):
        is_asked = getattr(config, epochs) != getattr(PRESETS[config.preset], epochs)
        number, flag = getattr(config, steps), f"--{steps.replace('_', '-')}"
        if is_asked and number:
            raise InputError(
                f"expected epochs or steps, but {flag} is {number}, which counts: add "
                f"{flag} None for epochs"
            )
        if getattr(config, epochs) is None and number is None:
            raise InputError(f"expected epochs or steps, but got neither: add {flag} N")
    if config.genotype is not None:
        darts().from_string(config.genotype)
    height, width = dataset.train_images.shape[1:3]
    for name in ("search_cells", "cells"):
        halvings = len(set(reductions(getattr(config, name))))
        # The auxiliary classifier takes 2x2 pixels.
        least = 2**halvings + (name == "cells" and config.auxiliary > 0)
        if min(height, width) < least:
            raise InputError(
                f"expected images of {least}x{least} pixels or more, since "
                f"--{name.replace('_', '-')} {getattr(config, name)} halves them "
                f"{halvings} times, but those of {dataset.name} have {height}x{width}: "
                "ask for fewer cells, or for --auxiliary 0"
            )


def work(config: Config, dataset: data.Dataset, run: runs.Run) -> dict[str, Any]:
    """Searches, draws and trains; returns what result.json says of it."""
    space = darts()
    key_search, key_train = jax.random.split(jax.random.key(config.seed))
    if config.genotype is None:
        arch = search_cell(config, dataset, run, space, key_search)
    else:
        arch = space.from_string(config.genotype)
    genotype, cells = space.to_string(arch), cell_edges(arch)
    run.write_json("genotype.json", {"genotype": genotype, **cells})
    graphs = {"Normal cell": cells["normal"], "Reduction cell": cells["reduce"]}
    figure = plots.draw_cells(graphs, inputs=INPUTS, output=OUTPUT, op_names=OPS)
    plots.save(figure, run.path("cells.png"))
    network = space.network(
        arch,
        channels=config.channels,
        cells=config.cells,
        num_classes=len(dataset.class_names),
        auxiliary=config.auxiliary > 0,
    )
    found = train(config, dataset, run, network, key_train)
    draw_curves(run, "searching", SEARCH)
    draw_curves(run, "retraining", TRAIN)
    return {
        "dataset": dataset.name,
        "genotype": genotype,
        **found,
        "search_steps_per_second": run.rate("searching"),
        "retrain_steps_per_second": run.rate("retraining"),
    }


def search_cell(
    config: Config, dataset: data.Dataset, run: runs.Run, space: SearchSpace, key: Array
) -> Array:
    """Searches, and draws the weights of the operations; returns int32[28]."""
    key_split, key_search = jax.random.split(key)
    train = dataset.train_images, dataset.train_labels
    first, second = data.split(key_split, *train)
    batch_size = config.search_batch_size
    per_epoch = len(first[1]) // batch_size
    num_steps = config.search_steps or config.search_epochs * per_epoch
    evaluator = supernet(
        space.network(
            channels=config.search_channels,
            cells=config.search_cells,
            num_classes=len(dataset.class_names),
        ),
        classification(),
        (Batch(*first), Batch(*second)),
        prepare(dataset, cutout=0)[0],
        hypergradient=config.hypergradient,
        learning_rate=optax.cosine_decay_schedule(
            config.search_learning_rate, num_steps, 0.04
        ),
        batch_size=batch_size,
    )
    strategy = differentiable(space, learning_rate=config.arch_learning_rate)

    def summarise(log: Log) -> dict[str, Any]:
        return {name: log.feedback.metrics[name].mean() for name in SEARCH}

    with cli.phase(run, "searching", num_steps, config.chunk, summarise) as scan:
        (state, _), log = search(key_search, strategy, evaluator, num_steps, scan)
    draw_weights(run, log.proposal.arch[:, 0])
    return strategy.recommend(state, log)


def train(
    config: Config, dataset: data.Dataset, run: runs.Run, network: Any, key: Array
) -> dict[str, Any]:
    """Trains the network that was found, with the paper's recipe, and tests it."""
    per_epoch = len(dataset.train_labels) // config.batch_size
    num_steps = config.steps or config.epochs * per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    return train_network(
        run,
        dataset,
        network,
        key,
        tx=optax.chain(optax.clip_by_global_norm(5.0), sgd(schedule, 0.9, 3e-4)),
        num_steps=num_steps,
        batch_size=config.batch_size,
        chunk=config.chunk,
        cutout=config.cutout,
        auxiliary=config.auxiliary,
        drop_path=config.drop_path,
    )


def draw_weights(run: runs.Run, weights: np.ndarray) -> None:
    """Draws the operation weights float32[T, 28, 8], at 200 steps at most."""
    steps = np.unique(np.linspace(0, len(weights) - 1, 200).astype(int))
    states = [*INPUTS, "0", "1", "2", "3"]
    names = [
        f"{states[s]} → {states[t]}" for s, t in zip(SOURCES, TARGETS, strict=True)
    ]
    for title, part in (("Normal", slice(0, 14)), ("Reduction", slice(14, 28))):
        figure = plots.plot_operation_weights(
            steps, weights[steps, part], names, OPS, f"{title} cell"
        )
        plots.save(figure, run.path(f"weights_{title.lower()}.png"))


if __name__ == "__main__":
    cli.main(main, PRESETS)
