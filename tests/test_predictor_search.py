"""Train some, predict many, verify the best."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_surrogate import known_evaluator, known_surrogate, total, worth_of
from trees import to_numpy

from jaxnas.base import FULL, InputError
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.predictor_search import predictor_search
from jaxnas.surrogates.gp import gp

NUM_CHOICES = (3, 2, 4)
SPACE = categorical(NUM_CHOICES)
EVERY_ARCH = jnp.array(list(itertools.product(*map(range, NUM_CHOICES))), jnp.int32)
# Predicted are then all 24 architectures, but for one in thousands of keys.
SETTINGS = {"num_train": 10, "num_predict": 250, "num_verify": 5}


def numbers(arch):
    return np.ravel_multi_index(np.moveaxis(np.asarray(arch), -1, 0), NUM_CHOICES)


def run(num_steps, fails=None, surrogate=None, **settings):
    surrogate = known_surrogate(SPACE) if surrogate is None else surrogate
    strategy = predictor_search(SPACE, surrogate, **(SETTINGS | settings))
    evaluator = known_evaluator(SPACE, fails)
    (state, _), log = search(jax.random.key(1), strategy, evaluator, num_steps)
    return strategy, state, log


@pytest.mark.parametrize(("batch_size", "steps"), [(1, (10, 5)), (4, (3, 2))])
def test_phases_ask_as_many_as_they_should(batch_size, steps):
    train, verify = steps
    strategy, state, log = run(train + verify + 2, batch_size=batch_size)
    used = np.asarray(log.proposal.budget) > 0
    assert set(np.unique(log.proposal.budget)) <= {0, FULL}
    assert used[:train].sum() == 10
    assert used[train:].sum() == 5
    assert not used[train + verify :].any()
    # Padding comes last in each phase.
    assert used[:train].ravel()[:10].all()
    assert used[train:].ravel()[:5].all()

    asked = numbers(log.proposal.arch)
    trained, verified = asked[:train][used[:train]], asked[train:][used[train:]]
    worth = np.asarray(total(worth_of(SPACE), EVERY_ARCH))
    best = [i for i in np.argsort(-worth) if i not in trained]
    np.testing.assert_array_equal(verified, best[:5])
    np.testing.assert_array_equal(numbers(state.arch), best[:5])
    np.testing.assert_array_equal(state.mean, worth[best[:5]])
    np.testing.assert_array_equal(state.deviation, 0.25)
    # The surrogate is shown those that were trained, and no others.
    np.testing.assert_array_equal(numbers(state.model.arch), trained)
    np.testing.assert_array_equal(state.model.fitness, worth[trained])
    assert state.model.known.all()
    answer = numbers(strategy.recommend(state, log))
    assert answer == max([*trained, *verified], key=lambda i: worth[i])


@pytest.mark.parametrize("failing", ["some", "all"])
def test_failures_are_left_out(failing):
    surrogate = gp(SPACE, num_starts=1, num_updates=5)
    fails = {"some": lambda arch: arch[0] == 1, "all": lambda arch: arch[0] >= 0}
    _, state, log = run(5, fails[failing], surrogate, batch_size=4)
    used = np.asarray(log.proposal.budget) > 0
    assert used.sum() == 15
    arch = log.proposal.arch
    failed = np.asarray(arch[:3, :, 0] == 1) | (failing == "all")
    np.testing.assert_array_equal(state.memory.history.known, ~failed.ravel()[:10])
    assert failed.any()
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()
    asked = numbers(arch)  # raises where one is not valid
    verified = asked[3:][used[3:]]
    assert len(set(verified)) == 5
    assert not set(verified) & set(asked[:3][used[:3]])


def test_seeds_side_by_side_are_searches():
    strategy = predictor_search(
        SPACE, known_surrogate(SPACE), **(SETTINGS | {"batch_size": 4})
    )
    keys, evaluator = jax.random.split(jax.random.key(2), 2), known_evaluator(SPACE)
    _, together = search(keys, strategy, evaluator, 5)
    for i, key in enumerate(keys):
        _, alone = search(key, strategy, evaluator, 5)
        for one, other in zip(together.proposal, alone.proposal, strict=True):
            np.testing.assert_array_equal(one[:, i], other)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"num_train": 0}, "num_train of 1 or more, but got 0"),
        ({"num_verify": 0}, "num_verify of 1 or more, but got 0"),
        ({"num_verify": 9, "num_predict": 8}, "num_predict of 9 or more, but got 8"),
        ({"batch_size": 0}, "batch_size of 1 or more, but got 0"),
        ({"budget": 0}, "budget of 1 or more, but got 0"),
    ],
)
def test_wrong_arguments_are_refused_at_build(wrong, expected):
    with pytest.raises(InputError, match=expected):
        predictor_search(SPACE, known_surrogate(SPACE), **wrong)


def test_what_is_no_new_architecture_is_padding():
    space = categorical((3, 2))
    strategy = predictor_search(
        space, known_surrogate(space), num_train=4, num_predict=20, num_verify=5
    )
    log = search(jax.random.key(0), strategy, known_evaluator(space), 9)[1]
    arch, budget = np.asarray(log.proposal.arch)[:, 0], log.proposal.budget[:, 0]
    seen = {tuple(row) for row in arch[:4].tolist()}
    verified = [tuple(row) for row in arch[4:][np.asarray(budget[4:]) > 0].tolist()]
    assert len(verified) == len(set(verified)) == 6 - len(seen)
    assert not set(verified) & seen
