"""All chains in one program: which layers it computes is decided while it runs.

Every slot of the trunk computes its own layer alone (`nn/dispatch.py`), on just the
pixels and about the channels that there are. Arrays have room for the largest image and
the most channels; what a network does not have is zero, in its images, kernels and
gradients.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, InputError
from jaxnas.nn.chain import ACTIVATIONS, LINKS, MOMENTUM, Layer
from jaxnas.nn.chain_branches import Branches
from jaxnas.nn.chain_walk import Choices, Met, walk
from jaxnas.nn.dispatch import dispatch
from jaxnas.nn.ops import uniform_fan_in
from jaxnas.nn.sequence import sequence


class ChainSupernet(nn.Module):
    """The network of any architecture, which comes as its weights, one-hot.

    Attributes:
      choices: what there is to choose.
      num_classes: how many.
      shared: whether parameters serve all architectures: a layer takes the middle of
        the largest kernel, and the first channels and units, as in slimmable networks
        (Yu et al. 2019, arXiv:1812.08928). Else they are those of one architecture.
    """

    choices: Choices
    num_classes: int = 10
    shared: bool = False

    @nn.compact
    def __call__(self, images, weights, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, *choices.image_shape], normalised.
          weights: float32[D, K]; the strongest choice of each decision is computed,
            and there is no gradient.
          drop_rate: None.
          train: bool, whether batch norms use the statistics of the batch.

        Raises:
          InputError: a drop rate is given, or images of another shape.
        """
        if drop_rate is not None:
            raise InputError("expected no drop rate, which a chain does not have")
        if images.shape[1:] != self.choices.image_shape:
            raise InputError(
                f"expected images {self.choices.image_shape} (height, width, colours), "
                f"but got {images.shape[1:]}: make the space for these"
            )
        arch = jnp.argmax(weights, 1).astype(jnp.int32)
        met, width, end = walk(self.choices, arch)
        x = self._trunk(images, met, end, train)
        return self._head(x, self.choices.split(arch)[2], width)

    def _trunk(self, images, met, end, train):
        choices, slots = self.choices, self.choices.trunk_slots
        most, largest = choices.max_width, max(layer.size for layer in choices.trunk)
        branches = Branches(choices, train)
        function, rooms = branches.find(met)
        sides = jnp.array([layer.size for layer in choices.trunk], jnp.int32)
        sides = sides[met.choice]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        if self.shared:
            room = (slots, largest, largest, most, most)
            init = uniform_fan_in(largest**2 * most)
            kernel = self.param("trunk_kernel", init, room)
        else:
            init = partial(_init_kernels, largest, met, sides, rooms)
            kernel = self.param("trunk_kernel", init, largest**2 * most**2)
        scale = self.param("trunk_scale", ones, (slots, most))
        bias = self.param("trunk_bias", zeros, (slots, most))
        mean = self.variable("batch_stats", "trunk_mean", jnp.zeros, (slots, most))
        var = self.variable("batch_stats", "trunk_var", jnp.ones, (slots, most))
        count, height, width, colours = images.shape
        x = images.reshape(count, height * width, colours)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, most - colours)))
        step = partial(_slot, branches, choices.links != ("none",))
        fixed = met, function, sides, (mean.value, var.value)
        there = met.choice != choices.trunk.index(Layer("identity"))
        x, found = sequence(step, there, fixed, x, (kernel, scale, bias))
        if train and not self.is_initializing():
            is_conv = (sides > 0)[:, None]
            for old, new in zip((mean, var), found, strict=True):
                moved = MOMENTUM * old.value + (1 - MOMENTUM) * new
                old.value = jnp.where(is_conv, moved, old.value)
        pixels = jnp.array([h * w for h, w in choices.images], jnp.float32)
        return x.sum(1) / pixels[jnp.minimum(end, len(pixels) - 1)]

    def _head(self, x, head, width):
        layers = self.choices.head
        most = max([x.shape[1], *(layer.width for layer in layers)])
        units = jnp.array([layer.width for layer in layers], jnp.int32)
        kinds = [None, *ACTIVATIONS]
        kind = jnp.array(
            [kinds.index(x.kind) if x.kind in kinds else 0 for x in layers], jnp.int32
        )
        x = jnp.pad(x, ((0, 0), (0, most - x.shape[1])))
        for i in range(len(head)):
            out = jnp.where(units[head[i]] > 0, units[head[i]], width)
            lanes = _lanes(most, out)
            dense = self._dense(f"head{i}", x, width, units[head[i]], most)
            active = jnp.stack([x, *(f(x) for f in ACTIVATIONS.values())])
            x = jnp.where(units[head[i]] > 0, dense, active[kind[head[i]]]) * lanes
            width = out
        return self._dense("classifier", x, width, self.num_classes, self.num_classes)

    def _dense(self, name, x, before, out, room):
        """A dense layer on the first `before` of all units."""

        def init(key, shape):
            is_there = jnp.arange(shape[-1])[None] < out
            if len(shape) > 1:
                is_there = is_there & (jnp.arange(shape[0])[:, None] < before)
            draw = jax.random.uniform(key, shape, minval=-1, maxval=1)
            draw = draw * lax.rsqrt(jnp.float32(before))
            return jnp.where(is_there.reshape(shape), draw, 0.0)

        if self.shared:
            init = uniform_fan_in(x.shape[1])

        kernel = self.param(f"{name}_kernel", init, (x.shape[1], room))
        return x @ kernel + self.param(f"{name}_bias", init, (room,))[None]


def _lanes(room: int, width: Array) -> Array:
    """Ones for the channels that there are, float32[1, room]."""
    return (jnp.arange(room) < width).astype(jnp.float32)[None]


def _init_kernels(largest: int, met: Met, sides, rooms, key, length: int):
    """Draws kernels as `ChainNetwork` does, by their true fan-in: float32[L, length].

    A slot's kernel is [largest, largest, *rooms] at the beginning of its row; a smaller
    one is in its middle.
    """
    before, out = (room[:, None] for room in rooms.T)
    at = jnp.arange(length)[None]
    tap, place = at // (before * out), at % (before * out)
    off = jnp.stack([tap // largest, tap % largest]) - largest // 2
    is_there = (
        (tap < largest**2)
        & (2 * jnp.abs(off).max(0) < sides[:, None])
        & (place // out < met.before[:, None])
        & (place % out < met.out[:, None])
    )
    draw = jax.random.uniform(key, is_there.shape, minval=-1, maxval=1)
    fan_in = jnp.maximum(met.before * sides**2, 1).astype(jnp.float32)
    return jnp.where(is_there, draw * lax.rsqrt(fan_in)[:, None], 0.0)


def _slot(branches: Branches, linked: bool, fixed, x: Array, params):
    """Computes one slot of the trunk; the statistics that it normalised by."""
    met, function, side, running = fixed
    how = _lanes(x.shape[-1], met.out), side, *running
    y, found = dispatch(branches.functions, function, how, x, *params)
    if linked:
        behind = jnp.roll(y, met.before, -1)
        y = lax.select_n(
            met.link,
            *(
                {"none": y, "residual": x + y, "dense": x + behind}[name]
                for name in LINKS
            ),
        )
    return y, found
