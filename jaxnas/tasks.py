"""What a network is trained for: the loss and the metrics of a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Array, Evidence, InputError, PyTree
from jaxnas.metrics import confusion_matrix


class Batch(NamedTuple):
    """Examples with their labels."""

    images: Array  # float32[N, H, W, colours], normalised; or uint8, as stored
    labels: Array  # int32[N]
    given: PyTree = ()  # what the task itself needs, the same for all examples


class Task(NamedTuple):
    """Functions of a network's outputs and the batch they answer to."""

    loss: Callable[[Array, Batch], Array]  # -> float32[]
    metrics: Callable[[Array, Batch], dict[str, Array]]  # -> float32[] each


def classification() -> Task:
    """Cross entropy in nats, and accuracy as a fraction, of logits float32[N, C]."""

    def loss(logits: Array, batch: Batch) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        return {"accuracy": jnp.mean(logits.argmax(-1) == batch.labels)}

    return Task(loss, metrics)


def distillation(
    task: Task, teacher: Any, temperature: float = 4.0, weight: float = 0.9
) -> Task:
    """A task that is learnt from a teacher as well.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531. With the logits v of the teacher
    and z of the student, both float32[N, C], the loss is

        (1 - weight) loss(z) + weight T^2 KL(softmax(v / T) || softmax(z / T)),

    in nats, the mean over the examples. The factor T^2 keeps the gradient of its size
    at any temperature T. The teacher sees the very images that the student sees, at its
    running statistics; nothing is learnt by it. Its variables come in `Batch.given` of
    the data, so that they are an argument of a compiled step. Metrics: those of the
    task, and `agreement`, the part of the examples that both give the same class.

    Args:
      task: what the network is trained for.
      teacher: a Linen module, `teacher(images)`.
      temperature: T; 4 and a weight of 0.9 are usual since Zagoruyko and Komodakis
        2017, arXiv:1612.03928.
      weight: of the teacher, from 0, the task alone, to 1, the teacher alone.

    Raises:
      InputError: the temperature is not above 0, the weight not from 0 to 1; while
        tracing, for a batch with nothing given.
    """
    if not (temperature > 0 and 0 <= weight <= 1):
        raise InputError(
            f"expected a temperature above 0 and a weight from 0 to 1, but got "
            f"{temperature} and {weight}: change them"
        )

    def teach(logits: Array, batch: Batch) -> Array:
        """What the teacher says, float32[N, C]; XLA computes it once a batch."""
        if not jax.tree.leaves(batch.given):
            raise InputError(
                "expected the teacher's variables in Batch.given of the data, but got "
                'none: give {"params": ..., "batch_stats": ...}'
            )
        taught = lax.stop_gradient(teacher.apply(batch.given, batch.images))
        chex.assert_equal_shape([logits, taught])
        return taught

    def loss(logits: Array, batch: Batch) -> Array:
        taught = jax.nn.log_softmax(teach(logits, batch) / temperature)
        learnt = jax.nn.log_softmax(logits / temperature)
        divergence = jnp.sum(jnp.exp(taught) * (taught - learnt), -1).mean()
        part = weight * temperature**2 * divergence
        return (1 - weight) * task.loss(logits, batch) + part

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        same = logits.argmax(-1) == teach(logits, batch).argmax(-1)
        return {**task.metrics(logits, batch), "agreement": jnp.mean(same)}

    return Task(loss, metrics)


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """The divergence of N(mean, variance) from N(0, 1), in nats: float32[N].

    Kingma and Welling 2014, arXiv:1312.6114, appendix B.

    Args:
      mean: float32[N, L].
      log_variance: float32[N, L].
    """
    each = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return each.sum(-1) / 2


def bernoulli(logits: Array, x: Array) -> Array:
    """The log-likelihood of x[N, ...] in [0, 1] by logits[N, ...]: nats, float32[N]."""
    each = -optax.sigmoid_binary_cross_entropy(logits, x)
    return each.reshape(len(x), -1).sum(1)


