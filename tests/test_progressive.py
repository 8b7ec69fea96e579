"""Progressive search, from few operations to more."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_surrogate import known_evaluator, known_surrogate, total, worth_of
from trees import to_numpy

from jaxnas.base import FULL, InputError
from jaxnas.search import search
from jaxnas.spaces import SPACES
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.progressive import progressive
from jaxnas.surrogates.gp import gp

NUM_CHOICES = (3, 2, 4)
SPACE = categorical(NUM_CHOICES)._replace(empty=(0, 1, 0))
EVERY_ARCH = np.array(list(itertools.product(*map(range, NUM_CHOICES))), np.int32)


def run(space, num_steps, fails=None, surrogate=None, beam_size=8):
    surrogate = known_surrogate(space) if surrogate is None else surrogate
    strategy = progressive(space, surrogate, beam_size=beam_size)
    evaluator = known_evaluator(space, fails)
    (state, _), log = search(jax.random.key(0), strategy, evaluator, num_steps)
    return strategy, state, log


def sizes_of(space, arch):
    return (np.asarray(arch) != np.array(space.empty)).sum(-1)


def keys_of(space, arch):
    keys = jax.vmap(lambda one: jnp.atleast_1d(space.canonical(one)))(arch)
    return [tuple(key) for key in np.asarray(keys).tolist()]


def test_levels_are_the_best_of_one_operation_more():
    strategy, state, log = run(SPACE, 5)
    arch, budget = np.asarray(log.proposal.arch), np.asarray(log.proposal.budget)
    used = budget > 0
    assert set(np.unique(budget)) <= {0, FULL}
    # The empty one and 2 + 1 + 3; 8 of 2 + 6 + 3; 6; and then there is no more.
    np.testing.assert_array_equal(used.sum(1), [7, 8, 6, 0, 0])
    np.testing.assert_array_equal(arch[0, 0], SPACE.empty)
    sizes = sizes_of(SPACE, arch)
    assert (np.sort(sizes[0, used[0]]) == [0, 1, 1, 1, 1, 1, 1]).all()
    for step in (1, 2):
        assert (sizes[step, used[step]] == step + 1).all()
    asked = [tuple(row) for row in arch[used]]
    assert len(set(asked)) == len(asked)
    # All of two operations can be reached: the best of them are asked, in order.
    of_two = jnp.array(EVERY_ARCH[sizes_of(SPACE, EVERY_ARCH) == 2])
    worth = np.asarray(total(worth_of(SPACE), of_two))
    np.testing.assert_array_equal(arch[1], of_two[np.argsort(-worth)[:8]])
    np.testing.assert_array_equal(state.model.known.sum(), 21)
    best = max(asked, key=lambda row: total(worth_of(SPACE), jnp.array([row]))[0])
    np.testing.assert_array_equal(strategy.recommend(state, log), best)


def test_first_level_takes_any_of_one_operation_where_not_all_fit():
    strategy = progressive(SPACE, known_surrogate(SPACE), beam_size=3)
    keys = jax.random.split(jax.random.key(1), 20)
    asked = jax.vmap(lambda key: strategy.ask(key, 0, strategy.init(key)))(keys)
    arch = np.asarray(asked.arch)
    assert (sizes_of(SPACE, arch) == [0, 1, 1]).all()
    assert (asked.budget == FULL).all()
    assert len({tuple(row) for row in arch[:, 1]}) > 3


@pytest.mark.parametrize("name", ["nasbench201", "multi_branch"])
def test_no_level_repeats_what_is_isomorphic(name):
    space = SPACES[name]()
    _, _, log = run(space, 4)
    used = np.asarray(log.proposal.budget) > 0
    sizes = sizes_of(space, log.proposal.arch)
    largest = [level[kept].max() for level, kept in zip(sizes, used, strict=True)]
    assert (np.diff(largest) >= 1).all()
    for level, kept, before in zip(sizes[1:], used[1:], largest, strict=False):
        assert (level[kept] > min(before, 1)).all()
    keys = keys_of(space, log.proposal.arch[used])
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("failing", ["some", "all"])
def test_failures_are_left_out_and_grow_on(failing):
    fails = {"some": lambda arch: arch[2] == 1, "all": lambda arch: arch[0] >= 0}
    surrogate = gp(SPACE, num_starts=1, num_updates=5)
    _, state, log = run(SPACE, 4, fails[failing], surrogate)
    used = np.asarray(log.proposal.budget) > 0
    assert (used.sum(1)[:3] > 0).all()
    for leaf in jax.tree.leaves(state):
        assert not np.isnan(to_numpy(leaf)).any()
    known = np.asarray(state.memory.history.known).reshape(4, 8)
    failed = np.asarray(log.proposal.arch)[..., 2] == 1
    np.testing.assert_array_equal(known, used & ~(failed | (failing == "all")))


def test_seeds_side_by_side_are_searches():
    strategy = progressive(SPACE, known_surrogate(SPACE), beam_size=3)
    keys, evaluator = jax.random.split(jax.random.key(2), 2), known_evaluator(SPACE)
    _, together = search(keys, strategy, evaluator, 4)
    for i, key in enumerate(keys):
        _, alone = search(key, strategy, evaluator, 4)
        for one, other in zip(together.proposal, alone.proposal, strict=True):
            np.testing.assert_array_equal(one[:, i], other)


def test_wrong_arguments_are_refused_at_build():
    space = SPACES["nasbench101"]()
    with pytest.raises(InputError, match="empty architecture, but nasbench101 has no"):
        progressive(space, known_surrogate(space))
    for wrong in ({"beam_size": 0}, {"budget": 0}):
        with pytest.raises(InputError, match="of 1 or more, but got 0"):
            progressive(SPACE, known_surrogate(SPACE), **wrong)
