"""Gaussian processes against scikit-learn's, and factors against numpy's."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from jaxnas.base import History
from jaxnas.encoding import encoder
from jaxnas.spaces.categorical import categorical
from jaxnas.surrogates.gaussian_process import (
    condition,
    gram,
    log_likelihood,
    posterior_draw,
    posterior_moments,
)
from jaxnas.surrogates.gp import BOUNDS, gp
from jaxnas.surrogates.kernels import KERNELS, Hyperparameters, Kernel
from jaxnas.surrogates.linalg import cholesky, inverse_factor, with_jitter

N, M, F = 9, 5, 4
SMOOTHNESS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
EVERY = pytest.mark.parametrize("name", KERNELS)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def form_of(name: str) -> Kernel:
    # As for two decisions of two choices each.
    return Kernel(KERNELS[name], (0, 0, 1, 1) if name == "hamming" else (0,) * F)


def hyper_of(name: str, rng) -> Hyperparameters:
    num_lengths = 2 if name == "hamming" else 1
    lengths = np.log(rng.uniform(0.5, 3, num_lengths))
    scale, noise = np.log(rng.uniform(0.3, 5)), np.log(rng.uniform(0.01, 0.5))
    return Hyperparameters(*map(jnp.asarray, (lengths, scale, noise)))


def theirs(name: str, hyper: Hyperparameters):
    """Scikit-learn's kernel."""
    lengths = np.exp(hyper.lengths)
    if name in SMOOTHNESS:
        shape = kernels.Matern(float(lengths[0]), nu=SMOOTHNESS[name])
    else:
        shape = kernels.RBF(lengths.repeat(2) if name == "hamming" else lengths[0])
    scale = kernels.ConstantKernel(float(np.exp(hyper.scale)))
    return scale * shape + kernels.WhiteKernel(float(np.exp(hyper.noise)))


def problem(kind: str, rng):
    """Points, targets and which are known: a problem of `known` points among N."""
    count = 1 if kind == "single" else 6
    x, y = rng.normal(size=(N, F)), rng.normal(size=N)
    if kind == "repeated":
        x[1], x[4] = x[0], x[3]
    if kind == "constant":
        y[:] = 1.5
    return x, y, rng.permutation(N) < count


@jax.jit(static_argnums=0)
def ours(form, hyper, x, y, known, wanted):
    y = jnp.where(known, y, 0.0)
    covariance = gram(form, hyper, x, known)
    found = condition(form, hyper, x, y, known)
    return log_likelihood(covariance, y, known), posterior_moments(form, found, wanted)


@EVERY
def test_process_is_that_of_scikit_learn(name, float64):
    form, rng = form_of(name), np.random.default_rng(0)
    for kind in ("random", "repeated", "single", "constant", "random"):
        x, y, known = problem(kind, rng)
        hyper, wanted = hyper_of(name, rng), rng.normal(size=(M, F))
        wanted[0] = x[known][0]
        likelihood, (mean, variance) = ours(form, hyper, x, y, known, wanted)
        model = GaussianProcessRegressor(theirs(name, hyper), alpha=0, optimizer=None)
        model.fit(x[known], y[known])
        expected, covariance = model.predict(wanted, return_cov=True)
        noise = np.exp(hyper.noise)  # which they add to what they predict
        np.testing.assert_allclose(
            likelihood, model.log_marginal_likelihood_value_, rtol=1e-6
        )
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(
            np.sqrt(variance), np.sqrt(covariance.diagonal() - noise), rtol=1e-4
        )


@EVERY
def test_gradient_of_the_likelihood_is_that_of_scikit_learn(name, float64):
    form, rng = form_of(name), np.random.default_rng(1)
    x, y, known = problem("repeated", rng)
    hyper = hyper_of(name, rng)
    y = np.where(known, y, 0)

    def likelihood(hyper):
        return log_likelihood(gram(form, hyper, x, known), y, known)

    found = jax.jit(jax.grad(likelihood))(hyper)
    model = GaussianProcessRegressor(theirs(name, hyper), alpha=0, optimizer=None)
    model.fit(x[known], y[known])
    theta = model.kernel_.theta  # scale, lengths, noise
    _, expected = model.log_marginal_likelihood(theta, eval_gradient=True)
    lengths = expected[1:-1].reshape(len(hyper.lengths), -1).sum(1)
    np.testing.assert_allclose(found.scale, expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.lengths, lengths, rtol=1e-5)
    np.testing.assert_allclose(found.noise, expected[-1], rtol=1e-6)


