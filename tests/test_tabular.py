"""The tabular evaluator: what is looked up, what is refused, what is not seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import ABSENT, FULL, OK, InputError, Proposal, Table
from jaxnas.evaluators.tabular import tabular
from jaxnas.search import search
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies.random_search import random_search
from jaxnas.strategies.regularized_evolution import regularized_evolution

NUM_CHOICES = (2, 3)
ARCHS = np.array([(i, j) for i in range(2) for j in range(3)], np.int32)
KEY = jax.random.key(0)


def make_table(order=slice(None), archs=ARCHS, **columns):
    """Each number says its row, its dataset and its column."""
    rows = 10 * np.arange(len(archs), dtype=np.float32)[:, None]
    rows = rows + np.array([[0, 5]], np.float32)
    found = {"valid_acc_2ep": rows + 1, "valid_acc_8ep": rows + 2, **columns}
    found.setdefault("test_acc_4ep", rows + 3)
    found.setdefault("test_acc_8ep", rows + 4)
    found = {name: column[order] for name, column in found.items()}
    sets = ("one", "two")
    return Table("tiny", "categorical", NUM_CHOICES, sets, archs[order], found)


def look_up(evaluator, archs, budgets):
    archs = jnp.asarray(archs, jnp.int32)
    proposal = Proposal(archs, jnp.asarray(budgets, jnp.int32), -jnp.ones(len(archs)))
    state, feedback = jax.jit(evaluator.evaluate)(KEY, evaluator.data, (), proposal)
    assert state == ()
    return feedback


@pytest.mark.parametrize(
    "order", [slice(None), slice(None, None, -1), [3, 0, 5, 1, 4, 2]]
)
@pytest.mark.parametrize("dataset", [None, "one", "two"])
def test_fitness_is_that_of_the_row(order, dataset):
    table, place = make_table(order), 5 * (dataset == "two")
    evaluator = tabular(
        categorical(NUM_CHOICES), table, dataset, signal="valid_acc_8ep"
    )
    found = look_up(evaluator, ARCHS, [FULL] * 6)
    np.testing.assert_array_equal(found.fitness, 10 * np.arange(6) + 2 + place)
    test = found.metrics["test_accuracy"]
    np.testing.assert_array_equal(test, 10 * np.arange(6) + 4 + place)
    assert (np.asarray(found.status) == OK).all()


def test_budget_chooses_the_largest_that_it_allows():
    evaluator = tabular(categorical(NUM_CHOICES), make_table(), signal="valid_acc_8ep")
    found = look_up(evaluator, ARCHS[[1] * 6], [1, 2, 7, 8, 9, FULL])
    np.testing.assert_array_equal(found.fitness, [11, 11, 11, 12, 12, 12])
    np.testing.assert_array_equal(found.cost, [2, 2, 2, 8, 8, 8])
    queries = found.metrics["queries"]
    np.testing.assert_array_equal(queries, [0.25, 0.25, 0.25, 1, 1, 1])


def test_signal_of_a_small_budget_has_no_larger_one():
    evaluator = tabular(categorical(NUM_CHOICES), make_table(), signal="valid_acc_2ep")
    found = look_up(evaluator, ARCHS[:1], [FULL])
    assert (found.fitness, found.cost, found.metrics["queries"]) == (1, 2, 1)


def test_padding_is_neither_query_nor_failure():
    evaluator = tabular(categorical(NUM_CHOICES), make_table(), signal="valid_acc_8ep")
    found = look_up(evaluator, ARCHS[:1], [0])
    assert (found.fitness, found.cost, found.status) == (-np.inf, 0, OK)
    assert found.metrics["queries"] == 0


def test_cost_is_in_seconds_where_the_table_has_them():
    seconds = np.arange(12, dtype=np.float32).reshape(6, 2)
    table = make_table(cost_2ep=seconds, cost_8ep=10 * seconds)
    evaluator = tabular(categorical(NUM_CHOICES), table, "two", signal="valid_acc_8ep")
    found = look_up(evaluator, ARCHS[[2, 2]], [2, 8])
    np.testing.assert_array_equal(found.cost, [5, 50])


def test_less_of_a_loss_is_better():
    table = make_table(valid_loss_8ep=np.arange(12.0).reshape(6, 2))
    how = {"signal": "valid_loss_8ep", "minimize": True, "test": "test_acc_4ep"}
    found = look_up(tabular(categorical(NUM_CHOICES), table, **how), ARCHS[1:2], [8])
    assert (found.fitness, found.metrics["test_accuracy"]) == (-2, 13)


def test_absent_architecture_fails_and_is_marked():
    partial = make_table([4, 0, 3])
    space = categorical(NUM_CHOICES)
    with pytest.raises(InputError, match="lacks"):
        tabular(space, partial, signal="valid_acc_8ep")
    evaluator = tabular(space, partial, signal="valid_acc_8ep", partial=True)
    found = look_up(evaluator, ARCHS, [FULL] * 6)
    there = np.array([True, False, False, True, True, False])
    np.testing.assert_array_equal(found.status, np.where(there, OK, ABSENT))
    expected = np.where(there, 10 * np.arange(6) + 2, -np.inf)
    np.testing.assert_array_equal(found.fitness, expected)


def test_keys_of_several_words_are_found():
    num_choices = (2**11, 2**11, 2**11)
    space = categorical(num_choices)
    archs = np.unique(
        np.random.default_rng(0).integers(0, num_choices, (500, 3)), axis=0
    )
    archs = np.concatenate(
        [archs, archs + np.array([[0, 0, 1]])]
    )  # equal first words too
    archs = np.unique(archs % num_choices, axis=0).astype(np.int32)
    shuffled = archs[np.random.default_rng(1).permutation(len(archs))]
    column = np.arange(len(archs), dtype=np.float32)[:, None] % 100
    table = Table(
        "large",
        "categorical",
        num_choices,
        ("one",),
        shuffled,
        {"valid_acc_1ep": column, "test_acc_1ep": column},
    )
    evaluator = tabular(space, table, signal="valid_acc_1ep", partial=True)
    assert evaluator.data.keys.shape[1] > 1
    found = look_up(evaluator, shuffled, [1] * len(archs))
    np.testing.assert_array_equal(found.fitness, column[:, 0])
    others = (shuffled + np.array([[0, 0, 5]])) % num_choices
    known = {tuple(arch) for arch in shuffled.tolist()}
    absent = [tuple(arch) not in known for arch in others.tolist()]
    found = look_up(evaluator, others, [1] * len(archs))
    np.testing.assert_array_equal(found.status == ABSENT, absent)


@pytest.mark.parametrize(
    ("change", "how", "says"),
    [
        ({}, {"signal": "valid_acc_4ep"}, "column of valid_acc_2ep"),
        ({}, {"signal": "nonsense"}, "column of valid_acc_2ep"),
        ({}, {"signal": "valid_acc_8ep", "dataset": "three"}, "dataset of one, two"),
        ({"space": "darts"}, {"signal": "valid_acc_8ep"}, "table of space categorical"),
        ({"num_choices": (2, 4)}, {"signal": "valid_acc_8ep"}, "[2, 3]"),
    ],
)
def test_wrong_table_or_name_is_one_line(change, how, says):
    with pytest.raises(InputError) as error:
        tabular(categorical(NUM_CHOICES), make_table()._replace(**change), **how)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_invalid_architectures_of_a_space_are_refused():
    space = categorical(NUM_CHOICES)
    space = space._replace(discretize=lambda weights: jnp.zeros(2, jnp.int32))
    with pytest.raises(InputError, match=r"row 1 of tiny is \[0, 1\]"):
        tabular(space, make_table(), signal="valid_acc_8ep")


def test_isomorphic_rows_of_their_own_are_told_apart():
    archs = jnp.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])  # both are nothing
    column = np.array([[1.0], [2.0]])
    table = Table(
        "two",
        "nasbench201",
        (5,) * 6,
        ("one",),
        archs,
        {"valid_acc_12ep": column, "test_acc_12ep": column},
    )
    with pytest.raises(InputError, match="lacks"):
        tabular(nasbench201(), table)
    evaluator = tabular(nasbench201(), table, partial=True)
    others = jnp.concatenate([archs, archs[:1].at[0, 5].set(3)])
    found = look_up(evaluator, others, [FULL] * 3)
    np.testing.assert_array_equal(found.fitness, [1, 2, -np.inf])


def test_one_row_that_is_missing_is_found():
    archs = np.array([(i, j) for i in range(50) for j in range(60)], np.int32)
    column = np.ones((len(archs), 1), np.float32)
    columns = {"valid_acc_1ep": column[:-1], "test_acc_1ep": column[:-1]}
    table = Table("most", "categorical", (50, 60), ("one",), archs[:-1], columns)
    with pytest.raises(InputError, match=r"lacks \[49, 59\]"):
        tabular(categorical((50, 60)), table, signal="valid_acc_1ep")


@pytest.mark.parametrize("make", [random_search, regularized_evolution])
def test_what_is_tested_moves_no_strategy(make):
    space = categorical(NUM_CHOICES)
    logs = []
    for test in ("test_acc_4ep", "test_acc_8ep"):
        table = make_table()
        table.columns[test] = np.full((6, 2), 50.0 + len(logs))
        evaluator = tabular(space, table, signal="valid_acc_8ep", test=test)
        strategy = make(space)
        logs.append(search(KEY, strategy, evaluator, 150)[1])
    (seen, first), (again, second) = [
        ((log.proposal, log.feedback.fitness), log.feedback.metrics["test_accuracy"])
        for log in logs
    ]
    jax.tree.map(np.testing.assert_array_equal, seen, again)
    assert not np.array_equal(first, second)


def test_random_search_is_what_order_statistics_say():
    space, seeds, steps = categorical(NUM_CHOICES), 2000, 4
    evaluator = tabular(space, make_table(), signal="valid_acc_8ep")
    keys = jax.random.split(KEY, seeds)
    _, log = search(keys, random_search(space), evaluator, steps)
    best = np.asarray(log.feedback.fitness[..., 0]).max(0)
    values = 10 * np.arange(6) + 2
    probability = (np.arange(1, 7) ** steps - np.arange(6) ** steps) / 6**steps
    mean = (values * probability).sum()
    deviation = np.sqrt((np.square(values - mean) * probability).sum() / seeds)
    assert abs(best.mean() - mean) < 4 * deviation
