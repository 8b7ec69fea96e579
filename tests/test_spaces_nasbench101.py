"""The NAS-Bench-101 space, against its published numbers, networkx and PyTorch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.encoding import one_hot
from jaxnas.nn.nasbench101 import OPS, NasBench101Network, vertex_channels
from jaxnas.spaces.nasbench101 import from_string, nasbench101, to_string

SPACE = nasbench101()
SOURCES, TARGETS = np.triu_indices(7, 1)
CONV_3, CONV_1, POOL = OPS
# The example of the benchmark's documentation, and the same as its file has it.
EXAMPLE = f"{CONV_1}(0)|{CONV_3}(0)|{CONV_3}(0)|{CONV_3}(3)|{POOL}(0)|output(1,2,4,5)"
RECORDED = f"{CONV_3}(0)|{CONV_1}(0)|{POOL}(0)|{CONV_3}(0)|{CONV_3}(4)|output(1,2,3,5)"
DIRECT = f"{CONV_3}()|{CONV_3}()|{CONV_3}()|{CONV_3}()|{CONV_3}()|output(0)"
canonical = jax.jit(jax.vmap(SPACE.canonical))
from_key = jax.jit(jax.vmap(SPACE.sample))
discretize = jax.jit(SPACE.discretize)


def graph_of(arch):
    """The pruned graph by networkx's own search."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(7))
    edges = zip(SOURCES.tolist(), TARGETS.tolist(), strict=True)
    graph.add_edges_from(itertools.compress(edges, arch[:21]))
    for vertex in range(7):
        graph.nodes[vertex]["op"] = f"{vertex}"
        if 0 < vertex < 6:
            graph.nodes[vertex]["op"] = OPS[arch[20 + vertex]]
    kept = (nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, 6) | {6})
    return graph.subgraph(kept)


def is_valid(arch):
    graph = graph_of(arch)
    return {0, 6} <= set(graph) and graph.number_of_edges() <= 9


def anything(seed, num):
    """Architectures that may be invalid."""
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, 2, (num, 21))
    ops = generator.integers(0, 3, (num, 5))
    return np.concatenate([edges, ops], 1).astype(np.int32)


def all_modules(inner):
    """All valid architectures of the first so many vertices, pruned of nothing.

    Orders of the vertices are counted as different.
    """
    size = inner + 2
    sources, targets = np.triu_indices(size, 1)
    edges = np.arange(2 ** len(sources))[:, None] >> np.arange(len(sources)) & 1
    # The output is vertex 6 whatever the number of vertices.
    names = (np.where(targets == size - 1, 6, targets), sources)
    matrix = np.zeros((len(edges), 7, 7), np.int32)
    matrix[:, names[1], names[0]] = edges
    used = [0, *range(1, inner + 1), 6]
    leaves = matrix.any(2)[:, used[:-1]].all(1)
    arrives = matrix.any(1)[:, used[1:]].all(1)
    matrix = matrix[leaves & arrives & (edges.sum(1) <= 9)]
    ops = np.zeros((3**inner, 5), np.int32)
    ops[:, :inner] = list(itertools.product(range(3), repeat=inner))
    graphs = matrix[:, SOURCES, TARGETS]
    both = np.repeat(graphs, len(ops), 0), np.tile(ops, (len(graphs), 1))
    return np.concatenate(both, 1)


# Graphs


def test_space_has_an_edge_for_each_pair_and_five_operations():
    assert SPACE.num_choices == (2,) * 21 + (3,) * 5
    arch = from_string(EXAMPLE)
    assert SPACE.neighbours(arch)[0].shape == (31, 26)


def test_valid_are_those_of_nine_edges_between_input_and_output():
    archs = anything(0, 600)
    weights = jax.vmap(lambda arch: one_hot(arch, SPACE.num_choices))(archs)
    is_kept = (jax.jit(jax.vmap(SPACE.discretize))(weights) == archs).all(1)
    expected = [is_valid(arch) for arch in archs]
    np.testing.assert_array_equal(is_kept, expected)
    assert 0.68 < np.mean(expected) < 0.79  # 0.7334 of all


def test_neighbours_are_the_valid_ones_of_one_change():
    arch = np.asarray(from_string(EXAMPLE))
    near, exist = map(np.asarray, SPACE.neighbours(arch))
    changed = {
        (*arch[:d], choice, *arch[d + 1 :])
        for d, size in enumerate(SPACE.num_choices)
        for choice in range(size)
        if choice != arch[d]
    }
    expected = {other for other in changed if is_valid(np.array(other))}
    assert {tuple(other) for other in near[exist].tolist()} == expected
    assert 10 < len(expected) < 31


