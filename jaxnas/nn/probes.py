"""What a network tells of itself where it is asked: collections that are mutable then.

Else nothing here costs anything.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxnas.base import Array

AGREEMENT = "agreement"
"""Of each two images, in how many units ReLUs agree: float32[N, N]."""
SCALE = "scale"
"""By what the network's output was divided on the way, as a logarithm: float32[]."""


def _asks(module: nn.Module, collection: str) -> bool:
    return module.is_mutable_collection(collection) and not module.is_initializing()


def tell(module: nn.Module, collection: str, value: Array) -> None:
    """Adds to what a module tells."""
    add = {"reduce_fn": jnp.add, "init_fn": lambda: jnp.zeros_like(value)}
    module.sow(collection, "told", value, **add)


def relu(module: nn.Module, x: Array, edges: int) -> Array:
    """Takes the positive part of float32[S, N, H, W, C], which serves so many edges.

    In `AGREEMENT` the units that both or neither of two images pass are counted, once
    for each edge.
    """
    if _asks(module, AGREEMENT):
        passes = (x > 0).astype(jnp.float32)
        codes = jnp.moveaxis(passes, 1, 0).reshape(x.shape[1], -1)
        both = codes @ codes.T + (1 - codes) @ (1 - codes).T
        tell(module, AGREEMENT, edges // len(x) * both)
    return nn.relu(x)


def rescale(module: nn.Module, *states: Array) -> tuple[Array, ...]:
    """Divides states by the largest value of the last, for `SCALE`.

    A network without norms whose weights are positive would overflow.
    """
    if not _asks(module, SCALE):
        return states
    most = lax.stop_gradient(jnp.abs(states[-1]).max())
    most = jnp.where(most > 0, most, 1.0)
    tell(module, SCALE, jnp.log(most))
    return tuple(x / most for x in states)
