"""Metrics of classes, of rankings, and of generated examples.

Classification metrics from a confusion matrix; how much two rankings agree; how far
generated examples are from real ones.

A confusion matrix adds up: sum it over batches on the device, then read all
metrics off the sum once. That is traceable on JAX arrays, in float32; on NumPy's it
is float64.
"""

from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
EitherArray = TypeVar("EitherArray", np.ndarray, Array)


def confusion_matrix(labels: Array, predictions: Array, num_classes: int) -> Array:
    """Counts how often each class was predicted as each other; traceable.

    Args:
      labels: int32[N], the true classes; -1 leaves an example out, so that the
        last batch of a test set can be padded.
      predictions: int32[N], the predicted classes.
      num_classes: C, the number of classes.

    Returns:
      int32[C, C], the number of examples of class `i` predicted as class `j`.
    """
    # Index -1 would mean the last row; index C is out of range and so dropped.
    rows = jnp.where(labels < 0, num_classes, labels)
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    return counts.at[rows, predictions].add(1, mode="drop")


def per_class_metrics(confusion: EitherArray) -> dict[str, EitherArray]:
    """Precision, recall and F1 of each class, as fractions; traceable.

    A class that was never predicted has precision 0, one that never occurs has
    recall 0, and one that does neither has F1 0, as with scikit-learn's
    `zero_division=0`.

    Args:
      confusion: int[C, C], as `confusion_matrix` gives it, of NumPy or JAX.

    Returns:
      `precision`, `recall` and `f1`: float64[C] of NumPy's for an array of NumPy's,
      float32[C] of JAX's for one of JAX's, each in [0, 1].
    """
    correct = confusion.diagonal()
    actual, predicted = confusion.sum(1), confusion.sum(0)
    return {
        "precision": correct / predicted.clip(min=1),
        "recall": correct / actual.clip(min=1),
        "f1": 2 * correct / (actual + predicted).clip(min=1),
    }


def classification_metrics(confusion: EitherArray) -> dict[str, Any]:
    """Accuracy and macro-averaged precision, recall and F1, as fractions; traceable.

    Macro averages give each of the C classes the same weight.

    Args:
      confusion: int[C, C], as for `per_class_metrics`.

    Returns:
      `accuracy`, `precision`, `recall` and `f1`, each in [0, 1]: floats for an array
      of NumPy's, float32[] for one of JAX's.
    """
    accuracy = confusion.diagonal().sum() / confusion.sum().clip(min=1)
    per_class = per_class_metrics(confusion)
    return {"accuracy": accuracy} | {k: v.mean() for k, v in per_class.items()}


def kendall_tau(x: Array, y: Array, known: Array | None = None) -> Array:
    """Kendall's rank correlation tau-b, which allows for ties; traceable.

    M. G. Kendall 1945, "The treatment of ties in ranking problems". It takes O(N^2)
    comparisons, which XLA fuses into sums.

    Args:
      x: float32[N], N up to 46,340.
      y: float32[N].
      known: bool[N], the pairs that there are; all by default.

    Returns:
      float32[] in [-1, 1]; 0 where x or y is constant, or nothing is known.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    known = jnp.ones(x.shape, bool) if known is None else known
    both = (known[:, None] & known[None]).astype(jnp.int32)

    def order(values):  # 1: the row is larger, -1: the column
        larger = (values[:, None] > values[None]).astype(jnp.int32)
        return both * (larger - (values[:, None] < values[None]))

    def root(values):  # of the pairs that are not tied, so that no product overflows
        return jnp.sqrt(jnp.sum(jnp.abs(order(values))).astype(jnp.float32))

    agreement = jnp.sum(order(x) * order(y)).astype(jnp.float32)
    return agreement / jnp.maximum(root(x) * root(y), 1.0)


def frechet_distance(x: Array, y: Array) -> Array:
    """The Frechet distance of the Gaussians of two sets of features; traceable.

    Dowson and Landau 1982; of images by Heusel et al. 2017, arXiv:1706.08500, who call
    it FID where the features are those of Inception. With means m, n and covariances
    C, D it is

        |m - n|^2 + tr(C + D - 2 (C^(1/2) D C^(1/2))^(1/2)).

    It falls as the sets grow: compare only where their sizes are the same.

    Args:
      x: float32[N, F], N of 2 or more.
      y: float32[M, F], M of 2 or more.

    Returns:
      float32[] of 0 or more, in the squared unit of the features.

    Raises:
      AssertionError: the shapes do not fit.
    """
    chex.assert_rank((x, y), 2)
    chex.assert_equal_shape_suffix((x, y), 1)
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    # The trace of the root is the sum of these singular values. By eigenvalues the root
    # would be taken of rounding where covariances are of less than full rank.
    # In whole float32: by default GPUs round a product's factors to fewer bits.
    product = jnp.matmul(root_x, root_y.T, precision=jax.lax.Precision.HIGHEST)
    shared = jnp.linalg.svd(product, compute_uv=False).sum()
    apart = jnp.square(mean_x - mean_y).sum()
    traces = jnp.square(root_x).sum() + jnp.square(root_y).sum()
    return jnp.maximum(apart + traces - 2 * shared, 0)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean float32[F] of rows, and R of their unbiased covariance R^T R."""
    mean = x.mean(0)
    return mean, jnp.linalg.qr((x - mean[None]) / np.sqrt(len(x) - 1), mode="r")


def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[Array, Array]:
    """How much of what is generated looks real, and of what is real is generated.

    Kynkaanniemi et al. 2019, arXiv:1904.06991. Around each example lies a ball that
    reaches its k-th nearest neighbour of the same set; precision is the part of the
    generated examples that a ball of the real ones holds, recall the other way round.
    Traceable; it takes O(N M F) operations and O(N F) memory.

    Args:
      real: float32[N, F], features, N above k.
      fake: float32[M, F], M above k.
      k: 1 or more; the paper takes 3.

    Returns:
      float32[] each, fractions.

    Raises:
      AssertionError: the shapes do not fit, or there are too few examples.
    """
    chex.assert_rank((real, fake), 2)
    chex.assert_equal_shape_suffix((real, fake), 1)
    assert 0 < k < min(len(real), len(fake)), "expected more examples than neighbours"
    return _covered(fake, real, k), _covered(real, fake, k)


def _covered(points: Array, centres: Array, k: int) -> Array:
    """The part of the points that a ball around a centre holds: float32[]."""

    def squares(point: Array) -> Array:  # differences first: no close numbers subtract
        return jnp.square(centres - point[None]).sum(1)

    def radius(centre: Array) -> Array:  # the nearest is the centre itself
        return -jax.lax.top_k(-squares(centre), k + 1)[0][-1]

    radii = jax.lax.map(radius, centres)
    held = jax.lax.map(lambda point: jnp.any(squares(point) <= radii), points)
    return held.mean()
