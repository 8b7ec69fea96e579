"""How alike two rankings are, with an interval."""

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

    A score of -inf, of who failed, is the least.

    Args:
      scores: float[S, N], of S seeds.
      accuracies: float[N].
      seed: of the bootstrap.
    """
    scores = np.atleast_2d(np.asarray(scores, float))
    finite = np.where(np.isfinite(scores), scores, np.nan)
    least = np.nanmin(finite, 1, keepdims=True) - 1
    scores = np.where(np.isfinite(scores), scores, least)
    rng = np.random.default_rng(seed)

    def tau(at: np.ndarray | slice) -> float:
        found = [stats.kendalltau(row[at], accuracies[at]).statistic for row in scores]
        return float(np.mean(found))

    draws = rng.integers(0, len(accuracies), (RESAMPLES, len(accuracies)))
    low, high = np.nanpercentile([tau(draw) for draw in draws], [2.5, 97.5])
    rhos = [stats.spearmanr(row, accuracies).statistic for row in scores]
    return Correlation(tau(slice(None)), float(low), float(high), float(np.mean(rhos)))
