"""From NAS-Bench-101's TFRecord to a table."""

import base64
import itertools
import json
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.base import InputError, Table
from jaxnas.benchmarks import check
from jaxnas.converters.tfrecord import read_records
from jaxnas.spaces.nasbench101 import (
    INNER,
    NUM_CHOICES,
    OPS,
    OUTPUT,
    SOURCES,
    TARGETS,
    VERTICES,
)

RUNS = 3  # of each architecture at each budget


def from_nasbench101(path: str | Path) -> Table:
    """Reads NAS-Bench-101 (Ying et al. 2019, arXiv:1902.09635), without TensorFlow.

    The table has valid_acc, test_acc and cost at each of the file's budgets: 108 epochs
    in nasbench_only108.tfrecord, and 4, 12, 36 in nasbench_full.tfrecord. Cost is the
    training alone. It takes a minute for a million records.

    Args:
      path: a TFRecord of lists in JSON: hash, epochs, adjacency matrix, operations,
        and a `ModelMetrics` of protocol buffers in base 64, of which the last
        evaluation counts.

    Raises:
      InputError: there is no such file; it is cut off or damaged; a record is
        another; an architecture has fewer than three runs at a budget.
    """
    rows: dict[str, int] = {}
    archs = []
    row_of, epochs_of, values = array("q"), array("q"), array("d")
    for number, record in enumerate(read_records(Path(path))):
        try:
            name, epochs, adjacency, operations, metrics = json.loads(record)
            if name not in rows:
                archs.append(_arch(adjacency, operations))
            row_of.append(rows.setdefault(name, len(rows)))
            epochs_of.append(epochs)
            values.extend(_final(base64.b64decode(metrics, validate=True)))
        except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
            raise InputError(
                f"{path}: expected a record of NAS-Bench-101, but record {number} is "
                f"none ({type(error).__name__}: {error}): get the file again"
            ) from error
    if not archs:
        raise InputError(f"{path}: expected records, but got none: get the file again")
    columns = _average(
        np.array(row_of), np.array(epochs_of), np.array(values).reshape(-1, 3), path
    )
    arrays: dict[str, Any] = {
        "name": np.str_("nasbench101"),
        "space": np.str_("nasbench101"),
        "num_choices": np.array(NUM_CHOICES),
        "datasets": np.array(["cifar10"]),
        "source": np.str_(f"NAS-Bench-101 (arXiv:1902.09635), from {Path(path).name}"),
        "archs": np.array(archs, np.int32),
        **columns,
    }
    return check(arrays, str(path))


def _average(rows, epochs, values, path):
    """Columns float[A, 1] of the means over all runs of an architecture."""
    columns = {}
    for budget in np.unique(epochs):
        at = epochs == budget
        runs = np.bincount(rows[at], minlength=rows.max() + 1)
        if runs.min() < RUNS:
            raise InputError(
                f"{path}: expected {RUNS} runs of each architecture at {budget} "
                f"epochs, but one has {runs.min()}: it may be cut off, get it again"
            )
        for name, column in zip(
            ("valid_acc", "test_acc", "cost"), values.T, strict=True
        ):
            total = np.bincount(rows[at], column[at])
            columns[f"{name}_{budget}ep"] = (total / runs)[:, None]
    return columns


def _arch(adjacency, operations):
    """The int32[26] of a matrix of 2 to 7 vertices and their operations, as written."""
    names = operations.split(",")
    size = len(names)
    matrix = np.array([int(entry) for entry in adjacency]).reshape(size, size)
    if (names[0], names[-1]) != ("input", "output") or (np.tril(matrix) > 0).any():
        raise ValueError(f"no module: {adjacency} {operations}")
    vertices = [*range(size - 1), OUTPUT]
    full = np.zeros((VERTICES, VERTICES), int)
    full[np.ix_(vertices, vertices)] = matrix
    ops = [OPS.index(name) for name in names[1:-1]]
    ops += [0] * (INNER - len(ops))
    return [*full[SOURCES, TARGETS], *ops]


def _final(metrics):
    """Validation and test accuracy in percent and seconds of training, at the end.

    The fields are those of the release's `model_metrics.proto`: evaluations have the
    number 1, and in one of them the time has 2, the accuracies have 4 and 5.
    """
    evaluations = [value for number, value in _fields(metrics) if number == 1]
    found = dict(_fields(evaluations[-1]))
    seconds, valid, test = (struct.unpack("<d", found[i])[0] for i in (2, 4, 5))
    return 100 * valid, 100 * test, seconds


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value, int or bytes, of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(message, at)
        if size is None or at + size > len(message):
            raise ValueError("a damaged protocol buffer")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message, at):
    """The number at a place, seven bits a byte, the lowest first; and where it ends."""
    value = 0
    for shift in itertools.count(0, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at
