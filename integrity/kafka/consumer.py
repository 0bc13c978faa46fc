"""A consumer group member that only polls: every await has an end, nothing is committed on its own.

The settings are those that were measured on a real broker: a session of 10 s (a longer one makes the whole group stand
still after a kill and restart), heartbeats each second (members learn of a rebalance by them), the sticky assignor
(kept partitions stay), read_committed (else aborted deletes are enforced), and earliest (latest loses data silently).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.errors import GroupCoordinatorNotAvailableError, IllegalStateError, KafkaError

from integrity.core.batch import TopicPartition
from integrity.core.decode.record import Record
from integrity.errors import OperationError, UnreachableError
from integrity.kafka.fetched import as_records
from integrity.kafka.producer import WantedTopic, ensure_topics
from integrity.kafka.unpacking import bound_unpacking
from integrity.ports import AssignmentListener, Bounds, Deadline, Fetch

log = logging.getLogger(__name__)

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
"""How long a stop is waited for; a frozen broker keeps it for one request timeout, and it then ends alone."""

COMMITTED_EVERY_S = 1.0
"""How often a group's offsets are looked at by whoever waits for them; lanes commit about as often."""

CONSUMER_SETTINGS: Mapping[str, object] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    "session_timeout_ms": 10_000,
    "heartbeat_interval_ms": 1_000,
    "rebalance_timeout_ms": 20_000,
    "request_timeout_ms": 10_000,
    "max_poll_interval_ms": 300_000,
    "metadata_max_age_ms": 30_000,
    "fetch_max_wait_ms": 100,
    "fetch_max_bytes": 8 * 1024 * 1024,
    "max_partition_fetch_bytes": 256 * 1024,
    "retry_backoff_ms": 500,
}


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, on_revoked: AssignmentListener, on_assigned: Callable[..., Awaitable[None]]) -> None:
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned

    async def on_partitions_revoked(self, revoked: Collection[KafkaPartition]) -> None:
        await self._on_revoked(frozenset(TopicPartition(*partition) for partition in revoked))

    async def on_partitions_assigned(self, assigned: Collection[KafkaPartition]) -> None:
        await self._on_assigned(frozenset(TopicPartition(*partition) for partition in assigned))


