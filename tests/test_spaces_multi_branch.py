"""The space of parallel branches, against closed forms, PyTorch and XLA."""

import collections
import copy
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.nn.convolution import by_lax
from jaxnas.nn.graph import Edge
from jaxnas.nn.multi_branch import Block, Branching
from jaxnas.spaces import SPACES
from jaxnas.spaces.multi_branch import OPS, multi_branch, sizes

SPACE = SPACES["multi_branch"]()
PAIR = multi_branch(blocks=2, branches=3)
NONE, SKIP, MAX, AVG, CONV_1, CONV_3, SEP_3, SEP_5 = range(8)
ADD, CONCAT = range(2)
NOTHING = (NONE, NONE, NONE)


def shapes_of(network, image_shape=(8, 8, 3)):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), images)


def draw_variables(network):
    generator = np.random.default_rng(0)
    shapes = shapes_of(network)
    return jax.tree.map(
        lambda x: generator.uniform(0.1, 1, x.shape).astype(np.float32), shapes
    )


def apply(network, variables, images, **kwargs):
    run = jax.jit(lambda variables: network.apply(variables, images, **kwargs))
    return run.lower(variables).compile()(variables)


IMAGES = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)


# Architectures and strings


def test_space_has_a_decision_for_each_branch_and_for_how_they_merge():
    assert SPACE.num_choices == (8, 8, 8, 8, 2) * 4
    assert multi_branch(1, 2).num_choices == (8, 8, 2)
    assert SPACE.neighbours(jnp.zeros(20, jnp.int32))[0].shape == (4 * (4 * 7 + 1), 20)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "4", None, True])
@pytest.mark.parametrize("name", ["blocks", "branches"])
def test_space_refuses_what_is_no_number_of_things(name, wrong):
    with pytest.raises(InputError, match=f"1 or more {name}") as error:
        multi_branch(**{name: wrong})
    assert len(str(error.value).splitlines()) == 1


EXAMPLE = (
    "add(nor_conv_3x3,none,skip_connect)|concat(sep_conv_5x5,nor_conv_1x1,max_pool_3x3)"
)


def test_strings_say_the_operations_and_how_they_merge():
    arch = PAIR.from_string(EXAMPLE)
    expected = [CONV_3, NONE, SKIP, ADD, SEP_5, CONV_1, MAX, CONCAT]
    np.testing.assert_array_equal(arch, expected)
    assert PAIR.to_string(arch) == EXAMPLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("add", "sum"),
        ("none", "conv"),
        (",none", ""),
        (",none", ",none,none"),
        ("|", ""),
        (EXAMPLE, f"{EXAMPLE}|{EXAMPLE}"),
        (EXAMPLE, ""),
        (")", ""),
    ],
)
def test_from_string_says_what_it_wants(old, new):
    with pytest.raises(InputError, match=r"expected 2 of add\(none,skip") as error:
        PAIR.from_string(EXAMPLE.replace(old, new, 1))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("blocks", "branches"), [(1, 1), (1, 3), (2, 1)])
def test_canonical_tells_sets_of_branches_apart_and_nothing_else(blocks, branches):
    space = multi_branch(blocks, branches)
    every = np.array([*itertools.product(*map(range, space.num_choices))], np.int32)
    keys = np.asarray(jax.jit(jax.vmap(space.canonical))(every))
    # Combinations with repetition; how nothing is merged does not matter.
    of_a_block = 2 * (math.comb(len(OPS) + branches - 1, branches) - 1) + 1
    assert len(np.unique(keys, axis=0)) == of_a_block**blocks
    rows = every.reshape(-1, blocks, branches + 1)
    merges = np.where(rows[:, :, :-1].any(-1), rows[:, :, -1], 0)
    meaning = np.concatenate([np.sort(rows[:, :, :-1], -1), merges[:, :, None]], -1)
    pairs = np.concatenate([meaning.reshape(len(every), -1), keys], 1)
    assert len(np.unique(pairs, axis=0)) == of_a_block**blocks


