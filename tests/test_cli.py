import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import pytest

from jaxnas import cli
from jaxnas.base import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Finds a cell."""

    workdir: Path = Path("runs/toy")
    """Folder of what the run leaves."""
    preset: Literal["quick", "paper"] = "quick"
    dataset: Literal["auto", "digits"] = "auto"
    num_steps: int = 50
    rate: float = 0.1
    cutout: bool = True
    overwrite: bool = False

    def __post_init__(self):
        if self.num_steps < 1:
            raise InputError(f"expected num_steps above 0, got {self.num_steps}")


enable_compilation_cache = cli.enable_compilation_cache
PRESETS = {"quick": Config(num_steps=2), "paper": Config(rate=0.025)}


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setattr(cli, "enable_compilation_cache", lambda: None)


def run_main(experiment, *args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(experiment, PRESETS, args)
    return stop.value.code


def test_parse_takes_the_preset_of_the_device(monkeypatch):
    assert cli.parse(PRESETS, []) == PRESETS["quick"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cli.parse(PRESETS, []) == Config(preset="paper", rate=0.025)


@pytest.mark.parametrize("flags", [["--preset", "paper"], ["--preset=paper"]])
def test_parse_flags_override_the_preset_in_any_order(flags):
    for args in ([*flags, "--num-steps", "7"], ["--num_steps", "7", *flags]):
        assert cli.parse(PRESETS, args) == Config(
            preset="paper", rate=0.025, num_steps=7
        )


def test_parse_flags_of_each_type():
    args = "--workdir a/b --dataset digits --rate 1e-3 --no-cutout --overwrite"
    assert cli.parse(PRESETS, args.split()) == Config(
        Path("a/b"), "quick", "digits", 2, 1e-3, cutout=False, overwrite=True
    )


def test_help_shows_the_values_of_the_preset(capsys):
    for preset, steps in (("quick", 2), ("paper", 50)):
        assert run_main(print, "--help", "--preset", preset) == 0
        out, err = capsys.readouterr()
        assert "Finds a cell." in out
        assert "Folder of what the run leaves. (default: runs/toy)" in out
        assert f"--num-steps INT (default: {steps})" in " ".join(out.split())
        assert err == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--num-stpes 3", ["--num-stpes", "--num-steps"]),
        ("--num-steps x", ["--num-steps", "'x'"]),
        ("--num-steps", ["--num-steps", "missing"]),
        ("--num-steps 0", ["expected num_steps above 0, got 0"]),
        ("--dataset imagenet", ["'imagenet'", "'auto', 'digits'"]),
        ("--preset fast", ["'fast'", "'quick', 'paper'"]),
        ("--preset", ["--preset"]),
        ("--pre paper", ["--pre"]),
        ("digits", ["digits"]),
        ("--overwrite yes", ["yes"]),
    ],
)
def test_wrong_flag_is_one_line_and_exit_code_2(capsys, monkeypatch, args, says):
    monkeypatch.setenv("COLUMNS", "60")
    assert run_main(print, *args.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not set("│─╭╮╰╯") & set(err)
    for part in says:
        assert part in err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("expected a, got b"), 2, "error: expected a, got b\n"),
        (FloatingPointError("loss is nan"), 1, "error: loss is nan\n"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"),
            2,
            "error: out of memory (RESOURCE_EXHAUSTED: 9 GB): make batches, images or "
            "networks smaller\n",
        ),
        (
            KeyboardInterrupt("kept 20"),
            130,
            "interrupted; kept 20; the same command goes on\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on\n"),
    ],
)
def test_main_says_known_errors_in_one_line(capsys, error, code, line):
    def experiment(_):
        raise error

    assert run_main(experiment) == code
    assert capsys.readouterr() == ("", line)


def test_main_keeps_the_traceback_of_a_bug():
    def experiment(_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.main(experiment, PRESETS, [])


def test_main_ends_with_0():
    found = []
    assert run_main(found.append, "--num-steps", "3") == 0
    assert found == [Config(num_steps=3)]


TOY = """
import dataclasses, pathlib, signal, time, typing
from jaxnas import cli, runs
from jaxnas.progress import Progress

