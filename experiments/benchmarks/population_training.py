"""Training many small networks: all in one program, and one by one in PyTorch.

    pip install -e '.[benchmark]'
    python experiments/benchmarks/population_training.py

Random networks of `chain` on digits, by SGD with momentum and a cosine schedule,
without augmentation, validated at the end. Both sides have the same networks, initial
weights and batches, and take turns, a part of the networks each. What the population
costs includes tracing and compiling with no cache; PyTorch's networks are built
beforehand, and trained in whichever way is the fastest on the machine. About five
minutes on two CPU cores, most of them PyTorch's.

    python experiments/benchmarks/population_training.py --scaling --picture scaling.png

measures instead how seconds and memory of the population grow with its size.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table
import tyro
from population_scaling import draw_costs, measure_cost, show_costs
from population_sides import Ours, Problem, Theirs, versions

from jaxnas import cli, data, parallel, plots
from jaxnas.base import InputError, SearchSpace
from jaxnas.spaces.chain import chain
from jaxnas.tasks import Batch


@dataclass(frozen=True)
class Config:
    """Time the training of many networks by `population` and by PyTorch."""

    preset: tyro.conf.Suppress[str] = ""
    networks: int = 256
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.05
    torch_networks: int | None = None
    """How many of them PyTorch trains, the first ones; all by default."""
    parts: int | None = None
    """Turns of each side. By default 4 on a CPU; elsewhere 1, since there a program
    trains all of its networks side by side."""
    scaling: bool = False
    """Measure how the population's cost grows instead, without PyTorch."""
    sizes: tuple[int, ...] = (16, 64, 256, 1024)
    """Networks of the populations that --scaling measures."""
    picture: Path | None = None
    """Where the picture of --scaling goes, a .png."""
    seed: int = 0


