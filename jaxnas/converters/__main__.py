"""The command `python -m jaxnas.converters RELEASE SOURCE TARGET`."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from jaxnas.base import InputError
from jaxnas.benchmarks import save
from jaxnas.converters import from_nasbench101, from_nats_bench


@dataclasses.dataclass(frozen=True)
class Config:
    """Converts an official release to a table of jaxnas."""

    release: tyro.conf.Positional[Literal["nasbench101", "nats_bench"]]
    source: tyro.conf.Positional[Path]
    """The release: a TFRecord, or NATS-Bench's file or folder."""
    target: tyro.conf.Positional[Path]
    """The .npz to write."""
    allow_pickle: tyro.conf.FlagCreatePairsOff[bool] = False
    """Read NATS-Bench's pickles, which can run any code: only those you trust."""


def main() -> int:
    """Converts and returns the exit code: 2 where the input is wrong."""
    config = tyro.cli(Config)
    try:
        if config.release == "nasbench101":
            table = from_nasbench101(config.source)
        else:
            table = from_nats_bench(config.source, allow_pickle=config.allow_pickle)
        save(table, config.target)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(table.archs)} architectures in {config.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
