"""One function on one device and on several, which a process of its own simulates."""

import os
import subprocess
import sys

import jax
import numpy as np

from jaxnas.parallel import POPULATION, population_mesh, spread, use_cpu_cores

SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from jaxnas.parallel import POPULATION, population_mesh, spread

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
    effort = jnp.sin(x[:, 0])
    found = jax.jit(spread(f, population_mesh()))(same, parts, effort)
    few = jax.jit(spread(f, population_mesh(jax.devices()[:3])))(same, parts, effort)
    expected = jax.jit(f)(same, parts)
    assert found["grown"].shape == (size, 2)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, few, expected)
whole = jnp.arange(16.0)
kept = jax.jit(spread(lambda _, x: 2 * x, population_mesh()))(None, whole, whole)
assert len(kept.sharding.device_set) == 8
# Dealt to and fro, the dearest first.
effort = jnp.array([4.0, 7.0, 1.0, 5.0, 6.0, 2.0, 3.0])
two = population_mesh(jax.devices()[:2])
which = spread(lambda _, x: x + jax.lax.axis_index(POPULATION), two)
devices = jax.jit(which)(None, jnp.zeros(7, jnp.int32), effort)
sums = [float(effort[devices == i].sum()) for i in range(2)]
assert sums == [7 + 4 + 3, 6 + 5 + 2 + 1], sums
print("equal")
"""


def run_on_eight(program: str) -> str:
    """Runs a program where the CPU passes for eight devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
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


def test_cpu_cores_become_devices_where_the_system_does_not_say_which(monkeypatch):
    said = {}
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(jax.config, "update", said.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    use_cpu_cores()
    assert said == {"jax_num_cpu_devices": 6}
    # A core may wait for hours, and what the user said comes last.
    assert "call_terminate_timeout_seconds=1000000" in os.environ["XLA_FLAGS"]
    assert os.environ["XLA_FLAGS"].endswith(" --xla_one=1")


def test_spread_on_one_device_calls_the_function():
    with_one = spread(
        lambda same, parts: same + parts, population_mesh(jax.devices()[:1])
    )
    np.testing.assert_array_equal(with_one(1, np.arange(3), None), [1, 2, 3])


def test_mesh_has_one_axis_of_all_devices():
    mesh = population_mesh()
    assert mesh.axis_names == (POPULATION,)
    assert list(mesh.devices) == jax.devices()
