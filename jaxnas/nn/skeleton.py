"""Whole networks made of cells: a stem, stacked cells, a classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.nn.cell import Cell, Edge
from jaxnas.nn.ops import (
    BatchNorm,
    FactorizedReduce,
    ReluConvNorm,
    conv,
    uniform_fan_in,
)


class DartsNetwork(nn.Module):
    """The network of DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055).

    A stem of 3 * channels; `cells` cells, of which those at one and two thirds
    halve the image and double the channels; global average pooling; a linear
    classifier. A cell's inputs are the outputs of the two cells before it.

    Attributes:
      normal, reduce: edges of the two kinds of cells. States 0 and 1 are the
        inputs; the others are concatenated.
      op_names: the K choices of an edge.
      channels: of a state in the first cell.
      cells: how many.
      num_classes: how many.
      affine, pool_norm: see `jaxnas.nn.cell.Cell`.
      auxiliary: whether a second classifier learns from the cell at two thirds; its
        logits are sown as "logits" into the collection "auxiliary" in training.
      remat: whether the backward pass computes each cell anew, to save memory.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    op_names: tuple[str, ...]
    channels: int = 16
    cells: int = 8
    num_classes: int = 10
    affine: bool = True
    pool_norm: bool = False
    auxiliary: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, H, W, colours], normalised.
          weights: float32[D, K], factors of the operations, the normal cell's
            edges first. None: all are one.
          drop_rate: float32[], the present probability that an example loses an
            edge (drop path, from the random stream "drop_path"). None: no edge.
          train: bool, whether batch norms use the statistics of the batch.
        """
        if weights is None:
            edges = len(self.normal) + len(self.reduce)
            weights = jnp.ones((edges, len(self.op_names)))
        parts = weights[: len(self.normal)], weights[len(self.normal) :]
        x = conv(3 * self.channels, 3, name="stem")(images)
        x = BatchNorm(name="stem_norm")(x[None], train)[0]
        before, channels, was_reduced = x, self.channels, False
        halvings = self.cells // 3, 2 * self.cells // 3
        for i in range(self.cells):
            reduce = i in halvings
            channels *= 1 + reduce
            inputs = self._inputs(i, before, x, channels, was_reduced, train)
            keep = self._keep(drop_rate, reduce, len(x))
            states = self._cell(i, reduce, channels)(inputs, parts[reduce], keep, train)
            before, x, was_reduced = x, jnp.concatenate(states[2:], -1), reduce
            if self.auxiliary and train and i == halvings[1]:
                head = AuxiliaryHead(self.num_classes, name="auxiliary")
                self.sow("auxiliary", "logits", head(x, train))
        return classifier(self.num_classes, x.mean((1, 2)))

    def _inputs(self, i, before, x, channels, was_reduced, train):
        fit = FactorizedReduce if was_reduced else ReluConvNorm
        first = fit(1, channels, affine=self.affine, name=f"cell{i}_input0")
        second = ReluConvNorm(1, channels, affine=self.affine, name=f"cell{i}_input1")
        return [first(before, train)[0], second(x, train)[0]]

    def _cell(self, i, reduce, channels):
        kind = nn.remat(Cell, static_argnums=(4,)) if self.remat else Cell
        return kind(
            edges=self.reduce if reduce else self.normal,
            op_names=self.op_names,
            num_inputs=2,
            num_states=6,
            channels=channels,
            stride=1 + reduce,
            affine=self.affine,
            pool_norm=self.pool_norm,
            name=f"cell{i}",
        )

    def _keep(self, drop_rate, reduce, num_images):
        """Drop path: zero for the lost edges, more than one for the others."""
        if drop_rate is None:
            return None
        shape = (len(self.reduce if reduce else self.normal), num_images)
        kept = jax.random.bernoulli(self.make_rng("drop_path"), 1 - drop_rate, shape)
        return kept / (1 - drop_rate)


class AuxiliaryHead(nn.Module):
    """DARTS's second classifier: pooled to 2x2 pixels, two convolutions, linear.

    The published one takes 8x8 pixels, pooled 5x5 every 3; other sizes are pooled
    in proportion. Raises ValueError for images of one pixel.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        """Maps float32[N, H, W, C] to logits float32[N, num_classes]."""
        window = [min(size // 2 + 1, size - 1) for size in x.shape[1:3]]
        if min(window) < 1:
            raise ValueError(f"an auxiliary head needs 2x2 pixels, got {x.shape[1:3]}")
        stride = [size - w for size, w in zip(x.shape[1:3], window, strict=True)]
        x = nn.avg_pool(nn.relu(x), window, stride)
        x = nn.relu(BatchNorm()(conv(128, 1)(x)[None], train))[0]
        x = nn.relu(BatchNorm()(conv(768, 2, padding=0)(x)[None], train))[0]
        return classifier(self.num_classes, x.reshape(len(x), -1))


def classifier(num_classes, features):
    """A linear layer on float32[N, C], initialised as PyTorch does."""
    init = uniform_fan_in(features.shape[-1])
    return nn.Dense(num_classes, kernel_init=init, bias_init=init)(features)
