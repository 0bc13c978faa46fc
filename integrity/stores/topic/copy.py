"""A copy of a parent as a compacted topic: records, versions and progress of a batch are one Kafka transaction.

The record of a key is an object of the copy's fields, as the source wrote them. Its own key is an object of those that
name the row: equal keys are equal bytes. The versions, and what each record holds, are in a compacted topic beside
it, which all copies of the store share; a process that takes over reads it into a file of its own.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from aiokafka.partitioner import murmur2

from integrity.core.batch import Batch, Share, TopicPartition, shares, standing
from integrity.core.change import Version
from integrity.core.copies import Known, Plan, plan
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, KeySpec, canonical, key_hash
from integrity.core.ledger import Head, LastRecord
from integrity.core.outcome import Applied, ApplyResult, Broken, Diverged, Effect, Rejected, Retry
from integrity.core.plain import as_written
from integrity.core.truncate import KnownKeys
from integrity.errors import Finding, LedgerError, OperationError, Reason
from integrity.ports import Deadline
from integrity.stores.rule import CopyRule
from integrity.stores.topic.clients import Closer
from integrity.stores.topic.faults import CLIENT_ERRORS, Unsent, meaning
from integrity.stores.topic.fitness import Fitness, unreachable
from integrity.stores.topic.reader import Reader, TopicGone, TopicMadeAnew
from integrity.stores.topic.records import ProgressRecord, ReadRecord, Write, clear_key, encode, note_key
from integrity.stores.topic.scratch import Scratch
from integrity.stores.topic.writer import BATCH_BYTES, Writer

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_SCHEMA: Final = """
CREATE TABLE known (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE truncation (id TEXT PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE progress (topic TEXT, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY (topic, partition));
"""
# It is only a cache: nothing of it has to survive a crash. Memory stays bounded: 16 MiB of pages.
_PRAGMAS: Final = ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-16384")


class KnownRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a key, and the record that the copy has of it."""

    version: Version
    alive: bool
    last: LastRecord | None = None
    missed: tuple[Version, ...] = ()
    row: dict[str, msgspec.Raw] = {}
    key: str = ""
    """The key, cut as in every ledger."""


_decode_known: Final = msgspec.json.Decoder(KnownRecord).decode
_decode_progress: Final = msgspec.json.Decoder(ProgressRecord).decode


class LedgerUnreadable(Exception):
    """A record of the ledger's topic is none of this program's."""


class TopicCopy:
    """A Store that holds one copy. `group` is the consumer group, `lane` what its progress and versions are kept
    under. The file of what is known lies below `state_dir` (a directory for temporary files when None)."""

    exclusive = True

    def __init__(
        self,
        name: str,
        client: Mapping[str, object],
        rule: CopyRule,
        *,
        group: str,
        lane: str,
        schema: str = "integrity",
        timeout_s: float = 30.0,
        state_dir: Path | None = None,
    ) -> None:
        self.name = name
        self._client = client
        self._rule = rule
        self._topic = rule.copy.rows.target.name
        self._group = group
        self._lane = lane
        self._timeout_s = timeout_s
        self._state_dir = state_dir
        self._ledger = TopicPartition(f"{schema}.copies.{name}", 0)
        self._fitness = Fitness(client, self._ledger.topic, [rule.copy.rows])
        self._closer = Closer()
        self._reader = Reader(client, self._take, self._closer)
        self._state: _State | None = None
        self._scratch: Scratch | None = None
        # One thread: what is given up waiting for still ends before what comes after it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"copy-{name}")
        self._lock = asyncio.Lock()
        self._writer: Writer | None = None
        self._partitions = 0
        self._fenced = False
        self._batch_bytes = BATCH_BYTES

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        findings, bytes_max = await self._fitness.check(deadline)
        if bytes_max is not None:
            self._batch_bytes = min(BATCH_BYTES, bytes_max)
        return findings

    def ddl(self) -> str:
        return self._fitness.ddl()

    async def migrate(self, deadline: Deadline) -> None:
        await self._fitness.migrate(deadline)

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        async with self._lock:
            if not partitions:
                self._discard_writer()  # a process that stands by must not disturb the owner
                return {}
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._take_over()
                    known = await self._in_thread(self._opened().progress)
            except BaseException as exc:
                self._discard_writer()
                fault = self._fault(exc)
                if fault is None:
                    raise
                raise fault from exc
        return {at: known[at] for at in partitions if at in known}

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        async with self._lock:
            try:
                async with asyncio.timeout(min(self._timeout_s, deadline.remaining_s())):
                    result = await self._apply(batch)
            except TopicGone as exc:
                self._discard_writer()
                return Broken(None, Reason.SCHEMA_MISMATCH, f"The topic {exc.topic} does not exist.")
            except LedgerUnreadable as exc:
                self._discard_writer()
                return Broken(None, Reason.STORE_REJECTED, str(exc))
            except sqlite3.Error as exc:
                await self._lose_state()
                return Retry(f"The file of what is known of a copy cannot be used ({type(exc).__name__}).")
            except (Unsent, *CLIENT_ERRORS) as exc:
                self._discard_writer()
                result = meaning(exc)
                self._fenced = isinstance(result, Diverged)
                # One copy is all that this lane does: nothing else goes on while it is mended, so it waits.
                return Broken(None, result.reason, result.message) if isinstance(result, Broken) else result
            except BaseException:
                self._discard_writer()
                raise
            return result

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """See `Truncatable.notes`."""
        return await self._of_state(lambda state: state.notes(), [])

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        spec = self._rule.spec
        return await self._of_state(lambda state: state.known_keys(entity, spec, after, keys_max), KnownKeys((), None))

    async def known_of(self, key: Key, deadline: Deadline) -> Known | None:
        """See `InspectableCopy.known_of`. Takes nothing over from the process that works."""
        async with self._lock:
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._read_on()
                    state = self._opened()
                    hashes = {key_hash(self._rule.entity, key): key}
                    record = (await self._in_thread(lambda: state.known(hashes))).get(key)
            except BaseException as exc:
                fault = unreachable(self._client) if isinstance(exc, TimeoutError) else self._fault(exc)
                if fault is None:
                    raise
                raise fault from exc
        return None if record is None else Known(record.version, record.alive, record.last, record.missed)

    async def _of_state(self, question: Callable[[_State], _T], nothing: _T) -> _T:
        """What the ledger holds, as its owner has it; `nothing` when another process owns the copy."""
        async with self._lock:
            if self._fenced or self._writer is None:
                return nothing
            state = self._opened()
            try:
                return await self._in_thread(lambda: question(state))
            except sqlite3.Error as exc:
                await self._lose_state()
                message = f"The file of what is known of a copy cannot be used ({type(exc).__name__})."
                raise OperationError(message) from exc

    async def close(self) -> None:
        self._discard_writer()
        self._reader.close()
        await self._closer.wait()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._close_state()

    def _fault(self, exc: BaseException) -> OperationError | None:
        """What `progress` raises for it; None: it as it is."""
        match exc:
            case TopicGone() if exc.topic == self._ledger.topic:
                return LedgerError(f"The ledger topic {exc.topic} does not exist.", hint="Run integrity migrate.")
            case TopicGone():
                return OperationError(f"Topic {exc.topic} does not exist.", hint="Create it, or mend the rule.")
            case LedgerUnreadable():
                return LedgerError(str(exc), hint="Look at its newest records: something else writes there.")
            case _ if isinstance(exc, (Unsent, *CLIENT_ERRORS)):
                return unreachable(self._client)
            case _:
                return None

    # --- owning the copy

    async def _take_over(self) -> None:
        """Fence whoever owned the copy, and learn from the ledger what came of its last transaction."""
        self._discard_writer()
        # While the former writer is still aborting, the coordinator may take the new one for the fenced one.
        await self._closer.wait()
        writer = self._writer = Writer(self._client, f"{self._group}.{self.name}", batch_bytes=self._batch_bytes)
        # Before it is written to: some servers make a topic that is missing.
        found = await self._reader.partitions([self._topic, self._ledger.topic])
        self._partitions = sum(at.topic == self._topic for at in found)
        await writer.start()
        self._fenced = False
        await self._read_on()

    async def _read_on(self) -> None:
        """Read the ledger to its end."""
        try:
            await self._reader.read_to_end([self._ledger.topic])
        except TopicMadeAnew:
            self._reader.forget()
            await self._in_thread(self._opened().clear)
            await self._reader.read_to_end([self._ledger.topic])

    def _discard_writer(self) -> None:
        """What is not committed is undone, here and in Kafka; what is unknown is read from the ledger."""
        if self._writer is not None:
            self._closer.stop(self._writer.discard(), "stop the producer")
            self._writer = None

    async def _take(self, read: list[ReadRecord]) -> None:
        mine = f"|{self._lane}|".encode()
        state = self._opened()
        try:
            await self._in_thread(lambda: state.take([record for record in read if mine in (record.key or b"")]))
        except (msgspec.DecodeError, ValueError) as exc:
            raise LedgerUnreadable(f"A record of topic {self._ledger.topic} is none of this program's.") from exc

    def _opened(self) -> _State:
        if self._state is None:
            directory = self._state_dir
            if directory is None:
                self._scratch = self._scratch or Scratch()
                directory = self._scratch.path
            self._state = _State(directory / f"copy-{self.name}-{uuid.uuid4().hex}.sqlite", self._lane)
        return self._state

    async def _lose_state(self) -> None:
        """The file is not to be trusted any more: a new one is made from the ledger."""
        self._discard_writer()
        self._reader.forget()
        await self._in_thread(self._close_state)

    def _close_state(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            state.close()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # --- a batch

    async def _apply(self, batch: Batch) -> ApplyResult:
        if self._fenced:
            return Diverged("Another process has taken over this copy.")
        if self._writer is None:
            await self._take_over()
        assert self._writer is not None, "the copy is taken over"
        state = self._opened()
        counts = standing(batch, await self._in_thread(state.progress))
        if isinstance(counts, str):
            return Diverged(counts)
        effects: list[Effect] = []
        records: list[Write] = []
        noted: list[tuple[bytes, bytes | None]] = []
        for share in shares(batch, counts, [self._rule.entity]):
            done = await self._in_thread(lambda share=share: self._copy(state, share))  # type: ignore[misc]
            if isinstance(done, Rejected):
                return done
            made, written, known = done
            effects += made
            records += written
            noted += known
        for at, span in batch.spans.items():
            progress = ProgressRecord(max(span.next, counts.get(at, 0)))
            noted.append((f"progress|{self._lane}|{at.topic}|{at.partition}".encode(), encode(progress)))
        for note in batch.notes:
            if not note.fresh or not await self._in_thread(lambda id_=note.id: state.has_note(id_)):  # type: ignore[misc]
                noted.append((note_key(self._lane, note.id), note.data))
        await self._writer.begin()
        await self._writer.send([*records, *(Write(self._ledger, key, value, (), None) for key, value in noted)])
        await self._writer.delivered()
        await self._writer.commit()
        await self._in_thread(lambda: state.note(noted))
        return Applied(effects)

    def _copy(
        self, state: _State, share: Share
    ) -> tuple[list[Effect], list[Write], list[tuple[bytes, bytes]]] | Rejected:
        """The effects, the records, and what the ledger is to know."""
        rule = self._rule
        before = state.known({key_hash(rule.entity, change.key): change.key for change in share.changes})
        known = {key: Known(each.version, each.alive, each.last, each.missed) for key, each in before.items()}
        found = plan(rule.copy, share.changes, known, done=share.done, left_out=share.exceptions)
        if isinstance(found, Rejected):
            return found
        rows = self._rows(found, before)
        writes: list[Write] = []
        for key in dict.fromkeys([*(group.key for group in found.removed), *rows]):
            name = _object(dict(zip(rule.copy.rows.columns, _parts(key), strict=True)))
            at = TopicPartition(self._topic, (murmur2(name) & 0x7FFFFFFF) % self._partitions)
            writes.append(Write(at, name, _object(rows[key]) if key in rows else None, (), rule.id))
        noted: list[tuple[bytes, bytes]] = []
        for key, each in found.known.items():
            row = rows.get(key, before[key].row if key in before and each.alive else {})
            text = clear_key(canonical(key))
            record = KnownRecord(each.version, each.alive, each.last, each.missed, row if each.alive else {}, text)
            noted.append((f"known|{self._lane}|{key_hash(rule.entity, key).hex()}".encode(), encode(record)))
        effects = [effect._replace(change=share.indexes[effect.change]) for effect in found.effects]
        return effects, writes, noted

    def _rows(self, found: Plan, before: Mapping[Key, KnownRecord]) -> dict[Key, dict[str, msgspec.Raw]]:
        """What the record of each key is to be."""
        copy = self._rule.copy
        rows: dict[Key, dict[str, msgspec.Raw]] = {}
        for put in found.puts:
            parts = dict(zip(copy.rows.columns, _parts(put.key), strict=True))
            had = before[put.key].row if put.kept else {}
            row: dict[str, msgspec.Raw] = {}
            for column, field in copy.columns.items():
                if column in parts:
                    row[column] = parts[column]
                elif field in put.cells:
                    row[column] = msgspec.Raw(encode(as_written(put.cells[field].value)))
                else:
                    row[column] = had[column]
            rows[put.key] = row
        return rows


class _State:
    """What is known of the copy's keys: a cache in SQLite, made from the ledger's topic. Used from one thread."""

    def __init__(self, file: Path, lane: str) -> None:
        self._file = file
        self._known = f"known|{lane}|"
        self._progress = f"progress|{lane}|"
        self._truncation = f"truncate|{lane}|"
        self._db = sqlite3.connect(file, check_same_thread=False)
        for pragma in _PRAGMAS:
            self._db.execute(pragma)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()
        self._file.unlink(missing_ok=True)

    def clear(self) -> None:
        self._db.execute("DELETE FROM known")
        self._db.execute("DELETE FROM progress")
        self._db.execute("DELETE FROM truncation")
        self._db.commit()

    def take(self, records: Sequence[ReadRecord]) -> None:
        """Records of the ledger. Raises ValueError for what is none."""
        self.note([(record.key or b"", record.value) for record in records])

    def note(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        for key, value in records:
            name = key.decode()
            if name.startswith(self._truncation):
                id_ = name.removeprefix(self._truncation)
                self._db.execute("DELETE FROM truncation WHERE id = ?", (id_,))
                if value is not None:
                    self._db.execute("INSERT INTO truncation VALUES (?, ?)", (id_, value))
            elif value is None:
                raise ValueError("Nothing else of the ledger has null records.")
            elif name.startswith(self._known):
                _decode_known(value)
                hashed = bytes.fromhex(name.removeprefix(self._known))
                self._db.execute("INSERT OR REPLACE INTO known VALUES (?, ?)", (hashed, value))
            elif name.startswith(self._progress):
                topic, partition = name.removeprefix(self._progress).rsplit("|", 1)
                next_ = _decode_progress(value).next
                self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", (topic, int(partition), next_))
            else:
                raise ValueError("A record of the ledger is none of ours.")
        self._db.commit()

    def progress(self) -> dict[TopicPartition, int]:
        found = self._db.execute("SELECT topic, partition, next FROM progress")
        return {TopicPartition(topic, partition): next_ for topic, partition, next_ in found}

    def notes(self) -> list[bytes]:
        """The truncates that are to be carried out."""
        return [bytes(data) for (data,) in self._db.execute("SELECT note FROM truncation")]

    def has_note(self, id_: str) -> bool:
        return self._db.execute("SELECT 1 FROM truncation WHERE id = ?", (id_,)).fetchone() is not None

    def known_keys(self, entity: str, spec: KeySpec, after: bytes, keys_max: int) -> KnownKeys:
        """What is known of the next keys, by their hashes."""
        rows = self._db.execute(
            "SELECT hash, data FROM known WHERE hash > ? ORDER BY hash LIMIT ?", (after, keys_max)
        ).fetchall()
        found: list[tuple[Key, Head]] = []
        for hashed, data in rows:
            record = _decode_known(data)
            key = key_of_ledger(record.key, spec)
            if key is not None and key_hash(entity, key) == hashed:
                found.append((key, Known(record.version, record.alive, record.last).head))
        return KnownKeys(found, bytes(rows[-1][0]) if len(rows) == keys_max else None, len(rows) - len(found))

    def known(self, hashes: Mapping[bytes, Key]) -> dict[Key, KnownRecord]:
        found: dict[Key, KnownRecord] = {}
        for hashed, key in hashes.items():
            row = self._db.execute("SELECT data FROM known WHERE hash = ?", (hashed,)).fetchone()
            if row is not None:
                found[key] = _decode_known(row[0])
        return found


def _parts(key: Key) -> list[msgspec.Raw]:
    """The parts of a key as JSON: equal parts give equal text."""
    return [msgspec.Raw(canonical((part,))[1:-1].encode()) for part in key]


def _object(fields: Mapping[str, msgspec.Raw]) -> bytes:
    return encode(dict(fields))
