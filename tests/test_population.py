"""A whole population trained in one program, against its networks trained alone."""

import functools
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.datasets
import sklearn.metrics
from trees import assert_trees_equal

from jaxnas.base import DIVERGED, FULL, OK, InputError, Proposal, Strategy
from jaxnas.encoding import one_hot
from jaxnas.evaluators.fit import Step
from jaxnas.evaluators.population import population
from jaxnas.search import host_scan, search
from jaxnas.spaces.chain import chain
from jaxnas.spaces.multi_branch import OPS, multi_branch
from jaxnas.strategies import STRATEGIES
from jaxnas.tasks import Batch, classification
from jaxnas.training import init_state, init_variables, sgd

SPACE = chain((8, 8, 1), channels=(4,), kernels=(1, 3), units=(8,), trunk=3, head=1)
ARCHS = jnp.stack(
    [
        SPACE.from_string(text)
        for text in (
            "conv3x3-4 relu max_pool / dense-8",
            "avg_pool conv1x1-4 gelu / identity",
            "max_pool conv3x3-4 conv3x3-4 / relu",
            "tanh identity identity / dense-8",
        )
    ]
)
EPOCHS, BATCH, TRAIN = 4, 16, 80  # 5 steps an epoch
CLASSES = 10
TX = sgd(optax.cosine_decay_schedule(0.1, 20), 0.9, 1e-3)
KEYS = jax.random.split(jax.random.key(0), 2)


def normalise(images):
    return images / jnp.float32(8) - 1


def prepare(key, images):
    """Noise, so that a step's key matters."""
    return normalise(images) + 0.1 * jax.random.normal(key, images.shape)


@functools.cache
def digits():
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)
    places = np.split(np.arange(TRAIN + 57), [TRAIN, TRAIN + 37])
    names = ("train", "valid", "test")
    return {k: Batch(images[i], labels[i]) for k, i in zip(names, places, strict=True)}


def make(space=SPACE, **how):
    how = {"tx": TX, "epochs": EPOCHS, "batch_size": BATCH, **how}
    given = space, classification(), digits(), (prepare, normalise)
    return population(*given, num_classes=CLASSES, **how)


@functools.cache
def shared():
    """The evaluator, its first state, and one compiled program for all tests."""
    evaluator = make(num_slots=4)
    run = jax.jit(evaluator.evaluate)
    return evaluator, jax.jit(evaluator.init)(KEYS[0]), run


def evaluate(key, budgets, state=None, archs=ARCHS, slots=(0, 1, 2, 3)):
    evaluator, fresh, run = shared()
    proposal = Proposal(archs, jnp.array(budgets), jnp.array(slots))
    state = fresh if state is None else state
    return run(key, evaluator.data, state, proposal)


def at(tree, place):
    return jax.tree.map(lambda x: x[place], tree)


@functools.cache
def trained():
    """All four after 20 steps."""
    return evaluate(KEYS[0], [EPOCHS] * 4)


# One network


def train_alone(space, supernet, key, arch, **size):
    """The network's own 20 steps as `standalone` takes them, from the supernet's
    initial variables."""
    data = jax.tree.map(jnp.asarray, digits()["train"])
    weights = one_hot(arch, space.num_choices)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    key_init = jax.random.fold_in(key, 0)
    full = init_variables(supernet, key_init, image, weights, train=True)
    variables = {k: space.restrict(v, arch) for k, v in full.items()}
    network = space.network(arch, num_classes=CLASSES, **size)
    step = Step(network, classification(), prepare, TX, 20, BATCH, 0.0, 0.0)
    run = jax.jit(step.__call__)
    state = init_state(variables, TX)
    for i in range(20):
        state, _ = run(jax.random.fold_in(key, 1), data, state, i)
    return variables["params"], state


def assert_trained_alike(space, kept, first, alone, arch):
    assert kept.step == alone.step == 20
    found = [space.restrict(x, arch) for x in (kept.params, kept.batch_stats)]
    expected = [alone.params, alone.batch_stats]
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, found, expected)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), alone.params, first)
    assert max(jax.tree.leaves(moved)) > 0.1


