"""MongoDB's Extended JSON, parsed: what one BSON value is, exactly; or it is refused.

All dialects are read: v1 strict (`{"$date": 5}`, `{"$binary": "..", "$type": "04"}`), v2 canonical
(`{"$numberInt": "7"}`) and v2 relaxed (bare whole numbers are integers, numbers with a point or exponent doubles). Text
is a string in all of them, never the number or the value that it looks like. SimplifiedJson of the MongoDB Kafka
connector is not Extended JSON: it writes an ObjectId as bare text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import NamedTuple
from uuid import UUID

from integrity.core.change import Cell
from integrity.core.keys import DEFAULT_BOUNDS, GATES, Bounds, Exponential, FieldHint, KeyRefused, KeyType, Scalar
from integrity.errors import Reason

OBJECTID = "mongodb.ObjectId"
"""The name of the hint on a copied ObjectId, which is text of 24 hex digits."""

_DECIMAL = FieldHint("bytes", "org.apache.kafka.connect.data.Decimal")
_MOMENT = FieldHint("int64", "org.apache.kafka.connect.data.Timestamp")
_UUID, _BYTES = FieldHint("string", "io.debezium.data.Uuid"), FieldHint("bytes")
_DOUBLE, _WHOLE = FieldHint("double"), FieldHint("int64")
_GENERIC, _LEGACY_UUID, _UUID_BYTES = 0x00, 0x03, 0x04
"""Subtypes of binary."""

_INTEGER = re.compile("-?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,6})?")
_DOUBLE_TEXT_MAX = 400
_SUBTYPE = re.compile("[0-9a-fA-F]{1,2}")
_INT32, _INT64 = range(-(2**31), 2**31), range(-(2**63), 2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ObjectId(NamedTuple):
    """24 hex digits."""

    text: str


class Double(NamedTuple):
    """A double as it is printed; not always a finite one."""

    text: str


class Binary(NamedTuple):
    """Base64 text and the subtype."""

    base64: str
    subtype: int


class Moment(NamedTuple):
    """Milliseconds since the epoch."""

    ms: int


class Other(NamedTuple):
    """A BSON type that stands for no scalar here: a regular expression, a timestamp, code, a reference."""


Value = (
    bool
    | int
    | str
    | Decimal
    | UUID
    | ObjectId
    | Double
    | Binary
    | Moment
    | Other
    | Mapping[str, object]
    | list[object]
)
"""A BSON value that is not null. A Decimal is a Decimal128; documents and lists are as they were parsed."""


def value_of(parsed: object) -> Value | None:
    """The BSON value that parsed Extended JSON stands for. KeyRefused when it is none."""
    match parsed:
        case None | bool() | int() | str():
            return parsed
        case Decimal():
            return Double(str(parsed))
        case Exponential():
            return Double(parsed.text)
        case list():
            return parsed
        case dict():
            return _typed(parsed) if any(name.startswith("$") for name in parsed) else parsed
        case _:
            raise AssertionError(f"JSON has no {type(parsed).__name__}")


def scalar_of(kind: KeyType, parsed: object, bounds: Bounds, *, is_simplified: bool = False) -> Scalar:
    """The key part of this type that a BSON value is. KeyRefused when it is not exactly one.

    Integers of either width, doubles and decimals are equal in MongoDB where their values are. Here too, but for a
    double, which is never an int32 or int64 key, whole or not. `is_simplified`: an ObjectId may be bare text.
    """
    value = value_of(parsed)
    gate = GATES[kind]
    if value is None:
        return gate(None, None, bounds)
    match kind, value:
        case KeyType.STRING, str():
            return gate(value, None, bounds)
        case KeyType.BOOL, bool():
            return value
        case KeyType.INT32 | KeyType.INT64 | KeyType.NUMERIC, int() if not isinstance(value, bool):
            return gate(value, None, bounds)
        case KeyType.NUMERIC, Decimal():
            return _decimal(value, bounds)
        case KeyType.NUMERIC, Double(text):
            return _exact(text, bounds)
        case KeyType.UUID, UUID():
            return value
        case KeyType.UUID | KeyType.DATE | KeyType.TIMESTAMP, str():
            return gate(value, None, bounds)
        case KeyType.UUID, Binary(base64, subtype):
            return _uuid(base64, subtype, bounds)
        case KeyType.BYTES, Binary(base64, subtype) if subtype == _GENERIC:
            return gate(base64, _BYTES, bounds)
        case KeyType.OBJECTID, ObjectId(text):
            return gate(text, None, bounds)
        case KeyType.OBJECTID, str() if is_simplified:
            return gate(value, None, bounds)
        case KeyType.TIMESTAMP, Moment(ms):
            return _moment(ms)
        case KeyType.DATE, Moment(ms):
            moment = _moment(ms)
            if moment.timetz() != _EPOCH.timetz():
                raise KeyRefused(Reason.TYPE_MISMATCH, "the moment is not midnight in UTC, as a date is")
            return moment.date()
        case _:
            raise KeyRefused(Reason.TYPE_MISMATCH, f"{_described(value)} is no {kind.value}")


def cell_of(parsed: object) -> Cell:
    """A field of a document as a copy takes it. KeyRefused when its value has no exact form there."""
    value = value_of(parsed)
    match value:
        case None | bool() | str():
            return Cell(value)
        case int():
            return Cell(value, _WHOLE)
        case Decimal():
            return Cell(value, _DECIMAL)
        case Double(text):
            return Cell(_finite(text), _DOUBLE)
        case UUID():
            return Cell(str(value), _UUID)
        case ObjectId(text):
            return Cell(text, FieldHint("string", OBJECTID))
        case Moment(ms):
            return Cell(ms, _MOMENT)
        case Binary(base64, subtype) if subtype == _GENERIC:
            return Cell(base64, _BYTES)
        case Binary(base64, subtype) if subtype == _UUID_BYTES:
            return Cell(str(_uuid(base64, subtype, DEFAULT_BOUNDS)), _UUID)
        case list() | dict():
            return Cell(_inner(value))
        case _:
            raise KeyRefused(Reason.TYPE_MISMATCH, f"{_described(value)} has no exact form in a copy")


def plain_of(parsed: object) -> object:
    """A BSON value as conditions take it: numbers as numbers, an ObjectId and a UUID as text, a moment as text in
    ISO 8601. What has no such form stays as it is written."""
    try:
        value = value_of(parsed)
        match value:
            case Decimal():
                return float(value)
            case Double(text):
                return float(text)
            case UUID():
                return str(value)
            case ObjectId(text):
                return text
            case Moment(ms):
                return f"{_moment(ms).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
            case Binary(base64, subtype):
                return str(_uuid(base64, subtype, DEFAULT_BOUNDS)) if subtype == _UUID_BYTES else base64
            case list():
                return [plain_of(part) for part in value]
            case None | bool() | int() | str():
                return value
            case Other():
                return parsed
            case _:
                return {name: plain_of(part) for name, part in value.items()}
    except KeyRefused:
        return parsed


def _inner(parsed: object) -> object:
    """What is inside a document or list, as strict JSON: only what that can say."""
    value = value_of(parsed)
    match value:
        case None | bool() | int() | str():
            return value
        case Double(text):
            return _finite(text)
        case list():
            return [_inner(part) for part in value]
        case dict():
            return {name: _inner(part) for name, part in value.items()}
        case _:
            raise KeyRefused(
                Reason.TYPE_MISMATCH, f"{_described(value)} inside a document or list has no exact form in a copy"
            )


def _typed(parsed: Mapping[str, object]) -> Value:
    match parsed:
        case {"$oid": str(text)} if len(parsed) == 1:
            if len(text) == 24 and text.isascii():
                return ObjectId(text)
        case {"$numberInt": str(text)} if len(parsed) == 1:
            if _INTEGER.fullmatch(text) and int(text) in _INT32:
                return int(text)
        case {"$numberLong": str(text)} if len(parsed) == 1:
            if _INTEGER.fullmatch(text) and int(text) in _INT64:
                return int(text)
        case {"$numberDouble": str(text)} if len(parsed) == 1:
            if _NUMBER.fullmatch(text) or text in ("NaN", "Infinity", "-Infinity"):
                return Double(text)
        case {"$numberDecimal": str(text)} if len(parsed) == 1:
            return _decimal128(text)
        case {"$date": at} if len(parsed) == 1:
            return Moment(_milliseconds(at))
        case {"$uuid": str(text)} if len(parsed) == 1:
            found = GATES[KeyType.UUID](text, None, DEFAULT_BOUNDS)
            assert isinstance(found, UUID)
            return found
        case {"$binary": str(text), "$type": str(subtype)} if len(parsed) == 2:
            if _SUBTYPE.fullmatch(subtype):
                return Binary(text, int(subtype, 16))
        case {"$binary": {"base64": str(text), "subType": str(subtype)}} if len(parsed) == 1:
            if _SUBTYPE.fullmatch(subtype):
                return Binary(text, int(subtype, 16))
        case _:
            return Other()
    raise KeyRefused(Reason.TYPE_MISMATCH, "a value of Extended JSON is malformed")


def _decimal128(text: str) -> Decimal:
    if text.lower().lstrip("+-") in ("nan", "infinity", "inf"):
        raise KeyRefused(Reason.BAD_NUMBER, "the number is not finite")
    if not _NUMBER.fullmatch(text) or len(text) > 50:
        raise KeyRefused(Reason.TYPE_MISMATCH, "a decimal of Extended JSON is malformed")
    return Decimal(text)


def _milliseconds(at: object) -> int:
    """What stands under `$date`: a number, the same as text, or ISO 8601."""
    if type(at) is dict and at.keys() == {"$numberLong"}:
        text = at["$numberLong"]
        at = int(text) if type(text) is str and _INTEGER.fullmatch(text) else None
    if type(at) is str:
        moment = GATES[KeyType.TIMESTAMP](at, None, DEFAULT_BOUNDS)
        assert isinstance(moment, datetime)
        at, finer = divmod(moment - _EPOCH, timedelta(milliseconds=1))
        if finer:
            raise KeyRefused(Reason.TYPE_MISMATCH, "a moment of Extended JSON is finer than milliseconds")
    if type(at) is not int or at not in _INT64:
        raise KeyRefused(Reason.TYPE_MISMATCH, "a moment of Extended JSON is malformed")
    return at


def _moment(ms: int) -> datetime:
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        raise KeyRefused(Reason.OUT_OF_RANGE, "a date beyond the years 1 to 9999") from None


def _decimal(number: Decimal, bounds: Bounds) -> Scalar:
    return GATES[KeyType.NUMERIC](Exponential(str(number)) if "E" in str(number) else number, _DECIMAL, bounds)


def _exact(text: str, bounds: Bounds) -> Scalar:
    """The number that a double is, where it is the number that it prints: 1.5, never 0.1."""
    printed = _finite(text)
    if Decimal(float(text)) != printed:
        message = "a double that is not exactly the decimal number it prints (0.1 is not) equals no other number"
        raise KeyRefused(Reason.TYPE_MISMATCH, message)
    return _decimal(printed, bounds)


def _finite(text: str) -> Decimal:
    """The number that a double prints, which no double takes more than some hundred characters for."""
    if len(text) > _DOUBLE_TEXT_MAX or not _NUMBER.fullmatch(text) or not isfinite(float(text)):
        raise KeyRefused(Reason.BAD_NUMBER, "the number is not finite, or no double prints it")
    return Decimal(text)


def _uuid(base64: str, subtype: int, bounds: Bounds) -> UUID:
    if subtype == _LEGACY_UUID:
        message = "a UUID of the legacy binary subtype 3 has its bytes in one of three orders; write subtype 4"
        raise KeyRefused(Reason.TYPE_MISMATCH, message)
    raw = GATES[KeyType.BYTES](base64, _BYTES, bounds)
    assert isinstance(raw, bytes)
    if subtype != _UUID_BYTES or len(raw) != 16:
        raise KeyRefused(Reason.TYPE_MISMATCH, "binary that is not 16 bytes of subtype 4 is no uuid")
    return UUID(bytes=raw)


def _described(value: Value) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case str():
            return "a string"
        case Decimal():
            return "a Decimal128"
        case Double():
            return "a double"
        case ObjectId():
            return "an ObjectId"
        case UUID() | Binary():
            return "binary of this subtype"
        case Moment():
            return "a date"
        case Other():
            return "a value of this BSON type"
        case list():
            return "an array"
        case _:
            return "a document"
