"""Which convolutions are compiled: enough for all, the largest always, few."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.nn.chain_branches import WORTH, Branches, choose_programs, needed
from jaxnas.nn.chain_walk import walk
from jaxnas.spaces.chain import chain

SHAPES = [(8, 8, 1), (32, 32, 3), (5, 3, 2)]


def choices_of(shape, **how):
    return chain(shape, **how).network().choices


def multiplications(choices, need, program):
    height, width = choices.images[need.halvings]
    return height * width * program.size**2 * program.before * program.out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("links", [("none",), ("none", "dense")])
@pytest.mark.parametrize("worth", [0.001, WORTH, 1.0])
def test_programs_have_room_for_all_that_is_needed(shape, links, worth):
    choices = choices_of(shape, links=links)
    programs = choose_programs(choices, worth)
    assert set(programs) == set(needed(choices))
    for need, program in programs.items():
        assert program in programs  # is needed itself
        assert program[:2] == need[:2]
        assert all(np.array(program[2:]) >= need[2:])
        assert programs[program] == program


def test_more_programs_spare_more():
    choices = choices_of((8, 8, 1))
    counts, totals = [], []
    for worth in (1.0, 0.05, WORTH, 0.0):
        programs = choose_programs(choices, worth)
        counts.append(len(set(programs.values())))
        totals.append(sum(multiplications(choices, *pair) for pair in programs.items()))
    # The largest for each of 4 sizes of an image, on colours and on channels.
    assert counts[0] == 8
    assert counts == sorted(counts)
    assert totals == sorted(totals, reverse=True)


def test_slots_find_the_function_of_their_layer():
    space = chain((8, 8, 1), trunk=5, head=0)
    choices = space.network().choices
    arch = space.from_string("conv3x3-8 max_pool gelu conv7x7-16 identity /")
    branches = Branches(choices, train=True)
    met, width, end = jax.jit(lambda arch: walk(choices, arch))(arch)
    assert (int(width), int(end)) == (16, 1)
    np.testing.assert_array_equal(met.first, [True, False, False, False, False])
    function, rooms = branches.find(met)
    found = [branches.functions[i].what for i in function]
    assert [what[0] for what in found] == [
        "conv",
        "max_pool",
        "gelu",
        "conv",
        "identity",
    ]
    for at, image, size, before, out in ((0, (8, 8), 3, 1, 8), (3, (4, 4), 7, 8, 16)):
        _, computed, first, *room = found[at]
        assert (computed, first) == (image, at == 0)
        assert all(np.array(room) >= (size, before, out))
        assert room[0] % 2 == size % 2
        np.testing.assert_array_equal(rooms[at], room[1:])


def test_a_convolution_after_a_convolution_is_not_the_first():
    space = chain((4, 4, 2), channels=(2, 4), trunk=3, head=0)
    arch = space.from_string("relu conv3x3-2 conv3x3-2 /")
    met = walk(space.network().choices, jnp.asarray(arch))[0]
    np.testing.assert_array_equal(met.first, [True, True, False])
