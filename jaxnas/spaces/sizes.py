"""Parameters and floating point operations of networks, as sums over decisions.

A layer of so many weights multiplies and adds each of them once for every pixel that it
answers for: two operations each, those of taps on padding included. Batch norms,
activations, pooling and biases count for none. What a layer has is a float64[2],
its parameters and its operations for one image at test time.
"""

import functools

import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError
from jaxnas.nn.nasbench101 import OPS, NasBench101Network

TAPS = {"conv3x3-bn-relu": 9, "conv1x1-bn-relu": 1, "maxpool3x3": 0}


def scales(image_shape: tuple[int, int, int], number: int) -> tuple[list[int], int]:
    """The pixels of an image (H, W, colours) halved 0, 1, ... times; its colours.

    Raises:
      InputError: the shape is another.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InputError(
            f"expected the height, width and colours of images, 1 or more each, but "
            f"got {tuple(image_shape)}: give the shape of one image"
        )
    height, width, colours = image_shape
    return [-(-height // 2**i) * -(-width // 2**i) for i in range(number)], colours


def conv(
    inputs: int, outputs: int, kernel: int, pixels: int, norm: bool = True
) -> np.ndarray:
    """What a convolution has, with an affine norm or none: float64[2].

    Args:
      inputs: channels that each output sees, 1 where it is depthwise.
      outputs: channels.
      kernel: height and width, in pixels.
      pixels: of an output channel.
      norm: whether an affine batch norm follows.
    """
    weights = float(inputs * outputs * kernel**2)
    return np.array([weights + 2 * outputs * norm, 2 * weights * pixels])


def dense(inputs: int, outputs: int) -> np.ndarray:
    """What a linear layer with a bias has: float64[2]."""
    weights = float(inputs * outputs)
    return np.array([weights + outputs, 2 * weights])


def total(fixed: np.ndarray, table: np.ndarray, arch: Array) -> tuple[Array, Array]:
    """Adds what all architectures have and what the choices of one have.

    Args:
      fixed: float64[2].
      table: float64[D, K, 2], of each choice.
      arch: int32[D].

    Returns:
      int32[], the parameters, exact below 2**31; float32[], the operations, within a
      few units of the seventh digit.
    """

    def add(column, dtype):
        choices = jnp.array(table[..., column].astype(dtype))
        chosen = choices[np.arange(len(table)), arch]
        return chosen.sum(dtype=dtype) + fixed[column].astype(dtype)

    return add(0, np.int32), add(1, np.float32)


def of_modules(
    edges: dict[tuple[int, int], Array],
    ops: Array,
    network: NasBench101Network,
    image_shape: tuple[int, int, int],
) -> tuple[Array, Array]:
    """What a network of NAS-Bench-101 has; see `total`.

    Its channels depend on the graph, so that it is no sum over decisions.

    Args:
      edges: bool[] by (source, target), whether there is one; pruned.
      ops: int32[5], choices in `OPS` of the vertices 1 to 5.
      network: whose sizes are taken.
      image_shape: height, width and colours.
    """
    pixels, colours = scales(image_shape, network.stacks)
    channels = network.channels * 2 ** np.arange(network.stacks, dtype=np.int32)
    arriving = channels * network.modules  # at all modules of a stack
    arriving[1:] -= channels[1:] // 2
    taps = jnp.array([TAPS[op] for op in OPS], jnp.int32)[ops]
    sizes = _vertex_channels(edges, len(ops) + 1, jnp.array(channels))
    projected = sum(edges[0, vertex] * size for vertex, size in sizes.items())
    convolved = [(taps[vertex - 1], sizes[vertex]) for vertex in range(1, len(ops) + 1)]
    inner = sum(tap * size**2 for tap, size in convolved)
    normed = projected + sum((tap > 0) * size for tap, size in convolved)
    weights = arriving * projected + network.modules * inner
    parameters = weights + 2 * network.modules * normed
    operations = 2 * np.array(pixels, np.float32) * weights
    fixed = conv(colours, network.channels, 3, pixels[0])
    fixed += dense(int(channels[-1]), network.num_classes)
    return (
        np.int32(fixed[0]) + parameters.sum(dtype=np.int32),
        np.float32(fixed[1]) + operations.sum(dtype=np.float32),
    )


def _vertex_channels(edges, output, channels):
    """The traced form of `jaxnas.nn.nasbench101.vertex_channels`, of some stacks.

    Returns a dict from all vertices but the input to int32[stacks]; what is pruned has
    no channels, the output all.
    """
    ends = [edges[vertex, output].astype(jnp.int32) for vertex in range(1, output)]
    number = jnp.maximum(sum(ends), 1)
    sizes = {output: channels}
    for vertex in reversed(range(1, output)):
        share = channels // number + (sum(ends[: vertex - 1]) < channels % number)
        led_to = [edges[vertex, t] * sizes[t] for t in range(vertex + 1, output)]
        most = functools.reduce(jnp.maximum, led_to, jnp.zeros_like(channels))
        sizes[vertex] = jnp.where(edges[vertex, output], share, most)
    return sizes
