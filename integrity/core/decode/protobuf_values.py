"""The values of Protobuf that are no messages, and the messages that stand for one: each exact, or an `AvroFault`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from integrity.core.decode.avro import AvroFault, double_at, float_at
from integrity.errors import Reason

_BUDGET = 32 * 1024 * 1024
"""What one value may take, in bytes of memory: an empty message has two bytes, and all of its fields."""
NESTED_MAX = 100
"""How often messages may be inside one another in a value."""

_DATE, _TIME = "org.apache.kafka.connect.data.Date", "org.apache.kafka.connect.data.Time"
_TIMESTAMP, _DECIMAL = "org.apache.kafka.connect.data.Timestamp", "org.apache.kafka.connect.data.Decimal"
ANY_SCALE = "io.debezium.data.VariableScaleDecimal"
_EPOCH_DAY = date(1970, 1, 1).toordinal()

_F = FieldDescriptor
Read = Callable[[bytes, int, int, "Budget"], tuple[Any, int]]
"""Reads the value of a field that begins at a place, and ends before another one; returns the place behind it."""


class Budget:
    """What one value may still take."""

    __slots__ = ("left", "nested")

    def __init__(self) -> None:
        self.left = _BUDGET
        self.nested = NESTED_MAX

    def take(self, weight: int) -> None:
        self.left -= weight
        if self.left < 0:
            raise AvroFault("it stands for more than its size allows", Reason.TOO_LARGE)


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, at
    raise AvroFault("a number has more than 64 bits")


def unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _number(low: int, high: int, *, zigzag: bool = False) -> Read:
    """Whole numbers from `low` to `high`, those below zero as two's complement of 64 bits."""

    def read(data: bytes, at: int, end: int, budget: Budget) -> tuple[int, int]:
        value, at = varint(data, at)
        if zigzag:
            value = unzigzag(value)
        elif low < 0 and value >> 63:
            value -= 1 << 64
        if not low <= value <= high:
            raise AvroFault("a number does not fit its type")
        return value, at

    return read


def _bool(data: bytes, at: int, end: int, budget: Budget) -> tuple[bool, int]:
    value, at = varint(data, at)
    if value > 1:
        raise AvroFault("a boolean is neither 0 nor 1")
    return value == 1, at


def _fixed(form: str) -> Read:
    unpack, size = struct.Struct(form).unpack_from, struct.calcsize(form)
    return lambda data, at, end, budget: (unpack(data, at)[0], at + size)


def _bytes(data: bytes, at: int, end: int, budget: Budget) -> tuple[bytes, int]:
    stop, at = stop_of(data, at, end)
    return data[at:stop], stop


def _string(data: bytes, at: int, end: int, budget: Budget) -> tuple[str, int]:
    stop, at = stop_of(data, at, end)
    return str(data[at:stop], "utf-8"), stop


