"""Architectures as numbers that models, gradients and tables can use."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from jaxnas.base import Array, Cells

WORD = 2**32


def one_hot(arch: Array, num_choices: Sequence[int]) -> Array:
    """Encodes int32[D] as float32[D, K], a one at each choice.

    A choice that a decision does not have gives a row of zeros.
    """
    encoded = jax.nn.one_hot(arch, max(num_choices), dtype=jnp.float32)
    return jnp.where(_is_choice(num_choices), encoded, 0.0)


def strongest(weights: Array, num_choices: Sequence[int]) -> Array:
    """Decodes float32[D, K] to int32[D], the strongest choice; of equals the first.

    Choices that a decision does not have are ignored: the inverse of `one_hot`.
    """
    masked = jnp.where(_is_choice(num_choices), weights, -jnp.inf)
    return jnp.argmax(masked, -1).astype(jnp.int32)


def _is_choice(num_choices):
    """Which choices exist: bool[D, K]."""
    choices = jnp.arange(max(num_choices))
    return choices[None, :] < jnp.array(num_choices)[:, None]


def is_skip(arch: Array, cells: Cells) -> Array:
    """Where int32[D] has a skip connection in a normal cell: bool[D].

    What DARTS+ (Liang et al. 2019, arXiv:1909.06035) and P-DARTS (Chen et al. 2019,
    arXiv:1904.12760) count: `is_skip(arch, cells).sum()`. Reduction cells are left out.
    """
    in_normal = ~jnp.array(cells.reduction)
    return (arch == cells.op_names.index("skip_connect")) & in_normal


def mixed_radix(arch: Array, num_choices: Sequence[int]) -> Array:
    """Numbers architectures: int32[D] to uint32[W], different for different ones.

    A word takes as many decisions as 32 bits can tell apart, the first decision
    the most significant. So keys compare, word by word, as architectures do.
    """
    words = []
    for begin, end in _split(num_choices):
        word = jnp.zeros((), jnp.uint32)
        for d in range(begin, end):
            word = word * jnp.uint32(num_choices[d]) + arch[d].astype(jnp.uint32)
        words.append(word)
    return jnp.stack(words)


def _split(num_choices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges of decisions that share a word."""
    begin, size = 0, 1
    for d, choices in enumerate(num_choices):
        if size * choices > WORD:
            yield begin, d
            begin, size = d, 1
        size *= choices
    yield begin, len(num_choices)
