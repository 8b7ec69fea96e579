"""Architectures as numbers that models, gradients and tables can use."""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Cells, Graph, Graphs, InputError, SearchSpace

WORD = 2**32
MOST_PATHS = 1024  # features of a path encoding: the longest are left out
ENCODINGS = ("one_hot", "adjacency", "path", "latent")
LAYOUTS = ("sequence", "adjacency", "tree")


def encoder(
    space: SearchSpace, encoding: str | None = None
) -> Callable[[Array], Array]:
    """Makes what turns one architecture into features, float32[F]; traceable.

    `one_hot`: a feature for each choice of each decision; it takes relaxed
    architectures float32[D, K] too. `adjacency`: whether each edge of the graph is
    there, and what its vertices do. `path`: whether there is a way from the input to
    the output on which these operations follow each other (White et al. 2021,
    arXiv:1910.11858); short sequences come first, and no more than `MOST_PATHS`.
    `latent`: what is given are features already, such as a generator's latents.
    By default `path` where the space has graphs, else `one_hot`.

    Raises:
      InputError: there is no such encoding, or the space has no graphs to encode; by
        the function, as it is traced, it was given features.
    """
    if encoding is None:
        encoding = "one_hot" if space.graphs is None else "path"
    if encoding not in ENCODINGS:
        raise InputError(
            f"expected an encoding of {', '.join(ENCODINGS)}, but got {encoding}: "
            "choose one of these"
        )
    if encoding == "latent":
        return lambda latent: latent
    if encoding == "one_hot":
        return lambda arch: _relaxed(arch, space.num_choices).ravel()
    if space.graphs is None:
        raise InputError(
            f"expected a space whose architectures are graphs for the {encoding} "
            f"encoding, but got {space.name}: choose one_hot"
        )
    graphs = graphs_of(space)
    if encoding == "adjacency":
        return lambda arch: adjacency(graphs.of(arch))
    return lambda arch: paths(graphs.of(arch), graphs.longest)


def _relaxed(arch, num_choices):
    if jnp.issubdtype(arch.dtype, jnp.floating) and arch.ndim == 2:
        return arch
    return one_hot(_whole(arch, "one_hot"), num_choices)


def _whole(arch, encoding):
    """Lets int32[D] pass: features would be taken for choices that there are not."""
    if jnp.issubdtype(arch.dtype, jnp.floating):
        raise InputError(
            f"expected an architecture int32[D] to encode as {encoding}, but got "
            f"features {arch.dtype}{list(arch.shape)}: for latents choose latent"
        )
    return arch


def adjacency(graph: Graph) -> Array:
    """The upper triangles of the edges and all operations: float32[F]."""
    rows, columns = np.triu_indices(graph.edges.shape[-1], 1)
    return jnp.concatenate(
        [graph.edges[:, rows, columns].ravel(), graph.ops[:, 1:-1].ravel()]
    )


def paths(graph: Graph, longest: int) -> Array:
    """Which sequences of operations lead from an input to an output: float32[F].

    Features go cell by cell, and there by length: sequences of 0 operations, of 1, and
    so on, each as many as O to the power of the length.
    """
    num_ops = graph.ops.shape[-1]
    sums = np.cumsum([num_ops**length for length in range(longest + 1)])
    kept = len([*takewhile(lambda so_far: so_far <= MOST_PATHS, sums.tolist())])

    def of_cell(ops, edges):
        # Ways that end at each vertex, by their operations; first the input alone.
        ending = jnp.zeros((len(ops), 1)).at[0].set(1.0)
        found = []
        for length in range(kept):
            reached = edges.T @ ending
            found.append(reached[-1])
            if length + 1 < kept:
                ending = (reached[:, :, None] * ops[:, None, :]).reshape(len(ops), -1)
        return jnp.minimum(jnp.concatenate(found), 1.0)

    return jax.vmap(of_cell)(graph.ops, graph.edges).ravel()


def graphs_of(space: SearchSpace) -> Graphs:
    """Those of a space; where it has none its decisions, one after the other.

    Raises:
      InputError: by `of`, as it is traced, where it is given features.
    """
    graphs = space.graphs or Graphs(
        lambda arch: _line(arch, space.num_choices), len(space.num_choices)
    )
    return graphs._replace(of=lambda arch: graphs.of(_whole(arch, "graph")))


def _line(arch, num_choices):
    ops = jnp.pad(one_hot(arch, num_choices), ((1, 1), (0, 0)))
    return Graph(ops[None], jnp.eye(len(ops), k=1)[None])


def edge_graphs(cells: Cells, concatenated: bool) -> Graphs:
    """How cells with operations on their edges are graphs with them on vertices.

    Each decision is a vertex, which follows those that enter the node that it leaves,
    or the input. A `none` has no edges; several inputs of a cell are one.

    Args:
      cells: decisions in the order in which nodes are computed.
      concatenated: whether all nodes are led to the output, or but those that no edge
        leaves.
    """
    each = list(zip(cells.sources, cells.targets, cells.reduction, strict=True))
    groups = [
        [d for d, edge in enumerate(each) if edge[2] == which]
        for which in sorted(set(cells.reduction))
    ]
    size = max(map(len, groups)) + 2
    possible = np.zeros((len(groups), size, size), np.float32)
    order = np.full((len(groups), size - 2), -1)
    for c, group in enumerate(groups):
        order[c, : len(group)] = group
        entered = {each[d][1] for d in group}
        left = {each[d][0] for d in group}
        for place, d in enumerate(group, 1):
            source, target = each[d][:2]
            possible[c, 0, place] = source not in entered
            possible[c, place, -1] = concatenated or target not in left
            for later, other in enumerate(group, 1):
                possible[c, place, later] = target == each[other][0]
    kept = [i for i, name in enumerate(cells.op_names) if name != "none"]
    none = cells.op_names.index("none")

    def of(arch: Array) -> Graph:
        chosen = jnp.where(order < 0, none, arch[order])
        ops = jax.nn.one_hot(chosen, len(cells.op_names))[..., np.array(kept)]
        ops = jnp.pad(ops, ((0, 0), (1, 1), (0, 0)))
        there = jnp.pad(chosen != none, ((0, 0), (1, 1)), constant_values=True)
        edges = jnp.array(possible) * there[:, :, None] * there[:, None, :]
        return Graph(ops, edges)

    return Graphs(of, _longest(possible))