def categorical(logits: Array, x: Array) -> Array:
    """That of one-hot x[N, D, K] by logits[N, D, K], of choices: nats, float32[N]."""
    return jnp.sum(jax.nn.log_softmax(logits) * x, (1, 2))


def discretized_logistic(
    width: Array, low: Array, high: Array
) -> Callable[[tuple[Array, Array], Array], Array]:
    """Makes the log-likelihood of intensities that have been rounded to 256 levels.

    A level has the probability that a logistic distribution gives to what is rounded
    to it, the first and the last all that is beyond (Kingma et al. 2016,
    arXiv:1606.04934, section 5.2). So bounds are of the stored images, in nats.

    Args:
      width: float32[C], distance of two levels in each channel, as images are
        normalised.
      low: float32[C], the first level.
      high: float32[C], the last level.

    Returns:
      A function of (mean float32[N, H, W, C], log scale float32[C]) and images
      float32[N, H, W, C] that gives float32[N].
    """
    width, low, high = (value[None, None, None] for value in (width, low, high))

    def log_likelihood(outputs: tuple[Array, Array], x: Array) -> Array:
        mean, log_scale = outputs
        by = jnp.exp(-log_scale)[None, None, None]
        above, below = (x + width / 2 - mean) * by, (x - width / 2 - mean) * by
        # log(sigmoid(a) - sigmoid(b)), without a difference of close numbers.
        inner = above + jnp.log(-jnp.expm1(-width * by))
        inner = inner - jax.nn.softplus(above) - jax.nn.softplus(below)
        is_first, is_last = x < low + width / 2, x > high - width / 2
        each = jnp.where(is_first, -jax.nn.softplus(-above), inner)
        each = jnp.where(is_last, -jax.nn.softplus(below), each)
        return each.reshape(len(x), -1).sum(1)

    return log_likelihood


def elbo(
    log_likelihood: Callable[[PyTree, PyTree], Array],
    evidence: Evidence,
    x: PyTree,
    beta: float | Array = 1.0,
) -> tuple[Array, Array]:
    """The evidence lower bound and its divergence, in nats: float32[N] each.

    Kingma and Welling 2014; beta weighs the divergence (Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl), with 1 it is the bound.

    Args:
      log_likelihood: of the outputs and x, float32[N].
      evidence: see `Evidence`.
      x: the examples.
      beta: 0 or more.
    """
    divergence = gaussian_kl(evidence.mean, evidence.log_variance)
    return log_likelihood(evidence.outputs, x) - beta * divergence, divergence


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def judge(
    network: Any,
    prepare: Callable[[Array], Array],
    num_classes: int,
    batch_size: int,
    variables: PyTree,
    data: Batch,
    *weights: Array,
) -> tuple[Array, Array]:
    """The confusion matrix int32[C, C] and mean cross entropy (nats) on N examples.

    Args:
      network: a Linen module, `network(images, *weights)`.
      prepare: `uint8[B, H, W, colours] -> float32`: normalises.
      num_classes: C.
      batch_size: examples at a time.
      variables: its parameters and statistics.
      data: images uint8[N, H, W, colours], labels int32[N].
      *weights: further arguments of the network.
    """
    missing = -len(data.labels) % batch_size

    def cut(x: Array, fill: int) -> Array:
        pads = [(0, missing), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(x, pads, constant_values=fill)
        return padded.reshape(-1, batch_size, *x.shape[1:])

    def one(total: tuple[Array, Array], batch: Batch) -> tuple[Any, None]:
        logits = network.apply(variables, prepare(batch.images), *weights)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(batch.labels, 0)
        )
        loss = jnp.sum(jnp.where(batch.labels >= 0, losses, 0.0))
        found = confusion_matrix(batch.labels, logits.argmax(-1), num_classes), loss
        return jax.tree.map(jnp.add, total, found), None

    zeros = jnp.zeros((num_classes, num_classes), jnp.int32), jnp.float32(0)
    batches = Batch(cut(data.images, 0), cut(data.labels, -1))  # -1: uncounted
    confusion, loss = lax.scan(one, zeros, batches)[0]
    return confusion, loss / len(data.labels)
