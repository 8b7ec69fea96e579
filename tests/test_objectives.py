"""What an architecture costs, as objectives of any evaluator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import FULL, InputError, Proposal, Table
from jaxnas.evaluators.objectives import latency, size_costs, with_objectives
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import chunked_scan, search
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.nsga2 import nsga2

SPACE, SHAPE, KEY = nasbench201(), (8, 8, 3), jax.random.key(0)
TINY = {"channels": 2, "cells": 1, "num_classes": 3}
ARCHS = np.array([[3] * 6, [1] * 6, [0, 1, 2, 3, 4, 0]], np.int32)


def table_of_all():
    """A number of each architecture, which stands for its accuracy."""
    archs = np.array(list(itertools.product(range(5), repeat=6)), np.int32)
    scores = np.arange(len(archs), dtype=np.float32)[:, None] / 200
    columns = {"valid_acc_12ep": scores, "test_acc_200ep": scores}
    return Table("all", "nasbench201", (5,) * 6, ("one",), archs, columns)


def proposal_of(archs, budget=FULL):
    ones = jnp.ones(len(archs), jnp.int32)
    return Proposal(jnp.asarray(archs), budget * ones, -ones)


def evaluate(evaluator, archs):
    run = jax.jit(evaluator.evaluate)
    return run(KEY, evaluator.data, (), proposal_of(archs))[1]


def test_objectives_are_fitness_and_costs_negated():
    plain = tabular(SPACE, table_of_all())
    evaluator = with_objectives(plain, size_costs(SPACE, SHAPE, **TINY))
    found, expected = evaluate(evaluator, ARCHS), evaluate(plain, ARCHS)
    sizes = [SPACE.sizes(arch, SHAPE, **TINY) for arch in ARCHS]
    parameters, flops = np.array(sizes, np.float32).T
    np.testing.assert_array_equal(
        found.objectives, np.stack([expected.fitness, -parameters, -flops], 1)
    )
    np.testing.assert_array_equal(found.metrics["parameters"], parameters)
    np.testing.assert_array_equal(found.metrics["flops"], flops)
    assert found.objectives.dtype == jnp.float32
    assert {*expected.metrics} < {*found.metrics}
    for name in ("fitness", "cost", "status"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_search_by_objectives_finds_small_networks():
    evaluator = tabular(SPACE, table_of_all())
    costs = size_costs(SPACE, SHAPE, **TINY)
    evaluator = with_objectives(evaluator, {"parameters": costs["parameters"]})
    (state, _), log = search(KEY, nsga2(SPACE), evaluator, 15)
    fewest = SPACE.sizes(np.zeros(6, int), SHAPE, **TINY)[0]
    assert log.feedback.metrics["parameters"].min() == fewest
    assert state.objectives[:, 1].max() == -fewest


def test_own_costs_are_named_in_their_order():
    costs = {"edges": lambda arch: (arch > 0).sum(), "first": lambda arch: arch[0]}
    evaluator = with_objectives(tabular(SPACE, table_of_all()), costs)
    found = evaluate(evaluator, ARCHS)
    np.testing.assert_array_equal(
        found.objectives[:, 1:], [[-6, -3], [-6, -1], [-4, 0]]
    )
    assert found.metrics["edges"].dtype == jnp.float32


def test_latency_is_measured_once_for_all_that_are_alike():
    built = []

    def network(arch, **size):
        built.append(tuple(np.asarray(arch).tolist()))
        return SPACE.network(arch, **size)

    counted = SPACE._replace(network=network)
    cost = latency(counted, SHAPE, repeats=3, batch_size=2, **TINY)
    alike = np.array([[0] * 6, [0, 0, 3, 0, 0, 0], [3] * 6], np.int32)
    seconds = np.asarray(jax.vmap(cost)(jnp.asarray(alike)))
    assert seconds.dtype == np.float32
    assert (seconds > 0).all()
    assert (seconds < 10).all()
    assert seconds[0] == seconds[1]
    assert len(built) == 2
    again = [cost(jnp.asarray(arch)) for arch in alike]
    np.testing.assert_array_equal(again, seconds)
    within_program = jax.jit(jax.vmap(jax.vmap(cost)))(jnp.asarray(alike)[None])
    np.testing.assert_array_equal(within_program, seconds[None])
    assert len(built) == 2


def test_latency_is_an_objective_outside_of_programs():
    cost = {"latency": latency(SPACE, SHAPE, repeats=1, **TINY)}
    evaluator = with_objectives(tabular(SPACE, table_of_all()), cost)
    strategy = nsga2(SPACE, population_size=2, batch_size=2, num_tries=1)
    strategy = strategy._replace(ask=jax.jit(strategy.ask), tell=jax.jit(strategy.tell))
    _, log = search(KEY, strategy, evaluator, 2, chunked_scan(1, compiled=False))
    assert (log.feedback.metrics["latency"] > 0).all()
    np.testing.assert_array_equal(
        log.feedback.objectives[..., 1], -log.feedback.metrics["latency"]
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="knows the sizes"):
        size_costs(categorical((2, 2)), SHAPE)
    with pytest.raises(InputError, match="height, width"):
        size_costs(SPACE, (8, 8))
    with pytest.raises(InputError, match="expected a cost"):
        with_objectives(tabular(SPACE, table_of_all()), {})
    with pytest.raises(InputError, match="expected 1 run"):
        latency(SPACE, SHAPE, repeats=0)
