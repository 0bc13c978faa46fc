"""What the producer decides without a broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import errors
from aiokafka.codec import zstd_encode
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from integrity.errors import OperationError, PublishError, RecordRefusedError, UnreachableError
from integrity.kafka.producer import OutgoingRecord, Producer, compress_quickly, in_turn, told
from integrity.ports import Deadline

_HEADERS = st.lists(st.tuples(st.text(max_size=40), st.none() | st.binary(max_size=400)), max_size=30)


@given(key=st.none() | st.binary(max_size=300), value=st.none() | st.binary(max_size=3000), headers=_HEADERS)
def test_a_record_never_takes_more_than_its_bytes_max(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    record = OutgoingRecord("t", key, value, 1_700_000_000_000, headers)
    builder = BatchBuilder(131_072, 0)
    assert builder.append(timestamp=record.timestamp_ms, key=key, value=value, headers=headers) is not None
    assert len(builder._build()) <= record.bytes_max


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.KafkaTimeoutError(), UnreachableError),
        (errors.KafkaConnectionError(), UnreachableError),
        (errors.NotEnoughReplicasError(), UnreachableError),
        (errors.ProducerClosed(), UnreachableError),
        (errors.UnknownTopicOrPartitionError(), PublishError),
        (errors.TopicAuthorizationFailedError(), PublishError),
        (errors.MessageSizeTooLargeError(), RecordRefusedError),
        (errors.OutOfOrderSequenceNumber(), RecordRefusedError),
        (errors.UnknownError(), RecordRefusedError),
    ],
)
def test_a_failure_says_whether_to_wait_to_mend_or_to_leave_the_record(
    error: errors.KafkaError, kind: type[OperationError]
) -> None:
    assert type(told(error)) is kind


async def test_a_record_above_the_limit_is_refused_before_anything_is_sent() -> None:
    producer = Producer({"bootstrap_servers": "nowhere.invalid:1"}, client_id="test", record_bytes_max=1000)
    with pytest.raises(RecordRefusedError, match="above the limit of 1000 bytes"):
        await producer.send_all([OutgoingRecord("t", b"k", b"v" * 1000)], Deadline.after(1))


def test_batches_are_compressed_at_the_quick_level() -> None:
    compress_quickly()
    values = [b"a value like the others, number %d" % number for number in range(1000)]
    plain, compressed = BatchBuilder(131_072, 0), BatchBuilder(131_072, 4)
    for value in values:
        for builder in (plain, compressed):
            builder.append(timestamp=1_700_000_000_000, key=None, value=value, headers=[])
    records = bytes(plain._build())[61:]
    sent = bytes(compressed._build())
    assert sent[61:] == zstd_encode(records, level=1)
    assert sent[61:] != zstd_encode(records)
    assert [record.value for record in DefaultRecordBatch(bytearray(sent))] == values


async def test_nothing_to_send_needs_no_broker() -> None:
    producer = Producer({"bootstrap_servers": "nowhere.invalid:1"}, client_id="test")
    await producer.send_all([], Deadline.after(0))
    await producer.close(Deadline.after(0))


async def test_a_turn_that_does_not_come_in_time_is_unreachable_and_leaves_the_lock_to_its_owner() -> None:
    lock = asyncio.Lock()
    async with lock:
        with pytest.raises(UnreachableError):
            async with in_turn(lock, Deadline.after(0)):
                raise AssertionError("the lock was not free")
        assert lock.locked()
    async with in_turn(lock, Deadline.after(1)):
        assert lock.locked()
    assert not lock.locked()
