"""What one process knows of the child topics and the ledger: a cache in SQLite, rebuilt from the topics, never trusted
beyond them. Synchronous; used from one thread at a time.

Rows of the children are found by the hash of the key they reference. Whatever is read in the end decides: what a batch
changed here beforehand is only so that the rules of that batch see each other's work.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from integrity.core.batch import TopicPartition
from integrity.core.change import EARLIEST, Version
from integrity.core.fold import Born
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, KeySpec, key_hash
from integrity.core.ledger import Fate, Head, Pending
from integrity.core.parts import Parts
from integrity.core.truncate import KnownKeys
from integrity.core.undo import Portion
from integrity.stores.topic import records
from integrity.stores.topic.records import (
    ArrivalRecord,
    ChildKey,
    ExceptionRecord,
    FateRecord,
    Headers,
    HeadRecord,
    Mark,
    ProgressRecord,
    ReadRecord,
    RepairRecord,
    SweepRecord,
    UndoneRecord,
    UndoRecord,
)
from integrity.stores.topic.values import NoRow, RowRule, Unwritable, read_row

_SCHEMA: Final = """
CREATE TABLE child (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL,
    offset INTEGER NOT NULL, value BLOB NOT NULL, headers BLOB, UNIQUE (topic, partition, key));
CREATE TABLE reference (
    rule INTEGER, hash BLOB, child INTEGER, born INTEGER, PRIMARY KEY (rule, hash, child)) WITHOUT ROWID;