@pytest.mark.parametrize("merge", [ADD, CONCAT])
def test_order_of_branches_does_not_change_the_network(merge):
    one = np.array([MAX, CONV_1, SEP_3, merge, *NOTHING, ADD])
    other = np.array([SEP_3, MAX, CONV_1, merge, *NOTHING, CONCAT])
    np.testing.assert_array_equal(PAIR.canonical(one), PAIR.canonical(other))
    networks = [PAIR.network(arch, channels=4) for arch in (one, other)]
    assert shapes_of(networks[0]) == shapes_of(networks[1])
    first = draw_variables(networks[0])
    second = copy.deepcopy(first)
    if merge == CONCAT:
        projection = first["params"]["block0"]["projection"]
        second["params"]["block0"]["projection"] = projection[[2, 0, 1]]
    found = [
        apply(network, variables, IMAGES)
        for network, variables in zip(networks, (first, second), strict=True)
    ]
    np.testing.assert_allclose(*found, rtol=1e-5)


# Networks


@pytest.mark.parametrize("merge", ["add", "concat"])
def test_block_without_branches_is_the_identity(merge):
    block = Block(Branching((), (merge,)), OPS, affine=True, pool_norm=False)
    x = jnp.array(IMAGES)
    found, variables = block.init_with_output(jax.random.key(0), x, None, None, True)
    np.testing.assert_array_equal(found, x)
    assert not variables


def test_supernet_has_every_branch_and_plain_norms_in_blocks():
    params = shapes_of(PAIR.network(channels=4))["params"]
    convolutions = {f"state0_{op}" for op in OPS if "conv" in op}
    assert set(params["block0"]["cell"]) == convolutions
    assert params["block1"]["projection"].shape == (3, 16, 16)
    conv = params["block1"]["cell"]["state0_nor_conv_3x3"]
    assert jax.tree.map(np.shape, conv) == {"kernel": (3, 3, 3, 16, 16)}


def test_projection_starts_in_the_bounds_of_its_true_fan_in():
    edges = tuple(Edge(0, target, ("skip_connect",)) for target in (1, 3))
    block = Block(Branching(edges, ("concat",)), OPS, affine=True, pool_norm=False)
    x = jnp.zeros((1, 2, 2, 32))
    params = block.init(jax.random.key(0), x, None, None, True)["params"]
    assert params["projection"].shape == (2, 32, 32)
    bound = (2 * 32) ** -0.5
    assert 0.98 * bound < np.abs(params["projection"]).max() <= bound


def test_blocks_are_repeated_and_keep_their_operations():
    arch = PAIR.from_string(EXAMPLE)
    shapes = shapes_of(PAIR.network(arch, channels=4, cells=2))["params"]
    for place, (ops, channels) in enumerate(
        [({"state0_nor_conv_3x3"}, 8)] * 2
        + [({"state0_sep_conv_5x5", "state0_nor_conv_1x1"}, 16)] * 2
    ):
        block = shapes[f"block{place}"]["cell"]
        assert set(block) == ops
        assert {x.shape[-1] for x in jax.tree.leaves(block)} == {channels}


def test_branches_that_are_always_dropped_are_not_there():
    arch = np.array([CONV_1, NONE, SEP_3, CONCAT, CONV_3, MAX, NONE, ADD])
    nothing = np.array([*NOTHING, ADD, *NOTHING, ADD])
    network = PAIR.network(arch, channels=4)
    variables = draw_variables(network)
    dropped = {"drop_rate": jnp.float32(1 - 2**-20), "rngs": jax.random.key(0)}
    found = apply(network, variables, IMAGES, **dropped)
    few = {
        name: {k: v for k, v in leaves.items() if not k.startswith("block")}
        for name, leaves in variables.items()
    }
    expected = apply(PAIR.network(nothing, channels=4), few, IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("image_shape", [(7, 9, 1), (16, 16, 3), (1, 1, 3)])
def test_network_takes_images_and_blocks_of_any_number(blocks, image_shape):
    space = multi_branch(blocks, 1)
    arch = jnp.array([SEP_3, CONCAT] * blocks)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    network = space.network(arch, channels=4)
    logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 10)


# PyTorch

ARCH = (SEP_3, CONV_3, SEP_5, CONCAT, CONV_1, NONE, CONV_1, ADD)
ARCH += (MAX, AVG, CONV_3, CONCAT, SKIP, SEP_3, AVG, ADD)
REFERENCE = multi_branch(blocks=4, branches=3)


