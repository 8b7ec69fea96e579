"""Tables: what is read back, and what is refused in one line; surrogates in rows."""

import contextlib
import itertools
import math
import pickle
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from running import assert_refused, run_here

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "benchmarks"))

import surrogates  # noqa: E402
import surrogates_scaling  # noqa: E402

from jaxnas import benchmarks  # noqa: E402
from jaxnas.base import InputError, Table  # noqa: E402

NAMES = "valid_acc", "test_acc", "cost", "parameters", "flops"
NAMES += "valid_acc_std", "test_acc_std"
NASBENCH201 = Path(__file__).parents[2] / "shared" / "data" / "nas" / "nasbench201.npz"


def make_table(**changes):
    """Two decisions of 2 and 3 choices on two datasets, complete."""
    archs = np.array([(i, j) for i in range(2) for j in range(3)], np.int32)
    column = np.linspace(10, 90, 12, dtype=np.float32).reshape(6, 2)
    columns = {"valid_acc_4ep": column, "test_acc_4ep": column[::-1]}
    table = Table("tiny", "categorical", (2, 3), ("one", "two"), archs, columns)
    return table._replace(**changes)


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def path(tmp_path):
    benchmarks.save(make_table(), tmp_path / "tiny.npz")
    return tmp_path / "tiny.npz"


def refusal(path):
    with pytest.raises(InputError) as error:
        benchmarks.load(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_table_is_read_as_it_was_written(path):
    found, expected = benchmarks.load(path), make_table()
    assert found[:4] == expected[:4]
    assert found.archs.dtype == jnp.int32
    np.testing.assert_array_equal(found.archs, expected.archs)
    assert set(found.columns) == set(expected.columns)
    for name, column in found.columns.items():
        assert column.dtype == jnp.float32
        np.testing.assert_array_equal(column, expected.columns[name])


def test_carried_table_is_read_by_its_name():
    table = benchmarks.load("digits")
    assert table.archs.shape == (1152, 6)
    assert math.prod(table.num_choices) == 1152
    assert "build_benchmark.py: 3 seeds" in table.source
    for name, budget in itertools.product(NAMES, (4, 16)):
        assert table.columns[f"{name}_{budget}ep"].shape == (1152, 1)
    column = {name: np.asarray(x[:, 0]) for name, x in table.columns.items()}
    assert column["test_acc_16ep"].max() > 98
    # Longer training is better, and costs four times as much.
    assert np.mean(column["valid_acc_16ep"] - column["valid_acc_4ep"]) > 5
    np.testing.assert_allclose(column["cost_16ep"], 4 * column["cost_4ep"], rtol=1e-5)
    ranks = scipy.stats.spearmanr(column["valid_acc_16ep"], column["test_acc_16ep"])
    assert ranks.statistic > 0.9


def test_unknown_name_says_what_there_is():
    assert "digits" in refusal("nothing_like_that")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("archs", np.zeros((6, 2), np.int32), "[0, 0] 6 times"),
        ("archs", np.full((6, 2), 2, np.int32), "[2, 2] in row 0"),
        ("archs", np.full((6, 2), -1, np.int32), "[-1, -1] in row 0"),
        ("archs", np.zeros((6, 3), np.int32), "2 decisions"),
        ("archs", np.zeros((0, 2), np.int32), "one architecture or more"),
        ("archs", np.zeros((6, 2)), "archs of integers"),
        ("num_choices", np.array([2.0, 3.0]), "num_choices of integers"),
        ("archs", np.zeros(6, np.int32), "archs[A, D]"),
        ("valid_acc_4ep", np.full((6, 2), np.nan), "12 that are not"),
        ("valid_acc_4ep", np.full((6, 2), 101.0), "0 to 100"),
        ("valid_acc_4ep", np.full((6, 2), "x"), "numbers in valid_acc_4ep"),
        ("valid_acc_4ep", np.zeros(6), "shape (6, 2)"),
        ("valid_acc", np.zeros((6, 2)), "columns like valid_acc_12ep"),
        ("cost_4ep", np.full((6, 2), -1.0), "0 seconds or more"),
    ],
)
def test_wrong_array_is_one_line(path, name, value, says):
    arrays = arrays_of(path)
    del arrays["sha256"]
    np.savez(path, **arrays | {name: value})
    assert says in refusal(path)


def test_missing_array_is_named(path):
    arrays = arrays_of(path)
    del arrays["num_choices"]
    np.savez(path, **arrays)
    assert "no num_choices" in refusal(path)


def test_table_without_columns_is_refused(path):
    arrays = {k: v for k, v in arrays_of(path).items() if not k.endswith("ep")}
    del arrays["sha256"]
    np.savez(path, **arrays)
    assert "valid_acc_12ep" in refusal(path)


def test_changed_number_is_found_by_its_checksum(path):
    arrays = arrays_of(path)
    arrays["valid_acc_4ep"][0, 0] += 1
    np.savez(path, **arrays)
    assert "SHA-256" in refusal(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_file_is_one_line(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if keep > 1 else int(keep * len(whole))])
    assert "damaged" in refusal(path)


