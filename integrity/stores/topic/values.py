"""A child record's value as a row: which key it references, and the same bytes with another reference.

Reading is exact and strict; a value that is not beyond doubt a row is no dependent of anything. Writing replaces the
bytes of the reference's fields and leaves every other byte as its owner wrote it.

The row is the value itself, or what Kafka Connect's wrapper has as `payload`, or a Debezium envelope as `after`. An
envelope is read, never written: it tells at which place of its source's log a row was changed, and a change that is
not in that log has no place to tell.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.record import Limits
from integrity.core.fold import Values
from integrity.core.keys import Exponential, Key, KeyRefused, KeyType, Scalar, gate
from integrity.core.rules.model import Literal
from integrity.errors import Reason
from integrity.stores.rule import StoreRule

Document = Mapping[str, object]
_ENVELOPE: Final = frozenset(("before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction"))
_INT_BITS: Final[Mapping[object, int]] = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}

LIMITS: Final = Limits()
_ABSENT: Final = object()
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS: Final = range(10**11, 10**14)
"""From March 1973 to the year 5138; what can be a moment in seconds lies below, one in microseconds above."""
_FINER: Final = re.compile(r"(\.[0-9]{6})[0-9]+")
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()


class NoRow(Exception):
    """A value is not beyond doubt a row of a dependent: not a JSON object, a field missing or of a wrong type."""


class Unwritable(Exception):
    """A reference cannot be written the way its owner writes it; `message` holds no value."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason = Reason.VALUE_REJECTED
        self.message = message


class Row(NamedTuple):
    """A value's row: its fields, None when it says that the row is gone, and the path that leads to them. `schema` is
    the wrapper's; None where there is none."""

    fields: Document | None
    at: tuple[str, ...]
    schema: Document | None
    is_envelope: bool


class RowRule:
    """How one dependent reads and writes its rows."""

    __slots__ = ("_as_of", "_own", "_paths", "_where", "rule")

    def __init__(self, rule: StoreRule) -> None:
        self.rule = rule
        self._paths = tuple(tuple(column.split(".")) for column in rule.dependent.columns)
        of_rows = () if rule.rows is None else rule.rows.spec.fields
        self._own = tuple((tuple(name.split(".")), kind) for name, kind in of_rows)
        self._where = tuple((tuple(field.split(".")), wanted) for field, wanted in rule.dependent.where.items())
        self._as_of = None if rule.dependent.as_of is None else tuple(rule.dependent.as_of.split("."))

    def reference(self, row: Row) -> Key | None:
        """The key that a row references; None when it references nothing (a part is null, the row is gone) or `where`
        leaves it out. Raises NoRow."""
        document = row.fields
        if document is None:
            return None
        parts: list[Scalar] = []
        null = False
        for path, kind in zip(self._paths, self.rule.spec.types, strict=True):
            value = _at(document, path)
            if value is _ABSENT:
                raise NoRow
            if value is None:
                null = True
                continue
            try:
                parts.append(gate(kind, value, None))
            except KeyRefused:
                raise NoRow from None
        if null or not all(_fits(_at(document, path), wanted) for path, wanted in self._where):
            return None
        return tuple(parts)

    def own(self, row: Row) -> Key | None:
        """The row's own key; None when a part is missing, null or of another type: then nothing can reference it."""
        parts: list[Scalar] = []
        for path, kind in self._own:
            value = _ABSENT if row.fields is None else _at(row.fields, path)
            if value is _ABSENT or value is None:
                return None
            try:
                parts.append(gate(kind, value, None))
            except KeyRefused:
                return None
        return tuple(parts)

    def born(self, row: Row) -> int | None:
        """When a row came to be, in microseconds since the epoch; None where that does not matter or is in doubt."""
        if self._as_of is None or row.fields is None:
            return None
        return _micros(_at(row.fields, self._as_of))

    def rewritten(self, text: bytes, row: Row, old: Key, new: Values) -> bytes:
        """`text` with `new` for `old` as reference; every byte outside the parts that change is kept. Raises
        Unwritable."""
        assert row.fields is not None, "a row that is gone references nothing"
        news: list[tuple[Sequence[str], bytes]] = []
        for path, kind, before, after in zip(self._paths, self.rule.spec.types, old, new, strict=True):
            if after != before:
                news.append((path, _written(kind, after, _at(row.fields, path))))
        return _replaced(text, row, news)

    def transplanted(self, text: bytes, source: bytes) -> bytes:
        """`text` with the reference as it is written in `source`. Both hold every field of it. Raises Unwritable."""
        row = read_row(source)
        spans = [_span(source, (*row.at, *path)) for path in self._paths]
        news = [(path, source[start:end]) for path, (start, end) in zip(self._paths, spans, strict=True)]
        return _replaced(text, read_row(text), news)


