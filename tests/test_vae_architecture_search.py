"""The search of generative networks from one end to the other, at a tiny size."""

import csv
import dataclasses
import importlib
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import running
from PIL import Image
from running import EXPERIMENTS, assert_refused, read

from jaxnas import data
from jaxnas.base import Feedback, InputError, Log, Proposal
from jaxnas.checkpoint import Checkpoints
from jaxnas.spaces.generative import generative

SIZES = "--queries 2 --batch 1 --epochs 1 --batch-size 64 --train-examples 128"
SIZES += " --final-epochs 1 --classifier-epochs 1 --strategy random_search"
TINY = ["--dataset", "digits", "--image-size", "2", *SIZES.split()]
FILES = {"config.json", "log.csv", "run.json", "result.json", "checkpoints"}
FILES |= {"candidates.csv", "architecture.json", "samples.png"}
FILES |= {"curves_searching.png", "curves_retraining.png"}


@pytest.fixture(scope="module")
def experiment():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("vae_architecture_search")


@pytest.fixture
def run(experiment, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    return running.run_here(experiment, monkeypatch, capsys)


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def assert_drawn(folder: Path, *names: str):
    for name in names:
        with Image.open(folder / name) as picture:
            assert len(picture.convert("L").getcolors()) > 10


def test_search_finds_the_best_bound_and_goes_on_where_it_was_stopped(
    run, experiment, tmp_path, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, out, err = run("--workdir", whole, *TINY)
    assert (code, err) == (0, ""), out
    assert {path.name for path in whole.iterdir()} == FILES | {"reconstructions.png"}
    result, rows = read(whole, "result.json"), rows_of(whole, "candidates.csv")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    best = max(rows, key=lambda row: float(row["fitness"]))
    assert result["architecture"] == best["architecture"]
    assert result["validation_elbo"] == pytest.approx(float(best["elbo"]), abs=1e-3)
    space = generative((2, 2, 1))
    arch = space.from_string(best["architecture"])
    parameters, operations = space.sizes(arch, (2, 2, 1))
    assert result["parameters"] == parameters == float(best["parameters"])
    assert float(best["flops"]) == operations
    bits = -result["test_elbo"] / (4 * math.log(2))
    assert result["test_bits_per_dimension"] == pytest.approx(bits)
    bounds = [float(row["bound"]) for row in rows_of(whole, "log.csv") if row["bound"]]
    assert bounds[0] < bounds[-1] < 0
    assert_drawn(whole, "reconstructions.png", "samples.png", "curves_searching.png")

    def stopping(*how):
        learn, calls = learner(*how), iter([False, True])

        def stop(*asked):
            if next(calls):
                raise KeyboardInterrupt
            return learn(*asked)

        return stop

    learner = experiment.learner
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "learner", stopping)
        assert run("--workdir", stopped, *TINY)[0] == 130
    assert Checkpoints(stopped / "checkpoints" / "searching").latest() == 1
    code, out, err = run("--workdir", stopped, *TINY)
    assert (code, err) == (0, ""), out
    for name in ("log.csv", "candidates.csv", "reconstructions.png"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    same = {name for name in result if "second" not in name}
    again = read(stopped, "result.json")
    assert {name: again[name] for name in same} == {n: result[n] for n in same}

    code, out, _ = run("--workdir", whole, *TINY)
    assert (code, out[0]) == (0, "this run is finished; its result:")


@pytest.mark.slow
def test_gan_is_searched_by_the_distance_of_its_samples(run, tmp_path):
    folder = tmp_path / "gan"
    flags = "--model", "gan", "--queries", "1"
    code, out, err = run("--workdir", folder, *TINY, *flags)
    assert (code, err) == (0, ""), out
    files = FILES | {"classifier.json", "curves_classifier.png"}
    assert {path.name for path in folder.iterdir()} == files
    result, (row,) = read(folder, "result.json"), rows_of(folder, "candidates.csv")
    assert float(row["fitness"]) == -float(row["frechet_distance"]) < 0
    assert result["extractor"] == "digits-2x2-cnn64-1ep"
    assert result["frechet_distance"] > result["frechet_distance_of_training_images"]
    space = generative((2, 2, 1), model="gan")
    arch = space.from_string(row["architecture"])
    assert float(row["parameters"]) == space.sizes(arch, (2, 2, 1))[0]
    assert_drawn(folder, "samples.png", "curves_retraining.png")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--queries 0", ["--queries of 1 or more", "got 0"]),
        ("--batch 3 --queries 2", ["--batch up to the 2 evaluations", "got 3"]),
        ("--batch-size 1", ["--batch-size from 2 to 721", "got 1"]),
        ("--train-examples 9", ["--train-examples from 64 to", "got 9"]),
        ("--learning-rate nan", ["--learning-rate of 0 or more", "got nan"]),
        ("--image-size 1", ["--image-size of 2 or more", "got 1"]),
        ("--model flow", ["'flow'", "'vae', 'gan'"]),
        ("--strategy darts", ["'darts'", "'random_search'"]),
        ("--strategy nsga2", ["'nsga2'"]),
        ("--strategy progressive", ["'progressive'"]),
        ("--dataset /nowhere/at_all", ["/nowhere/at_all"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert_refused(run("--workdir", folder, *TINY, *flags.split()), *says)
    assert not folder.exists()


def test_every_number_is_checked(experiment):
    digits = data.load("digits")
    for field in dataclasses.fields(experiment.Config):
        if str(getattr(field.type, "__name__", field.type)).split()[0] in (
            "int",
            "float",
        ):
            for value in (-1, math.nan, math.inf):
                config = dataclasses.replace(
                    experiment.PRESETS["paper"], **{field.name: value}
                )
                flag = f"--{field.name.replace('_', '-')} "
                with pytest.raises(InputError, match=flag):
                    experiment.check(config, digits)


def test_samples_that_are_not_finite_are_not_judged(experiment, monkeypatch):
    """Their levels would be those of black images."""
    del experiment
    candidates = importlib.import_module("generative_candidates")
    monkeypatch.setattr(
        candidates, "look", lambda by, x: (np.float32(x).reshape(len(x), -1), None)
    )
    digits, space = (
        data.load("digits", image_size=2),
        generative((2, 2, 1), model="gan"),
    )
    arch = np.zeros(len(space.num_choices), np.int32)
    training = candidates.adversaries(space.network(arch), digits, 1e-3, None)
    state = training.init(jax.random.key(0))
    images = digits.test_images[:9]
    key = jax.random.key(1)
    assert training.judge(key, state, images)["frechet_distance"] > 0
    params = jax.tree.map(lambda x: x * np.nan, state.generator.params)
    state = state._replace(generator=state.generator._replace(params=params))
    assert math.isnan(training.judge(key, state, images)["frechet_distance"])


def test_value_is_that_of_the_best_training(experiment):
    """Of the largest budget; what diverged or was trained for less says nothing."""
    arch = np.array([[[1, 2], [1, 2]], [[1, 2], [1, 2]], [[0, 2], [1, 2]]])
    budget = np.array([[9, 9], [9, 3], [9, 9]])
    distance = np.array([[5.0, 4.0], [np.nan, 1.0], [2.0, 6.0]])
    fitness = np.where(np.isfinite(distance), -distance, -np.inf)
    metrics = {"frechet_distance": distance, "parameters": 10 * distance}
    feedback = Feedback(fitness, budget, budget * 0, metrics)
    log = Log(Proposal(arch, budget, None), feedback)
    found = partial(experiment.value_of, log, np.array([1, 2]))
    assert (found("frechet_distance"), found("parameters")) == (4.0, 40.0)
    nobody = experiment.value_of(log, np.array([3, 3]), "parameters")
    assert math.isnan(nobody)


def test_training_draws_every_image_once_an_epoch(experiment):
    del experiment
    candidates = importlib.import_module("generative_candidates")

    def update(key, seen, images):
        del key
        return seen.at[images[:, 0, 0, 0]].add(1), {}

    training = candidates.Training(
        init=lambda key: np.zeros(12, np.int32),
        update=update,
        judge=None,
        generate=None,
        num_latent=0,
    )
    images = np.tile(np.arange(12, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1))
    scan = candidates.chunked_scan(6)
    seen, _ = candidates.fit(candidates.jax.random.key(0), training, images, scan, 6, 4)
    np.testing.assert_array_equal(seen, 2)
