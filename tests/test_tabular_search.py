"""The comparison on tables from one end to the other, at a tiny size."""

import csv
import functools
import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnas import benchmarks, cli
from jaxnas.base import ABSENT, FULL, OK, Feedback, Log, Proposal, Table
from jaxnas.evaluators.tabular import tabular
from jaxnas.incumbents import accuracy_at, bootstrap, cut, final_accuracy, follow
from jaxnas.search import incumbent, search
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.nasbench201 import nasbench201
from jaxnas.strategies import (
    NEED_GENERATOR,
    NEED_GRADIENT,
    NEED_OBJECTIVES,
    NEED_SURROGATE,
    STRATEGIES,
)

ROOT = Path(__file__).parents[1]
NASBENCH201 = ROOT.parent / "shared" / "data" / "nas" / "nasbench201.npz"
FILES = {"config.json", "log.csv", "run.json"}
FILES |= {"result.json", "results.csv", "regret.png"}
NUM_CHOICES = 3, 4, 2
QUERIES, SEEDS = 12, 3


def make_table(budgets=(4, 16), timed=False) -> Table:
    """24 architectures on two datasets, at some budgets."""
    rng = np.random.default_rng(0)
    archs = np.stack(np.meshgrid(*map(np.arange, NUM_CHOICES), indexing="ij"), -1)
    archs = archs.reshape(-1, 3)
    names = [f"valid_acc_{b}ep" for b in budgets] + [f"test_acc_{max(budgets)}ep"]
    names += [f"loss_{max(budgets)}ep"]
    columns = {name: rng.uniform(10, 90, (len(archs), 2)) for name in names}
    if timed:
        columns |= {f"cost_{b}ep": b * np.full((len(archs), 2), 2.0) for b in budgets}
    return Table("tiny", "categorical", NUM_CHOICES, ("a", "b"), archs, columns)


@pytest.fixture(scope="module")
def table_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "tiny.npz"
    benchmarks.save(make_table(), path)
    return path


@pytest.fixture(scope="module")
def experiment():
    """The experiment as a module."""
    folder = str(ROOT / "experiments")
    sys.path.insert(0, folder)
    yield importlib.import_module("tabular_search")
    sys.path.remove(folder)


@pytest.fixture
def run(experiment, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)

    def run(*args) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(experiment.main, experiment.PRESETS, [*map(str, args)])
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err

    return run


@pytest.fixture
def flags(table_path, tmp_path) -> list:
    flags = ["--benchmark", table_path, "--workdir", tmp_path / "run"]
    return [*flags, "--queries", QUERIES, "--seeds", SEEDS]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


TWO = ["--strategies", "random_search", "local_search"]


# A run


def test_run_leaves_everything_in_its_folder(run, flags, tmp_path):
    code, out, err = run(*flags, *TWO)
    assert (code, err) == (0, "")
    folder = tmp_path / "run"
    parts = {f"part_{name}.npz" for name in TWO[1:]}
    assert {path.name for path in folder.iterdir()} == {*FILES, *parts}
    with Image.open(folder / "regret.png") as image:
        assert min(image.size) > 600
        assert len(image.convert("L").getcolors()) > 50
    rows = rows_of(folder)
    assert list(rows[0]) == [
        *("strategy", "seed", "query", "cost", "fitness", "incumbent_test_accuracy")
    ]
    assert len(rows) == 2 * SEEDS * QUERIES
    for i, row in enumerate(rows[: SEEDS * QUERIES]):
        assert row["strategy"] == "random_search"
        seed, query = divmod(i, QUERIES)
        assert (int(row["seed"]), int(row["query"])) == (seed, query + 1)
        assert float(row["cost"]) == 16 * (query + 1)
    result = read(folder)
    assert set(result["strategies"]) == set(TWO[1:])
    for summary in result["strategies"].values():
        assert set(summary) == {
            *("mean", "std", "ci95_low", "ci95_high", "queries_per_second"),
            *("absent", "seconds_compiling"),
        }
        assert summary["ci95_low"] <= summary["mean"] <= summary["ci95_high"]
        assert summary["queries_per_second"] > 0
    assert result["signal"] == "valid_acc_16ep"
    assert (result["dataset"], result["queries"], result["seeds"]) == ("a", 12, 3)
    assert any("random_search  compiling" in line for line in out)

    again = run(*flags, *TWO)
    assert (again[0], again[2]) == (0, "")
    told, *shown = again[1]
    assert told == "this run is finished; its result:"
    assert out[-len(shown) :] == shown


