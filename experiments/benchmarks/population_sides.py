"""Both sides of population_training.py: what is trained, and by whom."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_chain

from jaxnas import data
from jaxnas.base import FULL, Array, Proposal, SearchSpace
from jaxnas.evaluators.population import Trainer, population
from jaxnas.tasks import Batch, classification
from jaxnas.training import sgd

MOMENTUM, WEIGHT_DECAY, CLASSES = 0.9, 1e-4, 10
TRIALS = 8  # networks that choose how PyTorch trains


class Problem(NamedTuple):
    """What is trained, in the words of both sides."""

    space: SearchSpace
    data: dict[str, Batch]  # images uint8
    normal: Any  # uint8[..., colours] -> float32
    schedule: Any  # step -> learning rate
    epochs: int
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Of a whole training."""
        per_epoch = len(self.data["train"].labels) // self.batch_size
        return self.epochs * per_epoch

    @property
    def recipe(self) -> dict[str, Any]:
        """What `population` and its `Trainer` both take."""
        return {
            "space": self.space,
            "task": classification(),
            "prepare": (lambda _, images: self.normal(images), self.normal),
            "num_classes": CLASSES,
            "tx": sgd(self.schedule, MOMENTUM, WEIGHT_DECAY),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }

    def archs(self, count: int) -> Array:
        """The first random architectures, int32[count, D]."""
        keys = jax.random.split(jax.random.key(self.seed), count)
        return jax.vmap(self.space.sample)(keys)

    def key(self, part: int) -> Array:
        """That of the population's part."""
        return jax.random.fold_in(jax.random.key(self.seed + 1), part)


class Ours:
    """The population's program for a number of networks."""

    def __init__(self, problem: Problem, size: int):
        """Traces and compiles; `seconds` says how long that took."""
        evaluator = population(data=problem.data, **problem.recipe)
        full, none = jnp.full(size, FULL), jnp.full(size, -1)
        self.proposal = Proposal(problem.archs(size), full, none)
        self.data = jax.block_until_ready(evaluator.data)
        times = [time.perf_counter()]
        traced = jax.jit(evaluator.evaluate).trace(
            problem.key(0), self.data, (), self.proposal
        )
        lowered = traced.lower()
        times.append(time.perf_counter())
        self.program = lowered.compile()
        times.append(time.perf_counter())
        self.seconds = dict(zip(("trace", "compile"), np.diff(times), strict=True))

    def run(self, key: Array, archs: Array) -> tuple[float, np.ndarray]:
        """Trains networks; seconds, and their validation accuracies."""
        proposal = jax.block_until_ready(self.proposal._replace(arch=archs))
        began = time.perf_counter()
        _, feedback = self.program(key, self.data, (), proposal)
        fitness = np.asarray(feedback.fitness)
        return time.perf_counter() - began, fitness


class Theirs:
    """The first networks of the same population in PyTorch."""

    def __init__(self, problem: Problem, archs: Array, keys: Array):
        """Builds them with the population's weights, and finds its batches.

        Args:
          problem: what is trained.
          archs: int32[N, D].
          keys: key[N], from which the networks' trainings follow.
        """
        recipe = {k: v for k, v in problem.recipe.items() if k != "epochs"}
        supernet = problem.space.network(num_classes=CLASSES)
        trainer = Trainer(**recipe, network=supernet, size={})
        train, valid = problem.data["train"], problem.data["valid"]
        images = {"train": jax.tree.map(jnp.asarray, train)}
        fresh = jax.jit(lambda key, arch: trainer.fresh(key, arch, images).params)

        @jax.jit
        def order(key):
            key_order, _ = jax.random.split(jax.random.fold_in(key, 1))
            draw = partial(data.batch_indices, key_order)
            return jax.vmap(lambda i: draw(i, len(train.labels), trainer.batch_size))(
                jnp.arange(problem.steps)
            )

        def build(key, arch):
            params = problem.space.restrict(jax.device_get(fresh(key, arch)), arch)
            network = problem.space.network(arch, num_classes=CLASSES)
            return torch_chain.build(network, train.images.shape[1:], params)

        pairs = zip(keys, np.asarray(archs), strict=True)
        self.nets = [build(key, arch) for key, arch in pairs]
        self.orders = [_tensor(order(key)) for key in keys]
        self.train = self._examples(problem, train)
        self.valid = self._examples(problem, valid)
        self.recipe = torch_chain.Recipe(
            np.asarray(problem.schedule(np.arange(problem.steps))).tolist(),
            MOMENTUM,
            WEIGHT_DECAY,
        )
        batches = torch_chain.Batches(*self.train, self.orders[0])
        self.way = torch_chain.fastest_way(self.nets[:TRIALS], batches, self.recipe)

    def _examples(self, problem: Problem, batch: Batch):
        images = _tensor(problem.normal(batch.images)).permute(0, 3, 1, 2)
        return images.contiguous(), _tensor(batch.labels)

    def run(self, networks: Sequence[int]) -> tuple[float, list[float]]:
        """Trains networks by number; seconds, and their validation accuracies."""
        for i in networks:
            torch_chain.prepared(self.nets[i], self.way)
        found = []
        torch_chain.synchronise()
        began = time.perf_counter()
        for i in networks:
            batches = torch_chain.Batches(*self.train, self.orders[i])
            torch_chain.train(self.nets[i], batches, self.recipe, self.way)
            found.append(torch_chain.accuracy(self.nets[i], *self.valid))
        return time.perf_counter() - began, found


def _tensor(array: Any) -> torch.Tensor:
    tensor = torch.tensor(np.asarray(array))
    tensor = tensor if tensor.is_floating_point() else tensor.long()
    return tensor.to(torch_chain.DEVICE)


def versions() -> str:
    """What the figures hold for."""
    devices = jax.devices()
    return (
        f"jax {jax.__version__} on {len(devices)} x {devices[0].device_kind}, "
        f"torch {torch.__version__} on {torch_chain.DEVICE}"
    )
