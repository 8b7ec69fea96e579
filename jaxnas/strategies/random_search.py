"""Random search: architectures drawn from the space, with replacement.

Bergstra and Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html; a strong
baseline of architecture search too (Li and Talwalkar 2019, arXiv:1902.07638).
"""

import jax

from jaxnas.base import FULL, Array, Proposal, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose


def random_search(
    space: SearchSpace, *, batch_size: int = 1, budget: int = FULL
) -> Strategy:
    """Makes a strategy that learns nothing and recommends the incumbent.

    Args:
      space: what is searched.
      batch_size: B, architectures a step.
      budget: of each, in epochs; a whole one by default.

    Raises:
      InputError: batch_size or budget is below 1.
    """
    expect(1, batch_size=batch_size, budget=budget)

    def ask(key: Array, step: Array, state: tuple[()]) -> Proposal:
        del step, state
        keys = jax.random.split(key, batch_size)
        return propose(jax.vmap(space.sample)(keys), budget)

    return Strategy(
        init=lambda key: (),
        ask=ask,
        tell=lambda key, step, state, proposal, feedback: state,
        recommend=lambda state, log: incumbent(log),
    )
