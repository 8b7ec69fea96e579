"""A work folder: what one run is asked, does, logs and finds.

A work folder holds::

    config.json     the configuration; another one is refused
    log.csv         one row a logged step
    checkpoints/    one folder a phase, see `jaxnas.checkpoint`
    run.json        seconds spent in each phase, names of the files written
    result.json     the result, there once the run has finished

and whatever else `Run.path` and `Run.write_json` are asked for.
"""

import contextlib
import dataclasses
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxnas.base import InputError
from jaxnas.checkpoint import Checkpoints
from jaxnas.files import Log, plain, read_json, write_json, writing

NOT_CONFIGURATION = ("workdir", "overwrite", "data_dir")
"""Flags that may change between two starts of the same run."""


@contextlib.contextmanager
def open_run(config: Any, columns: Sequence[str]) -> Iterator["Run"]:
    """Opens the work folder of a configuration, new or begun, for one process.

    What the configuration says is compared but for `NOT_CONFIGURATION`.
    `config.overwrite` clears a run of another configuration; a run of the same
    one goes on whatever it says, so a killed command can be repeated as it was.

    Args:
      config: a dataclass with `workdir: Path` and `overwrite: bool`.
      columns: of log.csv, after `phase` and `step`.

    Yields:
      The run. An interrupt or a FloatingPointError (a loss that is not finite)
      that leaves it says which checkpoint is kept.

    Raises:
      InputError: the folder cannot be written, is used by another process, or
        holds something else: foreign files, another run, a damaged config.json.
    """
    folder = Path(config.workdir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _claim(folder, _settings(config), config.overwrite)
        run = Run(folder, columns)
        try:
            yield run
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {run.kept()}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(run.kept()) from None
        finally:
            run.clock(None)


def configuration(folder: Path) -> dict[str, Any]:
    """Returns what config.json of a work folder says, nothing where there is none.

    Raises:
      InputError: it is damaged.
    """
    if not folder.is_dir():
        return {}
    return read_json(folder / "config.json", "choose another --workdir") or {}


class Run:
    """An open work folder; `open_run` makes it.

    Attributes:
      folder: its path.
      seconds: spent in each phase, over all starts of the run; see `clock`.
      log: log.csv.
    """

    def __init__(self, folder: Path, columns: Sequence[str]):
        """Reads what earlier starts left.

        Raises:
          InputError: log.csv or run.json is damaged.
        """
        self.folder = folder
        state = read_json(folder / "run.json", "delete it") or {}
        self.seconds: dict[str, float] = state.get("seconds", {})
        self._files: list[str] = state.get("files", [])
        if not (isinstance(self.seconds, dict) and isinstance(self._files, list)):
            raise InputError(f"{folder / 'run.json'} is damaged: delete it")
        self._parts: list[str] = []  # that `once` has
        self._phase: str | None = None
        self._since = 0.0
        self.log = Log(self.path("log.csv"), tuple(columns))

    def path(self, name: str) -> Path:
        """Returns where to write a file; `--overwrite` will clear it."""
        if name not in self._files:
            self._files.append(name)
            self._save_state()
        return self.folder / name

    def write_json(self, name: str, value: Any) -> None:
        """Writes numbers, strings, arrays and containers of them; NaN is null.

        Raises:
          InputError: the file cannot be written.
        """
        write_json(self.path(name), value)

    def once(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns what <name>.json says, which is written when it is not there.

        Raises:
          InputError: the file is damaged or cannot be written.
        """
        path = self.path(f"{name}.json")
        if not path.exists():
            self.write_json(path.name, work())
        self._parts.append(name)
        return read_json(path, "delete it to run that part again") or {}

    def checkpoints(self, phase: str) -> Checkpoints:
        """Returns the checkpoints of a phase."""
        return Checkpoints(self.folder / "checkpoints" / phase)

    def rate(self, phase: str) -> float | None:
        """Returns a phase's steps per second, None if it took none."""
        steps, seconds = self.checkpoints(phase).latest(), self.seconds.get(phase)
        return steps / seconds if steps and seconds else None

    def clock(self, phase: str | None) -> None:
        """Adds the time since the last call to the phase that was named then.

        Called with the current phase again after each chunk, it loses no more
        than a chunk to a kill.
        """
        now = time.monotonic()
        if self._phase is not None:
            spent = self.seconds.get(self._phase, 0.0) + now - self._since
            self.seconds[self._phase] = round(spent, 3)
            self._save_state()
        self._phase, self._since = phase, now

    def result(self) -> dict[str, Any] | None:
        """Returns the result of a finished run, None before.

        Raises:
          InputError: result.json is damaged.
        """
        remedy = "delete it to go on from the last checkpoint"
        return read_json(self.folder / "result.json", remedy)

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Writes result.json: `result`, seconds of the phases, version, device.

        Returns:
          What the file holds.
        """
        self.clock(None)
        whole = {
            **result,
            **{f"seconds_{phase}": spent for phase, spent in self.seconds.items()},
            "jax_version": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        self.write_json("result.json", whole)
        return dict(plain(whole))

    def kept(self) -> str:
        """Says what the run goes on from: a checkpoint, or else parts that are done."""
        phases = [phase for phase in _phases(self.folder) if phase.steps()]
        if not phases and self._parts:
            return f"{', '.join(self._parts)} kept"
        if not phases:
            return "there is no checkpoint yet"
        newest = max(phases, key=lambda phase: phase.folder.stat().st_mtime_ns)
        return f"the last good checkpoint is {newest.folder / str(newest.latest())}"

    def _save_state(self) -> None:
        state = {"seconds": self.seconds, "files": self._files}
        write_json(self.folder / "run.json", state)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder until this process ends, in whatever way."""
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"work folder {folder} is used by another process: wait for it, or "
            "choose another --workdir"
        ) from None
    except OSError:
        pass  # some network file systems have no locks
    try:
        yield
    finally:
        os.close(descriptor)


def _claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Makes sure that the folder holds this configuration and nothing else."""
    path = folder / "config.json"
    try:
        found = read_json(path, "choose another --workdir, or --overwrite")
    except InputError:
        if not overwrite:
            raise
        found = {}
    if found is None:
        _refuse_foreign(folder)
    elif found != settings:
        if not overwrite:
            raise InputError(
                f"work folder {folder} holds a run with "
                f"{_difference(found, settings)}: choose another --workdir, or "
                "--overwrite"
            )
        _clear(folder)
    if found != settings:
        write_json(path, settings)


def _refuse_foreign(folder: Path) -> None:
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    if names:
        raise InputError(
            f"work folder {folder} holds {min(names)} but no config.json: expected "
            "a new or empty folder, choose another --workdir"
        )


def _clear(folder: Path) -> None:
    """Deletes what a run wrote, its config.json last."""
    state = read_json(folder / "run.json", "delete the folder") or {}
    for phase in _phases(folder):
        phase.delete()
    with contextlib.suppress(OSError):
        (folder / "checkpoints").rmdir()
    for name in [*state.get("files", []), "run.json", "config.json"]:
        (folder / Path(name).name).unlink(missing_ok=True)


def _phases(folder: Path) -> list[Checkpoints]:
    return [Checkpoints(path) for path in (folder / "checkpoints").glob("*/")]


def _settings(config: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(config).items()
    return plain({k: v for k, v in fields if k not in NOT_CONFIGURATION})


def _difference(found: dict[str, Any], settings: dict[str, Any]) -> str:
    names = [*settings, *found]
    name = next(name for name in names if found.get(name) != settings.get(name))
    return f"{name} {found.get(name, 'unset')}, not {settings.get(name, 'unset')}"
