import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from jaxnas.tasks import Batch, classification

CLASSES = 4


@pytest.fixture
def batch() -> Batch:
    labels = np.random.default_rng(0).integers(0, CLASSES, 30)
    return Batch(jnp.zeros((30, 1, 1, 1)), jnp.asarray(labels, jnp.int32))


@pytest.fixture
def logits(batch) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(0), (30, CLASSES))


def test_classification_loss_is_the_log_loss_of_scikit_learn(batch, logits):
    odds = np.exp(np.asarray(logits, np.float64))
    probabilities = odds / odds.sum(1, keepdims=True)
    expected = log_loss(batch.labels, probabilities, labels=range(CLASSES))
    found = classification().loss(logits, batch)
    assert (found.shape, found.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_classification_loss_of_equal_logits_is_log_of_the_classes(batch):
    found = classification().loss(jnp.full((30, CLASSES), 1e3), batch)  # e^1e3 is inf
    np.testing.assert_allclose(found, np.log(CLASSES), rtol=1e-4)


def test_classification_accuracy_is_that_of_scikit_learn(batch, logits):
    found = classification().metrics(logits, batch)
    assert found.keys() == {"accuracy"}
    expected = accuracy_score(batch.labels, np.argmax(logits, 1))
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)
    assert found["accuracy"].shape == ()


def test_classification_gradient_is_probability_less_one_hot(batch, logits):
    found = jax.grad(classification().loss)(logits, batch)
    expected = jax.nn.softmax(logits) - jax.nn.one_hot(batch.labels, CLASSES)
    np.testing.assert_allclose(found, expected / 30, atol=1e-7)
