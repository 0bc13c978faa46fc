"""What goes into a decoder and what comes out: values only, no decoder raises past this border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from integrity.core.change import ParentChange
from integrity.errors import Reason

Headers = Sequence[tuple[str, bytes | None]]


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
    """A record that says nothing about a key: an update that keeps it, a heartbeat, a truncate, a logical message.

    `op` is the metric label (u, t, m, heartbeat, transaction); `why` is a constant sentence for the log.
    """

    op: str
    why: str


class Undecodable(NamedTuple):
    """A record that becomes a dead letter. `stage` is key, value or header; `message` names the field and the fault,
    never more than 200 characters of a value."""

    reason: Reason
    message: str
    stage: str


Decoded = ParentChange | Ignored | Undecodable

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
