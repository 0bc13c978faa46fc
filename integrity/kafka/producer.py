"""Publishing to Kafka: either every record is acknowledged by all in-sync replicas, or one exception says why not.

A record that the broker refuses breaks aiokafka's idempotent producer for its partition, for ever; and an idempotent
producer never gives up on a record. So every call has a deadline, and after any failure the next call builds a new
producer. A record may then be there twice, never be missing: publish only what has a stable id.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.codec import zstd_encode
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    ProducerClosed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from integrity.core.decode.record import Headers
from integrity.errors import OperationError, PublishError, RecordRefusedError, UnreachableError
from integrity.ports import Deadline

CLIENT_TIMEOUTS: Final[Mapping[str, int]] = {"request_timeout_ms": 10_000, "retry_backoff_ms": 500}
"""10 s: with aiokafka's 40 s one frozen broker of three stops everything for as long as it is frozen."""

BATCH_BYTES_MAX: Final = 1_000_000
"""Sixty times aiokafka's default, and below what a topic takes by default. A record of half a kilobyte costs a third of
the time here and half on the broker of what it costs in batches of 128 KiB."""

RECORD_BYTES_MAX: Final = 32 * 1024 * 1024
"""The largest record that is tried. A request above the broker's `socket.request.max.bytes` (100 MiB) is not
refused: the broker closes the connection, and the producer would try for ever."""

MESSAGE_BYTES_MAX_DEFAULT: Final = 1_048_588
"""Kafka's own default of a topic's `max.message.bytes`, taken where the topic's cannot be read."""

_HEADROOM_BYTES: Final = 1_024
_FRAME_BYTES: Final = 92
"""61: a batch's own fields; 31: a record's fields and lengths."""
_ZSTD_LEVEL: Final = 1
"""Of records as like one another as the audit's it leaves less than aiokafka's 3, in half the time: the tables it looks
things up in fit a processor's cache."""
_STOPPING_MAX: Final = 4
_ABANDONED_WORK_S: Final = 30.0
_REPLICAS_MAX: Final = 3
_LEADER_POLL_S: Final = 0.05
_TOPIC_EXISTS: Final = 36
_INVALID_CONFIG: Final = 40

_Result = TypeVar("_Result")


class OutgoingRecord(NamedTuple):
    """A record to publish. `timestamp_ms` None: now. `partition` None: by the key, as the Java client does; a record
    without a key goes to the partition that its value's length gives."""

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None = None
    headers: Headers = ()
    partition: int | None = None

    @property
    def bytes_max(self) -> int:
        """What the record takes at most in a batch of its own, uncompressed."""
        size = _FRAME_BYTES + len(self.key or b"") + len(self.value or b"")
        for name, value in self.headers:
            # 10: two lengths of a header.
            size += 10 + len(name.encode()) + len(value or b"")
        return size


