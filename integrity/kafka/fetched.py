"""Records straight from aiokafka's fetched bytes.

aiokafka makes a `ConsumerRecord` of every record, with eleven fields through three Python frames, of which `Record`
takes five: a third of what a record costs between the fetch and the decoder, by instructions. So the records that its
fetcher holds back are told to come as `Record`. All else, transactions and checksums included, stays aiokafka's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.consumer.fetcher import PartitionRecords

from integrity.core.decode.record import Record
from integrity.kafka.unpacking import Bounded


class Ahead(Bounded):
    """The records of one partition that were fetched together."""

    def __iter__(self) -> Iterator[Record]:
        iterator: Iterator[Record] = self._records_iterator
        return iterator

    def _consumer_record(self, tp: KafkaPartition, record: Any) -> Record:
        topic, partition = tp
        return tuple.__new__(
            Record,
            (topic, partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers)),
        )


def as_records(consumer: AIOKafkaConsumer) -> None:
    """Let what a consumer has fetched, and not given yet, come as `Record`. Where aiokafka is not as it was, nothing
    happens."""
    fetched = getattr(getattr(consumer, "_fetcher", None), "_records", {})
    for result in fetched.values():
        records = getattr(result, "_partition_records", None)
        # The iterator asks for this method record by record: it may be in the middle.
        if type(records) is Bounded or type(records) is PartitionRecords:
            records.__class__ = Ahead
