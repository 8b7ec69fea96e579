"""The zero-cost proxies of the table, and how long they take."""

import itertools
import time
from typing import Any

import jax
import numpy as np
from cell_table import in_blocks
from retraining import prepare

from jaxnas import runs
from jaxnas.evaluators.proxies import PROXIES as SCORES
from jaxnas.evaluators.zero_cost import SIZES, zero_cost
from jaxnas.progress import Progress
from jaxnas.tasks import Batch

PROXIES = (*SCORES, *SIZES)
BLOCK = 10  # cells that are scored by one call


def run_proxies(config: Any, problem: Any, run: runs.Run) -> dict[str, Any]:
    """Scores the cells, untrained: float[N] of each proxy, seconds of each cell."""
    dataset, cells = problem.whole, problem.scored
    evaluator = zero_cost(
        problem.cells.space,
        Batch(dataset.train_images, dataset.train_labels),
        prepare(dataset)[1],
        num_classes=len(dataset.class_names),
        proxies=config.proxies,
        fitness=config.proxies[0],
        batch_size=config.proxy_batch_size,
        channels=config.proxy_channels,
        cells=config.proxy_cells,
    )
    key = jax.random.fold_in(problem.key, 10**6)
    state = evaluator.init(key)
    evaluate = jax.jit(evaluator.evaluate)
    found: dict[str, list] = {name: [] for name in config.proxies}
    seconds: list[float] = []
    numbers = itertools.count(0, BLOCK)

    def ask(proposal):
        of_block = jax.random.fold_in(key, next(numbers))
        return evaluate(of_block, evaluator.data, state, proposal)[1]

    run.clock("proxies")
    with Progress("proxies", len(cells)) as progress:
        began, done = time.monotonic(), 0
        for feedback in in_blocks(ask, cells, BLOCK):
            for name, values in found.items():
                values.append(feedback.metrics[name])
            first, done = not done, done + len(feedback.fitness)
            if first:  # its time says nothing of the others'
                progress.compiled()
            else:
                progress.update(done)
            now = time.monotonic()
            seconds.append((now - began) / len(feedback.fitness))
            began = now
    run.clock(None)
    return {
        "scores": {name: np.concatenate(values) for name, values in found.items()},
        "seconds_per_cell": float(np.median(seconds)),
    }
