"""Shared weights, trained and judged on one architecture at a time.

The weights of a supernet learn on architectures that a strategy proposes, and rank
others without training them: ENAS (Pham et al. 2018, arXiv:1802.03268), single-path
one-shot (Guo et al. 2020, arXiv:1904.00420), random search with weight sharing (Li and
Talwalkar 2019, arXiv:1902.07638). They differ in what proposes, and when.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import OK, Array, Evaluator, Feedback, InputError, Proposal, PyTree
from jaxnas.data import batch_indices
from jaxnas.encoding import one_hot
from jaxnas.evaluators.halves import (
    ARCHITECTURE,
    WEIGHTS,
    check_batch_size,
    run_where,
)
from jaxnas.tasks import Batch, Task
from jaxnas.training import TrainState, init_state, init_variables

MOMENTUM = 0.9  # of the networks' running statistics


class OneShotState(NamedTuple):
    """The shared weights, and what the order of the data follows from."""

    train: TrainState
    key: Array
    evaluations: Array  # int32[], how many there were


def one_shot(
    network: Any,
    num_choices: Sequence[int],
    task: Task,
    halves: tuple[Batch, Batch],
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]],
    *,
    tx: optax.GradientTransformation,
    weight_steps: int = 1,
    score_steps: int = 0,
    batch_size: int = 64,
    score_batches: int = 1,
    calibration_batches: int = 0,
    fitness: str = "accuracy",
) -> Evaluator:
    """Makes the evaluator of int32[B, D] by weights that all architectures share.

    Of every `weight_steps + score_steps` evaluations the first ones are steps of the
    weights: they follow the mean gradient of the architectures on a batch of the first
    half. Their fitness is minus the loss there, before the step. The others leave the
    weights alone; fitness is what an architecture reaches on the second half. With
    score_steps 0 the weights always learn, with weight_steps 0 they are frozen.

    Metrics, float32[B]: `train_loss`, `valid_loss` and likewise those of the task; NaN
    where there was none. Cost is in epochs of the first half. A proposal of budget 0 is
    left out, and costs nothing; but the evaluation counts, so that turns are those of a
    strategy's steps.

    Args:
      network: a Linen module, `network(images, weights, train=...)`, of the supernet;
        with `single_path` it computes what an architecture has.
      num_choices: of the space.
      task: what the network is trained for.
      halves: images uint8[N, H, W, colours] and labels int32[N]; the weights learn on
        the first part, the second one judges.
      prepare: `(key, uint8[B, ...]) -> float32` for training and
        `uint8[B, ...] -> float32` for judging.
      tx: the optimizer of the weights.
      weight_steps, score_steps: see above.
      batch_size: examples a step.
      score_batches: that an architecture is judged on. The same for all where the
        weights are frozen; else the next ones.
      calibration_batches: of the first half, on which running statistics are made anew
        for each architecture (single-path one-shot). With 0 batches are normalised by
        themselves, as in ENAS.
      fitness: "loss", whose negative is taken, or a metric of the task.

    Raises:
      InputError: a number of steps or batches, or the batch size, is out of range; at
        the first evaluation, there is no such fitness.
    """
    _check(halves, batch_size, score_batches, calibration_batches)
    _check_schedule(weight_steps, score_steps)
    shared = Shared(
        network,
        tuple(num_choices),
        task,
        prepare,
        tx,
        batch_size,
        score_batches,
        calibration_batches,
    )
    steps_per_epoch = len(halves[WEIGHTS].labels) // batch_size

    def init(key: Array) -> OneShotState:
        return shared.fresh(key, halves[WEIGHTS].images.shape[1:])

    def evaluate(key: Array, data: PyTree, state: OneShotState, proposal: Proposal):
        del key  # batches follow from the state's own key and steps
        chex.assert_shape(proposal.arch, (None, len(num_choices)))
        asked = proposal.budget > 0
        nothing = shared.nothing(data, state, proposal.arch)
        given = data, state, proposal.arch, asked, nothing
        if fitness not in nothing:
            raise InputError(
                f"expected a fitness of {', '.join(nothing)}, but got {fitness}: "
                "choose one of these"
            )
        train, learnt, judged = state.train, nothing, nothing
        learns = state.evaluations % (weight_steps + score_steps) < weight_steps
        if weight_steps:
            turn = learns & asked.any()
            train, learnt = run_where(turn, shared.learn, (train, nothing), *given)
        if score_steps:
            turn = ~learns & asked.any()
            first = state.evaluations * score_batches if weight_steps else jnp.int32(0)
            judged = run_where(turn, shared.score, nothing, *given, first)
        worth = -judged["loss"] if fitness == "loss" else judged[fitness]
        feedback = Feedback(
            fitness=jnp.where(learns, -learnt["loss"], worth),
            cost=(asked & learns).astype(jnp.float32) / steps_per_epoch,
            status=jnp.full(len(asked), OK, jnp.int32),
            metrics={
                f"{half}_{name}": value
                for half, found in (("train", learnt), ("valid", judged))
                for name, value in found.items()
            },
        )
        return OneShotState(train, state.key, state.evaluations + 1), feedback

    return Evaluator(jax.tree.map(jnp.asarray, halves), init, evaluate)


class Shared(NamedTuple):
    """What is done with weights that architectures share; traceable.

    Architectures are int32[B, D], with bool[B] of those that are asked for; metrics
    are float32[B], NaN where nothing was asked.
    """

    network: Any
    num_choices: tuple[int, ...]
    task: Task
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]
    tx: optax.GradientTransformation
    batch_size: int
    score_batches: int
    calibration_batches: int

    def fresh(self, key: Array, image_shape: tuple[int, ...]) -> OneShotState:
        """Weights that have not been trained yet."""
        key_init, key_data = jax.random.split(key)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        weights = one_hot(jnp.zeros(len(self.num_choices), jnp.int32), self.num_choices)
        variables = init_variables(self.network, key_init, image, weights)
        return OneShotState(init_state(variables, self.tx), key_data, jnp.int32(0))

    def nothing(
        self, data: PyTree, state: OneShotState, archs: Array
    ) -> dict[str, Array]:
        """The metrics where nothing is asked."""

        def run(data, state):
            batch = self._draw(data, state.key, WEIGHTS, jnp.int32(0))
            _, params, stats, _ = state.train
            return self._run(params, stats, archs[0], batch, True)[1][1]

        shapes = jax.eval_shape(run, data, state)
        return {
            name: jnp.full(len(archs), jnp.nan, x.dtype) for name, x in shapes.items()
        }

    def learn(
        self,
        data: PyTree,
        state: OneShotState,
        archs: Array,
        asked: Array,
        nothing: dict[str, Array],
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step of the weights: their new state, metrics before the step."""
        step, params, stats, opt_state = state.train
        batch = self._draw(data, state.key, WEIGHTS, step, augment=True)
        by_params = jax.grad(self._run, has_aux=True)

        def one(found, arch):
            total, stats = found
            grads, (stats, metrics) = by_params(params, stats, arch, batch, train=True)
            return (jax.tree.map(jnp.add, total, grads), stats), metrics

        start = jax.tree.map(jnp.zeros_like, params), stats
        (total, stats), metrics = _for_those(one, start, archs, asked, nothing)
        grads = jax.tree.map(lambda g: g / jnp.maximum(asked.sum(), 1), total)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState(step + 1, params, stats, opt_state), metrics

    def score(
        self,
        data: PyTree,
        state: OneShotState,
        archs: Array,
        asked: Array,
        nothing: dict[str, Array],
        first: Array,
    ) -> dict[str, Array]:
        """Metrics on the second half, on batches from a first one on, int32[]."""
        calibrated = self.calibration_batches > 0

        def one(_, arch):
            stats = self._calibrate(data, state, arch)

            def judge(_, i):
                batch = self._draw(data, state.key, ARCHITECTURE, first + i)
                how = arch, batch, not calibrated
                return None, self._run(state.train.params, stats, *how)[1][1]

            _, metrics = lax.scan(judge, None, jnp.arange(self.score_batches))
            return None, jax.tree.map(lambda x: x.mean(0), metrics)

        return _for_those(one, None, archs, asked, nothing)[1]

    def _calibrate(self, data: PyTree, state: OneShotState, arch: Array) -> PyTree:
        """An architecture's own running statistics; the shared ones if none are made.

        They are means of those of the batches, of which each counts MOMENTUM of what
        the next one does.
        """
        if not self.calibration_batches:
            return state.train.batch_stats

        def meet(stats, i):
            batch = self._draw(data, state.key, WEIGHTS, i)
            return self._run(state.train.params, stats, arch, batch, True)[1][0], None

        zeros = jax.tree.map(jnp.zeros_like, state.train.batch_stats)
        stats, _ = lax.scan(meet, zeros, jnp.arange(self.calibration_batches))
        total = 1 - MOMENTUM**self.calibration_batches  # of the weights of what was met
        return jax.tree.map(lambda x: x / total, stats)

    def _draw(
        self, data: PyTree, key: Array, half: int, step: Array, augment: bool = False
    ) -> Batch:
        """The batch of a step, always the same for the same step."""
        key_order, key_prepare = jax.random.split(jax.random.fold_in(key, half))
        images, labels, given = data[half]
        index = batch_indices(key_order, step, len(labels), self.batch_size)
        key_prepare = jax.random.fold_in(key_prepare, step)
        train, test = self.prepare
        images = train(key_prepare, images[index]) if augment else test(images[index])
        return Batch(images, labels[index], given)

    def _run(
        self, params: PyTree, stats: PyTree, arch: Array, batch: Batch, train: bool
    ):
        """The loss; new statistics, and metrics with the loss among them."""
        logits, changed = self.network.apply(
            {"params": params, "batch_stats": stats},
            batch.images,
            one_hot(arch, self.num_choices),
            train=train,
            mutable=["batch_stats"],
        )
        loss = self.task.loss(logits, batch)
        metrics = {"loss": loss, **self.task.metrics(logits, batch)}
        return loss, (changed.get("batch_stats", {}), metrics)


def _for_those(
    one: Callable, start: PyTree, archs: Array, asked: Array, nothing: PyTree
):
    """Calls `one(carry, arch) -> (carry, metrics)` for those asked, in a row.

    Returns:
      The carry; metrics, of the others as in nothing.
    """

    def step(carry, given):
        arch, is_asked, otherwise = given
        return run_where(is_asked, one, (carry, otherwise), carry, arch)

    return lax.scan(step, start, (archs, asked, nothing))


def _check(halves, batch_size, score_batches, calibration_batches) -> None:
    check_batch_size(halves, batch_size)
    if score_batches < 1 or calibration_batches < 0:
        raise InputError(
            "expected 1 batch or more to score on, and 0 or more to calibrate on, but "
            f"got {score_batches} and {calibration_batches}: raise them"
        )


def _check_schedule(weight_steps, score_steps) -> None:
    if min(weight_steps, score_steps) < 0 or not weight_steps + score_steps:
        raise InputError(
            "expected 0 or more steps of the weights and of scoring, and one of them, "
            f"but got {weight_steps} and {score_steps}: raise them"
        )
