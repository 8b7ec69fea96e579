"""The VAE for images from one end to the other, on digits and at a tiny size."""

import csv
import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from PIL import Image
from running import EXPERIMENTS, assert_refused, read

from jaxnas import data
from jaxnas.base import InputError
from jaxnas.checkpoint import Checkpoints

SIZES = "--widths 4 3 --num-latent 5 --batch-size 8 --steps 7 --chunk 2"
SIZES += " --classifier-epochs 1 --samples 1000 --seeds 2"
TINY = ["--dataset", "digits", *SIZES.split()]
PICTURES = {"samples.png", "samples_over_time.png", "interpolation.png"}
PICTURES |= {"reconstructions.png", "curves_classifier.png"}
PICTURES |= {f"curves_{phase}.png" for phase in ("training", "training_1")}
CLOCKS = {"compiling", "training", "training_1", "classifier"}
CLOCKS = {f"seconds_{phase}" for phase in CLOCKS} | {"steps_per_second"}


@pytest.fixture(scope="module")
def image_vae():
    """The experiment as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("image_vae")


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    return running.run_once(tmp_path_factory, "image_vae", TINY)


@pytest.fixture
def run(image_vae, monkeypatch, capsys):
    """Runs the experiment in this process: exit code, lines on stdout, stderr."""
    return running.run_here(image_vae, monkeypatch, capsys)


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
    assert set(result) >= CLOCKS
    assert result["extractor"] == "digits-8x8-cnn64-1ep"
    assert result["divergence_nats"] > 0
    parts = result["reconstruction_nats"] - result["divergence_nats"]
    assert result["elbo_nats"] == pytest.approx(parts)
    bits = -result["elbo_nats"] / (64 * math.log(2))
    assert result["bits_per_dimension"] == pytest.approx(bits)
    assert len(result["scale_levels"]) == 1
    for name in ("elbo_nats", "bits_per_dimension", "frechet_distance"):
        values = result[f"{name}_by_seed"]
        assert values[0] == result[name] != values[1]
        assert result[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert result[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
        low, high = result[f"{name}_ci95"]
        assert low <= result[f"{name}_mean"] <= high
    with (whole / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for phase in ("training", "training_1"):
        steps = [int(row["step"]) for row in rows if row["phase"] == phase]
        assert steps == [2, 4, 6, 7]
    assert all(row["valid_bound"] for row in rows if row["phase"] != "classifier")


@pytest.mark.slow
def test_interrupted_run_ends_as_the_uninterrupted_one(
    whole, run, monkeypatch, tmp_path
):
    kept = tmp_path / "checkpoints" / "training_1" / "2"
    save = Checkpoints.save

    def save_and_stop(checkpoints, *args):
        save(checkpoints, *args)
        if kept.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        code, _, err = run("--workdir", tmp_path, *TINY)
    assert (code, f"the last good checkpoint is {kept}" in err) == (130, True)
    code, _, err = run("--workdir", tmp_path, *TINY)
    assert (code, err) == (0, "")
    for name in ("config.json", "log.csv", "classifier.json", *PICTURES):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    killed, expected = (read(folder, "result.json") for folder in (tmp_path, whole))
    assert {n: v for n, v in killed.items() if n not in CLOCKS} == {
        n: v for n, v in expected.items() if n not in CLOCKS
    }


def test_likelihood_is_of_the_levels_as_stored(image_vae):
    """Of all levels of a pixel the probabilities add up to 1, normalised as it is."""
    dataset = data.load("digits")
    config = image_vae.Config(widths=(4,), num_latent=2, conditional=True)
    model = image_vae.make_model(config, dataset)
    pixel = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)
    x = model.prepare(pixel)
    np.testing.assert_array_equal(model.to_levels(x), pixel)
    assert model.width[0] == pytest.approx(float(x[1, 0, 0, 0] - x[0, 0, 0, 0]), 1e-4)


def test_evidence_has_the_images_apart(image_vae):
    """A batch of one image many times has that image's bound, at running statistics."""
    dataset = data.load("digits")
    config = image_vae.Config(widths=(4,), num_latent=2, conditional=True)
    model = image_vae.make_model(config, dataset)
    images, labels = dataset.train_images[:3], jnp.array(dataset.train_labels[:3])
    first = image_vae.Examples(model.prepare(images), labels)
    state = jax.jit(model.made.init)(jax.random.key(0), first)
    key = jax.random.key(1)
    whole = image_vae.evidence(model, key, state, images, labels)
    keys = jax.random.split(key, 3)
    bound = jax.jit(model.made.bound)
    each = [
        bound(one, state, model.prepare(x[None]), y[None])
        for one, x, y in zip(keys, images, labels, strict=True)
    ]
    np.testing.assert_allclose(
        whole, np.mean([[v[0] for v in pair] for pair in each], 0), rtol=1e-5
    )


def test_few_test_images_are_drawn_and_too_few_refused(image_vae, tmp_path):
    digits = data.load("digits")
    config = image_vae.Config(widths=(4,), num_latent=2, batch_size=8)
    model = image_vae.make_model(config, digits)
    first = image_vae.Examples(model.prepare(digits.train_images[:3]), None)
    state = model.made.init(jax.random.key(0), first)

    def only(count):
        images, labels = digits.test_images[:count], digits.test_labels[:count]
        return digits._replace(test_images=images, test_labels=labels)

    run = SimpleNamespace(path=lambda name: tmp_path / name)
    found = {"frechet_distance": 1.0, "extractor": "nobody"}
    image_vae.draw(run, config, only(5), model, state, found)
    assert (tmp_path / "interpolation.png").exists()
    image_vae.check(config, only(4))
    with pytest.raises(InputError, match=r"4 or more images .* but got 3"):
        image_vae.check(config, only(3))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--num-latent 0", ["--num-latent of 1 or more", "got 0"]),
        ("--beta -1", ["--beta of 0 or more", "got -1"]),
        ("--beta nan", ["--beta of 0 or more", "got nan"]),
        ("--seeds 0", ["--seeds of 1 or more", "got 0"]),
        ("--batch-size 1298", ["--batch-size from 2 to 1297", "got 1298"]),
        ("--likelihood poisson", ["--likelihood"]),
    ],
)
def test_wrong_flag_is_one_line_and_leaves_no_folder(run, tmp_path, flags, says):
    folder = tmp_path / "run"
    assert_refused(run("--workdir", folder, *TINY, *flags.split()), *says)
    assert not folder.exists()
