"""The notebooks, from top to bottom at a tiny size."""

import ast
import base64
import io
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from jaxnas import benchmarks
from jaxnas.spaces.nasbench201 import nasbench201

ROOT = Path(__file__).parents[1]
TINY = {
    "darts.ipynb": """
seed = 0
search_steps, search_batch_size, search_channels, search_cells = 3, 4, 2, 1
train_steps, train_batch_size, train_channels, train_cells = 3, 4, 2, 1
""",
    "enas.ipynb": """
dataset, seed = "digits", 0
search_steps, search_batch_size, search_channels, search_cells = 2, 4, 2, 1
weight_steps, controller_steps, samples = 1, 1, 20
train_steps, train_batch_size, train_channels, train_cells = 2, 4, 2, 1
""",
    "compare_strategies.ipynb": """
seed = 0
num_seeds, num_queries, population_size = 4, 6, 3
""",
    "surrogate_search.ipynb": """
seed = 0
num_train, num_verify = 20, 3
num_seeds, num_queries, front_queries = 2, 12, 40
""",
    "your_own_images.ipynb": """
images, seed = "digits", 0
num_steps, batch, epochs, batch_size = 2, 2, 1, 32
num_slots_trunk, final_epochs = 2, 1
""",
    "make_a_benchmark.ipynb": """
seed = 0
slots = [["conv1x1-4", "conv3x3-4"], ["identity", "relu", "max_pool"]]
num_seeds, epochs, batch_size = 2, 1, 64
num_searches, num_queries = 4, 5
""",
    "gan_search.ipynb": """
seed = 0
widths, num_latent, image_steps, batch_size = (4,), 4, 3, 4
num_told, num_drawn, num_pretrain = 100, 50, 30
num_seeds, num_queries, batch, population_size = 2, 20, 5, 5
""",
    "vae_search.ipynb": """
seed = 0
widths, num_latent, image_steps, batch_size = (4,), 4, 60, 16
arch_width, arch_steps, num_drawn = 16, 50, 40
search_width, search_steps = 8, 20
num_seeds, num_queries, batch = 2, 20, 5
""",
}


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def assigned(source: str) -> set[str]:
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {name.id for name in names}


