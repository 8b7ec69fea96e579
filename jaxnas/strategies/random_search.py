"""Random search: architectures drawn from the space, with replacement.

Bergstra and Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html; a strong
baseline of architecture search too (Li and Talwalkar 2019, arXiv:1902.07638).
"""

import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError, Proposal, SearchSpace, Strategy
from jaxnas.search import incumbent


def random_search(
    space: SearchSpace, *, batch_size: int = 1, budget: int = 1
) -> Strategy:
    """Makes a strategy that learns nothing and recommends the incumbent.

    Args:
      space: what is searched.
      batch_size: B, architectures a step.
      budget: of each, in epochs.

    Raises:
      InputError: batch_size or budget is below 1.
    """
    for name, value in (("batch_size", batch_size), ("budget", budget)):
        if value < 1:
            raise InputError(f"expected {name} of 1 or more, but got {value}")

    def ask(key: Array, step: Array, state: tuple[()]) -> Proposal:
        del step, state
        arch = jax.vmap(space.sample)(jax.random.split(key, batch_size))
        every = jnp.ones(batch_size, jnp.int32)
        return Proposal(arch, budget * every, -every)

    return Strategy(
        init=lambda key: (),
        ask=ask,
        tell=lambda key, step, state, proposal, feedback: state,
        recommend=lambda state, log: incumbent(log),
    )
