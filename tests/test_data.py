"""Datasets: reading, preparing and what is wrong with them, against tfds itself."""

import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from jaxnas import data
from jaxnas.base import InputError
from jaxnas.data import prepare

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tensorflow_datasets"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no prepared datasets in {SHARED}"
)


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# Datasets


def test_load_names_what_it_knows_when_a_name_is_unknown():
    with pytest.raises(InputError) as error:
        data.load("imagenet")
    assert_one_line(error, "imagenet", *data.DATASETS)


def test_digits_are_scikit_learns_images_each_once():
    dataset = data.load("digits")
    source = load_digits()
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    expected = [
        (label, *pixels)
        for label, pixels in zip(
            source.target, source.images.reshape(1797, 64), strict=True
        )
    ]
    levels = np.round(images.reshape(1797, 64) / 255 * 16)
    found = [(label, *row) for label, row in zip(labels, levels, strict=True)]
    assert sorted(found) == sorted(expected)
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert (images.min(), images.max()) == (0, 255)


def test_digits_test_set_is_a_fixed_fifth_of_each_class():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    counts = np.bincount(first.test_labels)
    totals = counts + np.bincount(first.train_labels)
    np.testing.assert_array_equal(counts, totals // 5)
    assert counts.sum() == 355


@needs_shared
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", [1000] * 10),
        ("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_test_split_equals_what_tfds_reads(name, counts):
    builder = tfds.builder(name, data_dir=str(SHARED))
    images, labels = data.datasets._read_split(builder, "test")
    np.testing.assert_array_equal(np.bincount(labels), counts)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    source = tfds.data_source(name, split="test", data_dir=str(SHARED))
    picks = list(range(0, 10000, 97))
    for i, example in zip(picks, source.__getitems__(picks), strict=True):
        np.testing.assert_array_equal(images[i], example["image"])
        assert labels[i] == example["label"]


@needs_shared
def test_mnist_has_all_images_and_its_known_statistics():
    dataset = data.load("mnist", str(SHARED))
    assert dataset.name == "mnist"
    assert dataset.train_images.shape == (60000, 28, 28, 1)
    assert dataset.test_images.shape == (10000, 28, 28, 1)
    assert dataset.class_names == tuple("0123456789")
    mean, std = data.channel_statistics(dataset.train_images)
    np.testing.assert_allclose(mean, [0.1307], atol=1e-4)
    np.testing.assert_allclose(std, [0.3081], atol=1e-4)


# Preparing, from a server on the loopback device


def cifar_archive(num_per_batch=3):
    """A small archive in the layout of CIFAR-10's binary version."""
    rng = np.random.default_rng(0)
    buffer, arrays = io.BytesIO(), {}
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add("batches.meta.txt", "\n".join(f"class{i}" for i in range(10)).encode())
        for name in names:
            labels = rng.integers(0, 10, num_per_batch, dtype=np.uint8)
            images = rng.integers(0, 256, (num_per_batch, 3, 32, 32), dtype=np.uint8)
            rows = np.concatenate(
                [labels[:, None], images.reshape(num_per_batch, -1)], 1
            )
            add(name, rows.tobytes())
            arrays[name] = images.transpose(0, 2, 3, 1), labels
    train = [np.concatenate(parts) for parts in zip(*list(arrays.values())[:5])]  # noqa: B905
    return {"cifar-10-binary.tar.gz": buffer.getvalue()}, {
        "train": train,
        "test": arrays["test_batch.bin"],
    }


def mnist_files():
    """Four small files in the layout of MNIST."""
    rng = np.random.default_rng(0)
    files, splits = {}, {}
    for split, prefix, num in (("train", "train", 7), ("test", "t10k", 4)):
        images = rng.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, num, dtype=np.uint8)
        header = struct.pack(">4i", 0x803, num, 28, 28)
        content = gzip.compress(header + images.tobytes())
        files[f"{prefix}-images-idx3-ubyte.gz"] = content
        header = struct.pack(">2i", 0x801, num)
        content = gzip.compress(header + labels.tobytes())
        files[f"{prefix}-labels-idx1-ubyte.gz"] = content
        splits[split] = images[..., None], labels
    return files, splits


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves files as the registered download of a dataset; returns its folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def register(name, files):
        infos = {}
        for file, content in files.items():
            (folder / file).write_bytes(content)
            url = f"http://127.0.0.1:{server.server_port}/{file}"
            infos[url] = tfds.download.checksums.UrlInfo(
                tfds.core.utils.Size(len(content)),
                hashlib.sha256(content).hexdigest(),
                file,
            )
        monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)
        return folder

    yield register
    server.shutdown()
    thread.join()
    server.server_close()


