"""How far a loop is: a bar on a terminal, elsewhere a line now and then."""

import math
import time
from typing import Any, Self

import rich.console
import rich.progress
import rich.table
import rich.text


class Progress:
    """Shows how far a loop is: a bar on a terminal, elsewhere a line now and then.

    It shows that the program compiles until `compiled` or the first `update`,
    and takes the rate from there on.

        with Progress("search", total=600, start=120) as progress:
            compiled = jax.jit(step).lower(...).compile()
            progress.compiled()
            ...
            progress.update(121, loss=2.3)
    """

    def __init__(self, title: str, total: int, start: int = 0, every: float = 10.0):
        """Shows nothing yet.

        Args:
          title: of the bar.
          total: number of steps.
          start: steps that were done before.
          every: least seconds between two lines where there is no terminal.
        """
        self._title, self._total, self._every = title, total, every
        self._step, self._values = start, dict[str, float]()
        self._opened = time.monotonic()
        self._began: tuple[float, int] | None = None  # second and step
        self._printed = -math.inf
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        self._opened = time.monotonic()
        console = rich.console.Console()
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.SpinnerColumn(finished_text=" "),
                rich.progress.TextColumn(
                    "{task.description}", table_column=rich.table.Column(no_wrap=True)
                ),
                rich.progress.BarColumn(bar_width=8),
                _Status(self),
                console=console,
                refresh_per_second=4,
            )
            self._bar.add_task(self._title, total=None)
            self._bar.start()
        else:
            self._print()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def compiled(self) -> None:
        """Says that what comes now is steps."""
        self._began = (time.monotonic(), self._step)
        self._printed = -math.inf

    def update(self, step: int, **values: Any) -> None:
        """Shows the number of finished steps and the newest losses."""
        self._step = int(step)
        self._values = {name: float(value) for name, value in values.items()}
        if self._began is None:
            self.compiled()
        if self._bar:
            task = self._bar.task_ids[0]
            self._bar.update(task, total=self._total, completed=self._step)
        elif (
            self._step == self._total or time.monotonic() - self._printed > self._every
        ):
            self._print()

    def status(self) -> str:
        """Returns steps, rate, time left and losses in one line."""
        now = time.monotonic()
        if self._step == self._total and self._began is None:
            return f"{self._step}/{self._total}  done before"
        if self._began is None:
            waited = int(now - self._opened)
            going_on = f"going on from step {self._step}, " if self._step else ""
            return f"{going_on}compiling{f', {waited} s' if waited else ''}"
        began, first = self._began
        parts = [f"{self._step}/{self._total}"]
        if self._step > first and now > began:
            rate = (self._step - first) / (now - began)
            parts.append(f"{rate:.3g} steps/s")
            if self._step < self._total:
                parts.append(f"{_clock((self._total - self._step) / rate)} left")
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        return "  ".join(parts)

    def _print(self) -> None:
        self._printed = time.monotonic()
        print(f"{self._title}  {self.status()}", flush=True)


class _Status(rich.progress.ProgressColumn):
    def __init__(self, progress: Progress):
        super().__init__(rich.table.Column(no_wrap=True, overflow="ellipsis"))
        self._progress = progress

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(self._progress.status())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