def read_row(text: bytes) -> Row:
    """The row of a value: whole numbers exact ints, others Decimal or Exponential. Raises NoRow."""
    try:
        value = parse(text, LIMITS)
    except JsonFault:
        raise NoRow from None
    at: tuple[str, ...] = ()
    schema: Document | None = None
    if isinstance(value, dict) and value.keys() == {"schema", "payload"} and _is_connects(value["schema"]):
        schema, value, at = value["schema"], value["payload"], ("payload",)
        if value is None:
            return Row(None, at, schema, is_envelope=False)
    if not isinstance(value, dict):
        raise NoRow
    if value.keys() <= _ENVELOPE and isinstance(value.get("source"), dict) and "op" in value:
        return Row(_after(value), (*at, "after"), schema, is_envelope=True)
    return Row(value, at, schema, is_envelope=False)


def _is_connects(schema: object) -> bool:
    """What a wrapper has as schema: null where its writer knew none."""
    return schema is None or (isinstance(schema, dict) and isinstance(schema.get("type"), str))


def _after(envelope: Document) -> Document | None:
    """The row that an envelope tells of."""
    after = envelope.get("after")
    if envelope["op"] == "d" and after is None:
        return None
    if envelope["op"] in ("c", "u", "r") and isinstance(after, dict):
        return after
    raise NoRow


def _replaced(text: bytes, row: Row, news: Sequence[tuple[Sequence[str], bytes]]) -> bytes:
    """`text` with these fields of its row written anew. Raises Unwritable."""
    if row.is_envelope:
        raise Unwritable("The child is a Debezium envelope, which only a null record can follow.")
    if row.schema is not None and not all(_admits(row.schema, path, new) for path, new in news):
        raise Unwritable("The schema in the child's value does not take the new reference.")
    return _patched(text, [(*_span(text, (*row.at, *path)), new) for path, new in news])


def _admits(schema: object, path: Sequence[str], new: bytes) -> bool:
    """Whether a Connect schema takes a value, written in the form of the one before, at a path."""
    for name in path:
        fields = schema.get("fields") if isinstance(schema, dict) else None
        found = fields if isinstance(fields, list) else ()
        schema = next((each for each in found if isinstance(each, dict) and each.get("field") == name), None)
    if not isinstance(schema, dict):
        return False
    if new == b"null":
        return schema.get("optional") is True
    bits = _INT_BITS.get(schema.get("type"))
    if bits is None:
        return True
    number = parse(new, LIMITS)
    return type(number) is int and -(2 ** (bits - 1)) <= number < 2 ** (bits - 1)


def _at(document: Document, path: Sequence[str]) -> object:
    value: object = document
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _fits(value: object, wanted: Literal | tuple[Literal, ...]) -> bool:
    if isinstance(wanted, tuple):
        return any(_equals(value, each) for each in wanted)
    return _equals(value, wanted)


