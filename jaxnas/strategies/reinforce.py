"""Policy gradient: what was better than lately becomes more likely.

Williams 1992, https://doi.org/10.1007/BF00992696. For architectures Zoph and Le 2017,
arXiv:1611.01578, and Pham et al. 2018 (ENAS), arXiv:1802.03268; with independent
logits Dong and Yang 2020 (NAS-Bench-201), arXiv:2001.00326.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import (
    FULL,
    Array,
    Feedback,
    InputError,
    Proposal,
    PyTree,
    SearchSpace,
    Strategy,
)
from jaxnas.encoding import one_hot
from jaxnas.search import incumbent
from jaxnas.strategies.checks import expect, propose
from jaxnas.strategies.policies import POLICIES, Policy


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


def reinforce(
    space: SearchSpace,
    *,
    policy: str | Policy = "independent",
    learning_rate: float | Array | None = None,
    baseline_decay: float | Array | None = None,
    entropy_weight: float | Array | None = None,
    batch_size: int = 1,
    budget: int = FULL,
) -> Strategy:
    """Makes a strategy of one update of Adam a step.

    The advantage of an architecture is its fitness less a moving mean, over a moving
    standard deviation. So fitness in percent and in fractions learn alike, and the
    weight of the entropy means the same. A sample that the space does not allow is
    repaired by `space.discretize`, and credit goes to the sample as drawn. What failed
    gives no gradient; a step in which all failed changes nothing. ENAS adds the entropy
    to the reward; here it is differentiated, which independent logits need.

    Args:
      space: what is searched.
      policy: `independent`, a logit for each choice; `lstm`, ENAS's controller with
        the paper's learning rate of 3.5e-4, made for thousands of steps; or a value.
      learning_rate: of Adam. This and the next two are the policy's `defaults` for
        None: 0.1, 0.9 and 0.1 for `independent`, 3.5e-4, 0.99 and 1e-4 for `lstm`.
      baseline_decay: of the moving mean and deviation, a step.
      entropy_weight: of the entropy in nats, against advantages of deviation 1.
      batch_size: B, architectures a step.
      budget: of each, in epochs; a whole one by default.

    Raises:
      InputError: there is no such policy; batch_size or budget is below 1, the decay
        not from 0 to 0.9999, or a rate or weight negative.
    """
    if isinstance(policy, str):
        policy = _named(policy)(space.num_choices)
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
        encoded = jax.vmap(one_hot, (0, None))(
            draw(key, state.params), space.num_choices
        )
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
        baseline, advantage = compare(baseline, feedback.fitness, decay)
        ok = feedback.fitness > -jnp.inf
        grad = policy_gradient(policy, params, draw(key, params), advantage, ok, weight)
        updates, opt_state = tx.update(
            jax.tree.map(jnp.negative, grad), opt_state, params
        )
        told = ReinforceState(optax.apply_updates(params, updates), opt_state, baseline)
        return jax.tree.map(lambda new, old: jnp.where(ok.any(), new, old), told, state)

    return Strategy(init, ask, tell, lambda state, log: incumbent(log))


def compare(
    baseline: Baseline, fitness: Array, decay: float | Array
) -> tuple[Baseline, Array]:
    """Moves a baseline on by float32[B] and returns it and the advantages, [B].

    An advantage is in standard deviations above the moved mean. It is 0 for a failure,
    and for all as long as every fitness has been the same.
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
    deviation = jnp.sqrt(jnp.where(differ, spread, 1.0))
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


def _named(policy: str) -> Callable[[Sequence[int]], Policy]:
    if policy not in POLICIES:
        raise InputError(
            f"expected a policy of {', '.join(POLICIES)}, but got {policy}: name one"
        )
    return POLICIES[policy]
