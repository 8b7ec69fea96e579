"""What every search space keeps, for all of SPACES alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.spaces import SPACES
from jaxnas.spaces.categorical import categorical

BATCH = 64  # architectures looked at together
# The equal settings of both networks; three cells are the fewest of each DARTS kind.
SIZE = {"channels": 4, "cells": 3, "num_classes": 3}
SIZE |= {"affine": False, "pool_norm": True}
SIZES = {"chain": {"num_classes": 3}}  # of spaces that have other settings
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
# Little is computed here, so most of the compiler's work would be lost.

MAKERS = {
    **SPACES,
    "chain": lambda: SPACES["chain"](IMAGES.shape[1:]),
    "categorical": lambda: categorical((3, 2, 4, 5, 1, 6, 4)),
}


@functools.cache
def space_of(name):
    return MAKERS[name]()


def has_supernet(name):
    try:
        space_of(name).network()
    except InputError:
        return False
    return True


every_space = pytest.mark.parametrize("name", MAKERS)
every_supernet = pytest.mark.parametrize("name", [*filter(has_supernet, SPACES)])
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=20)


@functools.cache
def many(name, function):
    """A traceable function of a space over a batch, compiled."""
    return jax.jit(jax.vmap(getattr(space_of(name), function)))


@functools.cache
def encode(name):
    num_choices = space_of(name).num_choices
    return jax.jit(jax.vmap(lambda arch: one_hot(arch, num_choices)))


def keys(seed):
    return jax.random.split(jax.random.key(seed), BATCH)


def sample(name, seed):
    return many(name, "sample")(keys(seed))


def assert_valid(name, archs):
    """Valid architectures are in range and their own discretization."""
    space = space_of(name)
    assert archs.dtype == jnp.int32
    assert archs.shape[1:] == (len(space.num_choices),)
    assert (np.asarray(archs) >= 0).all()
    assert (np.asarray(archs) < np.array(space.num_choices)).all()
    back = many(name, "discretize")(encode(name)(archs))
    np.testing.assert_array_equal(back, archs)


def test_spaces_are_registered_by_their_name():
    assert {name: make().name for name, make in SPACES.items()} == {
        name: name for name in SPACES
    }


@every_space
@quick
@given(seed=seeds)
def test_sample_is_valid_and_varied(name, seed):
    archs = sample(name, seed)
    assert_valid(name, archs)
    assert len(np.unique(archs, axis=0)) > BATCH // 2


@every_space
@quick
@given(seed=seeds)
def test_neighbours_are_valid_distinct_and_others(name, seed):
    archs = sample(name, seed)
    found, exist = jax.tree.map(np.asarray, many(name, "neighbours")(archs))
    assert exist.dtype == bool
    assert exist.any(1).all()
    for arch, near, is_one in zip(np.asarray(archs), found, exist, strict=True):
        assert_valid(name, jnp.array(near[: len(is_one)]))
        near = near[is_one]
        assert len(np.unique(near, axis=0)) == len(near)
        assert not (near == arch).all(1).any()


@every_space
def test_neighbours_are_neighbours_of_each_other(name):
    arch = sample(name, 0)[0]
    near, is_one = space_of(name).neighbours(arch)
    back, exist = many(name, "neighbours")(near[is_one])
    is_arch = np.asarray((back == arch[None, None]).all(-1) & exist)
    np.testing.assert_array_equal(is_arch.sum(1), 1)


@every_space
def test_mutate_draws_every_neighbour_about_equally_often(name):
    space = space_of(name)
    arch = sample(name, 1)[0]
    near, is_one = space.neighbours(arch)
    near = np.asarray(near[is_one])
    num_draws = 200 * len(near)
    draws = jax.random.split(jax.random.key(0), num_draws)
    mutants = np.asarray(jax.jit(jax.vmap(space.mutate, (0, None)))(draws, arch))
    counts = [(mutants == other).all(1).sum() for other in near]
    assert sum(counts) == num_draws  # nothing but neighbours
    # 200 +- 14 expected; six deviations, as there are many neighbours.
    assert min(counts) > 115
    assert max(counts) < 285


@every_space
@quick
@given(seed=seeds)
def test_mutate_is_valid(name, seed):
    assert_valid(name, many(name, "mutate")(keys(seed), sample(name, seed)))


@every_space
@quick
@given(seed=seeds)
def test_crossover_is_valid_and_takes_from_both_parents(name, seed):
    mothers, fathers = sample(name, seed), sample(name, seed + 1)
    children = many(name, "crossover")(keys(seed), mothers, fathers)
    assert_valid(name, children)
    is_mothers, is_fathers = children == mothers, children == fathers
    assert (is_mothers | is_fathers).all()
    assert not is_mothers.all()
    assert not is_fathers.all()
    alone = many(name, "crossover")(keys(seed), mothers, mothers)
    np.testing.assert_array_equal(alone, mothers)


@every_space
@quick
@given(data=st.data())
def test_discretize_is_valid_for_whatever_it_gets(name, data):
    num_choices = space_of(name).num_choices
    shape = (len(num_choices), max(num_choices))
    # Few values, so that ties are common, and those that comparisons trip over.
    values = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -1.0])
    values |= st.sampled_from([np.nan, -np.nan, np.inf, -np.inf])
    weights = data.draw(arrays(np.float32, shape, elements=values))
    assert_valid(name, many(name, "discretize")(weights[None]))


@every_space
@quick
@given(data=st.data())
def test_discretize_repairs_one_hot_samples(name, data):
    choices = [st.integers(0, k - 1) for k in space_of(name).num_choices]
    arch = jnp.array(data.draw(st.tuples(*choices)), jnp.int32)
    assert_valid(name, many(name, "discretize")(encode(name)(arch[None])))


@every_space
@quick
@given(seed=seeds)
def test_strings_are_read_as_they_were_written(name, seed):
    space = space_of(name)
    archs = sample(name, seed)
    for arch in archs[:4]:
        np.testing.assert_array_equal(space.from_string(space.to_string(arch)), arch)
    assert space.from_string(space.to_string(archs[0])).dtype == jnp.int32


@every_space
@quick
@given(wrong=st.text(max_size=40) | st.none() | st.integers() | st.binary())
def test_from_string_refuses_anything_else_in_one_line(name, wrong):
    with pytest.raises(InputError) as error:
        space_of(name).from_string(wrong)
    assert "expected" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@every_space
@quick
@given(seed=seeds, cut=st.floats(0, 1), other=st.sampled_from(",|()[]'~+=03xn \n\0"))
def test_from_string_reads_or_refuses_damaged_strings(name, seed, cut, other):
    space = space_of(name)
    text = space.to_string(sample(name, seed)[0])
    at = int(cut * (len(text) - 1))
    try:
        arch = space.from_string(text[:at] + other + text[at + 1 :])
    except InputError as error:
        message = str(error)
    else:
        assert_valid(name, arch[None])
        return
    assert len(message.splitlines()) == 1


@every_space
def test_canonical_is_the_same_alone_and_in_a_batch(name):
    archs = sample(name, 2)
    together = many(name, "canonical")(archs)
    assert together.dtype == jnp.uint32
    assert together.ndim == 2
    assert len(np.unique(together, axis=0)) > BATCH // 4
    alone = jax.jit(space_of(name).canonical)
    for arch, key in zip(archs[:8], together, strict=False):
        np.testing.assert_array_equal(alone(arch), key)


def draw_variables(network, weights=None):
    """Random values of everything that a network has, running statistics too."""
    images = IMAGES.astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images, weights)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.uniform(0.1, 1, x.shape), shapes)


def restrict_all(space, collections, arch):
    return {name: space.restrict(leaves, arch) for name, leaves in collections.items()}


@every_supernet
def test_restrict_gives_the_parameters_that_the_network_has(name):
    space = space_of(name)
    size = SIZES.get(name, SIZE)
    archs = sample(name, 3)[:3]
    full = draw_variables(space.network(**size), encode(name)(archs)[0])
    for arch in archs:
        few = restrict_all(space, full, arch)
        expected = draw_variables(space.network(arch, **size))
        assert jax.tree.map(np.shape, few) == jax.tree.map(np.shape, expected)


def compile_outputs(network):
    """Logits in training, the new statistics, logits otherwise."""

    def outputs(variables, weights):
        apply = functools.partial(network.apply, variables, IMAGES, weights)
        trained, changed = apply(train=True, mutable="batch_stats")
        return trained, changed["batch_stats"], apply()

    return jax.jit(outputs)


@every_supernet
def test_supernet_at_one_hot_weights_is_the_network(name):
    space = space_of(name)
    size = SIZES.get(name, SIZE)
    archs = np.asarray(sample(name, 4)[:1])  # each compiles a network of its own
    variables = draw_variables(space.network(**size), encode(name)(archs)[0])
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    with jax.enable_x64(True):
        outputs = compile_outputs(space.network(**size))
        for arch in archs:
            trained, changed, tested = outputs(
                variables, one_hot(arch, space.num_choices)
            )
            found = compile_outputs(space.network(arch, **size))(
                restrict_all(space, variables, arch), None
            )
            jax.tree.map(
                compare, found, (trained, space.restrict(changed, arch), tested)
            )
