import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from steps import (
    BATCH,
    CHOICES,
    DECISIONS,
    EXAMPLES,
    HALVES,
    KEY,
    Linear,
    Smooth,
    build,
    deviation,
    follow,
    linear,
    prepare,
    propose,
)
from trees import assert_trees_equal

from jaxnas.base import OK, InputError
from jaxnas.checkpoint import Checkpoints
from jaxnas.evaluators.supernet import supernet
from jaxnas.search import chunked_scan, host_scan, search
from jaxnas.strategies.differentiable import differentiable
from jaxnas.tasks import Batch, classification

ARCH = jax.nn.softmax(jnp.linspace(-1, 1, DECISIONS * CHOICES).reshape(-1, CHOICES))


def test_batches_follow_from_the_step():
    steps = follow(Linear(), 6, hypergradient="unrolled")
    for step, later in itertools.pairwise(steps):  # and past the end of an epoch
        assert_trees_equal(step.batches[1:3], later.batches[:2])
    numbers = np.array([step.numbers for step in steps])  # [T, 4, BATCH]
    for which in range(4):
        is_odd = which == 1  # the next step's batches are one ahead of the epoch
        epochs = numbers[is_odd : 4 + is_odd, which].reshape(2, EXAMPLES)
        np.testing.assert_array_equal(np.sort(epochs), [np.arange(EXAMPLES)] * 2)
        assert (epochs[0] != epochs[1]).any()
    assert (numbers[:, 0] != numbers[:, 3]).any()


def test_weights_descend_as_pytorch_has_it():
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
    steps = linear()
    start = jax.tree.leaves(steps[0].before.train.params)
    bias, kernel = params = [torch.tensor(leaf.tolist()) for leaf in start]
    for leaf in params:
        leaf.requires_grad_()
    sgd = torch.optim.SGD(params, 0.025, 0.9, weight_decay=3e-4)
    norms = []
    for step in steps:
        images, labels = (torch.tensor(np.array(x)) for x in step.batches[0][:2])
        scale = 2 * step.arch.sum().item()
        logits = scale * (images.reshape(BATCH, -1) @ kernel + bias)
        loss = torch.nn.functional.cross_entropy(logits, labels.long())
        sgd.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(params, 5.0).item())
        sgd.step()
        train_loss = step.feedback.metrics["train_loss"]
        np.testing.assert_allclose(train_loss, [loss.item()], rtol=1e-5)
        found = jax.tree.leaves(step.after.train.params)
        expected = [leaf.detach().numpy() for leaf in params]
        assert deviation(found, expected) < 1e-5
    assert min(norms) < 5 < max(norms)


def test_feedback_is_that_of_one_architecture():
    step, *_ = linear()
    fitness, cost, status, metrics, objectives, grad = step.feedback
    names = {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy"}
    assert metrics.keys() == names
    for found in (fitness, cost, *metrics.values()):
        assert (found.shape, found.dtype) == ((1,), jnp.float32)
    assert (status.tolist(), cost.tolist()) == ([OK], [BATCH / EXAMPLES])
    assert objectives is None
    assert grad.shape == (1, DECISIONS, CHOICES)
    assert float(fitness[0]) == -float(metrics["valid_loss"][0])


def test_accuracies_are_of_the_weights_before_and_after_the_step():
    for step in linear():
        for name, state, batch in (
            ("train", step.before, step.batches[0]),
            ("valid", step.after, step.batches[-1]),
        ):
            dense = state.train.params["Dense_0"]
            logits = np.reshape(batch.images, (BATCH, -1)) @ dense["kernel"]
            guesses = np.argmax(logits + dense["bias"][None], 1)
            found = step.feedback.metrics[f"{name}_accuracy"]
            np.testing.assert_allclose(found, [np.mean(guesses == batch.labels)])


@pytest.mark.parametrize("shape", [(2, DECISIONS, CHOICES), (1, DECISIONS)])
def test_only_one_relaxed_architecture_is_taken(shape):
    evaluator = build(Linear())
    proposal = propose(jnp.ones(shape[1:]))._replace(arch=jnp.ones(shape))
    given = KEY, evaluator.data, evaluator.init(KEY), proposal
    with pytest.raises(AssertionError, match=r"expected \(1, None, None\)"):
        jax.eval_shape(evaluator.evaluate, *given)


def test_unknown_hypergradient_is_refused():
    with pytest.raises(InputError, match=r"^expected .*exact.* got second_order: .*$"):
        build(Linear(), hypergradient="second_order")


@pytest.mark.parametrize("batch_size", [-1, 0, 8])
def test_impossible_batches_are_refused(batch_size):
    fewer = jax.tree.map(lambda x: x[:7], HALVES[1])
    with pytest.raises(InputError, match=rf"^expected .* 1 to 7.* {batch_size}: .*$"):
        build(Linear(), halves=(HALVES[0], fewer), batch_size=batch_size)


@pytest.mark.parametrize("how", [(-1, 16), (2, 0)])
def test_impossible_curvatures_are_refused(how):
    every, iterations = how
    with pytest.raises(InputError, match=rf"^expected .* got {every} and {iterations}"):
        build(Linear(), curvature_every=every, curvature_iterations=iterations)


def give(*given):
    return tuple(half._replace(given=x) for half, x in zip(HALVES, given, strict=True))


def test_halves_that_give_differently_are_refused():
    for others in (np.zeros(2), np.ones(3), ()):
        with pytest.raises(InputError, match=r"^expected halves that give .* same"):
            build(Linear(), halves=give(np.ones(2), others))


def test_what_is_given_reaches_the_task():
    def scaled(task):
        def loss(logits, batch):
            return batch.given["scale"] * task.loss(logits, batch)

        return task._replace(loss=loss)

    scale = {"scale": np.float32(3)}
    plain, evaluator = (
        supernet(Linear(), task, halves, prepare, batch_size=BATCH, clip=1e9)
        for task, halves in (
            (classification(), HALVES),
            (scaled(classification()), give(scale, scale)),
        )
    )
    proposal, state = propose(ARCH), plain.init(KEY)
    _, alone = jax.jit(plain.evaluate)(KEY, plain.data, state, proposal)
    _, found = jax.jit(evaluator.evaluate)(KEY, evaluator.data, state, proposal)
    once, thrice = alone.metrics["train_loss"], found.metrics["train_loss"]
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)
    # An argument of the step, not a constant in it.
    data = jax.tree.map(lambda x: x, evaluator.data)
    data[0].given["scale"] = jnp.float32(5)
    _, found = jax.jit(evaluator.evaluate)(KEY, data, state, proposal)
    np.testing.assert_allclose(found.metrics["train_loss"], 5 * once, rtol=1e-6)


