"""Classification metrics from a confusion matrix.

A confusion matrix adds up: sum it over batches on the device, then read all
metrics off the sum once.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

Array = jax.Array


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


def classification_metrics(confusion: ArrayLike) -> dict[str, float]:
    """Accuracy and macro-averaged precision, recall and F1, as fractions.

    Macro averages give each of the C classes the same weight. A class that was
    never predicted has precision 0, one that never occurs has recall 0, and one
    that does neither has F1 0, as with scikit-learn's `zero_division=0`.

    Args:
      confusion: int[C, C], as `confusion_matrix` gives it.

    Returns:
      `accuracy`, `precision`, `recall` and `f1`, each in [0, 1].
    """
    counts = np.asarray(confusion, np.float64)
    correct, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {
        "accuracy": float(correct.sum() / max(counts.sum(), 1)),
        "precision": float(np.mean(correct / np.maximum(predicted, 1))),
        "recall": float(np.mean(correct / np.maximum(actual, 1))),
        "f1": float(np.mean(2 * correct / np.maximum(actual + predicted, 1))),
    }
