"""One's own images: an `.npz` of arrays, or a folder of images by class.

An `.npz`, as `np.savez` writes it, holds::

    images       uint8[N, height, width] or uint8[N, height, width, colours]
    labels       int[N]   in [0, C)
    test_images, test_labels
                          optional: the test set, likewise
    class_names  str[C]   optional

A folder holds a sub-folder of images for each class, or `train` and `test`, which
each hold these. The classes are the sorted names of their folders. The images are the
files that end in one of `SUFFIXES`; others, and hidden ones, are passed over. Each is
turned as its EXIF data says. Grey stays one colour; anything else becomes RGB, and
transparency is dropped.

Where there is no test set, `hold_out` chooses one.
"""

import functools
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxnas.base import InputError
from jaxnas.data.prepare import one_line

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif"),
    *(".webp", ".tif", ".tiff", ".pgm", ".ppm"),
)
"""What the name of an image ends in, in small or capital letters."""

ARRAYS = ("images", "labels", "test_images", "test_labels", "class_names")
Examples = tuple[np.ndarray, np.ndarray]  # uint8[N, height, width, colours], int32[N]
Contents = tuple[tuple[str, ...], list[Examples]]  # classes; training set, test set


def read_own(
    path: Path, image_size: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads an `.npz` or a folder; no object is ever unpickled.

    Args:
      path: of the file or folder.
      image_size: pixels, the side of the square that images are resized to; None
        leaves them as they are.

    Returns:
      Images uint8[N, height, width, colours] and labels int32[N] to train with, the
      same to test with, and the names of the C classes; always in the same order.

    Raises:
      InputError: something cannot be read or does not fit into memory; images differ
        in size or in colours; an array is missing, or of another type or shape; labels
        out of range; fewer than two classes; a class without an image to train with
        and one to test with.
    """
    try:
        source = _from_folder if path.is_dir() else _from_npz
        class_names, (train, *rest) = source(path, image_size)
    except (OSError, MemoryError) as error:
        raise InputError(
            f"expected to read the images of {path}, but got {one_line(error)}: see to "
            "its permissions, or give fewer or smaller images"
        ) from error
    if rest:
        return *train, *rest[0], class_names
    images, labels = train
    is_test = hold_out(labels)
    return (
        *(images[~is_test], labels[~is_test]),
        *(images[is_test], labels[is_test]),
        class_names,
    )


def hold_out(labels: np.ndarray) -> np.ndarray:
    """Chooses a fifth of each class as the test set, whatever the seed.

    Args:
      labels: int[N].

    Returns:
      bool[N], true for every fifth example of a class in the order they have, or for
      the last one of fewer than five.
    """
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        is_test[members[min(4, len(members) - 1) :: 5]] = True
    return is_test


def resize(images: np.ndarray, image_size: int) -> np.ndarray:
    """Resizes images to a square by Pillow's bilinear filter, which antialiases.

    Args:
      images: uint8[N, height, width, colours].
      image_size: pixels, the side of the square.

    Returns:
      uint8[N, image_size, image_size, colours].
    """
    size = image_size, image_size
    if images.shape[1:3] == size:
        return images
    resized = np.empty((len(images), *size, images.shape[3]), np.uint8)
    for i, colour in np.ndindex(len(images), images.shape[3]):
        plane = Image.fromarray(images[i, :, :, colour])
        plane = plane.resize(size, Image.Resampling.BILINEAR)
        resized[i, :, :, colour] = np.asarray(plane)
    return resized


def _expect(where: Path, holds: Any, what: str, came: Any, remedy: str) -> None:
    if not holds:
        raise InputError(f"{where}: expected {what}, but got {came}: {remedy}")


def _check_classes(path: Path, names: Sequence[str], splits: Sequence) -> None:
    """Refuses labels int[N] out of range, and classes with too few examples."""
    expect = functools.partial(_expect, path)
    num = len(names)
    expect(num > 1, "two classes or more", num, "add images of another class")
    uses = ("train", "test") if len(splits) == 2 else ("train and test",)
    for use, labels in zip(uses, splits, strict=True):
        what = f"labels to {use} with below {num}, the number of classes"
        highest = labels.max()
        expect(highest < num, what, highest, "count the classes from 0")
        counts = np.bincount(labels.astype(int), minlength=num)
        few, least = int(counts.argmin()), len(use.split(" and "))
        what = f"each class to have {least} or more images to {use} with"
        came = f"{counts[few]} of class {names[few]}"
        remedy = "add some, or leave the class out and count the others from 0"
        expect(counts[few] >= least, what, came, remedy)


def _check_shapes(where: Path, names: Sequence[Any], shapes: Sequence) -> None:
    """Refuses two images, of these names, whose height, width or colours differ."""
    if shapes[0] == shapes[1]:
        return
    what = "all images to have one height, width and number of colours"
    texts = ["x".join(map(str, shape)) for shape in shapes]
    came = f"{texts[0]} in {names[0]} and {texts[1]} in {names[1]}"
    remedy = "give an image size (--image-size), to which all are resized"
    if shapes[0][:2] == shapes[1][:2]:
        remedy = "make all grey or all RGB"
    _expect(where, False, what, came, remedy)


def _from_npz(path: Path, image_size: int | None) -> Contents:
    expect = functools.partial(_expect, path)
    arrays = _read_arrays(path)
    has_test = "test_images" in arrays or "test_labels" in arrays
    prefixes = ("", "test_") if has_test else ("",)
    for name in (f"{prefix}{kind}" for prefix in prefixes for kind in ARRAYS[:2]):
        came = f"only {', '.join(arrays) or 'others'}"
        expect(name in arrays, f"an array {name}", came, "add it")
    splits = [_examples(path, arrays, prefix, image_size) for prefix in prefixes]
    labels = splits[0][1]
    # Where labels leave out classes, even absurdly many, there are too few names.
    names = map(str, range(min(int(labels.max()), len(labels)) + 1))
    if "class_names" in arrays:
        found = arrays["class_names"]
        is_text = found.ndim == 1 and found.dtype.kind == "U"
        came = f"{found.dtype}{list(found.shape)}"
        expect(is_text, "class_names of type str[C]", came, "name each class")
        names = map(str, found)
    class_names = tuple(names)
    _check_classes(path, class_names, [labels for _, labels in splits])
    shapes = [images.shape[1:] for images, _ in splits]
    _check_shapes(path, ("images", "test_images"), (shapes[0], shapes[-1]))
    return class_names, [(x, y.astype(np.int32)) for x, y in splits]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads those of `ARRAYS` that there are."""
    arrays, part = {}, "the file"
    with path.open("rb") as raw:  # np.load leaves a file open that it cannot read
        try:
            if not zipfile.is_zipfile(raw):
                raise ValueError("it is no zip file")
            raw.seek(0)
            file = np.load(raw, allow_pickle=False)
            for part in (name for name in ARRAYS if name in file.files):
                arrays[part] = np.asarray(file[part])
        except MemoryError:
            raise
        # Damage shows as any of a dozen types; numpy's words advise to unpickle.
        except Exception as error:
            raise InputError(
                f"{path}: expected an .npz of plain arrays, but {part} is damaged or "
                "holds Python objects: write it again by np.savez"
            ) from error
    return arrays


def _examples(
    path: Path, arrays: dict[str, np.ndarray], prefix: str, image_size: int | None
) -> Examples:
    """Returns the images and labels of an .npz; the number of classes is open."""
    expect = functools.partial(_expect, path)
    images, labels = (arrays[f"{prefix}{kind}"] for kind in ARRAYS[:2])
    what, shape = f"{prefix}images of type uint8", images.shape
    expect(images.dtype == np.uint8, what, images.dtype, "scale them from 0 to 255")
    what = f"{prefix}images of shape [N, height, width] or [N, height, width, colours]"
    has_rank = len(shape) in (3, 4) and images.size
    expect(has_rank, what, list(shape), "reshape them")
    colours_last = len(shape) == 3 or not shape[1] <= 4 < shape[3]
    expect(colours_last, what, list(shape), "move the colours to the end")
    what = f"{prefix}labels of type int[{len(images)}]"
    came = f"{labels.dtype}{list(labels.shape)}"
    is_int = np.issubdtype(labels.dtype, np.integer) and labels.shape == shape[:1]
    expect(is_int, what, came, "give each image the number of its class")
    what, least = f"{prefix}labels of 0 or more", labels.min()
    expect(least >= 0, what, least, "count the classes from 0")
    images = images.reshape(*shape[:3], -1)
    return images if image_size is None else resize(images, image_size), labels


def _from_folder(folder: Path, image_size: int | None) -> Contents:
    roots = [folder]
    if [path.name for path in _folders(folder)] == ["test", "train"]:
        roots = [folder / "train", folder / "test"]
    splits = [_files_by_class(root) for root in roots]
    class_names = tuple(splits[0])
    for name in sorted(set(splits[0]) ^ set(splits[-1])):
        what = "the same classes to train and to test with"
        _expect(folder, False, what, f"{name} in one only", "add it to the other")
    labels = [
        np.repeat(np.arange(len(split), dtype=np.int32), list(map(len, split.values())))
        for split in splits
    ]
    _check_classes(folder, class_names, labels)
    files = [file for split in splits for part in split.values() for file in part]
    first = _read_image(files[0], image_size)
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        image = _read_image(file, image_size)
        names = [path.relative_to(folder) for path in (files[0], file)]
        _check_shapes(folder, names, (first.shape, image.shape))
        images[i] = image
    parts = np.split(images, [len(labels[0])])
    return class_names, list(zip(parts, labels, strict=False))


def _folders(root: Path) -> list[Path]:
    paths = sorted(path for path in root.iterdir() if path.name[0] != ".")
    return [path for path in paths if path.is_dir()]


def _files_by_class(root: Path) -> dict[str, list[Path]]:
    """Lists the images of each class."""
    classes = {}
    for folder in _folders(root):
        files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
        files = [path for path in files if path.suffix.lower() in SUFFIXES]
        what = f"images ({', '.join(SUFFIXES)}) in the folder of a class"
        _expect(folder, files, what, "none", "add some, or take the folder away")
        classes[folder.name] = files
    what = "a folder of images for each of two classes or more"
    _expect(root, len(classes) > 1, what, len(classes), "sort the images into folders")
    return classes


def _read_image(path: Path, image_size: int | None) -> np.ndarray:
    """Reads uint8[height, width, 1 or 3]."""
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # of odd metadata
            if image_size is not None:  # a large JPEG at 1/8: ten times as fast
                file.draft(None, (image_size, image_size))
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode}, which is not 8 bits a colour")
            is_grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    except Exception as error:  # again, any of a dozen types
        raise InputError(
            f"{path}: expected an image that Pillow reads, but got {one_line(error)}: "
            "mend it, or take it away"
        ) from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels if image_size is None else resize(pixels[None], image_size)[0]
