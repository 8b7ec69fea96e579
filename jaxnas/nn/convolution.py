"""Ordinary convolutions that stay fast inside loops.

Inside a loop (`scan`, `while`) XLA computes a convolution on a CPU by plain nested
loops, 8 to 24 times slower than what is here (BUILD.md). A product of matrices has no
such trouble.
So there, rows of pixels are multiplied by a band matrix of the kernel: it has zeros
where a pixel is out of reach, but the windows that overlap along a row need no copies,
and the product is wider than the channels. With a stride, patches are multiplied.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnas.base import Array

WHOLE_ROW = 8  # pixels; longer rows are cut into tiles, shorter ones for small kernels
TILE = 4  # pixels of a result that are computed together


def convolution(
    x: Array, kernel: Array, stride: int = 1, padding: int | None = None
) -> Array:
    """Convolves images that are padded by zeros.

    Differentiable in reverse mode, and that forwards.

    Args:
      x: float32[N, H, W, C].
      kernel: float32[k, k, C, F].
      stride: distance of neighbouring outputs, in pixels.
      padding: pixels on each side; half of the kernel by default, which with stride 1
        and odd k keeps the size.

    Returns:
      float32[N, H', W', F].
    """
    half = len(kernel) // 2
    padding = half if padding is None else padding
    dtype = jnp.result_type(x, kernel)
    x, kernel = (lax.convert_element_type(a, dtype) for a in (x, kernel))
    is_same = stride == 1 and len(kernel) % 2 and padding == half
    patches, of_lax = (
        partial(form, stride=stride, padding=padding) for form in (by_patches, by_lax)
    )
    on_cpu = by_bands if is_same else patches
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=of_lax)


def transposed_convolution(
    x: Array, kernel: Array, stride: int, size: tuple[int, int]
) -> Array:
    """Spreads each pixel over a window, and sums where windows overlap.

    The transpose of a convolution that pads by (k - 1) // 2, cut to a size.
    Differentiable in reverse mode, and that forwards.

    Args:
      x: float32[N, H, W, C].
      kernel: float32[k, k, C, F], k at least the stride.
      stride: distance of neighbouring windows, in pixels.
      size: H', W' of the result, in pixels; zeros where no window reaches.

    Returns:
      float32[N, H', W', F].
    """
    product, of_lax = (
        partial(form, stride=stride, size=size)
        for form in (transposed_by_product, transposed_by_lax)
    )
    return lax.platform_dependent(x, kernel, cpu=product, default=of_lax)


def transposed_by_lax(
    x: Array, kernel: Array, stride: int, size: tuple[int, int]
) -> Array:
    """The transposed convolution as XLA has it."""
    taps = len(kernel)
    before = taps - 1 - (taps - 1) // 2
    after = [
        wanted - before - (had - 1) * stride - 1 + taps - 1
        for had, wanted in zip(x.shape[1:3], size, strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=[(before, one) for one in after],
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def transposed_by_product(
    x: Array, kernel: Array, stride: int, size: tuple[int, int]
) -> Array:
    """The transposed convolution as a product whose windows are then added up."""
    taps, _, channels, _ = kernel.shape
    matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    product = _product(x.reshape(-1, channels), matrix)
    window = Window(taps, stride, (taps - 1) // 2, x.shape[1:3], size)
    return overlap_p.bind(product.reshape(*x.shape[:3], -1), window=window)


class Window(NamedTuple):
    """How windows lie on an image; all in pixels."""

    size: int
    stride: int
    before: int  # that the first windows begin outside
    number: tuple[int, ...]  # of windows in each direction
    image: tuple[int, ...]  # height and width


def _windows(x: Array, window: Window) -> Array:
    """What each window sees: [N, *image, C] -> [N, *count, size size C]."""
    ends = [(count - 1) * window.stride + 1 for count in window.number]
    after = [
        end + window.size - 1 - window.before - side
        for end, side in zip(ends, window.image, strict=True)
    ]
    pads = [(0, 0, 0), *((window.before, one, 0) for one in after), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), pads)
    seen = [
        x[:, i : i + ends[0] : window.stride, j : j + ends[1] : window.stride]
        for i in range(window.size)
        for j in range(window.size)
    ]
    return jnp.concatenate(seen, -1)


def _overlap(windows: Array, window: Window) -> Array:
    """Adds windows up where they overlap: the transpose of `_windows`."""
    taps, (height, width) = window.size, window.image
    windows = windows.reshape(*windows.shape[:3], taps, -1)
    rows = _add_up(windows.transpose(0, 1, 3, 2, 4), window, height)
    rows = rows.reshape(*rows.shape[:3], taps, -1)
    return _add_up(rows.transpose(0, 2, 3, 1, 4), window, width).swapaxes(1, 2)


def _add_up(windows: Array, window: Window, size: int) -> Array:
    """Adds up windows along an axis: [N, count, taps, ...] -> [N, size, ...]."""
    stride, zero = window.stride, jnp.zeros((), windows.dtype)
    count, phases = -(-size // stride), []
    shape = len(windows), count, *windows.shape[3:]
    for phase in range(stride):
        # What falls on the pixels phase, phase + stride, ...
        total = jnp.zeros(shape, windows.dtype)
        for tap in range(window.size):
            shift, rest = divmod(tap - window.before - phase, stride)
            if not rest:
                one = windows[:, :, tap]
                pads = [(0, 0, 0)] * one.ndim
                pads[1] = shift, count - shift - one.shape[1], 0
                total += lax.pad(one, zero, pads)
        phases.append(total)
    together = jnp.stack(phases, 2).reshape(len(windows), -1, *shape[2:])
    return together[:, :size]


def _primitive(name: str, form: Callable, shape: Callable) -> Primitive:
    """A linear function of images; `shape` says what it makes of one."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(form, static_argnames="window"))
    primitive.def_abstract_eval(
        lambda x, window: ShapedArray(
            (x.shape[0], *shape(window, x.shape[-1])), x.dtype
        )
    )
    mlir.register_lowering(primitive, mlir.lower_fun(form, multiple_results=False))

    def batch(args, dims, *, window):
        """Images of all are images of one."""
        (x,), (dim,) = args, dims
        x = jnp.moveaxis(x, dim, 0)
        out = primitive.bind(x.reshape(-1, *x.shape[2:]), window=window)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


