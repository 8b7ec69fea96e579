"""The DARTS space, against the paper, its published genotypes and networkx."""

import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.plots import draw_cells
from jaxnas.spaces import SPACES, genotype
from jaxnas.spaces.genotype import DARTS_V1, DARTS_V2, OPS, from_string, to_string

SPACE = SPACES["darts"]()
EDGES = [(state, node) for node in range(4) for state in range(node + 2)]
sample = jax.jit(jax.vmap(SPACE.sample))
discretize = jax.jit(SPACE.discretize)
canonical = jax.jit(jax.vmap(SPACE.canonical))


def count_parameters(network):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return sum(x.size for x in jax.tree.leaves(shapes))


def draw(seed, number):
    return np.asarray(sample(jax.random.split(jax.random.key(seed), number)))


# Sizes


def test_space_has_two_cells_of_14_edges_with_8_choices():
    assert SPACE.num_choices == (8,) * 28
    assert OPS[0] == "none"
    assert SPACE.neighbours(from_string(DARTS_V1))[0].shape == (120, 28)


def test_network_of_darts_v2_has_the_parameters_of_the_paper():
    network = SPACE.network(from_string(DARTS_V2), channels=36, cells=20)
    assert count_parameters(network) == 3_349_342


def test_supernet_has_the_parameters_of_the_paper():
    assert count_parameters(SPACE.network(channels=16, cells=8)) == 1_930_618


def test_network_takes_sizes_and_settings_that_override():
    arch = from_string(DARTS_V1)
    own, full = SPACE.network(arch), SPACE.network()
    assert (own.affine, own.pool_norm) == (True, False)
    assert (full.affine, full.pool_norm) == (False, True)
    other = SPACE.network(arch, affine=False, pool_norm=True, num_classes=7, remat=True)
    assert (other.affine, other.pool_norm) == (False, True)
    assert (other.num_classes, other.remat) == (7, True)
    assert other.normal == own.normal


def test_network_has_only_the_chosen_operations():
    network = SPACE.network(from_string(DARTS_V2))
    chosen = [(edge.target, edge.source, edge.ops) for edge in network.normal]
    assert chosen == [
        (2, 0, ("sep_conv_3x3",)),
        (2, 1, ("sep_conv_3x3",)),
        (3, 0, ("sep_conv_3x3",)),
        (3, 1, ("sep_conv_3x3",)),
        (4, 0, ("skip_connect",)),
        (4, 1, ("sep_conv_3x3",)),
        (5, 0, ("skip_connect",)),
        (5, 2, ("dil_conv_3x3",)),
    ]


# Sampling


def edges_of_node(archs, cell, node):
    first = EDGES.index((0, node))
    return archs[:, 14 * cell + first : 14 * cell + first + node + 2]


def test_sample_is_uniform_over_valid_architectures():
    archs = draw(0, 4096)
    for cell, node in itertools.product(range(2), range(4)):
        ops = edges_of_node(archs, cell, node)
        used = ops > 0
        assert (used.sum(1) == 2).all()
        _, counts = np.unique(used, axis=0, return_counts=True)
        assert len(counts) == (node + 2) * (node + 1) // 2
        # No more than one in 10^6 runs would fail, and the seed is fixed.
        assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-6
        pairs = ops[used].reshape(-1, 2)
        _, counts = np.unique(pairs, axis=0, return_counts=True)
        assert len(counts) == 49
        assert stats.chisquare(counts).pvalue > 1e-6


def test_crossover_takes_whole_nodes():
    mothers, fathers = draw(1, 64), draw(2, 64)
    keys = jax.random.split(jax.random.key(0), 64)
    children = np.asarray(jax.jit(jax.vmap(SPACE.crossover))(keys, mothers, fathers))
    for cell, node in itertools.product(range(2), range(4)):
        child, mother, father = (
            edges_of_node(archs, cell, node) for archs in (children, mothers, fathers)
        )
        is_mothers = (child == mother).all(1)
        assert (is_mothers | (child == father).all(1)).all()
        assert 8 < is_mothers.sum() < 56


def test_neighbours_are_all_architectures_one_edit_away():
    arch = draw(3, 1)[0]
    expected = set()
    for i in np.flatnonzero(arch):
        for op in set(range(1, 8)) - {arch[i]}:
            expected.add((*arch[:i], op, *arch[i + 1 :]))
        for free in np.flatnonzero(arch == 0):
            same_cell = i // 14 == free // 14
            if same_cell and EDGES[i % 14][1] == EDGES[free % 14][1]:
                moved = arch.copy()
                moved[free], moved[i] = moved[i], 0
                expected.add(tuple(moved))
    found, exist = SPACE.neighbours(arch)
    assert exist.all()
    assert {tuple(other) for other in np.asarray(found).tolist()} == expected


