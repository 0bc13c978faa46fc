"""What is written to Kafka and read from it, and the ledger's records: their keys, their values, both ways.

The ledger is a compacted topic beside the children. Its records are JSON, named by what they say: `head|<hash>`,
`fate|<hash>|<version>`, `progress|<lane>|<topic>|<partition>`, `arrival|<dependent>|<topic>|<partition>|<hash>`,
`exception|<dependent>|<event>`, `sweep|<lane>|<age>`, `repair|<hash>|<dependent>|<time>`, `writes|<topic>|<partition>`,
`undone|<hash>|<dependent>|<event>|<time>`; and, in MessagePack, since they hold a record's bytes, `undo|<number>` and
`truncate|<lane>|<event>`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from integrity.core.batch import TopicPartition
from integrity.core.change import Version
from integrity.core.fold import Born
from integrity.core.keys import KeySpec, canonical, parse_canonical
from integrity.core.ledger import Done, Fate, LastRecord

Headers = tuple[tuple[str, bytes | None], ...]

MARK: Final = "integrity.enforced"
"""The header of every record that this program writes to a child topic: a Mark."""

_KEY_TEXT_MAX: Final = 1024
"""The clear key beside its hash is for people; a longer one is cut."""


class Write(NamedTuple):
    """A record to publish. `dependent` is None for the ledger's own."""

    at: TopicPartition
    key: bytes
    value: bytes | None
    headers: Headers
    dependent: str | None


class ChildKey(NamedTuple):
    """What makes a child the same child: where it stands and its key's bytes."""

    topic: str
    partition: int
    key: bytes


