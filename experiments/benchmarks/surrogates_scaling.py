"""How the cost of a Gaussian process grows with its points, for surrogates.py."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from surrogates_problems import SPACE, Source, features
from surrogates_sklearn import new_process

from jaxnas.base import History
from jaxnas.surrogates.gaussian_process import gram, log_likelihood
from jaxnas.surrogates.gp import gp
from jaxnas.surrogates.kernels import KERNELS, Kernel


class Size(NamedTuple):
    """What so many points cost."""

    points: int
    compile: float  # seconds of all three programs
    gradient: float  # seconds of the likelihood with its gradient
    predict: float  # seconds
    memory: float  # MB that the program of `fit` takes: temporaries and arguments
    gradient_theirs: float  # seconds, of scikit-learn; NaN: not timed
    predict_theirs: float


def grow(config: Any, draw: Source) -> None:
    """Measures all sizes and prints their table."""
    found = []
    for number in sorted(set(config.sizes)):
        found.append(measure_size(config, draw, number))
        print(f"{number} points: {found[-1].memory:.1f} MB", file=sys.stderr)
    show_sizes(config, found)


def measure_size(config: Any, draw: Source, number: int) -> Size:
    """Times ours, then scikit-learn's where it is not too big."""
    archs, fitness = draw(0, number + config.predicted)
    known = jnp.ones(number, bool)
    history = History(jnp.asarray(archs[:number]), jnp.asarray(fitness[:number]), known)
    settings = {"encoding": "one_hot", "targets": "standard", "num_starts": 1}
    surrogate = gp(SPACE, kernel="rbf", num_updates=config.updates, **settings)
    x, wanted = features(archs[:number]), features(archs[number:])
    y = (fitness[:number] - fitness[:number].mean()) / fitness[:number].std()
    form = Kernel(KERNELS["rbf"], (0,) * x.shape[1])

    def likelihood(hyper, x, y):
        return log_likelihood(gram(form, hyper, x, known), y, known)

    def fit(key, history):
        return surrogate.fit(key, surrogate.init(key, history), history)

    began = time.perf_counter()
    args = jax.random.key(0), history
    fitting = jax.jit(fit).lower(*args).compile()
    state = fitting(*args)
    hyper = state.posterior.hyper
    gradient = jax.jit(jax.value_and_grad(likelihood)).lower(hyper, x, y).compile()
    asked = jnp.asarray(archs[number:])
    predict = jax.jit(surrogate.predict).lower(state, asked).compile()
    compile_seconds = time.perf_counter() - began
    repeats = config.repeats if number < 2000 else 1
    ours = [
        seconds(lambda: gradient(hyper, x, y), repeats),
        seconds(lambda: predict(state, asked), repeats),
    ]
    theirs = [math.nan, math.nan]
    if number <= config.sklearn_points:
        model = new_process(optimizer=None).fit(x, fitness[:number])
        start = model.kernel_.theta
        likelihood_of = model.log_marginal_likelihood
        theirs = [
            seconds(lambda: likelihood_of(start, eval_gradient=True), repeats),
            seconds(lambda: model.predict(wanted, return_std=True), repeats),
        ]
    found = fitting.memory_analysis()
    memory = (found.temp_size_in_bytes + found.argument_size_in_bytes) / 1e6
    return Size(number, compile_seconds, *ours, memory, *theirs)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """The median of calls, after one that is not counted."""
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return median(times[1:])


def exponents(found: Sequence[Size], field: str) -> list[float]:
    """By which power of the points a quantity grew since the last size."""
    values = [getattr(size, field) for size in found]
    points = [size.points for size in found]
    grown = np.diff(np.log(values)) / np.diff(np.log(points))
    return [math.nan, *grown.tolist()]


def show_sizes(config: Any, found: Sequence[Size]) -> None:
    """Prints the table: quantities, each with its exponent."""
    print(
        f"\nGaussian process by its points: seconds of a likelihood gradient and to "
        f"predict\n{config.predicted}, MB of a fit's program; "
        "^ is the exponent between rows"
    )
    fields = {"gradient": ".5f", "predict": ".5f", "memory": ".2f"}
    fields |= {"gradient_theirs": ".5f", "predict_theirs": ".5f"}
    table = rich.table.Table(box=None)
    heads = "gradient", "predict", "MB", "scikit-learn", "predict"
    columns = [part for head in heads for part in (head, "^")]
    for column in ("points", "compile", *columns):
        table.add_column(column, justify="right")
    powers = {field: exponents(found, field) for field in fields}
    for i, size in enumerate(found):
        cells = [str(size.points), f"{size.compile:.1f}"]
        for field, form in fields.items():
            values = (getattr(size, field), form), (powers[field][i], ".1f")
            cells += ["" if math.isnan(x) else format(x, how) for x, how in values]
        table.add_row(*cells)
    rich.console.Console(width=120).print(table)
    if any(math.isnan(size.gradient_theirs) for size in found):
        print(f"scikit-learn is timed up to {config.sklearn_points} points")
