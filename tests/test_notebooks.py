"""The notebooks, from top to bottom at a tiny size."""

import ast
import base64
import io
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TINY = """
seed = 0
search_steps, search_batch_size, search_channels, search_cells = 3, 4, 2, 1
train_steps, train_batch_size, train_channels, train_cells = 3, 4, 2, 1
"""


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def assigned(source: str) -> set[str]:
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {name.id for name in names}


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    """The DARTS notebook, after it ran without an error at a tiny size."""
    notebook = read("darts.ipynb")
    (sizes,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    assert assigned(TINY) == assigned(sizes.source)
    sizes.source = TINY
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        return nbclient.NotebookClient(notebook, timeout=600).execute()


def test_notebook_is_stored_without_outputs():
    for cell in read("darts.ipynb").cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_notebook_ends_with_the_test_accuracy(executed):
    (output,) = executed.cells[-1].outputs
    percent = re.fullmatch(r"test accuracy: (\d+\.\d\d) %\n", output.text)
    right = float(percent[1]) / 100 * 355
    assert right == pytest.approx(round(right), abs=0.02)


def test_notebook_shows_its_pictures(executed):
    pictures = {
        cell.id: Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    }
    names = ["data", "weights", "search-losses", "cells", "train-curves"]
    assert list(pictures) == names
    for picture in pictures.values():
        assert len(picture.convert("L").getcolors()) > 10
