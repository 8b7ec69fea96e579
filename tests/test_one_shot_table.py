"""One-shot methods and proxies on a table of NAS-Bench-201's cells, at a tiny size."""

import dataclasses
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import (
    EXPERIMENTS,
    assert_refused,
    finish,
    read,
    run_here,
    shared_folder,
    start,
)
from scipy import stats

from jaxnas import benchmarks, cli
from jaxnas.base import Evaluator, Feedback, InputError, Table
from jaxnas.search import search
from jaxnas.spaces.nasbench201 import NUM_CHOICES, nasbench201
from jaxnas.strategies.differentiable import differentiable
from jaxnas.strategies.early_stopping import early_stopping

ARCHS = np.array(list(itertools.product(range(5), repeat=6)), np.int32)
SKIPS = (ARCHS == 1).sum(1)
ACCURACY = 90 - 5.0 * SKIPS + 1e-4 * np.arange(len(ARCHS))
SIZES = "--image-size 8 --channels 4 --cells 1 --steps 4 --batch-size 8 --seeds 1"
TINY = f"{SIZES} --chunk 2 --dataset digits"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return shared_folder(tmp_path_factory, "one_shot_table")


@pytest.fixture(scope="module")
def table(shared):
    return write(shared / "cells.npz", ARCHS)


def write(path, archs, dataset="cifar10"):
    column = ACCURACY[: len(archs), None]
    given = "cells", "nasbench201", NUM_CHOICES, (dataset,), archs
    if not path.exists():
        benchmarks.save(Table(*given, {"test_acc_200ep": column}), path)
    return path


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


