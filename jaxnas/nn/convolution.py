"""Ordinary convolutions that stay fast inside loops.

Inside a loop (`scan`, `while`) XLA computes a convolution on a CPU by plain nested
loops, 8 to 24 times slower than what is here (BUILD.md). A product of matrices has no
such trouble.
So there, rows of pixels are multiplied by a band matrix of the kernel: it has zeros
where a pixel is out of reach, but the windows that overlap along a row need no copies,
and the product is wider than the channels. With a stride, patches are multiplied.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

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
    taps, _, channels, features = kernel.shape
    matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    product = _product(x.reshape(-1, channels), matrix)
    windows = product.reshape(*x.shape[:3], taps, taps * features)
    rows = _overlap(windows.transpose(0, 1, 3, 2, 4), 1, stride, size[0])
    rows = rows.reshape(*rows.shape[:3], taps, features)
    return _overlap(rows.transpose(0, 2, 3, 1, 4), 1, stride, size[1]).swapaxes(1, 2)


def _overlap(windows: Array, axis: int, stride: int, size: int) -> Array:
    """Adds up windows [..., H, k, ...] that begin a stride apart: [..., size, ...]."""
    taps = windows.shape[axis + 1]
    before = (taps - 1) // 2
    phases = []
    for phase in range(stride):
        # What falls on the pixels phase, phase + stride, ...
        count, total = -(-(size - phase) // stride), jnp.float32(0)
        for tap in range(taps):
            if (tap - before - phase) % stride == 0:
                shift = (tap - before - phase) // stride
                one = lax.index_in_dim(windows, tap, axis + 1, keepdims=False)
                pads = [(0, 0, 0)] * one.ndim
                pads[axis] = (shift, count - shift - one.shape[axis], 0)
                total = total + lax.pad(one, jnp.zeros((), one.dtype), pads)
        phases.append(total)
    most = phases[0].shape[axis]
    together = jnp.stack([_longer(one, axis, most) for one in phases], axis + 1)
    shape = *together.shape[:axis], most * stride, *together.shape[axis + 2 :]
    return lax.slice_in_dim(together.reshape(shape), 0, size, axis=axis)


def _longer(x: Array, axis: int, size: int) -> Array:
    """Fills an axis up with zeros."""
    pads = [(0, size - x.shape[axis] if a == axis else 0) for a in range(x.ndim)]
    return jnp.pad(x, pads)


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
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    ends = [side - size + 1 for side in x.shape[1:3]]
    seen = [
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    patches = jnp.concatenate(seen, -1)
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
        # as long: so one is transposed before, and barriers keep it from undoing that.
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
