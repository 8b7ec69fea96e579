"""Shared weights: their steps, and what architectures are worth on them."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from steps import (
    CLASSES,
    DECISIONS,
    EXAMPLES,
    HALVES,
    KEY,
    Dense,
    Smooth,
    to_float,
)
from trees import assert_trees_equal

from jaxnas.base import OK, InputError, Proposal
from jaxnas.checkpoint import Checkpoints
from jaxnas.encoding import one_hot
from jaxnas.evaluators import shared_weights
from jaxnas.evaluators.one_shot import one_shot
from jaxnas.nn import chain
from jaxnas.nn.cell import Cell
from jaxnas.nn.graph import Edge
from jaxnas.nn.ops import BatchNorm, Conv
from jaxnas.search import chunked_scan, host_scan, search
from jaxnas.spaces import SPACES
from jaxnas.strategies.random_search import random_search
from jaxnas.tasks import Batch, Task, classification
from jaxnas.training import TrainState, sgd

NASBENCH = SPACES["nasbench201"]()
CHOICES = 3, 2, 4
RATE, MOMENTUM, DECAY = 0.2, 0.9, 0.1
ARCHS = np.array([[0, 1, 3], [2, 0, 1], [1, 1, 2]], np.int32)
TX = sgd(RATE, MOMENTUM, DECAY)
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)


def scaled(images):
    return images.astype(float) / 128 - 1


def augmented(key, images):
    """Other values than `scaled`, but for the number of an example."""
    del key
    return scaled(images).at[:, 1:].multiply(0.5)


def seen(logits, batch):
    """Accuracy, and which examples there are: a bit for each."""
    numbers = (batch.images[:, 0, 0, 0] + 1) * 128
    found = classification().metrics(logits, batch)
    return found | {"seen": jnp.sum(2**numbers)}


def examples(value):
    """The examples that `seen` is of."""
    return np.flatnonzero([int(value) >> i & 1 for i in range(EXAMPLES)])


def build(network=None, choices=CHOICES, halves=HALVES, batch_size=6, **how):
    return one_shot(
        network or Smooth(),
        choices,
        Task(classification().loss, seen),
        halves,
        (augmented, scaled),
        **{"tx": TX, "batch_size": batch_size, **how},
    )


def propose(archs, budget=1):
    archs = jnp.asarray(archs)
    budget = jnp.broadcast_to(jnp.asarray(budget, jnp.int32), len(archs))
    return Proposal(archs, budget, jnp.full(len(archs), -1, jnp.int32))


class Runner:
    """An evaluator in float64, compiled once for each number of architectures."""

    def __init__(self, **how):
        self.evaluator = build(**how)
        self.compiled = jax.jit(self.evaluator.evaluate)

    def init(self):
        return to_float(jax.device_get(self.evaluator.init(KEY)))

    def __call__(self, state, archs, budget=1):
        with jax.enable_x64(True):
            given = self.evaluator.data, to_float(state), propose(archs, budget)
            return jax.device_get(self.compiled(KEY, *given))


runner = functools.cache(lambda **how: Runner(**how))


def apply(train, arch, images, is_training):
    """Logits, and the statistics after them."""
    given = {"params": train.params, "batch_stats": train.batch_stats}
    weights = one_hot(arch, CHOICES)
    how = {"train": is_training, "mutable": ["batch_stats"]}
    logits, changed = Smooth().apply(given, images, weights, **how)
    return logits, changed["batch_stats"]


def loss_of(params, train, arch, images, labels):
    """The mean cross entropy with the statistics of the batch, and the new ones."""
    logits, stats = apply(train._replace(params=params), arch, images, True)
    chosen = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jnp.mean(jnp.log(jnp.exp(logits).sum(1)) - chosen), stats


# Steps of the weights


def test_weights_follow_the_mean_gradient_of_what_is_asked():
    """Two steps on all examples, SGD with momentum and decay written out."""
    run = runner(batch_size=EXAMPLES)
    state, images = (
        run.init(),
        np.asarray(augmented(None, jnp.asarray(HALVES[0].images))),
    )
    momenta = jax.tree.map(np.zeros_like, state.train.params)
    gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    for step in range(2):
        train = state.train
        state, feedback = run(state, ARCHS, [1, 0, 1])
        losses, total, stats = (
            [],
            jax.tree.map(np.zeros_like, momenta),
            train.batch_stats,
        )
        with jax.enable_x64(True):
            for arch in ARCHS[[0, 2]]:
                given = train._replace(batch_stats=stats), arch
                (loss, stats), grads = gradient(
                    train.params, *given, images.astype(float), HALVES[0].labels
                )
                total = jax.tree.map(np.add, total, jax.device_get(grads))
                losses.append(float(loss))
        momenta = jax.tree.map(
            lambda m, g, p: MOMENTUM * m + g / 2 + DECAY * p,
            momenta,
            total,
            train.params,
        )
        params = jax.tree.map(lambda p, m: p - RATE * m, train.params, momenta)
        jax.tree.map(close, state.train.params, params)
        jax.tree.map(close, state.train.batch_stats, jax.device_get(stats))
        assert state.train.step == step + 1
        close(feedback.fitness, [-losses[0], np.nan, -losses[1]])
        close(feedback.metrics["train_loss"], [losses[0], np.nan, losses[1]])
        assert np.isnan(feedback.metrics["valid_loss"]).all()
        assert (feedback.cost.tolist(), feedback.status.tolist()) == (
            [1, 0, 1],
            [OK] * 3,
        )


def test_weights_see_each_example_once_an_epoch():
    run = runner()
    state, numbers = run.init(), []
    for _ in range(4):
        state, feedback = run(state, ARCHS[:2])
        first, second = feedback.metrics["train_seen"]
        assert first == second  # one batch for all architectures
        numbers.append(examples(first))
        close(feedback.cost, [0.5, 0.5])
    for epoch in (numbers[:2], numbers[2:]):
        assert sorted(np.concatenate(epoch)) == list(range(EXAMPLES))


# Scores


@functools.cache
def trained():
    """Weights after three steps, and the examples of each."""
    run = runner()
    state, numbers = run.init(), []
    for arch in ARCHS:
        state, feedback = run(state, arch[None])
        numbers.append(examples(feedback.metrics["train_seen"][0]))
    return state, numbers


FROZEN = {"weight_steps": 0, "score_steps": 1, "calibration_batches": 3}


def test_score_is_the_accuracy_with_statistics_of_its_own():
    """Means of those of the batches, each of which counts 0.9 of the next."""
    state, numbers = trained()
    _, feedback = runner(**FROZEN)(state, ARCHS)
    shares = 0.9 ** np.arange(3)[::-1]
    zeros = jax.tree.map(np.zeros_like, state.train.batch_stats)
    for i, arch in enumerate(ARCHS):
        with jax.enable_x64(True):
            moved = [
                apply(
                    state.train._replace(batch_stats=zeros),
                    arch,
                    scaled(HALVES[0].images[batch]),
                    True,
                )[1]
                for batch in numbers
            ]
            own = jax.tree.map(
                lambda *x: np.average([a / 0.1 for a in x], 0, shares), *moved
            )
            (batch,) = {*feedback.metrics["valid_seen"].tolist()}
            images, labels = (x[examples(batch)] for x in HALVES[1][:2])
            train = state.train._replace(batch_stats=own)
            logits = np.asarray(apply(train, arch, scaled(images), False)[0])
        assert feedback.fitness[i] == np.mean(logits.argmax(1) == labels)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
        close(feedback.metrics["valid_loss"][i], losses.mean())
    assert np.isnan(feedback.metrics["train_loss"]).all()
    assert len({*feedback.metrics["valid_loss"].tolist()}) == 3
    np.testing.assert_array_equal(feedback.cost, 0)


def test_scores_on_frozen_weights_are_always_the_same():
    run, (state, _) = runner(**FROZEN), trained()
    later, feedback = run(state, ARCHS)
    assert_trees_equal(later.train, state.train)
    _, again = run(later, ARCHS[::-1])
    assert (
        again.metrics["valid_seen"].tolist() == feedback.metrics["valid_seen"].tolist()
    )
    for name, found in again.metrics.items():
        np.testing.assert_array_equal(found[::-1], feedback.metrics[name])


def test_score_without_calibration_normalises_batches_by_themselves():
    how = {"weight_steps": 1, "score_steps": 1, "fitness": "loss"}
    state, feedback = trained()[0], None
    seen_before = set()
    state = state._replace(evaluations=np.int32(1))
    for turn in range(4):
        before = state
        state, feedback = runner(**how)(state, ARCHS[:1])
        if turn % 2 == 0:
            assert_trees_equal(state.train, before.train)
            number = feedback.metrics["valid_seen"][0]
            seen_before.add(number)
            images, labels = (x[examples(number)] for x in HALVES[1][:2])
            with jax.enable_x64(True):
                given = state.train.params, state.train, ARCHS[0], scaled(images)
                loss, _ = loss_of(*given, labels)
            close(feedback.fitness, [-float(loss)])
    assert len(seen_before) == 2  # the next batches, as the weights learn between


class First(nn.Module):
    """The first cell of a network of NAS-Bench-201, and a classifier."""

    edges: tuple[Edge, ...]
    single_path: bool = False

    @nn.compact
    def __call__(self, images, weights, train=False):
        how = {"affine": False, "single_path": self.single_path, "name": "cell0"}
        cell = Cell(self.edges, NASBENCH.cells.op_names, 1, 4, 2, **how)
        if not self.single_path:
            weights = jnp.ones((len(self.edges), 5), images.dtype)
        states = cell([Conv(2, 3)(images)], weights, None, train)
        return Dense(CLASSES)(states[-1].mean((1, 2)))


def test_score_is_that_of_the_network_by_itself():
    """Of the single path of a supernet, calibrated for an architecture."""
    arch = np.array([3, 1, 4, 2, 0, 3], np.int32)
    how = {"choices": NASBENCH.num_choices, **FROZEN}
    shared = Runner(network=First(NASBENCH.network().edges, True), **how)
    alone = Runner(network=First(NASBENCH.network(arch).edges), **how)
    state = shared.init()
    with jax.enable_x64(True):
        parts = state.train.params, state.train.batch_stats
        few = [jax.device_get(NASBENCH.restrict(x, arch)) for x in parts]
    train = TrainState(state.train.step, *few, TX.init(few[0]))
    _, expected = alone(state._replace(train=train), arch[None])
    _, found = shared(state, arch[None])
    jax.tree.map(close, found, expected)


# Turns


def test_weights_and_scores_take_turns():
    run = runner(weight_steps=2, score_steps=1)
    state, learnt = run.init(), []
    for i in range(6):
        before = state
        state, feedback = run(state, ARCHS[:1])
        learns = np.isfinite(feedback.metrics["train_loss"][0])
        assert np.isfinite(feedback.metrics["valid_loss"][0]) != learns
        worth = -feedback.metrics["train_loss"] if learns else None
        worth = feedback.metrics["valid_accuracy"] if worth is None else worth
        np.testing.assert_array_equal(feedback.fitness, worth)
        assert (state.train.step - before.train.step, feedback.cost[0] > 0) == (
            learns,
            learns,
        )
        if not learns:
            assert_trees_equal(state.train, before.train)
        assert state.evaluations == i + 1
        learnt.append(bool(learns))
    assert learnt == [True, True, False] * 2


def test_padding_costs_nothing_and_changes_nothing():
    run = runner(weight_steps=2, score_steps=1)
    state = run.init()
    for i in range(3):
        before = state
        state, feedback = run(state, ARCHS[:1], 0)
        assert_trees_equal(state.train, before.train)
        assert state.evaluations == i + 1  # turns are those of a strategy's steps
        assert feedback.cost.tolist() == [0]
        for found in (feedback.fitness, *feedback.metrics.values()):
            assert np.isnan(found).all()
    state, feedback = run(state, ARCHS[:1])
    assert np.isfinite(feedback.fitness).all()


def test_state_and_feedback_keep_their_types():
    evaluator = build(weight_steps=2, score_steps=1)
    before = jax.eval_shape(evaluator.init, KEY)
    given = KEY, evaluator.data, before, propose(ARCHS)
    after, feedback = jax.eval_shape(evaluator.evaluate, *given)
    assert after == before
    for found in (feedback.fitness, feedback.cost, *feedback.metrics.values()):
        assert (found.shape, found.dtype) == ((3,), jnp.float32)


def test_seeds_side_by_side_are_those_one_by_one():
    """And the turn stays one branch, which all take."""
    run, keys = runner(weight_steps=2, score_steps=1), jax.random.split(KEY, 2)
    evaluate, data = run.evaluator.evaluate, run.evaluator.data
    alone = [run.init()._replace(key=key) for key in keys]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    every = jax.vmap(lambda state, given: evaluate(KEY, data, state, given), (0, None))
    with jax.enable_x64(True):
        together, given = to_float(together), propose(ARCHS[:1])
        program = jax.make_jaxpr(every)(together, given)
        names = [equation.primitive.name for equation in program.eqns]
        assert names.count("cond") == 2  # one for each turn
        compiled = jax.jit(every)
        for _ in range(3):
            together, found = compiled(together, given)
            for i, state in enumerate(alone):
                alone[i], expected = run(state, ARCHS[:1])
                one = jax.tree.map(lambda x: x[i], (together.train, found))  # noqa: B023
                jax.tree.map(close, one, (alone[i].train, expected))


# Searches


def test_search_killed_goes_on_from_its_checkpoint(tiny_space, tmp_path):
    def stop(step, carry, ys):
        if step > 2:
            raise InterruptedError

    checkpoints = Checkpoints(tmp_path / "steps")
    evaluator = build(weight_steps=2, score_steps=1, calibration_batches=2)
    run = partial(search, KEY, random_search(tiny_space, batch_size=2), evaluator, 5)
    expected = run(chunked_scan(2))
    with pytest.raises(InterruptedError):
        run(chunked_scan(2, checkpoints, stop))
    assert checkpoints.latest() == 2
    assert_trees_equal(run(chunked_scan(2, checkpoints)), expected)


def test_search_learns_digits(tiny_space):
    """Random search with weight sharing, and scores of the frozen weights."""
    images, labels = load_digits(return_X_y=True)
    images = np.minimum(images * 16, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    digits = Batch(images, labels.astype(np.int32))
    halves = tuple(jax.tree.map(lambda x, i=i: x[i::2], digits) for i in (0, 1))
    how = {"halves": halves, "batch_size": 64, "network": Smooth(16)}
    how |= {"tx": sgd(0.1, 0.9, 3e-4)}
    run = partial(search, KEY, random_search(tiny_space), scan=host_scan)
    (_, state), log = run(build(**how), 120)
    losses = log.feedback.metrics["train_loss"]
    assert losses[-20:].mean() < 0.3 * losses[:5].mean()
    frozen = build(**how, **FROZEN | {"score_batches": 5})
    _, scores = run(frozen, 6, initial=((), state))
    assert scores.feedback.fitness.min() > 0.6  # by chance 0.1


# What is refused


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, "a batch size from 1 to 12, .* got 0"),
        ({"batch_size": 13}, "a batch size from 1 to 12, .* got 13"),
        ({"weight_steps": -1}, "0 or more steps .* got -1 and 0"),
        ({"weight_steps": 0}, "0 or more steps .* got 0 and 0"),
        ({"score_batches": 0}, "1 batch or more .* got 0 and 0"),
        ({"calibration_batches": -1}, "1 batch or more .* got 1 and -1"),
    ],
)
def test_numbers_out_of_range_are_refused(how, message):
    with pytest.raises(InputError, match=rf"^expected {message}: .*$"):
        build(**how)


def test_unknown_fitness_is_refused():
    evaluator = build(fitness="f1")
    given = KEY, evaluator.data, evaluator.init(KEY), propose(ARCHS)
    with pytest.raises(InputError, match=r"^expected .* loss, .* but got f1: .*$"):
        evaluator.evaluate(*given)


def test_relaxed_architectures_are_refused():
    evaluator = build()
    proposal = propose(ARCHS)._replace(arch=jnp.ones((1, DECISIONS, 4)))
    with pytest.raises(AssertionError, match=r"expected \(None, 3\)"):
        evaluator.evaluate(KEY, evaluator.data, evaluator.init(KEY), proposal)


def test_statistics_move_as_calibration_takes_for_granted():
    assert shared_weights.MOMENTUM == chain.MOMENTUM == BatchNorm.momentum