def test_results_are_those_of_the_searches(run, flags, tmp_path):
    name = "random_search"
    assert run(*flags, "--strategies", name, "--dataset", "b", "--seed", 5)[0] == 0
    table = benchmarks.load(flags[1])
    space = categorical(NUM_CHOICES)
    evaluator = tabular(space, table, "b", signal="valid_acc_16ep")
    key = jax.random.key(5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(SEEDS))
    _, log = search(keys, STRATEGIES[name](space), evaluator, QUERIES)
    answers = np.asarray(jax.vmap(incumbent, 1)(log))
    number = np.ravel_multi_index(answers.T, NUM_CHOICES)
    finals = np.asarray(table.columns["test_acc_16ep"])[number, 1]
    rows = rows_of(tmp_path / "run")
    fitness = [float(row["fitness"]) for row in rows]
    np.testing.assert_allclose(fitness, log.feedback.fitness[:, :, 0].T.ravel())
    last = [float(row["incumbent_test_accuracy"]) for row in rows[QUERIES - 1 :: 12]]
    np.testing.assert_allclose(last, finals, rtol=1e-6)
    summary = read(tmp_path / "run")["strategies"][name]
    assert summary["mean"] == pytest.approx(finals.mean())
    assert summary["std"] == pytest.approx(finals.std(ddof=1))


def test_every_strategy_is_run_by_default(experiment, flags):
    config = cli.parse(experiment.PRESETS, [*map(str, flags), "--queries", "100"])
    _, problem = experiment.build(config)
    apart = {*NEED_GRADIENT, *NEED_GENERATOR, *NEED_OBJECTIVES, *NEED_SURROGATE, "enas"}
    assert set(problem.strategies) == set(STRATEGIES) - apart
    assert problem.left_out == []


@pytest.mark.slow
def test_strategies_with_a_surrogate_are_run_where_one_is_named(run, flags, tmp_path):
    name = "bayesian_optimization"
    given = *flags, "--queries", 20, "--seeds", 2, "--surrogate", "gp"
    code, *_ = run(*given, "--strategies", name, "--workdir", tmp_path / "run")
    assert code == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["strategies"]
    assert set(found) == {name}
    assert 0 < found[name]["mean"] <= 90


def test_strategy_that_ends_before_the_queries_do_is_not_waited_for(
    run, experiment, flags, monkeypatch, tmp_path
):
    monkeypatch.setattr(experiment, "VERIFIED", 4)
    known = experiment.make

    def shorter(name, space, config, budgets, whole):
        return known(name, space, config, budgets, whole - 3)

    monkeypatch.setattr(experiment, "make", shorter)
    given = *flags, "--queries", 20, "--seeds", 2, "--surrogate", "svm"
    folder = tmp_path / "run"
    code, out, _ = run(*given, "--strategies", "predictor_search", "--workdir", folder)
    assert code == 0
    assert "is at its end, after 17 queries" in "\n".join(out)


