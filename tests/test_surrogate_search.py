"""Train, predict, verify: the experiment from one end to the other, at a tiny size."""

import importlib

import numpy as np
import pytest
from PIL import Image
from running import EXPERIMENTS, Silent, assert_refused, contents, read, run_here
from scipy import stats
from tiny_data import ACCURACY, ARCHS, save_colours, save_table

PARAMETERS = 10 + ARCHS @ np.array([1.0, 5.0, 3.0, 1.0])
TINY = "--train 12 --predict 20 --verify 3 --seeds 2 --sizes 8 --queries 20"
TINY += " --front-queries 40 --reference 40"
PARTS = {"predictions", "study", "acquisition", "front", "importance"}


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("surrogate_search")


@pytest.fixture
def run(experiment, monkeypatch, capsys):
    return run_here(experiment, monkeypatch, capsys)


@pytest.fixture(scope="module")
def done(experiment, tmp_path_factory):
    """A run on a table, what it says first and, started again, then."""
    folder = tmp_path_factory.mktemp("surrogates")
    path = save_table(folder, parameters_4ep=PARAMETERS)
    with pytest.MonkeyPatch.context() as patch:
        capture = Silent()
        run = run_here(experiment, patch, capture)
        flags = *TINY.split(), "--benchmark", path, "--workdir", folder / "run"
        return folder / "run", run(*flags), run(*flags)


def test_result_is_of_what_was_predicted_and_measured(done):
    folder, (code, *_), _ = done
    assert code == 0
    rows = read(folder, "recipe.json")["seeds"]
    worth = {tuple(arch): x for arch, x in zip(ARCHS.tolist(), ACCURACY, strict=True)}
    for row in rows:
        assert len(row["archs"]) == 12 + 3
        expected = [worth[tuple(arch)] for arch in row["archs"]]
        np.testing.assert_allclose(row["fitness"], expected, rtol=1e-6)
        np.testing.assert_allclose(row["verified_measured"], expected[12:], rtol=1e-6)
        assert row["best_fitness"] == pytest.approx(max(expected))
        assert row["best_test"] == pytest.approx(max(expected) - 1)
        assert row["verified_predicted"] == sorted(row["verified_predicted"])[::-1]
        tau = stats.kendalltau(row["judged_predicted"], row["judged_measured"])
        assert row["kendall_tau"] == pytest.approx(tau.statistic, abs=1e-5)
        assert row["cost"] == pytest.approx(2 * 15)
    result = read(folder, "result.json")
    mean = np.mean([row["kendall_tau"] for row in rows])
    assert result["kendall_tau"]["mean"] == pytest.approx(mean)
    assert result["kendall_tau"]["mean"] > 0.5
    low, high = (result["best_test_accuracy"][f"ci95_{x}"] for x in ("low", "high"))
    assert low <= result["best_test_accuracy"]["mean"] <= high


def test_study_has_all_surrogates_and_their_namesakes(done):
    study = read(done[0], "result.json")["study"]
    ours = {name.partition(",")[0] for name in study if "scikit" not in name}
    assert ours == {"ensemble", "gp", "graph_predictor", "random_forest", "svm"}
    assert {f"scikit-learn's {x}" for x in ("gp", "random_forest", "svm")} < set(study)
    for by_size in study.values():
        row = by_size["8"]
        assert -1 <= row["low"] <= row["tau"] <= row["high"] <= 1


def test_front_is_a_part_of_the_tables_hypervolume(done):
    result = read(done[0], "result.json")["hypervolume"]
    assert set(result) == {"nsga2", "sms_emoa", "random_search"}
    assert all(0 < row["median"] <= 1 + 1e-6 for row in result.values())
    assert result["nsga2"]["median"] > 0.85


def test_most_important_decision_is_the_one_with_most_weight(done):
    found = read(done[0], "result.json")["importance"]
    assert np.argmax(found["total"]) == 0
    assert np.argmax(found["main"]) == 0


