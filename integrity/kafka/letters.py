"""What the topics of dead letters hold: an index in a temporary file of SQLite's, made by reading both to their ends.

No payload is kept: a letter's record is read again, by its place, when it is wanted. Of a letter that is there more
than once the newest counts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from integrity.core.decode.record import Record
from integrity.errors import UnreachableError
from integrity.kafka.consumer import CONSUMER_SETTINGS
from integrity.kafka.dead_letters import Status, status_topic
from integrity.kafka.headers import TIMESTAMP, TRUNCATED, Header, last_text, without_ours
from integrity.kafka.unpacking import bound_unpacking
from integrity.ports import Deadline

STALLED_S: Final = 30.0
"""A reader that gets nothing for this long, short of the end, gives up."""
STOP_TIMEOUT_S: Final = 5.0
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_CHUNK_LETTERS: Final = 500
_POLL_MS: Final = 500
_NEAR: Final = 500
"""Offsets that are read over rather than sought past."""

_SCHEMA: Final = """
CREATE TABLE letter (
    id TEXT PRIMARY KEY, reason TEXT, message TEXT, entity TEXT, dependent TEXT, store TEXT, topic TEXT,
    partition INTEGER, offset INTEGER, attempts INTEGER, retries INTEGER, failed_at TEXT, rules TEXT,
    truncated INTEGER, bytes INTEGER, at_partition INTEGER, at_offset INTEGER, parked TEXT) WITHOUT ROWID;
CREATE TABLE status (
    id TEXT PRIMARY KEY, status TEXT, at TEXT, actor TEXT, note TEXT) WITHOUT ROWID;
CREATE TABLE living (place TEXT, name BLOB, offset INTEGER NOT NULL, PRIMARY KEY (place, name)) WITHOUT ROWID;
CREATE TEMP TABLE wanted (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "l.id, coalesce(s.status, 'open'), l.reason, l.message, l.entity, l.dependent, l.store, l.topic, l.partition,"
    " l.offset, l.attempts, l.retries, l.failed_at, coalesce(s.at, l.failed_at), l.rules, l.truncated, l.bytes,"
    " l.at_partition, l.at_offset, coalesce(s.actor, ''), coalesce(s.note, ''), l.parked"
)


