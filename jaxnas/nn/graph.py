"""The graph of a cell: its edges, which of them go together, fewer of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import PyTree
from jaxnas.nn.ops import OPS


class Edge(NamedTuple):
    """An edge of a cell, with the operations that it computes."""

    source: int  # state that it leaves
    target: int  # state that it enters, greater than source
    ops: tuple[str, ...]  # names in OPS: all of them in a supernet, else the chosen


def levels(num_inputs: int, num_states: int) -> list[tuple[int, ...]]:
    """The states, in tuples of those that are known at the same time."""
    return [tuple(range(num_inputs)), *((i,) for i in range(num_inputs, num_states))]


def groups(
    edges: tuple[Edge, ...], level: tuple[int, ...], op_name: str
) -> list[tuple[str, tuple[int, ...]]]:
    """The edges that compute an operation together, those of one state in a row.

    They leave a level, and equally many leave each state of it: else those of
    each state are a group. Returns a list of (name, indices of edges).
    """
    by_source: dict[str, tuple[int, ...]] = {}
    for source in level:
        users = [
            i for i, e in enumerate(edges) if e.source == source and op_name in e.ops
        ]
        if users:
            by_source[str(source)] = tuple(users)
    if len({len(users) for users in by_source.values()}) == 1:
        by_source = {"_".join(by_source): sum(by_source.values(), ())}
    return [(f"state{key}_{op_name}", users) for key, users in by_source.items()]


def restrict(
    params: PyTree, full: tuple[Edge, ...], chosen: tuple[Edge, ...]
) -> PyTree:
    """Takes the parameters of a cell of the chosen edges out of those of a full one.

    Args:
      params: of a `Cell` with edges `full`, or its batch statistics.
      full: edges of the cell that the parameters are of; some enter each state that
        is no input.
      chosen: edges of the smaller cell, each with a subset of the operations.
    """
    num_inputs = min(edge.target for edge in full)
    every = levels(num_inputs, max(edge.target for edge in full) + 1)
    restricted = {}
    for op_name in OPS:
        places = {}  # of an edge: its group's name, its row of so many
        for level in every:
            for name, users in groups(full, level, op_name):
                for row, user in enumerate(users):
                    places[full[user][:2]] = name, row, len(users)
        for level in every:
            for name, users in groups(chosen, level, op_name):
                found = [places[chosen[user][:2]] for user in users]
                if found[0][0] in params:
                    restricted[name] = _take(params, found)
    return restricted


def _take(params, places):
    """Takes the rows of edges, or of the states that they leave, once each."""
    names, rows, sizes = zip(*places, strict=True)

    def take(*leaves):
        at = [row * len(x) // n for row, x, n in zip(rows, leaves, sizes, strict=True)]
        wanted = list(zip(names, at, leaves, strict=True))
        if len(leaves[0]) < sizes[0]:
            wanted = list({(name, i): (name, i, x) for name, i, x in wanted}.values())
        return jnp.concatenate([x[i : i + 1] for _, i, x in wanted])

    return jax.tree.map(take, *(params[name] for name in names))
