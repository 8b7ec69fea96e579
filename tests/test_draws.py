"""Cheap draws are uniform, and different for different keys and places."""

import jax
import numpy as np
from scipy.stats import chisquare

from jaxnas.draws import below, words

KEYS = jax.random.split(jax.random.key(0), 50_000)
SIZE = 13


def draw():
    return np.asarray(jax.jit(jax.vmap(lambda key: below(key, (4,), SIZE)))(KEYS))


def test_draws_are_uniform_alone_and_in_pairs():
    drawn = draw()
    assert drawn.dtype == np.int32
    for one in range(4):
        assert chisquare(np.bincount(drawn[:, one], minlength=SIZE)).pvalue > 1e-4
        pairs = SIZE * drawn[:, one] + drawn[:, (one + 1) % 4]
        assert chisquare(np.bincount(pairs, minlength=SIZE**2)).pvalue > 1e-4
    following = SIZE * drawn[:-1, 0] + drawn[1:, 0]
    assert chisquare(np.bincount(following, minlength=SIZE**2)).pvalue > 1e-4


def test_each_bit_of_a_word_is_fair():
    found = np.asarray(jax.jit(jax.vmap(lambda key: words(key, 2)))(KEYS))
    bits = (found[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    # Five deviations of a fair coin.
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(KEYS))


def test_sizes_may_be_an_array_and_any_implementation_has_words():
    sizes = np.array([1, 2, 3], np.int32)
    for impl in ("threefry2x32", "rbg"):
        key = jax.random.key(0, impl=impl)
        drawn = np.asarray(below(key, (3,), sizes))
        assert ((drawn >= 0) & (drawn < sizes)).all()
