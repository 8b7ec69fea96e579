"""One of several functions, chosen while the program runs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax

from jaxnas.base import Array, PyTree


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatch(
    branches: Sequence[Callable[..., Array]], index: Array, fixed: PyTree, *args: Array
) -> PyTree:
    """Computes `branches[index](fixed, *args)` and, as long as no vmap asks for them
    all, nothing of the others.

    A gradient of `lax.switch` keeps what each branch would need; here it keeps the
    arguments alone, and the branch that was taken computes the rest again.

    Args:
      branches: give results of equal shapes; a tuple, as it is compared.
      index: int32[].
      fixed: what is not differentiated by.
      *args: what is.
    """
    return lax.switch(index, branches, fixed, *args)


def _forward(branches, index, fixed, *args):
    # Not `dispatch` again, so that gradients have derivatives forwards.
    return lax.switch(index, branches, fixed, *args), (index, fixed, args)


def _backward(branches, saved, cotangent):
    index, fixed, args = saved

    def pull(branch, fixed, args, cotangent) -> Any:
        return jax.vjp(lambda *args: branch(fixed, *args), *args)[1](cotangent)

    pulls = [partial(pull, branch) for branch in branches]
    return None, None, *lax.switch(index, pulls, fixed, args, cotangent)


dispatch.defvjp(_forward, _backward)
