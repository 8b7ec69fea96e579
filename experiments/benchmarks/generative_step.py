"""Training steps of a GAN and of a VAE: jaxnas beside PyTorch, alternately in one run.

    pip install -e '.[benchmark]'
    python experiments/benchmarks/generative_step.py

A DCGAN on grey images of 28 x 28 pixels (a step of the discriminator, then one of the
generator), and a VAE on coloured ones of 32 x 32 whose outputs are discretized logistic
distributions. Both sides have the same layers and optimizers; ours takes its steps
inside a compiled loop, as experiments do, PyTorch, eager, in whichever way is the
fastest on the machine. The ratio is PyTorch's time by ours. It takes two minutes on two
CPU cores.
"""

import itertools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
import torch
import torch_generative
import tyro
from torch_chain import DEVICE, Way, synchronise

from jaxnas import cli
from jaxnas.base import Array, InputError
from jaxnas.generators.adversarial import GanState, gan
from jaxnas.generators.variational import Autoencoder, Examples, vae
from jaxnas.nn.image import Discriminator, Downward, GaussianEncoder, Upward
from jaxnas.tasks import discretized_logistic
from jaxnas.training import TrainState


@dataclass(frozen=True)
class Config:
    """Time steps of a GAN and of a VAE in jaxnas and in PyTorch."""

    preset: tyro.conf.Suppress[str] = ""
    batch_size: int = 64
    steps: int = 10
    """Of one run of a side, inside one compiled loop of ours."""
    repeats: int = 9
    """Runs of each side that are timed, alternately."""
    models: tuple[str, ...] = ("gan", "vae")
    """Rows of the table."""


class Size(NamedTuple):
    """Of a model's networks; the one that makes images has the widths backwards."""

    image_shape: tuple[int, int, int]
    num_latent: int
    widths: tuple[int, ...]
    kernel: int = 4  # pixels


SIZES = {
    "gan": Size((28, 28, 1), 64, (32, 64)),
    "vae": Size((32, 32, 3), 128, (32, 64, 128)),
}


class Model(NamedTuple):
    """Ours and PyTorch's; x is float32[N, H, W, C], of 256 levels from -1 to 1."""

    init: Callable[[Array, Array], Any]  # key, x -> state
    update: Callable[[Array, Any, Array], tuple[Any, dict]]  # key, state, x
    theirs: Callable[[Way], Any]  # has step(x, noise) and load(*parameters)
    params: Callable[[Any], tuple]  # of a state, what load takes


def make_gan(size: Size) -> Model:
    """The DCGAN of Radford et al. 2016, at the size of small images."""
    made = gan(
        Upward(size.image_shape, size.widths[::-1], size.kernel),
        Discriminator(Downward(size.widths, size.kernel)),
        "vanilla",
        optax.adam(2e-4, b1=0.5),
        num_latent=size.num_latent,
    )

    def params(state: GanState) -> tuple:
        return state.generator.params, state.discriminator.params

    return Model(made.init, made.update, partial(torch_generative.Gan, *size), params)


def make_vae(size: Size) -> Model:
    """The convolutional VAE."""
    channels = size.image_shape[2]
    levels = (np.full(channels, x, np.float32) for x in (2 / 255, -1, 1))
    network = Autoencoder(
        GaussianEncoder(Downward(size.widths, size.kernel), size.num_latent),
        Upward(size.image_shape, size.widths[::-1], size.kernel, output="logistic"),
    )
    made = vae(network, discretized_logistic(*levels), optax.adam(1e-3))

    def params(state: TrainState) -> tuple:
        return (state.params,)

    return Model(
        lambda key, x: made.init(key, Examples(x)),
        lambda key, state, x: made.update(key, state, Examples(x)),
        partial(torch_generative.Vae, *size),
        params,
    )


MAKERS = {"gan": make_gan, "vae": make_vae}


