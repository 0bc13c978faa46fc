"""Key parts as BSON values and back.

Every conversion is exact, or refused with `Unholdable`: a key that MongoDB cannot hold can be in no document, and a
rounded one would be another parent's. MongoDB has no date type; a `date` key is what drivers make of a date, a datetime
at midnight UTC, and equals nothing else.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, DecimalException
from math import isfinite
from typing import Any, assert_never
from uuid import UUID

from bson import CodecOptions, DatetimeConversion, Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.datetime_ms import DatetimeMS

from integrity.core.keys import KeyRefused, KeyType, Scalar, gate

CODECS: CodecOptions[dict[str, Any]] = CodecOptions(
    dict,
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""UUIDs in binary subtype 4; a time that Python has no datetime for is read as it is, to be written back unchanged."""

_NUMBERS = frozenset({KeyType.INT32, KeyType.INT64, KeyType.NUMERIC})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class Unholdable(Exception):
    """MongoDB has no value that is equal to this one. `message` is one sentence without the value."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def to_bson(kind: KeyType, part: Scalar) -> object:
    """The BSON value that a document's reference to this key part is compared with."""
    match kind:
        case KeyType.INT32 | KeyType.INT64:
            assert isinstance(part, int)
            return _whole(part)
        case KeyType.NUMERIC:
            assert isinstance(part, Decimal | int)
            return _decimal(part)
        case KeyType.OBJECTID:
            assert isinstance(part, str)
            return ObjectId(part)
        case KeyType.DATE:
            assert isinstance(part, date)
            return datetime(part.year, part.month, part.day, tzinfo=UTC)
        case KeyType.TIMESTAMP:
            assert isinstance(part, datetime)
            if part.microsecond % 1000:
                raise Unholdable("The timestamp is finer than the milliseconds that MongoDB keeps.")
            return part
        case KeyType.STRING | KeyType.UUID | KeyType.BOOL | KeyType.BYTES:
            assert isinstance(part, str | UUID | bool | bytes)
            return part
        case _:
            assert_never(kind)


def from_bson(kind: KeyType, value: object) -> Scalar:
    """The key part that a document's value is, given that MongoDB found the two equal.

    Numbers come as they are stored (int, float, Decimal): Python, like MongoDB, compares them exactly.
    """
    if type(value) is int or type(value) is str:
        return value
    match value:
        case Decimal128():
            return value.to_decimal()
        case ObjectId():
            return str(value)
        case datetime() if kind is KeyType.DATE:
            return value.date()
        case bool() | int() | str() | bytes() | UUID() | datetime():
            return value
        case float():
            return Decimal(value)
        case _:
            raise AssertionError(f"A reference of type {type(value).__name__} equals no key part.")


def element_key(kind: KeyType, element: object) -> Scalar | None:
    """The key part that an element of a list is; None when it is equal to none of that type.

    What MongoDB's equality is to a whole field, this is to an element: it looks at the type first, since to Python
    true is 1 and a Binary of any subtype is its bytes.
    """
    match kind:
        case KeyType.INT32 | KeyType.INT64 | KeyType.NUMERIC:
            return _number(element)
        case KeyType.STRING:
            return element if type(element) is str else None
        case KeyType.UUID:
            return element if isinstance(element, UUID) else None
        case KeyType.BOOL:
            return element if isinstance(element, bool) else None
        case KeyType.BYTES:
            return element if type(element) is bytes else None
        case KeyType.OBJECTID:
            return str(element) if isinstance(element, ObjectId) else None
        case KeyType.TIMESTAMP:
            return element if isinstance(element, datetime) else None
        case KeyType.DATE:
            is_midnight = isinstance(element, datetime) and element.time() == time()
            return element.date() if isinstance(element, datetime) and is_midnight else None
        case _:
            assert_never(kind)


def own_part(kind: KeyType, value: object) -> Scalar | None:
    """The key part that a field of a document's own key is, in the form that keys have; None when it is none."""
    part = element_key(kind, value)
    if part is None or kind not in (KeyType.INT32, KeyType.INT64, KeyType.NUMERIC):
        return part
    assert isinstance(part, int | Decimal)
    try:
        return gate(kind, int(part) if kind is not KeyType.NUMERIC and part == int(part) else Decimal(part), None)
    except KeyRefused:
        return None


def _number(element: object) -> int | Decimal | None:
    match element:
        case bool():
            return None
        case int():
            return element
        case float() if isfinite(element):
            return Decimal(element)
        case Decimal128():
            number = element.to_decimal()
            return number if number.is_finite() else None
        case _:
            return None


def in_the_type_of(old: object, kind: KeyType, part: Scalar) -> object:
    """`part` as BSON, a number in the number type that the reference had: a long stays a long, a double a double where
    it can hold the value. So validators and typed readers go on to accept the document."""
    if kind not in (KeyType.INT32, KeyType.INT64, KeyType.NUMERIC):
        return to_bson(kind, part)
    assert isinstance(part, int | Decimal)
    match old:
        case Decimal128():
            return _decimal(part)
        case float() if float(part) == part:
            return float(part)
        case Int64() if part == int(part):
            return Int64(_whole(int(part)))
        case int() if part == int(part):
            return _whole(int(part))
    return to_bson(kind, part)


def micros_of(value: object) -> int:
    """A BSON date as microseconds since the epoch, years beyond Python's too."""
    if isinstance(value, DatetimeMS):
        return int(value) * 1000
    assert isinstance(value, datetime)
    return (value - _EPOCH) // timedelta(microseconds=1)


def _whole(number: int) -> int:
    """pymongo writes 32 bits where they suffice, else 64."""
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise Unholdable("The number does not fit the 64 bits of MongoDB's whole numbers.")
    return number


def _decimal(number: Decimal | int) -> Decimal128:
    try:
        held = Decimal128(Decimal(number))
    except DecimalException as exc:
        raise Unholdable("The number has more than the 34 digits that MongoDB keeps.") from exc
    if held.to_decimal() != number:
        raise Unholdable("The number has more than the 34 digits that MongoDB keeps.")
    return held
