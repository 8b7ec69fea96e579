"""DrNAS: a search by weights drawn from a Dirichlet distribution.

Chen, Wang, Cheng, Tang and Hsieh 2021, arXiv:2006.10355. The concentrations are
elu(logits) + 1, and gradients go through the draws (Figurnov, Mohamed and Mnih 2018,
arXiv:1805.08498).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnas.base import Array, SearchSpace, Strategy
from jaxnas.strategies.differentiable import differentiable

LEAST = 1e-6  # concentration of a choice that exists: 0 has no distribution


def drnas(
    space: SearchSpace, *, weight_decay: float = 1e-3, **settings: Any
) -> Strategy:
    """Makes the strategy; the answer is that of the distribution's mean.

    The published code reads it from a softmax of the logits, which orders the choices
    of a decision alike. Rate and betas are those of `differentiable`, as in that code
    for NAS-Bench-201; for the space of DARTS it has a rate of 6e-4 and warms up for 10
    epochs. The paper's growing of partial channels is the network's affair.

    Args:
      space: what is searched.
      weight_decay: the weight of the paper's penalty, the squared distance of the
        concentrations from 1, which the published code takes as that of the logits
        from 0.
      **settings: of `differentiable`.

    Raises:
      InputError: what `differentiable` raises.
    """
    return differentiable(
        space, relax=dirichlet, mean=mean, weight_decay=weight_decay, **settings
    )


def concentrations(logits: Array) -> Array:
    """elu(logits) + 1 of float32[D, K], the same; 0 for a logit of -inf."""
    exists = logits > -jnp.inf
    found = jax.nn.elu(jnp.where(exists, logits, 0.0)) + 1
    return jnp.where(exists, jnp.maximum(found, LEAST), 0.0)


def dirichlet(key: Array, step: Array, logits: Array) -> Array:
    """Draws float32[D, K], differentiable; exactly 0 for a logit of -inf."""
    del step
    concentration = concentrations(logits)
    exists = concentration > 0
    # Gamma draws over their sum, by logarithms: small concentrations underflow.
    drawn = jax.random.loggamma(key, jnp.where(exists, concentration, 1.0))
    return jax.nn.softmax(jnp.where(exists, drawn, -jnp.inf))


def mean(logits: Array) -> Array:
    """The mean of `dirichlet`: float32[D, K]."""
    found = concentrations(logits)
    return found / found.sum(-1, keepdims=True)
