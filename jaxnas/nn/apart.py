"""Functions that XLA compiles apart from their callers."""

from functools import wraps

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function, **jit_options):
    """Makes a function, and its derivatives, a program of its own in its caller.

    XLA fuses producers into consumers across all of a program, and computes
    what looks cheap again for each consumer; in a cell, where a state has dozens
    of consumers, both the compile time and the run time explode. It does not
    fuse across a call that is not inlined, and on a CPU it compiles equal calls
    once. `jit_options` are those of `jax.jit`.
    """
    jitted = jax.jit(function, **jit_options)

    @wraps(function)
    def call(*args, **kwargs):
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call


materialise = apart(lax.optimization_barrier)
"""Gives arrays back as they are, computed once for all that use them."""
