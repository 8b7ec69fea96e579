"""Groups of networks that fit into memory, by the compiled program's own account."""

import jax.numpy as jnp
import pytest

from jaxnas.base import Evaluator, Feedback, InputError
from jaxnas.evaluators.memory import largest_group


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
