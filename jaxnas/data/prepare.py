"""Downloading and preparing image datasets without TensorFlow.

tensorflow-datasets (tfds) reads a prepared dataset without TensorFlow, but its
builders need TensorFlow to unpack an archive and to encode an image. The builder
here is tfds's own with these two steps done by Python's `tarfile` and `gzip` and
by Pillow. Everything else stays tfds's: the addresses, the registered sizes and
SHA-256 checksums, the download, the features, the version, the written files.
"""

import gzip
import tarfile
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import (
    NonMatchingChecksumError,
)

from jaxnas.base import InputError

ANSWER_SECONDS = 10.0
"""How long to wait for a server's first answer."""

Splits = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> images, labels


class DownloadFailed(InputError):
    """The dataset could not be downloaded and prepared."""


def prepare(name: str, data_dir: str | None, report: Callable[[str], object]) -> None:
    """Downloads a dataset, checks it and writes it where tfds reads it.

    The dataset's folder appears by one rename once all is written, so that an
    interrupted run leaves none; the downloaded archive is not kept.

    Args:
      name: `cifar10`, `mnist` or `fashion_mnist`.
      data_dir: folder of prepared datasets; None is tfds's default.
      report: is called with a line that says what is about to happen.

    Raises:
      DownloadFailed: no answer within `ANSWER_SECONDS`, a failed download, a file
        with another checksum than tfds registers, or a folder that cannot be
        written.
    """
    builder = _builder(name, data_dir)
    root = Path(builder.data_path).parent.parent
    size = sum(int(info.size) for info in builder.url_infos.values())
    try:
        for url in builder.url_infos:
            _await_answer(url)
        report(f"Downloading {name} ({size / 1e6:.0f} MB) and preparing it in {root}")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download.", dir=root) as folder:
            builder.download_and_prepare(
                download_dir=folder,
                download_config=tfds.download.DownloadConfig(
                    try_download_gcs=False, force_checksums_validation=True
                ),
            )
    except NonMatchingChecksumError as error:
        raise DownloadFailed(
            f"expected the download of {name} to have the checksum that "
            "tensorflow-datasets registers, but it has another: try again later, or "
            "give the folder of a prepared copy"
        ) from error
    # tfds's DownloadError is no OSError; requests' errors are.
    except (OSError, EOFError, tarfile.TarError, tfds.download.DownloadError) as error:
        raise DownloadFailed(
            f"expected to download {name} and prepare it in {root}, but got "
            f"{one_line(error)}: check the network and the folder, or give the folder "
            "of a prepared copy"
        ) from error


def one_line(error: BaseException) -> str:
    """The type of an error and the start of its message, on one line."""
    return f"{type(error).__name__} ({textwrap.shorten(str(error), 160)})"


def _builder(name: str, data_dir: str | None) -> Any:
    """tfds's builder of `name`, less what needs TensorFlow."""
    stock = tfds.builder_cls(name)
    read = _read_cifar10 if name == "cifar10" else _read_mnist

    class Builder(stock, skip_registration=True):  # type: ignore
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            paths = dl_manager.download(list(self.url_infos))
            files = {
                url.rsplit("/", 1)[-1]: Path(path)
                for url, path in zip(self.url_infos, paths, strict=True)
            }
            splits, class_names = read(files)
            if class_names:
                self.info.features["label"].names = class_names
            return {
                split: self._generate_examples(split, *arrays)
                for split, arrays in splits.items()
            }

        def _generate_examples(
            self, split: str, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                example = {"image": Image.fromarray(image), "label": int(label)}
                if "id" in self.info.features:
                    example["id"] = f"{split}_{i:05d}"
                yield i, example

    return Builder(data_dir=data_dir, file_format="array_record")


def _read_cifar10(files: dict[str, Path]) -> tuple[Splits, list[str]]:
    """Reads the binary version: records of a label byte and 3 x 32 x 32 pixels."""
    (path,) = files.values()
    with tarfile.open(path) as archive:
        contents = {
            Path(member.name).name: file.read()
            for member in archive
            if (file := archive.extractfile(member))
        }

    def read(*names: str) -> tuple[np.ndarray, np.ndarray]:
        data = np.frombuffer(b"".join(contents[name] for name in names), np.uint8)
        records = data.reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, 0]

    splits = {
        "train": read(*(f"data_batch_{i}.bin" for i in range(1, 6))),
        "test": read("test_batch.bin"),
    }
    return splits, contents["batches.meta.txt"].decode().split()


def _read_mnist(files: dict[str, Path]) -> tuple[Splits, list[str]]:
    """Reads the four IDX files; the class names are already tfds's."""

    def read(name: str) -> np.ndarray:
        data = gzip.decompress(files[name].read_bytes())
        num_axes = data[3]  # after two zeros and the code of uint8
        shape = np.frombuffer(data, ">i4", count=num_axes, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)

    splits = {
        split: (
            read(f"{prefix}-images-idx3-ubyte.gz"),
            read(f"{prefix}-labels-idx1-ubyte.gz"),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    return splits, []


def _await_answer(url: str) -> None:
    """Raises OSError unless a server answers for `url` soon.

    tfds's downloader waits without limit and retries a refused connection for
    minutes. The request runs in a thread, since looking up a host name has no
    timeout of its own.
    """
    outcome: list[OSError | None] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=ANSWER_SECONDS) as response:
                response.raise_for_status()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    error = outcome[0] if outcome else TimeoutError(f"no answer from {url}")
    if error:
        raise error
