import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

from jaxnas.base import FULL, OK, Evaluator, Feedback, InputError, Proposal
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.policies import POLICIES, lstm
from jaxnas.strategies.policy_gradient import Baseline, compare, policy_gradient
from jaxnas.strategies.reinforce import reinforce

NUM_CHOICES = (2, 3)
ARCHS = np.array(list(itertools.product(range(2), range(3))), np.int32)
KEY = jax.random.key(0)


def policy_and_params(name):
    """A policy over NUM_CHOICES whose probabilities differ clearly."""
    if name == "lstm":
        policy = lstm(NUM_CHOICES, hidden_size=4, temperature=0.5)
        params = jax.tree.map(lambda leaf: 10 * leaf, policy.init(KEY))
    else:
        policy = POLICIES[name](NUM_CHOICES)
        params = jnp.array([[0.5, -0.3, 9.0], [0.2, 1.0, -0.7]])
    return policy, params


def worth_evaluator(worth):
    """Fitness is the sum of what the choices are worth; worth is float[D, K]."""

    def evaluate(key, data, state, proposal):
        encoded = jax.nn.one_hot(proposal.arch, data.shape[1])
        fitness = jnp.sum(encoded * data[None], (1, 2))
        zeros = jnp.zeros_like(fitness)
        return state, Feedback(fitness, zeros, zeros.astype(jnp.int32) + OK, {})

    return Evaluator(jnp.array(worth, jnp.float32), lambda key: (), evaluate)


@pytest.mark.parametrize("name", POLICIES)
def test_log_prob_is_of_a_distribution(name):
    policy, params = policy_and_params(name)
    log_prob, _ = jax.vmap(policy.score, (None, 0))(params, ARCHS)
    np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1, rtol=1e-5)
    absent = policy.score(params, jnp.array([2, 0]))[0]
    assert jnp.exp(absent) == 0


def test_independent_policy_equals_product_of_softmax():
    policy, params = policy_and_params("independent")
    first = jax.nn.softmax(params[0, :2])
    second = jax.nn.softmax(params[1])
    log_prob, entropy = jax.vmap(policy.score, (None, 0))(params, ARCHS)
    expected = (first[:, None] * second[None]).ravel()
    np.testing.assert_allclose(jnp.exp(log_prob), expected, rtol=1e-5)
    np.testing.assert_allclose(entropy, -(expected * jnp.log(expected)).sum(), 1e-5)


def test_lstm_entropy_is_on_average_that_of_its_distribution():
    policy, params = policy_and_params("lstm")
    log_prob, entropy = jax.vmap(policy.score, (None, 0))(params, ARCHS)
    probs = jnp.exp(log_prob)
    np.testing.assert_allclose(
        (probs * entropy).sum(), -(probs * log_prob).sum(), rtol=1e-4
    )
    second = probs.reshape(2, 3)
    conditional = second / second.sum(1, keepdims=True)
    assert abs(conditional[0] - conditional[1]).max() > 0.01  # it is autoregressive


@pytest.mark.parametrize("name", POLICIES)
def test_samples_come_as_often_as_scored(name):
    policy, params = policy_and_params(name)
    keys = jax.random.split(KEY, 20_000)
    drawn = jax.jit(jax.vmap(policy.sample, (0, None)))(keys, params)
    assert drawn.dtype == jnp.int32
    assert (drawn < jnp.array(NUM_CHOICES)[None]).all()
    found = np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=6) / len(keys)
    log_prob, _ = jax.vmap(policy.score, (None, 0))(params, ARCHS)
    np.testing.assert_allclose(found, jnp.exp(log_prob), atol=0.015)


@pytest.mark.parametrize("name", POLICIES)
def test_mode_is_the_likeliest_choice_after_those_before_it(name):
    policy, params = policy_and_params(name)
    log_prob, _ = jax.vmap(policy.score, (None, 0))(params, ARCHS)
    probs = np.exp(log_prob).reshape(NUM_CHOICES)
    first = probs.sum(1).argmax()
    found = policy.mode(params)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [first, probs[first].argmax()])


