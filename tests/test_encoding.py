"""Encodings against numpy, and against ways found one by one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas.base import Graph, InputError
from jaxnas.encoding import (
    MOST_PATHS,
    adjacency,
    encoder,
    graphs_of,
    mixed_radix,
    one_hot,
    paths,
    strongest,
)
from jaxnas.spaces import SPACES
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench101 import NUM_CHOICES as CHOICES_101
from jaxnas.spaces.nasbench101 import OPS as OPS_101
from jaxnas.spaces.nasbench201 import OPS as OPS_201

NUM_CHOICES = (3, 2, 4)
ALL = np.stack(np.unravel_index(np.arange(24), NUM_CHOICES), 1)

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=12)


def test_one_hot_has_a_one_at_each_choice():
    expected = [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    encoded = one_hot(jnp.array([2, 0, 3]), NUM_CHOICES)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, expected)


def test_one_hot_masks_choices_that_a_decision_does_not_have():
    encoded = one_hot(jnp.array([3, 2, 3]), NUM_CHOICES)
    np.testing.assert_array_equal(encoded.sum(1), [0, 0, 1])


def test_strongest_inverts_one_hot():
    encoded = jax.vmap(lambda arch: one_hot(arch, NUM_CHOICES))(ALL)
    decoded = jax.vmap(lambda weights: strongest(weights, NUM_CHOICES))(encoded)
    assert decoded.dtype == jnp.int32
    np.testing.assert_array_equal(decoded, ALL)


def test_strongest_ignores_masked_choices_and_takes_the_first_of_equals():
    weights = jnp.array([[0.0, 1, 1, 9], [-2, -1, 9, 9], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(strongest(weights, NUM_CHOICES), [1, 1, 0])


def test_mixed_radix_numbers_architectures_in_order():
    keys = jax.vmap(lambda arch: mixed_radix(arch, NUM_CHOICES))(ALL)
    assert keys.dtype == jnp.uint32
    np.testing.assert_array_equal(keys[:, 0], np.arange(24))


@settings(deadline=None, max_examples=30)
@given(sizes, st.data())
def test_mixed_radix_tells_any_two_architectures_apart(num_choices, data):
    archs = st.tuples(*(st.integers(0, choices - 1) for choices in num_choices))
    first, second = data.draw(archs), data.draw(archs)
    keys = [
        tuple(np.asarray(mixed_radix(np.array(arch), num_choices)).tolist())
        for arch in (first, second)
    ]
    assert (keys[0] < keys[1]) == (first < second)
    assert (keys[0] == keys[1]) == (first == second)


def test_mixed_radix_fills_a_word_before_it_takes_another():
    assert mixed_radix(jnp.zeros(32, jnp.int32), (2,) * 32).shape == (1,)
    assert mixed_radix(jnp.zeros(33, jnp.int32), (2,) * 33).shape == (2,)
    largest = mixed_radix(jnp.ones(32, jnp.int32), (2,) * 32)
    assert int(largest[0]) == 2**32 - 1


@functools.cache
def compiled(space_name, encoding):
    """Encodes a batch."""
    return jax.jit(jax.vmap(encoder(SPACES[space_name](), encoding)))


@functools.cache
def graphs_in(space_name):
    """Of a batch."""
    return jax.jit(jax.vmap(SPACES[space_name]().graphs.of))


def drawn(space, count=20):
    return jax.vmap(space.sample)(jax.random.split(jax.random.key(0), count))


def place_of(sequence, num_ops):
    """Where a sequence of operations is: shorter ones first, then as numbers."""
    before = sum(num_ops**length for length in range(len(sequence)))
    return before + functools.reduce(lambda n, op: n * num_ops + op, sequence, 0)


def features_of(sequences, num_ops, longest):
    features = np.zeros(sum(num_ops**length for length in range(longest + 1)))
    features[[place_of(sequence, num_ops) for sequence in sequences]] = 1
    return features


def test_paths_of_nasbench201_are_its_four():
    """From node 0 to 3: directly, by node 1, by node 2, by both."""
    space = SPACES["nasbench201"]()
    archs = drawn(space)
    found = compiled("nasbench201", "path")(archs)
    assert found.shape == (20, 1 + 4 + 16 + 64)
    none = OPS_201.index("none")
    for row, (e01, e02, e12, e03, e13, e23) in zip(found, archs.tolist(), strict=True):
        ways = (e03,), (e01, e13), (e02, e23), (e01, e12, e23)
        there = [[op - 1 for op in way] for way in ways if none not in way]
        np.testing.assert_array_equal(row, features_of(there, 4, 3))


def ways_of(edges, vertex, target):
    """All vertices between, of every way."""
    if vertex == target:
        return [()]
    return [
        (other, *way) if other != target else way
        for other in np.flatnonzero(edges[vertex])
        for way in ways_of(edges, other, target)
    ]


def test_paths_of_nasbench101_are_those_found_one_by_one():
    space = SPACES["nasbench101"]()
    archs = drawn(space)
    found = compiled("nasbench101", "path")(archs)
    assert found.shape == (20, sum(3**length for length in range(6)))
    for row, arch in zip(found, np.asarray(archs), strict=True):
        edges = np.zeros((7, 7))
        edges[np.triu_indices(7, 1)] = arch[:21]
        ways = ways_of(edges, 0, 6)
        there = {tuple(arch[20 + v] for v in way) for way in ways}
        np.testing.assert_array_equal(row, features_of(there, len(OPS_101), 5))


@st.composite
def modules(draw):
    """Arrays of nasbench101, valid or not."""
    return np.array([draw(st.integers(0, k - 1)) for k in CHOICES_101], np.int32)


@functools.cache
def of_101():
    space = SPACES["nasbench101"]()
    encodings = [encoder(space, name) for name in ("path", "adjacency")]
    return jax.jit(lambda arch: (space.canonical(arch), *(e(arch) for e in encodings)))


@settings(deadline=None, max_examples=30)
@given(modules(), st.permutations(range(1, 6)), st.data())
def test_isomorphic_modules_have_equal_path_encodings(arch, order, data):
    """Vertices in another order; what is pruned has any operation."""
    edges = np.zeros((7, 7), np.int32)
    edges[np.triu_indices(7, 1)] = arch[:21]
    places = np.array([0, *order, 6])
    moved = np.zeros_like(edges)
    moved[places[:, None], places[None]] = edges
    if np.tril(moved).any():
        # Not all lead forwards then; the same vertices, but one that leads nowhere.
        moved, places = edges, np.arange(7)
        lost = data.draw(st.integers(1, 5))
        edges[lost], moved[lost] = 0, 0
        arch[:21] = edges[np.triu_indices(7, 1)]
        other = arch.copy()
        other[20 + lost] = (arch[20 + lost] + 1) % 3
    else:
        other = np.zeros_like(arch)
        other[:21] = moved[np.triu_indices(7, 1)]
        other[20 + places[1:6]] = arch[21:]
    (key, path, _), (other_key, other_path, _) = of_101()(arch), of_101()(other)
    np.testing.assert_array_equal(key, other_key)
    np.testing.assert_array_equal(path, other_path)


def test_pruned_modules_have_equal_adjacencies():
    arch = np.zeros(26, np.int32)
    arch[[0, 10]] = 1  # 0-1, 1-6
    other = arch.copy()
    other[[1, 23]] = 1  # 0-2, which leads nowhere, and what 3 does
    for one, two in zip(of_101()(arch), of_101()(other), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "name", [name for name, make in SPACES.items() if make().graphs is not None]
)
def test_encodings_of_graphs_are_zeros_and_ones(name):
    space = SPACES[name]()
    archs = drawn(space)
    graph = graphs_in(name)(archs)
    cells, vertices, num_ops = graph.ops.shape[1:]
    assert not np.tril(np.asarray(graph.edges)).any()
    assert not graph.ops[:, :, [0, -1]].any()
    assert graph.ops.sum(3).max() <= 1
    path = compiled(name, "path")(archs)
    assert path.dtype == jnp.float32
    sums = np.cumsum([num_ops**n for n in range(space.graphs.longest + 1)])
    assert path.shape[1] == cells * max(n for n in sums if n <= MOST_PATHS)
    edges = compiled(name, "adjacency")(archs)
    num_pairs = vertices * (vertices - 1) // 2
    assert edges.shape[1] == cells * (num_pairs + (vertices - 2) * num_ops)
    for encoded in (path, edges):
        assert set(np.unique(encoded)) <= {0.0, 1.0}
        assert encoded.any(1).all()
    # Most that differ have different edges or operations.
    different = (np.asarray(edges)[:-1] != np.asarray(edges)[1:]).any(1)
    assert different.sum() >= 18


def test_paths_of_darts_are_those_found_one_by_one():
    space = SPACES["darts"]()
    archs = drawn(space)
    graph = graphs_in("darts")(archs)
    found = compiled("darts", "path")(archs).reshape(20, 2, -1)
    num_ops, longest = graph.ops.shape[-1], 3
    assert found.shape[2] == sum(num_ops**n for n in range(longest + 1))
    for i, cell in itertools.product(range(5), range(2)):
        ops, edges = np.asarray(graph.ops[i, cell]), np.asarray(graph.edges[i, cell])
        ways = ways_of(edges, 0, len(edges) - 1)
        there = {tuple(ops[list(way)].argmax(1)) for way in ways if len(way) <= longest}
        np.testing.assert_array_equal(found[i, cell], features_of(there, num_ops, 3))


def test_paths_and_adjacency_of_a_diamond():
    edges = np.zeros((1, 4, 4), np.float32)
    for source, target in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)):
        edges[0, source, target] = 1
    ops = np.zeros((1, 4, 2), np.float32)
    ops[0, 1, 0] = ops[0, 2, 1] = 1
    graph = Graph(jnp.array(ops), jnp.array(edges))
    # none; a, b; aa, ab, ba, bb
    np.testing.assert_array_equal(paths(graph, 2), [0, 1, 1, 0, 1, 0, 0])
    # 0-1, 0-2, 0-3, 1-2, 1-3, 2-3; what 1 does, what 2 does
    np.testing.assert_array_equal(adjacency(graph), [1, 1, 0, 1, 1, 1, 1, 0, 0, 1])


def test_equal_ways_are_one_path():
    """Each of two vertices does the same."""
    edges = np.zeros((1, 4, 4), np.float32)
    edges[0, 0, 1:3] = edges[0, 1:3, 3] = 1
    ops = np.zeros((1, 4, 1), np.float32)
    ops[0, 1:3] = 1
    graph = Graph(jnp.array(ops), jnp.array(edges))
    np.testing.assert_array_equal(paths(graph, 2), [0, 1, 0])


@pytest.mark.parametrize("space", [SPACES["chain"](), categorical(NUM_CHOICES)])
def test_graph_of_a_space_without_any_is_a_line(space):
    assert space.graphs is None
    graphs = graphs_of(space)
    arch = space.sample(jax.random.key(0))
    graph = graphs.of(arch)
    num = len(space.num_choices)
    assert graphs.longest == num
    np.testing.assert_array_equal(graph.ops[0, 1:-1], one_hot(arch, space.num_choices))
    assert not graph.ops[0, [0, -1]].any()
    np.testing.assert_array_equal(graph.edges[0], np.eye(num + 2, k=1))


def test_graphs_of_a_space_that_has_some_are_these():
    space = SPACES["nasbench101"]()
    arch = space.sample(jax.random.key(0))
    found, expected = (graphs.of(arch) for graphs in (graphs_of(space), space.graphs))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert graphs_of(space)[1:] == space.graphs[1:]


def test_encoder_takes_paths_where_there_are_graphs():
    arch = jnp.array([1, 2, 3, 4, 0, 1])
    space = SPACES["nasbench201"]()
    expected = encoder(space, "path")(arch)
    np.testing.assert_array_equal(encoder(space)(arch), expected)
    space = categorical(NUM_CHOICES)
    arch = jnp.array([2, 1, 3])
    expected = one_hot(arch, NUM_CHOICES).ravel()
    np.testing.assert_array_equal(encoder(space)(arch), expected)
    np.testing.assert_array_equal(encoder(space)(one_hot(arch, NUM_CHOICES)), expected)


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("tree", "one_hot, adjacency, path, latent, but got tree: choose one"),
        ("path", "graphs for the path encoding, but got categorical: choose one_hot"),
        ("adjacency", "graphs for the adjacency encoding, but got categorical"),
    ],
)
def test_encoder_refuses_what_it_cannot_do(encoding, expected):
    with pytest.raises(InputError, match=expected):
        encoder(categorical(NUM_CHOICES), encoding)


@pytest.mark.parametrize("encoding", ["one_hot", "adjacency", "path"])
def test_encoder_of_architectures_refuses_features(encoding):
    encode = encoder(SPACES["nasbench201"](), encoding)
    with pytest.raises(InputError, match=r"float32\[16\]: for latents choose latent"):
        encode(jnp.zeros(16))
