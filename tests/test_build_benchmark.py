"""The experiment that makes a table: for real at a tiny size, and with no training."""

import csv
import importlib
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxnas import benchmarks, cli
from jaxnas.base import OK, Evaluator, Feedback, Table
from jaxnas.spaces import space_of

ROOT = Path(__file__).parents[1]
FILES = {"config.json", "log.csv", "run.json", "result.json", "table.png"}
SIZES = "--architectures 10 --seeds 3 --budgets 2 8 --part 4"
MADE_UP = SIZES.split()
MODULES = "build_benchmark", "benchmark_table"


@pytest.fixture(scope="module")
def modules():
    """The experiment, and what makes its table."""
    folder = str(ROOT / "experiments")
    sys.path.insert(0, folder)
    yield [importlib.import_module(name) for name in MODULES]
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def experiment(modules):
    return modules[0]


@pytest.fixture(scope="module")
def making(modules):
    return modules[1]


@pytest.fixture
def run(experiment, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)

    def run(*args) -> tuple[int, str, str]:
        flags = ["--preset", "whole", *map(str, args)]
        with pytest.raises(SystemExit) as stop:
            cli.main(experiment.main, experiment.PRESETS, flags)
        return stop.value.code, *capsys.readouterr()

    return run


def made_up(config, key, slots) -> Evaluator:
    """What a training reaches follows from the architecture, the budget and the key."""

    def evaluate(key, data, state, proposal):
        noise = jax.vmap(jax.random.fold_in, (None, 0))(key, proposal.slot)
        noise = jax.vmap(jax.random.uniform)(noise)
        accuracy = (proposal.arch.mean(1) + proposal.budget / 8 + noise) / 10
        metrics = {"accuracy": accuracy, "test_accuracy": accuracy / 2}
        status = jnp.full(slots, OK, jnp.int32)
        return state, Feedback(accuracy, accuracy, status, metrics)

    return Evaluator((), lambda key: (), evaluate)


@pytest.fixture
def fake(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "make_evaluator", made_up)


def rows_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k != "phase"} for row in rows]


def accuracies(table) -> dict[str, np.ndarray]:
    """The columns that do not depend on the clock."""
    columns = table.columns.items()
    return {name: np.asarray(x) for name, x in columns if "cost" not in name}