def test_gradient_of_the_likelihood_is_its_finite_difference(float64):
    form, rng = form_of("matern52"), np.random.default_rng(2)
    x, y, known = problem("random", rng)
    hyper, y, step = hyper_of("matern52", rng), np.where(known, y, 0), 1e-5

    @jax.jit
    def likelihood(hyper):
        return log_likelihood(gram(form, hyper, x, known), y, known)

    found = jax.grad(likelihood)(hyper)
    for field in hyper._fields:
        higher, lower = (
            likelihood(hyper._replace(**{field: getattr(hyper, field) + by}))
            for by in (step, -step)
        )
        slope = np.sum(getattr(found, field))
        np.testing.assert_allclose(slope, (higher - lower) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("name", ["matern32", "hamming"])
def test_unknown_points_change_nothing(name, float64):
    form, rng = form_of(name), np.random.default_rng(3)
    x, y, known = problem("random", rng)
    hyper, wanted = hyper_of(name, rng), rng.normal(size=(M, F))
    one = ours(form, hyper, x, y, known, wanted)
    x[~known], y[~known] = 1e3, np.nan
    other = ours(form, hyper, x, y, known, wanted)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_nothing_known_is_the_prior(float64):
    form, rng = form_of("rbf"), np.random.default_rng(4)
    x, y, known = problem("random", rng)
    hyper = hyper_of("rbf", rng)
    likelihood, (mean, variance) = ours(form, hyper, x, y, known & False, x[:M])
    np.testing.assert_array_equal(likelihood, 0.0)
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_allclose(variance, np.exp(hyper.scale))


def test_draws_have_the_posterior_mean_and_covariance(float64):
    form, rng, count = form_of("matern32"), np.random.default_rng(5), 20_000
    x, y, known = problem("random", rng)
    hyper, wanted = hyper_of("matern32", rng), rng.normal(size=(M, F))
    found = condition(form, hyper, x, y, known)
    draws = jax.jit(
        jax.vmap(lambda key: posterior_draw(key, form, found, jnp.array(wanted)))
    )(jax.random.split(jax.random.key(0), count))
    model = GaussianProcessRegressor(
        theirs("matern32", hyper), alpha=0, optimizer=None
    ).fit(x[known], y[known])
    mean, covariance = model.predict(wanted, return_cov=True)
    covariance -= np.exp(hyper.noise) * np.eye(M)
    atol = 5 * np.sqrt(covariance.diagonal().max() / count)
    np.testing.assert_allclose(draws.mean(0), mean, atol=atol)
    found = np.cov(draws.T)
    largest = covariance.diagonal().max()
    np.testing.assert_allclose(found, covariance, atol=0.05 * largest)


def test_draws_at_points_without_doubt_are_finite():
    """What is left of the covariance is then rounding, of either sign."""
    form = form_of("rbf")
    x = jnp.array(np.random.default_rng(6).integers(0, 2, (N, F)), jnp.float32)
    y, known = x.sum(1), jnp.ones(N, bool)
    for noise in (-7, -20, -40):
        hyper = Hyperparameters(jnp.full(1, 3.0), jnp.float32(4.6), jnp.float32(noise))
        found = condition(form, hyper, x, y, known)
        both = jnp.concatenate([x, x])
        draw = posterior_draw(jax.random.key(0), form, found, both)
        assert np.isfinite(draw).all()


def test_covariance_that_is_singular_gets_jitter():
    form, rng = form_of("rbf"), np.random.default_rng(7)
    x = np.float32(rng.normal(size=(3, F))).repeat(3, 0)
    y = np.float32(rng.normal(size=3)).repeat(3)
    hyper = Hyperparameters(jnp.zeros(1), jnp.zeros(()), jnp.float32(-np.inf))
    known = jnp.ones(N, bool)
    found = condition(form, hyper, x, y, known)
    mean, variance = posterior_moments(form, found, x)
    np.testing.assert_allclose(mean, y, atol=1e-2)
    np.testing.assert_allclose(variance, 0.0, atol=1e-3)
    assert np.isnan(log_likelihood(gram(form, hyper, x, known), y, known))


def matrices(*shape):
    x = np.random.default_rng(8).normal(size=(*shape, 5, 7))
    return np.float32(x @ x.swapaxes(-1, -2))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_factors_are_those_of_numpy_under_any_vmap(shape):
    found = [cholesky, inverse_factor, lambda m: with_jitter(cholesky, m, 1.0)]
    given = matrices(*shape)
    lower = np.linalg.cholesky(given.astype(np.float64))
    expected = [lower, np.linalg.inv(lower), lower]
    for function, wanted in zip(found, expected, strict=True):
        for _ in shape:
            function = jax.vmap(function)
        np.testing.assert_allclose(
            jax.jit(function)(given), wanted, rtol=2e-3, atol=1e-4
        )


def test_jitter_leaves_other_matrices_of_a_batch_alone():
    given = np.stack([matrices(), np.ones((5, 5), np.float32)])
    found = jax.jit(jax.vmap(lambda m: with_jitter(cholesky, m, 1.0)))(given)
    np.testing.assert_allclose(found[0], np.linalg.cholesky(given[0]), rtol=1e-3)
    np.testing.assert_allclose(found[1] @ found[1].T, given[1], atol=1e-3)


SPACE = categorical((3, 2, 3, 2))
CAPACITY = 20


def history_of(seed):
    key_arch, key_noise = jax.random.split(jax.random.key(seed))
    arch = jax.vmap(SPACE.sample)(jax.random.split(key_arch, CAPACITY))
    noise = 0.3 * jax.random.normal(key_noise, (CAPACITY,))
    return History(arch, arch[:, 0] - arch[:, 2] + noise, jnp.ones(CAPACITY, bool))


@pytest.fixture(scope="module")
def fitted():
    model = gp(SPACE, kernel="rbf", targets="standard", num_updates=100)
    return jax.jit(lambda key, h: model.fit(key, model.init(key, h), h))


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_reaches_the_optimum_of_scikit_learn(fitted, seed):
    history = history_of(seed)
    state = fitted(jax.random.key(0), history)
    x = np.asarray(jax.vmap(encoder(SPACE))(history.arch), np.float64)
    y = np.asarray(history.fitness, np.float64)
    y = (y - y.mean()) / y.std()
    scale, lengths, noise = (tuple(np.exp(BOUNDS[i])) for i in (1, 0, 2))
    kernel = kernels.ConstantKernel(1.0, scale) * kernels.RBF(2.0, lengths)
    kernel += kernels.WhiteKernel(0.1, noise)
    model = GaussianProcessRegressor(kernel, alpha=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an optimum at a bound
        model.fit(x, y)
    hyper = state.posterior.hyper
    found = np.array([hyper.scale, hyper.lengths[0], hyper.noise], np.float64)
    reached = model.log_marginal_likelihood(found)
    start = model.log_marginal_likelihood(np.log([1.0, np.sqrt(5), 0.1]))
    assert reached > start
    assert reached > model.log_marginal_likelihood_value_ - 0.05
    for value, ends in zip(hyper, BOUNDS, strict=True):
        assert (value >= ends[0] - 1e-5).all()
        assert (value <= ends[1] + 1e-5).all()


def test_fit_goes_on_from_the_last():
    model, history = gp(SPACE, num_updates=3, num_starts=2), history_of(2)
    fit = jax.jit(lambda state: model.fit(jax.random.key(0), state, history))
    state = jax.jit(model.init)(jax.random.key(0), history)
    for number in range(3):
        np.testing.assert_array_equal(state.training.step, 3 * number)
        state = fit(state)