def test_killed_run_goes_on_with_the_next_strategy(
    run, experiment, flags, tmp_path, monkeypatch
):
    whole = tmp_path / "whole"
    assert run(*flags, *TWO, "--workdir", whole)[0] == 0
    original, ran = experiment.run_strategy, []

    def killed(name, *args):
        if name == "local_search":
            raise KeyboardInterrupt
        return original(name, *args)

    def recorded(name, *args):
        ran.append(name)
        return original(name, *args)

    monkeypatch.setattr(experiment, "run_strategy", killed)
    assert run(*flags, *TWO)[0] == 130
    monkeypatch.setattr(experiment, "run_strategy", recorded)
    assert run(*flags, *TWO)[0] == 0
    assert ran == ["local_search"]
    for name in ("results.csv", "regret.png"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_parts_of_a_budget_are_parts_of_a_query(run, flags, tmp_path):
    assert run(*flags, "--strategies", "hyperband")[0] == 0
    rows = [row for row in rows_of(tmp_path / "run") if row["seed"] == "0"]
    query = np.array([float(row["query"]) for row in rows])
    cost = np.array([float(row["cost"]) for row in rows])
    parts = np.diff(query, prepend=0)
    assert set(parts) == {0.25, 1.0}
    np.testing.assert_allclose(cost, 16 * query)
    assert QUERIES - 1 < query[-1] <= QUERIES


def test_time_cuts_where_the_cost_passes_it(run, flags, tmp_path):
    path = tmp_path / "timed.npz"
    benchmarks.save(make_table(timed=True), path)
    args = ["--benchmark", path, "--seconds", 100, "--strategies", "random_search"]
    code, out, _ = run(*flags, *args)
    assert code == 0
    cost = [float(row["cost"]) for row in rows_of(tmp_path / "run")]
    assert cost == SEEDS * [32.0, 64.0, 96.0]
    assert read(tmp_path / "run")["seconds"] == 100
    assert not any("epochs" in line for line in out)


def test_time_is_epochs_without_a_clock_and_says_so(run, flags, tmp_path):
    args = ["--seconds", 50, "--strategies", "random_search"]
    code, out, _ = run(*flags, *args)
    assert code == 0
    assert any("epochs" in line for line in out)
    cost = [float(row["cost"]) for row in rows_of(tmp_path / "run")]
    assert cost == SEEDS * [16.0, 32.0, 48.0]
    assert read(tmp_path / "run")["epochs"] == 50


def test_halving_is_left_out_where_there_is_one_budget(experiment, flags, tmp_path):
    path = tmp_path / "one.npz"
    benchmarks.save(make_table(budgets=(16,)), path)
    args = [*map(str, flags), "--queries", "100", "--benchmark", str(path)]
    _, problem = experiment.build(cli.parse(experiment.PRESETS, args))
    assert problem.left_out == ["hyperband", "successive_halving"]
    assert not {"hyperband", "successive_halving"} & set(problem.strategies)


def test_absent_architectures_are_counted(run, flags, tmp_path):
    table, path = make_table(), tmp_path / "partial.npz"
    keep = slice(None, None, 2)
    columns = {name: column[keep] for name, column in table.columns.items()}
    benchmarks.save(table._replace(archs=table.archs[keep], columns=columns), path)
    args = [*flags, "--benchmark", path, "--strategies", "random_search"]
    assert_refused(run(*args), "lacks")
    assert run(*args, "--partial")[0] == 0
    rows = rows_of(tmp_path / "run")
    failed = [row for row in rows if row["fitness"] == "-inf"]
    absent = read(tmp_path / "run")["strategies"]["random_search"]["absent"]
    assert 0 < absent == len(failed) < SEEDS * QUERIES
    assert len(rows) == SEEDS * QUERIES


def test_published_numbers_stand_beside_ours_as_another_setting(
    run, flags, tmp_path, monkeypatch
):
    if not NASBENCH201.is_file():
        pytest.skip("there is no ../shared/data/nas/nasbench201.npz")
    monkeypatch.setenv("COLUMNS", "120")
    args = [*flags, "--benchmark", NASBENCH201, "--strategies", "random_search"]
    code, out, err = run(*args)
    assert (code, err) == (0, "")
    text = " ".join(out)
    assert "93.70 ± 0.36" in text
    assert "another setting" in text
    assert read(tmp_path / "run")["signal"] == "valid_acc_12ep"
    code, out, _ = run(*args, "--dataset", "cifar100", "--overwrite")
    assert code == 0
    assert "93.70" not in " ".join(out)


# Tuning


def test_tuning_is_a_search_for_each_size(experiment, table_path, monkeypatch, capsys):
    tune_strategy = importlib.import_module("tune_strategy")
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(tune_strategy, "DEFAULT", (3, 2))
    args = ["--benchmark", str(table_path), "--tune-on", "a", "--test-on", "b"]
    args += ["--signal", "valid_acc_16ep", "--population-sizes", "2", "3"]
    args += ["--tournament-sizes", "2", "--queries", "6", "--seeds", "2"]
    with pytest.raises(SystemExit) as stop:
        cli.main(tune_strategy.main, tune_strategy.PRESETS, args)
    assert stop.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table, space = benchmarks.load(table_path), categorical(NUM_CHOICES)
    evaluator = tabular(space, table, "a", signal="valid_acc_16ep")
    key, _ = jax.random.split(jax.random.key(0))
    for size in (2, 3):
        strategy = STRATEGIES["regularized_evolution"](
            space, population_size=size, tournament_size=2
        )
        _, log = search(jax.random.split(key, 2), strategy, evaluator, 6)
        expected = log.feedback.fitness.max((0, 2)).mean()
        assert f"{size} {expected:.3f}" in lines


# Bad input


def assert_refused(outcome: tuple[int, list[str], str], *says: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in says:
        assert part in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--benchmark missing", ["missing", "no such file"]),
        ("--dataset mnist", ["dataset of a, b", "got mnist"]),
        ("--signal f1_16ep", ["valid_acc_16ep", "got f1_16ep"]),
        ("--signal x", ["valid_acc_4ep", "got x"]),
        ("--strategies random_search magic", ["random_search", "got magic"]),
        ("--strategies predictor_search", ["--surrogate for predictor_search", "gp"]),
        ("--strategies differentiable", ["got differentiable"]),
        ("--signal loss_16ep --strategies hyperband", ["two budgets", "has 1"]),
        ("--queries 0", ["--queries of 1 or more", "got 0"]),
        ("--seconds 0", ["--seconds of 1 or more", "got 0"]),
        ("--seconds nan", ["--seconds of 1 or more", "got nan"]),
        ("--seeds 0", ["--seeds of 1 or more", "got 0"]),
        ("--seed -1", ["--seed from 0 to 4294967295", "got -1"]),
        ("--population-size 0", ["--population-size of 1", "got 0"]),
        ("--strategies regularized_evolution", ["--queries of 100", "got 12"]),
        ("--seeds many", ["--seeds", "'many'"]),
        ("--signals x", ["--signals", "--signal"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, flags, args, says):
    assert_refused(run(*flags, *args.split()), *says)
    assert not flags[3].exists()


def test_smaller_population_is_accepted(experiment, flags):
    args = [*flags, "--strategies", "regularized_evolution", "--population-size", 12]
    config = cli.parse(experiment.PRESETS, [*map(str, args)])
    _, problem = experiment.build(config)
    state = problem.strategies["regularized_evolution"].init(jax.random.key(0))
    assert state.arch.shape == (12, 3)


def test_damaged_part_is_one_line(run, flags, tmp_path):
    assert run(*flags, *TWO)[0] == 0
    folder = tmp_path / "run"
    (folder / "result.json").unlink()
    (folder / "part_random_search.npz").write_bytes(b"PK\3\4")
    assert_refused(run(*flags, *TWO), "part_random_search.npz is damaged", "delete it")


# What is found by when


def random_log(seed: int, steps=20, seeds=3, batch=2) -> Log:
    """A log with padding, failures and two budgets."""
    rng = np.random.default_rng(seed)
    shape = steps, seeds, batch
    budget = rng.choice([0, 4, 16], shape, p=[0.2, 0.5, 0.3]).astype(np.int32)
    failed = rng.random(shape) < 0.2
    worth = rng.integers(0, 9, shape).astype(np.float32)  # with equals
    arch = rng.integers(0, 9, (*shape, 3)).astype(np.int32)
    feedback = Feedback(
        np.where(failed | (budget == 0), -np.inf, worth).astype(np.float32),
        budget.astype(np.float32),
        np.where(failed, ABSENT, OK),
        {
            "test_accuracy": (arch @ np.array([81, 9, 1])).astype(np.float32),
            "queries": np.where(failed, 0, budget / 16).astype(np.float32),
        },
    )
    return Log(Proposal(arch, budget, -np.ones_like(budget)), feedback)


@pytest.mark.parametrize("seed", range(5))
def test_incumbent_at_every_evaluation_is_that_of_the_log_so_far(seed):
    log = random_log(seed)
    curves = follow(log)
    for s in range(3):
        alone = jax.tree.map(lambda x: x[:, s].reshape(40, 1, *x.shape[3:]), log)  # noqa: B023
        for end in (1, 2, 7, 20, 40):
            part = jax.tree.map(lambda x: x[:end], alone)  # noqa: B023
            fitness = part.feedback.fitness
            if np.isneginf(fitness).all():
                assert np.isnan(curves.test[s, end - 1])
                continue
            arch = incumbent(jax.tree.map(jnp.asarray, part))
            assert curves.test[s, end - 1] == arch @ np.array([81, 9, 1])


def test_queries_are_those_of_the_evaluator_and_padding_is_none():
    log = random_log(0)
    curves = follow(log)
    budget = np.moveaxis(log.proposal.budget, 1, 0).reshape(3, 40)
    failed = np.moveaxis(log.feedback.status, 1, 0).reshape(3, 40) == ABSENT
    queries = np.moveaxis(log.feedback.metrics["queries"], 1, 0).reshape(3, 40)
    parts = np.where(budget == 0, 0, queries)
    np.testing.assert_allclose(curves.query, np.cumsum(parts, 1))
    np.testing.assert_array_equal(curves.absent, failed & (budget > 0))


def test_cut_leaves_what_is_within():
    curves = follow(random_log(1))
    kept = cut(curves, curves.query, 5)
    inside = curves.query <= 5
    length = kept.query.shape[1]
    assert length == inside.sum(1).max()
    np.testing.assert_array_equal(kept.asked, (curves.asked & inside)[:, :length])
    last = [np.flatnonzero(row)[-1] for row in kept.asked]
    np.testing.assert_array_equal(final_accuracy(kept), curves.test[[0, 1, 2], last])


def test_accuracy_at_is_of_the_last_evaluation_that_ended():
    curves = follow(random_log(2))._replace(
        query=np.array([[0.5, 1.0, 2.0]]), test=np.array([[10.0, 20.0, 30.0]])
    )
    found = accuracy_at(curves, curves.query, [0.25, 0.5, 1.5, 2.0, 9.0])
    np.testing.assert_array_equal(found, [[np.nan, 10.0, 20.0, 30.0, 30.0]])


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert bootstrap([1.0]) == (1.0, 1.0)


# Random search has a closed form


@functools.cache
def expected_random(queries: int) -> float:
    """Mean test accuracy of the best of so many draws with replacement."""
    table = benchmarks.load(NASBENCH201)
    signal = np.asarray(table.columns["valid_acc_12ep"])[:, 0]
    test = np.asarray(table.columns["test_acc_200ep"])[:, 0].astype(float)
    _, group = np.unique(signal, return_inverse=True)
    share = np.bincount(group) / len(signal)
    below = np.concatenate([[0], np.cumsum(share)])
    chance = np.diff(below**queries)  # that the maximum is this value
    means = np.bincount(group, test) / np.bincount(group)  # any of equals comes first
    return float(chance @ means)


def test_random_search_agrees_with_the_order_statistics_of_the_table():
    if not NASBENCH201.is_file():
        pytest.skip("there is no ../shared/data/nas/nasbench201.npz")
    space = nasbench201()
    evaluator = tabular(space, benchmarks.load(NASBENCH201), "cifar10")
    strategy = STRATEGIES["random_search"](space)
    keys = jax.random.split(jax.random.key(0), 2000)
    _, log = jax.jit(lambda keys: search(keys, strategy, evaluator, 150))(keys)
    curves = follow(log)
    for queries in (1, 10, 50, 150):
        found = accuracy_at(curves, curves.query, [queries])[:, 0]
        error = found.std(ddof=1) / np.sqrt(len(found))
        assert found.mean() == pytest.approx(expected_random(queries), abs=4 * error)
    assert log.proposal.budget.max() == FULL


def test_policy_of_reinforce_is_a_flag(run, flags, tmp_path):
    found = []
    for policy in ("independent", "lstm"):
        folder = tmp_path / policy
        how = ["--strategies", "reinforce", "--policy", policy, "--workdir", folder]
        assert run(*flags, *how)[0] == 0
        found.append([row["fitness"] for row in rows_of(folder)])
    assert found[0] != found[1]


def test_result_names_the_table_and_the_version(run, flags, tmp_path):
    run(*flags, "--strategies", "random_search")
    result, table = read(tmp_path / "run"), benchmarks.load(flags[1])
    assert result["sha256"] == benchmarks.digest(benchmarks.arrays_of(table))
    assert result["jaxnas"] == importlib.metadata.version("jaxnas")
