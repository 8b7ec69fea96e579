"""Networks that generate images: how deep, how wide, of what layers.

The convolutional networks of the DCGAN (Radford, Metz and Chintala 2016,
arXiv:1511.06434), `jaxnas.nn.image`, as the two halves of a variational autoencoder or
of a generative adversarial network. Stages of stride 2 on the way down and their mirror
image on the way up share the decisions, as is usual; so every architecture fits the
image and gives it back. What a stage beyond the last is said to be changes nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError, SearchSpace
from jaxnas.encoding import mixed_radix
from jaxnas.nn.autoencoder import Autoencoder
from jaxnas.nn.image import (
    ACTIVATIONS,
    NORMS,
    Discriminator,
    Downward,
    GaussianEncoder,
    Upward,
)
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.sizes import scales

SIZES = (3, 4, 5)  # of kernels, in pixels


class Adversaries(NamedTuple):
    """The two networks of a generative adversarial network."""

    generator: Upward
    discriminator: Discriminator
    num_latent: int  # of what the generator takes


class Choices(NamedTuple):
    """What there is to choose, decision by decision; widths are a decision a stage."""

    image_shape: tuple[int, int, int]
    model: str  # of MODELS
    stages: tuple[int, ...]
    widths: tuple[int, ...]
    latent: tuple[int, ...]
    sizes: tuple[int, ...] = SIZES
    norms: tuple[str, ...] = NORMS
    activations: tuple[str, ...] = tuple(ACTIVATIONS)

    @property
    def parts(self) -> dict[str, tuple]:
        """The choices of each decision but the widths, in the order of an arch."""
        return {
            "stages": self.stages,
            "kernel": self.sizes,
            "latent": self.latent,
            "norm": self.norms,
            "activation": self.activations,
        }

    @property
    def num_choices(self) -> tuple[int, ...]:
        """One entry a decision: the stages, the width of each, all others."""
        first, *others = map(len, self.parts.values())
        return (first, *[len(self.widths)] * len(self.stages), *others)

    def split(self, arch: Any) -> tuple[Any, dict[str, Any]]:
        """The choices of the widths, and those of the `parts`."""
        last = 1 + len(self.stages)
        others = [arch[0], *(arch[d] for d in range(last, len(self.num_choices)))]
        return arch[1:last], dict(zip(self.parts, others, strict=True))


def generative(
    image_shape: Sequence[int] = (32, 32, 3),
    *,
    model: str = "vae",
    max_stages: int = 3,
    widths: Sequence[int] = (16, 32, 64, 128),
    latent: Sequence[int] = (8, 16, 32, 64, 128),
) -> SearchSpace:
    """Makes the space of networks that generate images of a shape.

    Decisions: how many stages of stride 2, the width of each, the size of all kernels
    (3, 4 or 5 pixels), the latent size, the norm and the activation. `network(arch)` is
    an `Autoencoder` or `Adversaries`; it takes `num_classes` of the condition, an
    autoencoder also `output` of `Upward`, the discriminator `spectral`. There is no
    supernet. The parameters of `sizes` are those of both halves, and operations those
    of an image that goes through both.

    Args:
      image_shape: height, width in pixels, and colours.
      model: "vae", whose decoder's output is "logistic", or "gan".
      max_stages: at most; fewer where an image has no two pixels left to halve.
      widths: channels that a stage may have.
      latent: sizes that the latent may have.

    Raises:
      InputError: an argument is out of its range.
    """
    shape = tuple(int(side) for side in image_shape)
    if len(shape) != 3 or min(shape) < 1 or min(shape[:2]) < 2:
        raise InputError(
            "expected image_shape (H, W, colours) of 2 pixels a side or more, but got "
            f"{shape}: make images larger"
        )
    if model not in MODELS:
        raise InputError(
            f"expected a model of {', '.join(MODELS)}, but got {model}: choose one"
        )
    if max_stages < 1:
        raise InputError(f"expected 1 stage or more, but got {max_stages}: allow one")
    for name, numbers in (("widths", widths), ("latent", latent)):
        if len(set(numbers)) != len(numbers) or min(numbers, default=0) < 1:
            raise InputError(
                f"expected {name} of 1 or more, each once, but got {list(numbers)}: "
                "change them"
            )
    most = min(max_stages, (min(shape[:2]) - 1).bit_length())
    choices = Choices(
        image_shape=(shape[0], shape[1], shape[2]),
        model=model,
        stages=tuple(range(1, most + 1)),
        widths=tuple(sorted(widths)),
        latent=tuple(sorted(latent)),
    )
    return categorical(choices.num_choices)._replace(
        name="generative",
        canonical=partial(_canonical, choices),
        network=partial(_network, choices),
        restrict=_refuse_supernet,
        to_string=partial(_to_string, choices),
        from_string=partial(_from_string, choices),
        sizes=partial(_sizes, choices),
    )


def _canonical(choices: Choices, arch: Array) -> Array:
    """The key, uint32[W]: stages that there are not have the first width."""
    last = 1 + len(choices.stages)
    place = jnp.arange(len(choices.num_choices))
    is_beyond = (place > arch[0] + 1) & (place < last)
    return mixed_radix(jnp.where(is_beyond, 0, arch), choices.num_choices)


def _network(choices: Choices, arch: Array | None = None, **size: Any) -> Any:
    """Makes the networks of an architecture; see `generative`.

    Raises:
      InputError: arch is None: there is no supernet.
    """
    if arch is None:
        _refuse_supernet()
    widths, others = choices.split(np.asarray(arch).tolist())
    chosen = {name: choices.parts[name][i] for name, i in others.items()}
    down = tuple(choices.widths[i] for i in widths[: chosen["stages"]])
    num_latent, how = chosen["latent"], {"size": chosen["kernel"]}
    how |= {name: chosen[name] for name in ("norm", "activation")}
    layers = Layers(choices.image_shape, down, how, num_latent)
    return MODELS[choices.model](layers, **size)


class Layers(NamedTuple):
    """What both networks of an architecture are made of."""

    image_shape: tuple[int, int, int]
    widths: tuple[int, ...]  # on the way down
    how: dict[str, Any]  # size, norm and activation
    num_latent: int

    def downward(self, **more: Any) -> Downward:
        """The way from images to vectors."""
        return Downward(self.widths, **self.how, **more)

    def upward(self, **more: Any) -> Upward:
        """The way from vectors to images."""
        return Upward(self.image_shape, self.widths[::-1], **self.how, **more)


def _autoencoder(
    layers: Layers, output: str = "logistic", num_classes: int = 0
) -> Autoencoder:
    encoder = GaussianEncoder(layers.downward(), layers.num_latent, num_classes)
    return Autoencoder(encoder, layers.upward(output=output, num_classes=num_classes))


def _adversaries(
    layers: Layers, num_classes: int = 0, spectral: bool = False
) -> Adversaries:
    # DCGAN's initial weights: a GAN learns far less from larger ones.
    start = {"deviation": 0.02}
    trunk = layers.downward(spectral=spectral, **start)
    discriminator = Discriminator(trunk, num_classes)
    generator = layers.upward(num_classes=num_classes, **start)
    return Adversaries(generator, discriminator, layers.num_latent)


MODELS: dict[str, Callable[..., Any]] = {"vae": _autoencoder, "gan": _adversaries}


def _refuse_supernet(*_: Any) -> NoReturn:
    """Raises InputError: there is no supernet whose parameters could be taken."""
    raise InputError(
        "expected an architecture, for generative has no supernet: give network one "
        "(the evaluator one_by_one does)"
    )


def _sizes(
    choices: Choices,
    arch: Array,
    image_shape: tuple[int, int, int],
    num_classes: int = 0,
    output: str = "logistic",
    spectral: bool = False,
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch)`; see `jaxnas.spaces.sizes`.

    Returns:
      int32[], the parameters; float32[], two operations for each multiply-add of
      convolutions and dense layers for one image.
    """
    del spectral  # it has no parameters
    most = len(choices.stages)
    pixels, colours = scales(image_shape, most + 1)
    places, others = choices.split(jnp.asarray(arch))
    stages = others["stages"] + 1
    of = {
        name: jnp.array(choices.parts[name])[others[name]]
        for name in ("kernel", "latent")
    }
    is_normed = jnp.array([norm != "none" for norm in choices.norms])[others["norm"]]
    there = jnp.arange(most) < stages
    width = jnp.where(there, jnp.array(choices.widths)[places], 0)
    before = jnp.where(there, jnp.append(jnp.array([colours]), width[:-1]), 0)
    # Stages are the same up and down but for biases: norms follow all but the first
    # on the way down, and precede all on the way up.
    weights = of["kernel"] ** 2 * before * width
    seen = weights * jnp.array(pixels[1:], jnp.float32)
    shifts = width.sum() + before.sum()  # of layers, where there is no norm
    norms = 2 * (width.sum() + width[1:].sum()) + width[0] + colours
    flat = jnp.array(pixels)[stages] * width[stages - 1]
    told, latent = num_classes, of["latent"]
    up = (latent + told) * flat
    if choices.model == "vae":
        scales_of_colours = colours if output == "logistic" else 0
        down, biases = 2 * latent * (flat + told), 2 * latent + scales_of_colours
    else:
        down, biases = flat * (1 + told), jnp.int32(1)
    parameters = 2 * weights.sum() + jnp.where(is_normed, norms, shifts)
    parameters += up + flat + down + biases
    operations = 2.0 * (2 * seen.sum() + up + down)
    return parameters.astype(jnp.int32), operations.astype(jnp.float32)


