"""The largest eigenvalue against numpy's of the whole Hessian, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import KEY, SHARP, Smooth, follow, loss_of

from jaxnas.evaluators.curvature import curvature, largest_eigenvalue


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@partial(jax.jit, static_argnums=2)
def of_matrix(key, matrix, num_iterations):
    """The eigenvalue of a function whose Hessian at this x is a matrix."""
    x = jnp.ones((2, len(matrix) // 2))

    def function(x):
        x = x.ravel()
        return x @ matrix @ x / 2 + jnp.sum((x - 1) ** 3)

    return largest_eigenvalue(key, function, x, num_iterations)


def symmetric(spectrum):
    size = len(spectrum)
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    return (vectors * spectrum) @ vectors.T


@pytest.mark.parametrize("shift", [0.0, -9.0, 9.0])
def test_largest_eigenvalue_is_that_of_numpy(shift):
    matrix = symmetric(shift + np.random.default_rng(1).normal(size=10))
    expected = np.linalg.eigvalsh(matrix)[-1]
    for num_iterations in (10, 99):
        found = of_matrix(KEY, matrix, num_iterations)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_largest_eigenvalue_is_approached_from_below():
    matrix = symmetric(np.linspace(-1, 1, 40) ** 3 - 3)
    bounds = [of_matrix(KEY, matrix, n) for n in (1, 4, 16)]
    np.testing.assert_array_less(np.diff(bounds) * -1, 0)
    np.testing.assert_array_less(bounds, -2 + 1e-12)
    assert bounds[-1] > -2.01


@pytest.mark.parametrize("spectrum", [[0.0] * 6, [-2.0] * 6, [3.0] * 5 + [0.0]])
def test_invariant_subspaces_end_the_iteration(spectrum):
    matrix = symmetric(np.array(spectrum))
    for seed in range(3):
        found = of_matrix(jax.random.key(seed), matrix, 6)
        np.testing.assert_allclose(found, max(spectrum), atol=1e-12)


@partial(jax.jit, static_argnums=0)
def measure(loss, weights):
    return curvature(KEY, loss, weights, 12)


def test_curvature_is_of_the_logits_of_what_can_be_chosen():
    rng = np.random.default_rng(2)
    target = rng.normal(size=(3, 4))
    valid = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], bool)
    factors = np.array([[0.5], [1.0], [2.0]])  # as of edges
    logits = rng.normal(size=valid.sum())

    def weights_of(logits):
        shape = jnp.full(valid.shape, -jnp.inf).at[np.nonzero(valid)].set(logits)
        return factors * jax.nn.softmax(shape)

    def loss(weights):
        return jnp.sum(jnp.tanh(weights * target)) + jnp.sum(weights[0] * weights[1])

    hessian = jax.jit(jax.hessian(lambda x: loss(weights_of(x))))(logits)
    found = measure(loss, weights_of(logits))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[-1], rtol=1e-10)


def test_curvature_of_one_hot_weights_and_empty_rows_is_zero():
    weights = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert measure(lambda w: jnp.sum((w - 2) ** 4), weights) == 0


def test_supernet_measures_at_the_stepped_weights_every_so_many_steps():
    how = {"curvature_every": 2, "curvature_iterations": 12}
    steps = follow(Smooth(), 2, **how, **SHARP)

    @jax.jit
    def hessian(params, arch, batch):
        def loss(logits):
            return loss_of(Smooth(), params, jax.nn.softmax(logits), batch)

        return jax.hessian(loss)(jnp.log(arch))

    first, second = (step.feedback.metrics["valid_curvature"] for step in steps)
    assert np.isnan(first)
    step = steps[1]
    params = step.after.train.params
    matrix = hessian(params, step.arch, step.batches[-1]).reshape(12, 12)
    np.testing.assert_allclose(second, [np.linalg.eigvalsh(matrix)[-1]], rtol=1e-8)
