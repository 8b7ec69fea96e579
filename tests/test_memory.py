"""Groups of networks that fit into memory, and programs that a process lets go of."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxnas.base import FULL, Evaluator, Feedback, InputError, Proposal
from jaxnas.evaluators import memory
from jaxnas.evaluators.memory import largest_group, make_room
from jaxnas.evaluators.standalone import one_by_one


def evaluator(group: int) -> Evaluator:
    """Takes a megabyte and more of temporaries for each network of a group."""

    def evaluate(key, data, state, proposal):
        x = jnp.sin(jnp.arange(group * 2**18, dtype=jnp.float32) * proposal.arch.sum())
        fitness = jnp.sort(x)[:8]
        return state, Feedback(fitness, fitness, jnp.zeros(8, jnp.int32), {})

    return Evaluator((), lambda key: (), evaluate)


def test_group_is_halved_until_it_fits():
    needed = [g for g in (8, 4, 2, 1) if largest_group(evaluator, 3, g, 1e9) == g]
    assert needed == [8, 4, 2, 1]
    assert largest_group(evaluator, 3, 8, 4e6) in (1, 2)
    assert largest_group(evaluator, 3, 8, 6e6) in (2, 4)


def test_one_network_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="one network to fit"):
        largest_group(evaluator, 3, 8, 1e4)


def num_maps() -> int:
    return memory.MAPS.read_bytes().count(b"\n")


needs_linux = pytest.mark.skipif(
    not memory.MOST_MAPS.exists(), reason="only Linux counts what a process maps"
)


def limit(folder: Path, monkeypatch, most: int):
    (folder / "limit").write_text(f"{most}\n")
    monkeypatch.setattr(memory, "MOST_MAPS", folder / "limit")


@needs_linux
def test_programs_are_let_go_of_where_there_are_many(tmp_path, monkeypatch):
    programs = [jax.jit(lambda x, i=i: jnp.sin(x) @ x + i) for i in range(30)]

    def held():
        return sum(program._cache_size() for program in programs)

    for program in programs:
        program(jnp.ones((4, 4)))
    before = num_maps()
    limit(tmp_path, monkeypatch, 2 * before + 100)
    make_room()
    assert held() == len(programs)
    limit(tmp_path, monkeypatch, before)
    make_room()
    assert held() == 0
    assert num_maps() < before - len(programs)


@needs_linux
def test_networks_trained_one_by_one_leave_room(tmp_path, monkeypatch):
    limit(tmp_path, monkeypatch, 0)
    program = jax.jit(lambda x: x + 1)

    def train(key, arch, epochs):
        return {"accuracy": float(program(arch[0]))}

    evaluator = one_by_one(train, ["accuracy"], epochs=1, fitness="accuracy")
    asked = Proposal(jnp.arange(3)[:, None], jnp.full(3, FULL), jnp.full(3, -1))
    _, feedback = evaluator.evaluate(jax.random.key(0), (), (), asked)
    assert feedback.fitness.tolist() == [1, 2, 3]
    assert program._cache_size() == 0


def test_a_system_that_does_not_count_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MAPS", tmp_path / "nothing")
    make_room()
