"""What strategies check of their arguments, where these are concrete."""

import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError, Proposal
from jaxnas.checks import expect


def expect_capacity(population_size: int | Array, capacity: int | None) -> int:
    """Returns the capacity for a population, which may be traced.

    Raises:
      InputError: the population is below 1 or above its capacity, or it is traced
        and there is none.
    """
    if capacity is None:
        if isinstance(population_size, jax.core.Tracer):
            raise InputError(
                "expected a capacity for a population size that is traced: give one"
            )
        capacity = int(population_size)
    expect(1, capacity, population_size=population_size)
    return capacity


def propose(arch: Array, budget: int) -> Proposal:
    """Makes a proposal of int32[B, D], or of one int32[D], at one budget."""
    arch = arch.reshape(-1, arch.shape[-1])
    every = jnp.ones(len(arch), jnp.int32)
    return Proposal(arch, budget * every, -every)
