import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known import known_evaluator
from trees import assert_trees_equal

from jaxnas.base import OK, Feedback, InputError
from jaxnas.search import search
from jaxnas.spaces import SPACES
from jaxnas.strategies import NEED_GRADIENT, STRATEGIES
from jaxnas.strategies.concrete import annealing, concrete
from jaxnas.strategies.differentiable import differentiable, edge_shares
from jaxnas.strategies.drnas import dirichlet, mean
from jaxnas.strategies.gdas import gdas, straight_through
from jaxnas.strategies.pc_darts import pc_darts
from jaxnas.strategies.snas import snas

KEY = jax.random.key(0)
STEP = jnp.int32(0)
SHAPE = 3, 4  # of `tiny_space`
IS_CHOICE = np.arange(4)[None] < np.array([[3], [2], [4]])
# Worth most, and out of reach, are the choices that there are not.
TABLE = np.where(IS_CHOICE, np.random.default_rng(0).normal(size=SHAPE), 100.0)
VARIANTS = [name for name in NEED_GRADIENT if name != "differentiable"]
NUM_STEPS, NUM_DRAWS = 200, 20_000
LOGITS = jnp.array([[-1.0, 0.5, 1.5, -jnp.inf], [0.0, 0.3, -2.0, 1.0]])


@functools.cache
def searched(space, name):
    """What a variant makes of the table: the answer and every proposal's weights."""
    annealed = {"num_steps": NUM_STEPS} if name in ("gdas", "snas") else {}
    strategy = STRATEGIES[name](space, learning_rate=0.1, **annealed)
    (state, _), log = search(KEY, strategy, known_evaluator(TABLE), NUM_STEPS)
    return strategy.recommend(state, log), log.proposal.arch[:, 0]


def draws(draw, *args):
    """Draws NUM_DRAWS times by keys of their own."""
    keys = jax.random.split(KEY, NUM_DRAWS)
    each = jax.vmap(draw, (0, *[None] * len(args)))
    return np.asarray(jax.jit(each)(keys, *args), np.float64)


def assert_near(found, expected, deviation):
    """Asserts a mean of draws, within five standard errors."""
    error = 5 * np.asarray(deviation) / np.sqrt(NUM_DRAWS)
    assert (np.abs(found - np.asarray(expected)) <= error + 1e-6).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_recommendation_is_the_optimum_of_a_known_table(tiny_space, name):
    found, _ = searched(tiny_space, name)
    np.testing.assert_array_equal(found, np.where(IS_CHOICE, TABLE, -9).argmax(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_masked_choices_never_get_weight(tiny_space, name):
    _, weights = searched(tiny_space, name)
    assert not weights[:, ~IS_CHOICE].any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "rate"), [("gdas", 3e-4), ("pc_darts", 6e-4)])
def test_first_step_is_of_the_published_rate(tiny_space, name, rate):
    strategy = STRATEGIES[name](tiny_space)
    state = strategy.init(KEY)
    grad = jnp.asarray(TABLE, jnp.float32)[None]
    feedback = Feedback(jnp.ones(1), jnp.ones(1), jnp.full(1, OK), {}, grad=grad)
    told = jax.jit(strategy.tell)(KEY, STEP, state, None, feedback)
    moved = np.abs(told.logits - state.logits)[IS_CHOICE]  # Adam's first is its rate
    np.testing.assert_allclose(moved, rate, rtol=1e-2)


def test_gdas_proposes_exactly_one_hot_weights(tiny_space):
    _, weights = searched(tiny_space, "gdas")
    expected = jax.nn.one_hot(weights.argmax(-1), SHAPE[1])
    np.testing.assert_array_equal(weights, expected)
    assert len(np.unique(weights.argmax(-1), axis=0)) > 4, "expected different samples"


