"""Chains of layers: each slot holds a convolution, pooling, an activation, or nothing.

The space that MetaQNN (Baker et al. 2017, arXiv:1611.02167) and large-scale evolution
(Real et al. 2017, arXiv:1703.01041) search. Slots of the trunk come before those of
the head, where dense layers take the place of convolutions, and global average
pooling lies between: so every architecture is a network that fits the image. An
identity in a slot makes the network shorter. `jaxnas.nn.chain` says what layers are.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError, PyTree, SearchSpace
from jaxnas.encoding import mixed_radix
from jaxnas.nn.chain import ACTIVATIONS, LINKS, POOLINGS, ChainNetwork, Layer, joined
from jaxnas.nn.chain_branches import Branches
from jaxnas.nn.chain_supernet import ChainSupernet
from jaxnas.nn.chain_walk import Choices, walk
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.sizes import scales

IDENTITY = Layer("identity")


def chain(
    image_shape: Sequence[int] = (32, 32, 3),
    *,
    kernels: Sequence[int] = (1, 3, 5, 7),
    channels: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    trunk: int = 8,
    head: int = 2,
    links: Sequence[str] = ("none",),
) -> SearchSpace:
    """Makes the space of chains.

    `sample` draws the kind of a layer first (identity, convolution or dense layer,
    pooling, activation) and which one then, so that a network is as likely to grow
    shorter as to get a convolution. An edit changes one decision.

    Args:
      image_shape: height, width in pixels, and colours. The larger side sets the
        default channels, (c, 2c, 4c) with c = 4 up to 8 pixels, 8 up to 16, else 16,
        and the default units, four times as many.
      kernels: sides of the convolutions' kernels, odd, in pixels.
      channels: of convolutions.
      units: of dense layers.
      trunk: slots before the global average pooling, 1 or more.
      head: slots after it, 0 or more.
      links: what each slot of the trunk may have, out of `nn.chain.LINKS`: nothing,
        its input added (residual), its input kept beside it (dense, while channels
        are not more than twice the most of `channels`). One: all slots have it.

    Raises:
      InputError: an argument is out of its range.
    """
    side = max(image_shape[:2], default=0)
    base = 4 if side <= 8 else 8 if side <= 16 else 16
    default = base, 2 * base, 4 * base
    channels = sorted(default if channels is None else channels)
    units = sorted([4 * c for c in default] if units is None else units)
    _check(image_shape, kernels, channels, units, trunk, head, links)
    convolutions = [Layer("conv", c, k) for k in sorted(kernels) for c in channels]
    active = [*map(Layer, ACTIVATIONS)]
    height, width, colours = image_shape
    choices = Choices(
        image_shape=(height, width, colours),
        trunk=(IDENTITY, *convolutions, *map(Layer, POOLINGS), *active),
        links=tuple(links),
        head=(IDENTITY, *(Layer("dense", u) for u in units), *active),
        trunk_slots=trunk,
        head_slots=head,
        max_width=channels[-1] * (2 if "dense" in links else 1),
    )
    free = categorical(choices.num_choices)
    return free._replace(
        name="chain",
        sample=partial(_sample, choices),
        canonical=partial(_canonical, choices),
        network=partial(_network, choices),
        restrict=partial(_restrict, choices),
        to_string=partial(_to_string, choices),
        from_string=partial(_from_string, choices),
        sizes=partial(_sizes, choices),
        empty=(0,) * len(choices.num_choices),
    )


def _check(image_shape, kernels, channels, units, trunk, head, links):
    def expect(holds, what, came):
        if not holds:
            raise InputError(f"expected {what}, but got {came}: change it")

    shape = list(image_shape)
    expect(len(shape) == 3 and min(shape) > 0, "image_shape (H, W, colours)", shape)
    odd = {k for k in kernels if k > 0 and k % 2}
    expect(odd and len(odd) == len(kernels), "odd kernels, each once", kernels)
    for name, widths in (("channels", channels), ("units", units)):
        each_once = len(set(widths)) == len(widths) and min(widths, default=0) > 0
        expect(each_once, f"{name} above 0, each once", widths)
    enough = channels[-1] >= shape[2]
    expect(enough, f"channels up to the {shape[2]} colours or more", channels)
    expect(trunk > 0 and head >= 0, "1 slot of the trunk or more", (trunk, head))
    known = set(links) <= set(LINKS) and len(set(links)) == len(links) > 0
    expect(known, f"links of {', '.join(LINKS)}, each once", list(links))


def _kind(layer: Layer) -> str:
    if layer.kind in ACTIVATIONS:
        return "activation"
    return "pool" if layer.kind in POOLINGS else layer.kind


def _sample(choices: Choices, key: Array) -> Array:
    """Draws an architecture: kinds of layers uniformly, links uniformly."""

    def draw(key, layers, slots):
        kinds = [_kind(layer) for layer in layers]
        chance = jnp.log(jnp.array([1 / kinds.count(kind) for kind in kinds]))
        return jax.random.categorical(key, chance, shape=(slots,))

    key_trunk, key_links, key_head = jax.random.split(key, 3)
    parts = [draw(key_trunk, choices.trunk, choices.trunk_slots)]
    if len(choices.links) > 1:
        shape = (choices.trunk_slots,)
        parts.append(jax.random.randint(key_links, shape, 0, len(choices.links)))
    parts.append(draw(key_head, choices.head, choices.head_slots))
    return jnp.concatenate(parts).astype(jnp.int32)


def _canonical(choices: Choices, arch: Array) -> Array:
    """The key, uint32[W]: identities go last, and links without effect are none."""
    trunk, _, head = choices.split(arch)
    links = walk(choices, arch)[0].link
    order = jnp.argsort(trunk == 0, stable=True)
    parts = [trunk[order], head[jnp.argsort(head == 0, stable=True)]]
    sizes = [len(choices.trunk)] * len(trunk) + [len(choices.head)] * len(head)
    if len(choices.links) > 1:
        parts.append(links[order])
        sizes += [len(LINKS)] * len(trunk)
    return mixed_radix(jnp.concatenate(parts), sizes)


def _layers(choices: Choices, arch: Array) -> tuple[list[Layer], list[Layer]]:
    """The layers in the slots of a concrete architecture, identities among them."""
    trunk, links, head = (part.tolist() for part in choices.split(jnp.asarray(arch)))
    pairs = zip(trunk, links, strict=True)
    linked = [choices.trunk[i]._replace(link=LINKS[link]) for i, link in pairs]
    return linked, [choices.head[i] for i in head]


def _network(choices: Choices, arch: Array | None = None, **size):
    """Makes the network of an architecture, or of all: the supernet.

    Args:
      choices: of the space.
      arch: int32[D], concrete. None: the supernet, whose weights are float32[D, K].
      **size: num_classes; of the supernet also shared, see `ChainSupernet`.
    """
    if arch is None:
        return ChainSupernet(choices, **size)
    trunk, head = (
        tuple(layer for layer in layers if layer.kind != "identity")
        for layers in _layers(choices, arch)
    )
    return ChainNetwork(trunk, head, choices.max_width, **size)


def _restrict(choices: Choices, params: PyTree, arch: Array) -> PyTree:
    """Takes what `network(arch)` has out of the supernet's parameters or statistics."""
    trunk, head = _layers(choices, arch)
    largest = max(layer.size for layer in choices.trunk)
    rooms = np.asarray(Branches(choices, train=False).find(walk(choices, arch)[0])[1])
    found, width, place = {}, choices.image_shape[2], 0
    for slot, layer in enumerate(trunk):
        if layer.kind == "conv":
            parts = {"scale", "bias", "mean", "var"} & {
                name.removeprefix("trunk_") for name in params
            }
            taken = {
                part: params[f"trunk_{part}"][slot, : layer.width] for part in parts
            }
            if "trunk_kernel" in params:
                kernel = params["trunk_kernel"][slot]
                if kernel.ndim == 1:
                    shape = largest, largest, *rooms[slot]
                    kernel = kernel[: np.prod(shape)].reshape(shape)
                middle = slice((largest - layer.size) // 2, (largest + layer.size) // 2)
                taken["kernel"] = kernel[middle, middle, :width, : layer.width]
            found[f"trunk{place}"] = taken
        _, width = joined(layer, width, choices.max_width)
        place += layer.kind != "identity"
    if "classifier_kernel" not in params:
        return found
    place = 0
    for slot, layer in enumerate(head):
        if layer.kind == "dense":
            found[f"head{place}"] = {
                "kernel": params[f"head{slot}_kernel"][:width, : layer.width],
                "bias": params[f"head{slot}_bias"][: layer.width],
            }
        width = layer.width or width
        place += layer.kind != "identity"
    kernel, bias = params["classifier_kernel"], params["classifier_bias"]
    return {**found, "classifier": {"kernel": kernel[:width], "bias": bias}}


def _to_string(choices: Choices, arch: Array) -> str:
    """Writes slots, those of the trunk first: `conv3x3-16+residual relu / dense-64`."""
    trunk, head = _layers(choices, arch)
    decided = len(choices.links) > 1
    words = [
        f"{layer}+{layer.link}" if decided and layer.link != "none" else str(layer)
        for layer in trunk
    ]
    return " ".join([*words, "/", *map(str, head)])


def _from_string(choices: Choices, text: str) -> Array:
    """Reads what `_to_string` writes.

    Raises:
      InputError: it has another form, or a layer that the space has not.
    """
    example = _to_string(choices, jnp.ones(len(choices.num_choices), jnp.int32))
    trunk, stroke, head = text.partition("/") if isinstance(text, str) else ("",) * 3
    slots = len(trunk.split()), len(head.split())
    if not stroke or slots != (choices.trunk_slots, choices.head_slots):
        raise InputError(
            f"expected {choices.trunk_slots} layers, a stroke and {choices.head_slots} "
            f"more, as {example}, but got {text!r:.200}"
        )
    pairs = [word.partition("+")[::2] for word in trunk.split()]
    kinds, links = [kind for kind, _ in pairs], [link or "none" for _, link in pairs]
    parts = [_places(kinds, choices.trunk), _places(head.split(), choices.head)]
    if len(choices.links) > 1:
        parts.insert(1, _places(links, choices.links))
    elif any(link for _, link in pairs):
        raise InputError(
            f"expected no links, which the space has not, in {text!r:.200}"
        )
    return jnp.array([place for part in parts for place in part], jnp.int32)


def _sizes(
    choices: Choices,
    arch: Array,
    image_shape: tuple[int, int, int],
    num_classes: int = 10,
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch)`; see `jaxnas.spaces.sizes`.

    Returns:
      int32[], the parameters; float32[], two operations for each multiply-add of
      convolutions and dense layers for one image.
    """
    pixels, _ = scales(image_shape, choices.trunk_slots + 1)
    met, width, _ = walk(choices._replace(image_shape=image_shape), arch)
    taps = jnp.array([layer.size**2 for layer in choices.trunk], jnp.int32)[met.choice]
    weights = met.before * met.out * taps
    seen = jnp.array(pixels, jnp.float32)[met.halvings]
    norms = 2 * jnp.where(taps > 0, met.out, 0)
    parameters = jnp.sum(weights + norms, dtype=jnp.int32)
    operations = jnp.sum(2.0 * weights * seen)
    units = jnp.array([layer.width for layer in choices.head], jnp.int32)
    for out in [*units[choices.split(arch)[2]], num_classes]:
        parameters += jnp.where(out > 0, (width + 1) * out, 0)
        operations += 2.0 * width * out
        width = jnp.where(out > 0, out, width)
    return parameters, operations


def _places(words: Sequence[str], known: Sequence) -> list[int]:
    names = [str(one) for one in known]
    unknown = [word for word in words if word not in names]
    if unknown:
        raise InputError(
            f"expected layers and links of {', '.join(names)}, but got {unknown[0]!r}"
        )
    return [names.index(word) for word in words]
