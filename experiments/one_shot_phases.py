"""Methods of shared weights, each as two searches: train the weights, rank with them.

ENAS (Pham et al. 2018, arXiv:1802.03268), single-path one-shot (Guo et al. 2020,
arXiv:1904.00420), random search with weight sharing (Li and Talwalkar 2019,
arXiv:1902.07638).
"""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import optax

from jaxnas.base import Evaluator, InputError, PyTree, SearchSpace, Strategy
from jaxnas.evaluators.one_shot import one_shot
from jaxnas.strategies.enas import enas
from jaxnas.strategies.policies import Policy
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution
from jaxnas.strategies.reinforce import reinforce
from jaxnas.tasks import Batch, Task

METHODS = ("enas", "single_path", "random_sharing")


class Phase(NamedTuple):
    """The arguments of a search, after its key."""

    strategy: Strategy
    evaluator: Evaluator
    num_steps: int


class Phases(NamedTuple):
    """Two searches, one after the other."""

    train: Phase  # what is trained on has a budget of 1
    rank: Phase  # what is ranked has one of FULL; the weights are frozen
    hand_over: Callable[[tuple[PyTree, PyTree]], tuple[PyTree, PyTree]]
    """The final states of the first search -> the argument `initial` of the second."""


def phases(
    method: str,
    space: SearchSpace,
    network: Any,
    task: Task,
    halves: tuple[Batch, Batch],
    prepare: tuple[Callable, Callable],
    *,
    tx: optax.GradientTransformation,
    num_weight_steps: int,
    samples: int = 1000,
    batch_size: int = 64,
    rank_batch: int = 10,
    score_batches: int = 1,
    calibration_batches: int = 0,
    fitness: str = "accuracy",
    policy: str | Policy = "lstm",
    weight_steps: int = 300,
    controller_steps: int = 30,
    controller_batch: int = 10,
    controller_learning_rate: float = 3.5e-3,
) -> Phases:
    """Makes both phases of a method.

    `enas` trains a controller by turns with the weights, and ranks what it draws.
    `single_path` and `random_sharing` train on uniform draws; the former ranks by
    evolution (a population of 50, tournaments of 10), the latter uniform draws.

    Args:
      method: one of `METHODS`.
      space, network, task, halves, prepare, tx, batch_size, fitness: as of `one_shot`.
      num_weight_steps: steps of the shared weights, in all.
      samples: architectures that are ranked, in whole batches of `rank_batch`.
      rank_batch: how many of them a step.
      score_batches: that each of them is ranked on; a controller learns from one.
      calibration_batches: for its running statistics before that.
      policy: of the controller; this and the next four are for `enas` alone.
      weight_steps, controller_steps: of a period, see `enas`.
      controller_batch: architectures a step of the controller.
      controller_learning_rate: of Adam; that of the published search of cells.

    Raises:
      InputError: there is no such method; a number is out of its range.
    """
    if method not in METHODS:
        raise InputError(
            f"expected a method of {', '.join(METHODS)}, but got {method}: choose one"
        )
    if min(num_weight_steps, weight_steps, samples, rank_batch) < 1:
        raise InputError(
            "expected a step of the weights, in all and in a period, a sample and a "
            f"batch of them or more, but got {num_weight_steps}, {weight_steps}, "
            f"{samples} and {rank_batch}: ask for more"
        )
    evaluator = partial(
        one_shot,
        network,
        space.num_choices,
        task,
        halves,
        prepare,
        tx=tx,
        batch_size=batch_size,
        fitness=fitness,
    )
    frozen = evaluator(
        weight_steps=0,
        score_steps=1,
        score_batches=score_batches,
        calibration_batches=calibration_batches,
    )
    rank_batch = min(rank_batch, samples)
    num_ranking = ceil(samples / rank_batch)
    if method == "enas":
        turns = {"weight_steps": weight_steps, "score_steps": controller_steps}
        num_turns = num_weight_steps // weight_steps
        learner = enas(
            space,
            policy=policy,
            weight_steps=weight_steps,
            controller_steps=controller_steps,
            batch_size=controller_batch,
            learning_rate=controller_learning_rate,
        )
        num_steps = num_weight_steps + num_turns * controller_steps
        train = Phase(learner, evaluator(**turns), num_steps)
        drawing = reinforce(
            space, policy=policy, learning_rate=0.0, batch_size=rank_batch
        )
        return Phases(train, Phase(drawing, frozen, num_ranking), lambda both: both)
    train = Phase(random_search(space, budget=1), evaluator(), num_weight_steps)
    ranking = random_search(space, batch_size=rank_batch)
    if method == "single_path":
        ranking = regularized_evolution(
            space,
            population_size=min(50, ceil(samples / 2)),
            tournament_size=10,
            batch_size=rank_batch,
        )
    return Phases(
        train, Phase(ranking, frozen, num_ranking), lambda both: (None, both[1])
    )
