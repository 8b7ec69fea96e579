"""How alike two rankings are, with an interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 1000


class Correlation(NamedTuple):
    """Kendall's tau-b, its 95 % bootstrap interval over the ranked, Spearman's rho."""

    tau: float
    low: float
    high: float
    rho: float


def correlate(scores: np.ndarray, accuracies: np.ndarray, seed: int = 0) -> Correlation:
    """Correlates scores with accuracies, the mean over seeds.

    A score that is not finite, of who failed, is the least. What ranks all alike has
    no correlation: 0.

    Args:
      scores: float[S, N], of S seeds.
      accuracies: float[N].
      seed: of the bootstrap.
    """
    scores = np.atleast_2d(np.asarray(scores, float))
    finite = np.isfinite(scores)
    least = np.min(scores, 1, where=finite, initial=np.inf, keepdims=True)
    scores = np.where(finite, scores, np.where(np.isfinite(least), least, 0.0) - 1)
    rng = np.random.default_rng(seed)

    def mean(correlation: Callable, at: np.ndarray | slice = slice(None)) -> float:
        found = [
            correlation(row[at], accuracies[at]).statistic
            if np.ptp(row[at]) and np.ptp(accuracies[at])
            else 0.0
            for row in scores
        ]
        return float(np.mean(found))

    draws = rng.integers(0, len(accuracies), (RESAMPLES, len(accuracies)))
    taus = [mean(stats.kendalltau, draw) for draw in draws]
    low, high = map(float, np.percentile(taus, [2.5, 97.5]))
    return Correlation(mean(stats.kendalltau), low, high, mean(stats.spearmanr))
