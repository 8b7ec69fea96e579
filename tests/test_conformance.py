"""What holds for every strategy in every space; a new one needs no line here.

The evaluator fills every field and fails: at random, and all at once on a schedule.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_trees_equal, to_numpy

from jaxnas.base import (
    ABSENT,
    OK,
    Evaluator,
    Feedback,
    Generator,
    InputError,
    SearchSpace,
    Strategy,
)
from jaxnas.checkpoint import Checkpoints
from jaxnas.generators import GENERATORS
from jaxnas.search import chunked_scan, host_scan, search
from jaxnas.spaces import SPACES
from jaxnas.strategies import (
    NEED_GENERATOR,
    NEED_GRADIENT,
    NEED_SURROGATE,
    STRATEGIES,
)
from jaxnas.surrogates.gp import gp

NUM_STEPS, CHUNK = 9, 3  # chunks of a length: one program
KEYS = jax.random.split(jax.random.key(7), 2)

# Every strategy in one space, and in the others those that call all of a space's
# functions between them: the pairs left out would run the same code again.
CALL_ALL = ("differentiable", "genetic_algorithm", "local_search", "random_search")
PAIRS = [
    pair
    for pair in itertools.product(SPACES, STRATEGIES)
    if pair[0] == "nasbench201" or pair[1] in CALL_ALL
]
# By module: tests of the same two members follow each other and share programs.
every_pair = pytest.mark.parametrize(("space_name", "name"), PAIRS, scope="module")
# What of floats XLA rounds by the program around it; a surrogate's fit descends too.
DESCENDS = (
    *NEED_GRADIENT,
    *NEED_SURROGATE,
    *NEED_GENERATOR,
    "enas",
    "reinforce",
)
# Three more programs a pair.
some_pairs = pytest.mark.parametrize(
    ("space_name", "name"),
    [pair for pair in PAIRS if "nasbench201" in pair or "genetic_algorithm" in pair],
    scope="module",
)


class EvaluatorState(NamedTuple):
    count: jax.Array  # int32[]
    drift: jax.Array  # float32[D, K]


def failing_evaluator(space: SearchSpace) -> Evaluator:
    """Adds up what the choices are worth, and their drift as a supernet's."""
    shape = len(space.num_choices), max(space.num_choices)
    # Short binary fractions, whose sums are exact in any order.
    worth = np.random.default_rng(0).integers(-128, 128, shape) / np.float32(64)

    def init(key):
        drift = jax.random.randint(key, shape, 0, 64) / jnp.float32(64)
        return EvaluatorState(jnp.int32(0), drift)

    def evaluate(key, data, state, proposal):
        arch = proposal.arch
        is_relaxed = arch.dtype == jnp.float32
        weights = arch if is_relaxed else jax.nn.one_hot(arch, shape[1])
        values = data + state.drift
        fitness = jnp.sum(weights * values[None], (1, 2))
        draw = jax.random.uniform(key, fitness.shape)
        diverged = (draw < 0.2) | (state.count % 4 == 2)
        fitness = jnp.where(diverged, jnp.nan, fitness)
        absent = draw > 0.9
        fitness = jnp.where(absent, -jnp.inf, fitness)
        feedback = Feedback(
            fitness=fitness,
            cost=proposal.budget.astype(jnp.float32),
            status=jnp.where(absent, ABSENT, OK),
            metrics={"test_accuracy": fitness, "num_params": -fitness},
            objectives=jnp.stack([fitness, -fitness], 1),
        )
        if is_relaxed:
            grad = jnp.where(diverged[:, None, None], jnp.nan, values[None])
            feedback = feedback._replace(grad=grad)
        return EvaluatorState(state.count + 1, 0.5 * values), feedback

    return Evaluator(worth, init, evaluate)


class Members(NamedTuple):
    space: SearchSpace
    strategy: Strategy
    evaluator: Evaluator
    traced: list[str]  # what was traced, in order


def generator_for(name: str, space: SearchSpace) -> Generator:
    """The first of all generators that a strategy takes."""
    for make in GENERATORS.values():
        made = make(space, width=8, layers=1, num_pretrain=2, num_updates=1)
        try:
            STRATEGIES[name](space, made)
        except InputError:
            continue
        return made
    raise AssertionError(f"no generator is one for {name}")


@functools.cache
def members(space_name: str, name: str) -> Members:
    space = SPACES[space_name]()
    # Updates would amplify the last bits; what is told changes its posterior anyway.
    model = gp(space, num_starts=1, num_updates=0)
    given: tuple[Any, ...] = (space,)
    if name in NEED_SURROGATE:
        given = space, model
    elif name in NEED_GENERATOR:
        given = space, generator_for(name, space)
    strategy, traced = STRATEGIES[name](*given), []

    def ask(*args):
        traced.append("ask")
        return strategy.ask(*args)

    def tell(*args):
        traced.append("tell")
        return strategy.tell(*args)

    counted = strategy._replace(ask=ask, tell=tell)
    return Members(space, counted, failing_evaluator(space), traced)


class Run(NamedTuple):
    states: tuple[Any, Any]
    log: Any
    traced: list[str]


def run(found: Members, scan, key=KEYS[0], num_steps: int = NUM_STEPS) -> Run:
    found.traced.clear()
    states, log = search(key, found.strategy, found.evaluator, num_steps, scan)
    return Run(states, log, list(found.traced))


