"""A loop over the steps that there are: as a Python loop over them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn.sequence import sequence

RNG = np.random.default_rng(0)
SHIFT, X, PARAMS = RNG.normal(size=(4, 3)), RNG.normal(size=3), RNG.normal(size=(4, 3))
compare = partial(np.testing.assert_allclose, rtol=1e-12)


def step(fixed, x, param):
    """Of a step that is not there, nothing."""
    shift, there = fixed
    return jnp.where(there, jnp.sin(x * param) + shift, x), {"sum": (x * param).sum()}


def by_hand(there, x, params):
    found = jnp.zeros(4)
    for i in np.flatnonzero(there):
        x, new = step((SHIFT[i], True), x, params[i])
        found = found.at[i].set(new["sum"])
    return x, found


def value(run, there, x, params):
    out, found = run(there, x, params)
    return jnp.square(out).sum(), (out, found)


def in_one(there, x, params):
    out, found = sequence(step, there, (SHIFT, there), x, params)
    return out, found["sum"]


@pytest.mark.parametrize("there", ["1111", "0000", "0101", "1001"])
def test_sequence_takes_the_steps_that_there_are(there):
    there = np.array([*map(int, there)], bool)
    with jax.enable_x64(True):
        gradient = partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
        run = jax.jit(gradient(partial(value, in_one)))
        (loss, (out, found)), grads = run(there, X, PARAMS)
        x, sums = by_hand(there, X, PARAMS)
        compare(out, x)
        compare(found, sums)
        hand = partial(value, lambda _, x, params: (by_hand(there, x, params)[0], 0.0))
        (expected, _), theirs = gradient(hand)(there, X, PARAMS)
    compare(loss, expected)
    jax.tree.map(compare, grads, theirs)


def test_sequence_under_vmap_is_each_by_itself():
    there = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    with jax.enable_x64(True):
        run = jax.value_and_grad(partial(value, in_one), argnums=(1, 2), has_aux=True)
        together = jax.jit(jax.vmap(run, (0, None, None)))(there, X, PARAMS)
        for i in range(3):
            alone = run(jnp.array(there[i]), X, PARAMS)
            (loss, (out, _)), grads = jax.tree.map(lambda x: x[i], together)  # noqa: B023
            compare(loss, alone[0][0])
            compare(out, alone[0][1][0])
            jax.tree.map(compare, grads, alone[1])
