"""What a search found: its network, its files and pictures, and what it can teach."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from retraining import NETWORK

from jaxnas import data, plots, runs
from jaxnas.base import Array, InputError, PyTree, SearchSpace
from jaxnas.checkpoint import Checkpoints
from jaxnas.files import read_json
from jaxnas.spaces import SPACES
from jaxnas.spaces.genotype import INPUTS, OUTPUT, cell_edges
from jaxnas.spaces.nasbench201 import OPS, SOURCES, TARGETS


def make_space(name: str, dataset: data.Dataset) -> SearchSpace:
    """Makes the space of a name, of networks for such images."""
    shape = dataset.train_images.shape[1:]
    return SPACES["chain"](shape) if name == "chain" else SPACES[name]()


def make_network(
    config: Any, space: SearchSpace, arch: Array, dataset: data.Dataset
) -> Any:
    """The network of an architecture, in the size of the retraining."""
    size = {"num_classes": len(dataset.class_names)}
    if space.cells:
        size |= {"channels": config.channels, "cells": config.cells}
    if space.name == "darts":
        size["auxiliary"] = config.auxiliary > 0
    return space.network(arch, **size)


def write_found(run: runs.Run, space: SearchSpace, arch: Array) -> dict[str, str]:
    """Writes the architecture, draws it if it has cells; returns it as a string."""
    text = space.to_string(arch)
    if not space.cells:
        found = {"architecture": text}
        run.write_json("architecture.json", {"space": space.name, **found})
        return found
    if space.name == "darts":
        cells = cell_edges(arch)
        graphs = {"Normal cell": cells["normal"], "Reduction cell": cells["reduce"]}
        inputs, output = INPUTS, OUTPUT
    else:
        graphs = {"Cell": nasbench201_edges(arch)}
        cells, (inputs, output) = {"cell": graphs["Cell"]}, (("input",), "output")
    run.write_json("genotype.json", {"genotype": text, **cells})
    names = space.cells.op_names
    figure = plots.draw_cells(graphs, inputs=inputs, output=output, op_names=names)
    plots.save(figure, run.path("cells.png"))
    return {"genotype": text}


def nasbench201_edges(arch: Array) -> list[tuple[str, str, str]]:
    """The cell of an int32[6] as a graph that can be drawn."""
    states = ("input", "1", "2", "output")
    ops = [OPS[op] for op in arch.tolist()]
    edges = zip(SOURCES, TARGETS, ops, strict=True)
    return [(states[s], states[t], op) for s, t, op in edges if op != "none"]


def load_teacher(folder: Path, dataset: data.Dataset) -> tuple[Any, PyTree]:
    """The trained network of a finished run of such an experiment, and its variables.

    Raises:
      InputError: there is none, or it is of another dataset.
    """
    remedy = "choose another --teacher"
    config = runs.configuration(folder)
    result = read_json(folder / "result.json", remedy) if config else None
    text = result and result.get("genotype", result.get("architecture"))
    kept = Checkpoints(folder / "checkpoints" / NETWORK)
    sized = "auxiliary" in config  # one of other experiments may not say its size
    if not (text and sized and kept.latest()) or result["dataset"] != dataset.name:
        raise InputError(
            f"expected a finished run on {dataset.name} in --teacher {folder}, but "
            f"there is none: finish it, or {remedy}"
        )
    space = make_space(config.get("space", "darts"), dataset)
    arch = space.from_string(text)
    network = make_network(SimpleNamespace(**config), space, arch, dataset)
    image = jax.ShapeDtypeStruct((1, *dataset.train_images.shape[1:]), jnp.float32)
    init = partial(network.init, train=True, mutable=["params", "batch_stats"])
    like = jax.eval_shape(init, jax.random.key(0), image)
    return network, kept.restore(kept.latest(), {"batch_stats": {}, **like})
