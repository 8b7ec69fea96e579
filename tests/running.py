"""Experiments started as a person would, and what they leave."""

import dataclasses
import fcntl
import importlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxnas import cli
from jaxnas.base import InputError
from jaxnas.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"

Outcome = tuple[int, list[str], str]
"""Exit code, lines on stdout, stderr."""


def start(name: str, shared: Path, workdir: Path, *args: str) -> subprocess.Popen:
    """Starts an experiment; programs that it compiles are kept in the shared folder."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(shared / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, EXPERIMENTS / name, "--workdir", workdir, *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


def kill_at_checkpoint(process: subprocess.Popen, checkpoints: Checkpoints) -> None:
    """Waits for a new checkpoint, then ends the process without a warning."""
    before = checkpoints.latest()
    while checkpoints.latest() == before and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL


def run_here(experiment, monkeypatch, capsys) -> Callable[..., Outcome]:
    """Makes what runs an experiment, a module, in this process."""
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)

    def run(*args: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            cli.main(experiment.main, experiment.PRESETS, [*map(str, args)])
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err

    return run


class Silent:
    """Stands for pytest's capture, which no fixture of a module may have."""

    def readouterr(self):
        return "", ""


def shared_folder(tmp_path_factory, name: str) -> Path:
    """A folder that all processes of pytest share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / name
    folder.mkdir(exist_ok=True)
    return folder


def run_once(tmp_path_factory, name: str, flags: list[str]) -> Path:
    """The work folder of an uninterrupted run, the same for all processes of pytest."""
    shared = shared_folder(tmp_path_factory, name)
    folder = shared / "whole"
    with (shared / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "result.json").exists():
            patch.syspath_prepend(EXPERIMENTS)
            experiment = importlib.import_module(name)
            flags = ["--workdir", str(folder), *flags]
            experiment.main(cli.parse(experiment.PRESETS, flags))
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What each file holds, and when it was written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def assert_refused(outcome: Outcome, *says: str) -> None:
    """Holds an error in one line against what it has to say."""
    code, out, err = outcome
    assert (code, out) == (2, [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in says:
        assert part in err


def assert_numbers_are_checked(experiment, dataset) -> None:
    """Holds that each flag that is a number refuses what is none for it."""
    numbers = "int", "float", "int | None", "float | None"
    names = [
        field.name
        for field in dataclasses.fields(experiment.Config)
        if str(getattr(field.type, "__name__", field.type)) in numbers
    ]
    assert {"seed", "search_steps", "drop_path"} <= set(names)
    for name, value in itertools.product(names, (-1, math.nan, math.inf)):
        config = dataclasses.replace(experiment.PRESETS["paper"], **{name: value})
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} "):
            experiment.check(config, dataset)
