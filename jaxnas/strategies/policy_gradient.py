"""Learning a distribution over architectures from what its samples are worth.

No strategy itself: what `reinforce` does, and `enas` in a part of its steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Array, Feedback, Proposal, PyTree, SearchSpace, Strategy
from jaxnas.checks import expect
from jaxnas.encoding import one_hot
from jaxnas.search import incumbent
from jaxnas.strategies.checks import propose
from jaxnas.strategies.policies import Policy


class Baseline(NamedTuple):
    """Moving mean and variance of the fitness of what succeeded."""

    mean: Array  # float32[]
    variance: Array  # float32[]
    weight: Array  # float32[], 1 - decay^t after t steps: takes the start's bias out


class ReinforceState(NamedTuple):
    """A policy's parameters, their optimizer's state, and what to compare with."""

    params: PyTree
    opt_state: PyTree
    baseline: Baseline


def learner(
    space: SearchSpace,
    policy: Policy,
    *,
    learning_rate: float | Array | None,
    baseline_decay: float | Array | None,
    entropy_weight: float | Array | None,
    normalize: bool,
    batch_size: int,
    budget: int,
) -> Strategy:
    """Makes the strategy of a policy; the arguments are those of `reinforce`.

    Raises:
      InputError: a number is out of its range.
    """
    rate, decay, weight = (
        policy.defaults[name] if given is None else given
        for name, given in (
            ("learning_rate", learning_rate),
            ("baseline_decay", baseline_decay),
            ("entropy_weight", entropy_weight),
        )
    )
    expect(1, batch_size=batch_size, budget=budget)
    expect(0, learning_rate=rate, entropy_weight=weight)
    expect(0, 0.9999, baseline_decay=decay)
    tx = optax.adam(rate)

    def init(key: Array) -> ReinforceState:
        params = policy.init(key)
        zero = jnp.zeros(())
        return ReinforceState(params, tx.init(params), Baseline(zero, zero, zero))

    def draw(key: Array, params: PyTree) -> Array:
        keys = jax.random.split(key, batch_size)
        return jax.vmap(policy.sample, (0, None))(keys, params)

    def ask(key: Array, step: Array, state: ReinforceState) -> Proposal:
        del step
        raw = draw(key, state.params)
        encoded = jax.vmap(one_hot, (0, None))(raw, space.num_choices)
        return propose(jax.vmap(space.discretize)(encoded), budget)

    def tell(
        key: Array,
        step: Array,
        state: ReinforceState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> ReinforceState:
        del step, proposal
        params, opt_state, baseline = state
        baseline, advantage = compare(baseline, feedback.fitness, decay, normalize)
        ok = feedback.fitness > -jnp.inf
        grad = policy_gradient(policy, params, draw(key, params), advantage, ok, weight)
        updates, opt_state = tx.update(
            jax.tree.map(jnp.negative, grad), opt_state, params
        )
        told = ReinforceState(optax.apply_updates(params, updates), opt_state, baseline)
        return jax.tree.map(lambda new, old: jnp.where(ok.any(), new, old), told, state)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


def compare(
    baseline: Baseline, fitness: Array, decay: float | Array, normalize: bool = True
) -> tuple[Baseline, Array]:
    """Moves a baseline on by float32[B] and returns it and the advantages, [B].

    An advantage is what is above the moved mean, in standard deviations where that is
    wanted. It is 0 for a failure, and for all as long as every fitness has been the
    same.
    """
    ok = fitness > -jnp.inf
    count = jnp.maximum(ok.sum(), 1)
    fitness = jnp.where(ok, fitness, 0.0)
    mean = fitness.sum() / count
    variance = jnp.where(ok, (fitness - mean) ** 2, 0.0).sum() / count
    weight = decay * baseline.weight + (1 - decay)
    part = (1 - decay) / jnp.maximum(weight, 1e-30)  # of what is new in the mean
    apart = mean - baseline.mean
    spread = (1 - part) * (baseline.variance + part * apart**2) + part * variance
    moved = Baseline(baseline.mean + part * apart, spread, weight)
    # Rounding gives even equals some spread.
    rounding = (8 * jnp.finfo(spread.dtype).eps * moved.mean) ** 2
    differ = spread > rounding
    deviation = jnp.sqrt(jnp.where(differ & normalize, spread, 1.0))
    advantage = jnp.where(ok & differ, (fitness - moved.mean) / deviation, 0.0)
    return moved, advantage


def policy_gradient(
    policy: Policy,
    params: PyTree,
    archs: Array,
    advantage: Array,
    ok: Array,
    entropy_weight: float | Array,
) -> PyTree:
    """The gradient, like params, of expected advantage and weighted entropy.

    It is estimated by the mean over those of int32[B, D] that are ok, bool[B];
    0 where none is.
    """

    def objective(params):
        log_prob, entropy = jax.vmap(policy.score, (None, 0))(params, archs)
        gain = advantage * log_prob + entropy_weight * entropy
        return jnp.where(ok, gain, 0.0).sum() / jnp.maximum(ok.sum(), 1)

    return jax.grad(objective)(params)
