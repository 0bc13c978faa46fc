"""Compressed batches are unpacked as aiokafka does it, up to a bound, whatever their bytes are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import cramjam
import pytest
from aiokafka import TopicPartition, codec
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from integrity.core.decode.record import Unread
from integrity.kafka import unpacking
from integrity.kafka.unpacking import UNPACKED_BYTES_MAX, TooMuch, bound_unpacking

CODECS = ("gzip", "snappy", "lz4", "zstd")
NUMBERS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
FEW, LIMIT = b"ab" * 500, 300_000


def ours(name: str) -> Callable[[object], bytes]:
    return getattr(unpacking, f"{name}_decode")  # type: ignore[no-any-return]


def packed(name: str, data: bytes) -> bytes:
    return getattr(codec, f"{name}_encode")(data)  # type: ignore[no-any-return]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES_MAX", LIMIT)


@pytest.mark.parametrize("name", CODECS)
def test_what_is_within_the_bound_is_unpacked_as_aiokafka_does_it(name: str, small: None) -> None:
    for data in (b"x", FEW, os.urandom(1000), os.urandom(LIMIT - 1), bytes(LIMIT), FEW * (LIMIT // len(FEW))):
        assert ours(name)(memoryview(packed(name, data))) == data
        assert ours(name)(packed(name, data)) == data


@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_unpacked_beyond_the_bound(name: str, small: None) -> None:
    for data in (bytes(LIMIT + 1), os.urandom(LIMIT + 1), FEW * (LIMIT // len(FEW) + 1), bytes(100 * LIMIT)):
        with pytest.raises(TooMuch):
            ours(name)(packed(name, data))


@pytest.mark.parametrize("name", CODECS)
def test_bytes_that_are_not_packed_are_refused_as_aiokafka_refuses_them(name: str, small: None) -> None:
    whole = packed(name, os.urandom(2000))
    # A length of 120 bytes is what snappy reads of it: others may be beyond the bound.
    for data in (b"x", whole[:-3], whole[:9], b"\0" * 50, b"x" * 700):
        failures = []
        for decode in (getattr(codec, f"{name}_decode"), ours(name)):
            with pytest.raises(Exception) as failure:
                decode(data)
            failures.append(failure.type)
        assert failures[0] is failures[1] or TooMuch not in failures


def test_the_blocks_of_a_stream_of_zstd_tell_what_it_may_become() -> None:
    stream, frames = cramjam.zstd.Compressor(), b""
    for _ in range(3):
        stream.compress(FEW)
        frames += bytes(stream.flush())
    frames += bytes(stream.finish()) + codec.zstd_encode(FEW)
    assert unpacking.zstd_decode(frames) == FEW * 4
    assert 4 * len(FEW) <= unpacking._zstd_bound(frames) < 1_000_000
    bomb = codec.zstd_encode(bytes(100_000_000))
    assert len(bomb) < 10_000 and unpacking._zstd_bound(bomb) >= 100_000_000
    assert unpacking._zstd_bound(frames[:5]) > UNPACKED_BYTES_MAX, "what can't be told is unpacked with care"
    assert unpacking._zstd_bound(b"\x50\x2a\x4d\x18\1\0\0\0x") > UNPACKED_BYTES_MAX


def batch(name: str, base: int, *values: bytes) -> bytes:
    made = DefaultRecordBatchBuilder(2, NUMBERS[name], 0, -1, -1, -1, 1 << 30)
    for index, value in enumerate(values):
        assert made.append(index, 1000 + index, b"%d" % index, value, [])
    data = bytearray(made.build())
    data[:8] = base.to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize("name", CODECS)
def test_one_record_stands_for_a_batch_that_is_too_much_and_reading_goes_on(name: str, small: None) -> None:
    bound_unpacking()
    bound_unpacking()
    assert fetcher.PartitionRecords is unpacking.Bounded
    assert sys.modules[DefaultRecordBatch.__module__].__dict__["zstd_decode"] is unpacking.zstd_decode
    data = batch(name, 0, b"a", b"b") + batch(name, 2, b"c", bytes(LIMIT), b"d") + batch(name, 5, b"e")
    found = fetcher.PartitionRecords(TopicPartition("t", 0), MemoryRecords(data), [], 1, None, None, True, 1)
    records = list(found)
    assert [(each.offset, each.key, each.value) for each in records] == [
        (1, b"1", b"b"),
        (4, None, b"not read: the batch of offsets 2 to 4 unpacks to more than 300000 bytes"),
        (5, b"0", b"e"),
    ]
    assert isinstance(records[1].value, Unread)
    assert (records[1].timestamp, found.next_fetch_offset) == (1002, 6)