def make_problem(config: Config, space: SearchSpace) -> Problem:
    """Networks of the space on digits; a fifth of the training images validates.

    Raises:
      InputError: a flag is out of its range.
    """
    digits = data.load("digits")
    key = jax.random.key(config.seed)
    parts = data.split(key, digits.train_images, digits.train_labels, 0.8)
    batches = dict(
        zip(("train", "valid"), (Batch(*part) for part in parts), strict=True)
    )
    most = len(batches["train"].labels)
    ranges = {
        "networks": (1, math.inf),
        "epochs": (1, math.inf),
        "batch_size": (1, most),
        "learning_rate": (0, math.inf),
        "torch_networks": (1, config.networks),
        "parts": (1, config.networks),
    }
    cli.check_ranges(config, ranges)
    mean, std = data.channel_statistics(batches["train"].images)
    normal = partial(data.normalize, mean=mean, std=std)
    steps = config.epochs * (most // config.batch_size)
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    sizes = config.epochs, config.batch_size, config.seed
    return Problem(space, batches, normal, schedule, *sizes)


class Comparison(NamedTuple):
    """Both sides, in K turns: N networks of ours and M of PyTorch's."""

    trace: float  # seconds
    compile: float  # seconds
    ours: np.ndarray  # float[K], seconds
    theirs: np.ndarray  # float[K], seconds
    our_accuracy: np.ndarray  # float[N]
    their_accuracy: np.ndarray  # float[M]
    way: str  # how PyTorch trained


def compare(config: Config, problem: Problem) -> Comparison:
    """Trains the networks on both sides, in turns.

    Raises:
      InputError: the parts would not be equal.
    """
    parts = config.parts or _default_parts(config.networks)
    size = config.networks // parts
    if size * parts != config.networks:
        raise InputError(
            f"expected --parts that divide {config.networks} networks, but got "
            f"{parts}: change either"
        )
    ours = Ours(problem, size)
    archs = problem.archs(config.networks)
    each = jax.vmap(jax.random.fold_in, (None, 0))
    keys = [each(problem.key(part), jnp.arange(size)) for part in range(parts)]
    chosen = np.arange(config.torch_networks or config.networks)
    theirs = Theirs(problem, archs[chosen], jnp.concatenate(keys)[chosen])
    mine, other = [], []
    for part, networks in enumerate(np.array_split(chosen, parts)):
        place = slice(part * size, (part + 1) * size)
        mine.append(ours.run(problem.key(part), archs[place]))
        other.append(theirs.run(networks.tolist()))
    our_seconds, our_accuracy = zip(*mine, strict=True)
    their_seconds, their_accuracy = zip(*other, strict=True)
    return Comparison(
        **ours.seconds,
        ours=np.array(our_seconds),
        theirs=np.array(their_seconds),
        our_accuracy=np.concatenate(our_accuracy),
        their_accuracy=np.concatenate(their_accuracy),
        way=str(theirs.way),
    )


def _default_parts(networks: int) -> int:
    if jax.default_backend() != "cpu":
        return 1
    return next(parts for parts in (4, 3, 2, 1) if networks % parts == 0)


def show(config: Config, found: Comparison) -> None:
    """Prints the table."""
    mine, other = len(found.our_accuracy), len(found.their_accuracy)
    start = found.trace + found.compile
    rates = {
        "population, compiling included": mine / (start + found.ours.sum()),
        "population, running": mine / found.ours.sum(),
        "PyTorch": other / found.theirs.sum(),
    }
    print(f"{mine} networks, {config.epochs} epochs of batches of {config.batch_size}")
    if other < mine:
        print(f"PyTorch trained the first {other}: its mean stands for all")
    table = rich.table.Table(box=None)
    for column in ("", "networks/s", "s/network", "ratio"):
        table.add_column(column, justify="right")
    for name, rate in rates.items():
        ratio = rate / rates["PyTorch"]
        table.add_row(name, f"{rate:.3f}", f"{1 / rate:.3f}", f"{ratio:.2f}")
    rich.console.Console(width=88).print(table)
    print(f"tracing {found.trace:.1f} s, compiling {found.compile:.1f} s")
    for name, seconds in (("population", found.ours), ("PyTorch", found.theirs)):
        each = " ".join(f"{s:.1f}" for s in seconds)
        print(f"{name} {seconds.sum():.1f} s in all, in turns of {each}")
    print(f"PyTorch's fastest way: {found.way}")
    ours, theirs = found.our_accuracy[:other], found.their_accuracy
    apart = np.abs(ours - theirs)
    apart = apart[np.isfinite(apart)]
    print(
        f"validation accuracy: means {np.nanmean(ours):.4f} and "
        f"{np.nanmean(theirs):.4f}; of one network at most {apart.max(initial=0):.4f} "
        f"apart, {apart.mean() if len(apart) else 0:.4f} on average"
    )
    diverged = [int(np.isnan(side).sum()) for side in (ours, theirs)]
    if any(diverged):
        print(f"diverged: {diverged[0]} in the population, {diverged[1]} in PyTorch")
    print(versions())


PRESETS = {"quick": Config(), "paper": Config()}  # the same on every device


def experiment(config: Config) -> None:
    """Runs the comparison that is asked for."""
    if config.picture and (not config.scaling or config.picture.suffix != ".png"):
        raise InputError(
            f"expected --picture to be a .png of --scaling, but got {config.picture}: "
            "rename it, or add --scaling"
        )
    if config.scaling and (not config.sizes or min(config.sizes) < 1):
        raise InputError(
            f"expected --sizes of 1 or more, but got {config.sizes}: change them"
        )
    problem = make_problem(config, chain((8, 8, 1)))
    if not config.scaling:
        return show(config, compare(config, problem))
    costs = [measure_cost(problem, size) for size in config.sizes]
    show_costs(problem, costs)
    if config.picture:
        plots.save(draw_costs(costs), config.picture)


if __name__ == "__main__":
    parallel.use_cpu_cores()
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
    cli.main(experiment, PRESETS)