@pytest.mark.slow
def test_trains_for_real_and_writes_a_table_that_is_read_back(run, making, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "mine.npz"
    flags = "--architectures", 2, "--seeds", 2, "--budgets", 1, 3, "--part", 2
    code, _, err = run(*flags, "--workdir", folder, "--output", output)
    assert (code, err) == (0, "")
    assert {path.name for path in folder.iterdir() if path.is_file()} == FILES
    table = benchmarks.load(output)
    assert table.name == "digits"
    assert table.num_choices == space_of(table).num_choices == making.NUM_CHOICES
    quantities = "valid_acc valid_acc_std test_acc test_acc_std cost parameters flops"
    names = itertools.product(quantities.split(), (1, 3))
    assert {f"{name}_{budget}ep" for name, budget in names} == set(table.columns)
    # Means over two seeds of fractions of the 288 validation and 355 test images.
    for name, images in (("valid_acc", 288), ("test_acc", 355)):
        right = np.asarray(table.columns[f"{name}_3ep"]) / 100 * images * 2
        np.testing.assert_allclose(right, right.round(), atol=1e-2)
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert len({row["valid_acc_3ep"] for row in rows}) > 1
    result = json.loads((folder / "result.json").read_text())
    assert result["architectures"] == result["different_networks"] == 2
    with Image.open(folder / "table.png") as picture:
        assert len(picture.convert("L").getcolors()) > 10


def test_space_is_of_a_thousand_different_networks(experiment, making):
    archs = experiment.architectures(experiment.Config())
    assert archs.shape == (np.prod(making.NUM_CHOICES), len(making.SLOTS))
    assert len(np.unique(archs, axis=0)) == len(archs)
    keys = jax.vmap(making.SPACE.canonical)(making.chain_of(archs))
    assert len(np.unique(keys, axis=0)) >= 1000


def test_chain_has_the_layers_that_are_chosen(making):
    (chain,) = making.chain_of(np.array([[2, 3, 0, 1, 1, 0]]))
    text = "conv3x3-16 max_pool identity relu conv3x3-4 identity /"
    assert making.SPACE.to_string(chain) == text


def test_sizes_are_those_of_the_network(making):
    archs = np.array([[2, 3, 0, 1, 1, 0], [0, 0, 3, 2, 2, 1]])
    sizes = making.sizes_of(archs)
    for chain, count in zip(making.chain_of(archs), sizes.parameters, strict=True):
        network = making.SPACE.network(chain)
        images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.usefixtures("fake")
def test_table_holds_means_and_deviations_over_the_seeds(run, making, tmp_path):
    assert run(*MADE_UP, "--workdir", tmp_path)[0] == 0
    table = benchmarks.load(tmp_path / "digits.npz")
    sizes = making.sizes_of(np.asarray(table.archs))
    order = np.argsort(sizes.flops, kind="stable")
    for name in ("valid_acc_2ep", "test_acc_8ep"):
        rows = np.reshape([row[name] for row in rows_of(tmp_path)], (10, 3))
        found = np.asarray(table.columns[name])[order, 0]
        np.testing.assert_allclose(found, rows.mean(1), rtol=1e-5)
        std = np.asarray(table.columns[name.replace("acc", "acc_std")])[order, 0]
        np.testing.assert_allclose(std, rows.std(1, ddof=1), rtol=1e-3)
    np.testing.assert_array_equal(table.columns["flops_2ep"][:, 0], sizes.flops)
    costs = [np.asarray(table.columns[f"cost_{b}ep"]) for b in (2, 8)]
    np.testing.assert_allclose(costs[0] * 4, costs[1], rtol=1e-5)
    assert (costs[0] > 0).all()


@pytest.mark.usefixtures("fake")
def test_what_is_trained_follows_the_architecture(run, making, tmp_path):
    assert run(*MADE_UP, "--workdir", tmp_path)[0] == 0
    table = benchmarks.load(tmp_path / "digits.npz")
    chains = making.chain_of(np.asarray(table.archs))
    expected = 10 * (chains.mean(1) + np.array([2, 8])[:, None] / 8)
    for budget, least in zip((2, 8), expected, strict=True):
        noise = np.asarray(table.columns[f"valid_acc_{budget}ep"])[:, 0] - least
        assert ((noise > 0) & (noise < 10)).all()
        assert noise.std() > 0


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("parts", [1, 2])
def test_killed_run_ends_with_the_table_of_one_that_was_not(
    run, experiment, monkeypatch, tmp_path, parts
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*MADE_UP, "--workdir", whole)[0] == 0
    left = itertools.count()

    def interrupted(*args):
        if next(left) > parts:  # once to compile
            raise KeyboardInterrupt
        return proposed(*args)

    proposed = experiment.proposed
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "proposed", interrupted)
        code, _, err = run(*MADE_UP, "--workdir", killed)
    assert code == 130
    assert "the same command goes on" in err
    assert len(rows_of(killed)) == 12 * parts
    with (killed / "log.csv").open("a") as log:  # a part of which not all is there
        log.write(f"training,{12 * parts + 1},1,1,1,1,1,1\ntraining,99")
    assert run(*MADE_UP, "--workdir", killed)[0] == 0
    found, expected = (benchmarks.load(x / "digits.npz") for x in (killed, whole))
    for name, column in accuracies(expected).items():
        np.testing.assert_array_equal(accuracies(found)[name], column, name)


