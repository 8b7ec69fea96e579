"""The space of chains: architectures, and what their networks have."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.nn.chain import ACTIVATIONS, LINKS, POOLINGS, joined
from jaxnas.nn.chain import Layer as L
from jaxnas.nn.convolution import by_lax
from jaxnas.spaces.chain import chain

PLAIN = chain((8, 8, 1))
LINKED = chain((8, 8, 2), channels=(4, 8), kernels=(1, 3), trunk=3, links=LINKS)
EXAMPLE = "conv3x3-8+residual identity gelu+dense / identity dense-32"


def shapes_of(network, image_shape, weights=None):
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    logits, shapes = jax.eval_shape(
        lambda *args: network.init_with_output(*args, train=True),
        jax.random.key(0),
        images,
        weights,
    )
    assert logits.shape == (2, network.num_classes)
    return shapes


def samples(space, number, seed=0):
    def draw(key):
        return jax.vmap(space.sample)(jax.random.split(key, number))

    return np.asarray(jax.jit(draw)(jax.random.key(seed)))


def layers_of(space):
    """The layers that a slot of the trunk can have, and one of the head."""
    zeros = np.zeros(len(space.num_choices), np.int32)

    def layer(slot, choice):
        arch = zeros.copy()
        arch[slot] = choice
        return space.to_string(arch).split()[slot]

    return [[*map(partial(layer, i), range(space.num_choices[i]))] for i in (0, -1)]


# Architectures and strings


def test_space_has_a_decision_for_each_slot_and_each_link():
    assert PLAIN.num_choices == (1 + 4 * 3 + 2 + 4,) * 8 + (1 + 3 + 4,) * 2
    assert LINKED.num_choices == (1 + 2 * 2 + 2 + 4,) * 3 + (3,) * 3 + (8,) * 2
    one = chain((8, 8, 1), links=("residual",), trunk=1, head=0)
    assert one.num_choices == (19,)


def test_slots_have_the_layers_that_were_asked_for():
    trunk, head = layers_of(chain((8, 8, 1), kernels=(3, 1), channels=(9,), units=[5]))
    every = [*POOLINGS, *ACTIVATIONS]
    assert trunk == ["identity", "conv1x1-9", "conv3x3-9", *every]
    assert head == ["identity", "dense-5", *ACTIVATIONS]


@pytest.mark.parametrize(
    ("shape", "base"),
    [
        ((1, 1, 1), 4),
        ((8, 5, 3), 4),
        ((4, 9, 1), 8),
        ((16, 16, 3), 8),
        ((17, 3, 3), 16),
    ],
)
def test_default_widths_follow_from_the_larger_side(shape, base):
    trunk, head = layers_of(chain(shape))
    channels = {int(x.split("-")[1]) for x in trunk if "-" in x}
    units = {int(x.split("-")[1]) for x in head if "-" in x}
    assert channels == {base, 2 * base, 4 * base}
    assert units == {4 * base, 8 * base, 16 * base}


def test_strings_say_layers_and_links():
    arch = LINKED.from_string(EXAMPLE)
    # Choices of the trunk, links, choices of the head.
    np.testing.assert_array_equal(arch, [4, 0, 10, 1, 0, 2, 0, 2])
    assert LINKED.to_string(arch) == EXAMPLE
    assert LINKED.to_string(jnp.zeros(8, jnp.int32)) == (
        "identity identity identity / identity identity"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv3x3-8", "conv5x5-8"),
        ("conv3x3-8", "dense-32"),
        ("dense-32", "conv3x3-8"),
        ("residual", "skip"),
        ("gelu+dense ", ""),
        ("/ ", ""),
        ("/", "/ /"),
        (EXAMPLE, ""),
        ("dense-32", "dense-32 relu"),
    ],
)
def test_from_string_says_what_it_wants(old, new):
    with pytest.raises(InputError, match=r"expected .*but got") as error:
        LINKED.from_string(EXAMPLE.replace(old, new, 1))
    assert len(str(error.value).splitlines()) == 1


def test_from_string_refuses_links_where_there_are_none():
    space = chain((8, 8, 1), trunk=2, head=0)
    with pytest.raises(InputError, match="expected no links") as error:
        space.from_string("relu+residual\nrelu /")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_shape": (8, 8)},
        {"image_shape": (8, 0, 1)},
        {"image_shape": ()},
        {"kernels": ()},
        {"kernels": (2,)},
        {"kernels": (3, 3)},
        {"kernels": (3, 3, 2)},
        {"kernels": (-1,)},
        {"channels": (0, 4)},
        {"channels": (4, 4)},
        {"channels": ()},
        {"units": ()},
        {"channels": (2,), "image_shape": (8, 8, 3)},
        {"units": (-1,)},
        {"units": (4, 4)},
        {"trunk": 0},
        {"head": -1},
        {"links": ()},
        {"links": ("none", "none")},
        {"links": ("skip",)},
    ],
)
def test_space_refuses_what_it_cannot_be_made_of(wrong):
    with pytest.raises(InputError, match=r"^expected .*, but got ") as error:
        chain(**wrong)
    assert len(str(error.value).splitlines()) == 1


# Sampling


def assert_chance(count, number, chance):
    deviation = math.sqrt(number * chance * (1 - chance))
    assert abs(count - number * chance) < 5 * deviation


def test_samples_have_each_kind_of_layer_and_each_link_alike():
    archs = samples(LINKED, 4000)
    trunk, links, head = np.split(archs, [3, 6], 1)
    kinds = [slice(0, 1), slice(1, 5), slice(5, 7), slice(7, 11)]
    for slots, ranges in ((trunk, kinds), (head, [slice(0, 1), slice(1, 4)])):
        counts = np.bincount(slots.ravel())
        for one in ranges:
            for count in counts[one]:
                chance = 1 / (len(ranges) + (slots is head)) / len(counts[one])
                assert_chance(count, slots.size, chance)
    for count in np.bincount(links.ravel()):
        assert_chance(count, links.size, 1 / 3)
    pairs = np.bincount(np.ravel(3 * links[:, 0] + links[:, 1]))
    for count in pairs:  # slots are drawn one without the other
        assert_chance(count, len(archs), 1 / 9)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (8, 8, 1), (28, 28, 1)])
def test_every_sample_is_a_network_for_every_image(shape):
    space = chain(shape, kernels=(1, 7), links=LINKS)
    archs = samples(space, 4)
    weights = one_hot(archs[0], space.num_choices)
    shapes_of(space.network(num_classes=3), shape, weights)
    for arch in archs:
        shapes_of(space.network(arch, num_classes=3), shape)


# Keys of equal architectures

SMALL = {"channels": (2, 4), "kernels": (1,), "units": (3,)}


def meaning_of(space, arch):
    """The layers that an architecture has, and the links that take effect."""
    trunk, _, head = space.to_string(arch).partition("/")
    found, width = [], 2
    for word in trunk.split():
        name, _, link = word.partition("+")
        kind, _, channels = name.partition("-")
        if kind == "identity":
            continue
        out = int(channels or width)
        if kind in POOLINGS or (link == "dense" and width + out > 8):
            link = ""
        found.append((name, link or "none"))
        width = {"dense": width + out, "residual": max(width, out)}.get(link, out)
    return (*found, "/", *(word for word in head.split() if word != "identity"))


@pytest.mark.parametrize(
    ("slots", "links"), [((2, 0), LINKS), ((2, 1), ("none",)), ((1, 2), ("residual",))]
)
def test_canonical_tells_networks_apart_and_nothing_else(slots, links):
    space = chain((4, 4, 2), trunk=slots[0], head=slots[1], links=links, **SMALL)
    every = np.array([*itertools.product(*map(range, space.num_choices))], np.int32)
    keys = np.asarray(jax.jit(jax.vmap(space.canonical))(every))
    by_meaning = {}
    for arch, key in zip(every, keys, strict=True):
        meaning = meaning_of(space, arch)
        by_meaning.setdefault(meaning, set()).add(tuple(key.tolist()))
    assert {len(found) for found in by_meaning.values()} == {1}
    assert len(np.unique(keys, axis=0)) == len(by_meaning) < len(every)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "conv3x3-8 identity relu / relu dense-16",
            "identity conv3x3-8 relu / relu dense-16",
        ),
        (
            "conv3x3-8+dense identity max_pool / identity dense-16",
            "identity+dense conv3x3-8+dense max_pool+residual / dense-16 identity",
        ),
        (  # 8 + 2 channels, of at most 16; 10 + 8 are too many
            "conv3x3-8+dense conv1x1-8+dense tanh / relu relu",
            "conv3x3-8+dense conv1x1-8 tanh / relu relu",
        ),
    ],
)
def test_equal_keys_are_equal_networks(one, other):
    archs = [LINKED.from_string(text) for text in (one, other)]
    np.testing.assert_array_equal(*map(LINKED.canonical, archs))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    found = []
    for arch in archs:
        run = LINKED.network(arch).init_with_output
        run = jax.jit(run)
        found.append(run(jax.random.key(0), images))
    jax.tree.map(np.testing.assert_array_equal, *found)


# Layers


def test_joined_layers_have_the_channels_of_their_link():
    conv = L("conv", 8, 3)
    for link, expected in [("none", 8), ("residual", 12), ("dense", 20)]:
        assert joined(conv._replace(link=link), 12, 24) == (link, expected)
    assert joined(conv._replace(link="residual"), 4, 24) == ("residual", 8)
    assert joined(conv._replace(link="dense"), 12, 20) == ("dense", 20)
    assert joined(conv._replace(link="dense"), 12, 19) == ("none", 8)
    assert joined(L("relu", link="dense"), 12, 24) == ("dense", 24)
    for kind in ("identity", *POOLINGS):
        assert joined(L(kind, link="dense"), 12, 24) == ("none", 12)


def test_networks_say_what_they_do_not_take():
    images = jnp.zeros((1, 8, 8, 2))
    network = LINKED.network(LINKED.from_string(EXAMPLE))
    weights = one_hot(LINKED.from_string(EXAMPLE), LINKED.num_choices)
    key = jax.random.key(0)
    for module, given in [
        (network, (weights, None)),
        (network, (None, 0.1)),
        (LINKED.network(), (weights, 0.1)),
    ]:
        with pytest.raises(InputError, match=r"^expected .*drop rate"):
            module.init(key, images, *given)


# Sizes


def parameters_of(shapes):
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("links", [("none",), ("residual",), ("dense",), LINKS])
def test_sizes_are_the_parameters_of_the_network(links):
    shape = (9, 6, 3)
    space = chain(shape, channels=(4, 6), kernels=(1, 3), links=links, trunk=5)
    archs = samples(space, 8)
    count = jax.vmap(partial(space.sizes, image_shape=shape, num_classes=7))
    found, _ = jax.jit(count)(archs)
    assert len(np.unique(found)) > 4
    for arch, parameters in zip(archs, found, strict=True):
        network = space.network(arch, num_classes=7)
        assert parameters == parameters_of(shapes_of(network, shape))


def test_sizes_are_of_the_same_types_with_64_bits():
    with jax.enable_x64(True):
        found = jax.eval_shape(lambda a: PLAIN.sizes(a, (8, 8, 1)), np.zeros(10, int))
    assert [x.dtype for x in found] == [jnp.int32, jnp.float32]
    assert [x.shape for x in found] == [(), ()]


def test_operations_are_those_written_out():
    arch = LINKED.from_string("conv3x3-8+dense max_pool conv1x1-4 / relu dense-32")
    _, operations = LINKED.sizes(arch, (9, 6, 2), num_classes=7)
    convolutions = 9 * 6 * 9 * 2 * 8 + 5 * 3 * (2 + 8) * 4
    assert operations == 2 * (convolutions + 4 * 32 + 32 * 7)


# XLA leaves out taps on padding, 1 % of 3x3 taps here, and counts norms and
# activations, some ten operations for a pixel of a channel.
@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("conv1x1-64 conv1x1-64 relu identity", 0.06),
        ("conv3x3-64 conv3x3-64+residual relu max_pool", 0.03),
        ("conv3x3-64+dense avg_pool conv3x3-128 identity", 0.03),
    ],
)
def test_operations_are_nearly_what_xla_counts(text, tolerance, monkeypatch):
    # On a CPU the program multiplies by zeros of bands, which are no operations.
    monkeypatch.setattr("jaxnas.nn.chain.convolution", by_lax)
    shape = (128, 128, 32)
    space = chain(shape, channels=(64, 128), kernels=(1, 3), trunk=4, links=LINKS)
    arch = space.from_string(f"{text} / dense-64 relu")
    network = space.network(arch)
    variables = shapes_of(network, shape)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    cost = jax.jit(network.apply).lower(variables, image).cost_analysis()
    _, operations = space.sizes(arch, shape)
    assert float(operations) == pytest.approx(cost["flops"], rel=tolerance)
