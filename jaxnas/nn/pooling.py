"""3x3 pooling in two separable passes: XLA's own are slow to differentiate on a CPU."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array


def _shifts(x, axis, stride, fill):
    """The three neighbours along an axis of every stride-th pixel."""
    size = x.shape[axis]
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 1)
    x = jnp.pad(x, pads, constant_values=fill)
    return [lax.slice_in_dim(x, i, i + size, stride, axis) for i in range(3)]


def max_pool(x: Array, stride: int = 1) -> Array:
    """The maximum of 3x3 pixels of float32[..., H, W, C], inside the image."""
    for axis in (-3, -2):
        left, centre, right = _shifts(x, axis, stride, -jnp.inf)
        x = jnp.maximum(jnp.maximum(left, centre), right)
    return x


def avg_pool(x: Array, stride: int = 1) -> Array:
    """The mean of 3x3 pixels of float32[..., H, W, C], of those inside the image."""
    for axis in (-3, -2):
        size = x.shape[axis]
        counts = np.full(size, 3, np.float32)
        counts[0] -= 1
        counts[-1] -= 1
        shape = [1] * x.ndim
        shape[axis] = -1
        x = sum(_shifts(x, axis, stride, 0.0)) / counts[::stride].reshape(shape)
    return x
