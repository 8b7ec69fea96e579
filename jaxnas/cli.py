"""What a person sees of an experiment: flags, one-line errors, progress, result.

PRESETS = {"quick": Config(epochs=2), "paper": Config(epochs=50)}

def experiment(config: Config) -> None: ...

if __name__ == "__main__":
    main(experiment, PRESETS)
"""

import argparse
import contextlib
import dataclasses
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import rich.text
import tyro

from jaxnas.base import InputError
from jaxnas.progress import Progress
from jaxnas.runs import Run, open_run
from jaxnas.search import Scan, chunked_scan

ConfigT = TypeVar("ConfigT")


def main(
    experiment: Callable[[ConfigT], None],
    presets: Mapping[str, ConfigT],
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Runs an experiment from the command line and exits.

    Exit codes: 0, 1 where a loss is not finite (FloatingPointError), 2 where the input
    is wrong (InputError) or too big for the memory, 130 where it was interrupted, each
    with one line on stderr; 141 where nobody reads the output any more. Any other
    exception is a bug and keeps its traceback.

    Args:
      experiment: takes the configuration.
      presets: see `parse`.
      args: flags, by default those of the command line.
    """
    try:
        enable_compilation_cache()
        experiment(parse(presets, args))
        code, line = 0, ""
    except InputError as error:
        code, line = 2, f"error: {error}"
    except FloatingPointError as error:
        code, line = 1, f"error: {error}"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        why = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in why:
            raise
        code, line = 2, f"error: out of memory ({why:.150}): make batches, images or "
        line += "networks smaller"
    except KeyboardInterrupt as error:
        said = ["interrupted", *map(str, error.args), "the same command goes on"]
        code, line = 130, "; ".join(said)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, line = 141, ""
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)


def parse(presets: Mapping[str, ConfigT], args: Sequence[str] | None = None) -> ConfigT:
    """Reads flags over the values of a preset, so that `--help` shows those.

    Args:
      presets: frozen dataclasses with a field `preset`, by the preset's name:
        "quick", the default on a CPU, and "paper", the default elsewhere.
      args: flags, by default those of the command line.

    Raises:
      InputError: a flag is unknown or has a wrong value.
      SystemExit: after `--help`.
    """
    args = sys.argv[1:] if args is None else args
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    name = first.parse_known_args(args)[0].preset
    if name not in presets:  # none is asked for; or a wrong one, which tyro refuses
        name = "quick" if jax.default_backend() == "cpu" else "paper"
    default = dataclasses.replace(presets[name], preset=name)  # type: ignore
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(type(default), default=default, args=args)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise InputError(_line(box.getvalue()))


def _line(box: str) -> str:
    """Makes one line of the box in which tyro explains what is wrong."""
    rows = [row.strip("│ ") for row in box.splitlines() if row[:1] not in "╭╰"]
    text = " ".join(rows)
    said = re.split("─{3,}", text)[0].strip(" .").removeprefix("Error parsing ")
    meant = re.search(r"Perhaps you meant: +(--[\w-]+)", text)
    hint = f" (perhaps {meant[1]}?)" if meant else ""
    return f"{said[:1].lower()}{said[1:]}{hint}; --help lists the flags"


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuses flags out of their ranges; None and what is no number are not looked at.

    Args:
      config: a dataclass.
      ranges: name of a field -> least and most; `math.inf` means any finite number.

    Raises:
      InputError: a value is out of its range, or not finite.
    """
    for name, (least, most) in ranges.items():
        value = getattr(config, name)
        if value is None or (least <= value <= most and value < math.inf):
            continue
        wanted = f"from {least} to {most}" if most < math.inf else f"of {least} or more"
        flag = f"--{name.replace('_', '-')}"
        raise InputError(f"expected {flag} {wanted}, but got {value}: change it")


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start is quick.

    The folder is JAX's own setting (JAX_COMPILATION_CACHE_DIR) where it is made,
    else jaxnas/jax in the user's cache folder; without one that can be written
    there is no cache.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    with contextlib.suppress(OSError, RuntimeError):  # the latter: there is no home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "jaxnas" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))


def show_result(result: Mapping[str, Any]) -> None:
    """Prints a result as a table of two columns."""
    table = rich.table.Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in result.items():
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        if isinstance(value, list | np.ndarray):
            shown = " ".join(f"{one:.4g}" for one in value)
        table.add_row(name.replace("_", " "), rich.text.Text(shown))
    rich.console.Console().print(table)


def run_or_show(
    config: Any,
    columns: Sequence[str],
    work: Callable[[Run], dict[str, Any]],
    show: Callable[[dict[str, Any]], None] = show_result,
) -> None:
    """Runs an experiment in its work folder, or goes on with it, or prints its result.

    Args:
      config, columns: see `runs.open_run`.
      work: what is done there; returns what result.json says.
      show: prints that.
    """
    with open_run(config, columns) as run:
        result = run.result()
        if result is None:
            result = run.finish(work(run))
        else:
            print("this run is finished; its result:")
        show(result)
        print(f"files are in {run.folder}")


REMEDY = "lower the learning rate and start anew with --overwrite"


@jax.jit
def _has_nan(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.any(jnp.array([jnp.isnan(x).any() for x in floats]))


@contextlib.contextmanager
def phase(
    run: Run,
    name: str,
    num_steps: int,
    chunk: int,
    summarise: Callable[[Any], Mapping[str, Any]],
    loop: Callable[..., Scan] = chunked_scan,
) -> Iterator[Scan]:
    """Gives the scan of one phase of a run: it shows, logs, times and saves.

    Args:
      run: the open work folder.
      name: of the phase, in the log, the clock and the checkpoints.
      num_steps: of the phase.
      chunk: steps between two rows of the log, and two checkpoints.
      summarise: takes the ys of a chunk, gives the numbers of its row.
      loop: makes the scan, with the arguments of `chunked_scan`.

    Raises:
      FloatingPointError: one of these numbers is not finite, or the carry has NaN.
        The chunk is not saved.
    """
    checkpoints = run.checkpoints(name)
    start = checkpoints.latest() or 0
    run.log.drop_after(name, start)

    with Progress(name, num_steps, start) as progress:

        def on_compiled(seconds: float) -> None:
            progress.compiled()
            run.clock(name)

        def on_chunk(step: int, carry: Any, ys: Any) -> None:
            values = {key: float(value) for key, value in summarise(ys).items()}
            for key, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name}: {key} is {value} at step {step}: {REMEDY}"
                    )
            if _has_nan(carry):  # of the last update, whose loss nobody has seen
                raise FloatingPointError(
                    f"{name}: the state is nan after step {step}: {REMEDY}"
                )
            run.log.write(name, step, values)
            progress.update(step, **values)
            run.clock(name)

        run.clock("compiling")
        yield loop(chunk, checkpoints, on_chunk, on_compiled)
        run.clock(None)
