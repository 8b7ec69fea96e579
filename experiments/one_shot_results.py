"""What training shared weights and ranking with them leave: rows, files, a picture."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnas import files, plots, runs
from jaxnas.base import FULL, Array, Log, PyTree, SearchSpace
from jaxnas.strategies.policies import Policy


def summarise_training(
    entropy: Callable[[PyTree], Array] | None, chunk: tuple[PyTree, Log]
) -> dict[str, Any]:
    """A row of the log; a chunk may have steps of the weights, of scoring, or both."""
    ((learner, _), log), row = chunk, {}
    metrics, budget = log.feedback.metrics, log.proposal.budget
    for half, asked in (("train", budget == 1), ("valid", budget == FULL)):
        if asked.any():
            names = (f"{half}_{name}" for name in ("loss", "accuracy"))
            row |= {name: metrics[name][asked].mean() for name in names}
    if entropy:
        row["entropy"] = entropy(learner.params)
    return row


def entropy_of(policy: Policy, params: PyTree) -> Array:
    """Estimates the entropy of a policy's architectures by 64 draws, float32[]."""
    keys = jax.random.split(jax.random.key(0), 64)

    def one(key):
        return policy.score(params, policy.sample(key, params))[1]

    return jax.vmap(one)(keys).mean()


def summarise_ranking(log: Log) -> dict[str, Any]:
    """A row of the log: the mean of what was ranked, without what failed."""
    metrics, usable = log.feedback.metrics, np.isfinite(log.feedback.fitness)
    names = [f"valid_{name}" for name in ("loss", "accuracy")]
    return {name: metrics[name][usable].mean() for name in names if usable.any()}


def write_candidates(path: Path, space: SearchSpace, log: Log) -> None:
    """Writes the architectures that were ranked, each once, the best first."""
    archs = log.proposal.arch.reshape(-1, len(space.num_choices))
    scores = log.feedback.fitness.ravel()
    losses = log.feedback.metrics["valid_loss"].ravel()
    _, first, drawn = np.unique(archs, axis=0, return_index=True, return_counts=True)
    order = np.lexsort((first, -scores[first]))
    with files.writing(path), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["architecture", "valid_accuracy", "valid_loss", "times"])
        for at, times in zip(first[order], drawn[order], strict=True):
            numbers = f"{scores[at]:.6g}", f"{losses[at]:.6g}", times
            writer.writerow([space.to_string(archs[at]), *numbers])


def draw_ranking(run: runs.Run, scores: np.ndarray) -> None:
    """Draws the accuracies of what was ranked, float32[N], and the best so far."""
    number = np.arange(len(scores)) + 1
    curves = {
        "architecture": (number, 100 * scores),
        "best so far": (number, 100 * np.maximum.accumulate(scores)),
    }
    figure = plots.plot_curves(
        {"accuracy by shared weights (%)": curves},
        xlabel="architecture",
        title="Ranking",
        smooth=False,
    )
    plots.save(figure, run.path("curves_ranking.png"))
