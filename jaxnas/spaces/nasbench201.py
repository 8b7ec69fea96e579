"""The search space of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326).

An architecture is an int32[6]: a choice in `OPS` for each edge of a cell of four
nodes, all of which lead forwards, in the order 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. All
15,625 are valid; they are 6,466 different graphs.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Cells, InputError, PyTree, SearchSpace
from jaxnas.draws import below
from jaxnas.encoding import edge_graphs, mixed_radix, strongest
from jaxnas.nn.graph import Edge
from jaxnas.nn.skeleton import NasBench201Network, restrict_cells
from jaxnas.spaces.sizes import conv, dense, scales, total

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The choices of an edge, in the order of the paper's code."""

TARGETS, SOURCES = zip(*[(t, s) for t in range(1, 4) for s in range(t)], strict=True)
EDGES = len(SOURCES)
NUM_CHOICES = (len(OPS),) * EDGES
CELLS = Cells(TARGETS, SOURCES, OPS, (False,) * EDGES)
EXAMPLE = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|"
    "+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
)


def nasbench201() -> SearchSpace:
    """Makes the space; D = 6, K = 5, N = 24 one-edit neighbours.

    `network` takes, by keyword, the attributes of `NasBench201Network` but the graph.
    """
    return SearchSpace(
        name="nasbench201",
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
        cells=CELLS,
        graphs=edge_graphs(CELLS, concatenated=False),
        empty=(OPS.index("skip_connect"),) * EDGES,
    )


def sample(key: Array) -> Array:
    """Draws an architecture uniformly."""
    return below(key, (EDGES,), len(OPS))


# An edit gives one edge another operation: what it adds, modulo 5, to each.
EDITS = np.concatenate(
    [change * np.eye(EDGES, dtype=np.int32) for change in range(1, len(OPS))]
)


def neighbours(arch: Array) -> tuple[Array, Array]:
    """All architectures with one edge changed: int32[24, 6], and bool[24], all true."""
    return (arch[None] + EDITS) % len(OPS), jnp.ones(len(EDITS), bool)


def mutate(key: Array, arch: Array) -> Array:
    """Draws uniformly from the neighbours."""
    return (arch + jnp.array(EDITS)[below(key, (), len(EDITS))]) % len(OPS)


def crossover(key: Array, first: Array, second: Array) -> Array:
    """Takes each edge from either parent."""
    return jnp.where(jax.random.bernoulli(key, shape=(EDGES,)), first, second)


def discretize(weights: Array) -> Array:
    """Takes the strongest operation of each edge of float32[6, 5]; first of equals."""
    return strongest(weights, NUM_CHOICES)


def canonical(arch: Array) -> Array:
    """The key of an architecture, uint32[1]: the number of the first one like it.

    Architectures are numbered by `mixed_radix`. Alike are those that the paper's
    code gives the same unique string, `_expression`: 6,466 different ones. It does
    not see every isomorphism, since a sum with nothing is another formula.
    """
    return jnp.array(_first_alike())[mixed_radix(arch, NUM_CHOICES)]


@functools.cache
def _first_alike():
    """For each number of an architecture, the first that is alike: uint32[15625]."""
    first: dict[str, int] = {}
    archs = itertools.product(range(len(OPS)), repeat=EDGES)
    keys = [first.setdefault(_expression(arch), i) for i, arch in enumerate(archs)]
    return np.array(keys, np.uint32)


def _expression(arch):
    """What a cell computes, as a formula in which the order of a sum is lost.

    `none`, and every operation of a node that is nothing, is nothing (#); skipping
    copies the formula of a node; other operations are applied to it.
    """
    formulas = ["0"]
    ops = iter(arch)
    for target in range(1, 4):
        terms = [_term(OPS[next(ops)], formulas[source]) for source in range(target)]
        formulas.append("+".join(sorted(terms)))
    return formulas[-1]


def _term(op, formula):
    if op == "none" or formula == "#":
        return "#"
    return formula if op == "skip_connect" else f"({formula})@{op}"


