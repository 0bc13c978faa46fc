"""How a key part is compared with a column, and how it is written to one, without ever becoming another value.

Arrays are bound by the key's type, so that an index on the column serves the comparison and a key beyond the column's
range matches nothing. What the column would round, cut or fold is refused before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, NamedTuple
from uuid import UUID

from integrity.core.keys import KeyRefused, KeyType, Scalar, gate

NO_MATCH: Final = object()
"""No row of the column can hold the value."""

_INT8 = range(-(2**63), 2**63)
_INTEGERS = frozenset({"int2", "int4", "int8"})
_RANGES = {KeyType.INT32: range(-(2**31), 2**31), KeyType.INT64: _INT8}
_INFINITE = (datetime.max, datetime.min, date.max, date.min)
_NUMBERS = frozenset({KeyType.INT32, KeyType.INT64, KeyType.NUMERIC})
_TEXTS = frozenset({"text", "varchar"})
_HEADER = 4
"""What a type modifier counts beyond what was declared (VARHDRSZ)."""


class Unfit(Exception):
    """The column cannot hold the value as it is. Caught by the store; never tells the value."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One key part and one column.

    `match` gives what to compare with, or NO_MATCH; `assign` gives what to write; either raises Unfit. The rest makes
    SQL: `compared` and `written` of the placeholder of a bound array of these, `read` of a column what equals that
    which `match` gave. `padded`: the column fills texts up with spaces, so that what is read of it is not beyond doubt
    the key that an event has.
    """

    match: Callable[[Scalar], object]
    assign: Callable[[Scalar], object]
    compared: Callable[[str], str]
    written: Callable[[str], str]
    read: Callable[[str], str]
    padded: bool = False


class Enum(NamedTuple):
    """An enum type: its oid, and its name as SQL writes it."""

    oid: int
    name: str


def codec(kind: KeyType, column: str | Enum, modifier: int) -> Codec | None:
    """The codec of a key type and a column's base type (`pg_type.typname`, or the enum it is); None where they do not
    go together."""
    if isinstance(column, Enum):
        return _enum_codec(column) if kind is KeyType.STRING else None
    match kind:
        case KeyType.INT32 | KeyType.INT64 if column in _INTEGERS:
            return _codec("int8", _same, _same)
        case KeyType.INT32 | KeyType.INT64 if column == "numeric":
            return _codec("int8", _same, scaled(modifier))
        case KeyType.NUMERIC if column == "numeric":
            return _codec("numeric", _same, scaled(modifier))
        case KeyType.NUMERIC if column in _INTEGERS:
            return _codec("int8", _whole, _assigned_whole)
        case KeyType.STRING | KeyType.OBJECTID if column in _TEXTS:
            return _codec("text", _text, assigned_text(modifier if column == "varchar" else -1))
        case KeyType.STRING | KeyType.OBJECTID if column == "bpchar":
            # To PostgreSQL the spaces at the end of char(n) are no part of the value: read as text it has none.
            return Codec(*_padded(modifier), cast("bpchar[]"), cast("bpchar[]"), cast("text"), padded=True)
        case KeyType.UUID if column == "uuid":
            return _codec("uuid", _same, _same)
        case KeyType.BOOL if column == "bool":
            return _codec("bool", _same, _same)
        case KeyType.DATE if column == "date":
            return _text_codec("date", _dated, _dated, "to_char({}, 'YYYY-MM-DD')")
        case KeyType.TIMESTAMP if column == "timestamptz":
            shown = "to_char({} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
            return _text_codec("timestamptz", _zoned, assigned_time(modifier, _zoned), f"{shown} || '+00'")
        case KeyType.TIMESTAMP if column == "timestamp":
            return _text_codec(
                "timestamp", _naive, assigned_time(modifier, _naive), "to_char({}, 'YYYY-MM-DD HH24:MI:SS.US')"
            )
        case KeyType.BYTES if column == "bytea":
            return _codec("bytea", _same, _same)
        case _:
            return None


def column_types(kind: KeyType) -> str:
    """The column types that a key type goes with, as words."""
    match kind:
        case KeyType.INT32 | KeyType.INT64 | KeyType.NUMERIC:
            return "smallint, integer, bigint or numeric"
        case KeyType.STRING:
            return "text, varchar, char(n) or an enum"
        case KeyType.OBJECTID:
            return "text, varchar or char(n)"
        case KeyType.TIMESTAMP:
            return "timestamptz or timestamp"
        case KeyType.BYTES:
            return "bytea"
        case KeyType.UUID | KeyType.BOOL | KeyType.DATE:
            return kind.value


def scalar(kind: KeyType, value: object) -> Scalar:
    """The key part that a column's value is, not null. Raises Unfit for what the key's type does not have."""
    if type(value) is int and kind is KeyType.INT64:
        return value
    match value:
        case bool() if kind is KeyType.BOOL:
            return value
        case Decimal() | int() if kind in _NUMBERS:
            number = Decimal(value)
            if kind is KeyType.NUMERIC and number.is_finite():
                return gate(kind, number, None)
            if number.is_finite() and number == int(number) and int(number) in _RANGES.get(kind, ()):
                return int(number)
        case str() if kind is KeyType.STRING:
            return value
        case str() if kind is KeyType.OBJECTID:
            try:
                return gate(kind, value, None)
            except KeyRefused as exc:
                raise Unfit("the row's own key is no ObjectId") from exc
        case UUID() if kind is KeyType.UUID:
            return UUID(bytes=value.bytes)
        case datetime() | date() if value in _INFINITE or (
            isinstance(value, datetime) and value.replace(tzinfo=None) in _INFINITE
        ):
            pass  # how the driver shows infinity, which no key is
        case datetime() if kind is KeyType.TIMESTAMP:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        case date() if kind is KeyType.DATE and not isinstance(value, datetime):
            return value
        case bytes() if kind is KeyType.BYTES:
            return value
    raise Unfit(f"the row's own key is no {kind.value}")


def scalars(kind: KeyType, values: Sequence[object]) -> Sequence[Scalar]:
    """The same of many."""
    if kind is KeyType.INT64 and {*map(type, values)} == {int}:
        return values  # type: ignore[return-value]
    return [scalar(kind, value) for value in values]


def _codec(type: str, match: Callable[[Scalar], object], assign: Callable[[Scalar], object]) -> Codec:
    return Codec(match, assign, cast(f"{type}[]"), cast(f"{type}[]"), cast(type))


def _text_codec(type: str, match: Callable[[Scalar], object], assign: Callable[[Scalar], object], read: str) -> Codec:
    """Times go as text: the driver sends the first and the last that Python knows as minus and plus infinity."""
    bound = cast(f"text[]::{type}[]")
    return Codec(match, assign, bound, bound, lambda column: f"pg_catalog.{read.format(column)}")


def cast(type: str) -> Callable[[str], str]:
    """What makes of an expression one of that SQL type."""
    return lambda expression: f"{expression}::{type}"


def _enum_codec(enum: Enum) -> Codec:
    """A word that the enum does not have is in no row. The server says which it has, when it is asked: words may be
    added at any time. Written, it is an error."""

    def compared(placeholder: str) -> str:
        return (
            f"array(select l.enumlabel::text::{enum.name} from unnest({placeholder}::text[]) with ordinality u(word, n)"
            f" left join pg_catalog.pg_enum l on l.enumtypid = {enum.oid} and l.enumlabel = u.word order by u.n)"
        )

    return Codec(_text, assigned_text(-1), compared, cast(f"text[]::{enum.name}[]"), cast("text"))


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


def scaled(modifier: int) -> Callable[[Scalar], object]:
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


def assigned_text(modifier: int) -> Callable[[Scalar], object]:
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


def _padded(modifier: int) -> tuple[Callable[[Scalar], object], Callable[[Scalar], object]]:
    """How a text is matched with char(n), and written to it.

    A parent's char(n) of the same length sends its keys filled up with spaces, any other column without. A key with
    spaces at its end that do not fill the column may be another row's key in a column where they count.
    """
    length = modifier - _HEADER if modifier >= _HEADER else None

    def match(value: Scalar) -> object:
        assert isinstance(value, str)
        bare = value.rstrip(" ")
        if "\0" in value or (length is not None and len(bare) > length):
            return NO_MATCH
        if bare != value and len(value) != length:
            raise Unfit("the text ends with spaces, which char(n) does not keep")
        return bare

    def assign(value: Scalar) -> object:
        found = match(value)
        if found is NO_MATCH:
            raise Unfit("the text is longer than the column, or has a character of code 0")
        return found

    return match, assign


def _dated(value: Scalar) -> object:
    assert isinstance(value, date)
    return value.isoformat()


def _naive(value: Scalar) -> object:
    assert isinstance(value, datetime)
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _zoned(value: Scalar) -> object:
    return f"{_naive(value)}+00"


def assigned_time(modifier: int, bound: Callable[[Scalar], object] = lambda value: value) -> Callable[[Scalar], object]:
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
