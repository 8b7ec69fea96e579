"""Support vector regression, and how sure it is by what resampled points change.

Drucker, Burges, Kaufman, Smola and Vapnik 1997, "Support vector regression machines";
the bagged ones after L. Breiman 1996, https://doi.org/10.1007/BF00058655.
"""

from math import inf

import numpy as np

from jaxnas.base import InputError, SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.surrogates.on_host import on_host

GAMMAS = ("scale", "auto")


def svm(
    space: SearchSpace,
    *,
    num_bags: int = 10,
    C: float = 1.0,
    epsilon: float = 0.1,
    gamma: str | float = "scale",
    encoding: str | None = None,
    targets: str = "ranks",
) -> Surrogate:
    """Makes the surrogate, with the kernel exp(-gamma |x - z|^2).

    The mean is that of a machine which has seen all points. The deviation is that of
    `num_bags` machines, each of which has seen as many points drawn with replacement;
    a draw is one of these.

    Args:
      space: whose architectures are encoded.
      num_bags: 2 or more.
      C: what a target's error beyond epsilon costs, above 0.
      epsilon: the error that costs nothing, 0 or more; targets have deviation 1.
      gamma: above 0; or `scale`, 1 over F times the variance of the features; or
        `auto`, 1 over F.
      encoding: of `encoding.ENCODINGS`; by default `path` where the space has graphs,
        else `one_hot`.
      targets: of `TARGETS`.

    Raises:
      InputError: a number is out of range, a name unknown, or the space has no such
        encoding.
    """
    _check(num_bags, C, epsilon, gamma)
    # It takes a second, of who asks for no such machine too.
    from sklearn.svm import SVR

    def fit_predict(
        x: np.ndarray, y: np.ndarray, wanted: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        def predicted(rows):
            machine = SVR(C=C, epsilon=epsilon, gamma=gamma)
            return machine.fit(x[rows], y[rows]).predict(wanted)

        draws = np.random.RandomState(seed)
        bags = draws.randint(len(x), size=(num_bags, len(x)))
        return predicted(slice(None)), np.stack([predicted(bag) for bag in bags])

    return on_host(space, encoding, targets, fit_predict)


def _check(num_bags, C, epsilon, gamma):
    expect(2, num_bags=num_bags)  # whose deviation it is
    if not (0 < C < inf and 0 <= epsilon < inf):  # without a bound it may never end
        raise InputError(
            "expected a finite C above 0 and epsilon of 0 or more, but got "
            f"{C} and {epsilon}: change these"
        )
    if gamma not in GAMMAS and (isinstance(gamma, str) or not 0 < gamma < inf):
        raise InputError(
            f"expected gamma above 0, or one of {', '.join(GAMMAS)}, but got {gamma}: "
            "choose one"
        )