def test_lstm_has_the_sizes_of_the_paper():
    policy = lstm((5,) * 6)
    params = jax.eval_shape(policy.init, KEY)
    assert params["cell"].shape == (200, 400)
    assert policy.defaults["learning_rate"] == 0.00035
    largest = jax.tree.map(lambda leaf: 1e4 * leaf, policy.init(KEY))
    log_prob, _ = policy.score(largest, jnp.zeros(6, jnp.int32))
    assert log_prob >= 6 * np.log(1 / (1 + 4 * np.exp(5.0)))  # logits in [-2.5, 2.5]


def test_policy_gradient_equals_closed_form_of_bandit():
    """For logits z, p = softmax(z): d log p_a = e_a - p, dH = -p (log p + H)."""
    policy = POLICIES["independent"]((4,))
    logits = jnp.array([[0.3, -0.2, 0.9, 0.0]])
    archs = jnp.array([[2], [0], [1]])
    advantage, ok = jnp.array([1.5, -0.5, 7.0]), jnp.array([True, True, False])
    found = policy_gradient(policy, logits, archs, advantage, ok, 0.2)
    probs = np.array(jax.nn.softmax(logits[0]))
    entropy = -(probs * np.log(probs)).sum()
    expected = (1.5 * (np.eye(4)[2] - probs) - 0.5 * (np.eye(4)[0] - probs)) / 2
    expected -= 0.2 * probs * (np.log(probs) + entropy)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_policy_gradient_is_zero_where_all_failed():
    policy, params = policy_and_params("lstm")
    found = policy_gradient(
        policy, params, ARCHS[:1], jnp.zeros(1), jnp.array([False]), 0.1
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(found))


def test_compare_keeps_weighted_mean_and_deviation():
    decay, steps = 0.9, [[3.0, 5.0], [1.0, -np.inf], [2.0, 8.0]]
    baseline = Baseline(*jnp.zeros(3))
    for fitness in steps:
        baseline, advantage = compare(baseline, jnp.array(fitness), decay)
    values = np.array([3.0, 5.0, 1.0, 2.0, 8.0])
    weights = np.array([0.5 * decay**2, 0.5 * decay**2, decay, 0.5, 0.5])
    weights /= weights.sum()
    mean = (weights * values).sum()
    variance = (weights * (values - mean) ** 2).sum()
    np.testing.assert_allclose(baseline[:2], [mean, variance], rtol=1e-5)
    expected = (np.array([2.0, 8.0]) - mean) / np.sqrt(variance)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5)


def test_compare_without_deviation_is_reward_less_baseline():
    """Of ENAS: b moves by (1 - decay) (R - b), then the advantage is R - b."""
    given = Baseline(*map(jnp.float32, (0.5, 0.04, 1.0)))  # long ago begun
    fitness = jnp.array([0.7, -jnp.inf, 0.3, 0.8])
    moved, advantage = compare(given, fitness, 0.9, normalize=False)
    mean = 0.5 + 0.1 * (0.6 - 0.5)
    np.testing.assert_allclose(moved.mean, mean, rtol=1e-6)
    expected = [0.7 - mean, 0, 0.3 - mean, 0.8 - mean]
    np.testing.assert_allclose(advantage, expected, atol=1e-6)
    assert_trees_equal(moved, compare(given, fitness, 0.9)[0])


def test_compare_gives_failures_and_equals_no_advantage():
    fitness = jnp.array([4.0, -jnp.inf, 4.0])
    baseline, advantage = compare(Baseline(*jnp.zeros(3)), fitness, 0.9)
    assert (advantage == 0).all()
    np.testing.assert_allclose(baseline.mean, 4.0)
    _, advantage = compare(baseline, jnp.array([5.0, -jnp.inf, 3.0]), 0.9)
    assert advantage[0] > 0 > advantage[2]
    assert advantage[1] == 0


