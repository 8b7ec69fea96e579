"""Hypergradients: the gradient by the architecture, through the weights that it moves.

Each function takes one step of the weights, on their half of the data, and gives the
gradient by the architecture, `weights`, of the loss on the other half:

    (loss_fn, tx, clip, state, weights, draw)
      -> (state, metrics of the step, metrics of the other half, float32[D, K])

with `loss_fn(params, weights, batch, batch_stats) -> (loss, (batch_stats, metrics))`,
`draw(half, ahead) -> batch`, that of so many steps after the present one, and `clip`,
the largest norm of the step's gradient. `functools.partial` binds the keywords.

Below, H are second derivatives of the weights' loss by the weights, M by architecture
and weights. Second derivatives commute: a product with a vector is the derivative of
the gradient along it, forward over reverse, with the activations of one batch.
"""

from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Array, InputError, PyTree
from jaxnas.evaluators.halves import ARCHITECTURE, WEIGHTS
from jaxnas.tasks import Batch
from jaxnas.training import TrainState


def first_order(loss_fn, tx, clip, state, weights, draw):
    """The gradient by the architecture alone, at the weights after the step."""
    by_params = jax.grad(loss_fn, has_aux=True)
    grads, (stats, metrics) = by_params(
        state.params, weights, draw(WEIGHTS, 0), state.batch_stats
    )
    state = _descend(tx, state, grads, stats, clip)
    by_arch = jax.grad(loss_fn, 1, has_aux=True)
    grad, (_, valid) = by_arch(state.params, weights, draw(ARCHITECTURE, 0), stats)
    return state, metrics, valid, grad


def unrolled(*problem, num_steps=2):
    """The gradient through more steps of the weights, on their next batches.

    These virtual steps have the rate, momentum and decay that are due, and no clip.
    The chain rule goes back through them: the cotangent of a step's result, pulled
    back through `tx`, gives c, that of its gradient. To the cotangent of the weights
    before the step comes H c, to the gradient by the architecture M c. Of the steps
    only the states and gradients are kept; a product computes activations anew.

    Args:
      problem: see above.
      num_steps: K. 2 is the least beyond `exact`.

    Raises:
      InputError: while tracing, K is below 1.
    """
    return _unroll(_directional, num_steps, *problem)


def exact(*problem):
    """`unrolled` through one step, the second order of DARTS without its difference.

    The first virtual step starts from weights that the architecture does not move:
    M c alone is needed there, no H c, so no gradients of kernels.
    """
    return unrolled(*problem, num_steps=1)


def finite_difference(*problem, distance=0.01):
    """The approximation of `exact` in DARTS's paper: a central difference along c.

    The paper steps a distance of 0.01 in norm. With ReLU that crosses kinks, where
    the gradient jumps: the second-order term is often off by more than its own size
    (figures in BUILD.md).
    """
    return _unroll(partial(_central_difference, distance=distance), 1, *problem)


def neumann(*problem, num_terms=3, step_size=0.025, damping=3e-4):
    """The implicit gradient, its inverse as the first terms of a Neumann series.

    Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590. At weights w that minimise
    the inner loss + damping / 2 |w|^2 it is the gradient by the architecture minus
    M (H + damping)^-1 v, where v is that of the outer loss by the weights; here w are
    the weights after the step. The inverse is

        step_size * sum over j < num_terms of (1 - step_size (H + damping))^j.

    Args:
      problem: see above.
      num_terms: 3, as in the code of iDARTS (Zhang et al. 2021, arXiv:2106.10784),
        which brought the series to DARTS.
      step_size: as there the weights' learning rate, that of `supernet` by default.
        From 2 / (the largest eigenvalue of H + damping) on the series grows.
      damping: what `tx` decays the weights by, which is part of the inner objective;
        that of `supernet` by default. Bind both where these are others.

    Raises:
      InputError: while tracing, fewer than 1 term.
    """
    _check_number(num_terms, "term")

    def solve(product, vector):
        def add_term(vector, _):
            curved, mixed = product(vector)
            shorter = jax.tree.map(lambda v, h: v - step_size * h, vector, curved)
            return shorter, step_size * mixed

        return lax.scan(add_term, vector, length=num_terms)[1].sum(0)

    return _implicit(solve, damping, *problem)


def conjugate_gradient(*problem, num_iterations=5, damping=1.0):
    """The implicit gradient of `neumann`, its inverse by conjugate gradients.

    Pedregosa 2016, arXiv:1602.02355; Rajeswaran et al. 2019, arXiv:1909.04630. Where
    H + damping is not positive along a direction, the solution so far is the answer,
    as in Newton's method with truncation; if that is the first, it is `first_order`.

    Args:
      problem: see above.
      num_iterations: 5, as in the published command of Rajeswaran et al.
      damping: what `tx` decays the weights by and what is added, since H of a network
        is not positive; 1 as there.

    Raises:
      InputError: while tracing, fewer than 1 iteration.
    """
    _check_number(num_iterations, "iteration")

    def iterate(product, carry, _):
        residual, direction = carry
        curved, mixed = product(direction)
        curvature = optax.tree.vdot(direction, curved)
        before = optax.tree.vdot(residual, residual)
        goes_on = curvature > 0
        size = jnp.where(goes_on, before / curvature, 0.0)
        residual = jax.tree.map(lambda r, h: r - size * h, residual, curved)
        ratio = optax.tree.vdot(residual, residual) / before
        direction = jax.tree.map(
            lambda r, d: jnp.where(goes_on, r + ratio * d, 0.0), residual, direction
        )
        return (residual, direction), size * mixed

    def solve(product, vector):
        step = partial(iterate, product)
        return lax.scan(step, (vector, vector), length=num_iterations)[1].sum(0)

    return _implicit(solve, damping, *problem)


