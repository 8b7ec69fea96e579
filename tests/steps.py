"""Supernets small enough to follow step by step, and a step that is written out."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Proposal
from jaxnas.evaluators.supernet import supernet
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge
from jaxnas.tasks import Batch, classification

# The default initialiser is slow to compile.
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.lecun_uniform())

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
            y = jnp.tanh(Dense(CHOICES * self.width)(x))
            x = jnp.einsum("k,nkc->nc", row, y.reshape(len(x), CHOICES, self.width))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return Dense(CLASSES)(x)


class OneCell(nn.Module):
    """A cell of real operations, with ReLU and maxima."""

    @nn.compact
    def __call__(self, images, weights=None, train=False):
        if weights is None:
            weights = jnp.ones((DECISIONS, CHOICES))
        ops = "none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"
        edges = Edge(0, 1, ops), Edge(0, 2, ops), Edge(1, 2, ops[:3])
        cell = Cell(edges, ops, 1, 3, 2, affine=False, pool_norm=True)
        x = cell([Dense(2)(images)], weights, None, train)[-1]
        return Dense(CLASSES)(x.mean((1, 2)))


class Linear(nn.Module):
    """A linear map, times the sum of the weights; its first gradients are large."""

    @nn.compact
    def __call__(self, images, weights=None, train=False):
        logits = Dense(CLASSES)(images.reshape(len(images), -1))
        return logits if weights is None else 2 * weights.sum() * logits


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
    batches: list[Batch]  # of the step, of the next ones, of the architecture
    numbers: list[np.ndarray]  # of their examples, int[BATCH]


def follow(network, num_steps=NUM_STEPS, **how) -> list[Step]:
    """Evaluates an architecture a step; x64 decides the type of all numbers."""
    drawn: list = []

    def recording(key, images):
        def record(key, numbers):  # where x64 is off
            drawn.append((jax.random.wrap_key_data(key), numbers))

        key_data = jax.random.key_data(key)
        jax.debug.callback(record, key_data, images[:, 0, 0, 0], ordered=True)
        return prepare(key, images)

    evaluator = build(network, recording, **how)
    evaluate = jax.jit(evaluator.evaluate)
    with jax.enable_x64(False):  # Flax's parameters are float32
        state = evaluator.init(KEY)
    state, steps = to_float(state), []
    for row in np.random.default_rng(3).normal(size=(num_steps, DECISIONS, CHOICES)):
        arch = jax.nn.softmax(jnp.asarray(row))
        after, feedback = evaluate(KEY, evaluator.data, state, propose(arch))
        jax.effects_barrier()
        halves = [HALVES[0]] * (len(drawn) - 1) + [HALVES[1]]
        batches = [
            Batch(prepare(key, half.images[numbers]), half.labels[numbers])
            for (key, numbers), half in zip(drawn, halves, strict=True)
        ]
        numbers = [np.asarray(numbers) for _, numbers in drawn]
        steps.append(Step(arch, state, after, feedback, batches, numbers))
        state = after
        drawn.clear()
    return steps


def to_float(tree):
    def cast(leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(float) if is_float else leaf

    return jax.tree.map(cast, tree)


SHARP = {
    "learning_rate": learning_rate,
    "momentum": MOMENTUM,
    "weight_decay": WEIGHT_DECAY,
    "clip": CLIP,
}


@functools.cache
def linear() -> list[Step]:
    """Steps of the linear network with the settings that are the default."""
    return follow(Linear(), 6)


# -- a step, written out -----------------------------------------------------------


def loss_of(network, params, arch, batch):
    """The mean cross entropy, with the statistics of the batch."""
    logits, _ = network.apply(
        {"params": params}, batch.images, arch, train=True, mutable=["batch_stats"]
    )
    chosen = jnp.take_along_axis(logits, batch.labels[:, None], 1)[:, 0]
    return jnp.mean(jnp.log(jnp.exp(logits).sum(1)) - chosen)


def descend(network, params, momenta, arch, batch, rate, clip=None):
    """SGD with momentum and coupled weight decay: new parameters and momenta."""
    grads = jax.grad(loss_of, 1)(network, params, arch, batch)
    if clip:
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1, clip / norm), grads)
    momenta = jax.tree.map(
        lambda m, g, p: MOMENTUM * m + g + WEIGHT_DECAY * p, momenta, grads, params
    )
    return jax.tree.map(lambda p, m: p - rate * m, params, momenta), momenta


def outer_objective(network, arch, params, momenta, batches, rates):
    """The loss on the architecture's batch after more steps, without a clip."""
    for batch, rate in zip(batches[1:-1], rates, strict=True):
        params, momenta = descend(network, params, momenta, arch, batch, rate)
    return loss_of(network, params, arch, batches[-1])


def momenta_of(state):
    (momenta,) = (s.trace for s in state.train.opt_state if hasattr(s, "trace"))
    return momenta


compiled_descend = jax.jit(descend, static_argnums=(0, 6))
# As users have it: with conftest's options a maximum falls otherwise than in what it is
# compared with.
AS_USED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
compiled_objective = jax.jit(
    outer_objective, static_argnums=0, compiler_options=AS_USED
)
compiled_grad = jax.jit(jax.value_and_grad(loss_of, (1, 2)), static_argnums=0)


def problem(step, t):
    """What `outer_objective` takes after the architecture, at step t."""
    rates = [learning_rate(t + 1.0 + i) for i in range(len(step.batches) - 2)]
    return step.after.train.params, momenta_of(step.after), step.batches, rates


def central_differences(network, arch, *given):
    grad, size = np.zeros(arch.shape), 1e-6
    for at in np.ndindex(arch.shape):
        ahead, behind = (
            compiled_objective(network, arch.at[at].add(by), *given)
            for by in (size, -size)
        )
        grad[at] = (ahead - behind) / (2 * size)
    return grad


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def deviation(found, expected):
    """The distance of two trees of arrays, relative to the second."""
    return norm(jax.tree.map(np.subtract, found, expected)) / norm(expected)
