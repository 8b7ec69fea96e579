"""The GAN for images from one end to the other, on digits and at a tiny size."""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from PIL import Image
from running import EXPERIMENTS, assert_refused, contents, read

from jaxnas import data
from jaxnas.base import InputError
from jaxnas.checkpoint import Checkpoints
from jaxnas.generators.adversarial import LOSSES

SIZES = "--widths 4 3 --num-latent 5 --batch-size 8 --steps 7 --chunk 2"
SIZES += " --classifier-epochs 1 --samples 1000"
TINY = ["--dataset", "digits", *SIZES.split()]
PICTURES = {"samples.png", "samples_over_time.png", "interpolation.png"}
PICTURES |= {f"curves_{phase}.png" for phase in ("training", "classifier")}
CLOCKS = {f"seconds_{phase}" for phase in ("compiling", "training", "classifier")}
CLOCKS |= {"steps_per_second"}
MEASURES = {
    *("extractor", "extractor_test_accuracy", "samples", "frechet_samples"),
    *("frechet_distance", "frechet_distance_of_training_images", "precision"),
    *("recall", "classes_found", "classes", "spread_levels", "collapsed"),
}


@pytest.fixture(scope="module")
def image_gan():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("image_gan")


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    return running.run_once(tmp_path_factory, "image_gan", TINY)


