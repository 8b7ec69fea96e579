"""The loop, against one written out by hand, and what its scans promise."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal

from jaxnas import search as search_module
from jaxnas.base import (
    ABSENT,
    DIVERGED,
    OK,
    Evaluator,
    Feedback,
    InputError,
    Log,
    Proposal,
    Strategy,
)
from jaxnas.checkpoint import Checkpoints
from jaxnas.search import INIT, chunked_scan, host_scan, incumbent, search
from jaxnas.strategies.random_search import random_search

ROWS = 4321  # of the evaluator's table: a number that nothing else has


class Climber(NamedTuple):
    """State of a strategy whose asking depends on all that it was told."""

    center: jax.Array  # float32[2]
    best: jax.Array  # float32[]
    told: jax.Array  # int32[], how often


@functools.cache  # the same values, so that equal programs are compiled once
def climb() -> Strategy:
    def init(key):
        return Climber(jax.random.uniform(key, (2,)), jnp.float32(-9), jnp.int32(0))

    def ask(key, step, state):
        shift = state.center[0] + jax.random.uniform(key, (3,))
        arch = (shift * 400).astype(jnp.int32)[:, None]
        budget = jnp.array([1, 2, 0]) + 0 * step
        return Proposal(arch, budget, jnp.full(3, -1))

    def tell(key, step, state, proposal, feedback):
        won = jnp.where(proposal.budget > 0, feedback.fitness, -jnp.inf)
        noise = jax.random.uniform(key, (2,))
        best = jnp.maximum(state.best, jnp.max(won))
        better = best > state.best
        center = jnp.where(better, 0.5 * (state.center + noise), state.center)
        return Climber(center, best, state.told + 1)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


@functools.cache
def table() -> Evaluator:
    """A table whose every fitness is NaN at the fourth step."""
    values = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)

    def evaluate(key, data, state, proposal):
        index = proposal.arch[:, 0] + jax.random.randint(key, (), 0, ROWS - 1000)
        fitness = jnp.where(state == 3, jnp.nan, data[index])
        size = fitness.shape
        feedback = Feedback(fitness, jnp.ones(size), jnp.full(size, OK), {})
        return state + 1, feedback

    return Evaluator(values, lambda key: jax.random.key_data(key)[0] * 0, evaluate)


def captured(*args, **kwargs):
    """Returns the f, init and xs that `search` hands to a scan."""
    return search(*args, **kwargs, scan=lambda *given: given)


def test_search_equals_its_loop_written_out():
    key, strategy, evaluator = jax.random.key(3), climb(), table()

    key_strategy, key_evaluator = (
        jax.random.fold_in(key, 2 * INIT + i) for i in (0, 1)
    )
    state, rows = strategy.init(key_strategy), evaluator.init(key_evaluator)
    data, asked, answered = jnp.asarray(evaluator.data), [], []
    for step in range(6):
        key_ask, key_evaluate = (jax.random.fold_in(key, 2 * step + i) for i in (0, 1))
        proposal = strategy.ask(key_ask, step, state)
        rows, feedback = evaluator.evaluate(key_evaluate, data, rows, proposal)
        if step == 3:
            assert np.isnan(feedback.fitness).all()
            feedback = feedback._replace(
                fitness=jnp.full(3, -jnp.inf), status=jnp.array([DIVERGED] * 2 + [OK])
            )
        state = strategy.tell(key_ask, step, state, proposal, feedback)
        asked.append(proposal)
        answered.append(feedback)

    states, log = search(key, strategy, evaluator, 6)
    stack = lambda *steps: jnp.stack(steps)  # noqa: E731
    expected = Log(jax.tree.map(stack, *asked), jax.tree.map(stack, *answered))
    assert_trees_equal(states, (state, rows))
    assert_trees_equal(log, expected)


@pytest.mark.parametrize(
    ("fitness", "status", "budget", "expected"),
    [
        (0.5, OK, 1, (0.5, OK)),
        (np.nan, OK, 1, (-np.inf, DIVERGED)),
        (np.inf, OK, 1, (-np.inf, DIVERGED)),
        (-np.inf, OK, 1, (-np.inf, DIVERGED)),
        (np.nan, ABSENT, 1, (-np.inf, ABSENT)),
        (-np.inf, ABSENT, 1, (-np.inf, ABSENT)),
        (np.nan, OK, 0, (-np.inf, OK)),
        (0.5, OK, 0, (0.5, OK)),
    ],
)
def test_search_marks_failures(fitness, status, budget, expected):
    def evaluate(key, data, state, proposal):
        answer = Feedback(data, jnp.ones(1), jnp.full(1, status), {})
        return state, answer

    strategy = Strategy(
        init=lambda key: jnp.zeros(1),
        ask=lambda key, step, state: Proposal(
            jnp.zeros((1, 1), jnp.int32), jnp.full(1, budget), jnp.full(1, -1)
        ),
        tell=lambda key, step, state, proposal, feedback: feedback.fitness,
        recommend=lambda state, log: incumbent(log),
    )
    evaluator = Evaluator(np.float32([fitness]), lambda key: (), evaluate)
    (told, _), log = search(jax.random.key(0), strategy, evaluator, 1)
    assert (log.feedback.fitness.item(), log.feedback.status.item()) == expected
    assert told.item() == expected[0]


def test_search_drops_the_gradient_from_the_log():
    def evaluate(key, data, state, proposal):
        return (), Feedback(
            *(jnp.zeros(3), jnp.ones(3), jnp.full(3, OK), {}),
            grad=jnp.ones((3, 1, 1)),
        )

    evaluator = Evaluator((), lambda key: (), evaluate)
    _, log = search(jax.random.key(0), climb(), evaluator, 2)
    assert log.feedback.grad is None


def test_search_passes_data_as_an_argument():
    evaluator = table()
    f, init, xs = captured(jax.random.key(0), climb(), evaluator, 4)
    lowered = search_module._run_chunk.lower(f, init, xs[:2], 1)
    text = lowered.as_text()
    assert re.search(rf"@main\(.*%arg\d+: tensor<{ROWS}xf32>", text)
    assert not re.search(rf"constant dense.*tensor<{ROWS}x", text)
    assert ROWS not in {size for leaf in jax.tree.leaves(init) for size in leaf.shape}


def test_search_never_batches_data_over_seeds():
    keys = jax.random.split(jax.random.key(0), 7)
    f, init, xs = captured(keys, climb(), table(), 4)
    text = search_module._run_chunk.lower(f, init, xs[:2], 1).as_text()
    assert f"tensor<{ROWS}xf32>" in text
    assert f"7x{ROWS}" not in text


def test_search_keeps_a_branch_on_the_step_with_seeds():
    def tell(key, step, state, proposal, feedback):
        refit = lambda state: state._replace(best=jnp.sin(state.best))  # noqa: E731
        return jax.lax.cond(step % 5 == 0, refit, lambda state: state, state)

    def primitives(key):
        f, init, xs = captured(key, climb()._replace(tell=tell), table(), 4)
        return str(jax.make_jaxpr(f)(init, xs[0]))

    assert "cond[" in primitives(jax.random.split(jax.random.key(0), 2))
    batched = jax.vmap(lambda step: jax.lax.cond(step > 0, jnp.sin, jnp.cos, 0.5))
    assert "cond[" not in str(jax.make_jaxpr(batched)(jnp.arange(3)))


def test_search_with_seeds_equals_searches_one_by_one():
    strategy, evaluator = climb(), table()
    keys = jax.random.split(jax.random.key(1), 3)
    (state, rows), log = search(keys, strategy, evaluator, 5, host_scan)
    archs = jax.vmap(strategy.recommend, (0, 1))(state, log)
    for i, key in enumerate(keys):
        states, log_one = search(key, strategy, evaluator, 5, host_scan)
        assert_trees_equal(jax.tree.map(lambda x: x[i], (state, rows)), states)  # noqa: B023
        assert_trees_equal(jax.tree.map(lambda x: x[:, i], log), log_one)  # noqa: B023
        np.testing.assert_array_equal(archs[i], strategy.recommend(states[0], log_one))


def test_search_of_fewer_steps_is_the_beginning_of_a_longer_one():
    strategy, evaluator = climb(), table()
    _, short = search(jax.random.key(0), strategy, evaluator, 3, host_scan)
    _, long = search(jax.random.key(0), strategy, evaluator, 6, host_scan)
    assert_trees_equal(short, jax.tree.map(lambda x: x[:3], long))


@pytest.mark.parametrize("scan", [jax.lax.scan, host_scan, chunked_scan(2)])
def test_search_goes_on_from_the_states_of_an_earlier_phase(scan):
    strategy, evaluator = climb(), table()
    (state, rows), _ = search(jax.random.key(0), strategy, evaluator, 2)
    (second, rows), _ = search(
        *(jax.random.key(1), strategy, evaluator, 3, scan), (None, rows)
    )
    assert (second.told, rows) == (3, 5)
    (second, rows), _ = search(
        *(jax.random.key(2), strategy, evaluator, 1, scan), (state, rows)
    )
    assert (second.told, rows) == (3, 6)
    assert state.told == 2  # the states that were given are still there


@pytest.mark.parametrize(
    ("key", "num_steps", "line"),
    [
        (jax.random.PRNGKey(0), 1, r"got uint32\[2\]"),
        (jnp.zeros(()), 1, r"got float32\[\]"),
        (jax.random.split(jax.random.key(0), (2, 2)), 1, r"got key<fry>\[2, 2\]"),
        (jax.random.key(0), 0, "got 0"),
    ],
)
def test_search_refuses_wrong_arguments(key, num_steps, line):
    with pytest.raises(InputError, match=line) as caught:
        search(key, climb(), table(), num_steps)
    assert "\n" not in str(caught.value)


def log_of(arch, budget, fitness) -> Log:
    arch, budget = jnp.array(arch)[..., None], jnp.array(budget)
    fitness = jnp.array(fitness, jnp.float32)
    return Log(
        Proposal(arch, budget, jnp.full_like(budget, -1)),
        Feedback(fitness, jnp.ones_like(fitness), jnp.full_like(budget, OK), {}),
    )


INF = float("inf")
LOGS = {
    "best": (([[1, 2], [3, 4]], [[1, 1], [1, 1]], [[0.1, 0.3], [0.2, 0.0]]), 2),
    "earliest": (([[1, 2], [3, 4]], [[1, 1], [1, 1]], [[0.1, 0.3], [0.3, 0.3]]), 2),
    "largest budget": (([[1, 2], [3, 4]], [[1, 3], [3, 1]], [[9, 0.1], [0.2, 9]]), 3),
    "no padding": (([[1, 2], [3, 4]], [[0, 1], [0, 1]], [[9, 0.1], [9, 0.2]]), 4),
    "no failure": (([[1, 2], [3, 4]], [[1, 5], [1, 5]], [[1, -INF], [2, -INF]]), 3),
    "all failed": (([[1, 2], [3, 4]], [[1, 1], [0, 1]], [[-INF] * 2, [9, -INF]]), 1),
}


@pytest.mark.parametrize(("log", "expected"), LOGS.values(), ids=LOGS)
def test_incumbent_is(log, expected):
    assert incumbent(log_of(*log)).tolist() == [expected]


def test_incumbent_of_seeds():
    logs = [log_of(*log) for log, _ in LOGS.values()]
    together = jax.tree.map(lambda *logs: jnp.stack(logs, 1), *logs)
    found = jax.vmap(incumbent, 1)(together)
    assert found[:, 0].tolist() == [expected for _, expected in LOGS.values()]


def test_incumbent_refuses_relaxed_architectures():
    log = log_of(*LOGS["best"][0])
    relaxed = log.proposal._replace(arch=jnp.zeros((2, 2, 1, 3)))
    with pytest.raises(InputError, match=r"float32\[2, 2, 1, 3\]"):
        incumbent(log._replace(proposal=relaxed))


def scan_sums(scan, num_steps: int = 7):
    """Sums up with lax.scan's signature; ys and carry are trees."""

    def f(carry, x):
        total = carry["total"] + x["by"]
        return {"total": total, "key": carry["key"]}, (total, {"twice": 2 * x["of"]})

    init = {"total": jnp.zeros(2), "key": jax.random.key(0)}
    xs = {"by": jnp.ones((num_steps, 2)), "of": np.arange(num_steps)}
    carry, ys = scan(f, init, xs)
    return jax.random.key_data(carry.pop("key")), carry, ys


