"""What searches by generators have in common: on a table, and for real."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from candidates import (
    SEARCH,
    SMALL,
    TrainingConfig,
    check_training,
    load_images,
    make_evaluator,
    make_space,
    search_candidates,
    train_best,
)
from generative_results import draw, interval, said, show
from jax import lax

from jaxnas import benchmarks, cli, runs
from jaxnas.base import (
    Array,
    Evaluator,
    Generator,
    History,
    InputError,
    PyTree,
    SearchSpace,
    Strategy,
)
from jaxnas.evaluators.tabular import tabular
from jaxnas.generation import quality
from jaxnas.incumbents import accuracy_at, follow
from jaxnas.nn.architectures import KINDS
from jaxnas.parallel import population_mesh, spread
from jaxnas.search import search
from jaxnas.spaces import SPACES, space_of
from jaxnas.strategies.bayesian_optimization import bayesian_optimization
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution
from jaxnas.surrogates import refitted

POINTS = 50, 100, 192, 400  # queries at which others report
COLUMNS = (*SEARCH, "train_loss", "train_accuracy")


@dataclass(frozen=True)
class GenerativeConfig(TrainingConfig):
    """The flags that such searches share."""

    evaluator: Literal["table", "population"] = "table"
    """population trains candidates for real, on --dataset and of --space."""
    benchmark: str = "digits"
    """Name of a table that the package carries, or the path of an .npz."""
    signals: tuple[str, ...] = ()
    """Columns of a table that strategies see, one after the other; the validation
    accuracy by default."""
    queries: int = 192
    """Evaluations of each search."""
    seeds: int = 50
    """Searches side by side; for real there is one."""
    samples: int = 10_000
    """Of the generator, that are counted."""
    qualities: tuple[Literal[tuple(SPACES)], ...] = (
        "nasbench201",
        "nasbench101",
        "chain",
    )
    """Spaces of which a generator is trained and judged besides."""
    examples: int = 10_000
    """Architectures that it learns from there."""
    pretrain: int = 20_000
    """Its updates on them."""
    network: Literal[KINDS] = "dense"
    """Of the generator: fully connected, convolutional or recurrent."""
    latent: int = 16
    """Numbers that the generator makes an architecture of."""
    batch: int = 5
    """Architectures a step of the search."""


QUICK: dict[str, Any] = SMALL | {
    "batch": 5,
    "queries": 50,
    "seeds": 10,
    "samples": 1000,
    "qualities": ("nasbench201",),
    "pretrain": 2000,
}
"""For the quick presets."""


Work = Callable[[runs.Run], dict[str, Any]]


class Method(NamedTuple):
    """A generator, and the strategy that searches by it."""

    name: str
    generator: Callable[..., Generator]  # (space, **settings)
    strategy: Callable[[SearchSpace, Generator, int], Strategy]  # number of queries


def run_method(config: Any, method: Method) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    counts = "seeds", "samples", "pretrain", "examples", "latent", "batch"
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in counts}
    ranges |= {"queries": (max(10, config.batch), inf), "seed": (0, 2**32 - 1)}
    cli.check_ranges(config, ranges)
    is_table = config.evaluator == "table"
    config, work = (on_table if is_table else for_real)(config, method)
    cli.run_or_show(config, () if is_table else COLUMNS, work, show)


def on_table(config: Any, method: Method) -> tuple[Any, Work]:
    """Reads the table; returns what runs the searches that are not done yet."""
    table = benchmarks.load(config.benchmark)
    space = space_of(table)
    dataset = table.datasets[0] if config.dataset == "auto" else config.dataset
    signals = config.signals or (benchmarks.default_signal(table),)
    config = replace(config, dataset=dataset, signals=signals)
    evaluators = {
        signal: tabular(space, table, dataset, signal=signal) for signal in signals
    }
    made = method.generator(space)
    config = replace(config, qualities=known_to(method, config.qualities))
    strategies = {method.name: method.strategy(space, made, in_steps(config))}
    strategies |= baselines(config, space)
    judges = {method.name: partial(judge, config, space, made)}

    def work(run: runs.Run) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for signal, evaluator in evaluators.items():
            for name, strategy in strategies.items():
                given = config, name, strategy, evaluator, judges.get(name)
                one = partial(search_seeds, *given)
                found.setdefault(signal, {})[name] = run.once(f"{signal}_{name}", one)
            best = float(np.max(evaluator.data.test))
            draw(run, f"{table.name}, {dataset}, {signal}", signal, best, found[signal])
        return {
            "benchmark": table.name,
            "source": table.source,
            "dataset": dataset,
            "space": space.name,
            "seeds": config.seeds,
            "queries": config.queries,
            "method": method.name,
            **found[signals[0]][method.name]["generator"],
            "incumbent_test_accuracy": {
                signal: {name: row["accuracy"] for name, row in rows.items()}
                for signal, rows in found.items()
            },
            "generator_seconds": {
                signal: rows[method.name]["seconds"] for signal, rows in found.items()
            },
            "seconds": {
                name: row["seconds"]["whole"] for name, row in found[signals[0]].items()
            },
            "best_test_accuracy": best,
            "qualities": qualities(config, method, run),
        }

    return config, work


def in_steps(config: Any) -> int:
    """The evaluations of as many whole steps as the queries take."""
    return -(-config.queries // config.batch) * config.batch


def baselines(config: Any, space: SearchSpace) -> dict[str, Strategy]:
    """What others do with as many queries, by settings that suit a few hundred."""
    size = min(30, config.queries)
    model = refitted("gp", space)
    batch = {"batch_size": config.batch, "num_queries": in_steps(config)}
    return {
        "bayesian_optimization": bayesian_optimization(space, model, **batch),
        "regularized_evolution": regularized_evolution(
            space, population_size=size, tournament_size=min(10, size)
        ),
        "random_search": random_search(space),
    }


def search_seeds(
    config: Any,
    name: str,
    strategy: Strategy,
    evaluator: Evaluator,
    judged: Callable[[PyTree, np.ndarray], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Searches with all seeds, each core one after the other; times it by its parts.

    Args:
      config: of the run.
      name: of the strategy.
      strategy: what searches.
      evaluator: of the table.
      judged: says of the generator of the first seed, once it has searched, and of
        what it asked for, how good it is; None: there is no generator.
    """
    print(f"{name}  searching", flush=True)
    key = jax.random.key(config.seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(config.seeds))
    keys, keys_init = jax.vmap(jax.random.split)(keys).T
    size = jax.eval_shape(lambda k: strategy.ask(k, 0, strategy.init(k)), key)
    steps = -(-config.queries // size.budget.size)
    seconds = dict.fromkeys(("pretraining", "searching", "compiling"), 0.0)

    def one(data, given):
        key, state = given
        given = strategy, evaluator._replace(data=data), steps
        (state, _), log = search(key, *given, initial=(state, None))
        return log, state.model.generator if judged else ()

    def timed(part, function, *args):
        """Of networks as small as these a core computes one seed's the fastest."""
        mapped = spread(
            lambda data, each: lax.map(partial(function, data), each), population_mesh()
        )
        began = time.perf_counter()
        run = jax.jit(mapped).lower(*args).compile()
        seconds["compiling"] += time.perf_counter() - began
        began = time.perf_counter()
        found = jax.block_until_ready(run(*args))
        seconds[part] = (time.perf_counter() - began) / config.seeds
        return found

    alike = jnp.ones(config.seeds)
    data = jax.tree.map(jnp.asarray, evaluator.data)
    begin = partial(timed, "pretraining", lambda _, key: strategy.init(key))
    states = begin((), keys_init, alike)
    log, fitted = timed("searching", one, data, (keys, states), alike)
    log = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 0, 1), log)
    curves = follow(log)
    points = [q for q in POINTS if q < config.queries] + [config.queries]
    found = accuracy_at(curves, curves.query, points)
    every = accuracy_at(curves, curves.query, np.arange(1, config.queries + 1))
    first = jax.tree.map(lambda x: x[:, 0].reshape(-1, *x.shape[3:]), log)
    fitted = jax.tree.map(lambda x: x[0], fitted)
    return {
        "accuracy": {
            str(q): interval(column) for q, column in zip(points, found.T, strict=True)
        },
        "every": every,
        # Those of compiling are of all seeds together.
        "seconds": {**seconds, "whole": seconds["pretraining"] + seconds["searching"]},
        "told": {"arch": first.proposal.arch, "fitness": first.feedback.fitness},
        "generator": judged(fitted, first.proposal.arch) if judged else None,
    }


