"""Cells and whole networks, against sums written out and against PyTorch."""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge
from jaxnas.nn.ops import ReluConvNorm
from jaxnas.nn.pooling import avg_pool, max_pool
from jaxnas.nn.skeleton import AuxiliaryHead, DartsNetwork, NasBench201Network
from jaxnas.spaces import SPACES

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
KEY = jax.random.key(0)
DARTS_OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect")
DARTS_OPS += ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
ALL_EDGES = tuple(Edge(s, t, DARTS_OPS[1:]) for t in range(2, 6) for s in range(t))
# Few operations, so that these compile quickly.
FEW_EDGES = (Edge(0, 2, ("skip_connect",)), Edge(1, 3, ("dil_conv_3x3",)))
SMALL_DARTS = partial(
    DartsNetwork, FEW_EDGES, FEW_EDGES, DARTS_OPS, channels=4, cells=3, num_classes=3
)
SMALL_201 = partial(
    NasBench201Network,
    (Edge(0, 1, ("nor_conv_1x1", "skip_connect")), Edge(1, 3, ("avg_pool_3x3",))),
    ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    channels=4,
    cells=1,
    num_classes=3,
)
every_network = pytest.mark.parametrize("make", [SMALL_DARTS, SMALL_201])


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


IMAGES = draw(0, 4, 8, 8, 3)


def draw_variables(network, images=IMAGES, **how):
    """Random values of everything that a network has, running statistics too."""
    shapes = jax.eval_shape(partial(network.init, **how), KEY, images)
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: generator.uniform(0.2, 1, x.shape).astype(np.float32), shapes
    )


def count_parameters(network, images=IMAGES, **how):
    shapes = jax.eval_shape(partial(network.init, **how), KEY, images)["params"]
    return sum(x.size for x in jax.tree.leaves(shapes))


# Cells

CELL_OPS = ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3")
CELL_EDGES = (
    Edge(0, 2, ("skip_connect", "max_pool_3x3")),
    Edge(1, 2, ("skip_connect",)),
    Edge(1, 4, ("none", "avg_pool_3x3")),
    Edge(2, 4, ("skip_connect", "max_pool_3x3")),
)


def run_cell(weights, keep=None):
    """A cell without parameters, on two inputs; state 3 has no edges."""
    inputs = [draw(1, 2, 4, 4, 3), draw(2, 2, 4, 4, 3)]
    cell = Cell(CELL_EDGES, CELL_OPS, num_inputs=2, num_states=5, channels=3)
    states = jax.jit(lambda *args: cell.apply({}, *args, train=False))(
        inputs, weights, keep
    )
    return inputs, states


def test_cell_sums_its_edges_by_weight():
    weights = draw(0, 4, 4)
    (a, b), states = run_cell(weights)
    second = weights[0, 1] * a + weights[0, 2] * max_pool(a) + weights[1, 1] * b
    fourth = weights[2, 3] * avg_pool(b)
    fourth += weights[3, 1] * second + weights[3, 2] * max_pool(second)
    expected = [a, b, second, np.zeros_like(a), fourth]
    for found, state in zip(states, expected, strict=True):
        np.testing.assert_allclose(found, state, rtol=1e-4, atol=1e-5)


def test_cell_drops_paths_by_example_but_no_identity():
    keep = np.array([[2, 0], [0, 2], [0, 2], [2, 0]], np.float32)
    (a, b), states = run_cell(np.ones((4, 4), np.float32), keep)
    path = keep[:, :, None, None, None]
    second = a + path[0] * max_pool(a) + b
    fourth = path[2] * avg_pool(b) + second + path[3] * max_pool(second)
    np.testing.assert_allclose(states[2], second, rtol=1e-5)
    np.testing.assert_allclose(states[4], fourth, rtol=1e-5, atol=1e-5)


