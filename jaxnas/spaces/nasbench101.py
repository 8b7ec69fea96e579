"""The search space of NAS-Bench-101 (Ying et al. 2019, arXiv:1902.09635).

An architecture is an int32[26]. The first 21 decisions say which edges the module has,
the upper triangle of the adjacency matrix of its seven vertices row by row: 0-1, 0-2,
..., 0-6, 1-2, ..., 5-6; vertex 0 is the input, 6 the output. The other five choose in
`OPS`, in the order of the paper's code, for the vertices 1 to 5.

What lies on no way from the input to the output is pruned. As in the paper's code an
architecture is valid where 1 to 9 edges are left: it may have more that lead nowhere,
and of a vertex that is pruned the operation is free. 73 in 100 of all arrays are valid;
they are 423,624 different modules.
"""

import functools
import itertools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Graph, Graphs, InputError, PyTree, SearchSpace
from jaxnas.encoding import strongest
from jaxnas.nn.nasbench101 import OPS, NasBench101Network
from jaxnas.spaces.sizes import of_modules

VERTICES, MOST_EDGES = 7, 9
OUTPUT = VERTICES - 1
SOURCES, TARGETS = np.triu_indices(VERTICES, 1)
EDGES, INNER = len(SOURCES), VERTICES - 2
NUM_CHOICES = (2,) * EDGES + (len(OPS),) * INNER
PLACES = (
    *zip(TARGETS.tolist(), SOURCES.tolist(), strict=True),
    *((v, v) for v in range(1, OUTPUT)),
)
DIRECT = 1 << INNER  # the number of the edge 0-6, which is valid alone
DRAWS = 24  # of which none is valid once in 10^13
EXAMPLE = (
    "conv1x1-bn-relu(0)|conv3x3-bn-relu(0)|conv3x3-bn-relu(0)|conv3x3-bn-relu(3)|"
    "maxpool3x3(0)|output(1,2,4,5)"
)


def nasbench101() -> SearchSpace:
    """Makes the space; D = 26, K = 3, N = 31 one-edit neighbours, some invalid.

    `network` takes, by keyword, `channels`, `stacks`, `modules` and `num_classes` of
    `NasBench101Network`. There is no supernet: `network(None)` and `restrict` raise
    InputError.
    """
    return SearchSpace(
        name="nasbench101",
        num_choices=NUM_CHOICES,
        sample=sample,
        mutate=mutate,
        crossover=crossover,
        neighbours=neighbours,
        discretize=discretize,
        canonical=canonical,
        network=network,
        restrict=restrict,
        to_string=to_string,
        from_string=from_string,
        sizes=sizes,
        graphs=Graphs(graph, INNER, PLACES),
    )


def _prune(edges):
    """What is left, of 21 arrays bool[...] that say which edges there are.

    Returns 21 of the same shape for the edges, and 7 for the vertices.
    """
    pairs = list(zip(SOURCES.tolist(), TARGETS.tolist(), strict=True))
    edge = dict(zip(pairs, edges, strict=True))
    reached, reaching = [True], {OUTPUT: True}
    for v in range(1, VERTICES):
        arriving = [reached[s] & edge[s, v] for s in range(v)]
        reached.append(functools.reduce(operator.or_, arriving))
    for v in reversed(range(OUTPUT)):
        leaving = [reaching[t] & edge[v, t] for t in range(v + 1, VERTICES)]
        reaching[v] = functools.reduce(operator.or_, leaving)
    kept = [edge[s, t] & reached[s] & reaching[t] for s, t in pairs]
    return kept, [reached[v] & reaching[v] for v in range(VERTICES)]


def _number(edges):
    """Numbers edges[..., 21], true or 1 where there is one: uint32[...], 0-1 lowest."""
    places = np.arange(EDGES, dtype=np.uint32).reshape((1,) * (edges.ndim - 1) + (-1,))
    return (edges.astype(np.uint32) << places).sum(-1, dtype=np.uint32)


@functools.cache
def _valid_numbers():
    """Which of the 2^21 sets of edges are valid, 32 a word: uint32[2^16], 256 KiB."""
    numbers = np.arange(2**EDGES, dtype=np.uint32)
    kept, _ = _prune([(numbers >> edge) % 2 > 0 for edge in range(EDGES)])
    count = sum(edge.astype(np.int8) for edge in kept)
    valid = (count > 0) & (count <= MOST_EDGES)
    return np.packbits(valid, bitorder="little").view("<u4").astype(np.uint32)


def _is_valid(number):
    """Maps uint32[...] to bool[...]."""
    return (jnp.array(_valid_numbers())[number >> 5] >> number % 32) % 2 > 0


def _bits(number, size):
    """The lowest bits of a uint32[]: bool[size]."""
    return (number >> np.arange(size, dtype=np.uint32)) % 2 > 0


