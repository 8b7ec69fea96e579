"""Train a hundred architectures, predict a thousand, verify the ten best.

    python experiments/surrogate_search.py --surrogate gp

does so on a small table that the package carries; on NAS-Bench-201, or for real:

    python experiments/surrogate_search.py --benchmark nasbench201.npz
    python experiments/surrogate_search.py --evaluator population --dataset digits

It prints predicted beside measured for those verified, and draws predictions with error
bars, how each surrogate ranks and how sure it is by the number that it has seen, the
acquisition of Bayesian optimisation over time, the Pareto front of accuracy and
parameters, and which decisions matter. The quick preset takes some minutes on two CPU
cores, on a table as for real.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from candidates import (
    SMALL,
    TrainingConfig,
    check_training,
    cost_of,
    load_images,
    make_evaluator,
    make_space,
    train_best,
)
from surrogate_parts import acquired, explained, front_of_evaluated, fronts
from surrogate_recipe import Problem, run_for_real, run_on_table
from surrogate_results import draw, show, summary
from surrogate_study import study

from jaxnas import benchmarks, cli, data, parallel, runs
from jaxnas.base import Evaluator, InputError, Table
from jaxnas.benchmarks import split_column
from jaxnas.evaluators.objectives import size_costs
from jaxnas.evaluators.tabular import tabular
from jaxnas.spaces import space_of
from jaxnas.strategies.acquisitions import ACQUISITIONS
from jaxnas.strategies.memory import canonical_keys
from jaxnas.surrogates import SURROGATES

PARTS = "study", "acquisition", "front", "importance"
LEAST_TESTED = 10  # of what was trained for real, in the study
IMAGE = 32, 32, 3  # of CIFAR-10, for which parameters of a table's networks are counted


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Train some architectures, predict many, verify the best."""

    workdir: Path = Path("runs/surrogate_search")
    """Where results go; the same command goes on from what is there."""
    evaluator: Literal["table", "population"] = "table"
    """population trains candidates for real, on --dataset and of --space."""
    benchmark: str = "digits"
    """Name of a table that the package carries, or the path of an .npz."""
    signal: str | None = None
    """The column of a table that is predicted; the validation accuracy by default."""
    surrogate: Literal[tuple(SURROGATES)] = "gp"
    train: int = 100
    """Random architectures that are evaluated, and learnt from."""
    predict: int = 1000
    """Random architectures that are predicted."""
    verify: int = 10
    """The best of those, which are evaluated."""
    seeds: int = 20
    """Of each part; for real, one after the other."""

    parts: tuple[Literal[PARTS], ...] = PARTS
    """What is done besides; the acquisition on tables alone."""
    sizes: tuple[int, ...] = (78, 156, 469, 781, 1563)
    """Architectures that surrogates have seen, in the study of all of them."""
    acquisition: Literal[tuple(ACQUISITIONS)] = "independent_thompson_sampling"
    queries: int = 150
    """Of the search by acquisition."""
    front_queries: int = 500
    """Of the search for the front, on tables."""
    front_signal: str | None = None
    """The column that is to be much there; the largest test accuracy by default."""
    reference: float = 80.0
    """Worth of the hypervolume's reference point; its cost is the largest there is."""


PRESETS = {
    "quick": Config(seeds=5, sizes=(25, 50, 100), **SMALL),
    "paper": Config(),
}


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    check(config)
    if config.evaluator == "table":
        config, problem, table = on_table(config)
        front = with_cost(config, problem, table) if "front" in config.parts else None
        work_with = partial(work_on_table, config, problem, table, front)
    else:
        config, dataset = load_images(config)
        check_training(config, dataset)
        space, size = make_space(config, dataset)
        evaluator = make_evaluator(config, dataset, space, size)
        is_loss = config.fitness == "cross_entropy"
        unit = "-cross entropy (nats)" if is_loss else f"{config.fitness} (%)"
        factor = 1.0 if is_loss else 100.0
        problem = Problem(space, evaluator, False, dataset.name, unit, factor)
        work_with = partial(work_for_real, config, problem, dataset, size)
    columns = ("fitness", "failed", "train_loss", "train_accuracy")
    cli.run_or_show(config, columns, work_with, show)


def check(config: Config) -> None:
    """Refuses numbers that cannot work."""
    counts = "train", "verify", "seeds"
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in counts}
    ranges |= {
        "train": (2, inf),
        "predict": (max(2, config.verify), 100_000),
        "queries": (20, inf),
        "front_queries": (20, inf),
        "seed": (0, 2**32 - 1),
        "reference": (-inf, inf),
    }
    cli.check_ranges(config, ranges)
    if "study" in config.parts and (not config.sizes or min(config.sizes) < 2):
        raise InputError(
            f"expected --sizes of 2 or more, but got {config.sizes}: change them, or "
            "leave study out of --parts"
        )


def on_table(config: Config) -> tuple[Config, Problem, Table]:
    """Reads the table, and says in the configuration what is taken of it."""
    table = benchmarks.load(config.benchmark)
    dataset = table.datasets[0] if config.dataset == "auto" else config.dataset
    signal = config.signal or benchmarks.default_signal(table)
    config = replace(config, dataset=dataset, signal=signal)
    if "acquisition" in config.parts:
        cli.check_ranges(config, {"queries": (20, len(table.archs))})
    space = space_of(table)
    evaluator = tabular(space, table, dataset, signal=signal)
    fits = tuple(n for n in config.sizes if n <= len(table.archs) - LEAST_TESTED)
    if len(fits) < len(config.sizes) and "study" in config.parts:
        print(f"{table.name} has {len(table.archs)} architectures: sizes are {fits}")
    config = replace(config, sizes=fits)
    if config.train + config.verify >= len(table.archs):
        raise InputError(
            f"expected --train below the {len(table.archs)} architectures of "
            f"{table.name}, but got {config.train}: lower it"
        )
    name = " ".join(dict.fromkeys((table.name, dataset)))
    problem = Problem(space, evaluator, True, name, signal, 1.0)
    return config, problem, table


