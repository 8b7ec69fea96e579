"""Parameters and operations, against the networks themselves, XLA and what is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxnas.base import InputError
from jaxnas.nn.convolution import by_lax
from jaxnas.spaces import SPACES
from jaxnas.spaces.darts import sizes as sizes_of_darts
from jaxnas.spaces.genotype import DARTS_V2
from jaxnas.spaces.nasbench101 import sizes as sizes_of_nasbench101
from jaxnas.spaces.nasbench201 import sizes as sizes_of_nasbench201

SIZES = {
    "darts": sizes_of_darts,
    "nasbench101": sizes_of_nasbench101,
    "nasbench201": sizes_of_nasbench201,
}
MODULES = {"darts": "cells", "nasbench101": "modules", "nasbench201": "cells"}
every_space = pytest.mark.parametrize("name", SIZES)


@functools.cache
def draw(name):
    """Eight architectures."""
    keys = jax.random.split(jax.random.key(0), 8)
    return np.asarray(jax.jit(jax.vmap(SPACES[name]().sample))(keys))


@pytest.fixture(autouse=True)
def _convolutions_are_lax(monkeypatch):
    """Else they are products whose zeros count as well."""
    monkeypatch.setattr("jaxnas.nn.ops.convolution", by_lax)


# The networks themselves


def trace(network, image_shape):
    """The shapes of the variables and the program of one image at test time."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    make = jax.make_jaxpr(network.init_with_output, return_shape=True)
    program, (_, variables) = make(jax.random.key(0), image)
    return variables, program.jaxpr


def count_parameters(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def count_operations(program):
    """Two for each term that a convolution or a matrix product sums, by their shapes.

    A matrix product that sums one term only weighs an operation of a cell: it is none.
    """
    count = 0
    for line in program.eqns:
        count += sum(map(count_operations, jaxprs_in_params(line.params)))
        name, shapes = line.primitive.name, [v.aval.shape for v in line.invars]
        terms = 0
        if name == "dot_general":
            (axes, _), _ = line.params["dimension_numbers"]
            terms = math.prod(shapes[0][axis] for axis in axes)
            terms *= terms > 1
        elif name == "conv_general_dilated":
            outputs = line.params["dimension_numbers"].rhs_spec[0]
            terms = math.prod(shapes[1]) // shapes[1][outputs]
        elif name == "depthwise_conv":
            terms = math.prod(shapes[1][1:3])
        count += 2 * terms * sum(v.aval.size for v in line.outvars)
    return count


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [  # odd heights and channels that do not divide: what is rounded is seen
        ("darts", (9, 14, 2), {"channels": 7, "cells": 3, "num_classes": 7}),
        ("darts", (8, 8, 3), {"channels": 5, "cells": 2, "affine": False}),
        ("darts", (8, 8, 3), {"channels": 4, "cells": 1, "auxiliary": True}),
        ("nasbench101", (9, 14, 2), {"channels": 7, "modules": 2, "num_classes": 7}),
        ("nasbench101", (8, 8, 3), {"channels": 16, "stacks": 2, "modules": 1}),
        ("nasbench201", (9, 14, 2), {"channels": 5, "cells": 2, "num_classes": 7}),
        ("nasbench201", (8, 8, 3), {"channels": 4, "cells": 1, "affine": False}),
        ("nasbench201", (8, 8, 3), {"channels": 4, "cells": 1, "affine": None}),
        ("darts", (8, 8, 3), {"channels": 4, "cells": 1, "affine": None}),
    ],
)
def test_sizes_are_those_of_the_network(name, shape, size):
    archs = draw(name)
    found = jax.jit(jax.vmap(lambda arch: SIZES[name](arch, shape, **size)))(archs)
    assert found[1].max() < 2**24  # and so exact
    for arch, parameters, operations in zip(archs, *found, strict=True):
        variables, program = trace(SPACES[name]().network(arch, **size), shape)
        assert parameters == count_parameters(variables)
        assert operations == count_operations(program)


