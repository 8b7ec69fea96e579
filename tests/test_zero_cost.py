"""Zero-cost proxies, against the networks by themselves in float64 and closed forms."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.base import OK, InputError, Proposal
from jaxnas.encoding import one_hot
from jaxnas.evaluators import proxies
from jaxnas.evaluators.proxies import PROXIES, Untrained, look
from jaxnas.evaluators.zero_cost import zero_cost
from jaxnas.nn import probes
from jaxnas.nn.ops import FactorizedReduce, ReluConvNorm, SeparableConv
from jaxnas.spaces.chain import chain
from jaxnas.spaces.darts import darts
from jaxnas.spaces.multi_branch import multi_branch
from jaxnas.spaces.nasbench101 import nasbench101
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.tasks import Batch
from jaxnas.training import init_variables

N, CLASSES = 5, 3
KEYS = jax.random.split(jax.random.key(0), 3)
CELLS = nasbench201()
DARTS = darts()
CHAIN = chain((8, 8, 3), channels=(4,), kernels=(3,), units=(8,), trunk=2, head=1)
BRANCHES = multi_branch(blocks=1, branches=2)
SIZE = {"num_classes": CLASSES, "channels": 4, "cells": 1}
MIXED = CELLS.from_string(
    "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"
)
NORMAL = "('skip_connect', 0), ('skip_connect', 1)"
GENOTYPE = (
    f"Genotype(normal=[{', '.join([NORMAL] * 4)}], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 0), "
    "('max_pool_3x3', 2), ('sep_conv_5x5', 2), ('avg_pool_3x3', 1), "
    "('skip_connect', 3), ('dil_conv_3x3', 0)], reduce_concat=range(2, 6))"
)
# No path leads to the output; of the second no ReLU tells images apart either.
CUT = CELLS.from_string("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|")
EMPTY = jnp.zeros(6, jnp.int32)


@functools.cache
def batch():
    draw = np.random.default_rng(0)
    images = draw.normal(size=(N, 8, 8, 3)).astype(np.float32)
    return Batch(jnp.asarray(images), jnp.arange(N) % CLASSES)


@functools.cache
def of_cells():
    """Draws variables of the supernet, and scores those of an architecture."""
    how = {"single_path": True, "affine": True, "pool_norm": False}
    network = CELLS.network(**SIZE, **how)
    sees = {proxy.sees for proxy in PROXIES.values()}

    @jax.jit
    def draw(key, arch):
        image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        choice = one_hot(arch, CELLS.num_choices)
        return init_variables(network, key, image, choice, train=True)

    @jax.jit
    def score(variables, arch, batch):
        choice = one_hot(arch, CELLS.num_choices)
        seen = look(Untrained(network, variables, choice, batch), sees)
        return {name: proxy.score(seen[proxy.sees]) for name, proxy in PROXIES.items()}

    return draw, score


@functools.cache
def drawn():
    return of_cells()[0](KEYS[0], MIXED)


# The same by other means


def layers_of(tree):
    """The weights of the layers of a network, one array a layer."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = [key.key for key in path]
        if name[-1] == "kernel":
            by_edge = x.ndim in (3, 5) or "Depthwise" in name[-2]
            yield from x if by_edge else [x]


def codes_of(network, variables, images):
    """Which units are positive at each ReLU of a network of cells: bool[N, units]."""
    found = []

    def watch(call, args, kwargs, context):
        module = context.module
        y = call(*args, **kwargs)
        if isinstance(module, ReluConvNorm | SeparableConv | FactorizedReduce):
            times = module.edges // len(args[0])
            found.extend(x for x in args[0] for _ in range(times))
        elif module.name == "last_norm" or (
            module.name == "BatchNorm_0" and getattr(module.parent, "repeats", 1) == 2
        ):
            found.extend(y)  # a ReLU follows
        return y

    with nn.intercept_methods(watch):
        network.apply(variables, images, train=True, mutable=["batch_stats"])
    return jnp.concatenate([x.reshape(len(images), -1) > 0 for x in found], 1)


def gradients_of(network, variables, batch):
    """By parameters and images [1 + N]: of the loss, of each example's logits."""

    def run(params, images):
        given = {**variables, "params": params}
        return network.apply(given, images, train=True, mutable=["batch_stats"])[0]

    logits, pull = jax.vjp(run, variables["params"], batch.images)
    wrong = jax.nn.softmax(logits) - jax.nn.one_hot(batch.labels, CLASSES)
    each = jnp.eye(N)[:, :, None] * jnp.ones((1, 1, CLASSES))
    return lax.map(pull, jnp.concatenate([wrong[None] / N, each]))


