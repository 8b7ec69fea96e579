"""Comparing trees of arrays."""

import jax
import jax.numpy as jnp
import numpy as np


def to_numpy(leaf) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_trees_equal(found, expected):
    """Asserts equal structures, dtypes, shapes and numbers; NaN equals NaN."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other), strict=True)