def quarter_of(states, weights, edges, stride):
    """A state of 8 channels, of which operations see the first 2, in numpy."""
    seen, passed = 0.0, 0.0
    for at, (source, k, pool) in edges.items():
        x, by = states[source], stride if source < 2 else 1
        seen = seen + weights[at, k] * np.asarray(pool(x[..., :2], by))
        whole = x[..., 2:]
        if by == 2:  # the largest of 2x2 pixels, of those in the image
            sides = [(0, side % 2) for side in x.shape[1:3]]
            whole = np.pad(whole, ((0, 0), *sides, (0, 0)), constant_values=-np.inf)
            corners = [whole[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
            whole = np.max(corners, 0)
        passed = passed + weights[at].sum() * whole
    x = np.concatenate([seen, passed], -1)
    # Of four groups of two channels, the first of each, then the second of each.
    return x[..., [0, 2, 4, 6, 1, 3, 5, 7]]


@pytest.mark.parametrize("stride", [1, 2])
def test_cell_in_part_passes_the_other_channels_by(stride):
    edges = (
        Edge(0, 2, ("max_pool_3x3",)),
        Edge(1, 2, ("avg_pool_3x3",)),
        Edge(0, 3, ("max_pool_3x3",)),
        Edge(2, 3, ("skip_connect",)),
    )
    inputs, weights = [draw(1, 2, 5, 4, 8), draw(2, 2, 5, 4, 8)], draw(3, 4, 4)
    cell = Cell(edges, CELL_OPS, 2, 5, channels=8, stride=stride, partial=4)
    *found, nothing = jax.jit(lambda *given: cell.apply({}, *given, None, train=False))(
        inputs, weights
    )
    first = {0: (0, 2, max_pool), 1: (1, 3, avg_pool)}
    expected = [*inputs, quarter_of(inputs, weights, first, stride)]
    second = {2: (0, 2, max_pool), 3: (2, 1, lambda x, stride: x)}
    expected.append(quarter_of(expected, weights, second, stride))
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, found, expected)
    np.testing.assert_array_equal(nothing, np.zeros_like(expected[-1]))


@every_network
def test_operations_in_part_have_a_quarter_of_the_channels(make):
    shapes = jax.eval_shape(make(partial=4).init, KEY, IMAGES)["params"]["cell0"]
    whole = jax.eval_shape(make().init, KEY, IMAGES)["params"]["cell0"]
    for few, full in zip(*map(jax.tree.leaves, (shapes, whole)), strict=True):
        assert 4 * few.shape[-1] == full.shape[-1]


@pytest.mark.parametrize("partial", [-1, 0, 3])
def test_channels_that_cannot_be_parted_are_refused(partial):
    cell = Cell(CELL_EDGES, CELL_OPS, 2, 5, channels=4, partial=partial)
    given = [IMAGES[..., :1]] * 2, np.ones((4, 4), np.float32), None, True
    with pytest.raises(InputError, match=rf"expected channels that {partial} .* got 4"):
        cell.init(KEY, *given)


# Whole networks


@every_network
def test_network_takes_and_gives_any_size(make):
    for size, colours in ((7, 1), (9, 3), (16, 3)):
        images = jax.ShapeDtypeStruct((2, size, size, colours), jnp.float32)
        logits, _ = jax.eval_shape(make().init_with_output, KEY, images)
        assert logits.shape == (2, 3)


@every_network
def test_remat_changes_no_parameters_and_no_logits(make):
    plain, other = make(), make(remat=True)
    variables = draw_variables(plain)
    same = draw_variables(other)
    assert jax.tree.map(np.shape, same) == jax.tree.map(np.shape, variables)

    def both(variables):
        return [
            network.apply(variables, IMAGES, train=True, mutable="batch_stats")
            for network in (plain, other)
        ]

    found, expected = jax.jit(both)(variables)
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(compare, found, expected)

    def loss(network, variables):
        return network.apply(variables, IMAGES).sum()

    is_anew = [
        "remat" in str(jax.make_jaxpr(jax.grad(partial(loss, network)))(variables))
        for network in (plain, other)
    ]
    assert is_anew == [False, True]


@every_network
def test_drop_path_drops_at_its_rate_and_nothing_at_zero(make):
    network = make()
    variables = draw_variables(network)

    @jax.jit
    def logits(rate, key):
        return network.apply(variables, IMAGES, None, rate, rngs={"drop_path": key})

    plain = jax.jit(partial(network.apply, variables))(IMAGES)
    np.testing.assert_allclose(logits(0.0, KEY), plain, rtol=1e-5)
    some, other = (logits(0.5, jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(some, plain)
    assert not np.allclose(some, other)


@pytest.mark.parametrize("how", [{}, {"partial": 2}, {"single_path": True}])
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_supernet_of_float32_stays_so_beside_float64(name, how):
    space = SPACES[name]()
    network = space.network(channels=4, cells=1, **how)
    weights = np.ones((len(space.num_choices), max(space.num_choices)), np.float32)
    variables = jax.eval_shape(network.init, KEY, IMAGES, weights)
    with jax.enable_x64(True):
        outputs = jax.eval_shape(
            partial(network.apply, train=True, mutable="batch_stats"),
            variables,
            IMAGES,
            weights,
        )
    assert outputs[1]["batch_stats"] == variables["batch_stats"]
    assert outputs[0].dtype == np.float32


def test_darts_network_halves_images_at_one_and_two_thirds():
    """The cells that double the channels, by the shapes of what they have."""
    shapes = jax.eval_shape(SMALL_DARTS(cells=6).init, KEY, IMAGES)["params"]
    widths = [shapes[f"cell{i}_input1"]["BatchNorm_0"]["scale"].shape for i in range(6)]
    assert widths == [(1, 4), (1, 4), (1, 8), (1, 8), (1, 16), (1, 16)]
    # A cell's first input is halved where the cell before was a reduction.
    halved = [len(shapes[f"cell{i}_input0"]) == 3 for i in range(6)]
    assert halved == [False, False, False, True, False, True]


# What networks tell of themselves


def test_agreement_counts_the_units_that_two_images_pass_alike():
    """Those of the ReLUs of each edge, whether chosen by weights or there alone."""
    space = SPACES["nasbench201"]()
    arch = np.array([3, 2, 3, 3, 1, 2], np.int32)  # two 3x3 leave state 0
    size = {"channels": 4, "cells": 1, "affine": False, "num_classes": 3}
    single, alone = space.network(single_path=True, **size), space.network(arch, **size)
    variables = draw_variables(single)
    few = {part: space.restrict(tree, arch) for part, tree in variables.items()}
    entered = []

    def record(next_method, args, kwargs, context):
        """Takes down what the ReLUs of a network are given, for each of their edges."""
        result = next_method(*args, **kwargs)
        if isinstance(context.module, ReluConvNorm):
            entered.extend([args[0]] * (context.module.edges // len(args[0])))
        if context.module.name == "last_norm":
            entered.append(result)
        return result

    def agreement(network, variables, weights=None):
        given = IMAGES, weights, None, True
        mutable = ["agreement", "batch_stats"]
        _, told = network.apply(variables, *given, mutable=mutable)
        return sum(jax.tree.leaves(told["agreement"]))

    def recorded(variables):
        with nn.intercept_methods(record):
            return agreement(alone, variables), entered

    found, given = jax.jit(recorded)(few)
    assert len(given) == 3 * 5 + 2 * 2 + 1  # three cells, two blocks, the end
    passes = np.concatenate(
        [np.moveaxis(x, 1, 0).reshape(len(IMAGES), -1) > 0 for x in given], 1
    )
    expected = [[np.sum(one == other) for other in passes] for one in passes]
    np.testing.assert_array_equal(found, expected)
    assert found[0, 0] == passes.shape[1] > found[0, 1]
    of_single = jax.jit(partial(agreement, single))
    chosen = of_single(variables, np.eye(5, dtype=np.float32)[arch])
    np.testing.assert_allclose(chosen, expected, rtol=1e-3)  # by another rounding


@every_network
def test_scale_is_what_the_logits_lack(make):
    network = make(affine=None)
    variables = draw_variables(network)
    assert "batch_stats" not in variables
    variables["params"]["Dense_0"]["bias"][:] = 0  # which is not scaled
    images = np.abs(IMAGES)

    def outputs(variables):
        logits, told = network.apply(variables, images, mutable=["scale"])
        return network.apply(variables, images), logits, told["scale"]

    with jax.enable_x64(True):
        whole, logits, told = jax.jit(outputs)(variables)
    (logarithm,) = jax.tree.leaves(told)
    np.testing.assert_allclose(logits * np.exp(logarithm), whole, rtol=1e-5)
    assert np.abs(whole).max() > 10 * np.abs(logits).max()


def test_network_without_norms_has_none():
    for single_path in (False, True):
        how = {"affine": None, "cells": 3, "single_path": single_path}
        network = SPACES["darts"]().network(**how)
        variables = jax.eval_shape(network.init, KEY, IMAGES)
        assert variables.keys() == {"params"}
        train = partial(network.apply, train=True, mutable="batch_stats")
        _, changed = jax.eval_shape(train, variables, IMAGES)
        assert not changed.get("batch_stats")


# The auxiliary head


def test_auxiliary_head_learns_only_in_training():
    network = SMALL_DARTS(auxiliary=True)
    variables = draw_variables(network, train=True)
    _, sown = jax.eval_shape(
        partial(network.apply, train=True, mutable=["batch_stats", "auxiliary"]),
        {k: variables[k] for k in ("params", "batch_stats")},
        IMAGES,
    )
    (logits,) = sown["auxiliary"]["logits"]
    assert logits.shape == (len(IMAGES), 3)
    plain = SMALL_DARTS()
    without = {k: v for k, v in variables["params"].items() if k != "auxiliary"}
    assert jax.tree.map(np.shape, without) == jax.tree.map(
        np.shape, draw_variables(plain)["params"]
    )


def test_auxiliary_head_has_the_published_parameters():
    # C = 576: a 1x1 and a 2x2 convolution, two norms, a linear layer.
    expected = 576 * 128 + 2 * 128 + 128 * 4 * 768 + 2 * 768 + 768 * 10 + 10
    features = jax.ShapeDtypeStruct((2, 8, 8, 576), jnp.float32)
    assert count_parameters(AuxiliaryHead(10), features, train=True) == expected


def test_auxiliary_head_pools_any_size_to_two_pixels():
    for size in (2, 3, 4, 7, 8, 16):
        features = jax.ShapeDtypeStruct((2, size, size, 8), jnp.float32)
        logits, _ = jax.eval_shape(
            partial(AuxiliaryHead(3).init_with_output, train=True), KEY, features
        )
        assert logits.shape == (2, 3)
    with pytest.raises(ValueError, match="2x2 pixels"):
        jax.eval_shape(
            partial(AuxiliaryHead(3).init, train=True), KEY, IMAGES[:, :1, :1]
        )


# PyTorch


def copy_of(model):
    """Our parameters and statistics of the PyTorch supernet of the benchmark."""
    params, stats = {}, {}

    def kernel(convs):
        """A kernel for every edge; those of 1x1 pixels are matrices."""
        kernels = np.stack(
            [conv.weight.detach().numpy().transpose(2, 3, 1, 0) for conv in convs]
        )
        edges, size, _, before, after = kernels.shape
        if before == 1 and size > 1:
            return {"kernel": kernels[:, :, :, 0]}
        return {"kernel": kernels.reshape(edges, before, after)}

    def norm(norms):
        return {
            "mean": np.stack([norm.running_mean.numpy() for norm in norms]),
            "var": np.stack([norm.running_var.numpy() for norm in norms]),
        }

    def put(group, convs, norms):
        params[group] = {name: kernel(edges) for name, edges in convs.items()}
        put_norms(group, norms)

    def put_norms(group, norms):
        stats[group] = {f"BatchNorm_{i}": norm(edges) for i, edges in enumerate(norms)}

    def reduce(group, edges):
        pairs = {
            "Pointwise_0": [edge.even for edge in edges],
            "Pointwise_1": [edge.odd for edge in edges],
        }
        put(group, pairs, [[edge.norm for edge in edges]])

    def preprocess(group, block):
        if len(block) == 2:
            reduce(group, [block[1]])
        else:
            put(group, {"Pointwise_0": [block[1]]}, [[block[2]]])

    def separable(group, edges):
        """Depthwise, pointwise, norm; twice with a ReLU between, or once."""
        starts = range(0, len(edges[0]), 4)
        convs = {
            f"{kind}_{i}": [edge[start + place] for edge in edges]
            for i, start in enumerate(starts)
            for place, kind in enumerate(("Depthwise", "Pointwise"))
        }
        put(group, convs, [[edge[start + 2] for edge in edges] for start in starts])

    def gather(cell):
        """Takes what was put for a cell into its collections."""
        for whole in (params, stats):
            names = [name for name in whole if name.startswith("state")]
            whole[cell] = {name: whole.pop(name) for name in names}

    for i, cell in enumerate(model.cells):
        preprocess(f"cell{i}_input0", cell.preprocess0)
        preprocess(f"cell{i}_input1", cell.preprocess1)
        inputs, inner = [*cell.sources[:2]], cell.sources[2:]
        for name, sources in [
            ("state0_1", inputs),
            *((f"state{state}", [edges]) for state, edges in enumerate(inner, 2)),
        ]:
            put_norms(f"{name}_max_pool_3x3", [[edges.max_norm for edges in sources]])
            put_norms(f"{name}_avg_pool_3x3", [[edges.avg_norm for edges in sources]])
            reduces = [op for edges in sources for op in edges.reduces]
            if reduces:
                reduce(f"{name}_skip_connect", reduces)
            for k, op_name in enumerate(DARTS_OPS[4:]):
                convs = [op[k] for edges in sources for op in edges.convs]
                separable(f"{name}_{op_name}", convs)
        gather(f"cell{i}")

    conv, stem_norm = model.stem
    params["stem"] = {"kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0)}
    scale, bias = (x.detach().numpy()[None] for x in stem_norm.parameters())
    params["stem_norm"], stats["stem_norm"] = (
        {"scale": scale, "bias": bias},
        norm([stem_norm]),
    )
    weight, bias = (x.detach().numpy() for x in model.classifier.parameters())
    params["Dense_0"] = {"kernel": weight.T, "bias": bias}
    return {"params": params, "batch_stats": stats}


def test_darts_supernet_computes_what_that_of_pytorch_does(monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import torch_supernet

    model = torch_supernet.build(channels=4, cells=3, image_size=8, num_classes=3)
    generator = torch.Generator().manual_seed(0)
    for x in (*model.double().parameters(), *model.buffers()):
        # Small kernels, for nothing is normalised in evaluation.
        torch.nn.init.uniform_(x, -0.3, 0.5, generator=generator)
    for name, x in model.named_buffers():
        if name.endswith("var"):
            torch.nn.init.uniform_(x, 0.5, 1.0, generator=generator)
    weights = torch.cat([alpha.softmax(-1) for alpha in model.alphas]).detach().numpy()
    variables = jax.tree.map(np.array, copy_of(model))
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = [model.train(train)(inputs).numpy() for train in (False, True)]

    network = DartsNetwork(
        ALL_EDGES, ALL_EDGES, DARTS_OPS, 4, 3, 3, affine=False, pool_norm=True
    )

    def outputs(variables, images, weights):
        apply = partial(network.apply, variables, images, weights)
        return apply(), apply(train=True, mutable="batch_stats")[0]

    with jax.enable_x64(True):
        run = jax.jit(outputs)
        found = run(variables, images, weights)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7)
