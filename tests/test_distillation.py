import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from steps import Dense
from trees import assert_trees_equal

from jaxnas.base import InputError
from jaxnas.evaluators.fit import fit
from jaxnas.tasks import Batch, classification, distillation
from jaxnas.training import sgd

KEY = jax.random.key(0)
CLASSES, EXAMPLES = 4, 6
TASK = classification()


class Saying(nn.Module):
    """Says a parameter, more of it the brighter an image is."""

    @nn.compact
    def __call__(self, images, train=False):
        what = self.param("what", nn.initializers.zeros, (EXAMPLES, CLASSES))
        return what * images.mean((1, 2, 3))[:, None]


def make_batch(seed=0, scale=2.0):
    """A batch whose teacher says v, float32[N, C], and logits z of a student."""
    rng = np.random.default_rng(seed)
    v, z = scale * rng.normal(size=(2, EXAMPLES, CLASSES)).astype(np.float32)
    v, z = (x - x.mean(1, keepdims=True) for x in (v, z))
    images = jnp.ones((EXAMPLES, 1, 1, 1))
    labels = jnp.asarray(rng.integers(0, CLASSES, EXAMPLES), jnp.int32)
    return Batch(images, labels, {"params": {"what": v}}), v, z


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def written_out(z, v, labels, temperature, weight):
    """The loss in float64."""
    p, q = (log_softmax(x / temperature) for x in (v, z))
    divergence = (np.exp(p) * (p - q)).sum(1).mean()
    hard = -log_softmax(z)[np.arange(len(labels)), labels].mean()
    return (1 - weight) * hard + weight * temperature**2 * divergence


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.9), (1.0, 0.3)])
def test_loss_is_the_closed_form(temperature, weight):
    batch, v, z = make_batch()
    task = distillation(TASK, Saying(), temperature, weight)
    found = task.loss(z, batch)
    assert (found.shape, found.dtype) == ((), jnp.float32)
    expected = written_out(z, v, batch.labels, temperature, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_loss_is_finite_where_the_teacher_is_certain():
    batch, _, z = make_batch(scale=1e4)
    loss, grad = jax.value_and_grad(distillation(TASK, Saying()).loss)(z, batch)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()


def test_weight_of_zero_is_the_task():
    batch, _, z = make_batch()
    task = distillation(TASK, Saying(), weight=0.0)
    found, expected = (jax.value_and_grad(t.loss)(z, batch) for t in (task, TASK))
    assert_trees_equal(found, expected)


def test_student_like_its_teacher_has_nothing_to_learn():
    batch, v, _ = make_batch()
    task = distillation(TASK, Saying(), weight=1.0)
    loss, grad = jax.value_and_grad(task.loss)(jnp.asarray(v), batch)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(grad, np.zeros_like(v), atol=1e-6)
    assert task.metrics(jnp.asarray(v), batch)["agreement"] == 1


def test_gradient_is_that_of_logits_in_the_limit_of_high_temperature():
    """The paper's (z - v) / (N C), for logits of mean zero."""
    batch, v, z = make_batch()
    expected, off = (z - v) / (EXAMPLES * CLASSES), []
    for temperature in (30.0, 300.0):
        task = distillation(TASK, Saying(), temperature, weight=1.0)
        off.append(abs(jax.grad(task.loss)(z, batch) - expected).max())
    assert off[1] < 0.2 * off[0] < 0.02 * abs(expected).max()


def test_nothing_is_learnt_by_the_teacher():
    batch, _, z = make_batch()
    task = distillation(TASK, Saying())
    by_given = jax.grad(lambda given: task.loss(z, batch._replace(given=given)))
    assert (by_given(batch.given)["params"]["what"] == 0).all()


def test_teacher_sees_the_images_of_the_batch():
    batch, v, z = make_batch()
    task = distillation(TASK, Saying())
    found = task.loss(z, batch._replace(images=2 * batch.images))
    expected = written_out(z, 2 * v, batch.labels, 4.0, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_metrics_are_those_of_the_task_and_agreement():
    batch, v, z = make_batch()
    found = distillation(TASK, Saying()).metrics(z, batch)
    assert found.keys() == {"accuracy", "agreement"}
    assert found["accuracy"] == TASK.metrics(z, batch)["accuracy"]
    assert found["agreement"] == np.mean(v.argmax(1) == z.argmax(1))


@pytest.mark.parametrize("how", [(0.0, 0.5), (4.0, -0.1), (4.0, 1.1)])
def test_distillation_refuses_wrong_numbers(how):
    with pytest.raises(InputError, match=f"but got {how[0]} and {how[1]}: change"):
        distillation(TASK, Saying(), *how)


def test_batch_without_a_teacher_is_refused():
    batch, _, z = make_batch()
    task = distillation(TASK, Saying())
    for function in task:
        with pytest.raises(InputError, match=r"variables in Batch\.given") as raised:
            function(z, batch._replace(given=()))
        assert "\n" not in str(raised.value)


# Training on digits


class Network(nn.Module):
    """Two dense layers and a batch norm."""

    width: int

    @nn.compact
    def __call__(self, images, drop_rate=None, train=False):
        x = Dense(self.width)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return Dense(10)(nn.relu(x))


TEACHER, STUDENT = Network(32), Network(16)
scan = jax.jit(lambda f, init, xs: jax.lax.scan(f, init, xs))


def scale(key, images):
    return images / jnp.float32(16)


@functools.cache
def digits():
    """Examples to learn from, and the images of others."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    data = Batch(images[:600], labels[:600].astype(np.int32))
    return data, scale(None, images[600:])


def train(network, task, data, num_steps=100, scan=scan):
    how = {"tx": sgd(0.1, 0.9, 0.0), "num_steps": num_steps, "batch_size": 50}
    state, log = fit(KEY, network, task, data, scale, scan, **how)
    return state.variables, log


@functools.cache
def teacher():
    return train(TEACHER, TASK, digits()[0])[0]


def few():
    """A tenth of what the teacher learnt from, and the teacher."""
    images, labels, _ = digits()[0]
    return Batch(images[:60], labels[:60], teacher())


def test_student_agrees_more_with_the_teacher_that_it_learns_from():
    others = digits()[1]
    taught, log = train(STUDENT, distillation(TASK, TEACHER), few())
    alone, _ = train(STUDENT, TASK, few())
    assert log.keys() == {"loss", "accuracy", "agreement"}
    assert log["agreement"][-1] > log["agreement"][0]
    wanted = TEACHER.apply(teacher(), others).argmax(1)
    same = [
        np.mean(STUDENT.apply(student, others).argmax(1) == wanted)
        for student in (taught, alone)
    ]
    assert same[0] > same[1] + 0.05


def test_teacher_is_an_argument_of_the_step_and_not_in_its_carry():
    seen = []

    def recording(f, init, xs):
        seen.append((f, init))
        return jax.eval_shape(jax.lax.scan, f, init, xs)

    train(STUDENT, distillation(TASK, TEACHER), few(), scan=recording)
    ((f, init),) = seen
    given = {id(leaf) for leaf in jax.tree.leaves(teacher())}
    assert given <= {id(leaf) for leaf in jax.tree.leaves(f)}
    assert not given & {id(leaf) for leaf in jax.tree.leaves(init)}
    constants = jax.make_jaxpr(lambda f, state: f(state, 0))(f, init).consts
    assert sum(np.size(x) for x in constants) == 0


def test_teacher_is_computed_once_a_batch():
    """Loss, auxiliary loss and metrics ask it; XLA leaves one."""
    images, labels, variables = few()
    batch = Batch(scale(None, images), labels, variables)
    task = distillation(TASK, TEACHER)
    z = jnp.zeros((60, 10))

    def often(z, batch):
        def loss(z):
            found = task.loss(z, batch) + 0.4 * task.loss(2 * z, batch)
            return found, task.metrics(z, batch)

        return jax.grad(loss, has_aux=True)(z)

    def products(function, *args):
        return jax.jit(function).lower(*args).compile().as_text().count(" dot(")

    alone = products(lambda batch: TEACHER.apply(batch.given, batch.images), batch)
    assert products(often, z, batch) == alone > 0
