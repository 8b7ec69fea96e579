import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

from jaxnas.base import FULL, OK, Evaluator, Feedback, InputError
from jaxnas.search import incumbent, search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.enas import enas
from jaxnas.strategies.policies import POLICIES, lstm
from jaxnas.strategies.reinforce import reinforce

NUM_CHOICES = (4, 2, 3)
SPACE = categorical(NUM_CHOICES)
ARCHS = np.array(list(itertools.product(*map(range, NUM_CHOICES))), np.int32)
KEY = jax.random.key(0)
SEEDS = 20
SMALL = {"policy": "independent", "batch_size": 4, "weight_archs": 3}
PERIOD = {"weight_steps": 2, "controller_steps": 3}


def make_table() -> np.ndarray:
    """An accuracy of each architecture, what its choices are worth and some luck."""
    rng = np.random.default_rng(0)
    worth = sum(
        rng.permutation(np.linspace(0, 0.1, size))[choice]
        for size, choice in zip(NUM_CHOICES, ARCHS.T, strict=True)
    )
    return (0.6 + worth + rng.uniform(0, 0.02, len(ARCHS))).astype(np.float32)


TABLE = make_table()
BEST = ARCHS[TABLE.argmax()]


def look_up(key, data, state, proposal):
    """Accuracies by the table; what is only trained on seems to be worth 1."""
    place = jnp.ravel_multi_index(tuple(proposal.arch.T), NUM_CHOICES, mode="clip")
    fitness = jnp.where(proposal.budget == FULL, data[place], 1.0)
    zeros = jnp.zeros_like(fitness)
    return state, Feedback(fitness, zeros, zeros.astype(jnp.int32) + OK, {})


EVALUATOR = Evaluator(TABLE, lambda key: (), look_up)


def told(strategy, state, step, key=KEY):
    proposal = strategy.ask(key, jnp.int32(step), state)
    _, feedback = look_up(key, jnp.asarray(TABLE), (), proposal)
    return strategy.tell(key, jnp.int32(step), state, proposal, feedback)


@functools.cache
def trained():
    """20 controllers of the default size: before, after 28 and after 56 updates."""
    strategy = enas(SPACE, weight_steps=1, controller_steps=4, learning_rate=3.5e-3)
    keys = jax.random.split(KEY, SEEDS)

    @jax.jit
    def go_on(keys, state):
        (state, _), log = search(keys, strategy, EVALUATOR, 35, initial=(state, ()))
        return state, log

    states = [jax.vmap(strategy.init)(keys)]
    for phase in range(2):
        phase_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, phase)
        state, log = go_on(phase_keys, states[-1])
        states.append(state)
    return strategy, states, log


@jax.jit
@jax.vmap
def log_probs(params):
    return jax.vmap(lstm(NUM_CHOICES).score, (None, 0))(params, ARCHS)[0]


def test_controller_beats_its_untrained_self_for_every_seed():
    _, states, _ = trained()
    expected = [np.exp(log_probs(state.params)) @ TABLE for state in states]
    np.testing.assert_allclose(expected[0], TABLE.mean(), atol=0.01)  # about uniform
    assert (expected[2] > expected[0]).sum() == SEEDS
    assert (expected[1] > expected[0]).sum() == SEEDS
    assert expected[2].mean() > expected[1].mean() > expected[0].mean()
    to_gain = TABLE.max() - TABLE.mean()
    assert expected[2].mean() > TABLE.mean() + 0.8 * to_gain


def test_answer_is_the_likeliest_choice_after_those_before_it():
    strategy, states, log = trained()
    answers = jax.vmap(strategy.recommend, (0, 1))(states[2], log)
    assert answers.dtype == jnp.int32
    for found, log_prob in zip(answers, log_probs(states[2].params), strict=True):
        probs = np.exp(log_prob).reshape(NUM_CHOICES)
        first = probs.sum((1, 2)).argmax()
        second = probs[first].sum(1).argmax()
        third = probs[first, second].argmax()
        np.testing.assert_array_equal(found, [first, second, third])
    assert (answers == BEST[None]).all(1).sum() >= SEEDS - 2


