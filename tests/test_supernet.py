"""The supernet's step and its hypergradients against a step that is written out here.

In float64, where differences show what is wrong and not what is rounded.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
#from sklearn.datasets import load_digits
#from trees import assert_trees_equal

from jaxnas.base import OK, InputError, Proposal
from jaxnas.checkpoint import Checkpoints
from jaxnas.evaluators.supernet import HYPERGRADIENTS, supernet
from jaxnas.nn.cell import Cell, Edge
from jaxnas.search import chunked_scan, host_scan, search
from jaxnas.strategies.differentiable import differentiable
from jaxnas.tasks import Batch, classification

KEY = jax.random.key(0)
CLASSES, DECISIONS, CHOICES = 10, 3, 4
NUM_STEPS, EXAMPLES, BATCH = 3, 12, 6  # so the next batch may be of the next epoch
MOMENTUM, WEIGHT_DECAY, CLIP = 0.9, 0.1, 0.5  # a decay and a clip that are felt


def learning_rate(step):
    """So steep that the rate of another step is seen."""
    return 0.5 / (1 + step)


class Smooth(nn.Module):
    """Layers that are weighted sums of tanh of linear maps, each with batch norm."""

    width: int = 4

    @nn.compact
    def __call__(self, images, weights=None, train=False):
        if weights is None:
            weights = jnp.ones((DECISIONS, CHOICES))
        x = images.reshape(len(images), -1)
        for row in weights:
            y = jnp.tanh(nn.Dense(CHOICES * self.width)(x))
            x = jnp.einsum("k,nkc->nc", row, y.reshape(len(x), CHOICES, self.width))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(CLASSES)(x)


class OneCell(nn.Module):
    """A cell of real operations, with ReLU and maxima."""

    @nn.compact
    def __call__(self, images, weights=None, train=False):
        if weights is None:
            weights = jnp.ones((DECISIONS, CHOICES))
        ops = "none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"
        edges = Edge(0, 1, ops), Edge(0, 2, ops), Edge(1, 2, ops)
        cell = Cell(edges, ops, 1, 3, 2, affine=False, pool_norm=True)
        x = cell([nn.Dense(2)(images)], weights, None, train)[-1]
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Linear(nn.Module):
    """A linear map, times the sum of the weights."""

    @nn.compact
    def __call__(self, images, weights=None, train=False):
        logits = nn.Dense(CLASSES)(images.reshape(len(images), -1))
        return logits if weights is None else weights.sum() * logits


def make_half(seed) -> Batch:
    """Images whose first pixel is their number."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (EXAMPLES, 4, 4, 1)).astype(np.uint8)
    images[:, 0, 0, 0] = np.arange(EXAMPLES)
    return Batch(images, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32))


HALVES = make_half(1), make_half(2)


def prepare(key, images):
    """Values from -1 to 1.1, with noise as an augmentation."""
    noise = jax.random.uniform(key, images.shape, float)
    return images.astype(float) / 128 - 1 + 0.1 * noise


def build(network, prepare=prepare, halves=HALVES, batch_size=BATCH, **how):
    given = network, classification(), halves, prepare
    return supernet(*given, batch_size=batch_size, **how)


def propose(arch) -> Proposal:
    return Proposal(arch[None], jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32))


class Step(NamedTuple):
    """What went into an evaluation and what came out."""

    arch: jax.Array  # [D, K]
    before: Any
    after: Any
    feedback: Any
    batches: list[Batch]  # of the step, of the next one, of the architecture
    indices: list[np.ndarray]  # of their examples


def follow(network, num_steps=NUM_STEPS, **how) -> list[Step]:
    """Evaluates an architecture a step; x64 decides the type of all numbers."""
    drawn: list = []

    def recording(key, images):
        prepared = prepare(key, images)
        record = lambda *pair: drawn.append(pair)  # noqa: E731
        jax.debug.callback(record, images[:, 0, 0, 0], prepared, ordered=True)
        return prepared

    evaluator = build(network, recording, **how)
    evaluate = jax.jit(evaluator.evaluate)
    with jax.enable_x64(False):  # Flax's parameters are float32
        state = evaluator.init(KEY)
    state, steps = to_float(state), []
    for row in np.random.default_rng(3).normal(size=(num_steps, DECISIONS, CHOICES)):
        arch = jax.nn.softmax(jnp.asarray(row))
        after, feedback = evaluate(KEY, evaluator.data, state, propose(arch))
        jax.effects_barrier()
        labels = [HALVES[half].labels for half in (0, 0, 1)]
        pairs = zip(drawn, labels, strict=True)
        batches = [Batch(images, labels[i]) for (i, images), labels in pairs]
        indices = [i for i, _ in drawn]
        steps.append(Step(arch, state, after, feedback, batches, indices))
        state = after
        drawn.clear()
    return steps


def to_float(tree):
    def cast(leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(float) if is_float else leaf

    return jax.tree.map(cast, tree)


SHARP = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "clip": CLIP}


@functools.cache
def smooth(hypergradient) -> list[Step]:
    """Steps of the smooth network in float64."""
    with jax.enable_x64(True):
        how = {"learning_rate": learning_rate, **SHARP}
        return follow(Smooth(), hypergradient=hypergradient, **how)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# -- a step, written out -----------------------------------------------------------


def loss_of(network, params, arch, batch):
    logits, _ = network.apply(
        {"params": params}, batch.images, arch, train=True, mutable=["batch_stats"]
    )
    chosen = jnp.take_along_axis(logits, batch.labels[:, None], 1)[:, 0]
    return jnp.mean(jnp.log(jnp.exp(logits).sum(1)) - chosen)