def _to_string(choices: Choices, arch: Array | np.ndarray) -> str:
    """Writes decisions by name: `stages=2 widths=16-32-64 kernel=4 latent=32 ...`."""
    widths, others = choices.split(np.asarray(arch).tolist())
    said = {name: choices.parts[name][i] for name, i in others.items()}
    channels = "-".join(str(choices.widths[i]) for i in widths)
    stages = f"stages={said.pop('stages')} widths={channels}"
    return " ".join([stages, *(f"{name}={value}" for name, value in said.items())])


def _from_string(choices: Choices, text: str) -> Array:
    """Reads what `_to_string` writes.

    Raises:
      InputError: it has another form, or a choice that the space has not.
    """
    example = _to_string(choices, np.zeros(len(choices.num_choices), np.int32))
    names = [word.partition("=")[0] for word in example.split()]
    words = text.split() if isinstance(text, str) else []
    said = dict(word.partition("=")[::2] for word in words)
    widths = said.get("widths", "").split("-")
    if list(said) != names or len(words) != len(names):
        raise InputError(f"expected {example} or the like, but got {text!r:.200}")
    if len(widths) != len(choices.stages):
        raise InputError(
            f"expected {len(choices.stages)} widths, as in {example}, but got "
            f"{said['widths']!r:.100}"
        )
    first, *others = (
        _place(name, said[name], choices.parts[name]) for name in choices.parts
    )
    places = [_place("widths", width, choices.widths) for width in widths]
    return jnp.array([first, *places, *others], jnp.int32)


def _place(name: str, word: str, known: Sequence) -> int:
    words = [str(one) for one in known]
    if word not in words:
        raise InputError(
            f"expected {name} of {', '.join(words)}, but got {word!r:.100}"
        )
    return words.index(word)
