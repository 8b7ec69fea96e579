"""The network of NAS-Bench-101 (Ying et al. 2019, arXiv:1902.09635).

A stem; stacks of equal modules, before all but the first of which pooling halves the
image and the channels double; global average pooling, a linear classifier. A module is
a graph, its edges pairs (source, target) of vertices numbered along them: 0 the input,
the last the output, and an operation at each vertex between.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxnas.base import Array, InputError
from jaxnas.nn.ops import BatchNorm
from jaxnas.nn.pooling import max_pool

OPS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")


class NasBench101Network(nn.Module):
    """The whole network.

    Attributes:
      edges: of a module without vertices that lead nowhere.
      ops: of its inner vertices, names in `OPS`.
      channels: of the first stack.
      stacks: how many.
      modules: of each stack.
      num_classes: how many.
    """

    edges: tuple[tuple[int, int], ...]
    ops: tuple[str, ...]
    channels: int = 128
    stacks: int = 3
    modules: int = 3
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, weights=None, drop_rate=None, train=False):
        """Returns logits float32[N, num_classes].

        Args:
          images: float32[N, H, W, colours], normalised.
          weights, drop_rate: None; other networks have them.
          train: bool, whether batch norms use the statistics of the batch.

        Raises:
          InputError: weights or a drop rate are given.
        """
        if weights is not None or drop_rate is not None:
            raise InputError(
                "expected neither weights nor a drop rate, which networks of "
                "NAS-Bench-101 do not have, but got one: leave it out"
            )
        x = ConvNormRelu(self.channels, 3, name="stem")(images, train)
        for i in range(self.stacks * self.modules):
            stack, place = divmod(i, self.modules)
            if stack and not place:
                x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
            channels = self.channels * 2**stack
            x = Module(self.edges, self.ops, channels, name=f"module{i}")(x, train)
        dense = nn.Dense(self.num_classes, kernel_init=nn.initializers.glorot_uniform())
        return dense(x.mean((1, 2)))


class Module(nn.Module):
    """One module.

    An inner vertex adds what arrives, cut to its own channels, from the input by a
    projection. The output concatenates; to that it adds a projection of the input
    where an edge leads from one to the other.
    """

    edges: tuple[tuple[int, int], ...]
    ops: tuple[str, ...]
    channels: int

    @nn.compact
    def __call__(self, x, train):
        """Maps float32[N, H, W, C] to [N, H, W, channels]."""
        sizes = vertex_channels(self.edges, len(self.ops), self.channels)
        states, output = [x], len(self.ops) + 1
        for vertex, op in enumerate(self.ops, 1):
            terms = [
                states[source][..., : sizes[vertex]]
                for source, target in self.edges
                if target == vertex and source
            ]
            if (0, vertex) in self.edges:
                terms.append(self._project(vertex, sizes[vertex])(x, train))
            states.append(self._apply(op, vertex, sizes[vertex], sum(terms), train))
        ends = [states[v] for v in range(1, output) if (v, output) in self.edges]
        terms = [jnp.concatenate(ends, -1)] if ends else []
        if (0, output) in self.edges:
            terms.append(self._project(output, self.channels)(x, train))
        return sum(terms)

    def _project(self, vertex, channels):
        return ConvNormRelu(channels, 1, name=f"projection{vertex}")

    def _apply(self, op, vertex, channels, x, train):
        if op == "maxpool3x3":
            return max_pool(x)
        size = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1}[op]
        return ConvNormRelu(channels, size, name=f"vertex{vertex}")(x, train)


class ConvNormRelu(nn.Module):
    """A convolution without a bias, batch norm, ReLU, with the published settings."""

    channels: int
    size: int

    @nn.compact
    def __call__(self, x, train) -> Array:
        """Maps float32[N, H, W, C] to [N, H, W, channels]."""
        size = (self.size, self.size)
        # Flax's own initialisation is TensorFlow's variance scaling by fan in.
        x = nn.Conv(self.channels, size, padding="SAME", use_bias=False)(x)
        return nn.relu(BatchNorm(momentum=0.997)(x[None], train)[0])


def vertex_channels(
    edges: Sequence[tuple[int, int]], num_inner: int, channels: int
) -> list[int]:
    """The channels of vertices 0 to `num_inner`, of which that of the input is 0.

    Those that lead to the output share its channels, the first ones having one more
    where they do not divide; any other has as many as the most that it leads to.
    """
    output = num_inner + 1
    ends = [v for v in range(1, output) if (v, output) in edges]
    sizes = [0] * output
    for i, vertex in enumerate(ends):
        sizes[vertex] = channels // len(ends) + (i < channels % len(ends))
    for vertex in reversed(range(1, output)):
        if vertex not in ends:
            sizes[vertex] = max(sizes[t] for s, t in edges if s == vertex)
    return sizes
