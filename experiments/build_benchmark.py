"""Makes a table of all of a small space, trained on digits.

    python experiments/build_benchmark.py --output chains.npz

trains 1,152 chains of up to six layers (`benchmark_table.SLOTS`) on scikit-learn's 8x8
digits, three times each, for 16 epochs of one cosine schedule; accuracies are read
after 4 epochs too. A fifth of the training images is held out for validation.
`jaxnas.benchmarks` says what a table holds; here, at both budgets::

    valid_acc, test_acc           means over the seeds; 0 for a network that diverged
    valid_acc_std, test_acc_std   standard deviations over the seeds, in points
    cost                          seconds that one core took for one training
    parameters, flops             of the network; two operations a multiply-add

Networks of about equally many operations are trained together, and each is given the
same share of the seconds that the cores took for them, looking at the validation and
test images included; of that share, the smaller budget its part of the epochs.

Twenty minutes on two CPU cores. The best reaches about 99 % test accuracy, the
worst guesses. `--against TABLE` says how far the table is from another one.
"""

import itertools
import math
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_table import (
    MEASURED,
    NUM_CHOICES,
    SPACE,
    Sizes,
    chain_of,
    comparable,
    compare,
    make_table,
    sizes_of,
    summary,
)

from jaxnas import benchmarks, cli, data, parallel, runs
from jaxnas.base import Array, Evaluator, InputError, Proposal, Table
from jaxnas.evaluators.population import population
from jaxnas.progress import Progress
from jaxnas.tasks import Batch, classification

TRAIN = 0.8  # of the training images; the others validate
PHASE = "training"  # of the log, a row a network


@dataclass(frozen=True)
class Config:
    """Train every architecture of a small space, and write a table of it."""

    preset: Literal["quick", "whole"] = "whole"
    """quick trains a handful for a moment; the other flags change a preset's values."""
    output: Path | None = None
    """Where the table goes; digits.npz in the work folder by default."""
    against: str | None = None
    """A table to compare with: a path, or the name of one that the package carries."""
    architectures: int | None = None
    """Train so many, drawn at random, instead of all."""
    seeds: int = 3
    """Trainings of each architecture."""
    budgets: tuple[int, ...] = (4, 16)
    """Epochs after which accuracies are read; the last are the whole training."""
    batch_size: int = 32
    learning_rate: float = 0.1
    part: int = 8
    """Architectures that are trained, timed and saved together."""
    workdir: Path = Path("runs/build_benchmark")
    """Where results go; the same command goes on from what is there."""
    overwrite: bool = False
    """Clear a run of another configuration from the work folder."""
    seed: int = 0
    """What every random number follows from."""


PRESETS = {
    "quick": Config(architectures=6, seeds=2, budgets=(1, 2), part=3),
    "whole": Config(),
}


def main(config: Config) -> None:
    """Trains, or goes on with it; writes the table, and compares it with another."""
    other = check(config)
    output = config.output or config.workdir / "digits.npz"
    # Where the table goes and what it is compared with may change between two starts.
    with runs.open_run(
        replace(config, output=None, against=None), columns(config)
    ) as run:
        archs = architectures(config)
        sizes = sizes_of(archs)
        found = train(config, archs, sizes, run)
        table = make_table(archs, sizes, found, config.budgets)
        benchmarks.save(table, output)
        result = run.result() or run.finish(summary(table, run))
        cli.show_result(result)
        print(f"the table is {output}, other files are in {run.folder}")
        if config.architectures:
            print("it has a part of the space: tabular_search.py wants --partial")
    if other is not None:
        compare(table, other)


def check(config: Config) -> Table | None:
    """Refuses what cannot work, before a folder is made; the table to compare with."""
    ranges = {
        "architectures": (1, math.prod(NUM_CHOICES)),
        "seeds": (2, math.inf),
        "batch_size": (1, round(TRAIN * len(data.load("digits").train_labels))),
        "learning_rate": (0, math.inf),
        "part": (1, math.inf),
        "seed": (0, 2**32 - 1),
    }
    cli.check_ranges(config, ranges)
    budgets = list(config.budgets)
    if budgets != sorted(set(budgets)) or not budgets or budgets[0] < 1:
        raise InputError(
            f"expected --budgets of 1 epoch or more, increasing, but got {budgets}: "
            "change them"
        )
    path = config.output
    if path and (path.suffix != ".npz" or not path.parent.is_dir()):
        raise InputError(
            f"expected --output in a folder that is there, ending in .npz, but got "
            f"{path}: change it"
        )
    if config.against is None:
        return None
    other = benchmarks.load(config.against)
    comparable(other, architectures(config), config.budgets)
    return other


def columns(config: Config) -> list[str]:
    """The columns of log.csv, one row a network."""
    return [f"{name}_{b}ep" for b in config.budgets for name in MEASURED]


