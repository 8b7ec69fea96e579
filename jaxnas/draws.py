"""Cheap random draws: where a scan asks thousands of seeds, hashing is the cost.

A key is random already, and what a step of a search draws from it is small. So words
follow from a key's two by a 32-bit mixing function (the finaliser of MurmurHash3, A.
Appleby 2011) instead of the twenty rounds of threefry each.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnas.base import Array

GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: neighbours get far apart


def below(key: Array, shape: tuple[int, ...], size: ArrayLike) -> Array:
    """Draws uniformly from 0 to size - 1: int32[shape].

    Args:
      key: typed key.
      shape: of what is drawn.
      size: 1 or more; a number, or an array that broadcasts to shape. The bias is
        below size / 2**32.
    """
    drawn = words(key, math.prod(shape)).reshape(shape)
    return (drawn % jnp.asarray(size).astype(jnp.uint32)).astype(jnp.int32)


def words(key: Array, count: int) -> Array:
    """Draws uint32[count], from any typed key."""
    data = jax.random.key_data(key)
    steps = jnp.arange(1, count + 1, dtype=jnp.uint32) * jnp.uint32(GOLDEN)
    return _mix(_mix(steps + data[:1]) + data[-1:])


def _mix(x: Array) -> Array:
    """A bijection of uint32 in which each bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
