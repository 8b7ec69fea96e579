"""Small files of a run that survive a kill at any moment: JSON and the log.

A file of JSON is replaced whole; a log grows by rows, and a row that a kill cut
short is taken out when it is opened again.
"""

import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxnas.base import InputError


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """Returns the object that a file holds, None where there is no file.

    Raises:
      InputError: the file is no object of JSON; the line ends with `remedy`.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, got {value!r:.40}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}") from error
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes numbers, strings, arrays and containers of them, strictly JSON.

    Raises:
      InputError: the file cannot be written.
    """
    _replace(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Makes JSON's types of arrays, paths and containers; NaN and inf are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Log:
    """A CSV file of one row a logged step: `phase`, `step` and numbers.

    A step counts what is finished, as a checkpoint's does. Rows are written
    before the checkpoint that covers them, and `drop_after` takes out those
    that no checkpoint covers, so that each step is there once.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]):
        """Opens a log, new or begun.

        Raises:
          InputError: the file is damaged, has other columns or is unwritable.
        """
        self._path = path
        self._columns = ("phase", "step", *columns)
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            self._rewrite(self._rows())

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends a row; columns that `values` lacks stay empty.

        Raises:
          InputError: the file cannot be written.
        """
        row = {"phase": phase, "step": int(step)}
        row |= {name: _number(value) for name, value in values.items()}
        with writing(self._path), self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def drop_after(self, phase: str, step: int) -> None:
        """Drops the rows of a phase past a step: 0 drops all."""
        rows = self._rows()
        kept = [row for row in rows if row[0] != phase or int(row[1]) <= step]
        if len(kept) < len(rows):
            self._rewrite(kept)

    def read(self, phase: str) -> dict[str, list[float]]:
        """Returns the columns of a phase, `step` first; NaN where empty."""
        rows = [row[1:] for row in self._rows() if row[0] == phase]
        return {
            name: [float(row[i] or "nan") for row in rows]
            for i, name in enumerate(self._columns[1:])
        }

    def _rows(self) -> list[list[str]]:
        text = self._path.read_bytes() if self._path.exists() else b""
        whole = (text.rpartition(b"\n")[0] or text).decode(errors="replace")
        header, *rows = csv.reader(whole.splitlines() or [",".join(self._columns)])
        try:
            if header != list(self._columns):
                raise ValueError(f"its columns are {','.join(header):.60}")
            for row in rows:
                _, number, *numbers = zip(self._columns, row, strict=True)
                int(number[1])
                [float(cell or "nan") for _, cell in numbers]
        except ValueError as error:
            raise InputError(
                f"{self._path} is damaged or of another run ({error}): move it away"
            ) from error
        return rows

    def _rewrite(self, rows: list[list[str]]) -> None:
        lines = [",".join(row) for row in [list(self._columns), *rows]]
        _replace(self._path, "\n".join(lines) + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into an InputError that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose another --workdir, or "
            "make room there"
        ) from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        partial.write_text(text)
        partial.replace(path)


def _number(value: Any) -> int | str:
    """Nine digits give every float32 back."""
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) else f"{number:.9g}"