class Letter(NamedTuple):
    """A dead letter without its payload. `at_partition` and `at_offset` are its place in the topic of dead letters;
    `topic`, `partition` and `offset` that of its event. `parked` is the tenant whose database could not be used."""

    id: str
    status: Status
    reason: str
    message: str
    entity: str
    dependent: str
    store: str
    topic: str
    partition: int
    offset: int
    attempts: int
    retries: int
    failed_at: str
    status_at: str
    rules: str
    truncated: bool
    bytes: int
    at_partition: int
    at_offset: int
    actor: str
    note: str
    parked: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters; what is empty does not limit. `since` is a time as the letters have it (RFC 3339, UTC)."""

    ids: Sequence[str] = ()
    statuses: Collection[Status] = ()
    reason: str = ""
    dependent: str = ""
    store: str = ""
    since: str = ""
    parked: bool = False


class LetterIndex:
    """An index of dead letters. One thread uses it."""

    def __init__(self) -> None:
        # A private file of SQLite's own, removed with the connection; small ones never leave memory.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")
        self.skipped = 0
        """Records of the topic that are no dead letters of this program."""

    def close(self) -> None:
        self._db.close()

    def take_letter(self, record: Any) -> None:
        """Note a record of the topic of dead letters."""
        headers = record.headers
        text = {name: last_text(headers, name) or "" for name in (*_TEXTS, *_NUMBERS, Header.PARKED, TRUNCATED)}
        try:
            numbers = [int(text[name]) for name in _NUMBERS]
        except ValueError:
            self.skipped += 1
            return
        partition, offset, attempts, retries = numbers
        size = len(record.key or b"") + len(record.value or b"")
        self._db.execute(
            f"INSERT INTO letter VALUES ({', '.join('?' * 18)}) ON CONFLICT (id) DO UPDATE SET"
            " reason = excluded.reason, message = excluded.message, attempts = excluded.attempts,"
            " retries = excluded.retries, failed_at = excluded.failed_at, rules = excluded.rules,"
            " truncated = excluded.truncated, bytes = excluded.bytes, at_partition = excluded.at_partition,"
            " at_offset = excluded.at_offset, parked = excluded.parked"
            " WHERE (excluded.failed_at, excluded.at_offset) >= (failed_at, at_offset)",
            (
                *(text[name] for name in _TEXTS[:7]),
                partition,
                offset,
                attempts,
                retries,
                text[Header.FAILED_AT],
                text[Header.RULES],
                text[TRUNCATED] == "true",
                size,
                record.partition,
                record.offset,
                text[Header.PARKED],
            ),
        )

    def take_status(self, record: Any) -> None:
        """Note a record of the topic of statuses."""
        try:
            said = _decode_status(record.value or b"")
            status = Status(said.status)
            letter = (record.key or b"").decode()
        except (msgspec.DecodeError, ValueError):
            self.skipped += 1
            return
        self._db.execute(
            "INSERT OR REPLACE INTO status VALUES (?, ?, ?, ?, ?)",
            (letter, status.value, said.at, said.actor, said.note),
        )

    def find(self, chosen: Filter, limit: int | None = None) -> Iterator[Letter]:
        """The letters, by their events' places: of one key, the older first."""
        where, values = self._where(chosen)
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM letter l LEFT JOIN status s ON s.id = l.id WHERE {where}"
            " ORDER BY l.topic, l.partition, l.offset, l.dependent, l.store LIMIT ?",
            (*values, -1 if limit is None else limit),
        )
        for row in rows:
            yield Letter._make((row[0], Status(row[1]), *row[2:15], bool(row[15]), *row[16:]))

    def count(self, chosen: Filter) -> dict[tuple[Status, str, str], int]:
        """How many letters there are of each status, reason and dependent."""
        where, values = self._where(chosen)
        rows = self._db.execute(
            "SELECT coalesce(s.status, 'open') AS st, l.reason, l.dependent, count(*) FROM letter l"
            f" LEFT JOIN status s ON s.id = l.id WHERE {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
            values,
        )
        return {(Status(status), reason, dependent): count for status, reason, dependent, count in rows}

    def note_living(self, place: str, name: bytes, offset: int) -> None:
        """Note a record of a partition that says, as far as it can be told, that what has this name is in use."""
        self._db.execute("INSERT OR REPLACE INTO living VALUES (?, ?, ?)", (place, name, offset))

    def lives_after(self, place: str, names: Collection[bytes], offset: int) -> bool:
        """Whether something with one of these names was in use in that partition after the offset."""
        marks = ", ".join("?" * len(names))
        found = self._db.execute(
            f"SELECT 1 FROM living WHERE place = ? AND name IN ({marks}) AND offset > ? LIMIT 1",
            (place, *names, offset),
        )
        return found.fetchone() is not None

    def _where(self, chosen: Filter) -> tuple[str, list[object]]:
        parts, values = ["true"], list[object]()
        if chosen.ids:
            self._db.execute("DELETE FROM wanted")
            self._db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", [(id_,) for id_ in chosen.ids])
            parts.append("l.id IN (SELECT id FROM wanted)")
        if chosen.statuses:
            parts.append(f"coalesce(s.status, 'open') IN ({', '.join('?' * len(chosen.statuses))})")
            values += [status.value for status in chosen.statuses]
        for column, value in (("reason", chosen.reason), ("dependent", chosen.dependent), ("store", chosen.store)):
            if value:
                parts.append(f"l.{column} = ?")
                values.append(value)
        if chosen.parked:
            parts.append("l.parked <> ''")
        if chosen.since:
            parts.append("l.failed_at >= ?")
            values.append(chosen.since)
        return " AND ".join(parts), values