@pytest.mark.parametrize("place", range(3))
def test_network_trains_for_20_steps_as_it_does_alone(place):
    kept, arch = at(trained()[0], place), ARCHS[place]
    supernet = SPACE.network(num_classes=CLASSES)
    key = jax.random.fold_in(KEYS[0], place)
    first, alone = train_alone(SPACE, supernet, key, arch)
    assert_trained_alike(SPACE, kept.train, first, alone, arch)


@pytest.mark.slow
def test_network_of_blocks_trains_for_20_steps_as_it_does_alone():
    """Its batch norms are those of the network, not of a supernet that shares."""
    space, size = multi_branch(blocks=1, branches=2), {"channels": 4, "cells": 1}
    arch = space.from_string(f"concat({OPS[-1]},{OPS[1]})")
    evaluator = make(space, num_slots=1, **size)
    run = jax.jit(evaluator.evaluate)
    proposal = Proposal(arch[None], jnp.array([FULL]), jnp.array([0]))
    state = evaluator.init(KEYS[0])
    kept, feedback = run(KEYS[0], evaluator.data, state, proposal)
    supernet = space.network(num_classes=CLASSES, affine=True, **size)
    key = jax.random.fold_in(KEYS[0], 0)
    first, alone = train_alone(space, supernet, key, arch, **size)
    assert_trained_alike(space, at(kept.train, 0), first, alone, arch)
    trained = sum(x.size for x in jax.tree.leaves(alone.params))
    assert feedback.metrics["parameters"][0] == trained


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ["valid", "test"])
def test_metrics_are_those_of_scikit_learn(place, name):
    state, feedback = trained()
    arch, kept, data = ARCHS[place], at(state.train, place), digits()[name]
    variables = {
        "params": SPACE.restrict(kept.params, arch),
        "batch_stats": SPACE.restrict(kept.batch_stats, arch),
    }
    network = SPACE.network(arch, num_classes=CLASSES)
    run = jax.jit(network.apply)
    logits = np.asarray(run(variables, normalise(data.images)), np.float64)
    guess, labels = logits.argmax(1), range(CLASSES)
    macro = sklearn.metrics.precision_recall_fscore_support(
        data.labels, guess, labels=labels, average="macro", zero_division=0
    )
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = dict(zip(("precision", "recall", "f1"), macro, strict=False))
    expected["accuracy"] = sklearn.metrics.accuracy_score(data.labels, guess)
    expected["cross_entropy"] = sklearn.metrics.log_loss(
        data.labels, shares, labels=labels
    )
    prefix = "test_" if name == "test" else ""
    for metric, value in expected.items():
        found = feedback.metrics[prefix + metric][place]
        rtol = 1e-4 if metric == "cross_entropy" else 1e-6
        np.testing.assert_allclose(found, value, rtol=rtol, atol=1e-6)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert feedback.metrics["parameters"][place] == parameters
    operations = SPACE.sizes(arch, (8, 8, 1))[1]
    assert feedback.metrics["flops"][place] == operations


def test_fitness_is_the_accuracy_and_the_cost_are_epochs():
    _, feedback = trained()
    np.testing.assert_array_equal(feedback.fitness, feedback.metrics["accuracy"])
    np.testing.assert_array_equal(feedback.cost, [EPOCHS] * 4)
    np.testing.assert_array_equal(feedback.status, [OK] * 4)
    assert feedback.objectives is None
    assert len(feedback.metrics) == 2 * 5 + 2


def test_budgets_beyond_the_epochs_are_those():
    state, feedback = evaluate(KEYS[0], [FULL, EPOCHS + 1, EPOCHS, FULL])
    assert_trees_equal((state, feedback), trained())


# Slots


