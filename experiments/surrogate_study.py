"""How well surrogates rank, and how sure they are, by how many they have seen.

Beside them, on the same splits, models of scikit-learn on one-hot features: those with
default settings, and a Gaussian process whose scale and noise are fitted too.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.svm import SVR
from surrogate_recipe import coverage

from jaxnas.base import History, SearchSpace, Surrogate
from jaxnas.encoding import encoder
from jaxnas.incumbents import bootstrap
from jaxnas.surrogates import SURROGATES

NAMESAKES: dict[str, Callable[[], Any]] = {
    "gp": lambda: GaussianProcessRegressor(normalize_y=True),
    "gp, fitted": lambda: GaussianProcessRegressor(
        ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True
    ),
    "random_forest": lambda: RandomForestRegressor(random_state=0),
    "svm": SVR,
}
MOST_TESTED = 1000


def surrogates(space: SearchSpace) -> Iterator[tuple[str, Surrogate]]:
    """All by name and encoding; those of graphs by name alone."""
    encodings = ("one_hot",) if space.graphs is None else ("one_hot", "path")
    for name, make in SURROGATES.items():
        if name == "graph_predictor":
            yield name, make(space)
            continue
        for encoding in encodings:
            yield f"{name}, {encoding}", make(space, encoding=encoding)


def study(
    space: SearchSpace,
    archs: np.ndarray,
    fitness: np.ndarray,
    size: int,
    seeds: int,
    seed: int,
) -> dict[str, Any]:
    """Fits every surrogate to random subsets of a size, and asks it about others.

    Args:
      space: of the architectures.
      archs: int32[A, D], measured, each once.
      fitness: float32[A].
      size: of the subsets; what is left, up to 1,000, is tested.
      seeds: how many subsets.
      seed: what they follow from.

    Returns:
      name -> Kendall's tau over the seeds (mean, its 95 % interval), and the part of
      what was measured in the 95 % interval predicted, or None.
    """
    features = np.asarray(jax.vmap(encoder(space, "one_hot"))(jnp.asarray(archs)))
    last = min(len(archs), size + MOST_TESTED)
    splits = np.stack(
        [
            np.random.default_rng((seed, number)).permutation(len(archs))[:last]
            for number in range(seeds)
        ]
    )
    rest = fitness[splits[:, size:]]
    found: dict[str, Any] = {}
    for name, surrogate in surrogates(space):
        print(f"{size} architectures: {name}", flush=True)
        means, deviations = _ours(surrogate, archs, fitness, splits, size)
        found[name] = _summary(means, rest, deviations)
    for name, make in NAMESAKES.items():
        means = np.stack(
            [_theirs(make(), features, fitness, split, size) for split in splits]
        )
        found[f"scikit-learn's {name}"] = _summary(means, rest, None)
    return found


def _ours(surrogate, archs, fitness, splits, size):
    """Predictions of S subsets, compiled once: float32[S, rest], twice."""

    @jax.jit
    @jax.vmap
    def run(key, arch, fitness, rest):
        history = History(arch, fitness, jnp.ones(size, bool))
        key_init, key_fit = jax.random.split(key)
        state = surrogate.fit(key_fit, surrogate.init(key_init, history), history)
        return surrogate.predict(state, rest)

    keys = jax.random.split(jax.random.key(0), len(splits))
    first, rest = splits[:, :size], splits[:, size:]
    return jax.device_get(run(keys, archs[first], fitness[first], archs[rest]))


def _theirs(model, features, fitness, split, size) -> np.ndarray:
    """Predictions of one subset: float[rest]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound was reached
        model.fit(features[split[:size]], fitness[split[:size]])
    return model.predict(features[split[size:]])


def _summary(means, measured, deviations) -> dict[str, Any]:
    taus = [
        np.nan_to_num(stats.kendalltau(*pair).statistic)
        for pair in zip(means, measured, strict=True)
    ]
    low, high = bootstrap(taus)
    covered = None
    if deviations is not None:
        rows = zip(means, deviations, measured, strict=True)
        covered = float(np.mean([coverage(*row) for row in rows]))
    return {"tau": float(np.mean(taus)), "low": low, "high": high, "coverage": covered}