def test_weight_steps_change_nothing_bit_for_bit():
    strategy = enas(SPACE, **PERIOD, **SMALL)
    state, changes = strategy.init(KEY), []
    tell = jax.jit(functools.partial(told, strategy))
    for step in range(10):
        before, state = state, tell(state, step, jax.random.fold_in(KEY, step))
        if step % 5 < 2:
            assert_trees_equal(state, before)
        changes.append((state.params != before.params).any())
        expected = max(0, step % 5 - 1) + 3 * (step // 5)
        assert state.opt_state[0].count == expected
    assert changes == [False, False, True, True, True] * 2


def test_weight_steps_train_on_few_and_controller_steps_score_all():
    strategy = enas(SPACE, **PERIOD, **SMALL)
    _, log = search(KEY, strategy, EVALUATOR, 10)
    budget = log.proposal.budget
    assert budget.dtype == jnp.int32
    weights, controller = [[1, 1, 1, 0]] * 2, [[FULL] * 4] * 3
    np.testing.assert_array_equal(budget, 2 * (weights + controller))
    # The evaluator says 1 to what is only trained on: the incumbent is none of those.
    scored = log.feedback.fitness[budget == FULL]
    assert TABLE[(incumbent(log)[None] == ARCHS).all(1)] == scored.max()


def test_controller_steps_are_those_of_reinforce_without_weights():
    ours = enas(SPACE, weight_steps=0, policy="independent", learning_rate=0.05)
    theirs = reinforce(SPACE, learning_rate=0.05, normalize=False, batch_size=10)
    found, expected = (search(KEY, s, EVALUATOR, 20) for s in (ours, theirs))
    assert_trees_equal(found, expected)


def test_schedule_stays_a_branch_for_seeds_side_by_side():
    strategy = enas(SPACE, **PERIOD, **SMALL)
    keys = jax.random.split(KEY, 2)
    states = jax.vmap(strategy.init)(keys)
    side_by_side = jax.vmap(
        lambda key, step, state: told(strategy, state, step, key), (0, None, 0)
    )
    jaxpr = jax.make_jaxpr(side_by_side)(keys, jnp.int32(0), states)
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1


def test_learning_rate_of_zero_draws_from_the_trained_policy():
    """How ENAS chooses in the end: many draws, the best by their scores."""
    (state, _), _ = search(KEY, enas(SPACE, **PERIOD, **SMALL), EVALUATOR, 60)
    draws = reinforce(SPACE, learning_rate=0.0, batch_size=4000)
    initial = state, ()
    (after, _), log = search(KEY, draws, EVALUATOR, 2, initial=initial)
    assert_trees_equal(after.params, state.params)
    policy = POLICIES["independent"](NUM_CHOICES)
    log_prob, _ = jax.vmap(policy.score, (None, 0))(state.params, ARCHS)
    place = np.ravel_multi_index(log.proposal.arch.reshape(-1, 3).T, NUM_CHOICES)
    found = np.bincount(place, minlength=len(ARCHS)) / 8000
    np.testing.assert_allclose(found, np.exp(log_prob), atol=0.02)
    answer = draws.recommend(after, log)
    np.testing.assert_array_equal(answer, ARCHS[np.where(found, TABLE, 0).argmax()])


def test_answer_is_repaired_where_the_space_does_not_allow_it():
    space = SPACE._replace(discretize=lambda weights: jnp.array(BEST))
    strategy = enas(space, policy="independent")
    _, log = search(KEY, strategy, EVALUATOR, 1)
    answer = strategy.recommend(strategy.init(KEY), log)
    np.testing.assert_array_equal(answer, BEST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "gru"}, "policy of independent, lstm, but got gru"),
        ({"weight_steps": -1}, "weight_steps of 0 or more, but got -1"),
        ({"controller_steps": 0}, "controller_steps of 1 or more, but got 0"),
        ({"weight_archs": 0}, "weight_archs of from 1 to 10, but got 0"),
        ({"weight_archs": 5, "batch_size": 4}, "weight_archs of from 1 to 4"),
        ({"batch_size": 0, "weight_archs": 0}, "batch_size of 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate of 0 or more"),
    ],
)
def test_enas_refuses_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        enas(SPACE, **arguments)