@functools.cache
def reference(space_name: str, name: str) -> tuple[Run, Any]:
    """Returns the run by lax.scan, and its states after every step."""

    def recording_scan(f, init, xs):
        def recorded(carry, x):
            carry, y = f(carry, x)
            return carry, (carry, y)

        carry, (carries, ys) = jax.lax.scan(recorded, init, xs)
        every.append(carries)
        return carry, ys

    every: list[Any] = []
    found = run(members(space_name, name), recording_scan)
    return found, every[0]


def assert_valid(space: SearchSpace, archs):
    one_hot = jax.nn.one_hot(archs, max(space.num_choices))
    assert archs.dtype == jnp.int32
    np.testing.assert_array_equal(jax.vmap(space.discretize)(one_hot), archs)


def assert_trees_close(found, expected):
    """For descent on reals, whose last bit XLA rounds by the program around it."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            to_numpy(one), to_numpy(other), rtol=1e-4, atol=1e-9, strict=True
        )


@every_pair
def test_state_keeps_its_structure(space_name, name):
    _, strategy, evaluator, _ = members(space_name, name)

    def step(key):
        state, rows = strategy.init(key), evaluator.init(key)
        proposal = strategy.ask(key, jnp.int32(0), state)
        _, feedback = evaluator.evaluate(key, evaluator.data, rows, proposal)
        return state, strategy.tell(key, jnp.int32(0), state, proposal, feedback)

    first, told = jax.eval_shape(step, KEYS[0])
    assert jax.tree.structure(told) == jax.tree.structure(first)
    for one, other in zip(jax.tree.leaves(told), jax.tree.leaves(first), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.weak_type == other.weak_type


@every_pair
def test_state_never_holds_nan(space_name, name):
    found, every = reference(space_name, name)
    for leaf in jax.tree.leaves(every):
        assert not np.isnan(to_numpy(leaf)).any()
    failed = np.isneginf(found.log.feedback.fitness)
    assert failed.all(1).any(), "expected a step that failed as a whole"
    assert not failed.all(), "expected a step that did not"


@every_pair
def test_proposals_are_valid(space_name, name):
    space = members(space_name, name).space
    found, _ = reference(space_name, name)
    arch, budget, slot = found.log.proposal
    num_decisions, most = len(space.num_choices), max(space.num_choices)
    assert budget.shape == slot.shape == arch.shape[:2]
    assert budget.dtype == slot.dtype == jnp.int32
    assert (budget >= 0).all()
    assert (slot >= -1).all()
    if arch.dtype == jnp.float32:
        assert arch.shape[2:] == (num_decisions, most)
        assert np.isfinite(arch).all()
        is_choice = np.arange(most)[None] < np.array(space.num_choices)[:, None]
        assert not arch[:, :, ~is_choice].any()
    else:
        assert arch.shape[2:] == (num_decisions,)
        assert_valid(space, arch.reshape(-1, num_decisions))


@every_pair
def test_recommended_architecture_is_valid(space_name, name):
    space, strategy, *_ = members(space_name, name)
    found, _ = reference(space_name, name)
    arch = strategy.recommend(found.states[0], found.log)
    assert arch.shape == (len(space.num_choices),)
    assert_valid(space, arch[None])


@some_pairs
def test_scans_agree_and_trace_once(space_name, name, tmp_path):
    given = members(space_name, name)
    expected, _ = reference(space_name, name)
    by_host = run(given, host_scan)
    by_chunk = run(given, chunked_scan(CHUNK))

    def stop(step, carry, ys):
        if step > CHUNK:
            raise InterruptedError

    checkpoints = Checkpoints(tmp_path / "steps")
    with pytest.raises(InterruptedError):
        run(given, chunked_scan(CHUNK, checkpoints, stop))
    assert checkpoints.latest() == CHUNK
    resumed = run(given, chunked_scan(CHUNK, checkpoints))

    same = assert_trees_close if name in DESCENDS else assert_trees_equal
    for found in (by_host, by_chunk):
        same(found[:2], expected[:2])
    assert_trees_equal(resumed[:2], by_chunk[:2])
    for found in (expected, by_host):
        assert found.traced == ["ask", "tell"]
    for found in (by_chunk, resumed):
        assert found.traced in ([], ["ask", "tell"])  # none: the step is known by now


@some_pairs
def test_seeds_are_runs_side_by_side(space_name, name):
    given = members(space_name, name)
    together = run(given, host_scan, KEYS)
    assert together.traced == ["ask", "tell"]
    answers = jax.vmap(given.strategy.recommend, (0, 1))(
        together.states[0], together.log
    )
    for i, key in enumerate(KEYS):
        alone = run(given, host_scan, key)
        states = jax.tree.map(lambda leaf: leaf[i], together.states)  # noqa: B023
        log = jax.tree.map(lambda leaf: leaf[:, i], together.log)  # noqa: B023
        if name in (*NEED_GRADIENT, *NEED_SURROGATE, *NEED_GENERATOR):
            assert_trees_close((states, log), alone[:2])
        else:
            assert_trees_equal((states, log), alone[:2])
        answer = given.strategy.recommend(alone.states[0], alone.log)
        np.testing.assert_array_equal(answers[i], answer)
