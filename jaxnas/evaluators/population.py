"""Training many architectures of a space in one compiled program, for real.

The program takes architectures as numbers, so that new ones need no compiling. The
networks come from the space's supernet at one-hot weights. Where a device trains one
after the other, as a CPU does, that of `chain` computes what an architecture has and
nothing else; side by side, and for cells, all that there is to choose is computed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from jaxnas.base import OK, Array, Evaluator, Feedback, Proposal, SearchSpace
from jaxnas.encoding import one_hot
from jaxnas.evaluators.answers import PARTS, check, names_of, worth
from jaxnas.evaluators.fit import Step
from jaxnas.metrics import classification_metrics
from jaxnas.parallel import population_mesh, spread
from jaxnas.tasks import Batch, Task, judge
from jaxnas.training import TrainState, init_state, init_variables


class Kept(NamedTuple):
    """The networks in S slots; epochs of 0: nobody."""

    train: TrainState  # [S, ...]
    arch: Array  # int32[S, D]
    epochs: Array  # int32[S]
    key: Array  # key[S], what the network's training follows from


def population(
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
    num_slots: int = 0,
    group: int | None = None,
    mesh: Mesh | None = None,
    **size: Any,
) -> Evaluator:
    """Makes the evaluator that trains all architectures of a proposal from scratch.

    A network trains for the budget of its proposal, `epochs` at most, which a budget
    of `FULL` stands for. One in a slot goes on from what the slot holds, as `Proposal`
    says; its batches are those of a network that never stopped.

    Metrics: those of `evaluators.answers`; `parameters` and `flops` where the space
    knows them. Cost is in epochs.

    Args:
      space: one whose `network()` is a supernet.
      task: what the networks are trained for.
      data: "train", "valid" and maybe "test", images uint8[N, H, W, colours].
      prepare: `(key, uint8[B, ...]) -> float32` for training and
        `uint8[B, ...] -> float32` for the rest.
      num_classes: C.
      tx: the optimizer.
      epochs: of a whole training.
      batch_size: examples a step.
      fitness: a metric; of `answers.SMALLER_IS_BETTER` its negative is taken.
      objectives: metrics that become `Feedback.objectives`, likewise.
      num_slots: S.
      group: networks that a device trains side by side: on a CPU one, where a network
        by itself is fastest, elsewhere all. A smaller group takes less memory, see
        `jaxnas.evaluators.memory`.
      mesh: devices; all by default.
      **size: of `space.network`.

    Raises:
      InputError: there is no such metric, no supernet, or no examples; a number is out
        of range.
    """
    names = names_of(data) + (["parameters", "flops"] if space.sizes else [])
    check(data, batch_size, epochs, names, (fitness, *objectives))
    is_cpu = jax.default_backend() == "cpu"
    supernet = _supernet(space, num_classes=num_classes, **size)
    trainer = Trainer(space, supernet, task, prepare, num_classes, tx, batch_size, size)
    mesh = population_mesh() if mesh is None else mesh
    data = jax.tree.map(jnp.asarray, data)

    def train_all(same: Any, parts: Any) -> Any:
        side_by_side = group or (1 if is_cpu else len(parts[0]))
        one = partial(trainer.__call__, same, keep=num_slots > 0)
        if side_by_side == 1:
            return lax.map(one, parts)
        return lax.map(one, parts, batch_size=side_by_side)

    def init(key: Array) -> Any:
        if not num_slots:
            return ()
        arch = jnp.zeros((num_slots, len(space.num_choices)), jnp.int32)
        keys = jnp.broadcast_to(key, (num_slots,))
        fresh = jax.vmap(trainer.fresh, (0, 0, None))(keys, arch, data)
        return Kept(fresh, arch, jnp.zeros(num_slots, jnp.int32), keys)

    def evaluate(key: Array, data: Any, state: Any, proposal: Proposal):
        arch = proposal.arch
        budget = jnp.minimum(proposal.budget, epochs)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(arch)))
        start = jnp.zeros_like(budget)
        before = None
        if num_slots:
            before, start, keys = _resume(state, proposal, budget, keys)
        shape = data["train"].images.shape[1:]
        effort = (budget - start) * _operations(space, arch, shape)
        metrics, after = spread(train_all, mesh)(
            data, (arch, keys, start, budget, before), effort
        )
        if num_slots:
            lives = jnp.isfinite(metrics["cross_entropy"]) & (budget > 0)
            state = _keep(state, proposal, lives, Kept(after, arch, budget, keys))
        metrics = {k: jnp.where(budget > 0, v, jnp.nan) for k, v in metrics.items()}
        value, values = worth(metrics, fitness, objectives)
        return state, Feedback(
            fitness=value,
            cost=jnp.maximum(budget - start, 0).astype(jnp.float32),
            status=jnp.full(len(arch), OK, jnp.int32),
            metrics=metrics,
            objectives=values,
        )

    return Evaluator(data, init, evaluate)


class Trainer(NamedTuple):
    """Trains one network, whose architecture is a number; traceable."""

    space: SearchSpace
    network: Any  # the supernet
    task: Task
    prepare: tuple[Callable[[Array, Array], Array], Callable[[Array], Array]]
    num_classes: int
    tx: optax.GradientTransformation
    batch_size: int
    size: dict[str, Any]

    def __call__(self, data: dict[str, Batch], part: tuple, keep: bool):
        """Trains from the end of one epoch to another; metrics, the state to keep."""
        arch, key, start, end, before = part
        weights = one_hot(arch, self.space.num_choices)
        fresh = self.fresh(key, arch, data)
        if before is None:
            state = fresh
        else:
            state = jax.tree.map(partial(jnp.where, start > 0), before, fresh)
        per_epoch = len(data["train"].labels) // self.batch_size
        state = self.train(key, data["train"], weights, state, start, end, per_epoch)
        metrics = self.look(data, weights, state)
        if self.space.sizes:
            shape = data["train"].images.shape[1:]
            sizes = self.space.sizes(
                arch, shape, num_classes=self.num_classes, **self.size
            )
            metrics |= dict(zip(("parameters", "flops"), sizes, strict=True))
        return metrics, state if keep else None

    def fresh(self, key: Array, arch: Array, data: dict[str, Batch]) -> TrainState:
        """A network that has not been trained yet."""
        weights = one_hot(arch, self.space.num_choices)
        shape = (1, *data["train"].images.shape[1:])
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        key_init = jax.random.fold_in(key, 0)
        variables = init_variables(self.network, key_init, image, weights, train=True)
        return init_state(variables, self.tx)

    def train(self, key, data, weights, state, start, end, per_epoch) -> TrainState:
        """Takes the steps from the end of one epoch to the end of another."""
        how = self.network, self.task, self.prepare[0], self.tx, 0, self.batch_size
        one = Step(*how, auxiliary=0.0, drop_path=0.0)
        key = jax.random.fold_in(key, 1)

        def step(loop):
            number, state, _ = loop
            state, found = one(key, data, state, number, weights)
            return number + 1, state, found["loss"]

        def goes_on(loop):  # what has diverged stays so
            return (loop[0] < end * per_epoch) & jnp.isfinite(loop[2])

        loop = start * per_epoch, state, jnp.float32(0)
        return lax.while_loop(goes_on, step, loop)[1]

    def look(self, data: dict[str, Batch], weights, state) -> dict[str, Array]:
        """The metrics on all examples but those of training."""
        how = self.network, self.prepare[1], self.num_classes, self.batch_size
        found: dict[str, Array] = {}
        for part, prefix in PARTS.items():
            if part in data:
                confusion, loss = judge(*how, state.variables, data[part], weights)
                metrics = classification_metrics(confusion) | {"cross_entropy": loss}
                # A network whose logits are not finite prefers no class.
                ok = jnp.isfinite(loss)
                found |= {
                    prefix + name: jnp.where(ok, value, jnp.nan)
                    for name, value in metrics.items()
                }
        return found


def _supernet(space: SearchSpace, **size: Any) -> Any:
    """The supernet with the batch norms that the space's networks have: weights that
    many share would be normalised in another way."""
    supernet = space.network(**size)
    alone = space.network(space.sample(jax.random.key(0)), **size)
    norms = {"affine", "pool_norm"} & set(vars(alone))
    return supernet.clone(**{name: getattr(alone, name) for name in norms})


def _operations(space: SearchSpace, archs: Array, shape: Any) -> Array:
    """For an image, float32[B]; equal where the space does not know."""
    sizes = space.sizes
    if not sizes:
        return jnp.ones(len(archs))
    return jax.vmap(lambda arch: sizes(arch, shape)[1])(archs)


def _resume(state: Kept, proposal: Proposal, budget: Array, keys: Array):
    """What the proposals' slots hold, where that is theirs: states, epochs, keys."""
    held = jax.tree.map(lambda x: x[proposal.slot], state)
    is_slot = (proposal.slot >= 0) & (proposal.slot < len(state.epochs))
    same = jnp.all(held.arch == proposal.arch, 1) & is_slot
    goes_on = same & (held.epochs > 0) & (held.epochs < budget)
    start = jnp.where(goes_on, held.epochs, 0)
    return held.train, start, jnp.where(goes_on, held.key, keys)


def _keep(state: Kept, proposal: Proposal, lives: Array, new: Kept) -> Kept:
    """Puts trained networks into their slots, but for those that diverged."""
    slots = len(state.epochs)
    used = (proposal.slot >= 0) & lives
    place = jnp.where(used, proposal.slot, slots)  # out of range: dropped
    return jax.tree.map(lambda old, x: old.at[place].set(x, mode="drop"), state, new)
