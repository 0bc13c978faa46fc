"""Domain events: what their types say of a key, whatever the format that carries them.

A type that the rule does not name says nothing, and never a deletion. The payload is read only where the rule needs
something of it: a key, a new key, the row of a copy. It is a JSON object, or text that holds one.

A domain event is placed by the field of its payload that the rule names (`version`), else by its Kafka offset, which
orders a partition. Key changes lead from key to key, and so from partition to partition: with them and without
`version`, a topic has one partition, and what is in another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from integrity.core.change import Op, Version
from integrity.core.decode.json import JsonFault, check_text, parse
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.record import (
    TOMBSTONE,
    Decoded,
    Decoder,
    Headers,
    Ignored,
    Limits,
    Record,
    Refused,
    change_of,
    trace_of,
)
from integrity.core.decode.row import copied_row
from integrity.core.decode.value import at_path, version_number
from integrity.core.keys import Key, KeyRefused
from integrity.core.rules.model import KeyFrom, Parent, Types
from integrity.errors import Reason

Payload = Callable[[], object]
"""The payload of an event, read when it is asked for: a JSON value. Raises JsonFault and Refused."""

_OTHER = Ignored("other", "The rule does not name the type of the event.")
_SAME_KEY = Ignored("key_changed", "The key change leads to an equal key.")


class DomainEvents(ParentReader):
    """What the domain events of one parent say; `copied` are the fields of the payload that are wanted, None: none."""

    __slots__ = (
        "_from_payload",
        "_keys",
        "_needs_one_partition",
        "_new_key",
        "_ops",
        "_version_path",
    )

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        events = parent.events
        assert events is not None
        assert events.types is not None
        types = events.types
        self._keys = KeyReader(parent.key, limits, events.key_format)
        self._from_payload = events.key_from is KeyFrom.PAYLOAD
        self._version_path = events.version
        self._needs_one_partition = bool(types.key_changed) and events.version is None
        self._new_key = types.new_key
        self._ops = {
            **dict.fromkeys(types.deleted, Op.DELETED),
            **dict.fromkeys(types.key_changed, Op.MOVED),
            **dict.fromkeys(types.upserted, Op.ALIVE),
        }

    def says(self, record: Record, type_: str, payload: Payload, occurred_ms: object = None) -> Decoded:
        """What an event of that type says. Raises Refused."""
        op = self._ops.get(type_)
        if op is None:
            return _OTHER
        self._check_order(record)
        is_copied = op is Op.ALIVE and self._copied is not None
        fields: dict[str, object] = {}
        if self._from_payload or op is Op.MOVED or is_copied or self._version_path is not None:
            try:
                fields = object_in(payload(), "payload", self._limits)
            except JsonFault as fault:
                raise Refused(fault.reason, f"The payload is refused: {fault.message}.", "value") from None
        key = self._key(record, fields)
        to = self._key_after(fields, key) if op is Op.MOVED else None
        if to == key:
            return _SAME_KEY
        row = copied_row(fields, self._copied, None) if is_copied and self._copied is not None else None
        trace = trace_of(record.headers, self._limits)
        return change_of(record, self._entity, op, key, to, self._version(record, fields), occurred_ms, trace, row)

    def gone(self, record: Record) -> Decoded:
        """What a null record says that is no event of a type. Raises Refused."""
        if self._ignores_tombstones:
            return TOMBSTONE
        if self._from_payload:
            raise Refused(Reason.MISSING_KEY, "A null record has no payload that the key could be read from.", "value")
        self._check_order(record)
        trace = trace_of(record.headers, self._limits)
        return change_of(record, self._entity, Op.GONE, self._key(record, {}), None, None, None, trace)

    def _version(self, record: Record, fields: dict[str, object]) -> Version:
        path = self._version_path
        number = record.offset if path is None else version_number(at_path(fields, path), ".".join(path))
        return Version(self._epoch, (number,))

    def _check_order(self, record: Record) -> None:
        if self._needs_one_partition and record.partition != 0:
            raise Refused(
                Reason.BAD_VERSION,
                "The topic has several partitions, and nothing orders key changes over them: let it have one, or name "
                "the field of their version.",
                "value",
            )

    def _key(self, record: Record, fields: Mapping[str, object]) -> Key:
        if not self._from_payload:
            return self._record_key(record)
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has no key, so nothing orders the events of its parent.", "key")
        try:
            return self._keys.in_object(fields, None, None)
        except KeyRefused as fault:
            raise Refused(fault.reason, f"The key in the payload is refused: {fault.message}.", "value") from None

    def _record_key(self, record: Record) -> Key:
        try:
            return self._keys.of(record)[0]
        except Refused as refused:
            found = refused.undecodable
            if found.reason is not Reason.TYPE_MISMATCH:
                raise
            hint = "Text without quotes is read with key_format: string, a key in the payload with key_from: payload."
            raise Refused(found.reason, f"{found.message} {hint}", found.stage) from None

    def _key_after(self, fields: Mapping[str, object], key: Key) -> Key:
        """The key that an event leads to; a field that the rule does not name keeps its value."""
        try:
            missing = [field for field in self._new_key.values() if field not in fields]
            if missing:
                raise KeyRefused(Reason.MISSING_KEY, "it lacks a field that new_key names")
            found = {name: fields[field] for name, field in self._new_key.items()}
            return self._keys.in_object(found, key, None)
        except KeyRefused as fault:
            raise Refused(fault.reason, f"The new key in the payload is refused: {fault.message}.", "value") from None


def never_raising(says: Decoder, limits: Limits, *, followed: bool = False) -> Decoder:
    """A decoder out of a function that raises JsonFault, of the value, and Refused. What is no record of any format
    does not come to it. `followed`: the source writes null records after deletions, so after what is refused too."""

    def decode(record: Record) -> Decoded:
        try:
            _check(record, limits)
            return says(record)
        except JsonFault as fault:
            found = Refused(fault.reason, f"The record value is refused: {fault.message}.", "value").undecodable
        except Refused as refused:
            found = refused.undecodable
        return found._replace(repeated=True) if followed and record.value is not None else found

    return decode


def _check(record: Record, limits: Limits) -> None:
    if record.key is None and record.value is None:
        raise Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
    if record.value is None:
        return
    if not record.value:
        raise Refused(Reason.EMPTY_VALUE, "The record value is empty; a null record has none.", "value")
    if len(record.value) > limits.record_bytes_max:
        message = f"The record value is refused: larger than {limits.record_bytes_max} bytes."
        raise Refused(Reason.TOO_LARGE, message, "value")


def value_of(record: Record, limits: Limits) -> object:
    """The value as JSON, out of Connect's wrapper; None where it is null. Raises JsonFault."""
    if record.value is None:
        return None
    check_text(record.value, limits)
    return unwrapped(parse(record.value, limits))


