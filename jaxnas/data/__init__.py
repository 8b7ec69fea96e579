"""Images as arrays: datasets, normalisation, batches drawn by key, augmentation."""

from jaxnas.data.datasets import DATASETS, Dataset, load
from jaxnas.data.pipeline import (
    FLIPPED,
    Augmentation,
    augment,
    augmentation_of,
    batch_indices,
    channel_statistics,
    normalize,
    split,
)

__all__ = [
    "DATASETS",
    "FLIPPED",
    "Augmentation",
    "Dataset",
    "augment",
    "augmentation_of",
    "batch_indices",
    "channel_statistics",
    "load",
    "normalize",
    "split",
]