def test_padding_changes_and_costs_nothing():
    drawn = []

    def count(key, images):
        jax.debug.callback(lambda: drawn.append(1))
        return prepare(key, images)

    evaluator = build(Linear(), count)
    state, proposal = evaluator.init(KEY), propose(ARCH)
    padding = proposal._replace(budget=jnp.zeros(1, jnp.int32))
    run = jax.jit(evaluator.evaluate)
    after, feedback = jax.block_until_ready(run(KEY, evaluator.data, state, padding))
    jax.effects_barrier()
    assert not drawn
    assert_trees_equal(after, state)
    assert (feedback.cost.tolist(), feedback.status.tolist()) == ([0], [OK])
    for x in (feedback.fitness, *feedback.metrics.values()):
        assert np.isnan(x).all()
    assert not feedback.grad.any()

    pair = jax.tree.map(lambda *x: jnp.stack(x), proposal, padding)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    side_by_side = jax.jit(jax.vmap(evaluator.evaluate, (None, None, 0, 0)))
    alone = run(KEY, evaluator.data, state, proposal)
    afters, both = side_by_side(KEY, evaluator.data, states, pair)
    jax.effects_barrier()
    assert drawn
    for i, (expected_state, expected) in enumerate((alone, (state, feedback))):
        found = jax.tree.map(lambda x, i=i: x[i], (afters.train.params, both))
        expected = expected_state.train.params, expected
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)

    drawn.clear()
    pair = pair._replace(budget=jnp.zeros((2, 1), jnp.int32))
    afters, _ = side_by_side(KEY, evaluator.data, states, pair)
    jax.effects_barrier()
    assert not drawn
    assert_trees_equal(afters, states)


def build_for_digits(network, **how):
    images, labels = load_digits(return_X_y=True)
    images = np.minimum(images * 16, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    digits = Batch(images, labels.astype(np.int32))
    halves = tuple(jax.tree.map(lambda x, i=i: x[i::2], digits) for i in (0, 1))
    return build(network, halves=halves, batch_size=64, **how)


def test_search_learns_digits_and_goes_on_from_its_states(tiny_space):
    evaluator = build_for_digits(Smooth(16), hypergradient="exact")
    run = partial(search, KEY, differentiable(tiny_space), evaluator, scan=host_scan)
    states, log = run(40)
    losses, accuracies = (
        log.feedback.metrics[name] for name in ("train_loss", "valid_accuracy")
    )
    assert losses[-5:].mean() < 0.5 * losses[:2].mean()
    assert accuracies[-5:].mean() > 0.8

    first, _ = run(15)
    rest, later = run(25, initial=first)
    assert_trees_equal(rest, states)
    assert_trees_equal(later, jax.tree.map(lambda x: x[15:], log))


def test_search_killed_goes_on_from_its_checkpoint(tiny_space, tmp_path):
    def stop(step, carry, ys):
        if step > 2:
            raise InterruptedError

    checkpoints = Checkpoints(tmp_path / "steps")
    run = partial(
        search, KEY, differentiable(tiny_space), build_for_digits(Linear()), 5
    )
    expected = run(chunked_scan(2))
    with pytest.raises(InterruptedError):
        run(chunked_scan(2, checkpoints, stop))
    assert checkpoints.latest() == 2
    assert_trees_equal(run(chunked_scan(2, checkpoints)), expected)


def test_searches_side_by_side_are_those_of_their_keys(tiny_space):
    keys = jax.random.split(KEY, 2)
    given = differentiable(tiny_space), build(Linear()), 3
    (states, _), (_, log) = search(keys, *given, host_scan)
    for i, key in enumerate(keys):
        (expected, _), (_, alone) = search(key, *given, host_scan)
        found = jax.tree.map(lambda x, i=i: x[i], states.logits)
        np.testing.assert_allclose(found, expected.logits, atol=1e-6)
        np.testing.assert_allclose(log.fitness[:, i], alone.fitness, rtol=1e-4)
