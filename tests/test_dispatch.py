"""`dispatch` is `lax.switch` that keeps nothing but its arguments for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn.dispatch import dispatch


def product(fixed, x, w):
    return jnp.tanh(x @ w) * fixed[None]


def exponents(fixed, x, w):
    return jnp.exp(jnp.sin(jnp.cos(x))) * w.sum() + fixed[None]


def first(fixed, x, w):
    return x


BRANCHES = (product, exponents, first)
RNG = np.random.default_rng(0)
FIXED, X, W = (
    RNG.normal(size=shape).astype(np.float32) for shape in ((3,), (4, 3), (3, 3))
)
every_branch = pytest.mark.parametrize("index", range(len(BRANCHES)))


def value_and_grads(f):
    def loss(x, w):
        y = f(x, w)
        return jnp.square(y).sum(), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


def assert_close(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


@every_branch
def test_dispatch_is_the_branch_in_value_and_gradient(index):
    by_dispatch = value_and_grads(lambda *a: dispatch(BRANCHES, index, FIXED, *a))
    alone = value_and_grads(lambda *args: BRANCHES[index](FIXED, *args))
    assert_close(jax.jit(by_dispatch)(X, W), jax.jit(alone)(X, W))


def test_dispatch_under_vmap_is_each_ones_branch():
    index = jnp.array([2, 0, 1, 1, 0])
    xs = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    ws = RNG.normal(size=(5, 3, 3)).astype(np.float32)

    def one(choose, index, x, w):
        return value_and_grads(lambda *args: choose(index, *args))(x, w)

    def by_dispatch(index, *args):
        return dispatch(BRANCHES, index, FIXED, *args)

    def by_switch(index, *args):
        return jax.lax.switch(index, BRANCHES, FIXED, *args)

    found, expected = (
        jax.jit(jax.vmap(lambda *args, f=f: one(f, *args)))(index, xs, ws)
        for f in (by_dispatch, by_switch)
    )
    assert_close(found, expected)
    for place, i in enumerate(index.tolist()):
        alone = value_and_grads(lambda *args, i=i: BRANCHES[i](FIXED, *args))
        row = jax.tree.map(lambda x: x[place], found)  # noqa: B023
        assert_close(row, alone(xs[place], ws[place]))


@every_branch
def test_dispatch_in_a_scan_differentiates_by_what_is_carried(index):
    choices = jnp.array([index, 0, 1, index])

    def loss(choose, x, w):
        def step(x, choice):
            return jnp.tanh(choose(choice, x, w)), None

        return jax.lax.scan(step, x, choices)[0].sum()

    def by_dispatch(choice, *args):
        return dispatch(BRANCHES, choice, FIXED, *args)

    def by_switch(choice, *args):
        return jax.lax.switch(choice, BRANCHES, FIXED, *args)

    found, expected = (
        jax.jit(jax.grad(lambda *args, f=f: loss(f, *args), (0, 1)))(X, W)
        for f in (by_dispatch, by_switch)
    )
    assert_close(found, expected)


def test_dispatch_keeps_its_arguments_alone_for_the_gradient():
    def kept(choose):
        def pull(index, x, w):
            return jax.vjp(lambda *args: choose(index, *args), x, w)[1]

        shapes = jax.eval_shape(pull, jnp.int32(1), X, W)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def by_dispatch(index, *args):
        return dispatch(BRANCHES, index, FIXED, *args)

    def by_switch(index, *args):
        return jax.lax.switch(index, BRANCHES, FIXED, *args)

    arguments = 1 + FIXED.size + X.size + W.size
    assert kept(by_dispatch) <= arguments < kept(by_switch)


@pytest.mark.parametrize("is_grad", [False, True])
def test_dispatch_runs_the_chosen_branch_alone(is_grad):
    ran = []

    def told(name):
        def branch(fixed, x):
            jax.debug.callback(lambda: ran.append(name))
            return x * fixed

        return branch

    branches = tuple(map(told, "abc"))

    @jax.jit
    def run(index, x):
        def f(x):
            return dispatch(branches, index, jnp.float32(2), x)

        return jax.grad(f)(x) if is_grad else f(x)

    for index, name in enumerate("abc"):
        ran.clear()
        assert run(index, jnp.float32(3)) == (2 if is_grad else 6)
        jax.effects_barrier()
        assert set(ran) == {name}