def architectures(config: Config) -> np.ndarray:
    """The choices in `SLOTS`, each once: int32[A, D]."""
    archs = np.array(list(itertools.product(*map(range, NUM_CHOICES))), np.int32)
    if config.architectures is None:
        return archs
    rng = np.random.default_rng(config.seed)
    return archs[np.sort(rng.permutation(len(archs))[: config.architectures])]


def train(
    config: Config, archs: np.ndarray, sizes: Sizes, run: runs.Run
) -> dict[str, np.ndarray]:
    """Trains what the log does not have yet; float64[A, S] of each of its columns."""
    order = np.argsort(sizes.flops, kind="stable")
    total, together = len(archs) * config.seeds, config.part * config.seeds
    done = len(run.log.read(PHASE)["step"])
    done -= done % together if done < total else 0
    run.log.drop_after(PHASE, done)
    with Progress(PHASE, total, done) as progress:
        if done == total:
            progress.update(done)
        else:
            train_rest(config, chain_of(archs[order]), done, run, progress)
    rows = run.log.read(PHASE)
    found = {}
    for name in columns(config):
        found[name] = np.empty((len(archs), config.seeds))
        found[name][order] = np.reshape(rows[name], (len(archs), config.seeds))
    return found


def train_rest(
    config: Config, chains: np.ndarray, done: int, run: runs.Run, progress: Progress
) -> None:
    """Trains part by part, and writes a row a network to the log."""
    total, together = len(chains) * config.seeds, config.part * config.seeds
    key_split, key_train = jax.random.split(jax.random.key(config.seed))
    evaluator = make_evaluator(config, key_split, together)
    cores, epochs = jax.device_count(), config.budgets[-1]
    run.clock("compiling")
    program = jax.jit(partial(measure, evaluator, config.budgets))
    lowered = program.lower(key_train, evaluator.data, proposed(config, chains, 0))
    measure_part = lowered.compile()
    progress.compiled()
    for start in range(done, total, together):
        run.clock(PHASE)
        key = jax.random.fold_in(key_train, start // together)
        chosen = proposed(config, chains, start)
        began = time.perf_counter()
        metrics = jax.block_until_ready(measure_part(key, evaluator.data, chosen))
        cost = (time.perf_counter() - began) * cores / together
        percent = {
            "valid_acc": 100 * np.nan_to_num(metrics["accuracy"]),
            "test_acc": 100 * np.nan_to_num(metrics["test_accuracy"]),
        }
        end = min(start + together, total)
        for i in range(end - start):
            row = {f"cost_{b}ep": cost * b / epochs for b in config.budgets}
            for name, values in percent.items():
                pairs = zip(config.budgets, values[:, i], strict=True)
                row |= {f"{name}_{b}ep": value for b, value in pairs}
            run.log.write(PHASE, start + i + 1, row)
        progress.update(end, valid_acc=percent["valid_acc"][-1].mean())
    run.clock(None)


def proposed(config: Config, chains: np.ndarray, start: int) -> Array:
    """The networks of a part, seeds innermost: int32[part * S, D].

    What the last part lacks repeats the last network, so that all take as long.
    """
    network = np.arange(start, start + config.part * config.seeds)
    return jnp.asarray(chains[np.minimum(network // config.seeds, len(chains) - 1)])


def make_evaluator(config: Config, key: Array, slots: int) -> Evaluator:
    """Trains on four fifths of the training images, without augmentation."""
    digits = data.load("digits")
    mean, std = data.channel_statistics(digits.train_images)
    normalize = partial(data.normalize, mean=mean, std=std)
    train, valid = data.split(key, digits.train_images, digits.train_labels, TRAIN)
    sets = {"train": Batch(*train), "valid": Batch(*valid)}
    sets["test"] = Batch(digits.test_images, digits.test_labels)
    epochs = config.budgets[-1]
    steps = epochs * max(1, len(train[1]) // config.batch_size)
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    return population(
        SPACE,
        classification(),
        sets,
        (lambda key, images: normalize(images), normalize),
        num_classes=len(digits.class_names),
        tx=optax.sgd(schedule, 0.9),
        epochs=epochs,
        batch_size=config.batch_size,
        num_slots=slots,
    )


def measure(
    evaluator: Evaluator, budgets: tuple[int, ...], key: Array, data: Any, arch: Array
) -> dict[str, Array]:
    """Trains B networks from budget to budget; their metrics, float32[budgets, B]."""

    def train_on(state, budget):
        slots = jnp.arange(len(arch), dtype=jnp.int32)
        proposal = Proposal(arch, jnp.full(len(arch), budget), slots)
        state, feedback = evaluator.evaluate(key, data, state, proposal)
        return state, feedback.metrics

    return jax.lax.scan(train_on, evaluator.init(key), jnp.array(budgets))[1]


if __name__ == "__main__":
    parallel.use_cpu_cores()
    # The whole table is what is asked for on a CPU too.
    cli.main(main, PRESETS, ["--preset", "whole", *sys.argv[1:]])