def test_gdas_gradient_is_that_of_the_soft_weights():
    temperature, upstream = 2.5, np.random.default_rng(1).normal(size=LOGITS.shape)

    def worth(logits):
        weights = straight_through(concrete(KEY, logits, temperature))
        return jnp.sum(jnp.asarray(upstream, jnp.float32) * weights)

    noise = np.asarray(jax.random.gumbel(KEY, LOGITS.shape), np.float64)
    odds = np.exp((np.asarray(LOGITS, np.float64) + noise) / temperature)
    soft = odds / odds.sum(1, keepdims=True)
    average = (soft * upstream).sum(1, keepdims=True)
    expected = soft * (upstream - average) / temperature
    np.testing.assert_allclose(jax.grad(worth)(LOGITS), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_strongest_of_concrete_weights_is_as_frequent_as_its_softmax(temperature):
    weights = draws(concrete, LOGITS, temperature)
    counted = (weights.argmax(-1)[..., None] == np.arange(4)).mean(0)
    expected = np.asarray(jax.nn.softmax(LOGITS), np.float64)
    assert_near(counted, expected, np.sqrt(expected * (1 - expected)))


@jax.jit
def dirichlet_draws(logits, worth):
    """Draws float32[NUM_DRAWS, 2, 4], and the gradient of what they are worth."""

    def draw(key):
        weights, pull_back = jax.vjp(lambda x: dirichlet(key, STEP, x), logits)
        return weights, pull_back(worth)[0]

    return jax.vmap(draw)(jax.random.split(KEY, NUM_DRAWS))


def test_dirichlet_has_the_moments_and_gradient_of_the_closed_form():
    worth = np.array([[0.3, -1.0, 2.0, 7.0], [1.0, -0.5, 0.2, -2.0]])
    found = dirichlet_draws(LOGITS, jnp.asarray(worth, jnp.float32))
    weights, grads = np.asarray(found, np.float64)
    logits = np.asarray(LOGITS, np.float64)
    slope = np.where(logits > 0, 1, np.exp(np.minimum(logits, 0)))  # of elu
    concentration = np.where(logits > 0, logits + 1, slope)
    total = concentration.sum(1, keepdims=True)
    share = concentration / total
    variance = share * (1 - share) / (total + 1)
    np.testing.assert_allclose(mean(LOGITS), share, rtol=1e-6)
    assert_near(weights.mean(0), share, np.sqrt(variance))
    squares = (weights - share) ** 2
    assert_near(squares.mean(0), variance, squares.std(0))
    average = (worth * share).sum(1, keepdims=True)
    assert_near(grads.mean(0), slope * (worth - average) / total, grads.std(0))
    assert not grads[:, 0, 3].any(), "expected no gradient for a choice that is none"


def test_dirichlet_of_extreme_logits_is_finite():
    logits = jnp.array([[-jnp.inf, -300.0, -20.0, 40.0], [-8.0, -9.0, -99.0, -jnp.inf]])
    weights, grads = dirichlet_draws(logits, jnp.asarray(TABLE[:2], jnp.float32))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert np.isfinite(grads).all()
    for values in (weights, grads):
        assert not values[:, [0, 1], [0, 3]].any()


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 10.0), (50, 5.05), (100, 0.1), (999, 0.1)]
)
def test_temperature_falls_linearly_to_the_last_step(step, expected):
    temperature = annealing((10.0, 0.1), 101)
    np.testing.assert_allclose(temperature(jnp.int32(step)), expected, rtol=1e-5)


def test_temperature_of_one_step_is_the_first():
    assert annealing((10.0, 0.1), 1)(jnp.int32(0)) == 10.0


@pytest.mark.parametrize(
    ("step", "temperature"), [(0, 1.0), (20, 0.515), (40, 0.03), (80, 0.03)]
)
def test_snas_draws_at_the_temperature_of_the_step(tiny_space, step, temperature):
    strategy = snas(tiny_space, num_steps=41, init_scale=0.1)
    state = strategy.init(KEY)
    found = strategy.ask(jax.random.key(1), jnp.int32(step), state).arch[0]
    noise = np.asarray(jax.random.gumbel(jax.random.key(1), SHAPE), np.float64)
    noisy = (np.asarray(state.logits, np.float64) + noise) / temperature
    noisy = np.where(IS_CHOICE, noisy, -np.inf)
    odds = np.exp(noisy - noisy.max(1, keepdims=True))
    np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"temperatures": (0.0, 1.0)}, "first_temperature"),
        ({"temperatures": (1.0, -1.0)}, "last_temperature"),
        ({"warmup": -1}, "warmup"),
    ],
)
@pytest.mark.parametrize("make", [gdas, snas])
def test_wrong_settings_are_refused(tiny_space, make, settings, name):
    with pytest.raises(InputError, match=name):
        make(tiny_space, **settings)


