"""Compares search strategies on a table of measured architectures.

    python experiments/tabular_search.py

compares all strategies on a small table that the package carries. On NAS-Bench-201:

    python experiments/tabular_search.py --benchmark nasbench201.npz --dataset cifar10

All seeds of a strategy are one compiled program. With 500 seeds and 150 queries of
every strategy it takes half a minute on two CPU cores, compiling included. Random
search should end at about 93.83 % test accuracy, local search at 94.25 %.
"""

import importlib.metadata
import inspect
import time
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from search_plan import surrogate_of
from tabular_results import (
    Part,
    draw,
    load_part,
    save_part,
    show,
    spent,
    summary,
    write_csv,
)

from jaxnas import benchmarks, cli, runs
from jaxnas.base import Evaluator, InputError, Log, SearchSpace, Strategy, Table
from jaxnas.evaluators.tabular import tabular
from jaxnas.incumbents import SLACK, cut, follow
from jaxnas.search import search
from jaxnas.spaces import space_of
from jaxnas.strategies import (
    NEED_GENERATOR,
    NEED_GRADIENT,
    NEED_OBJECTIVES,
    NEED_SURROGATE,
    STRATEGIES,
)
from jaxnas.strategies.policies import POLICIES
from jaxnas.surrogates import SURROGATES


@dataclass(frozen=True)
class Config:
    """Compare search strategies on a table of measured architectures."""

    preset: Literal["quick", "paper"] = "paper"
    """quick has 100 seeds, paper 500; the other flags change a preset's values."""
    benchmark: str = "digits"
    """Name of a table that the package carries, or the path of an .npz."""
    dataset: str | None = None
    """One of the table's; its first by default."""
    signal: str | None = None
    """The column that strategies see; the validation accuracy by default."""
    minimize: bool = False
    """Less of the signal is better, as of a loss."""
    partial: bool = False
    """The table may lack architectures of its space; those score -inf."""
    strategies: tuple[str, ...] = ()
    """All that the table allows by default."""
    policy: Literal[tuple(POLICIES)] | None = None
    """Of reinforce: a logit for each choice, or the LSTM controller of ENAS."""
    surrogate: Literal[tuple(SURROGATES)] | None = None
    """Of the strategies that have one, which are left out without this."""
    population_size: int | None = None
    """Of the strategies that have a population, instead of their defaults."""
    tournament_size: int | None = None
    """Of the strategies that have tournaments, instead of their defaults."""
    queries: int = 150
    """Evaluations at the signal's full budget; a part of it counts as that part."""
    seconds: float | None = None
    """Simulated training seconds instead of queries; epochs without a clock."""
    seeds: int = 500
    workdir: Path = Path("runs/tabular_search")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""


PRESETS = {"quick": Config(seeds=100), "paper": Config(seeds=500)}
# Those that need something that a table has not, or a generator: gan_search.py.
NOT_HERE = (*NEED_GRADIENT, *NEED_GENERATOR, *NEED_OBJECTIVES, "enas")
VERIFIED = 10  # of the queries of predictor_search
MOST_CALLS = 1000  # of one compiled program, until its queries are spent


class Problem(NamedTuple):
    """What is asked of the strategies."""

    table: Table
    evaluator: Evaluator
    strategies: dict[str, Strategy]
    unit: str  # of what is spent: queries, seconds or epochs
    most: float  # that may be spent
    whole: int  # evaluations at the full budget that this pays for, about
    left_out: list[str]


def main(config: Config) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    config, problem = build(config)
    cli.run_or_show(config, (), partial(work, config, problem), show)


def build(config: Config) -> tuple[Config, Problem]:
    """Fills in the defaults, and refuses what cannot work before a folder is made."""
    positive = "queries", "seconds", "seeds", "population_size", "tournament_size"
    ranges = {name: (1, inf) for name in positive} | {"seed": (0, 2**32 - 1)}
    cli.check_ranges(config, ranges)
    table = benchmarks.load(config.benchmark)
    config = replace(
        config,
        dataset=config.dataset or table.datasets[0],
        signal=config.signal or benchmarks.default_signal(table),
    )
    space = space_of(table)
    evaluator = tabular(
        space,
        table,
        config.dataset,
        signal=str(config.signal),
        minimize=config.minimize,
        partial=config.partial,
    )
    quantity, full = benchmarks.split_column(str(config.signal))
    pairs = map(benchmarks.split_column, table.columns)
    budgets = tuple(sorted(b for q, b in pairs if q == quantity and b <= full))
    config, left_out = choose(config, space, budgets)
    price = float(np.mean(evaluator.data.cost[:, -1])) or 1.0
    whole = config.queries if config.seconds is None else ceil(config.seconds / price)
    strategies = {
        name: make(name, space, config, budgets, whole) for name in config.strategies
    }
    timed = all(f"cost_{budget}ep" in table.columns for budget in budgets)
    unit, most = "queries", float(config.queries)
    if config.seconds is not None:
        unit, most = ("seconds" if timed else "epochs"), config.seconds
    return config, Problem(table, evaluator, strategies, unit, most, whole, left_out)


