"""Regularized evolution, the genetic algorithm and local search, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import OK, Evaluator, Feedback, InputError
from jaxnas.search import incumbent, search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.genetic_algorithm import genetic_algorithm
from jaxnas.strategies.local_search import local_search
from jaxnas.strategies.regularized_evolution import regularized_evolution

SPACE = categorical((4, 4, 4, 4))
WORTH = np.array([[3, 9, 1, 4], [2, 0, 7, 5], [8, 6, 1, 3], [0, 2, 4, 9]], np.float32)
BEST = [1, 2, 0, 3]
SEEDS = 20


def separable() -> Evaluator:
    """Fitness is the sum of what the choices are worth; 33 at most."""

    def evaluate(key, data, state, proposal):
        each = jax.vmap(lambda arch: data[jnp.arange(4), arch].sum())(proposal.arch)
        ones = jnp.ones(len(each))
        return state, Feedback(each, ones, jnp.full(len(each), OK), {})

    return Evaluator(WORTH, lambda key: (), evaluate)


def run(strategy, steps, seed=0):
    return search(jax.random.key(seed), strategy, separable(), steps)[1]


def distance(one, other):
    return int((np.asarray(one) != np.asarray(other)).sum())


@pytest.mark.parametrize(
    "make",
    [
        local_search,
        functools.partial(regularized_evolution, population_size=20, tournament_size=5),
        functools.partial(genetic_algorithm, population_size=10),
    ],
)
def test_optimum_of_a_separable_table_is_found(make):
    keys = jax.random.split(jax.random.key(0), SEEDS)
    _, log = search(keys, make(SPACE), separable(), 150)
    found = jax.vmap(incumbent, 1)(log)
    assert (np.asarray(found) == BEST).all(1).sum() >= 18


def test_regularized_evolution_mutates_the_best_of_the_living():
    # Every tournament of so many sees all four, so the best is always the parent.
    strategy = regularized_evolution(SPACE, population_size=4, tournament_size=200)
    log = run(strategy, 40)
    archs, fitness = np.asarray(log.proposal.arch[:, 0]), log.feedback.fitness[:, 0]
    for t in range(4, 40):
        living = np.arange(t - 4, t)  # whoever is older has died
        parent = living[
            np.asarray(fitness)[living] == np.asarray(fitness)[living].max()
        ]
        assert 1 in [distance(archs[t], archs[p]) for p in parent]


def test_population_size_may_be_an_axis():
    def archs_of(size):
        strategy = regularized_evolution(SPACE, population_size=size, capacity=8)
        return run(strategy, 30).proposal.arch

    together = jax.vmap(archs_of)(jnp.array([3, 8]))
    for size, found in zip((3, 8), together, strict=True):
        alone = run(regularized_evolution(SPACE, population_size=size), 30)
        np.testing.assert_array_equal(found, alone.proposal.arch)


def test_genetic_rates_may_be_an_axis():
    def archs_of(rate):
        strategy = genetic_algorithm(SPACE, population_size=5, mutation_rate=rate)
        return run(strategy, 30).proposal.arch

    together = jax.vmap(archs_of)(jnp.array([0.1, 0.9]))
    for rate, found in zip((0.1, 0.9), together, strict=True):
        np.testing.assert_array_equal(found, archs_of(jnp.float32(rate)))


def test_genetic_children_come_from_the_generation_before():
    strategy = genetic_algorithm(
        SPACE, population_size=6, elite_size=0, mutation_rate=0.0, crossover_rate=0.0
    )
    archs = np.asarray(run(strategy, 30).proposal.arch[:, 0])
    for begin in range(6, 30, 6):
        parents = {tuple(arch) for arch in archs[begin - 6 : begin]}
        assert {tuple(arch) for arch in archs[begin : begin + 6]} <= parents


def test_traced_population_may_be_as_small_as_the_elite():
    @jax.vmap
    def best(size):
        strategy = genetic_algorithm(
            SPACE, population_size=size, capacity=6, elite_size=2
        )
        log = search(jax.random.key(0), strategy, separable(), 40)[1]
        return log.feedback.fitness[:, 0]

    found = np.asarray(best(jnp.array([1, 2, 6])))
    assert all(len(set(row[10:])) > 1 for row in found)  # children are still new


def test_genetic_elite_lives_on_without_a_query():
    strategy = genetic_algorithm(SPACE, population_size=6, elite_size=2)
    keys = jax.random.key(3)
    (state, _), log = search(keys, strategy, separable(), 6)
    fitness = np.sort(np.asarray(log.feedback.fitness[:, 0]))[::-1]
    np.testing.assert_array_equal(state.fitness[1, :2], fitness[:2])
    assert int(state.children) == 2
    (state, _), _ = search(keys, strategy, separable(), 10)
    assert int(state.children) == 2  # four queries make a whole generation
    assert state.fitness[0].max() >= fitness[0]


def test_local_search_climbs_to_a_local_optimum_and_begins_again():
    log = run(local_search(SPACE), 120)
    archs = np.asarray(log.proposal.arch[:, 0])
    fitness = np.asarray(log.feedback.fitness[:, 0])
    at, seen, climbs = 0, set(), 1
    for t in range(1, len(archs)):
        if len(seen) == 12:  # nothing was better: any architecture may come
            at, seen, climbs = t, set(), climbs + 1
            continue
        assert distance(archs[t], archs[at]) == 1
        assert tuple(archs[t]) not in seen
        seen.add(tuple(archs[t]))
        if fitness[t] > fitness[at]:
            at, seen = t, set()
    assert climbs > 1


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (regularized_evolution, {"population_size": 0}),
        (regularized_evolution, {"tournament_size": 0}),
        (regularized_evolution, {"population_size": 9, "capacity": 8}),
        (genetic_algorithm, {"mutation_rate": 1.5}),
        (genetic_algorithm, {"population_size": 4, "elite_size": 4}),
        (local_search, {"budget": 0}),
    ],
)
def test_wrong_sizes_are_refused_at_build(make, how):
    with pytest.raises(InputError, match="expected"):
        make(SPACE, **how)
