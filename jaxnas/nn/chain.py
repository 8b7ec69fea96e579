"""Networks that are a chain of layers: one as it is, and all of them in one program.

A trunk of layers on images; global average pooling; a head of layers on vectors; a
linear classifier. A convolution is followed by batch normalisation, a pooling layer
takes the maximum or mean of 2x2 pixels and halves the image (one pixel stays one).
A layer of the trunk may be linked: `residual` adds its input to its output, `dense`
puts the output behind the input. What has fewer channels is filled up with zeros; a
layer that halves the image has no link.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array, InputError
from jaxnas.nn.convolution import convolution
from jaxnas.nn.ops import uniform_fan_in

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
}
POOLINGS = ("max_pool", "avg_pool")
LINKS = ("none", "residual", "dense")
MOMENTUM, EPSILON = 0.9, 1e-5


class Layer(NamedTuple):
    """A layer; equal for equal layers."""

    kind: str  # identity, conv, dense, one of POOLINGS or ACTIVATIONS
    width: int = 0  # channels of a convolution, units of a dense layer
    size: int = 0  # of a convolution's kernel, in pixels
    link: str = "none"  # one of LINKS

    def __str__(self) -> str:
        shape = f"{self.size}x{self.size}" if self.size else ""
        width = f"-{self.width}" if self.width else ""
        return f"{self.kind}{shape}{width}"


def halve(size: int) -> int:
    """The pixels along a side that pooling leaves."""
    return -(-size // 2)


def pool(kind: str, x: Array) -> Array:
    """Takes the maximum or mean of 2x2 pixels of float32[N, H, W, C], inside it."""
    for axis in (1, 2):
        size = x.shape[axis]
        if size > 1:
            pads = [(0, size % 2 if a == axis else 0) for a in range(4)]
            x = jnp.pad(x, pads, "edge")  # the mean of two equals is the one
            first = lax.slice_in_dim(x, 0, None, 2, axis)
            second = lax.slice_in_dim(x, 1, None, 2, axis)
            is_max = kind == "max_pool"
            x = jnp.maximum(first, second) if is_max else (first + second) / 2
    return x


def normalise(x: Array, scale: Array, bias: Array, mean: Array, var: Array) -> Array:
    """Normalises float32[..., C] by statistics float32[C] each."""
    factor = scale * lax.rsqrt(var + EPSILON)
    return x * factor + (bias - mean * factor)


def statistics(x: Array) -> tuple[Array, Array]:
    """Mean and variance of float32[N, H, W, C] by channel."""
    mean = x.mean((0, 1, 2))
    return mean, jnp.maximum(jnp.square(x).mean((0, 1, 2)) - jnp.square(mean), 0.0)


def joined(layer: Layer, width: int, most: int) -> tuple[str, int]:
    """How a layer of the trunk is linked, and the channels after it.

    Args:
      layer: the layer.
      width: channels before it.
      most: channels that there may be; a dense link beyond is none.
    """
    out = layer.width or width
    link = "none" if layer.kind in ("identity", *POOLINGS) else layer.link
    if link == "dense":
        return (link, width + out) if width + out <= most else ("none", out)
    return link, max(width, out) if link == "residual" else out


class ChainNetwork(nn.Module):
    """The network of one architecture.

    Attributes:
      trunk, head: layers without identities.
      max_width: channels beyond which a dense link is left out.
      num_classes: how many.
    """

    trunk: tuple[Layer, ...]
    head: tuple[Layer, ...]
    max_width: int
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, H, W, colours], normalised.
          weights, drop_rate: None; other networks have them.
          train: bool, whether batch norms use the statistics of the batch.

        Raises:
          InputError: weights or a drop rate are given.
        """
        if weights is not None or drop_rate is not None:
            raise InputError(
                "expected neither weights nor a drop rate, which a chain does not "
                "have, but got one: leave it out"
            )
        x = images
        for i, layer in enumerate(self.trunk):
            link, width = joined(layer, x.shape[-1], self.max_width)
            y = _Layer(layer, name=f"trunk{i}")(x, train)
            if link == "residual":
                y = _widen(x, width) + _widen(y, width)
            x = jnp.concatenate([x, y], -1) if link == "dense" else y
        x = x.mean((1, 2))
        for i, layer in enumerate(self.head):
            x = _Layer(layer, name=f"head{i}")(x, train)
        return _Layer(Layer("dense", self.num_classes), name="classifier")(x, train)


def _widen(x, width):
    pads = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
    return jnp.pad(x, pads)


class _Layer(nn.Module):
    layer: Layer

    @nn.compact
    def __call__(self, x, train):
        kind, width, size, _ = self.layer
        if kind in ACTIVATIONS:
            return ACTIVATIONS[kind](x)
        if kind in POOLINGS:
            return pool(kind, x)
        before = x.shape[-1]
        if kind == "dense":
            init = uniform_fan_in(before)
            kernel = self.param("kernel", init, (before, width))
            return x @ kernel + self.param("bias", init, (width,))[None]
        init = uniform_fan_in(before * size**2)
        x = convolution(x, self.param("kernel", init, (size, size, before, width)))
        return self._normalised(x, train)

    def _normalised(self, x, train):
        shape = x.shape[-1:]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        running = (
            self.variable("batch_stats", "mean", jnp.zeros, shape),
            self.variable("batch_stats", "var", jnp.ones, shape),
        )
        found = statistics(x) if train else tuple(one.value for one in running)
        if train and not self.is_initializing():
            for old, new in zip(running, found, strict=True):
                old.value = MOMENTUM * old.value + (1 - MOMENTUM) * new
        affine = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        return normalise(x, *(y[None, None, None] for y in (*affine, *found)))
