"""A search step of each method and hypergradient, beside first-order DARTS."""

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxnas.base import Array, Evaluator, Strategy
from jaxnas.evaluators.halves import ARCHITECTURE, WEIGHTS
from jaxnas.evaluators.hypergradients import HYPERGRADIENTS, first_order, unrolled
from jaxnas.evaluators.one_shot import one_shot
from jaxnas.evaluators.supernet import supernet
from jaxnas.spaces.darts import darts
from jaxnas.strategies import STRATEGIES, SUPERNETS
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd

REFERENCE = "darts, first_order"
KS = (1, 2, 4, 8)


def rows() -> dict[str, tuple[str, str | None]]:
    """The strategy and the hypergradient of each row; None: `one_shot`."""
    found: dict[str, tuple[str, str | None]] = {
        f"darts, {name}": ("differentiable", name) for name in HYPERGRADIENTS
    }
    for name in ("snas", "drnas", "pc_darts", "gdas"):
        found[f"{name}, first_order"] = name, "first_order"
    return found | {"single path, weights alone": ("random_search", None)}


class Step:
    """A compiled step of a search."""

    def __init__(self, strategy: Strategy, evaluator: Evaluator):
        """Initialises and compiles; `seconds` says how long the latter took."""
        self.key = jax.random.key(0)
        self.compiled, self.state, self.seconds = compile_step(strategy, evaluator)
        self.data = evaluator.data
        self.memory = memory_of(self.compiled)

    def step(self, number: int) -> None:
        """One step, until the device has finished it."""
        key = jax.random.fold_in(self.key, number)  # another architecture
        run = self.compiled(key, self.state, self.data)
        self.state, fitness = jax.block_until_ready(run)
        assert np.isfinite(fitness).all()


def make_row(config: Any, half: Batch, kind: str) -> Step:
    """The step of a row."""
    name, hypergradient = rows()[kind]
    space = darts()
    how = SUPERNETS.get(name, {} if hypergradient else {"single_path": True})
    size = {"channels": config.channels, "cells": config.method_cells}
    network, strategy = space.network(**size, **how), STRATEGIES[name](space)
    if hypergradient:
        evaluator = make_supernet(config, network, half, hypergradient)
        return Step(strategy, evaluator)
    evaluator = one_shot(
        network,
        space.num_choices,
        classification(),
        (half, half),
        (lambda _, images: to_float(images), to_float),
        tx=optax.chain(optax.clip_by_global_norm(5.0), sgd(0.025, 0.9, 3e-4)),
        batch_size=config.batch_size,
    )
    return Step(strategy, evaluator)


def to_float(images: Array) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return images / 127.5 - 1


def make_supernet(
    config: Any, network: Any, half: Batch, hypergradient: str | Callable
) -> Evaluator:
    """The evaluator of a network on random images."""
    return supernet(
        network,
        classification(),
        (half, half),
        lambda _, images: to_float(images),
        hypergradient=hypergradient,
        batch_size=config.batch_size,
    )


def compile_step(strategy: Strategy, evaluator: Evaluator) -> tuple[Any, Any, float]:
    """The compiled step, the first state, and seconds of tracing and compiling."""
    key = jax.random.key(0)
    state = strategy.init(key), evaluator.init(key)
    jax.block_until_ready(state)

    def step(key, state, data):
        strategy_state, evaluator_state = state
        proposal = strategy.ask(key, jnp.int32(0), strategy_state)
        evaluator_state, feedback = evaluator.evaluate(
            key, data, evaluator_state, proposal
        )
        told = strategy.tell(key, jnp.int32(0), strategy_state, proposal, feedback)
        return (told, evaluator_state), feedback.fitness

    began = time.perf_counter()
    run = jax.jit(step, donate_argnums=1).lower(key, state, evaluator.data).compile()
    return run, state, time.perf_counter() - began


def memory_of(program: Any) -> float:
    """MB that a program's arguments, results and temporaries take."""
    found = program.memory_analysis()
    used = found.temp_size_in_bytes + found.argument_size_in_bytes
    return (used + found.output_size_in_bytes - found.alias_size_in_bytes) / 1e6


def measure(config: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compiles every row, then times their steps by turns."""
    half = Batch(images, labels)
    steps = {}
    for kind in rows():
        steps[kind] = make_row(config, half, kind)
        print(f"{kind}: compiled in {steps[kind].seconds:.0f} s", file=sys.stderr)
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(2 + config.repeats):
        for kind, step in steps.items():
            began = time.perf_counter()
            step.step(number)
            if number > 1:  # the first ones allocate
                times[kind].append(time.perf_counter() - began)
    medians = {kind: median(x) for kind, x in times.items()}
    first = steps[REFERENCE]
    return {
        kind: {
            "seconds": medians[kind],
            "ratio": medians[kind] / medians[REFERENCE],
            "memory_mb": step.memory,
            "memory_ratio": step.memory / first.memory,
            "compile_seconds": step.seconds,
        }
        for kind, step in steps.items()
    }


def measure_unrolled(
    config: Any, images: np.ndarray, labels: np.ndarray
) -> dict[str, dict[int, float]]:
    """MB of the step of `unrolled`, and of plain reverse mode, by the number of steps.

    Of plain reverse mode with remat, where the backward pass computes each virtual step
    anew, and without.
    """
    space, half = darts(), Batch(images, labels)
    network = space.network(channels=config.channels, cells=config.method_cells)
    ways = {
        "unrolled": unrolled,
        "reverse mode, remat": partial(reverse_mode, remat=True),
        "reverse mode": partial(reverse_mode, remat=False),
    }
    found: dict[str, dict[int, float]] = {way: {} for way in ways}
    strategy = STRATEGIES["differentiable"](space)
    for way, function in ways.items():
        for k in KS:
            hypergradient = partial(function, num_steps=k)
            evaluator = make_supernet(config, network, half, hypergradient)
            found[way][k] = memory_of(compile_step(strategy, evaluator)[0])
            print(f"{way}, K = {k}: {found[way][k]:.0f} MB", file=sys.stderr)
    return found


def reverse_mode(loss_fn, tx, clip, state, weights, draw, *, num_steps, remat):
    """What `unrolled` computes, by differentiating the loop of virtual steps."""
    state, metrics, _, _ = first_order(loss_fn, tx, clip, state, weights, draw)
    batches = [draw(WEIGHTS, 1 + i) for i in range(num_steps)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)

    def outer(weights):
        def step(carry, batch):
            params, opt_state, stats = carry
            by_params = jax.grad(loss_fn, has_aux=True)
            grads, (stats, _) = by_params(params, weights, batch, stats)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, stats), None

        start = state.params, state.opt_state, state.batch_stats
        one = jax.checkpoint(step) if remat else step
        (params, _, stats), _ = lax.scan(one, start, stacked)
        loss, (_, valid) = loss_fn(params, weights, draw(ARCHITECTURE, 0), stats)
        return loss, valid

    grad, valid = jax.grad(outer, has_aux=True)(weights)
    return state, metrics, valid, grad
