import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from known import known_evaluator
from trees import assert_trees_equal

from jaxnas.base import OK, Feedback, InputError
from jaxnas.search import search
from jaxnas.spaces import SPACES
from jaxnas.strategies.differentiable import differentiable

KEY = jax.random.key(0)
STEP = jnp.int32(0)
SHAPE = 3, 4  # of `tiny_space`
IS_CHOICE = np.arange(4)[None] < np.array([[3], [2], [4]])
# Worth most, and out of reach, are the choices that there are not.
TABLE = np.where(IS_CHOICE, np.random.default_rng(0).normal(size=SHAPE), 100.0)


def answer(fitness, grad) -> Feedback:
    ones = jnp.ones(1)
    grad = jnp.asarray(grad, jnp.float32)[None]
    return Feedback(jnp.float32([fitness]), ones, jnp.full(1, OK), {}, grad=grad)


def tell(strategy, state, feedback, key=KEY, step=STEP):
    proposal = strategy.ask(key, step, state)
    return strategy.tell(key, step, state, proposal, feedback)


def test_recommendation_is_the_optimum_of_a_known_table(tiny_space):
    strategy = differentiable(tiny_space, learning_rate=0.1)
    (state, _), log = search(KEY, strategy, known_evaluator(TABLE), 100)
    expected = np.where(IS_CHOICE, TABLE, -np.inf).argmax(1)
    np.testing.assert_array_equal(strategy.recommend(state, log), expected)
    first, last = log.feedback.fitness[jnp.array([0, -1]), 0]
    assert float(last) > float(first)


def test_gradient_that_is_not_finite_moves_nothing(tiny_space):
    strategy = differentiable(tiny_space)
    state = strategy.init(KEY)
    broken = np.where(np.arange(12).reshape(SHAPE) == 3, np.nan, 1.0)
    assert_trees_equal(tell(strategy, state, answer(1.0, broken)), state)


def test_evaluator_without_gradients_is_refused(tiny_space):
    strategy = differentiable(tiny_space)
    blind = answer(1.0, np.ones(SHAPE))._replace(grad=None)
    with pytest.raises(InputError, match="gives gradients"):
        tell(strategy, strategy.init(KEY), blind)


@pytest.mark.parametrize("name", SPACES)
def test_recommendation_is_the_optimum_in_every_space(name):
    space = SPACES[name]()
    shape = len(space.num_choices), max(space.num_choices)
    is_choice = np.arange(shape[1])[None] < np.array(space.num_choices)[:, None]
    worth = np.random.default_rng(1).normal(size=shape)
    table = jnp.asarray(np.where(is_choice, worth, -9.0))
    strategy = differentiable(space, learning_rate=0.1)
    (state, _), log = search(KEY, strategy, known_evaluator(table), 200)
    # The weights of a decision end in the order of what its choices are worth.
    np.testing.assert_array_equal(log.proposal.arch[-1, 0].argmax(1), table.argmax(1))
    expected = space.discretize(jax.nn.softmax(state.logits))
    np.testing.assert_array_equal(strategy.recommend(state, log), expected)


def test_proposal_is_a_softmax_over_the_choices_there_are(tiny_space):
    strategy = differentiable(tiny_space, init_scale=1.0)
    state = strategy.init(KEY)
    arch, budget, slot = strategy.ask(KEY, STEP, state)
    odds = np.exp(np.asarray(state.logits, np.float64)) * IS_CHOICE
    expected = odds / odds.sum(1, keepdims=True)
    np.testing.assert_allclose(arch, expected[None], rtol=1e-5)
    assert (budget.tolist(), slot.tolist()) == ([1], [0])


def test_masked_choices_never_get_weight(tiny_space):
    strategy = differentiable(tiny_space, learning_rate=1.0, init_scale=1.0)
    _, log = search(KEY, strategy, known_evaluator(TABLE), 50)
    assert not log.proposal.arch[:, 0, ~IS_CHOICE].any()
    np.testing.assert_allclose(log.proposal.arch.sum(-1), 1, rtol=1e-5)


