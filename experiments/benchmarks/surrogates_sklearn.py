"""scikit-learn's side of surrogates.py: mean and deviation of each of its models."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import BaggingRegressor, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVR

UPDATES = 100  # of each network, on both sides


def new_process(**settings: Any) -> GaussianProcessRegressor:
    """A process like ours of one length scale."""
    kernel = ConstantKernel() * RBF() + WhiteKernel()
    return GaussianProcessRegressor(kernel, normalize_y=True, **settings)


def process(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> Any:
    """Its own optimizer, from one start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at the bounds, it says
        model = new_process().fit(x, y)
    model.predict(wanted, return_std=True)
    return model


def perceptrons(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> Any:
    """Five, each on resampled points, learning from all of them at once."""
    network = MLPRegressor(
        hidden_layer_sizes=(64, 64),
        batch_size=len(x),
        learning_rate_init=1e-2,
        alpha=1e-3,
        max_iter=UPDATES,
        n_iter_no_change=UPDATES + 1,
    )
    model = BaggingRegressor(network, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # these updates are few
        model.fit(x, (y - y.mean()) / y.std())
    return moments([member.predict(wanted) for member in model.estimators_])


def forest(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> Any:
    """A hundred trees."""
    model = RandomForestRegressor(100, n_jobs=1).fit(x, y)
    return moments([tree.predict(wanted) for tree in model.estimators_])


def machines(x: np.ndarray, y: np.ndarray, wanted: np.ndarray) -> Any:
    """One for the mean, and ten on resampled points for the deviation."""
    y = (y - y.mean()) / y.std()
    mean = SVR().fit(x, y).predict(wanted)
    bags = BaggingRegressor(SVR(), 10).fit(x, y).estimators_
    return mean, moments([machine.predict(wanted) for machine in bags])[1]


def moments(members: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation, float[M] each, of what members say."""
    said = np.stack(members)
    return said.mean(0), said.std(0)


OTHERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Any]] = {
    "gp": process,
    "ensemble": perceptrons,
    "random_forest": forest,
    "svm": machines,
}
"""Counterparts of `SURROGATES`: features float[N, F], targets float[N], float[M, F]."""
