"""Checkpoints of any pytree, written with orbax.

A folder of checkpoints holds one folder a step::

    STEP/manifest.json   dtype and shape of every leaf, SHA-256 of every file
    STEP/arrays/         what orbax wrote

A step is written under another name and renamed when it is whole, so a process
that dies leaves a whole checkpoint or none. The sums are compared before orbax
reads: orbax alone takes a flipped bit of an array for a number, and fills the
screen with tracebacks over a truncated file.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxnas.base import InputError, PyTree

MARGIN = 10**5  # bytes of a checkpoint beside its arrays
PARTIAL = "partial"
"""Folder name of a step that is being written or deleted."""


class Checkpoints(NamedTuple):
    """A folder of checkpoints, named by step; made at the first `save`.

    One process at a time may write to it.
    """

    folder: Path
    keep: int = 2  # how many of the newest steps stay

    def steps(self) -> list[int]:
        """Returns the saved steps, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> int | None:
        """Returns the newest step, None where there is none yet."""
        return max(self.steps(), default=None)

    def save(self, step: int, tree: PyTree) -> None:
        """Writes `tree` as the newest checkpoint, then deletes the oldest.

        Args:
          step: number of finished steps; above every saved one.
          tree: arrays of numbers or bools of any shape, typed PRNG keys, Python
            numbers; () and None as well.

        Raises:
          InputError: the step is not above the newest; a leaf is no array of
            numbers; the folder cannot be written.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise InputError(
                f"expected a step above {latest}, the newest in {self.folder}, "
                f"got {step}"
            )
        partial = self.folder / PARTIAL
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _expect_room(partial, tree)
            _write(partial, tree)
            partial.rename(self.folder / str(step))
            for old in self.steps()[: -self.keep]:
                (self.folder / str(old)).rename(partial)
                shutil.rmtree(partial)
        except (OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(
                f"cannot write checkpoint {step} to {self.folder}: {_line(error)}; "
                "make room there or choose another --workdir, and start again"
            ) from error

    def delete(self) -> None:
        """Deletes every step, and the folder if nothing else is in it."""
        for name in [PARTIAL, *self.steps()]:
            shutil.rmtree(self.folder / str(name), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Reads a checkpoint, every bit as it was saved.

        Args:
          step: a saved step.
          like: the structure, dtypes and shapes that are expected, as arrays or
            `jax.ShapeDtypeStruct`.

        Returns:
          A tree like `like`: jax arrays placed as `like`'s are where it holds
          jax arrays, typed keys where it holds keys, numpy arrays elsewhere.

        Raises:
          InputError: the checkpoint is missing, damaged or of another tree.
        """
        path = self.folder / str(step)
        try:
            leaves = _check_files(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"checkpoint {path} is damaged ({_line(error)}): delete that "
                "folder to go on from the checkpoint before it, or anew"
            ) from error
        wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
        _check_leaves(path, leaves, {_name(key): _spec(leaf) for key, leaf in wanted})
        arrays: dict[str, Any] = {}
        if (path / "arrays").exists():
            arrays = ocp.PyTreeCheckpointer().restore((path / "arrays").absolute())
        return jax.tree.unflatten(
            treedef,
            [_place(arrays.get(str(i)), leaf) for i, (_, leaf) in enumerate(wanted)],
        )


def _expect_room(folder: Path, tree: PyTree) -> None:
    """Before the writing threads find out, each in its own words."""
    needed = sum(getattr(leaf, "nbytes", 8) for leaf in jax.tree.leaves(tree))
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        raise OSError(
            f"{(needed + MARGIN) / 1e6:.3g} MB are needed, {free / 1e6:.3g} are free"
        )


def _write(path: Path, tree: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    data = [jax.random.key_data(x) if _is_key(x) else x for _, x in leaves]
    arrays = [np.asarray(array) for array in jax.device_get(data)]
    for (key, _), array in zip(leaves, arrays, strict=True):
        if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise InputError(f"leaf {_name(key)} is no array of numbers: {array.dtype}")
    # Orbax refuses arrays without elements: their shape in the manifest is enough.
    filled = {str(i): array for i, array in enumerate(arrays) if array.size}
    if filled:
        with _quiet():
            ocp.PyTreeCheckpointer().save((path / "arrays").absolute(), filled)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    manifest = {
        "leaves": {_name(key): _spec(leaf) for key, leaf in leaves},
        "files": {file.relative_to(path).as_posix(): _sum(file) for file in files},
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every failed write with tracebacks, and raises it as well."""
    logger = logging.getLogger("absl")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _check_files(path: Path) -> dict[str, str]:
    """Returns dtype and shape of every leaf, after comparing all sums."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        if _sum(path / name) != expected:
            raise InputError(f"{name} has changed since it was written")
    return dict(manifest["leaves"])


def _check_leaves(path: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"checkpoint {path} is of another run: leaf {name} was expected as "
                f"{wanted.get(name, 'absent')}, is {found.get(name, 'absent')}; "
                "use another work folder"
            )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


def _place(value: np.ndarray | None, like: Any) -> Any:
    """Makes of a saved array what `like` is; None stands for no elements."""
    if value is None:
        shaped = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
        value = np.empty(shaped.shape, shaped.dtype)
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(value), impl=impl)
    if isinstance(like, jax.Array):
        placed = like.sharding if like.committed else None
        return jax.device_put(value, placed)
    return value


def _spec(leaf: Any) -> str:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{array.dtype}{list(array.shape)}"


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path) or "itself"


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) < 200 else f"{line[:80]} ... {line[-100:]}"
