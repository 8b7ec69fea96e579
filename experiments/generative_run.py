"""Searches by a generator, on a table or by training candidates for real."""

import time
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
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
from jax import lax

from jaxnas import cli, runs
from jaxnas.base import InputError, Log, Strategy

COLUMNS = (*SEARCH, "train_loss", "train_accuracy")


def run_method(config: Any, method: Method) -> None:
    """Runs the experiment, or goes on with it, or prints its result."""
    counts = "seeds", "pretrain", "examples", "latent", "batch"
    ranges: dict[str, tuple[float, float]] = {name: (1, inf) for name in counts}
    ranges |= {
        "samples": (2, inf),
        "queries": (max(10, config.batch), inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    is_table = config.evaluator == "table"
    config, work = (on_table if is_table else for_real)(config, method)
    cli.run_or_show(config, () if is_table else COLUMNS, work, show)


def seconds_of(config: Any, strategy: Strategy, log: Log) -> dict[str, float]:
    """What the strategy's models cost: it is told all again, and nothing is trained."""
    began = time.perf_counter()
    key = jax.random.key(config.seed)
    steps = jnp.arange(len(log.feedback.fitness))

    def tell(state, told):
        step, (proposal, feedback) = told
        key_step = jax.random.fold_in(key, step)
        return strategy.tell(key_step, step, state, proposal, feedback), None

    init = jax.jit(strategy.init).lower(key).compile()
    state = jax.eval_shape(strategy.init, key)
    told = steps, jax.tree.map(jnp.asarray, tuple(log))
    run = jax.jit(partial(lax.scan, tell)).lower(state, told).compile()
    compiled = time.perf_counter()
    state = jax.block_until_ready(init(key))
    pretrained = time.perf_counter()
    jax.block_until_ready(run(state, told))
    found = {
        "compiling": compiled - began,
        "pretraining": pretrained - compiled,
        "searching": time.perf_counter() - pretrained,
    }
    return {**found, "whole": found["pretraining"] + found["searching"]}


def for_real(config: Any, method: Method) -> tuple[Any, Work]:
    """Reads images; returns what searches by training, and trains the best."""
    if config.signals:
        raise InputError(
            "expected no --signals with --evaluator population, which goes by "
            f"--fitness, but got {' '.join(config.signals)}: leave them out"
        )
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
        spent = run.once(
            "generator_seconds", partial(seconds_of, config, strategy, log)
        )
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
            "generator_seconds": {config.fitness: spent},
            "seconds": {method.name: spent["whole"]},
            **trained,
            "qualities": qualities(config, method, run),
        }

    return config, work
