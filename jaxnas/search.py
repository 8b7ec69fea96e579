"""The loop: a strategy asks, an evaluator answers, the strategy is told.

Which loop that is comes as an argument: `jax.lax.scan`, or what has its signature,
`chunked_scan` and `host_scan`:

    scan(f, init, xs) -> (carry, ys)    with f(carry, x) -> (carry, y)

Keys follow from the number of the step alone, so that a search which was stopped and
goes on repeats the one which was not.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxnas.base import (
    DIVERGED,
    OK,
    Array,
    Evaluator,
    Feedback,
    InputError,
    Log,
    Proposal,
    PyTree,
    Strategy,
)
from jaxnas.checkpoint import Checkpoints

Scan = Callable[[Callable, PyTree, PyTree], tuple[PyTree, PyTree]]

INIT = 2**31 - 1
"""The number of the step that makes the first states; no search gets so far."""


def search(
    key: Array,
    strategy: Strategy,
    evaluator: Evaluator,
    num_steps: int,
    scan: Scan = jax.lax.scan,
    initial: tuple[PyTree, PyTree] = (None, None),
) -> tuple[tuple[PyTree, PyTree], Log]:
    """Asks and tells for some steps; a fitness that is not finite becomes -inf.

    Args:
      key: typed key [], or [S] for S searches side by side, each the one of its
        key. They are an axis inside the step, whose number stays the same for all:
        a `lax.cond` on it stays a branch.
      strategy: what asks.
      evaluator: what answers; its data are an argument of every step.
      num_steps: T.
      scan: the loop, with the signature of `lax.scan`.
      initial: states of strategy and evaluator to start from, such as those of an
        earlier phase; for None those of `init`. Give a later phase another key:
        random numbers follow from the key and the number of the step alone.

    Returns:
      ((strategy_state, evaluator_state), log): states as the members have them,
      arrays of the log [T, B, ...]. With seeds [S, ...] and [T, S, B, ...], and
      the answers are `vmap(strategy.recommend, (0, 1))(strategy_state, log)`.

    Raises:
      InputError: the key is not typed or has several axes; T is below 1.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.ndim > 1:
        raise InputError(
            "expected a key of jax.random.key or a vector of them, one a search, but "
            f"got {key.dtype}{list(key.shape)}: make one by jax.random.key(seed)"
        )
    if num_steps < 1:
        raise InputError(f"expected 1 step or more, but got {num_steps}: ask for more")
    states = tuple(
        _init(key, init, which) if initial[which] is None else initial[which]
        for which, init in enumerate((strategy.init, evaluator.init))
    )
    data = jax.tree.map(jnp.asarray, evaluator.data)
    step = Partial(_Step(strategy, evaluator.evaluate), key, data)
    return scan(step, states, jnp.arange(num_steps))


def _keys(key: Array, step: Array | int) -> tuple[Array, ...]:
    """Returns the strategy's key and the evaluator's; one not used costs nothing."""
    return tuple(jax.random.fold_in(key, 2 * step + which) for which in range(2))


def _init(key: Array, init: Callable[[Array], PyTree], which: int) -> PyTree:
    # Not jitted: a network's many small draws compile slower together than apart.
    def one(key):
        return init(_keys(key, INIT)[which])

    return jax.vmap(one)(key) if key.ndim else one(key)


class _Step(NamedTuple):
    """A step of a search; equal for equal members, so that jit compiles it once."""

    strategy: Strategy
    evaluate: Callable

    def __call__(self, key: Array, data: PyTree, states: PyTree, step: Array):
        if key.ndim:
            return jax.vmap(self.one, (0, None, 0, None))(key, data, states, step)
        return self.one(key, data, states, step)

    def one(self, key: Array, data: PyTree, states: PyTree, step: Array):
        strategy_state, evaluator_state = states
        key_ask, key_evaluate = _keys(key, step)
        proposal = self.strategy.ask(key_ask, step, strategy_state)
        evaluator_state, feedback = self.evaluate(
            key_evaluate, data, evaluator_state, proposal
        )
        feedback = _mark_diverged(proposal, feedback)
        strategy_state = self.strategy.tell(
            key_ask, step, strategy_state, proposal, feedback
        )
        log = Log(proposal, feedback._replace(grad=None))
        return (strategy_state, evaluator_state), log


def _mark_diverged(proposal: Proposal, feedback: Feedback) -> Feedback:
    """The one place where what is not finite becomes -inf; a reason given stays."""
    finite = jnp.isfinite(feedback.fitness)
    unexplained = ~finite & (feedback.status == OK) & (proposal.budget > 0)
    return feedback._replace(
        fitness=jnp.where(finite, feedback.fitness, -jnp.inf),
        status=jnp.where(unexplained, DIVERGED, feedback.status),
    )


def incumbent(log: Log) -> Array:
    """Returns the best architecture, int32[D], at the largest budget that has one.

    Failures and padding are left out. The earliest of equals wins, the very first
    architecture where nothing succeeded.

    Args:
      log: of one search over discrete architectures; for seeds
        `vmap(incumbent, 1)(log)`.

    Raises:
      InputError: the architectures are relaxed.
    """
    arch, budget, _ = log.proposal
    fitness = log.feedback.fitness
    if arch.ndim != fitness.ndim + 1:
        raise InputError(
            f"expected discrete architectures int32[T, B, D], but got {arch.dtype}"
            f"{list(arch.shape)}: let the strategy recommend one"
        )
    usable = (budget > 0) & (fitness > -jnp.inf)
    largest = jnp.max(jnp.where(usable, budget, 0))
    best = jnp.argmax(jnp.where(usable & (budget == largest), fitness, -jnp.inf))
    return arch.reshape(-1, arch.shape[-1])[best]


