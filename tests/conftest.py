"""What every test runs under, and what several files of tests use."""

import gc
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import settings

from jaxnas.base import SearchSpace
from jaxnas.evaluators.memory import make_room

# At these sizes compiling is what takes time; with fewer optimisations and without the
# generator of fusions it takes three fifths as long. Processes inherit it. XLA ends a
# process whose flags it does not know: jaxlib 0.10.2 and 0.11.2 have both.
LESS = "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = " ".join([*LESS, os.environ.get("XLA_FLAGS", "")])

# Tracing makes many objects, few of which are garbage, and millions stay: a twentieth
# of the time went into looking for it.
gc.set_threshold(100_000, 20, 50)

jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in each run, so that what passes once passes everywhere; who hunts
# for others says --hypothesis-profile=default.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tensorflow_datasets"


@pytest.fixture(autouse=True)
def _room_for_programs():
    """Programs of thousands of tests are more than a process can hold."""
    yield
    make_room()


@pytest.fixture
def shared_datasets() -> Path:
    """The prepared datasets that may lie beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("there is no ../shared/data/tensorflow_datasets")
    return SHARED


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """Three decisions of 3, 2 and 4 choices and no constraint: 24 architectures."""
    num_choices = (3, 2, 4)
    sizes = jnp.array(num_choices)

    def sample(key):
        return jax.random.randint(key, sizes.shape, 0, sizes)

    def mutate(key, arch):
        key_which, key_by = jax.random.split(key)
        which = jax.random.randint(key_which, (), 0, len(sizes))
        by = jax.random.randint(key_by, (), 1, sizes[which])
        return arch.at[which].set((arch[which] + by) % sizes[which])

    def crossover(key, one, other):
        return jnp.where(jax.random.bernoulli(key, shape=sizes.shape), one, other)

    def discretize(weights):
        is_choice = jnp.arange(weights.shape[1])[None] < sizes[:, None]
        return jnp.argmax(jnp.where(is_choice, weights, -jnp.inf), 1).astype(jnp.int32)

    def unused(*_):
        raise NotImplementedError

    return SearchSpace(
        name="tiny",
        num_choices=num_choices,
        sample=sample,
        mutate=mutate,
        crossover=crossover,
        neighbours=unused,
        discretize=discretize,
        canonical=lambda arch: arch.astype(jnp.uint32),
        network=unused,
        restrict=unused,
        to_string=lambda arch: "-".join(map(str, arch.tolist())),
        from_string=unused,
    )