class Consumer:
    """A `ports.Source` over aiokafka. `client` holds the connection arguments (bootstrap_servers, security)."""

    def __init__(
        self,
        client: Mapping[str, object],
        *,
        group: str,
        assignor: type[AbstractPartitionAssignor] | AbstractPartitionAssignor,
        topics: Sequence[str] = (),
        made: Sequence[WantedTopic] = (),
    ) -> None:
        """`made` are topics to read as well as `topics`, which are created where they are missing."""
        self._client = client
        self._group = group
        self._topics = tuple(topics)
        self._made = tuple(made)
        self._listener: _Listener | None = None
        bound_unpacking()
        self._consumer = AIOKafkaConsumer(
            **client, **CONSUMER_SETTINGS, group_id=group, partition_assignment_strategy=(assignor,)
        )
        # End offsets asked of the group member wait behind its own long poll; a second client answers at once.
        self._inquirer = AIOKafkaConsumer(**client, **CONSUMER_SETTINGS)
        self._ready: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._on_assigned: AssignmentListener | None = None

    async def start(self, on_revoked: AssignmentListener, on_assigned: AssignmentListener) -> None:
        """Raises UnreachableError when no broker answers, PublishError when a topic is missing and can't be made."""
        self._on_assigned = on_assigned

        async def revoked(partitions: frozenset[TopicPartition]) -> None:
            self._ready.clear()
            if partitions:
                await on_revoked(partitions)

        try:
            await self._inquirer.start()
            await self._consumer.start()
        except (KafkaError, OSError) as exc:
            await self.stop()
            raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc
        if self._made:
            try:
                await ensure_topics(self._client, self._made, Deadline.after(START_TIMEOUT_S))
            except OperationError:
                await self.stop()
                raise
        # A start() that is given a topic which does not exist never returns: subscribe afterwards.
        self._listener = _Listener(revoked, self._assigned)
        self._consumer.subscribe(topics=self._all_topics(), listener=self._listener)

    def follow(self, topics: Sequence[str]) -> None:
        self._topics = tuple(topics)
        if self._listener is not None:
            # The assignment is void from this moment; the listener hears of it when the group is joined again.
            self._ready.clear()
            self._consumer.subscribe(topics=self._all_topics(), listener=self._listener)

    def _all_topics(self) -> list[str]:
        return [*self._topics, *(topic.name for topic in self._made)]

    async def _assigned(self, partitions: frozenset[TopicPartition]) -> None:
        # A rebalance clears pauses and sets positions back to the commit: nothing is read until `seek`.
        self._ready.clear()
        self._positions.clear()
        if partitions:
            self._consumer.pause(*(KafkaPartition(*partition) for partition in partitions))
        assert self._on_assigned is not None
        await self._on_assigned(partitions)

    async def poll(self, timeout_s: float, records_max: int, *, hold: Collection[TopicPartition]) -> Fetch:
        self._pause(hold)
        as_records(self._consumer)
        try:
            found = await self._consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=records_max)
        except KafkaError as exc:
            raise UnreachableError(f"Kafka refuses to be read: {type(exc).__name__}.") from exc
        records: dict[TopicPartition, Sequence[Record]] = {}
        positions: dict[TopicPartition, int] = {}
        for kafka_partition, messages in found.items():
            partition = TopicPartition(*kafka_partition)
            if partition not in self._ready or not messages:
                continue
            topic, number = partition
            if type(messages[0]) is not Record:  # they came while it was waited
                messages = [
                    tuple.__new__(Record, (topic, number, m.offset, m.timestamp, m.key, m.value, m.headers))
                    for m in messages
                ]
            records[partition] = messages
            positions[partition] = self._positions[partition] = messages[-1].offset + 1
        if not found:
            positions |= await self._moved()
        ends = {p: end for p in self._ready if (end := self._consumer.highwater(KafkaPartition(*p))) is not None}
        return Fetch(records, positions, ends)

    async def _moved(self) -> dict[TopicPartition, int]:
        """Positions that moved on without a record: past compacted records and transaction markers."""
        moved: dict[TopicPartition, int] = {}
        for partition in tuple(self._ready):
            try:
                position = await asyncio.wait_for(self._consumer.position(KafkaPartition(*partition)), 0.5)
            except (IllegalStateError, KafkaError, TimeoutError):
                continue
            if partition in self._ready and position > self._positions.get(partition, position):
                moved[partition] = self._positions[partition] = position
        return moved

    def _pause(self, hold: Collection[TopicPartition]) -> None:
        """Pause these of the partitions that are being read, and no others."""
        held = {KafkaPartition(*partition) for partition in hold}
        read = {KafkaPartition(*partition) for partition in self._ready} & self._consumer.assignment()
        paused = self._consumer.paused()
        if pausing := (read & held) - paused:
            self._consumer.pause(*pausing)
        if resuming := (read - held) & paused:
            self._consumer.resume(*resuming)

    async def seek(self, places: Mapping[TopicPartition, int]) -> None:
        assigned = self._consumer.assignment()
        for partition, offset in places.items():
            kafka_partition = KafkaPartition(*partition)
            if kafka_partition in assigned:
                self._consumer.seek(kafka_partition, offset)
                self._positions[partition] = offset
                self._ready.add(partition)

    async def bounds(
        self, partitions: Sequence[TopicPartition] | None, deadline: Deadline
    ) -> dict[TopicPartition, Bounds]:
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                if partitions is None:
                    partitions = await self._all_partitions()
                asked = [KafkaPartition(*partition) for partition in partitions]
                first = await self._inquirer.beginning_offsets(asked)
                end = await self._inquirer.end_offsets(asked)
                return {TopicPartition(*p): Bounds(await self._consumer.committed(p), first[p], end[p]) for p in asked}
        except (KafkaError, OSError, TimeoutError) as exc:
            raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc

    def partitions(self, topic: str) -> int:
        return len(self._consumer.partitions_for_topic(topic) or ())

    async def _all_partitions(self) -> list[TopicPartition]:
        admin = AIOKafkaAdminClient(**self._client)
        try:
            await admin.start()
            return await _partitions(admin, self._all_topics())
        finally:
            await admin.close()

    async def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> bool:
        assigned = self._consumer.assignment()
        known = {KafkaPartition(*p): offset for p, offset in offsets.items() if KafkaPartition(*p) in assigned}
        if not known:
            return False
        try:
            await asyncio.wait_for(self._consumer.commit(known), deadline.remaining_s())
        except (KafkaError, IllegalStateError, TimeoutError) as exc:
            log.info("offsets were not committed; they are enforced all the same", extra={"error": type(exc).__name__})
            return False
        return True

    async def stop(self) -> None:
        # A cancelled stop() leaks tasks that go on fetching: wait a bounded time, then let it end alone.
        stops = {
            asyncio.create_task(client.stop(), name=f"stop {self._group}")
            for client in (self._consumer, self._inquirer)
        }
        await asyncio.wait(stops, timeout=STOP_TIMEOUT_S)