# Discretization


def discretize_slowly(weights):
    """The paper's rule, node by node, as `Genotype`'s lists."""
    cells = []
    for cell in np.split(weights, 2):
        edges = []
        for node in range(4):
            entering = [
                cell[EDGES.index((state, node))][1:] for state in range(node + 2)
            ]
            ranked = sorted(range(node + 2), key=lambda state: -max(entering[state]))
            edges += [(OPS[1 + entering[s].argmax()], s) for s in sorted(ranked[:2])]
        cells.append(edges)
    return (
        f"Genotype(normal={cells[0]}, normal_concat=range(2, 6), "
        f"reduce={cells[1]}, reduce_concat=range(2, 6))"
    )


fractions = st.floats(0, 1, width=32, allow_subnormal=False)
few_values = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4])


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, (28, 8), elements=few_values | fractions))
def test_discretize_follows_the_rule_of_the_paper(weights):
    assert to_string(discretize(weights)) == discretize_slowly(weights)


def test_discretize_ignores_none():
    weights = np.random.default_rng(0).uniform(size=(28, 8)).astype(np.float32)
    arch = discretize(weights)
    weights[:, 0] = 100.0
    np.testing.assert_array_equal(discretize(weights), arch)


# Isomorphism


def graph(cell):
    """A cell of int[14] as a graph whose inputs are told apart."""
    made = nx.DiGraph()
    made.add_nodes_from((state, {"kind": min(state, 2)}) for state in range(6))
    for (state, node), op in zip(EDGES, cell, strict=True):
        if op:
            made.add_edge(state, node + 2, op=op)
    return made


def are_isomorphic(one, other):
    def match(a, b):
        return a == b

    return nx.is_isomorphic(graph(one), graph(other), match, match)


def reorder(cell, order):
    """The same cell with its nodes renamed, or None where an edge would lead back."""
    new = [0, 1, *(2 + i for i in order)]
    renamed = np.zeros(14, int)
    for (state, node), op in zip(EDGES, cell, strict=True):
        edge = (new[state], new[node + 2] - 2)
        if op and edge not in EDGES:
            return None
        if op:
            renamed[EDGES.index(edge)] = op
    return renamed


def test_canonical_is_equal_for_every_order_of_the_nodes():
    archs, reordered = [], []
    for arch in draw(4, 64):
        for order in itertools.permutations(range(4)):
            cell = reorder(arch[:14], order)
            if cell is not None:
                archs.append(arch)
                reordered.append(np.concatenate([cell, arch[14:]]))
    assert len(archs) > 3 * 64
    np.testing.assert_array_equal(
        canonical(np.array(archs)), canonical(np.array(reordered))
    )


def test_canonical_is_equal_only_for_isomorphic_cells():
    # Cells of one operation, so that many are alike.
    archs = np.minimum(draw(5, 40), 1)
    keys = np.asarray(canonical(archs))
    equal = 0
    for i, j in itertools.combinations(range(40), 2):
        alike = are_isomorphic(archs[i, :14], archs[j, :14])
        assert alike == (keys[i, 0] == keys[j, 0])
        equal += alike
    assert equal > 5
    for arch, near in zip(draw(6, 2), draw(7, 2), strict=True):
        others = np.asarray(SPACE.neighbours(arch)[0])
        words = np.asarray(canonical(np.concatenate([arch[None], others, near[None]])))
        for other, word in zip([*others, near], words[1:], strict=True):
            for cell in range(2):
                pair = (x[14 * cell : 14 * cell + 14] for x in (arch, other))
                assert are_isomorphic(*pair) == (word[cell] == words[0, cell])


# Genotypes

V2_AS_WRITTEN = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 1), "
    "('skip_connect', 2), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('skip_connect', 2)], reduce_concat=range(2, 6))"
)


def test_from_string_reads_published_genotypes():
    names = [[OPS[op] for op in from_string(text)] for text in (DARTS_V1, DARTS_V2)]
    places = [(cell, *edge) for cell in "nr" for edge in EDGES]
    v1, v2 = (dict(zip(places, ops, strict=True)) for ops in names)
    assert v1["n", 1, 0] == v1["n", 0, 0] == "sep_conv_3x3"
    assert v1["n", 2, 3] == v2["n", 0, 3] == v2["r", 2, 3] == "skip_connect"
    assert v1["r", 0, 3] == "avg_pool_3x3"
    assert v2["n", 2, 3] == "dil_conv_3x3"
    assert names[0].count("none") == names[1].count("none") == 12


