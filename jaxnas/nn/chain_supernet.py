"""All chains in one program: which layers it computes is decided while it runs.

Every slot of the trunk computes its own layer alone (`nn/dispatch.py`), on just the
pixels and about the channels that there are. Arrays have room for the largest image and
the most channels; what a network does not have is zero, in its images, kernels and
gradients.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array, InputError, PyTree
from jaxnas.nn.chain import (
    ACTIVATIONS,
    LINKS,
    MOMENTUM,
    POOLINGS,
    Layer,
    halve,
    normalise,
    pool,
    statistics,
)
from jaxnas.nn.convolution import convolution
from jaxnas.nn.dispatch import dispatch


class Choices(NamedTuple):
    """What there is to choose; slots of the trunk come first, then links, the head."""

    trunk: tuple[Layer, ...]
    links: tuple[str, ...]  # of LINKS; one: nothing is decided
    head: tuple[Layer, ...]
    trunk_slots: int
    head_slots: int
    max_width: int  # channels

    @property
    def num_choices(self) -> tuple[int, ...]:
        """One number a decision."""
        trunk = (len(self.trunk),) * self.trunk_slots
        links = (len(self.links),) * self.trunk_slots if len(self.links) > 1 else ()
        return trunk + links + (len(self.head),) * self.head_slots

    def split(self, arch: Array) -> tuple[Array, Array, Array]:
        """Takes int32[D] apart: trunk, links (numbers in LINKS), head."""
        links = np.array([LINKS.index(link) for link in self.links], np.int32)
        trunk, rest = arch[: self.trunk_slots], arch[self.trunk_slots :]
        if len(links) == 1:
            return trunk, jnp.full(self.trunk_slots, links[0], jnp.int32), rest
        chosen = jnp.array(links)[rest[: self.trunk_slots]]
        return trunk, chosen, rest[self.trunk_slots :]


class Met(NamedTuple):
    """What each slot of the trunk meets, L slots."""

    choice: Array  # int32[L]
    link: Array  # int32[L], number in LINKS that takes effect
    before: Array  # int32[L], channels
    out: Array  # int32[L], channels of the layer itself
    halvings: Array  # int32[L], that came before


def walk(choices: Choices, arch: Array, colours: int) -> tuple[Met, Array, Array]:
    """Follows channels and halvings along the trunk of int32[D].

    Returns:
      What the slots meet; int32[], the channels and the halvings after the last.
    """
    widths = jnp.array([layer.width for layer in choices.trunk], jnp.int32)
    pools = jnp.array([layer.kind in POOLINGS for layer in choices.trunk])
    linked = jnp.array(
        [layer.kind not in ("identity", *POOLINGS) for layer in choices.trunk]
    )

    def step(carry, slot):
        width, halvings = carry
        choice, link = slot
        out = jnp.where(widths[choice] > 0, widths[choice], width)
        too_wide = (link == 2) & (width + out > choices.max_width)
        link = jnp.where(linked[choice] & ~too_wide, link, 0)
        after = jnp.stack([out, jnp.maximum(width, out), width + out])[link]
        met = Met(choice, link, width, out, halvings)
        return (after, halvings + pools[choice]), met

    trunk, links, _ = choices.split(arch)
    start = jnp.int32(colours), jnp.int32(0)
    (width, end), met = lax.scan(step, start, (trunk, links))
    return met, width, end


class ChainSupernet(nn.Module):
    """The network of any architecture, which comes as its weights, one-hot.

    Attributes:
      choices: what there is to choose.
      colours: of the images.
      num_classes: how many.
    """

    choices: Choices
    colours: int
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, weights, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, H, W, colours], normalised.
          weights: float32[D, K]; the strongest choice of each decision is computed,
            and there is no gradient.
          drop_rate: None.
          train: bool, whether batch norms use the statistics of the batch.

        Raises:
          InputError: a drop rate is given.
        """
        if drop_rate is not None:
            raise InputError("expected no drop rate, which a chain does not have")
        arch = jnp.argmax(weights, 1).astype(jnp.int32)
        met, width, end = walk(self.choices, arch, self.colours)
        x = self._trunk(images, met, end, train)
        return self._head(x, self.choices.split(arch)[2], width)

    def _trunk(self, images, met, end, train):
        choices, slots = self.choices, self.choices.trunk_slots
        most, largest = choices.max_width, max(layer.size for layer in choices.trunk)
        branches = Branches(choices, images.shape[1:3], train)
        room = largest**2 * most**2
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        kernel = self.param(
            "trunk_kernel", partial(_init_kernels, choices, met, branches), room
        )
        scale = self.param("trunk_scale", ones, (slots, most))
        bias = self.param("trunk_bias", zeros, (slots, most))
        mean = self.variable("batch_stats", "trunk_mean", jnp.zeros, (slots, most))
        var = self.variable("batch_stats", "trunk_var", jnp.ones, (slots, most))
        count, height, width, colours = images.shape
        x = images.reshape(count, height * width, colours)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, most - colours)))
        step = partial(_slot, branches, choices.links != ("none",))
        x, found = lax.scan(step, x, (met, kernel, scale, bias, mean.value, var.value))
        if train and not self.is_initializing():
            is_conv = jnp.array(branches.is_conv)[met.choice][:, None]
            for old, new in zip((mean, var), found, strict=True):
                moved = MOMENTUM * old.value + (1 - MOMENTUM) * new
                old.value = jnp.where(is_conv, moved, old.value)
        pixels = jnp.array([h * w for h, w in branches.sizes], jnp.float32)
        return x.sum(1) / pixels[jnp.minimum(end, len(branches.sizes) - 1)]

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

        kernel = self.param(f"{name}_kernel", init, (x.shape[1], room))
        return x @ kernel + self.param(f"{name}_bias", init, (room,))[None]