def test_sample_draws_every_decision_as_often_as_valid_ones_have_it():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(from_key(keys))
    expected = [arch for arch in anything(1, 4000) if is_valid(arch)]
    # Standard deviations of 0.008 and 0.009 at most.
    np.testing.assert_allclose(drawn.mean(0), np.mean(expected, 0), atol=0.06)
    assert len(np.unique(drawn, axis=0)) > 3990


def test_crossover_takes_each_decision_from_either_parent_alike():
    first = np.asarray(from_string(EXAMPLE))
    second = np.asarray(from_string(DIRECT)) * 0 + 1
    second[:21] = np.asarray(from_string(RECORDED))[:21]
    keys = jax.random.split(jax.random.key(0), 2000)
    cross = jax.jit(jax.vmap(SPACE.crossover, (0, None, None)))
    children = np.asarray(cross(keys, first, second))
    differ = first[21:] != second[21:]
    share = (children == first).mean(0)[21:][differ]
    np.testing.assert_allclose(share, 0.5, atol=0.06)
    assert all(is_valid(child) for child in children[:100])


def test_discretize_leaves_out_the_weakest_edges():
    # A way through all vertices has six edges; of four shortcuts one is too many.
    weights = np.zeros((26, 3), np.float32)
    chain = f"{CONV_3}(0)|{CONV_3}(1)|{CONV_3}(2)|{CONV_3}(3)|{CONV_3}(4)|output(5)"
    weights[:21, 1] = 3 * np.asarray(from_string(chain))[:21] - 1
    shortcuts = {(0, 2): 0.5, (0, 3): 0.1, (0, 4): 0.3, (2, 5): 0.4}
    for (source, target), weight in shortcuts.items():
        weights[:21][(source == SOURCES) & (target == TARGETS), 1] = weight
    weights[21:, 2] = 1
    found = to_string(discretize(weights))
    assert found == f"{POOL}(0)|{POOL}(0,1)|{POOL}(2)|{POOL}(0,3)|{POOL}(2,4)|output(5)"


def test_discretize_joins_what_has_no_way():
    nothing = np.zeros((26, 3), np.float32)
    assert to_string(discretize(nothing)) == DIRECT
    nothing[0, 1] = 1  # an edge that leads nowhere may stay
    assert to_string(discretize(nothing)) == DIRECT.replace("()", "(0)", 1)


# Isomorphism


def test_canonical_finds_the_published_number_of_modules():
    archs = np.concatenate([all_modules(inner) for inner in range(6)])
    parts = np.pad(archs, ((0, -len(archs) % 2**16), (0, 0)), "edge")
    keys = [canonical(part) for part in parts.reshape(-1, 2**16, 26)]
    assert len(np.unique(keys)) == 423_624


def test_canonical_agrees_with_networkx():
    everything = np.concatenate([all_modules(inner) for inner in range(4)])
    keys = np.asarray(canonical(everything))[:, 0]
    representatives: dict = {}
    same_op = nx.algorithms.isomorphism.categorical_node_match("op", None)
    match = functools.partial(nx.is_isomorphic, node_match=same_op)
    pick = np.random.default_rng(0).permutation(len(everything))[:400]
    for arch, key in zip(everything[pick], keys[pick].tolist(), strict=True):
        other = representatives.setdefault(key, arch)
        assert match(graph_of(arch), graph_of(other))
    some = [graph_of(arch) for arch in itertools.islice(representatives.values(), 60)]
    assert not any(match(a, b) for a, b in itertools.combinations(some, 2))


def test_canonical_does_not_see_the_order_of_vertices_nor_dead_ends():
    generator = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), 100)
    archs = np.asarray(from_key(keys))
    others = []
    for arch in archs:
        graph = graph_of(arch)
        inner = [v for v in graph if 0 < v < 6]
        # Any topological order, at any places: of the free ones some are dead ends.
        scores = {v: generator.uniform() for v in graph}
        order = list(nx.lexicographical_topological_sort(graph, key=scores.get))
        order = [v for v in order if v in inner]
        places = np.sort(generator.permutation(5)[: len(inner)]) + 1
        move = {0: 0, 6: 6, **dict(zip(order, places.tolist(), strict=True))}
        other = np.concatenate([np.zeros(21), generator.integers(0, 3, 5)]).astype(int)
        for source, target in graph.edges:
            at = (move[source] == SOURCES) & (move[target] == TARGETS)
            other[:21] += at
        for v in inner:
            other[20 + move[v]] = arch[20 + v]
        for free in set(range(1, 6)) - set(places.tolist()):
            other[:21] |= (free == TARGETS) & (SOURCES == 0)
        others.append(other)
    np.testing.assert_array_equal(canonical(archs), canonical(np.array(others)))


