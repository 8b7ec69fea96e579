"""How many queries a second: compiled searches beside a plain Python loop.

    python experiments/benchmarks/tabular_throughput.py

Regularized evolution on NAS-Bench-201, 500 queries, population 50, tournament 10: some
seeds side by side in one compiled program, and seed after seed in Python with a dict
and a deque, alternately. It prints medians and their ratio; compiling is not counted.
Half a minute on two CPU cores.

    python experiments/benchmarks/tabular_throughput.py --all

times instead the whole comparison of all strategies in a process of its own, from a
cold start: 500 seeds, 150 queries, with compiling, rows and picture.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import jax
import numpy as np
import rich.console
import rich.table
import tyro

from jaxnas import benchmarks
from jaxnas.base import Table
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.regularized_evolution import regularized_evolution

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Config:
    """Time regularized evolution on NAS-Bench-201, compiled and in plain Python."""

    benchmark: Path = ROOT.parent / "shared" / "data" / "nas" / "nasbench201.npz"
    signal: str = "valid_acc_12ep"
    queries: int = 500
    population: int = 50
    tournament: int = 10
    seeds: tuple[int, ...] = (1, 10, 100, 1000)
    """Side by side in one compiled program."""
    python_seeds: int = 10
    """One after the other in plain Python."""
    repeats: int = 5
    """Runs of each side that are timed, alternately."""
    all: bool = False
    """Time the comparison of all strategies from a cold start instead."""


def compiled(config: Config, table: Table, num_seeds: int) -> Callable[[], float]:
    """Makes a function that searches with all seeds: the mean final fitness."""
    space = nasbench201()
    evaluator = tabular(space, table, signal=config.signal)
    strategy = regularized_evolution(
        space, population_size=config.population, tournament_size=config.tournament
    )
    keys = jax.random.split(jax.random.key(0), num_seeds)

    @jax.jit
    def run(keys, data):
        members = strategy, evaluator._replace(data=data)
        return search(keys, *members, config.queries)[1].feedback.fitness.max((0, 2))

    program = run.lower(keys, evaluator.data).compile()
    return lambda: float(np.mean(program(keys, evaluator.data)))


def plain(config: Config, table: Table) -> Callable[[], float]:
    """Makes the same function in plain Python."""
    archs = map(tuple, np.asarray(table.archs).tolist())
    column = np.asarray(table.columns[config.signal])[:, 0].tolist()
    worth = dict(zip(archs, column, strict=True))
    choices = range(5)
    others = {old: [new for new in choices if new != old] for old in choices}

    def evolve(rng: random.Random) -> float:
        population: deque[tuple[float, tuple[int, ...]]] = deque()
        best = 0.0
        for query in range(config.queries):
            if query < config.population:
                arch = tuple(rng.choices(choices, k=6))
            else:
                arch = max(rng.choices(population, k=config.tournament))[1]
                edge = int(6 * rng.random())
                new = others[arch[edge]][int(4 * rng.random())]
                arch = (*arch[:edge], new, *arch[edge + 1 :])
                population.popleft()
            fitness = worth[arch]
            population.append((fitness, arch))
            if fitness > best:
                best = fitness
        return best

    return lambda: mean(evolve(random.Random(i)) for i in range(config.python_seeds))


def seconds(run: Callable[[], float]) -> float:
    """Times one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def compare(config: Config) -> None:
    """Prints the table."""
    table = benchmarks.load(config.benchmark)
    sides = {f"{n} side by side": (compiled(config, table, n), n) for n in config.seeds}
    sides["plain Python"] = plain(config, table), config.python_seeds
    fitness = {name: run() for name, (run, _) in sides.items()}  # the first is slower
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(config.repeats):
        for name, (run, _) in sides.items():
            times[name].append(seconds(run))
    rates = {
        name: config.queries * number / median(times[name])
        for name, (_, number) in sides.items()
    }
    print(
        f"regularized evolution, {config.queries} queries, population "
        f"{config.population}, tournament {config.tournament}"
    )
    shown = rich.table.Table(box=None)
    for column in ("", "queries/s", "ratio", f"mean best {config.signal}"):
        shown.add_column(column, justify="right")
    for name, rate in rates.items():
        ratio = rate / rates["plain Python"]
        shown.add_row(name, f"{rate:,.0f}", f"{ratio:.1f}", f"{fitness[name]:.3f}")
    rich.console.Console(width=88).print(shown)
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    )


def compare_all(config: Config) -> None:
    """Runs the experiment with an empty cache and prints how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "experiments" / "tabular_search.py")]
        command += ["--benchmark", str(config.benchmark), "--signal", config.signal]
        command += ["--queries", "150", "--seeds", "500", "--workdir", f"{folder}/run"]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        print(f"{time.perf_counter() - began:.1f} seconds in all, from a cold start")


def main(config: Config) -> None:
    """Runs the comparison that is asked for."""
    (compare_all if config.all else compare)(config)


if __name__ == "__main__":
    main(tyro.cli(Config))