def make_reference(torch, channels, classes):
    """The network of `ARCH`, branch by branch, in float64."""
    nn = torch.nn

    def conv_norm(before, after, size, stride=1):
        conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
        return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(after))

    def separable(width, size):
        layers = []
        for _ in range(2):
            depthwise = nn.Conv2d(
                width, width, size, 1, size // 2, groups=width, bias=False
            )
            relu, *pointwise = conv_norm(width, width, 1)
            layers += [relu, depthwise, *pointwise]
        return nn.Sequential(*layers)

    class Parallel(nn.Module):
        def __init__(self, width, ops, merge):
            super().__init__()
            make = {
                SKIP: nn.Identity,
                MAX: lambda: nn.MaxPool2d(3, 1, 1),
                AVG: lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
                CONV_1: lambda: conv_norm(width, width, 1),
                CONV_3: lambda: conv_norm(width, width, 3),
                SEP_3: lambda: separable(width, 3),
                SEP_5: lambda: separable(width, 5),
            }
            self.names = [OPS[op] for op in ops if op != NONE]
            self.branches = nn.ModuleList(make[op]() for op in ops if op != NONE)
            self.project = None
            if merge == CONCAT:
                joined = width * len(self.names)
                self.project = nn.Conv2d(joined, width, 1, bias=False)

        def forward(self, x):
            outputs = [branch(x) for branch in self.branches]
            if self.project is None:
                return x + sum(outputs)
            return x + self.project(torch.relu(torch.cat(outputs, 1)))

    blocks = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    blocks.append(nn.BatchNorm2d(channels))
    for i, (*ops, merge) in enumerate(np.reshape(ARCH, (4, 4)).tolist()):
        if i in (1, 2):
            blocks.append(conv_norm(channels, 2 * channels, 3, 2))
            channels *= 2
        blocks.append(Parallel(channels, ops, merge))
    blocks += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    blocks += [nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*blocks).double()


def copy_norm(norm):
    affine = {"scale": norm.weight, "bias": norm.bias}
    running = {"mean": norm.running_mean, "var": norm.running_var}
    return [
        {k: v.detach().numpy()[None].copy() for k, v in values.items()}
        for values in (affine, running)
    ]


def copy_conv(conv):
    return conv.weight.detach().numpy().transpose(2, 3, 1, 0)


def copy_branch(torch, branch):
    """Parameters and statistics of one branch, each with a leading edge axis."""
    params, stats, seen = {}, {}, collections.Counter()
    for layer in branch.children():
        if isinstance(layer, torch.nn.BatchNorm2d):
            name = f"BatchNorm_{seen['norm']}"
            params[name], stats[name] = copy_norm(layer)
            seen["norm"] += 1
        elif isinstance(layer, torch.nn.Conv2d):
            kernel = copy_conv(layer)[None]
            depthwise, size = layer.groups > 1, layer.kernel_size[0]
            if size > 1 and not depthwise:
                params["kernel"] = kernel
                continue
            kind = "Depthwise" if depthwise else "Pointwise"
            kernel = kernel[:, :, :, 0] if depthwise else kernel[:, 0, 0]
            params[f"{kind}_{seen[kind]}"] = {"kernel": kernel}
            seen[kind] += 1
    return params, stats


def copy_block(torch, block):
    """A block's parameters and statistics: branches of an operation side by side."""
    found = collections.defaultdict(list)
    for name, branch in zip(block.names, block.branches, strict=True):
        if "conv" in name:
            found[f"state0_{name}"].append(copy_branch(torch, branch))
    params, stats = (
        {
            name: jax.tree.map(
                lambda *leaves: np.concatenate(leaves), *[pair[part] for pair in pairs]
            )
            for name, pairs in found.items()
        }
        for part in range(2)
    )
    params = {"cell": params} if params else {}
    if block.project is not None:
        kernel = copy_conv(block.project)[0, 0]
        params["projection"] = kernel.reshape(len(block.names), -1, kernel.shape[1])
    return params, {"cell": stats} if stats else {}


