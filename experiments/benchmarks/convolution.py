"""An ordinary convolution inside a loop, forward and backward: ours beside XLA's.

    python experiments/benchmarks/convolution.py

XLA computes a convolution inside a loop, where searches run, far slower than outside.
Both sides take turns in one process; it prints medians and their ratio.
"""

import time
from dataclasses import dataclass
from functools import partial
from statistics import median

import jax
import numpy as np
import rich.console
import rich.table
import tyro
from jax import lax

from jaxnas.nn.convolution import by_lax, convolution

CASES = {  # pixels, channels, features, size of the kernel, stride
    "3x3, 3 to 24 channels, 32x32 pixels": (32, 3, 24, 3, 1),
    "3x3, 16 to 16 channels, 16x16 pixels": (16, 16, 16, 3, 1),
    "3x3, 16 to 32 channels, 32x32 pixels, stride 2": (32, 16, 32, 3, 2),
    "5x5, 16 to 16 channels, 32x32 pixels": (32, 16, 16, 5, 1),
}


@dataclass(frozen=True)
class Config:
    """Time convolutions inside a loop."""

    batch_size: int = 32
    repeats: int = 15


def make_loop(convolve, inputs):
    """A compiled loop over a convolution and its gradients; turns are an argument."""

    def loop(turns, x, kernel):
        def turn(_, carry):
            x, kernel = carry
            out, pull = jax.vjp(convolve, x, kernel)
            by_x, by_kernel = pull(out)
            return x + 1e-9 * by_x, kernel + 1e-9 * by_kernel  # all of it is needed

        return lax.fori_loop(0, turns, turn, (x, kernel))

    return jax.jit(loop).lower(1, *inputs).compile()


def measure(config: Config, case: tuple[int, ...]) -> list[float]:
    """Seconds of XLA's convolution and of ours."""
    size, channels, features, kernel_size, stride = case
    rng = np.random.default_rng(0)
    kernel = kernel_size, kernel_size, channels, features
    shapes = (config.batch_size, size, size, channels), kernel
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    sides = [
        make_loop(partial(f, stride=stride), inputs) for f in (by_lax, convolution)
    ]
    times: list[list[float]] = [[], []]
    for number in range(2 + config.repeats):
        for side, seconds in zip(sides, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(side(1, *inputs))
            if number > 1:  # the first ones allocate
                seconds.append(time.perf_counter() - began)
    return [*map(median, times)]


def main(config: Config) -> None:
    """Prints the table."""
    title = f"forward and backward in a loop, batch {config.batch_size}"
    table = rich.table.Table(title=title)
    for column in ("", "XLA ms", "ours ms", "ratio"):
        table.add_column(column, justify="right")
    for name, case in CASES.items():
        theirs, ours = measure(config, case)
        figures = 1e3 * theirs, 1e3 * ours, ours / theirs
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    rich.console.Console(width=100).print(table)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main(tyro.cli(Config))