def host_scan(f: Callable, init: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
    """Loops in Python over one compiled step, with `lax.scan`'s signature.

    Returns:
      The carry, and the ys as numpy arrays.
    """
    f, carry, xs = _as_tree(f), _own(init), jax.device_get(xs)
    ys = []
    for i in range(_length(xs)):
        carry, y = _run_step(f, carry, _at(xs, i))
        ys.append(y)
    return carry, jax.tree.map(lambda *y: np.stack(y), *jax.device_get(ys))


def chunked_scan(
    chunk: int,
    checkpoints: Checkpoints | None = None,
    on_chunk: Callable[[int, PyTree, PyTree], object] | None = None,
    on_compiled: Callable[[float], object] | None = None,
    compiled: bool = True,
) -> Scan:
    """Makes a scan that runs on the device by chunks, with a checkpoint after each.

    It goes on from the newest checkpoint, bit for bit on a CPU. One program serves
    chunks of any length, so that a short last one is not compiled again.

    Args:
      chunk: number of steps; checkpoints fall on its multiples and on the end.
      checkpoints: where the carry and all ys are saved; None saves nothing.
      on_chunk: called with the number of finished steps, the carry and the chunk's
        ys (numpy), before they are saved: raising here keeps a chunk from it. The
        next chunk overwrites the carry.
      on_compiled: called before the first chunk with the seconds that tracing and
        compiling took; not at all where every step is done already.
      compiled: False runs the steps in Python, one operation at a time, for an
        evaluator that trains networks which a program cannot choose; such a one has
        to say by `jax.pure_callback` what its answers look like, see
        `evaluators.standalone.standalone`.

    Returns:
      A function with `lax.scan`'s signature, whose ys are numpy arrays. It raises
      InputError where the newest checkpoint is damaged or of another run.

    Raises:
      InputError: chunk is below 1.
    """
    if chunk < 1:
        raise InputError(f"expected chunks of 1 step or more, but got {chunk}")

    def scan(f: Callable, init: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        f, xs, total = _as_tree(f), jax.device_get(xs), _length(xs)
        window = np.arange(min(chunk, total))
        began = time.monotonic()
        traced = _run_chunk.trace(f, init, _at(xs, window), 0)
        seconds = time.monotonic() - began
        done, carry, ys = _restore(checkpoints, init, traced.out_info[1], total)
        if done == total:
            return carry, ys
        began = time.monotonic()
        run = traced.lower().compile() if compiled else _run_in_python
        if on_compiled:
            on_compiled(seconds + time.monotonic() - began)
        carry = _own(carry)
        while done < total:
            start, done = done, min(total, done - done % chunk + chunk)
            rows = np.minimum(start + window, total - 1)  # more than are run at the end
            carry, new = run(f, carry, _at(xs, rows), done - start)
            new = _at(jax.device_get(new), slice(done - start))
            if on_chunk:
                on_chunk(done, carry, new)
            ys = jax.tree.map(lambda *y: np.concatenate(y), ys, new)
            if checkpoints:
                checkpoints.save(done, (carry, ys))
        return carry, ys

    return scan


def _restore(
    checkpoints: Checkpoints | None, carry: PyTree, ys: PyTree, total: int
) -> tuple[int, PyTree, PyTree]:
    """Returns the number of finished steps, the carry and the ys so far."""
    done = (checkpoints.latest() if checkpoints else None) or 0
    ys = jax.tree.map(lambda y: np.empty((done, *y.shape[1:]), y.dtype), ys)
    if checkpoints is None or not done:
        return 0, carry, ys
    if done > total:
        raise InputError(
            f"expected a run of {total} steps in {checkpoints.folder}, but found one "
            f"of {done} or more: use another work folder"
        )
    return done, *checkpoints.restore(done, (carry, ys))


@functools.partial(jax.jit, donate_argnums=1, inline=True)
def _run_step(f: Partial, carry: PyTree, x: PyTree):
    return f(carry, x)


@functools.partial(jax.jit, donate_argnums=1)
def _run_chunk(f: Partial, carry: PyTree, xs: PyTree, count: Array | int):
    """Runs the first `count` of the steps xs[size, ...]; the ys beyond are zeros.

    `lax.scan` would be compiled anew for each count.
    """

    def body(i, loop):
        carry, ys = loop
        carry, y = _run_step(f, carry, _at(xs, i))
        return carry, jax.tree.map(lambda ys, y: ys.at[i].set(y), ys, y)

    # This traces the step, and the loop finds it traced.
    _, y = jax.eval_shape(_run_step, f, carry, _at(xs, 0))
    ys = jax.tree.map(lambda y: jnp.zeros((_length(xs), *y.shape), y.dtype), y)
    return jax.lax.fori_loop(0, count, body, (carry, ys))


def _run_in_python(f: Partial, carry: PyTree, xs: PyTree, count: int):
    """Runs the first `count` of the steps xs[size, ...]; gives no more ys."""
    ys = []
    for i in range(count):
        carry, y = f(carry, _at(xs, i))
        ys.append(jax.device_get(y))
    return carry, jax.tree.map(lambda *y: np.stack(y), *ys)


@jax.jit
def _own(tree: PyTree) -> PyTree:
    """Copies what is to be donated: the caller's arrays stay, and none comes twice."""
    return jax.tree.map(jnp.copy, tree)


def _as_tree(f: Callable) -> Partial:
    """Makes an argument of f, so that what a Partial holds is no constant."""
    return f if isinstance(f, Partial) else Partial(f)


def _length(xs: PyTree) -> int:
    return len(jax.tree.leaves(xs)[0])


def _at(xs: PyTree, index: Array | np.ndarray | slice | int) -> PyTree:
    return jax.tree.map(lambda x: x[index], xs)