def sample(key: Array) -> Array:
    """Draws uniformly from the valid architectures.

    The first valid one of 24 draws; the edge 0-6 alone should there be none.
    """
    key_edges, key_ops = jax.random.split(key)
    draws = jax.random.bits(key_edges, (DRAWS,), jnp.uint32) % 2**EDGES
    numbers = jnp.append(draws, np.uint32(DIRECT))
    edges = _bits(numbers[jnp.argmax(_is_valid(numbers))], EDGES)
    ops = jax.random.randint(key_ops, (INNER,), 0, len(OPS))
    return jnp.concatenate([edges, ops]).astype(jnp.int32)


# An edit adds a number, modulo its choices, to one decision; the last ten leave edges.
ONE = np.eye(EDGES + INNER, dtype=np.int32)
EDITS = np.concatenate([ONE, 2 * ONE[EDGES:]])
FLIPS = np.array([*(1 << np.arange(EDGES)), *[0] * (2 * INNER)], np.uint32)


def neighbours(arch: Array) -> tuple[Array, Array]:
    """All with one decision changed, int32[31, 26], and which are valid, bool[31].

    The architecture itself stands where they are not.
    """
    near = (arch[None] + EDITS) % np.array(NUM_CHOICES)[None]
    is_valid = _is_valid(_number(arch[:EDGES]) ^ FLIPS)
    return jnp.where(is_valid[:, None], near, arch[None]), is_valid


def mutate(key: Array, arch: Array) -> Array:
    """Draws uniformly from the valid neighbours; there are ten or more."""
    count = jnp.cumsum(_is_valid(_number(arch[:EDGES]) ^ FLIPS))
    chosen = jnp.argmax(count > jax.random.randint(key, (), 0, count[-1]))
    return (arch + jnp.array(EDITS)[chosen]) % np.array(NUM_CHOICES)


def crossover(key: Array, first: Array, second: Array) -> Array:
    """Takes each decision from either parent.

    The first valid one of 24 such children; the first parent should there be none.
    """
    draws = jax.random.bits(key, (DRAWS,), jnp.uint32)
    masks = jnp.append(draws, np.uint32(2**32 - 1))
    one, other = _number(first[:EDGES]), _number(second[:EDGES])
    valid = _is_valid(masks & one | ~masks & other)
    return jnp.where(_bits(masks[jnp.argmax(valid)], EDGES + INNER), first, second)


def discretize(weights: Array) -> Array:
    """Takes the strongest choice of each decision of float32[26, 3]; first of equals.

    Where that is invalid, edges are left out until it is valid, first that whose weight
    exceeds the weight of its absence the least, of equals the last; where this comes
    to nothing, the same with the edge 0-6 added.
    """
    arch = strongest(weights, NUM_CHOICES)
    edges = arch[:EDGES] > 0
    margin = weights[:EDGES, 1] - weights[:EDGES, 0]
    one, other, order = margin[:, None], margin[None], np.arange(EDGES)
    earlier = order[:, None] < order[None]
    stronger = edges[:, None] & ((one > other) | ((one == other) & earlier))
    kept = stronger.sum(0)[None] < np.arange(EDGES + 1)[::-1, None]
    numbers = _number(edges[None] & kept)
    numbers = jnp.append(numbers, numbers | np.uint32(DIRECT))
    repaired = _bits(numbers[jnp.argmax(_is_valid(numbers))], EDGES)
    return arch.at[:EDGES].set(repaired.astype(jnp.int32))


def graph(arch: Array) -> Graph:
    """The module, pruned: ops float32[1, 7, 3], edges float32[1, 7, 7]."""
    kept, vertices = _prune(list(arch[:EDGES] > 0))
    edges = jnp.zeros((VERTICES, VERTICES)).at[SOURCES, TARGETS].set(jnp.stack(kept))
    ops = jax.nn.one_hot(arch[EDGES:], len(OPS)) * jnp.stack(vertices[1:-1])[:, None]
    return Graph(jnp.pad(ops, ((1, 1), (0, 0)))[None], edges[None])


def _orders():
    """What the 120 orders of the inner vertices do to a word of 21 and 10 bits.

    Returns:
      uint32[3, 128, 120], the words of all sets of the first, second and third seven
      edges; bit 31 is set where one would lead backwards. uint32[120, 5], the place of
      the lowest of each operation's two bits.
    """
    place = np.zeros((VERTICES, VERTICES), np.uint32)
    place[SOURCES, TARGETS] = np.arange(2 * INNER, EDGES + 2 * INNER)
    place[TARGETS, SOURCES] = 31
    orders = np.array([(0, *p, OUTPUT) for p in itertools.permutations(range(1, 6))])
    bits = np.uint32(1) << place[orders[:, SOURCES], orders[:, TARGETS]]
    chosen = (np.arange(128)[:, None] >> np.arange(7)) % 2 > 0
    bits = bits.T.reshape(3, 1, 7, -1)
    words = np.bitwise_or.reduce(np.where(chosen[None, :, :, None], bits, 0), 2)
    return words.astype(np.uint32), 2 * (orders[:, 1:OUTPUT] - 1).astype(np.uint32)