def test_network_that_goes_on_ends_as_one_that_never_stopped():
    once, at_once = evaluate(KEYS[0], [3, 2, 0, 1])
    state, before = evaluate(KEYS[0], [1, 2, 0, 1])
    np.testing.assert_array_equal(before.cost, [1, 2, 0, 1])
    state, after = evaluate(KEYS[1], [3, 0, 0, 0], state)
    assert_trees_equal(at(state, 0), at(once, 0))
    assert after.fitness[0] == at_once.fitness[0]
    assert_trees_equal(at(after.metrics, 0), at(at_once.metrics, 0))
    np.testing.assert_array_equal(after.cost, [2, 0, 0, 0])


def test_network_goes_on_from_another_place_of_the_proposal():
    once, _ = evaluate(KEYS[0], [3, 0, 0, 0])
    state, _ = evaluate(KEYS[0], [1, 0, 0, 0])
    state, after = evaluate(KEYS[1], [0, 0, 0, 3], state, ARCHS[::-1], (3, 2, 1, 0))
    assert_trees_equal(at(state, 0), at(once, 0))
    np.testing.assert_array_equal(after.cost, [0, 0, 0, 2])


def test_other_architectures_and_smaller_budgets_start_afresh():
    state, _ = evaluate(KEYS[0], [2, 2, 2, 2])
    archs = ARCHS[jnp.array([1, 1, 2, 3])]
    fresh, expected = evaluate(KEYS[1], [3, 2, 1, 3], archs=archs)
    found, feedback = evaluate(KEYS[1], [3, 2, 1, 3], state, archs)
    for place in range(3):  # another one, an equal budget, a smaller one
        assert_trees_equal(at(found, place), at(fresh, place))
        assert_trees_equal(at(feedback, place), at(expected, place))
    np.testing.assert_array_equal(feedback.cost, [3, 2, 1, 1])


def test_padding_leaves_slots_alone_and_costs_nothing():
    state, _ = trained()
    after, feedback = evaluate(KEYS[1], [0] * 4, state, ARCHS[::-1])
    assert_trees_equal(after, state)
    np.testing.assert_array_equal(feedback.cost, [0] * 4)
    assert np.isnan(feedback.fitness).all()
    assert all(np.isnan(value).all() for value in feedback.metrics.values())


@pytest.mark.parametrize("slot", [-1, 4])
def test_networks_without_a_slot_are_not_kept(slot):
    state, expected = trained()
    after, feedback = evaluate(KEYS[0], [EPOCHS] * 4, state, slots=(slot,) * 4)
    assert_trees_equal(after, state)
    assert_trees_equal(feedback, expected)  # from the start again


def test_new_architectures_are_not_compiled():
    run = shared()[2]
    keys = jax.random.split(KEYS[0], 4)
    for key in keys[:2]:
        archs = jax.vmap(SPACE.sample)(jax.random.split(key, 4))
        evaluate(key, [1, 2, 3, 0], archs=archs)
    assert run._cache_size() == 1


# What networks are for


# Searches compile with all optimizations: a space of fewer layers.
SHALLOW = chain((8, 8, 1), channels=(4,), kernels=(3,), units=(8,), trunk=1, head=2)


def asking_for_its_state():
    """A strategy whose state are the architectures that it asks for."""

    def ask(key, step, archs):
        size = len(archs)
        return Proposal(archs, jnp.full(size, FULL), jnp.full(size, -1, jnp.int32))

    return Strategy(
        init=lambda key: None,
        ask=ask,
        tell=lambda key, step, archs, *_: archs,
        recommend=lambda archs, log: archs[0],
    )


