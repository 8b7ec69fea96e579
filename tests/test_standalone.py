import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_trees_equal

from jaxnas.base import FAILED, OK, OUT_OF_MEMORY, InputError, Proposal
from jaxnas.checkpoint import Checkpoints
from jaxnas.evaluators.fit import confusion_of, fit
from jaxnas.evaluators.standalone import one_by_one
from jaxnas.search import chunked_scan
from jaxnas.spaces.darts import darts
from jaxnas.spaces.genotype import DARTS_V2
from jaxnas.tasks import Batch, classification
from jaxnas.training import TrainState, sgd

KEY = jax.random.key(0)
CLASSES = 3


class Small(nn.Module):
    """A linear layer and a batch norm."""

    @nn.compact
    def __call__(self, images, drop_rate=None, train=False):
        x = nn.Dense(CLASSES, kernel_init=nn.initializers.lecun_uniform())(
            images.reshape(len(images), -1)
        )
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


class TwoHeads(nn.Module):
    """Logits that are parameters, the auxiliary ones 1, 0, 0 at first."""

    @nn.compact
    def __call__(self, images, drop_rate=None, train=False):
        logits = self.param("main", nn.initializers.zeros, (1, CLASSES))
        other = self.param("other", lambda key: jnp.eye(1, CLASSES))
        if train:
            self.sow("auxiliary", "logits", jnp.repeat(other, len(images), 0))
        return jnp.repeat(logits, len(images), 0)


class Telling(nn.Module):
    """Logits 0, x, from which the loss on class 0 tells x; never learns."""

    what: str  # "drop_rate", or "draw" from the random stream "drop_path"

    @nn.compact
    def __call__(self, images, drop_rate=None, train=False):
        offset = self.param("offset", nn.initializers.zeros, ())
        if self.is_initializing():
            x = 0.0
        elif self.what == "draw":
            x = jax.random.uniform(self.make_rng("drop_path"))
        else:
            x = -1.0 if drop_rate is None else drop_rate
        return jnp.repeat(jnp.array([[0.0, 1.0]]) * (x + offset), len(images), 0)


class ByFirstPixel(nn.Module):
    """Takes the first pixel for the class; has no parameters."""

    @nn.compact
    def __call__(self, images, train=False):
        return jax.nn.one_hot(images[:, 0, 0, 0], CLASSES)


