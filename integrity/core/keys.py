"""The typed scalar gate: the only way from a decoded value to a key.

A value that is not exactly of its type is refused, never converted: 5.7 is not 5, "5" is not 5, true is not 1. After
the gate, equal keys are equal Python tuples, and `canonical` writes equal keys as equal text (1.50 as 1.5, a UUID in
lower case, a timestamp in UTC).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from hashlib import blake2b
from math import isinf
from typing import NamedTuple
from uuid import UUID

import msgspec

from integrity.errors import Reason

Scalar = int | bool | str | bytes | Decimal | UUID | date | datetime
"""A key part after the gate. An objectid is its 24 lower-case hex digits; a timestamp is aware, in UTC."""

Key = tuple[Scalar, ...]
"""A parent key: its parts in the order of the rule's `events.key`."""


class KeyType(StrEnum):
    """The key types of contract 1."""

    INT32 = "int32"
    INT64 = "int64"
    NUMERIC = "numeric"
    STRING = "string"
    UUID = "uuid"
    BOOL = "bool"
    DATE = "date"
    TIMESTAMP = "timestamp"
    BYTES = "bytes"
    OBJECTID = "objectid"


@dataclass(frozen=True, slots=True)
class KeySpec:
    """The key fields of a parent, in order, with their types."""

    fields: tuple[tuple[str, KeyType], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.fields)

    @property
    def types(self) -> tuple[KeyType, ...]:
        return tuple(kind for _, kind in self.fields)

    def position(self, name: str) -> int:
        """The index of a key field in a key."""
        return self.names.index(name)


