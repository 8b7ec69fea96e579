"""Reading TFRecords without TensorFlow."""

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxnas.base import InputError

BATCH = 2**24  # bytes whose checksums are computed together
POLYNOMIAL = np.uint32(0x82F63B78)  # of CRC-32C, reflected
ONES = bytes.fromhex("54641f64")  # takes the register from all zeros to all ones


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord, once their checksums are found right.

    A record is its length in 8 bytes, the length's checksum in 4, the data, and the
    data's checksum in 4.

    Raises:
      InputError: the file cannot be read, is cut off, or is damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            begin = 0
            while records := _read_batch(file, size, begin, path):
                _check_sums(records, begin, path)
                yield from (data for _, _, data, _ in records)
                begin += len(records)
    except OSError as error:
        raise InputError(
            f"expected a TFRecord, but cannot read {path}: {error.strerror}"
        ) from error


def _read_batch(file: BinaryIO, size: int, begin: int, path: Path):
    """Reads (length, its checksum, data, their checksum) of some records, as bytes."""
    records: list[tuple[bytes, bytes, bytes, bytes]] = []
    longest = 0
    while file.tell() < size:
        header = file.read(12)
        length = int.from_bytes(header[:8], "little")
        if len(header) < 12 or file.tell() + length + 4 > size:
            raise InputError(
                f"{path}: expected a whole TFRecord, but record {begin + len(records)} "
                "goes beyond the end of the file: get it again"
            )
        longest = max(longest, length)
        if records and len(records) * longest > BATCH:
            file.seek(-12, io.SEEK_CUR)
            break
        records.append((header[:8], header[8:], file.read(length), file.read(4)))
    return records


def _check_sums(records, begin, path):
    lengths, of_lengths, data, of_data = zip(*records, strict=True)
    for parts, sums in ((lengths, of_lengths), (data, of_data)):
        found = _masked(crc32c(parts))
        wrong = np.flatnonzero(found != np.frombuffer(b"".join(sums), "<u4"))
        if len(wrong):
            raise InputError(
                f"{path}: expected the checksum in the file, but record "
                f"{begin + wrong[0]} has another: get the file again"
            )


def _masked(crc):
    """What TFRecords keep of a checksum: rotated, and a constant added."""
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def crc32c(parts: Sequence[bytes]) -> np.ndarray:
    """Computes the CRC-32C of many strings of bytes side by side: uint32[n]."""
    # A register of zeros stays so under leading zeros: all can be made equally long.
    width = len(ONES) + max(map(len, parts))
    width += width % 2
    rows = b"".join((ONES + part).rjust(width, b"\0") for part in parts)
    words = np.frombuffer(rows, "<u2").reshape(len(parts), -1).T
    table, crc = _crc_table(), np.zeros(len(parts), np.uint32)
    for word in np.ascontiguousarray(words):
        crc = table[(crc & 0xFFFF) ^ word] ^ (crc >> 16)
    return ~crc


@functools.cache
def _crc_table():
    """What two bytes do to the register: uint32[65536]."""
    table = np.arange(2**16, dtype=np.uint32)
    for _ in range(16):
        odd = table % 2 > 0
        table >>= 1
        table[odd] ^= POLYNOMIAL
    return table
