"""The search with real training from one end to the other, at a tiny size."""

import csv
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxnas import cli
from jaxnas.base import FAILED, OUT_OF_MEMORY, STATUSES
from jaxnas.spaces import SPACES

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "search.py"
FILES = {"config.json", "log.csv", "run.json", "result.json", "checkpoints"}
FILES |= {"candidates.csv", "architecture.json"}
FILES |= {"curves_searching.png", "curves_retraining.png"}
TINY = "--evaluations 6 --batch 2 --epochs 1 --batch-size 8 --final-epochs 2 --chunk 2"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes of 4x4 images, each of one colour."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    x = rng.integers(0, 40, (60, 4, 4, 3))
    x[np.arange(60), :, :, labels] += 200
    path = tmp_path_factory.mktemp("images") / "colours.npz"
    np.savez(path, images=x.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENT.parent)
        yield importlib.import_module("search")


@pytest.fixture
def run(experiment, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)

    def run(*args) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(experiment.main, experiment.PRESETS, [*map(str, args)])
        return stop.value.code, *capsys.readouterr()

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def start(images: Path, workdir: Path, cache: Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, EXPERIMENT, "--dataset", images, "--workdir", workdir]
    return subprocess.Popen(
        [*command, *TINY.split()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A folder with the work folder of an uninterrupted run, and what it compiled."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(images, folder / "whole", folder / "cache")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), out
    return folder


def test_search_leaves_everything(whole):
    folder = whole / "whole"
    assert {path.name for path in folder.iterdir()} == FILES
    result = read(folder)
    assert (result["space"], result["evaluations"]) == ("chain", 6)
    rows = rows_of(folder / "candidates.csv")
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"ok"}
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert result["architecture"] == best["architecture"]
    assert result["validation_accuracy"] == pytest.approx(
        100 * float(best["accuracy"]), abs=1e-3
    )
    by_class = result["test_recall_by_class"]
    assert len(by_class) == 3
    assert np.mean(by_class) == pytest.approx(result["test_recall"])
    for name in ("curves_searching.png", "curves_retraining.png"):
        with Image.open(folder / name) as picture:
            assert len(picture.convert("L").getcolors()) > 10


@pytest.mark.slow
def test_killed_search_ends_as_the_uninterrupted_one(whole, images, tmp_path):
    killed = start(images, tmp_path / "killed", whole / "cache")
    checkpoint = tmp_path / "killed" / "checkpoints" / "searching"
    while killed.poll() is None and not any(checkpoint.glob("[0-9]*")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = start(images, tmp_path / "killed", whole / "cache")
    assert again.communicate()[1] == ""
    result, found = read(whole / "whole"), read(tmp_path / "killed")
    logs = [
        (at / "log.csv").read_text() for at in (whole / "whole", tmp_path / "killed")
    ]
    assert logs[0] == logs[1]
    same = {k for k in result if "second" not in k}
    assert {k: found[k] for k in same} == {k: result[k] for k in same}


def test_standalone_trains_each_by_itself_and_says_why_one_failed(
    run, experiment, images, tmp_path, monkeypatch
):
    class Broken:
        def __init__(self, error):
            self.error = error

        def init(self, *args, **kwargs):
            raise self.error

    errors = iter(
        [
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
            jax.errors.JaxRuntimeError("INTERNAL: cannot be compiled"),
        ]
    )
    chain = SPACES["chain"]

    def failing(shape):
        space = chain(shape, trunk=2, head=0, channels=(4,), kernels=(1,))

        def network(arch=None, **size):
            error = next(errors, None) if size else None
            return Broken(error) if error else space.network(arch, **size)

        return space._replace(network=network)

    monkeypatch.setitem(SPACES, "chain", failing)
    how = ["--evaluator", "standalone", "--strategy", "random_search"]
    folder = tmp_path / "run"
    args = ["--dataset", images, "--workdir", folder, *TINY.split(), *how]
    code, out, err = run(*args)
    assert (code, err) == (0, ""), out
    rows = rows_of(folder / "candidates.csv")
    said = [row["status"] for row in rows]
    assert said == [STATUSES[OUT_OF_MEMORY], STATUSES[FAILED], *["ok"] * 4]
    assert [row["fitness"] for row in rows[:2]] == ["-inf", "-inf"]
    assert read(folder)["failed"] == 2
    lines = (folder / "failures.txt").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(rows[0]["architecture"])
    assert lines[0].endswith("RESOURCE_EXHAUSTED: out of memory")
    assert run(*args)[0] == 0  # a finished run says its result


def make_folder(path: Path, sides=(4, 4), classes=("cat", "dog")) -> Path:
    """A folder with an image of each size for each class."""
    for name in classes:
        (path / name).mkdir(parents=True)
        for i, side in enumerate(sides):
            pixels = np.full((side, side, 3), 9 * i, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def make_bad_images(what: str, path: Path) -> Path:
    if what == "mixed sizes":
        return make_folder(path, sides=(4, 4, 5))
    if what == "one class":
        return make_folder(path, classes=("cat",))
    if what == "unreadable":
        (make_folder(path) / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
        return path
    given = path.with_suffix(".npz")
    labels = np.arange(8) % 3 - 1  # from -1
    np.savez(given, images=np.zeros((8, 4, 4, 3), np.uint8), labels=labels)
    return given


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("mixed sizes", "give an image size"),
        ("one class", "two classes or more"),
        ("unreadable", "0.png"),
        ("labels", "-1"),
    ],
)
def test_images_that_nobody_can_learn_from_are_one_line(run, tmp_path, what, says):
    given = make_bad_images(what, tmp_path / "images")
    folder = tmp_path / "run"
    code, _, err = run("--dataset", given, "--workdir", folder, *TINY.split())
    assert code == 2
    assert err.count("\n") == 1
    assert says in err
    assert not folder.exists()


@pytest.mark.slow
def test_where_all_diverge_what_was_tried_is_kept(run, images, tmp_path):
    folder = tmp_path / "run"
    wild = *TINY.split(), "--learning-rate", 1e30
    for _ in range(2):  # a second start ends as the first
        code, _, err = run("--dataset", images, "--workdir", folder, *wild)
        assert code == 2, err
        assert err.count("\n") == 1
        assert "candidates.csv" in err
        assert len(rows_of(folder / "candidates.csv")) == 6


@pytest.mark.slow
def test_two_objectives_leave_a_front(run, images, tmp_path):
    folder = tmp_path / "run"
    given = *TINY.split(), "--dataset", images, "--workdir", folder
    assert run(*given, "--strategy", "nsga2")[0] == 0
    rows = rows_of(folder / "candidates.csv")
    assert all(float(row["parameters"]) > 0 for row in rows)
    picture = Image.open(folder / "front.png")
    assert len(picture.convert("L").getcolors()) > 10


def test_halving_goes_on_with_what_it_promotes(experiment):
    config = experiment.Config(
        strategy="successive_halving", evaluations=4, batch=2, epochs=9
    )
    space = SPACES["chain"]((4, 4, 3), trunk=2, head=0)
    plan = importlib.import_module("search_plan").plan
    make = experiment.STRATEGIES["successive_halving"]
    strategy = make(space, budgets=(1, 3, 9), population_size=4, batch_size=2)
    steps, slots = plan(config, strategy)
    # A bracket: four for one epoch, one of them to three and to nine: 4 + 2 + 6 epochs
    # in four steps; four evaluations are 36.
    assert (steps, slots) == (12, 4)
    alone = dataclasses.replace(config, evaluator="standalone")
    # Who starts afresh takes 4 + 3 + 9.
    assert plan(alone, strategy)[0] == 10


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--evaluations 0", "--evaluations of 1 or more"),
        ("--batch 65 --evaluations 64", "--batch up to the 64 evaluations"),
        ("--batch-size 1000", "--batch-size from 1 to"),
        ("--strategy magic", "strategy"),
        ("--strategy nsga2 --cost latency", "--evaluator standalone"),
        ("--dataset /nowhere/at_all", "/nowhere/at_all"),
        ("--learning-rate inf", "--learning-rate"),
        ("--space nasbench101", "nasbench101 has no supernet"),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(
    run, images, tmp_path, flags, says
):
    folder = tmp_path / "run"
    given = "--dataset", images, "--workdir", folder, "--batch-size", 8
    code, _, err = run(*given, *flags.split())
    assert code == 2
    assert err.count("\n") == 1
    assert says in err
    assert not folder.exists()
