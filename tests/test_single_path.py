"""Cells that compute one operation an edge: what the whole supernet does there."""

import functools
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge
from jaxnas.nn.ops import Conv
from jaxnas.nn.skeleton import DartsNetwork, _keep, restrict_cells
from jaxnas.spaces import SPACES

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(3, 7, 6, 2))  # of odd and even sides
SIZE = {"channels": 4, "num_classes": 3}
close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)

# A normal cell and two reductions, whose inputs are left by as many edges as their
# first node or fewer: groups of edges of both kinds, and pooling that edges share.
DARTS_OPS = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3")
PAIRS = ((0, 2), (1, 2), (0, 3), (2, 3))


class Case(NamedTuple):
    """A supernet: how it is built, and what is restricted to an architecture."""

    op_names: tuple[str, ...]
    decisions: int
    make: Any  # (**settings) -> supernet
    restrict: Any  # (params or statistics, arch) -> those of the architecture
    archs: list[list[int]]


def _darts_edges(arch=None):
    rows = [DARTS_OPS[1:]] * 4 if arch is None else [(DARTS_OPS[k],) for k in arch]
    edges = (Edge(*pair, ops) for pair, ops in zip(PAIRS, rows, strict=True))
    return tuple(edge for edge in edges if edge.ops != ("none",))


def _darts(**how):
    how = {"affine": False, "pool_norm": True, **how}
    edges = _darts_edges()
    return DartsNetwork(edges, edges, DARTS_OPS, cells=3, **SIZE, **how)


def _restrict_darts(params, arch):
    parts = arch[:4], arch[4:]
    chosen = [_darts_edges(part) for part in parts]
    return restrict_cells(params, lambda i, _: (_darts_edges(), chosen[i > 0]))


NASBENCH = SPACES["nasbench201"]()
NASBENCH_OPS = NASBENCH.cells.op_names


class Beginning(nn.Module):
    """The network of NAS-Bench-201 up to the end of its first cell."""

    single_path: bool = False

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        weights = jnp.ones((6, 5)) if weights is None else weights
        x, edges = Conv(4, 3)(images), NASBENCH.network().edges
        keep = _keep(self, drop_rate, (6, len(x)))
        how = {"affine": False, "single_path": self.single_path}
        cell = Cell(edges, NASBENCH_OPS, 1, 4, 4, **how, name="cell0")
        return cell([x], weights, keep, train)[-1]


CASES = {
    "nasbench201": Case(
        NASBENCH_OPS,
        6,
        Beginning,
        NASBENCH.restrict,
        [[3, 1, 2, 4, 0, 3], [4, 2, 4, 3, 4, 1], [0] * 6, [1] * 6, [3] * 6],
    ),
    "darts": Case(
        DARTS_OPS,
        8,
        _darts,
        _restrict_darts,
        [
            [3, 1, 2, 3, 1, 2, 1, 3],
            [1, 2, 1, 0, 2, 3, 2, 1],
            *([k] * 8 for k in range(4)),
        ],
    ),
}
SIZES = {"nasbench201": {"cells": 1}, "darts": {"cells": 1, "pool_norm": True}}
every_case = pytest.mark.parametrize("name", CASES)


def draw_variables(network):
    """Random values of everything that a network has, running statistics too."""
    shapes = jax.eval_shape(network.init, KEY, IMAGES.astype(np.float32))
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: generator.uniform(-0.5, 1, x.shape) ** 2, shapes)