# A shell starts background jobs with interrupts ignored, tests among them.
signal.signal(signal.SIGINT, signal.default_int_handler)

@dataclasses.dataclass(frozen=True)
class Config:
    workdir: pathlib.Path = pathlib.Path("runs/toy")
    overwrite: bool = False
    preset: typing.Literal["quick", "paper"] = "quick"
    wait: float = 0.0

def experiment(config):
    with runs.open_run(config, ["loss"]) as run:
        result = run.result()
        if result is None:
            with Progress("search", 3) as progress:
                for step in (1, 2, 3):
                    run.checkpoints("search").save(step, {"x": 1.0})
                    progress.update(step, loss=0.5)
                    time.sleep(config.wait)
            result = run.finish({"test_accuracy": 12.5})
        cli.show_result(result)

cli.main(experiment, {"quick": Config(), "paper": Config()})
"""


CACHE_SETTING = "JAX_COMPILATION_CACHE_DIR"


def start_toy(folder: Path, *args: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != CACHE_SETTING} | {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", TOY, *args],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_experiment_run_twice_prints_its_finished_result(tmp_path):
    first = start_toy(tmp_path)
    out, err = first.communicate()
    assert (first.returncode, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith("search  compiling\n")
    assert "\nsearch  3/3" in out
    table = out[out.index("test accuracy") :]
    assert table.split()[:3] == ["test", "accuracy", "12.5"]
    result = json.loads((tmp_path / "runs" / "toy" / "result.json").read_text())
    assert all(str(value) in table for value in result.values())
    assert (tmp_path / "cache" / "jaxnas" / "jax").is_dir()
    again = start_toy(tmp_path)
    assert again.communicate() == (table, "")
    assert again.returncode == 0
    other = start_toy(tmp_path, "--wait", "1")
    out, err = other.communicate()
    assert (other.returncode, out) == (2, "")
    assert err.startswith(
        "error: work folder runs/toy holds a run with wait 0.0, not 1"
    )
    assert err.count("\n") == 1


def test_interrupted_experiment_says_how_to_go_on(tmp_path):
    toy = start_toy(tmp_path, "--wait", "100")
    assert toy.stdout.readline() == "search  compiling\n"
    assert toy.stdout.readline().startswith("search  1/3")
    toy.send_signal(signal.SIGINT)
    out, err = toy.communicate()
    assert (toy.returncode, out) == (130, "")
    assert err == (
        "interrupted; the last good checkpoint is runs/toy/checkpoints/search/1; "
        "the same command goes on\n"
    )


def test_result_is_shown_whole(capsys):
    cli.show_result({"test_accuracy": 97.2222222, "genotype": "[x]" * 60, "a": None})
    out = capsys.readouterr().out
    assert "97.2222\n" in "".join(line.rstrip() + "\n" for line in out.splitlines())
    assert "".join(out.split()).count("[x]") == 60
    assert max(map(len, out.splitlines())) <= 80


class FakeConfig:
    def __init__(self, folder):
        self.values = {"jax_compilation_cache_dir": folder}

    def update(self, name, value):
        self.values[name] = value


def test_compilation_cache_is_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = FakeConfig(None)
    monkeypatch.setattr(jax, "config", config)
    enable_compilation_cache()
    assert config.values == {
        "jax_compilation_cache_dir": str(tmp_path / "jaxnas" / "jax")
    }
    assert (tmp_path / "jaxnas" / "jax").is_dir()


def test_compilation_cache_keeps_the_users_setting(monkeypatch):
    config = FakeConfig("mine")
    monkeypatch.setattr(jax, "config", config)
    enable_compilation_cache()
    assert config.values == {"jax_compilation_cache_dir": "mine"}


def test_compilation_cache_that_cannot_be_written_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    config = FakeConfig(None)
    monkeypatch.setattr(jax, "config", config)
    enable_compilation_cache()
    assert config.values == {"jax_compilation_cache_dir": None}
