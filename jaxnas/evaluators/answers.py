"""What evaluators that train have in common: which metrics there are, what is worth.

`accuracy`, `precision`, `recall`, `f1` (macro averages, fractions) and `cross_entropy`
(nats) on "valid", the same with `test_` before them where there is a "test".
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from jaxnas.base import FULL, Array, InputError
from jaxnas.tasks import Batch

RESULTS = ("accuracy", "precision", "recall", "f1", "cross_entropy")
PARTS = {"valid": "", "test": "test_"}  # and what their metrics begin with
SMALLER_IS_BETTER = (
    *("cross_entropy", "frechet_distance"),
    *("parameters", "flops", "memory", "latency"),
)


def names_of(data: Mapping[str, Batch]) -> list[str]:
    """The metrics of what is not trained on, in their order."""
    return [PARTS[part] + name for part in PARTS if part in data for name in RESULTS]


def check(
    data: Mapping[str, Batch],
    batch_size: int,
    epochs: int,
    names: Sequence[str],
    wanted: Sequence[str],
) -> None:
    """Refuses sizes that no training can have, and metrics that there are not.

    Raises:
      InputError: see above.
    """
    examples = len(data["train"].labels)
    if not 0 < batch_size <= examples:
        raise InputError(
            f"expected a batch size from 1 to the {examples} training examples, but "
            f"got {batch_size}: choose one in this range"
        )
    if not len(data["valid"].labels):
        raise InputError(
            "expected examples to validate with, but got none: take some from those "
            "of training"
        )
    check_wanted(epochs, names, wanted)


def check_wanted(epochs: int, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses less than an epoch, and metrics that there are not.

    Raises:
      InputError: see above.
    """
    if not 0 < epochs < FULL:
        raise InputError(f"expected 1 epoch or more, but got {epochs}: change it")
    for name in wanted:
        if name not in names:
            raise InputError(
                f"expected a metric of {', '.join(names)}, but got {name}: choose one"
            )


def worth(
    metrics: Mapping[str, Array], fitness: str, objectives: Sequence[str]
) -> tuple[Array, Array | None]:
    """Fitness float32[B] and objectives float32[B, M] of metrics, larger is better."""
    signed = {k: -v if k in SMALLER_IS_BETTER else v for k, v in metrics.items()}
    chosen = [signed[name] for name in objectives]
    return signed[fitness], jnp.stack(chosen, 1) if chosen else None
