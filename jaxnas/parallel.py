"""Devices: the one room that knows how many there are."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxnas.base import Array, PyTree

POPULATION = "population"
PATIENCE = 10**6  # seconds


def use_cpu_cores() -> None:
    """Makes a device of every CPU core; to be called before JAX is used.

    Small networks leave cores idle when each operation is spread over all of them;
    as devices, the cores train networks of their own. Elsewhere it changes nothing.
    A core that is done waits for the others as long as they take: by default XLA ends
    the process after 40 seconds.
    """
    waits = "warn_stuck_timeout", "terminate_timeout"
    flags = [f"--xla_cpu_collective_call_{wait}_seconds={PATIENCE}" for wait in waits]
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
    allowed = getattr(os, "sched_getaffinity", None)  # only Linux has it
    cores = len(allowed(0)) if allowed else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)


def population_mesh(devices: Any = None) -> Mesh:
    """Makes a mesh of one axis, `POPULATION`, of all devices by default."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (POPULATION,))


def spread(f: Callable[[PyTree, PyTree], PyTree], mesh: Mesh):
    """Spreads a function over the devices of a mesh, each with its own part.

    Args:
      f: `(same, parts) -> results`, with arrays [B, ...] in parts and results; it
        answers for each of the B alone.
      mesh: of `population_mesh`.

    Returns:
      The function of all, `(same, parts, effort) -> results`, where effort float32[B]
      is what each of them costs about: every device gets its share. B need not be a
      multiple of the number of devices: what is missing repeats one, and is dropped.
    """
    count = mesh.devices.size
    if list(mesh.devices.flat) == jax.devices()[:1]:
        return lambda same, parts, effort: f(same, parts)
    every, part = PartitionSpec(), PartitionSpec(POPULATION)
    sharded = jax.shard_map(
        f, mesh=mesh, in_specs=(every, part), out_specs=part, check_vma=False
    )

    def spread_out(same: PyTree, parts: PyTree, effort: Array) -> PyTree:
        places = _deal(effort, count)
        results = sharded(same, jax.tree.map(lambda x: x[places], parts))
        back = jnp.zeros(len(effort), jnp.int32)
        back = back.at[places].set(jnp.arange(len(places)))
        return jax.tree.map(lambda x: x[back], results)

    return spread_out


def _deal(effort: Array, count: int) -> Array:
    """Deals to and fro, the dearest first: whose turn each is, device after device."""
    order = jnp.argsort(-effort)
    rounds = -(-len(effort) // count)
    order = order[jnp.minimum(jnp.arange(rounds * count), len(effort) - 1)]
    order = order.reshape(rounds, count)
    there = (jnp.arange(rounds) % 2 == 0)[:, None]
    return jnp.where(there, order, order[:, ::-1]).T.reshape(-1)


def device_memory() -> float:
    """Bytes that a device has; of a CPU, the machine's by the number of its devices."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory / jax.local_device_count()