HYPERGRADIENTS = {
    "first_order": first_order,
    "exact": exact,
    "finite_difference": finite_difference,
    "unrolled": unrolled,
    "neumann": neumann,
    "conjugate_gradient": conjugate_gradient,
}


class _Steps(NamedTuple):
    """The step, K virtual ones and the outer gradient: arrays [K + 2, ...]."""

    states: TrainState  # where each gradient is taken
    grads: tuple[PyTree, Array]  # by the parameters and by the architecture
    metrics: dict[str, Array]
    batches: Batch

    def at(self, index: int | slice) -> "_Steps":
        """Returns one of them, or some."""
        return jax.tree.map(itemgetter(index), self)


def _follow(num_steps, loss_fn, tx, clip, state, weights, draw) -> _Steps:
    """Takes the step, virtual ones (unclipped), and the gradient of the outer loss."""

    def gradient_step(state, inputs):
        batch, clip = inputs
        by_both = jax.grad(loss_fn, (0, 1), has_aux=True)
        grads, (stats, metrics) = by_both(
            state.params, weights, batch, state.batch_stats
        )
        return _descend(tx, state, grads[0], stats, clip), (state, grads, metrics)

    # They differ in their batch alone: in a loop the largest part of the program
    # compiles once.
    batches = [draw(WEIGHTS, ahead) for ahead in range(num_steps + 1)]
    batches.append(draw(ARCHITECTURE, 0))
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    clips = jnp.array([clip] + [jnp.inf] * (num_steps + 1))
    _, (states, grads, metrics) = lax.scan(gradient_step, state, (stacked, clips))
    return _Steps(states, grads, metrics, stacked)


def _unroll(derivative, num_steps, *problem):
    """`derivative(function, params, along)` is that of the first virtual step."""
    _check_number(num_steps, "virtual step")
    loss_fn, tx, _, _, weights, _ = problem
    steps = _follow(num_steps, *problem)
    step, first, outer = (steps.at(i) for i in (0, 1, -1))

    def step_back(carry, virtual):
        cotangents, grad = carry
        along, (params, floats) = _pull_back(tx, virtual, cotangents)
        gradients = _gradients(loss_fn, weights, virtual)
        curved, mixed = _directional(gradients, virtual.states.params, along)
        params = jax.tree.map(jnp.add, params, curved)
        return ((params, floats), grad + mixed), None

    zeros = [jnp.zeros_like(x) for x in _floats(first.states.opt_state)]
    carry = (outer.grads[0], zeros), outer.grads[1]
    if num_steps > 1:
        carry, _ = lax.scan(step_back, carry, steps.at(slice(2, -1)), reverse=True)
    cotangents, grad = carry
    along, _ = _pull_back(tx, first, cotangents)
    gradients = _gradients(loss_fn, weights, first)
    grad += derivative(lambda x: gradients(x)[1], first.states.params, along)
    return first.states, step.metrics, outer.metrics, grad


def _implicit(solve, damping, *problem):
    """`solve(product, v)` is M (H + damping)^-1 v; `product(v)` both, not inverted."""
    loss_fn, _, _, _, weights, draw = problem
    steps = _follow(0, *problem)
    step, outer = steps.at(0), steps.at(1)
    inner = outer._replace(batches=draw(WEIGHTS, 1))
    gradients = _gradients(loss_fn, weights, inner)

    def product(along):
        curved, mixed = _directional(gradients, inner.states.params, along)
        return jax.tree.map(lambda h, v: h + damping * v, curved, along), mixed

    grad = outer.grads[1] - solve(product, outer.grads[0])
    return outer.states, step.metrics, outer.metrics, grad


def _gradients(loss_fn, weights, step: _Steps):
    """Gradients on a step's batch, by parameters and architecture, at any parameters.

    Always both: an operation with a gradient of its own has derivatives forwards only
    where that is taken. The compiler leaves out what is not used.
    """

    def gradients(params):
        by_both = jax.grad(loss_fn, (0, 1), has_aux=True)
        return by_both(params, weights, step.batches, step.states.batch_stats)[0]

    return gradients


def _directional(function, params, along):
    return jax.jvp(function, (params,), (along,))[1]


def _central_difference(function, params, along, distance):
    norm = optax.tree.norm(along)  # zero where the learning rate is
    size = distance / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)

    def shifted(sign):
        return function(jax.tree.map(lambda p, d: p + sign * size * d, params, along))

    ahead, behind = lax.map(shifted, jnp.array([1.0, -1.0]))
    return (ahead - behind) / (2 * size)


def _pull_back(tx, step: _Steps, cotangents):
    """Cotangents of a step's gradient, and of the parameters and floats before it.

    `cotangents` are those of the parameters and of the optimizer's floats after it.
    """
    state = step.states

    def update(grads, before):
        params, floats = before
        new = iter(floats)
        opt_state = jax.tree.map(
            lambda x: next(new) if _is_float(x) else x, state.opt_state
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), _floats(opt_state)

    before = state.params, _floats(state.opt_state)
    return jax.vjp(update, step.grads[0], before)[1](cotangents)


def _floats(opt_state: PyTree) -> list[Array]:
    """What has derivatives; steps are counted in integers."""
    return [x for x in jax.tree.leaves(opt_state) if _is_float(x)]


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _descend(tx, state, grads, batch_stats, clip):
    """One step of the weights, its gradient's norm at most `clip`."""
    scale = jnp.minimum(1.0, clip / optax.tree.norm(grads))
    grads = jax.tree.map(lambda g: scale * g, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state)


def _check_number(number: int, what: str) -> None:
    if number < 1:
        raise InputError(f"expected 1 {what} or more, but got {number}: ask for more")