@pytest.fixture
def run(image_gan, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    return running.run_here(image_gan, monkeypatch, capsys)


def test_run_leaves_everything_in_its_folder(whole):
    assert {path.name for path in whole.iterdir()} == {
        *("config.json", "log.csv", "run.json", "result.json", "classifier.json"),
        *("checkpoints", *PICTURES),
    }
    for name in PICTURES:
        with Image.open(whole / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 50  # it is not empty
    result = read(whole, "result.json")
    own = {"dataset", "loss", "conditional", "recognised", "jax_version", "device"}
    assert set(result) == CLOCKS | MEASURES | own
    assert (result["dataset"], result["loss"]) == ("digits", "vanilla")
    assert result["conditional"]
    assert result["extractor"] == "digits-8x8-cnn64-1ep"
    assert (result["samples"], result["frechet_samples"]) == (1000, 355)
    assert result["extractor_test_accuracy"] == pytest.approx(
        read(whole, "classifier.json")["test_accuracy"]
    )
    assert result["frechet_distance"] > result["frechet_distance_of_training_images"]
    assert all(0 <= result[x] <= 100 for x in ("precision", "recall", "recognised"))
    assert 1 <= result["classes_found"] <= result["classes"] == 10
    assert result["collapsed"] == (result["spread_levels"] < 1)


@pytest.mark.slow
def test_killed_run_ends_as_the_uninterrupted_one(whole, run, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "training")
    process = running.start("image_gan.py", whole.parent, tmp_path, *TINY)
    running.kill_at_checkpoint(process, checkpoints)
    assert checkpoints.latest() < 7
    code, _, err = run("--workdir", tmp_path, *TINY)
    assert (code, err) == (0, "")
    for name in ("config.json", "log.csv", "classifier.json", *PICTURES):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    killed, expected = (read(folder, "result.json") for folder in (tmp_path, whole))
    assert {n: v for n, v in killed.items() if n not in CLOCKS} == {
        n: v for n, v in expected.items() if n not in CLOCKS
    }


def test_classifier_of_another_run_judges_without_training(
    whole, run, image_gan, monkeypatch, tmp_path
):
    monkeypatch.setattr(image_gan, "train", untrained)
    flags = "--classifier", whole, "--no-conditional"
    code, out, err = run("--workdir", tmp_path, *TINY, *flags)
    assert (code, err) == (0, "")
    result = read(tmp_path, "result.json")
    first = read(whole, "result.json")
    same = "extractor", "extractor_test_accuracy", "frechet_distance_of_training_images"
    assert [result[name] for name in same] == [first[name] for name in same]
    assert "recognised" not in result  # of samples that were told nothing
    assert not (tmp_path / "classifier.json").exists()
    # The generator's last kernel is zero.
    assert result["collapsed"]
    assert sum("the generator has collapsed: its samples differ" in x for x in out) == 1
    assert (result["precision"], result["recall"]) == (0, 0)
    assert result["classes_found"] == 1


def test_judge_of_other_images_is_refused(whole):
    extractor = importlib.import_module("image_extractor")
    digits = data.load("digits")
    assert extractor.load_extractor(whole, digits).name == "digits-8x8-cnn64-1ep"
    changed = {
        "image_shape": data.load("digits", image_size=4),
        "classes": digits._replace(class_names=(*digits.class_names, "ten")),
        "checksum": digits._replace(train_labels=digits.train_labels[::-1]),
    }
    for name, dataset in changed.items():
        with pytest.raises(InputError, match=rf"but got .*\b{name} .* not ") as said:
            extractor.load_extractor(whole, dataset)
        assert "\n" not in str(said.value)


def untrained(run, config, phase, key, state, step, *_):
    """Trains nothing; and the generator says the same whatever it is given."""
    run.log.write(phase, step.num_steps, {"discriminator_loss": 1.0})
    player = state.generator._replace(params=jax.tree.map(jnp.zeros_like, state[0][1]))
    state = state._replace(generator=player)
    return state, np.zeros((1, 10, 8, 8, 1), np.uint8), [step.num_steps]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_have_their_papers_settings(image_gan, monkeypatch, loss):
    made = {}
    monkeypatch.setattr(image_gan, "gan", lambda *args, **how: made.update(how, a=args))
    config = dataclasses.replace(image_gan.Config(), loss=loss)
    image_gan.make_gan(config, data.load("digits"))
    is_wasserstein = loss.startswith("wgan")
    assert made["critic_steps"] == (5 if is_wasserstein else 1)
    generator, discriminator, name, _ = made["a"]
    assert name == loss
    assert generator.num_classes == discriminator.num_classes == 10
    # A gradient of each example by itself has no place for statistics of the batch.
    assert discriminator.trunk.norm == ("layer" if loss == "wgan_gp" else "batch")
    config = dataclasses.replace(config, spectral=True, conditional=False)
    image_gan.make_gan(config, data.load("digits"))
    trunk = made["a"][1].trunk
    assert (trunk.spectral, trunk.norm) == (True, "none")
    assert made["a"][1].num_classes == 0


def test_levels_survive_the_scale_of_the_networks(image_gan):
    levels = np.arange(256, dtype=np.uint8)
    signs = image_gan.to_signs(levels)
    assert (float(signs.min()), float(signs.max())) == (-1, 1)
    np.testing.assert_array_equal(image_gan.to_levels(signs), levels)


def test_arc_between_latents_keeps_their_length(image_gan):
    ends = jax.random.normal(jax.random.key(0), (2, 50))
    ends = ends / jnp.linalg.norm(ends, axis=1, keepdims=True) * 7
    way = image_gan.slerp(*ends, 9)
    np.testing.assert_allclose(jnp.linalg.norm(way, axis=1), 7, rtol=1e-5)
    np.testing.assert_allclose(way[jnp.array([0, -1])], ends, atol=1e-5)
    steps = jnp.linalg.norm(jnp.diff(way, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    same = image_gan.slerp(ends[0], 2 * ends[0], 3)
    np.testing.assert_allclose(same, np.outer([1, 1.5, 2], ends[0]), rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--num-latent 0", ["--num-latent of 1 or more", "got 0"]),
        ("--loss hinge", ["'hinge'", "'wgan_gp'"]),
        ("--batch-size 1", ["--batch-size from 2 to 1442", "got 1"]),
        ("--batch-size 1443", ["--batch-size from 2 to 1442", "got 1443"]),
        ("--loss wgan --batch-size 300", ["--batch-size from 2 to 288", "got 300"]),
        ("--critic-steps 0", ["--critic-steps of 1 or more", "got 0"]),
        ("--steps 0", ["--steps of 1 or more", "got 0"]),
        ("--chunk 0", ["--chunk of 1 or more", "got 0"]),
        ("--samples 999", ["--samples of 1000 or more", "got 999"]),
        ("--classifier-epochs 0", ["--classifier-epochs of 1 or more", "got 0"]),
        ("--widths 4 0", ["--widths of a number of 1 or more", "got 4 0"]),
        ("--learning-rate nan", ["--learning-rate of 0 or more", "got nan"]),
        ("--seed -1", ["--seed from 0", "got -1"]),
        ("--classifier nowhere", ["a classifier of digits in nowhere", "--classifier"]),
        ("--preset fast", ["'fast'", "'quick', 'paper'"]),
        ("--dataset nothing", ["expected a dataset out of", "'nothing'"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert_refused(run("--workdir", folder, *TINY, *flags.split()), *says)
    assert not folder.exists()


def test_folder_of_another_configuration_stays(whole, run):
    before = contents(whole)
    outcome = run("--workdir", whole, *TINY, "--num-latent", "6")
    assert_refused(outcome, "num_latent 5, not 6", "--workdir", "--overwrite")
    assert contents(whole) == before


def test_auto_asks_for_mnist_first(run, image_gan, monkeypatch):
    asked = []

    def load(name, *_, first, **__):
        asked.append((name, first))
        raise InputError("enough")

    monkeypatch.setattr(data, "load", load)
    assert_refused(run("--workdir", "never"), "enough")
    assert asked == [("auto", "mnist")]
