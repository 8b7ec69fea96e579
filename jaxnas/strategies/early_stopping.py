"""Early stopping on curvature: a differentiable search ends before it collapses.

DARTS-ES (Zela et al. 2020, arXiv:1909.09656): where the largest eigenvalue of the
validation loss's Hessian by the architecture rises, what the search finds gets worse.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import Array, Feedback, InputError, Log, Proposal, PyTree, Strategy
from jaxnas.checks import expect


class EarlyStoppingState(NamedTuple):
    """The strategy's state, and the last M = 2 * window measurements, as rings."""

    inner: PyTree  # once stopped, that of the answer
    curvatures: Array  # float32[M]
    snapshots: PyTree  # [M, ...], the inner states that were measured
    num_measured: Array  # int32[], so far
    stopped: Array  # bool[]


def early_stopping(
    strategy: Strategy,
    *,
    window: int = 5,
    threshold: float = 0.75,
    earliest: int = 0,
    metric: str = "valid_curvature",
) -> Strategy:
    """Wraps a strategy, to stop once the curvature has risen.

    The paper measures about once an epoch and smooths: with mean(i) over `window`
    measurements around i, the search stops if mean(i - window) / mean(i) is below the
    threshold, and the answer is that of measurement i - window. So the first stop is
    possible at measurement 2 * window. A mean(i) that is not positive stops nothing.

    After that the state stays, and proposals have budget 0: they ask nothing.

    Args:
      strategy: what is wrapped.
      window: k in the paper, in measurements.
      threshold: the ratio below which it stops.
      earliest: the first measurement, counted from 0, whose architecture may be the
        answer; the published code, which measures every second epoch and compares with
        1 / 1.3, takes epoch 10.
      metric: in `Feedback.metrics`; the largest eigenvalue of that Hessian at what was
        proposed, not finite in steps that did not measure it.

    Raises:
      InputError: window is below 1, the threshold not from 0 to 1, earliest negative;
        while tracing, for an evaluator that has no such metric.
    """
    expect(1, window=window)
    expect(0, 1, threshold=threshold)
    expect(0, earliest=earliest)
    size = 2 * window
    around = jnp.arange(window)

    def init(key: Array) -> EarlyStoppingState:
        inner = strategy.init(key)
        snapshots = jax.tree.map(lambda leaf: jnp.stack([leaf] * size), inner)
        count, stopped = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return EarlyStoppingState(inner, jnp.zeros(size), snapshots, count, stopped)

    def ask(key: Array, step: Array, state: EarlyStoppingState) -> Proposal:
        proposal = strategy.ask(key, step, state.inner)
        return proposal._replace(budget=jnp.where(state.stopped, 0, proposal.budget))

    def tell(
        key: Array,
        step: Array,
        state: EarlyStoppingState,
        proposal: Proposal,
        feedback: Feedback,
    ) -> EarlyStoppingState:
        measured = _read(feedback, metric)
        inner, _, _, count, stopped = state
        is_new = jnp.isfinite(measured) & ~stopped
        place = jnp.where(is_new, count % size, size)  # past the ring: nothing is kept
        curvatures, snapshots = jax.tree.map(
            lambda ring, leaf: ring.at[place].set(leaf, mode="drop"),
            (state.curvatures, state.snapshots),
            (measured, inner),
        )
        last = count - (~is_new).astype(jnp.int32)
        latest = curvatures[(last - around) % size].mean()
        before = curvatures[(last - window - around) % size].mean()
        answer = last - window - window // 2  # in the middle of those before
        rose = (latest > 0) & (before < threshold * latest)
        stops = is_new & rose & (last + 1 >= size) & (answer >= earliest)
        kept = jax.tree.map(lambda ring: ring[answer % size], snapshots)
        told = strategy.tell(key, step, inner, proposal, feedback)
        inner = _select(stops, kept, _select(stopped, inner, told))
        return EarlyStoppingState(
            inner, curvatures, snapshots, last + 1, stopped | stops
        )

    def recommend(state: EarlyStoppingState, log: Log) -> Array:
        return strategy.recommend(state.inner, log)

    return Strategy(init, ask, tell, recommend)


def _read(feedback: Feedback, metric: str) -> Array:
    if metric not in feedback.metrics:
        found = ", ".join(sorted(feedback.metrics)) or "none"
        raise InputError(
            f"expected an evaluator with the metric {metric}, but got {found}: let it "
            "measure the curvature, or search without early stopping"
        )
    return feedback.metrics[metric][0]


def _select(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