async def existing_topics(client: Mapping[str, object], deadline: Deadline) -> frozenset[str]:
    """The topics that this client may see. Raises UnreachableError."""
    asking = AIOKafkaConsumer(**client, request_timeout_ms=5_000)
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await asking.start()
            return frozenset(await asking.topics())
    except (KafkaError, OSError, TimeoutError) as exc:
        raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc
    finally:
        await asyncio.wait({asyncio.create_task(asking.stop(), name="stop asking")}, timeout=STOP_TIMEOUT_S)


class GroupProgress:
    """How far a group has come, asked from outside of it."""

    def __init__(self, client: Mapping[str, object], *, group: str, topics: Sequence[str]) -> None:
        self._group = group
        self._topics = topics
        self._admin = AIOKafkaAdminClient(**client, request_timeout_ms=10_000)
        self._inquirer = AIOKafkaConsumer(**client, **CONSUMER_SETTINGS)
        self._started = False

    async def caught_up(self, deadline: Deadline) -> bool:
        """Whether all that was in the topics when it was asked is enforced, as far as the group has committed. Waits
        for it, but not beyond the deadline. Raises UnreachableError, also where a topic is not there."""
        try:
            async with asyncio.timeout(deadline.remaining_s() + START_TIMEOUT_S):
                if not self._started:
                    await self._admin.start()
                    await self._inquirer.start()
                    self._started = True
                partitions = [KafkaPartition(*at) for at in await _partitions(self._admin, self._topics)]
                first = await self._inquirer.beginning_offsets(partitions)
                now = await self._inquirer.end_offsets(partitions)
                ends = {at: end for at, end in now.items() if end > first[at]}
                while ends:
                    try:
                        committed = await self._admin.list_consumer_group_offsets(self._group, partitions=list(ends))
                    except GroupCoordinatorNotAvailableError:
                        committed = {}  # a broker that has kept offsets of no group yet
                    if all(at in committed and committed[at].offset >= end for at, end in ends.items()):
                        break
                    if deadline.remaining_s() <= COMMITTED_EVERY_S:
                        return False
                    await asyncio.sleep(COMMITTED_EVERY_S)
                return True
        except (KafkaError, OSError, TimeoutError) as exc:
            raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc

    async def close(self) -> None:
        """Bounded."""
        stops = {asyncio.create_task(each, name="stop asking") for each in (self._inquirer.stop(), self._admin.close())}
        await asyncio.wait(stops, timeout=STOP_TIMEOUT_S)


async def _partitions(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[TopicPartition]:
    """Raises UnreachableError where a topic is not there: no topic may be taken for an empty one."""
    found = await admin.describe_topics(list(topics))
    if missing := [topic["topic"] for topic in found if topic["error_code"] or not topic["partitions"]]:
        raise UnreachableError(f"The topic {missing[0]} is not there yet.")
    return sorted(TopicPartition(topic["topic"], p["partition"]) for topic in found for p in topic["partitions"])
