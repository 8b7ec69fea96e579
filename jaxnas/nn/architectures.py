"""Networks that read architectures, and networks that write them.

An architecture is weights float32[N, D, K]. Where each of its D decisions stands is a
grid of R rows and C columns: a sequence is one row, an adjacency matrix has a row for
each vertex, a tree one for each parent, with its children beside each other. Over it
networks are fully connected, convolutional, or recurrent: a recurrent network walks
along each row, and another one from row to row, as GraphRNN does on matrices (You et
al. 2018, arXiv:1802.08773) and doubly recurrent networks on trees (Alvarez-Melis and
Jaakkola 2017, https://openreview.net/forum?id=HkYhZDqxg).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array
from jaxnas.nn.convolution import convolution

Grid = tuple[tuple[int, ...], ...]
"""R rows of C numbers of decisions; -1 where there is none."""

KINDS = ("dense", "convolutional", "recurrent")


class Reader(nn.Module):
    """Makes vectors float32[N, width] of weights float32[N, D, K].

    Attributes:
      grid: where decisions stand.
      kind: of `KINDS`.
      width: units of each layer.
      layers: how many.
    """

    grid: Grid
    kind: str
    width: int
    layers: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.kind == "dense":
            x = x.reshape(len(x), -1)
            for _ in range(self.layers):
                x = nn.leaky_relu(nn.Dense(self.width)(x))
            return x
        places = np.array(self.grid)
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, places]  # the last is nothing
        if self.kind == "convolutional":
            for _ in range(self.layers):
                x = nn.leaky_relu(_Window(self.width)(x))
            return nn.leaky_relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
        count, rows, columns, size = x.shape
        x = x.reshape(count * rows, columns, size)
        x = _walk(self.width, self.layers, x)[:, -1].reshape(count, rows, -1)
        return _walk(self.width, self.layers, x)[:, -1]


class Writer(nn.Module):
    """Makes logits float32[N, D, K] of vectors float32[N, L].

    Attributes:
      grid: where decisions stand.
      num_choices: of each of the D decisions; the largest is K.
      kind: of `KINDS`.
      width: units of each layer.
      layers: how many.
    """

    grid: Grid
    num_choices: tuple[int, ...]
    kind: str
    width: int
    layers: int

    @nn.compact
    def __call__(self, z: Array, condition=None, train=False) -> Array:
        del condition, train
        most, (rows, columns) = max(self.num_choices), np.shape(self.grid)
        if self.kind == "dense":
            for _ in range(self.layers):
                z = nn.leaky_relu(nn.Dense(self.width)(z))
            out = nn.Dense(len(self.num_choices) * most)(z)
            return out.reshape(len(z), -1, most)
        if self.kind == "convolutional":
            x = nn.Dense(rows * columns * self.width)(z)
            x = nn.leaky_relu(x.reshape(len(z), rows, columns, self.width))
            for _ in range(self.layers):
                x = nn.leaky_relu(_Window(self.width)(x))
        else:
            x = jnp.broadcast_to(z[:, None], (len(z), rows, z.shape[1]))
            x = _walk(self.width, self.layers, x).reshape(-1, 1, self.width)
            x = jnp.broadcast_to(x, (len(x), columns, self.width))
            x = _walk(self.width, self.layers, x)
        x = x.reshape(len(z), rows * columns, -1)
        flat = np.ravel(self.grid)
        order = np.array([np.flatnonzero(flat == d)[0] for d in range(flat.max() + 1)])
        return nn.Dense(most)(x[:, order])


class _Window(nn.Module):
    """What is 3 by 3 around each place."""

    width: int

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return convolution(x, kernel) + bias[None, None, None]


def _walk(width, layers, x):
    """What recurrent layers say after each of float32[N, T, F]."""
    for _ in range(layers):
        x = nn.RNN(nn.LSTMCell(width))(x)
    return x


def straight_through(key: Array, logits: Array, exists: Array, by: float) -> Array:
    """Draws choices: one-hot forwards, softmax(logits + gumbel) backwards.

    Jang, Gu and Poole 2017, arXiv:1611.01144.

    Args:
      key: PRNG key.
      logits: float32[N, D, K].
      exists: bool[D, K], which choices there are.
      by: temperature.
    """
    noisy = logits + jax.random.gumbel(key, logits.shape)
    noisy = jnp.where(exists[None], noisy, -1e9)
    soft = jax.nn.softmax(noisy / by)
    hard = jax.nn.one_hot(noisy.argmax(-1), logits.shape[-1])
    return soft + jax.lax.stop_gradient(hard - soft)


class ArchitectureGenerator(nn.Module):
    """Draws architectures float32[N, D, K], one-hot, of z float32[N, L].

    Attributes:
      writer: gives logits.
      temperature: of the Gumbel softmax.
    """

    writer: Writer
    temperature: float = 1.0

    def __call__(self, z, condition=None, train=False):
        logits, choices = self.writer(z), np.array(self.writer.num_choices)
        exists = jnp.arange(choices.max())[None] < choices[:, None]
        key = self.make_rng("sample")
        return straight_through(key, logits, exists, self.temperature)

    def logits(self, z):
        """What the draws are of: float32[N, D, K]."""
        return self.writer(z)


class ArchitectureDiscriminator(nn.Module):
    """Gives float32[N] for architectures float32[N, D, K]."""

    reader: Reader

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        return nn.Dense(1)(self.reader(x))[:, 0]


class ArchitectureEncoder(nn.Module):
    """Gives mean and log variance of the latent, float32[N, L] each.

    Attributes:
      reader: called with what there is of an architecture, gives float32[N, F].
      num_latent: L.
    """

    reader: nn.Module
    num_latent: int

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        x = self.reader(x)
        mean = nn.Dense(self.num_latent, name="mean")(x)
        return mean, nn.Dense(self.num_latent, name="log_variance")(x)


class Perceptron(nn.Module):
    """Gives float32[N] for vectors float32[N, L]."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, z):
        for _ in range(self.layers):
            z = nn.tanh(nn.Dense(self.width)(z))  # smooth, to ascend along
        return nn.Dense(1)(z)[:, 0]