def test_to_string_writes_what_the_paper_prints():
    assert to_string(from_string(DARTS_V2)) == V2_AS_WRITTEN


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("'dil_conv_3x3', 2", "'dil_conv_7x7', 2", "dil_conv_7x7"),
        ("'dil_conv_3x3', 2", "'none', 2", "none"),
        ("'dil_conv_3x3', 2", "['dil_conv_3x3'], 2", "operation of"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', 5", "from 0 to 4"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', -1", "from 0 to 4"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', True", "from 0 to 4"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', 2.0", "from 0 to 4"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', 0", "0 twice"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3'", "(operation, state)"),
        ("('dil_conv_3x3', 2)", "7", "(operation, state)"),
        (", ('dil_conv_3x3', 2)", "", "8 edges in normal"),
        ("reduce=[", "reduce=[('skip_connect', 0), ", "8 edges in reduce"),
        ("normal=[", "normal=5, more=[", "name each of"),
        ("normal_concat=range(2, 6)", "normal_concat=range(3, 6)", "normal_concat"),
        ("normal_concat=range(2, 6)", "normal_concat=[2, 3, 4]", "normal_concat"),
        ("normal_concat=range(2, 6)", "normal_concat=range('2')", "nothing but"),
        ("normal_concat=range(2, 6)", "normal_concat=range(2, 6, 0)", "nothing but"),
        ("normal_concat=range(2, 6), ", "", "name each of"),
        ("normal_concat=range(2, 6)", "**{}", "name each of"),
        ("Genotype(", "Genotyp(", "Genotype"),
        ("Genotype(", "Genotype(1, ", "Genotype"),
        ("Genotype(", "(", "check brackets"),
        ("'dil_conv_3x3', 2", "'dil_conv_3x3', print('run')", "nothing but"),
        ("'dil_conv_3x3'", "dil_conv_3x3", "nothing but"),
        (V2_AS_WRITTEN, "", "Genotype"),
        (V2_AS_WRITTEN, "(" * 10_000, "check brackets"),
        (V2_AS_WRITTEN, "Genotype\0", "check brackets"),
        (V2_AS_WRITTEN, "-" * 5_000 + "1", "Genotype"),
    ],
)
def test_from_string_says_what_is_wrong_and_runs_nothing(old, new, says, capsys):
    assert old in V2_AS_WRITTEN
    with pytest.raises(InputError) as error:
        from_string(V2_AS_WRITTEN.replace(old, new, 1))
    assert says in str(error.value)
    assert "but got" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert capsys.readouterr().out == ""


# Graphs


def test_cell_edges_can_be_drawn_and_are_the_genotype():
    cells = genotype.cell_edges(from_string(DARTS_V2))
    assert list(cells) == ["normal", "reduce"]
    assert ("0", "3", "dil_conv_3x3") in cells["normal"]
    assert ("c_{k-2}", "2", "skip_connect") in cells["normal"]
    assert ("c_{k-1}", "3", "max_pool_3x3") in cells["reduce"]
    for edges in cells.values():
        assert len(edges) == 12
        assert edges[8:] == [(node, "c_{k}", "") for node in "0123"]
    draw_cells(cells, inputs=genotype.INPUTS, output=genotype.OUTPUT, op_names=OPS)


# Gradients


def test_gradient_of_the_supernet_at_one_hot_weights_is_the_networks():
    # One cell, which is a reduction: the gradient compiles slowly.
    size = {"channels": 2, "cells": 1, "num_classes": 3}
    size |= {"affine": False, "pool_norm": True}
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    arch = draw(8, 1)[0]

    def make_gradient(network):
        def loss(params, others, weights):
            variables = {"params": params, **others}
            logits, _ = network.apply(
                variables, images, weights, train=True, mutable="batch_stats"
            )
            return jnp.square(logits).sum()

        return jax.jit(jax.grad(loss))

    full = SPACE.network(**size)
    shapes = jax.eval_shape(full.init, jax.random.key(0), images)
    generator = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: generator.normal(size=x.shape), shapes)
    params, others = variables["params"], {"batch_stats": variables["batch_stats"]}
    few = {"batch_stats": SPACE.restrict(others["batch_stats"], arch)}
    with jax.enable_x64(True):
        weights = one_hot(arch, SPACE.num_choices)
        expected = SPACE.restrict(make_gradient(full)(params, others, weights), arch)
        network = SPACE.network(arch, **size)
        found = make_gradient(network)(SPACE.restrict(params, arch), few, None)
        norms = [float(jnp.abs(x).max()) for x in jax.tree.leaves(found)]
        assert min(norms) > 0
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10),
            found,
            expected,
        )
