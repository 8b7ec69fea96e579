"""How long surrogates take to fit and to predict, beside scikit-learn.

    python experiments/benchmarks/surrogates.py

Each side fits 100 architectures of NAS-Bench-201's space and predicts mean and
deviation of 1,000: for one problem, and for 200 that are independent, ours in one
compiled program, vmapped and spread over the cores, and scikit-learn's one after the
other with its BLAS on all cores. Sides run alternately; the
table has medians, and how many times as long scikit-learn takes. The Gaussian process
is also timed by its number of points, up to 5,000, with the memory of its program.
Fitness is synthetic, or that of a table (--benchmark nasbench201.npz).

Two minutes on two CPU cores for the Gaussian process and the ensemble (--rows), one for
the sizes; forests of 200 problems take longer: --problems 10. To expect there, of one
problem and of 200: a Gaussian process 7 and 13 times as fast as scikit-learn's, an
ensemble 10 and 20 times; forests and support vectors, scikit-learn's own, as fast.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import tyro
from surrogates_problems import SPACE, Problems, draw_problems, features, source
from surrogates_scaling import grow
from surrogates_sklearn import OTHERS, UPDATES

from jaxnas import cli, parallel
from jaxnas.base import Array, History, InputError, Surrogate
from jaxnas.surrogates import SURROGATES

PROCESS = {"kernel": "rbf", "encoding": "one_hot", "targets": "standard"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gp, 1 start": ("gp", PROCESS | {"num_starts": 1}),
    "gp, 4 starts": ("gp", PROCESS | {"num_starts": 4}),
    "ensemble": (
        "ensemble",
        {"encoding": "one_hot", "targets": "standard", "num_updates": UPDATES},
    ),
    "random_forest": ("random_forest", {"encoding": "one_hot", "targets": "standard"}),
    "svm": ("svm", {"encoding": "one_hot", "targets": "standard"}),
    "graph_predictor": ("graph_predictor", {"targets": "standard"}),
}
"""Rows of the table: our surrogates and their arguments."""
ON_HOST = "random_forest", "svm"


@dataclass(frozen=True)
class Config:
    """Time surrogates beside scikit-learn, and the Gaussian process by its points."""

    preset: tyro.conf.Suppress[str] = ""
    benchmark: Path | None = None
    """A table of NAS-Bench-201; without one, fitness is synthetic."""
    signal: str = "valid_acc_12ep"
    rows: tuple[str, ...] = tuple(SETTINGS)
    """Which surrogates; none leaves this part out."""
    points: int = 100
    predicted: int = 1000
    problems: int = 200
    """Independent ones, fitted side by side."""
    timed_problems: int = 5
    """Of these scikit-learn fits so many; its time is scaled to all."""
    repeats: int = 5
    """Runs of each side that are timed, alternately."""
    side_repeats: int = 3
    """The same where all problems are fitted."""
    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 5000)
    """Points of the Gaussian process whose cost is measured; none leaves it out."""
    sklearn_points: int = 3000
    """The most of these that scikit-learn has too: its gradient takes 8 GB at 5,000."""
    updates: int = 3
    """In the fit of each size."""
    seed: int = 0


class Row(NamedTuple):
    """What a surrogate took for a number of problems."""

    name: str
    problems: int
    compile: float  # seconds
    ours: float  # seconds of all problems
    theirs: float | None  # scaled to all; None: there is no counterpart
    likelihoods: tuple[float, float] | None = None  # nats, means: ours and theirs


def fitted(surrogate: Surrogate, key: Array, problem: Problems) -> tuple[Any, Any]:
    """Fits one problem: its state, then mean and deviation of what is wanted."""
    known = jnp.ones(problem.fitness.shape, bool)
    history = History(problem.arch, problem.fitness, known)
    state = surrogate.fit(key, surrogate.init(key, history), history)
    return state, surrogate.predict(state, problem.wanted)


def compiled(name: str, problems: Problems) -> tuple[Callable[[], Any], float]:
    """Makes what runs a row's surrogate on all problems, and seconds of compiling."""
    kind, settings = SETTINGS[name]
    surrogate = SURROGATES[kind](SPACE, **settings)
    keys = jax.random.split(jax.random.key(0), len(problems.arch))
    args = keys, Problems(*map(jnp.asarray, problems))

    def each(key, problem):
        state, predicted = fitted(surrogate, key, problem)
        # The process that was found says how likely it is; no other state is asked.
        return (state.posterior.hyper if kind == "gp" else ()), predicted

    def side_by_side(*args):
        if kind in ON_HOST:  # whose calls take turns anyway
            return jax.vmap(each)(*args)
        spread = parallel.spread(
            lambda _, parts: jax.vmap(each)(*parts), parallel.population_mesh()
        )
        return spread((), args, jnp.ones(len(args[0])))

    if len(keys) == 1:
        args = jax.tree.map(lambda leaf: leaf[0], args)
    run = jax.jit(each if len(keys) == 1 else side_by_side)
    began = time.perf_counter()
    program = run.lower(*args).compile()
    seconds = time.perf_counter() - began
    return lambda: jax.block_until_ready(program(*args)), seconds