class KeyRefused(Exception):
    """A value is not beyond doubt a key part of its type. Caught by the decoder, which makes a dead letter of it.

    `message` tells the fault and how to mend it, and never holds the value.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class FieldHint(NamedTuple):
    """What a Connect schema says of a field: its type, the name of its logical type, the scale of a decimal."""

    type: str
    name: str | None = None
    scale: int | None = None


class Exponential(NamedTuple):
    """A JSON number written with an exponent, unread: it may be a double that has lost digits."""

    text: str


class Bounds(NamedTuple):
    """The longest text, in characters or bytes, and the most digits of a number, that a key part may have."""

    text_max: int = 4096
    digits_max: int = 1000


DEFAULT_BOUNDS = Bounds()

HASH_BYTES = 16
"""The length of what stands for a key in the ledgers."""

UNAVAILABLE = "__debezium_unavailable_value"
"""What Debezium writes for a value that the source did not send: unknown, not a value."""

Gate = Callable[[object, FieldHint | None, Bounds], Scalar]

UNTOLD = "__null_or_default_value"
"""What is read of a field that Protobuf leaves out if it is zero, empty or false, and if it was null: unknown too."""

_SCHEMAS_ON = "switch the converter's schemas on (schemas.enable=true), which tell its meaning"
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_DATES = frozenset({"io.debezium.time.Date", "org.apache.kafka.connect.data.Date"})
_CONNECT_TIMESTAMP = "org.apache.kafka.connect.data.Timestamp"
# Units per second; a plain int64 (a hint without a name) is no time at all.
_TIMESTAMPS: Mapping[str, int] = {
    "io.debezium.time.Timestamp": 1_000,
    _CONNECT_TIMESTAMP: 1_000,
    "io.debezium.time.MicroTimestamp": 1_000_000,
    "io.debezium.time.NanoTimestamp": 1_000_000_000,
}
_MICROSECONDS_MIN = 10**14
"""Without a schema a number is read as microseconds (what Debezium makes of PostgreSQL's `timestamp`) only from here
up, March 1973: below, it could be milliseconds, and as milliseconds this is beyond the year 5000."""
_SURE_DIGITS = 15
"""A double keeps 15 significant digits; a fraction printed with more may have lost some."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_CALENDAR = "a date beyond the years 1 to 9999"

_UUID = re.compile(
    r"(?:urn:uuid:)?([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})|([0-9a-f]{32})"
    r"|\{([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})\}",
    re.IGNORECASE | re.ASCII,
)
_OBJECTID = re.compile(r"[0-9a-f]{24}", re.IGNORECASE | re.ASCII)
_DATE = re.compile(r"([+-]?[0-9]{4,9})-([0-9]{2})-([0-9]{2})Z?")
_TIMESTAMP = re.compile(
    r"([+-]?[0-9]{4,9})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:(Z)|([+-])([0-9]{2}):([0-9]{2}))?"
)
_PLAIN_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def gate(kind: KeyType, value: object, hint: FieldHint | None, bounds: Bounds = DEFAULT_BOUNDS) -> Scalar:
    """The key part that `value` is, or raises `KeyRefused`.

    `value` is what strict JSON decoding gave: int, Decimal (a number with a point), Exponential, str, bool, None, dict
    or list. `hint` is what the Connect schema says of the field, None when there is no schema.
    """
    return GATES[kind](value, hint, bounds)


def canonical(key: Key) -> str:
    """The key as JSON array text: equal keys of one type give equal text, unequal keys unequal text."""
    if len(key) == 1 and type(key[0]) is int:
        return f"[{key[0]}]"
    return f"[{','.join([_written(part) for part in key])}]"


def parse_canonical(text: str, spec: KeySpec) -> Key:
    """The key that `canonical` wrote; ValueError when it did not write this text for a key of this type."""
    try:
        parts = _PARTS.decode(text)
        if len(parts) != len(spec.fields):
            raise ValueError("The text has another number of parts than the key.")
        key = tuple(_read(kind, part) for kind, part in zip(spec.types, parts, strict=True))
    except (msgspec.DecodeError, KeyRefused) as exc:
        raise ValueError(f"The text is no key of this type: {exc}.") from exc
    if canonical(key) != text:
        raise ValueError("The text is not in canonical form.")
    return key


def key_hash(entity: str, key: Key) -> bytes:
    """Bytes that stand for a key of an entity in the ledgers."""
    return key_hasher(entity)(canonical(key))


def key_hasher(entity: str) -> Callable[[str], bytes]:
    """From a key of the entity, in canonical form, to its hash: many hashes cost less with it."""
    begun = blake2b(f"{entity}\0".encode(), digest_size=HASH_BYTES)

    def hash_of(written: str) -> bytes:
        hashing = begun.copy()
        hashing.update(written.encode())
        return hashing.digest()

    return hash_of


# Each gate below has the fast way first: the value is right.


def _int64(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is int:
        if -0x8000_0000_0000_0000 <= value <= 0x7FFF_FFFF_FFFF_FFFF:
            return value
        raise KeyRefused(Reason.OUT_OF_RANGE, "the number does not fit 64 bits")
    raise _mismatch(value, "a whole JSON number (int64)")


def _int32(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is int:
        if -0x8000_0000 <= value <= 0x7FFF_FFFF:
            return value
        raise KeyRefused(Reason.OUT_OF_RANGE, "the number does not fit 32 bits")
    raise _mismatch(value, "a whole JSON number (int32)")


def _numeric(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    """Exact numbers only. `decimal.handling.mode=double` rounds, and prints what it rounded with an exponent or with
    more digits than a double keeps: such a number may be another row's key."""
    if type(value) is int:
        return Decimal(value) if value.bit_length() <= 64 else _normal(Decimal(value), bounds)
    known = hint is not None and hint.name == _DECIMAL
    if type(value) is Decimal:
        if not known and len(value.as_tuple().digits) > _SURE_DIGITS:
            raise KeyRefused(
                Reason.TYPE_MISMATCH,
                "a fraction of more than 15 digits may have been rounded (decimal.handling.mode=double); use precise",
            )
        return _normal(value, bounds)
    if type(value) is dict and value.keys() == {"scale", "value"}:
        scale, unscaled = value["scale"], value["value"]
        if type(scale) is int and type(unscaled) is str:
            return _unscaled(unscaled, scale, bounds)
        if UNTOLD in (scale, unscaled):
            raise _unavailable(UNTOLD)
        raise KeyRefused(Reason.TYPE_MISMATCH, "scale and value are not a whole number and base64 text")
    if type(value) is Exponential and not isinf(float(value.text)):
        if known:
            return _exponential(value.text, bounds)
        raise KeyRefused(
            Reason.TYPE_MISMATCH,
            "a number with an exponent may have been rounded (decimal.handling.mode=double); use precise",
        )
    if type(value) is str and value not in _UNKNOWN:
        return _numeric_text(value, hint, bounds)
    raise _mismatch(value, "a number (numeric)")


def _exponential(text: str, bounds: Bounds) -> Decimal:
    exponent = text.lower().rpartition("e")[2]
    if len(text) > 2 * bounds.digits_max or len(exponent) > 7 or abs(int(exponent)) > bounds.digits_max:
        raise _too_many_digits(bounds)
    return _normal(Decimal(text), bounds)


def _numeric_text(text: str, hint: FieldHint | None, bounds: Bounds) -> Decimal:
    """Text is the unscaled bytes of a decimal, or (decimal.handling.mode=string) the number itself: "1234" can be
    both, so only a schema decides."""
    if hint is not None and hint.name == _DECIMAL and hint.scale is not None:
        return _unscaled(text, hint.scale, bounds)
    if hint is not None and hint.type == "string":
        if len(text) > bounds.digits_max + 2:
            raise _too_many_digits(bounds)
        if _PLAIN_DECIMAL.fullmatch(text):
            return _normal(Decimal(text), bounds)
        if text.lower().lstrip("+-") in {"nan", "inf", "infinity"}:
            raise KeyRefused(Reason.BAD_NUMBER, "the number is not finite")
        raise KeyRefused(Reason.TYPE_MISMATCH, "the text is no plain decimal number")
    raise KeyRefused(Reason.TYPE_MISMATCH, f"text stands for a number in more than one way; {_SCHEMAS_ON}")


def _string(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is str:
        if value in _UNKNOWN:
            raise _unavailable(value)
        if len(value) > bounds.text_max:
            raise KeyRefused(Reason.TOO_LARGE, f"the text is longer than {bounds.text_max} characters")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise KeyRefused(Reason.BAD_ENCODING, "the text has half of a surrogate pair")
        return value
    raise _mismatch(value, "text (string)")


def _uuid(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    found = _UUID.fullmatch(value) if type(value) is str else None
    if found:
        return UUID(hex=found[found.lastindex or 0])
    raise _mismatch(value, "a UUID as text")


def _bool(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is bool:
        return value
    raise _mismatch(value, "true or false (bool)")


def _date(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    """Days since the epoch, or ISO text, to which Debezium's `isostring` mode appends a Z."""
    if type(value) is int:
        if hint is not None and hint.name not in _DATES:
            raise KeyRefused(Reason.TYPE_MISMATCH, "the schema does not call this number a date")
        try:
            return date.fromordinal(_EPOCH_DAY + value)
        except (OverflowError, ValueError):
            raise KeyRefused(Reason.OUT_OF_RANGE, _CALENDAR) from None
    found = _DATE.fullmatch(value) if type(value) is str else None
    if found:
        return _calendar(found[1], found[2], found[3])
    raise _mismatch(value, "days since 1970-01-01 or YYYY-MM-DD (date)")


def _timestamp(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is int:
        return _instant(value, hint)
    if type(value) is Decimal and hint is not None and hint.name == _CONNECT_TIMESTAMP:
        return _instant(value, hint)  # of Protobuf, whose Timestamp is finer than Connect's
    found = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if found is None:
        raise _mismatch(value, "ISO 8601 text with a zone, or a number (timestamp)")
    year, month, day, hour, minute, second, fraction, utc, sign, zone_hours, zone_minutes = found.groups()
    if utc is None and sign is None:
        # Debezium writes even a timestamp without zone with a Z in isostring mode: text without one is of unknown make.
        raise KeyRefused(Reason.TYPE_MISMATCH, "the timestamp has no zone")
    micros = (fraction or "").rstrip("0")
    if len(micros) > 6:
        raise KeyRefused(Reason.TYPE_MISMATCH, "the timestamp is finer than microseconds")
    day_found = _calendar(year, month, day)
    try:
        zone = UTC
        if sign is not None:
            offset = timedelta(hours=int(zone_hours), minutes=int(zone_minutes))
            if int(zone_minutes) > 59:
                raise ValueError
            zone = timezone(-offset if sign == "-" else offset)
        local = datetime(
            day_found.year, day_found.month, day_found.day, int(hour), int(minute), int(second),
            int(micros.ljust(6, "0")), zone,
        )  # fmt: skip
    except ValueError:
        raise KeyRefused(Reason.TYPE_MISMATCH, "no such time of day or zone") from None
    try:
        return local.astimezone(UTC)
    except OverflowError:
        raise KeyRefused(Reason.OUT_OF_RANGE, _CALENDAR) from None


def _instant(value: int | Decimal, hint: FieldHint | None) -> datetime:
    if hint is None:
        if value < _MICROSECONDS_MIN:
            raise KeyRefused(
                Reason.TYPE_MISMATCH, f"the number may be milliseconds or microseconds since 1970; {_SCHEMAS_ON}"
            )
        per_second = 1_000_000
    else:
        per_second = _TIMESTAMPS.get(hint.name or "", 0)
        if not per_second:
            raise KeyRefused(Reason.TYPE_MISMATCH, "the schema does not call this number a timestamp")
    micros, rest = divmod(value * 1_000_000, per_second)
    if rest:
        raise KeyRefused(Reason.TYPE_MISMATCH, "the timestamp is finer than microseconds")
    try:
        return _EPOCH + timedelta(microseconds=int(micros))
    except OverflowError:
        raise KeyRefused(Reason.OUT_OF_RANGE, _CALENDAR) from None


def _bytes(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is str and value not in _UNKNOWN:
        if hint is not None and hint.type != "bytes":
            raise KeyRefused(Reason.TYPE_MISMATCH, "the schema does not call this text bytes")
        if len(value) > 4 * ((bounds.text_max + 2) // 3):
            raise KeyRefused(Reason.TOO_LARGE, f"longer than {bounds.text_max} bytes")
        raw = _base64(value)
        if len(raw) > bounds.text_max:
            raise KeyRefused(Reason.TOO_LARGE, f"longer than {bounds.text_max} bytes")
        if raw == UNAVAILABLE.encode():
            raise _unavailable(UNAVAILABLE)
        return raw
    raise _mismatch(value, "base64 text (bytes)")


def _objectid(value: object, hint: FieldHint | None, bounds: Bounds) -> Scalar:
    if type(value) is str and _OBJECTID.fullmatch(value):
        return value.lower()
    raise _mismatch(value, "24 hex digits (objectid)")


GATES: Mapping[KeyType, Gate] = {
    KeyType.INT32: _int32,
    KeyType.INT64: _int64,
    KeyType.NUMERIC: _numeric,
    KeyType.STRING: _string,
    KeyType.UUID: _uuid,
    KeyType.BOOL: _bool,
    KeyType.DATE: _date,
    KeyType.TIMESTAMP: _timestamp,
    KeyType.BYTES: _bytes,
    KeyType.OBJECTID: _objectid,
}
"""The gate of each type, for a caller that binds it once."""


def _mismatch(value: object, wanted: str) -> KeyRefused:
    if value is None:
        return KeyRefused(Reason.NULL_KEY, "the key part is null")
    if type(value) is str and value in _UNKNOWN:
        return _unavailable(value)
    if type(value) is Exponential and isinf(float(value.text)):
        return KeyRefused(Reason.BAD_NUMBER, "the number is beyond any double")
    return KeyRefused(Reason.TYPE_MISMATCH, f"{_described(value)} is not {wanted}")


def _described(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case Decimal() | Exponential():
            return "a number with a point or exponent"
        case str():
            return "this text"
        case dict():
            return "an object"
        case _:
            return "an array"


_UNKNOWN: Mapping[str, str] = {
    UNAVAILABLE: "the source did not send the key's value (unchanged TOAST)",
    UNTOLD: "in Protobuf a zero, an empty text and false are the same bytes as null in such a field",
}
"""What stands for a value that is unknown, and why it is."""


def _unavailable(value: str) -> KeyRefused:
    return KeyRefused(Reason.UNAVAILABLE_KEY, _UNKNOWN[value])


def _too_many_digits(bounds: Bounds) -> KeyRefused:
    return KeyRefused(Reason.BAD_NUMBER, f"the number has more than {bounds.digits_max} digits")


def _base64(text: str) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raw = None
    # One text for one value: no stray bits, no padding too many.
    if raw is None or b64encode(raw).decode() != text:
        raise KeyRefused(Reason.TYPE_MISMATCH, "the text is not base64")
    return raw


def _unscaled(text: str, scale: int, bounds: Bounds) -> Decimal:
    """Java's BigDecimal: big-endian two's complement, and how many of its digits follow the point."""
    if len(text) > 2 * bounds.digits_max + 8 or abs(scale) > bounds.digits_max:
        raise _too_many_digits(bounds)
    raw = _base64(text)
    if not raw:
        raise KeyRefused(Reason.TYPE_MISMATCH, "the number has no bytes")
    number = int.from_bytes(raw, "big", signed=True)
    # The constructor is exact; Decimal's arithmetic (scaleb, normalize) would round to 28 digits.
    return _normal(Decimal((int(number < 0), Decimal(abs(number)).as_tuple().digits, -scale)), bounds)


def _normal(number: Decimal, bounds: Bounds) -> Decimal:
    """The one Decimal of a value: no trailing zeros after the point, no negative zero, no exponent above 0."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "the number is finite"
    if max(len(digits) + exponent, 1) + max(-exponent, 0) > bounds.digits_max:
        raise _too_many_digits(bounds)
    return Decimal(_plain(number))


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _calendar(year: str, month: str, day: str) -> date:
    if not 1 <= int(year) <= 9999:
        raise KeyRefused(Reason.OUT_OF_RANGE, _CALENDAR)
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        raise KeyRefused(Reason.TYPE_MISMATCH, "no such day") from None


_PARTS = msgspec.json.Decoder(list[object], float_hook=Decimal)


def _written(part: Scalar) -> str:
    # Subclasses (a driver's own UUID or Int64) are written like what they are; bool before int, datetime before date.
    match part:
        case bool():
            return "true" if part else "false"
        case int():
            return str(int(part))
        case str():
            return msgspec.json.encode(str(part)).decode()
        case Decimal():
            return _plain(part)
        case UUID():
            return f'"{UUID(int=part.int)}"'
        case bytes():
            return f'"{b64encode(part).decode()}"'
        case datetime():
            return f'"{part.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"'
        case date():
            return f'"{part.isoformat()}"'


def _read(kind: KeyType, part: object) -> Scalar:
    unbounded = Bounds(1 << 31, 1 << 31)
    if kind is KeyType.NUMERIC and type(part) is Decimal:
        return _normal(part, unbounded)
    return GATES[kind](part, None, unbounded)