# XLA leaves out taps on padding: of 3x3 taps 1 - (1 - 2 / 3n)^2 in an image of n pixels
# a side; that is 9.5 % on average over the three sizes of images where n = 32, 0.6 %
# where n = 512. It counts norms, activations and sums too: some ten operations for a
# pixel of a channel, where a convolution of C channels has 2 C or more.
@every_space
@pytest.mark.parametrize(
    ("pixels", "size", "tolerance"), [(32, {}, 0.1), (512, {"channels": 512}, 0.01)]
)
def test_operations_are_nearly_what_xla_counts(name, pixels, size, tolerance):
    size, shape, arch = (
        {**size, MODULES[name]: 2},
        (pixels, pixels, 3),
        draw(name)[0],
    )
    network = SPACES[name]().network(arch, **size)
    variables, _ = trace(network, shape)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    cost = jax.jit(network.apply).lower(variables, image).cost_analysis()
    _, operations = SIZES[name](arch, shape, **size)
    assert float(operations) == pytest.approx(cost["flops"], rel=tolerance)


# What is known


def sizes_of(name, string, shape=(32, 32, 3), **size):
    return SIZES[name](SPACES[name]().from_string(string), shape, **size)


def test_sizes_of_darts_v2_are_the_published():
    parameters, _ = sizes_of("darts", DARTS_V2, channels=36, cells=20)
    assert parameters == 3_349_342


CONV_1, CONV_3, POOL = "conv1x1-bn-relu", "conv3x3-bn-relu", "maxpool3x3"


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (  # the documentation's example
            f"{CONV_1}(0)|{CONV_3}(0)|{CONV_3}(0)|{CONV_3}(3)|{POOL}(0)|output(1,2,4,5)",
            2_694_282,
        ),
        (  # the most that any module has
            f"{CONV_3}(0)|{CONV_3}(0,1)|{CONV_3}(0,2)|{CONV_3}(0,3)|{CONV_3}(4)"
            "|output(5)",
            49_979_274,
        ),
    ],
)
def test_parameters_of_nasbench101_are_the_published(module, parameters):
    assert sizes_of("nasbench101", module)[0] == parameters


# Millions of multiply-adds as NATS-Bench answers them; it counts the classifier's bias.
FIRST = (
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
)
OTHER = (
    "|skip_connect~0|+|none~0|nor_conv_3x3~1|"
    "+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)


@pytest.mark.parametrize(
    ("cell", "pixels", "classes", "parameters", "millions"),
    [
        (FIRST, 32, 10, 129_306, 15.64737),
        (FIRST, 32, 100, None, 15.65322),
        (FIRST, 16, 120, None, 3.91948),
        (OTHER, 32, 10, 802_426, 113.95137),
    ],
)
def test_sizes_of_nasbench201_are_the_published(
    cell, pixels, classes, parameters, millions
):
    shape = (pixels, pixels, 3)
    found, operations = sizes_of("nasbench201", cell, shape, num_classes=classes)
    assert found == parameters or parameters is None
    assert float(operations) / 2 + classes == pytest.approx(millions * 1e6, abs=1)


# Arguments


@every_space
def test_sizes_are_of_the_same_types_with_64_bits(name):
    arch = draw(name)[0]
    with jax.enable_x64(True):
        found = jax.eval_shape(lambda arch: SIZES[name](arch, (8, 8, 3)), arch)
    assert [x.dtype for x in found] == [jnp.int32, jnp.float32]
    assert [x.shape for x in found] == [(), ()]


@every_space
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8, 3), (8, 0, 3)])
def test_sizes_say_what_shape_they_want(name, shape):
    arch = np.zeros(len(SPACES[name]().num_choices), np.int32)
    with pytest.raises(InputError, match="height, width and colours") as error:
        SIZES[name](arch, shape)
    assert len(str(error.value).splitlines()) == 1


@every_space
def test_sizes_take_what_network_takes(name):
    with pytest.raises(TypeError, match="widht"):
        SIZES[name](draw(name)[0], (8, 8, 3), widht=3)
