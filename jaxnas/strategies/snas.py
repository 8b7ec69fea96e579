"""SNAS: a search by weights drawn from a concrete distribution that hardens.

Xie, Zheng, Liu and Lin 2019, arXiv:1812.09926. As the temperature falls, the weights
that are drawn go from nearly even ones to a one and zeros.
"""

from typing import Any

from jaxnas.base import Array, SearchSpace, Strategy
from jaxnas.strategies.concrete import annealing, concrete
from jaxnas.strategies.differentiable import differentiable


def snas(
    space: SearchSpace,
    *,
    num_steps: int = 58_500,
    temperatures: tuple[float, float] = (1.0, 0.03),
    **settings: Any,
) -> Strategy:
    """Makes the strategy, without the paper's constraint on resources.

    The paper trains weights and logits on one batch, and gives no temperatures; these
    are those of its authors' code. Rate, betas and decay are those of `differentiable`.

    Args:
      space: what is searched.
      num_steps: over which the temperature falls linearly; the default is the paper's
        150 epochs, of 390 batches of 64.
      temperatures: the first and the last.
      **settings: of `differentiable`.

    Raises:
      InputError: num_steps or a temperature is not positive; what `differentiable`
        raises.
    """
    temperature = annealing(temperatures, num_steps)

    def relax(key: Array, step: Array, logits: Array) -> Array:
        return concrete(key, logits, temperature(step))

    return differentiable(space, relax=relax, **settings)
