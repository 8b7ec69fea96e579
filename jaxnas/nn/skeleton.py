"""Whole networks made of cells: a stem, stacked cells, a classifier."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.base import PyTree
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge, restrict
from jaxnas.nn.ops import (
    BatchNorm,
    Conv,
    FactorizedReduce,
    ReluConvNorm,
    uniform_fan_in,
)
from jaxnas.nn.probes import relu, rescale


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
      affine, pool_norm, single_path, partial: see `jaxnas.nn.cell.Cell`. With affine
        None the whole network has no norms.
      auxiliary: whether a second classifier learns from the cell at two thirds; its
        logits are sown as "logits" into the collection "auxiliary" in training. Its
        parameters are made where the network is initialised with `train=True`.
      remat: whether the backward pass computes each cell anew, to save memory.
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    op_names: tuple[str, ...]
    channels: int = 16
    cells: int = 8
    num_classes: int = 10
    affine: bool | None = True
    pool_norm: bool = False
    single_path: bool = False
    partial: int = 1
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
            weights = jnp.ones((edges, len(self.op_names)), jnp.float32)
        parts = weights[: len(self.normal)], weights[len(self.normal) :]
        x = Conv(3 * self.channels, 3, name="stem")(images)
        x = BatchNorm(_outer(self.affine), name="stem_norm")(x[None], train)[0]
        before, channels, was_reduced = x, self.channels, False
        halvings = reductions(self.cells)
        for i in range(self.cells):
            reduce = i in halvings
            channels *= 1 + reduce
            inputs = self._inputs(i, before, x, channels, was_reduced, train)
            keep = _keep(self, drop_rate, (len(parts[reduce]), len(x)))
            states = self._cell(i, reduce, channels)(inputs, parts[reduce], keep, train)
            x, joined = rescale(self, x, jnp.concatenate(states[2:], -1))
            before, x, was_reduced = x, joined, reduce
            if self.auxiliary and train and i == halvings[1]:
                head = AuxiliaryHead(self.num_classes, name="auxiliary")
                self.sow("auxiliary", "logits", head(x, train))
        return classifier(self.num_classes, x.mean((1, 2)))

    def _inputs(self, i, before, x, channels, was_reduced, train):
        fit = FactorizedReduce if was_reduced else ReluConvNorm
        first = fit(1, channels, affine=self.affine, name=f"cell{i}_input0")
        second = ReluConvNorm(1, channels, affine=self.affine, name=f"cell{i}_input1")
        return [first(before[None], train)[0], second(x[None], train)[0]]

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
            single_path=self.single_path,
            partial=self.partial,
            name=f"cell{i}",
        )


class NasBench201Network(nn.Module):
    """The network of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326).

    A stem; three stages of cells; before the second and the third a residual block
    that halves the image and doubles the channels; batch norm and ReLU, global
    average pooling, a linear classifier.

    Attributes:
      edges: of a cell. State 0 is the input, state 3 the output.
      op_names: the K choices of an edge.
      channels: of the first stage.
      cells: of each stage.
      num_classes: how many.
      affine, pool_norm, single_path, partial: see `jaxnas.nn.cell.Cell`. Norms outside
        of cells are affine; with None there are none.
      remat: whether the backward pass computes each cell anew, to save memory.
    """

    edges: tuple[Edge, ...]
    op_names: tuple[str, ...]
    channels: int = 16
    cells: int = 5
    num_classes: int = 10
    affine: bool | None = True
    pool_norm: bool = False
    single_path: bool = False
    partial: int = 1
    remat: bool = False

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes]; see `DartsNetwork`."""
        if weights is None:
            weights = jnp.ones((len(self.edges), len(self.op_names)), jnp.float32)
        x = Conv(self.channels, 3, name="stem")(images)
        x = BatchNorm(_outer(self.affine), name="stem_norm")(x[None], train)[0]
        for i in range(3 * self.cells):
            stage, place = divmod(i, self.cells)
            channels = self.channels * 2**stage
            if stage and not place:
                norm = _outer(self.affine)
                x = ResidualBlock(channels, norm, name=f"residual{stage}")(x, train)
            keep = _keep(self, drop_rate, (len(self.edges), len(x)))
            (x,) = rescale(self, self._cell(i, channels)([x], weights, keep, train)[-1])
        x = BatchNorm(_outer(self.affine), name="last_norm")(x[None], train)
        x = relu(self, x, 1)[0]
        return classifier(self.num_classes, x.mean((1, 2)))

    def _cell(self, i, channels):
        kind = nn.remat(Cell, static_argnums=(4,)) if self.remat else Cell
        return kind(
            edges=self.edges,
            op_names=self.op_names,
            num_inputs=1,
            num_states=4,
            channels=channels,
            affine=self.affine,
            pool_norm=self.pool_norm,
            single_path=self.single_path,
            partial=self.partial,
            name=f"cell{i}",
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, beside pooling and a 1x1 one."""

    channels: int
    affine: bool | None = True

    @nn.compact
    def __call__(self, x, train):
        """Maps float32[N, H, W, C] to [N, ceil(H / 2), ceil(W / 2), channels]."""
        y = ReluConvNorm(1, self.channels, 3, 2, self.affine)(x[None], train)
        y = ReluConvNorm(1, self.channels, 3, 1, self.affine)(y, train)[0]
        # Pixels outside of an image of odd size count for nothing.
        pooled = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
        return y + Conv(self.channels, 1)(pooled.astype(x.dtype))


class AuxiliaryHead(nn.Module):
    """DARTS's second classifier: pooled to 2x2 pixels, two convolutions, linear.

    The published one takes 8x8 pixels, pooled 5x5 every 3; other sizes are pooled
    in proportion. Raises ValueError for images of one pixel.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        """Maps float32[N, H, W, C] to logits float32[N, num_classes]."""
        window = tuple(min(size // 2 + 1, size - 1) for size in x.shape[1:3])
        if min(window) < 1:
            raise ValueError(f"an auxiliary head needs 2x2 pixels, got {x.shape[1:3]}")
        stride = tuple(size - w for size, w in zip(x.shape[1:3], window, strict=True))
        x = nn.avg_pool(nn.relu(x), window, stride)
        x = nn.relu(BatchNorm()(Conv(128, 1)(x)[None], train))[0]
        x = nn.relu(BatchNorm()(Conv(768, 2, padding=0)(x)[None], train))[0]
        return classifier(self.num_classes, x.reshape(len(x), -1))


def classifier(num_classes, features):
    """A linear layer on float32[N, C], initialised as PyTorch does."""
    init = uniform_fan_in(features.shape[-1])
    return nn.Dense(num_classes, kernel_init=init, bias_init=init)(features)


def reductions(cells: int) -> tuple[int, int]:
    """Which of the cells of a `DartsNetwork` halve the image, counted from 0."""
    return cells // 3, 2 * cells // 3


def _outer(affine: bool | None) -> bool | None:
    """What norms outside of cells are: affine, unless there are none."""
    return None if affine is None else True


def _keep(module, drop_rate, shape):
    """Drop path, float32[shape]: zero for what is lost, above one for the rest."""
    if drop_rate is None:
        return None
    kept = jax.random.bernoulli(module.make_rng("drop_path"), 1 - drop_rate, shape)
    return kept / (1 - drop_rate)


def restrict_cells(
    params: PyTree,
    edges: Callable[[int, int], tuple[tuple[Edge, ...], tuple[Edge, ...]]],
) -> PyTree:
    """Takes the parameters of a network with fewer edges out of those of a full one.

    Args:
      params: of a whole network, or its batch statistics.
      edges: `(i, cells)` -> the edges of the i-th of so many cells, full and chosen.
    """
    is_cell = {name: re.fullmatch(r"cell(\d+)", name) for name in params}
    cells = sum(match is not None for match in is_cell.values())
    restricted = {
        name: restrict(leaves, *edges(int(match[1]), cells)) if match else leaves
        for (name, leaves), match in zip(params.items(), is_cell.values(), strict=True)
    }
    return {name: leaves for name, leaves in restricted.items() if leaves}
