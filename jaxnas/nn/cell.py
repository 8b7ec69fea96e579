"""A cell: a small graph of states, with operations on its edges."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array
from jaxnas.nn.apart import apart
from jaxnas.nn.ops import OPS, Identity

materialise = apart(lax.optimization_barrier)


class Edge(NamedTuple):
    """An edge of a cell, with the operations that it computes."""

    source: int  # state that it leaves
    target: int  # state that it enters, greater than source
    ops: tuple[str, ...]  # names in OPS: all of them in a supernet, else the chosen


class Cell(nn.Module):
    """Computes the states of a cell from its input states.

    A state is the sum of the edges that enter it, an edge the sum of its
    operations, each times its weight. Edges that share their source and their
    operation are computed together, see `jaxnas.nn.ops`.

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
        for source in range(self.num_states):
            if source >= self.num_inputs:
                arrived = entering[source] or [jnp.zeros_like(states[-1])[None]]
                states.append(materialise(sum(arrived))[0])
            stride = self.stride if source < self.num_inputs else 1
            for users, outputs in self._groups(source, stride, states[source], train):
                rows = (
                    _rows(weights, users),
                    keep if keep is None else _rows(keep, users),
                )
                mixed = materialise(_mix(outputs, *rows))
                parts = lax.split(mixed, (1,) * len(users))
                for edge, value in zip(users, parts, strict=True):
                    entering[self.edges[edge].target].append(value)
        return states

    def _groups(self, source, stride, x, train):
        """Computes the operations that leave a state, grouped by their users.

        Returns a list of (edges, [(k, float32[E or 1, N, H, W, C], exempt)]).
        """
        groups: dict[tuple[int, ...], list] = {}
        for k, name in enumerate(self.op_names):
            users = tuple(
                i
                for i, edge in enumerate(self.edges)
                if edge.source == source and name in edge.ops
            )
            if users and name in OPS:
                how = (len(users), self.channels, stride, self.affine, self.pool_norm)
                op = OPS[name](*how, name=f"state{source}_{name}")
                output = (k, op(x, train), isinstance(op, Identity))
                groups.setdefault(users, []).append(output)
        return groups.items()


def _rows(x, indices):
    """Takes rows, without the gather whose gradient compiles slowly."""
    rows = lax.split(x, (1,) * len(x))
    return jnp.concatenate([rows[i] for i in indices])


def _mix(outputs, weights, keep):
    """Sums operations that the same edges use, weighted: float32[E, N, H, W, C]."""
    total: Array | float = 0.0
    alike = []  # the same for all edges: mixed by one product, else XLA computes
    for k, y, exempt in outputs:  # them again for each edge
        factor = weights[:, k : k + 1]
        if keep is not None and not exempt:
            factor = factor * keep
        elif len(y) == 1:
            alike.append((k, y))
            continue
        total += factor[:, :, None, None, None] * y
    if alike:
        factors = jnp.stack([weights[:, k] for k, _ in alike], 1)
        stacked = jnp.concatenate([y for _, y in alike])
        total += jnp.einsum("ep,pnhwc->enhwc", factors, stacked)
    return total


def restrict(params, full: tuple[Edge, ...], chosen: tuple[Edge, ...]):
    """Takes the parameters of a cell of the chosen edges out of those of a full one.

    Args:
      params: of a `Cell` with edges `full`, or its batch statistics.
      full: edges of the cell that the parameters are of.
      chosen: edges of the smaller cell, each with a subset of the operations.
    """

    def users(edges, source, name):
        return [
            (e.source, e.target) for e in edges if e.source == source and name in e.ops
        ]

    restricted = {}
    for group, leaves in params.items():
        source, name = group.removeprefix("state").split("_", 1)
        all_users = users(full, int(source), name)
        rows = [all_users.index(user) for user in users(chosen, int(source), name)]
        if rows:
            restricted[group] = jax.tree.map(partial(_take, rows), leaves)
    return restricted


def _take(rows, leaf):
    """Takes rows of the edge axis, unless all edges share the one row."""
    return leaf if len(leaf) == 1 else leaf[np.array(rows)]
