"""Shared weights, trained and judged on one architecture at a time.

The weights of a supernet learn on architectures that a strategy proposes, and rank
others without training them: ENAS (Pham et al. 2018, arXiv:1802.03268), single-path
one-shot (Guo et al. 2020, arXiv:1904.00420), random search with weight sharing (Li and
Talwalkar 2019, arXiv:1902.07638). They differ in what proposes, and when.
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxnas.base import OK, Array, Evaluator, Feedback, InputError, Proposal, PyTree
from jaxnas.evaluators.halves import WEIGHTS, check_batch_size, run_where
from jaxnas.evaluators.shared_weights import OneShotState, Shared
from jaxnas.tasks import Batch, Task


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
    check_batch_size(halves, batch_size)
    _check(weight_steps, score_steps, score_batches, calibration_batches)
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


def _check(weight_steps, score_steps, score_batches, calibration_batches) -> None:
    if min(weight_steps, score_steps) < 0 or not weight_steps + score_steps:
        raise InputError(
            "expected 0 or more steps of the weights and of scoring, and one of them, "
            f"but got {weight_steps} and {score_steps}: raise them"
        )
    if score_batches < 1 or calibration_batches < 0:
        raise InputError(
            "expected 1 batch or more to score on, and 0 or more to calibrate on, but "
            f"got {score_batches} and {calibration_batches}: raise them"
        )