class Producer:
    """One idempotent producer, `acks=all`, that is built when it is first needed and after every failure.

    Calls take turns: of records that fail together, only those of one call are in doubt.
    """

    def __init__(
        self,
        client: Mapping[str, Any],
        *,
        client_id: str,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        """`client` are aiokafka's keyword arguments to connect: bootstrap_servers, security_protocol, ssl_context,
        sasl_*. `batch_bytes_max` must be below every target topic's `max.message.bytes`."""
        self._client = dict(client)
        self._client_id = client_id
        self._batch_bytes_max = batch_bytes_max
        self._record_bytes_max = record_bytes_max
        self._turn = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def send_all(self, records: Sequence[OutgoingRecord], deadline: Deadline) -> None:
        """Return when every record is acknowledged.

        Raises UnreachableError when that did not come in time (each record may be there or not), RecordRefusedError
        when a record is at fault (those of the other partitions may be there), PublishError when a topic is.
        """
        limit = self._record_bytes_max
        # What a record of this program is nearly always, small and without headers, is told without a call.
        small = limit - _FRAME_BYTES
        too_large = [
            record
            for record in records
            if (record[4] or len(record[1] or b"") + len(record[2] or b"") > small) and record.bytes_max > limit
        ]
        if too_large:
            raise RecordRefusedError(
                f"A record of {too_large[0].bytes_max} bytes for topic {too_large[0].topic} is above the limit of "
                f"{self._record_bytes_max} bytes."
            )
        if records:
            await self._in_turn(lambda producer: _send(producer, records), deadline)

    async def close(self, deadline: Deadline) -> None:
        """Stop; what does not end in time is left to end alone."""
        self._discard()
        if self._stopping:
            await asyncio.wait(set(self._stopping), timeout=deadline.remaining_s())

    async def _in_turn(
        self, call: Callable[[AIOKafkaProducer], Coroutine[Any, Any, _Result]], deadline: Deadline
    ) -> _Result:
        async with in_turn(self._turn, deadline):
            producer, is_new = await self._current(deadline)
            work = asyncio.create_task(_work(producer, is_new, call), name=f"publish-{self._client_id}")
            work.add_done_callback(_retrieve)
            try:
                # The task is waited for, never cancelled: aiokafka leaves connections behind when it is.
                await asyncio.wait({work}, timeout=deadline.remaining_s())
            except asyncio.CancelledError:
                self._discard(work)
                raise
            if not work.done():
                self._discard(work)
                raise UnreachableError("Kafka did not acknowledge in time.")
            match work.exception():
                case None:
                    return work.result()
                case KafkaError() as error:
                    self._discard()
                    raise told(error) from error
                case error:
                    self._discard()
                    raise error

    async def _current(self, deadline: Deadline) -> tuple[AIOKafkaProducer, bool]:
        if self._producer is not None:
            return self._producer, False
        # Each may hold records that wait for a broker; they end when it answers again.
        if len(self._stopping) >= _STOPPING_MAX:
            await asyncio.wait(set(self._stopping), timeout=deadline.remaining_s(), return_when=asyncio.FIRST_COMPLETED)
        if len(self._stopping) >= _STOPPING_MAX:
            raise UnreachableError("Kafka has left earlier records unanswered, and still does.")
        compress_quickly()
        self._producer = AIOKafkaProducer(
            **self._client,
            **CLIENT_TIMEOUTS,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            # Through aiokafka zstd takes a third of lz4's time, and leaves half as much.
            compression_type="zstd",  # of _ZSTD_LEVEL
            max_batch_size=self._batch_bytes_max,
            max_request_size=self._record_bytes_max,
        )
        return self._producer, True

    def _discard(self, work: asyncio.Task[Any] | None = None) -> None:
        """Stop the producer, after what it is still at; the next call builds another."""
        if self._producer is not None:
            task = asyncio.create_task(_stop(self._producer, work), name=f"stop-{self._client_id}")
            self._producer = None
            self._stopping.add(task)
            task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._stopping.discard(task)
        _retrieve(task)


@asynccontextmanager
async def in_turn(lock: asyncio.Lock, deadline: Deadline) -> AsyncIterator[None]:
    """Hold the lock. Raises UnreachableError when others keep it beyond the deadline."""
    try:
        await asyncio.wait_for(lock.acquire(), deadline.remaining_s())
    except TimeoutError as exc:
        raise UnreachableError("Kafka has not answered those who came before in time.") from exc
    try:
        yield
    finally:
        lock.release()


async def _work(
    producer: AIOKafkaProducer, is_new: bool, call: Callable[[AIOKafkaProducer], Coroutine[Any, Any, _Result]]
) -> _Result:
    if is_new:
        await producer.start()
    return await call(producer)


async def _stop(producer: AIOKafkaProducer, work: asyncio.Task[Any] | None) -> None:
    # Never cancelled: a cancelled stop() leaves tasks and connections behind that go on working.
    if work is not None:
        await asyncio.wait({work}, timeout=_ABANDONED_WORK_S)
        work.cancel()
    await producer.stop()


async def _send(producer: AIOKafkaProducer, records: Sequence[OutgoingRecord]) -> None:
    groups: dict[tuple[str, int], list[OutgoingRecord]] = {}
    counts: dict[str, int] = {}
    for record in records:
        topic, _, _, _, _, partition = record
        count = counts.get(topic)
        if count is None:
            count = counts[topic] = len(await producer.partitions_for(topic))
        place = topic, _partition(record, count) if partition is None else partition
        group = groups.get(place)
        if group is None:
            group = groups[place] = []
        group.append(record)
    # Batches of our own, not producer.send(): that takes three times as long, and no record without key and value.
    acknowledged: list[asyncio.Future[Any]] = []
    for (topic, partition), group in groups.items():
        batch = producer.create_batch()
        append = batch.append
        for _, key, value, at_ms, headers, _ in group:
            if append(timestamp=at_ms, key=key, value=value, headers=list(headers)) is None:
                acknowledged.append(await producer.send_batch(batch, topic, partition=partition))
                acknowledged[-1].add_done_callback(_retrieve)
                await asyncio.sleep(0)
                batch = producer.create_batch()
                append = batch.append
                fits = append(timestamp=at_ms, key=key, value=value, headers=list(headers))
                assert fits is not None, "an empty batch takes a record of any size"
        acknowledged.append(await producer.send_batch(batch, topic, partition=partition))
        acknowledged[-1].add_done_callback(_retrieve)
    await asyncio.gather(*acknowledged)


def _encode_quickly(data: bytes) -> bytes:
    encoded: bytes = zstd_encode(data, level=_ZSTD_LEVEL)
    return encoded


def compress_quickly() -> None:
    """Let aiokafka's batches be compressed at our level, which it has no setting for. Where it is not as it was,
    nothing happens."""
    builders = sys.modules[DefaultRecordBatchBuilder.__module__]
    if getattr(builders, "zstd_encode", None) is zstd_encode:
        builders.__dict__["zstd_encode"] = _encode_quickly


def _partition(record: OutgoingRecord, count: int) -> int:
    if record.key is None:
        return len(record.value or b"") % count
    return int((murmur2(record.key) & 0x7FFFFFFF) % count)


def _retrieve(future: asyncio.Future[Any]) -> None:
    # Of several failures one is raised; the others must not be reported as never retrieved.
    if not future.cancelled():
        future.exception()


def told(error: KafkaError) -> OperationError:
    """What a failure of aiokafka means for the caller."""
    match error:
        case KafkaTimeoutError() | ProducerClosed():
            return UnreachableError("Kafka did not acknowledge in time.")
        case UnknownTopicOrPartitionError() | InvalidTopicError():
            return PublishError("The topic does not exist.", hint="Create it, or let this program create it.")
        case TopicAuthorizationFailedError() | ClusterAuthorizationFailedError():
            return PublishError(
                f"Kafka denies this program the right to write ({type(error).__name__}).",
                hint="Grant its principal Write and Describe on the topic (before Kafka 3.0 also IdempotentWrite).",
            )
        case KafkaError(retriable=True):
            return UnreachableError(f"Kafka does not answer ({type(error).__name__}).")
        case _:
            return RecordRefusedError(f"Kafka refuses a record ({type(error).__name__}).")


# --- topics --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic as it is made when it is missing; `config_if_known` is left out where the broker does not know it."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    config_if_known: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic as it is. Where its configuration may not be read, Kafka's defaults are assumed."""

    name: str
    partitions: int
    message_bytes_max: int
    compacted: bool

    @property
    def bytes_max(self) -> int:
        """What a batch, or a record in a batch of its own, may have before compression to be taken for certain."""
        return self.message_bytes_max - _HEADROOM_BYTES


async def ensure_topics(
    client: Mapping[str, Any], wanted: Sequence[WantedTopic], deadline: Deadline
) -> Mapping[str, TopicFacts]:
    """Create the topics that are missing, and tell of each how it is.

    Raises PublishError when one is missing and may not be created, UnreachableError when Kafka does not answer.
    """
    # Waited for, never cancelled: aiokafka leaves connections behind when it is. It ends alone after the deadline.
    asking = asyncio.create_task(_ensure(client, wanted, deadline), name="ensure-topics")
    asking.add_done_callback(_retrieve)
    await asyncio.wait({asking}, timeout=deadline.remaining_s())
    if not asking.done():
        raise UnreachableError("Kafka did not answer a question about topics in time.")
    match asking.exception():
        case None:
            return asking.result()
        case KafkaError() as error:
            raise UnreachableError(f"Kafka did not answer a question about topics ({type(error).__name__}).") from error
        case error:
            raise error


async def _ensure(
    client: Mapping[str, Any], wanted: Sequence[WantedTopic], deadline: Deadline
) -> Mapping[str, TopicFacts]:
    admin = AIOKafkaAdminClient(**client, **CLIENT_TIMEOUTS)
    try:
        await admin.start()
        present = set(await admin.list_topics())
        for topic in wanted:
            if topic.name not in present:
                await _create(admin, topic)
        return {topic.name: await _facts(admin, topic.name, deadline) for topic in wanted}
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, topic: WantedTopic) -> None:
    replicas = min(_REPLICAS_MAX, len((await admin.describe_cluster())["brokers"]))
    code = _INVALID_CONFIG
    for config in ({**topic.config, **topic.config_if_known}, dict(topic.config)):
        if code == _INVALID_CONFIG:
            wanted = NewTopic(topic.name, topic.partitions, replicas, topic_configs=config)
            code = (await admin.create_topics([wanted])).topic_errors[0][1]
    if code not in (0, _TOPIC_EXISTS):
        settings = "".join(f" --config {name}={value}" for name, value in topic.config.items())
        raise PublishError(
            f"Topic {topic.name} is missing and this program cannot create it ({for_code(code).__name__}).",
            hint=f"Have it created: kafka-topics.sh --create --topic {topic.name} --partitions {topic.partitions}"
            f"{settings}",
        )


async def _facts(admin: AIOKafkaAdminClient, name: str, deadline: Deadline) -> TopicFacts:
    # A topic that has just been made is known to its broker, and has leaders, a little later.
    while True:
        partitions = (await admin.describe_topics([name]))[0]["partitions"]
        if partitions and all(partition["leader"] >= 0 for partition in partitions):
            break
        if not deadline.remaining_s():
            raise UnreachableError(f"Topic {name} has partitions without a leader.")
        await asyncio.sleep(_LEADER_POLL_S)
    answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    entries = answer[0].resources[0][4]
    config: dict[str, str] = {entry[0]: entry[1] for entry in entries}
    return TopicFacts(
        name,
        len(partitions),
        int(config.get("max.message.bytes", MESSAGE_BYTES_MAX_DEFAULT)),
        "compact" in config.get("cleanup.policy", "delete"),
    )
