"""One function on one device and on several, which a process of its own simulates."""

import os
import subprocess
import sys

import jax

from jaxnas.parallel import POPULATION, population_mesh, spread

SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from jaxnas.parallel import population_mesh, spread

jax.config.update("jax_numpy_rank_promotion", "raise")
assert len(jax.devices()) == 8


def f(same, parts):
    def one(part):
        x, key = part
        draw = jax.random.normal(key, same.shape)
        # As many steps as the number says: devices need not keep in step.
        grown = jax.lax.while_loop(lambda i: i[0] < x[0], lambda i: i + x, 0 * x)
        return {"sum": (same * x.sum() + draw).sum(), "grown": grown}

    return jax.lax.map(one, parts)


same = jnp.arange(3.0)
for size in (1, 7, 8, 9, 21):
    x = jnp.arange(2.0 * size).reshape(size, 2) + 1
    parts = x, jax.random.split(jax.random.key(0), size)
    found = jax.jit(spread(f, population_mesh()))(same, parts)
    few = jax.jit(spread(f, population_mesh(jax.devices()[:3])))(same, parts)
    expected = jax.jit(f)(same, parts)
    assert found["grown"].shape == (size, 2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, few, expected)
whole = jnp.arange(16.0)
kept = jax.jit(spread(lambda _, x: 2 * x, population_mesh()))(None, whole)
assert len(kept.sharding.device_set) == 8
print("equal")
"""


def run_on_eight(program: str) -> str:
    """Runs a program where the CPU passes for eight devices."""
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_spread_on_eight_devices_is_the_function_on_one():
    assert run_on_eight(SPREAD) == "equal\n"


def test_cpu_cores_become_devices():
    program = "import jax; from jaxnas import parallel; parallel.use_cpu_cores()\n"
    program += "print(len(jax.devices()))"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.check_output([sys.executable, "-c", program], env=environment)
    assert int(found) == len(os.sched_getaffinity(0))


def test_spread_on_one_device_is_the_function_itself():
    def f(same, parts):
        return parts

    assert spread(f, population_mesh(jax.devices()[:1])) is f


def test_mesh_has_one_axis_of_all_devices():
    mesh = population_mesh()
    assert mesh.axis_names == (POPULATION,)
    assert list(mesh.devices) == jax.devices()
