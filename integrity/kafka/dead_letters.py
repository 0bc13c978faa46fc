"""Dead letters: what could not be enforced is published with its bytes untouched, and acknowledged before it counts.

The topic of dead letters keeps them until somebody removes them: it is made without a time limit, since a record
keeps its own time stamp, which may be older than any. `<topic>.status` says of each what became of it.
A dead letter may be there more than once, under one id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from integrity.core.decode.record import Record
from integrity.errors import PublishError, Reason, RecordRefusedError
from integrity.kafka.headers import TIMESTAMP, TRUNCATED, Header, merged
from integrity.kafka.producer import (
    BATCH_BYTES_MAX,
    RECORD_BYTES_MAX,
    OutgoingRecord,
    Producer,
    WantedTopic,
    ensure_topics,
    in_turn,
)
from integrity.ports import Deadline

_MESSAGE_CHARACTERS_MAX: Final = 1_000
_KEY_BYTES_KEPT: Final = 16_384
_HEAD_BYTES: Final = 4_096
_PARTITIONS: Final = 3
_LETTERS_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "delete", "retention.ms": "-1"}
# Since Kafka 4.0 a time stamp more than an hour ahead is refused by default; before 3.6 the setting is not known.
_LETTERS_CONFIG_IF_KNOWN: Final[Mapping[str, str]] = {"message.timestamp.after.max.ms": str(2**63 - 1)}
_STATUS_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "compact"}


class Status(StrEnum):
    """What became of a dead letter (contract 6)."""

    OPEN = "open"
    HELD = "held"
    """Its event has more rows than the rule allows: it waits for an approval."""
    RETRIED = "retried"
    """On its way back to the lanes."""
    RESOLVED = "resolved"
    """Came back, and what it asked for is done."""
    DISCARDED = "discarded"


class StatusChange(NamedTuple):
    """A new status of a dead letter. `actor` and `note` are of the person who did it, empty where a lane did."""

    id: str
    status: Status
    at_ms: int
    dependent: str
    store: str
    reason: str = ""
    actor: str = ""
    note: str = ""
    parked: str = ""
    """As that of a DeadLetter."""


class Stage(StrEnum):
    """Where a record failed: decoding its key, value or headers, or being applied to a store."""

    KEY = "key"
    VALUE = "value"
    HEADER = "header"
    STORE = "store"


_CONNECT_STAGES: Final[Mapping[Stage, str]] = {
    Stage.KEY: "KEY_CONVERTER",
    Stage.VALUE: "VALUE_CONVERTER",
    Stage.HEADER: "HEADER_CONVERTER",
    Stage.STORE: "TASK_PUT",
}


def dead_letter_id(topic: str, partition: int, offset: int, dependent: str, store: str) -> str:
    """The stable name of one event on one dependent, as 32 hex digits: the same event and dependent, the same id."""
    return continued_id(begun_id(topic, partition), offset, dependent, store)


def begun_id(topic: str, partition: int) -> hashlib.blake2b:
    """What all ids of a partition begin with: many ids of one partition cost half with it."""
    # None of the parts can hold a line feed.
    return hashlib.blake2b(f"{topic}\n{partition}\n".encode(), digest_size=16)


def continued_id(begun: hashlib.blake2b, offset: int, dependent: str, store: str) -> str:
    """The id of one event on one dependent; see `dead_letter_id`."""
    name = begun.copy()
    name.update(f"{offset}\n{dependent}\n{store}".encode())
    return name.hexdigest()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event on one dependent (`*`: on all of the store) that is not enforced, and why.

    `failed_at_ms` is in milliseconds since the epoch. `traceparent` None leaves the record's own header as it came.
    `retries` counts redrives of this dead letter, `attempts` how often it was applied. `parked` is the tenant whose
    database could not be used: it comes back by itself.
    """

    record: Record
    reason: Reason
    message: str
    entity: str
    dependent: str
    store: str
    attempts: int
    stage: Stage
    rules: str
    failed_at_ms: int
    traceparent: str | None = None
    retries: int = 0
    status: Status = Status.OPEN
    parked: str = ""

    @property
    def id(self) -> str:
        """The same event and dependent always have the same id."""
        record = self.record
        return dead_letter_id(record.topic, record.partition, record.offset, self.dependent, self.store)


