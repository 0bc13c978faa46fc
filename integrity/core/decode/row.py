"""The values of a parent's row: those that a copy keeps, and those that a condition looks at."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from decimal import Decimal

from integrity.core.change import Cell, Row
from integrity.core.decode.record import Headers, Refused
from integrity.core.decode.schema import Hints
from integrity.core.keys import UNAVAILABLE, UNTOLD, Exponential, FieldHint
from integrity.errors import Reason

_UNAVAILABLE_BYTES = b64encode(UNAVAILABLE.encode()).decode()
_tuple = tuple.__new__  # measured: twice as fast as the named tuple's own constructor


def copied_row(row: Mapping[str, object], wanted: Iterable[str], hints: Hints | None) -> Row:
    """The fields of a row that a copy wants, with what its schema says of them. Refused where one may be null."""
    found: dict[str, Cell | None] = {}
    for name in wanted:
        if name in row:
            value, hint = row[name], None if hints is None else hints.get(name)
            if value == UNTOLD:
                message = (
                    f"Nothing tells whether the field {name[:60]}, which a copy needs, is null, or zero, empty or "
                    "false: set optional.for.nullables=true at the ProtobufConverter."
                )
                raise Refused(Reason.BAD_ENVELOPE, message, "value")
            found[name] = None if is_unsent(value, hint) else _tuple(Cell, (value, hint))
    return found


def is_unsent(value: object, hint: FieldHint | None) -> bool:
    """Whether it stands for a value that is unknown: one that the source did not send, which Debezium writes as text,
    bytes, list or map; or one that Protobuf does not tell."""
    if type(value) is str:
        return value in (UNAVAILABLE, UNTOLD) or (
            value == _UNAVAILABLE_BYTES and (hint is None or hint.type == "bytes")
        )
    return value in ([UNAVAILABLE], {UNAVAILABLE: UNAVAILABLE})


def plain(value: object) -> object:
    """The value as conditions take it: a number with a point or exponent is a double there."""
    match value:
        case Decimal():
            return float(value)
        case Exponential():
            return float(value.text)
        case dict():
            return known(value)
        case list():
            return [plain(part) for part in value]
        case _:
            return value


def known(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields of an object as conditions take them: what is unknown is not there."""
    return {name: plain(value) for name, value in fields.items() if value not in (UNAVAILABLE, UNTOLD)}


def texts(headers: Headers) -> dict[str, str | None]:
    """The headers that are UTF-8 text; of several with one name the last."""
    found: dict[str, str | None] = {}
    for name, value in headers:
        try:
            found[name] = None if value is None else value.decode()
        except UnicodeDecodeError:
            found.pop(name, None)
    return found
