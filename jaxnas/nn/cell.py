"""A cell: a small graph of states, with operations on its edges."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array
from jaxnas.nn.apart import materialise
from jaxnas.nn.ops import OPS, Identity


class Edge(NamedTuple):
    """An edge of a cell, with the operations that it computes."""

    source: int  # state that it leaves
    target: int  # state that it enters, greater than source
    ops: tuple[str, ...]  # names in OPS: all of them in a supernet, else the chosen


class Cell(nn.Module):
    """Computes the states of a cell from its input states.

    A state is the sum of the edges that enter it, an edge the sum of its
    operations, each times its weight. Edges that leave the inputs, or one other
    state, and share an operation are computed together, see `jaxnas.nn.ops`.

    Attributes:
      edges: of the graph.
      op_names: the K choices of an edge; one that is not in OPS contributes nothing.
      num_inputs: how many states are given.
      num_states: inputs included. A state that no edge enters is zero.
      channels: of every state that is no input.
      stride: of the edges that leave an input.
      affine: whether batch norms learn a scale and a shift.
      pool_norm: whether pooling is normalised, as it is in supernets.
    """

    edges: tuple[Edge, ...]
    op_names: tuple[str, ...]
    num_inputs: int
    num_states: int
    channels: int
    stride: int = 1
    affine: bool = True
    pool_norm: bool = False

    @nn.compact
    def __call__(self, inputs, weights, keep, train):
        """Returns the list of all states, inputs first, each float32[N, H, W, C].

        Args:
          inputs: the input states, each float32[N, H, W, C].
          weights: float32[len(edges), K], a factor of each operation.
          keep: float32[len(edges), N], a factor of each edge and example from
            which a plain identity is exempt: drop path. Or None, for no factor.
          train: bool, whether batch norms use the statistics of the batch.
        """
        states = list(inputs)
        entering: list[list] = [[] for _ in range(self.num_states)]
        for level in _levels(self.num_inputs, self.num_states):
            if level[0] >= self.num_inputs:
                arrived = entering[level[0]] or [jnp.zeros_like(states[-1])[None]]
                states.append(materialise(sum(arrived))[0])
            for users, outputs in self._mixtures(level, states, train).items():
                rows = (
                    _rows(weights, users),
                    keep if keep is None else _rows(keep, users),
                )
                mixed = materialise(_mix(outputs, *rows))
                parts = lax.split(mixed, (1,) * len(users))
                for edge, value in zip(users, parts, strict=True):
                    entering[self.edges[edge].target].append(value)
        return states

    def _mixtures(self, level, states, train):
        """Computes the operations that leave a level, by the edges that use them.

        Returns a dict from edges to [(k, float32[E or S, N, H, W, C], exempt)].
        """
        stride = self.stride if level[0] < self.num_inputs else 1
        mixtures: dict[tuple[int, ...], list] = {}
        for k, op_name in enumerate(self.op_names):
            if op_name not in OPS:
                continue
            for name, users in _groups(self.edges, level, op_name):
                sources = dict.fromkeys(self.edges[i].source for i in users)
                x = jnp.stack([states[source] for source in sources])
                how = (len(users), self.channels, stride, self.affine, self.pool_norm)
                op = OPS[op_name](*how, name=name)
                output = (k, op(x, train), isinstance(op, Identity))
                mixtures.setdefault(users, []).append(output)
        return mixtures


def _levels(num_inputs, num_states):
    """The states, in tuples of those that are known at the same time."""
    return [tuple(range(num_inputs)), *((i,) for i in range(num_inputs, num_states))]


def _groups(edges, level, op_name):
    """The edges that compute an operation together, those of one state in a row.

    They leave a level, and equally many leave each state of it: else those of
    each state are a group. Returns a list of (name, indices of edges).
    """
    by_source = {}
    for source in level:
        users = [
            i for i, e in enumerate(edges) if e.source == source and op_name in e.ops
        ]
        if users:
            by_source[source] = tuple(users)
    if len({len(users) for users in by_source.values()}) == 1:
        by_source = {"_".join(map(str, by_source)): sum(by_source.values(), ())}
    return [(f"state{key}_{op_name}", users) for key, users in by_source.items()]


def _rows(x, indices):
    """Takes rows, without the gather whose gradient compiles slowly."""
    rows = lax.split(x, (1,) * len(x))
    return jnp.concatenate([rows[i] for i in indices])


def _mix(outputs, weights, keep):
    """Sums operations that the same edges use, weighted: float32[E, N, H, W, C]."""
    total: Array | float = 0.0
    alike = []  # the same for all edges of a state: mixed by one product, else XLA
    for k, y, exempt in outputs:  # computes them again for each edge
        factor = weights[:, k : k + 1]
        if keep is not None and not exempt:
            factor = factor * keep
            y = jnp.repeat(y, len(weights) // len(y), 0)
        elif len(y) < len(weights):
            alike.append((k, y))
            continue
        total += factor[:, :, None, None, None] * y
    if alike:
        stacked = jnp.stack([y for _, y in alike], 1)
        factors = jnp.stack([weights[:, k] for k, _ in alike], 1)
        factors = factors.reshape(len(stacked), -1, len(alike))
        mixed = jnp.einsum("sep,spnhwc->senhwc", factors, stacked)
        total += mixed.reshape(-1, *mixed.shape[2:])
    return total


def restrict(params, full: tuple[Edge, ...], chosen: tuple[Edge, ...]):
    """Takes the parameters of a cell of the chosen edges out of those of a full one.

    Args:
      params: of a `Cell` with edges `full`, or its batch statistics.
      full: edges of the cell that the parameters are of; some enter each state that
        is no input.
      chosen: edges of the smaller cell, each with a subset of the operations.
    """
    num_inputs = min(edge.target for edge in full)
    levels = _levels(num_inputs, max(edge.target for edge in full) + 1)
    restricted = {}
    for op_name in OPS:
        places = {}  # of an edge: its group's name, its row of so many
        for level in levels:
            for name, users in _groups(full, level, op_name):
                for row, user in enumerate(users):
                    places[full[user][:2]] = name, row, len(users)
        for level in levels:
            for name, users in _groups(chosen, level, op_name):
                found = [places[chosen[user][:2]] for user in users]
                if found[0][0] in params:
                    restricted[name] = _take(params, found)
    return restricted


def _take(params, places):
    """Takes the rows of edges, or of the states that they leave, once each."""
    groups, rows, sizes = zip(*places, strict=True)

    def take(*leaves):
        at = [row * len(x) // n for row, x, n in zip(rows, leaves, sizes, strict=True)]
        wanted = list(zip(groups, at, leaves, strict=True))
        if len(leaves[0]) < sizes[0]:
            wanted = list(
                {(group, i): (group, i, x) for group, i, x in wanted}.values()
            )
        return jnp.concatenate([x[i : i + 1] for _, i, x in wanted])

    return jax.tree.map(take, *(params[group] for group in groups))
