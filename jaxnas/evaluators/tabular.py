"""Looking architectures up in a table of measured ones.

An evaluation at the signal's budget is one query; one at a part of that budget counts
as that part. Nothing of the test column reaches `Feedback` but its metrics, which no
strategy is told.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import (
    ABSENT,
    OK,
    Array,
    Evaluator,
    Feedback,
    InputError,
    Proposal,
    SearchSpace,
    Table,
)
from jaxnas.benchmarks import split_column
from jaxnas.encoding import is_valid, mixed_radix

MOST_KEYS = 2**22  # architectures up to which a table is laid out in their order


class TabularData(NamedTuple):
    """A dataset's part of a table; U budgets from the smallest, A rows."""

    keys: Array  # uint32[A, W], ascending; [0, W] where a row's number is its key
    fitness: Array  # float32[A, U]
    cost: Array  # float32[A, U], seconds or epochs
    test: Array  # float32[A]
    costs: Array | None  # float32[A, M - 1], of further objectives, less is better


def tabular(
    space: SearchSpace,
    table: Table,
    dataset: str | None = None,
    *,
    signal: str = "valid_acc_12ep",
    test: str | None = None,
    minimize: bool = False,
    partial: bool = False,
    costs: Sequence[str] = (),
) -> Evaluator:
    """Makes the evaluator of a table: no state, and any number of proposals a step.

    Fitness is the signal at the largest of its budgets that the proposal's allows,
    up to the signal's own; the smallest, if it allows none. Metrics:
    `test_accuracy`, the test column as it is, and `queries`, the part of a full
    evaluation that this was. Cost is in seconds where the table has `cost` columns
    for all the budgets, else in epochs; it is that of a training from scratch.

    Args:
      space: what the architectures are of.
      table: see `jaxnas.benchmarks`.
      dataset: one of the table's; its first by default.
      signal: the column that strategies see.
      test: the column that they do not; `test_acc` at its largest budget by default.
      minimize: whether less of the signal is better, as of a loss.
      partial: whether the table may lack architectures of the space, which then get
        -inf and the status `ABSENT`.
      costs: columns, each negated, that are objectives besides the fitness; with them
        feedback has `objectives`.

    Raises:
      InputError: the table is of another space, has invalid architectures or lacks
        some; there is no such dataset or column.
    """
    _check_space(space, table)
    test = test or _largest_test(table)
    for name in (signal, test, *costs):
        _check_column(table, name)
    quantity, full = split_column(signal)
    budgets = _budgets(table, quantity, full)
    names = [f"{quantity}_{budget}ep" for budget in budgets]
    columns = {k: np.asarray(v) for k, v in table.columns.items()}
    place = _place(table, dataset)
    fitness = np.stack([columns[name][:, place] for name in names], 1)
    clocks = [columns.get(f"cost_{budget}ep") for budget in budgets]
    epochs = np.broadcast_to(np.float32(budgets), fitness.shape)
    timed = all(clock is not None for clock in clocks)
    seconds = [clock[:, place] for clock in clocks if clock is not None]
    cost = np.stack(seconds, 1) if timed else epochs
    order, keys, key_of = _order(space, table, partial)
    data = TabularData(
        keys,
        (-fitness if minimize else fitness)[order],
        cost[order],
        columns[test][order, place],
        jnp.stack([columns[c][order, place] for c in costs], 1) if costs else None,
    )

    def look_up(data: TabularData, arch: Array, budget: Array):
        row, found = _find(key_of, data.keys, arch)
        served = jnp.maximum(jnp.sum(budget >= np.array(budgets)) - 1, 0)
        part = jnp.array(budgets, jnp.float32)[served] / full
        used = found & (budget > 0)
        fitness = jnp.where(used, data.fitness[row, served], -jnp.inf)
        objectives = None
        if data.costs is not None:
            objectives = jnp.append(fitness, -data.costs[row])
        return Feedback(
            fitness=fitness,
            cost=jnp.where(used, data.cost[row, served], 0.0),
            status=jnp.where(found | (budget <= 0), OK, ABSENT),
            metrics={
                "test_accuracy": jnp.where(used, data.test[row], jnp.nan),
                "queries": jnp.where(budget > 0, part, 0.0),
            },
            objectives=objectives,
        )

    def evaluate(key: Array, data: Any, state: tuple[()], proposal: Proposal):
        del key
        answers = jax.vmap(look_up, (None, 0, 0))(data, proposal.arch, proposal.budget)
        return state, answers

    return Evaluator(data, lambda key: (), evaluate)


