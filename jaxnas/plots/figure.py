"""What all pictures share: the figure, its colours, and how it is saved."""

import io
import os
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxnas.base import InputError

DPI = 160
INK, LINE, PALE = "#1f2933", "#66707c", "#eceff3"
# The ten of Petroff, "Accessible Color Sequences for Data Visualization"
# (arXiv:2107.02270), so ordered that "none", first in most spaces, is grey, and
# the two poolings of DARTS are blue.
PALETTE = (
    *("#94a4a2", "#3f90da", "#92dadd", "#ffa90e", "#832db6"),
    *("#a96b59", "#e76300", "#bd1f01", "#717581", "#b9ac70"),
)


class Picture(Figure):
    """A white figure with a canvas of its own, which a notebook shows by itself."""

    def __init__(self, width: float, height: float, **kwargs):
        """Makes it `width` by `height` inches."""
        super().__init__(figsize=(width, height), facecolor="white", **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue(), {"width": round(80 * self.get_figwidth())}


def typeset(name: str) -> str:
    """Sets what has a subscript in braces, as `c_{k-1}`, as TeX; the rest stays."""
    return re.sub(r"\w+_\{[^{}$]*\}", r"$\g<0>$", name)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG at 160 dots an inch; `path` is never half written.

    Raises:
      InputError: where `path` does not end in `.png` or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"expected a path that ends in .png, got {path}; rename it")
    part = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})
        part.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another folder, "
            "or make room there"
        ) from error
    finally:
        part.unlink(missing_ok=True)
