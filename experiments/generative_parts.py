"""What searches by generators have in common: flags, and how good generators are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from candidates import SMALL, TrainingConfig
from generative_results import said

from jaxnas import runs
from jaxnas.base import (
    Array,
    Generator,
    History,
    InputError,
    PyTree,
    SearchSpace,
    Strategy,
)
from jaxnas.generation import quality
from jaxnas.nn.architectures import KINDS
from jaxnas.spaces import SPACES


@dataclass(frozen=True)
class GenerativeConfig(TrainingConfig):
    """The flags that such searches share."""

    evaluator: Literal["table", "population"] = "table"
    """population trains candidates for real, on --dataset and of --space."""
    benchmark: str = "digits"
    """Name of a table that the package carries, or the path of an .npz."""
    signals: tuple[str, ...] = ()
    """Columns of a table that strategies see, one after the other; the validation
    accuracy by default."""
    queries: int = 192
    """Evaluations of each search."""
    seeds: int = 50
    """Searches side by side; for real there is one."""
    samples: int = 10_000
    """Of the generator, that are counted."""
    qualities: tuple[Literal[tuple(SPACES)], ...] = (
        "nasbench201",
        "nasbench101",
        "chain",
    )
    """Spaces of which a generator is trained and judged besides."""
    examples: int = 10_000
    """Architectures that it learns from there."""
    pretrain: int = 20_000
    """Its updates on them."""
    network: Literal[KINDS] = "dense"
    """Of the generator: fully connected, convolutional or recurrent."""
    latent: int = 16
    """Numbers that the generator makes an architecture of."""
    batch: int = 5
    """Architectures a step of the search."""


QUICK: dict[str, Any] = SMALL | {
    "batch": 5,
    "queries": 50,
    "seeds": 10,
    "samples": 1000,
    "qualities": ("nasbench201",),
    "pretrain": 2000,
}
"""For the quick presets."""


Work = Callable[[runs.Run], dict[str, Any]]


class Method(NamedTuple):
    """A generator, and the strategy that searches by it."""

    name: str
    generator: Callable[..., Generator]  # (space, **settings)
    strategy: Callable[[SearchSpace, Generator, int], Strategy]  # number of queries


def in_steps(config: Any) -> int:
    """The evaluations of as many whole steps as the queries take."""
    return -(-config.queries // config.batch) * config.batch


def judge(
    config: Any, space: SearchSpace, made: Generator, state: PyTree, asked: np.ndarray
) -> dict[str, Any]:
    """How good a generator is that has searched; new is what was not asked for."""
    key = jax.random.key(config.seed)
    return said(quality(key, space, made, state, asked, config.samples))


def known_to(method: Method, names: tuple[str, ...]) -> tuple[str, ...]:
    """Which spaces the generator can be of; says why the others are left out."""
    kept = []
    for name in names:
        try:
            method.generator(SPACES[name]())
            kept.append(name)
        except InputError as error:
            print(f"{name} is left out: {error}")
    return tuple(kept)


def qualities(config: Any, method: Method, run: runs.Run) -> dict[str, Any]:
    """How good a generator is that has learnt from a space's architectures alone."""

    def one(name: str) -> dict[str, Any]:
        print(f"{method.name}  learning {name}", flush=True)
        space = SPACES[name]()
        key_init, key, key_learnt = jax.random.split(jax.random.key(config.seed), 3)
        keys = jax.random.split(key_learnt, config.examples)
        learnt = jax.jit(jax.vmap(space.sample))(keys)

        def pick(key: Array) -> Array:
            return learnt[jax.random.randint(key, (), 0, config.examples)]

        known = space._replace(sample=pick)
        made = method.generator(known, num_pretrain=config.pretrain)
        nobody = jnp.zeros((1, len(space.num_choices)), jnp.int32)
        history = History(nobody, jnp.zeros(1), jnp.zeros(1, bool))
        init = jax.jit(made.init).lower(key_init, history).compile()
        began = time.perf_counter()
        state = jax.block_until_ready(init(key_init, history))
        seconds = time.perf_counter() - began
        found = quality(key, space, made, state, learnt, config.samples)
        return said(found) | {"seconds": seconds}

    return {
        name: run.once(f"quality_{name}", partial(one, name))
        for name in config.qualities
    }
