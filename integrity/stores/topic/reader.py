"""Reads topics to their ends: what was in them when it was asked is in the state when it returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition as KafkaPartition

from integrity.core.batch import TopicPartition
from integrity.stores.topic import clients
from integrity.stores.topic.records import ReadRecord

_RECORDS_MAX: Final = 2000
_POLL_MS: Final = 100

Take = Callable[[list[ReadRecord]], Awaitable[None]]


class TopicGone(Exception):
    """A topic that is to be read does not exist."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class TopicMadeAnew(Exception):
    """A topic ends before where it was read to: what was read of it means nothing any more."""


class Reader:
    """Reads topics; `take` is awaited with the records, in the order of each partition.

    Only committed records are read, but the end is the true one: a transaction of an owner that is open when it is
    asked for has to end first. After an exception reading begins again after the last records that were taken.
    """

    def __init__(self, client: Mapping[str, object], take: Take, closer: clients.Closer) -> None:
        self._client = client
        self._take = take
        self._closer = closer
        self._positions: dict[TopicPartition, int] = {}
        self.starts: Mapping[TopicPartition, int] = {}
        """The first offset that each partition still has."""
        self.taken = 0
        """How many records were taken, all in all."""
        self.blocked: str | None = None
        """The topic whose end could not be reached last time, for a transaction that is open there."""
        self._consumer: AIOKafkaConsumer | None = None
        self._ends: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._assigned: frozenset[TopicPartition] = frozenset()

    async def read_to_end(self, topics: Sequence[str]) -> None:
        """Read these topics, and no others, up to where they end now. Bounded by its caller; raises TopicGone,
        TopicMadeAnew and the client's errors."""
        self.blocked = None
        try:
            await self._read_to_end(topics)
        except BaseException:
            # The consumer may have handed out what was not taken: it is thrown away, with its position.
            self.close()
            raise

    def forget(self) -> None:
        """Read everything from the start again."""
        self.close()
        self._positions.clear()

    def close(self) -> None:
        """Let go of the connections; reading opens new ones. What was taken stays taken."""
        if self._consumer is not None:
            self._closer.stop(self._consumer.stop(), "stop the reader")
        if self._ends is not None:
            self._closer.stop(self._ends.stop(), "stop the reader of ends")
        self._close_admin()
        self._consumer = self._ends = None
        self._assigned = frozenset()

    def _close_admin(self) -> None:
        if self._admin is not None:
            self._closer.stop(self._admin.close(), "stop the reader of topics")
            self._admin = None

    async def partitions(self, topics: Sequence[str]) -> frozenset[TopicPartition]:
        """The partitions of topics, as the server has them now. Raises TopicGone and the client's errors."""
        try:
            if self._admin is None:
                self._admin = clients.admin(self._client)
                await self._admin.start()
            described = await clients.describe(self._admin, topics)
        except BaseException:
            # A client that has lost every broker it knew never finds one again.
            self._close_admin()
            raise
        found: set[TopicPartition] = set()
        for topic in described:
            if not topic.partitions:
                raise TopicGone(topic.name)
            found.update(TopicPartition(topic.name, partition) for partition in topic.partitions)
        return frozenset(found)

    async def _read_to_end(self, topics: Sequence[str]) -> None:
        wanted = await self.partitions(topics)
        ends = await self._ends_of(wanted)
        if any(ends[at] < position for at, position in self._positions.items() if at in ends):
            raise TopicMadeAnew
        consumer = await self._assign(wanted)
        behind = {at for at in wanted if self._positions.get(at, 0) < ends[at]}
        while behind:
            # Hands out whatever partition has something; cancelling it loses nothing.
            found = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
            read = [
                ReadRecord(record.topic, record.partition, record.offset, record.key, record.value, record.headers)
                for records in found.values()
                for record in records
            ]
            # Before the take: a position moves on over markers and aborted records, and only inside getmany.
            positions = {at: await consumer.position(KafkaPartition(*at)) for at in behind | _of(read)}
            if read:
                await self._take(read)
                self.taken += len(read)
            self._positions.update(positions)
            behind = {at for at in behind if positions[at] < ends[at]}
            self.blocked = next((at.topic for at in sorted(behind) if _is_blocked(consumer, at, positions[at])), None)

    async def _ends_of(self, wanted: frozenset[TopicPartition]) -> dict[TopicPartition, int]:
        # Not from the reading consumer: that one would wait behind its own long poll.
        if self._ends is None:
            self._ends = clients.consumer(self._client, isolation="read_uncommitted")
            await self._ends.start()
        asked = [KafkaPartition(*at) for at in wanted]
        ends = await self._ends.end_offsets(asked)
        starts = await self._ends.beginning_offsets(asked)
        self.starts = {TopicPartition(*at): offset for at, offset in starts.items()}
        return {TopicPartition(*at): offset for at, offset in ends.items()}

    async def _assign(self, wanted: frozenset[TopicPartition]) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = clients.consumer(self._client, isolation="read_committed")
            await self._consumer.start()
        if wanted != self._assigned:
            self._consumer.assign([KafkaPartition(*at) for at in wanted])
            for at in wanted:
                self._consumer.seek(KafkaPartition(*at), self._positions.get(at, 0))
            self._assigned = wanted
        return self._consumer


def _is_blocked(consumer: AIOKafkaConsumer, at: TopicPartition, position: int) -> bool:
    stable = consumer.last_stable_offset(KafkaPartition(*at))
    return stable is not None and position == stable


def _of(read: list[ReadRecord]) -> set[TopicPartition]:
    return {TopicPartition(record.topic, record.partition) for record in read}
