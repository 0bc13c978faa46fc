"""The format `integrity`: what follows for rows that are parents, told to the stores that can't see those rows.

A record is JSON, both ways exact. Its key is the row's key as an object (`{"id":7}`), so that a key keeps its
partition; its value names the entity, the key and its change in canonical form, and the version, which counts per key:

    {"entity":"order","op":"deleted","key":[7],"to":null,"version":[0,1],"id":"...","cause":"...","occurred_ms":1}

`op` is deleted, key_changed (with `to`), or arrived: the other half of a key change, under the key that it led to. It
tells that this key's own records have reached that version. `id` is stable: a record may be there twice.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.decode.json import JsonFault, check_text
from integrity.core.decode.record import Decoded, Decoder, Limits, Record, Undecodable
from integrity.core.keys import Key, KeySpec, canonical, parse_canonical
from integrity.errors import Reason

_OPS = {"deleted": Op.DELETED, "key_changed": Op.MOVED, "arrived": Op.ARRIVED}


class DerivedEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value of a record."""

    entity: str
    op: Literal["deleted", "key_changed", "arrived"]
    key: msgspec.Raw
    to: msgspec.Raw
    version: tuple[int, int]
    id: str
    cause: str
    occurred_ms: int


_OCCURRED_MIN, _OCCURRED_MAX = -62_135_596_800_000, 253_402_300_799_999
_NULL = msgspec.Raw(b"null")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DerivedEvent, strict=True).decode


def derived_value(
    entity: str, op: Op, key: Key, to: Key | None, version: Version, id_: str, cause: str, occurred_ms: int
) -> bytes:
    """The value of a record; `version` counts per key."""
    name: Literal["deleted", "key_changed", "arrived"]
    match op:
        case Op.DELETED:
            name = "deleted"
        case Op.MOVED:
            name = "key_changed"
        case Op.ARRIVED:
            name = "arrived"
        case Op.ALIVE | Op.GONE | Op.MISSING:
            raise AssertionError("nothing follows from it")
    [count] = version.position
    after = _NULL if to is None else msgspec.Raw(canonical(to).encode())
    return _encode(
        DerivedEvent(
            entity, name, msgspec.Raw(canonical(key).encode()), after, (version.epoch, count), id_, cause, occurred_ms
        )
    )


def derived_key(spec: KeySpec, key: Key) -> bytes:
    """The key of a record: an object of the key's fields."""
    fields = zip(spec.names, msgspec.json.decode(canonical(key), type=list[msgspec.Raw]), strict=True)
    return _encode(dict(fields))


def derived_decoder(entity: str, spec: KeySpec, limits: Limits, epoch: int = 0) -> Decoder:
    """Reads the records of one entity. Strict: whatever this program would not have written is refused. `epoch` is
    added to the one of each event."""

    def decode(record: Record) -> Decoded:
        if record.value is None:
            return Undecodable(Reason.EMPTY_VALUE, "the record has no value", "value")
        try:
            check_text(record.value, limits)
            event = _decode(record.value)
        except JsonFault as exc:
            return Undecodable(exc.reason, exc.message, "value")
        except msgspec.ValidationError:
            return Undecodable(Reason.BAD_ENVELOPE, "the value is no derived event of this program", "value")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return Undecodable(Reason.BAD_JSON, "the value is not valid JSON", "value")
        op = _OPS[event.op]
        if event.entity != entity:
            return Undecodable(Reason.BAD_ENVELOPE, f"the event is none of {entity}", "value")
        try:
            key = parse_canonical(bytes(event.key).decode(), spec)
            moves = bytes(event.to) != b"null"
            to = parse_canonical(bytes(event.to).decode(), spec) if moves else None
        except ValueError:
            return Undecodable(Reason.TYPE_MISMATCH, "a key is none of the type that the rule gives", "value")
        if (to is None) == (op is Op.MOVED) or to == key:
            return Undecodable(
                Reason.BAD_ENVELOPE, "a key change has another key to lead to, nothing else has", "value"
            )
        if record.key != derived_key(spec, key):
            return Undecodable(Reason.BAD_ENVELOPE, "the record's key is not the one of its value", "key")
        if not _OCCURRED_MIN <= event.occurred_ms <= _OCCURRED_MAX:
            return Undecodable(Reason.BAD_ENVELOPE, "occurred_ms is beyond the years 1 to 9999", "value")
        if min(event.version) < 0:
            return Undecodable(Reason.BAD_VERSION, "a version is never negative", "value")
        origin = Origin(record.topic, record.partition, record.offset, record.timestamp_ms)
        version = Version(epoch + event.version[0], (event.version[1],))
        return ParentChange(entity, op, key, to, version, origin, event.occurred_ms, _traceparent(record))

    return decode


def _traceparent(record: Record) -> str | None:
    for name, value in record.headers:
        if name == "traceparent" and value is not None and value.isascii():
            return value.decode()
    return None
