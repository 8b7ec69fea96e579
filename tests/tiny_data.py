"""A table and images that are small enough for experiments in tests."""

from pathlib import Path

import numpy as np

from jaxnas import benchmarks
from jaxnas.base import Table

NUM_CHOICES = 4, 3, 4, 2
ARCHS = np.stack(np.meshgrid(*map(np.arange, NUM_CHOICES), indexing="ij"), -1)
ARCHS = ARCHS.reshape(-1, 4).astype(np.int32)
ACCURACY = 50 + ARCHS @ np.array([8.0, 2.0, 4.0, 1.0]) + ARCHS[:, 0] * ARCHS[:, 2]


def save_table(folder: Path, **columns: np.ndarray) -> str:
    """Writes a table of 96 architectures; test accuracies are a point lower."""
    columns = {
        "valid_acc_4ep": ACCURACY,
        "test_acc_4ep": ACCURACY - 1,
        "cost_4ep": np.full(len(ARCHS), 2.0),
        **columns,
    }
    columns = {name: column[:, None] for name, column in columns.items()}
    table = Table("tiny", "categorical", NUM_CHOICES, ("a",), ARCHS, columns)
    benchmarks.save(table, folder / "tiny.npz")
    return str(folder / "tiny.npz")


def save_colours(folder: Path) -> str:
    """Writes sixty images of three classes, each of its colour."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    x = rng.integers(0, 40, (60, 4, 4, 3))
    x[np.arange(60), :, :, labels] += 200
    np.savez(folder / "colours.npz", images=x.astype(np.uint8), labels=labels)
    return str(folder / "colours.npz")
