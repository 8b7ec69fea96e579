"""Both sides of the benchmark of generative models are the same networks."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import assert_refused, run_here

torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import generative_step  # noqa: E402

from jaxnas.nn.image import Upward  # noqa: E402

SIZES = {
    "gan": generative_step.Size((8, 12, 1), 5, (3, 4)),
    "vae": generative_step.Size((8, 12, 3), 5, (3, 4)),
}
CONFIG = generative_step.Config(batch_size=6, steps=2, repeats=1)


def noise_of_gan(key, size):
    """What our update draws for the discriminator's step, and for the generator's."""
    keys = jax.random.split(key, (2, 3))
    each = keys[0, 0], jax.random.split(keys[1, 0])[0]
    shape = CONFIG.batch_size, size.num_latent
    return jnp.stack([jax.random.normal(key, shape) for key in each], 1)


def noise_of_vae(key, size):
    """What our network draws."""

    def draw(module):
        shape = CONFIG.batch_size, 1, size.num_latent
        return jax.random.normal(module.make_rng("sample"), shape)

    network = Upward(size.image_shape, size.widths)
    return network.apply({}, rngs={"sample": key}, method=draw)


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_both_sides_take_the_same_steps(name):
    size = SIZES[name]
    model = generative_step.MAKERS[name](size)
    x = generative_step.images(CONFIG, size)
    state, update = model.init(jax.random.key(0), x[0]), jax.jit(model.update)
    draw = {"gan": noise_of_gan, "vae": noise_of_vae}[name]
    for way in generative_step.ways():
        theirs = generative_step.Theirs(model, x, model.params(state), way)
        ours = state
        parameters = [x.size for x in jax.tree.leaves(model.params(state))]
        assert sum(parameters) == theirs.model.num_parameters()
        for number, batch in enumerate(x):
            key = jax.random.key(number)
            ours, metrics = update(key, ours, batch)
            noise = torch.tensor(np.asarray(draw(key, size)))
            for loss, value in theirs.model.step(theirs.x[number], noise).items():
                assert value.item() == pytest.approx(float(metrics[loss]), rel=1e-4)


def test_table_has_a_row_for_each_model(monkeypatch, capsys):
    monkeypatch.setattr(generative_step, "SIZES", SIZES)
    run = run_here(_Experiment, monkeypatch, capsys)
    flags = "--batch-size 4 --steps 2 --repeats 1"
    code, out, err = run(*flags.split())
    assert code == 0, err
    for name in SIZES:
        (row,) = (line.split("│") for line in out if f"│ {name} " in line)
        ours, theirs, ratio, compile_seconds = map(float, row[2:6])
        expected = theirs / ours
        assert ratio == pytest.approx(expected, rel=0.2)
        assert compile_seconds > 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--batch-size", "1"], "--batch-size of 2 or more, but got 1"),
        (["--steps", "0"], "--steps of 1 or more, but got 0"),
        (["--models", "gun"], "--models of gan, vae, but got gun"),
    ],
)
def test_wrong_flag_is_one_line(monkeypatch, capsys, args, says):
    run = run_here(_Experiment, monkeypatch, capsys)
    assert_refused(run(*args), says)


class _Experiment:
    main = staticmethod(generative_step.experiment)
    PRESETS = generative_step.PRESETS