@pytest.fixture(scope="module")
def found(shared, table, tmp_path_factory):
    """A run at a tiny size."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = f"{TINY} --methods random_sharing --proxies parameters"
    flags += " --architectures 12 --samples 3 --score-batches 1 --proxy-batch-size 6"
    flags += " --calibration-batches 1 --proxy-channels 4 --proxy-cells 1"
    given = "one_shot_table.py", shared, folder, "--benchmark", str(table)
    return folder, finish(start(*given, *flags.split()))


def test_table_looks_up_what_methods_find(found):
    folder, (code, out, err) = found
    assert code == 0, err
    result = read(folder, "result.json")
    assert set(result["methods"]) == {"random_sharing"}
    for row in result["methods"].values():
        (accuracy,) = row["accuracies"]
        skips = row["cells"][0].count("skip_connect")
        assert row["skips"] == skips
        assert accuracy == pytest.approx(90 - 5 * skips, abs=1.6)
        assert row["low"] <= row["tau"] <= row["high"]
    assert "4 channels, 1 cells a stage, 8x8 pixels" in " ".join(out.split())
    assert (folder / "scores.png").stat().st_size > 10_000


def test_proxies_are_correlated_with_the_table(found):
    folder, *_ = found
    scores = read(folder, "proxies.json")["scores"]
    drawn = np.random.default_rng(0).permutation(len(ARCHS))[:12]
    expected = stats.kendalltau(scores["parameters"], ACCURACY[drawn]).statistic
    row = read(folder, "result.json")["proxies"]["parameters"]
    assert row["tau"] == pytest.approx(expected)


def test_correlation_is_the_mean_over_seeds(load):
    correlate = load("rank_correlation").correlate
    worth = np.arange(30.0)
    noisy = worth + np.random.default_rng(0).normal(0, 9, 30)
    found = correlate(np.stack([worth, noisy]), worth)
    tau = stats.kendalltau(noisy, worth).statistic
    assert found.tau == pytest.approx((1 + tau) / 2)
    assert found.rho == pytest.approx((1 + stats.spearmanr(noisy, worth)[0]) / 2)
    assert found.low < found.tau < found.high <= 1


def test_correlation_of_what_ranks_nothing_is_none(load):
    correlate = load("rank_correlation").correlate
    worth = np.arange(5.0)
    for scores in (np.full(5, 0.1), np.full(5, -np.inf), np.full(5, np.nan)):
        assert correlate(scores, worth)[:] == (0, 0, 0, 0)


def test_failed_scores_rank_last(load):
    correlate = load("rank_correlation").correlate
    scores = np.array([-np.inf, 1.0, 2.0, 3.0])
    assert correlate(scores, np.arange(4.0)).tau == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--channels 6", "--channels that 4 divides"),
        ("--seeds 3 --together 2", "--together to divide"),
        ("--column valid_acc_12ep", "valid_acc_12ep"),
        ("--steps 0", "--steps of 1 or more"),
        ("--architectures 2", "--architectures from 3"),
        ("--methods nas", "nas"),
        ("--dataset auto", "--dataset by its name"),
        ("--image-size 0", "image size"),
    ],
)
def test_wrong_flags_are_refused(load, monkeypatch, table, tmp_path, flags, says):
    experiment = load("one_shot_table")
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)
    given = f"--benchmark {table} --workdir {tmp_path / 'run'} {TINY} {flags}"
    with pytest.raises(InputError, match=says):
        experiment.main(cli.parse(experiment.PRESETS, given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_other_tables_are_refused(load, shared, tmp_path, dataset):
    part = write(shared / f"{dataset}.npz", ARCHS[:100], dataset)
    experiment = load("one_shot_table")
    given = f"--benchmark {part} --workdir {tmp_path / 'run'}"
    with pytest.raises(InputError, match="all 15625 cells"):
        experiment.main(cli.parse(experiment.PRESETS, given.split()))


@pytest.mark.slow
def test_collapse_is_watched_and_guarded(shared, table, tmp_path):
    flags = f"{TINY} --curvature-every 1 --window 1 --threshold 1 --max-skips 0"
    given = "darts_collapse.py", shared, tmp_path / "run", "--benchmark", str(table)
    code, _, err = finish(start(*given, *flags.split()))
    assert code == 0, err
    guards = read(tmp_path / "run", "result.json")["guards"]
    for rows in guards.values():
        (row,) = rows
        assert row["accuracy"] == pytest.approx(90 - 5 * row["skips"], abs=1.6)
    assert guards["max_skips"][0]["skips"] == 0
    assert (tmp_path / "run" / "collapse.png").stat().st_size > 10_000


def test_collapse_refuses_what_cannot_work(load, monkeypatch, capsys, tmp_path, table):
    run = run_here(load("darts_collapse"), monkeypatch, capsys)
    given = *TINY.split(), "--workdir", tmp_path / "run"
    assert_refused(run("--benchmark", tmp_path / "no.npz", *given), "no.npz")
    few = run("--benchmark", table, *given, "--curvature-every", 1, "--window", 3)
    assert_refused(few, "6 measurements", "got 4")


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_guard_that_sees_the_log_stops_where_the_search_does(load, factor):
    """And answers with the step whose architecture that one answers with."""
    experiment = load("darts_collapse")
    config = dataclasses.replace(experiment.PRESETS["quick"], window=2, threshold=0.75)
    curvatures = jnp.array([1.0, np.nan, 1, 1, np.nan, factor, factor, factor, 9, 9])

    def evaluate(key, data, state, proposal):
        measured = {"valid_curvature": curvatures[state][None]}
        ones, grad = jnp.ones(1), -proposal.arch
        return state + 1, Feedback(ones, ones, jnp.zeros(1, int), measured, grad=grad)

    space = nasbench201()
    evaluator = Evaluator((), lambda key: jnp.int32(0), evaluate)
    plain = differentiable(space, learning_rate=0.1)
    guarded = early_stopping(plain, window=2, threshold=0.75)
    key, num_steps = jax.random.key(0), len(curvatures)
    _, log = search(key, plain, evaluator, num_steps)
    (state, _), _ = search(key, guarded, evaluator, num_steps)
    step = experiment.stop(config, log)
    assert bool(state.stopped)
    np.testing.assert_allclose(
        log.proposal.arch[step, 0], jax.nn.softmax(state.inner.logits), rtol=1e-6
    )
    assert step == {1.0: 5, 2.0: 0}[factor]
