"""What is done with weights that architectures share, on one of them at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Array, PyTree
from jaxnas.encoding import one_hot
from jaxnas.evaluators.halves import ARCHITECTURE, WEIGHTS, draw, run_where
from jaxnas.tasks import Batch, Task
from jaxnas.training import TrainState, init_state, init_variables

MOMENTUM = 0.9  # of the networks' running statistics


class OneShotState(NamedTuple):
    """The shared weights, and what the order of the data follows from."""

    train: TrainState
    key: Array
    evaluations: Array  # int32[], how many there were


class Shared(NamedTuple):
    """What is done with weights that architectures share; traceable.

    Architectures are int32[B, D], with bool[B] of those that are asked for; metrics
    are float32[B], NaN where nothing was asked.
    """

    network: Any
    num_choices: tuple[int, ...]
    task: Task
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]
    tx: optax.GradientTransformation
    batch_size: int
    score_batches: int
    calibration_batches: int

    def fresh(self, key: Array, image_shape: tuple[int, ...]) -> OneShotState:
        """Weights that have not been trained yet."""
        key_init, key_data = jax.random.split(key)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        weights = one_hot(jnp.zeros(len(self.num_choices), jnp.int32), self.num_choices)
        variables = init_variables(self.network, key_init, image, weights)
        return OneShotState(init_state(variables, self.tx), key_data, jnp.int32(0))

    def nothing(
        self, data: PyTree, state: OneShotState, archs: Array
    ) -> dict[str, Array]:
        """The metrics where nothing is asked."""

        def run(data, state):
            batch = self._draw(data, state.key, WEIGHTS, jnp.int32(0))
            _, params, stats, _ = state.train
            return self._run(params, stats, archs[0], batch, True)[1][1]

        shapes = jax.eval_shape(run, data, state)
        return {
            name: jnp.full(len(archs), jnp.nan, x.dtype) for name, x in shapes.items()
        }

    def learn(
        self,
        data: PyTree,
        state: OneShotState,
        archs: Array,
        asked: Array,
        nothing: dict[str, Array],
    ) -> tuple[TrainState, dict[str, Array]]:
        """One step of the weights: their new state, metrics before the step."""
        step, params, stats, opt_state = state.train
        batch = self._draw(data, state.key, WEIGHTS, step, augment=True)
        by_params = jax.grad(self._run, has_aux=True)

        def one(found, arch):
            total, stats = found
            grads, (stats, metrics) = by_params(params, stats, arch, batch, train=True)
            return (jax.tree.map(jnp.add, total, grads), stats), metrics

        start = jax.tree.map(jnp.zeros_like, params), stats
        (total, stats), metrics = _for_those(one, start, archs, asked, nothing)
        grads = jax.tree.map(lambda g: g / jnp.maximum(asked.sum(), 1), total)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return TrainState(step + 1, params, stats, opt_state), metrics

    def score(
        self,
        data: PyTree,
        state: OneShotState,
        archs: Array,
        asked: Array,
        nothing: dict[str, Array],
        first: Array,
    ) -> dict[str, Array]:
        """Metrics on the second half, on batches from a first one on, int32[]."""
        calibrated = self.calibration_batches > 0

        def one(_, arch):
            stats = self._calibrate(data, state, arch)

            def judge(_, i):
                batch = self._draw(data, state.key, ARCHITECTURE, first + i)
                how = arch, batch, not calibrated
                return None, self._run(state.train.params, stats, *how)[1][1]

            _, metrics = lax.scan(judge, None, jnp.arange(self.score_batches))
            return None, jax.tree.map(lambda x: x.mean(0), metrics)

        return _for_those(one, None, archs, asked, nothing)[1]

    def _calibrate(self, data: PyTree, state: OneShotState, arch: Array) -> PyTree:
        """An architecture's own running statistics; the shared ones if none are made.

        They are means of those of the batches, of which each counts MOMENTUM of what
        the next one does.
        """
        if not self.calibration_batches:
            return state.train.batch_stats

        def meet(stats, i):
            batch = self._draw(data, state.key, WEIGHTS, i)
            return self._run(state.train.params, stats, arch, batch, True)[1][0], None

        zeros = jax.tree.map(jnp.zeros_like, state.train.batch_stats)
        stats, _ = lax.scan(meet, zeros, jnp.arange(self.calibration_batches))
        total = 1 - MOMENTUM**self.calibration_batches  # of the weights of what was met
        return jax.tree.map(lambda x: x / total, stats)

    def _draw(
        self, data: PyTree, key: Array, half: int, step: Array, augment: bool = False
    ) -> Batch:
        train, test = self.prepare
        prepare = train if augment else lambda _, images: test(images)
        return draw(prepare, self.batch_size, data, key, half, step)

    def _run(
        self, params: PyTree, stats: PyTree, arch: Array, batch: Batch, train: bool
    ):
        """The loss; new statistics, and metrics with the loss among them."""
        logits, changed = self.network.apply(
            {"params": params, "batch_stats": stats},
            batch.images,
            one_hot(arch, self.num_choices),
            train=train,
            mutable=["batch_stats"],
        )
        loss = self.task.loss(logits, batch)
        metrics = {"loss": loss, **self.task.metrics(logits, batch)}
        return loss, (changed.get("batch_stats", {}), metrics)


def _for_those(
    one: Callable, start: PyTree, archs: Array, asked: Array, nothing: PyTree
):
    """Calls `one(carry, arch) -> (carry, metrics)` for those asked, in a row.

    Returns:
      The carry; metrics, of the others as in nothing.
    """

    def step(carry, given):
        arch, is_asked, otherwise = given
        return run_where(is_asked, one, (carry, otherwise), carry, arch)

    return lax.scan(step, start, (archs, asked, nothing))