EDGE_WORDS, OP_PLACES = _orders()


def canonical(arch: Array) -> Array:
    """The key of an architecture, uint32[1]: equal for isomorphic pruned graphs only.

    It is the least number, over the orders of the inner vertices in which all edges
    lead forwards, of 21 bits for edges and two for each operation.
    """
    kept, vertices = map(jnp.stack, _prune(list(arch[:EDGES] > 0)))
    number, tables = _number(kept), jnp.array(EDGE_WORDS)
    edges = [tables[i, (number >> 7 * i) % 128] for i in range(3)]
    ops = jnp.where(vertices[1:OUTPUT], arch[EDGES:] + 1, 0).astype(jnp.uint32)
    words = functools.reduce(operator.or_, edges) | (ops[None] << OP_PLACES).sum(1)
    return jnp.min(words, keepdims=True)


def network(arch: Array | None = None, **size) -> NasBench101Network:
    """Makes the network of an architecture, pruned.

    Args:
      arch: int32[26], concrete.
      **size: channels, stacks, modules, num_classes of `NasBench101Network`.

    Raises:
      InputError: arch is None or invalid.
    """
    if arch is None:
        _refuse_supernet()
    choices = np.asarray(arch)
    _expect_valid(choices)
    edges, vertices = map(np.array, _prune(choices[:EDGES] > 0))
    number = np.cumsum(vertices) - 1
    pairs = zip(number[SOURCES[edges]], number[TARGETS[edges]], strict=True)
    ops = choices[EDGES:][vertices[1:OUTPUT]]
    return NasBench101Network(
        tuple((int(source), int(target)) for source, target in pairs),
        tuple(OPS[op] for op in ops),
        **size,
    )


def sizes(
    arch: Array, image_shape: tuple[int, int, int], **size
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch, **size)`; see `jaxnas.spaces.sizes`.

    Args:
      arch: int32[26], valid, traced or not.
      image_shape: (H, W, colours), concrete.
      **size: as for `network`.

    Returns:
      int32[], the parameters, exact below 2**31; float32[], two operations for each
      multiply-add of convolutions and of the classifier for one image, to seven digits.

    Raises:
      InputError: image_shape is no such shape.
    """
    kept, _ = _prune(list(arch[:EDGES] > 0))
    pairs = zip(SOURCES.tolist(), TARGETS.tolist(), strict=True)
    edges = dict(zip(pairs, kept, strict=True))
    net = NasBench101Network((), (), **size)
    return of_modules(edges, arch[EDGES:], net, image_shape)


def restrict(params: PyTree, arch: Array) -> PyTree:
    """Raises InputError: there is no supernet whose parameters could be taken."""
    del params, arch
    _refuse_supernet()


def _refuse_supernet():
    raise InputError(
        "expected an architecture, for nasbench101 has no supernet: give network one "
        "(the evaluator standalone does), or take the space nasbench201 or darts"
    )


def _expect_valid(arch):
    if not _is_valid(_number(arch[:EDGES])):
        raise InputError(
            f"expected a way from vertex 0 to {OUTPUT} and {MOST_EDGES} edges at most "
            f"on such ways, but got {_write(arch)}: change its edges"
        )


def to_string(arch: Array) -> str:
    """Writes an int32[26] vertex by vertex: its operation and where edges come from."""
    return _write(np.asarray(arch))


def _write(arch):
    names = [*(OPS[op] for op in arch[EDGES:]), "output"]
    sources = [SOURCES[(v == TARGETS) & (arch[:EDGES] > 0)] for v in range(1, VERTICES)]
    return "|".join(
        f"{name}({','.join(map(str, v))})"
        for name, v in zip(names, sources, strict=True)
    )


VERTEX = r"([a-z0-9-]+)\((|[0-5](?:,[0-5])*)\)"
PATTERN = re.compile(r"\|".join([VERTEX] * OUTPUT))


def from_string(module: str) -> Array:
    """Reads what `to_string` writes, as an int32[26].

    Raises:
      InputError: it is no string, not of this form, or of an invalid architecture.
    """
    match = PATTERN.fullmatch(module.strip()) if isinstance(module, str) else None
    if match is None:
        raise InputError(f"expected a module like {EXAMPLE}, but got {module!r:.200}")
    names, sources = match.groups()[::2], match.groups()[1::2]
    if names[-1] != "output" or not set(names[:-1]) <= set(OPS):
        raise InputError(
            f"expected operations of {', '.join(OPS)}, and output at the end, but got "
            f"{', '.join(names)}: choose from these"
        )
    edges = [
        str(source) in sources[target - 1].split(",")
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    arch = np.array([*edges, *(OPS.index(name) for name in names[:-1])], np.int32)
    if _write(arch) != module.strip():
        raise InputError(
            "expected the numbers of earlier vertices, each once and in order, but got "
            f"{module.strip()}: write it like {EXAMPLE}"
        )
    _expect_valid(arch)
    return jnp.array(arch)
