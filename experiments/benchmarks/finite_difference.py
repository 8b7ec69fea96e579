"""How far DARTS's finite difference is from the exact second-order term, in float64.

    python experiments/benchmarks/finite_difference.py

trains a small supernet on digits, its architecture at rest, and prints for some of the
steps how far the architecture's gradient is from the exact one: relative to the whole
gradient, and to its second-order term. About ten minutes on two CPU cores.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import tyro

from jaxnas import data
from jaxnas.evaluators.hypergradients import finite_difference
from jaxnas.evaluators.supernet import supernet
from jaxnas.spaces.darts import darts
from jaxnas.strategies.differentiable import differentiable
from jaxnas.tasks import Batch, classification

AT = 0, 10, 50, 100, 150
DISTANCES = 1e-2, 1e-3, 1e-4, 1e-6, 1e-7
FAR = 1e12  # the quotient is nothing then: what remains is first order


@dataclass(frozen=True)
class Config:
    """Compare the finite difference with the exact second-order term."""

    channels: int = 8
    cells: int = 3
    batch_size: int = 32
    seed: int = 0


def make_step(config: Config):
    """Returns the first state, and `step(state, distance)`: None is the exact term."""
    digits = data.load("digits")
    key_init, key_split = jax.random.split(jax.random.key(config.seed))
    mean, std = data.channel_statistics(digits.train_images)
    halves = data.split(key_split, digits.train_images, digits.train_labels)
    space = darts()
    evaluator = partial(
        supernet,
        space.network(channels=config.channels, cells=config.cells),
        classification(),
        tuple(Batch(*half) for half in halves),
        lambda key, x: ((x - mean) / std).astype(float),
        batch_size=config.batch_size,
    )
    strategy = differentiable(space)
    proposal = strategy.ask(key_init, 0, strategy.init(key_init))
    examples, state = evaluator().data, evaluator().init(key_init)

    @jax.jit
    def step(examples, state, proposal, distance):
        how = "exact" if distance is None else None
        how = how or partial(finite_difference, distance=distance)
        evaluate = evaluator(hypergradient=how).evaluate
        state, feedback = evaluate(key_init, examples, state, proposal)
        return state, feedback.grad

    state, proposal = to_float64((state, proposal))
    return state, lambda state, distance: step(examples, state, proposal, distance)


def to_float64(tree):
    """Casts what is float32."""
    return jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x, tree
    )


def main(config: Config) -> None:
    """Prints the table."""
    jax.config.update("jax_enable_x64", True)
    state, step = make_step(config)
    table = rich.table.Table(title="distance from the exact gradient, in %")
    columns = [f"{what} {d:.0e}" for d in DISTANCES for what in ("whole", "term")]
    for column in ("steps", *columns):
        table.add_column(column, justify="right")
    for i in range(max(AT) + 1):
        after, exact = step(state, None)
        if i in AT:
            term = norm(exact - step(state, FAR)[1])
            far = [norm(step(state, d)[1] - exact) for d in DISTANCES]
            shares = [100 * x / scale for x in far for scale in (norm(exact), term)]
            table.add_row(str(i), *(f"{share:.2g}" for share in shares))
        state = after
    rich.console.Console(width=120).print(table)


def norm(x) -> float:
    """The Euclidean norm of all entries."""
    return float(np.linalg.norm(x))


if __name__ == "__main__":
    main(tyro.cli(Config))