def test_canonical_knows_the_example_in_the_order_of_the_benchmark():
    keys = canonical(jnp.stack([from_string(EXAMPLE), from_string(RECORDED)]))
    assert keys[0] == keys[1]


# Strings


def test_strings_are_vertices_and_their_sources():
    arch = from_string(EXAMPLE)
    edges = zip(SOURCES[arch[:21] > 0], TARGETS[arch[:21] > 0], strict=True)
    assert [(int(source), int(target)) for source, target in edges] == [
        *((0, target) for target in (1, 2, 3, 5)),
        *((1, 6), (2, 6), (3, 4), (4, 6), (5, 6)),
    ]
    np.testing.assert_array_equal(arch[21:], [1, 0, 0, 0, 2])
    assert to_string(arch) == EXAMPLE


def test_strings_keep_what_is_pruned():
    text = f"{POOL}(0)|{CONV_1}(1)|{CONV_3}()|{POOL}(3)|{CONV_1}(0)|output(0,4)"
    assert to_string(from_string(text)) == text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (POOL, "avgpool3x3", "avgpool3x3"),
        ("(3)", "(4)", "earlier vertices"),
        ("(1,2,4,5)", "(2,1,4,5)", "in order"),
        ("(1,2,4,5)", "(1,1,4,5)", "each once"),
        ("(1,2,4,5)", "(1,2,4,6)", "module like"),
        ("output", POOL, "output at the end"),
        ("output(1,2,4,5)", "output()", "a way from vertex 0 to 6"),
        ("(3)|", "(1,2,3)|", "9 edges at most"),
        (f"|{POOL}(0)", "", "module like"),
    ],
)
def test_from_string_says_what_is_wrong(old, new, says):
    with pytest.raises(InputError, match=says) as error:
        from_string(EXAMPLE.replace(old, new))
    assert len(str(error.value).splitlines()) == 1


# Networks


def shapes_of(network, size=32):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(network.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (EXAMPLE, 2_694_282),  # the documentation's example
        (RECORDED, 2_694_282),
        (  # the most that any module has
            f"{CONV_3}(0)|{CONV_3}(0,1)|{CONV_3}(0,2)|{CONV_3}(0,3)|{CONV_3}(4)"
            "|output(5)",
            49_979_274,
        ),
    ],
)
def test_network_has_the_parameters_of_the_benchmark(module, parameters):
    _, variables = shapes_of(SPACE.network(from_string(module)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


def test_network_of_one_edge_is_projections():
    logits, variables = shapes_of(SPACE.network(from_string(DIRECT)))
    pairs = [(128, 128)] * 3 + [(128, 256)] + [(256, 256)] * 2
    pairs += [(256, 512)] + [(512, 512)] * 2
    expected = 27 * 128 + 2 * 128 + sum(a * b + 2 * b for a, b in pairs) + 513 * 10
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("edges", "channels", "expected"),
    [
        ([(0, 1), (1, 2), (2, 3)], 16, [16, 16]),
        ([(0, 1), (0, 2), (1, 3), (2, 3)], 15, [8, 7]),
        ([(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)], 8, [3, 3, 2]),
        ([(0, 1), (1, 2), (1, 3), (2, 4), (3, 4)], 9, [5, 5, 4]),
        ([(0, 1), (0, 3), (1, 2), (1, 4), (2, 3), (3, 4)], 15, [8, 7, 7]),
        ([(0, 2), (0, 1), (1, 3), (2, 3), (3, 4), (0, 4)], 8, [8, 8, 8]),
    ],
)
def test_vertex_channels_are_the_published_ones(edges, channels, expected):
    assert vertex_channels(edges, len(expected), channels)[1:] == expected


def test_network_is_of_the_pruned_module():
    text = f"{POOL}(0)|{CONV_1}(1)|{CONV_3}()|{POOL}(3)|{CONV_1}(0)|output(0,1,4)"
    network = SPACE.network(from_string(text), channels=8, num_classes=3)
    assert network == NasBench101Network(
        ((0, 1), (0, 2), (1, 2)), (POOL,), channels=8, num_classes=3
    )


@pytest.mark.parametrize("size", [5, 8])
def test_network_takes_images_of_any_size(size):
    network = SPACE.network(from_string(EXAMPLE), channels=8, modules=1, stacks=2)
    assert shapes_of(network, size)[0].shape == (2, 10)


def test_there_is_no_supernet():
    arch = from_string(EXAMPLE)
    broken = arch.at[:21].set(0)
    network = SPACE.network(arch, channels=4, modules=1, stacks=1)
    for refused in (
        SPACE.network,
        lambda: SPACE.restrict({}, arch),
        lambda: SPACE.network(broken),
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.ones(1)),
    ):
        with pytest.raises(InputError, match="expected") as error:
            refused()
        assert len(str(error.value).splitlines()) == 1