def flow_of(network, variables, batch):
    """The gradient of the sum of logits for ones, and the codes of ReLUs."""
    plain, ones = network.clone(affine=None), jnp.ones((1, 8, 8, 3))

    def total(params):
        return plain.apply({"params": params}, ones).sum()

    positive = jax.tree.map(jnp.abs, variables["params"])
    return jax.grad(total)(positive), codes_of(network, variables, batch.images)


@functools.cache
def alone(see):
    """Sees the network of one architecture, in float64; its weights, what is seen."""
    network = CELLS.network(np.array(MIXED), **SIZE)
    run = jax.jit(partial(see, network))

    def reference(variables, batch):
        with jax.enable_x64(True):
            few = {k: CELLS.restrict(v, np.array(MIXED)) for k, v in variables.items()}
            cast = partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
            found = run(cast(few), Batch(cast(batch.images), batch.labels))
            return jax.device_get((list(layers_of(cast(few["params"]))), found))

    return reference


def of_gradients(weights, seen):
    """Proxies as their papers have them, by numpy."""
    by_params, by_images = seen
    layers = list(layers_of(jax.tree.map(lambda x: x[0], by_params)))
    jacobian = by_images[1:].sum(0).reshape(N, -1)
    v = np.linalg.eigvalsh(np.corrcoef(jacobian)) + 1e-5
    rows = [
        x[1:].reshape(N, -1)
        for path, x in jax.tree_util.tree_leaves_with_path(by_params)
        if not path[-1].key.endswith("bias")
    ]
    least, *_, most = np.linalg.eigvalsh(sum(x @ x.T for x in rows))
    pairs = zip(weights, layers, strict=True)
    return {
        "grad_norm": sum(np.linalg.norm(g) for g in layers),
        "snip": sum(np.abs(w * g).sum() for w, g in pairs),
        "jacob_cov": -np.sum(np.log(v) + 1 / v),
        "ntk": -most / least,
    }


def of_flow(weights, seen):
    """Likewise."""
    gradient, codes = seen
    pairs = zip(weights, layers_of(gradient), strict=True)
    agree = np.sum(codes[:, None] == codes[None], 2)
    return {
        "synflow": np.log(sum(np.abs(w * g).sum() for w, g in pairs)),
        "naswot": np.linalg.slogdet(agree)[1],
    }


def test_scores_are_those_of_the_network_alone():
    _, score = of_cells()
    found, expected = score(drawn(), MIXED, batch()), {}
    for see, scores in (gradients_of, of_gradients), (flow_of, of_flow):
        expected |= scores(*alone(see)(drawn(), batch()))
    assert set(found) == set(expected) == set(PROXIES)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-3, err_msg=name)


def test_networks_tell_what_their_relus_and_states_do():
    """Two strided cells of DARTS, whose inputs are two states."""
    size = {**SIZE, "cells": 2}
    network = DARTS.network(np.array(DARTS.from_string(GENOTYPE)), **size)

    @jax.jit
    def tell(batch):
        variables = network.init(KEYS[0], batch.images)
        how = {"train": True, "mutable": ["batch_stats", "agreement"]}
        _, told = network.apply(variables, batch.images, **how)
        kernels = jax.tree.map(jnp.abs, variables["params"])
        kernels["Dense_0"]["bias"] *= 0
        plain, given = network.clone(affine=None), ({"params": kernels}, batch.images)
        divided, scale = plain.apply(*given, mutable=["scale"])
        codes = codes_of(network, variables, batch.images)
        return told["agreement"], codes, plain.apply(*given), divided, scale

    agreement, codes, whole, divided, scale = jax.device_get(tell(batch()))
    agree = np.sum(codes[:, None] == codes[None], 2)
    np.testing.assert_array_equal(sum(jax.tree.leaves(agreement)), agree)
    factor = np.exp(sum(jax.tree.leaves(scale)))
    assert factor > 10
    np.testing.assert_allclose(divided * factor, whole, rtol=1e-4)


# What scores do not depend on


def scaled(variables, factor, names):
    """Multiplies kernels of modules whose names begin so."""

    def scale(path, x):
        is_there = path[0].key.startswith(names) and path[-1].key == "kernel"
        return factor * x if is_there else x

    params = jax.tree_util.tree_map_with_path(scale, variables["params"])
    return {**variables, "params": params}


