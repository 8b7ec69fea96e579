"""Hypergradients in float64 against outer objectives, written out.

One is that of a small network, the other is quadratic and has a closed form.
"""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import (
    CLIP,
    SHARP,
    Linear,
    OneCell,
    Smooth,
    Step,
    central_differences,
    compiled_descend,
    compiled_grad,
    compiled_objective,
    deviation,
    follow,
    learning_rate,
    norm,
    outer_objective,
    problem,
)

from jaxnas.base import InputError
from jaxnas.evaluators.halves import WEIGHTS
from jaxnas.evaluators.hypergradients import (
    HYPERGRADIENTS,
    conjugate_gradient,
    exact,
    finite_difference,
    first_order,
    neumann,
    unrolled,
)
from jaxnas.training import init_state, sgd


@functools.cache
def smooth(hypergradient) -> list[Step]:
    """Steps of the smooth network in float64."""
    with jax.enable_x64(True):
        return follow(Smooth(), hypergradient=hypergradient, **SHARP)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "hypergradient", ["first_order", "exact", "finite_difference", "neumann"]
)
def test_weights_descend_as_written_out(hypergradient):
    first, *_ = steps = smooth(hypergradient)
    params = first.before.train.params
    momenta = jax.tree.map(jnp.zeros_like, params)
    for t, step in enumerate(steps):
        given = Smooth(), params, momenta, step.arch, step.batches[0]
        unclipped, _ = compiled_descend(*given, learning_rate(t))
        params, momenta = compiled_descend(*given, learning_rate(t), CLIP)
        assert deviation(step.after.train.params, params) < 1e-12
        assert deviation(unclipped, params) > 0.01, "expected a clip that is felt"
        assert int(step.after.train.step) == t + 1


@pytest.mark.usefixtures("float64")
def test_first_order_is_the_plain_gradient_after_the_step():
    for step in smooth("first_order"):
        given = step.after.train.params, step.arch, step.batches[-1]
        loss, expected = compiled_grad(Smooth(), *given)
        assert deviation(-step.feedback.grad[0], expected[1]) < 1e-12
        np.testing.assert_allclose(-step.feedback.fitness, [loss])


@pytest.mark.usefixtures("float64")
def test_exact_agrees_with_central_differences():
    for t, step in enumerate(smooth("exact")):
        given = problem(step, t)
        expected = central_differences(Smooth(), step.arch, *given)
        assert deviation(-step.feedback.grad[0], expected) < 1e-8
        loss = compiled_objective(Smooth(), step.arch, *given)
        np.testing.assert_allclose(-step.feedback.fitness, [loss])
        _, direct = compiled_grad(Smooth(), given[0], step.arch, step.batches[-1])
        assert deviation(direct[1], expected) > 0.1, "expected a step that matters"


@pytest.mark.usefixtures("float64")
def test_exact_of_real_operations_agrees_with_central_differences():
    # So small a difference meets no kink of ReLU or of a maximum.
    (step,) = follow(OneCell(), 1, hypergradient="exact", **SHARP)
    expected = central_differences(OneCell(), step.arch, *problem(step, 0))
    assert deviation(-step.feedback.grad[0], expected) < 1e-8


def test_exact_in_float32_agrees_with_nested_differentiation():
    (step,) = follow(Smooth(), 1, hypergradient="exact", **SHARP)
    nested = jax.jit(jax.grad(outer_objective, 1), static_argnums=0)
    expected = nested(Smooth(), step.arch, *problem(step, 0))
    found = -step.feedback.grad[0]
    assert found.dtype == expected.dtype == jnp.float32
    assert deviation(found, expected) < 1e-5


@pytest.mark.usefixtures("float64")
def test_unrolled_agrees_with_reverse_mode_through_the_loop():
    # Momentum, a schedule, a decay, a clip of the step that virtual steps have not.
    (step,) = follow(Smooth(), 1, hypergradient="unrolled", **SHARP)
    given = problem(step, 0)
    nested = jax.jit(jax.value_and_grad(outer_objective, 1), static_argnums=0)
    loss, expected = nested(Smooth(), step.arch, *given)
    assert deviation(-step.feedback.grad[0], expected) < 1e-12
    np.testing.assert_allclose(-step.feedback.fitness, [loss])
    params, momenta, batches, rates = given
    stale = params, momenta, batches, [rates[0]] * 2
    assert deviation(nested(Smooth(), step.arch, *stale)[1], expected) > 0.01