@pytest.mark.parametrize("name", ["darts", "nasbench201"])
def test_edge_shares_of_each_node_sum_to_one(name):
    targets = SPACES[name]().cells.targets
    logits = np.random.default_rng(0).normal(size=len(targets)).astype(np.float32)
    found = edge_shares(jnp.asarray(logits), targets)
    odds = np.exp(logits.astype(np.float64))
    for node in set(targets):
        into = [i for i, target in enumerate(targets) if target == node]
        np.testing.assert_allclose(found[np.array(into)].sum(), 1, rtol=1e-6)
        expected = odds[into] / odds[into].sum()
        np.testing.assert_allclose(found[np.array(into)], expected, rtol=1e-5)


def test_weights_of_pc_darts_sum_to_the_shares_of_edges():
    space = SPACES["nasbench201"]()
    strategy = pc_darts(space, init_scale=1.0)
    state = strategy.init(KEY)
    weights = jax.jit(strategy.ask)(KEY, STEP, state).arch[0]
    shares = edge_shares(state.edge_logits, space.cells.targets)
    np.testing.assert_allclose(weights.sum(1), shares, rtol=1e-5)
    soft = jax.nn.softmax(state.logits)
    np.testing.assert_allclose(weights / shares[:, None], soft, rtol=1e-5)


def test_pc_darts_without_cells_is_darts_at_another_rate(tiny_space):
    found = pc_darts(tiny_space, learning_rate=3e-4)
    expected = differentiable(tiny_space)
    (state, _), log = search(KEY, found, known_evaluator(TABLE), 5)
    (darts, _), darts_log = search(KEY, expected, known_evaluator(TABLE), 5)
    np.testing.assert_array_equal(log.proposal.arch, darts_log.proposal.arch)
    np.testing.assert_array_equal(state.logits, darts.logits)


def test_pc_darts_gives_each_node_to_its_best_edge():
    space = SPACES["nasbench201"]()
    shape = len(space.num_choices), max(space.num_choices)
    table = np.random.default_rng(2).normal(size=shape)
    strategy = pc_darts(space, learning_rate=0.1)
    (state, _), log = search(KEY, strategy, known_evaluator(table), NUM_STEPS)
    shares = np.asarray(edge_shares(state.edge_logits, space.cells.targets))
    for node in (2, 3):
        into = np.flatnonzero(np.array(space.cells.targets) == node)
        assert shares[into].argmax() == table[into].max(1).argmax()
    np.testing.assert_array_equal(strategy.recommend(state, log), table.argmax(1))


def test_pc_darts_recommends_by_the_product_with_the_shares():
    space = SPACES["darts"]()
    strategy = pc_darts(space, init_scale=1.0)
    state = strategy.init(KEY)
    logits, edges = np.asarray(state.logits), np.asarray(state.edge_logits)
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    nodes = np.array(space.cells.targets)
    odds = np.exp(edges)
    shares = odds / np.array([odds[nodes == node].sum() for node in nodes])
    product = jnp.asarray(soft * shares[:, None])
    found = jax.jit(strategy.recommend)(state, None)
    discretize = jax.jit(space.discretize)
    np.testing.assert_array_equal(found, discretize(product))
    assert (found != discretize(jnp.asarray(soft))).any()


def test_warmup_moves_nothing_and_then_all(tiny_space):
    strategy = pc_darts(tiny_space, warmup=3)
    state = strategy.init(KEY)
    grad = jnp.asarray(TABLE, jnp.float32)[None]
    feedback = Feedback(jnp.ones(1), jnp.ones(1), jnp.full(1, OK), {}, grad=grad)
    tell = jax.jit(strategy.tell)
    for step in range(3):
        assert_trees_equal(tell(KEY, jnp.int32(step), state, None, feedback), state)
    moved = tell(KEY, jnp.int32(3), state, None, feedback)
    assert (moved.logits != state.logits)[IS_CHOICE].all()
    assert moved.opt_state[1][0].count == 1, "expected an optimizer that starts here"
