"""What a chain's layers meet on the way: channels, halvings, links; as numbers."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import Array
from jaxnas.nn.chain import LINKS, POOLINGS, Layer, halve


class Choices(NamedTuple):
    """What there is to choose; slots of the trunk come first, then links, the head."""

    image_shape: tuple[int, int, int]  # height, width in pixels, colours
    trunk: tuple[Layer, ...]
    links: tuple[str, ...]  # of LINKS; one: nothing is decided
    head: tuple[Layer, ...]
    trunk_slots: int
    head_slots: int
    max_width: int  # channels

    @property
    def num_choices(self) -> tuple[int, ...]:
        """One number a decision."""
        trunk = (len(self.trunk),) * self.trunk_slots
        links = (len(self.links),) * self.trunk_slots if len(self.links) > 1 else ()
        return trunk + links + (len(self.head),) * self.head_slots

    @property
    def widths(self) -> list[int]:
        """Channels that arrays are made for, in ascending order."""
        return sorted({x.width for x in self.trunk if x.width} | {self.max_width})

    @property
    def images(self) -> list[tuple[int, int]]:
        """Height and width after no halving, one, two, as far as there are any."""
        found = [self.image_shape[:2]]
        while max(found[-1]) > 1 and len(found) <= self.trunk_slots:
            height, width = found[-1]
            found.append((halve(height), halve(width)))
        return found

    def split(self, arch: Array) -> tuple[Array, Array, Array]:
        """Takes int32[D] apart: trunk, links (numbers in LINKS), head."""
        links = np.array([LINKS.index(link) for link in self.links], np.int32)
        trunk, rest = arch[: self.trunk_slots], arch[self.trunk_slots :]
        if len(links) == 1:
            return trunk, jnp.full(self.trunk_slots, links[0], jnp.int32), rest
        chosen = jnp.array(links)[rest[: self.trunk_slots]]
        return trunk, chosen, rest[self.trunk_slots :]


class Met(NamedTuple):
    """What each slot of the trunk meets, L slots."""

    choice: Array  # int32[L]
    link: Array  # int32[L], number in LINKS that takes effect
    before: Array  # int32[L], channels
    out: Array  # int32[L], channels of the layer itself
    halvings: Array  # int32[L], that came before
    first: Array  # bool[L], whether no parameters came before, and just the colours


def walk(choices: Choices, arch: Array) -> tuple[Met, Array, Array]:
    """Follows channels and halvings along the trunk of int32[D].

    Returns:
      What the slots meet; int32[], the channels and the halvings after the last.
    """
    colours = choices.image_shape[2]
    widths = jnp.array([layer.width for layer in choices.trunk], jnp.int32)
    pools = jnp.array([layer.kind in POOLINGS for layer in choices.trunk])
    linked = jnp.array(
        [layer.kind not in ("identity", *POOLINGS) for layer in choices.trunk]
    )

    def step(carry, slot):
        width, halvings, first = carry
        choice, link = slot
        out = jnp.where(widths[choice] > 0, widths[choice], width)
        too_wide = (link == LINKS.index("dense")) & (width + out > choices.max_width)
        link = jnp.where(linked[choice] & ~too_wide, link, 0)
        widths_after = {"none": out, "residual": jnp.maximum(width, out)}
        widths_after["dense"] = width + out
        after = jnp.stack([widths_after[name] for name in LINKS])[link]
        met = Met(choice, link, width, out, halvings, first)
        still = first & (widths[choice] == 0) & (after == colours)
        return (after, halvings + pools[choice], still), met

    trunk, links, _ = choices.split(arch)
    start = jnp.int32(colours), jnp.int32(0), jnp.bool(True)
    (width, end, _), met = lax.scan(step, start, (trunk, links))
    return met, width, end
