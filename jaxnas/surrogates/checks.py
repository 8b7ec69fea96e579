"""What surrogates check of their arguments, where these are concrete."""

from typing import Any

import jax

from jaxnas.base import InputError


def expect(least: float, **values: Any) -> None:
    """Refuses numbers below the least; a tracer cannot be compared and passes.

    Raises:
      InputError: a value is below `least`, or no number.
    """
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not value >= least:
            raise InputError(
                f"expected {name} of {least} or more, but got {value}: change it"
            )