def _lanes(room: int, width: Array) -> Array:
    """Ones for the channels that there are, float32[1, room]."""
    return (jnp.arange(room) < width).astype(jnp.float32)[None]


def _init_kernels(choices: Choices, met: Met, branches: "Branches", key, room: int):
    """Draws kernels as `ChainNetwork` does, by their true fan-in: float32[L, room].

    A slot's kernel is [largest, largest, w, w] at the beginning of its row, where w is
    the smallest of the widths that has room for it; a smaller one is in its middle.
    """
    sizes = jnp.array([layer.size for layer in choices.trunk], jnp.int32)[met.choice]
    widths = jnp.array(branches.widths, jnp.int32)
    bucket = widths[branches.bucket(met)][:, None]
    at = jnp.arange(room)[None]
    tap, place = at // bucket**2, at % bucket**2
    middle = branches.largest // 2
    off = jnp.stack([tap // branches.largest, tap % branches.largest]) - middle
    is_there = (
        (tap < branches.largest**2)
        & (2 * jnp.abs(off).max(0) < sizes[:, None])
        & (place // bucket < met.before[:, None])
        & (place % bucket < met.out[:, None])
    )
    draw = jax.random.uniform(key, is_there.shape, minval=-1, maxval=1)
    fan_in = jnp.maximum(met.before * sizes**2, 1).astype(jnp.float32)
    return jnp.where(is_there, draw * lax.rsqrt(fan_in)[:, None], 0.0)


class Branches:
    """The functions between which a slot of the trunk chooses, for images of a size.

    Each maps float32[N, P, C] to another and the statistics that it normalised by,
    where P are the pixels of the largest image, and C the most channels.
    """

    def __init__(self, choices: Choices, image: tuple[int, int], train: bool):
        """Lists them."""
        self.largest = max(layer.size for layer in choices.trunk)
        self.is_conv = [layer.kind == "conv" for layer in choices.trunk]
        self.sizes = [image]  # after no halving, one, two, ...
        while max(self.sizes[-1]) > 1 and len(self.sizes) <= choices.trunk_slots:
            height, width = self.sizes[-1]
            self.sizes.append((halve(height), halve(width)))
        self.widths = sorted({x.width for x in choices.trunk if x.width})
        if choices.max_width > self.widths[-1]:
            self.widths.append(choices.max_width)
        found: dict[tuple, int] = {}
        shape = len(choices.trunk), len(self.sizes), len(self.widths)
        self.table = np.zeros(shape, np.int32)
        for place in np.ndindex(*shape):
            branch = self._branch(choices.trunk[place[0]], *place[1:])
            self.table[place] = found.setdefault(branch, len(found))
        self.functions = tuple(_Branch(what, train) for what in found)

    def _branch(self, layer: Layer, size: int, bucket: int) -> tuple:
        """What tells one function from another."""
        image = self.sizes[size]
        if layer.kind == "conv":
            kernel = min(layer.size, 2 * max(image) - 1)  # no window is larger
            return "conv", image, self.widths[bucket], kernel, self.largest
        if (layer.kind in POOLINGS and max(image) == 1) or layer.kind == "identity":
            return ("identity",)
        return layer.kind, image

    def bucket(self, met: Met) -> Array:
        """The number of the smallest width that a slot's kernel fits into."""
        widest = jnp.maximum(met.before, met.out)[..., None]
        widths = jnp.array(self.widths).reshape((1,) * met.out.ndim + (-1,))
        return jnp.sum(widest > widths, -1)


@dataclass(frozen=True)
class _Branch:
    what: tuple
    train: bool

    def __call__(self, fixed, x: Array, kernel: Array, scale: Array, bias: Array):
        lanes, *running = fixed
        kind, *how = self.what
        if kind == "identity":
            return x, running
        (height, width), *how = how
        y = x[:, : height * width].reshape(len(x), height, width, -1)
        if kind in ACTIVATIONS:
            y = ACTIVATIONS[kind](y) * lanes[None, None]
        elif kind in POOLINGS:
            y = pool(kind, y)
        else:
            channels, size, largest = how
            kernel = kernel[: largest**2 * channels**2]
            kernel = kernel.reshape(largest, largest, channels, channels)
            middle = slice((largest - size) // 2, (largest + size) // 2)
            y = convolution(y[..., :channels], kernel[middle, middle])
            running = self._statistics(y, running)
            affine = (scale, bias, *running)
            per_channel = (z[None, None, None, :channels] for z in affine)
            y = normalise(y, *per_channel) * lanes[None, None, :, :channels]
        return _fill(y, x.shape), running

    def _statistics(self, y: Array, running: list[Array]) -> list[Array]:
        if not self.train:
            return running
        room = len(running[0]) - y.shape[-1]
        return [jnp.pad(found, (0, room)) for found in statistics(y)]


def _fill(x: Array, shape: tuple[int, ...]) -> Array:
    """Gives an image its place in float32[N, P, C], and zeros around it."""
    x = x.reshape(len(x), -1, x.shape[-1])
    rest = ((0, room - size) for room, size in zip(shape, x.shape, strict=True))
    return jnp.pad(x, tuple(rest))


def _slot(branches: Branches, linked: bool, x: Array, slot) -> tuple[Array, PyTree]:
    """Computes one slot of the trunk."""
    met, kernel, scale, bias, mean, var = slot
    size = jnp.minimum(met.halvings, len(branches.sizes) - 1)
    index = jnp.array(branches.table)[met.choice, size, branches.bucket(met)]
    lanes = _lanes(x.shape[-1], met.out)
    fixed = lanes, mean, var
    y, found = dispatch(branches.functions, index, fixed, x, kernel, scale, bias)
    if linked:
        behind = jnp.roll(y, met.before, -1)
        y = jnp.where(met.link == 1, x + y, jnp.where(met.link == 2, x + behind, y))
    return y, found
