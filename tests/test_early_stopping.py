import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known import known_evaluator
from trees import assert_trees_equal

from jaxnas.base import OK, Evaluator, Feedback, InputError, Proposal, Strategy
from jaxnas.search import host_scan, search
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.early_stopping import early_stopping

KEY = jax.random.key(0)
WRITTEN = [1.0] * 5 + [2.0] * 5


def counter() -> Strategy:
    """Its state, and its answer, is how often it was told."""

    def ask(key, step, state):
        one = jnp.ones(1, jnp.int32)
        return Proposal(state.reshape(1, 1), one, -one)

    return Strategy(
        init=lambda key: jnp.int32(0),
        ask=ask,
        tell=lambda key, step, state, proposal, feedback: state + 1,
        recommend=lambda state, log: state[None],
    )


def scripted(evaluator: Evaluator, curvatures) -> Evaluator:
    """Adds to an evaluator's feedback the curvature of each step, float32[T]."""

    def evaluate(key, data, state, proposal):
        inner, count = state
        inner, feedback = evaluator.evaluate(key, data[0], inner, proposal)
        metrics = {"valid_curvature": data[1][count][None]}
        return (inner, count + 1), feedback._replace(metrics=metrics)

    def init(key):
        return evaluator.init(key), jnp.int32(0)

    return Evaluator(
        (evaluator.data, jnp.asarray(curvatures, jnp.float32)), init, evaluate
    )


def constant() -> Evaluator:
    def evaluate(key, data, state, proposal):
        ones = jnp.ones(1)
        return state, Feedback(ones, ones, jnp.full(1, OK), {})

    return Evaluator((), lambda key: (), evaluate)


def run(curvatures, scan=jax.lax.scan, **settings):
    strategy = early_stopping(counter(), **settings)
    evaluator = scripted(constant(), curvatures)
    (state, _), log = search(KEY, strategy, evaluator, len(curvatures), scan)
    return state, log, strategy.recommend(state, log)


def by_the_paper(curvatures, window, threshold, earliest):
    """The step whose architecture is the answer and that of the stop, or None."""
    steps = [step for step, value in enumerate(curvatures) if np.isfinite(value)]
    values = [float(curvatures[step]) for step in steps]

    def smoothed(i):  # over `window` measurements around i
        begin = i - (window - 1 - window // 2)
        return sum(values[begin : begin + window]) / window

    for last in range(2 * window - 1, len(values)):
        i = last - window // 2
        now, before = smoothed(i), smoothed(i - window)
        if i - window >= earliest and now > 0 and before / now < threshold:
            return steps[i - window], steps[last]
    return None


def test_written_out_rise_stops_and_answers_with_the_middle_of_before():
    state, log, answer = run([*WRITTEN, 9.0, 9.0])
    # At the tenth measurement the means are 1 and 2.
    assert bool(state.stopped)
    assert log.proposal.budget[:, 0].tolist() == [1] * 10 + [0] * 2
    assert answer.tolist() == [2]
    assert int(state.num_measured) == 10


def test_steps_that_did_not_measure_are_passed_over():
    curvatures = np.full(40, np.nan)
    curvatures[1:31:3] = WRITTEN
    curvatures[2] = np.inf
    _, log, answer = run(curvatures)
    assert answer.tolist() == [1 + 3 * 2]
    assert int(log.proposal.budget.sum()) == 29  # the tenth is that of step 28


@pytest.mark.parametrize(
    "curvatures",
    [
        [1.0] * 30,
        np.linspace(2, 1, 30),
        np.linspace(-1, -2, 30),
        [np.nan] * 30,
        WRITTEN,
    ],
)
def test_curvature_that_does_not_rise_enough_stops_nothing(curvatures):
    state, log, answer = run(curvatures, threshold=0.5)
    assert not bool(state.stopped)
    assert (log.proposal.budget == 1).all()
    assert answer.tolist() == [len(curvatures)]


def test_state_stays_once_stopped():
    states = [run([*WRITTEN, *more])[0] for more in ([], [7.0], [np.nan, 0.1, 99.0])]
    for state in states[1:]:
        assert_trees_equal(state, states[0])


@pytest.mark.parametrize(
    ("window", "threshold", "earliest"), [(1, 0.5, 3), (2, 0.75, 0), (5, 0.75, 6)]
)
def test_answers_are_those_of_the_papers_rule(window, threshold, earliest):
    rng = np.random.default_rng(window)
    walks = np.exp(np.cumsum(rng.normal(0.02, 0.15, (300, 60)), 1))
    walks = np.where(rng.random(walks.shape) < 0.3, np.nan, walks).astype(np.float32)
    settings = dict(window=window, threshold=threshold, earliest=earliest)
    strategy = early_stopping(counter(), **settings)

    def one(curvatures):
        evaluator = scripted(constant(), curvatures)
        (state, _), log = search(KEY, strategy, evaluator, walks.shape[1])
        return state, log.proposal.budget.sum()

    states, asked = jax.jit(jax.vmap(one))(walks)
    expected = [by_the_paper(walk, **settings) for walk in walks]
    assert 5 < expected.count(None) < 295, "expected some of both"
    for i, found in enumerate(expected):
        answer, stop = found or (walks.shape[1], walks.shape[1] - 1)
        assert bool(states.stopped[i]) == (found is not None)
        assert (int(states.inner[i]), int(asked[i])) == (answer, stop + 1)


def test_differentiable_search_is_untouched_until_it_stops(tiny_space):
    table = np.random.default_rng(0).normal(size=(3, 4))
    alone = differentiable(tiny_space, learning_rate=0.1)
    strategy = early_stopping(alone, window=2)
    curvatures = [3.0, 3.0, 2.9, 2.8, 9.0, 9.0, 1.0, 1.0]
    evaluator = scripted(known_evaluator(table), curvatures)
    (state, _), log = search(KEY, strategy, evaluator, len(curvatures))
    stop = 4  # (3.0 + 2.9) / 2 against (2.8 + 9.0) / 2
    assert log.proposal.budget[:, 0].tolist() == [1] * (stop + 1) + [0] * 3
    # With a window of 2, around i are i and the one after it.
    (before, _), _ = search(KEY, alone, known_evaluator(table), 1)
    assert_trees_equal(state.inner, before)
    (_, _), free = search(KEY, alone, known_evaluator(table), stop + 1)
    np.testing.assert_array_equal(log.proposal.arch[: stop + 1], free.proposal.arch)
    by_host = search(KEY, strategy, evaluator, len(curvatures), host_scan)
    assert_trees_equal(by_host, jax.device_get(((state, by_host[0][1]), log)))
    expected = alone.recommend(before, None)
    np.testing.assert_array_equal(strategy.recommend(state, log), expected)


def test_evaluator_without_the_metric_is_refused(tiny_space):
    strategy = early_stopping(differentiable(tiny_space))
    with pytest.raises(InputError, match="metric valid_curvature, but got none"):
        search(KEY, strategy, known_evaluator(np.ones((3, 4))), 1)


@pytest.mark.parametrize(
    "settings", [{"window": 0}, {"threshold": 1.5}, {"threshold": -1}, {"earliest": -1}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(InputError, match=f"expected {next(iter(settings))} of"):
        early_stopping(counter(), **settings)
