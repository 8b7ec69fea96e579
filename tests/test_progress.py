import dataclasses
import io
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from jaxnas import cli, runs
from jaxnas.checkpoint import Checkpoints
from jaxnas.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_progress_takes_rate_and_time_left_from_after_compiling(clock):
    with Progress("search", total=600, start=120) as progress:
        clock.now = 65.0
        assert progress.status() == "going on from step 120, compiling, 65 s"
        progress.compiled()
        assert progress.status() == "120/600"
        clock.now = 75.0
        progress.update(140, loss=1.25)
        assert progress.status() == "140/600  2 steps/s  3:50 left  loss 1.25"
        clock.now = 85.0
        progress.update(160, loss=float("nan"), valid=123456)
        assert progress.status() == (
            "160/600  2 steps/s  3:40 left  loss nan  valid 1.235e+05"
        )
        clock.now = 65.0 + 240
        progress.update(600)
        assert progress.status() == "600/600  2 steps/s"


def test_progress_without_compiled_leaves_the_first_update_out_of_the_rate(clock):
    with Progress("search", total=100_000) as progress:
        clock.now = 50.0
        progress.update(10)
        assert progress.status() == "10/100000"
        clock.now = 60.0
        progress.update(20)
        assert progress.status() == "20/100000  1 steps/s  27:46:20 left"


def test_progress_without_a_terminal_prints_a_line_now_and_then(clock, capsys):
    with Progress("search", total=100, every=10) as progress:
        for step in range(1, 101):
            clock.now += 1
            progress.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "search  compiling"
    shown = [int(line.split()[1].split("/")[0]) for line in lines[1:]]
    assert shown == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]


def test_progress_on_a_terminal_is_a_bar_of_one_line(clock, monkeypatch):
    file = io.StringIO()
    console = rich.console.Console(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(rich.console, "Console", lambda: console)
    with Progress("search", total=600) as progress:
        clock.now = 60
        progress.compiled()
        clock.now = 160
        progress.update(300, train=1.234567, valid=1.45678)
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", file.getvalue())
    line = re.split(r"[\r\n]+", text.rstrip("\r\n"))[-1]
    assert re.fullmatch(
        r". search [━╸╺]{8} 300/600  3 steps/s  1:40 left  train 1.235  valid 1.457 *",
        line,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    workdir: Path
    overwrite: bool = False


def count_up(carry, x):
    return carry + 1, {"loss": jnp.log(jnp.float32(6.5) - carry)}


def run_phase(config: Config, num_steps: int) -> tuple[jax.Array, dict]:
    """Six steps with a loss; the seventh has none."""
    with (
        runs.open_run(config, ["loss"]) as run,
        cli.phase(
            run, "count", num_steps, 2, lambda ys: {"loss": ys["loss"].mean()}
        ) as scan,
    ):
        return scan(count_up, jnp.float32(0), np.arange(num_steps))


def log_of(folder: Path) -> list[str]:
    return (folder / "log.csv").read_text().splitlines()


def test_phase_logs_saves_times_and_says_that_it_compiles(tmp_path, capsys):
    carry, ys = run_phase(Config(tmp_path), 5)
    assert carry == 5
    losses = np.log(6.5 - np.arange(5))
    np.testing.assert_allclose(ys["loss"], losses, rtol=1e-6)
    header, *rows = log_of(tmp_path)
    assert header == "phase,step,loss"
    assert [row.split(",")[:2] for row in rows] == [
        ["count", "2"],
        ["count", "4"],
        ["count", "5"],
    ]
    np.testing.assert_allclose(
        [float(row.split(",")[2]) for row in rows],
        [losses[:2].mean(), losses[2:4].mean(), losses[4]],
        rtol=1e-6,
    )
    assert Checkpoints(tmp_path / "checkpoints" / "count").steps() == [4, 5]
    seconds = json.loads((tmp_path / "run.json").read_text())["seconds"]
    assert seconds.keys() == {"compiling", "count"}
    assert seconds["compiling"] > 0
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first == "count  compiling"
    assert second.startswith("count  2/5")
    assert last.startswith("count  5/5")
    assert last.endswith(f"  loss {losses[4]:.4g}")


def test_phase_stops_at_a_state_that_is_nan_before_it_is_saved(tmp_path):
    def break_at_3(carry, x):  # after its loss was taken
        return jnp.where(x == 3, jnp.nan, carry), {"loss": carry}

    def summarise(ys):
        return {"loss": ys["loss"].mean()}

    for _ in range(2):
        with (
            pytest.raises(FloatingPointError, match="the state is nan after step 4"),
            runs.open_run(Config(tmp_path), ["loss"]) as run,
            cli.phase(run, "count", 8, 2, summarise) as scan,
        ):
            scan(break_at_3, jnp.float32(0), np.arange(8))
        assert Checkpoints(tmp_path / "checkpoints" / "count").steps() == [2]


def test_phase_drops_the_rows_that_no_checkpoint_covers(tmp_path, monkeypatch):
    save = Checkpoints.save

    def stop_at_4(self, step, tree):
        if step == 4:
            raise KeyboardInterrupt
        save(self, step, tree)

    config = Config(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop_at_4)
        with pytest.raises(KeyboardInterrupt, match=r"checkpoint is .*count/2$"):
            run_phase(config, 6)
    stopped = log_of(config.workdir)
    assert [row.split(",")[1] for row in stopped] == ["step", "2", "4"]
    whole = Config(tmp_path / "whole")
    for one, other in zip(run_phase(config, 6), run_phase(whole, 6), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert log_of(config.workdir) == log_of(whole.workdir)
    assert [row.split(",")[1] for row in log_of(whole.workdir)[1:]] == ["2", "4", "6"]


def test_phase_that_is_finished_gives_its_result_again(tmp_path, monkeypatch):
    carry, ys = run_phase(Config(tmp_path), 5)
    monkeypatch.setattr(Checkpoints, "save", None)  # were a step run, it would fail
    again, ys_again = run_phase(Config(tmp_path), 5)
    assert again == carry
    np.testing.assert_array_equal(ys_again["loss"], ys["loss"])


def test_phase_stops_at_nan_before_it_is_saved(tmp_path):
    for _ in range(2):  # what was kept can be gone on from, and ends alike
        with pytest.raises(FloatingPointError) as stopped:
            run_phase(Config(tmp_path), 10)
        assert str(stopped.value) == (
            "count: loss is nan at step 8: lower the learning rate and start anew "
            "with --overwrite; the last good checkpoint is "
            f"{tmp_path / 'checkpoints' / 'count' / '6'}"
        )
        assert Checkpoints(tmp_path / "checkpoints" / "count").steps() == [4, 6]
        assert [row.split(",")[1] for row in log_of(tmp_path)[1:]] == ["2", "4", "6"]