# Each is the other's transpose, in every derivative: what XLA makes of automatic
# transposes writes all windows several times.
windows_p = _primitive(
    "windows", _windows, lambda w, channels: (*w.number, w.size**2 * channels)
)
overlap_p = _primitive(
    "overlap", _overlap, lambda w, channels: (*w.image, channels // w.size**2)
)
ad.deflinear2(windows_p, lambda ct, x, window: [overlap_p.bind(ct, window=window)])
ad.deflinear2(overlap_p, lambda ct, x, window: [windows_p.bind(ct, window=window)])


def by_lax(
    x: Array, kernel: Array, stride: int = 1, padding: int | None = None
) -> Array:
    """The convolution as XLA has it."""
    padding = len(kernel) // 2 if padding is None else padding
    how = (stride, stride), [(padding, padding)] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, *how, dimension_numbers=layout)


def by_patches(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The convolution as a product with what each output sees."""
    size = len(kernel)
    count = [(side + 2 * padding - size) // stride + 1 for side in x.shape[1:3]]
    window = Window(size, stride, padding, tuple(count), x.shape[1:3])
    patches = windows_p.bind(x, window=window)
    rows = patches.reshape(-1, patches.shape[-1])
    product = _product(rows, kernel.reshape(rows.shape[1], -1))
    return product.reshape(*patches.shape[:3], -1)


def by_bands(x: Array, kernel: Array) -> Array:
    """The convolution that keeps the size as a product with bands."""
    size, *_, features = kernel.shape
    if size == 1:
        return x @ kernel[0, 0]
    count, height, width, _ = x.shape
    tile = _tile(size, width)
    band = _band(size, tile, reach=0 if tile == width else size // 2)
    rows = _tiles(x, tile, size // 2)
    windows = jnp.concatenate([rows[:, i : i + height] for i in range(size)], -1)
    matrix = jnp.einsum("ijcf,juv->iucvf", kernel, band)
    matrix = matrix.reshape(-1, tile * features)
    product = _product(windows.reshape(-1, windows.shape[-1]), matrix)
    return product.reshape(count, height, -1, features)[:, :, :width]


def _tile(size: int, width: int) -> int:
    """The pixels of a row that are computed together, as measured."""
    if size == 3 and width > 1:
        return min(width, TILE if width > 2 * WHOLE_ROW else TILE // 2)
    return width if width <= WHOLE_ROW else TILE


@jax.custom_jvp
def _product(windows: Array, matrix: Array) -> Array:
    return windows @ matrix


@partial(_product.defjvp, symbolic_zeros=True)
def _push(primals, tangents):
    windows, matrix = primals
    by_windows, by_matrix = tangents
    product = windows @ matrix
    along = jnp.zeros_like(product)
    if not isinstance(by_windows, SymbolicZero):
        along += by_windows @ matrix
    if not isinstance(by_matrix, SymbolicZero):
        # Backwards this contracts the rows of both matrices, over which XLA takes twice
        # as long: so the narrower one is transposed before, and barriers keep it from
        # undoing that.
        if windows.shape[1] < matrix.shape[1]:
            turned = lax.optimization_barrier(windows.T)
            along += lax.dot_general(turned, by_matrix, (((0,), (0,)), ((), ())))
        else:
            turned = lax.optimization_barrier(by_matrix.T)
            moved = lax.dot_general(turned, windows, (((1,), (1,)), ((), ())))
            along += lax.optimization_barrier(moved).T
    return product, along


def _tiles(x: Array, tile: int, border: int) -> Array:
    """Cuts rows into tiles with all that they see: [N, H + 2 border, tiles, pixels C].

    There are rows of zeros above and below, and zeros to the left and right where
    there are several tiles.
    """
    count, _, width, channels = x.shape
    tiles = -(-width // tile)
    above = (border, border)
    if tiles == 1:
        x = jnp.pad(x, ((0, 0), above, (0, 0), (0, 0)))
        return x.reshape(count, -1, 1, width * channels)
    beside = (border, border + tiles * tile - width)
    x = jnp.pad(x, ((0, 0), above, beside, (0, 0))).reshape(
        count, x.shape[1] + 2 * border, -1
    )
    seen = (tile + 2 * border) * channels
    starts = range(0, tiles * tile * channels, tile * channels)
    return jnp.stack([x[:, :, start : start + seen] for start in starts], 2)


def _band(size: int, tile: int, reach: int) -> np.ndarray:
    """Whether output v sees input u by tap j: float32[size, tile + 2 reach, tile]."""
    tap, u, v = np.ogrid[:size, : tile + 2 * reach, :tile]
    return (u - reach == v + tap - size // 2).astype(np.float32)