def measure(config: Config, name: str, problems: Problems, repeats: int) -> Row:
    """Times both sides of a row, alternately."""
    number = len(problems.arch)
    ours, compile_seconds = compiled(name, problems)
    kind = SETTINGS[name][0]
    other = OTHERS.get(kind)
    fewer = min(number, config.timed_problems)
    x, wanted = features(problems.arch[:fewer]), features(problems.wanted[:fewer])
    tasks = list(zip(x, problems.fitness[:fewer], wanted, strict=True))
    hypers, predicted = ours()  # the first is slower
    if not all(np.isfinite(part).all() for part in predicted):
        raise FloatingPointError(f"{name} predicted what is not finite")
    mine: list[float] = []
    theirs: list[float] = []
    models: list[Any] = []
    for _ in range(repeats):
        mine.append(seconds_of(ours))
        if other:
            began = time.perf_counter()
            models = [other(*task) for task in tasks]
            theirs.append((time.perf_counter() - began) * number / fewer)
    likelihoods = None
    if kind == "gp":
        found = jax.tree.map(
            lambda leaf: np.reshape(leaf, (number, -1))[:fewer], hypers
        )
        values = [
            model.log_marginal_likelihood(theta(*hyper))
            for model, *hyper in zip(models, *found, strict=True)
        ]
        best = [model.log_marginal_likelihood_value_ for model in models]
        likelihoods = float(np.mean(values)), float(np.mean(best))
    their_median = median(theirs) if theirs else None
    return Row(name, number, compile_seconds, median(mine), their_median, likelihoods)


def theta(lengths: np.ndarray, scale: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Our hyperparameters in the order of scikit-learn's kernel, logarithms both."""
    return np.concatenate([scale, lengths, noise]).astype(float)


def seconds_of(run: Callable[[], Any]) -> float:
    """Times one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def show(config: Config, rows: list[Row]) -> None:
    """Prints the table of both sides."""
    print(f"fit {config.points} and predict {config.predicted} architectures; seconds")
    table = rich.table.Table(box=None)
    columns = "problems", "compile", "ours", "scikit-learn", "ratio"
    for column in ("", *columns, "nats", "scikit-learn's"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [row.name, str(row.problems), f"{row.compile:.1f}", f"{row.ours:.4f}"]
        theirs = row.theirs
        cells += [f"{theirs:.4f}", f"{theirs / row.ours:.1f}"] if theirs else ["", ""]
        cells += [f"{nats:.2f}" for nats in row.likelihoods or ()]
        table.add_row(*cells)
    rich.console.Console(width=100).print(table)
    if config.timed_problems < config.problems:
        print(
            f"scikit-learn fitted {config.timed_problems} of {config.problems} "
            "problems, one after the other; its time is scaled to all"
        )
    print("nats: mean log marginal likelihood of the problems that both sides fitted")
    print(
        f"ensemble: ours learns by AdamW in {UPDATES} updates of all points, theirs by "
        "as many of\nAdam (alpha for decay), in float32 both; each 5 members of 64 and "
        "64 units"
    )
    print(
        "random_forest, svm: both sides are scikit-learn; the ratio is the call's cost"
    )


def check(config: Config) -> None:
    """Refuses flags out of their ranges.

    Raises:
      InputError: one is.
    """
    names = "predicted", "problems", "timed_problems", "repeats", "side_repeats"
    ranges = dict.fromkeys((*names, "updates"), (1, math.inf))
    cli.check_ranges(config, ranges | {"points": (2, math.inf), "seed": (0, math.inf)})
    unknown = [name for name in config.rows if name not in SETTINGS]
    if unknown:
        raise InputError(
            f"expected --rows of {'; '.join(SETTINGS)}, but got {unknown[0]}: "
            "choose from these"
        )
    if config.sizes and min(config.sizes) < 2:
        raise InputError(
            f"expected --sizes of 2 or more, but got {config.sizes}: change them"
        )


PRESETS = {"quick": Config(), "paper": Config()}  # the same on every device


def experiment(config: Config) -> None:
    """Prints both tables."""
    check(config)
    draw = source(config)
    rows = []
    for name in config.rows:
        for number in sorted({1, config.problems}):
            problems = draw_problems(config, draw, number)
            repeats = config.repeats if number == 1 else config.side_repeats
            rows.append(measure(config, name, problems, repeats))
            taken = f"{rows[-1].ours:.3f} s for {number}"
            print(f"{name}: {taken}", file=sys.stderr)
    if rows:
        show(config, rows)
    if config.sizes:
        grow(config, draw)
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    parallel.use_cpu_cores()
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
    cli.main(experiment, PRESETS)
