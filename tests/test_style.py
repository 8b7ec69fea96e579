"""What pre-commit runs."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_style_satisfies(command):
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=Path(__file__).parents[1],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
