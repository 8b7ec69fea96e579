import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

from jaxnas.base import FULL, OK, Evaluator, Feedback, InputError
from jaxnas.encoding import one_hot
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.evolution_strategy import (
    DistributionState,
    evolution_strategy,
    natural_gradient,
)

KEY = jax.random.key(0)


def worth_evaluator(worth):
    """Fitness is the sum of what the choices are worth; worth is float[D, K]."""

    def evaluate(key, data, state, proposal):
        encoded = jax.nn.one_hot(proposal.arch, data.shape[1])
        fitness = jnp.sum(encoded * data[None], (1, 2))
        zeros = jnp.zeros_like(fitness)
        return state, Feedback(fitness, zeros, zeros.astype(jnp.int32) + OK, {})

    return Evaluator(jnp.array(worth, jnp.float32), lambda key: (), evaluate)


def tell(strategy, state, fitness, key=KEY):
    fitness = jnp.array(fitness)
    proposal = strategy.ask(key, jnp.int32(0), state)
    zeros = jnp.zeros_like(fitness)
    feedback = Feedback(fitness, zeros, zeros.astype(jnp.int32), {})
    return strategy.tell(key, jnp.int32(0), state, proposal, feedback)


@pytest.mark.parametrize(
    ("fitness", "expected"),
    [
        ([3.0, 1.0], [0.5, -0.5]),
        ([10.0, 30.0, 20.0], [-1 / 3, 1 / 3, 0]),
        ([5.0, 5.0, 1.0], [1 / 6, 1 / 6, -1 / 3]),  # equals share
        ([-np.inf, 2.0, 1.0], [0, 0.5, -0.5]),  # a failure is left out
        ([-np.inf, 2.0], [0, 0]),
        ([-np.inf, -np.inf], [0, 0]),
    ],
)
def test_utilities_rank_what_succeeded(fitness, expected):
    encoded = jnp.eye(len(fitness))[:, None]  # a choice of its own for each
    found = natural_gradient(encoded, jnp.array(fitness))
    np.testing.assert_allclose(found[0], expected, atol=1e-7)


def test_utilities_see_only_the_order():
    fitness = jax.random.normal(KEY, (6,))
    encoded = jnp.eye(6)[:, None]
    one = natural_gradient(encoded, fitness)
    other = natural_gradient(encoded, 100 * jnp.exp(fitness))
    np.testing.assert_array_equal(one, other)


def test_natural_gradient_equals_the_analytic_of_a_linear_fitness():
    """Two samples' ranks on one decision of two choices, of which the second is better.

    With probability 2 p q the two differ, and then the gradient is (-1/2, 1/2) * 2 / 2.
    """
    probs = jnp.array([[0.3, 0.7]])
    choices = jax.random.categorical(KEY, jnp.log(probs[0]), shape=(50_000, 2, 1))
    encoded = jax.nn.one_hot(choices, 2)
    fitness = choices[..., 0].astype(jnp.float32)
    grads = jax.vmap(natural_gradient)(encoded, fitness)
    expected = 2 * 0.3 * 0.7 * np.array([-0.5, 0.5])
    np.testing.assert_allclose(grads.mean(0)[0], expected, atol=0.005)


def test_natural_gradient_is_inverse_fisher_times_gradient():
    """In the first K - 1 probabilities: F^-1 d/dp log p(x) = one_hot(x) - p."""
    probs = np.array([0.2, 0.5, 0.3])

    def log_prob(free, choice):
        return jnp.log(jnp.append(free, 1 - free.sum())[choice])

    scores = np.array([jax.grad(log_prob)(jnp.array(probs[:2]), c) for c in range(3)])
    fisher = (probs[:, None, None] * scores[:, :, None] * scores[:, None, :]).sum(0)
    encoded = jnp.eye(3)[:, None]  # three samples, a different choice each
    fitness = jnp.array([1.0, 3.0, 2.0])
    expected = np.linalg.solve(fisher, scores.T) @ np.array([-1, 1, 0]) / 3
    found = natural_gradient(encoded, fitness)
    np.testing.assert_allclose(found[0, :2], expected, atol=1e-5)


def test_step_moves_probabilities_by_the_natural_gradient():
    strategy = evolution_strategy(categorical((3, 3)), learning_rate=0.2, batch_size=3)
    state = strategy.init(KEY)
    archs = strategy.ask(KEY, jnp.int32(0), state).arch
    fitness = jnp.array([0.1, 0.5, 0.3])
    encoded = jax.vmap(one_hot, (0, None))(archs, (3, 3))
    expected = state.probs + 0.2 * natural_gradient(encoded, fitness)
    np.testing.assert_allclose(
        tell(strategy, state, fitness).probs, expected, atol=5e-6
    )


