"""Tunes regularized evolution on one dataset of a table and tests it on another.

    python experiments/tune_strategy.py --benchmark nasbench201.npz

Population sizes are an axis of the compiled program, beside the seeds. What is chosen
has the best mean signal on the first dataset; its test accuracy on the second is shown
beside that of the paper's defaults (100 and 25), which had no such choice. Under a
minute on two CPU cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from jaxnas import benchmarks, cli
from jaxnas.base import Array, Evaluator, InputError, SearchSpace
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import search
from jaxnas.spaces import space_of
from jaxnas.strategies.regularized_evolution import regularized_evolution

NASBENCH201 = Path(__file__).parents[2] / "shared" / "data" / "nas" / "nasbench201.npz"


@dataclass(frozen=True)
class Config:
    """Tune regularized evolution on one dataset and test it on another."""

    preset: Literal["quick", "paper"] = "paper"
    """quick has 100 seeds, paper 500."""
    benchmark: str = str(NASBENCH201)
    """Name of a table that the package carries, or the path of an .npz."""
    tune_on: str = "cifar10"
    test_on: str = "cifar100"
    signal: str = "valid_acc_12ep"
    """The column that the strategy sees, and that chooses."""
    population_sizes: tuple[int, ...] = (5, 10, 20, 30, 50, 100)
    tournament_sizes: tuple[int, ...] = (3, 10, 25)
    queries: int = 150
    seeds: int = 500
    seed: int = 0


PRESETS = {"quick": Config(seeds=100), "paper": Config(seeds=500)}
DEFAULT = 100, 25  # population and tournament in arXiv:1802.01548


def main(config: Config) -> None:
    """Prints the table of all settings and what becomes of the best."""
    table = benchmarks.load(config.benchmark)
    space = space_of(table)
    tune, test = (
        tabular(space, table, dataset, signal=config.signal)
        for dataset in (config.tune_on, config.test_on)
    )
    check(config)
    key_tune, key_test = jax.random.split(jax.random.key(config.seed))
    found: dict[tuple[int, int], float] = {}
    for tournament in config.tournament_sizes:
        sizes = config.population_sizes
        fitness, _ = run(config, space, tune, sizes, tournament, key_tune)
        scores = fitness.mean(1).tolist()
        found |= {(size, tournament): x for size, x in zip(sizes, scores, strict=True)}
    show_scores(config, found)
    chosen = max(found, key=lambda setting: found[setting])
    lines = [f"test accuracy on {config.test_on}, mean and its standard error:"]
    for name, (size, tournament) in {"tuned": chosen, "paper's": DEFAULT}.items():
        # The same keys: the two differ by their settings alone.
        _, (accuracy,) = run(config, space, test, (size,), tournament, key_test)
        error = accuracy.std(ddof=1) / np.sqrt(len(accuracy))
        what = f"population {size}, tournament {tournament}"
        lines.append(f"  {name:8}{what:32}{accuracy.mean():.3f} ± {error:.3f}")
    print("\n".join(lines))


def check(config: Config) -> None:
    """Refuses sizes that cannot work."""
    if config.tune_on == config.test_on:
        raise InputError(f"expected two datasets, but got {config.test_on} twice")
    if config.seeds < 2 or not config.population_sizes or not config.tournament_sizes:
        raise InputError("expected 2 seeds or more, and sizes: give some")
    if min(*config.population_sizes, *config.tournament_sizes, config.queries) < 1:
        raise InputError("expected sizes and --queries of 1 or more: change them")
    if max(config.population_sizes) > config.queries:
        raise InputError(
            f"expected --population-sizes up to the {config.queries} queries, but got "
            f"{max(config.population_sizes)}: ask for more --queries"
        )


def run(
    config: Config,
    space: SearchSpace,
    evaluator: Evaluator,
    sizes: tuple[int, ...],
    tournament: int,
    key: Array,
) -> tuple[np.ndarray, np.ndarray]:
    """The incumbents' signal and test accuracy, float32[P, S] for P sizes."""
    print(f"population {sizes}, tournament {tournament}: searching", flush=True)
    keys = jax.random.split(key, config.seeds)

    @jax.jit
    def searches(sizes, data):
        def one(size):
            strategy = regularized_evolution(
                space,
                population_size=size,
                capacity=capacity,
                tournament_size=tournament,
            )
            members = strategy, evaluator._replace(data=data)
            feedback = search(keys, *members, config.queries)[1].feedback
            best = jnp.argmax(feedback.fitness[:, :, 0], 0)  # the earliest of equals
            values = feedback.fitness, feedback.metrics["test_accuracy"]
            return [jnp.take_along_axis(x[:, :, 0], best[None], 0)[0] for x in values]

        return jax.vmap(one)(sizes)

    capacity = max(sizes)
    fitness, accuracy = searches(jnp.array(sizes), evaluator.data)
    return np.asarray(fitness), np.asarray(accuracy)


def show_scores(config: Config, found: dict[tuple[int, int], float]) -> None:
    """Prints the mean signal of every setting, the best in bold."""
    title = f"mean {config.signal} on {config.tune_on}, {config.queries} queries"
    table = rich.table.Table(title=title, box=None, title_justify="left")
    for column in ("population", *(f"tournament {t}" for t in config.tournament_sizes)):
        table.add_column(column, justify="right")
    best = max(found.values())
    for size in config.population_sizes:
        scores = [found[size, tournament] for tournament in config.tournament_sizes]
        row = [f"[b]{x:.3f}[/b]" if x == best else f"{x:.3f}" for x in scores]
        table.add_row(str(size), *row)
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.main(main, PRESETS)