@pytest.mark.parametrize(
    "scan", [host_scan, *(chunked_scan(chunk) for chunk in (1, 2, 3, 7, 100))]
)
def test_scans_equal_lax_scan(scan):
    assert_trees_equal(scan_sums(scan), scan_sums(jax.lax.scan))


def test_scans_take_a_carry_that_holds_an_array_twice():
    zeros = jnp.zeros(3)
    for scan in (host_scan, chunked_scan(2)):
        f = lambda carry, x: ((carry[0] + x, carry[1]), None)  # noqa: E731
        carry, _ = scan(f, (zeros, zeros), jnp.arange(3.0))
        assert_trees_equal(carry, (zeros + 3, zeros))
    assert not zeros.is_deleted()


def test_chunked_scan_refuses_chunks_of_nothing():
    with pytest.raises(InputError, match="got 0"):
        chunked_scan(0)


def test_chunked_scan_tells_each_chunk_before_it_is_saved(tmp_path):
    checkpoints, seen, compiled = Checkpoints(tmp_path / "steps"), [], []

    def on_chunk(step, carry, ys):
        assert compiled
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(ys))
        seen.append(
            (step, checkpoints.latest(), int(carry[0].told), len(ys.proposal.budget))
        )

    scan = chunked_scan(3, checkpoints, on_chunk, compiled.append)
    search(jax.random.key(0), climb(), table(), 8, scan)
    assert seen == [(3, None, 3, 3), (6, 3, 6, 3), (8, 6, 8, 2)]
    assert len(compiled) == 1
    assert compiled[0] > 0
    assert checkpoints.latest() == 8


