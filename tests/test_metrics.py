"""Classification metrics, against scikit-learn's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxnas.metrics import classification_metrics, confusion_matrix


def sklearn_values(labels, predictions, num_classes):
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        labels,
        predictions,
        labels=range(num_classes),
        average="macro",
        zero_division=0,
    )
    accuracy = sklearn_metrics.accuracy_score(labels, predictions)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


@pytest.mark.parametrize(
    ("used_labels", "used_predictions"),
    [(7, 7), (7, 3), (3, 7), (3, 3), (1, 1)],
    ids=["all", "never-predicted", "never-true", "absent", "one-class"],
)
def test_metrics_equal_scikit_learns(used_labels, used_predictions):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, used_labels, 500, np.int32)
    guesses = rng.integers(0, used_predictions, 500, np.int32)
    is_right = rng.random(500) < 0.5
    predictions = np.where(is_right, labels % used_predictions, guesses)
    confusion = confusion_matrix(jnp.array(labels), jnp.array(predictions), 7)
    np.testing.assert_array_equal(
        confusion,
        sklearn_metrics.confusion_matrix(labels, predictions, labels=range(7)),
    )
    found = classification_metrics(confusion)
    expected = sklearn_values(labels, predictions, 7)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-6)


def test_confusion_matrices_add_up_under_scan():
    rng = np.random.default_rng(1)
    labels, predictions = jnp.array(rng.integers(0, 4, (2, 5, 20), np.int32))

    @jax.jit
    def total(labels, predictions):
        def add(counts, batch):
            return counts + confusion_matrix(*batch, 4), None

        return jax.lax.scan(add, jnp.zeros((4, 4), jnp.int32), (labels, predictions))[0]

    np.testing.assert_array_equal(
        total(labels, predictions),
        sklearn_metrics.confusion_matrix(labels.ravel(), predictions.ravel()),
    )


def test_padding_is_left_out():
    labels = jnp.array([0, 1, 1, -1, -1])
    predictions = jnp.array([0, 1, 0, 1, 0])
    confusion = confusion_matrix(labels, predictions, 2)
    assert confusion.dtype == jnp.int32
    np.testing.assert_array_equal(confusion, [[1, 0], [1, 1]])


def test_perfect_predictions_score_one_and_no_examples_zero():
    perfect = classification_metrics(np.diag([3, 5, 9]))
    assert perfect == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}
    empty = classification_metrics(np.zeros((3, 3)))
    assert empty == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0}
