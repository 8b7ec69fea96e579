"""The space of networks that generate images, against the networks themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas.base import InputError
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.spaces.generative import Adversaries, generative

SHAPES = [(8, 8, 1), (9, 14, 2), (28, 28, 1), (32, 32, 3), (2, 3, 4)]
MODELS = "vae", "gan"
every_model = pytest.mark.parametrize("model", MODELS)
quick = settings(deadline=None, max_examples=20)


@functools.cache
def space_of(model, shape):
    return generative(shape, model=model)


@functools.cache
def canonical(model, shape):
    return jax.jit(space_of(model, shape).canonical)


@st.composite
def archs(draw, number=1, shapes=SHAPES):
    """A space, its images' shape, and architectures of it."""
    model, shape = draw(st.sampled_from(MODELS)), draw(st.sampled_from(shapes))
    space = space_of(model, shape)
    one = st.tuples(*(st.integers(0, k - 1) for k in space.num_choices))
    found = [np.array(draw(one), np.int32) for _ in range(number)]
    return (space, model, shape, *found)


def trace(model, network, shape, **told):
    """The shapes of the images that come back, and how many parameters there are."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    z = None if model == "vae" else jnp.zeros((2, network.num_latent))
    rngs = {"params": jax.random.key(0), "sample": jax.random.key(1)}
    pairs = (
        [(network, x)] if model == "vae" else [*zip(network[:2], (z, x), strict=True)]
    )
    outputs, variables = zip(
        *(
            jax.eval_shape(lambda x, n=n: n.init_with_output(rngs, x, **told), given)
            for n, given in pairs
        ),
        strict=True,
    )
    images = outputs[0].outputs if model == "vae" else outputs[0]
    leaves = jax.tree.leaves([v["params"] for v in variables])
    return jax.tree.map(jnp.shape, images), sum(leaf.size for leaf in leaves)


@quick
@given(found=archs())
def test_every_architecture_gives_back_images_of_every_shape(found):
    space, model, shape, arch = found
    images, parameters = trace(model, space.network(arch), shape, train=True)
    assert images == (((2, *shape), shape[2:]) if model == "vae" else (2, *shape))
    assert parameters == space.sizes(arch, shape)[0]


@every_model
def test_labels_and_outputs_are_counted(model):
    shape = 9, 14, 2
    space = space_of(model, shape)
    arch = space.sample(jax.random.key(3))
    size = {"num_classes": 3, **({"output": "linear"} if model == "vae" else {})}
    told = {"condition": jnp.array([0, 1])}
    _, parameters = trace(model, space.network(arch, **size), shape, **told)
    assert parameters == space.sizes(arch, shape, **size)[0]


def test_operations_are_two_for_each_weight_and_pixel():
    text = "stages=2 widths=16-32-64 kernel=3 latent=8 norm=none activation=elu"
    # 8x8 images to 4x4 and 2x2 pixels, and the same way back.
    stages = 9 * 1 * 16 * 16 + 9 * 16 * 32 * 4
    flat = 2 * 2 * 32
    for model, dense in (("vae", 3 * 8 * flat), ("gan", 8 * flat + flat)):
        space = space_of(model, (8, 8, 1))
        _, operations = space.sizes(space.from_string(text), (8, 8, 1))
        assert operations == 2 * (2 * stages + dense)


@quick
@given(found=archs(2), copied=st.sets(st.integers(0, 7)))
def test_keys_are_equal_where_the_networks_are(found, copied):
    space, model, shape, one, other = found
    for place in copied:  # else two are hardly ever the same
        if place < len(one):
            other[place] = one[place]
    keys = [canonical(model, shape)(arch) for arch in (one, other)]
    same = space.network(one) == space.network(other)
    assert same == bool((keys[0] == keys[1]).all())


@quick
@given(found=archs(shapes=[(32, 32, 3)]), by=st.integers(1, 3))
def test_widths_beyond_the_last_stage_change_nothing(found, by):
    space, model, shape, arch = found
    for stage in range(3):
        other = arch.copy()
        other[1 + stage] = (other[1 + stage] + by) % 4
        keys = [canonical(model, shape)(arch) for arch in (arch, other)]
        is_there = stage <= arch[0]
        assert bool((keys[0] != keys[1]).any()) == is_there
        assert (space.network(arch) != space.network(other)) == is_there


@quick
@given(found=archs())
def test_strings_round_trip(found):
    space, *_, arch = found
    np.testing.assert_array_equal(space.from_string(space.to_string(arch)), arch)


def test_networks_are_those_of_the_decisions():
    text = "stages=2 widths=16-64-32 kernel=5 latent=32 norm=layer activation=swish"
    spaces = [space_of(model, (32, 32, 3)) for model in MODELS]
    vae, gan = (space.network(space.from_string(text)) for space in spaces)
    assert isinstance(vae, Autoencoder)
    assert isinstance(gan, Adversaries)
    assert (vae.encoder.num_latent, gan.num_latent) == (32, 32)
    assert vae.decoder.output == "logistic"
    for half in (vae.encoder.trunk, gan.discriminator.trunk):
        assert tuple(half.widths) == (16, 64)
    for half in (vae.decoder, gan.generator):
        assert tuple(half.widths) == (64, 16)
        assert (half.size, half.norm, half.activation) == (5, "layer", "swish")


@pytest.mark.parametrize(("side", "most"), [(2, 1), (3, 2), (4, 2), (5, 3), (64, 3)])
def test_stages_are_as_many_as_the_image_has_pixels_to_halve(side, most):
    assert generative((side, 64, 1)).num_choices[0] == most


def test_bad_arguments_are_one_line():
    with pytest.raises(InputError, match="2 pixels a side or more, but got"):
        generative((1, 8, 3))
    with pytest.raises(InputError, match="expected a model of vae, gan, but got flow"):
        generative(model="flow")
    with pytest.raises(InputError, match="1 stage or more, but got 0"):
        generative(max_stages=0)
    with pytest.raises(InputError, match="widths of 1 or more, each once"):
        generative(widths=(8, 8))
    space = generative()
    with pytest.raises(InputError, match="generative has no supernet"):
        space.network()
    with pytest.raises(InputError, match="generative has no supernet"):
        space.restrict({}, space.sample(jax.random.key(0)))
    text = space.to_string(space.sample(jax.random.key(0)))
    with pytest.raises(InputError, match="expected norm of batch, layer, none, but"):
        space.from_string(text.replace("norm=", "norm=no"))
    with pytest.raises(InputError, match="expected 3 widths"):
        space.from_string(text.replace("widths=", "widths=16-"))