def test_failed_step_changes_nothing():
    strategy = reinforce(categorical(NUM_CHOICES), batch_size=2)
    state = strategy.init(KEY)
    for fitness in ([1.0, 2.0], [-jnp.inf, -jnp.inf]):
        before = state
        proposal = strategy.ask(KEY, jnp.int32(0), state)
        feedback = Feedback(jnp.array(fitness), jnp.zeros(2), jnp.zeros(2, int), {})
        state = strategy.tell(KEY, jnp.int32(0), state, proposal, feedback)
    assert_trees_equal(state, before)
    assert before.baseline.mean > 0


def test_credit_goes_to_the_sample_as_drawn():
    """A space that repairs every architecture to the first one."""
    space = categorical((4,))
    space = space._replace(discretize=lambda weights: jnp.zeros(1, jnp.int32))
    strategy = reinforce(space, learning_rate=0.5, entropy_weight=0.0, batch_size=8)
    state = strategy.init(KEY)
    raw = jax.vmap(POLICIES["independent"]((4,)).sample, (0, None))(
        jax.random.split(KEY, 8), state.params
    )
    proposal = strategy.ask(KEY, jnp.int32(0), state)
    np.testing.assert_array_equal(proposal.arch, np.zeros((8, 1)))
    best = raw[0, 0]
    fitness = (raw[:, 0] == best).astype(jnp.float32)
    feedback = Feedback(fitness, jnp.zeros(8), jnp.zeros(8, int), {})
    state = strategy.tell(KEY, jnp.int32(0), state, proposal, feedback)
    assert jnp.argmax(state.params[0]) == best
    assert (jnp.delete(state.params[0], best, assume_unique_indices=True) < 0).any()


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_reinforce_finds_the_best_of_a_small_table(scale):
    worth = scale * np.random.default_rng(0).uniform(size=(4, 4))
    strategy = reinforce(categorical((4,) * 4))
    (state, _), log = search(
        jax.random.split(KEY, 20), strategy, worth_evaluator(worth), 200
    )
    answers = jax.vmap(strategy.recommend, (0, 1))(state, log)
    assert (answers == worth.argmax(1)[None]).all(1).sum() >= 18
    probs = np.asarray(jax.nn.softmax(state.params))
    best = probs[:, range(4), worth.argmax(1)]
    assert best.mean() > 0.5  # uniform: 0.25


def test_lstm_learns_a_bandit():
    policy = lstm((3,), hidden_size=8)
    strategy = reinforce(categorical((3,)), policy=policy, learning_rate=0.03)
    evaluator = worth_evaluator([[0.0, 1.0, 0.5]])
    (state, _), _ = search(KEY, strategy, evaluator, 150)
    log_prob, _ = policy.score(state.params, jnp.array([1]))
    assert jnp.exp(log_prob) > 0.6


def test_learning_rate_can_be_an_axis():
    evaluator = worth_evaluator(np.arange(6.0).reshape(2, 3))

    def run(rate):
        strategy = reinforce(categorical((3, 3)), learning_rate=rate)
        return search(KEY, strategy, evaluator, 5)[0][0].params

    params = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.1]))
    assert (params[0] == 0).all()
    assert (params[1] != 0).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "gru"}, "policy of independent, lstm, but got gru"),
        ({"batch_size": 0}, "batch_size of 1 or more, but got 0"),
        ({"budget": 0}, "budget of 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate of 0 or more"),
        ({"entropy_weight": -1.0}, "entropy_weight of 0 or more"),
        ({"baseline_decay": 1.0}, "baseline_decay of from 0 to 0.9999"),
    ],
)
def test_reinforce_refuses_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        reinforce(categorical(NUM_CHOICES), **arguments)


def test_reinforce_asks_for_a_batch_at_its_budget():
    strategy = reinforce(categorical(NUM_CHOICES), batch_size=3, budget=7)
    proposal = strategy.ask(KEY, jnp.int32(0), strategy.init(KEY))
    assert isinstance(proposal, Proposal)
    assert proposal.arch.shape == (3, 2)
    assert (proposal.budget == 7).all()
    default = reinforce(categorical(NUM_CHOICES))
    assert default.ask(KEY, jnp.int32(0), default.init(KEY)).budget[0] == FULL