def test_synflow_survives_what_overflows():
    _, score = of_cells()
    large = scaled(drawn(), 1e5, ("cell", "residual"))
    found = score(large, MIXED, batch())["synflow"]
    expected = of_flow(*alone(flow_of)(large, batch()))["synflow"]
    assert expected > np.log(np.finfo(np.float32).max)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_synflow_is_the_logarithm_of_what_the_classifier_multiplies():
    _, score = of_cells()
    once, twice = (
        score(scaled(drawn(), factor, "Dense"), MIXED, batch())["synflow"]
        for factor in (1, -2)
    )
    np.testing.assert_allclose(twice - once, np.log(2), rtol=1e-4)


def test_kernels_before_norms_can_be_of_any_size():
    _, score = of_cells()
    once, more = (
        score(scaled(drawn(), factor, ("cell", "stem")), MIXED, batch())
        for factor in (1, 4)
    )
    for name in ("naswot", "jacob_cov", "snip"):
        np.testing.assert_allclose(more[name], once[name], rtol=2e-3, err_msg=name)


def test_the_order_of_examples_does_not_matter():
    _, score = of_cells()
    once = score(drawn(), MIXED, batch())
    order = jnp.array([3, 0, 4, 1, 2])
    other = score(drawn(), MIXED, jax.tree.map(lambda x: x[order], batch()))
    for name in PROXIES:
        np.testing.assert_allclose(other[name], once[name], rtol=1e-3, err_msg=name)


# Networks whose output does not depend on their input


def test_a_network_without_a_path_scores_below_all_others():
    _, score = of_cells()
    none = -N * (np.log(1e-5) + 1e5)
    cut = {"grad_norm": 0, "snip": 0, "synflow": -np.inf, "ntk": -np.inf}
    for arch in (CUT, EMPTY):
        found = score(drawn(), arch, batch())
        for name, value in {**cut, "jacob_cov": none}.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert found["naswot"] == -np.inf


def test_naswot_counts_relus_that_lead_nowhere():
    found = of_cells()[1](drawn(), CUT, batch())["naswot"]
    stem = drawn()["params"]["stem"]["kernel"]
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    x = lax.conv_general_dilated(batch().images, stem, (1, 1), "SAME", **how)
    codes = np.array(x > x.mean((0, 1, 2), keepdims=True)).reshape(N, -1)
    agree = np.sum(codes[:, None] == codes[None], 2)
    # Later ReLUs see zeros: in residual blocks, in two cells, after the last norm.
    agree += (8 * 8 * 4 + 4 * 4 * 8) + (4 * 4 * 8 + 2 * 2 * 16)
    agree += 4 * 4 * 8 + 2 * 2 * 16 + 2 * 2 * 16
    np.testing.assert_allclose(found, np.linalg.slogdet(agree)[1], rtol=1e-5)


# Scores of what is known


def test_scores_of_known_matrices():
    rows = jnp.eye(8)[:4] - jnp.eye(8)[4:]  # uncorrelated, and zero in the mean
    uncorrelated = -4 * (np.log(1 + 1e-5) + 1 / (1 + 1e-5))
    np.testing.assert_allclose(proxies.jacob_cov(rows), uncorrelated, rtol=1e-6)
    alike = jnp.array([[1.0, -1.0], [3.0, -3.0]])  # eigenvalues 0 and 2
    v = np.array([0, 2]) + 1e-5
    expected = -np.sum(np.log(v) + 1 / v)
    np.testing.assert_allclose(proxies.jacob_cov(alike), expected, rtol=1e-3)
    np.testing.assert_allclose(proxies.ntk(jnp.diag(jnp.array([2.0, 6.0]))), -3)
    assert proxies.ntk(jnp.ones((2, 2))) < -1e6
    assert proxies.ntk(jnp.zeros((2, 2))) == -jnp.inf
    np.testing.assert_allclose(
        proxies.naswot(jnp.array([[2.0, 1], [1, 2]])), np.log(3), rtol=1e-6
    )


