"""Where the parts of a cell stand: layers from left to right.

After Sugiyama, Tagawa and Toda, "Methods for Visual Understanding of Hierarchical
System Structures" (1981, https://doi.org/10.1109/TSMC.1981.4308636): columns by
longest path, an order in each column with few crossings, then the heights that
bend the edges least (Gansner et al., 1993, https://doi.org/10.1109/32.221135).
An operation is a box of its own between its two nodes, and a line that passes a
column has a place in it, so that neither can run into another box.

Vertices are ("node", name), ("op", index of the edge) and ("line", source, column):
there the output of `source` runs through a column. Lines from one source run
together until they branch.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from jaxnas.base import InputError

Vertex = tuple  # (kind, ...)
Columns = list[list[Vertex]]
Edges = Sequence[tuple[str, str, str]]  # source, target, operation ("" for none)

# Points. What a vertex takes in its column is a multiple of one unit, so that
# straight lines are not bent by a point or two.
SLOT = {"node": 30.0, "op": 30.0, "line": 10.0}
GAP, MAX_GAP = 26.0, 60.0  # between two columns


class Place(NamedTuple):
    """Where a vertex stands: points from the upper left corner of its cell."""

    x: float
    y: float
    width: float
    left: float  # of its column
    right: float
    label: str  # "" for a line


class Layout(NamedTuple):
    """A placed cell."""

    edges: list[tuple[Vertex, Vertex]]
    places: dict[Vertex, Place]
    width: float  # points
    height: float


def place_cell(
    edges: Edges,
    inputs: Sequence[str],
    output: str,
    width_of: Callable[[str], float],
) -> Layout:
    """Places the nodes, operations and lines of a cell.

    Args:
      edges: (source, target, operation) with an empty operation for a plain line.
      inputs: names of the nodes in the first column, from the top.
      output: name of the node in the last column.
      width_of: name of a node or an operation -> width of its box in points.

    Raises:
      InputError: for a cycle, for an edge into an input or out of the output.
    """
    graph, columns = _layers(edges, inputs, output)
    columns = _order(graph, columns)
    heights = _heights(graph, columns)
    labels = {("op", index): op for index, (*_, op) in enumerate(edges)}
    labels |= {vertex: vertex[1] for vertex in graph if vertex[0] == "node"}
    width = {v: width_of(labels[v]) if v in labels else 0.0 for v in graph}
    places, left, right = {}, 0.0, 0.0
    for column in columns:
        right = left + max(width[v] for v in column)
        for v in column:
            x = (left + right) / 2
            places[v] = Place(x, heights[v], width[v], left, right, labels.get(v, ""))
        drops = [abs(heights[u] - heights[v]) for u in column for v in graph.succ[u]]
        left = right + min(max([GAP, *(0.3 * drop for drop in drops)]), MAX_GAP)
    bottom = max(heights[v] + SLOT[v[0]] / 2 for v in graph)
    return Layout(list(graph.edges), places, right, bottom)


def stretch(layout: Layout, width: float) -> Layout:
    """Widens the gaps between columns evenly, until the cell is `width` points wide."""
    lefts = sorted({place.left for place in layout.places.values()})
    extra = (width - layout.width) / max(len(lefts) - 1, 1)
    places = {}
    for vertex, place in layout.places.items():
        shift = extra * lefts.index(place.left)
        x, left, right = (shift + old for old in (place.x, place.left, place.right))
        places[vertex] = place._replace(x=x, left=left, right=right)
    return layout._replace(places=places, width=width)


def _layers(
    edges: Edges, inputs: Sequence[str], output: str
) -> tuple[nx.DiGraph, Columns]:
    """Deals the vertices out to columns: by longest path, an operation last."""
    flow = nx.DiGraph()
    flow.add_nodes_from(inputs)
    flow.add_edges_from(edge[:2] for edge in edges)
    flow.add_node(output)
    if not nx.is_directed_acyclic_graph(flow):
        raise InputError("expected a cell without cycles, got one; remove an edge")
    if flow.out_degree(output) or any(flow.in_degree(name) for name in inputs):
        raise InputError(
            f"expected no edge into the inputs {list(inputs)} or out of the output "
            f"{output!r}, got one; name the inputs and the output of this cell"
        )
    generations = enumerate(nx.topological_generations(flow))
    rank = {name: 2 * index for index, names in generations for name in names}
    rank[output] = max(2, *rank.values())
    # An odd column exists where there is an operation, before its target.
    used = {*rank.values(), *(rank[target] - 1 for _, target, op in edges if op)}
    column_of = {rank: column for column, rank in enumerate(sorted(used))}
    graph = nx.DiGraph()
    columns: Columns = [[] for _ in used]
    for name in flow:
        columns[column_of[rank[name]]].append(("node", name))
        graph.add_node(("node", name))
    for index, (source, target, op) in enumerate(edges):
        end = column_of[rank[target] - bool(op)]
        passed = range(column_of[rank[source]] + 1, end)
        path: list[Vertex] = [("node", source)]
        path += [("line", source, column) for column in passed]
        path += [("op", index)] * bool(op) + [("node", target)]
        for vertex, column in zip(path[1:], [*passed, end], strict=False):
            if vertex not in graph:
                columns[column].append(vertex)
                graph.add_node(vertex)
        nx.add_path(graph, path)
    return graph, columns


def _order(
    graph: nx.DiGraph, columns: Columns, num_starts: int = 10, num_sweeps: int = 8
) -> Columns:
    """Sorts columns by barycentres, to and fro; the first column stays as it is."""
    generator = np.random.default_rng(0)
    best, fewest = columns, _crossings(graph, columns)
    for start in range(num_starts):
        trial = [list(column) for column in columns]
        for column in trial[1:] if start else []:
            column[:] = [column[i] for i in generator.permutation(len(column))]
        for sweep in range(num_sweeps):
            forward = sweep % 2 == 0
            neighbours = graph.pred if forward else graph.succ
            for column in trial[1:] if forward else trial[:0:-1]:
                _sort(column, trial, neighbours)
            if (crossings := _crossings(graph, trial)) < fewest:
                best, fewest = [list(column) for column in trial], crossings
    return best


def _sort(column: list[Vertex], columns: Columns, neighbours: Mapping) -> None:
    """Sorts a column by the mean height of each vertex's neighbours."""
    height: dict[Vertex, float] = {}
    for vertices in columns:
        slots = np.array([SLOT[vertex[0]] for vertex in vertices])
        middles = np.cumsum(slots) - slots / 2 - np.sum(slots) / 2
        height |= dict(zip(vertices, middles, strict=True))
    mean = {
        vertex: np.mean([height[v] for v in neighbours[vertex]] or height[vertex])
        for vertex in column
    }
    column.sort(key=mean.__getitem__)


