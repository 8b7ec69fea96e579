"""Images side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxnas.base import InputError
from jaxnas.plots.curves import LABEL, make_panels

CELL = 0.5  # inches, the side of an image that is small


def plot_images(
    images: ArrayLike,
    *,
    title: str,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> Figure:
    """Shows a grid of images, each pixel as it is.

    Args:
      images: uint8[R, C, height, width, colours], with 1 or 3 colours.
      title: what stands above; lines that are too long are not broken.
      row_names: R names to the left, or none.
      column_names: C names above, or none.

    Raises:
      InputError: the images have another shape or type, or there are none; or names
        do not fit.
    """
    x = np.asarray(images)
    good = x.ndim == 5 and x.dtype == np.uint8 and x.shape[-1] in (1, 3) and x.size
    if not good:
        raise InputError(
            "expected images uint8[rows, columns, height, width, 1 or 3], none of them "
            f"empty, but got {x.dtype}{list(x.shape)}: pass such an array"
        )
    for names, size in ((row_names, x.shape[0]), (column_names, x.shape[1])):
        if len(names) not in (0, size):
            raise InputError(
                f"expected {size} names or none, but got {len(names)}: leave them out"
            )
    rows, columns, height, width, colours = x.shape
    gap = max(1, round(width / 14))
    pads = [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)]
    tiles = np.pad(x, pads, constant_values=255).swapaxes(1, 2)
    whole = tiles.reshape(rows * (height + gap), columns * (width + gap), colours)
    whole = whole[: rows * (height + gap) - gap, : columns * (width + gap) - gap]
    beside = 0.3 + 0.09 * max(map(len, row_names), default=0)
    size = max(CELL * columns + beside, 5.5), CELL * rows * height / width + 0.9
    figure, grid = make_panels(1, 1, size, title)
    axes = grid[0, 0]
    axes.imshow(np.broadcast_to(whole, (*whole.shape[:2], 3)), interpolation="nearest")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_yticks(_middles(len(row_names), height, gap), row_names, **LABEL)
    axes.set_xticks(_middles(len(column_names), width, gap), column_names, **LABEL)
    return figure


def _middles(count: int, side: int, gap: int) -> list[float]:
    return [i * (side + gap) + (side - 1) / 2 for i in range(count)]
