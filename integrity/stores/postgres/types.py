"""How a key part is compared with a column, and how it is written to one, without ever becoming another value.

Arrays are bound by the key's type, so that an index on the column serves the comparison and a key beyond the column's
range matches nothing. What the column would round, cut or fold is refused before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from integrity.core.keys import KeyType, Scalar

NO_MATCH: Final = object()
"""No row of the column can hold the value."""

_INT8 = range(-(2**63), 2**63)
_INTEGERS = frozenset({"int2", "int4", "int8"})
_TEXTS = frozenset({"text", "varchar"})
_HEADER = 4
"""What a type modifier counts beyond what was declared (VARHDRSZ)."""


class Unfit(Exception):
    """The column cannot hold the value as it is. Caught by the store; never tells the value."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One key part and one column. `array` is the SQL type of a bound array; `match` gives what to compare with, or
    NO_MATCH; `assign` gives what to write, or raises Unfit."""

    array: str
    match: Callable[[Scalar], object]
    assign: Callable[[Scalar], object]


def codec(kind: KeyType, column: str, modifier: int) -> Codec | None:
    """The codec of a key type and a column's base type (`pg_type.typname`); None where they do not go together."""
    match kind:
        case KeyType.INT32 | KeyType.INT64 if column in _INTEGERS:
            return Codec("int8[]", _same, _same)
        case KeyType.INT32 | KeyType.INT64 if column == "numeric":
            return Codec("int8[]", _same, _scaled(modifier))
        case KeyType.NUMERIC if column == "numeric":
            return Codec("numeric[]", _same, _scaled(modifier))
        case KeyType.NUMERIC if column in _INTEGERS:
            return Codec("int8[]", _whole, _assigned_whole)
        case KeyType.STRING | KeyType.OBJECTID if column in _TEXTS:
            return Codec("text[]", _text, _assigned_text(modifier if column == "varchar" else -1))
        case KeyType.UUID if column == "uuid":
            return Codec("uuid[]", _same, _same)
        case KeyType.BOOL if column == "bool":
            return Codec("bool[]", _same, _same)
        case KeyType.DATE if column == "date":
            return Codec("date[]", _same, _same)
        case KeyType.TIMESTAMP if column == "timestamptz":
            return Codec("timestamptz[]", _same, _timed(modifier, _same))
        case KeyType.TIMESTAMP if column == "timestamp":
            return Codec("timestamp[]", _naive, _timed(modifier, _naive))
        case KeyType.BYTES if column == "bytea":
            return Codec("bytea[]", _same, _same)
        case _:
            return None


def column_types(kind: KeyType) -> str:
    """The column types that a key type goes with, as words."""
    match kind:
        case KeyType.INT32 | KeyType.INT64 | KeyType.NUMERIC:
            return "smallint, integer, bigint or numeric"
        case KeyType.STRING | KeyType.OBJECTID:
            return "text or varchar"
        case KeyType.TIMESTAMP:
            return "timestamptz or timestamp"
        case KeyType.BYTES:
            return "bytea"
        case KeyType.UUID | KeyType.BOOL | KeyType.DATE:
            return kind.value


def _same(value: Scalar) -> object:
    return value


def _whole(value: Scalar) -> object:
    assert isinstance(value, Decimal)
    number = int(value)
    return number if number == value and number in _INT8 else NO_MATCH


def _assigned_whole(value: Scalar) -> object:
    found = _whole(value)
    if found is NO_MATCH:
        raise Unfit("the number does not fit the column")
    return found


def _scaled(modifier: int) -> Callable[[Scalar], object]:
    """PostgreSQL rounds to the scale of numeric(p, s) without a word."""
    if modifier < 0:
        return _same
    # The low 11 bits are the scale, in two's complement: numeric(3, -2) rounds to hundreds.
    scale = ((modifier - _HEADER) & 0x7FF ^ 0x400) - 0x400

    def assign(value: Scalar) -> object:
        assert isinstance(value, int | Decimal)
        _, digits, exponent = Decimal(value).as_tuple()
        assert isinstance(exponent, int)
        below = max(0, -scale - exponent)
        if any(digits[max(0, len(digits) - below) :]):
            raise Unfit("the number has more digits after the point than the column")
        return value

    return assign


def _text(value: Scalar) -> object:
    assert isinstance(value, str)
    return NO_MATCH if "\0" in value else value


def _assigned_text(modifier: int) -> Callable[[Scalar], object]:
    """PostgreSQL cuts trailing spaces off to the length of varchar(n) without a word."""
    length_max = modifier - _HEADER if modifier >= _HEADER else None

    def assign(value: Scalar) -> object:
        assert isinstance(value, str)
        if "\0" in value:
            raise Unfit("the text has a character of code 0")
        if length_max is not None and len(value) > length_max:
            raise Unfit("the text is longer than the column")
        return value

    return assign


def _naive(value: Scalar) -> object:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).replace(tzinfo=None)


def _timed(modifier: int, bound: Callable[[Scalar], object]) -> Callable[[Scalar], object]:
    """PostgreSQL rounds to the precision of timestamp(p) without a word."""
    if modifier < 0:
        return bound
    unit = 10 ** max(0, 6 - modifier)

    def assign(value: Scalar) -> object:
        assert isinstance(value, datetime)
        if value.microsecond % unit:
            raise Unfit("the time is finer than the column")
        return bound(value)

    return assign
