"""Networks of `chain` in eager PyTorch, the other side of population_training.py.

They are meant to be strong opponents: images and labels lie on the device beforehand,
an epoch's batches are gathered at once, nothing waits for the device before the end,
batch norms do not count their batches, and how PyTorch is best set up for such networks
on the machine at hand (`Way`) is measured.
"""

import copy
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxnas.base import InputError
from jaxnas.nn.chain import EPSILON, MOMENTUM, POOLINGS, ChainNetwork, Layer, halve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": lambda: nn.GELU(approximate="tanh"),
}


class Way(NamedTuple):
    """How PyTorch trains: what changes its speed and not what it computes."""

    threads: int
    optimizer: str  # "foreach" or "fused", implementations of SGD
    layout: torch.memory_format

    def __str__(self) -> str:
        layout = str(self.layout).removeprefix("torch.")
        return f"{self.threads} threads, {self.optimizer} SGD, {layout}"


class Recipe(NamedTuple):
    """The steps of a training, but for the batches."""

    rates: Sequence[float]  # the learning rate of each of T steps
    momentum: float
    weight_decay: float


class Batches(NamedTuple):
    """Examples on the device, and which of them a step sees."""

    images: Tensor  # float32[N, colours, H, W], normalised
    labels: Tensor  # int64[N]
    order: Tensor  # int64[T, B]


def build(
    network: ChainNetwork,
    image_shape: tuple[int, int, int],
    params: Mapping[str, Mapping[str, Any]],
) -> nn.Sequential:
    """The same network with the same weights.

    Args:
      network: without links.
      image_shape: height, width in pixels, and colours.
      params: those of `network`, as numpy's or JAX's arrays; the running statistics
        are those of a new network.

    Raises:
      InputError: a layer has a link.
    """
    if any(layer.link != "none" for layer in network.trunk):
        raise InputError("expected a chain without links: PyTorch's side has none")
    *sides, width = image_shape
    modules: list[nn.Module] = []
    for i, layer in enumerate(network.trunk):
        modules += _trunk_layer(layer, sides, width, params.get(f"trunk{i}", {}))
        width = layer.width or width
        if layer.kind in POOLINGS:
            sides = [halve(side) for side in sides]
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier = Layer("dense", network.num_classes)
    names = [*(f"head{i}" for i in range(len(network.head))), "classifier"]
    for name, layer in zip(names, (*network.head, classifier), strict=True):
        modules.append(_head_layer(layer, width, params.get(name, {})))
        width = layer.width or width
    return nn.Sequential(*modules).to(DEVICE)


def _trunk_layer(layer: Layer, sides, width: int, params) -> list[nn.Module]:
    if layer.kind in ACTIVATIONS:
        return [ACTIVATIONS[layer.kind]()]
    if layer.kind in POOLINGS:
        if max(sides) == 1:
            return []
        how: dict[str, Any] = {"ceil_mode": any(side % 2 for side in sides)}
        if layer.kind == "max_pool":
            return [nn.MaxPool2d(2, **how)]
        return [nn.AvgPool2d(2, count_include_pad=False, **how)]
    convolution = nn.Conv2d(
        width, layer.width, layer.size, padding=layer.size // 2, bias=False
    )
    norm = nn.BatchNorm2d(layer.width, eps=EPSILON, momentum=1 - MOMENTUM)
    norm.num_batches_tracked = None
    _copy(convolution.weight, np.transpose(params["kernel"], (3, 2, 0, 1)))
    _copy(norm.weight, params["scale"])
    _copy(norm.bias, params["bias"])
    return [convolution, norm]


def _head_layer(layer: Layer, width: int, params) -> nn.Module:
    if layer.kind in ACTIVATIONS:
        return ACTIVATIONS[layer.kind]()
    dense = nn.Linear(width, layer.width)
    _copy(dense.weight, np.transpose(params["kernel"]))
    _copy(dense.bias, params["bias"])
    return dense


@torch.no_grad()
def _copy(parameter: Tensor, values: Any) -> None:
    parameter.copy_(torch.tensor(np.array(values)))


def train(net: nn.Module, batches: Batches, recipe: Recipe, way: Way) -> None:
    """Takes all steps; returns once the device has finished them."""
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(),
        recipe.rates[0],
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        **{way.optimizer: True},
    )
    (settings,) = optimizer.param_groups
    every = batches.order.flatten()
    images = batches.images[every].to(memory_format=way.layout)
    size = batches.order.shape[1]
    steps = zip(
        recipe.rates, images.split(size), batches.labels[every].split(size), strict=True
    )
    for rate, x, y in steps:
        settings["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    synchronise()


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers; NaN where the network's are not finite."""
    logits = net.eval()(images)
    right = (logits.argmax(1) == labels).float().mean()
    return (right + 0 * logits.sum()).item()


def synchronise() -> None:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def fastest_way(
    nets: Sequence[nn.Module], batches: Batches, recipe: Recipe, steps: int = 20
) -> Way:
    """Trains copies of some networks for some steps in every way, the quickest wins.

    On CUDA it also turns on TF32, which JAX's default precision uses there as well.
    """
    torch.set_float32_matmul_precision("high")
    cores = len(os.sched_getaffinity(0))
    layouts = torch.contiguous_format, torch.channels_last
    threads = sorted({1, cores}) if DEVICE == "cpu" else [cores]
    ways = itertools.starmap(
        Way, itertools.product(threads, ("foreach", "fused"), layouts)
    )
    seconds = {way: 0.0 for way in ways}
    recipe = recipe._replace(rates=recipe.rates[:steps])
    batches = batches._replace(order=batches.order[:steps])
    for net, way in itertools.product(nets, seconds):
        mine = prepared(copy.deepcopy(net), way)
        train(mine, batches, recipe, way)  # the first steps are slower
        began = time.perf_counter()
        train(mine, batches, recipe, way)
        seconds[way] += time.perf_counter() - began
    return min(seconds, key=lambda way: seconds[way])


def prepared(net: nn.Module, way: Way) -> nn.Module:
    """The network in the way's layout, with its threads from now on."""
    torch.set_num_threads(way.threads)
    return net.to(memory_format=way.layout)
