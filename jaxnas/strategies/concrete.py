"""The concrete distribution, or Gumbel-softmax: what GDAS and SNAS draw weights from.

Maddison, Mnih and Teh 2017, arXiv:1611.00712, and Jang, Gu and Poole 2017,
arXiv:1611.01144.
"""

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Array
from jaxnas.checks import expect


def concrete(key: Array, logits: Array, temperature: float | Array) -> Array:
    """Draws weights: float32[D, K], -inf for choices that are none -> weights.

    The strongest is choice k with probability softmax(logits)[k] at every temperature;
    the lower that is, the nearer weights are to a one and zeros.
    """
    noise = jax.random.gumbel(key, logits.shape)
    return jax.nn.softmax((logits + noise) / temperature)


def annealing(temperatures: tuple[float, float], num_steps: int) -> optax.Schedule:
    """Makes `step -> temperature`, linear from the first of the steps to the last.

    Raises:
      InputError: num_steps is below 1, or a temperature below 1e-6.
    """
    first, last = temperatures
    expect(1, num_steps=num_steps)
    expect(1e-6, first_temperature=first, last_temperature=last)
    intervals = jnp.maximum(num_steps - 1, 1)

    def temperature(step):
        return first + (last - first) * jnp.clip(step / intervals, 0.0, 1.0)

    return temperature
