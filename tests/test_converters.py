"""The official releases, in small files in their formats that are written here."""

import base64
import json
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from jaxnas import benchmarks
from jaxnas.base import InputError
from jaxnas.converters import from_nasbench101, from_nats_bench
from jaxnas.converters.tfrecord import crc32c, read_records
from jaxnas.spaces.nasbench101 import EXAMPLE, nasbench101
from jaxnas.spaces.nasbench201 import nasbench201

CONV_3, CONV_1, POOL = "conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"
# Matrix, operations, and what our strings say of them.
MODULES = {
    "a": ("0100", "input,output", f"{'|'.join([CONV_3 + '()'] * 5)}|output(0)"),
    "b": (
        "0110" + "0011" + "0001" + "0000",
        f"input,{CONV_1},{POOL},output",
        f"{CONV_1}(0)|{POOL}(0,1)|{CONV_3}()|{CONV_3}()|{CONV_3}()|output(1,2)",
    ),
    "c": (
        "0111010"
        + "0000001"
        + "0000001"
        + "0000100"
        + "0000001"
        + "0000001"
        + "0000000",
        f"input,{CONV_1},{CONV_3},{CONV_3},{CONV_3},{POOL},output",
        EXAMPLE,
    ),
}


def crc_of(data):
    """CRC-32C, bit by bit."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data):
    crc = crc_of(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def make_metrics():
    """The published message, by the official library."""
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="nasbench")
    kinds = descriptor_pb2.FieldDescriptorProto
    evaluation = file.message_type.add(name="EvaluationData")
    names = ("current_epoch", "training_time", "train_accuracy")
    names += ("validation_accuracy", "test_accuracy")
    for number, name in enumerate(names, 1):
        kind, label = kinds.TYPE_DOUBLE, kinds.LABEL_OPTIONAL
        evaluation.field.add(name=name, number=number, type=kind, label=label)
    evaluation.field.add(
        name="checkpoint_path", number=6, type=kinds.TYPE_STRING, label=1
    )
    metrics = file.message_type.add(name="ModelMetrics")
    metrics.field.add(
        name="evaluation_data",
        number=1,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".nasbench.EvaluationData",
    )
    metrics.field.add(
        name="trainable_parameters", number=2, type=kinds.TYPE_INT32, label=1
    )
    metrics.field.add(name="total_time", number=3, type=kinds.TYPE_DOUBLE, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("nasbench.ModelMetrics")
    )


METRICS = make_metrics()


def record(name, epochs, valid, test, seconds):
    """A record whose earlier evaluations are others."""
    metrics = METRICS(trainable_parameters=2_694_282, total_time=3 * seconds)
    for part in (0.0, 0.5, 1.0):
        metrics.evaluation_data.add(
            current_epoch=part * epochs,
            training_time=part * seconds,
            train_accuracy=part,
            validation_accuracy=part * valid,
            test_accuracy=part * test,
            checkpoint_path="model.ckpt-" + "0" * 200,
        )
    encoded = base64.b64encode(metrics.SerializeToString()).decode()
    matrix, operations, _ = MODULES[name]
    return json.dumps([name * 32, epochs, matrix, operations, encoded]).encode()


RUNS = [
    (
        name,
        epochs,
        0.9 - 0.1 * place + 0.01 * run,
        0.8 + 0.01 * run,
        100.0 * place + run,
    )
    for run in range(3)
    for epochs in (108, 4)
    for place, name in enumerate(MODULES)
]


@pytest.fixture
def release(tmp_path):
    path = tmp_path / "nasbench_full.tfrecord"
    path.write_bytes(b"".join(frame(record(*run)) for run in RUNS))
    return path


def refuses(says, convert, *args, **kwargs):
    with pytest.raises(InputError, match=says) as error:
        convert(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1


# NAS-Bench-101


def test_crc32c_is_the_one_of_the_standard():
    assert crc32c([b"123456789"]) == 0xE3069283
    generator = np.random.default_rng(0)
    parts = [generator.bytes(size) for size in (0, 1, 2, 3, 4, 7, 64, 301)]
    assert crc32c(parts).tolist() == [crc_of(part) for part in parts]


def test_nasbench101_has_the_means_of_the_last_evaluations(release):
    table = from_nasbench101(release)
    assert table.space == table.name == "nasbench101"
    assert table.datasets == ("cifar10",)
    assert list(table.columns) == [
        f"{name}_{budget}ep"
        for budget in (4, 108)
        for name in ("valid_acc", "test_acc", "cost")
    ]
    for budget in (4, 108):
        for name, expected in {
            "valid_acc": [91, 81, 71],
            "test_acc": [81, 81, 81],
            "cost": [1, 101, 201],
        }.items():
            column = table.columns[f"{name}_{budget}ep"]
            np.testing.assert_allclose(column[:, 0], expected, rtol=1e-6)


def test_nasbench101_has_the_modules_of_the_release(release):
    table = from_nasbench101(release)
    found = [nasbench101().to_string(arch) for arch in table.archs]
    assert found == [text for _, _, text in MODULES.values()]


def test_nasbench101_is_saved_and_loaded_by_the_command(release, tmp_path):
    target = tmp_path / "table.npz"
    command = [sys.executable, "-m", "jaxnas.converters", "nasbench101"]
    done = subprocess.run(
        [*command, release, target], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("3 architectures in ")
    table, expected = benchmarks.load(target), from_nasbench101(release)
    np.testing.assert_array_equal(table.archs, expected.archs)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(table.columns[name], column)
    release.write_bytes(b"no TFRecord")
    done = subprocess.run([*command, release, target], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 4, 5, 300, 2000])
def test_nasbench101_refuses_a_truncated_file(release, cut):
    release.write_bytes(release.read_bytes()[:-cut])
    refuses("beyond the end", from_nasbench101, release)


def test_nasbench101_refuses_a_file_that_lacks_the_last_records(release):
    release.write_bytes(b"".join(frame(record(*run)) for run in RUNS[:-1]))
    refuses("3 runs .* at 4 epochs, but one has 2", from_nasbench101, release)
    release.write_bytes(b"")
    refuses("expected records", from_nasbench101, release)


def test_nasbench101_refuses_wrong_checksums(release):
    whole = release.read_bytes()
    first = len(frame(record(*RUNS[0])))
    for at, number in ((8, 0), (20, 0), (first + 8, 1), (first + 30, 1), (-1, 17)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        release.write_bytes(damaged)
        refuses(f"checksum.*record {number} ", from_nasbench101, release)


def test_nasbench101_refuses_other_records(release):
    good = json.loads(record(*RUNS[0]))
    for place, wrong in (
        (1, "many"),
        (2, "0110"),
        (2, "010"),
        (2, "01x0"),
        (3, "input,avgpool3x3,output"),
        (3, "output,input"),
        (4, "!"),
        (4, good[4][:-8]),
        (4, ""),
    ):
        changed = [*good[:place], wrong, *good[place + 1 :]]
        release.write_bytes(frame(json.dumps(changed).encode()))
        refuses("record 0 is none", from_nasbench101, release)
    for data in (b"", b"{", b"[1, 2]", b"\xff\xfe"):
        release.write_bytes(frame(data))
        refuses("record 0 is none", from_nasbench101, release)


def test_nasbench101_refuses_no_file(tmp_path):
    refuses("cannot read", from_nasbench101, tmp_path / "none.tfrecord")
    refuses("cannot read", from_nasbench101, tmp_path)


def test_records_are_read_in_batches(release, monkeypatch):
    monkeypatch.setattr("jaxnas.converters.tfrecord.BATCH", 2000)
    assert list(read_records(release)) == [record(*run) for run in RUNS]


# NATS-Bench

TEXTS = [
    nasbench201().to_string(np.array(ops))
    for ops in ([0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 4])
]


class FakeApi:
    """Answers as the package does, with numbers that tell what was asked."""

    def __init__(self, path, fast_mode):
        self.meta_archs = TEXTS
        self.arch2infos_dict = {}
        self.made = (path, fast_mode)

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert iepoch is None
        assert is_random is False
        self.arch2infos_dict[index] = "loaded"
        names = ("cifar10-valid", "cifar10", "cifar100", "ImageNet16-120")
        worth = 10 * names.index(dataset) + index + int(hp) / 1000
        info = {"test-accuracy": worth + 50, "test-per-time": 9}
        if dataset != "cifar10":
            info |= {"valid-accuracy": worth, "valid-per-time": 1}
        return {**info, "train-all-time": 7 * int(hp) + index}


@pytest.fixture
def package(monkeypatch):
    """The package `nats_bench`, and the interfaces that it made."""
    made = []

    def create(path, search_space, fast_mode=False, verbose=True):
        assert (search_space, verbose) == ("tss", False)
        made.append(FakeApi(path, fast_mode))
        return made[-1]

    module = types.SimpleNamespace(create=create)
    monkeypatch.setitem(sys.modules, "nats_bench", module)
    return module, made


def test_nats_bench_has_validation_and_test_of_each_dataset(package, tmp_path):
    table = from_nats_bench(tmp_path, allow_pickle=True)
    assert table.space == "nasbench201"
    assert table.datasets == ("cifar10", "cifar100", "ImageNet16-120")
    found = [nasbench201().to_string(arch) for arch in table.archs]
    assert found == TEXTS
    for epochs in (12, 200):
        part = epochs / 1000
        expected = {
            "valid_acc": np.array([[0, 20, 30], [1, 21, 31]]) + part,
            "test_acc": np.array([[60, 70, 80], [61, 71, 81]]) + part,
            "cost": np.array([[1] * 3, [2] * 3]) + 7 * epochs,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(
                table.columns[f"{name}_{epochs}ep"], values, rtol=1e-6
            )
    assert len(table.columns) == 6
    benchmarks.save(table, tmp_path / "table.npz")


def test_nats_bench_is_read_from_a_folder_bit_by_bit(package, tmp_path):
    _, made = package
    from_nats_bench(tmp_path, allow_pickle=True)
    file = tmp_path / "NATS.pickle.pbz2"
    file.touch()
    from_nats_bench(file, allow_pickle=True)
    assert [api.made for api in made] == [(str(tmp_path), True), (str(file), False)]
    assert [len(api.arch2infos_dict) for api in made] == [0, 2]


def test_nats_bench_loads_no_pickle_unasked(package, tmp_path):
    _, made = package
    refuses("allow_pickle", from_nats_bench, tmp_path)
    assert not made


def test_nats_bench_says_which_package_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    refuses("pip install", from_nats_bench, tmp_path, allow_pickle=True)


def test_nats_bench_refuses_what_the_package_cannot_read(
    package, tmp_path, monkeypatch
):
    module, _ = package
    none = tmp_path / "none"
    refuses("there is no", from_nats_bench, none, allow_pickle=True)

    def fail(*_, **__):
        raise ValueError("Can not find key\nin the dict")

    monkeypatch.setattr(module, "create", fail)
    refuses("cannot read it .*find key", from_nats_bench, tmp_path, allow_pickle=True)