def test_acquisition_is_of_all_queries(done):
    found = read(done[0], "result.json")["acquisition"]
    assert found["queries"][-1] == 20
    assert found["training_cost"] == pytest.approx(2 * 20)
    assert found["acquisition"][-1] is not None


def test_pictures_are_there(done):
    for name in PARTS:
        picture = Image.open(done[0] / f"{name}.png")
        assert len(picture.convert("L").getcolors()) > 10


def test_second_start_changes_nothing(done, run, tmp_path):
    folder, *_ = done
    before = contents(folder)
    path = str(folder.parent / "tiny.npz")
    code, out, _ = run(*TINY.split(), "--benchmark", path, "--workdir", folder)
    assert code == 0
    assert out[0] == "this run is finished; its result:"
    assert "kendall tau: " in "\n".join(out)
    assert contents(folder) == before


@pytest.mark.slow
def test_real_training_ends_with_a_tested_network(run, tmp_path):
    flags = "--evaluator population --train 10 --predict 12 --verify 2 --seeds 1"
    flags += " --batch 6 --epochs 1 --batch-size 8 --final-epochs 1 --chunk 2"
    flags += " --surrogate svm --parts front importance"
    folder = tmp_path / "run"
    given = "--dataset", save_colours(tmp_path), "--workdir", folder
    code, out, err = run(*flags.split(), *given)
    assert code == 0, err
    result = read(folder, "result.json")
    assert 0 <= result["test_accuracy"] <= 100
    assert result["hypervolume"] >= 0
    assert result["best_test_accuracy"]["mean"] == result["test_accuracy"]
    assert "test" not in result["verified"]  # but for the best nothing was tested
    assert len(read(folder, "recipe.json")["seeds"][0]["archs"]) == 12
    assert "the best, trained on all images" in "\n".join(out)
    assert (folder / "architecture.json").exists()


def test_reference_above_all_is_refused(run, done, tmp_path):
    path = str(done[0].parent / "tiny.npz")
    folder = tmp_path / "run"
    given = *TINY.split(), "--benchmark", path, "--workdir", folder
    outcome = run(*given, "--parts", "front", "--reference", 101)
    assert_refused(outcome, "--reference below the best test_acc_4ep")
    assert not folder.exists()


def test_sizes_that_the_table_has_not_are_left_out(done, run, tmp_path):
    path = str(done[0].parent / "tiny.npz")
    flags = TINY.replace("--sizes 8", "--sizes 500").split()
    given = *flags, "--benchmark", path, "--workdir", tmp_path / "run"
    code, out, _ = run(*given, "--parts", "study")
    assert code == 0
    assert out[0] == "tiny has 96 architectures: sizes are ()"


def test_seed_with_nothing_new_to_predict_is_one_line(run, tmp_path):
    flags = "--train 94 --predict 2 --verify 1 --seeds 4 --parts importance"
    given = "--benchmark", save_table(tmp_path), "--workdir", tmp_path / "run"
    assert_refused(run(*flags.split(), *given), "raise --predict, lower --train")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--train 1", "--train of 2 or more"),
        ("--verify 30", "--predict from 30"),
        ("--queries 5", "--queries of 20 or more"),
        ("--parts acquisition --queries 97", "--queries from 20 to 96"),
        ("--parts study --sizes 1", "--sizes of 2 or more"),
        ("--train 200", "--train below the 96 architectures"),
        ("--surrogate oracle", "oracle"),
        ("--signal loss_4ep", "loss_4ep"),
        ("--dataset b", "a dataset of a"),
        ("--parts front", "leave front out of --parts"),
        ("--parts front --cost latency", "--evaluator population"),
        ("--benchmark nowhere.npz", "nowhere.npz"),
    ],
)
def test_wrong_flags_are_refused(run, tmp_path, flags, says):
    path = save_table(tmp_path)
    folder = tmp_path / "run"
    given = *TINY.split(), "--benchmark", path, "--workdir", folder
    assert_refused(run(*given, "--parts", "importance", *flags.split()), says)
    assert not folder.exists()
