"""SMS-EMOA: who adds least to the hypervolume dies.

Beume, Naujoks and Emmerich 2007, "SMS-EMOA: multiobjective selection based on dominated
hypervolume" (doi:10.1016/j.ejor.2006.08.008).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.base import FULL, Array, SearchSpace, Strategy
from jaxnas.pareto import hypervolume, pareto_ranks
from jaxnas.strategies.multi_objective import multi_objective


def sms_emoa(
    space: SearchSpace,
    *,
    population_size: int = 20,
    num_objectives: int = 2,
    crossover_rate: float | Array = 0.9,
    mutation_rate: float | Array = 0.9,
    num_tries: int = 8,
    memory: int = 1000,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy that searches by `Feedback.objectives`, float32[B, M].

    Parents are drawn evenly, as in the paper. Of the worst front, the one that adds
    least to its hypervolume dies, again and again until P are left. The reference moves
    with that front: by each objective as far below its least value as its largest is
    above (1 where they are equal), so that the unit of an objective does not matter
    and the ends of a front seldom die.

    Its answer is the best by fitness alone; `multi_objective.front(log)` says which
    evaluations are Pareto-optimal. See `multi_objective` for what is never evaluated
    twice, and for failures.

    Args:
      space: what is searched.
      population_size: P; the first so many are random.
      num_objectives: M; each beyond 2 makes a step dearer by a factor of P.
      crossover_rate: probability that a child has two parents.
      mutation_rate: probability that a child is mutated by one edit.
      num_tries: children bred for each that is asked for, the first new ones.
      memory: how many evaluations are remembered, so that none is repeated.
      batch_size: B, children a step; the paper's is 1.
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
        tournament_size=1,
        crossover_rate=crossover_rate,
        mutation_rate=mutation_rate,
        num_tries=num_tries,
        memory=memory,
        batch_size=batch_size,
        budget=budget,
    )


def survive(objectives: Array, known: Array, size: int) -> Array:
    """Those who are left when all others have died; see `multi_objective.Survive`."""
    everyone = jnp.ones(len(objectives), bool)

    def die(_, lives):
        ranks = pareto_ranks(objectives, known & lives)
        nobody = lives & ~known  # before anybody
        last = jnp.max(jnp.where(known & lives, ranks, -1))
        worst = known & lives & (ranks == last)
        worth = jnp.where(worst, contributions(objectives, worst), jnp.inf)
        return lives.at[jnp.argmin(jnp.where(nobody, -1.0, worth))].set(False)

    lives = lax.fori_loop(0, len(objectives) - size, die, everyone)
    return jnp.argsort(2 * lives + (lives & known), descending=True)[:size]


def contributions(objectives: Array, front: Array) -> Array:
    """What the hypervolume of a front loses without each: float32[N].

    In units of the front's extent; 0 off the front. See `sms_emoa` for the reference.

    Args:
      objectives: float32[N, M].
      front: bool[N].
    """
    known = front[:, None]
    most = jnp.max(objectives, 0, initial=-jnp.inf, where=known)
    least = jnp.min(objectives, 0, initial=jnp.inf, where=known)
    extent = jnp.where(most > least, most - least, 1.0)
    points = jnp.where(known, (objectives - least[None]) / extent[None], -1.0)
    below = -jnp.ones(objectives.shape[1])
    without = front[None] & ~jnp.eye(len(front), dtype=bool)
    volumes = jax.vmap(hypervolume, (None, None, 0))(points, below, without)
    return hypervolume(points, below, front) - volumes