def test_what_diverges_fails_alone():
    """At this rate two layers multiply each other away; one layer stays finite."""
    how = {"fitness": "cross_entropy", "objectives": ("accuracy", "parameters")}
    evaluator = make(SHALLOW, tx=sgd(1e6, 0.9, 0.0), **how)
    strategy, found = asking_for_its_state(), []
    for text in ("conv3x3-4 / dense-8 dense-8", "identity / tanh relu"):
        texts = (text, "identity / identity identity")
        archs = jnp.stack([SHALLOW.from_string(text) for text in texts])
        _, log = search(KEYS[0], strategy, evaluator, 1, host_scan, (archs, None))
        found.append(at(log.feedback, 0))
    diverged, other = found
    np.testing.assert_array_equal(diverged.status, [DIVERGED, OK])
    assert diverged.fitness[0] == -np.inf
    assert np.isnan(diverged.metrics["accuracy"][0])
    assert np.isfinite(other.fitness).all()
    assert_trees_equal(at(diverged, 1), at(other, 1))
    # What is better where it is smaller.
    fitness, metrics = other.fitness, other.metrics
    np.testing.assert_array_equal(fitness, -metrics["cross_entropy"])
    assert (fitness < 0).all()
    expected = [metrics["accuracy"], -metrics["parameters"]]
    np.testing.assert_array_equal(other.objectives, np.stack(expected, -1))
    assert metrics["parameters"][1] == CLASSES + CLASSES


def test_what_diverges_is_not_kept():
    evaluator = make(SHALLOW, tx=sgd(1e6, 0.9, 0.0), num_slots=2)
    texts = "conv3x3-4 / dense-8 dense-8", "identity / identity identity"
    archs = jnp.stack([SHALLOW.from_string(text) for text in texts])
    every = jnp.ones(2, jnp.int32)
    proposal = Proposal(archs, every, jnp.arange(2, dtype=jnp.int32))
    state, found = jax.jit(evaluator.evaluate)(
        KEYS[0], evaluator.data, evaluator.init(KEYS[0]), proposal
    )
    assert np.isnan(found.fitness[0])
    assert np.isfinite(found.fitness[1])
    np.testing.assert_array_equal(state.epochs, [0, 1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.train))


def test_a_group_is_trained_side_by_side_as_each_is_alone():
    archs = SHALLOW.sample(KEYS[1]), SHALLOW.from_string("conv3x3-4 / dense-8 identity")
    proposal = Proposal(jnp.stack(archs), jnp.full(2, 2), jnp.full(2, -1))

    def accuracy(group):
        evaluator = make(SHALLOW, epochs=2, group=group)
        run = jax.jit(evaluator.evaluate)
        return run(KEYS[0], evaluator.data, (), proposal)[1].metrics

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3), accuracy(2), accuracy(1)
    )


def test_random_search_trains_for_real():
    evaluator = make(SHALLOW, epochs=2)
    strategy = STRATEGIES["random_search"](SHALLOW, batch_size=2)
    states, log = search(KEYS[0], strategy, evaluator, 3, host_scan)
    fitness = log.feedback.fitness
    assert np.isfinite(fitness).all()
    np.testing.assert_array_equal(log.feedback.cost, np.full((3, 2), 2))
    best = np.unravel_index(fitness.argmax(), fitness.shape)
    answer = strategy.recommend(states[0], log)
    np.testing.assert_array_equal(answer, log.proposal.arch[best])


SHARDED = """
import sys
sys.path[:0] = [{folder!r}]
import jax, numpy as np
from test_population import ARCHS, EPOCHS, KEYS, make
import jax.numpy as jnp
from jaxnas.base import Proposal

assert len(jax.devices()) == 8
evaluator = make()
proposal = Proposal(ARCHS, jnp.full(4, EPOCHS), jnp.full(4, -1))
run = jax.jit(evaluator.evaluate)
_, feedback = run(KEYS[0], evaluator.data, (), proposal)
print(*np.asarray(feedback.metrics["cross_entropy"]).tolist())
"""


def test_eight_devices_find_what_one_does():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    program = SHARDED.format(folder=os.path.dirname(__file__))
    output = subprocess.check_output(
        [sys.executable, "-c", program], env=environment, text=True
    )
    found = [float(word) for word in output.split()]
    expected = trained()[1].metrics["cross_entropy"]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# Arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"fitness": "beauty"},
        {"objectives": ("accuracy", "beauty")},
        {"batch_size": 0},
        {"batch_size": TRAIN + 1},
        {"epochs": 0},
    ],
)
def test_wrong_arguments_are_one_line(wrong):
    with pytest.raises(InputError, match=r"^expected .*, but got ") as error:
        make(**wrong)
    assert len(str(error.value).splitlines()) == 1
