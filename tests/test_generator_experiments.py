"""Searches by generators, from one end to the other at a tiny size."""

import importlib

import numpy as np
import pytest
from PIL import Image
from running import EXPERIMENTS, Silent, assert_refused, contents, read, run_here
from tiny_data import ACCURACY, ARCHS, save_colours, save_table

TINY = "--queries 15 --seeds 2 --samples 50 --pretrain 3 --examples 20"
SEARCHES = {"gan_search": "gan_search", "vae_search": "latent_search"}
OTHERS = {"bayesian_optimization", "regularized_evolution", "random_search"}


@pytest.fixture(scope="module")
def experiments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield {name: importlib.import_module(name) for name in SEARCHES}


@pytest.fixture(
    scope="module",
    params=["gan_search", pytest.param("vae_search", marks=pytest.mark.slow)],
)
def done(request, experiments, tmp_path_factory):
    """A run on a table: its name, its folder, and what it says when started again."""
    folder = tmp_path_factory.mktemp(request.param)
    given = (
        *TINY.split(),
        "--benchmark",
        save_table(folder),
        "--workdir",
        folder / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        run = run_here(experiments[request.param], patch, Silent())
        assert run(*given, "--qualities", "nasbench201")[0] == 0
    return request.param, folder / "run", (*given, "--qualities", "nasbench201")


@pytest.fixture
def run(experiments, monkeypatch, capsys):
    def start(name, *args):
        return run_here(experiments[name], monkeypatch, capsys)(*args)

    return start


def test_incumbents_are_those_of_what_was_told(done):
    name, folder, _ = done
    found = read(folder, f"valid_acc_4ep_{SEARCHES[name]}.json")
    worth = {tuple(arch): x for arch, x in zip(ARCHS.tolist(), ACCURACY, strict=True)}
    told = [worth[tuple(arch)] for arch in found["told"]["arch"]]
    np.testing.assert_allclose(found["told"]["fitness"], told, rtol=1e-6)
    best = np.maximum.accumulate(told) - 1  # as tests are
    np.testing.assert_allclose(found["every"][0], best, rtol=1e-6)
    result = read(folder, "result.json")
    rows = result["incumbent_test_accuracy"]["valid_acc_4ep"]
    assert set(rows) == {SEARCHES[name], *OTHERS}
    mean = np.mean([row[-1] for row in found["every"]])
    assert rows[SEARCHES[name]]["15"]["mean"] == pytest.approx(mean)
    seconds = result["generator_seconds"]["valid_acc_4ep"]
    assert seconds["whole"] == seconds["pretraining"] + seconds["searching"] > 0


def test_generator_is_judged(done):
    name, folder, _ = done
    result = read(folder, "result.json")
    for row in (result, result["qualities"]["nasbench201"]):
        assert row["validity"] == 1
        assert 0 < row["uniqueness"] <= 1
        assert 0 <= row["novelty"] <= 1
        assert (row["reconstruction"] is None) == (name == "gan_search")
    picture = Image.open(folder / "regret_valid_acc_4ep.png")
    assert len(picture.convert("L").getcolors()) > 10


def test_columns_of_a_table_are_refused_where_candidates_are_trained(run, tmp_path):
    flags = "--evaluator population --dataset digits --signals valid_acc_4ep"
    found = run("gan_search", *flags.split(), "--workdir", tmp_path / "run")
    assert_refused(found, "expected no --signals with --evaluator population")


def test_second_start_changes_nothing(done, run):
    name, folder, given = done
    before = contents(folder)
    code, out, _ = run(name, *given)
    assert code == 0
    assert out[0] == "this run is finished; its result:"
    assert "test accuracy by queries" in "\n".join(out)
    assert contents(folder) == before


@pytest.mark.slow
def test_candidates_are_trained_for_real(run, tmp_path):
    flags = "--evaluator population --queries 10 --batch 5 --epochs 1 --batch-size 8"
    flags += " --final-epochs 1 --chunk 2 --samples 20 --surrogate none --qualities"
    folder = tmp_path / "run"
    given = "--dataset", save_colours(tmp_path), "--workdir", folder
    code, _, err = run("gan_search", *given, *flags.split())
    assert code == 0, err
    result = read(folder, "result.json")
    assert 0 <= result["test_accuracy"] <= 100
    assert result["validity"] == 1
    assert result["qualities"] == {}
    seconds = result["generator_seconds"]["accuracy"]
    assert seconds["whole"] == seconds["pretraining"] + seconds["searching"] > 0
    assert len((folder / "candidates.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("gan_search", "--encoding tree", "choose sequence"),
        ("vae_search", "--encoding adjacency", "choose sequence"),
        ("vae_search", "--queries 4", "--queries of 10 or more"),
        ("gan_search", "--queries 2000", "--queries from 1 to"),
        ("vae_search", "--seeds 0", "--seeds of 1 or more"),
        ("gan_search", "--signals loss_4ep", "loss_4ep"),
        ("gan_search", "--dataset b", "a dataset of a"),
        ("vae_search", "--benchmark nowhere.npz", "nowhere.npz"),
        ("vae_search", "--latent 0", "--latent of 1 or more"),
    ],
)
def test_wrong_flags_are_refused(run, tmp_path, name, flags, says):
    folder = tmp_path / "run"
    given = *TINY.split(), "--benchmark", save_table(tmp_path), "--workdir", folder
    assert_refused(run(name, *given, *flags.split()), says)
    assert not folder.exists()
