"""Ordinary convolutions that stay fast inside loops.

Inside a loop (`scan`, `while`) XLA computes a convolution on a CPU by plain nested
loops, 10 to 40 times slower than outside. A product of matrices has no such trouble.
So there, rows of pixels are multiplied by a band matrix of the kernel: it has zeros
where a pixel is out of reach, but the windows that overlap along a row need no copies,
and the product is wider than the channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array

WHOLE_ROW = 8  # pixels; longer rows are cut into tiles, shorter ones for small kernels
TILE = 4  # pixels of a result that are computed together


def convolution(x: Array, kernel: Array) -> Array:
    """Convolves images with stride 1, padded by zeros to keep their size.

    Differentiable in reverse mode.

    Args:
      x: float32[N, H, W, C].
      kernel: float32[k, k, C, F] with k odd.

    Returns:
      float32[N, H, W, F].
    """
    return lax.platform_dependent(x, kernel, cpu=by_bands, default=by_lax)


def by_lax(x: Array, kernel: Array) -> Array:
    """The convolution as XLA has it."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def by_bands(x: Array, kernel: Array) -> Array:
    """The convolution as a product of matrices."""
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


@jax.custom_vjp
def _product(windows: Array, matrix: Array) -> Array:
    return windows @ matrix


def _forward(windows, matrix):
    return windows @ matrix, (windows, matrix)


def _backward(saved, cotangent):
    windows, matrix = saved
    # XLA takes twice as long over a product that contracts the rows of both: so one
    # is transposed before, and the barrier keeps that from being undone.
    rows = lax.optimization_barrier(cotangent.T)
    return cotangent @ matrix.T, lax.optimization_barrier(rows @ windows).T


_product.defvjp(_forward, _backward)


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
