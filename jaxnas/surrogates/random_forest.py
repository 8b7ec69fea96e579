"""The random forest: regression trees on resampled points and features.

L. Breiman 2001, https://doi.org/10.1023/A:1010933404324. What its trees predict differs
where few points say much, which makes a model of Bayesian optimisation of it (Hutter,
Hoos and Leyton-Brown 2011, https://doi.org/10.1007/978-3-642-25566-3_40: SMAC).
"""

import numpy as np

from jaxnas.base import InputError, SearchSpace, Surrogate
from jaxnas.checks import expect
from jaxnas.surrogates.on_host import on_host


def random_forest(
    space: SearchSpace,
    *,
    num_trees: int = 100,
    max_features: float = 1.0,
    min_leaf: int = 1,
    encoding: str | None = None,
    targets: str = "ranks",
) -> Surrogate:
    """Makes the surrogate; mean and deviation are those of its trees, a draw is a tree.

    Args:
      space: whose architectures are encoded.
      num_trees: 2 or more.
      max_features: the part of the features of which each split takes the best, above
        0 and up to 1; SMAC takes 5/6.
      min_leaf: points that a leaf has at least, 1 or more.
      encoding: of `encoding.ENCODINGS`; by default `path` where the space has graphs,
        else `one_hot`.
      targets: of `TARGETS`.

    Raises:
      InputError: a number is out of range, a name unknown, or the space has no such
        encoding.
    """
    expect(2, num_trees=num_trees)  # whose deviation it is
    expect(1, min_leaf=min_leaf)
    if not 0 < max_features <= 1:
        raise InputError(
            "expected a part of the features above 0 and up to 1, but got "
            f"{max_features}: choose one"
        )
    # It takes a second, of who asks for no forest too.
    from sklearn.ensemble import RandomForestRegressor

    def fit_predict(
        x: np.ndarray, y: np.ndarray, wanted: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        forest = RandomForestRegressor(
            num_trees,
            max_features=float(max_features),  # 1 would be one feature
            min_samples_leaf=min_leaf,
            n_jobs=1,
            random_state=seed,
        ).fit(x, y)
        # Asking the trees themselves leaves out checks of what is float32 already.
        members = np.stack(
            [tree.tree_.predict(wanted)[:, 0] for tree in forest.estimators_]
        )
        return members.mean(0), members

    return on_host(space, encoding, targets, fit_predict)
