"""Networks that make images of vectors, and vectors of images.

Convolutions with stride 2 halve an image at each stage, transposed ones double it, as
in the DCGAN of Radford, Metz and Chintala 2016, arXiv:1511.06434. Sides that are no
multiples are rounded up on the way down, and cut on the way up.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.base import Array, InputError
from jaxnas.checks import expect_one_of
from jaxnas.nn.convolution import convolution, transposed_convolution

ACTIVATIONS = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "elu": nn.elu,
    "swish": nn.swish,
}
Initializer = Callable[..., Array]  # key, shape, dtype
NORMS = ("batch", "layer", "none")
OUTPUTS = ("tanh", "linear", "logistic")


def _initial(deviation: float | None, otherwise: Initializer) -> Initializer:
    """Draws of a normal distribution of this deviation; without one as otherwise."""
    return nn.initializers.normal(deviation) if deviation else otherwise


def sides(size: int, stages: int) -> list[int]:
    """The pixels along a side before the first stage, and after each."""
    return [-(-size // 2**stage) for stage in range(stages + 1)]


class Halve(nn.Module):
    """A convolution of float32[N, H, W, C] with stride 2."""

    channels: int
    size: int
    bias: bool
    deviation: float | None = None

    @nn.compact
    def __call__(self, x):
        init = _initial(self.deviation, nn.initializers.lecun_normal())
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", init, shape)
        border = (self.size - 1) // 2
        # So many more rows that each pair of the image's has an output.
        more = [
            2 * (-(-side // 2) - 1) + self.size - border - side - border
            for side in x.shape[1:3]
        ]
        pads = [(0, 0), *((0, max(0, extra)) for extra in more), (0, 0)]
        x = convolution(jnp.pad(x, pads), kernel, stride=2, padding=border)
        return _shifted(self, x) if self.bias else x


class Double(nn.Module):
    """A transposed convolution of float32[N, H, W, C] with stride 2, cut to a size."""

    channels: int
    size: int
    sides: tuple[int, int]
    bias: bool
    deviation: float | None = None

    @nn.compact
    def __call__(self, x):
        # Each output sees a fourth of the kernel.
        fan_in = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")
        init = _initial(self.deviation, fan_in)
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", init, shape)
        x = transposed_convolution(x, kernel, 2, self.sides)
        return _shifted(self, x) if self.bias else x


def _shifted(module, x):
    bias = module.param("bias", nn.initializers.zeros, x.shape[-1:])
    return x + bias[None, None, None]


class Norm(nn.Module):
    """One of `NORMS`, of float32[N, H, W, C] or float32[N, C]."""

    kind: str

    @nn.compact
    def __call__(self, x, train):
        expect_one_of("a norm", self.kind, NORMS)
        if self.kind == "batch":
            return nn.BatchNorm(not train, momentum=0.9)(x)
        # Of all numbers of an example (Ba et al. 2016), scaled by channel.
        each = tuple(range(1, x.ndim))
        norm = nn.LayerNorm(reduction_axes=each)
        return norm(x) if self.kind == "layer" else x


class Downward(nn.Module):
    """Makes vectors float32[N, F] of images float32[N, H, W, C].

    Attributes:
      widths: channels of each stage.
      size: of the kernels, in pixels.
      norm: of `NORMS`, after each stage but the first.
      activation: of `ACTIVATIONS`.
      spectral: whether the largest singular value of each kernel is kept at 1 (Miyato
        et al. 2018, arXiv:1802.05957).
      deviation: of initial weights, 0.02 for DCGAN; by the inputs' number by default.

    Raises:
      InputError: a name is unknown; here and below, when it is called.
    """

    widths: Sequence[int]
    size: int = 4
    norm: str = "batch"
    activation: str = "leaky_relu"
    spectral: bool = False
    deviation: float | None = None

    @nn.compact
    def __call__(self, x, train=False):
        expect_one_of("an activation", self.activation, ACTIVATIONS)
        for stage, width in enumerate(self.widths):
            norm = self.norm if stage else "none"
            layer = Halve(width, self.size, norm == "none", self.deviation)
            x = _layer(layer, self.spectral, x, train)
            x = ACTIVATIONS[self.activation](Norm(norm)(x, train))
        return x.reshape(len(x), -1)


def _layer(layer, spectral, x, train):
    if spectral:
        return nn.SpectralNorm(layer)(x, update_stats=train)
    return layer(x)


class Discriminator(nn.Module):
    """Gives float32[N] for images; a condition enters by projection.

    Miyato and Koyama 2018, arXiv:1802.05637: the product of the vector of an image with
    one of its label is added.

    Attributes:
      trunk: makes vectors of images; its initial weights' deviation is that of all.
      num_classes: of the condition int32[N]; 0: there is none.
    """

    trunk: Downward
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        x = self.trunk(x, train)
        spectral = self.trunk.spectral
        deviation, scaling = self.trunk.deviation, nn.initializers.variance_scaling
        init = _initial(deviation, nn.initializers.lecun_normal())
        out = _layer(nn.Dense(1, kernel_init=init), spectral, x, train)[:, 0]
        if self.num_classes:
            told = _one_hot(condition, self.num_classes)
            # So that at the start it adds no more than the layer above.
            init = _initial(deviation, scaling(1.0, "fan_out", "normal"))
            table = nn.Dense(x.shape[-1], use_bias=False, kernel_init=init)
            out += jnp.sum(x * _layer(table, spectral, told, train), -1)
        return out


class GaussianEncoder(nn.Module):
    """Gives mean and log variance float32[N, L] of the latent of images.

    Attributes:
      trunk: makes vectors of images.
      num_latent: L.
      num_classes: of the condition int32[N]; 0: there is none.
    """

    trunk: Downward
    num_latent: int
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, condition=None, train=False):
        x = _told(self.trunk(x, train), condition, self.num_classes)
        mean = nn.Dense(self.num_latent, name="mean")(x)
        return mean, nn.Dense(self.num_latent, name="log_variance")(x)


class Upward(nn.Module):
    """Makes images float32[N, H, W, C] of vectors float32[N, L].

    Attributes:
      image_shape: (H, W, C).
      widths: channels before each stage; the last stage gives the image.
      size: of the kernels, in pixels.
      norm: of `NORMS`, before each stage.
      activation: of `ACTIVATIONS`.
      output: of `OUTPUTS`; of "logistic" the result is (images, log scales float32[C],
        which do not depend on the vectors).
      num_classes: of the condition int32[N]; 0: there is none.
      deviation: of initial weights, 0.02 for DCGAN; by the inputs' number by default.
    """

    image_shape: tuple[int, int, int]
    widths: Sequence[int]
    size: int = 4
    norm: str = "batch"
    activation: str = "relu"
    output: str = "tanh"
    num_classes: int = 0
    deviation: float | None = None

    @nn.compact
    def __call__(self, z, condition=None, train=False):
        expect_one_of("an activation", self.activation, ACTIVATIONS)
        expect_one_of("an output", self.output, OUTPUTS)
        *shape, channels = self.image_shape
        stages = len(self.widths)
        rows, columns = (sides(side, stages)[::-1] for side in shape)
        first = rows[0], columns[0], self.widths[0]
        init = _initial(self.deviation, nn.initializers.lecun_normal())
        dense = nn.Dense(math.prod(first), kernel_init=init)
        x = dense(_told(z, condition, self.num_classes))
        x = x.reshape(-1, *first)
        for stage in range(stages):
            x = ACTIVATIONS[self.activation](Norm(self.norm)(x, train))
            is_last = stage + 1 == stages
            width = channels if is_last else self.widths[stage + 1]
            size = rows[stage + 1], columns[stage + 1]
            bias = is_last or self.norm == "none"
            x = Double(width, self.size, size, bias, self.deviation)(x)
        if self.output == "tanh":
            return jnp.tanh(x)
        if self.output == "logistic":
            # About where training ends for images of deviation 1; Adam moves slowly.
            init = nn.initializers.constant(-1.5)
            return x, self.param("log_scale", init, (channels,))
        return x


def _told(x: Array, condition: Array | None, num_classes: int) -> Array:
    """Puts one-hot labels behind vectors, where there are labels."""
    if not num_classes:
        return x
    return jnp.concatenate([x, _one_hot(condition, num_classes)], -1)


def _one_hot(condition: Array | None, num_classes: int) -> Array:
    """Labels int32[N] as float32[N, num_classes].

    Raises:
      InputError: there are none.
    """
    if condition is None:
        raise InputError(
            f"expected labels int32[N] of {num_classes} classes as the condition, but "
            "got none: give them, or make the network with num_classes of 0"
        )
    return jax.nn.one_hot(condition, num_classes)