def copy_of(torch, model):
    names = "stem stem_norm block0 reduction1 block1 reduction2 block2 block3 last_norm"
    names = [*names.split(), "relu", "pool", "flatten", "Dense_0"]
    params, stats = {}, {}
    for name, block in zip(names, model, strict=True):
        if isinstance(block, torch.nn.Conv2d):
            params[name] = {"kernel": copy_conv(block)}
        elif isinstance(block, torch.nn.BatchNorm2d):
            params[name], stats[name] = copy_norm(block)
        elif isinstance(block, torch.nn.Linear):
            weight, bias = (x.detach().numpy() for x in (block.weight, block.bias))
            params[name] = {"kernel": weight.T, "bias": bias}
        elif name.startswith("block"):
            params[name], stats[name] = copy_block(torch, block)
        elif name.startswith("reduction"):
            params[name], stats[name] = copy_branch(torch, block)
    return {"params": params, "batch_stats": stats}


def test_network_and_sizes_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    counter = pytest.importorskip("torch.utils.flop_counter")
    torch.manual_seed(0)
    model = make_reference(torch, channels=4, classes=3)
    for x in (*model.parameters(), *model.buffers()):
        if x.dtype.is_floating_point:
            torch.nn.init.uniform_(x, 0.1, 1.0)
    variables = copy_of(torch, model)
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 3))
    with jax.enable_x64(True):
        network = REFERENCE.network(np.array(ARCH), channels=4, num_classes=3)

        def outputs(variables):
            trained, _ = network.apply(
                variables, images, train=True, mutable="batch_stats"
            )
            return network.apply(variables, images), trained

        found = jax.jit(outputs)(variables)
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad(), counter.FlopCounterMode(display=False) as counted:
        tested = model.eval()(inputs).numpy()
    with torch.no_grad():
        trained = model.train()(inputs).numpy()
    np.testing.assert_allclose(found[0], tested, rtol=1e-8)
    np.testing.assert_allclose(found[1], trained, rtol=1e-8)
    parameters, operations = sizes(
        np.array(ARCH), (9, 8, 3), branches=3, channels=4, num_classes=3
    )
    assert parameters == sum(x.numel() for x in model.parameters())
    assert operations == counted.get_total_flops() / len(images)


# Sizes


@pytest.mark.parametrize(
    ("blocks", "branches", "shape", "size"),
    [
        (4, 4, (9, 14, 2), {"channels": 5, "cells": 2, "num_classes": 7}),
        (1, 2, (8, 8, 3), {"channels": 4, "affine": False}),
        (3, 1, (8, 8, 1), {"pool_norm": True}),
    ],
)
def test_parameters_are_those_of_the_network(blocks, branches, shape, size):
    space = multi_branch(blocks, branches)
    archs = jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 6))
    archs = archs.at[0].set(0)
    count = jax.vmap(lambda arch: sizes(arch, shape, branches=branches, **size))
    for arch, found in zip(archs, jax.jit(count)(archs)[0], strict=True):
        params = shapes_of(space.network(arch, **size), shape)["params"]
        assert found == sum(x.size for x in jax.tree.leaves(params))


# XLA leaves out taps on padding: of 3x3 taps 6 % in images of 32 pixels a side, 23 % in
# those of 8. It counts norms, activations, pooling and sums too.
def test_operations_are_nearly_what_xla_counts(monkeypatch):
    # Else convolutions are products whose zeros count as well.
    monkeypatch.setattr("jaxnas.nn.ops.convolution", by_lax)
    shape = (32, 32, 3)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    archs = jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(0), 3))
    for arch in archs:
        network = SPACE.network(arch)
        variables = shapes_of(network, shape)
        cost = jax.jit(network.apply).lower(variables, image).cost_analysis()
        _, operations = sizes(arch, shape)
        assert float(operations) == pytest.approx(cost["flops"], rel=0.1)


def test_sizes_are_of_the_same_types_with_64_bits():
    with jax.enable_x64(True):
        found = jax.eval_shape(
            lambda arch: sizes(arch, (8, 8, 3)), np.zeros(20, np.int32)
        )
    assert [(x.shape, x.dtype) for x in found] == [((), jnp.int32), ((), jnp.float32)]
