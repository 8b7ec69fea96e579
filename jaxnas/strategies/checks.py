"""What strategies check of their arguments, where these are concrete."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError, Proposal


def expect(least: float, most: float = float("inf"), **values: Any) -> None:
    """Refuses numbers out of a range; a tracer cannot be compared and passes.

    Raises:
      InputError: a value is below `least` or above `most`.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer) or least <= value <= most:
            continue
        wanted = (
            f"from {least} to {most}" if most < float("inf") else f"{least} or more"
        )
        raise InputError(f"expected {name} of {wanted}, but got {value}: change it")


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
