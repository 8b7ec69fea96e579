"""Operations, against numpy, Flax and closed forms. PyTorch: see test_nn_networks."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.lib.stride_tricks import sliding_window_view

from jaxnas.nn.apart import apart, materialise
from jaxnas.nn.ops import OPS, BatchNorm, Conv
from jaxnas.nn.pooling import avg_pool, max_pool

EDGES, CHANNELS = 4, 4


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Pooling


def pool_slowly(x, stride, reduce):
    """Reduces the 3x3 pixels around every stride-th one; NaN is outside."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = sliding_window_view(padded, (3, 3), (1, 2))[:, ::stride, ::stride]
    return reduce(windows, (-2, -1))


pools = pytest.mark.parametrize(
    ("pool", "reduce"), [(max_pool, np.nanmax), (avg_pool, np.nanmean)]
)


@pools
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 7), (2, 1)])
def test_pool_reduces_the_pixels_inside_the_image(pool, reduce, stride, size):
    x = draw(0, 2, *size, 3)
    found = jax.jit(pool, static_argnums=1)(x, stride)
    np.testing.assert_allclose(found, pool_slowly(x, stride, reduce), 1e-6, 1e-6)


@pools
def test_pool_has_the_gradient_of_differences(pool, reduce):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).permutation(5 * 4 * 2).reshape(1, 5, 4, 2) / 10
        check_grads(jax.jit(partial(pool, stride=2)), (x,), order=1, rtol=1e-6)


# Batch norm


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_that_of_flax(affine, train):
    generator = np.random.default_rng(0)
    x = generator.normal(2, 3, size=(EDGES, 2, 5, 4, CHANNELS))
    shape = EDGES, CHANNELS
    params = {k: generator.normal(size=shape) for k in ("scale", "bias") if affine}
    stats = {k: generator.uniform(1, 2, size=shape) for k in ("mean", "var")}
    theirs = nn.BatchNorm(
        not train, momentum=0.9, epsilon=1e-5, use_scale=affine, use_bias=affine
    )

    def run_ours(params, x):
        variables = {"params": params, "batch_stats": stats}
        y, changed = BatchNorm(affine).apply(variables, x, train, mutable="batch_stats")
        return jnp.sum(jnp.sin(y)), (y, changed["batch_stats"])

    def run_theirs(params, x):
        """Edges and channels are its features."""
        flat = jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1)
        variables = {"params": params, "batch_stats": stats}
        variables = jax.tree.map(jnp.ravel, variables)
        y, changed = theirs.apply(variables, flat, mutable="batch_stats")
        y = jnp.moveaxis(y.reshape(*y.shape[:3], *shape), 3, 0)
        changed = jax.tree.map(lambda x: x.reshape(shape), changed["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, changed)

    with jax.enable_x64(True):
        found, expected = (
            jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, x)
            for run in (run_ours, run_theirs)
        )
    compare = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(compare, found, expected)


# Initial parameters


def test_initial_kernels_are_uniform_in_one_over_root_fan_in():
    kernel = Conv(64, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))["params"]
    bound = (3 * 3 * 16) ** -0.5
    values = np.asarray(kernel["kernel"]).ravel()
    assert np.abs(values).max() <= bound
    # 9216 draws: the largest misses the bound by about its 10,000th part.
    assert np.abs(values).max() > 0.998 * bound
    assert abs(values.mean()) < 0.03 * bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.03)


# Any operation


@pytest.mark.parametrize(
    ("name", "states", "stride"), [*itertools.product(OPS, (1, 2), (1, 2))]
)
def test_operation_of_all_edges_is_that_of_each(name, states, stride):
    x = np.random.default_rng(0).normal(size=(states, 2, 6, 7, CHANNELS))
    op = OPS[name](EDGES, CHANNELS, stride, True, True)
    init = partial(op.init, train=True)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.float32(x))
    generator = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: generator.uniform(0.1, 1, s.shape), shapes)
    alone = OPS[name](1, CHANNELS, stride, True, True)

    def take(tree, edge):
        """The row of an edge, or of the state that it leaves."""
        places = jax.tree.map(lambda v: edge * len(v) // EDGES, tree)
        return jax.tree.map(lambda v, i: v[i : i + 1], tree, places)

    def run(op, variables, x):
        return op.apply(variables, x, train=True, mutable="batch_stats")

    def both(variables):
        each = [run(alone, take(variables, e), take(x, e)) for e in range(EDGES)]
        return run(op, variables, x), each

    with jax.enable_x64(True):
        together, each = jax.jit(both)(variables)
    size = (6, 7) if stride == 1 else (3, 4)
    assert together[0].shape[1:] == (2, *size, CHANNELS)
    assert together[0].shape[0] in (states, EDGES)
    compare = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    for edge in range(EDGES):
        jax.tree.map(compare, take(together, edge), each[edge])


# Compiling apart


def bend(x, y):
    return jnp.sin(x) * y**2 + x[::-1]


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: f,
        lambda f: jax.grad(lambda x, y: f(x, y).sum(), (0, 1)),
        lambda f: jax.hessian(lambda x, y: f(x, y).sum(), (0, 1)),
        lambda f: jax.jacfwd(jax.jacrev(f)),
        lambda f: jax.vmap(f, (None, 0)),
    ],
    ids=["itself", "gradient", "hessian", "jacobians", "vmap"],
)
@pytest.mark.parametrize(
    "wrapped",
    [apart(bend), lambda x, y: materialise(bend(materialise(x), y))],
    ids=["apart", "materialise"],
)
def test_apart_changes_no_value_and_no_derivative(wrapped, transform):
    x, y = draw(0, 5), draw(1, 5)
    if transform(bend).__name__ == "vmap":
        y = y[:, None]
    found = jax.jit(transform(wrapped))(x, y)
    expected = jax.jit(transform(bend))(x, y)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


def test_apart_is_a_call_that_is_not_inlined():
    text = jax.jit(lambda x: apart(jnp.sin)(x) + 1).lower(jnp.zeros(3)).as_text()
    assert 'inlineable = "false"' in text
    assert "call @" in text