def _edges(arch=None):
    """The edges of a cell; those of the supernet by default."""
    ops = [OPS[1:]] * EDGES if arch is None else [(OPS[op],) for op in np.asarray(arch)]
    edges = map(Edge, SOURCES, TARGETS, ops)
    return tuple(edge for edge in edges if edge.ops != ("none",))


def network(arch: Array | None = None, **size) -> NasBench201Network:
    """Makes the network of an architecture, or of all: the supernet.

    Args:
      arch: int32[6], concrete. None: the supernet, which has every operation on
        every edge and no affine batch norms in cells; its weights are
        float32[6, 5].
      **size: attributes of `NasBench201Network`: channels, cells, num_classes,
        affine, pool_norm, remat.
    """
    settings = {"affine": arch is not None, **size}
    return NasBench201Network(_edges(arch), OPS, **settings)


def restrict(params: PyTree, arch: Array) -> PyTree:
    """Takes what `network(arch)` has out of the supernet's parameters.

    Batch statistics are taken alike. The settings must be equal: where the
    supernet's norms are not affine, `network(arch, affine=False)`.
    """
    return restrict_cells(params, lambda i, cells: (_edges(), _edges(arch)))


def sizes(
    arch: Array, image_shape: tuple[int, int, int], **size
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch, **size)`; see `jaxnas.spaces.sizes`.

    Args:
      arch: int32[6], traced or not.
      image_shape: (H, W, colours), concrete.
      **size: as for `network`.

    Returns:
      int32[], the parameters, exact below 2**31; float32[], two operations for each
      multiply-add of convolutions and of the classifier for one image, to seven digits.

    Raises:
      InputError: image_shape is no such shape.
    """
    net = NasBench201Network((), OPS, **size)
    channels, (pixels, colours) = net.channels, scales(image_shape, 3)
    norm = net.affine is not None  # outside of cells
    fixed = conv(colours, channels, 3, pixels[0], norm)
    table = np.zeros((EDGES, len(OPS), 2))
    for stage, here in enumerate(pixels):
        if stage:  # a residual block
            fixed += conv(channels, 2 * channels, 1, here, norm=False)
            fixed += conv(channels, 2 * channels, 3, here, norm)
            channels *= 2
            fixed += conv(channels, channels, 3, here, norm)
        for op, kernel in (("nor_conv_1x1", 1), ("nor_conv_3x3", 3)):
            layer = conv(channels, channels, kernel, here, bool(net.affine))
            table[:, OPS.index(op)] += net.cells * layer
    fixed += dense(channels, net.num_classes)
    fixed[0] += 2 * channels * norm  # the last norm
    return total(fixed, table, arch)


def to_string(arch: Array) -> str:
    """Writes an int32[6] as the benchmark does: node by node, operation~source."""
    ops = [OPS[op] for op in np.asarray(arch)]
    nodes = [
        "".join(
            f"|{op}~{source}"
            for op, source, target in zip(ops, SOURCES, TARGETS, strict=True)
            if target == node
        )
        for node in range(1, 4)
    ]
    return "+".join(f"{node}|" for node in nodes)


PATTERN = re.compile(
    r"\+".join(
        "".join(rf"\|(\w+)~{source}" for source in range(node)) + r"\|"
        for node in range(1, 4)
    )
)


def from_string(cell: str) -> Array:
    """Reads a cell as the benchmark writes it, as an int32[6].

    Raises:
      InputError: it is no string, not of this form, or has an unknown operation.
    """
    match = PATTERN.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if match is None:
        raise InputError(f"expected a cell like {EXAMPLE}, but got {cell!r:.200}")
    unknown = set(match.groups()) - set(OPS)
    if unknown:
        raise InputError(
            f"expected operations of {', '.join(OPS)}, but got "
            f"{', '.join(sorted(unknown))}: choose from these"
        )
    return jnp.array([OPS.index(op) for op in match.groups()], jnp.int32)
