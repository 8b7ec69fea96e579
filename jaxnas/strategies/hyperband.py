"""Hyperband: brackets of successive halving, from many small budgets to few large.

Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar 2018, arXiv:1603.06560.
"""

import math
from collections.abc import Sequence

from jaxnas.base import SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.strategies.halving import check_budgets, follow, make_schedule


def hyperband(
    space: SearchSpace,
    *,
    budgets: Sequence[int] = (1, 3, 9, 27),
    eta: float = 3.0,
    batch_size: int = 1,
) -> Strategy:
    """Makes a strategy that repeats its brackets.

    The paper's budgets are R / eta^s; here they are those that the evaluator has. The
    bracket that begins s rungs below the top has ceil((S + 1) / (s + 1) eta^s)
    architectures, where S + 1 is the number of budgets.

    Args:
      space: what is searched.
      budgets: ascending, in epochs.
      eta: a rung keeps one in so many of the rung below.
      batch_size: B, architectures of a rung that are asked for together.

    Raises:
      InputError: budgets do not ascend or are less than two, eta or the batch is
        below 1.
    """
    budgets = check_budgets(budgets)
    expect(1, eta=eta, batch_size=batch_size)
    brackets = []
    for depth in reversed(range(len(budgets))):
        size = math.ceil(len(budgets) / (depth + 1) * eta**depth)
        rungs = enumerate(budgets[len(budgets) - 1 - depth :])
        brackets.append([(b, max(1, int(size / eta**rung))) for rung, b in rungs])
    return follow(space, make_schedule(brackets, batch_size), batch_size)
