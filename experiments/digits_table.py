"""Makes the table `digits` that the package carries: 1024 networks, trained for real.

    python experiments/digits_table.py --output jaxnas/tables/digits.npz

Each is a perceptron on scikit-learn's 8x8 digits with up to three hidden layers. Its
six decisions: how many units each layer has (none: the layer is left out; 8, 24, 64),
the activation (relu, tanh, gelu, sigmoid), whether layers are normalised, whether they
are added to their input. A table of 4 and 16 epochs, means over three seeds; a fifth of
the training images is held out for validation. About three minutes on two CPU cores.
"""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxnas import benchmarks, data
from jaxnas.base import Table
from jaxnas.training import init_state, make_update

WIDTHS = 0, 8, 24, 64
ACTIVATIONS = jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.sigmoid
NUM_CHOICES = 4, 4, 4, 4, 2, 2
BUDGETS = 4, 16
UNITS, CLASSES, BATCH_SIZE = 64, 10, 64


@dataclass(frozen=True)
class Config:
    """Make the table of networks on digits."""

    output: Path = Path("digits.npz")
    seed: int = 0
    repeats: int = 3
    """Trainings of each network."""


def init(key):
    """Weights of all layers and of the readout, as PyTorch draws linear ones."""
    shapes = {"hidden": (3, UNITS, UNITS), "readout": (UNITS, CLASSES)}
    keys = jax.random.split(key, len(shapes))
    bound = UNITS**-0.5
    weights = {
        name: jax.random.uniform(k, shape, minval=-bound, maxval=bound)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return weights | {"bias": jnp.zeros((3, UNITS)), "offset": jnp.zeros(CLASSES)}


def logits(params, arch, x):
    """All networks have the same shapes: units that one lacks are zero."""
    widths = jnp.array(WIDTHS)[arch[:3]]
    for layer in range(3):
        mask = jnp.arange(UNITS) < widths[layer]
        y = x @ params["hidden"][layer] + params["bias"][layer][None]
        count = jnp.maximum(widths[layer], 1)
        mean = jnp.sum(y * mask[None], 1, keepdims=True) / count
        var = jnp.sum(jnp.square(y - mean) * mask[None], 1, keepdims=True) / count
        y = jnp.where(arch[4] == 1, (y - mean) * jax.lax.rsqrt(var + 1e-5), y)
        active = jnp.stack([activation(y) for activation in ACTIVATIONS])[arch[3]]
        y = active * mask[None] + jnp.where(arch[5] == 1, x, 0.0)
        x = jnp.where(widths[layer] > 0, y, x)
    return x @ params["readout"] + params["offset"][None]


def train(key, arch, train_set, tests):
    """Trains one network; its accuracies in percent, float32[budgets, tests]."""
    images, labels = train_set
    per_epoch = len(labels) // BATCH_SIZE
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, BUDGETS[-1] * per_epoch), 0.9)

    def loss_fn(params, batch_stats, key, batch):
        loss = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, arch, batch[0]), batch[1]
        ).mean()
        return loss, (batch_stats, {})

    update = make_update(loss_fn, tx)

    def epoch(state, key):
        order = jax.random.permutation(key, len(labels))[: per_epoch * BATCH_SIZE]
        order = order.reshape(per_epoch, BATCH_SIZE)
        state, _ = jax.lax.scan(
            lambda state, i: update(key, state, (images[i], labels[i])), state, order
        )
        found = [
            100 * jnp.mean(jnp.argmax(logits(state.params, arch, x), 1) == y)
            for x, y in tests
        ]
        return state, jnp.stack(found)

    key_init, key_epochs = jax.random.split(key)
    state = init_state({"params": init(key_init)}, tx)
    _, found = jax.lax.scan(epoch, state, jax.random.split(key_epochs, BUDGETS[-1]))
    return found[np.array(BUDGETS) - 1]


def main(config: Config) -> None:
    """Trains all networks and writes the table."""
    digits = data.load("digits")
    x = (digits.train_images.reshape(-1, UNITS) / 127.5 - 1).astype(np.float32)
    y = digits.train_labels
    order = np.random.default_rng(config.seed).permutation(len(y))
    held, kept = np.split(order, [len(y) // 5])
    x_test = (digits.test_images.reshape(-1, UNITS) / 127.5 - 1).astype(np.float32)
    tests = (x[held], y[held]), (x_test, digits.test_labels)
    choices = itertools.product(*map(range, NUM_CHOICES))
    archs = np.array(list(choices), np.int32)
    keys = jax.random.split(jax.random.key(config.seed), (config.repeats, len(archs)))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, None, None))
    def train_all(keys, arch, train_set, tests):
        return jax.vmap(train, (0, None, None, None))(keys, arch, train_set, tests)

    parts = [
        np.asarray(train_all(keys[:, part].T, archs[part], (x[kept], y[kept]), tests))
        for part in np.array_split(np.arange(len(archs)), 8)
    ]
    means = np.concatenate(parts).mean(1)  # float32[A, budgets, tests]
    columns = {
        f"{name}_{budget}ep": means[:, b, t, None]
        for b, budget in enumerate(BUDGETS)
        for t, name in enumerate(("valid_acc", "test_acc"))
    }
    source = "jaxnas, experiments/digits_table.py"
    table = Table(
        "digits", "categorical", NUM_CHOICES, ("digits",), archs, columns, source
    )
    config.output.parent.mkdir(parents=True, exist_ok=True)
    benchmarks.save(table, config.output)
    for name, column in columns.items():
        print(f"{name}: {column.min():.2f} to {column.max():.2f} %")


if __name__ == "__main__":
    main(tyro.cli(Config))
