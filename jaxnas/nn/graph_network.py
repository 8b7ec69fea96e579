"""Convolutions over the graph of an architecture, in both directions.

Wen, Liu, Li, Chen, Bender and Kindermans 2020, arXiv:1912.00848.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxnas.base import Array, Graph


class GraphNetwork(nn.Module):
    """Maps a `Graph` to a float32[num_outputs].

    Attributes:
      width: units of each layer.
      layers: convolutions over the graph.
      num_outputs: how many.
      pooled: whether vertices are averaged, or else stay apart, by their order.
    """

    width: int
    layers: int
    num_outputs: int = 1
    pooled: bool = True

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
        x = jnp.where(there, x, 0.0)
        x = x.sum(1) / there.sum(1) if self.pooled else x
        return nn.Dense(self.num_outputs)(nn.relu(nn.Dense(self.width)(x.ravel())))
