"""The Gaussian process whose hyperparameters follow the marginal likelihood.

L-BFGS goes up from several starts side by side, and the likeliest that any of them met
is used. Its steps have no line search, which would compute likelihoods for no gradient.
"""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxnas.base import Array, History, InputError, PyTree, SearchSpace, Surrogate
from jaxnas.checks import expect, expect_one_of
from jaxnas.encoding import encoder
from jaxnas.surrogates.gaussian_process import (
    Posterior,
    condition,
    gram,
    log_likelihood,
    posterior_draw,
    posterior_moments,
)
from jaxnas.surrogates.kernels import KERNELS, Hyperparameters, Kernel
from jaxnas.targets import (
    Scale,
    check_targets,
    prediction,
    to_fitness,
    to_targets,
    usable,
)
from jaxnas.training import TrainState, init_state, make_update

BOUNDS = tuple(np.log(ends) for ends in ((0.05, 100.0), (0.05, 20.0), (1e-3, 1.0)))
"""Logarithms of the least and the most of each, for targets of deviation 1."""
STARTS = np.log((0.5, 10.0))  # between which the starts' length scales are drawn
MEMORY = 5  # of L-BFGS, in updates


class GPState(NamedTuple):
    """R starts of the fit, and the process at the likeliest of them."""

    training: TrainState  # leaves [R, ...]; params are `Hyperparameters`
    posterior: Posterior
    scale: Scale


def gp(
    space: SearchSpace,
    *,
    kernel: str = "matern32",
    encoding: str | None = None,
    targets: str = "ranks",
    num_starts: int = 4,
    num_updates: int = 20,
    learning_rate: float = 0.7,
) -> Surrogate:
    """Makes the surrogate.

    Args:
      space: whose architectures are encoded.
      kernel: of `KERNELS`.
      encoding: of `encoding.ENCODINGS`; by default `path` where the space has graphs,
        else `one_hot`. `hamming` takes `one_hot` alone.
      targets: of `TARGETS`.
      num_starts: R, 1 or more.
      num_updates: of the hyperparameters in each `fit`, which goes on from the last; 0
        or more.
      learning_rate: the most that an update changes a logarithm by, 0 or more.

    Raises:
      InputError: a number is too small, a name unknown, or the encoding does not go
        with space or kernel.
    """
    expect(1, num_starts=num_starts)
    expect(0, num_updates=num_updates, learning_rate=learning_rate)
    check_targets(targets)
    encode, form = _encoded(space, kernel, encoding)
    tx = optax.chain(
        optax.scale_by_lbfgs(MEMORY), optax.clip(learning_rate), optax.scale(-1.0)
    )
    num_lengths = max(form.groups) + 1

    def loss_fn(hyper, batch_stats, key, batch):
        del key
        x, y, known = batch
        loss = -log_likelihood(gram(form, hyper, x, known), y, known)
        return loss, (batch_stats, {})

    update = make_update(loss_fn, tx)

    def start(key: Array, number: Array) -> TrainState:
        low, high = STARTS
        drawn = jax.random.uniform(key, (num_lengths,), minval=low, maxval=high)
        lengths = jnp.where(number == 0, (low + high) / 2, drawn)
        noise = jnp.where(number % 2 == 0, np.log(0.1), np.log(0.01))
        hyper = Hyperparameters(lengths, jnp.zeros(()), noise.astype(lengths.dtype))
        return init_state({"params": hyper}, tx)

    def init(key: Array, history: History) -> GPState:
        numbers = jnp.arange(num_starts)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return shown(jax.vmap(start)(keys, numbers), 0, usable(history))

    def shown(training: TrainState, best: Array | int, history: History) -> GPState:
        y, scale = to_targets(history, targets)
        hyper = jax.tree.map(lambda leaf: leaf[best], training.params)
        seen = condition(form, hyper, encode(history.arch), y, history.known)
        return GPState(training, seen, scale)

    def fit(key: Array, state: GPState, history: History) -> GPState:
        history = usable(history)
        y, _ = to_targets(history, targets)
        batch = encode(history.arch), y, history.known

        def climb(_, climbing):
            training, best, least = climbing
            new, metrics = update(key, training, batch)
            new = new._replace(params=_bounded(new.params))
            # Where the covariance is not positive definite, it goes on from the best.
            finite = jnp.isfinite(metrics["loss"])
            again = training._replace(params=best, opt_state=tx.init(best))
            new = _chosen(finite, new, again)
            better = metrics["loss"] < least
            best = _chosen(better, training.params, best)
            return new, best, jnp.where(better, metrics["loss"], least)

        def climbed(training):
            params = training.params
            # Gradients that were of other data say nothing of how this bends.
            training = training._replace(opt_state=tx.init(params))
            climbing = training, params, jnp.full((), jnp.inf, y.dtype)
            training, best, least = lax.fori_loop(0, num_updates, climb, climbing)
            loss, _ = loss_fn(training.params, {}, key, batch)
            best = _chosen(loss < least, training.params, best)
            return training._replace(params=best), jnp.fmin(loss, least)

        training, losses = jax.vmap(climbed)(state.training)
        return shown(training, jnp.argmin(losses), history)

    def predict(state: GPState, arch: Array) -> tuple[Array, Array]:
        mean, variance = posterior_moments(form, state.posterior, encode(arch))
        return prediction(state.scale, mean, jnp.sqrt(variance))

    def sample(key: Array, state: GPState, arch: Array) -> Array:
        drawn = posterior_draw(key, form, state.posterior, encode(arch))
        return to_fitness(state.scale, drawn)

    return Surrogate(
        _in_whole_float32(init),
        _in_whole_float32(fit),
        _in_whole_float32(predict),
        _in_whole_float32(sample),
    )


def _in_whole_float32(function: Callable) -> Callable:
    """By default GPUs and TPUs round a product's factors, and variances cancel."""

    @wraps(function)
    def precise(*args):
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return precise


def _encoded(
    space: SearchSpace, kernel: str, encoding: str | None
) -> tuple[Callable[[Array], Array], Kernel]:
    """What encodes a batch of architectures, and the kernel on that."""
    expect_one_of("a kernel", kernel, KERNELS)
    on_categories = kernel == "hamming"
    if on_categories and encoding is None:
        encoding = "one_hot"
    if on_categories and encoding != "one_hot":
        raise InputError(
            f"expected one_hot for the kernel hamming, but got {encoding}: change one"
        )
    encode = jax.vmap(encoder(space, encoding))
    shape = jax.ShapeDtypeStruct((1, len(space.num_choices)), jnp.int32)
    num_features = jax.eval_shape(encode, shape).shape[1]
    each = max(space.num_choices) if on_categories else num_features
    return encode, Kernel(
        KERNELS[kernel], tuple(i // each for i in range(num_features))
    )


def _chosen(which: Array, one: PyTree, other: PyTree) -> PyTree:
    """One tree or the other, by a bool[]."""
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)


def _bounded(hyper: Hyperparameters) -> Hyperparameters:
    return Hyperparameters(
        *(jnp.clip(x, *ends) for x, ends in zip(hyper, BOUNDS, strict=True))
    )