def stop_of(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where something with a length ends, and where it begins."""
    length, at = varint(data, at)
    if at + length > end:
        raise AvroFault("it ends too early")
    return at + length, at


def _enum(type_: EnumDescriptor) -> Read:
    number_of = _number(-(1 << 31), (1 << 31) - 1)
    symbols: dict[int, str] = {}
    for each in type_.values:
        symbols.setdefault(each.number, each.name)

    def read(data: bytes, at: int, end: int, budget: Budget) -> tuple[str, int]:
        number, at = number_of(data, at, end, budget)
        if number not in symbols:
            raise AvroFault("an enum has no such symbol")
        return symbols[number], at

    return read


_VARINT, _FIXED64, LENGTH, _FIXED32 = 0, 1, 2, 5
_INT32, _INT64 = _number(-(1 << 31), (1 << 31) - 1), _number(-(1 << 63), (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type that is no message. `default` is what a field of it is that has no presence and is not there."""

    connect: str
    wire: int
    read: Read
    default: object


_SCALARS: Mapping[int, Scalar] = {
    _F.TYPE_INT32: Scalar("int32", _VARINT, _INT32, 0),
    _F.TYPE_SINT32: Scalar("int32", _VARINT, _number(-(1 << 31), (1 << 31) - 1, zigzag=True), 0),
    _F.TYPE_SFIXED32: Scalar("int32", _FIXED32, _fixed("<i"), 0),
    _F.TYPE_UINT32: Scalar("int64", _VARINT, _number(0, (1 << 32) - 1), 0),
    _F.TYPE_FIXED32: Scalar("int64", _FIXED32, _fixed("<I"), 0),
    _F.TYPE_INT64: Scalar("int64", _VARINT, _INT64, 0),
    _F.TYPE_SINT64: Scalar("int64", _VARINT, _number(-(1 << 63), (1 << 63) - 1, zigzag=True), 0),
    _F.TYPE_SFIXED64: Scalar("int64", _FIXED64, _fixed("<q"), 0),
    _F.TYPE_UINT64: Scalar("int64", _VARINT, _number(0, (1 << 64) - 1), 0),
    _F.TYPE_FIXED64: Scalar("int64", _FIXED64, _fixed("<Q"), 0),
    _F.TYPE_FLOAT: Scalar("float", _FIXED32, lambda data, at, end, budget: (float_at(data, at), at + 4), 0.0),
    _F.TYPE_DOUBLE: Scalar("double", _FIXED64, lambda data, at, end, budget: (double_at(data, at), at + 8), 0.0),
    _F.TYPE_BOOL: Scalar("boolean", _VARINT, _bool, False),
    _F.TYPE_STRING: Scalar("string", LENGTH, _string, ""),
    _F.TYPE_BYTES: Scalar("bytes", LENGTH, _bytes, b""),
}


def scalar_of(field_: FieldDescriptor) -> Scalar:
    symbols = field_.enum_type
    if symbols is not None:
        first = symbols.values_by_number.get(0)
        return Scalar("string", _VARINT, _enum(symbols), None if first is None else first.name)
    return _SCALARS[field_.type]


# --- messages that stand for a scalar ------------------------------------------------------------------------------

Meta = Mapping[str, str]
"""The parameters that a field has in Confluent's `field_meta`."""

WRAPPERS: Mapping[str, int] = {
    "google.protobuf.DoubleValue": _F.TYPE_DOUBLE,
    "google.protobuf.FloatValue": _F.TYPE_FLOAT,
    "google.protobuf.Int64Value": _F.TYPE_INT64,
    "google.protobuf.UInt64Value": _F.TYPE_UINT64,
    "google.protobuf.Int32Value": _F.TYPE_INT32,
    "google.protobuf.UInt32Value": _F.TYPE_UINT32,
    "google.protobuf.BoolValue": _F.TYPE_BOOL,
    "google.protobuf.StringValue": _F.TYPE_STRING,
    "google.protobuf.BytesValue": _F.TYPE_BYTES,
}
_LOGICAL: Mapping[str, Mapping[str, int]] = {
    "google.protobuf.Timestamp": {"seconds": _F.TYPE_INT64, "nanos": _F.TYPE_INT32},
    "google.type.Date": {"year": _F.TYPE_INT32, "month": _F.TYPE_INT32, "day": _F.TYPE_INT32},
    "google.type.TimeOfDay": dict.fromkeys(("hours", "minutes", "seconds", "nanos"), _F.TYPE_INT32),
    "confluent.type.Decimal": {"value": _F.TYPE_BYTES, "precision": _F.TYPE_UINT32, "scale": _F.TYPE_INT32},
} | {name: {"value": kind} for name, kind in WRAPPERS.items()}
"""Their fields: a message of that name with others is one like any other."""


_OF_ANY_SCALE = {"scale": _F.TYPE_INT32, "value": _F.TYPE_BYTES}


def is_logical(type_: Descriptor) -> bool:
    return _plain_fields(type_) == _LOGICAL.get(type_.full_name)


def is_of_any_scale(type_: Descriptor) -> bool:
    """Whether it is what Debezium makes of a decimal whose scale differs by row: neither of its fields is ever null. Of
    the names of types the converter keeps the last part."""
    return type_.name == "VariableScaleDecimal" and _plain_fields(type_) == _OF_ANY_SCALE


def _plain_fields(type_: Descriptor) -> dict[str, int]:
    """The type of each field that has no presence, for all others none."""
    return {each.name: -1 if each.is_repeated or each.has_presence else each.type for each in type_.fields}


def _milliseconds(seconds: int, nanos: int) -> object:
    """Whole milliseconds, or the exact fraction, which is no value of Connect's."""
    whole, rest = divmod(nanos, 1_000_000)
    number = seconds * 1000 + whole
    if not rest:
        return number
    sign = "-" if number < 0 else ""
    # A fraction is counted from below: -1 ms and 0.25 ms are -0.75 ms.
    total = abs(number * 1_000_000 + rest)
    return msgspec.Raw(f"{sign}{total // 1_000_000}.{total % 1_000_000:06}".encode())


def _timestamp(parts: Mapping[str, Any], meta: Meta) -> object:
    seconds, nanos = parts["seconds"], parts["nanos"]
    # The years 1 to 9999, which is what a Timestamp may be.
    if not (-62_135_596_800 <= seconds <= 253_402_300_799 and 0 <= nanos < 1_000_000_000):
        raise AvroFault("a timestamp is none")
    return _milliseconds(seconds, nanos)


def _day(parts: Mapping[str, Any], meta: Meta) -> object:
    try:
        return date(parts["year"], parts["month"], parts["day"]).toordinal() - _EPOCH_DAY
    except (ValueError, OverflowError):
        raise AvroFault("a date is none, or only part of one") from None


def _time(parts: Mapping[str, Any], meta: Meta) -> object:
    hours, minutes, seconds, nanos = parts["hours"], parts["minutes"], parts["seconds"], parts["nanos"]
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 60 and 0 <= nanos < 1_000_000_000):
        raise AvroFault("a time of day is none")
    return _milliseconds((hours * 60 + minutes) * 60 + seconds, nanos)


def _decimal(parts: Mapping[str, Any], meta: Meta) -> object:
    """Its bytes where it has the scale of the field, else both, so that it is exact."""
    if not parts["value"]:
        raise AvroFault("a decimal has no bytes")
    if _scale_in(meta) == parts["scale"]:
        return parts["value"]
    return {"scale": parts["scale"], "value": parts["value"]}


def _scale_in(meta: Meta) -> int | None:
    text = meta.get("scale", "")
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10 else None


VALUES: Mapping[str, Callable[[Mapping[str, Any], Meta], object]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.type.Date": _day,
    "google.type.TimeOfDay": _time,
    "confluent.type.Decimal": _decimal,
} | {name: lambda parts, meta: parts["value"] for name in WRAPPERS}


def described_logical(name: str, meta: Meta) -> dict[str, object]:
    match name:
        case "google.protobuf.Timestamp":
            return {"type": "int64", "name": _TIMESTAMP}
        case "google.type.Date":
            return {"type": "int32", "name": _DATE}
        case "google.type.TimeOfDay":
            return {"type": "int32", "name": _TIME}
        case "confluent.type.Decimal":
            scale = _scale_in(meta)
            if scale is None:
                return {"type": "struct", "name": ANY_SCALE}
            return {"type": "bytes", "name": _DECIMAL, "parameters": {"scale": str(scale)}}
        case _:
            return {"type": _SCALARS[WRAPPERS[name]].connect}
