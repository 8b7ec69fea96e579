"""The zero-cost proxies of the table, and how long they take."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import runs
from jaxnas.base import Proposal
from jaxnas.evaluators.proxies import PROXIES as SCORES
from jaxnas.evaluators.zero_cost import SIZES, zero_cost
from jaxnas.progress import Progress

PROXIES = (*SCORES, *SIZES)
BLOCK = 10  # cells that are scored by one call


def run_proxies(config: Any, problem: Any, run: runs.Run) -> dict[str, Any]:
    """Scores the cells, untrained: float[N] of each proxy, seconds of each cell."""
    evaluator = zero_cost(
        problem.space,
        problem.whole,
        problem.normalize,
        num_classes=problem.num_classes,
        proxies=config.proxies,
        fitness=config.proxies[0],
        batch_size=config.proxy_batch_size,
        channels=config.proxy_channels,
        cells=config.proxy_cells,
    )
    key, cells = jax.random.fold_in(problem.key, 10**6), problem.cells
    state = evaluator.init(key)
    evaluate = jax.jit(evaluator.evaluate)
    found: dict[str, list] = {name: [] for name in config.proxies}
    seconds = []
    run.clock("proxies")
    with Progress("proxies", len(cells)) as progress:
        for first in range(0, len(cells), BLOCK):
            begin = time.monotonic()
            block = cells[first : first + BLOCK]
            filled = jnp.asarray(np.resize(block, (BLOCK, block.shape[1])))
            budget = (jnp.arange(BLOCK) < len(block)).astype(jnp.int32)
            proposal = Proposal(filled, budget, -jnp.ones(BLOCK, jnp.int32))
            now = jax.random.fold_in(key, first)
            _, feedback = evaluate(now, evaluator.data, state, proposal)
            for name, values in found.items():
                values.append(np.asarray(feedback.metrics[name])[: len(block)])
            if not first:
                progress.compiled()
            progress.update(first + len(block))
            seconds.append((time.monotonic() - begin) / len(block))
    run.clock(None)
    return {
        "scores": {name: np.concatenate(values) for name, values in found.items()},
        "seconds_per_cell": float(np.median(seconds)),
    }
