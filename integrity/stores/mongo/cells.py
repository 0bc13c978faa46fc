"""A field of a parent's row as the BSON value that is the same; or it is refused.

Documents have no column types, so the schema of the event decides: decimals become Decimal128, bytes binary, a UUID
binary subtype 4, a date or a moment of whole milliseconds a BSON date, an ObjectId an ObjectId. Moments that are finer
by their type come as the source wrote them: a BSON date would round them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from integrity.core.change import Cell
from integrity.core.decode.extended_json import OBJECTID
from integrity.core.decode.record import Limits
from integrity.core.keys import Bounds, Exponential, FieldHint, KeyType, gate
from integrity.stores.mongo.values import Unholdable, to_bson

_BOUNDS: Final = Bounds(text_max=Limits().record_bytes_max)
_KINDS: Final = {
    "org.apache.kafka.connect.data.Decimal": KeyType.NUMERIC,
    "io.debezium.data.VariableScaleDecimal": KeyType.NUMERIC,
    "io.debezium.data.Uuid": KeyType.UUID,
    "io.debezium.time.Date": KeyType.DATE,
    "org.apache.kafka.connect.data.Date": KeyType.DATE,
    "io.debezium.time.Timestamp": KeyType.TIMESTAMP,
    "org.apache.kafka.connect.data.Timestamp": KeyType.TIMESTAMP,
    OBJECTID: KeyType.OBJECTID,
}
_INT64: Final = range(-(2**63), 2**63)
_TEXT_MAX: Final = 400
"""No number that a Decimal128 holds has a longer text, but for zeros."""


def to_value(cell: Cell) -> object:
    """The BSON value. Raises KeyRefused or Unholdable."""
    value, hint = cell
    if value is None:
        return None
    kind = _kind(hint)
    if kind is not None:
        return to_bson(kind, gate(kind, value, hint, _BOUNDS))
    return _plain(value, is_double=hint is not None and hint.type in ("double", "float"))


def _kind(hint: FieldHint | None) -> KeyType | None:
    if hint is None:
        return None
    return _KINDS.get(hint.name or "") or (KeyType.BYTES if hint.type == "bytes" else None)


def _plain(value: object, *, is_double: bool = False) -> object:
    match value:
        case bool() | str() | None:
            return value
        case int():
            return value if value in _INT64 else to_bson(KeyType.NUMERIC, Decimal(value))
        case Exponential():
            if len(value.text) > _TEXT_MAX:
                raise Unholdable("The number has more than the 34 digits that MongoDB keeps.")
            return _number(Decimal(value.text), is_double)
        case Decimal():
            return _number(value, is_double)
        case list():
            return [_plain(part) for part in value]
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case _:
            raise AssertionError(f"JSON has no {type(value).__name__}")


def _number(number: Decimal, is_double: bool) -> object:
    """A double where it prints as this number (or a double has printed it), else a Decimal128."""
    double = float(number)
    if is_double or Decimal(repr(double)) == number:
        return double
    return to_bson(KeyType.NUMERIC, number)