def _equals(value: object, wanted: Literal) -> bool:
    """JSON's equality: true is not 1, 1.0 is 1. A field that is not there is null."""
    match wanted:
        case None:
            return value is None or value is _ABSENT
        case bool() | str():
            return type(value) is type(wanted) and value == wanted
        case int() | float():
            number = _decimal(value.text) if isinstance(value, Exponential) else value
            exact = Decimal(repr(wanted)) if isinstance(wanted, float) else wanted
            return type(number) in (int, Decimal) and number == exact


def _micros(value: object) -> int | None:
    """A moment as text with a zone (cut to microseconds), or as a number whose size says its unit: below
    `_MILLISECONDS` it could be seconds, above them the key gate takes it for microseconds."""
    if type(value) is int and value in _MILLISECONDS:
        return value * 1000
    try:
        moment = gate(KeyType.TIMESTAMP, _FINER.sub(r"\1", value) if isinstance(value, str) else value, None)
    except KeyRefused:
        return None
    assert isinstance(moment, datetime)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None  # an exponent beyond any number that a rule can name


def _written(kind: KeyType, value: Scalar | None, before: object) -> bytes:
    """A key part as JSON, in the form that its owner used before, such that reading it gives the same key part."""
    if value is None:
        return b"null"
    shape = _shape(value, before)
    text = format(shape, "f").encode() if isinstance(shape, Decimal) else msgspec.json.encode(shape)
    try:
        if gate(kind, parse(text, LIMITS), None) == value:
            return text
    except (KeyRefused, JsonFault):
        pass
    raise Unwritable(f"The new reference cannot be written as the {kind} that the field holds.")


def _shape(value: Scalar, before: object) -> object:
    match value:
        case bool() | int() | str():
            return value
        case Decimal():
            return _unscaled(value) if isinstance(before, dict) else value
        case UUID():
            return str(value)
        case bytes():
            return b64encode(value).decode()
        case datetime():
            if isinstance(before, int):
                return (value - _EPOCH) // timedelta(microseconds=1)
            return value.isoformat().replace("+00:00", "Z")
        case date():
            return value.toordinal() - _EPOCH_DAY if isinstance(before, int) else value.isoformat()


def _unscaled(number: Decimal) -> dict[str, object]:
    """What Debezium writes for a number of variable scale."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "a key part is finite"
    unscaled = int("".join(map(str, digits))) * (-1 if sign else 1) * 10 ** max(exponent, 0)
    raw = unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)
    return {"scale": max(-exponent, 0), "value": b64encode(raw).decode()}


# --- where a field stands in a text of sound syntax without repeated names ---------------------------------------

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_PLAIN = re.compile(rb"[^\s,\]}]+")
_SPACE = re.compile(rb"[ \t\n\r]*+")


def _span(text: bytes, path: Sequence[str]) -> tuple[int, int]:
    at = 0
    for name in path:
        at = _field(text, at, name)
    return at, _end(text, at)


def _field(text: bytes, at: int, name: str) -> int:
    """Where the value of a field begins, in the object at `at`."""
    at = _after_space(text, at)
    assert text[at : at + 1] == b"{", "the path leads through objects"
    while True:
        label = _STRING.match(text, _after_space(text, at + 1))
        assert label is not None, "the field is there"
        at = _after_space(text, _after_space(text, label.end()) + 1)
        if json.loads(label[0]) == name:
            return at
        at = _after_space(text, _end(text, at))


def _end(text: bytes, at: int) -> int:
    opening = text[at : at + 1]
    if opening not in (b"{", b"["):
        found = (_STRING if opening == b'"' else _PLAIN).match(text, at)
        assert found is not None, "the syntax is sound"
        return found.end()
    depth = 0
    for token in _TOKEN.finditer(text, at):
        if token[0] in (b"{", b"["):
            depth += 1
        elif token[0] in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end()
    raise AssertionError("the syntax is sound")


def _after_space(text: bytes, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _patched(text: bytes, patches: list[tuple[int, int, bytes]]) -> bytes:
    for start, end, new in sorted(patches, reverse=True):
        text = text[:start] + new + text[end:]
    return text