class Ours:
    """A compiled loop of steps, each on a batch of its own."""

    def __init__(self, model: Model, x: np.ndarray):
        """Compiles for images [T, N, H, W, C]; `seconds` says how long that took."""

        def loop(key, state, x):
            def step(state, inputs):
                number, batch = inputs
                return model.update(jax.random.fold_in(key, number), state, batch)

            return jax.lax.scan(step, state, (jnp.arange(len(x)), x))

        self.x = jnp.asarray(x)
        self.state = model.init(jax.random.key(0), self.x[0])
        began = time.perf_counter()
        lowered = jax.jit(loop).lower(jax.random.key(1), self.state, self.x)
        self.program = lowered.compile()
        self.seconds = time.perf_counter() - began

    def run(self) -> None:
        """Takes all steps."""
        key = jax.random.key(1)
        self.state, metrics = self.program(key, self.state, self.x)
        assert all(np.isfinite(x).all() for x in metrics.values())


class Theirs:
    """The same in eager PyTorch, in one of its ways."""

    def __init__(self, model: Model, x: np.ndarray, params: tuple, way: Way):
        """Begins at our parameters, on images [T, N, H, W, C]."""
        images = torch.tensor(np.moveaxis(x, -1, 2)).to(DEVICE)
        self.x = [batch.contiguous(memory_format=way.layout) for batch in images]
        self.model = model.theirs(way)
        self.model.load(*jax.device_get(params))

    def run(self) -> None:
        """Takes all steps; returns once the device has finished them."""
        for x in self.x:
            noise = torch.randn(len(x), *self.model.noise, device=DEVICE)
            self.model.step(x, noise)
        synchronise()


def ways() -> list[Way]:
    """All in which PyTorch may train, with as many threads as ours has."""
    torch.set_float32_matmul_precision("high")  # as JAX's default on a GPU
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layouts = torch.contiguous_format, torch.channels_last
    optimizers = "foreach", "fused"
    threads = [torch.get_num_threads()]
    return [Way(*one) for one in itertools.product(threads, optimizers, layouts)]


def seconds(run: Callable[[], None]) -> float:
    """Times one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def images(config: Config, size: Size) -> np.ndarray:
    """Random images float32[T, N, H, W, C] of 256 levels from -1 to 1."""
    shape = config.steps, config.batch_size, *size.image_shape
    levels = np.random.default_rng(0).integers(0, 256, shape)
    return (levels / 127.5 - 1).astype(np.float32)


def measure(config: Config, name: str) -> dict[str, Any]:
    """Times both sides of a model in turns; seconds of a step are medians."""
    size = SIZES[name]
    model, x = MAKERS[name](size), images(config, size)
    ours = Ours(model, x)
    every = {way: Theirs(model, x, model.params(ours.state), way) for way in ways()}
    for run in (ours.run, *(side.run for side in every.values())):
        run()  # the first ones allocate
    # Each way has three turns, of which the fastest says what it can do.
    trials = {
        way: min(seconds(side.run) for _ in range(3)) for way, side in every.items()
    }
    way = min(every, key=lambda way: trials[way])
    pairs = [
        [seconds(run) / config.steps for run in (ours.run, every[way].run)]
        for _ in range(config.repeats)
    ]
    mine, other = (median(column) for column in zip(*pairs, strict=True))
    return {
        "ours": mine,
        "theirs": other,
        "ratio": other / mine,
        "compile": ours.seconds,
        "way": f"{way.optimizer}, {str(way.layout).removeprefix('torch.')}",
    }


PRESETS = {"quick": Config(), "paper": Config()}  # the same on every device


def experiment(config: Config) -> None:
    """Prints the table.

    Raises:
      InputError: a flag is out of its range, or there is no such model.
    """
    ranges = dict.fromkeys(("steps", "repeats"), (1, math.inf))
    cli.check_ranges(config, ranges | {"batch_size": (2, math.inf)})
    unknown = [name for name in config.models if name not in MAKERS]
    if unknown:
        raise InputError(
            f"expected --models of {', '.join(MAKERS)}, but got {unknown[0]}: "
            "choose from these"
        )
    table = rich.table.Table(title=f"seconds a step, batches of {config.batch_size}")
    for column in ("", "jaxnas", "PyTorch", "ratio", "compile s", "PyTorch with"):
        table.add_column(column, justify="right")
    for name in config.models:
        found = measure(config, name)
        cells = f"{found['ours']:.4f}", f"{found['theirs']:.4f}"
        ratio, start = f"{found['ratio']:.2f}", f"{found['compile']:.1f}"
        table.add_row(name, *cells, ratio, start, found["way"])
    rich.console.Console(width=100).print(table)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, torch {torch.__version__} on {DEVICE}")


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
    cli.main(experiment, PRESETS)