def choose(
    config: Config, space: SearchSpace, budgets: tuple[int, ...]
) -> tuple[Config, list[str]]:
    """Returns the names of the strategies, and of those that need more budgets."""
    not_here = (*NOT_HERE, *(NEED_SURROGATE if config.surrogate is None else ()))
    not_here += ("progressive",) if space.empty is None else ()
    names = [name for name in STRATEGIES if name not in not_here]
    lacking = [name for name in config.strategies if name in NEED_SURROGATE]
    if lacking and config.surrogate is None:
        raise InputError(
            f"expected --surrogate for {lacking[0]}, but got none: name one of "
            f"{', '.join(SURROGATES)}"
        )
    unknown = [name for name in config.strategies if name not in names]
    if unknown:
        raise InputError(
            f"expected --strategies of {', '.join(names)}, but got {unknown[0]}: "
            "choose from these"
        )
    asked = tuple(dict.fromkeys(config.strategies or names))
    lacking = [n for n in asked if len(budgets) < 2 and "budgets" in parameters(n)]
    if lacking and config.strategies:
        raise InputError(
            f"expected two budgets or more of {config.signal} for {lacking[0]}, but "
            f"{config.benchmark} has {len(budgets)}: leave the strategy out"
        )
    kept = tuple(name for name in asked if name not in lacking)
    return replace(config, strategies=kept), lacking


def parameters(name: str) -> dict[str, Any]:
    """The parameters of a strategy and their defaults."""
    found = inspect.signature(STRATEGIES[name]).parameters
    return {key: parameter.default for key, parameter in found.items()}


def make(
    name: str, space: SearchSpace, config: Config, budgets: tuple[int, ...], whole: int
) -> Strategy:
    """Makes a strategy with the settings of the configuration that it has."""
    known = parameters(name)
    given = {
        "population_size": config.population_size,
        "tournament_size": config.tournament_size,
        "policy": config.policy,
        "num_queries": whole,
        "num_train": max(whole - VERIFIED, 1),
        "num_verify": VERIFIED,
        "beam_size": ceil(whole / max(len(space.num_choices) - 1, 1)),
        "budgets": budgets,
    }
    if name in NEED_SURROGATE:
        given["surrogate"] = surrogate_of(name, str(config.surrogate), space)
    settings = {k: v for k, v in given.items() if k in known and v is not None}
    population = (known | settings).get("population_size") or 0
    part = budgets[0] / budgets[-1] if "budgets" in known else 1
    if config.seconds is None and population * part > config.queries:
        raise InputError(
            f"expected --queries of {ceil(population * part)} or more for {name} with "
            f"its population of {population}, but got {config.queries}: ask for more, "
            "or for a smaller --population-size"
        )
    return STRATEGIES[name](space, **settings)


def work(config: Config, problem: Problem, run: runs.Run) -> dict[str, Any]:
    """Runs the strategies that are not done; writes and returns what was found."""
    for name in problem.left_out:
        print(f"{name} is left out: it needs two budgets, {config.signal} has one")
    if problem.unit == "epochs":
        print("the table has no seconds: what --seconds limits are epochs of training")
    parts = {}
    for name, strategy in problem.strategies.items():
        path = run.path(f"part_{name}.npz")
        if not path.exists():
            save_part(path, run_strategy(name, strategy, config, problem))
        parts[name] = load_part(path)
    write_csv(run.path("results.csv"), parts)
    title = f"{problem.table.name}, {config.dataset}, {config.signal}"
    best = float(np.max(problem.evaluator.data.test))
    draw(run.path("regret.png"), parts, best, problem.most, problem.unit, title)
    return {
        "benchmark": problem.table.name,
        "source": problem.table.source,
        "sha256": benchmarks.digest(benchmarks.arrays_of(problem.table)),
        "jaxnas": importlib.metadata.version("jaxnas"),
        "space": problem.table.space,
        "dataset": config.dataset,
        "signal": config.signal,
        problem.unit: problem.most,
        "seeds": config.seeds,
        "best_test_accuracy": best,
        "strategies": {name: summary(part) for name, part in parts.items()},
    }


def run_strategy(
    name: str, strategy: Strategy, config: Config, problem: Problem
) -> Part:
    """Searches with all seeds, in as many calls of one program as it takes."""
    key = jax.random.key(config.seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(config.seeds))
    proposal = jax.eval_shape(lambda k: strategy.ask(k, 0, strategy.init(k)), key)
    chunk = ceil(problem.whole / proposal.budget.size)
    compiling = running = 0.0

    def scan(f, init, xs):
        nonlocal compiling, running
        program = jax.jit(lambda *args: jax.lax.scan(*args))
        run = program.lower(f, init, xs[:chunk]).compile()
        compiling = time.perf_counter() - began
        logs: list[Log] = []
        for start in range(0, len(xs), chunk):
            since = time.perf_counter()
            init, log = jax.block_until_ready(run(f, init, xs[start : start + chunk]))
            running += time.perf_counter() - since
            logs.append(jax.device_get(log))
            whole = jax.tree.map(lambda *x: np.concatenate(x), *logs)
            done = spent(follow(whole), problem.unit)[:, -1].min()
            if done >= problem.most * (1 - SLACK):
                return init, whole
            if not (logs[-1].proposal.budget > 0).any():
                print(f"{name}  is at its end, after {done:.6g} {problem.unit}")
                return init, whole
        raise InputError(
            f"expected {name} to spend {problem.most:.6g} {problem.unit}, but it spent "
            f"{done:.6g} in {len(xs)} steps: ask for less"
        )

    print(f"{name}  compiling", flush=True)
    began = time.perf_counter()
    steps = chunk * MOST_CALLS
    _, log = search(keys, strategy, problem.evaluator, steps, scan)
    curves = follow(log)
    queries = curves.query[:, -1].sum()
    rate = queries / running
    print(f"{name}  {queries:.0f} queries, {rate:.3g} a second", flush=True)
    curves = cut(curves, spent(curves, problem.unit), problem.most)
    return Part(curves, compiling, rate)


if __name__ == "__main__":
    cli.main(main, PRESETS)
