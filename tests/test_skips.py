import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.encoding import is_skip
from jaxnas.spaces import SPACES
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.skips import limit_skips

KEY = jax.random.key(0)
DARTS, NASBENCH = SPACES["darts"](), SPACES["nasbench201"]()
SKIP = DARTS.cells.op_names.index("skip_connect")
CELL = 14


def weights_of(space, seed, favour):
    """Random weights in which skip connections are strong: float32[20, D, K]."""
    skip = space.cells.op_names.index("skip_connect")
    shape = 20, len(space.num_choices), max(space.num_choices)
    logits = np.random.default_rng(seed).normal(size=shape)
    logits[:, :, skip] += favour
    return jax.nn.softmax(jnp.asarray(logits, jnp.float32))


def limited(space, weights, most):
    each = jax.vmap(lambda weights, most: limit_skips(space, most)(weights), (0, None))
    return jax.jit(each)(weights, most)


def count(space, archs):
    return np.asarray(jax.vmap(lambda arch: is_skip(arch, space.cells).sum())(archs))


def by_p_darts(weights, most):
    """The normal cell of float32[28, 8] by the paper's loop, as [14] operations."""
    weights = np.array(weights[:CELL], np.float64)
    targets = DARTS.cells.targets[:CELL]
    while True:
        best = weights[:, 1:].argmax(1) + 1  # without none
        strength = weights[np.arange(CELL), best]
        cell = np.zeros(CELL, int)
        for node in set(targets):
            into = [i for i, target in enumerate(targets) if target == node]
            for i in sorted(into, key=lambda i: -strength[i])[:2]:
                cell[i] = best[i]
        skips = np.flatnonzero(cell == SKIP)
        if len(skips) <= most:
            return cell
        weights[min(skips, key=lambda i: weights[i, SKIP]), SKIP] = 0


def test_skips_are_counted_in_the_normal_cell_alone():
    arch = np.zeros(2 * CELL, np.int32)
    arch[[0, 3, 15, 20]] = SKIP
    arch[1] = SKIP + 1
    found = is_skip(jnp.asarray(arch), DARTS.cells)
    assert np.flatnonzero(found).tolist() == [0, 3]
    found = is_skip(jnp.array([1, 0, 1, 3, 1, 2]), NASBENCH.cells)
    assert np.flatnonzero(found).tolist() == [0, 2, 4]


def test_limit_is_that_of_p_darts():
    weights = weights_of(DARTS, 0, 1.5)
    before = jax.vmap(DARTS.discretize)(weights)
    assert count(DARTS, before).max() > 4
    for most in range(5):
        archs = limited(DARTS, weights, jnp.int32(most))
        expected = [by_p_darts(one, most) for one in np.asarray(weights)]
        np.testing.assert_array_equal(archs[:, :CELL], expected)
        np.testing.assert_array_equal(archs[:, CELL:], before[:, CELL:])


@pytest.mark.parametrize("space", [DARTS, NASBENCH], ids=lambda space: space.name)
def test_limit_is_never_exceeded_even_of_nothing_but_skips(space):
    weights = weights_of(space, 1, 200.0)  # all else underflows to 0
    before = jax.vmap(space.discretize)(weights)
    for most in (0, 2):
        archs = limited(space, weights, jnp.int32(most))
        assert (count(space, archs) == most).all()
        one_hot = jax.nn.one_hot(archs, max(space.num_choices))
        np.testing.assert_array_equal(jax.vmap(space.discretize)(one_hot), archs)
    assert (count(space, before) >= 6).all()


@pytest.mark.parametrize("space", [DARTS, NASBENCH], ids=lambda space: space.name)
def test_limit_that_does_not_bind_changes_nothing(space):
    weights = weights_of(space, 2, 0.0)
    before = jax.vmap(space.discretize)(weights)
    most = jnp.int32(count(space, before).max())
    np.testing.assert_array_equal(limited(space, weights, most), before)


def test_recommendation_has_at_most_as_many_skips_as_asked_for():
    logits = jnp.log(weights_of(DARTS, 3, 2.0)[0])
    free, limit = (differentiable(DARTS, max_skips=most) for most in (None, 2))
    state = free.init(KEY)._replace(logits=logits)
    assert count(DARTS, free.recommend(state, None)[None]) > 2
    assert count(DARTS, limit.recommend(state, None)[None]) == 2


def test_limit_is_refused_where_there_are_no_cells(tiny_space):
    with pytest.raises(InputError, match="got tiny: leave max_skips out"):
        differentiable(tiny_space, max_skips=2)


def test_negative_limit_is_refused():
    with pytest.raises(InputError, match="expected max_skips of 0"):
        differentiable(DARTS, max_skips=-1)
