"""What members check of their arguments, where these are concrete."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxnas.base import InputError


def expect(least: float, most: float = float("inf"), **values: Any) -> None:
    """Refuses numbers out of a range; a tracer cannot be compared and passes.

    Raises:
      InputError: a value is below `least` or above `most`.
    """
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer) or least <= value <= most:
            continue
        wanted = (
            f"from {least} to {most}" if most < float("inf") else f"{least} or more"
        )
        raise InputError(f"expected {name} of {wanted}, but got {value}: change it")


def expect_one_of(what: str, name: str, names: Iterable[str]) -> None:
    """Refuses a name that is not known.

    Raises:
      InputError: it is not among the names.
    """
    names = list(names)
    if name not in names:
        raise InputError(
            f"expected {what} of {', '.join(names)}, but got {name}: choose one"
        )
