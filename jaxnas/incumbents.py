"""What searches had found by when: the log of some seeds as curves over queries."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxnas.base import ABSENT, Log

SLACK = 1e-9  # sums of parts of a query are not exact


class Curves(NamedTuple):
    """E evaluations of each of S seeds, in the order of asking."""

    query: NDArray  # float64[S, E], whole evaluations so far; parts count as parts
    cost: NDArray  # float64[S, E], what was spent so far, in the evaluator's unit
    fitness: NDArray  # float32[S, E], -inf where it failed
    test: NDArray  # float32[S, E], the incumbent's test accuracy, NaN before the first
    asked: NDArray  # bool[S, E], false for padding and for what was cut off
    absent: NDArray  # bool[S, E], whether the table lacks the architecture


def follow(log: Log) -> Curves:
    """Follows the incumbent through a log of seeds side by side, arrays [T, S, B].

    As in `search.incumbent`, it is the best at the largest budget so far and the
    earliest of equals. Its test accuracy comes from the metric `test_accuracy`, the
    part of a whole evaluation that each is from the metric `queries`.
    """
    budget, fitness = _by_seed(log.proposal.budget), _by_seed(log.feedback.fitness)
    asked = budget > 0
    absent = asked & (_by_seed(log.feedback.status) == ABSENT)
    queries = _by_seed(log.feedback.metrics["queries"])
    cost = np.where(asked, _by_seed(log.feedback.cost), 0)
    # Ranks, so that one running maximum goes by budget first and fitness second.
    _, largest = np.unique(budget, return_inverse=True)
    values, best = np.unique(fitness, return_inverse=True)
    rank = (largest.reshape(budget.shape) * len(values)) + best.reshape(budget.shape)
    rank = np.where(asked & (fitness > -np.inf), rank, -1)
    highest = np.maximum.accumulate(rank, 1)
    before = np.pad(highest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    since = np.where(highest > before, np.arange(rank.shape[1]), 0)
    test = np.take_along_axis(
        _by_seed(log.feedback.metrics["test_accuracy"]),
        np.maximum.accumulate(since, 1),
        1,
    )
    return Curves(
        np.cumsum(np.where(asked, queries, 0), 1, dtype=np.float64),
        np.cumsum(cost, 1, dtype=np.float64),
        fitness,
        np.where(highest >= 0, test, np.nan).astype(np.float32),
        asked,
        absent,
    )


def cut(curves: Curves, spent: NDArray, most: float) -> Curves:
    """Leaves out the evaluations that end when more than `most` is spent.

    Args:
      curves: of S seeds.
      spent: `curves.query` or `curves.cost`.
      most: that may be spent.
    """
    within = spent <= most * (1 + SLACK)
    length = max(1, np.count_nonzero(within, 1).max())
    kept = curves._replace(asked=curves.asked & within, absent=curves.absent & within)
    return Curves(*(values[:, :length] for values in kept))


def final_accuracy(curves: Curves) -> NDArray:
    """Each seed's incumbent's test accuracy at its last evaluation, float64[S]."""
    places = np.where(curves.asked, np.arange(curves.asked.shape[1]), -1).max(1)
    last = curves.test[np.arange(len(places)), places].astype(float)
    return np.where(places < 0, np.nan, last)


def accuracy_at(curves: Curves, spent: NDArray, grid: ArrayLike) -> NDArray:
    """The incumbent's test accuracy where so much is spent, float[S, N].

    Args:
      curves: of S seeds.
      spent: `curves.query` or `curves.cost`.
      grid: float[N]; NaN comes where a seed has no incumbent by then.
    """
    grid = np.asarray(grid) * (1 + SLACK)
    rows = []
    for test, so_far in zip(curves.test, spent, strict=True):
        done = np.searchsorted(so_far, grid, "right")
        rows.append(np.where(done > 0, test[np.maximum(done, 1) - 1], np.nan))
    return np.array(rows)


def bootstrap(values: ArrayLike, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of float[S]."""
    values, rng = np.asarray(values, float), np.random.default_rng(0)
    size = len(values)
    means = [values[rng.integers(0, size, size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _by_seed(values: ArrayLike) -> NDArray:
    """[T, S, B] to [S, T * B]."""
    values = np.asarray(values)
    return np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
