"""Networks of blocks of parallel branches, merged and added to their input.

Branches of one input, added or concatenated, are the idea of ResNeXt (Xie et al. 2017,
arXiv:1611.05431) and of Inception (Szegedy et al. 2015, arXiv:1409.4842). What is
concatenated goes through a ReLU and a 1x1 convolution without a norm, as in
Inception-ResNet (Szegedy et al. 2017, arXiv:1602.07261): so a branch that is not there
adds nothing in either way, and a block without any is the identity.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxnas.base import PyTree
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge, restrict
from jaxnas.nn.ops import BatchNorm, Conv, ReluConvNorm, uniform_fan_in
from jaxnas.nn.skeleton import _keep, classifier, reductions

MERGES = ("add", "concat")
"""How the branches of a block become one."""


class Branching(NamedTuple):
    """What a block is made of; branch b is the edge from state 0 to state b + 1."""

    edges: tuple[Edge, ...]  # the branches that there are, by their target
    merges: tuple[str, ...]  # of MERGES: both in a supernet, else the chosen


class MultiBranchNetwork(nn.Module):
    """The whole network.

    A stem; blocks that keep the channels, of which those at one and two thirds come
    after a 3x3 convolution that halves the image and doubles the channels; batch norm
    and ReLU, global average pooling, a linear classifier.

    Attributes:
      blocks: one for each block that is decided upon.
      op_names: the K choices of a branch.
      channels: of the first block.
      cells: how many of each block there are, one after another.
      num_classes: how many.
      affine, pool_norm: see `jaxnas.nn.cell.Cell`. Norms outside of blocks are affine.
    """

    blocks: tuple[Branching, ...]
    op_names: tuple[str, ...]
    channels: int = 16
    cells: int = 1
    num_classes: int = 10
    affine: bool = True
    pool_norm: bool = False

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, H, W, colours], normalised.
          weights: float32[D, K], factors: for each block a row for each branch, and
            one for `MERGES`. None: all are one.
          drop_rate: float32[], the present probability that an example loses a
            branch (drop path, from the random stream "drop_path"). None: no branch.
          train: bool, whether batch norms use the statistics of the batch.
        """
        number = len(self.blocks)
        rows = [None] * number if weights is None else jnp.split(weights, number)
        x = Conv(self.channels, 3, name="stem")(images)
        x = BatchNorm(name="stem_norm")(x[None], train)[0]
        for i, block in enumerate(self.blocks):
            if i in reductions(number):
                widen = ReluConvNorm(1, 2 * x.shape[-1], 3, 2, name=f"reduction{i}")
                x = widen(x[None], train)[0]
            for place in range(i * self.cells, (i + 1) * self.cells):
                keep = _keep(self, drop_rate, (len(block.edges), len(x)))
                x = self._block(place, block)(x, rows[i], keep, train)
        x = nn.relu(BatchNorm(name="last_norm")(x[None], train)[0])
        return classifier(self.num_classes, x.mean((1, 2)))

    def _block(self, place, block):
        how = (self.op_names, self.affine, self.pool_norm)
        return Block(block, *how, name=f"block{place}")


class Block(nn.Module):
    """Adds what its branches make of its input to that input.

    Attributes:
      branching: its branches.
      op_names, affine, pool_norm: see `MultiBranchNetwork`.
    """

    branching: Branching
    op_names: tuple[str, ...]
    affine: bool
    pool_norm: bool

    @nn.compact
    def __call__(self, x, weights, keep, train):
        """Maps float32[N, H, W, C] to the same shape.

        Args:
          x: the input.
          weights: float32[branches + 1, K], or None, for ones.
          keep: float32[branches that there are, N] or None; see `Cell`.
          train: bool, whether batch norms use the statistics of the batch.
        """
        edges, merges = self.branching
        if not edges:
            return x
        num_states, channels = edges[-1].target + 1, x.shape[-1]
        if weights is None:
            weights = jnp.ones((num_states, len(self.op_names)), jnp.float32)
        branches = Cell(
            edges=edges,
            op_names=self.op_names,
            num_inputs=1,
            num_states=num_states,
            channels=channels,
            affine=self.affine,
            pool_norm=self.pool_norm,
            name="cell",
        )
        factors = jnp.stack([weights[edge.target - 1] for edge in edges])
        states = branches([x], factors, keep, train)
        states = [states[edge.target] for edge in edges]
        if "add" in merges:
            x = x + weights[-1, MERGES.index("add")] * sum(states)
        if "concat" in merges:
            shape = (len(edges), channels, channels)
            init = uniform_fan_in(len(edges) * channels)
            kernel = self.param("projection", init, shape).reshape(-1, channels)
            joined = nn.relu(jnp.concatenate(states, -1)) @ kernel
            x = x + weights[-1, MERGES.index("concat")] * joined
        return x


def restrict_block(params: PyTree, full: Branching, chosen: Branching) -> PyTree:
    """Takes the parameters of a block with fewer branches out of those of a full one.

    Args:
      params: of a `Block` of `full`, or its batch statistics.
      full: has every branch, and both ways to merge.
      chosen: a part of it.
    """
    branches = restrict(params["cell"], full.edges, chosen.edges)
    restricted = {"cell": branches} if branches else {}
    if "projection" in params and "concat" in chosen.merges and chosen.edges:
        rows = jnp.array([edge.target - 1 for edge in chosen.edges])
        restricted["projection"] = params["projection"][rows]
    return restricted