@pytest.mark.usefixtures("float64")
def test_finite_difference_is_the_formula_of_the_paper():
    for t, step in enumerate(smooth("finite_difference")):
        params, momenta, batches, (rate,) = problem(step, t)
        virtual, _ = compiled_descend(
            Smooth(), params, momenta, step.arch, batches[1], rate
        )
        _, outer = compiled_grad(Smooth(), virtual, step.arch, batches[-1])
        epsilon = 0.01 / norm(outer[0])

        def by_arch(size, params=params, step=step, along=outer[0]):
            params = jax.tree.map(lambda p, d: p + size * d, params, along)
            return compiled_grad(Smooth(), params, step.arch, step.batches[1])[1][1]

        difference = (by_arch(epsilon) - by_arch(-epsilon)) / (2 * epsilon)
        found = -step.feedback.grad[0]
        assert deviation(found, outer[1] - rate * difference) < 1e-10
        # The truncation, of second order in 0.01.
        assert deviation(found, -smooth("exact")[t].feedback.grad[0]) < 1e-3


@pytest.mark.usefixtures("float64")
def test_finite_difference_nears_exact_with_its_distance():
    (near,) = follow(
        Smooth(), 1, hypergradient=partial(finite_difference, distance=1e-4), **SHARP
    )
    exact = smooth("exact")[0].feedback.grad[0]
    assert deviation(near.feedback.grad[0], exact) < 1e-7


def test_finite_difference_without_a_step_is_the_plain_gradient():
    how = {"learning_rate": 0.0, "hypergradient": "finite_difference"}
    (step,) = follow(Linear(), 1, **how)
    given = step.after.train.params, step.arch, step.batches[-1]
    _, expected = compiled_grad(Linear(), *given)
    assert deviation(-step.feedback.grad[0], expected[1]) < 1e-5


# -- a quadratic problem -----------------------------------------------------------

SHAPE, SIZE, RATE = (2, 3), 5, 0.3  # of the architecture; of the weights; of a step


class Quadratic(NamedTuple):
    """w A w / 2 - w (B a + c) + |a|^2 / 2, its own one for each batch."""

    hessian: np.ndarray  # [SIZE, SIZE], eigenvalues from 0.5 to 2
    mixed: np.ndarray  # [SIZE, 6]
    linear: np.ndarray  # [SIZE]


def make_quadratic(seed) -> Quadratic:
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    hessian = (vectors * rng.uniform(0.5, 2, SIZE)) @ vectors.T
    return Quadratic(hessian, rng.normal(size=(SIZE, 6)), rng.normal(size=SIZE))


@jax.custom_vjp
def with_its_own_gradient(x):
    return x


with_its_own_gradient.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))


def quadratic_loss(params, weights, batch, batch_stats):
    w = with_its_own_gradient(params["w"])  # of parameters alone, as a network's stem
    a = weights.ravel()
    forces = batch.mixed @ a + batch.linear
    loss = w @ batch.hessian @ w / 2 - w @ forces + a @ a / 2
    return loss, (batch_stats, {"loss": loss})


INNER, OUTER = [make_quadratic(seed) for seed in range(6)], make_quadratic(9)
ARCH = np.random.default_rng(7).normal(size=SHAPE)


def solve(hypergradient, inner=INNER, start=None, clip=1e9):
    """Weights after the step of rate RATE, and the hypergradient."""
    tx = sgd(RATE, 0.0, 0.0)
    start = np.ones(SIZE) if start is None else start
    state = init_state({"params": {"w": jnp.asarray(start)}}, tx)

    def draw(half, ahead):
        return jax.tree.map(jnp.asarray, inner[ahead] if half == WEIGHTS else OUTER)

    run = jax.jit(
        lambda state, arch: hypergradient(quadratic_loss, tx, clip, state, arch, draw)
    )
    state, _, _, grad = run(state, jnp.asarray(ARCH))
    return np.asarray(state.params["w"]), np.asarray(grad)


