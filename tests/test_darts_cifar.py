"""The experiment from one end to the other, on digits and at a tiny size."""

import csv
import dataclasses
import fcntl
import importlib
import json
import math
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import running
from PIL import Image
from running import EXPERIMENTS, assert_refused, contents, finish, read
from trees import assert_trees_equal

from jaxnas import data
from jaxnas.base import OK, Evaluator, Feedback
from jaxnas.checkpoint import Checkpoints
from jaxnas.spaces.darts import darts
from jaxnas.spaces.genotype import DARTS_V2, OPS
from jaxnas.tasks import Batch, classification
from jaxnas.training import init_state

SIZES = "--search-cells 1 --search-channels 2 --search-batch-size 4 --search-steps 8"
SIZES += " --cells 1 --channels 2 --batch-size 4 --steps 7 --chunk 2"
TINY = ["--dataset", "digits", *SIZES.split()]
EDGE = "('max_pool_3x3', 0), ('skip_connect', 1)"
CELLS = [f"{cell}=[{', '.join([EDGE] * 4)}]" for cell in ("normal", "reduce")]
CONCATS = ["normal_concat=range(2, 6)", "reduce_concat=range(2, 6)"]
SIMPLE = f"Genotype({', '.join([*CELLS, *CONCATS])})"  # quick to compile
NUMBERS = {"test_accuracy", "test_precision", "test_recall", "test_f1", "parameters"}
BY_CLASS = {f"test_{name}_by_class" for name in ("precision", "recall", "f1")}
CLOCKS = {f"seconds_{phase}" for phase in ("compiling", "searching", "retraining")} | {
    f"{phase}_steps_per_second" for phase in ("search", "retrain")
}


@pytest.fixture(scope="module")
def darts_cifar():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("darts_cifar")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    return running.shared_folder(tmp_path_factory, "darts_cifar")


def start(shared: Path, workdir: Path, *args: str):
    return running.start("darts_cifar.py", shared, workdir, *(args or TINY))


@pytest.fixture(scope="session")
def whole(shared) -> Path:
    """The work folder of an uninterrupted run, the same for all processes."""
    folder = shared / "whole"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "result.json").exists():
            code, out, err = finish(start(shared, folder))
            assert (code, err) == (0, "")
            (shared / "stdout").write_text(out)
    return folder