def test_first_logits_have_the_scale_asked_for(tiny_space):
    small, large = (
        differentiable(tiny_space, init_scale=scale).init(KEY).logits
        for scale in (1e-3, 1.0)
    )
    np.testing.assert_allclose(small, 1e-3 * large, rtol=1e-6)
    np.testing.assert_allclose(np.std(large), 1, atol=0.5)


def test_logits_descend_as_with_pytorchs_adam(tiny_space):
    # With the settings that are the paper's, which are the default.
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    strategy = differentiable(tiny_space)
    # So large that the decay is most of some gradients.
    state = strategy.init(KEY)._replace(logits=10 * jax.random.normal(KEY, SHAPE))
    logits = torch.tensor(state.logits.tolist(), requires_grad=True)
    adam = torch.optim.Adam([logits], 3e-4, (0.5, 0.999), weight_decay=1e-3)
    masked = torch.tensor(~IS_CHOICE)
    step = jax.jit(functools.partial(tell, strategy))
    start = np.array(state.logits)
    for grad in np.random.default_rng(0).normal(size=(10, *SHAPE)).astype(np.float32):
        adam.zero_grad()
        weights = logits.masked_fill(masked, -torch.inf).softmax(1)
        (-torch.tensor(grad) * weights).sum().backward()
        adam.step()
        state = step(state, answer(1.0, grad))
        moved = np.asarray(state.logits) - start
        expected = logits.detach().numpy() - start
        np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=2e-6)


@pytest.mark.parametrize("fitness", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("grad", [np.nan, 1.0])
def test_failure_leaves_the_state_as_it_was(tiny_space, fitness, grad):
    strategy = differentiable(tiny_space)
    state = tell(strategy, strategy.init(KEY), answer(1.0, TABLE))
    failed = answer(fitness, np.full(SHAPE, grad))
    assert_trees_equal(tell(strategy, state, failed), state)


def test_gradient_is_pulled_back_through_the_noise_of_ask_at_its_step(tiny_space):
    def relax(key, step, logits):
        noise = jax.random.gumbel(key, logits.shape)
        return jax.nn.softmax((logits + noise) / (1 + step))

    strategy = differentiable(
        tiny_space, relax=relax, learning_rate=0.1, weight_decay=0.0
    )
    state = strategy.init(KEY)
    masked = jnp.where(IS_CHOICE, state.logits, -jnp.inf)
    proposal = strategy.ask(jax.random.key(5), jnp.int32(3), state)
    expected = relax(jax.random.key(5), 3, masked)
    np.testing.assert_allclose(proposal.arch, expected[None], rtol=1e-6)

    table = jnp.asarray(np.where(IS_CHOICE, TABLE, 0.0), jnp.float32)
    adam = optax.adam(0.1, 0.5, 0.999)
    for seed in (5, 6):
        key = jax.random.key(seed)
        loss = lambda logits: -jnp.sum(table * relax(key, 3, logits))  # noqa: B023, E731
        updates, _ = adam.update(jax.grad(loss)(masked), adam.init(masked))
        found = tell(strategy, state, answer(1.0, table), key, jnp.int32(3)).logits
        np.testing.assert_allclose(found, state.logits + updates, rtol=1e-4)


def test_recommendation_is_of_the_logits_not_of_a_sample(tiny_space):
    def relax(key, step, logits):
        return jax.nn.softmax(-logits)

    strategy = differentiable(tiny_space, relax=relax)
    state = strategy.init(KEY)
    logits = jnp.asarray(np.where(IS_CHOICE, TABLE, 100.0), jnp.float32)
    found = strategy.recommend(state._replace(logits=logits), None)
    expected = np.where(IS_CHOICE, TABLE, -np.inf).argmax(1)
    np.testing.assert_array_equal(found, expected)
