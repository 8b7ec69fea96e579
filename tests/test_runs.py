import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.runs import open_run

COLUMNS = ("loss",)
NEW = {"config.json", "log.csv", "run.json"}  # files of a run that did nothing yet


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: Path
    overwrite: bool = False
    data_dir: Path = Path("data")
    seed: int = 0
    sizes: tuple[int, ...] = (1, 2)
    clip: float = math.inf
    output: Path = Path("out")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def work(config: Config) -> None:
    with open_run(config, COLUMNS) as run:
        run.checkpoints("search").save(1, {"a": np.zeros(2)})
        run.log.write("search", 1, {"loss": 1.0})
        run.path("curve.png").write_bytes(b"png")
        run.write_json("genotype.json", {"normal": []})
        run.finish({"test_accuracy": 50.0})


def assert_refused(config: Config, match: str) -> None:
    folder = config.workdir
    before = contents(folder) if folder.is_dir() else None
    with pytest.raises(InputError, match=match) as error, open_run(config, COLUMNS):
        pass
    assert "\n" not in str(error.value)
    assert before == (contents(folder) if folder.is_dir() else None)


def test_new_run_writes_its_configuration(tmp_path):
    folder = tmp_path / "runs" / "new"
    with open_run(Config(folder), COLUMNS) as run:
        assert run.folder == folder
        assert run.result() is None
        assert run.kept() == "there is no checkpoint yet"
    assert contents(folder).keys() == NEW
    assert json.loads((folder / "config.json").read_text()) == {
        "seed": 0,
        "sizes": [1, 2],
        "clip": None,
        "output": "out",
    }


def test_same_configuration_goes_on(tmp_path):
    work(Config(tmp_path))
    before = contents(tmp_path)
    # A moved data folder is the same run; so is a repeated --overwrite.
    again = Config(tmp_path, overwrite=True, data_dir=Path("moved"))
    with open_run(again, COLUMNS) as run:
        assert run.result()["test_accuracy"] == 50
        assert run.checkpoints("search").latest() == 1
        assert run.log.read("search") == {"step": [1], "loss": [1]}
    assert contents(tmp_path) == before


def test_other_configuration_is_refused(tmp_path):
    work(Config(tmp_path))
    assert_refused(Config(tmp_path, seed=3), "holds a run with seed 0, not 3: choose")
    assert_refused(Config(tmp_path, sizes=(1,)), r"sizes \[1, 2\], not \[1\]")


def test_configuration_of_other_fields_is_refused(tmp_path):
    work(Config(tmp_path))

    @dataclasses.dataclass(frozen=True)
    class Grown(Config):
        depth: int = 3

    assert_refused(Grown(tmp_path), "holds a run with depth unset, not 3")
    work(Grown(tmp_path / "grown"))
    assert_refused(Config(tmp_path / "grown"), "holds a run with depth 3, not unset")


def test_overwrite_clears_what_the_run_wrote_and_nothing_else(tmp_path):
    work(Config(tmp_path))
    foreign = {
        "notes.txt": b"mine",
        "mine.png": b"mine",
        "checkpoints/search/best/weights": b"mine",
        ".hidden": b"mine",
    }
    for name, content in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with open_run(Config(tmp_path, overwrite=True, seed=3), COLUMNS) as run:
        assert run.result() is None
        assert run.checkpoints("search").latest() is None
        assert run.seconds == {}
        assert run.log.read("search") == {"step": [], "loss": []}
    left = contents(tmp_path)
    assert json.loads(left["config.json"])["seed"] == 3
    assert left.keys() == NEW | foreign.keys()
    assert {name: left[name] for name in foreign} == foreign


def test_overwrite_without_foreign_files_leaves_an_empty_folder(tmp_path):
    work(Config(tmp_path))
    with open_run(Config(tmp_path, overwrite=True, seed=3), COLUMNS):
        assert set(os.listdir(tmp_path)) == NEW


def test_overwrite_does_not_leave_the_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    folder = tmp_path / "run"
    work(Config(folder))
    state = {"files": ["../mine", str(tmp_path / "mine")], "seconds": {}}
    (folder / "run.json").write_text(json.dumps(state))
    with open_run(Config(folder, overwrite=True, seed=3), COLUMNS):
        assert (tmp_path / "mine").read_text() == "mine"


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        assert_refused(Config(tmp_path, overwrite), "holds thesis.tex but no config")


def test_folder_of_hidden_leftovers_is_empty(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    work(Config(tmp_path))


def test_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(Config(tmp_path / "file"), "cannot write .*file: File exists;")
    assert_refused(Config(tmp_path / "file" / "a"), "cannot write .*: Not a directory;")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert_refused(Config(tmp_path), "cannot write .*: Permission denied;")
    assert_refused(Config(tmp_path / "new"), "cannot write .*: Permission denied;")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_configuration_is_refused_but_can_be_overwritten(tmp_path, content):
    work(Config(tmp_path))
    (tmp_path / "config.json").write_bytes(content)
    assert_refused(Config(tmp_path), r"config\.json is damaged .*--overwrite")
    with open_run(Config(tmp_path, overwrite=True), COLUMNS) as run:
        assert run.result() is None


def test_damaged_result_and_state_are_refused(tmp_path):
    work(Config(tmp_path))
    (tmp_path / "result.json").write_text("{")
    match = r"result\.json is damaged .*: delete it to go on"
    with (
        open_run(Config(tmp_path), COLUMNS) as run,
        pytest.raises(InputError, match=match),
    ):
        run.result()
    (tmp_path / "run.json").write_text("{")
    assert_refused(Config(tmp_path), r"run\.json is damaged .*: delete it")


def test_second_process_is_refused(tmp_path):
    code = "\n".join(
        [
            "import sys, types, dataclasses, pathlib",
            "from jaxnas.runs import open_run",
            "@dataclasses.dataclass",
            "class Config: workdir: pathlib.Path; overwrite: bool = False",
            "with open_run(Config(pathlib.Path(sys.argv[1])), ()):",
            "    print(1, flush=True); sys.stdin.read()",
        ]
    )

    @dataclasses.dataclass
    class Same:
        workdir: Path
        overwrite: bool = False

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], **pipes) as first:
        assert first.stdout.readline() == b"1\n"
        assert_refused(Same(tmp_path), "is used by another process: wait for it")
        first.kill()
        first.wait()
    with open_run(Same(tmp_path), COLUMNS):
        pass


