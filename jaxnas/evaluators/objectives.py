"""What an architecture costs, as objectives beside its fitness."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, Evaluator, InputError, Proposal, SearchSpace
from jaxnas.evaluators.timing import median_seconds
from jaxnas.training import init_variables

Cost = Callable[[Array], Array]
"""Of an architecture int32[D], float32[] in whatever unit; less is better."""


def with_objectives(evaluator: Evaluator, costs: Mapping[str, Cost]) -> Evaluator:
    """Adds `Feedback.objectives`, float32[B, M]: the fitness, then each cost negated.

    Metrics gain the costs as they are, by name. What the evaluator itself has of
    objectives, or of metrics of these names, is replaced. The costs of padding are
    computed too.

    Args:
      evaluator: any of int32[B, D].
      costs: M - 1, in the order of the objectives; traceable.

    Raises:
      InputError: there are no costs.
    """
    if not costs:
        raise InputError("expected a cost or more, but got none: name one")
    costs = dict(costs)

    def evaluate(key: Array, data: Any, state: Any, proposal: Proposal):
        chex.assert_rank(proposal.arch, 2)
        state, feedback = evaluator.evaluate(key, data, state, proposal)
        found = {
            name: jax.vmap(cost)(proposal.arch).astype(jnp.float32)
            for name, cost in costs.items()
        }
        less = [-values for values in found.values()]
        return state, feedback._replace(
            metrics={**feedback.metrics, **found},
            objectives=jnp.stack([feedback.fitness, *less], 1),
        )

    return evaluator._replace(evaluate=evaluate)


def size_costs(
    space: SearchSpace, image_shape: tuple[int, int, int], **size: Any
) -> dict[str, Cost]:
    """Makes the costs `parameters` and `flops`, a number and operations of one image.

    Args:
      space: one that knows its sizes.
      image_shape: height, width and colours.
      **size: of `space.network`.

    Raises:
      InputError: the space does not know them, or the shape is no image's.
    """
    sizes = space.sizes
    if sizes is None:
        raise InputError(
            f"expected a space that knows the sizes of its networks, but got "
            f"{space.name}: choose another, or give a cost of your own"
        )
    first = jax.ShapeDtypeStruct((len(space.num_choices),), jnp.int32)
    jax.eval_shape(lambda arch: sizes(arch, image_shape, **size), first)  # may refuse

    def cost(place: int) -> Cost:
        return lambda arch: sizes(arch, image_shape, **size)[place].astype(jnp.float32)

    return {name: cost(place) for place, name in enumerate(("parameters", "flops"))}


def latency(
    space: SearchSpace,
    image_shape: tuple[int, int, int],
    *,
    repeats: int = 11,
    batch_size: int = 1,
    **size: Any,
) -> Cost:
    """Makes the cost of the measured seconds of a forward pass, at test time.

    The network of an architecture is compiled and run, with fresh weights, on the
    default device: the median of some runs. One architecture of those that are alike
    by `space.canonical` is measured, once. What else the device does slows it down, so
    measure with `chunked_scan(..., compiled=False)`, where nothing runs beside it.

    Args:
      space: one with networks.
      image_shape: height, width and colours.
      repeats: runs, after one that is not counted.
      batch_size: images of a pass.
      **size: of `space.network`.

    Raises:
      InputError: a number is below 1.
    """
    if repeats < 1 or batch_size < 1:
        raise InputError(
            f"expected 1 run and 1 image or more, but got {repeats} and {batch_size}: "
            "ask for more"
        )
    images = np.zeros((batch_size, *image_shape), np.float32)
    measured: dict[bytes, float] = {}

    def measure_one(arch: np.ndarray, key: np.ndarray) -> float:
        if key.tobytes() not in measured:
            network = space.network(arch, **size)
            measured[key.tobytes()] = _median_seconds(network, images, repeats)
        return measured[key.tobytes()]

    def measure(archs: Any, keys: Any) -> np.ndarray:
        """Seconds float32[...] of int32[..., D] and their keys uint32[..., W]."""
        archs, keys = np.asarray(archs), np.asarray(keys)
        shape = np.broadcast_shapes(archs.shape[:-1], keys.shape[:-1])
        found = [measure_one(archs[i], keys[i]) for i in np.ndindex(shape)]
        return np.array(found, np.float32).reshape(shape)

    def cost(arch: Array) -> Array:
        seconds = jax.ShapeDtypeStruct((), jnp.float32)
        # In one call for a batch: outside of a compiled program it then needs none.
        return jax.pure_callback(
            measure, seconds, arch, space.canonical(arch), vmap_method="broadcast_all"
        )

    return cost


def _median_seconds(network: Any, images: np.ndarray, repeats: int) -> float:
    example = jax.ShapeDtypeStruct(images.shape, images.dtype)
    variables = init_variables(network, jax.random.key(0), example)
    run = jax.jit(network.apply).lower(variables, images).compile()
    return median_seconds(run, variables, images, repeats=repeats)
