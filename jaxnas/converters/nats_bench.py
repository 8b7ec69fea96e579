"""From NATS-Bench, of which NAS-Bench-201 is the topology space, to a table."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from jaxnas.base import InputError, Table
from jaxnas.benchmarks import check
from jaxnas.spaces.nasbench201 import NUM_CHOICES, from_string

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
EPOCHS = (12, 200)
# Trained on half of CIFAR-10's training images, of which the others are validation.
SEARCHED = {"cifar10": "cifar10-valid"}


def from_nats_bench(path: str | Path, *, allow_pickle: bool = False) -> Table:
    """Reads the topology space (Dong et al. 2021, arXiv:2009.00437) by its own package.

    The table has valid_acc, test_acc and cost at 12 and 200 epochs. For CIFAR-10
    validation is that of a training on half of the images, test that of one on all;
    for the others both are of one training. Cost is what the package's own simulation
    takes: the training before validation, and one validation.

    Args:
      path: NATS-tss-v1_0-3ffb9.pickle.pbz2, or the folder NATS-tss-v1_0-3ffb9-simple,
        which takes less memory.
      allow_pickle: must be true, for the release are pickles, which can run any code.

    Raises:
      InputError: pickles are not allowed; the package is not installed; there is no
        such file, or the package cannot read it.
    """
    if not allow_pickle:
        raise InputError(
            "expected allow_pickle (--allow-pickle), for NATS-Bench's files are "
            "pickles, which can run any code, but got none: give it if you trust them"
        )
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"expected NATS-Bench's file or folder, but there is no {path}: see "
            "https://github.com/D-X-Y/NATS-Bench"
        )
    try:
        package: Any = importlib.import_module("nats_bench")
    except ImportError as error:
        raise InputError(
            "expected the package nats_bench, but it cannot be imported: "
            "pip install jaxnas[nats]"
        ) from error
    try:
        api = package.create(str(path), "tss", fast_mode=path.is_dir(), verbose=False)
        texts = list(api.meta_archs)
        rows = [_read(api, index, path.is_dir()) for index in range(len(texts))]
    # What damaged pickles raise has no common class.
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
        *(AssertionError, ImportError, pickle.UnpicklingError),
    ) as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: expected NATS-Bench's topology space, but its package cannot "
            f"read it ({type(error).__name__}: {said}): get it again"
        ) from error
    arrays: dict[str, Any] = {
        "name": np.str_("nasbench201"),
        "space": np.str_("nasbench201"),
        "num_choices": np.array(NUM_CHOICES),
        "datasets": np.array(DATASETS),
        "source": np.str_(f"NATS-Bench (arXiv:2009.00437), from {path.name}"),
        "archs": np.array([from_string(text) for text in texts], np.int32),
    }
    names = [
        f"{name}_{n}ep" for n in EPOCHS for name in ("valid_acc", "test_acc", "cost")
    ]
    values = np.array(rows).reshape(len(rows), len(DATASETS), len(names))
    columns = {name: values[:, :, i] for i, name in enumerate(names)}
    return check({**arrays, **columns}, str(path))


def _read(api, index, is_folder):
    """All values of an architecture: [S][valid, test, cost at 12, the same at 200]."""
    values = []
    for dataset in DATASETS:
        for hp in map(str, EPOCHS):
            searched, trained = (
                api.get_more_info(index, name, hp=hp, is_random=False)
                for name in (SEARCHED.get(dataset, dataset), dataset)
            )
            cost = searched["train-all-time"] + searched["valid-per-time"]
            values += [searched["valid-accuracy"], trained["test-accuracy"], cost]
    if is_folder:
        api.arch2infos_dict.clear()  # what it has read would fill the memory
    return values
