"""Tables of measured architectures: reading, checking and writing them.

A table is one `.npz` file, written by `save`, that holds::

    name         str            of the table
    space        str            name of its space, "categorical" for one's own
    num_choices  int32[D]       choices of each decision
    datasets     str[S]         names
    archs        int32[A, D]    an architecture a row, each once
    valid_acc_12ep, test_acc_200ep, cost_12ep, ...
                 float[A, S]    a quantity at a budget, in epochs: accuracies in
                                percent, cost in seconds, anything else as it is
    source       str            optional: who measured it, and which version it is
    sha256       str            of all the others, see `digest`

No object is ever unpickled. The cells of NAS-Bench-201 as one array a quantity
(`ops`, `op_names`, `datasets`, `test_acc_200ep`, ...) are read too.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnas.base import InputError, Table

TABLES = Path(__file__).parent / "tables"  # those that the package carries
COLUMN = re.compile(r"([A-Za-z]\w*)_([1-9]\d*)ep")
DAMAGE = (
    *(OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy raises for files that are cut off, changed or no .npz at all."""
META = ("name", "space", "num_choices", "datasets", "archs")
OPTIONAL = ("source", "sha256")
SOURCE = "NAS-Bench-201 (arXiv:2001.00326), a file that names no version"
NASBENCH201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def load(name_or_path: str | Path) -> Table:
    """Reads a table and checks it.

    Args:
      name_or_path: name of a table that the package carries, or path of an `.npz`.

    Raises:
      InputError: there is no such table; the file is damaged or of another layout;
        an architecture is twice in it or out of range; a number is not finite, an
        accuracy not a percentage, a cost below zero.
    """
    path = Path(name_or_path)
    carried = sorted(path.stem for path in TABLES.glob("*.npz"))
    if str(name_or_path) in carried:
        path = TABLES / f"{name_or_path}.npz"
    elif not path.is_file():
        raise InputError(
            f"expected a table of {', '.join(carried)} or the path of an .npz, but "
            f"got {name_or_path}: there is no such file"
        )
    try:
        # np.load leaves a file open that it cannot read.
        with path.open("rb") as raw:
            if not zipfile.is_zipfile(raw):
                raise ValueError("it is no zip file")
            raw.seek(0)
            file = np.load(raw, allow_pickle=False)
            arrays = {key: file[key] for key in file.files}
    except DAMAGE as error:
        raise InputError(
            f"{path} is damaged or no .npz of plain arrays ({error}): get it again"
        ) from error
    if "ops" in arrays and "archs" not in arrays:
        arrays = _from_nasbench201(path.stem, arrays)
    return check(arrays, str(path))


def save(table: Table, path: str | Path) -> None:
    """Writes a table as `load` reads it, once it has passed the same checks.

    Raises:
      InputError: the table would not be read back; the file cannot be written.
    """
    arrays = arrays_of(table)
    check(arrays, str(path))
    try:
        np.savez_compressed(path, **arrays, sha256=np.str_(digest(arrays)))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def arrays_of(table: Table) -> dict[str, Any]:
    """Returns what the file of a table holds, without its checksum."""
    return {
        "name": np.str_(table.name),
        "space": np.str_(table.space),
        "num_choices": np.array(table.num_choices, np.int32),
        "datasets": np.array(table.datasets),
        **({"source": np.str_(table.source)} if table.source else {}),
        "archs": np.asarray(table.archs, np.int32),
        **{name: np.asarray(column) for name, column in table.columns.items()},
    }


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if name != "sha256":
            found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def check(arrays: Mapping[str, np.ndarray], where: str) -> Table:
    """Makes a table of the arrays of a file, or says in one line why it is none."""

    def expect(holds: Any, what: str, came: Any) -> None:
        if not holds:
            raise InputError(
                f"{where}: expected {what}, but got {came}: mend the table"
            )

    missing = [name for name in META if name not in arrays]
    expect(not missing, f"arrays {', '.join(META)}", f"no {', '.join(missing)}")
    if "sha256" in arrays:
        came = digest(arrays)
        expect(str(arrays["sha256"]) == came, f"SHA-256 {arrays['sha256']}", came)
    num_choices, archs = np.asarray(arrays["num_choices"]), np.asarray(arrays["archs"])
    datasets = np.atleast_1d(arrays["datasets"])
    expect(
        num_choices.ndim == 1 and archs.ndim == 2,
        "num_choices[D] and archs[A, D]",
        f"{num_choices.shape} and {archs.shape}",
    )
    expect(
        archs.size and archs.shape[1] == len(num_choices),
        f"one architecture or more of {len(num_choices)} decisions",
        archs.shape,
    )
    for what, array in (("num_choices", num_choices), ("archs", archs)):
        integers = np.issubdtype(array.dtype, np.integer)
        expect(integers, f"{what} of integers", array.dtype)
    bad = np.flatnonzero(((archs < 0) | (archs >= num_choices)).any(1))
    if len(bad):
        expect(
            False,
            f"choices below {num_choices.tolist()}",
            f"{archs[bad[0]].tolist()} in row {bad[0]}",
        )
    unique, count = np.unique(archs, axis=0, return_counts=True)
    if len(unique) < len(archs):
        expect(
            False,
            "every architecture once",
            f"{unique[count.argmax()].tolist()} {count.max()} times",
        )
    one_each = len(datasets) == len(set(datasets.tolist())) > 0
    expect(one_each, "one dataset or more, each once", datasets.tolist())
    names = [name for name in arrays if name not in META + OPTIONAL]
    expect(names, "a column like valid_acc_12ep", "none")
    for name in names:
        expect(COLUMN.fullmatch(name), "columns like valid_acc_12ep", name)
        _check_column(name, arrays[name], (len(archs), len(datasets)), expect)
    return Table(
        str(arrays["name"]),
        str(arrays["space"]),
        tuple(num_choices.tolist()),
        tuple(map(str, datasets)),
        jnp.asarray(archs, jnp.int32),
        {name: jnp.asarray(arrays[name], jnp.float32) for name in names},
        str(arrays.get("source", "")),
    )


