"""The graph predictor: convolutions over an architecture's graph, in both directions.

Wen, Liu, Li, Chen, Bender and Kindermans 2020, arXiv:1912.00848: the neural predictor.
Where a space has no graphs, an architecture is its decisions one after the other.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxnas.base import Array, Graph, SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.encoding import graphs_of
from jaxnas.surrogates.deep_ensemble import deep_ensemble


class GraphNetwork(nn.Module):
    """Maps a `Graph` to a float32[]."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        cells, vertices, _ = graph.ops.shape
        ends = jnp.zeros((vertices, 2)).at[0, 0].set(1.0).at[-1, 1].set(1.0)
        ends = jnp.broadcast_to(ends[None], (cells, vertices, 2))
        x = jnp.concatenate([graph.ops, ends], 2)
        there = x.any(2, keepdims=True)
        edges = graph.edges + jnp.eye(vertices)[None]
        forwards = edges / edges.sum(2, keepdims=True)
        back = edges.mT
        backwards = back / back.sum(2, keepdims=True)
        for _ in range(self.layers):
            one = nn.relu(forwards @ nn.Dense(self.width)(x))
            other = nn.relu(backwards @ nn.Dense(self.width)(x))
            x = (one + other) / 2
        mean = jnp.where(there, x, 0.0).sum(1) / there.sum(1)
        return nn.Dense(1)(nn.relu(nn.Dense(self.width)(mean.ravel())))[0]


def graph_predictor(
    space: SearchSpace,
    *,
    width: int = 32,
    layers: int = 3,
    targets: str = "ranks",
    num_members: int = 5,
    num_updates: int = 100,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
) -> Surrogate:
    """Makes the surrogate.

    Args:
      space: whose architectures are graphs.
      width: units of each layer, 1 or more.
      layers: convolutions over the graph, 1 or more.
      targets: of `TARGETS`.
      num_members: networks, 2 or more.
      num_updates: in each `fit`, which goes on from the last; 0 or more.
      learning_rate: of AdamW, 0 or more.
      weight_decay: of AdamW, times the learning rate; 0 or more.

    Raises:
      InputError: a number is too small, or the targets are none of `TARGETS`.
    """
    expect(1, width=width, layers=layers)
    return deep_ensemble(
        space,
        GraphNetwork(width, layers),
        graphs_of(space).of,
        targets=targets,
        num_members=num_members,
        num_updates=num_updates,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
