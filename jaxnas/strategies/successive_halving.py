"""Successive halving: many architectures at a small budget, the best at a larger one.

Jamieson and Talwalkar 2016, arXiv:1502.07943.
"""

from collections.abc import Sequence

from jaxnas.base import SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.strategies.halving import check_budgets, follow, make_schedule


def successive_halving(
    space: SearchSpace,
    *,
    budgets: Sequence[int] = (1, 3, 9, 27),
    eta: float = 3.0,
    population_size: int = 27,
    batch_size: int = 1,
) -> Strategy:
    """Makes a strategy that begins anew when it is through.

    Args:
      space: what is searched.
      budgets: of the rungs, ascending, in epochs.
      eta: a rung keeps one in so many of the rung below.
      population_size: architectures of the first rung.
      batch_size: B, architectures of a rung that are asked for together.

    Raises:
      InputError: budgets do not ascend or are less than two, eta is below 1, the
        population or batch below 1.
    """
    budgets = check_budgets(budgets)
    expect(1, eta=eta, population_size=population_size, batch_size=batch_size)
    rungs = [
        (budget, max(1, int(population_size / eta**rung)))
        for rung, budget in enumerate(budgets)
    ]
    return follow(space, make_schedule([rungs], batch_size), batch_size)
