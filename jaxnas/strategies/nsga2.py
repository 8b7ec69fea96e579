"""NSGA-II: fronts by domination, and on a front those in the emptiest places.

Deb, Pratap, Agarwal and Meyarivan 2002, "A fast and elitist multiobjective genetic
algorithm: NSGA-II" (doi:10.1109/4235.996017). A step is a generation where it breeds
as many children as there are parents.
"""

import jax
import jax.numpy as jnp

from jaxnas.base import FULL, Array, SearchSpace, Strategy
from jaxnas.pareto import pareto_ranks
from jaxnas.strategies.multi_objective import multi_objective


def nsga2(
    space: SearchSpace,
    *,
    population_size: int = 20,
    num_objectives: int = 2,
    crossover_rate: float | Array = 0.9,
    mutation_rate: float | Array = 0.9,
    num_tries: int = 8,
    memory: int = 1000,
    batch_size: int = 20,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy that searches by `Feedback.objectives`, float32[B, M].

    Its answer is the best by fitness alone; `multi_objective.front(log)` says which
    evaluations are Pareto-optimal. See `multi_objective` for what is never evaluated
    twice, and for failures.

    Args:
      space: what is searched.
      population_size: P, the parents; the first so many are random.
      num_objectives: M.
      crossover_rate: probability that a child has two parents; the paper's.
      mutation_rate: probability that a child is mutated by one edit; the paper
        mutates each decision with probability 1 / D.
      num_tries: children bred for each that is asked for, the first new ones.
      memory: how many evaluations are remembered, so that none is repeated.
      batch_size: B, children a step; the paper's is P.
      budget: of each evaluation, in epochs; a whole one by default.

    Raises:
      InputError: a size is below 1, a rate no probability; while tracing, where the
        evaluator gives no objectives or not M.
    """
    return multi_objective(
        space,
        survive,
        population_size=population_size,
        num_objectives=num_objectives,
        tournament_size=2,
        crossover_rate=crossover_rate,
        mutation_rate=mutation_rate,
        num_tries=num_tries,
        memory=memory,
        batch_size=batch_size,
        budget=budget,
    )


def survive(objectives: Array, known: Array, size: int) -> Array:
    """Those on the first fronts, then those with the largest crowding distance.

    See `multi_objective.Survive`; sorted, so that tournaments are the paper's.
    """
    ranks = pareto_ranks(objectives, known)
    return jnp.lexsort((-crowding_distance(objectives, ranks), ranks))[:size]


def crowding_distance(objectives: Array, ranks: Array) -> Array:
    """How far apart the neighbours of each are on its front: float32[N].

    The sum over objectives of the distance between the next larger and the next
    smaller, as a part of the front's extent; infinite at the ends of a front.

    Args:
      objectives: float32[N, M]; where not finite, the distance is infinite.
      ranks: int32[N], the front of each.
    """
    return jax.vmap(_distance, (1, None))(objectives, ranks).sum(0)


def _distance(values: Array, ranks: Array) -> Array:
    """The crowding distance by one objective, float32[N]."""
    order = jnp.lexsort((values, ranks))
    values, ranks = values[order], ranks[order]
    begins = jnp.append(True, ranks[1:] != ranks[:-1])
    ends = jnp.append(begins[1:], True)
    gap = jnp.roll(values, -1) - jnp.roll(values, 1)
    last = jax.ops.segment_max(values, ranks, len(ranks) + 1)
    least = jax.ops.segment_min(values, ranks, len(ranks) + 1)
    extent = (last - least)[ranks]
    share = jnp.where(extent > 0, gap / jnp.where(extent > 0, extent, 1.0), 0.0)
    is_end = begins | ends | ~jnp.isfinite(values)
    return jnp.zeros_like(values).at[order].set(jnp.where(is_end, jnp.inf, share))