def _check_column(name, column, shape, expect):
    expect(column.shape == shape, f"{name} of shape {shape}", column.shape)
    is_number = np.issubdtype(column.dtype, np.number)
    expect(is_number, f"numbers in {name}", column.dtype)
    column = column.astype(np.float32)
    expect(
        np.isfinite(column).all(),
        f"finite numbers in {name}",
        f"{np.count_nonzero(~np.isfinite(column))} that are not",
    )
    low, high = column.min(), column.max()
    if name.startswith("cost_"):
        expect(low >= 0, f"{name} of 0 seconds or more", low)
    if split_column(name)[0].endswith("acc"):
        expect(
            low >= 0 and high <= 100,
            f"{name} from 0 to 100 percent",
            f"{low} to {high}",
        )


def split_column(name: str) -> tuple[str, int]:
    """Splits `valid_acc_12ep` into its quantity and its budget in epochs.

    Raises:
      InputError: it has another form.
    """
    match = COLUMN.fullmatch(name)
    if match is None:
        raise InputError(f"expected a column like valid_acc_12ep, but got {name}")
    return match[1], int(match[2])


def default_signal(table: Table) -> str:
    """The column that strategies see where nobody says which.

    The validation accuracy: after 12 epochs for NAS-Bench-201, else after the most.

    Raises:
      InputError: there is none.
    """
    if table.space == "nasbench201" and "valid_acc_12ep" in table.columns:
        return "valid_acc_12ep"
    pairs = map(split_column, table.columns)
    budgets = [budget for quantity, budget in pairs if quantity == "valid_acc"]
    if not budgets:
        raise InputError(
            f"expected --signal, since {table.name} has no column valid_acc: choose "
            f"one of {', '.join(table.columns)}"
        )
    return f"valid_acc_{max(budgets)}ep"


def _from_nasbench201(name, arrays):
    """Reads one array a quantity, with operations by the file's own numbers."""
    names = [str(op) for op in arrays.get("op_names", ())]
    if sorted(names) != sorted(NASBENCH201):
        raise InputError(
            f"expected op_names {', '.join(NASBENCH201)}, but got {', '.join(names)}"
        )
    order = np.array([NASBENCH201.index(op) for op in names], np.int32)
    ops = np.asarray(arrays["ops"])
    if not np.issubdtype(ops.dtype, np.integer) or not ops.size:
        raise InputError(f"expected ops of integers, but got {ops.dtype}{ops.shape}")
    if ops.min() < 0 or ops.max() >= len(order):
        raise InputError(
            f"expected ops from 0 to {len(order) - 1}, but got {ops.min()} to "
            f"{ops.max()}: mend the table"
        )
    columns = {k: v for k, v in arrays.items() if COLUMN.fullmatch(k)}
    return {
        "name": np.str_(name),
        "space": np.str_("nasbench201"),
        "source": arrays.get("source", np.str_(SOURCE)),
        "num_choices": np.full(6, len(order), np.int32),
        "datasets": arrays.get("datasets", np.array([])),
        "archs": order[ops],
        **columns,
    }
