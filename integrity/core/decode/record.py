"""What goes into a decoder and what comes out: values only, no decoder raises past this border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from integrity.core.change import Op, Origin, ParentChange, Row, Truncation, Version
from integrity.core.keys import Key
from integrity.errors import Reason

Headers = Sequence[tuple[str, bytes | None]]
TRACEPARENT = "traceparent"
"""The header of a trace."""


class Record(NamedTuple):
    """A Kafka record as it came. `timestamp_ms` is in milliseconds since the epoch, -1 when there is none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Ignored(NamedTuple):
    """A record that says nothing about a key: an update that keeps it, a heartbeat, a logical message, or a truncate
    where the rule says that it does nothing.

    `op` is the metric label (u, t, m, heartbeat, transaction); `why` is a constant sentence for the log.
    """

    op: str
    why: str


UPDATED = Ignored("u", "An update keeps its key.")
TRUNCATED = Ignored("t", "A truncate names no key.")
MESSAGE = Ignored("m", "A logical message says nothing about a key.")
SAME_KEY = Ignored("d", "The key change leads to an equal key.")
TOMBSTONE = Ignored("tombstone", "The rule says that null records say nothing.")
SNAPSHOT = Ignored("r", "A snapshot read without a position cannot be placed in the order of changes.")


class Undecodable(NamedTuple):
    """A record that becomes a dead letter. `stage` is key, value or header; `message` names the field and the fault,
    never more than 200 characters of a value. `repeated`: a null record of its key that follows at once repeats what
    this one was to say, and is no event of its own."""

    reason: Reason
    message: str
    stage: str
    repeated: bool = False


class Unread(bytes):
    """The value of a record that stands for a whole batch of them, which was not unpacked. No format takes it for an
    event: it is no JSON."""

    @classmethod
    def of(cls, first: int, last: int, bytes_max: int) -> Unread:
        """For the batch from one offset to another."""
        return cls(b"not read: the batch of offsets %d to %d unpacks to more than %d bytes" % (first, last, bytes_max))

    @property
    def refusal(self) -> Undecodable:
        """Why it is a dead letter."""
        message = f"It stands for what was {self.decode()}. What happened to parents in it is unknown: integrity scan."
        return Undecodable(Reason.TOO_LARGE, message, "value")


class Refused(Exception):
    """A record becomes a dead letter: raised inside a decoder, which catches it."""

    def __init__(self, reason: Reason, message: str, stage: str) -> None:
        super().__init__(message)
        self.undecodable = Undecodable(reason, message, stage)


class Half(NamedTuple):
    """A deletion (`ends`) or creation of a source that does not mark key changes: `change` is what it says unless it is
    half of one (`core.decode.halves`). `group` is the same in both halves. Where the source counts what has one place,
    `serial` is that number: 1 of the first half, 2 of the second. `key` is the record key."""

    change: ParentChange
    ends: bool
    group: tuple[object, ...]
    serial: int | None
    key: bytes | None


Decoded = ParentChange | Half | Truncation | Ignored | Undecodable

Decoder = Callable[[Record], Decoded]
"""Makes of one record what it says. Never raises on any bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is decoded; beyond them a record is a dead letter, not a stall."""

    record_bytes_max: int = 8 * 1024 * 1024
    """A larger key or value is refused unread (`too_large`). Kafka's own default limit is 1 MiB."""
    depth_max: int = 100
    """Nesting beyond this is refused (`too_deep`)."""
    key_text_max: int = 4096
    """The longest string or byte key part, in characters or bytes (`too_large`)."""
    digits_max: int = 1000
    """The most digits of a number key (`bad_number`); PostgreSQL's drivers misread numbers of 131,072 digits."""
    headers_max: int = 1000
    """Headers beyond this many are not read."""


# The years 1 to 9999, in milliseconds since the epoch: what a store can keep as a time.
_OCCURRED_MIN, _OCCURRED_MAX = -62_135_596_800_000, 253_402_300_799_999
_TRACEPARENT_MAX = 255
# Measured: a named tuple made by name costs twice what it costs made from a tuple.
_tuple = tuple.__new__


def change_of(
    record: Record,
    entity: str,
    op: Op,
    key: Key,
    to: Key | None,
    version: Version | None,
    occurred_ms: object,
    traceparent: str | None,
    row: Row | None = None,
) -> ParentChange:
    """What a record says of a key. `occurred_ms` is what the source says, whatever it is: no time that a store can
    keep, and the record's timestamp stands in for it."""
    origin = _tuple(Origin, record[:4])
    if type(occurred_ms) is not int or not _OCCURRED_MIN <= occurred_ms <= _OCCURRED_MAX:
        occurred_ms = min(max(origin.timestamp_ms, _OCCURRED_MIN), _OCCURRED_MAX)
    return _tuple(ParentChange, (entity, op, key, to, version, origin, occurred_ms, traceparent, row, ""))


def truncation_of(
    record: Record, entity: str, version: Version, occurred_ms: object, traceparent: str | None
) -> Truncation:
    """What a record says of all keys; `occurred_ms` as that of a change."""
    said = change_of(record, entity, Op.DELETED, (), None, version, occurred_ms, traceparent)
    return Truncation(entity, version, said.origin, said.occurred_ms, traceparent)


def traceparent_in(value: bytes | None, headers: Headers, limits: Limits) -> str | None:
    """The value of the header `traceparent`, unverified; None where it is none, or among too many headers."""
    if value is None or len(value) > _TRACEPARENT_MAX or len(headers) > limits.headers_max or not value.isascii():
        return None
    return value.decode("ascii")


def trace_of(headers: Headers, limits: Limits) -> str | None:
    """The header `traceparent`, unverified; of several the last."""
    trace = None
    for name, value in headers:
        if name == TRACEPARENT:
            trace = value
    return traceparent_in(trace, headers, limits)