def assert_nothing_prepared(data_dir):
    assert [path for path in Path(data_dir).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("name", "version", "make"),
    [
        ("cifar10", "3.0.2", cifar_archive),
        ("mnist", "3.0.1", mnist_files),
        ("fashion_mnist", "3.0.1", mnist_files),
    ],
)
def test_prepared_folder_is_read_by_tfds_and_by_load(
    name, version, make, serve, tmp_path
):
    files, splits = make()
    serve(name, files)
    lines = []
    dataset = data.load(name, str(tmp_path / "data"), report=lines.append)
    assert len(lines) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "data" / name).iterdir()] == [version]
    assert len(dataset.class_names) == 10

    for split, arrays in (
        ("train", (dataset.train_images, dataset.train_labels)),
        ("test", (dataset.test_images, dataset.test_labels)),
    ):
        expected = sorted((i.tobytes(), j) for i, j in zip(*splits[split], strict=True))
        found = sorted((i.tobytes(), j) for i, j in zip(*arrays, strict=True))
        assert found == expected
        source = tfds.data_source(
            name, split=split, data_dir=str(tmp_path / "data"), download=False
        )
        found = sorted((e["image"].tobytes(), e["label"]) for e in source)
        assert found == expected


def test_a_prepared_dataset_is_not_downloaded_again(serve, tmp_path):
    files, _ = cifar_archive()
    folder = serve("cifar10", files)
    first = data.load("cifar10", str(tmp_path / "data"))
    (folder / "cifar-10-binary.tar.gz").unlink()
    second = data.load("auto", str(tmp_path / "data"))
    assert second.name == "cifar10"
    assert second.class_names == tuple(f"class{i}" for i in range(10))
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_a_wrong_checksum_prepares_nothing(serve, tmp_path):
    files, _ = cifar_archive()
    folder = serve("cifar10", files)
    other, _ = cifar_archive(num_per_batch=4)
    (folder / "cifar-10-binary.tar.gz").write_bytes(other["cifar-10-binary.tar.gz"])
    with pytest.raises(InputError) as error:
        data.load("cifar10", str(tmp_path / "data"))
    assert_one_line(error, "checksum", "cifar10")
    assert_nothing_prepared(tmp_path / "data")


def test_an_interrupted_preparation_leaves_nothing(serve, tmp_path, monkeypatch):
    files, _ = cifar_archive()
    serve("cifar10", files)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Image, "fromarray", interrupt)
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar10", str(tmp_path / "data"))
    assert_nothing_prepared(tmp_path / "data")
    assert data.load("cifar10", str(tmp_path / "data")).name == "cifar10"


def test_a_missing_file_is_one_line(serve, tmp_path):
    files, _ = mnist_files()
    folder = serve("mnist", files)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError) as error:
        data.load("mnist", str(tmp_path / "data"))
    assert_one_line(error, "404", "mnist")
    assert_nothing_prepared(tmp_path / "data")


@pytest.fixture
def silent_server(monkeypatch):
    """A registered address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-binary.tar.gz"
        info = tfds.download.checksums.UrlInfo(tfds.core.utils.Size(1), "0", None)
        monkeypatch.setattr(tfds.builder_cls("cifar10"), "url_infos", {url: info})
        monkeypatch.setattr(prepare, "ANSWER_SECONDS", 0.2)
        yield


def test_a_server_without_an_answer_is_one_line(silent_server, tmp_path):
    with pytest.raises(InputError) as error:
        data.load("cifar10", str(tmp_path / "data"))
    assert_one_line(error, "cifar10", "network")
    assert not (tmp_path / "data").exists()


def test_auto_says_so_and_takes_digits_without_a_network(silent_server, tmp_path):
    lines = []
    dataset = data.load("auto", str(tmp_path / "data"), report=lines.append)
    assert dataset.name == "digits"
    (line,) = lines
    assert "digits" in line
    assert "CIFAR-10" in line
    assert "\n" not in line


def test_a_data_dir_that_is_a_file_is_one_line(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(InputError) as error:
        data.load("auto", str(path))
    assert_one_line(error, str(path), "folder")


def test_a_data_dir_that_cannot_be_made_is_one_line(serve, tmp_path):
    serve("cifar10", cifar_archive()[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        data.load("cifar10", str(tmp_path / "file" / "data"))
    assert_one_line(error, str(tmp_path / "file" / "data"), "folder")


@pytest.mark.parametrize("damage", ["truncate", "remove", "overwrite", "json"])
def test_damaged_files_are_one_line_and_stay(damage, serve, tmp_path):
    files, _ = cifar_archive()
    serve("cifar10", files)
    data.load("cifar10", str(tmp_path / "data"))
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    (records,) = folder.glob("*test.array_record*")
    content = records.read_bytes()
    if damage == "truncate":
        os.truncate(records, len(content) // 2)
    elif damage == "remove":
        records.unlink()
    elif damage == "overwrite":
        middle = content.index(b"IDAT")
        records.write_bytes(content[:middle] + b"\xff" * 64 + content[middle + 64 :])
    else:
        os.truncate(folder / "dataset_info.json", 100)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as error:
        data.load("auto", str(tmp_path / "data"))
    assert_one_line(error, "cifar10", str(tmp_path / "data"), "delete")
    assert sorted(folder.iterdir()) == before


@needs_shared
def test_a_truncated_shard_of_mnist_is_one_line(tmp_path):
    shutil.copytree(SHARED / "mnist", tmp_path / "mnist")
    (records,) = (tmp_path / "mnist" / "3.0.1").glob("*test.array_record*")
    records.chmod(0o644)
    os.truncate(records, records.stat().st_size // 2)
    with pytest.raises(InputError) as error:
        data.load("mnist", str(tmp_path))
    assert_one_line(error, "mnist", "delete")
