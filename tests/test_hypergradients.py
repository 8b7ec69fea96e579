"""Hypergradients against the whole outer objective, written out, in float64."""

import functools
from functools import partial

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
    jit,
    learning_rate,
    norm,
    outer_objective,
    problem,
)

from jaxnas.evaluators.supernet import HYPERGRADIENTS, finite_difference


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
@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
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
        given = step.after.train.params, step.arch, step.batches[2]
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
        _, direct = compiled_grad(Smooth(), given[0], step.arch, step.batches[2])
        assert deviation(direct[1], expected) > 0.1, "expected a step that matters"


@pytest.mark.usefixtures("float64")
def test_exact_of_real_operations_agrees_with_central_differences():
    # So small a difference meets no kink of ReLU or of a maximum.
    (step,) = follow(OneCell(), 1, hypergradient="exact", **SHARP)
    expected = central_differences(OneCell(), step.arch, *problem(step, 0))
    assert deviation(-step.feedback.grad[0], expected) < 1e-8


def test_exact_in_float32_agrees_with_nested_differentiation():
    (step,) = follow(Smooth(), 1, hypergradient="exact", **SHARP)
    nested = jit(jax.grad(outer_objective, 1), static_argnums=0)
    expected = nested(Smooth(), step.arch, *problem(step, 0))
    found = -step.feedback.grad[0]
    assert found.dtype == expected.dtype == jnp.float32
    assert deviation(found, expected) < 1e-5


@pytest.mark.usefixtures("float64")
def test_finite_difference_is_the_formula_of_the_paper():
    for t, step in enumerate(smooth("finite_difference")):
        params, momenta, batches, rate = problem(step, t)
        virtual, _ = compiled_descend(
            Smooth(), params, momenta, step.arch, batches[1], rate
        )
        _, outer = compiled_grad(Smooth(), virtual, step.arch, batches[2])
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
    given = step.after.train.params, step.arch, step.batches[2]
    _, expected = compiled_grad(Linear(), *given)
    assert deviation(-step.feedback.grad[0], expected[1]) < 1e-5
