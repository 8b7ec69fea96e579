"""What papers report on NAS-Bench-201 with CIFAR-10, with source and setting.

Figures of the papers' tables as they are commonly cited; see the source before you do.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A figure of the literature."""

    value: str
    source: str


ACCURACY = {
    "random_sharing": Published("87.66 +- 1.69", "arXiv:2001.00326 (RSPS)"),
    "enas": Published("54.30 +- 0.00", "arXiv:2001.00326"),
    "darts": Published("54.30 +- 0.00", "arXiv:2001.00326 (first order)"),
    "gdas": Published("93.61 +- 0.09", "arXiv:2001.00326"),
    "snas": Published("92.77 +- 0.83", "arXiv:2006.10355"),
    "drnas": Published("94.36 +- 0.00", "arXiv:2006.10355"),
    "pc_darts": Published("93.41 +- 0.30", "arXiv:2006.10355"),
}
"""Test accuracy in percent after 200 epochs, mean and deviation over searches."""
ACCURACY_SETTING = "16 channels, 5 cells a stage, 32x32 pixels, 50 to 250 epochs"

CORRELATION = {
    "naswot": Published("tau 0.57", "arXiv:2006.04647"),
    "synflow": Published("rho 0.74", "arXiv:2101.08134"),
    "jacob_cov": Published("rho 0.73", "arXiv:2101.08134"),
    "grad_norm": Published("rho 0.58", "arXiv:2101.08134"),
    "snip": Published("rho 0.58", "arXiv:2101.08134"),
}
"""Rank correlation with accuracy (tau: Kendall, rho: Spearman), without training."""
CORRELATION_SETTING = "16 channels, 5 cells a stage, 32x32 pixels, more cells than here"
