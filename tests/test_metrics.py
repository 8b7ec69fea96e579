"""Metrics, against those of scikit-learn and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import linalg, stats
from sklearn import metrics as sklearn_metrics
from sklearn.neighbors import NearestNeighbors

from jaxnas.metrics import (
    classification_metrics,
    confusion_matrix,
    frechet_distance,
    kendall_tau,
    per_class_metrics,
    precision_recall,
)


def sklearn_scores(labels, predictions, num_classes, average):
    scores = sklearn_metrics.precision_recall_fscore_support(
        labels,
        predictions,
        labels=range(num_classes),
        average=average,
        zero_division=0,
    )
    return dict(zip(("precision", "recall", "f1"), scores, strict=False))


def sklearn_values(labels, predictions, num_classes):
    accuracy = sklearn_metrics.accuracy_score(labels, predictions)
    macro = sklearn_scores(labels, predictions, num_classes, "macro")
    return {"accuracy": accuracy, **macro}


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


# Counts up to 10,000 go beyond what float16 holds; one shape compiles once.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arrays.arrays(
        np.int32, (4, 4), elements=st.integers(0, 3) | st.integers(0, 10_000)
    ).filter(np.any)
)
def test_metrics_of_either_kind_of_array_equal_scikit_learns(confusion):
    cells = np.indices((4, 4)).reshape(2, 16)
    labels, predictions = np.repeat(cells, confusion.ravel(), axis=1)
    per_class = sklearn_scores(labels, predictions, 4, None)
    macro = sklearn_values(labels, predictions, 4)
    for measure, expected in (
        (per_class_metrics, per_class),
        (classification_metrics, macro),
        (jax.jit(per_class_metrics), per_class),
        (jax.jit(classification_metrics), macro),
    ):
        found = measure(confusion)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)


def test_metrics_keep_the_kind_of_array():
    confusion = np.array([[3, 1], [0, 2]], np.int32)
    for value in per_class_metrics(confusion).values():
        assert (type(value), value.dtype) == (np.ndarray, np.float64)
    for value in classification_metrics(confusion).values():
        assert isinstance(value, float)
    traced = jax.eval_shape(classification_metrics, jnp.asarray(confusion))
    for value in traced.values():
        assert (value.shape, value.dtype) == ((), jnp.float32)


def test_metrics_of_a_population_are_those_of_its_members():
    confusions = np.random.default_rng(2).integers(0, 20, (5, 3, 3), np.int32)
    found = jax.jit(jax.vmap(classification_metrics))(confusions)
    for i, confusion in enumerate(confusions):
        for name, value in classification_metrics(confusion).items():
            assert found[name][i] == pytest.approx(value, abs=1e-6)


def test_per_class_metrics_of_a_class_unseen_or_unpredicted_are_zero():
    found = per_class_metrics(np.array([[4, 0, 0], [2, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(found["precision"], [4 / 6, 0, 0])
    np.testing.assert_allclose(found["recall"], [1, 0, 0])
    np.testing.assert_allclose(found["f1"], [8 / 10, 0, 0])


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (2, 9), elements=st.integers(-3, 3)),
    arrays.arrays(bool, 9),
)
def test_kendall_tau_equals_scipys_with_ties(pairs, known):
    chosen = pairs[:, known]
    constant = any(len(set(row.tolist())) < 2 for row in chosen)
    expected = 0 if constant else stats.kendalltau(*chosen).statistic
    assert jax.jit(kendall_tau)(*pairs, known) == pytest.approx(expected, abs=1e-6)


def test_kendall_tau_of_many_equals_scipys():
    x = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    y = np.round(x + np.random.default_rng(1).normal(size=2000), 1).astype(np.float32)
    expected = stats.kendalltau(x, y).statistic
    assert jax.jit(kendall_tau)(x, y) == pytest.approx(expected, abs=1e-6)
    assert kendall_tau(x, x) == pytest.approx(1, abs=1e-6)
    assert kendall_tau(x, -x) == pytest.approx(-1, abs=1e-6)
    assert kendall_tau(x, np.zeros(2000)) == 0


# Generated examples


def test_frechet_distance_is_that_by_square_roots_of_matrices():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=5)
    y = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5))
    first, second = (np.cov(z, rowvar=False) for z in (x, y))
    root = linalg.sqrtm(first @ second).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2)
    expected += np.trace(first + second - 2 * root)
    found = jax.jit(frechet_distance)(jnp.float32(x), jnp.float32(y))
    assert found == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(jnp.float32(x), jnp.float32(x)) == pytest.approx(
        0, abs=1e-3
    )


@pytest.mark.parametrize("rank", [1, 3, 10, 64])
def test_frechet_distance_of_features_of_any_rank_is_that_of_float64(rank):
    rng = np.random.default_rng(rank)
    directions = rng.normal(size=(rank, 64))
    x = rng.normal(size=(400, rank)) @ directions
    y = (rng.normal(size=(300, rank)) * 1.1 + 0.05) @ directions
    first, second = (np.cov(z, rowvar=False) for z in (x, y))
    values = linalg.eigvals(first @ second).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(first + second)
    expected -= 2 * np.sqrt(np.sort(values)[-rank:]).sum()  # the others are 0
    found = frechet_distance(jnp.float32(x), jnp.float32(y))
    assert found == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_point_the_variance():
    x = jnp.float32(np.random.default_rng(0).normal(size=(50, 3)))
    shifted = frechet_distance(x, x + jnp.array([[1.0, -2.0, 0.5]]))
    assert shifted == pytest.approx(5.25, rel=1e-4)
    collapsed = jnp.broadcast_to(x.mean(0), x.shape)
    variance = float(np.var(x, 0, ddof=1).sum())
    assert frechet_distance(x, collapsed) == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_by_neighbours_of_sklearn(k):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(70, 4)), 0.6 * rng.normal(size=(50, 4)) + 0.5

    def covered(points, centres):
        radii = NearestNeighbors(n_neighbors=k).fit(centres).kneighbors()[0][:, -1]
        apart = sklearn_metrics.pairwise_distances(points, centres)
        return np.mean((apart <= radii[None]).any(1))

    found = jax.jit(precision_recall, static_argnums=2)(
        jnp.float32(real), jnp.float32(fake), k
    )
    expected = covered(fake, real), covered(real, fake)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_precision_and_recall_of_one_point_copied():
    real = jnp.float32(np.random.default_rng(0).normal(size=(40, 2)))
    inside = jnp.broadcast_to(real[:1] + 1e-3, (10, 2))
    np.testing.assert_array_equal(precision_recall(real, inside), (1, 0))
    np.testing.assert_array_equal(precision_recall(real, inside + 100), (0, 0))
    np.testing.assert_array_equal(precision_recall(real, real), (1, 1))