_TEXTS: Final = (
    Header.ID,
    Header.REASON,
    Header.MESSAGE,
    Header.ENTITY,
    Header.DEPENDENT,
    Header.STORE,
    Header.TOPIC,
    Header.FAILED_AT,
    Header.RULES,
)
_NUMBERS: Final = (Header.PARTITION, Header.OFFSET, Header.ATTEMPTS, Header.RETRIES)


class _Said(msgspec.Struct, frozen=True):
    status: str
    at: str = ""
    actor: str = ""
    note: str = ""


_decode_status = msgspec.json.Decoder(_Said).decode


class LetterReader:
    """Reads the topics of dead letters, outside of any group."""

    def __init__(self, client: Mapping[str, Any], consumer: AIOKafkaConsumer, topic: str) -> None:
        self._client = client
        self._consumer = consumer
        self._topic = topic

    async def index(self, told: Callable[[int], None] = lambda _: None) -> LetterIndex:
        """Read both topics to the ends that they have now; the caller closes the index. `told` hears from time to time
        how many records were read. Raises UnreachableError."""
        index = LetterIndex()
        try:
            # Letters first: a letter that comes meanwhile has a status, but what has a status only is not shown.
            read = await self._read_to_end(self._topic, index.take_letter, told, 0)
            await self._read_to_end(status_topic(self._topic), index.take_status, told, read)
        except BaseException:
            index.close()
            raise
        return index

    async def payloads(self, letters: Sequence[Letter]) -> dict[str, Record]:
        """The events' own records, as they came. A letter that retention has removed is not among them."""
        found: dict[str, Record] = {}
        by_partition: dict[int, dict[int, Letter]] = {}
        for letter in letters:
            by_partition.setdefault(letter.at_partition, {})[letter.at_offset] = letter
        for partition, wanted in by_partition.items():
            at = KafkaPartition(self._topic, partition)
            self._consumer.assign([at])
            await self._take(at, wanted, found)
        return found

    async def read_after(
        self, topic: str, partition: int, offset: int, take: Callable[[Sequence[Record]], Awaitable[None]]
    ) -> bool:
        """Read a partition from behind an offset to the end that it has now; False when it does not reach back so far.

        Raises UnreachableError."""
        if partition not in {at.partition for at in await self._partitions(topic)}:
            return False
        at = KafkaPartition(topic, partition)
        try:
            self._consumer.assign([at])
            first = (await self._consumer.beginning_offsets([at]))[at]
            end = (await self._consumer.end_offsets([at]))[at]
            if first > offset + 1:
                return False
            self._consumer.seek(at, offset + 1)
            quiet_since = time.monotonic()
            while await self._position(at) < end:
                read = (await self._poll()).get(at, ())
                await take([Record(topic, partition, r.offset, r.timestamp, r.key, r.value, r.headers) for r in read])
                if read:
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > STALLED_S:
                    raise UnreachableError(f"Topic {topic} could not be read to its end.")
        except KafkaError as exc:
            raise UnreachableError(f"Topic {topic} can't be read: {type(exc).__name__}.") from exc
        return True

    async def _take(self, at: KafkaPartition, wanted: Mapping[int, Letter], found: dict[str, Record]) -> None:
        offsets = sorted(wanted)
        end = offsets[-1]
        position = -1
        quiet_since = time.monotonic()
        while offsets:
            if position < 0 or offsets[0] - position > _NEAR:
                self._consumer.seek(at, offsets[0])
            read = (await self._poll()).get(at, ())
            for record in read:
                position = record.offset + 1
                if record.offset in wanted:
                    letter = wanted[record.offset]
                    found[letter.id] = _original(letter, record)
            if read:
                quiet_since = time.monotonic()
                offsets = [offset for offset in offsets if offset >= position]
            elif await self._position(at) > end:
                return
            elif time.monotonic() - quiet_since > STALLED_S:
                raise UnreachableError(f"Topic {self._topic} could not be read.")

    async def _read_to_end(
        self, topic: str, take: Callable[[Any], None], told: Callable[[int], None], count: int
    ) -> int:
        partitions = await self._partitions(topic)
        if not partitions:
            return count
        try:
            self._consumer.assign(partitions)
            ends = await self._consumer.end_offsets(partitions)
            await self._consumer.seek_to_beginning(*partitions)
            open_now = set(partitions)
            quiet_since = time.monotonic()
            while open_now:
                for records in (await self._poll()).values():
                    for record in records:
                        take(record)
                    count += len(records)
                    quiet_since = time.monotonic()
                told(count)
                open_now = {at for at in open_now if await self._position(at) < ends[at]}
                if open_now and time.monotonic() - quiet_since > STALLED_S:
                    raise UnreachableError(f"Topic {topic} could not be read to its end.")
        except KafkaError as exc:
            raise UnreachableError(f"Topic {topic} can't be read: {type(exc).__name__}.") from exc
        return count

    async def _poll(self) -> Mapping[KafkaPartition, Sequence[Any]]:
        try:
            found: Mapping[KafkaPartition, Sequence[Any]] = await self._consumer.getmany(timeout_ms=_POLL_MS)
        except KafkaError as exc:
            raise UnreachableError(f"Topic {self._topic} can't be read: {type(exc).__name__}.") from exc
        return found

    async def _position(self, at: KafkaPartition) -> int:
        try:
            position: int = await asyncio.wait_for(self._consumer.position(at), STALLED_S)
        except TimeoutError as exc:
            raise UnreachableError(f"Kafka does not say where topic {at.topic} is read.") from exc
        return position

    async def _partitions(self, topic: str) -> list[KafkaPartition]:
        admin = AIOKafkaAdminClient(**self._client, request_timeout_ms=10_000)
        try:
            await admin.start()
            if topic not in await admin.list_topics():
                return []
            described = (await admin.describe_topics([topic]))[0]
        except (KafkaError, OSError) as exc:
            raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc
        finally:
            await admin.close()
        return [KafkaPartition(topic, each["partition"]) for each in described["partitions"]]


