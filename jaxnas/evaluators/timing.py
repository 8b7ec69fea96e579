"""How long a program takes on the device that it was compiled for."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def median_seconds(run: Callable[..., Any], *args: Any, repeats: int = 11) -> float:
    """The median of some runs, after one that is not counted, in seconds.

    Args:
      run: a compiled program.
      args: its arguments.
      repeats: runs that are timed.
    """
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - began)
    return float(np.median(times))
