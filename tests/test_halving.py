"""Successive halving and Hyperband: their schedules, and who is promoted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import OK, Evaluator, Feedback, InputError
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.hyperband import hyperband
from jaxnas.strategies.successive_halving import successive_halving

SPACE = categorical((9, 9, 9))


def evaluator(fails=None) -> Evaluator:
    """Fitness is the number of the architecture, and a little more by budget."""

    def evaluate(key, data, state, proposal):
        number = proposal.arch @ jnp.array([81, 9, 1])
        fitness = number + proposal.budget / 1000
        if fails is not None:
            fitness = jnp.where(number % 2 == fails, jnp.nan, fitness)
        ones = jnp.ones(len(fitness))
        return state, Feedback(fitness, ones, jnp.full(len(fitness), OK), {})

    return Evaluator((), lambda key: (), evaluate)


def run(strategy, steps, fails=None):
    log = search(jax.random.key(0), strategy, evaluator(fails), steps)[1]
    fields = (*log.proposal, log.feedback.fitness)
    return [np.asarray(field)[:, 0] for field in fields]


def rungs_of(budgets):
    return [(int(b), len(list(rows))) for b, rows in itertools.groupby(budgets)]


def test_successive_halving_keeps_one_in_eta():
    strategy = successive_halving(SPACE, budgets=(1, 3, 9), population_size=9)
    _, budget, *_ = run(strategy, 26)
    assert rungs_of(budget) == [(1, 9), (3, 3), (9, 1), (1, 9), (3, 3), (9, 1)]


def test_hyperband_has_the_brackets_of_the_paper():
    # Algorithm 1 of arXiv:1603.06560 for R = 81, eta = 3.
    strategy = hyperband(SPACE, budgets=(1, 3, 9, 27, 81))
    _, budget, *_ = run(strategy, 206)
    assert rungs_of(budget) == [
        *[(1, 81), (3, 27), (9, 9), (27, 3), (81, 1)],
        *[(3, 34), (9, 11), (27, 3), (81, 1)],
        *[(9, 15), (27, 5), (81, 1)],
        *[(27, 8), (81, 2 + 5)],
    ]


@pytest.mark.parametrize("fails", [None, 0])
def test_the_best_are_promoted_with_their_networks(fails):
    strategy = successive_halving(SPACE, budgets=(1, 4), eta=3, population_size=9)
    archs, _, slot, fitness = run(strategy, 12, fails)
    order = np.argsort(-fitness[:9], kind="stable")[:3]
    np.testing.assert_array_equal(archs[9:], archs[order])
    np.testing.assert_array_equal(slot[:9], np.arange(9))
    np.testing.assert_array_equal(slot[9:], order)


def test_next_bracket_is_made_of_other_architectures():
    strategy = successive_halving(SPACE, budgets=(1, 4), eta=3, population_size=9)
    archs, *_ = run(strategy, 24)
    assert not np.array_equal(archs[:9], archs[12:21])


@pytest.mark.parametrize("make", [successive_halving, hyperband])
@pytest.mark.parametrize("budgets", [(), (4,), (4, 4), (4, 1), (0, 4)])
def test_budgets_must_ascend(make, budgets):
    with pytest.raises(InputError, match="ascend"):
        make(SPACE, budgets=budgets)


def test_population_and_eta_must_be_one_or_more():
    for how in ({"population_size": 0}, {"eta": 0.5}):
        with pytest.raises(InputError, match="1 or more"):
            successive_halving(SPACE, **how)
