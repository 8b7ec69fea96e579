"""NSGA-II, SMS-EMOA and the objectives that they are told."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from trees import assert_trees_equal

from jaxnas.base import ABSENT, FULL, OK, Evaluator, Feedback, InputError, Proposal
from jaxnas.pareto import hypervolume, pareto_front, pareto_ranks
from jaxnas.search import host_scan, incumbent, search
from jaxnas.spaces.categorical import categorical
from jaxnas.strategies.multi_objective import front
from jaxnas.strategies.nsga2 import crowding_distance, nsga2
from jaxnas.strategies.nsga2 import survive as by_crowding
from jaxnas.strategies.sms_emoa import contributions, sms_emoa
from jaxnas.strategies.sms_emoa import survive as by_volume

SPACE = categorical((4, 4, 4, 4))
WORTH = np.array([[3, 9, 1, 4], [2, 0, 7, 5], [8, 6, 1, 3], [0, 2, 4, 9]], np.float32)
PRICE = np.array([[2, 5, 0, 4], [1, 0, 4, 3], [5, 3, 0, 2], [0, 1, 2, 6]], np.float32)
KEYS = jax.random.split(jax.random.key(0), 10)

both = pytest.mark.parametrize("make", [nsga2, sms_emoa])


def two_objectives(fail=lambda arch: False, number=2) -> Evaluator:
    """What the choices are worth in all, and what they cost, which is better low."""

    def evaluate(key, data, state, proposal):
        def one(arch):
            worth, price = (each[jnp.arange(4), arch].sum() for each in data)
            failed = fail(arch)
            points = jnp.stack([worth, -price, worth - price])[:number]
            return (
                jnp.where(failed, jnp.nan, worth),
                jnp.where(failed, jnp.nan, points),
                jnp.where(failed, ABSENT, OK),
            )

        fitness, points, status = jax.vmap(one)(proposal.arch)
        ones = jnp.ones(len(fitness))
        return state, Feedback(fitness, ones, status, {}, points)

    return Evaluator((WORTH, PRICE), lambda key: (), evaluate)


def every_point():
    archs = np.array(list(itertools.product(range(4), repeat=4)))
    rows = np.arange(4)[None]
    return np.stack([WORTH[rows, archs].sum(1), -PRICE[rows, archs].sum(1)], 1)


def values_of(points):
    return set(map(tuple, np.asarray(points).tolist()))


@functools.cache
def run(make, steps, fails=False):
    strategy = make(SPACE, batch_size=5)
    evaluator = two_objectives(
        (lambda arch: arch[0] == 1) if fails else lambda _: False
    )
    return search(KEYS, strategy, evaluator, steps)


@both
def test_pareto_set_of_a_small_space_is_found(make):
    points = every_point()
    expected = values_of(points[pareto_front(jnp.asarray(points))])
    (state, _), log = run(make, 30)
    is_best = jax.vmap(front, 1, 1)(log)
    missed = [
        len(expected - values_of(log.feedback.objectives[:, seed][is_best[:, seed]]))
        for seed in range(len(KEYS))
    ]
    assert len(expected) == 19
    assert np.median(missed) <= 1  # of random search 7
    assert max(missed) <= 3
    # The population holds as many of them as it has room for.
    last = [values_of(points) & expected for points in state.objectives]
    assert np.median([len(points) for points in last]) >= 15


@both
def test_nothing_is_evaluated_twice(make):
    _, log = run(make, 30)
    for archs in np.moveaxis(np.asarray(log.proposal.arch), 1, 0):
        assert len(values_of(archs.reshape(-1, 4))) == 150


@both
def test_exhausted_space_is_searched_on_and_nobody_lives_twice(make):
    space = categorical((2, 2, 1, 1))
    strategy = make(space, population_size=6, batch_size=3)
    (state, _), log = search(KEYS[0], strategy, two_objectives(), 10)
    assert len(values_of(log.proposal.arch.reshape(-1, 4))) == 4
    assert np.isfinite(state.objectives).all(1).tolist() == [True] * 4 + [False] * 2
    assert len(values_of(state.arch[:4])) == 4


@both
def test_failures_never_enter_nor_make_nan(make):
    (state, _), log = run(make, 20, fails=True)
    assert (np.asarray(log.feedback.status) == ABSENT).any()
    assert np.isfinite(state.objectives).all()
    assert not (np.asarray(state.arch)[..., 0] == 1).any()
    is_best = np.asarray(jax.vmap(front, 1, 1)(log))
    assert is_best.any()
    assert not is_best[np.asarray(log.feedback.status) == ABSENT].any()


@both
def test_search_goes_on_where_all_failed(make):
    evaluator = two_objectives(lambda arch: jnp.array(True))
    (state, _), log = search(KEYS[0], make(SPACE, population_size=4), evaluator, 8)
    assert np.isneginf(state.objectives).all()
    assert len(values_of(log.proposal.arch.reshape(-1, 4))) == log.proposal.budget.size


@both
def test_population_is_random_first_and_then_children(make):
    strategy = make(SPACE, population_size=6, batch_size=3, crossover_rate=0.0)
    (state, _), log = search(KEYS[0], strategy, two_objectives(), 2)
    assert values_of(state.arch) == values_of(log.proposal.arch.reshape(-1, 4))
    children = strategy.ask(KEYS[1], jnp.int32(2), state).arch
    for child in children:
        assert (state.arch != child[None]).sum(1).min() == 1


@both
def test_answer_is_the_best_by_fitness(make):
    strategy = make(SPACE)
    (state, _), log = search(KEYS[0], strategy, two_objectives(), 5)
    np.testing.assert_array_equal(strategy.recommend(state, log), incumbent(log))


@both
def test_host_scan_repeats_what_dies(make):
    strategy = make(SPACE, population_size=5, batch_size=2)
    found = [
        search(KEYS[0], strategy, two_objectives(), 20, s)
        for s in (jax.lax.scan, host_scan)
    ]
    assert_trees_equal(*found)


@both
def test_three_objectives_are_searched(make):
    strategy = make(SPACE, num_objectives=3, population_size=8, batch_size=4)
    (state, _), _ = search(KEYS[0], strategy, two_objectives(number=3), 12)
    assert np.isfinite(state.objectives).all()
    assert state.objectives.shape == (8, 3)


@both
def test_wrong_objectives_are_refused_while_tracing(make):
    with pytest.raises(InputError, match=r"float32\[B, 3\].*\[20, 2\]|\[1, 2\]"):
        search(KEYS[0], make(SPACE, num_objectives=3), two_objectives(), 2)

    def evaluate(key, data, state, proposal):
        _, feedback = two_objectives().evaluate(key, data, state, proposal)
        return state, feedback._replace(objectives=None)

    silent = two_objectives()._replace(evaluate=evaluate)
    with pytest.raises(InputError, match=r"expected objectives.* but got none"):
        search(KEYS[0], make(SPACE), silent, 2)


def test_front_of_a_log_without_objectives_is_refused():
    _, log = run(nsga2, 20, fails=True)
    log = log._replace(feedback=log.feedback._replace(objectives=None))
    with pytest.raises(InputError, match="expected a log with objectives"):
        front(log)


@both
@pytest.mark.parametrize(
    "how",
    [{"population_size": 0}, {"crossover_rate": 1.5}, {"num_tries": 0}, {"memory": -1}],
)
def test_wrong_sizes_are_refused_at_build(make, how):
    with pytest.raises(InputError, match="expected"):
        make(SPACE, **how)


# Who survives

points_of = arrays.arrays(np.float32, (8, 2), elements=st.integers(-2, 5))
ranks_of, volume_of = jax.jit(pareto_ranks), jax.jit(hypervolume)
volume_survivors = jax.jit(lambda *given: by_volume(*given, 7))
crowding_survivors = jax.jit(lambda *given: by_crowding(*given, 5))
distances = jax.jit(crowding_distance)
checked = settings(max_examples=40, deadline=None)


def plain_crowding(points, front):
    """As in the paper, one objective after another; `front` are row numbers."""
    distance = dict.fromkeys(front, 0.0)
    for values in points.T:
        order = sorted(front, key=lambda i: values[i])
        extent = values[order[-1]] - values[order[0]]
        distance[order[0]] = distance[order[-1]] = np.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            if extent:
                distance[i] += (values[after] - values[before]) / extent
    return distance


@checked
@given(points_of)
def test_crowding_distance_is_that_of_a_plain_implementation(points):
    ranks = np.asarray(ranks_of(points))
    found = distances(points, ranks)
    for rank in range(ranks.max() + 1):
        rows = np.flatnonzero(ranks == rank).tolist()
        for i, distance in plain_crowding(points, rows).items():
            assert found[i] == pytest.approx(distance, rel=1e-5)


@checked
@given(points_of, arrays.arrays(bool, 8))
def test_nsga2_takes_fronts_first_and_then_the_least_crowded(points, known):
    points[~known] = -np.inf
    ranks = np.asarray(ranks_of(points))
    distance = np.asarray(distances(points, ranks))
    kept = np.asarray(crowding_survivors(points, known))
    order = [(ranks[i], -distance[i]) for i in kept]
    assert order == sorted(order)
    assert order == sorted(zip(ranks, -distance, strict=True))[:5]


def test_contribution_is_the_volume_that_only_one_covers():
    # Extents 4 and 4, so the reference is -4 and -4; the last is on no front.
    points = jnp.array([[0.0, 4], [1, 3], [3, 2], [4, 0], [0, 0]])
    on_front = jnp.array([True, True, True, True, False])
    found = 16 * contributions(points, on_front)
    np.testing.assert_allclose(found, [4, 1, 2 * 2, 1 * 4, 0], rtol=1e-5, atol=1e-5)


def test_contributions_do_not_depend_on_units():
    points = jnp.array([[0.0, 4], [1, 3], [3, 2], [4, 0]])
    every = jnp.ones(4, bool)
    scaled = points * jnp.array([[1e6, 1e-3]])
    np.testing.assert_allclose(
        contributions(points, every), contributions(scaled, every), rtol=1e-4
    )


@checked
@given(points_of)
def test_sms_emoa_lets_die_who_adds_least_to_the_worst_front(points):
    ranks = np.asarray(ranks_of(points))
    worst = ranks == ranks.max()
    kept = volume_survivors(points, np.ones(8, bool))
    (dead,) = set(range(8)) - set(np.asarray(kept).tolist())
    least, extent = points[worst].min(0), np.ptp(points[worst], 0)
    reference = least - np.where(extent > 0, extent, 1)
    alone = np.eye(8, dtype=bool)
    rest = [volume_of(points, reference, worst & ~alone[i]) for i in range(8)]
    assert worst[dead]
    assert float(rest[dead]) == max(float(rest[i]) for i in np.flatnonzero(worst))


def test_nobody_dies_before_anybody():
    points = jnp.array([[0.0, 0], [-jnp.inf, 1], [1, 1], [2, 2]])
    known = jnp.array([True, False, True, True])
    assert by_volume(points, known, 3).tolist() == [0, 2, 3]
    assert sorted(by_crowding(points, known, 3).tolist()) == [0, 2, 3]
    assert by_volume(points, known, 4).tolist()[-1] == 1
    assert by_crowding(points, known, 4).tolist()[-1] == 1


def test_step_stays_a_branch_for_many_seeds():
    strategy = nsga2(SPACE)
    state = jax.vmap(strategy.init)(KEYS)
    ask = jax.vmap(strategy.ask, (0, None, 0))
    program = str(jax.make_jaxpr(ask)(KEYS, jnp.int32(0), state))
    assert "cond[" in program


def test_proposals_ask_for_the_budget():
    strategy = nsga2(SPACE, budget=3, batch_size=2)
    proposal = strategy.ask(KEYS[0], jnp.int32(0), strategy.init(KEYS[0]))
    assert isinstance(proposal, Proposal)
    assert proposal.budget.tolist() == [3, 3]
    whole = nsga2(SPACE, batch_size=2)
    assert whole.ask(KEYS[0], jnp.int32(0), whole.init(KEYS[0])).budget[0] == FULL
