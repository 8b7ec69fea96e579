"""Searches with shared weights from one end to the other, at a tiny size."""

import csv
import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from PIL import Image
from running import EXPERIMENTS, assert_refused, contents, finish, read

from jaxnas import data
from jaxnas.base import OK, Evaluator, Feedback, InputError
from jaxnas.checkpoint import Checkpoints
from jaxnas.spaces import SPACES
from jaxnas.spaces.darts import darts
from jaxnas.spaces.nasbench201 import nasbench201

SIZES = "--search-cells 1 --search-channels 2 --search-batch-size 4 --search-steps 7"
SIZES += " --weight-steps 3 --controller-steps 2 --controller-batch 2 --samples 5"
SIZES += " --rank-batch 2 --score-batches 2 --chunk 3"
SIZES += " --cells 1 --channels 2 --batch-size 4 --steps 4"
TINY = ["--dataset", "digits", *SIZES.split()]
PHASES = "searching", "ranking", "retraining"


@pytest.fixture(scope="module")
def enas_cifar():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("enas_cifar")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return running.shared_folder(tmp_path_factory, "enas_cifar")


def start(shared, workdir, *args: str):
    return running.start("enas_cifar.py", shared, workdir, *TINY, *args)


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory):
    """The work folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, err = finish(start(shared, folder))
    assert (code, err) == (0, "")
    return folder


@pytest.fixture
def run(enas_cifar, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    return running.run_here(enas_cifar, monkeypatch, capsys)


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return [*csv.DictReader(file)]


# A run. What one test asserts of it takes no time beside the run.


def test_run_leaves_everything_in_its_folder(whole):
    pictures = [f"curves_{phase}.png" for phase in PHASES] + ["cells.png"]
    files = {"config.json", "log.csv", "run.json", "genotype.json", "result.json"}
    names = {path.name for path in whole.iterdir()}
    assert names == files | {"candidates.csv", "checkpoints", *pictures}
    for name in pictures:
        with Image.open(whole / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 50  # it is not empty
    # Seven steps of the weights have two turns of the controller, of two steps each.
    for phase, steps in zip(PHASES, ([9, 11], [2, 3], [3, 4]), strict=True):
        assert Checkpoints(whole / "checkpoints" / phase).steps() == steps


def test_run_logs_what_its_steps_had(whole):
    rows = rows_of(whole / "log.csv")
    assert [(row.pop("phase"), int(row.pop("step"))) for row in rows] == [
        *(("searching", step) for step in (3, 6, 9, 11)),
        *(("ranking", step) for step in (1, 2, 3)),
        *(("retraining", step) for step in (3, 4)),
    ]
    train = {"train_loss", "train_accuracy"}
    valid = {"valid_loss", "valid_accuracy"}
    both = train | valid  # the first chunk ends where the controller's turn begins
    expected = [names | {"entropy"} for names in (train, both, both, both)]
    expected += [valid] * 3 + [train] * 2
    for row, names in zip(rows, expected, strict=True):
        numbers = {name: float(value) for name, value in row.items() if value}
        assert numbers.keys() == names
        assert all(map(math.isfinite, numbers.values()))
    entropy = float(rows[0]["entropy"])
    assert entropy == pytest.approx(28 * math.log(8), rel=1e-3)  # nothing is learnt


def test_best_candidate_is_retrained(whole):
    result, space = read(whole, "result.json"), darts()
    candidates = rows_of(whole / "candidates.csv")
    assert sum(int(row["times"]) for row in candidates) == result["ranked"] == 6
    genotypes = [row["architecture"] for row in candidates]
    assert len(set(genotypes)) == len(genotypes)
    scores = [float(row["valid_accuracy"]) for row in candidates]
    assert scores == sorted(scores, reverse=True)
    assert np.multiply(scores, 8) == pytest.approx(np.round(np.multiply(scores, 8)))
    assert result["one_shot_accuracy"] == pytest.approx(100 * scores[0])
    assert (
        genotypes[0] == result["genotype"] == read(whole, "genotype.json")["genotype"]
    )
    arch = space.from_string(genotypes[0])
    network = space.network(arch, channels=2, cells=1, num_classes=10)
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    right = result["test_accuracy"] / 100 * len(data.load("digits").test_labels)
    assert right == pytest.approx(round(right), abs=1e-3)


def test_second_start_prints_the_finished_result(whole, run, enas_cifar, monkeypatch):
    monkeypatch.setattr(enas_cifar, "work", None)
    before = contents(whole)
    code, out, err = run("--workdir", whole, *TINY)
    assert (code, err) == (0, "")
    assert contents(whole) == before
    assert out[0] == "this run is finished; its result:"
    assert any(line.startswith("test accuracy") for line in out)


@pytest.mark.slow
def test_killed_run_ends_as_the_uninterrupted_one(whole, shared, tmp_path):
    ranking = Checkpoints(tmp_path / "checkpoints" / "ranking")
    running.kill_at_checkpoint(start(shared, tmp_path), ranking)
    assert ranking.latest() < 3
    code, _, err = finish(start(shared, tmp_path))
    assert (code, err) == (0, "")
    for name in ("config.json", "log.csv", "genotype.json", "candidates.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    killed, expected = (read(folder, "result.json") for folder in (tmp_path, whole))
    clocks = {name for name in expected if "second" in name}
    assert {n: v for n, v in killed.items() if n not in clocks} == {
        n: v for n, v in expected.items() if n not in clocks
    }


# Methods


def worth_of(archs):
    """The mean choice, so that higher ones are better."""
    return archs.mean(-1) / 20


def toy_one_shot(made, network, *_, weight_steps=1, score_steps=0, **settings):
    """Knows what architectures are worth; their loss is how often weights learnt."""
    made.append({"network": network, **settings})

    def evaluate(key, data, state, proposal):
        count, learnt = state
        learns = count % (weight_steps + score_steps) < weight_steps
        worth = worth_of(proposal.arch)
        train, valid = jnp.where(learns, worth, jnp.nan), learnt * jnp.ones_like(worth)
        metrics = {f"train_{name}": train for name in ("loss", "accuracy")}
        metrics |= {"valid_accuracy": worth, "valid_loss": valid}
        status = jnp.full(len(worth), OK)
        feedback = Feedback(jnp.where(learns, -1.0, worth), worth, status, metrics)
        return (count + 1, learnt + learns), feedback

    zero = jnp.int32(0)
    return Evaluator((), lambda key: (zero, zero), evaluate)


@pytest.fixture
def toy(enas_cifar, run, monkeypatch, tmp_path):
    """Searches with the toy: its result, what it ranked, what it was made of."""
    made = []
    module = importlib.import_module("one_shot_phases")
    monkeypatch.setattr(module, "one_shot", functools.partial(toy_one_shot, made))
    monkeypatch.setattr(enas_cifar, "train_found", lambda *_: {})

    def search(*flags: str):
        sizes = "--dataset digits --search-steps 100 --samples 60 --chunk 200"
        code, _, err = run("--workdir", tmp_path, *sizes.split(), *flags)
        assert (code, err) == (0, "")
        return read(tmp_path, "result.json"), rows_of(tmp_path / "candidates.csv"), made

    return search


@pytest.mark.parametrize(
    ("method", "space"),
    [("enas", "chain"), ("single_path", "nasbench201"), ("random_sharing", "darts")],
)
def test_method_ranks_with_the_weights_that_it_trained(toy, tmp_path, method, space):
    turns = "--weight-steps 1 --controller-steps 4 --controller-learning-rate 0.02"
    flags = f"--method {method} --space {space} {turns if method == 'enas' else ''}"
    result, candidates, made = toy(*flags.split())
    assert (result["method"], result["space"], result["ranked"]) == (method, space, 60)
    assert {float(row["valid_loss"]) for row in candidates} == {100.0}
    best = candidates[0]
    assert result["one_shot_accuracy"] == pytest.approx(
        100 * float(best["valid_accuracy"]), rel=1e-5
    )
    network, calibrated = made[0]["network"], made[0]["calibration_batches"]
    assert network.shared if space == "chain" else network.single_path
    assert calibrated == (20 if method == "single_path" else 0)
    name = "architecture" if space == "chain" else "genotype"
    assert result[name] == best["architecture"]
    assert (tmp_path / f"{name}.json").exists()
    made_space = SPACES[space]((8, 8, 1)) if space == "chain" else SPACES[space]()
    keys = jax.random.split(jax.random.key(0), 1000)
    uniform = worth_of(jax.vmap(made_space.sample)(keys))
    gain = result["one_shot_accuracy_mean"] / 100 - uniform.mean()
    deviations = gain / (uniform.std() / 60**0.5)
    if method == "random_sharing":
        assert abs(deviations) < 4
    else:  # the controller and evolution have learnt
        assert deviations > 4


def test_rate_decays_again_and_again_each_time_twice_as_long(enas_cifar):
    schedule = enas_cifar.cosine_restarts(0.05, 0.01, 4, 150)
    expected = [
        0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / length)) / 2)
        for length in (10, 20, 40, 80)
        for step in range(length)
    ]
    found = jax.vmap(schedule)(jnp.arange(150))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_phases_refuse_what_they_cannot_do(enas_cifar):
    phases = importlib.import_module("one_shot_phases").phases
    given = nasbench201(), None, None, (), ()
    with pytest.raises(InputError, match="a method of enas, single_path, random"):
        phases("darts", *given, tx=None, num_weight_steps=1)
    with pytest.raises(InputError, match="but got 4, 0, 1000 and 10"):
        phases("enas", *given, tx=None, num_weight_steps=4, weight_steps=0)


# Bad input


def test_loss_that_is_nan_stops_and_keeps_a_checkpoint(toy_that_diverges, tmp_path):
    code, _, err = toy_that_diverges
    kept = tmp_path / "checkpoints" / "searching" / "4"
    assert code == 1
    assert err == (
        "error: searching: train_loss is nan at step 6: lower the learning rate and "
        f"start anew with --overwrite; the last good checkpoint is {kept}\n"
    )
    assert Checkpoints(kept.parent).steps() == [2, 4]


@pytest.fixture
def toy_that_diverges(run, monkeypatch, tmp_path, enas_cifar):
    """What a run says whose shared weights are lost after five steps."""

    def one_shot(*args, **settings):
        toy = toy_one_shot([], *args, **settings)

        def evaluate(key, data, state, proposal):
            state, feedback = toy.evaluate(key, data, state, proposal)
            lost = jnp.where(state[0] > 5, jnp.nan, feedback.metrics["train_loss"])
            metrics = feedback.metrics | {"train_loss": lost}
            return state, feedback._replace(metrics=metrics)

        return toy._replace(evaluate=evaluate)

    monkeypatch.setattr(
        importlib.import_module("one_shot_phases"), "one_shot", one_shot
    )
    sizes = "--dataset digits --method random_sharing --search-steps 9 --chunk 2"
    return run("--workdir", tmp_path, *sizes.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--search-batch-size 434", ["--search-batch-size up to the 433", "got 434"]),
        ("--valid-share 1", ["--valid-share from", "got 1"]),
        ("--samples 0", ["--samples of 1 or more", "got 0"]),
        ("--score-batches 0", ["--score-batches of 1 or more", "got 0"]),
        ("--periods 0", ["--periods from 1 to 20", "got 0"]),
        ("--weight-steps 8", ["--weight-steps up to the 7", "got 8"]),
        ("--calibration-batches 3", ["of --method single_path", "with enas"]),
        ("--method single_path", ["--weight-steps", "of --method enas", "leave it"]),
        ("--space chain --auxiliary 0.4", ["no second classifier", "0.4", "chain"]),
        ("--space chain --drop-path 0.1", ["no drop path", "0.1", "--drop-path 0"]),
        ("--space nasbench101", ["'nasbench101'", "'chain'"]),
        ("--method darts", ["'darts'", "'random_sharing'"]),
        ("--search-epochs 3", ["epochs or steps", "--search-steps None"]),
        ("--teacher nowhere", ["a finished run on digits", "--teacher nowhere"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert_refused(run("--workdir", folder, *TINY, *flags.split()), *says)
    assert not folder.exists()


def test_every_number_is_checked(enas_cifar):
    running.assert_numbers_are_checked(enas_cifar, data.load("digits"))


def test_folder_of_another_configuration_stays(whole, run):
    before = contents(whole)
    outcome = run("--workdir", whole, *TINY, "--seed", "1")
    assert_refused(outcome, "seed 0, not 1", "--workdir", "--overwrite")
    assert contents(whole) == before