@pytest.fixture
def run(darts_cifar, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    return running.run_here(darts_cifar, monkeypatch, capsys)


# A run


def test_run_leaves_everything_in_its_folder(whole):
    pictures = ["cells.png"]
    pictures += [f"weights_{cell}.png" for cell in ("normal", "reduction")]
    pictures += [f"curves_{phase}.png" for phase in ("searching", "retraining")]
    assert {path.name for path in whole.iterdir()} == {
        *("config.json", "log.csv", "run.json", "genotype.json", "result.json"),
        *("checkpoints", *pictures),
    }
    for name in pictures:
        with Image.open(whole / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 50  # it is not empty
    for phase, steps in (("searching", [6, 8]), ("retraining", [6, 7])):
        assert Checkpoints(whole / "checkpoints" / phase).steps() == steps
    config = read(whole, "config.json")
    assert config["preset"] == "quick"
    assert config["search_cells"] == 1


def test_run_logs_every_chunk_of_both_phases(whole):
    with (whole / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row.pop("phase"), int(row.pop("step"))) for row in rows] == [
        *(("searching", step) for step in (2, 4, 6, 8)),
        *(("retraining", step) for step in (2, 4, 6, 7)),
    ]
    search = {"train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "skips"}
    for i, row in enumerate(rows):
        numbers = {name: float(value) for name, value in row.items() if value}
        names = search if i < 4 else {"train_loss", "train_accuracy"}
        assert numbers.keys() == names
        assert all(map(math.isfinite, numbers.values()))
        batches = 1 if i == 7 else 2  # of 4 images
        right = numbers["train_accuracy"] * 4 * batches
        assert right == pytest.approx(round(right))


def test_result_is_of_the_network_of_the_genotype(whole):
    result = read(whole, "result.json")
    assert result.keys() == NUMBERS | BY_CLASS | CLOCKS | {
        *("dataset", "genotype", "jax_version", "device"),
        *("method", "skips", "search_steps"),
    }
    assert (result["method"], result["search_steps"]) == ("darts", 8)
    assert result["dataset"] == "digits"
    assert result["jax_version"] == jax.__version__
    assert result["device"] == jax.devices()[0].device_kind
    assert all(result[name] > 0 for name in CLOCKS)

    space = darts()
    arch = space.from_string(result["genotype"])
    written = read(whole, "genotype.json")
    assert written["genotype"] == result["genotype"] == space.to_string(arch)
    skips = [op for *_, op in written["normal"]].count("skip_connect")
    assert result["skips"] == skips
    for cell in ("normal", "reduce"):
        assert sum(op != "" for *_, op in written[cell]) == 8
    network = space.network(arch, channels=2, cells=1, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))

    right = result["test_accuracy"] / 100 * len(data.load("digits").test_labels)
    assert right == pytest.approx(round(right), abs=1e-3)
    assert all(0 <= result[name] <= 100 for name in NUMBERS - {"parameters"})
    for name in BY_CLASS:
        assert len(result[name]) == 10
        mean = result[name.removesuffix("_by_class")]
        assert np.mean(result[name]) == pytest.approx(mean)


def test_second_start_prints_the_finished_result(
    whole, shared, run, darts_cifar, monkeypatch
):
    monkeypatch.setattr(darts_cifar, "work", None)
    before = contents(whole)
    code, out, err = run("--workdir", whole, *TINY)
    assert (code, err) == (0, "")
    assert contents(whole) == before
    first = (shared / "stdout").read_text().splitlines()
    assert first[0] == "searching  compiling"
    assert out[0] == "this run is finished; its result:"
    assert first[-len(out[1:]) :] == out[1:]
    assert any(line.startswith("test accuracy") for line in out)


@pytest.mark.slow
def test_killed_run_ends_as_the_uninterrupted_one(whole, shared, tmp_path):
    for phase in ("searching", "retraining"):
        checkpoints = Checkpoints(tmp_path / "checkpoints" / phase)
        running.kill_at_checkpoint(start(shared, tmp_path), checkpoints)
        assert checkpoints.latest() < 7
    code, _, err = finish(start(shared, tmp_path))
    assert (code, err) == (0, "")
    for name in ("config.json", "log.csv", "genotype.json", "weights_normal.png"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    killed, expected = (read(folder, "result.json") for folder in (tmp_path, whole))
    assert {n: v for n, v in killed.items() if n not in CLOCKS} == {
        n: v for n, v in expected.items() if n not in CLOCKS
    }


def test_damaged_checkpoint_is_one_line_and_stays(whole, run, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    newest = tmp_path / "checkpoints" / "searching" / "8"
    (largest,) = sorted(
        (newest / "arrays").rglob("*"), key=lambda path: path.stat().st_size
    )[-1:]
    os.truncate(largest, largest.stat().st_size // 2)
    before = contents(tmp_path)
    code, _, err = run("--workdir", tmp_path, *TINY)
    assert code == 2
    assert err.startswith(f"error: checkpoint {newest} is damaged")
    assert err.count("\n") == 1
    after = contents(tmp_path)
    assert before.pop("run.json") != after.pop("run.json")  # it took some time
    assert after == before


@pytest.mark.slow
def test_loss_that_is_nan_stops_and_keeps_a_checkpoint(shared, tmp_path):
    flags = ["--genotype", SIMPLE, "--learning-rate", "1e30", "--chunk", "1"]
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "retraining")
    kept = checkpoints.folder / "1"
    for _ in range(2):  # the second start goes on from what was kept
        code, out, err = finish(start(shared, tmp_path, *TINY, *flags))
        assert code == 1
        assert err == (
            "error: retraining: train_loss is nan at step 2: lower the learning "
            "rate and start anew with --overwrite; "
            f"the last good checkpoint is {kept}\n"
        )
        assert checkpoints.steps() == [1]
        assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    assert "retraining  1/7" not in out


# Methods and guards


def toy_supernet(network, *_, batch_size, curvature_every, **settings):
    """Wants skip connections; the curvature is the step in the fourth power."""
    del settings
    grad = jnp.zeros((28, len(OPS))).at[:, OPS.index("skip_connect")].set(1.0)

    def evaluate(key, data, step, proposal):
        asked = proposal.budget > 0
        due = asked & (step % max(curvature_every, 1) == 0)
        loss = jnp.where(asked, 2.0, jnp.nan)
        metrics = {f"{half}_loss": loss for half in ("train", "valid")}
        metrics |= {f"{half}_accuracy": loss / 4 for half in ("train", "valid")}
        if curvature_every:
            sharp = step.astype(jnp.float32) ** 4
            metrics["valid_curvature"] = jnp.where(due, sharp, jnp.nan)
        feedback = Feedback(-loss, loss, jnp.full(1, OK), metrics, grad=grad[None])
        return step + 1, feedback

    return Evaluator((), lambda key: jnp.int32(0), evaluate)


@pytest.fixture
def toy(darts_cifar, run, monkeypatch, tmp_path):
    """Searches with the toy: its result, its rows of the log, what it was made of."""
    made = []

    def supernet(*args, **settings):
        made.append((args[0], settings))
        return toy_supernet(*args, **settings)

    monkeypatch.setattr(darts_cifar, "supernet", supernet)
    for name in ("train_found", "draw_weights"):
        monkeypatch.setattr(darts_cifar, name, lambda *_: {})

    def search(*flags: str):
        sizes = "--dataset digits --search-steps 60 --search-channels 4 --chunk 10"
        rate = "--arch-learning-rate", "0.5"
        code, _, err = run("--workdir", tmp_path, *sizes.split(), *rate, *flags)
        assert (code, err) == (0, "")
        with (tmp_path / "log.csv").open() as file:
            return read(tmp_path, "result.json"), [*csv.DictReader(file)], *made[0]

    return search


@pytest.mark.parametrize("method", ["darts", "gdas", "snas", "drnas", "pc_darts"])
def test_method_finds_what_its_supernet_wants(toy, method):
    result, rows, network, settings = toy("--method", method)
    assert (result["method"], result["skips"]) == (method, 8)
    assert network.single_path == (method == "gdas")
    assert network.partial == (4 if method == "pc_darts" else 1)
    assert settings["curvature_every"] == 0
    assert [row["skips"] for row in rows][-1] == "8"
    assert result["search_steps"] == 60
    if method == "pc_darts":  # 18 steps leave the logits alone
        assert rows[0]["skips"] != "8"


def test_early_stopping_ends_the_search_where_the_loss_grew_sharp(toy, tmp_path):
    flags = "--early-stopping --curvature-every 2 --max-skips 1"
    result, rows, _, settings = toy(*flags.split())
    assert settings["curvature_every"] == 2
    # The tenth measurement is the first that can stop it.
    assert result["search_steps"] == 19
    assert result["skips"] == 1
    assert [bool(row["valid_loss"]) for row in rows] == [True] * 2 + [False] * 4
    mean = np.mean([step**4 for step in (0, 2, 4, 6, 8)])
    assert float(rows[0]["valid_curvature"]) == pytest.approx(mean)
    with Image.open(tmp_path / "curves_searching.png") as image:
        assert image.width > 3 * image.height  # four panels


@pytest.mark.parametrize(
    ("early_stopping", "asked", "every"), [(False, None, 0), (True, None, 1), (0, 7, 7)]
)
def test_curvature_is_measured_where_it_is_asked_for(
    darts_cifar, early_stopping, asked, every
):
    config = dataclasses.replace(
        darts_cifar.PRESETS["quick"],
        early_stopping=bool(early_stopping),
        curvature_every=asked,
    )
    assert darts_cifar.guarded(config, darts(), 60, 721)[1] == every


def test_teacher_is_the_trained_network(whole, tmp_path, darts_cifar, monkeypatch):
    digits, module = data.load("digits"), importlib.import_module("cell_search")
    taught, own = {}, classification()
    monkeypatch.setattr(module, "train_network", lambda *_, **how: taught.update(how))
    quick = darts_cifar.PRESETS["quick"]
    config = dataclasses.replace(quick, teacher=whole)
    module.train_found(config, digits, None, None, None, optax.constant_schedule, 3e-4)
    variables, network = taught["given"], module.load_teacher(whole, digits)[0]

    like = jax.eval_shape(lambda params: init_state(params, taught["tx"]), variables)
    numbers = {name: np.zeros(7, np.float32) for name in ("loss", "accuracy")}
    checkpoints = Checkpoints(whole / "checkpoints" / "retraining")
    trained, _ = checkpoints.restore(7, (like, numbers))
    assert_trees_equal(trained.params, variables["params"])
    assert_trees_equal(trained.batch_stats, variables["batch_stats"])

    images = digits.test_images[:20] / np.float32(255)
    batch = Batch(images, digits.test_labels[:20], variables)
    logits = network.apply(variables, images)
    assert taught["task"].metrics(logits, batch)["agreement"] == 1
    # The teacher's own logits leave the loss on the labels, of which a tenth counts.
    losses = [float(task.loss(logits, batch)) for task in (taught["task"], own)]
    assert losses[0] == pytest.approx(0.1 * losses[1], rel=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--search-batch-size 0", ["--search-batch-size from 1 to 721", "got 0"]),
        ("--search-batch-size 722", ["--search-batch-size from 1 to 721", "got 722"]),
        ("--batch-size 0", ["--batch-size from 1 to 1442", "got 0"]),
        ("--batch-size 1443", ["--batch-size from 1 to 1442", "got 1443"]),
        *(
            (f"--{name} {value}", [f"--{name} of 1 or more", f"got {value}"])
            for count in ("cells", "channels", "epochs", "steps")
            for name, value in ((count, 0), (f"search-{count}", -3))
        ),
        ("--chunk 0", ["--chunk of 1 or more", "got 0"]),
        ("--learning-rate -0.1", ["--learning-rate of 0 or more", "got -0.1"]),
        ("--search-learning-rate nan", ["--search-learning-rate of 0", "got nan"]),
        ("--auxiliary -1", ["--auxiliary of 0 or more", "got -1"]),
        ("--drop-path 1.5", ["--drop-path from 0 to 1", "got 1.5"]),
        ("--seed -1", ["--seed from 0 to 4294967295", "got -1"]),
        ("--genotype x", ["a genotype Genotype(normal=[", "got 'x'"]),
        ("--dataset imagenet", ["'imagenet'", "'digits'"]),
        ("--max-skips -1", ["--max-skips of 0 or more", "got -1"]),
        ("--curvature-every 0", ["--curvature-every of 1 or more", "got 0"]),
        ("--method gdas --early-stopping", ["no curvature for gdas"]),
        ("--method gdas --curvature-every 3", ["no curvature for gdas"]),
        ("--method pc_darts", ["--search-channels that 4 divides", "got 2"]),
        ("--method nas", ["'nas'", "'pc_darts'"]),
        ("--teacher nowhere", ["a finished run on digits", "--teacher nowhere"]),
        ("--hypergradient third_order", ["'third_order'", "'first_order'"]),
        ("--preset fast", ["'fast'", "'quick', 'paper'"]),
        ("--cell 3", ["--cell", "--cells"]),
        ("--cells many", ["--cells", "'many'"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert_refused(run("--workdir", folder, *TINY, *flags.split()), *says)
    assert not folder.exists()


def test_auto_keeps_the_dataset_of_a_run_that_was_begun(
    whole, run, darts_cifar, monkeypatch
):
    asked = []
    load = data.load
    monkeypatch.setattr(
        data, "load", lambda *args: asked.append(args[0]) or load(*args)
    )
    monkeypatch.setattr(darts_cifar, "work", None)
    flags = [flag for flag in TINY if flag not in ("--dataset", "digits")]
    code, _, _ = run("--workdir", whole, *flags)
    assert (code, asked) == (0, ["digits"])


def test_epochs_beside_steps_are_refused(run, tmp_path):
    folder = tmp_path / "run"
    flags = "--dataset", "digits", "--search-epochs", "1"
    code, out, err = run("--workdir", folder, *flags)
    assert (code, out) == (2, [])
    assert err.startswith("error: expected epochs or steps, but --search-steps is ")
    assert not folder.exists()


def test_every_number_is_checked(darts_cifar):
    running.assert_numbers_are_checked(darts_cifar, data.load("digits"))


def test_largest_batches_are_accepted(darts_cifar):
    config = darts_cifar.Config(
        preset="quick", batch_size=1442, search_batch_size=721, genotype=DARTS_V2
    )
    darts_cifar.check(config, data.load("digits"))


@pytest.mark.parametrize(
    ("flags", "size", "says"),
    [
        ("--search-cells 2", (3, 5), ["4x4 pixels", "--search-cells 2", "2 times"]),
        ("--cells 20", (9, 3), ["4x4 pixels", "--cells 20", "2 times", "have 9x3"]),
        ("--auxiliary 0.4", (2, 2), ["3x3 pixels", "--cells 1", "1 times"]),
    ],
)
def test_images_too_small_to_halve_are_one_line(run, monkeypatch, flags, size, says):
    images = np.zeros((10, *size, 1), np.uint8)
    digits = data.load("digits")._replace(
        train_images=images, train_labels=np.arange(10)
    )
    monkeypatch.setattr(data, "load", lambda *_: digits)
    assert_refused(run(*TINY, *flags.split()), *says)


def test_path_under_a_file_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run"
    assert_refused(run("--workdir", folder, *TINY), f"cannot write {folder}")
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_of_another_configuration_stays(whole, run):
    before = contents(whole)
    outcome = run("--workdir", whole, *TINY, "--seed", "1")
    assert_refused(outcome, "seed 0, not 1", "--workdir", "--overwrite")
    assert contents(whole) == before


def test_truncated_data_are_one_line_and_leave_no_folder(run, tmp_path):
    prepared = tmp_path / "data" / "mnist" / "3.0.1"
    prepared.mkdir(parents=True)
    splits = [
        {
            "name": split,
            "shardLengths": ["7"],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split in ("train", "test")
    ]
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "array_record"}
    (prepared / "dataset_info.json").write_text(json.dumps({**info, "splits": splits}))
    for split in ("train", "test"):
        (prepared / f"mnist-{split}.array_record-00000-of-00001").write_bytes(b"\1\2")
    before = contents(prepared)
    where = "--workdir", tmp_path / "run", "--data-dir", tmp_path / "data"
    outcome = run(*where, *TINY, "--dataset", "mnist")
    assert_refused(outcome, "expected mnist in", "to be complete", "delete mnist there")
    assert not (tmp_path / "run").exists()
    assert contents(prepared) == before