def make_data(num_examples=30) -> Batch:
    """Images whose brightest row is their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, num_examples).astype(np.int32)
    images = rng.integers(0, 100, (num_examples, CLASSES, 2, 1))
    images[np.arange(num_examples), labels] += 100
    return Batch(images.astype(np.uint8), labels)


def scale(key, images):
    return images / jnp.float32(255)


def train(network=Small(), data=make_data(), key=KEY, tx=sgd(0.1, 0.9, 0.0), **how):  # noqa: B008
    how = {"num_steps": 30, "batch_size": 10, **how}
    return fit(key, network, classification(), data, scale, tx=tx, **how)


def told(log):
    """What a `Telling` network was given: float32[T]."""
    return np.log(np.expm1(np.asarray(log["loss"], np.float64)))


@pytest.fixture(scope="module")
def trained():
    """The state and the log of 30 steps."""
    return train()


def normalize(images):
    return scale(None, images)


def test_fit_trains_a_network_with_everything_of_the_paper():
    space = darts()
    network = space.network(
        space.from_string(DARTS_V2),
        channels=2,
        cells=3,
        num_classes=CLASSES,
        auxiliary=True,
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    data = Batch(images, np.arange(4, dtype=np.int32) % CLASSES)
    how = {"num_steps": 2, "batch_size": 2, "auxiliary": 0.4, "drop_path": 0.2}
    state, log = train(network, data, **how)
    assert set(state.params["auxiliary"]) >= {"Conv_0", "Dense_0"}
    assert np.isfinite(log["loss"]).all()


def test_fit_learns_what_is_separable(trained):
    state, log = trained
    labels = make_data().labels
    assert int(state.step) == 30
    assert log["loss"].shape == log["accuracy"].shape == (30,)
    counts = confusion_of(Small(), state, make_data(), normalize, CLASSES)
    np.testing.assert_array_equal(counts, np.diag(np.bincount(labels)))


def test_fit_follows_from_its_key_alone(trained):
    assert_trees_equal(train(), trained)
    _, other = train(key=jax.random.key(1))
    assert not np.array_equal(other["loss"], trained[1]["loss"])


def test_fit_stopped_goes_on_as_if_it_were_not(tmp_path):
    def stop(step, carry, ys):
        if step > 2:
            raise InterruptedError

    checkpoints = Checkpoints(tmp_path / "steps")
    whole = train(num_steps=5, scan=chunked_scan(2))
    with pytest.raises(InterruptedError):
        train(num_steps=5, scan=chunked_scan(2, checkpoints, stop))
    assert checkpoints.latest() == 2
    assert_trees_equal(train(num_steps=5, scan=chunked_scan(2, checkpoints)), whole)


def test_fit_draws_every_example_once_an_epoch():
    drawn = []

    def recording(key, images):
        jax.debug.callback(lambda x: drawn.extend(x[:, 0, 0, 0]), images, ordered=True)
        return scale(key, images)

    numbered = np.tile(np.arange(12, dtype=np.uint8)[:, None, None, None], (1, 3, 2, 1))
    data = Batch(numbered, np.zeros(12, np.int32))
    how = {"tx": sgd(0.1, 0.9, 0.0), "num_steps": 6, "batch_size": 4}
    jax.block_until_ready(fit(KEY, Small(), classification(), data, recording, **how))
    jax.effects_barrier()
    first, second = np.reshape(drawn, (2, 12))
    np.testing.assert_array_equal(np.sort(first), np.arange(12))
    np.testing.assert_array_equal(np.sort(second), np.arange(12))
    assert (first != second).any()


def test_auxiliary_logits_weigh_in_as_said():
    # All examples in one batch, so that their order is lost.
    data, rate, share = make_data(), 0.5, 0.4
    how = {"num_steps": 1, "batch_size": 30, "tx": optax.sgd(rate)}
    state, log = train(TwoHeads(), data, auxiliary=share, **how)
    frequency = np.bincount(data.labels, minlength=CLASSES) / 30
    main, other = np.zeros(CLASSES), np.eye(CLASSES)[0]
    log_sums = [np.log(np.sum(np.exp(x))) for x in (main, other)]
    losses = [log_sums[0] - frequency @ main, log_sums[1] - frequency @ other]
    np.testing.assert_allclose(log["loss"], [losses[0] + share * losses[1]], rtol=1e-6)
    np.testing.assert_allclose(log["accuracy"], [frequency[0]], rtol=1e-6)
    stepped = main - rate * (np.exp(main - log_sums[0]) - frequency)
    np.testing.assert_allclose(state.params["main"], stepped[None], atol=1e-6)
    stepped = other - rate * share * (np.exp(other - log_sums[1]) - frequency)
    np.testing.assert_allclose(state.params["other"], stepped[None], atol=1e-6)


def test_drop_rate_grows_from_zero_to_drop_path():
    data = make_data()._replace(labels=np.zeros(30, np.int32))
    how = {"num_steps": 8, "tx": optax.sgd(0.0)}
    _, log = train(Telling("drop_rate"), data, drop_path=0.4, **how)
    np.testing.assert_allclose(told(log), 0.4 * np.arange(8) / 8, atol=1e-6)
    _, log = train(Telling("drop_rate"), data, **how)
    np.testing.assert_allclose(told(log), np.full(8, -1.0), rtol=1e-6)  # none given


def test_each_step_drops_other_paths():
    data = make_data()._replace(labels=np.zeros(30, np.int32))
    how = {"num_steps": 8, "tx": optax.sgd(0.0)}
    _, log = train(Telling("draw"), data, drop_path=0.4, **how)
    assert len(np.unique(told(log).round(5))) == 8


@pytest.mark.parametrize("batch_size", [-1, 0, 31])
def test_fit_refuses_impossible_batches(batch_size):
    with pytest.raises(InputError, match=rf"^expected .* 30 .* got {batch_size}: .*$"):
        train(batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_confusion_is_a_plain_count(batch_size):
    rng = np.random.default_rng(1)
    labels, guesses = rng.integers(0, CLASSES, (2, 10)).astype(np.int32)
    images = np.broadcast_to(guesses[:, None, None, None], (10, 2, 2, 1))
    data = Batch(images.astype(np.uint8), labels)
    state = TrainState(jnp.int32(0), {}, {}, ())
    found = confusion_of(
        ByFirstPixel(), state, data, lambda x: x, CLASSES, batch_size=batch_size
    )
    expected = np.zeros((CLASSES, CLASSES), np.int32)
    for label, guess in zip(labels, guesses, strict=True):
        expected[label, guess] += 1
    np.testing.assert_array_equal(found, expected, strict=True)


def test_confusion_uses_running_statistics(trained):
    # One example at a time: normalised by its own statistics it would be nothing.
    labels = make_data().labels
    given = Small(), trained[0], make_data(), normalize, CLASSES
    found = confusion_of(*given, batch_size=1)
    np.testing.assert_array_equal(found, np.diag(np.bincount(labels)))


def test_one_by_one_answers_what_its_function_says_and_why_it_failed():
    said, asked = [], []

    def learn(key, arch, epochs):
        asked.append((jax.random.key_data(key).tolist(), arch.tolist(), epochs))
        if arch[0] == 3:
            raise MemoryError("too wide")
        if arch[0] == 4:
            raise ValueError("too deep\nby far")
        return {"frechet_distance": float(arch[0])}

    names = "frechet_distance", "parameters"
    evaluator = one_by_one(
        learn,
        names,
        epochs=5,
        fitness="frechet_distance",
        objectives=("parameters",),
        failed=lambda arch, why: said.append((arch.tolist(), why)),
    )
    arch = jnp.array([[1], [2], [3], [4]], jnp.int32)
    proposal = Proposal(arch, jnp.array([2, 9, 1, 1]), -jnp.ones(4, jnp.int32))
    _, found = evaluator.evaluate(KEY, (), (), proposal)
    np.testing.assert_array_equal(found.fitness, [-1, -2, -np.inf, -np.inf])
    np.testing.assert_array_equal(found.cost, [2, 5, 1, 1])
    np.testing.assert_array_equal(found.status, [OK, OK, OUT_OF_MEMORY, FAILED])
    assert np.isnan(found.metrics["parameters"]).all()
    assert said == [([3], "MemoryError: too wide"), ([4], "ValueError: too deep")]
    assert [epochs for *_, epochs in asked] == [2, 5, 1, 1]
    assert len({tuple(key) for key, *_ in asked}) == 4
    asked.clear()
    nothing = proposal._replace(budget=jnp.zeros(4, jnp.int32))
    assert np.isnan(evaluator.evaluate(KEY, (), (), nothing)[1].fitness).all()
    assert not asked
    with pytest.raises(InputError, match="expected a metric of frechet_distance"):
        one_by_one(learn, names, epochs=5, fitness="accuracy")
    with pytest.raises(InputError, match="expected 1 epoch or more, but got 0"):
        one_by_one(learn, names, epochs=0, fitness="parameters")
