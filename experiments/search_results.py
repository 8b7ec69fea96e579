"""What the search with real training leaves: its candidates and their picture."""

import csv
from pathlib import Path

import numpy as np

from jaxnas import files, plots, runs
from jaxnas.base import STATUSES, Log, SearchSpace
from jaxnas.pareto import pareto_front

FAILURES = "failures.txt"


def note_failure(path: Path, space: SearchSpace, arch: np.ndarray, why: str) -> None:
    """Adds a line to the file of candidates that could not be trained."""
    with files.writing(path), path.open("a") as file:
        file.write(f"{space.to_string(arch)}: {why}\n")


def write_candidates(path: Path, space: SearchSpace, log: Log, epochs: int) -> None:
    """Writes a row for every candidate, in the order of asking.

    Args:
      path: where they go.
      space: of the candidates.
      log: of the search.
      epochs: of a whole training.
    """
    names = [*log.feedback.metrics]
    with files.writing(path), path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "architecture", "epochs", "fitness", "status", *names])
        for step, at in zip(*np.nonzero(log.proposal.budget > 0), strict=True):
            metrics = [log.feedback.metrics[name][step, at] for name in names]
            writer.writerow(
                [
                    step,
                    space.to_string(log.proposal.arch[step, at]),
                    min(log.proposal.budget[step, at], epochs),
                    f"{log.feedback.fitness[step, at]:.6g}",
                    STATUSES[log.feedback.status[step, at]],
                    *(f"{value:.6g}" for value in metrics),
                ]
            )


def draw_search(run: runs.Run, log: Log, name: str) -> None:
    """Draws every candidate's fitness and the best so far, by its number."""
    asked = log.proposal.budget > 0
    fitness = np.where(np.isfinite(log.feedback.fitness), log.feedback.fitness, np.nan)
    fitness, number = fitness[asked], np.arange(asked.sum()) + 1
    best = np.fmax.accumulate(fitness)
    panel = {"candidate": (number, fitness), "best so far": (number, best)}
    label = f"validation {name.replace('_', ' ')}"
    figure = plots.plot_curves(
        {label: panel}, xlabel="candidate", title="Search", smooth=False
    )
    plots.save(figure, run.path("curves_searching.png"))


def draw_front(run: runs.Run, log: Log, worth: str, cost: str) -> None:
    """Draws the Pareto front of all candidates over them."""
    found = np.asarray(log.feedback.objectives)[log.proposal.budget > 0]
    found = np.unique(found[np.isfinite(found).all(1)], axis=0)
    if not len(found):
        return
    front = found[np.asarray(pareto_front(found))]
    figure = plots.plot_front(
        {"Pareto front": (-front[:, 1], front[:, 0])},
        evaluated=(-found[:, 1], found[:, 0]),
        xlabel=cost,
        ylabel=f"validation {worth.replace('_', ' ')}",
        title="Two objectives",
    )
    plots.save(figure, run.path("front.png"))