@functools.partial(jax.jit, static_argnums=0)
def descend(network, params, momenta, arch, batch, rate, clip):
    """SGD with momentum and coupled weight decay: new parameters and momenta."""
    grads = jax.grad(loss_of, 1)(network, params, arch, batch)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))

    def add(m, g, p):
        return MOMENTUM * m + jnp.minimum(1, clip / norm) * g + WEIGHT_DECAY * p

    momenta = jax.tree.map(add, momenta, grads, params)
    return jax.tree.map(lambda p, m: p - rate * m, params, momenta), momenta


@functools.partial(jax.jit, static_argnums=0)
def outer_objective(network, arch, params, momenta, batches, rate):
    """The loss on the architecture's batch after one more step, without a clip."""
    params, _ = descend(network, params, momenta, arch, batches[1], rate, jnp.inf)
    return loss_of(network, params, arch, batches[2])


def momenta_of(state):
    (momenta,) = (s.trace for s in state.train.opt_state if hasattr(s, "trace"))
    return momenta


def problem(steps, t):
    """What `outer_objective` takes after the architecture, at step t."""
    after = steps[t].after
    given = after.train.params, momenta_of(after), steps[t].batches
    return *given, learning_rate(t + 1.0)


def central_differences(function, arch, size):
    grad = np.zeros(arch.shape)
    for at in np.ndindex(arch.shape):
        ahead, behind = (function(arch.at[at].add(d)) for d in (size, -size))
        grad[at] = (ahead - behind) / (2 * size)
    return grad


def deviation(found, expected):
    """Of all of a gradient, relative."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# -- facts -------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hypergradient", HYPERGRADIENTS)
def test_weights_descend_as_written_out(hypergradient):
    first, *_ = steps = smooth(hypergradient)
    params = first.before.train.params
    momenta = jax.tree.map(jnp.zeros_like, params)
    for t, step in enumerate(steps):
        given = Smooth(), params, momenta, step.arch, step.batches[0]
        unclipped, _ = descend(*given, learning_rate(t), jnp.inf)
        params, momenta = descend(*given, learning_rate(t), CLIP)
        for found, expected, other in zip(
            *map(jax.tree.leaves, (step.after.train.params, params, unclipped)),
            strict=True,
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert np.abs(other - expected).max() > 1e-3, "expected to be clipped"
        assert int(step.after.train.step) == t + 1


@pytest.mark.usefixtures("float64")
def test_exact_agrees_with_central_differences():
    steps = smooth("exact")
    for t, step in enumerate(steps):
        given = problem(steps, t)
        objective = lambda arch: outer_objective(Smooth(), arch, *given)  # noqa: B023, E731
        expected = central_differences(objective, step.arch, 1e-5)
        print("exact", deviation(-step.feedback.grad[0], expected))
        assert deviation(-step.feedback.grad[0], expected) < 1e-8
        np.testing.assert_allclose(-step.feedback.fitness, [objective(step.arch)])
        direct = jax.grad(loss_of, 2)(Smooth(), given[0], step.arch, step.batches[2])
        print("direct off", deviation(direct, expected))
        assert deviation(direct, expected) > 0.01, "expected a step that matters"


def test_exact_in_float32_agrees_with_nested_differentiation():
    how = {"learning_rate": learning_rate, **SHARP}
    (step,) = steps = follow(Smooth(), 1, hypergradient="exact", **how)
    found = -step.feedback.grad[0]
    expected = jax.grad(outer_objective, 1)(Smooth(), step.arch, *problem(steps, 0))
    assert found.dtype == expected.dtype == jnp.float32
    print("f32", deviation(found, expected))
    assert deviation(found, expected) < 1e-5


@pytest.mark.usefixtures("float64")
def test_exact_of_real_operations_agrees_with_central_differences():
    # So small a difference meets no kink of ReLU or of a maximum.
    how = {"learning_rate": learning_rate, **SHARP}
    (step,) = steps = follow(OneCell(), 1, hypergradient="exact", **how)
    given = problem(steps, 0)
    expected = central_differences(
        lambda arch: outer_objective(OneCell(), arch, *given), step.arch, 1e-6
    )
    print("cell", deviation(-step.feedback.grad[0], expected))
    assert deviation(-step.feedback.grad[0], expected) < 1e-6


@pytest.mark.usefixtures("float64")
def test_first_order_is_the_plain_gradient_after_the_step():
    for step in smooth("first_order"):
        given = step.after.train.params, step.arch, step.batches[2]
        loss, expected = jax.value_and_grad(loss_of, 2)(Smooth(), *given)
        np.testing.assert_allclose(-step.feedback.grad[0], expected, rtol=1e-9)
        np.testing.assert_allclose(-step.feedback.fitness, [loss])


@pytest.mark.usefixtures("float64")
def test_finite_difference_is_the_formula_of_the_paper():
    steps = smooth("finite_difference")
    for t, step in enumerate(steps):
        params, momenta, batches, rate = problem(steps, t)
        virtual, _ = descend(
            Smooth(), params, momenta, step.arch, batches[1], rate, jnp.inf
        )
        along, direct = jax.grad(loss_of, (1, 2))(
            Smooth(), virtual, step.arch, batches[2]
        )
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(along)))
        ahead, behind = (
            jax.grad(loss_of, 2)(
                Smooth(),
                jax.tree.map(lambda p, d: p + s * d, params, along),  # noqa: B023
                step.arch,
                batches[1],
            )
            for s in (0.01 / norm, -0.01 / norm)
        )
        expected = direct - rate * (ahead - behind) / (0.02 / norm)
        found = -step.feedback.grad[0]
        print("fd formula", deviation(found, expected))
        assert deviation(found, expected) < 1e-9
        print("fd exact", deviation(found, -smooth("exact")[t].feedback.grad[0]))
        assert deviation(found, -smooth("exact")[t].feedback.grad[0]) < 1e-3
