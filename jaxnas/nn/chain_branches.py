"""The functions between which a slot of a chain's supernet chooses.

A convolution could be compiled for every image, kernel and pair of widths, and none
would compute more than it has to; but each takes 0.4 s to trace and compile. So a few
are, those that spare the most, and what there is no program for takes the place of
zeros in a larger one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array
from jaxnas.nn.chain import ACTIVATIONS, POOLINGS, Layer, normalise, pool, statistics
from jaxnas.nn.chain_walk import Choices, Met
from jaxnas.nn.convolution import convolution

OVERHEAD = 50_000  # multiplications that a branch costs however small it is
WORTH = 0.015


class Program(NamedTuple):
    """A convolution that is compiled."""

    halvings: int  # that its images have behind them
    first: bool  # whether nothing with parameters comes before
    size: int  # of the kernel, in pixels
    before: int  # channels
    out: int


def needed(choices: Choices) -> list[Program]:
    """The programs of which none would compute more than it has to."""
    found: dict[Program, None] = {}
    for halvings, image in enumerate(choices.images):
        for layer in choices.trunk:
            if layer.kind == "conv":
                size = reach(layer, image)
                first = Program(
                    halvings, True, size, choices.image_shape[2], layer.width
                )
                found |= {first: None}
                for before in choices.widths:
                    found |= {first._replace(first=False, before=before): None}
    return list(found)


def reach(layer: Layer, image: tuple[int, int]) -> int:
    """The side of a convolution's kernel that matters: no window is larger."""
    return min(layer.size, 2 * max(image) - 1)


def choose_programs(choices: Choices, worth: float) -> dict[Program, Program]:
    """The program that each of those needed is computed by.

    The largest ones have to be; then the one that spares the most multiplications is
    added, as long as that is a share `worth` of them. Images of all sizes count the
    same.
    """
    needs = needed(choices)
    group = np.array([2 * need.halvings + need.first for need in needs])
    shape = np.array([need[2:] for need in needs])
    pixels = np.prod(choices.images, 1)[[need.halvings for need in needs]]
    cost = pixels * shape[:, 0] ** 2 * shape[:, 1] * shape[:, 2] + OVERHEAD
    weight = 1 / np.bincount(group)[group]
    fits = (group[:, None] == group) & (shape[:, None] >= shape).all(-1)
    price = np.where(fits, cost[:, None] * weight, np.inf)  # [program, need]
    chosen = [
        i for i in range(len(needs)) if fits[i].sum() == (group == group[i]).sum()
    ]
    while True:
        paid = price[chosen].min(0)
        spared = np.maximum(paid - price, 0).sum(1)
        if spared.max() <= worth * paid.sum():
            taken = np.array(chosen)[price[chosen].argmin(0)]
            return {need: needs[i] for need, i in zip(needs, taken, strict=True)}
        chosen.append(int(spared.argmax()))


class Branches:
    """The functions, which map float32[N, P, C] to another and the statistics that it
    normalised by, where P are the pixels of the largest image, and C the most channels.

    Attributes:
      functions: see above.
    """

    def __init__(self, choices: Choices, train: bool):
        """Lists them."""
        # Elsewhere networks are trained side by side, and that computes all programs.
        worth = WORTH if jax.default_backend() == "cpu" else 1.0
        programs = choose_programs(choices, worth)
        self._widths = np.array(choices.widths)
        shape = len(choices.trunk), len(choices.images), 1 + len(self._widths)
        self._table, self._rooms = np.zeros(shape, np.int32), np.ones((*shape, 2), int)
        found: dict[tuple, int] = {}
        for place in np.ndindex(*shape):
            layer, image = choices.trunk[place[0]], choices.images[place[1]]
            what: tuple = (layer.kind, image)
            if layer.kind == "conv":
                widths = choices.image_shape[2], *choices.widths
                size, before = reach(layer, image), widths[place[2]]
                need = Program(place[1], place[2] == 0, size, before, layer.width)
                what += programs[need][1:]
                self._rooms[place] = what[-2:]
            elif layer.kind == "identity" or (
                layer.kind in POOLINGS and max(image) < 2
            ):
                what = ("identity",)
            self._table[place] = found.setdefault(what, len(found))
        largest = max(layer.size for layer in choices.trunk)
        self.functions = tuple(_Branch(what, largest, train) for what in found)

    def find(self, met: Met) -> tuple[Array, Array]:
        """For slots, the function's number int32[L], and how many channels its kernel
        has room for, int32[L, 2]: before and out."""
        size = jnp.minimum(met.halvings, self._table.shape[1] - 1)
        column = 1 + jnp.sum(met.before[:, None] > self._widths[None], 1)
        place = met.choice, size, jnp.where(met.first, 0, column)
        return jnp.array(self._table)[place], jnp.array(self._rooms, jnp.int32)[place]


@dataclass(frozen=True)
class _Branch:
    what: tuple
    largest: int  # side of the kernels as they are kept
    train: bool

    def __call__(self, fixed, x: Array, kernel: Array, scale: Array, bias: Array):
        lanes, side, *running = fixed
        kind, *how = self.what
        if kind == "identity":
            return x, running
        (height, width), *how = how
        y = x[:, : height * width].reshape(len(x), height, width, -1)
        if kind in ACTIVATIONS:
            y = ACTIVATIONS[kind](y) * lanes[None, None]
        elif kind in POOLINGS:
            y = pool(kind, y)
        else:
            y, running = self._convolve(y, kernel, (scale, bias, *running), side, *how)
            y = y * lanes[None, None, :, : y.shape[-1]]
        return _fill(y, x.shape), running

    def _convolve(self, x, kernel, norm, side, first, size, before, out):
        x = lax.stop_gradient(x) if first else x
        if kernel.ndim == 1:
            kernel = kernel[: self.largest**2 * before * out]
            kernel = kernel.reshape(self.largest, self.largest, before, out)
        else:  # shared, with room for the most channels
            kernel = kernel[..., :before, :out]
        middle = slice((self.largest - size) // 2, (self.largest + size) // 2)
        off = np.abs(np.arange(size) - size // 2)
        is_there = 2 * np.maximum(off[:, None], off) < side
        kernel = kernel[middle, middle] * is_there[:, :, None, None]
        y = convolution(x[..., :before], kernel)
        scale, bias, *running = (z[:out] for z in norm)
        if self.train:
            running = [*statistics(y)]
        y = normalise(y, *(z[None, None, None] for z in (scale, bias, *running)))
        return y, [jnp.pad(z, (0, len(norm[0]) - out)) for z in running]


def _fill(x: Array, shape: tuple[int, ...]) -> Array:
    """Gives an image its place in float32[N, P, C], and zeros around it."""
    x = x.reshape(len(x), -1, x.shape[-1])
    rest = ((0, room - size) for room, size in zip(shape, x.shape, strict=True))
    return jnp.pad(x, tuple(rest))
