"""What is known of searches on the table of NAS-Bench-201, with CIFAR-10."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnas import benchmarks
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies import STRATEGIES

TABLE = Path(__file__).parents[2] / "shared" / "data" / "nas" / "nasbench201.npz"
OPTIMUM = 94.373
SEEDS = 200

pytestmark = pytest.mark.skipif(
    not TABLE.exists(), reason="there is no ../shared/data/nas/nasbench201.npz"
)


@functools.cache
def table():
    return benchmarks.load(TABLE)


def final_accuracy(name, steps, seeds=SEEDS, signal="valid_acc_12ep", **how):
    """Test accuracy of each seed's best by the signal, in percent."""
    space = nasbench201()
    evaluator = tabular(space, table(), "cifar10", signal=signal)
    keys = jax.random.split(jax.random.key(0), seeds)
    _, log = search(keys, STRATEGIES[name](space, **how), evaluator, steps)
    fitness = np.moveaxis(np.asarray(log.feedback.fitness), 1, 0).reshape(seeds, -1)
    test = np.moveaxis(np.asarray(log.feedback.metrics["test_accuracy"]), 1, 0)
    best = fitness.argmax(1)
    return test.reshape(seeds, -1)[np.arange(seeds), best]


@functools.cache
def at_random():
    return final_accuracy("random_search", 150)


def test_evolution_finds_the_best_cell_by_test_accuracy():
    # A plain Python version of it: 98 of 100 seeds.
    how = {"population_size": 50, "tournament_size": 10, "signal": "test_acc_200ep"}
    found = final_accuracy("regularized_evolution", 500, 10, **how)
    assert (found > OPTIMUM).sum() >= 9


@pytest.mark.parametrize(
    ("name", "how", "plain_python"),
    [
        ("random_search", {}, 93.83),
        (
            "regularized_evolution",
            {"population_size": 30, "tournament_size": 10},
            94.19,
        ),
    ],
)
def test_mean_is_that_of_plain_python(name, how, plain_python):
    found = final_accuracy(name, 150, **how)
    # Both are means of seeds, of which neither is exact.
    assert abs(found.mean() - plain_python) < 4 * found.std() / np.sqrt(SEEDS) + 0.01


@pytest.mark.parametrize(
    "name",
    ["local_search", "regularized_evolution", "genetic_algorithm", "reinforce"],
)
def test_strategy_beats_random_search(name):
    found = final_accuracy(name, 150)
    error = np.hypot(found.std(), at_random().std()) / np.sqrt(SEEDS)
    assert found.mean() - at_random().mean() > 3 * error


def test_evolution_strategy_beats_random_search():
    found = final_accuracy("evolution_strategy", 30)  # five a step
    error = np.hypot(found.std(), at_random().std()) / np.sqrt(SEEDS)
    assert found.mean() - at_random().mean() > 3 * error
