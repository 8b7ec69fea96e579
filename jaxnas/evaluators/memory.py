"""Room for programs: what XLA says that they take, and letting go of them."""

import gc
from collections.abc import Callable
from math import inf
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxnas.base import FULL, Evaluator, InputError, Proposal
from jaxnas.parallel import device_memory

MAPS, MOST_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def make_room() -> None:
    """Lets go of all compiled programs where this process holds very many.

    Linux lets a process map so many pieces of memory (65,530 by default), and one that
    compiles beyond is ended without a word; a network's training takes hundreds. What
    is needed again is compiled again. Elsewhere nothing is done.
    """
    try:
        taken, most = MAPS.read_bytes().count(b"\n"), int(MOST_MAPS.read_text())
    except OSError:
        return
    if taken > most / 2:
        jax.clear_caches()
        gc.collect()


def largest_group(
    make: Callable[[int], Evaluator],
    num_decisions: int,
    batch_size: int,
    memory: float | None = None,
) -> int:
    """Halves the networks that are trained side by side until the program fits.

    Each try compiles the program, whose own analysis counts arguments, results and
    temporaries; nothing is run.

    Args:
      make: makes an evaluator with so many side by side, as `population(group=...)`.
      num_decisions: D of an architecture.
      batch_size: architectures of a proposal.
      memory: bytes of a device; what it has by default.

    Raises:
      InputError: one network alone does not fit.
    """
    memory = device_memory() if memory is None else memory
    arch = jnp.zeros((batch_size, num_decisions), jnp.int32)
    every = jnp.ones(batch_size, jnp.int32)
    proposal = Proposal(arch, FULL * every, -every)
    group = -(-batch_size // jax.device_count())
    while (taken := _taken(make(group), proposal)) > memory:
        if group == 1:
            raise InputError(
                f"expected one network to fit into {memory / 1e9:.3g} GB, but its "
                f"training takes {taken / 1e9:.3g}: make images, batches or networks "
                "smaller"
            )
        group = -(-group // 2)
    return group


def _taken(evaluator: Evaluator, proposal: Proposal) -> float:
    key = jax.random.key(0)
    args = key, evaluator.data, jax.eval_shape(evaluator.init, key), proposal
    try:
        found = jax.jit(evaluator.evaluate).lower(*args).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # some compilers say so themselves
            return inf
        raise
    parts = "argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes"
    return sum(getattr(found, part) for part in parts)
