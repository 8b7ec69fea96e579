"""Depthwise convolution that is fast on every backend, in every derivative.

XLA's grouped convolution is an order of magnitude slower than it need be on a
CPU, and so are the gradients that automatic differentiation finds for a sum of
shifted products. The convolution y = k * x is bilinear, and so are its two
transposes, the gradient by the input and the gradient by the kernel; each is
the transpose of the other two. So the three are primitives: JAX then
differentiates them to any order, forwards and backwards, and each platform
lowers each of them in its own best way.

Shapes: x float32[E, N, H, W, C], or [1, N, H, W, C] where all edges share it, k
float32[E, kh, kw, C], y float32[E, N, H', W', C] with E edges (independent groups),
N images, C channels, H' = ceil(H / stride).
"""

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

CHUNK = 1 << 16  # floats of one operand of a kernel gradient that fit in a cache


class Window(NamedTuple):
    """All that is static of a convolution; sizes and distances in pixels."""

    kernel: tuple[int, int]  # kh, kw, both odd
    image: tuple[int, int]  # H, W of the input
    stride: int
    dilation: int
    shared: bool  # whether one input serves all edges

    @property
    def margin(self):  # of zeros around the input
        return tuple(self.dilation * (k - 1) // 2 for k in self.kernel)

    @property
    def output(self):
        return tuple(-(-size // self.stride) for size in self.image)

    @property
    def taps(self):  # (row, column) in the kernel
        return [(i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]


def depthwise_conv(x: Array, kernel: Array, stride: int = 1, dilation: int = 1):
    """Convolves each channel of each edge with a kernel of its own.

    Args:
      x: float32[E, N, H, W, C], padded here by `dilation * (kh - 1) // 2` zeros,
        or float32[1, N, H, W, C] where all edges share it.
      kernel: float32[E, kh, kw, C], kh and kw odd.
      stride: distance of neighbouring outputs, in pixels.
      dilation: distance of neighbouring taps, in pixels.

    Returns:
      float32[E, N, ceil(H / stride), ceil(W / stride), C].
    """
    shared = len(x) < len(kernel)
    window = Window(kernel.shape[1:3], x.shape[2:4], stride, dilation, shared)
    return conv_p.bind(x, kernel, window=window)


# -- shifted sums, for the CPU -----------------------------------------------------


def _phases(x, window):
    """Splits the padded image by position modulo the stride.

    Returns float32[stride * stride, E, N, Hq, Wq, C] and, for each tap, its phase
    and its place there.
    """
    stride = window.stride
    pads = [
        (m, m + (-(size + 2 * m)) % stride)
        for m, size in zip(window.margin, window.image, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)))
    grid = [(a, b) for a in range(stride) for b in range(stride)]
    phases = jnp.stack([x[:, :, a::stride, b::stride] for a, b in grid])
    places = []
    for i, j in window.taps:
        (top, a), (left, b) = (divmod(t * window.dilation, stride) for t in (i, j))
        places.append((a * stride + b, top, left))
    return phases, tuple(places)


@partial(apart, static_argnames=("terms", "size"))
def _shifted_sum(images, kernel, terms, size):
    """Sums windows of the images, each times one tap of the kernel.

    `terms` are of the form (tap, image, top, left).
    """
    total = 0.0
    for tap, image, top, left in terms:
        x = images[image, :, :, top : top + size[0], left : left + size[1]]
        total += x * kernel[:, *tap][:, None, None, None]
    return total


@partial(apart, static_argnames=("terms", "size"))
def _shifted_sum_of_edges(images, kernel, terms, size):
    """The same, summed over the edges too."""
    total = 0.0
    for tap, image, top, left in terms:
        x = images[image, :, :, top : top + size[0], left : left + size[1]]
        for edge in range(len(x)):
            total += x[edge] * kernel[edge, *tap][None, None, None]
    return total[None]


def _conv(x, kernel, *, window):
    phases, places = _phases(x, window)
    terms = tuple((tap, *at) for tap, at in zip(window.taps, places, strict=True))
    return _shifted_sum(phases, kernel, terms, window.output)


def _input_grad(g, kernel, *, window):
    """Sums, for each position modulo the stride, over the taps that reach it."""
    stride, dilation = window.stride, window.dilation
    reach = [-(-m // stride) for m in window.margin]
    pads = ((0, 0), (0, 0), *((r, r) for r in reach), (0, 0))
    images = jnp.pad(g, pads)[None]
    add_up = _shifted_sum_of_edges if window.shared else _shifted_sum

    def phase(a, b):
        terms = []
        for i, j in window.taps:
            up, miss_row = divmod(a + window.margin[0] - i * dilation, stride)
            left, miss_column = divmod(b + window.margin[1] - j * dilation, stride)
            if not miss_row and not miss_column:
                terms.append(((i, j), 0, reach[0] + up, reach[1] + left))
        if not terms:
            return jnp.zeros_like(g[:1] if window.shared else g)
        return add_up(images, kernel, tuple(terms), window.output)

    if stride == 1:
        return phase(0, 0)
    rows = [jnp.stack([phase(a, b) for b in range(stride)], 4) for a in range(stride)]
    x = jnp.stack(rows, 3)  # float32[E, N, H', stride, W', stride, C]
    height, width = (size * stride for size in window.output)
    x = x.reshape(-1, g.shape[1], height, width, g.shape[-1])
    return x[:, :, : window.image[0], : window.image[1]]


def _kernel_grad(x, g, *, window):
    phases, places = _phases(x, window)
    taps = _products(phases, g, places)
    return jnp.moveaxis(taps, 0, 1).reshape(len(g), *window.kernel, g.shape[-1])


@partial(apart, static_argnames="places")
def _products(phases, g, places):
    """Sums, for each place of a tap, the images there times g."""
    edges, images, out_h, out_w, channels = g.shape
    # A few images at a time stay in the cache while all the taps pass over them.
    fit = max(1, CHUNK // (edges * out_h * out_w * channels))
    chunk = next(m for m in range(min(fit, images), 0, -1) if images % m == 0)

    def add_chunk(total, begin):
        some_x = lax.dynamic_slice_in_dim(phases, begin, chunk, 2)
        some_g = lax.dynamic_slice_in_dim(g, begin, chunk, 1)

        def tap(place):
            at = (place[0], 0, 0, place[1], place[2], 0)
            size = (1, len(some_x[0]), *some_g.shape[1:])
            shifted = lax.dynamic_slice(some_x, at, size)[0]
            return jnp.sum(shifted * some_g, (1, 2, 3))

        return total + lax.map(tap, jnp.array(places)), None

    total = jnp.zeros((len(places), edges, channels), g.dtype)
    total, _ = lax.scan(add_chunk, total, jnp.arange(0, images, chunk))
    return total


# -- XLA's grouped convolution, for every other platform -----------------------------


def _grouped(x, kernel, *, window):
    edges, channels = len(kernel), kernel.shape[-1]
    x = jnp.broadcast_to(x, (edges, *x.shape[1:]))
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
    y = y[:, : window.output[0], : window.output[1]]
    return jnp.moveaxis(y.reshape(*y.shape[:3], edges, channels), 3, 0)


def _grouped_input_grad(g, kernel, *, window):
    edges = 1 if window.shared else len(g)
    x = jax.ShapeDtypeStruct((edges, g.shape[1], *window.image, g.shape[-1]), g.dtype)
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
        moved = [
            a[None] if d is None else jnp.moveaxis(a, d, 0)
            for a, d in zip(args, dims, strict=True)
        ]
        size, edges = (max(a.shape[axis] for a in moved) for axis in (0, 1))
        merged = [
            jnp.broadcast_to(a, (size, edges, *a.shape[2:])).reshape(-1, *a.shape[2:])
            for a in moved
        ]
        out = primitive.bind(*merged, window=window._replace(shared=False))
        out = out.reshape(size, edges, *out.shape[1:])
        if window.shared and primitive is input_grad_p:
            out = out.sum(1, keepdims=True)
        return out, 0

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
        1 if window.shared else g.shape[0],
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