def outer_gradients(w):
    """By the weights and by the architecture, at weights."""
    a = ARCH.ravel()
    by_weights = OUTER.hessian @ w - OUTER.mixed @ a - OUTER.linear
    return by_weights, a - OUTER.mixed.T @ w


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_all_take_the_same_step(name):
    hessian, mixed, linear = INNER[0]
    gradient = hessian @ np.ones(SIZE) - mixed @ ARCH.ravel() - linear
    stepped, _ = solve(HYPERGRADIENTS[name], clip=0.5)
    expected = 1 - RATE * 0.5 * gradient / norm(gradient)
    np.testing.assert_allclose(stepped, expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_unrolled_is_the_closed_form_of_a_quadratic_problem(num_steps):
    stepped, found = solve(partial(unrolled, num_steps=num_steps))
    w, by_arch = stepped, np.zeros((SIZE, 6))  # d w / d architecture
    for hessian, mixed, linear in INNER[1 : num_steps + 1]:
        w = w - RATE * (hessian @ w - mixed @ ARCH.ravel() - linear)
        by_arch = by_arch - RATE * (hessian @ by_arch - mixed)
    by_weights, direct = outer_gradients(w)
    expected = direct + by_arch.T @ by_weights
    assert deviation(found.ravel(), expected) < 1e-12


@pytest.mark.usefixtures("float64")
def test_unrolled_through_one_step_is_exact():
    for one, other in zip(
        solve(partial(unrolled, num_steps=1)), solve(exact), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def inverse_of(damping):
    return np.linalg.inv(INNER[1].hessian + damping * np.eye(SIZE))


def series(num_terms, step_size, damping):
    factor = np.eye(SIZE) - step_size * (INNER[1].hessian + damping * np.eye(SIZE))
    powers = (np.linalg.matrix_power(factor, j) for j in range(num_terms))
    return step_size * sum(powers)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("hypergradient", "inverse"),
    [
        (partial(neumann, num_terms=99, step_size=0.5, damping=0.1), inverse_of(0.1)),
        (partial(neumann, step_size=0.4, damping=0.2), series(3, 0.4, 0.2)),
        (partial(conjugate_gradient, damping=0.1), inverse_of(0.1)),
        (partial(conjugate_gradient, num_iterations=50), inverse_of(1.0)),
    ],
    ids=["neumann", "three_terms", "conjugate_gradient", "more_than_enough"],
)
def test_implicit_is_the_closed_form_of_a_quadratic_problem(hypergradient, inverse):
    stepped, found = solve(hypergradient)
    by_weights, direct = outer_gradients(stepped)
    expected = direct + INNER[1].mixed.T @ inverse @ by_weights
    assert deviation(found.ravel(), expected) < 1e-10


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "hypergradient",
    [
        partial(neumann, num_terms=99, step_size=0.5, damping=0.0),
        partial(conjugate_gradient, damping=0.0),
        partial(unrolled, num_steps=99),
    ],
    ids=["neumann", "conjugate_gradient", "unrolled"],
)
def test_at_the_inner_optimum_it_is_the_gradient_of_the_bilevel_problem(hypergradient):
    hessian, mixed, linear = INNER[0]
    response = np.linalg.solve(hessian, mixed)  # d optimum / d architecture
    optimum = response @ ARCH.ravel() + np.linalg.solve(hessian, linear)
    _, found = solve(hypergradient, [INNER[0]] * 100, optimum)
    by_weights, direct = outer_gradients(optimum)
    assert deviation(found.ravel(), direct + response.T @ by_weights) < 1e-5


@pytest.mark.usefixtures("float64")
def test_conjugate_gradient_along_negative_curvature_is_first_order():
    saddle = [INNER[0], INNER[1]._replace(hessian=-np.eye(SIZE))]
    _, found = solve(partial(conjugate_gradient, damping=0.5), saddle)
    np.testing.assert_array_equal(found, solve(first_order)[1])


@pytest.mark.parametrize(
    ("hypergradient", "what"),
    [
        (partial(unrolled, num_steps=0), "virtual step"),
        (partial(neumann, num_terms=0), "term"),
        (partial(conjugate_gradient, num_iterations=-1), "iteration"),
    ],
)
def test_no_steps_are_refused(hypergradient, what):
    with pytest.raises(InputError, match=rf"^expected 1 {what} or more, but got"):
        solve(hypergradient)
