"""Fetched batches are unpacked up to a bound, so that a small batch can't fill the memory.

A batch that its producer has compressed may stand for thousands of times its size; aiokafka unpacks it whole, whatever
it becomes. Here unpacking stops at a limit. Then one record stands for the whole batch, at the batch's last offset:
its value (`Unread`) says so, no decoder takes it for an event, and reading goes on behind it. All else, transactions
and checksums included, stays aiokafka's.
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka import codec
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatch

from integrity.core.decode.record import Unread

UNPACKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a batch may be unpacked. Kafka's limit of a packed one is 1 MiB by default, and events shrink about tenfold."""
_FULL: Final = "failed to write whole buffer"
_XERIAL_HEADER_BYTES: Final = 16
_GZIP_RATIO_MAX, _LZ4_RATIO_MAX = 1_032, 255
"""No byte is unpacked to more. Most batches need no other look than at their size."""
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES_MAX: Final = 128 * 1024


class TooMuch(Exception):
    """A batch would unpack to more than the limit."""


def gzip_decode(payload: Any) -> bytes:
    """Raises TooMuch."""
    if len(payload) * _GZIP_RATIO_MAX <= UNPACKED_BYTES_MAX:
        return _plain(codec.gzip_decode, payload)
    with gzip.GzipFile(fileobj=io.BytesIO(payload), mode="r") as packed:
        found = packed.read(UNPACKED_BYTES_MAX + 1)
    if len(found) > UNPACKED_BYTES_MAX:
        raise TooMuch
    return found


def snappy_decode(payload: Any) -> bytes:
    """Raises TooMuch. Each block tells how much it is unpacked."""
    if sum(map(cramjam.snappy.decompress_raw_len, _blocks(payload))) > UNPACKED_BYTES_MAX:
        raise TooMuch
    return _plain(codec.snappy_decode, payload)


def _blocks(payload: Any) -> Iterator[memoryview]:
    view = memoryview(payload)
    if not codec._detect_xerial_stream(view):
        yield view
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(view):
        (size,) = struct.unpack_from("!i", view, at)
        if size < 0:
            raise ValueError("a block of a negative size")
        yield view[at + 4 : at + 4 + size]
        at += 4 + size


def lz4_decode(payload: Any) -> bytes:
    """Raises TooMuch."""
    if len(payload) * _LZ4_RATIO_MAX <= UNPACKED_BYTES_MAX:
        return _plain(codec.lz4_decode, payload)
    return _into(cramjam.lz4.decompress_into, payload)


def zstd_decode(payload: Any) -> bytes:
    """Raises TooMuch."""
    if _zstd_bound(payload) <= UNPACKED_BYTES_MAX:
        return _plain(codec.zstd_decode, payload)
    return _into(cramjam.zstd.decompress_into, payload)


def _plain(decode: Callable[[Any], bytes], payload: Any) -> bytes:
    return decode(payload)


def _zstd_bound(payload: Any) -> int:
    """What the blocks of the frames can be unpacked at most (RFC 8878); beyond the limit where that can't be told."""
    view, at, bound = memoryview(payload), 0, 0
    try:
        while at < len(view):
            if bytes(view[at : at + 4]) != _ZSTD_MAGIC:
                return UNPACKED_BYTES_MAX + 1
            told = view[at + 4]
            is_single = told >> 5 & 1
            at += 6 - is_single + (0, 1, 2, 4)[told & 3] + (is_single, 2, 4, 8)[told >> 6]
            is_last = 0
            while not is_last:
                block = view[at] | view[at + 1] << 8 | view[at + 2] << 16
                is_last, kind, size = block & 1, block >> 1 & 3, block >> 3
                bound += size if kind < 2 else _ZSTD_BLOCK_BYTES_MAX
                at += 3 + (1 if kind == 1 else size)
            at += 4 * (told >> 2 & 1)
    except IndexError:
        return UNPACKED_BYTES_MAX + 1
    return bound


def _into(decompress_into: Callable[[Any, Any], int], payload: Any) -> bytes:
    # Memory that nothing is written to costs nothing.
    with mmap(-1, UNPACKED_BYTES_MAX) as room:
        try:
            return room[: decompress_into(payload, room)]
        except cramjam.DecompressionError as exc:
            if _FULL in str(exc):
                raise TooMuch from exc
            raise


class _StandIn(NamedTuple):
    """The one record of a batch that is not unpacked."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: None
    value: Unread
    headers: tuple[()] = ()
    checksum: None = None


class _Packed:
    """A compressed batch as the fetcher reads it: it has its own records, or the one that stands for them."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        try:
            records: Iterator[Any] = iter(batch)  # unpacks it
        except TooMuch:
            first, last = batch.base_offset, batch.next_offset - 1
            return iter(
                [
                    _StandIn(
                        last,
                        batch.max_timestamp,
                        batch.timestamp_type,
                        None,
                        Unread.of(first, last, UNPACKED_BYTES_MAX),
                    )
                ]
            )
        return records

    def __next__(self) -> Any:
        return next(self._batch)


class _Batches:
    """The batches that were fetched together of a partition."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self.has_next = records.has_next

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        return _Packed(batch) if getattr(batch, "compression_type", 0) else batch


class Bounded(PartitionRecords):  # type: ignore[misc]
    """The records of one partition that were fetched together, unpacked up to the limit."""

    def __init__(self, tp: Any, records: Any, *rest: Any) -> None:
        super().__init__(tp, _Batches(records), *rest)


def bound_unpacking() -> None:
    """Let all consumers of aiokafka unpack up to the limit, which it has no setting for. Where it is not as it was,
    nothing happens."""
    batches = sys.modules[DefaultRecordBatch.__module__].__dict__
    ours = {each.__name__: each for each in (gzip_decode, snappy_decode, lz4_decode, zstd_decode)}
    if fetcher.PartitionRecords is PartitionRecords and all(
        batches.get(name) is getattr(codec, name, None) for name in ours
    ):
        batches.update(ours)
        fetcher.PartitionRecords = Bounded
