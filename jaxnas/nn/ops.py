"""The operations that cells are made of, each for a whole group of edges at once.

Edges that leave one state share their input. So an operation here takes one or
several states and the number of edges that use them, and answers for all of them with
one program: its kernels carry an edge axis, its batch norm has the features (edge,
channel). A supernet of 14 edges and 8 operations compiles in a fraction of the time.

Parameters and statistics have the edge axis first, so that those of fewer edges
are a selection of rows. Every operation is called as `op(x, train)` with x
float32[S, N, H, W, C], of which each state serves E / S edges in a row, and returns
float32[E, N, H', W', channels], or a leading S where it has no parameters and all
edges of a state get the same. S states, N images, H and W in pixels, C channels, E
edges.

The operations are those of DARTS (Liu, Simonyan and Yang 2019, arXiv:1806.09055)
and NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326).
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array
from jaxnas.nn.apart import apart
from jaxnas.nn.convolution import convolution
from jaxnas.nn.depthwise import depthwise_conv
from jaxnas.nn.pooling import avg_pool, max_pool
from jaxnas.nn.probes import relu


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """Initialises uniformly in plus or minus 1 / sqrt(fan_in), as PyTorch does."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        # Each size that is drawn compiles for a fifth of a second: so a few sizes.
        size = 2 ** (math.prod(shape) - 1).bit_length()
        return _first(jax.random.uniform(key, (size,), dtype, -bound, bound), shape)

    return init


@partial(jax.jit, static_argnums=1)
def _first(draw, shape):
    return draw[: math.prod(shape)].reshape(shape)


class Conv(nn.Module):
    """An ordinary convolution of float32[N, H, W, C], without a bias."""

    channels: int
    size: int
    padding: int | None = None

    @nn.compact
    def __call__(self, x):
        """See `jaxnas.nn.convolution.convolution`."""
        shape = (self.size, self.size, x.shape[-1], self.channels)
        init = uniform_fan_in(math.prod(shape[:-1]))
        kernel = self.param("kernel", init, shape)
        return convolution(x, kernel, padding=self.padding)


class BatchNorm(nn.Module):
    """Batch normalisation of float32[E, N, H, W, C] by edge and channel.

    Attributes:
      affine: whether it learns a scale and a shift; None: it does nothing at all.
      momentum: of the running statistics.
      epsilon: added to variances.
    """

    affine: bool | None = True
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train):
        """Normalises by the batch's statistics when training, else by running ones."""
        if self.affine is None:
            return x
        shape = (x.shape[0], x.shape[-1])
        running = (
            self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
        )
        if train:
            mean = x.mean((1, 2, 3))
            var = jnp.maximum(jnp.square(x).mean((1, 2, 3)) - jnp.square(mean), 0.0)
            if not self.is_initializing():
                for old, new in zip(running, (mean, var), strict=True):
                    kept = self.momentum * old.value
                    old.value = kept + (1 - self.momentum) * new
        else:
            mean, var = (statistic.value for statistic in running)
        factor = lax.rsqrt(var + self.epsilon)
        if self.affine:
            factor = factor * self.param("scale", nn.initializers.ones, shape)
        offset = -mean * factor
        if self.affine:
            offset = offset + self.param("bias", nn.initializers.zeros, shape)
        # One product and one sum: the gradient then needs x alone, not x - mean.
        return x * _by_channel(factor) + _by_channel(offset)


def _by_channel(x):
    return x[:, None, None, None, :]


@apart
def _pointwise(x, kernel):
    if len(x) == len(kernel):
        return jnp.einsum("enhwc,ecd->enhwd", x, kernel)
    kernel = kernel.reshape(len(x), -1, *kernel.shape[1:])
    y = jnp.einsum("snhwc,secd->senhwd", x, kernel)
    return y.reshape(-1, *y.shape[2:])


class Pointwise(nn.Module):
    """A 1x1 convolution with a kernel for every edge."""

    edges: int
    channels: int

    @nn.compact
    def __call__(self, x):
        """Maps float32[S, N, H, W, C] to [E, N, H, W, channels]."""
        shape = (self.edges, x.shape[-1], self.channels)
        kernel = self.param("kernel", uniform_fan_in(x.shape[-1]), shape)
        return _pointwise(x, kernel)


class Depthwise(nn.Module):
    """A depthwise convolution with kernels for every edge and channel."""

    edges: int
    size: int
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x):
        """Maps float32[S, N, H, W, C] to [E, N, H', W', C]."""
        shape = (self.edges, self.size, self.size, x.shape[-1])
        kernel = self.param("kernel", uniform_fan_in(self.size**2), shape)
        return depthwise_conv(x, kernel, self.stride, self.dilation)