def test_result_has_seconds_version_and_device(tmp_path):
    with open_run(Config(tmp_path), COLUMNS) as run:
        run.clock("search")
        result = run.finish({"accuracy": np.float32(97.5), "loss": float("nan")})
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result.pop("seconds_search") >= 0
    assert result == {
        "accuracy": 97.5,
        "loss": None,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def test_clock_adds_up_over_phases_and_starts(tmp_path, monkeypatch):
    times = iter([0, 10, 15, 17, 17, 100, 130, 131, 131])
    monkeypatch.setattr("time.monotonic", lambda: float(next(times)))
    with open_run(Config(tmp_path), COLUMNS) as run:
        run.clock("compile")  # at 0
        run.clock("search")  # at 10
        run.clock("search")  # at 15
        run.clock(None)  # at 17; closing looks at 17 again
    with open_run(Config(tmp_path), COLUMNS) as run:
        run.clock("search")  # at 100
        run.clock("retrain")  # at 130
        run.clock(None)  # at 131
    with open_run(Config(tmp_path), COLUMNS) as run:
        monkeypatch.undo()
        assert run.seconds == {"compile": 10, "search": 37, "retrain": 1}


def test_rate_counts_the_steps_and_seconds_of_all_starts(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for step, seconds, rate in ((20, 4.0, 5.0), (60, 6.0, 6.0)):
        with open_run(Config(tmp_path), COLUMNS) as run:
            assert run.rate("retrain") is None
            run.clock("search")
            (run.checkpoints("search").folder / str(step)).mkdir(parents=True)
            now += seconds
            run.clock(None)
            assert run.rate("search") == rate


def stop(config: Config, error: BaseException, steps: tuple[int, ...]) -> None:
    with open_run(config, COLUMNS) as run:
        for step in steps:
            run.checkpoints("search").save(step, ())
        raise error


def test_diverged_run_says_which_checkpoint_is_kept(tmp_path):
    error = FloatingPointError("the loss is nan")
    with pytest.raises(FloatingPointError) as stopped:
        stop(Config(tmp_path), error, ())
    assert str(stopped.value) == "the loss is nan; there is no checkpoint yet"
    kept = tmp_path / "checkpoints" / "search" / "20"
    with pytest.raises(FloatingPointError) as stopped:
        stop(Config(tmp_path), error, (10, 20))
    assert str(stopped.value) == f"the loss is nan; the last good checkpoint is {kept}"
    with pytest.raises(KeyboardInterrupt) as interrupted:
        stop(Config(tmp_path), KeyboardInterrupt(), ())
    assert str(interrupted.value) == f"the last good checkpoint is {kept}"


def test_stopped_run_says_which_parts_are_kept(tmp_path):
    def stopped():
        with open_run(Config(tmp_path), COLUMNS) as run:
            run.once("front", dict)
            run.once("study", dict)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^front, study kept$"):
        stopped()


EXPERIMENT = """
import dataclasses, os, pathlib, signal, sys
import numpy as np
from jaxnas.runs import open_run

@dataclasses.dataclass
class Config:
    workdir: pathlib.Path
    overwrite: bool = False

with open_run(Config(pathlib.Path(sys.argv[1])), ["loss"]) as run:
    checkpoints, log = run.checkpoints("search"), run.log
    start, state = checkpoints.latest() or 0, {"x": np.ones(3)}
    if start:
        state = checkpoints.restore(start, state)
    log.drop_after("search", start)
    for step in range(start + 1, 21):
        state = {"x": np.sin(state["x"] + step)}
        log.write("search", step, {"loss": state["x"][0]})
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 4 == 0:
            checkpoints.save(step, state)
    run.write_json("genotype.json", state)
"""


def test_killed_run_ends_as_the_uninterrupted_one(tmp_path):
    def start(name: str, kill_at: int) -> int:
        command = [sys.executable, "-c", EXPERIMENT, tmp_path / name, str(kill_at)]
        return subprocess.run(command, check=False).returncode

    assert start("whole", 0) == 0
    assert [start("killed", step) for step in (3, 8, 15, 0)] == [-9, -9, -9, 0]
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    for name in ("genotype.json", "log.csv", "config.json"):
        assert whole[name] == killed[name]
    assert len(whole["log.csv"].splitlines()) == 21


def test_work_is_done_once_over_all_starts(tmp_path):
    done = []

    def work():
        done.append(1)
        return {"found": [1.5, None]}

    for _ in range(2):
        with open_run(Config(tmp_path), COLUMNS) as run:
            assert run.once("part", work) == {"found": [1.5, None]}
    assert done == [1]
    (tmp_path / "part.json").write_text("{")
    with (
        open_run(Config(tmp_path), COLUMNS) as run,
        pytest.raises(InputError, match="delete it to run that part again"),
    ):
        run.once("part", work)
