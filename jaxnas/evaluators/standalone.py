"""Training each architecture as the network that it is, one by one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxnas.base import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    Array,
    Evaluator,
    Feedback,
    Proposal,
    PyTree,
    SearchSpace,
)
from jaxnas.evaluators.answers import PARTS, check, check_wanted, names_of, worth
from jaxnas.evaluators.fit import fit
from jaxnas.evaluators.memory import make_room
from jaxnas.evaluators.timing import median_seconds
from jaxnas.metrics import classification_metrics
from jaxnas.tasks import Batch, Task, judge
from jaxnas.training import TrainState


def standalone(
    space: SearchSpace,
    task: Task,
    data: dict[str, Batch],
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]],
    *,
    num_classes: int,
    tx: optax.GradientTransformation,
    epochs: int,
    batch_size: int = 64,
    fitness: str = "accuracy",
    objectives: Sequence[str] = (),
    failed: Callable[[np.ndarray, str], None] | None = None,
    measure: bool = False,
    **size: Any,
) -> Evaluator:
    """Makes the evaluator that trains each architecture as the network that it is.

    A program cannot choose which network it is, so searching with it takes
    `chunked_scan(..., compiled=False)` and a strategy whose functions are jitted.
    Networks of one shape are compiled once a budget. One that cannot be built or
    compiled, or has no room in memory, gets -inf and the status FAILED or
    OUT_OF_MEMORY. What a slot holds is not gone on with: all start afresh.

    Args, metrics and cost are those of `evaluators.population.population`, but for its
    num_slots, group and mesh, and:
      failed: takes the architecture int32[D] and why it failed, a line.
      measure: whether to add the metrics `memory`, the bytes that the compiled
        program takes which classifies a batch, and `latency`, its median seconds.

    Raises:
      InputError: there is no such metric, or no examples; a number is out of range.
    """
    names = [*names_of(data), "parameters", *(["flops"] if space.sizes else [])]
    names += ["memory", "latency"] if measure else []
    check(data, batch_size, epochs, names, (fitness, *objectives))
    sizes = space.sizes and jax.jit(
        partial(space.sizes, num_classes=num_classes, **size), static_argnums=1
    )
    data = jax.tree.map(jnp.asarray, data)
    how = space, task, data, prepare, num_classes, tx, batch_size, measure, size, sizes
    return one_by_one(
        _Trainer(*how).__call__,
        names,
        epochs=epochs,
        fitness=fitness,
        objectives=objectives,
        failed=failed,
    )


def one_by_one(
    train: Callable[[Array, np.ndarray, int], dict[str, float]],
    names: Sequence[str],
    *,
    epochs: int,
    fitness: str,
    objectives: Sequence[str] = (),
    failed: Callable[[np.ndarray, str], None] | None = None,
) -> Evaluator:
    """Makes the evaluator that calls a function for each architecture.

    What is trained, and what it is worth, is up to the function; `standalone` says how
    to search with the evaluator, and what becomes of an architecture where it raises.

    Args:
      train: key, architecture int32[D], epochs -> metrics; one it leaves out is NaN.
      names: of the metrics.
      epochs: of a whole training, which a budget of `FULL` stands for.
      fitness, objectives: metrics, as those of `evaluators.population.population`.
      failed: see `standalone`.

    Raises:
      InputError: there is no such metric; less than an epoch.
    """
    check_wanted(epochs, names, (fitness, *objectives))

    def try_one(key: Array, arch: np.ndarray, asked: int) -> tuple[dict, int]:
        if not asked:
            return {}, OK
        try:
            return train(key, arch, asked), OK
        except Exception as error:  # whatever is wrong with it, others are not
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said
            if failed:
                failed(arch, said)
            return {}, OUT_OF_MEMORY if full else FAILED
        finally:
            make_room()  # each is a program of its own

    def train_all(key: Any, arch: Any, budget: Any) -> tuple[np.ndarray, np.ndarray]:
        key = jax.random.wrap_key_data(jnp.asarray(key))
        rows, status = [], []
        for i, (one, asked) in enumerate(zip(np.asarray(arch), budget, strict=True)):
            found, answer = try_one(jax.random.fold_in(key, i), one, int(asked))
            rows.append([found.get(name, np.nan) for name in names])
            status.append(answer)
        return np.array(rows, np.float32), np.array(status, np.int32)

    def evaluate(key: Array, data: Any, state: tuple[()], proposal: Proposal):
        del data
        budget = jnp.minimum(proposal.budget, epochs)
        asked = jax.random.key_data(key), proposal.arch, budget
        if isinstance(proposal.arch, jax.core.Tracer):  # only the shapes are wanted
            rows = jax.ShapeDtypeStruct((len(budget), len(names)), jnp.float32)
            each = jax.ShapeDtypeStruct((len(budget),), jnp.int32)
            table, status = jax.pure_callback(train_all, (rows, each), *asked)
        else:
            table, status = map(jnp.asarray, train_all(*asked))
        metrics = dict(zip(names, table.T, strict=True))
        value, values = worth(metrics, fitness, objectives)
        return state, Feedback(
            fitness=jnp.where(status != OK, -jnp.inf, value),
            cost=budget.astype(jnp.float32),
            status=status,
            metrics=metrics,
            objectives=values,
        )

    return Evaluator((), lambda key: (), evaluate)


class _Trainer(NamedTuple):
    """Trains one network for as many epochs and says what it is worth."""

    space: SearchSpace
    task: Task
    data: dict[str, Batch]
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]
    num_classes: int
    tx: optax.GradientTransformation
    batch_size: int
    measure: bool
    size: dict[str, Any]
    sizes: Callable[..., tuple[Array, Array]] | None  # parameters and operations

    def __call__(self, key: Array, arch: np.ndarray, epochs: int) -> dict[str, float]:
        data = self.data
        network = self.space.network(arch, num_classes=self.num_classes, **self.size)
        state, _ = fit(
            key,
            network,
            self.task,
            data["train"],
            self.prepare[0],
            _scan,
            tx=self.tx,
            num_steps=epochs * (len(data["train"].labels) // self.batch_size),
            batch_size=self.batch_size,
        )
        how = network, self.prepare[1], self.num_classes, self.batch_size
        found: dict[str, float] = {}
        for part, prefix in PARTS.items():
            if part in data:
                confusion, loss = judge(*how, state.variables, data[part])
                metrics = classification_metrics(np.asarray(confusion))
                metrics |= {"cross_entropy": loss}
                ok = bool(np.isfinite(loss))
                found |= {
                    prefix + name: float(value) if ok else np.nan
                    for name, value in metrics.items()
                }
        found["parameters"] = sum(x.size for x in jax.tree.leaves(state.params))
        if self.sizes:
            shape = data["train"].images.shape[1:]
            found["flops"] = float(self.sizes(jnp.asarray(arch), shape)[1])
        if self.measure:
            images = self.prepare[1](
                jnp.asarray(data["valid"].images[: self.batch_size])
            )
            found |= _measure(network, state.variables, images)
        return found


@partial(jax.jit, donate_argnums=1)
def _scan(f: Callable, state: TrainState, steps: Array):
    return lax.scan(f, state, steps)


def _measure(network: Any, variables: PyTree, images: Array) -> dict[str, float]:
    """Bytes and median seconds of classifying a batch."""
    program = jax.jit(network.apply).lower(variables, images).compile()
    memory: Any = program.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return {
        "memory": used + memory.output_size_in_bytes,
        "latency": median_seconds(program, variables, images),
    }