def judge(
    config: Any, space: SearchSpace, made: Generator, state: PyTree, asked: np.ndarray
) -> dict[str, Any]:
    """How good a generator is that has searched; new is what was not asked for."""
    key = jax.random.key(config.seed)
    return said(quality(key, space, made, state, asked, config.samples))


def known_to(method: Method, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which spaces the generator can be of; says why the others are left out."""
    kept = []
    for name in names:
        try:
            method.generator(SPACES[name]())
            kept.append(name)
        except InputError as error:
            print(f"{name} is left out: {error}")
    return tuple(kept)


def qualities(config: Any, method: Method, run: runs.Run) -> dict[str, Any]:
    """How good a generator is that has learnt from a space's architectures alone."""

    def one(name: str) -> dict[str, Any]:
        print(f"{method.name}  learning {name}", flush=True)
        space = SPACES[name]()
        key_init, key, key_learnt = jax.random.split(jax.random.key(config.seed), 3)
        keys = jax.random.split(key_learnt, config.examples)
        learnt = jax.jit(jax.vmap(space.sample))(keys)

        def pick(key: Array) -> Array:
            return learnt[jax.random.randint(key, (), 0, config.examples)]

        known = space._replace(sample=pick)
        made = method.generator(known, num_pretrain=config.pretrain)
        nobody = jnp.zeros((1, len(space.num_choices)), jnp.int32)
        history = History(nobody, jnp.zeros(1), jnp.zeros(1, bool))
        init = jax.jit(made.init).lower(key_init, history).compile()
        began = time.perf_counter()
        state = jax.block_until_ready(init(key_init, history))
        seconds = time.perf_counter() - began
        found = quality(key, space, made, state, learnt, config.samples)
        return said(found) | {"seconds": seconds}

    return {
        name: run.once(f"quality_{name}", partial(one, name))
        for name in config.qualities
    }


def for_real(config: Any, method: Method) -> tuple[Any, Work]:
    """Reads images; returns what searches by training, and trains the best."""
    config, dataset = load_images(config)
    check_training(config, dataset)
    space, size = make_space(config, dataset)
    made = method.generator(space)
    config = replace(config, qualities=known_to(method, config.qualities))
    strategy = method.strategy(space, made, in_steps(config))
    evaluator = make_evaluator(config, dataset, space, size)

    def work(run: runs.Run) -> dict[str, Any]:
        queries = in_steps(config)
        given = space, strategy, evaluator, queries // config.batch, config.fitness
        state, arch, log = search_candidates(config, run, *given)
        asked = log.proposal.arch.reshape(queries, -1)
        own = partial(judge, config, space, made, state.model.generator, asked)
        trained = train_best(config, dataset, run, space, arch, size)
        best = {"mean": trained["test_accuracy"]}
        return {
            "dataset": dataset.name,
            "space": space.name,
            "queries": queries,
            "method": method.name,
            "architecture": space.to_string(arch),
            **run.once("generator", own),
            "incumbent_test_accuracy": {
                config.fitness: {method.name: {str(queries): best}}
            },
            **trained,
            "qualities": qualities(config, method, run),
        }

    return config, work