class DeadLetters:
    """Publishes dead letters; both topics are created when they are missing."""

    def __init__(self, client: Mapping[str, Any], *, topic: str, group: str) -> None:
        """`client` are aiokafka's keyword arguments to connect. `group` is the prefix of the consumer groups; with
        the store it stands where Kafka Connect's tools look for a connector's name."""
        self._client = client
        self._topic = topic
        self._status_topic = status_topic(topic)
        self._group = group
        self._turn = asyncio.Lock()
        self._producer: Producer | None = None
        self._bytes_max = 0

    async def prepare(self, deadline: Deadline) -> None:
        """Look at both topics, creating what is missing. Called by the first `publish` too.

        Raises PublishError when a topic is missing or unfit, UnreachableError when Kafka does not answer.
        """
        async with in_turn(self._turn, deadline):
            await self._ready(deadline)

    async def publish(self, letters: Sequence[DeadLetter], deadline: Deadline) -> None:
        """Return when every letter is acknowledged, its status too.

        Raises UnreachableError or PublishError when one is not: then nothing may count as dead-lettered. Publishing
        the same letters again is safe.
        """
        if not letters:
            return
        async with in_turn(self._turn, deadline):
            producer = await self._ready(deadline)
            try:
                await self._publish(producer, letters, deadline)
            except PublishError:
                # Perhaps a topic has been removed or changed: look again next time.
                await self._close_producer(deadline)
                raise

    async def mark(self, changes: Sequence[StatusChange], deadline: Deadline) -> None:
        """Return when the new statuses are acknowledged. Raises as `publish` does."""
        if not changes:
            return
        async with in_turn(self._turn, deadline):
            producer = await self._ready(deadline)
            try:
                await producer.send_all([self._status(change) for change in changes], deadline)
            except PublishError:
                await self._close_producer(deadline)
                raise

    async def close(self, deadline: Deadline) -> None:
        """Stop, after the last `publish`; waits no longer than the deadline."""
        await self._close_producer(deadline)

    async def _ready(self, deadline: Deadline) -> Producer:
        if self._producer is None:
            facts = await ensure_topics(
                self._client,
                [
                    WantedTopic(self._topic, _PARTITIONS, _LETTERS_CONFIG, _LETTERS_CONFIG_IF_KNOWN),
                    WantedTopic(self._status_topic, _PARTITIONS, _STATUS_CONFIG),
                ],
                deadline,
            )
            letters = facts[self._topic]
            if letters.compacted:
                raise PublishError(
                    f"Topic {self._topic} is compacted, which loses dead letters that share a key.",
                    hint="Set its cleanup.policy to delete.",
                )
            self._bytes_max = letters.bytes_max
            self._producer = Producer(
                self._client,
                client_id=f"{self._group}-dead-letters",
                batch_bytes_max=min([BATCH_BYTES_MAX, *(topic.bytes_max for topic in facts.values())]),
            )
        return self._producer

    async def _close_producer(self, deadline: Deadline) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.close(deadline)

    async def _publish(self, producer: Producer, letters: Sequence[DeadLetter], deadline: Deadline) -> None:
        alone: list[DeadLetter] = []
        together: list[DeadLetter] = []
        records: list[OutgoingRecord] = []
        for letter in letters:
            record = self._as_it_came(letter)
            if record.bytes_max > self._bytes_max:
                alone.append(letter)
            else:
                together.append(letter)
                records += (record, self._status_of(letter))
        try:
            await producer.send_all(records, deadline)
        except RecordRefusedError:
            # One of them is at fault, and takes the others of its partition with it.
            alone += together
        for letter in alone:
            await self._publish_alone(producer, letter, deadline)

    async def _publish_alone(self, producer: Producer, letter: DeadLetter, deadline: Deadline) -> None:
        status = self._status_of(letter)
        refused: RecordRefusedError | None = None
        for record in self._forms(letter):
            try:
                await producer.send_all([record, status], deadline)
            except RecordRefusedError as exc:
                refused = exc
            else:
                return
        assert refused is not None, "there is always the envelope to try"
        raise refused

    def _forms(self, letter: DeadLetter) -> Iterator[OutgoingRecord]:
        """The letter as it is published, and what is tried in its place when the broker refuses that."""
        as_it_came = self._as_it_came(letter)
        if as_it_came.bytes_max <= RECORD_BYTES_MAX:
            # Above the limit too: the broker measures the record after compression.
            yield as_it_came
        if as_it_came.bytes_max <= self._bytes_max:
            # The topic may refuse a time stamp too far from now.
            yield as_it_came._replace(
                timestamp_ms=letter.failed_at_ms,
                headers=merged(as_it_came.headers, {TIMESTAMP: str(letter.record.timestamp_ms)}),
            )
        yield self._envelope(letter)

    def _as_it_came(self, letter: DeadLetter) -> OutgoingRecord:
        record = letter.record
        return OutgoingRecord(
            topic=self._topic,
            key=record.key,
            value=record.value,
            timestamp_ms=record.timestamp_ms,
            # Only a letter that is parked may say so: it would come back by itself.
            headers=merged([h for h in record.headers if h[0] != Header.PARKED], self._headers(letter)),
        )

    def _envelope(self, letter: DeadLetter) -> OutgoingRecord:
        record = letter.record
        header_bytes = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
        value = {
            "truncated": True,
            "id": letter.id,
            "reason": letter.reason,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp_ms": record.timestamp_ms,
            "key": _digest(record.key),
            "value": _digest(record.value),
            "headers": {"count": len(record.headers), "bytes": header_bytes},
        }
        return OutgoingRecord(
            topic=self._topic,
            key=record.key if record.key is not None and len(record.key) <= _KEY_BYTES_KEPT else None,
            value=msgspec.json.encode(value),
            timestamp_ms=letter.failed_at_ms,
            headers=merged((), self._headers(letter) | {TRUNCATED: "true"}),
        )

    def _headers(self, letter: DeadLetter) -> dict[str, str]:
        record = letter.record
        message = letter.message[:_MESSAGE_CHARACTERS_MAX]
        ours: dict[str, str] = {
            Header.ID: letter.id,
            Header.REASON: letter.reason,
            Header.MESSAGE: message,
            Header.ENTITY: letter.entity,
            Header.DEPENDENT: letter.dependent,
            Header.STORE: letter.store,
            Header.TOPIC: record.topic,
            Header.PARTITION: str(record.partition),
            Header.OFFSET: str(record.offset),
            Header.ATTEMPTS: str(letter.attempts),
            Header.RETRIES: str(letter.retries),
            Header.FAILED_AT: rfc3339(letter.failed_at_ms),
            Header.RULES: letter.rules,
        }
        if letter.parked:
            ours[Header.PARKED] = letter.parked
        if letter.traceparent is not None:
            ours[Header.TRACEPARENT] = letter.traceparent
        return ours | {
            Header.CONNECT_TOPIC: record.topic,
            Header.CONNECT_PARTITION: str(record.partition),
            Header.CONNECT_OFFSET: str(record.offset),
            Header.CONNECT_STAGE: _CONNECT_STAGES[letter.stage],
            Header.CONNECT_CLASS: f"integrity.{letter.reason}",
            Header.CONNECT_MESSAGE: message,
            Header.CONNECT_CONNECTOR: f"{self._group}.{letter.store}",
        }

    def _status_of(self, letter: DeadLetter) -> OutgoingRecord:
        return self._status(
            StatusChange(
                letter.id,
                letter.status,
                letter.failed_at_ms,
                letter.dependent,
                letter.store,
                letter.reason.value,
                parked=letter.parked,
            )
        )

    def _status(self, change: StatusChange) -> OutgoingRecord:
        value = {"status": change.status, "at": rfc3339(change.at_ms)}
        told = {
            name: text
            for name in ("reason", "dependent", "store", "actor", "note", "parked")
            if (text := getattr(change, name))
        }
        return OutgoingRecord(self._status_topic, change.id.encode(), msgspec.json.encode(value | told))


def status_topic(topic: str) -> str:
    """Where the statuses of a topic's dead letters are."""
    return f"{topic}.status"


def rfc3339(at_ms: int) -> str:
    """Milliseconds since the epoch as UTC, such as `2026-03-01T12:00:00.123Z`."""
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _digest(data: bytes | None) -> dict[str, object] | None:
    if data is None:
        return None
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "head": base64.b64encode(data[:_HEAD_BYTES]).decode(),
    }