def work_on_table(
    config: Config,
    problem: Problem,
    table: Table,
    front: Evaluator | None,
    run: runs.Run,
) -> dict[str, Any]:
    """Runs what is not done yet; returns what result.json says."""
    values = np.asarray(table.columns[str(config.signal)])
    fitness = values[:, table.datasets.index(config.dataset)]
    found = {"recipe": run.once("recipe", partial(run_on_table, config, problem))}
    archs = np.asarray(table.archs)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "study": partial(study_all, config, problem, archs, fitness, run),
        "acquisition": partial(acquired, config, problem),
        "front": partial(fronts, config, problem, front),
        "importance": lambda: explained(config, problem, found["recipe"]["seeds"][0]),
    }
    for name in config.parts:
        found[name] = run.once(name, work[name])
    draw(run, problem, found)
    return summary(config, problem, found)


def study_all(
    config: Config,
    problem: Problem,
    archs: np.ndarray,
    fitness: np.ndarray,
    run: runs.Run,
) -> dict[str, Any]:
    """The study of all sizes, each kept when it is done: name -> size -> how well."""
    found: dict[str, Any] = {}
    for size in config.sizes:
        given = problem.space, archs, fitness, size, config.seeds
        work = partial(study, *given, config.seed)
        for name, row in run.once(f"study_{size}", work).items():
            found.setdefault(name, {})[size] = row
    return found


def with_cost(config: Config, problem: Problem, table: Table) -> Evaluator:
    """The evaluator of the table with a cost, and worth by the test accuracy."""
    if config.cost == "latency":
        raise InputError(
            "expected --cost parameters or flops on a table, but got latency: it is "
            "measured with --evaluator population"
        )
    named = [name for name in table.columns if split_column(name)[0] == config.cost]
    if not named:
        if problem.space.sizes is None:
            raise InputError(
                f"expected a table with {config.cost} for its front, but {table.name} "
                f"has none, nor does space {problem.space.name} know them: leave front "
                "out of --parts"
            )
        cost = size_costs(problem.space, IMAGE)[config.cost]
        counts = jax.jit(jax.vmap(cost))(table.archs)
        named = [f"{config.cost}_1ep"]
        column = jnp.tile(counts[:, None], len(table.datasets))
        table = table._replace(columns={**table.columns, named[0]: column})
    tests = [b for q, b in map(split_column, table.columns) if q == "test_acc"]
    signal = config.front_signal or (
        f"test_acc_{max(tests)}ep" if tests else str(config.signal)
    )
    made = tabular(
        problem.space, table, config.dataset, signal=signal, costs=named[-1:]
    )
    best = float(np.max(made.data.fitness))
    if not best > config.reference:
        raise InputError(
            f"expected --reference below the best {signal}, {best:.6g}, but got "
            f"{config.reference}: lower it"
        )
    return made


def work_for_real(
    config: Config,
    problem: Problem,
    dataset: data.Dataset,
    size: dict[str, Any],
    run: runs.Run,
) -> dict[str, Any]:
    """The same with training; the best of all seeds is trained on all images."""
    found = {"recipe": run.once("recipe", partial(run_for_real, config, problem, run))}
    rows = found["recipe"]["seeds"]
    archs = np.concatenate([np.array(row["archs"], np.int32) for row in rows])
    fitness = np.concatenate([np.array(row["fitness"], np.float32) for row in rows])
    archs, fitness = archs[np.isfinite(fitness)], fitness[np.isfinite(fitness)]
    keys = canonical_keys(problem.space, jnp.asarray(archs))
    _, first = np.unique(keys, axis=0, return_index=True)  # of equal ones
    sizes = tuple(n for n in config.sizes if n <= len(first) - LEAST_TESTED)
    if len(sizes) < len(config.sizes) and "study" in config.parts:
        print(f"{len(first)} architectures were trained: sizes are {sizes}")
    measured = archs[first], fitness[first]
    shape = dataset.train_images.shape[1:]
    cost = cost_of(config, problem.space, shape, size)
    study_of = replace(config, sizes=sizes)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "study": partial(study_all, study_of, problem, *measured, run),
        "front": lambda: front_of_evaluated(config, problem, rows, cost),
        "importance": lambda: explained(config, problem, rows[0]),
    }
    for name in config.parts:
        if name in work:
            found[name] = run.once(name, work[name])
        else:
            print(f"{name} is for tables, where a search of its own costs nothing")
    draw(run, problem, found)
    best = max(rows, key=lambda row: row["best_fitness"])["best"]
    arch = np.array(best, np.int32)
    trained = train_best(config, dataset, run, problem.space, arch, size)
    alone = {"mean": trained["test_accuracy"], "ci95_low": None, "ci95_high": None}
    return summary(config, problem, found) | {"best_test_accuracy": alone} | trained


if __name__ == "__main__":
    parallel.use_cpu_cores()
    cli.main(main, PRESETS)