def test_layers_are_edges_and_slots():
    """What networks of cells, of blocks and of chains have: 8 layers of norm 2."""
    kernel, row = {"kernel": jnp.ones((2, 1, 4))}, jnp.ones((2, 4))
    tree = {
        "stem": {"kernel": jnp.ones((1, 1, 2, 2))},
        "cell0": {"state0_1_nor_conv_1x1": {"Pointwise_0": kernel}},
        "block0": {"cell": {"state0_nor_conv_1x1": kernel}, "projection": row / 2**0.5},
        "trunk_kernel": row,
        "trunk_scale": row,
        "trunk_bias": row,
        "Dense_0": {"bias": jnp.ones(4)},
    }
    np.testing.assert_allclose(proxies.grad_norm((tree, tree)), 2 * 8, rtol=1e-6)
    np.testing.assert_allclose(proxies.snip((tree, tree)), 4 * 8, rtol=1e-6)


# The evaluator


def half(images):
    return images / jnp.float32(128) - 1


@functools.cache
def data(examples=N + 4):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (examples, 8, 8, 3), np.uint8)
    return Batch(images, draw.integers(0, CLASSES, examples, np.int32))


def make(space=CELLS, names=("naswot",), **how):
    how = {"proxies": names, "fitness": names[0], "batch_size": N, **how}
    how = {"num_classes": CLASSES, **how}
    return zero_cost(space, data(), half, **how)


def test_many_architectures_are_scored_as_each_is_alone():
    names = ("parameters", "naswot", "flops")
    evaluator = make(names=names, fitness="naswot", **SIZE)
    archs = jnp.stack([MIXED, MIXED, CUT, MIXED])
    proposal = Proposal(archs, jnp.array([1, 200, 1, 0]), jnp.full(4, -1))
    state = evaluator.init(KEYS[1])
    run = jax.jit(evaluator.evaluate)
    after, feedback = run(KEYS[2], evaluator.data, state, proposal)
    np.testing.assert_array_equal(after, state)
    assert set(feedback.metrics) == set(names)
    draw, score = of_cells()
    few = Batch(half(data().images[state]), jnp.asarray(data().labels[state]))
    found = feedback.metrics["naswot"]
    for i, arch in enumerate(archs[:3]):
        variables = draw(jax.random.fold_in(KEYS[2], i), arch)
        expected = score(variables, arch, few)["naswot"]
        np.testing.assert_allclose(found[i], expected, rtol=1e-6)
    assert found[0] != found[1]  # weights are fresh
    parameters, flops = jax.vmap(lambda a: CELLS.sizes(a, (8, 8, 3), **SIZE))(archs)
    np.testing.assert_array_equal(feedback.metrics["parameters"][:3], parameters[:3])
    np.testing.assert_array_equal(feedback.metrics["flops"][:3], flops[:3])
    np.testing.assert_array_equal(feedback.fitness, found)
    np.testing.assert_array_equal(feedback.cost, np.zeros(4))
    np.testing.assert_array_equal(feedback.status, np.full(4, OK))
    for value in feedback.metrics.values():
        np.testing.assert_array_equal(np.isnan(value), [False] * 3 + [True])


def test_examples_are_drawn_once_and_without_return():
    state = make().init(KEYS[0])
    assert state.shape == (N,)
    assert len(set(state.tolist())) == N
    assert set(state.tolist()) != set(make().init(KEYS[1]).tolist())
    evaluator = zero_cost(CELLS, data(200), half, num_classes=CLASSES)
    assert evaluator.init(KEYS[0]).shape == (128,)  # of naswot's paper


def test_draws_have_the_fan_in_of_each_operation():
    group = drawn()["params"]["cell2"]
    for name, module, size in (
        ("nor_conv_3x3", group["state0_nor_conv_3x3"], 9),
        ("nor_conv_1x1", group["state0_nor_conv_1x1"]["Pointwise_0"], 1),
    ):
        bound = (16 * size) ** -0.5
        most = np.abs(module["kernel"]).reshape(3, -1).max(1)  # of each edge
        assert (most <= bound).all(), name
        assert (most > 0.95 * bound).all(), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": ("beauty",)},
        {"fitness": "snip"},
        {"batch_size": 0},
        {"batch_size": N + 5},
        {"space": CHAIN},
        {"space": CHAIN, "names": ("jacob_cov",)},
        {"space": BRANCHES, "names": ("synflow",)},
        {"space": nasbench101()},
    ],
)
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(InputError, match=r"^expected [^\n]*$"):
        make(**wrong)


def test_gradients_need_no_single_path():
    for space in (CHAIN, BRANCHES):
        assert make(space, ("grad_norm", "snip", "ntk")).init(KEYS[0]).shape == (N,)


def test_what_proxies_see_is_what_networks_tell():
    assert (proxies.AGREEMENT, proxies.SCALE) == (probes.AGREEMENT, probes.SCALE)
