"""Blocks of parallel branches that are added or concatenated.

The idea of ResNeXt (Xie et al. 2017, arXiv:1611.05431) and Inception (Szegedy et al.
2015, arXiv:1409.4842). An architecture is, block by block, a choice in `OPS` for each
branch and one in `MERGES`. Any combination is valid: a block whose branches are all
`none` is the identity. The network is `jaxnas.nn.multi_branch.MultiBranchNetwork`.
"""

import re
from functools import partial

import jax.numpy as jnp
import numpy as np

from jaxnas.base import Array, InputError, PyTree, SearchSpace
from jaxnas.encoding import mixed_radix
from jaxnas.nn.graph import Edge
from jaxnas.nn.multi_branch import (
    MERGES,
    Branching,
    MultiBranchNetwork,
    restrict_block,
)
from jaxnas.nn.skeleton import reductions
from jaxnas.spaces.categorical import categorical
from jaxnas.spaces.sizes import conv, dense, scales, total

OPS = (
    "none",
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
)
"""The choices of a branch, by their names in `jaxnas.nn.ops.OPS`."""

BLOCK = re.compile(r"(\w+)\((\w+(?:,\w+)*)\)")


def multi_branch(blocks: int = 4, branches: int = 4) -> SearchSpace:
    """Makes the space; D = blocks * (branches + 1), K = 8.

    `network` takes, by keyword, the attributes of `MultiBranchNetwork` but its blocks
    and op_names; its weights are float32[D, 8]. `restrict` wants equal settings:
    where the supernet's norms are not affine, `network(arch, affine=False)`. To
    `canonical` neither the order of a block's branches matters nor how none are merged.

    Args:
      blocks: how many, 1 or more.
      branches: of each block, 1 or more.

    Raises:
      InputError: a number is none or too small.
    """
    for name, number in (("blocks", blocks), ("branches", branches)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(
                f"expected 1 or more {name}, but got {number!r}: give a whole number"
            )
    num_choices = ((len(OPS),) * branches + (len(MERGES),)) * blocks
    every = Branching(tuple(Edge(0, b + 1, OPS[1:]) for b in range(branches)), MERGES)

    def rows(arch):
        return arch.reshape(blocks, branches + 1)

    def canonical(arch: Array) -> Array:
        ops, merge = jnp.sort(rows(arch)[:, :-1], 1), rows(arch)[:, -1:]
        merge = jnp.where(ops[:, -1:] > 0, merge, 0)
        return mixed_radix(jnp.concatenate([ops, merge], 1).ravel(), num_choices)

    def network(arch: Array | None = None, **size) -> MultiBranchNetwork:
        made = (every,) * blocks if arch is None else _branchings(rows(arch))
        settings = {"affine": arch is not None, **size}
        return MultiBranchNetwork(made, OPS, **settings)

    def restrict(params: PyTree, arch: Array) -> PyTree:
        chosen = _branchings(rows(arch))
        places = {name: re.fullmatch(r"block(\d+)", name) for name in params}
        cells = sum(match is not None for match in places.values()) // blocks
        part = {
            name: restrict_block(params[name], every, chosen[int(match[1]) // cells])
            if match
            else params[name]
            for name, match in places.items()
        }
        return {name: leaves for name, leaves in part.items() if leaves}

    def to_string(arch: Array) -> str:
        return "|".join(map(_write, rows(np.asarray(arch)).tolist()))

    def from_string(text: str) -> Array:
        parts = text.strip().split("|") if isinstance(text, str) else []
        read = [_read(part, branches) for part in parts]
        if len(read) != blocks or None in read:
            example = _write([*np.arange(branches) % len(OPS), 0])
            raise InputError(
                f"expected {blocks} of {example} or {MERGES[1]}(...), with | between "
                f"and operations of {', '.join(OPS)}, but got {text!r:.200}"
            )
        return jnp.array(read, jnp.int32).ravel()

    return categorical(num_choices)._replace(
        name="multi_branch",
        canonical=canonical,
        network=network,
        restrict=restrict,
        to_string=to_string,
        from_string=from_string,
        sizes=partial(sizes, branches=branches),
        empty=(0,) * len(num_choices),
    )


def _branchings(rows):
    """What each block of a concrete int32[blocks, branches + 1] is made of."""
    return tuple(
        Branching(
            tuple(Edge(0, b + 1, (OPS[op],)) for b, op in enumerate(ops) if op),
            (MERGES[merge],),
        )
        for *ops, merge in np.asarray(rows).tolist()
    )


def _write(row):
    """A block's choices as a string."""
    *ops, merge = row
    return f"{MERGES[merge]}({','.join(OPS[op] for op in ops)})"


def _read(text, branches):
    """The choices that a block's string says, or None."""
    match = BLOCK.fullmatch(text)
    if match is None or match[1] not in MERGES:
        return None
    names = match[2].split(",")
    if len(names) != branches or not set(names) <= set(OPS):
        return None
    return [*map(OPS.index, names), MERGES.index(match[1])]


def sizes(
    arch: Array, image_shape: tuple[int, int, int], *, branches: int = 4, **size
) -> tuple[Array, Array]:
    """Parameters and operations of `network(arch, **size)`; see `jaxnas.spaces.sizes`.

    Args:
      arch: int32[D], traced or not.
      image_shape: (H, W, colours), concrete.
      branches: of each block of the space.
      **size: as for `network`.

    Returns:
      int32[], the parameters, exact below 2**31; float32[], two operations for each
      multiply-add of convolutions and of the classifier for one image, to seven digits.
    """
    rows = arch.reshape(-1, branches + 1)
    net = MultiBranchNetwork((), OPS, **size)
    channels, (pixels, colours) = net.channels, scales(image_shape, 3)
    fixed, here = conv(colours, channels, 3, pixels[0]), pixels.pop(0)
    table, projection = np.zeros((*rows.shape, len(OPS), 2)), np.zeros((len(rows), 2))
    for i in range(len(rows)):
        if i in reductions(len(rows)):
            here, before, channels = pixels.pop(0), channels, 2 * channels
            fixed += conv(before, channels, 3, here)
        table[i, :-1] = net.cells * _op_sizes(channels, here, bool(net.affine))
        projection[i] = net.cells * conv(channels, channels, 1, here, norm=False)
    fixed += dense(channels, net.num_classes)
    fixed[0] += 2 * channels  # the last norm
    parameters, operations = total(fixed, table.reshape(-1, len(OPS), 2), arch)
    joined = (rows[:, :-1] > 0).sum(1) * (rows[:, -1] == MERGES.index("concat"))
    weights, more = (
        (joined * column.astype(dtype)).sum(dtype=dtype)
        for column, dtype in zip(projection.T, (np.int32, np.float32), strict=True)
    )
    return parameters + weights, operations + more


def _op_sizes(channels, pixels, affine):
    """What each operation has: float64[8, 2]."""
    table = np.zeros((len(OPS), 2))
    for kernel in (1, 3):
        layer = conv(channels, channels, kernel, pixels, affine)
        table[OPS.index(f"nor_conv_{kernel}x{kernel}")] = layer
    for kernel in (3, 5):
        layer = conv(1, channels, kernel, pixels, norm=False)
        layer += conv(channels, channels, 1, pixels, affine)
        table[OPS.index(f"sep_conv_{kernel}x{kernel}")] = 2 * layer
    return table
