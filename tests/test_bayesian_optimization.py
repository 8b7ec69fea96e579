"""Bayesian optimisation, what it takes for worth evaluating, and what it remembers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_surrogate import known_evaluator, known_surrogate, total, worth_of
from scipy.stats import norm
from trees import assert_trees_equal, to_numpy

from jaxnas.base import InputError, Surrogate
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.acquisitions import ACQUISITIONS
from jaxnas.strategies.bayesian_optimization import bayesian_optimization
from jaxnas.strategies.memory import best_fitness, canonical_keys, choose, remember
from jaxnas.strategies.memory import empty as nothing
from jaxnas.surrogates.gp import gp

NUM_CHOICES = (3, 2, 4)
SPACE = categorical(NUM_CHOICES)
EVERY_ARCH = jnp.array(list(itertools.product(*map(range, NUM_CHOICES))), jnp.int32)
KEYS = jax.random.split(jax.random.key(5), 2)
# Candidates are then all 24 architectures, but once in thousands of steps.
ALL = {"num_random": 250, "num_mutants": 10}


def numbers(arch):
    """Of int32[..., D]: which of all."""
    return np.ravel_multi_index(np.moveaxis(np.asarray(arch), -1, 0), NUM_CHOICES)


MEAN, DEVIATION = jnp.array([0.0, 1.0, 2.0, 2.0]), jnp.array([1.0, 0.5, 0.0, 2.0])
STUB = Surrogate(
    lambda key, history: (),
    lambda key, state, history: (),
    lambda state, arch: (MEAN, DEVIATION),
    lambda key, state, arch: MEAN + DEVIATION * jax.random.normal(key),
)


def acquired(name, key=KEYS[0], best=1.5):
    arch = jnp.zeros((4, 3), jnp.int32)
    return ACQUISITIONS[name](key, STUB, (), arch, jnp.float32(best))


def test_expected_improvement_is_the_mean_of_what_is_gained():
    draws = np.random.default_rng(0).normal(size=(200_000, 4))
    gains = np.maximum(np.asarray(MEAN) + np.asarray(DEVIATION) * draws - 1.5, 0)
    found = acquired("expected_improvement")
    np.testing.assert_allclose(found, gains.mean(0), atol=0.01)
    apart = (2 - 1.5) / 2
    expected = 2 * (apart * norm.cdf(apart) + norm.pdf(apart))
    np.testing.assert_allclose(found[3], expected, rtol=1e-5)


def test_expected_improvement_without_doubt_is_what_is_gained():
    found = acquired("expected_improvement", best=1.5)[2]
    np.testing.assert_allclose(found, 0.5, rtol=1e-5)
    assert acquired("expected_improvement", best=2.5)[2] == 0
    far = acquired("expected_improvement", best=1e4)
    assert np.isfinite(far).all()
    assert (np.asarray(far) >= 0).all()


def test_upper_confidence_bound_is_two_deviations_up():
    np.testing.assert_allclose(acquired("upper_confidence_bound"), [2, 2, 2, 6])


def test_thompson_samplings_are_draws():
    keys = jax.random.split(KEYS[0], 20_000)
    joint = jax.vmap(lambda key: acquired("thompson_sampling", key))(keys)
    apart = jax.vmap(lambda key: acquired("independent_thompson_sampling", key))(keys)
    for draws, correlation in ((joint, 1), (apart, 0)):
        np.testing.assert_allclose(draws.mean(0), MEAN, atol=0.06)
        np.testing.assert_allclose(draws.std(0), DEVIATION, atol=0.06)
        found = np.corrcoef(draws[:, 0], draws[:, 3])[0, 1]
        assert found == pytest.approx(correlation, abs=0.03)


def test_memory_is_a_ring_without_padding_and_failures():
    memory = nothing(SPACE, 4)
    np.testing.assert_array_equal(best_fitness(memory), 0.0)
    fitness = jnp.array([1.0, -jnp.inf, 3.0])
    memory = remember(SPACE, memory, jnp.array([0, 1, -1]), EVERY_ARCH[:3], fitness)
    np.testing.assert_array_equal(memory.asked, [True, True, False, False])
    np.testing.assert_array_equal(memory.history.known, [True, False, False, False])
    np.testing.assert_array_equal(memory.history.fitness, [1, 0, 0, 0])
    assert best_fitness(memory) == 1
    fitness = jnp.array([-5.0, jnp.nan, -4.0])
    memory = remember(SPACE, memory, jnp.array([3, 4, 5]), EVERY_ARCH[3:6], fitness)
    np.testing.assert_array_equal(memory.asked, [True, True, False, True])
    np.testing.assert_array_equal(memory.history.known, [False, True, False, True])
    np.testing.assert_array_equal(memory.history.fitness, [0, -4, 0, -5])
    np.testing.assert_array_equal(numbers(memory.history.arch), [4, 5, 0, 3])
    np.testing.assert_array_equal(
        memory.key, canonical_keys(SPACE, memory.history.arch)
    )
    assert best_fitness(memory) == -4


def test_choice_is_the_best_of_those_not_asked():
    memory = remember(
        SPACE, nothing(SPACE, 4), jnp.arange(2), EVERY_ARCH[:2], jnp.array([0, jnp.nan])
    )
    arch = EVERY_ARCH[jnp.array([0, 1, 2, 3, 3, 4])]
    scores = jnp.array([[9.0, 9, 1, 5, 7, jnp.nan], [9, 9, 1, 5, 7, -jnp.inf]])
    scores = scores[jnp.array([0, 0, 1])]
    place, found = choose(SPACE, memory, arch, scores)
    np.testing.assert_array_equal(place[:2], [4, 2])
    np.testing.assert_array_equal(found, [7, 1, -np.inf])
    assert 0 <= place[2] < len(arch)


def test_choice_takes_one_of_isomorphic_architectures():
    space = nasbench201()
    # What enters a node that nothing leaves makes no difference.
    arch = jnp.array([[1, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 2], [1, 0, 0, 0, 0, 3]])
    scores = jnp.array([[3.0, 2, 1]] * 3)
    place, found = choose(space, nothing(space, 2), arch, scores)
    np.testing.assert_array_equal(place[:2], [0, 2])
    np.testing.assert_array_equal(found, [3, 1, -np.inf])


def run(num_steps, key=KEYS[0], fails=None, surrogate=None, **settings):
    surrogate = known_surrogate(SPACE) if surrogate is None else surrogate
    strategy = bayesian_optimization(
        SPACE, surrogate, **({"batch_size": 1, "num_initial": 4} | ALL | settings)
    )
    states, log = search(key, strategy, known_evaluator(SPACE, fails), num_steps)
    return strategy, states[0], log


@pytest.mark.parametrize("batch_size", [1, 3])
def test_best_of_the_others_are_asked_one_after_the_other(batch_size):
    num_initial = 4 if batch_size == 1 else 6
    settings = {"batch_size": batch_size, "num_initial": num_initial}
    steps = -(-24 // batch_size)
    _, state, log = run(steps, acquisition="upper_confidence_bound", **settings)
    asked = numbers(log.proposal.arch).ravel()
    worth = np.asarray(total(worth_of(SPACE), EVERY_ARCH))
    others = [i for i in np.argsort(-worth) if i not in asked[:num_initial]]
    later = asked[num_initial:]
    np.testing.assert_array_equal(later[: len(others)], others[: len(later)])
    # What is told is what the surrogate is shown.
    told = min(24, steps * batch_size)
    np.testing.assert_array_equal(state.model.fitness[:told], worth[asked][:told])
    np.testing.assert_array_equal(numbers(state.model.arch[:told]), asked[:told])
    np.testing.assert_array_equal(state.model.known, np.arange(150) < told)


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_nothing_is_asked_twice_until_all_were(acquisition):
    strategy, state, log = run(10, acquisition=acquisition, batch_size=3, num_initial=3)
    asked = numbers(log.proposal.arch)
    first = set(asked[0])
    later = asked[1:].ravel()
    new = 24 - len(first)
    assert set(later[:new]) == set(range(24)) - first
    assert ((later >= 0) & (later < 24)).all()
    assert (state.score == 0).all()
    best = EVERY_ARCH[jnp.argmax(total(worth_of(SPACE), EVERY_ARCH))]
    np.testing.assert_array_equal(strategy.recommend(state, log), best)


def test_failures_are_not_asked_again():
    _, state, log = run(24, fails=lambda arch: arch[0] != 1, batch_size=1)
    later = numbers(log.proposal.arch)[4:, 0]
    first = set(numbers(log.proposal.arch)[:4, 0])
    assert len(set(later)) == len(later)
    assert not first & set(later)
    failed = np.asarray(log.proposal.arch[:, 0, 0] != 1)
    assert failed.any()
    assert not failed.all()
    np.testing.assert_array_equal(state.model.known[:24], ~failed)
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()


@pytest.mark.parametrize("failing", ["some", "all"])
def test_gaussian_process_finds_the_optimum(failing):
    fails = {
        "some": lambda arch: arch[0] == 0,
        "all": lambda arch: arch[0] >= 0,
    }[failing]
    surrogate = gp(SPACE, num_starts=1, num_updates=5, kernel="hamming")
    _, state, log = run(
        5,
        fails=fails,
        surrogate=surrogate,
        num_initial=4,
        batch_size=4,
        num_queries=20,
        acquisition="expected_improvement",
        num_mutants=20,
        num_random=60,
    )
    asked = numbers(log.proposal.arch)
    assert len(set(asked[1:].ravel())) == 16
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()
    worth = np.array(total(worth_of(SPACE), EVERY_ARCH))
    if failing == "some":
        worth[EVERY_ARCH[:, 0] == 0] = -np.inf
    if failing != "all":
        assert worth.argmax() in asked


def test_seeds_side_by_side_are_searches_in_one_trace():
    traced = []
    strategy = bayesian_optimization(
        SPACE, known_surrogate(SPACE), batch_size=2, num_initial=4, num_queries=6
    )

    def tell(*args):
        traced.append("tell")
        return strategy.tell(*args)

    counted = strategy._replace(tell=tell)
    states, log = search(KEYS, counted, known_evaluator(SPACE), 6)
    assert len(traced) == 1
    for i, key in enumerate(KEYS):
        alone = search(key, counted, known_evaluator(SPACE), 6)
        assert_trees_equal(
            jax.tree.map(lambda leaf: leaf[i], states),  # noqa: B023
            alone[0],
        )
        assert_trees_equal(
            jax.tree.map(lambda leaf: leaf[:, i], log),  # noqa: B023
            alone[1],
        )


def test_thompson_sampling_draws_for_each_of_a_batch():
    """The best of a draw each; by one draw these would be its best in order."""
    _, state, _ = run(2, acquisition="thompson_sampling", batch_size=8, num_initial=8)
    # Descending would be one of 40,320 orders.
    assert (np.diff(state.score) > 0).any()
    _, state, _ = run(
        2, acquisition="expected_improvement", batch_size=8, num_initial=8
    )
    assert (np.diff(state.score) <= 0).all()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"num_initial": 0}, "num_initial of 1 or more, but got 0"),
        ({"batch_size": 0}, "batch_size of 1 or more, but got 0"),
        ({"budget": 0}, "budget of 1 or more, but got 0"),
        ({"num_parents": 0}, "num_parents of 1 or more, but got 0"),
        ({"num_mutants": 0}, "num_mutants of 1 or more, but got 0"),
        ({"num_random": 0}, "num_random of 1 or more, but got 0"),
        ({"batch_size": 9, "num_queries": 8}, "num_queries of 9 or more, but got 8"),
        ({"acquisition": "entropy"}, "an acquisition of expected.*, but got entropy"),
    ],
)
def test_wrong_arguments_are_refused_at_build(wrong, expected):
    with pytest.raises(InputError, match=expected):
        bayesian_optimization(SPACE, STUB, **wrong)