CREATE INDEX reference_child ON reference (child);
CREATE TABLE head (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE fate (
    hash BLOB, version TEXT, data BLOB NOT NULL, moved_to TEXT, at_ms INTEGER NOT NULL,
    PRIMARY KEY (hash, version)) WITHOUT ROWID;
CREATE INDEX fate_at ON fate (at_ms, hash);
CREATE INDEX fate_moved_to ON fate (moved_to) WHERE moved_to IS NOT NULL;
CREATE TABLE sweep (age_ms INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, hash BLOB NOT NULL);
CREATE TABLE repair (name BLOB PRIMARY KEY, hash BLOB NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX repair_hash ON repair (hash);
CREATE TABLE undo (
    number INTEGER PRIMARY KEY, event TEXT NOT NULL, dependent TEXT NOT NULL, at_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL,
    data BLOB NOT NULL);
CREATE INDEX undo_event ON undo (event);
CREATE INDEX undo_child ON undo (topic, partition, key);
CREATE INDEX undo_expires ON undo (expires_ms);
CREATE TABLE undone (name BLOB PRIMARY KEY, hash BLOB NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX undone_hash ON undone (hash);
CREATE TABLE arrival (
    name BLOB PRIMARY KEY, rule INTEGER NOT NULL, hash BLOB NOT NULL, since BLOB NOT NULL,
    topic TEXT NOT NULL, partition INTEGER NOT NULL, key BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX arrival_hash ON arrival (rule, hash);
CREATE INDEX arrival_child ON arrival (rule, topic, partition, key);
CREATE TABLE truncation (id TEXT PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE progress (
    topic TEXT, partition INTEGER, next INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (topic, partition));
CREATE TABLE exception (
    name BLOB PRIMARY KEY, hash BLOB NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX exception_hash ON exception (hash);
CREATE TABLE grave (
    topic TEXT, partition INTEGER, key BLOB, offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition, key)) WITHOUT ROWID;
CREATE TEMP TABLE chosen (number INTEGER PRIMARY KEY, part INTEGER NOT NULL, child INTEGER NOT NULL);
"""
_TABLES: Final = (
    *("child", "reference", "head", "fate", "arrival", "exception", "sweep", "repair", "progress", "grave"),
    *("undo", "undone", "truncation"),
)
_INT64_MIN: Final = -(2**63)
# It is only a cache: nothing of it has to survive a crash. Memory stays bounded: 16 MiB of pages.
_PRAGMAS: Final = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=OFF",
    "PRAGMA temp_store=FILE",
    "PRAGMA cache_size=-16384",
)


class Child(NamedTuple):
    """A child as the view holds it. `part` is the number of what chose it, `number` its place among the chosen."""

    number: int
    part: int
    id: int
    at: ChildKey
    offset: int
    value: bytes
    headers: Headers


class Reference(NamedTuple):
    """The hash of the key that a child references, and when the child came to be, in microseconds: None where that does
    not matter, or is in doubt."""

    hash: bytes
    born: int | None


@dataclass(slots=True)
class Overtaken:
    """An owner's record that one of ours, made from an older one, hides. `steps` are ours since then, in order."""

    value: bytes | None
    headers: Headers
    steps: list[tuple[Mark, bytes | None]]
    offset: int
    """Of our newest record."""


class State:
    """The view of the child topics and the ledger's tables."""

    def __init__(self, file: Path, rules: Sequence[RowRule], *, lane: str) -> None:
        self._file = file
        self._lane = lane
        self._rules = tuple(rules)
        self._number = {each.rule.id: number for number, each in enumerate(self._rules)}
        self._by_topic: dict[str, list[tuple[int, RowRule]]] = {}
        for number, each in enumerate(self._rules):
            self._by_topic.setdefault(each.rule.dependent.target.name, []).append((number, each))
        # Autocommit: transactions are begun and ended by hand. One thread at a time, but not always the same one.
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for pragma in _PRAGMAS:
            self._db.execute(pragma)
        self._db.executescript(_SCHEMA)
        self._ours: dict[TopicPartition, tuple[tuple[int, int], ...]] = {}
        self.overtaken: dict[ChildKey, Overtaken] = {}
        self.skipped = 0
        """How many times a rule has met a record that is no row: no JSON object, a field missing or wrongly typed."""

    def close(self) -> None:
        self._db.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    # --- transactions

    def begin(self) -> None:
        self._db.execute("BEGIN")

    def commit(self) -> None:
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Back to where `begin` was; nothing when no transaction is open."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def clear(self) -> None:
        """Forget everything, to read it again."""
        self.rollback()
        self.begin()
        for table in _TABLES:
            self._db.execute(f"DELETE FROM {table}")
        self.commit()
        self._ours.clear()
        self.overtaken.clear()

    # --- reading on

    def take(self, read: Iterable[ReadRecord], ledger: str) -> None:
        """Bring the cache up to these records, of the child topics and the ledger."""
        self.begin()
        try:
            for record in read:
                if record.key is None:
                    self.skipped += 1
                elif record.topic == ledger:
                    self._take_ledger(record.key, record.value)
                else:
                    self._take_child(ChildKey(record.topic, record.partition, record.key), record)
        except BaseException:
            self.rollback()
            raise
        self.commit()

    def _take_child(self, at: ChildKey, record: ReadRecord) -> None:
        found = self._db.execute(
            "SELECT id, offset, value, headers FROM child WHERE topic = ? AND partition = ? AND key = ?", at
        ).fetchone()
        self._notice(at, record, found)
        if record.value is None:
            if found is not None:
                self.remove(found[0])
            return
        headers = _packed(record.headers)
        if found is None:
            child = self._db.execute(
                "INSERT INTO child (topic, partition, key, offset, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
                (*at, record.offset, record.value, headers),
            ).lastrowid
            assert child is not None
        else:
            child = found[0]
            self._db.execute(
                "UPDATE child SET offset = ?, value = ?, headers = ? WHERE id = ?",
                (record.offset, record.value, headers, child),
            )
            self._db.execute("DELETE FROM reference WHERE child = ?", (child,))
        self._index(child, at.topic, record.value)

    def _notice(self, at: ChildKey, record: ReadRecord, found: tuple[int, int, bytes, bytes | None] | None) -> None:
        """A record of ours that was made from an older one than the newest hides what its owner wrote in between."""
        mark = records.mark_of(record.headers) if self._is_ours(at, record.offset) else None
        before = self.overtaken.pop(at, None)
        if mark is None:
            if record.value is None:
                self._bury(at, record.offset)
            return
        step = (mark, record.value)
        if before is not None and record.offset > before.offset:
            before.steps.append(step)
            before.offset = record.offset
            self.overtaken[at] = before
        elif found is None:
            if record.value is not None and mark.base < self._buried(at) < record.offset:
                self.overtaken[at] = Overtaken(None, (), [step], record.offset)
        elif mark.base < found[1] < record.offset and not self._is_ours(at, found[1]):
            self.overtaken[at] = Overtaken(found[2], _unpacked(found[3]), [step], record.offset)

    def _is_ours(self, at: ChildKey, offset: int) -> bool:
        ranges = self._ours.get(TopicPartition(at.topic, at.partition), ())
        return any(first <= offset <= last for first, last in ranges)

    def _bury(self, at: ChildKey, offset: int) -> None:
        """Remember an owner's null record that one of ours may follow."""
        ranges = self._ours.get(TopicPartition(at.topic, at.partition), ())
        if ranges and offset < ranges[-1][1]:
            self._db.execute("INSERT OR REPLACE INTO grave VALUES (?, ?, ?, ?)", (*at, offset))

    def _buried(self, at: ChildKey) -> int:
        row = self._db.execute("SELECT offset FROM grave WHERE topic = ? AND partition = ? AND key = ?", at).fetchone()
        return -1 if row is None else int(row[0])

    def at_end(self) -> None:
        """Everything has been read: what our records may hide is known."""
        self._db.execute("DELETE FROM grave")

    def set_ours(self, at: TopicPartition, ranges: tuple[tuple[int, int], ...]) -> None:
        """Which offsets of a child partition are of our newest transaction there."""
        self._ours[at] = ranges

    def _take_ledger(self, key: bytes, value: bytes | None) -> None:
        kind, _, rest = key.decode().partition("|")
        match kind:
            case "head":
                self._put_head(bytes.fromhex(rest), value)
            case "fate":
                digest, _, version = rest.partition("|")
                self._put_fate(bytes.fromhex(digest), version, value)
            case "progress":
                lane, topic, partition = rest.split("|")
                if lane == self._lane and value is not None:
                    self.set_progress(TopicPartition(topic, int(partition)), records.decode_progress(value))
            case "arrival":
                self._take_arrival(key, value)
            case "writes":
                topic, partition = rest.split("|")
                if value is not None:
                    self.set_ours(TopicPartition(topic, int(partition)), records.decode_writes(value).ranges)
            case "exception":
                self.put_exception(key, value)
            case "sweep":
                lane, age_ms = rest.split("|")
                if lane == self._lane and value is not None:
                    self.set_swept(int(age_ms), records.decode_sweep(value))
            case "repair":
                self.put_repair(key, bytes.fromhex(rest.partition("|")[0]), value)
            case "undo":
                self.put_kept(int(rest), value)
            case "truncate":
                lane, _, id_ = rest.partition("|")
                if lane == self._lane:
                    self.put_note(id_, value)
            case "undone":
                self._take_undone(key, bytes.fromhex(rest.partition("|")[0]), value)
            case _:
                pass  # of a newer program

    def _take_arrival(self, name: bytes, value: bytes | None) -> None:
        self.remove_arrival(name)
        if value is not None:
            arrival = records.decode_arrival(value)
            rule = self._number.get(arrival.dependent)
            if rule is not None:
                self._insert_arrival(name, rule, bytes.fromhex(arrival.at), arrival.since, arrival.child)

    def put_repair(self, name: bytes, key_hash: bytes, value: bytes | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM repair WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO repair VALUES (?, ?, ?)", (name, key_hash, value))

    def _take_undone(self, name: bytes, key_hash: bytes, value: bytes | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM undone WHERE name = ?", (name,))
        else:
            self._db.execute("INSERT OR REPLACE INTO undone VALUES (?, ?, ?)", (name, key_hash, value))

    def _put_head(self, key_hash: bytes, value: bytes | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM head WHERE hash = ?", (key_hash,))
        else:
            self._db.execute("INSERT OR REPLACE INTO head VALUES (?, ?)", (key_hash, value))

    def _put_fate(self, key_hash: bytes, version: str, value: bytes | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM fate WHERE hash = ? AND version = ?", (key_hash, version))
        else:
            fate = records.decode_fate(value)
            row = (key_hash, version, value, fate.to, fate.at_ms)
            self._db.execute("INSERT OR REPLACE INTO fate VALUES (?, ?, ?, ?, ?)", row)

    # --- children

    def _index(self, child: int, topic: str, value: bytes) -> None:
        """Note which keys a child references."""
        references = self.references(topic, value)
        if references:
            self._db.executemany(
                "INSERT OR IGNORE INTO reference VALUES (?, ?, ?, ?)",
                [(rule, reference.hash, child, reference.born) for rule, reference in references.items()],
            )

    def references(self, topic: str, value: bytes) -> dict[int, Reference]:
        """What a value references, for each rule (by number) that it is a dependent of."""
        rules = self._by_topic.get(topic, ())
        found: dict[int, Reference] = {}
        try:
            row = read_row(value)
        except NoRow:
            self.skipped += len(rules)
            return found
        for number, each in rules:
            try:
                key = each.reference(row)
            except NoRow:
                self.skipped += 1
                continue
            if key is not None:
                found[number] = Reference(key_hash(each.rule.entity, key), each.born(row))
        return found

    def number(self, dependent: str) -> int | None:
        """The number of a rule, by its dependent's id."""
        return self._number.get(dependent)

    def row_rule(self, number: int) -> RowRule:
        return self._rules[number]

    def choose(
        self, rule: int, parts: Sequence[tuple[bytes, Version | None, Born | None]], limit: int | None = None
    ) -> list[int]:
        """Keep apart, until the next call, the children of each part: those that reference the key with that hash,
        are there as plain ones (None) or since that version, and are of that age; at most `limit` of all. How many
        each part has."""
        topic = self._rules[rule].rule.dependent.target.name
        any_arrivals = self.arrivals() > 0
        self._db.execute("DELETE FROM chosen")
        counts: list[int] = []
        for part, (digest, since, born) in enumerate(parts):
            aged = "" if born is None else " AND r.born > ? AND r.born <= ?"
            ages = () if born is None else (_micros(born.after_ms), _micros(born.until_ms))
            left = -1 if limit is None else limit - sum(counts)  # -1: without end
            if since is not None:
                found = self._db.execute(
                    "INSERT INTO chosen (part, child) SELECT ?, c.id FROM reference r JOIN child c ON c.id = r.child "
                    "JOIN arrival a ON a.rule = r.rule AND a.topic = c.topic AND a.partition = c.partition "
                    "AND a.key = c.key AND a.hash = r.hash WHERE r.rule = ? AND r.hash = ? AND a.since = ?"
                    f"{aged} LIMIT ?",
                    (part, rule, digest, records.encode(since), *ages, left),
                )
            elif any_arrivals:
                found = self._db.execute(
                    "INSERT INTO chosen (part, child) SELECT ?, c.id FROM reference r JOIN child c ON c.id = r.child "
                    "WHERE r.rule = ? AND r.hash = ? AND NOT EXISTS (SELECT 1 FROM arrival a WHERE a.rule = r.rule "
                    "AND a.topic = ? AND a.partition = c.partition AND a.key = c.key AND a.hash = r.hash)"
                    f"{aged} LIMIT ?",
                    (part, rule, digest, topic, *ages, left),
                )
            else:
                found = self._db.execute(
                    "INSERT INTO chosen (part, child) SELECT ?, r.child FROM reference r "
                    f"WHERE r.rule = ? AND r.hash = ?{aged} LIMIT ?",
                    (part, rule, digest, *ages, left),
                )
            counts.append(found.rowcount)
        return counts

    def chosen(self, after: int, limit: int) -> list[Child]:
        """The next of the chosen children, by number."""
        rows = self._db.execute(
            "SELECT n.number, n.part, c.id, c.topic, c.partition, c.key, c.offset, c.value, c.headers "
            "FROM chosen n JOIN child c ON c.id = n.child WHERE n.number > ? ORDER BY n.number LIMIT ?",
            (after, limit),
        ).fetchall()
        return [
            Child(number, part, id_, ChildKey(topic, partition, key), offset, value, _unpacked(headers))
            for number, part, id_, topic, partition, key, offset, value, headers in rows
        ]

    def referencing(self, rule: int, key_hash: bytes, limit: int) -> tuple[int, Iterator[tuple[ChildKey, bytes]]]:
        """How many children reference a key, and at most `limit` of them with their values. Where the rule asks for the
        age, only those that tell it."""
        aged = "" if self._rules[rule].rule.dependent.as_of is None else " AND r.born IS NOT NULL"
        where = f"r.rule = ? AND r.hash = ?{aged}", (rule, key_hash)
        rows = self._db.execute(f"SELECT count(*) FROM reference r WHERE {where[0]}", where[1]).fetchone()[0]
        found = self._db.execute(
            "SELECT c.topic, c.partition, c.key, c.value FROM reference r JOIN child c ON c.id = r.child"
            f" WHERE {where[0]} LIMIT {int(limit)}",
            where[1],
        )
        return int(rows), ((ChildKey(*row), value) for *row, value in found)

    def remove(self, child: int) -> None:
        self._db.execute("DELETE FROM reference WHERE child = ?", (child,))
        self._db.execute("DELETE FROM child WHERE id = ?", (child,))

    def rewrite(self, child: Child, value: bytes, headers: Headers) -> None:
        """What a batch makes of a child; its offset stays that of the record it was made from."""
        self._db.execute("UPDATE child SET value = ?, headers = ? WHERE id = ?", (value, _packed(headers), child.id))
        self._db.execute("DELETE FROM reference WHERE child = ?", (child.id,))
        self._index(child.id, child.at.topic, value)

    def children(self) -> int:
        """How many children the view holds."""
        return int(self._db.execute("SELECT count(*) FROM child").fetchone()[0])

    # --- the ledger

    def head(self, key_hash: bytes, spec: KeySpec) -> Head | None:
        head = self.head_record(key_hash)
        if head is None:
            return None
        fates: list[Fate] = [each.fate(spec) for each in self.fates(key_hash)]
        return Head(head.seen, tuple(sorted(fates, key=lambda fate: fate.version)), head.last)

    def fates(self, key_hash: bytes) -> list[FateRecord]:
        """What happened to a key, in no order."""
        found = self._db.execute("SELECT data FROM fate WHERE hash = ?", (key_hash,))
        return [records.decode_fate(data) for (data,) in found]

    def fates_to(self, key: str) -> list[tuple[HeadRecord, FateRecord]]:
        """The key changes, of whatever entity, that lead to the key with that canonical text; and whose they are."""
        found = self._db.execute(
            "SELECT h.data, f.data FROM fate f JOIN head h ON h.hash = f.hash WHERE f.moved_to = ?", (key,)
        )
        return [(records.decode_head(head), records.decode_fate(fate)) for head, fate in found]

    def exceptions(self, key_hash: bytes) -> list[ExceptionRecord]:
        """The effects of events of a key that dead letters stand for."""
        found = self._db.execute("SELECT data FROM exception WHERE hash = ?", (key_hash,))
        return [records.decode_exception(data) for (data,) in found]

    def fate(self, key_hash: bytes, version: Version) -> FateRecord | None:
        """What is kept of one fate of a key."""
        name = (key_hash, records.version_text(version))
        row = self._db.execute("SELECT data FROM fate WHERE hash = ? AND version = ?", name).fetchone()
        return None if row is None else records.decode_fate(row[0])

    def repair(self, name: bytes) -> RepairRecord | None:
        row = self._db.execute("SELECT data FROM repair WHERE name = ?", (name,)).fetchone()
        return None if row is None else records.decode_repair(row[0])

    def repairs(self, key_hash: bytes) -> list[RepairRecord]:
        """What was done to children of a key that were written late."""
        found = self._db.execute("SELECT data FROM repair WHERE hash = ?", (key_hash,))
        return [records.decode_repair(data) for (data,) in found]

    def head_record(self, key_hash: bytes) -> HeadRecord | None:
        """The head of a key alone, as the ledger has it."""
        row = self._db.execute("SELECT data FROM head WHERE hash = ?", (key_hash,)).fetchone()
        return None if row is None else records.decode_head(row[0])

    def swept(self, age_ms: int) -> tuple[int, bytes] | None:
        """Where a sweep is: when the last key's fate was enforced, and its hash; None: it has never begun."""
        row = self._db.execute("SELECT at_ms, hash FROM sweep WHERE age_ms = ?", (age_ms,)).fetchone()
        return None if row is None else (row[0], row[1])

    def set_swept(self, age_ms: int, place: SweepRecord) -> None:
        row = (age_ms, place.at_ms, bytes.fromhex(place.hash))
        self._db.execute("INSERT OR REPLACE INTO sweep VALUES (?, ?, ?)", row)

    def fates_due(self, after: tuple[int, bytes], until_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """The next fates in the order in which they were enforced: when, and the hash of the key."""
        found = self._db.execute(
            "SELECT at_ms, hash FROM fate WHERE (at_ms, hash) > (?, ?) AND at_ms <= ? ORDER BY at_ms, hash LIMIT ?",
            (*after, until_ms, limit),
        )
        return [(at_ms, digest) for at_ms, digest in found]

    def notes(self) -> list[bytes]:
        """The truncates that are to be carried out."""
        return [bytes(data) for (data,) in self._db.execute("SELECT note FROM truncation")]

    def has_note(self, id_: str) -> bool:
        return self._db.execute("SELECT 1 FROM truncation WHERE id = ?", (id_,)).fetchone() is not None

    def put_note(self, id_: str, data: bytes | None) -> None:
        """Note a truncate; None: it is carried out."""
        if data is None:
            self._db.execute("DELETE FROM truncation WHERE id = ?", (id_,))
        else:
            self._db.execute("INSERT OR REPLACE INTO truncation VALUES (?, ?)", (id_, data))

    def known_keys(self, entity: str, spec: KeySpec, after: bytes, keys_max: int) -> KnownKeys:
        """What is known of the next keys, by their hashes: those of one entity."""
        rows = self._db.execute(
            "SELECT hash, data FROM head WHERE hash > ? ORDER BY hash LIMIT ?", (after, keys_max)
        ).fetchall()
        found: list[tuple[Key, Head]] = []
        unreadable = 0
        for digest, data in rows:
            record = records.decode_head(data)
            if record.entity != entity:
                continue
            key = key_of_ledger(record.key, spec)
            # A long key is cut there, and one of another type than the rule gives now means nothing.
            head = None if key is None or key_hash(entity, key) != digest else self.head(digest, spec)
            if key is None or head is None:
                unreadable += 1
            else:
                found.append((key, head))
        return KnownKeys(found, bytes(rows[-1][0]) if len(rows) == keys_max else None, unreadable)

    def put_head(self, key_hash: bytes, data: bytes) -> None:
        self._put_head(key_hash, data)

    def put_fate(self, key_hash: bytes, version: Version, data: bytes) -> None:
        self._put_fate(key_hash, records.version_text(version), data)

    def pending(self, key_hash: bytes) -> list[Pending]:
        """The effects that were left out of a key."""
        return [
            Pending(each.dependent, each.event, each.version or EARLIEST, each.id, each.reason)
            for each in self.exceptions(key_hash)
        ]

    def put_exception(self, name: bytes, data: bytes | None) -> None:
        """Note an effect that was left out; None: it is no exception any more."""
        if data is None:
            self._db.execute("DELETE FROM exception WHERE name = ?", (name,))
        else:
            digest = bytes.fromhex(records.decode_exception(data).at)
            self._db.execute("INSERT OR REPLACE INTO exception VALUES (?, ?, ?)", (name, digest, data))

    def progress(self) -> Mapping[TopicPartition, int]:
        rows = self._db.execute("SELECT topic, partition, next FROM progress")
        return {TopicPartition(topic, partition): next_ for topic, partition, next_ in rows}

    def parts(self, at: TopicPartition) -> Parts:
        """What parts of an event have done, as it is kept beside the progress."""
        row = self._db.execute("SELECT data FROM progress WHERE topic = ? AND partition = ?", at).fetchone()
        return {} if row is None else records.decode_progress(row[0]).parts

    def set_progress(self, at: TopicPartition, progress: ProgressRecord) -> None:
        row = (*at, progress.next, records.encode(progress))
        self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?)", row)

    def arrivals(self) -> int:
        """How many children count as arrivals."""
        return int(self._db.execute("SELECT count(*) FROM arrival").fetchone()[0])

    def arrivals_at(self, rule: int, key_hash: bytes) -> list[tuple[bytes, Version]]:
        """The arrivals at a key: their record's key, and since when they are there."""
        rows = self._db.execute("SELECT name, since FROM arrival WHERE rule = ? AND hash = ?", (rule, key_hash))
        return [(name, records.decode_version(since)) for name, since in rows.fetchall()]

    def add_arrival(self, rule: int, child: ChildKey, entity: str, key: Key, since: Version) -> tuple[bytes, bytes]:
        """Count a child as an arrival; the record of it, key and value."""
        dependent = self._rules[rule].rule.id
        name, digest = records.arrival_key(dependent, child), key_hash(entity, key)
        self._insert_arrival(name, rule, digest, since, child)
        return name, records.encode(ArrivalRecord.of(dependent, child, digest, since))

    def _insert_arrival(self, name: bytes, rule: int, key_hash: bytes, since: Version, child: ChildKey) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO arrival VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, rule, key_hash, records.encode(since), *child),
        )

    def remove_arrival(self, name: bytes) -> None:
        self._db.execute("DELETE FROM arrival WHERE name = ?", (name,))

    # --- what children were

    def keep(self, record: UndoRecord) -> tuple[bytes, bytes]:
        """Keep what a child was, as the newest; the record of it, key and value."""
        number = int(self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM undo").fetchone()[0])
        data = records.pack(record)
        self.put_kept(number, data)
        return records.undo_key(number), data

    def put_kept(self, number: int, data: bytes | None) -> None:
        """Note what was kept under that number; None: it is not kept any more."""
        if data is None:
            self._db.execute("DELETE FROM undo WHERE number = ?", (number,))
            return
        record = records.decode_undo(data)
        row = (number, record.event, record.dependent, record.at_ms, record.expires_ms, *record.child, data)
        self._db.execute("INSERT OR REPLACE INTO undo VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def kept(self, portion: Portion, limit: int) -> list[tuple[int, UndoRecord]]:
        """What was kept and is chosen, the newest first."""
        where, values = _chosen(portion)
        if portion.before is not None:
            where, values = f"{where} AND number < ?", [*values, int(portion.before)]
        found = self._db.execute(
            f"SELECT number, data FROM undo WHERE {where} ORDER BY number DESC LIMIT ?", (*values, limit)
        )
        return [(number, records.decode_undo(data)) for number, data in found]

    def is_followed(self, number: int, record: UndoRecord, portion: Portion) -> bool:
        """Whether something newer is chosen that was kept of the same child, by the same rule."""
        where, values = _chosen(portion)
        found = self._db.execute(
            "SELECT 1 FROM undo WHERE topic = ? AND partition = ? AND key = ? AND dependent = ? AND number > ?"
            f" AND {where} LIMIT 1",
            (*record.child, record.dependent, number, *values),
        )
        return found.fetchone() is not None

    def expired(self, at_ms: int, limit: int) -> list[int]:
        """The numbers of some of what has expired."""
        found = self._db.execute(
            "SELECT number FROM undo WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?", (at_ms, limit)
        )
        return [number for (number,) in found]

    def undone(self, key_hash: bytes) -> list[UndoneRecord]:
        """What was put back of what events had changed: of events of a key, or of rows that referred to it."""
        found = self._db.execute("SELECT data FROM undone WHERE hash = ?", (key_hash,))
        return [records.decode_undone(data) for (data,) in found]

    def value(self, child: ChildKey) -> bytes | None:
        """The value of a child; None where there is none."""
        row = self._db.execute(
            "SELECT value FROM child WHERE topic = ? AND partition = ? AND key = ?", child
        ).fetchone()
        return None if row is None else bytes(row[0])

    # --- what an owner wrote between look and act

    def mends(self) -> Iterator[tuple[ChildKey, Overtaken, bytes | None]]:
        """What to publish so that every child is as if its owner's record had been there when the batch looked: an
        owner's record that still references the key would have gone the same way, any other is published again."""
        for at, overtaken in self.overtaken.items():
            wanted = self._redone(at.topic, overtaken)
            if wanted != overtaken.steps[-1][1]:
                yield at, overtaken, wanted

    def _redone(self, topic: str, overtaken: Overtaken) -> bytes | None:
        value = overtaken.value
        for mark, ours in overtaken.steps:
            rule = self._number.get(mark.dependent)
            if value is None or rule is None:
                continue
            reference = self.references(topic, value).get(rule)
            if reference is None or reference.hash.hex() != mark.source:
                continue
            if mark.born is not None and not mark.born.holds(reference.born):
                continue
            if ours is None:
                return None
            # Where its owner writes it in another form by now, what the owner wrote counts.
            with contextlib.suppress(Unwritable):
                value = self._rules[rule].transplanted(value, ours)
        return value


def _chosen(portion: Portion) -> tuple[str, list[object]]:
    """The condition of a choice, and its values."""
    choice = portion.choice
    conditions = ["expires_ms > ?"]
    found: list[object] = [portion.at_ms]
    if choice.event is not None:
        conditions.append("event = ?")
        found.append(choice.event)
    if choice.since_ms is not None:
        conditions.append("at_ms >= ?")
        found.append(choice.since_ms)
    if choice.dependents:
        conditions.append(f"dependent IN ({', '.join('?' for _ in choice.dependents)})")
        found += sorted(choice.dependents)
    return " AND ".join(conditions), found


def _micros(ms: int | None) -> int:
    return _INT64_MIN if ms is None else ms * 1000


def _packed(headers: Headers) -> bytes | None:
    return msgspec.msgpack.encode(headers) if headers else None


_decode_headers = msgspec.msgpack.Decoder(Headers).decode


def _unpacked(data: bytes | None) -> Headers:
    return () if data is None else _decode_headers(data)