class ReadRecord(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a record of ours was made from: the child's record at `base`, which by `dependent` referenced the key with
    hash `source`, and was of the age `born` where that matters. A repair has no dependent."""

    base: int
    dependent: str = ""
    source: str = ""
    born: Born | None = None


class HeadRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    entity: str
    key: str
    seen: Version | None = None
    last: LastRecord | None = None


class FateRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fate, with the action and rows per dependent, when it was enforced (milliseconds) and the trace it is in."""

    version: Version
    event: str
    occurred_ms: int
    at_ms: int
    to: str | None = None
    rows: dict[str, Done] = {}
    trace: str = ""

    @classmethod
    def of(cls, fate: Fate, rows: dict[str, Done], at_ms: int, trace_id: str) -> FateRecord:
        to = None if fate.to is None else canonical(fate.to)
        return cls(fate.version, fate.event_id, fate.occurred_ms, at_ms, to, rows, trace_id)

    def fate(self, spec: KeySpec) -> Fate:
        to = None if self.to is None else parse_canonical(self.to, spec)
        return Fate(self.version, to, self.event, self.occurred_ms)


class ProgressRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The next offset of a partition, and what parts of an event have done already."""

    next: int
    parts: dict[str, dict[str, int]] = {}


class ArrivalRecord(msgspec.Struct, frozen=True):
    """A child that references the key with hash `at` since a key change at that version. `key` is base64."""

    dependent: str
    topic: str
    partition: int
    key: str
    at: str
    since: Version

    @classmethod
    def of(cls, dependent: str, child: ChildKey, at: bytes, since: Version) -> ArrivalRecord:
        return cls(dependent, child.topic, child.partition, b64encode(child.key).decode(), at.hex(), since)

    @property
    def child(self) -> ChildKey:
        return ChildKey(self.topic, self.partition, b64decode(self.key))


class ExceptionRecord(msgspec.Struct, frozen=True):
    """An event that a dead letter stands for, on one dependent. `at` is the hash of the key."""

    at: str
    entity: str
    key: str
    event: str
    dependent: str
    reason: str
    id: str
    at_ms: int
    version: Version | None = None


class SweepRecord(msgspec.Struct, frozen=True):
    """The last key that a sweep has looked at: when its fate was enforced, and its hash."""

    at_ms: int
    hash: str


class RepairRecord(msgspec.Struct, frozen=True):
    """Children that were written late and went the way of a fate that had been enforced before."""

    dependent: str
    action: str
    rows: int
    event: str
    at_ms: int


class UndoRecord(msgspec.Struct, frozen=True, array_like=True):
    """A child as it was before an event, and what that made of it (None: it went). `at` is the hash of the key that it
    referred to; `entity` and `key` are the event's."""

    event: str
    version: Version
    entity: str
    key: str
    dependent: str
    at: bytes
    action: str
    child: ChildKey
    before: bytes | None
    headers: Headers
    after: bytes | None
    at_ms: int
    expires_ms: int


class UndoneRecord(msgspec.Struct, frozen=True):
    """What somebody put back of what an event had changed."""

    dependent: str
    event: str
    rows: int
    at_ms: int
    actor: str
    note: str


class WritesRecord(msgspec.Struct, frozen=True):
    """The offsets, first and last, of what the newest transaction that wrote to a child partition wrote there."""

    ranges: tuple[tuple[int, int], ...]


encode = msgspec.json.Encoder().encode
decode_head = msgspec.json.Decoder(HeadRecord).decode
decode_fate = msgspec.json.Decoder(FateRecord).decode
decode_progress = msgspec.json.Decoder(ProgressRecord).decode
decode_arrival = msgspec.json.Decoder(ArrivalRecord).decode
decode_exception = msgspec.json.Decoder(ExceptionRecord).decode
decode_sweep = msgspec.json.Decoder(SweepRecord).decode
decode_repair = msgspec.json.Decoder(RepairRecord).decode
pack = msgspec.msgpack.Encoder().encode
decode_undo = msgspec.msgpack.Decoder(UndoRecord).decode
decode_undone = msgspec.json.Decoder(UndoneRecord).decode
decode_writes = msgspec.json.Decoder(WritesRecord).decode
decode_version = msgspec.json.Decoder(Version).decode
_decode_mark = msgspec.json.Decoder(Mark).decode


def head_key(key_hash: bytes) -> bytes:
    return b"head|" + key_hash.hex().encode()


def fate_key(key_hash: bytes, version: Version) -> bytes:
    return f"fate|{key_hash.hex()}|{version_text(version)}".encode()


def progress_key(lane: str, at: TopicPartition) -> bytes:
    return f"progress|{lane}|{at.topic}|{at.partition}".encode()


def arrival_key(dependent: str, child: ChildKey) -> bytes:
    digest = blake2b(child.key, digest_size=16).hexdigest()
    return f"arrival|{dependent}|{child.topic}|{child.partition}|{digest}".encode()


def exception_key(dependent: str, event_id: str) -> bytes:
    return f"exception|{dependent}|{event_id}".encode()


def sweep_key(lane: str, age_ms: int) -> bytes:
    return f"sweep|{lane}|{age_ms}".encode()


def note_key(lane: str, id_: str) -> bytes:
    return f"truncate|{lane}|{id_}".encode()


def repair_key(key_hash: bytes, dependent: str, at_ms: int) -> bytes:
    return f"repair|{key_hash.hex()}|{dependent}|{at_ms}".encode()


def undo_key(number: int) -> bytes:
    return f"undo|{number}".encode()


def undone_key(key_hash: bytes, dependent: str, event: str, at_ms: int) -> bytes:
    return f"undone|{key_hash.hex()}|{dependent}|{event}|{at_ms}".encode()


def writes_key(at: TopicPartition) -> bytes:
    return f"writes|{at.topic}|{at.partition}".encode()


def version_text(version: Version) -> str:
    return ".".join(map(str, (version.epoch, *version.position)))


def clear_key(text: str) -> str:
    """A key's text, cut to what a ledger shows."""
    return text if len(text) <= _KEY_TEXT_MAX else text[:_KEY_TEXT_MAX] + "…"


def shown(key: bytes) -> str:
    """A record's key as text; what is no text as base64."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return b64encode(key).decode()


def marked(headers: Headers, mark: Mark) -> Headers:
    """The owner's headers and our mark."""
    return (*((name, value) for name, value in headers if name != MARK), (MARK, encode(mark)))


def mark_of(headers: Headers) -> Mark | None:
    """The mark among headers. Anyone may have copied it: it counts only at an offset that is known as ours."""
    for name, value in reversed(headers):
        if name == MARK and value is not None:
            try:
                return _decode_mark(value)
            except msgspec.DecodeError:
                return None
    return None