class Stop(Exception):
    pass


def stop_at(step: int):
    def on_chunk(done, carry, ys):
        if done == step:
            raise Stop

    return on_chunk


@pytest.mark.parametrize("seeds", [None, 2])
@pytest.mark.parametrize("stopped", [[3], [6], [6, 9], [10]])
def test_chunked_scan_goes_on_bit_for_bit(tmp_path, stopped, seeds):
    key = jax.random.key(5)
    key = jax.random.split(key, seeds) if seeds else key
    expected = search(key, climb(), table(), 10, chunked_scan(3))
    checkpoints = Checkpoints(tmp_path / "steps")
    for step in stopped:  # nothing that a first start has made may be used
        scan = chunked_scan(3, checkpoints, stop_at(step))
        with pytest.raises(Stop):
            search(key, climb(), table(), 10, scan)
        assert (checkpoints.latest() or 0) == (step - 1) // 3 * 3
    found = search(key, climb(), table(), 10, chunked_scan(3, checkpoints))
    assert_trees_equal(found, expected)


def test_chunked_scan_goes_on_with_another_chunk(tmp_path):
    key, checkpoints = jax.random.key(5), Checkpoints(tmp_path / "steps")
    with pytest.raises(Stop):
        search(key, climb(), table(), 10, chunked_scan(2, checkpoints, stop_at(6)))
    steps = []
    scan = chunked_scan(3, checkpoints, lambda step, carry, ys: steps.append(step))
    found = search(key, climb(), table(), 10, scan)
    assert steps == [6, 9, 10]
    assert_trees_equal(found, search(key, climb(), table(), 10))