@pytest.mark.usefixtures("fake")
def test_finished_run_writes_its_table_elsewhere_untrained(run, experiment, tmp_path):
    assert run(*MADE_UP, "--workdir", tmp_path / "run")[0] == 0
    rows = rows_of(tmp_path / "run")
    again = tmp_path / "again.npz"
    code, out, _ = run(*MADE_UP, "--workdir", tmp_path / "run", "--output", again)
    assert code == 0
    assert "done before" in out
    assert rows_of(tmp_path / "run") == rows
    expected = benchmarks.load(tmp_path / "run" / "digits.npz")
    for name, column in benchmarks.load(again).columns.items():
        np.testing.assert_array_equal(column, expected.columns[name])


@pytest.mark.usefixtures("fake")
def test_against_counts_in_spreads_of_the_seeds(run, tmp_path):
    assert run(*MADE_UP, "--workdir", tmp_path / "run")[0] == 0
    path = tmp_path / "run" / "digits.npz"
    table = benchmarks.load(path)
    std = np.asarray(table.columns["valid_acc_std_8ep"])
    spread = np.sqrt(np.mean(std**2))
    moved = np.zeros_like(std)
    moved[3], moved[7] = 5 * spread, -8 * spread
    column = jnp.asarray(table.columns["valid_acc_8ep"] + moved)
    other = table._replace(
        archs=table.archs[::-1],
        columns={
            name: x[::-1]
            for name, x in (table.columns | {"valid_acc_8ep": column}).items()
        },
    )
    benchmarks.save(other, tmp_path / "other.npz")
    flags = *MADE_UP, "--workdir", tmp_path / "run", "--against"
    code, out, _ = run(*flags, tmp_path / "other.npz")
    assert code == 0
    assert "valid_acc_8ep: 1.300 on average, 8.000 at most" in out
    assert out.count("NOT within") == 1
    code, out, _ = run(*flags, path)
    assert out.count(": 0.000 on average, 0.000 at most") == 4
    assert "NOT" not in out


@pytest.mark.usefixtures("fake")
def test_diverged_network_has_no_accuracy(run, experiment, monkeypatch, tmp_path):
    def diverging(*args):
        evaluator = made_up(*args)

        def evaluate(key, data, state, proposal):
            state, feedback = evaluator.evaluate(key, data, state, proposal)
            metrics = {k: v * jnp.nan for k, v in feedback.metrics.items()}
            return state, feedback._replace(metrics=metrics)

        return evaluator._replace(evaluate=evaluate)

    monkeypatch.setattr(experiment, "make_evaluator", diverging)
    assert run(*MADE_UP, "--workdir", tmp_path)[0] == 0
    table = benchmarks.load(tmp_path / "digits.npz")
    np.testing.assert_array_equal(table.columns["valid_acc_8ep"], 0)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--budgets 4 2", "--budgets"),
        ("--budgets 0 2", "--budgets"),
        ("--seeds 1", "--seeds"),
        ("--architectures 2000", "--architectures"),
        ("--batch-size 1155", "--batch-size from 1 to 1154"),
        ("--output table.csv", "table.csv"),
        ("--output nowhere/table.npz", "nowhere"),
        ("--against nothing.npz", "nothing.npz"),
        ("--preset paper", "--preset"),
    ],
)
def test_wrong_flag_is_one_line(run, tmp_path, flags, says):
    code, _, err = run(*flags.split(), "--workdir", tmp_path / "run")
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_against_refuses_a_table_of_something_else(run, making, tmp_path):
    archs = np.array([[0] * len(making.SLOTS)])
    columns = {"valid_acc_8ep": np.ones((1, 1))}
    table = Table("tiny", "categorical", making.NUM_CHOICES, ("a",), archs, columns)
    benchmarks.save(table, tmp_path / "tiny.npz")
    flags = "--against", tmp_path / "tiny.npz", "--workdir", tmp_path / "run"
    code, _, err = run(*flags)
    assert code == 2
    assert "tiny lacks valid_acc_4ep" in err
    assert not (tmp_path / "run").exists()