def test_samples_come_as_often_as_the_probabilities_say():
    probs = jnp.array([[0.2, 0.8, 0.0], [0.5, 0.1, 0.4]])
    strategy = evolution_strategy(categorical((2, 3)), batch_size=20_000)
    archs = strategy.ask(KEY, jnp.int32(0), DistributionState(probs)).arch
    found = jax.nn.one_hot(archs, 3).mean(0)
    np.testing.assert_allclose(found, probs, atol=0.015)


def test_probabilities_keep_their_sum_and_floor():
    num_choices, floor = (1, 2, 4), 0.2
    strategy = evolution_strategy(
        categorical(num_choices), learning_rate=1.0, floor=floor, batch_size=4
    )
    state = strategy.init(KEY)

    @jax.jit
    def tell_sums(key, state):
        archs = strategy.ask(key, jnp.int32(0), state).arch
        return tell(strategy, state, archs.sum(1).astype(jnp.float32), key)

    for key in jax.random.split(KEY, 30):
        state = tell_sums(key, state)
        np.testing.assert_allclose(state.probs.sum(1), 1, rtol=1e-5)
        for row, size in zip(np.array(state.probs), num_choices, strict=True):
            assert (row[:size] >= floor / size * 0.9999).all()
            assert (row[size:] == 0).all()
    np.testing.assert_allclose(state.probs[1, :2], [0.1, 0.9], atol=1e-5)


def test_failed_step_changes_nothing():
    strategy = evolution_strategy(categorical((2, 4)), batch_size=2)
    state = tell(strategy, strategy.init(KEY), [1.0, 2.0])
    for fitness in ([-np.inf, -np.inf], [3.0, -np.inf]):
        told = tell(strategy, state, fitness)
        assert_trees_equal(told, state)


def test_credit_goes_to_the_sample_as_drawn():
    """A space that repairs every architecture to the first one."""
    plain = evolution_strategy(categorical((4, 4)), batch_size=4)
    space = categorical((4, 4))
    space = space._replace(discretize=lambda weights: jnp.zeros(2, jnp.int32))
    repairing = evolution_strategy(space, batch_size=4)
    state, fitness = plain.init(KEY), [1.0, 2.0, 3.0, 4.0]
    assert not repairing.ask(KEY, jnp.int32(0), state).arch.any()
    assert_trees_equal(tell(repairing, state, fitness), tell(plain, state, fitness))


def test_evolution_strategy_finds_the_best_of_a_small_table():
    worth = np.random.default_rng(0).uniform(size=(4, 4))
    strategy = evolution_strategy(categorical((4,) * 4))
    (state, _), log = search(
        jax.random.split(KEY, 20), strategy, worth_evaluator(worth), 40
    )
    answers = jax.vmap(strategy.recommend, (0, 1))(state, log)
    assert (answers == worth.argmax(1)[None]).all(1).sum() >= 18
    best = np.asarray(state.probs)[:, range(4), worth.argmax(1)]
    assert best.mean() > 0.5  # uniform: 0.25


def test_rate_and_floor_can_be_axes():
    def run(rate, floor):
        strategy = evolution_strategy(
            categorical((3, 3)), learning_rate=rate, floor=floor
        )
        return tell(strategy, strategy.init(KEY), jnp.arange(5.0)).probs

    probs = jax.vmap(run)(jnp.array([0.0, 0.5, 0.5]), jnp.array([0.1, 0.1, 1.0]))
    np.testing.assert_allclose(probs[0], 1 / 3, rtol=1e-5)
    assert abs(probs[1] - 1 / 3).max() > 0.01
    np.testing.assert_allclose(probs[2], 1 / 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 1}, "batch_size of 2 or more, but got 1"),
        ({"budget": 0}, "budget of 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate of 0 or more"),
        ({"floor": 1.5}, "floor of from 0 to 1, but got 1.5"),
    ],
)
def test_evolution_strategy_refuses_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        evolution_strategy(categorical((2, 3)), **arguments)


def test_evolution_strategy_asks_for_a_population_at_its_budget():
    for budget in (7, FULL):
        strategy = evolution_strategy(categorical((2, 3)), batch_size=4, budget=budget)
        proposal = strategy.ask(KEY, jnp.int32(0), strategy.init(KEY))
        assert proposal.arch.shape == (4, 2)
        assert (proposal.budget == budget).all()