def test_objects_are_never_unpickled(path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.savez(path, **arrays_of(path) | {"name": np.array([Trap()], object)})
    assert "plain arrays" in refusal(path)
    path.write_bytes(pickle.dumps([1, 2]))
    assert "damaged" in refusal(path)


def test_save_refuses_what_would_not_be_read(tmp_path):
    bad = make_table(archs=np.zeros((6, 2), np.int32))
    with pytest.raises(InputError, match="every architecture once"):
        benchmarks.save(bad, tmp_path / "bad.npz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot write"):
        benchmarks.save(make_table(), tmp_path / "nowhere" / "x.npz")


def test_column_names_are_quantity_and_budget():
    assert benchmarks.split_column("valid_f1_12ep") == ("valid_f1", 12)
    for wrong in ("valid_acc", "12ep", "valid_acc_0ep", "valid acc_1ep"):
        with pytest.raises(InputError):
            benchmarks.split_column(wrong)


def test_published_nasbench201_has_its_optima():
    if not NASBENCH201.exists():
        pytest.skip("there is no ../shared/data/nas/nasbench201.npz")
    table = benchmarks.load(NASBENCH201)
    assert (table.space, table.archs.shape) == ("nasbench201", (15625, 6))
    best = np.asarray(table.columns["test_acc_200ep"])
    np.testing.assert_allclose(best.max(0), [94.3733, 73.5133, 47.3111], atol=1e-4)
    np.testing.assert_array_equal(best.argmax(0), [6111, 9930, 857])


def test_operations_of_nasbench201_are_read_by_their_names(tmp_path):
    arrays = {
        "ops": np.array([[0, 1, 2, 3, 4, 0]]),
        "op_names": np.array(benchmarks.NASBENCH201[::-1]),
        "datasets": np.array(["one"]),
        "valid_acc_12ep": np.array([[50.0]]),
    }
    np.savez(tmp_path / "cells.npz", **arrays)
    found = benchmarks.load(tmp_path / "cells.npz")
    assert found.archs.tolist() == [[4, 3, 2, 1, 0, 4]]
    np.savez(tmp_path / "cells.npz", **arrays | {"op_names": np.array(["a", "b"])})
    assert "op_names" in refusal(tmp_path / "cells.npz")


def test_files_of_other_kinds_are_one_line(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("accuracies")
    for name in ("one.npy", "text.npz"):
        said = refusal(tmp_path / name)
        assert "no zip file" in said
        assert "pickle" not in said


def test_changed_bytes_are_refused_or_change_nothing(path):
    whole, expected = path.read_bytes(), benchmarks.load(path)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(InputError):  # anything else fails here
            found = benchmarks.load(path)
            np.testing.assert_array_equal(found.archs, expected.archs)


def test_operations_out_of_range_are_refused(tmp_path):
    arrays = {
        "ops": np.array([[0, 1, 2, 3, 4, -1]]),
        "op_names": np.array(benchmarks.NASBENCH201),
        "datasets": np.array(["one"]),
        "valid_acc_12ep": np.array([[50.0]]),
    }
    np.savez(tmp_path / "cells.npz", **arrays)
    assert "ops from 0 to 4" in refusal(tmp_path / "cells.npz")


def surrogates_run(monkeypatch, capsys):
    """The benchmark of surrogates at sizes that compile more than they run."""
    run = run_here(_Experiment, monkeypatch, capsys)
    sizes = "--points 12 --predicted 5 --problems 3 --timed-problems 2 --repeats 1"
    return lambda *args: run(*sizes.split(), "--side-repeats", "1", *args)


class _Experiment:
    main = staticmethod(surrogates.experiment)
    PRESETS = surrogates.PRESETS


def test_surrogates_are_timed_beside_scikit_learn(monkeypatch, capsys):
    rows = ["gp, 1 start", "random_forest"]
    sizes = ["--sizes", "8", "16", "--sklearn-points", "8", "--updates", "1"]
    run = surrogates_run(monkeypatch, capsys)
    code, out, err = run("--rows", *rows, *sizes)
    assert code == 0, err
    assert [line.split(":")[0] for line in err.splitlines()] == [
        *(row for row in rows for _ in range(2)),
        "8 points",
        "16 points",
    ]
    for row in rows:
        found = [line.split(row)[1].split() for line in out if row in line][:2]
        assert [cells[0] for cells in found] == ["1", "3"]
        for _, _, ours, theirs, ratio, *nats in found:
            expected = float(theirs) / float(ours)
            assert float(ratio) == pytest.approx(expected, rel=0.2, abs=0.1)
            assert len(nats) == 2 * (row == rows[0])
            if nats:  # as likely as there, but for its bounds
                assert float(nats[0]) == pytest.approx(float(nats[1]), abs=0.5)
    assert any("2 of 3 problems" in line for line in out)
    small, big = (line.split() for line in out if line.split()[:1] in (["8"], ["16"]))
    assert len(small) == 7  # no exponent yet
    assert len(big) == 8  # of three quantities, and nothing of scikit-learn
    assert any("up to 8 points" in line for line in out)


def test_exponents_are_those_of_the_points():
    found = [
        surrogates_scaling.Size(n, 1, n**3.0, n**2.0, n**0.5, math.nan, 1)
        for n in (10, 30, 70)
    ]
    for field, power in {"gradient": 3, "predict": 2, "memory": 0.5}.items():
        first, *others = surrogates_scaling.exponents(found, field)
        assert math.isnan(first)
        np.testing.assert_allclose(others, power)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--points", "1"], "--points of 2 or more, but got 1"),
        (["--problems", "0"], "--problems of 1 or more, but got 0"),
        (["--sizes", "1"], "--sizes of 2 or more"),
        (["--rows", "forest"], "--rows of gp, 1 start; "),
        (["--benchmark", "digits"], "expected a table of nasbench201"),
    ],
)
def test_surrogates_refuse_wrong_flags(monkeypatch, capsys, args, says):
    assert_refused(surrogates_run(monkeypatch, capsys)(*args), says)
