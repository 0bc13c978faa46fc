"""The value of a record that is a row: JSON, with or without its Connect schema around it."""

from __future__ import annotations

import re
from typing import NamedTuple

from integrity.core.condition import Condition, ConditionFault
from integrity.core.decode.json import JsonFault, check_text, parse, parse_envelope
from integrity.core.decode.record import Limits, Record, Refused
from integrity.core.decode.row import known, texts
from integrity.core.decode.schema import HINTS_MAX, Hints, hints_of
from integrity.errors import Reason

VERSION_MAX = 0x7FFF_FFFF_FFFF_FFFF
_WHOLE = re.compile("[0-9]{1,19}")
_WRAPPER = b'{"schema":'
_WRAPPER_COST = len(b'{"schema":,"payload":}')


class Value(NamedTuple):
    """What a value holds. `hints` is what the schema around it says of its fields; None: there is no schema."""

    document: object
    hints: Hints | None


class ValueReader:
    """Reads values, and remembers what it has read of schemas: a topic's is the same text in every record."""

    __slots__ = ("_hints", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hints: dict[bytes, Hints] = {}

    def of(self, text: bytes) -> Value:
        """What a text holds. JsonFault when it is no strict JSON, or a null without the schema of a row."""
        limits = self._limits
        if text.startswith(_WRAPPER):
            # As the JsonConverter writes it: two fields fill the whole text.
            check_text(text, limits)
            parts = parse_envelope(text)
            known, payload = bytes(parts.schema), bytes(parts.payload)
            if payload and len(known) + len(payload) + _WRAPPER_COST == len(text):
                hints = self._hints.get(known)
                if hints is not None and payload != b"null":
                    return Value(parse(payload, limits), hints)
                return self._unwrapped({"schema": parse(known, limits), "payload": parse(payload, limits)}, known)
        return self._unwrapped(parse(text, limits), None)

    def _unwrapped(self, document: object, known: bytes | None) -> Value:
        if type(document) is not dict or document.keys() != {"schema", "payload"}:
            return Value(document, None)
        schema, payload = document["schema"], document["payload"]
        if type(schema) is dict and type(schema.get("type")) is str:
            if payload is None and schema["type"] != "struct":
                raise JsonFault(Reason.BAD_ENVELOPE, "a null whose schema is not that of a row")
            hints = hints_of(schema)
            if known is not None:
                if len(self._hints) >= HINTS_MAX:
                    self._hints.clear()
                self._hints[known] = hints
            return Value(payload, hints)
        # A converter writes no null without a schema: with one it is a row whose columns have these names.
        return Value(payload, None) if schema is None and type(payload) is dict else Value(document, None)


def refused(fault: JsonFault) -> Refused:
    """A value that is no strict JSON, as a dead letter."""
    return Refused(fault.reason, f"The record value is refused: {fault.message}.", "value")


def is_envelope(fields: dict[str, object]) -> bool:
    """Whether a row is none, but Debezium's envelope around one."""
    source = fields.get("source")
    return type(fields.get("op")) is str and type(source) is dict and type(source.get("connector")) is str


def at_path(fields: dict[str, object], path: tuple[str, ...]) -> object:
    """The value at a path of fields; None where it ends early."""
    found: object = fields
    for name in path:
        if type(found) is not dict:
            return None
        found = found.get(name)
    return found


def version_number(value: object, name: str) -> int:
    """The whole number that places a change; digits as text are one too. Refused when it is none."""
    if type(value) is str and _WHOLE.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= VERSION_MAX:
        what = "is not there" if value is None else "is no whole number from 0 to 2^63 - 1"
        raise Refused(Reason.BAD_VERSION, f"The field {name}, which places the change, {what}.", "value")
    return value


def is_deleted(condition: Condition, record: Record, fields: dict[str, object], op: str | None) -> bool:
    """Whether a row counts as deleted by the rule's `deleted_when`. Refused when it gives no answer."""
    values: dict[str, object] = {"after": known(fields)}
    if "op" in condition.names:
        if op is None:
            message = "The condition deleted_when asks for op, which the record does not tell: add.fields=op."
            raise Refused(Reason.BAD_ENVELOPE, message, "value")
        values["op"] = op
    if "headers" in condition.names:
        values["headers"] = texts(record.headers)
    try:
        return condition.holds(values)
    except ConditionFault as fault:
        message = f"The condition deleted_when has no answer: {fault.message}."
        raise Refused(Reason.BAD_ENVELOPE, message, "value") from None
