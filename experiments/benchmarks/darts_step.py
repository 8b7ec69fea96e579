"""A search step of DARTS: jaxnas beside PyTorch, alternately in one run.

    pip install -e '.[benchmark]'
    python experiments/benchmarks/darts_step.py --output darts_step.json

For first and second order (ours exact, theirs the paper's finite difference) it
prints medians, their ratio, compile time from a cold cache, and peak memory: that of a
process of its own for each side, where ours loads what was compiled. About ten minutes
on two CPU cores.

`--part methods` is of jaxnas alone: a row for each method and hypergradient, with the
ratio to a first-order step of DARTS, the memory of the compiled program, and seconds to
compile. `--part unrolled`: how memory grows with the steps that are differentiated
through, with remat and without.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import darts_methods
import jax
import numpy as np
import rich.console
import rich.table
import torch
import torch_darts
import tyro

from jaxnas.spaces.darts import darts
from jaxnas.strategies.differentiable import differentiable
from jaxnas.tasks import Batch

ORDERS = {"first_order": "first_order", "second_order": "exact"}


@dataclass(frozen=True)
class Config:
    """Time a search step of DARTS in jaxnas and in PyTorch."""

    channels: int = 16
    cells: int = 8
    batch_size: int = 16
    image_size: int = 32
    repeats: int = 7
    """Steps of each side that are timed, alternately."""
    order: Literal["first_order", "second_order"] | None = None
    """Both by default."""
    part: Literal["torch", "methods", "unrolled"] = "torch"
    """Beside PyTorch; all methods beside each other; the memory of unrolled steps."""
    method_cells: int = 3
    """Cells of the last two parts."""
    output: Path | None = None
    """Where the figures go as JSON."""
    memory_of: Literal["ours", "theirs"] | None = None
    """Run a few steps of ours or theirs and print the process's peak memory."""


def ours(config: Config, order: str) -> darts_methods.Step:
    """The search of jaxnas, compiled."""
    space = darts()
    network = space.network(channels=config.channels, cells=config.cells)
    half = Batch(*examples(config, 2 * config.batch_size))
    evaluator = darts_methods.make_supernet(config, network, half, ORDERS[order])
    return darts_methods.Step(differentiable(space), evaluator)


class Theirs:
    """The same in eager PyTorch."""

    def __init__(self, config: Config, order: str):
        """Builds the model and its batches on the GPU where there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        size, classes = config.image_size, 10
        model = torch_darts.build(config.channels, config.cells, size, classes, device)
        images, labels = examples(config, config.batch_size)
        pixels = torch.from_numpy(images / np.float32(127.5) - 1).permute(0, 3, 1, 2)
        self.batch = pixels.to(device), torch.from_numpy(labels).long().to(device)
        self.run = torch_darts.make_step(model, order)

    def step(self, number: int) -> None:
        """One step, until the device has finished it."""
        del number  # the batch is always the same
        assert np.isfinite(self.run(self.batch, self.batch))


def examples(config: Config, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8[number, size, size, 3] and labels int32[number]."""
    rng = np.random.default_rng(0)
    shape = (number, config.image_size, config.image_size, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return images, rng.integers(0, 10, number).astype(np.int32)


def seconds(step: Callable[[int], None], number: int) -> float:
    """Times one call."""
    began = time.perf_counter()
    step(number)
    return time.perf_counter() - began


def measure(config: Config, order: str) -> dict[str, Any]:
    """Builds both sides, then times their steps alternately."""
    sides = ours(config, order), Theirs(config, order)
    pairs = [
        [seconds(side.step, number) for side in sides]
        for number in range(2 + config.repeats)
    ]
    # The first steps allocate.
    mine, other = (median(column) for column in zip(*pairs[2:], strict=True))
    return {
        "jaxnas_seconds": mine,
        "torch_seconds": other,
        "ratio": mine / other,
        "compile_seconds": sides[0].seconds,
        "jaxnas_peak_mb": peak(order, "ours"),
        "torch_peak_mb": peak(order, "theirs"),
    }


def peak(order: str, side: str) -> float:
    """Peak memory in MB of a process that does a few steps of one side."""
    command = [sys.executable, *sys.argv, "--order", order, "--memory-of", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_peak(config: Config) -> None:
    """Prints what `peak` reads: of the GPU where there is one, else of the process."""
    side = {"ours": ours, "theirs": Theirs}[str(config.memory_of)]
    model = side(config, config.order or "first_order")
    for number in range(2):
        model.step(number)
    if jax.default_backend() == "cpu":
        # getrusage would count what this process was before exec: its parent.
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1e3)
    elif config.memory_of == "ours":
        print(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6)
    else:
        print(torch.cuda.max_memory_allocated() / 1e6)


def main(config: Config) -> None:
    """Prints the table."""
    if config.memory_of:
        return print_peak(config)
    with tempfile.TemporaryDirectory() as folder:  # cold, and warm for `peak`
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        jax.config.update("jax_compilation_cache_dir", folder)
        title, found, names = PARTS[config.part](config)
    table = rich.table.Table(title=title)
    for column in ("", *names):
        table.add_column(column, justify="right")
    for name, figures in found.items():
        table.add_row(name, *(f"{figure:.2f}" for figure in figures.values()))
    rich.console.Console(width=100).print(table)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, torch {torch.__version__}, {device}")
    if config.output:
        config.output.write_text(json.dumps(found, indent=1) + "\n")


def beside_torch(config: Config) -> tuple[str, dict[str, Any], list[str]]:
    """Steps of jaxnas and of PyTorch."""
    orders = [config.order] if config.order else list(ORDERS)
    names = ["jaxnas s", "PyTorch s", "ratio", "compile s", "jaxnas MB", "PyTorch MB"]
    title = f"{config.cells} cells, batch {config.batch_size}"
    return title, {order: measure(config, order) for order in orders}, names


def beside_each_other(config: Config) -> tuple[str, dict[str, Any], list[str]]:
    """Steps of all methods."""
    found = darts_methods.measure(config, *examples(config, 2 * config.batch_size))
    names = ["seconds", "ratio", "MB", "ratio", "compile s"]
    return f"{config.method_cells} cells, batch {config.batch_size}", found, names


def by_steps(config: Config) -> tuple[str, dict[str, Any], list[str]]:
    """Memory by the number of virtual steps."""
    data = examples(config, 2 * config.batch_size)
    names = [f"K = {k}" for k in darts_methods.KS]
    title = f"MB, {config.method_cells} cells, batch {config.batch_size}"
    return title, darts_methods.measure_unrolled(config, *data), names


PARTS = {"torch": beside_torch, "methods": beside_each_other, "unrolled": by_steps}


if __name__ == "__main__":
    main(tyro.cli(Config))