def _crossings(graph: nx.DiGraph, columns: Columns) -> int:
    """Counts the pairs of edges between two columns whose ends are in other orders."""
    rank = {v: index for column in columns for index, v in enumerate(column)}
    count = 0
    for column in columns:
        pairs = [(rank[u], rank[v]) for u in column for v in graph.succ[u]]
        u, v = np.array(pairs, int).reshape(-1, 2).T
        count += int(np.sum((u[:, None] < u) & (v[:, None] > v)))
    return count


def _heights(graph: nx.DiGraph, columns: Columns) -> dict[Vertex, float]:
    """Solves the linear program of the least bending for y, the heights in points.

    It minimises the weighted sum of |y_u - y_v| over edges, long lines first, and
    of each node's distance from the mean of those before it, subject to the order
    and the slots in each column.
    """
    index = {vertex: i for i, vertex in enumerate(graph)}

    def difference(vertex: Vertex, others: list[Vertex]) -> NDArray[np.float64]:
        row = np.zeros(len(index))
        row[index[vertex]] = 1
        row[[index[other] for other in others]] = -1 / len(others)
        return row

    terms, costs, orders, slots = [], [], [], []
    for u, v in graph.edges:
        terms.append(difference(u, [v]))
        costs.append(1 + 2 * (u[0] == "line") + 2 * (v[0] == "line"))
    for vertex in graph:
        others = list(graph.pred[vertex]) or list(graph.succ[vertex])
        if vertex[0] == "node" and others:
            terms.append(difference(vertex, others))
            costs.append(0.5)
    for column in columns:
        for u, v in itertools.pairwise(column):
            orders.append(difference(u, [v]))
            slots.append((SLOT[u[0]] + SLOT[v[0]]) / 2)
    # |term| <= bound takes two rows; the bounds are what is minimised.
    term, order = (np.reshape(rows, (-1, len(index))) for rows in (terms, orders))
    bound = np.eye(len(terms))
    none = np.zeros((len(orders), len(terms)))
    solution = linprog(
        c=[0] * len(index) + costs,
        A_ub=np.block([[term, -bound], [-term, -bound], [order, none]]),
        b_ub=[0] * 2 * len(terms) + [-slot for slot in slots],
    )
    top = min(solution.x[i] - SLOT[vertex[0]] / 2 for vertex, i in index.items())
    return {vertex: float(solution.x[i] - top) for vertex, i in index.items()}