def test_chunked_scan_runs_nothing_when_all_is_done(tmp_path):
    checkpoints = Checkpoints(tmp_path / "steps")
    expected = search(
        jax.random.key(0), climb(), table(), 4, chunked_scan(3, checkpoints)
    )
    called = []
    scan = chunked_scan(3, checkpoints, lambda *_: called.append(1), called.append)
    found = search(jax.random.key(0), climb(), table(), 4, scan)
    assert_trees_equal(found, expected)
    assert called == []


def test_chunked_scan_refuses_the_checkpoint_of_another_run(tmp_path):
    checkpoints = Checkpoints(tmp_path / "steps")
    search(jax.random.key(0), climb(), table(), 4, chunked_scan(3, checkpoints))
    with pytest.raises(InputError, match="a run of 3 steps"):
        search(jax.random.key(0), climb(), table(), 3, chunked_scan(3, checkpoints))
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(InputError, match="another run"):
        search(keys, climb(), table(), 5, chunked_scan(3, checkpoints))
    assert checkpoints.latest() == 4


@pytest.mark.parametrize(
    ("scan", "seeds"), [(jax.lax.scan, 1), (host_scan, 2), (chunked_scan(2), 2)]
)
def test_search_traces_once_whatever_the_seed(scan, seeds):
    strategy, evaluator, traced = climb(), table(), []

    def ask(key, step, state):
        traced.append("ask")
        return strategy.ask(key, step, state)

    counted = strategy._replace(ask=ask)
    for seed in range(seeds):
        search(jax.random.key(seed), counted, evaluator, 5, scan)
    assert traced == ["ask"]


def test_random_search_draws_with_replacement_from_the_whole_space(tiny_space):
    strategy = random_search(tiny_space, batch_size=50, budget=4)
    proposal = strategy.ask(jax.random.key(0), 0, strategy.init(jax.random.key(1)))
    archs = {tuple(arch) for arch in proposal.arch.tolist()}
    assert len(archs) < 50
    assert len(archs) > 16  # of 24; the chance of fewer is below 1e-5
    assert set(proposal.budget.tolist()) == {4}
    assert set(proposal.slot.tolist()) == {-1}


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"budget": 0}])
def test_random_search_refuses_nothing_to_do(tiny_space, wrong):
    with pytest.raises(InputError, match="1 or more, but got 0"):
        random_search(tiny_space, **wrong)
