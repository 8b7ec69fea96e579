"""Searches by a generator, on a table or by training candidates for real."""

from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from candidates import (
    SEARCH,
    check_training,
    load_images,
    make_evaluator,
    make_space,
    search_candidates,
    train_best,
)
from generative_parts import Method, Work, in_steps, judge, known_to, qualities
from generative_results import show
from generative_table import on_table

from jaxnas import cli, runs

COLUMNS = (*SEARCH, "train_loss", "train_accuracy")


def run_method(config: Any, method: Method) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    counts = "seeds", "samples", "pretrain", "examples", "latent", "batch"
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in counts}
    ranges |= {"queries": (max(10, config.batch), inf), "seed": (0, 2**32 - 1)}
    cli.check_ranges(config, ranges)
    is_table = config.evaluator == "table"
    config, work = (on_table if is_table else for_real)(config, method)
    cli.run_or_show(config, () if is_table else COLUMNS, work, show)


def for_real(config: Any, method: Method) -> tuple[Any, Work]:
    """Reads images; returns what searches by training, and trains the best."""
    config, dataset = load_images(config)
    check_training(config, dataset)
    space, size = make_space(config, dataset)
    made = method.generator(space)
    config = replace(config, qualities=known_to(method, config.qualities))
    strategy = method.strategy(space, made, in_steps(config))
    evaluator = make_evaluator(config, dataset, space, size)

    def work(run: runs.Run) -> dict[str, Any]:
        queries = in_steps(config)
        given = space, strategy, evaluator, queries // config.batch, config.fitness
        state, arch, log = search_candidates(config, run, *given)
        asked = log.proposal.arch.reshape(queries, -1)
        own = partial(judge, config, space, made, state.model.generator, asked)
        trained = train_best(config, dataset, run, space, arch, size)
        best = {"mean": trained["test_accuracy"]}
        return {
            "dataset": dataset.name,
            "space": space.name,
            "queries": queries,
            "method": method.name,
            "architecture": space.to_string(arch),
            **run.once("generator", own),
            "incumbent_test_accuracy": {
                config.fitness: {method.name: {str(queries): best}}
            },
            **trained,
            "qualities": qualities(config, method, run),
        }

    return config, work