class SeparableConv(nn.Module):
    """ReLU, depthwise, pointwise, batch norm; `repeats` times, the first strided."""

    edges: int
    channels: int
    size: int
    stride: int = 1
    dilation: int = 1
    repeats: int = 1
    affine: bool | None = True

    @nn.compact
    def __call__(self, x, train):
        """See the module's docstring."""
        for i in range(self.repeats):
            stride = self.stride if i == 0 else 1
            x = relu(self, x, self.edges)
            x = Depthwise(self.edges, self.size, stride, self.dilation)(x)
            x = Pointwise(self.edges, self.channels)(x)
            x = BatchNorm(self.affine)(x, train)
        return x


class ReluConvNorm(nn.Module):
    """ReLU, an ordinary convolution, batch norm."""

    edges: int
    channels: int
    size: int = 1
    stride: int = 1
    affine: bool | None = True

    @nn.compact
    def __call__(self, x, train):
        """See the module's docstring."""
        x = relu(self, x, self.edges)
        if self.size == 1:
            x = Pointwise(self.edges, self.channels)(
                x[:, :, :: self.stride, :: self.stride]
            )
        else:
            shape = (self.edges, self.size, self.size, x.shape[-1], self.channels)
            kernel = self.param("kernel", uniform_fan_in(math.prod(shape[1:4])), shape)
            kernel = kernel.reshape(len(x), -1, *shape[1:])
            x = jnp.concatenate(list(map(self._conv, x, kernel)))
        return BatchNorm(self.affine)(x, train)

    def _conv(self, x, kernel):
        """One convolution with the outputs of all edges of a state."""
        edges, *shape = kernel.shape
        outputs = jnp.moveaxis(kernel, 0, 3).reshape(*shape[:3], -1)
        y = convolution(x, outputs, self.stride)
        return jnp.moveaxis(y.reshape(*y.shape[:3], edges, self.channels), 3, 0)


class FactorizedReduce(nn.Module):
    """Halves height and width by two 1x1 convolutions, one pixel apart."""

    edges: int
    channels: int
    affine: bool | None = True

    @nn.compact
    def __call__(self, x, train):
        """See the module's docstring."""
        x = relu(self, x, self.edges)
        odd = jnp.pad(x[:, :, 1:, 1:], ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
        half = self.channels // 2
        x = jnp.concatenate(
            [
                Pointwise(self.edges, half)(x[:, :, ::2, ::2]),
                Pointwise(self.edges, self.channels - half)(odd[:, :, ::2, ::2]),
            ],
            -1,
        )
        return BatchNorm(self.affine)(x, train)


class Pool(nn.Module):
    """A 3x3 pooling, the same for all edges of a state; normalised in a supernet."""

    pool: Callable[..., Array]
    stride: int = 1
    norm: bool = True

    @nn.compact
    def __call__(self, x, train):
        """See the module's docstring."""
        x = self.pool(x, self.stride)
        return BatchNorm(affine=False)(x, train) if self.norm else x


class Identity(nn.Module):
    """The states themselves, each the same for all of its edges."""

    @nn.compact
    def __call__(self, x, train):
        """See the module's docstring."""
        return x


def _separable(size, dilation, repeats):
    def build(edges, channels, stride, affine, pool_norm, **kwargs):
        how = (stride, dilation, repeats, affine)
        return SeparableConv(edges, channels, size, *how, **kwargs)

    return build


def _conv(size):
    def build(edges, channels, stride, affine, pool_norm, **kwargs):
        return ReluConvNorm(edges, channels, size, stride, affine, **kwargs)

    return build


def _pool(pool):
    def build(edges, channels, stride, affine, pool_norm, **kwargs):
        return Pool(pool, stride, pool_norm, **kwargs)

    return build


def _skip(edges, channels, stride, affine, pool_norm, **kwargs):
    if stride == 1:
        return Identity(**kwargs)
    return FactorizedReduce(edges, channels, affine, **kwargs)


OPS: dict[str, Callable[..., nn.Module]] = {
    "max_pool_3x3": _pool(max_pool),
    "avg_pool_3x3": _pool(avg_pool),
    "skip_connect": _skip,
    "sep_conv_3x3": _separable(3, 1, 2),
    "sep_conv_5x5": _separable(5, 1, 2),
    "dil_conv_3x3": _separable(3, 2, 1),
    "dil_conv_5x5": _separable(5, 2, 1),
    "nor_conv_1x1": _conv(1),
    "nor_conv_3x3": _conv(3),
}
"""Builders `(edges, channels, stride, affine, pool_norm, **module_kwargs)` by their
names in the literature; `none`, which contributes nothing, has no module."""