def _check_space(space, table):
    if space.num_choices != table.num_choices or space.name != table.space:
        raise InputError(
            f"expected a table of space {space.name} {list(space.num_choices)}, but "
            f"{table.name} is of {table.space} {list(table.num_choices)}: give the "
            "space that the table is of"
        )

    bad = np.flatnonzero(~_compute(lambda arch: is_valid(space, arch), table.archs))
    if len(bad):
        raise InputError(
            f"expected architectures of space {space.name}, but row {bad[0]} of "
            f"{table.name} is {table.archs[bad[0]].tolist()}: mend the table"
        )


def _place(table, dataset):
    if dataset is not None and dataset not in table.datasets:
        raise InputError(
            f"expected a dataset of {', '.join(table.datasets)}, but got {dataset}: "
            f"choose one that {table.name} has"
        )
    return table.datasets.index(dataset) if dataset else 0


def _check_column(table, name):
    if name not in table.columns:
        raise InputError(
            f"expected a column of {', '.join(table.columns)}, but got {name}: "
            f"choose one that {table.name} has"
        )


def _budgets(table, quantity, full):
    """The budgets of a quantity up to the signal's, ascending."""
    pairs = map(split_column, table.columns)
    return sorted(b for name, b in pairs if name == quantity and b <= full)


def _largest_test(table):
    budgets = [b for name, b in map(split_column, table.columns) if name == "test_acc"]
    if not budgets:
        raise InputError(
            f"expected a column test_acc_<budget>ep, but {table.name} has none: say "
            "which column is the test"
        )
    return f"test_acc_{max(budgets)}ep"


def _order(space, table, partial):
    """The order of the rows, their keys in it, and what gives an architecture's key.

    Isomorphic architectures share a row, unless the table has rows of both. See
    `TabularData.keys`.
    """
    size = math.prod(space.num_choices)

    def number(arch):
        return mixed_radix(arch, space.num_choices)

    numbers, keys = (
        _compute(number, table.archs),
        _compute(space.canonical, table.archs),
    )
    if len(numbers) == size <= MOST_KEYS:
        return np.argsort(numbers[:, 0]), jnp.zeros((0, 1), jnp.uint32), number
    key_of = space.canonical
    if len(np.unique(keys, axis=0)) < len(keys):
        keys, key_of = numbers, number
    if not partial:
        _expect_all(space, table, keys, key_of, size)
    order = np.lexsort(keys.T[::-1])
    return order, jnp.asarray(keys[order]), key_of


def _expect_all(space, table, keys, key_of, size, draws=4096):
    """Refuses a table that lacks some of the space, as far as that can be counted.

    Of a space too large to list, many architectures are drawn and looked for.
    """
    known = set(map(tuple, keys.tolist()))
    if size <= MOST_KEYS:
        grid = np.indices(space.num_choices, np.int32).reshape(
            len(space.num_choices), -1
        )
        some = jnp.asarray(grid.T)
        some = some[_compute(lambda arch: is_valid(space, arch), some)]
    else:
        some = jax.vmap(space.sample)(jax.random.split(jax.random.key(0), draws))
    wanted = _compute(key_of, some).tolist()
    absent = [i for i, key in enumerate(wanted) if tuple(key) not in known]
    if absent:
        raise InputError(
            f"expected a table of all of space {space.name}, but {table.name} lacks "
            f"{np.asarray(some[absent[0]]).tolist()} and others: complete it, or say "
            "partial=True (--partial)"
        )


def _compute(function, archs):
    return np.asarray(jax.jit(jax.vmap(function))(archs))


def _find(key_of, keys, arch):
    """The row of an architecture and whether there is one, by binary search."""
    key = key_of(arch)
    if not len(keys):
        return key[0].astype(jnp.int32), jnp.array(True)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) // 2
        goes_up = _less(keys[middle], key)
        return jnp.where(goes_up, middle + 1, low), jnp.where(goes_up, high, middle)

    rounds = math.ceil(math.log2(len(keys) + 1))
    ends = jnp.int32(0), jnp.int32(len(keys))
    row, _ = jax.lax.fori_loop(0, rounds, halve, ends)
    row = jnp.minimum(row, len(keys) - 1)
    return row, jnp.all(keys[row] == key)


def _less(one, other):
    """Whether a key of words comes before another."""
    first = jnp.argmax(one != other)
    return one[first] < other[first]
