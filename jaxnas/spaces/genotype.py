"""Genotypes of DARTS as the literature writes them, and as graphs.

`Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...],
reduce_concat=range(2, 6))` lists for each node its two edges, each an operation and
the state that it leaves: 0 and 1 are the cell's inputs, 2 to 5 its nodes.
"""

import ast

import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The choices of an edge, in the order of the paper's code."""

INPUTS, OUTPUT = ("c_{k-2}", "c_{k-1}"), "c_{k}"
"""Names of a cell's inputs and output in `cell_edges`."""

TARGETS, SOURCES = zip(*[(t, s) for t in range(2, 6) for s in range(t)], strict=True)
"""The state that each of a cell's 14 edges enters, and the one it leaves."""

DARTS_V1 = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('avg_pool_3x3', 0)], reduce_concat=[2, 3, 4, 5])"
)
"""What the paper's authors found in first order on CIFAR-10."""

DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), "
    "('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), "
    "('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
"""What the paper's authors found in second order on CIFAR-10."""

EXAMPLE = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), ...)"
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


def _used(arch):
    """For each cell of an int32[28], its edges: (operation, source, target)."""
    return [
        [
            (OPS[op], source, target)
            for source, target, op in zip(SOURCES, TARGETS, cell, strict=True)
            if op
        ]
        for cell in np.asarray(arch).reshape(2, len(SOURCES))
    ]


def to_string(arch: Array) -> str:
    """Writes a valid int32[28] as a genotype, the edges of a node by source."""
    normal, reduce = ([edge[:2] for edge in cell] for cell in _used(arch))
    return (
        f"Genotype(normal={normal}, normal_concat=range(2, 6), "
        f"reduce={reduce}, reduce_concat=range(2, 6))"
    )


def cell_edges(arch: Array) -> dict[str, list[tuple[str, str, str]]]:
    """Both cells of a valid int32[28] as graphs that can be drawn.

    Returns:
      "normal" and "reduce" -> (source, target, operation) of each edge. Nodes are
      "0" to "3", the others named as in `INPUTS` and `OUTPUT`. The edges into the
      output have no operation, "".
    """
    states = [*INPUTS, "0", "1", "2", "3"]
    outputs = [(node, OUTPUT, "") for node in states[2:]]
    normal, reduce = (
        [(states[source], states[target], op) for op, source, target in cell] + outputs
        for cell in _used(arch)
    )
    return {"normal": normal, "reduce": reduce}


def from_string(genotype: str) -> Array:
    """Reads a genotype, without running it, as an int32[28].

    The two edges of a node may come in any order, the concatenated states as a
    range or a list.

    Raises:
      InputError: it is no string, no genotype, or not one of this space.
    """
    fields = _parse(genotype)
    for name in ("normal_concat", "reduce_concat"):
        if fields[name] not in (range(2, 6), [2, 3, 4, 5], (2, 3, 4, 5)):
            raise InputError(
                f"expected {name}=range(2, 6), all four nodes, but got "
                f"{fields[name]!r}: other concatenations are not in this space"
            )
    cells = [_read_cell(name, fields[name]) for name in ("normal", "reduce")]
    return jnp.array(cells, jnp.int32).reshape(-1)


def _parse(genotype):
    """Takes the keyword arguments of `Genotype(...)` apart."""
    wrong = f"expected a genotype {EXAMPLE}, but got {_shorten(genotype)}: "
    if not isinstance(genotype, str):
        raise InputError(wrong + "pass a string")
    try:
        call = ast.parse(genotype.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(wrong + "check brackets, quotes and commas") from error
    if not isinstance(call, ast.Call) or _name(call.func) != "Genotype" or call.args:
        raise InputError(wrong + "write it as a call of Genotype with these names")
    names = [keyword.arg for keyword in call.keywords]
    if sorted(map(str, names)) != sorted(FIELDS):
        raise InputError(wrong + f"name each of {', '.join(FIELDS)} once")
    try:
        return {k.arg: _literal(k.value) for k in call.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(wrong + "use nothing but strings, numbers, lists") from error


def _literal(node):
    """A value of numbers, strings, tuples and lists, or a range of numbers."""
    if isinstance(node, ast.Call) and _name(node.func) == "range" and not node.keywords:
        return range(*map(ast.literal_eval, node.args))
    return ast.literal_eval(node)


def _name(node):
    return node.id if isinstance(node, ast.Name) else None


def _shorten(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read_cell(name, edges):
    """Reads the eight edges of a cell, two for each node: a list of 14 choices."""
    if not isinstance(edges, list | tuple) or len(edges) != 8:
        got = f"{len(edges)}" if isinstance(edges, list | tuple) else _shorten(edges)
        raise InputError(
            f"expected 8 edges in {name}, two for each of four nodes, but got {got}: "
            "write them as a list of (operation, state)"
        )
    cell = [0] * len(SOURCES)
    positions = list(zip(SOURCES, TARGETS, strict=True))
    for i, edge in enumerate(edges):
        node = i // 2
        op, source = _read_edge(f"edge {i} of {name}", edge, node)
        position = positions.index((source, node + 2))
        if cell[position]:
            raise InputError(
                f"expected two different states into node {node} of {name}, but got "
                f"{source} twice: an edge has one operation"
            )
        cell[position] = OPS.index(op)
    return cell


def _read_edge(where, edge, node):
    if not isinstance(edge, list | tuple) or len(edge) != 2:
        raise InputError(
            f"expected (operation, state) as {where}, but got {_shorten(edge)}: "
            "write for example ('sep_conv_3x3', 0)"
        )
    op, source = edge
    if not isinstance(op, str) or op not in OPS[1:]:
        raise InputError(
            f"expected an operation of {', '.join(OPS[1:])} in {where}, but got "
            f"{_shorten(op)}: choose one of these"
        )
    if type(source) is not int or not 0 <= source < node + 2:
        raise InputError(
            f"expected a state from 0 to {node + 1} in {where}, into node {node}, but "
            f"got {_shorten(source)}: edges lead from inputs or earlier nodes"
        )
    return op, source
