import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

from jaxnas.base import FULL, OK, Evaluator, Feedback, InputError
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.q_learning import epsilon_at, q_learning, replay, rewards, walk

KEY = jax.random.key(0)
IS_CHOICE = np.array([[True, True, False], [True, True, True]])
ARCHS = np.stack(np.meshgrid(range(2), range(3), indexing="ij"), -1).reshape(-1, 2)
REWARD = np.array([0.3, -1.0, 0.9, 0.2, 1.5, -0.4], np.float32)


def worth_evaluator(worth):
    """Fitness is the sum of what the choices are worth; worth is float[D, K]."""

    def evaluate(key, data, state, proposal):
        encoded = jax.nn.one_hot(proposal.arch, data.shape[1])
        fitness = jnp.sum(encoded * data[None], (1, 2))
        zeros = jnp.zeros_like(fitness)
        return state, Feedback(fitness, zeros, zeros.astype(jnp.int32) + OK, {})

    return Evaluator(jnp.array(worth, jnp.float32), lambda key: (), evaluate)


def tell(strategy, state, fitness, key=KEY, step=0):
    step, fitness = jnp.int32(step), jnp.array([fitness])
    proposal = strategy.ask(key, step, state)
    feedback = Feedback(fitness, jnp.zeros(1), jnp.zeros(1, jnp.int32), {})
    return proposal.arch[0], strategy.tell(key, step, state, proposal, feedback)


def test_replay_converges_to_the_largest_reward():
    def again(values, _):
        return replay(values, ARCHS, REWARD, IS_CHOICE, 0.1), None

    values, _ = jax.lax.scan(again, jnp.zeros((2, 4, 3)), None, 200)
    expected = REWARD.reshape(2, 3)
    np.testing.assert_allclose(values[1, 1:3], expected, atol=1e-4)
    np.testing.assert_allclose(values[0, 0, :2], expected.max(1), atol=1e-4)
    greedy = walk(jnp.float32(0), values, jax.random.uniform(KEY, (2, 4)), IS_CHOICE)
    np.testing.assert_array_equal(greedy, ARCHS[REWARD.argmax()])