def _longest(possible):
    """Most vertices between the first and the last on a way through any cell."""
    reached, length = possible[:, :1, :-1], 0
    while reached.any():
        reached = np.minimum(reached @ possible[:, :-1, :-1], 1)
        length += 1
    return length


def layout(space: SearchSpace, name: str) -> tuple[tuple[int, ...], ...]:
    """Where decisions stand in a grid: rows of their numbers, -1 where there is none.

    `sequence`: one row. `adjacency`: the matrices of the cells below each other, a row
    for each node that edges enter, a column for each that they leave; an operation of
    a vertex is on the diagonal. `tree`: a row for each node, its children: what enters
    it, and what it does.

    Args:
      space: of the decisions.
      name: of `LAYOUTS`.

    Raises:
      InputError: there is no such layout, or the space has no graphs to lay out.
    """
    if name not in LAYOUTS:
        raise InputError(
            f"expected an encoding of {', '.join(LAYOUTS)}, but got {name}: choose one"
        )
    decisions = range(len(space.num_choices))
    if name == "sequence":
        return (tuple(decisions),)
    placed, cells = space.graphs.places if space.graphs else None, space.cells
    if placed:
        rows, columns = zip(*placed, strict=True)
        cell: Sequence[int] = (0,) * len(rows)
    elif cells:
        cell, rows, columns = cells.reduction, cells.targets, cells.sources
    else:
        raise InputError(
            "expected a space whose decisions are edges and vertices of a graph for "
            f"the {name} encoding, but got {space.name}: choose sequence"
        )
    names = sorted(set(zip(cell, rows, strict=True)))
    width = max(columns) - min(columns) + 1
    grid = np.full((len(names), width), -1)
    for d in decisions:
        grid[names.index((cell[d], rows[d])), columns[d] - min(columns)] = d
    if name == "tree":  # what there is goes first
        order = np.argsort(grid < 0, axis=1, kind="stable")
        grid = np.take_along_axis(grid, order, 1)[:, : (grid >= 0).sum(1).max()]
    return tuple(map(tuple, grid.tolist()))


def is_valid(space: SearchSpace, arch: Array) -> Array:
    """Whether int32[D] is an architecture of the space: bool[]; traceable."""
    return jnp.all(space.discretize(one_hot(arch, space.num_choices)) == arch)


def one_hot(arch: Array, num_choices: Sequence[int]) -> Array:
    """Encodes int32[D] as float32[D, K], a one at each choice.

    A choice that a decision does not have gives a row of zeros.
    """
    encoded = jax.nn.one_hot(arch, max(num_choices), dtype=jnp.float32)
    return jnp.where(choices_exist(num_choices), encoded, 0.0)


def strongest(weights: Array, num_choices: Sequence[int]) -> Array:
    """Decodes float32[D, K] to int32[D], the strongest choice; of equals the first.

    Choices that a decision does not have are ignored: the inverse of `one_hot`.
    """
    masked = jnp.where(choices_exist(num_choices), weights, -jnp.inf)
    return jnp.argmax(masked, -1).astype(jnp.int32)


def choices_exist(num_choices: Sequence[int]) -> Array:
    """Which choices exist: bool[D, K]."""
    choices = jnp.arange(max(num_choices))
    return choices[None, :] < jnp.array(num_choices)[:, None]


def is_skip(arch: Array, cells: Cells) -> Array:
    """Where int32[D] has a skip connection in a normal cell: bool[D].

    What DARTS+ (Liang et al. 2019, arXiv:1909.06035) and P-DARTS (Chen et al. 2019,
    arXiv:1904.12760) count: `is_skip(arch, cells).sum()`. Reduction cells are left out.
    """
    in_normal = ~jnp.array(cells.reduction)
    return (arch == cells.op_names.index("skip_connect")) & in_normal


def mixed_radix(arch: Array, num_choices: Sequence[int]) -> Array:
    """Numbers architectures: int32[D] to uint32[W], different for different ones.

    A word takes as many decisions as 32 bits can tell apart, the first decision
    the most significant. So keys compare, word by word, as architectures do.
    """
    words = []
    for begin, end in _split(num_choices):
        word = jnp.zeros((), jnp.uint32)
        for d in range(begin, end):
            word = word * jnp.uint32(num_choices[d]) + arch[d].astype(jnp.uint32)
        words.append(word)
    return jnp.stack(words)


def _split(num_choices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges of decisions that share a word."""
    begin, size = 0, 1
    for d, choices in enumerate(num_choices):
        if size * choices > WORD:
            yield begin, d
            begin, size = d, 1
        size *= choices
    yield begin, len(num_choices)