def make_reference(torch, arch, channels, classes):
    """Two stacks of one module, written vertex by vertex; returns logits of images.

    Blocks are made in the order in which ours are named.
    """
    nn, functional = torch.nn, torch.nn.functional
    matrix = np.zeros((7, 7), int)
    matrix[SOURCES, TARGETS] = arch[:21]
    blocks = {}

    def block(name, x, width, size):
        if name not in blocks:
            conv = nn.Conv2d(x.shape[1], width, size, padding=size // 2, bias=False)
            norm = nn.BatchNorm2d(width, momentum=0.003)
            blocks[name] = nn.Sequential(conv, norm).double()
            for leaf in (*conv.parameters(), *norm.parameters(), *norm.buffers()):
                if leaf.dtype.is_floating_point:
                    nn.init.uniform_(leaf, 0.1, 1.0)
        return functional.relu(blocks[name](x))

    def module(i, x, width):
        ends = [v for v in range(1, 6) if matrix[v, 6]]
        share = [width // len(ends) + (k < width % len(ends)) for k in range(len(ends))]
        widths = dict(zip(ends, share, strict=True))
        for v in range(5, 0, -1):
            if v not in widths:
                widths[v] = max(widths[t] for t in range(v + 1, 6) if matrix[v, t])
        states = {}
        for v in range(1, 6):
            total = sum(states[s][:, : widths[v]] for s in range(1, v) if matrix[s, v])
            if matrix[0, v]:
                total = total + block((i, f"projection{v}"), x, widths[v], 1)
            op = OPS[arch[20 + v]]
            if op == POOL:
                states[v] = functional.max_pool2d(total, 3, 1, 1)
            else:
                kernel = 3 if op == CONV_3 else 1
                states[v] = block((i, f"vertex{v}"), total, widths[v], kernel)
        out = torch.cat([states[v] for v in ends], 1)
        return out + block((i, "projection6"), x, width, 1) if matrix[0, 6] else out

    dense = nn.Linear(2 * channels, classes).double()

    def logits(x):
        x = module(0, block(("stem",), x, channels, 3), channels)
        x = module(1, functional.max_pool2d(x, 2, 2), 2 * channels)
        return dense(x.mean((2, 3)))

    return logits, blocks, dense


def copy_of(blocks, dense):
    """Our parameters and statistics of the reference's blocks."""
    params, stats = {}, {}
    for name, (conv, norm) in blocks.items():
        at, inner_params, inner_stats = name[-1], params, stats
        if len(name) == 2:
            inner_params = params.setdefault(f"module{name[0]}", {})
            inner_stats = stats.setdefault(f"module{name[0]}", {})
        kernel = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        affine = {"scale": norm.weight, "bias": norm.bias}
        running = {"mean": norm.running_mean, "var": norm.running_var}
        as_row = functools.partial(
            jax.tree.map, lambda leaf: leaf.detach().numpy()[None].copy()
        )
        inner_params[at] = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": as_row(affine)}
        inner_stats[at] = {"BatchNorm_0": as_row(running)}
    weight, bias = (x.detach().numpy() for x in (dense.weight, dense.bias))
    params["Dense_0"] = {"kernel": weight.T, "bias": bias}
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize(
    "module",
    [
        f"{CONV_3}(0)|{CONV_1}(0,1)|{POOL}(1)|{CONV_3}(2)|{POOL}(3)|output(0,4,5)",
        f"{CONV_1}(0)|{POOL}(1)|{CONV_3}(1)|{POOL}(1)|{CONV_1}(0)|output(2,3,4,5)",
    ],
)
def test_network_computes_what_the_published_one_does(module):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    torch.manual_seed(0)
    arch = np.asarray(from_string(module))
    # Channels that their number of ends does not divide.
    logits, blocks, dense = make_reference(torch, arch, channels=5, classes=3)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    inputs = torch.tensor(images.transpose(0, 3, 1, 2))
    logits(inputs)  # makes the blocks
    variables = copy_of(blocks, dense)
    network = SPACE.network(arch, channels=5, stacks=2, modules=1, num_classes=3)
    with jax.enable_x64(True):

        def outputs(variables, images):
            trained, _ = network.apply(
                variables, images, train=True, mutable="batch_stats"
            )
            return network.apply(variables, images), trained

        found = jax.jit(outputs)(variables, images)
    with torch.no_grad():
        for each in blocks.values():
            each.train(False)
        expected = [logits(inputs).numpy()]
        for each in blocks.values():
            each.train(True)
        expected.append(logits(inputs).numpy())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)
