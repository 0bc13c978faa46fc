"""What happened to one parent key, and when in the order of its source.

A `ParentChange` is what decoding makes of a record. Its `version` places it in the source's order: per key, versions
grow (a row lock or a unique index orders the writers), also along key changes, since the writer that moves a row onto
a key, or off it, holds that row. Versions of different keys in one topic need not grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from integrity.core.keys import FieldHint, Key


class Version(NamedTuple):
    """A place in a source's order; compares as (epoch, position), position part by part.

    `epoch` is raised by an operator when a source starts counting anew. `position` is what the source gives:
    PostgreSQL (lsn,), or the Kafka position (offset,) where the source gives nothing. A position that continues
    another, (lsn, 1) after (lsn,), is later than it and earlier than every greater one.
    """

    epoch: int
    position: tuple[int, ...]

    @property
    def text(self) -> str:
        """`epoch:position`, such as `0:25165824`; a position's parts are joined by points."""
        epoch, position = self
        if len(position) == 1:
            return f"{epoch}:{position[0]}"
        return f"{epoch}:{'.'.join(map(str, position))}"


def parse_version(text: str) -> Version:
    """The version of a `text`."""
    epoch, _, position = text.partition(":")
    return Version(int(epoch), tuple(map(int, position.split("."))) if position else ())


EARLIEST = Version(-1, ())
"""Older than every version of an event."""


class Op(Enum):
    """What a change says of its key."""

    ALIVE = "alive"
    """The parent exists (it was created, or a snapshot read it). Never acts on a dependent."""
    ARRIVED = "arrived"
    """The parent exists under this key since a key change: the second half of a MOVED, at the same version. Never
    acts on a dependent; tells that the key's own events have reached that version."""
    DELETED = "deleted"
    MOVED = "moved"
    """The parent's key changed to `to`."""
    GONE = "gone"
    """A null record: a duplicate after a deletion or key change of the same key, otherwise a deletion (or, with
    `to`, a key change) whose own record compaction has removed. Has no version of its own."""
    MISSING = "missing"
    """Nobody told: the parent is looked for and is not there. Of a key that is gone by what was heard of it, its newest
    fate acts once more, a key change with its `to`; of any other key it is a deletion, after all that was heard."""


class Origin(NamedTuple):
    """Where in Kafka a record stands; `timestamp_ms` is the record's, since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def event_id(self) -> str:
        """The stable name of the event: `topic/partition/offset`."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class Cell(NamedTuple):
    """A field of a parent's row as the source wrote it (strict JSON: exact numbers), and what its schema says."""

    value: object
    hint: FieldHint | None = None


Row = Mapping[str, Cell | None]
"""The fields of a parent's row that a copy wants. None: the source did not send it, for it has not changed. A field
that is not there is none of the row's."""


class ParentChange(NamedTuple):
    """One thing that happened to one parent key.

    `version` is None only for `Op.GONE` and `Op.MISSING`, and for a row that an incremental snapshot has read, which
    names no place. `occurred_ms` is when the source says it was committed, in milliseconds since the epoch (the
    record's timestamp when it says nothing). It is told as `$event.time`, and decides nothing but which rows are too
    young for the change, where a rule has `as_of`.
    `traceparent` is the W3C header as it came, unverified, or None. `row` is what an ALIVE or ARRIVED has for the
    copy that is being read for, else None. `tenant` is whose it is, where the rule says how that is told, else "".
    """

    entity: str
    op: Op
    key: Key
    to: Key | None
    version: Version | None
    origin: Origin
    occurred_ms: int
    traceparent: str | None = None
    row: Row | None = None
    tenant: str = ""


class Truncation(NamedTuple):
    """All parents of an entity were removed at once. `version` has a place among those of every key of its source: none
    of them has an event in between that began before it and ended after it."""

    entity: str
    version: Version
    origin: Origin
    occurred_ms: int
    traceparent: str | None = None
