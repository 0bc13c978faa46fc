"""A field of a parent's row as the text that PostgreSQL reads as the same value of a column's type; or it is refused.

Exact, or not at all: what the column would round, cut or fold never reaches it. The server has the last word on text
whose form only it knows (json, inet, interval).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Final

import msgspec

from integrity.core.change import Cell
from integrity.core.decode.record import Limits
from integrity.core.keys import Bounds, Exponential, KeyRefused, KeyType, gate
from integrity.core.plain import as_written
from integrity.errors import Reason
from integrity.stores.postgres.types import Unfit, assigned_text, assigned_time, scaled

ToText = Callable[[Cell], str]
"""The text of a value that is not null. Raises KeyRefused or Unfit."""

_BOUNDS: Final = Bounds(text_max=Limits().record_bytes_max)
_RANGES: Final = {"int2": range(-(2**15), 2**15), "int4": range(-(2**31), 2**31), "int8": range(-(2**63), 2**63)}
_FLOATS: Final = {"float8": ("double", 17), "float4": ("float", 9)}
"""What a schema calls such a number, and the most digits that its text has."""
_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_DECIMAL: Final = "org.apache.kafka.connect.data.Decimal"
_TIMES: Final[Mapping[str, int]] = {
    "io.debezium.time.Time": 1_000,
    "org.apache.kafka.connect.data.Time": 1_000,
    "io.debezium.time.MicroTime": 1_000_000,
    "io.debezium.time.NanoTime": 1_000_000_000,
}
_DAY_S: Final = 86_400
_SERVERS: Final = frozenset({"inet", "cidr", "macaddr", "macaddr8", "timetz", "interval"})
"""Types whose text the server reads; with a precision of its own it would round."""
_CLOCK: Final = re.compile(r"([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,6}))?Z?")


def to_text(base: str, modifier: int, *, is_enum: bool) -> ToText | None:
    """How values are written to a column, given its base type (`pg_type.typname`) and modifier; None where it can't
    hold a field."""
    if is_enum:
        return _text(-1)
    match base:
        case "int2" | "int4" | "int8":
            return _whole(_RANGES[base])
        case "numeric":
            return _numeric(modifier)
        case "float4" | "float8":
            return _floating(base)
        case "text" | "citext":
            return _text(-1)
        case "varchar" | "bpchar":
            return _text(modifier)
        case "uuid":
            return lambda cell: str(gate(KeyType.UUID, cell.value, cell.hint, _BOUNDS))
        case "bool":
            return lambda cell: "true" if gate(KeyType.BOOL, cell.value, cell.hint, _BOUNDS) else "false"
        case "date":
            return _date
        case "timestamptz" | "timestamp":
            return _timestamp(modifier)
        case "time":
            return _time(modifier)
        case "bytea":
            return _bytes
        case "json" | "jsonb":
            return _json
        case _ if base in _SERVERS and modifier < 0:
            return _text(-1)
        case _:
            return None


def column_types() -> str:
    """The column types that hold a field, as words."""
    return (
        "smallint, integer, bigint, numeric, real, double precision, text, varchar, char(n), citext, an enum, uuid,"
        " boolean, date, timestamptz, timestamp, time, bytea, json, jsonb, inet, cidr, macaddr, or timetz and interval"
        " without a precision"
    )


def _whole(fits: range) -> ToText:
    def text(cell: Cell) -> str:
        number: object = cell.value
        if type(number) is not int:
            exact = gate(KeyType.NUMERIC, number, cell.hint, _BOUNDS)
            assert isinstance(exact, Decimal)
            if exact != int(exact):
                raise Unfit("the number is not whole")
            number = int(exact)
        if number not in fits:
            raise Unfit("the number does not fit the column")
        return str(number)

    return text


def _numeric(modifier: int) -> ToText:
    fitted = scaled(modifier)

    def text(cell: Cell) -> str:
        number = gate(KeyType.NUMERIC, cell.value, cell.hint, _BOUNDS)
        fitted(number)
        return format(number, "f")

    return text


def _floating(base: str) -> ToText:
    """What a number of the same kind has printed is that number; any other has to be read back as it is written."""
    own, digits_max = _FLOATS[base]

    def text(cell: Cell) -> str:
        value, hint = cell
        if type(value) is str and value in _NOT_FINITE:
            return value
        if type(value) is Exponential:
            value = Decimal(value.text) if len(value.text) < _BOUNDS.digits_max else value
        if hint is not None and hint.name == _DECIMAL:
            value = gate(KeyType.NUMERIC, value, hint, _BOUNDS)
        if type(value) is int:
            value = Decimal(value)
        if not isinstance(value, Decimal):
            raise KeyRefused(Reason.TYPE_MISMATCH, "the value is no number")
        is_own = hint is not None and hint.type == own and len(value.as_tuple().digits) <= digits_max
        if not is_own and _shortest(base, value) != value:
            raise Unfit("the number has more digits than the column keeps")
        return str(value)

    return text


def _shortest(base: str, value: Decimal) -> Decimal:
    """The shortest number that the column would keep the same for this one."""
    number = float(value)
    if base == "float8":
        return Decimal(repr(number))
    try:
        kept = struct.pack("f", number)
    except OverflowError:
        raise Unfit("the number is beyond the column") from None
    texts = (f"{number:.{digits}g}" for digits in range(1, 10))
    return Decimal(next((text for text in texts if struct.pack("f", float(text)) == kept), "nan"))


def _text(modifier: int) -> ToText:
    fitted = assigned_text(modifier)

    def text(cell: Cell) -> str:
        found = gate(KeyType.STRING, cell.value, cell.hint, _BOUNDS)
        fitted(found)
        assert isinstance(found, str)
        return found

    return text


def _date(cell: Cell) -> str:
    found = gate(KeyType.DATE, cell.value, cell.hint, _BOUNDS)
    assert isinstance(found, date)
    return found.isoformat()


def _timestamp(modifier: int) -> ToText:
    """A column without a zone is in UTC."""
    fitted = assigned_time(modifier)

    def text(cell: Cell) -> str:
        found = gate(KeyType.TIMESTAMP, cell.value, cell.hint, _BOUNDS)
        fitted(found)
        assert isinstance(found, datetime)
        return f"{found.replace(tzinfo=None).isoformat(' ', 'microseconds')}+00"

    return text


def _time(modifier: int) -> ToText:
    unit = 1 if modifier < 0 else 10 ** max(0, 6 - modifier)

    def text(cell: Cell) -> str:
        micros = _micros_of_day(cell)
        if micros % unit:
            raise Unfit("the time is finer than the column")
        seconds, rest = divmod(micros, 1_000_000)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:06}"

    return text


def _micros_of_day(cell: Cell) -> int:
    value, hint = cell
    if type(value) is str and (found := _CLOCK.fullmatch(value)):
        hours, minutes, seconds = map(int, found[1].split(":"))
        return ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + int((found[2] or "").ljust(6, "0"))
    per_second = _TIMES.get(hint.name or "", 0) if hint is not None else 0
    if type(value) is not int or not per_second:
        message = "the value is no time of day; a number needs its schema (schemas.enable=true)"
        raise KeyRefused(Reason.TYPE_MISMATCH, message)
    micros, rest = divmod(value * 1_000_000, per_second)
    if rest or not 0 <= micros <= _DAY_S * 1_000_000:
        raise Unfit("the time is finer than microseconds, or beyond a day")
    return micros


def _bytes(cell: Cell) -> str:
    found = gate(KeyType.BYTES, cell.value, cell.hint, _BOUNDS)
    assert isinstance(found, bytes)
    return f"\\x{found.hex()}"


def _json(cell: Cell) -> str:
    """Text is JSON, as Debezium sends json and jsonb; what is no text is a value of JSON itself."""
    if type(cell.value) is str:
        return str(gate(KeyType.STRING, cell.value, None, _BOUNDS))
    return msgspec.json.encode(as_written(cell.value)).decode()