@asynccontextmanager
async def open_letters(client: Mapping[str, Any], topic: str, deadline: Deadline) -> AsyncIterator[LetterReader]:
    """A reader of a topic of dead letters. Raises UnreachableError when no broker answers in time."""
    bound_unpacking()
    consumer = AIOKafkaConsumer(**client, **CONSUMER_SETTINGS)
    try:
        try:
            await asyncio.wait_for(consumer.start(), deadline.remaining_s())
        except (KafkaError, OSError) as exc:
            raise UnreachableError(f"Kafka does not answer: {type(exc).__name__}.") from exc
        yield LetterReader(client, consumer, topic)
    finally:
        await asyncio.wait({asyncio.create_task(consumer.stop(), name="stop reading")}, timeout=STOP_TIMEOUT_S)


def chunks(letters: Iterable[Letter]) -> Iterator[list[Letter]]:
    """The letters in runs whose records fit in memory together."""
    run: list[Letter] = []
    size = 0
    for letter in letters:
        if run and (size + letter.bytes > _CHUNK_BYTES or len(run) == _CHUNK_LETTERS):
            yield run
            run, size = [], 0
        run.append(letter)
        size += letter.bytes
    if run:
        yield run


def _original(letter: Letter, record: Any) -> Record:
    own = last_text(record.headers, TIMESTAMP)
    timestamp_ms = int(own) if own is not None and own.lstrip("-").isdigit() else record.timestamp
    headers = tuple(without_ours(record.headers))
    return Record(letter.topic, letter.partition, letter.offset, timestamp_ms, record.key, record.value, headers)