def unwrapped(document: object) -> object:
    """What is in the wrapper that the JsonConverter writes with schemas.enable=true, if there is one."""
    if type(document) is dict and document.keys() == {"schema", "payload"}:
        schema = document["schema"]
        if schema is None or (type(schema) is dict and "type" in schema):
            return document["payload"]
    return document


def object_in(value: object, what: str, limits: Limits) -> dict[str, object]:
    """An object, or the one that a text holds. Raises JsonFault and Refused."""
    if type(value) is str:
        value = parse(value.encode("utf-8", "surrogatepass"), limits)
    if type(value) is not dict:
        raise Refused(Reason.BAD_ENVELOPE, f"The {what} is no JSON object, nor text that holds one.", "value")
    return value


def type_of(record: Record, types: Types, limits: Limits) -> str | None:
    """The type of an event; None where there is not the header that holds it, or no value that could. Raises JsonFault
    and Refused."""
    if types.header is not None:
        return type_in_header(record.headers, types.header, limits)
    if record.value is None:
        return None
    assert types.field is not None, "a type is in a header or in a field"
    return type_in_field(object_in(value_of(record, limits), "record value", limits), types.field)


def payload_of(record: Record, types: Types, limits: Limits) -> object:
    """The payload of an event: the value, or the field of it that the rule names. Raises JsonFault and Refused."""
    value = value_of(record, limits)
    if types.payload is None or value is None:
        return value
    fields = object_in(value, "record value", limits)
    if types.payload not in fields:
        message = f"The record value has no field {types.payload[:60]}, which is the payload."
        raise Refused(Reason.BAD_ENVELOPE, message, "value")
    return fields[types.payload]


def type_in_header(headers: Headers, name: str, limits: Limits) -> str | None:
    """The type in the header of that name: text, as it is or as JSON; None where there is no such header. Raises
    Refused."""
    found = {value for header, value in headers if header == name}
    if not found:
        return None
    if len(found) > 1:
        raise Refused(Reason.BAD_ENVELOPE, f"The header {name[:60]} is there twice, with two values.", "header")
    [value] = found
    text: object = None
    try:
        if value is not None:
            is_json = value[:1] in (b'"', b"{")
            text = unwrapped(parse(value, limits)) if is_json else value.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.BAD_ENCODING, f"The header {name[:60]} is refused: not UTF-8.", "header") from None
    except JsonFault as fault:
        raise Refused(fault.reason, f"The header {name[:60]} is refused: {fault.message}.", "header") from None
    if type(text) is not str or not text:
        raise Refused(Reason.BAD_ENVELOPE, f"The header {name[:60]} holds no text.", "header")
    return text


def type_in_field(document: Mapping[str, object], name: str) -> str:
    """The type in the field of that name. Raises Refused."""
    if name not in document:
        raise Refused(Reason.BAD_ENVELOPE, f"The record value has no field {name[:60]}, which holds the type.", "value")
    text = document[name]
    if type(text) is not str or not text:
        raise Refused(Reason.BAD_ENVELOPE, f"The field {name[:60]}, which holds the type, is no text.", "value")
    return text