def weights_of(case, arch, seed=0):
    """Weights of which those of an architecture are the largest: float64[D, K]."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 0.4, (case.decisions, len(case.op_names)))
    weights[np.arange(case.decisions), arch] += rng.uniform(0.5, 1, case.decisions)
    return weights


def is_chosen(case, arch):
    return np.arange(len(case.op_names))[None] == np.asarray(arch)[:, None]


def is_of(case, tree, arch):
    """Which numbers of a tree an architecture has, by the restriction of a space."""
    sizes = np.cumsum([0, *(x.size for x in jax.tree.leaves(tree))])
    leaves = [
        np.arange(start, start + x.size).reshape(x.shape)
        for start, x in zip(sizes, jax.tree.leaves(tree), strict=False)
    ]
    numbers = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    own = map(np.ravel, jax.tree.leaves(case.restrict(numbers, arch)))
    own = np.concatenate([*own, np.zeros(0, int)])
    return jax.tree.map(lambda x: np.isin(x, own), numbers)


class Outputs(NamedTuple):
    """What a network computes in training."""

    logits: Any
    batch_stats: Any
    grads: Any  # by parameters, images and weights


def outputs_of(network, variables, images, weights, drop_rate):
    rngs = {"drop_path": KEY}

    def loss(params, images, weights):
        given = {**variables, "params": params}
        logits, changed = network.apply(
            given, images, weights, drop_rate, True, mutable="batch_stats", rngs=rngs
        )
        return jnp.sum(jnp.cos(logits)), (logits, changed["batch_stats"])

    gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
    grads, (logits, stats) = gradient(variables["params"], images, weights)
    return Outputs(logits, stats, grads)


@functools.cache
def compiled(name, **how):
    run = partial(outputs_of, CASES[name].make(**how))
    return jax.jit(run)


def compute(name, weights, drop_rate=0.0, **how):
    """In float64, with the same variables for every network."""
    variables = draw_variables(CASES[name].make())
    with jax.enable_x64(True):
        found = compiled(name, **how)(variables, IMAGES, weights, drop_rate)
    return jax.tree.map(np.asarray, found)


# The whole supernet, and the networks by themselves


@pytest.mark.parametrize(
    "name", ["nasbench201", pytest.param("darts", marks=pytest.mark.slow)]
)
def test_single_path_is_the_whole_supernet_at_one_hot_weights(name):
    case = CASES[name]
    old = draw_variables(case.make())["batch_stats"]
    for seed, arch in enumerate(case.archs):
        weights, chosen = weights_of(case, arch, seed), is_chosen(case, arch)
        rate = 0.4 * (seed % 2)
        found = compute(name, weights, rate, single_path=True)
        whole = compute(name, weights * chosen, rate)
        by_params, by_images, by_weights = whole.grads
        stats = jax.tree.map(np.where, is_of(case, old, arch), whole.batch_stats, old)
        grads = by_params, by_images, by_weights * chosen
        jax.tree.map(close, found, Outputs(whole.logits, stats, grads))


@every_case
def test_single_path_gives_nothing_to_what_is_not_chosen(name):
    """Not even a rounding error: gradients are zeros, statistics are kept."""
    case = CASES[name]
    old = draw_variables(case.make())["batch_stats"]
    arch = case.archs[0]
    found = compute(name, weights_of(case, arch), single_path=True)
    by_params, _, by_weights = found.grads
    zeros = jax.tree.map(np.zeros_like, by_params)
    for new, before in ((by_params, zeros), (found.batch_stats, old)):
        own = is_of(case, new, arch)
        others = [
            jax.tree.map(lambda x, own: x[~own], tree, own) for tree in (new, before)
        ]
        jax.tree.map(np.testing.assert_array_equal, *others)
        assert sum(x.size for x in jax.tree.leaves(others)) > 0
    np.testing.assert_array_equal(by_weights[~is_chosen(case, arch)], 0)


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_single_path_has_the_parameters_of_the_whole_supernet(name):
    space = SPACES[name]()
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    trees = [
        jax.eval_shape(space.network(**how, **SIZE, cells=3).init, KEY, image)
        for how in ({}, {"single_path": True})
    ]
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", SIZES)
def test_single_path_is_the_network_of_the_architecture(name):
    """All operations of a space, in training."""
    space, size = SPACES[name](), {"affine": False, **SIZE, **SIZES[name]}
    network = space.network(single_path=True, **size)
    variables = draw_variables(network)

    def outputs(network, variables, weights=None):
        apply = partial(network.apply, variables, IMAGES, weights)
        return apply(train=True, mutable="batch_stats")

    run = jax.jit(partial(outputs, network))
    arch = np.array(space.sample(KEY))
    alone = jax.jit(partial(outputs, space.network(arch, **size)))
    with jax.enable_x64(True):
        few = {part: space.restrict(tree, arch) for part, tree in variables.items()}
        logits, changed = run(variables, one_hot(arch, space.num_choices))
        changed = {"batch_stats": space.restrict(changed["batch_stats"], arch)}
        jax.tree.map(close, (logits, changed), alone(few))


# One cell: derivatives, batches of architectures, memory


def cell_settings(stride):
    """A cell of ordinary convolutions, or one that halves its inputs."""
    common = {"num_states": 4, "channels": 4, "stride": stride, "affine": stride == 1}
    if stride == 2:
        edges = {"edges": _darts_edges(), "op_names": DARTS_OPS}
        return {**edges, **common, "num_inputs": 2, "pool_norm": True}
    op_names = NASBENCH_OPS
    pairs = (0, 1), (0, 2), (1, 2), (1, 3)
    edges = tuple(Edge(*pair, op_names[1:]) for pair in pairs)
    return {"edges": edges, "op_names": op_names, **common, "num_inputs": 1}


class Problem(NamedTuple):
    """A cell, and values of all that its states depend on."""

    cell: Cell
    others: Any  # running statistics
    params: Any
    inputs: list
    weights: np.ndarray  # [E, K]

    def loss(self, params, inputs, weights):
        variables = {**self.others, "params": params}
        given = inputs, weights, None, True
        states, _ = self.cell.apply(variables, *given, mutable="batch_stats")
        return jnp.sum(jnp.cos(jnp.stack(states[self.cell.num_inputs :])))


def problem_of(stride, image=(2, 5, 6, 4), **how):
    cell, rng = Cell(**cell_settings(stride), **how), np.random.default_rng(3)
    inputs = list(rng.normal(size=(cell.num_inputs, *image)))
    weights = rng.uniform(size=(len(cell.edges), len(cell.op_names)))
    weights[np.arange(len(weights)), 1 + np.arange(len(weights)) % 3] += 1
    shapes = jax.eval_shape(partial(cell.init, train=True), KEY, inputs, weights, None)
    others = jax.tree.map(lambda x: rng.normal(size=x.shape) ** 2, shapes)
    return Problem(cell, others, others.pop("params"), inputs, weights)


@pytest.mark.parametrize("stride", [1, 2])
def test_single_path_has_second_derivatives_forwards(stride):
    """Those of the gradient along a direction are its float64 finite differences."""
    problem = problem_of(stride, single_path=True)
    gradient = jax.grad(problem.loss, (0, 1, 2))
    point, rng = problem[2:], np.random.default_rng(4)
    along = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
    with jax.enable_x64(True):
        push = jax.jit(partial(jax.jvp, gradient))

        def gradient_at(size):
            moved = jax.tree.map(lambda x, d: x + size * d, point, along)
            return push(moved, along)[0]

        _, found = push(point, along)
        ahead, behind = gradient_at(1e-6), gradient_at(-1e-6)
        expected = jax.tree.map(lambda a, b: (a - b) / 2e-6, ahead, behind)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8 * scale)
    jax.tree.map(compare, found, expected)
    assert scale > 1


def test_single_paths_of_a_batch_are_those_one_by_one():
    """And where the gradient computes the cell again."""
    problem = problem_of(2, single_path=True)
    again = nn.remat(Cell, static_argnums=(4,))(**cell_settings(2), single_path=True)
    params, inputs, weights = problem[2:]
    batch = np.stack([weights, weights[::-1], np.roll(weights, 1, 1)])
    with jax.enable_x64(True):
        together, alone = (
            jax.jit(form)
            for form in (
                jax.vmap(jax.grad(problem.loss, (0, 1, 2)), (None, None, 0)),
                jax.grad(problem._replace(cell=again).loss, (0, 1, 2)),
            )
        )
        found = together(params, inputs, batch)
        for i, row in enumerate(batch):
            one = jax.tree.map(lambda x: x[i], found)  # noqa: B023
            jax.tree.map(close, one, alone(params, inputs, row))


@pytest.mark.parametrize("stride", [1, 2])
def test_single_path_keeps_states_alone_for_its_gradient(stride):
    """Numbers that wait for the backward pass; else all that was computed does."""
    kept = []
    for single_path in (False, True):
        problem = problem_of(stride, (8, 16, 16, 4), single_path=single_path)
        given = jax.tree.map(np.float32, problem[2:])
        _, pull = jax.eval_shape(partial(jax.vjp, problem.loss), *given)
        kept.append(sum(x.size for x in jax.tree.leaves(pull)))
    assert kept[1] < kept[0] / 4


# What is refused


@pytest.mark.parametrize(
    ("how", "edges"),
    [
        ({"partial": 2}, _darts_edges()),
        ({}, _darts_edges([1] * 4)),
        ({}, (*_darts_edges()[:-1], Edge(2, 3, DARTS_OPS[2:]))),
    ],
)
def test_single_path_in_part_or_of_fewer_operations_is_refused(how, edges):
    how = {**cell_settings(2), **how, "edges": edges}
    cell = Cell(**how, single_path=True)
    given = [jnp.ones((1, 4, 4, 4))] * 2, jnp.ones((4, 4)), None, True
    with pytest.raises(InputError, match=r"expected a single path .* got .* leave out"):
        cell.init(KEY, *given)