def test_replay_of_one_is_the_update_of_the_paper():
    values = jax.random.normal(KEY, (2, 4, 3))
    arch, reward, rate, discount = np.array([[1, 2]]), 0.7, 0.25, 0.9
    found = replay(values, arch, jnp.array([reward]), IS_CHOICE, rate, discount)
    expected = np.array(values)
    expected[1, 2, 2] += rate * (reward - expected[1, 2, 2])  # the last one first
    best = expected[1, 2].max()
    expected[0, 0, 1] += rate * (discount * best - expected[0, 0, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_replay_of_the_same_equals_one_after_another():
    values, arch, reward = jnp.zeros((1, 4, 3)), np.array([[1]]), 2.0
    is_choice = IS_CHOICE[1:]
    for count in (1, 4):
        archs = np.repeat(arch, count, 0)
        found = replay(values, archs, jnp.full(count, reward), is_choice, 0.1)
        expected = 0.0
        for _ in range(count):
            expected += 0.1 * (reward - expected)
        np.testing.assert_allclose(found[0, 0, 1], expected, rtol=1e-5)
        assert jnp.count_nonzero(found) == 1


def test_replay_ignores_values_of_what_is_no_choice():
    values = jnp.zeros((2, 3, 2)).at[1, :, 1].set(100.0)
    is_choice = np.array([[True, True], [True, False]])
    found = replay(values, np.array([[0, 0]]), jnp.array([1.0]), is_choice, 1.0)
    assert found[0, 0, 0] == 1.0


def test_walk_explores_uniformly_and_within_choices():
    values = jnp.zeros((2, 4, 3)).at[:, :, 1].set(1.0).at[0, 0, 2].set(9.0)
    noise = jax.random.uniform(KEY, (20_000, 2, 4))
    archs = jax.vmap(walk, (None, None, 0, None))(0.5, values, noise, IS_CHOICE)
    first = np.bincount(archs[:, 0], minlength=3) / len(archs)
    second = np.bincount(archs[:, 1], minlength=3) / len(archs)
    np.testing.assert_allclose(first, [1 / 4, 3 / 4, 0], atol=0.015)
    np.testing.assert_allclose(second, [1 / 6, 4 / 6, 1 / 6], atol=0.015)


def test_walk_draws_among_equals():
    noise = jax.random.uniform(KEY, (20_000, 2, 4))
    values = jnp.zeros((2, 4, 3))
    archs = jax.vmap(walk, (None, None, 0, None))(0.0, values, noise, IS_CHOICE)
    found = np.bincount(archs[:, 0] * 3 + archs[:, 1], minlength=6) / len(archs)
    np.testing.assert_allclose(found, 1 / 6, atol=0.015)


def test_epsilon_follows_the_schedule_of_the_paper():
    steps = np.arange(2800)
    found = jax.vmap(epsilon_at, (0, None))(steps, 2700)
    lengths = [1500, 100, 100, 100, 150, 150, 150, 150, 150, 250]
    expected = np.repeat([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert epsilon_at(83, 150) == 1
    assert epsilon_at(84, 150) < 1
    np.testing.assert_allclose(epsilon_at(149, 150), 0.1, rtol=1e-6)


def test_rewards_are_standardised_over_what_is_stored():
    fitness = jnp.array([90.0, 94.0, 10.0, 0.0])
    found = rewards(fitness, jnp.int32(3))
    stored = np.array([90.0, 94.0, 10.0])
    expected = (stored - stored.mean()) / stored.std()
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    np.testing.assert_allclose(rewards(fitness / 100, jnp.int32(3)), found, rtol=1e-4)
    assert (rewards(fitness, jnp.int32(1)) == 0).all()
    assert (rewards(jnp.zeros(4), jnp.int32(0)) == 0).all()


def test_memory_is_a_ring_of_what_succeeded():
    strategy = q_learning(categorical((4, 4, 4)), capacity=3)
    state, told = strategy.init(KEY), []
    told_fitness = [1.0, -np.inf, 2.0, 3.0, -np.inf, 4.0]
    keys = jax.random.split(KEY, len(told_fitness))
    tell_one = jax.jit(functools.partial(tell, strategy))
    for key, fitness in zip(keys, told_fitness, strict=True):
        arch, state = tell_one(state, fitness, key)
        told.append(np.array(arch))
    assert state.stored == 4
    np.testing.assert_array_equal(state.fitness, [4, 2, 3])
    np.testing.assert_array_equal(state.arch, [told[5], told[2], told[3]])


def test_failure_changes_nothing():
    strategy = q_learning(categorical((2, 3)))
    state = strategy.init(KEY)
    tell_one = jax.jit(functools.partial(tell, strategy))
    assert_trees_equal(tell_one(state, -jnp.inf)[1], state)
    for i, key in enumerate(jax.random.split(KEY, 3)):
        _, state = tell_one(state, float(i), key)
    assert jnp.count_nonzero(state.values)
    assert_trees_equal(tell_one(state, -jnp.inf)[1], state)


def test_credit_goes_to_the_sample_as_drawn():
    """A space that repairs every architecture to the first one."""
    space = categorical((4, 4))
    plain = q_learning(space)
    repairing = q_learning(
        space._replace(discretize=lambda weights: jnp.zeros(2, jnp.int32))
    )
    arch, expected = tell(plain, plain.init(KEY), 1.0)
    repaired, found = tell(repairing, repairing.init(KEY), 1.0)
    assert arch.any()
    assert not repaired.any()
    assert_trees_equal(found, expected)


def test_q_learning_finds_the_best_of_a_small_table():
    worth = np.random.default_rng(0).uniform(size=(4, 4))
    strategy = q_learning(categorical((4,) * 4), num_queries=300)
    (state, _), log = search(
        jax.random.split(KEY, 20), strategy, worth_evaluator(worth), 300
    )
    answers = jax.vmap(strategy.recommend, (0, 1))(state, log)
    assert (answers == worth.argmax(1)[None]).all(1).sum() >= 18
    fitness = log.feedback.fitness[..., 0]
    assert fitness[-30:].mean() > fitness[:150].mean() + worth.std()


def test_rates_and_queries_can_be_axes():
    evaluator = worth_evaluator(np.arange(6.0).reshape(2, 3))

    def run(rate, num_queries):
        strategy = q_learning(
            categorical((3, 3)),
            learning_rate=rate,
            num_queries=num_queries,
            capacity=8,
        )
        return search(KEY, strategy, evaluator, 8)[0][0].values

    values = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.1]), jnp.array([8, 4]))
    assert not values[0].any()
    assert values[1].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_queries": 0}, "num_queries of 1 or more, but got 0"),
        ({"replay_size": 0}, "replay_size of 1 or more"),
        ({"capacity": 0}, "capacity of 1 or more"),
        ({"budget": 0}, "budget of 1 or more"),
        ({"learning_rate": 2.0}, "learning_rate of from 0 to 1"),
        ({"discount": -1.0}, "discount of from 0 to 1"),
    ],
)
def test_q_learning_refuses_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        q_learning(categorical((2, 3)), **arguments)


def test_q_learning_asks_for_one_at_its_budget():
    for budget in (7, FULL):
        strategy = q_learning(categorical((2, 3)), budget=budget)
        proposal = strategy.ask(KEY, jnp.int32(0), strategy.init(KEY))
        assert proposal.arch.shape == (1, 2)
        assert (proposal.budget == budget).all()


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_rewards_of_equals_are_nothing(count):
    found = rewards(jnp.full(count, 93.7, jnp.float32), jnp.int32(count))
    np.testing.assert_array_equal(found, np.zeros(count))
