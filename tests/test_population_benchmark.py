"""Both sides of the benchmark of populations train the same networks alike."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'benchmark'")
BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import population_scaling  # noqa: E402
import population_sides  # noqa: E402
import population_training  # noqa: E402
import torch_chain  # noqa: E402

from jaxnas import cli  # noqa: E402
from jaxnas.base import InputError  # noqa: E402
from jaxnas.spaces.chain import chain  # noqa: E402
from jaxnas.tasks import Batch  # noqa: E402

CONFIG = population_training.Config(
    networks=4, epochs=6, batch_size=16, parts=2, seed=4
)


@pytest.fixture(scope="module")
def problem():
    """Networks of one layer and a classifier on the middle of digits, 24 steps."""
    space = chain((4, 4, 1), kernels=(3,), channels=(4,), units=(8,), trunk=1, head=1)
    whole = population_training.make_problem(CONFIG, space)
    part = {
        name: Batch(batch.images[:64, 2:6, 2:6], batch.labels[:64])
        for name, batch in whole.data.items()
    }
    return whole._replace(data=part)


@pytest.fixture(scope="module")
def ours(problem):
    """The population's program for two networks."""
    return population_sides.Ours(problem, 2)


def test_torch_network_computes_what_jaxs_does():
    # Pooling meets 5, 3, 2 pixels and 1; every kind of layer is there.
    space = chain((5, 5, 2), channels=(4, 6), units=(8,), trunk=9, head=3)
    arch = space.from_string(
        "conv3x3-4 gelu max_pool conv1x1-6 avg_pool sigmoid max_pool conv7x7-4 avg_pool"
        " / dense-8 tanh relu"
    )
    network = space.network(arch, num_classes=3)
    images = jax.random.normal(jax.random.key(0), (7, 5, 5, 2))
    variables = network.init(jax.random.key(1), images)
    other = torch_chain.build(network, (5, 5, 2), variables["params"])
    nchw = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).to(torch_chain.DEVICE)
    for is_train in (False, True):
        logits = network.apply(
            variables, images, train=is_train, mutable=["batch_stats"]
        )[0]
        theirs = other.train(is_train)(nchw).detach().cpu().numpy()
        np.testing.assert_allclose(theirs, logits, rtol=1e-4, atol=1e-5)


def test_torch_network_refuses_links():
    space = chain((8, 8, 1), trunk=1, head=0, links=("residual",))
    network = space.network(space.from_string("conv3x3-4 /"), num_classes=3)
    with pytest.raises(InputError, match="without links"):
        torch_chain.build(network, (8, 8, 1), {})


def valid_loss(net, images, labels, steps):
    """The cross entropy by the running variances that the population keeps."""
    for layer in net:
        if isinstance(layer, torch.nn.BatchNorm2d):
            # torch divides by n - 1 where the population divides by n, here 16 * 4 * 4.
            start, biased = 0.9**steps, 255 / 256
            layer.running_var = (layer.running_var - start) * biased + start
    with torch.inference_mode():
        return torch.nn.functional.cross_entropy(net.eval()(images), labels).item()


def test_both_sides_take_the_same_steps(problem, ours, monkeypatch):
    made = []

    class Theirs(population_sides.Theirs):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(population_training, "Ours", lambda *_: ours)
    monkeypatch.setattr(population_training, "Theirs", Theirs)
    found = population_training.compare(CONFIG, problem)
    assert found.ours.shape == found.theirs.shape == (2,)
    np.testing.assert_allclose(found.their_accuracy, found.our_accuracy, atol=0.02)

    archs = problem.archs(4)
    genotypes = " ".join(map(problem.space.to_string, archs))
    assert "conv" in genotypes
    assert "dense" in genotypes
    expected = []
    for part in range(2):
        proposal = ours.proposal._replace(arch=archs[2 * part : 2 * part + 2])
        _, feedback = ours.program(problem.key(part), ours.data, (), proposal)
        expected += feedback.metrics["cross_entropy"].tolist()
    (theirs,) = made
    losses = [valid_loss(net, *theirs.valid, problem.steps) for net in theirs.nets]
    assert len({round(loss, 4) for loss in losses}) == 4
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_rates_are_of_the_networks_that_each_side_trained(capsys):
    found = population_training.Comparison(
        trace=0.5,
        compile=1.5,
        ours=np.array([1.0, 1.0]),
        theirs=np.array([4.0, 4.0]),
        our_accuracy=np.array([0.5, np.nan, 0.25, 0.25]),
        their_accuracy=np.array([0.25, 0.5]),
        way="one",
    )
    population_training.show(CONFIG, found)
    lines = capsys.readouterr().out.splitlines()
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in lines}
    assert rows["population, compiling included"] == ["1.000", "1.000", "4.00"]
    assert rows["population, running"] == ["2.000", "0.500", "8.00"]
    assert rows["PyTorch"] == ["0.250", "4.000", "1.00"]
    text = "\n".join(lines)
    assert "PyTorch trained the first 2" in text
    assert "at most 0.2500 apart" in text
    assert "diverged: 1 in the population, 0 in PyTorch" in text


def test_cost_counts_the_data_among_the_arguments(problem, ours, monkeypatch):
    monkeypatch.setattr(population_scaling, "Ours", lambda *_: ours)
    cost = population_scaling.measure_cost(problem, 2)
    arrays = jax.tree.leaves(problem.data)
    decisions = len(problem.space.num_choices)
    proposal = 2 * 4 * decisions + 2 * 4  # what training reads: archs and budgets
    key = 8
    known = sum(x.nbytes for x in arrays) + proposal + key
    assert cost.arguments * 1e6 == pytest.approx(known, abs=8)
    assert cost.memory == cost.temporaries + cost.arguments + cost.outputs


def test_picture_has_logarithmic_axes_with_the_sizes():
    costs = [population_scaling.Cost(n, 60, n / 4, n, 1, n / 100) for n in (16, 64)]
    seconds, memory = population_scaling.draw_costs(costs).axes
    for axes in (seconds, memory):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xticks().tolist() == [16, 64]
    assert seconds.lines[0].get_ydata().tolist() == [4, 16]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--networks", "0"], "--networks of 1 or more"),
        (["--networks", "4", "--parts", "3"], "--parts that divide 4"),
        (["--torch-networks", "9", "--networks", "4"], "from 1 to 4"),
        (["--batch-size", "5000"], "--batch-size from 1 to"),
        (["--picture", "cost.png"], "add --scaling"),
        (["--scaling", "--sizes", "0"], "--sizes of 1 or more"),
    ],
)
def test_wrong_flag_is_one_line_and_exit_code_2(capsys, monkeypatch, args, says):
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(population_training.experiment, population_training.PRESETS, args)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