def execute(name: str) -> nbformat.NotebookNode:
    """Runs a notebook at a tiny size; an error in a cell is one here."""
    notebook = read(name)
    (sizes,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    assert assigned(TINY[name]) == assigned(sizes.source)
    sizes.source = TINY[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return nbclient.NotebookClient(notebook, timeout=600).execute()


@pytest.fixture(scope="module")
def darts() -> nbformat.NotebookNode:
    return execute("darts.ipynb")


@pytest.fixture(scope="module")
def comparison() -> nbformat.NotebookNode:
    return execute("compare_strategies.ipynb")


def assert_pictures(notebook: nbformat.NotebookNode, names: list[str]) -> None:
    """Holds the cells that show a picture, none of them empty, against their names."""
    pictures = {
        cell.id: Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }
    assert list(pictures) == names
    for picture in pictures.values():
        assert len(picture.convert("L").getcolors()) > 10


def said_by(notebook: nbformat.NotebookNode) -> str:
    """What a notebook prints."""
    return "".join(
        output.text
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )


@pytest.mark.parametrize("name", TINY)
def test_notebook_is_stored_without_outputs(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_notebook_is_executed():
    assert {path.name for path in (ROOT / "colab").glob("*.ipynb")} == set(TINY)


def test_notebook_ends_with_the_test_accuracy(darts):
    (output,) = darts.cells[-1].outputs
    percent = re.fullmatch(r"test accuracy: (\d+\.\d\d) %\n", output.text)
    right = float(percent[1]) / 100 * 355
    assert right == pytest.approx(round(right), abs=0.02)


def test_notebook_shows_its_pictures(darts):
    names = ["data", "weights", "search-losses", "cells", "train-curves"]
    assert_pictures(darts, names)


@pytest.fixture(scope="module")
def enas() -> nbformat.NotebookNode:
    return execute("enas.ipynb")


def test_enas_shows_its_pictures(enas):
    assert_pictures(enas, ["reward", "ranking", "cell", "train"])


def test_enas_ranks_with_three_methods_and_ends_with_the_test_accuracy(enas):
    said = said_by(enas)
    for name in ("trained", "untrained"):
        pattern = rf"reward, {name}: ([\d.]+) % \(\+- [\d.]+\)"
        assert 0 <= float(re.search(pattern, said)[1]) <= 100
    for name in ("ENAS", "single-path one-shot", "random search"):
        found = re.search(rf"{name} +([\d.]+) %  (\|.*\|)\n", said)
        right = float(found[1]) / 100 * 32  # of eight batches of four
        assert right == pytest.approx(round(right), abs=0.02)
        assert len(nasbench201().from_string(found[2])) == 6
    assert re.search(r"test accuracy: \d+\.\d\d %\n$", said)


def test_comparison_shows_its_pictures(comparison):
    assert_pictures(comparison, ["signal", "regret"])


def test_comparison_ends_with_an_interval_a_strategy(comparison):
    (output,) = comparison.cells[-1].outputs
    pattern = r"(\w+) +([\d.]+) %  \(95 % interval ([\d.]+) to ([\d.]+)\)"
    rows = re.findall(pattern, output.text)
    names = ["random_search", "local_search", "regularized_evolution"]
    assert [row[0] for row in rows] == names
    for row in rows:
        mean, low, high = map(float, row[1:])
        assert 0 < low <= mean <= high <= 100


def test_own_images_end_with_a_test_accuracy():
    notebook = execute("your_own_images.ipynb")
    (picture,) = [cell for cell in notebook.cells if "plot_curves" in cell.source]
    assert_pictures(notebook, [picture.id])
    assert re.search(r"test accuracy: \d+\.\d\d %", said_by(notebook))


@pytest.fixture(scope="module")
def benchmark() -> nbformat.NotebookNode:
    return execute("make_a_benchmark.ipynb")


def test_benchmark_shows_its_pictures(benchmark):
    assert_pictures(benchmark, ["spread", "search"])


def test_benchmark_trains_all_and_ends_with_an_interval_a_strategy(benchmark):
    texts = [
        output.text
        for cell in benchmark.cells
        for output in cell.get("outputs", [])
        if "text" in output
    ]
    assert "6 architectures, as conv3x3-4 max_pool" in texts[0]
    assert "12 networks trained, 12 epochs in all" in texts[1]
    for name in ("random_search", "local_search"):
        pattern = name + r" +([\d.]+) %  \(95 % interval ([\d.]+) to ([\d.]+)\)"
        mean, low, high = map(float, re.search(pattern, texts[-1]).groups())
        assert 0 < low <= mean <= high <= 100


@pytest.fixture(scope="module")
def surrogates() -> nbformat.NotebookNode:
    return execute("surrogate_search.ipynb")


def test_surrogates_show_their_pictures(surrogates):
    assert_pictures(surrogates, ["verify", "search", "importance", "front"])


def test_surrogates_predict_verify_and_search(surrogates):
    said = said_by(surrogates)
    found = re.search(r"Kendall's tau (\S+); (\d+) % in the 95 % interval", said)
    assert 0.2 < float(found[1]) <= 1
    assert 50 <= int(found[2]) <= 100
    verified = re.findall(r"predicted (\S+) ± (\S+), measured (\S+)\n", said)
    predicted = [float(row[0]) for row in verified]
    assert len(verified) == 3
    assert predicted == sorted(predicted, reverse=True)
    for name in ("random_search", "bayesian_optimization"):
        pattern = name + r" +([\d.]+) %  \(95 % interval ([\d.]+) to ([\d.]+)\)"
        mean, low, high = map(float, re.search(pattern, said).groups())
        assert 0 < low <= mean <= high <= 100
    share = re.search(r"([\d.]+) % of the hypervolume after 40 evaluations", said)
    assert 50 < float(share[1]) <= 100


def assert_summary(said: str, names: list[str]) -> None:
    """Holds the accuracies at the end against the best one of the table of digits."""
    best = float(re.search(r"best test accuracy in the table: ([\d.]+) %", said)[1])
    pattern = r"(\w+) +([\d.]+) %  \(95 % interval ([\d.]+) to ([\d.]+)\)"
    rows = re.findall(pattern, said)
    assert [row[0] for row in rows] == names
    for row in rows:
        mean, low, high = map(float, row[1:])
        assert 0 < low <= mean <= high <= best <= 100


@pytest.fixture(scope="module")
def adversarial() -> nbformat.NotebookNode:
    return execute("gan_search.ipynb")


def test_adversarial_shows_its_pictures(adversarial):
    assert_pictures(adversarial, ["train", "samples", "drawn", "regret"])


def test_adversarial_draws_and_searches(adversarial):
    said = said_by(adversarial)
    pattern = r"(\w+ fit) +validity (\S+), uniqueness (\S+), novelty (\S+)\n"
    found = {row[0]: tuple(map(float, row[1:])) for row in re.findall(pattern, said)}
    assert list(found) == ["before fit", "after fit"]
    for validity, uniqueness, novelty in found.values():
        assert validity == 1  # every choice is an architecture there
        assert 0 < uniqueness <= 1
        assert 0 <= novelty <= 1
    means = dict(re.findall(r"(the table|drawn \w+ fit) +([\d.]+) % on average", said))
    assert float(means["the table"]) == pytest.approx(table_mean(), abs=0.006)
    assert 100 > float(means["drawn after fit"]) > float(means["drawn before fit"])
    names = ["random_search", "regularized_evolution", "gan_search"]
    assert_summary(said, names)


def table_mean() -> float:
    """Of the accuracies that strategies see in the table of digits, in percent."""
    return float(np.mean(benchmarks.load("digits").columns["valid_acc_16ep"]))


@pytest.fixture(scope="module")
def variational() -> nbformat.NotebookNode:
    return execute("vae_search.ipynb")


def test_variational_shows_its_pictures(variational):
    names = ["train", "reconstructions", "samples", "regret"]
    assert_pictures(variational, names)


def test_variational_encodes_walks_and_searches(variational):
    said = said_by(variational)
    pattern = r"bound (-[\d.]+) nats an image, of which the divergence takes ([\d.]+)\n"
    bound, divergence = map(float, re.search(pattern, said).groups())
    assert -64 * np.log(2) - 10 < bound < -divergence
    pattern = r"reconstruction (\S+), validity (\S+), uniqueness (\S+)\n"
    same, validity, uniqueness = map(float, re.search(pattern, said).groups())
    assert validity == 1
    assert 0 <= same <= 1
    assert 0 < uniqueness <= 1
    way = re.findall(r"^\|.*\|$", said, re.MULTILINE)
    assert len(way) == 7
    assert all(len(nasbench201().from_string(cell)) == 6 for cell in way)
    assert_summary(said, ["random_search", "latent_search"])
