"""Depthwise convolution that is fast on every backend, in every derivative.

XLA's grouped convolution is an order of magnitude slower than it need be on a
CPU, and so are the gradients that automatic differentiation finds for a sum of
shifted products. The convolution y = k * x is bilinear, and so are its two
transposes, the gradient by the input and the gradient by the kernel; each is
the transpose of the other two. So the three are primitives: JAX then
differentiates them to any order, forwards and backwards, and each platform
lowers each of them in its own best way.

Shapes: x float32[S, N, H, W, C], k float32[E, kh, kw, C], y float32[E, N, H', W', C]
with S states, of which each serves E / S edges in a row, N images, C channels, H' =
ceil(H / stride). Gradients inside `jax.shard_map` need its `check_vma=False`.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnas.base import Array
from jaxnas.nn.apart import apart

STRIP = 32  # columns that a kernel gradient unrolls


class Window(NamedTuple):
    """All that is static of a convolution; sizes and distances in pixels."""

    kernel: tuple[int, ...]  # kh, kw, both odd
    image: tuple[int, ...]  # H, W of the input
    stride: int
    dilation: int
    sharers: int  # edges that share an input

    @property
    def margin(self):  # of zeros around the input
        return tuple(self.dilation * (k - 1) // 2 for k in self.kernel)

    @property
    def output(self):
        return tuple(-(-size // self.stride) for size in self.image)

    @property
    def taps(self):  # their rows and columns in the kernel
        return [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]


def depthwise_conv(x: Array, kernel: Array, stride: int = 1, dilation: int = 1):
    """Convolves each channel of each edge with a kernel of its own.

    Args:
      x: float32[S, N, H, W, C], padded here by `dilation * (kh - 1) // 2` zeros.
        Each of the S serves E / S edges in a row.
      kernel: float32[E, kh, kw, C], kh and kw odd.
      stride: distance of neighbouring outputs, in pixels.
      dilation: distance of neighbouring taps, in pixels.

    Returns:
      float32[E, N, ceil(H / stride), ceil(W / stride), C].

    Raises:
      ValueError: the shapes are others, or the S cannot be shared equally.
    """
    if x.ndim != 5 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[-1]:
        raise ValueError(
            f"expected x[S, N, H, W, C] and kernel[E, kh, kw, C], but got {x.shape} "
            f"and {kernel.shape}"
        )
    if not all(size % 2 for size in kernel.shape[1:3]):
        raise ValueError(f"expected a kernel of odd size, but got {kernel.shape}")
    sharers, rest = divmod(len(kernel), max(len(x), 1))
    if rest or not sharers:
        raise ValueError(f"{len(kernel)} edges cannot share {len(x)} inputs equally")
    dtype = jnp.result_type(x, kernel)  # a bilinear primitive has one type
    x, kernel = (lax.convert_element_type(a, dtype) for a in (x, kernel))
    window = Window(kernel.shape[1:3], x.shape[2:4], stride, dilation, sharers)
    return conv_p.bind(x, kernel, window=window)


# -- shifted sums, for the CPU -----------------------------------------------------


def _padded(x, window):
    """Pads for a window at every output, up to a multiple of the stride."""
    pads = [
        (m, m + (-(size + 2 * m)) % window.stride)
        for m, size in zip(window.margin, window.image, strict=True)
    ]
    return jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)))


def _phases(x, window):
    """Splits the padded image by position modulo the stride, row by row."""
    stride, x = window.stride, _padded(x, window)
    if stride == 1:
        return [x]
    return [x[:, :, a::stride, b::stride] for a in range(stride) for b in range(stride)]


# A network has tens of thousands of taps: each is as few instructions as can be.


@partial(apart, static_argnames=("terms", "size"))
def _shifted_sum(images, kernel, terms, size):
    """Sums windows of the images, each times one tap of the kernel.

    `terms` are of the form (tap, image, top, left).
    """
    states = len(images[0])
    shared = states, len(kernel) // states
    images = [
        lax.broadcast_in_dim(x, (*shared, *x.shape[1:]), (0, 2, 3, 4, 5))
        for x in images
    ]
    total = _sum_products(images, kernel, shared, slice(None), terms, size)
    return total.reshape(-1, *total.shape[2:])


@partial(apart, static_argnames=("terms", "size", "sharers"))
def _shifted_sum_of_sharers(images, kernel, terms, size, sharers):
    """The same, summed over the edges of each state too."""
    states, taps = len(kernel) // sharers, math.prod(kernel.shape[1:3])
    images = [x.reshape(states, sharers, *x.shape[1:]) for x in images]
    total = sum(
        _sum_products(
            images,
            kernel,
            (states,),
            slice(edge, edge + 1),
            [(edge * taps + tap, *rest) for tap, *rest in terms],
            size,
        )
        for edge in range(sharers)
    )
    return total[:, 0]


def _sum_products(images, kernel, shape, edges, terms, size):
    """Sums over the terms. The kernel's first axes are of a shape, then come taps."""
    channels = kernel.shape[-1]
    axes = [axis for axis, length in enumerate(shape) if length > 1]
    kernel = kernel.reshape(*(shape[axis] for axis in axes), -1)
    products = []
    for tap, image, top, left in terms:
        x = images[image][:, edges, :, top : top + size[0], left : left + size[1]]
        k = kernel[..., tap * channels : (tap + 1) * channels]
        products.append(x * lax.broadcast_in_dim(k, x.shape, (*axes, 5)))
    return sum(products[1:], products[0])


