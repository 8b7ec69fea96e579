"""The search space of DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055).

An architecture is an int32[28]: a choice in `OPS` for each of the 14 edges of the
normal cell, then of the reduction cell. Node j of a cell's four has an edge from
each state before it: the cell's two inputs, 0 and 1, and the nodes before it, 2
to j + 1. Edges are in the literature's order, node by node. An architecture is
valid if each node has exactly two edges with an operation, the others `none`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Cells, PyTree, SearchSpace
from jaxnas.encoding import edge_graphs, mixed_radix
from jaxnas.nn.graph import Edge
from jaxnas.nn.skeleton import DartsNetwork, reductions, restrict_cells
from jaxnas.spaces.genotype import OPS, SOURCES, TARGETS, from_string, to_string
from jaxnas.spaces.sizes import conv, dense, scales, total

NODES, STATES = 4, 5  # of a cell; states that an edge can leave
CELL = len(SOURCES)
NUM_OPS = len(OPS) - 1  # without none
# The matrix form, int32[8, 5], has a row for each node of both cells, and there the
# operation of the edge from each state; what is no edge, at the end, is none.
ROW = np.concatenate([np.array(TARGETS) - 2, np.array(TARGETS) - 2 + NODES])
COLUMN = np.tile(SOURCES, 2)
# Cells' nodes are numbered through, as rows are; sources below 0 are inputs.
LEAVES = [
    state - 2 + NODES * cell if state > 1 else state - 2
    for cell in range(2)
    for state in SOURCES
]
CELLS = Cells(tuple(ROW.tolist()), tuple(LEAVES), OPS, (False,) * CELL + (True,) * CELL)
# Skip connections from a cell's inputs, and nothing else.
EMPTY = tuple(OPS.index("skip_connect") if s < 2 else 0 for s in 2 * SOURCES)


def darts() -> SearchSpace:
    """Makes the space; D = 28, K = 8, N = 120 one-edit neighbours.

    `network` takes, by keyword, the attributes of `DartsNetwork` but the graph.
    """
    return SearchSpace(
        name="darts",
        num_choices=(len(OPS),) * 2 * CELL,
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
        cells=CELLS,
        graphs=edge_graphs(CELLS, concatenated=True),
        empty=EMPTY,
    )


def _matrix(decisions, fill=0):
    """Rearranges [28] as [8, 5]."""
    empty = jnp.full((2 * NODES, STATES), fill, decisions.dtype)
    return empty.at[ROW, COLUMN].set(decisions)


def _keep_two(ops, strength):
    """Keeps the two strongest edges of each node; [28] each to int32[28].

    The first of equals: `top_k` prefers them, and what is no edge comes last.
    """
    strength = jnp.where(jnp.isnan(strength), -jnp.inf, strength)
    _, kept = jax.lax.top_k(_matrix(strength, -jnp.inf), 2)
    is_kept = jax.nn.one_hot(kept, STATES, dtype=bool).any(1)
    return jnp.where(is_kept[ROW, COLUMN], ops, 0).astype(jnp.int32)


def sample(key: Array) -> Array:
    """Draws an architecture uniformly from all valid ones."""
    key_op, key_edge = jax.random.split(key)
    ops = jax.random.randint(key_op, (2 * CELL,), 1, len(OPS))
    return _keep_two(ops, jax.random.uniform(key_edge, (2 * CELL,)))


def discretize(weights: Array) -> Array:
    """Reads an architecture from float32[28, 8] by the paper's rule.

    An edge is as strong as its strongest operation, `none` left out. Each node
    keeps its two strongest edges. Of equals the first wins.
    """
    ops = weights[:, 1:]
    return _keep_two(jnp.argmax(ops, -1) + 1, ops.max(-1))


def crossover(key: Array, first: Array, second: Array) -> Array:
    """Takes each node, with its two edges, from either parent."""
    from_first = jax.random.bernoulli(key, shape=(2 * NODES,))
    return jnp.where(from_first[ROW], first, second)


# An edit is (node, which of its two edges, where the edge goes, change of its op);
# where: among the states with the node's edges first, then the free ones.
EDITS = np.array(
    [
        (row, edge, edge, change)
        for row in range(2 * NODES)
        for edge in range(2)
        for change in range(1, NUM_OPS)
    ]
    + [
        (row, edge, 2 + free, 0)
        for row in range(2 * NODES)
        for edge in range(2)
        for free in range(row % NODES)
    ]
)


def _edit(arch, edit):
    row, edge, to, change = edit
    matrix = _matrix(arch)
    states = jnp.argsort(matrix[row] == 0)
    op = matrix[row, states[edge]]
    new = (op - 1 + change) % NUM_OPS + 1
    matrix = matrix.at[row, states[edge]].set(0).at[row, states[to]].set(new)
    return matrix[ROW, COLUMN]


def neighbours(arch: Array) -> tuple[Array, Array]:
    """All architectures one edit away: int32[120, 28], and bool[120], all true.

    An edit gives an edge another operation (96 ways), or moves it, with its
    operation, to another state that its node has no edge from (24 ways).
    """
    edited = jax.vmap(_edit, (None, 0))(arch, jnp.array(EDITS))
    return edited, jnp.ones(len(EDITS), bool)


def mutate(key: Array, arch: Array) -> Array:
    """Draws uniformly from the neighbours."""
    return _edit(arch, jax.random.choice(key, jnp.array(EDITS)))


ORDERS = np.array(list(itertools.permutations(range(NODES))))
NODE_CODES = tuple((j + 2) * (j + 1) // 2 * NUM_OPS**2 for j in range(NODES))


def canonical(arch: Array) -> Array:
    """The key of an architecture: uint32[2], a word for each cell.

    A word is the least code of the cell over all orders of its nodes in which
    edges lead forwards. So isomorphic cells, and no others, have equal words.
    """
    cells = _matrix(arch).reshape(2, NODES, STATES)
    return jax.vmap(_cell_key)(cells)


def _cell_key(cell):
    cell = jnp.pad(cell, ((0, 0), (0, 1)))  # a column for the last node
    states = np.concatenate([np.tile([0, 1], (len(ORDERS), 1)), ORDERS + 2], 1)
    cells = cell[ORDERS[:, :, None], states[:, None, :]]  # [24, 4, 6]
    backwards = np.arange(NODES + 2)[None, :] >= np.arange(NODES)[:, None] + 2
    valid = ~jnp.any((cells > 0) & backwards[None], (1, 2))
    codes = jax.vmap(lambda cell: mixed_radix(_node_codes(cell), NODE_CODES)[0])(cells)
    return jnp.where(valid, codes, jnp.uint32(2**32 - 1)).min()


def _node_codes(cell):
    """Numbers what enters each node: two states, then an operation from each."""
    is_edge = cell > 0
    low = jnp.argmax(is_edge, -1)
    high = cell.shape[-1] - 1 - jnp.argmax(is_edge[:, ::-1], -1)
    pair = high * (high - 1) // 2 + low
    nodes = jnp.arange(len(cell))
    return (pair * NUM_OPS + cell[nodes, low] - 1) * NUM_OPS + cell[nodes, high] - 1


def _edges(arch=None):
    """The edges of the normal and the reduction cell; of the supernet by default."""
    if arch is None:
        cell = tuple(map(Edge, SOURCES, TARGETS, [OPS[1:]] * CELL))
        return cell, cell
    cells = np.asarray(arch).reshape(2, CELL)
    return tuple(
        tuple(
            Edge(source, target, (OPS[op],))
            for source, target, op in zip(SOURCES, TARGETS, cell, strict=True)
            if op
        )
        for cell in cells
    )


def network(arch: Array | None = None, **size) -> DartsNetwork:
    """Makes the network of an architecture, or of all: the supernet.

    Args:
      arch: int32[28], concrete. None: the supernet, which has every operation on
        every edge, no affine batch norms, and norms after pooling; its weights
        are float32[28, 8].
      **size: attributes of `DartsNetwork`: channels, cells, num_classes, affine,
        pool_norm, auxiliary, remat.
    """
    normal, reduce = _edges(arch)
    settings = {"affine": arch is not None, "pool_norm": arch is None, **size}
    return DartsNetwork(normal, reduce, OPS, **settings)


def restrict(params: PyTree, arch: Array) -> PyTree:
    """Takes what `network(arch)` has out of the supernet's parameters.

    Batch statistics are taken alike. The settings must be equal: where the
    supernet's norms are not affine, `network(arch, affine=False, pool_norm=True)`.
    """
    full, chosen = _edges(), _edges(arch)

    def edges(i, cells):
        is_reduction = i in reductions(cells)
        return full[is_reduction], chosen[is_reduction]

    return restrict_cells(params, edges)


def sizes(
    arch: Array, image_shape: tuple[int, int, int], **size
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch, **size)`; see `jaxnas.spaces.sizes`.

    Args:
      arch: int32[28], traced or not.
      image_shape: (H, W, colours), concrete.
      **size: as for `network`; the auxiliary classifier is left out.

    Returns:
      int32[], the parameters, exact below 2**31; float32[], two operations for each
      multiply-add of convolutions and of the classifier for one image, to seven digits.

    Raises:
      InputError: image_shape is no such shape.
    """
    net = DartsNetwork((), (), OPS, **size)
    pixels, colours = scales(image_shape, 3)
    channels, before, last, halved = net.channels, *[3 * net.channels] * 2, 0
    fixed = conv(colours, last, 3, pixels[0], net.affine is not None)
    table = np.zeros((2, CELL, len(OPS), 2))
    for i in range(net.cells):
        reduce = i in reductions(net.cells)
        channels *= 1 + reduce
        # Both inputs have their own convolution, and norm.
        fixed += conv(before + last, channels, 1, pixels[halved], norm=False)
        fixed[0] += 2 * 2 * channels * bool(net.affine)
        halved += reduce
        table[int(reduce)] += _edge_sizes(
            channels, pixels[halved], reduce, bool(net.affine)
        )
        before, last = last, NODES * channels
    fixed += dense(last, net.num_classes)
    return total(fixed, table.reshape(2 * CELL, len(OPS), 2), arch)


def _edge_sizes(channels, pixels, reduce, affine):
    """What each operation has on each edge of a cell: float64[14, 8, 2]."""
    table = np.zeros((CELL, len(OPS), 2))
    pointwise = conv(channels, channels, 1, pixels, affine)
    for kernel in (3, 5):
        layer = conv(1, channels, kernel, pixels, norm=False) + pointwise
        table[:, OPS.index(f"dil_conv_{kernel}x{kernel}")] = layer
        table[:, OPS.index(f"sep_conv_{kernel}x{kernel}")] = 2 * layer
    if reduce:
        table[np.array(SOURCES) < 2, OPS.index("skip_connect")] = pointwise
    return table
