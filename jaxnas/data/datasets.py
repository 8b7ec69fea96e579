"""Image classification datasets as numpy arrays, read without TensorFlow."""

import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from jaxnas.base import InputError
from jaxnas.data.own import hold_out, read_own, resize
from jaxnas.data.prepare import DownloadFailed, one_line, prepare

DATASETS = ("auto", "cifar10", "mnist", "fashion_mnist", "digits")
"""The names that `load` knows; it takes paths too."""


class Dataset(NamedTuple):
    """Labelled images: N to train with and M to test with, in C classes."""

    name: str  # never `auto`, but what it chose; of one's own, the file's or folder's
    train_images: np.ndarray  # uint8[N, height, width, channels]
    train_labels: np.ndarray  # int32[N], in [0, C)
    test_images: np.ndarray  # uint8[M, height, width, channels]
    test_labels: np.ndarray  # int32[M]
    class_names: tuple[str, ...]  # C entries


def load(
    name_or_path: str | Path,
    data_dir: str | None = None,
    *,
    image_size: int | None = None,
    report: Callable[[str], object] = print,
    first: str = "cifar10",
) -> Dataset:
    """Reads a dataset, which is first downloaded and prepared if it has to be.

    Args:
      name_or_path: one of `DATASETS`, or the path of one's own images, an `.npz` or a
        folder of images by class, see `jaxnas.data.own`. `auto` is `first` where
        that is prepared or can be downloaded, and else `digits`, which needs no
        network. `./digits` is a path.
      data_dir: folder of datasets prepared by tensorflow-datasets; None is that
        library's default (`TFDS_DATA_DIR`, or `~/tensorflow_datasets`).
      image_size: pixels, the side of the square that all images are resized to; None
        leaves them.
      report: is called with one line when a download starts, and when `auto`
        chooses `digits`.
      first: one of `DATASETS`, what `auto` would rather have.

    Returns:
      The dataset, in the same order every time.

    Raises:
      InputError: an unknown name; a dataset that is damaged, in another format than
        array_record, or that cannot be downloaded or written; images of one's own
        that `read_own` refuses; an image size below 1.
    """
    if image_size is not None and image_size < 1:
        raise InputError(
            f"expected an image size of 1 pixel or more, but got {image_size}: "
            "choose a larger one"
        )
    if name_or_path not in DATASETS:
        return _own(Path(name_or_path), image_size)
    dataset = _named(str(name_or_path), data_dir, report, first)
    if image_size is None:
        return dataset
    return dataset._replace(
        train_images=resize(dataset.train_images, image_size),
        test_images=resize(dataset.test_images, image_size),
    )


def _own(path: Path, image_size: int | None) -> Dataset:
    """Reads one's own images."""
    if os.path.isdir(path):  # unlike Path's, it takes any text for a path
        return Dataset(path.resolve().name, *read_own(path, image_size))
    if path.suffix.lower() == ".npz" and os.path.isfile(path):
        return Dataset(path.stem, *read_own(path, image_size))
    raise InputError(
        f"expected a dataset out of {', '.join(DATASETS)}, or the path of an .npz or "
        f"of a folder of images by class, but got {str(path)!r}, which is none: choose "
        "one of these, or mend the path"
    )


def _named(
    name: str, data_dir: str | None, report: Callable[[str], object], first: str
) -> Dataset:
    """Reads one of `DATASETS`."""
    if name == "digits":
        return _digits()
    if name != "auto":
        return _from_tfds(name, data_dir, report)
    try:
        return _from_tfds(first, data_dir, report)
    except DownloadFailed as error:
        known = {"cifar10": "CIFAR-10", "mnist": "MNIST"}
        report(
            f"{known.get(first, first)} is not prepared and cannot be downloaded "
            f"({type(error.__cause__).__name__}): taking digits, the 8x8 images that "
            "scikit-learn ships"
        )
        return _digits()


def _digits() -> Dataset:
    """The 1,797 real 8x8 images of handwritten digits in scikit-learn.

    Their 17 grey levels are stretched from 0..16 to 0..255. The test set is
    `hold_out`'s: 355 images.

    Source: Alpaydin & Kaynak 1998, https://doi.org/10.24432/C50P49
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    is_test = hold_out(labels)
    return Dataset(
        name="digits",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        class_names=tuple(str(label) for label in range(10)),
    )


def _from_tfds(
    name: str, data_dir: str | None, report: Callable[[str], object]
) -> Dataset:
    """Reads a dataset of tensorflow-datasets' and prepares it first if need be."""
    if data_dir is not None and Path(data_dir).exists() and not Path(data_dir).is_dir():
        raise InputError(
            f"expected a folder of prepared datasets, but {data_dir} is a file: give "
            "the folder that holds them"
        )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        path = Path(builder.data_path)
        if not path.exists():
            prepare(name, data_dir, report)
            builder = tfds.builder(name, data_dir=data_dir)
        return Dataset(
            name,
            *_read_split(builder, "train"),
            *_read_split(builder, "test"),
            class_names=tuple(builder.info.features["label"].names),
        )
    except InputError:
        raise
    # Whatever is wrong with a file shows as any of a dozen types of four libraries.
    except Exception as error:
        where = data_dir or "tensorflow-datasets' default folder"
        raise InputError(
            f"expected {name} in {where} to be complete and in array_record format, "
            f"but got {one_line(error)}: delete {name} there to have it prepared anew, "
            "or give another folder"
        ) from error


def _read_split(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images and labels of a split.

    Decoding here takes two thirds of the time that tfds's own decoding does.
    """
    logging.getLogger("absl").addFilter(_is_no_group_size)
    source = builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    records = source.__getitems__(list(range(len(source))))
    images = np.empty((len(records), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for i, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        pixels = Image.open(io.BytesIO(feature["image"].bytes_list.value[0]))
        images[i] = np.asarray(pixels).reshape(images.shape[1:])
        labels[i] = feature["label"].int64_list.value[0]
    return images, labels


def _is_no_group_size(record: logging.LogRecord) -> bool:
    """Filters array_record's advice on fast random access: all is read in order."""
    return "group size" not in record.getMessage()