def _conv(x, kernel, *, window):
    terms = []
    for tap, (i, j) in enumerate(window.taps):
        (top, a), (left, b) = (
            divmod(t * window.dilation, window.stride) for t in (i, j)
        )
        terms.append((tap, a * window.stride + b, top, left))
    return _shifted_sum(_phases(x, window), kernel, tuple(terms), window.output)


def _input_grad(g, kernel, *, window):
    """Sums, for each position modulo the stride, over the taps that reach it."""
    stride, dilation = window.stride, window.dilation
    reach = [-(-m // stride) for m in window.margin]
    pads = ((0, 0), (0, 0), *((r, r) for r in reach), (0, 0))
    images = [jnp.pad(g, pads)]
    states = len(g) // window.sharers

    def phase(a, b):
        terms = []
        for tap, (i, j) in enumerate(window.taps):
            up, miss_row = divmod(a + window.margin[0] - i * dilation, stride)
            left, miss_column = divmod(b + window.margin[1] - j * dilation, stride)
            if not miss_row and not miss_column:
                terms.append((tap, 0, reach[0] + up, reach[1] + left))
        if not terms:
            return jnp.zeros_like(g[:states])
        how = (tuple(terms), window.output)
        if window.sharers == 1:
            return _shifted_sum(images, kernel, *how)
        return _shifted_sum_of_sharers(images, kernel, *how, window.sharers)

    if stride == 1:
        return phase(0, 0)
    rows = [jnp.stack([phase(a, b) for b in range(stride)], 4) for a in range(stride)]
    x = jnp.stack(rows, 3)  # float32[E, N, H', stride, W', stride, C]
    height, width = (size * stride for size in window.output)
    x = x.reshape(-1, g.shape[1], height, width, g.shape[-1])
    return x[:, :, : window.image[0], : window.image[1]]


def _kernel_grad(x, g, *, window):
    stride, x = window.stride, _padded(x, window)
    # One program for a strip of columns, of a width that still compiles quickly.
    total = 0.0
    for left in range(0, window.output[1], STRIP):
        strip = g[:, :, :, left : left + STRIP]
        total += _products(x[:, :, :, left * stride :], strip, window)
    return total


@partial(apart, static_argnames="window")
def _products(x, g, window):
    """Sums, for each tap, the image under it times g: float32[E, kh, kw, C].

    Row by row of g, its pixels unrolled and all taps at once. XLA makes one tight
    loop of that, where a reduction for each tap reads all images again.
    """
    states, (edges, images, out_h, out_w, channels) = len(x), g.shape
    x, g = x[:, None], g.reshape(states, -1, *g.shape[1:])
    stride, dilation = window.stride, window.dilation
    reach_h, reach_w = (2 * m + 1 for m in window.margin)

    def add_row(h, total):
        rows = lax.dynamic_slice_in_dim(x, h * stride, reach_h, 3)[:, :, :, ::dilation]
        g_row = lax.dynamic_slice_in_dim(g, h, 1, 3)
        for w in range(out_w):
            at = rows[:, :, :, :, w * stride : w * stride + reach_w : dilation]
            total += at * g_row[:, :, :, :, w : w + 1]
        return total

    shape = (states, edges // states, images, *window.kernel, channels)
    total = lax.fori_loop(0, out_h, add_row, jnp.zeros(shape, g.dtype))
    return total.sum(2).reshape(edges, *window.kernel, channels)


# -- XLA's grouped convolution, for every other platform -----------------------------


def _grouped(x, kernel, *, window):
    edges, channels = len(kernel), kernel.shape[-1]
    x = jnp.repeat(x, window.sharers, 0)
    x = jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], edges * channels)
    y = lax.conv_general_dilated(
        x,
        jnp.moveaxis(kernel, 0, 2).reshape(*window.kernel, 1, edges * channels),
        (window.stride,) * 2,
        [(m, m) for m in window.margin],
        rhs_dilation=(window.dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=edges * channels,
    )
    return jnp.moveaxis(y.reshape(*y.shape[:3], edges, channels), 3, 0)


def _grouped_input_grad(g, kernel, *, window):
    shape = (len(g) // window.sharers, g.shape[1], *window.image, g.shape[-1])
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    return jax.linear_transpose(lambda x: _grouped(x, kernel, window=window), x)(g)[0]


def _grouped_kernel_grad(x, g, *, window):
    kernel = jax.ShapeDtypeStruct((len(g), *window.kernel, g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda k: _grouped(x, k, window=window), kernel)(g)[0]


# -- the primitives ----------------------------------------------------------------


def _primitive(name, on_cpu, elsewhere, out_shape):
    """Registers everything but the transposes."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    primitive.def_abstract_eval(
        lambda a, b, window: ShapedArray(out_shape(a, b, window), a.dtype)
    )
    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    cpu = mlir.lower_fun(on_cpu, multiple_results=False)
    mlir.register_lowering(primitive, cpu, platform="cpu")

    def batch(args, dims, *, window):
        """Makes the batch a factor of the edges, which are independent anyway."""
        size = next(
            a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None
        )
        whole = [
            jnp.stack([a] * size) if d is None else jnp.moveaxis(a, d, 0)
            for a, d in zip(args, dims, strict=True)
        ]
        merged = [a.reshape(-1, *a.shape[2:]) for a in whole]
        out = primitive.bind(*merged, window=window)
        return out.reshape(size, -1, *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


conv_p = _primitive(
    "depthwise_conv",
    _conv,
    _grouped,
    lambda x, k, window: (k.shape[0], x.shape[1], *window.output, x.shape[-1]),
)
input_grad_p = _primitive(
    "depthwise_conv_input_grad",
    _input_grad,
    _grouped_input_grad,
    lambda g, k, window: (
        g.shape[0] // window.sharers,
        g.shape[1],
        *window.image,
        g.shape[-1],
    ),
)
kernel_grad_p = _primitive(
    "depthwise_conv_kernel_grad",
    _kernel_grad,
    _grouped_kernel_grad,
    lambda x, g, window: (g.shape[0], *window.kernel, g.shape[-1]),
)
ad.defbilinear(
    conv_p,
    lambda ct, x, k, window: input_grad_p.bind(ct, k, window=window),
    lambda ct, x, k, window: kernel_grad_p.bind(x, ct, window=window),
)
ad.defbilinear(
    input_grad_p,
    lambda ct, g, k, window: conv_p.bind(ct, k, window=window),
    lambda ct, g, k, window: kernel_grad_p.bind(ct, g, window=window),
)
ad.defbilinear(
    kernel_grad_p,
    lambda ct, x, g, window: input_grad_p.bind(g, ct, window=window),
    lambda ct, x, g, window: conv_p.bind(x, ct, window=window),
)
