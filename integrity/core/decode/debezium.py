"""The `debezium` format: envelopes as JSON, schemas on or off, of the relational connectors.

The key of a change is the record key, never the row `before`: under PostgreSQL's default replica identity Debezium
invents every column of it that is not of the key. A `d` with the header `__debezium.newkey` is a key change and never a
deletion, even when that header cannot be read. A `u` says nothing, a key change being a `d` and a `c`, unless the rule
says which rows count as deleted (`deleted_when`): then a `c` or `u` is a deletion, or says that the row lives; or a
copy wants the row `after`, which `c`, `r` and `u` then bring along. The
position of a change is PostgreSQL's `source.lsn`, which goes back within a topic but not for one key; of other
connectors, so far, the Kafka offset. MongoDB (another key text) and SQL Server (key changes without the header) are
refused.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Mapping
from decimal import Decimal

from msgspec import Raw

from integrity.core.change import Cell, Op, Origin, ParentChange, Row, Version
from integrity.core.condition import Condition, ConditionFault
from integrity.core.decode.json import (
    Envelope,
    JsonFault,
    check_depth,
    check_text,
    parse,
    parse_deletion,
    parse_envelope,
    parse_object,
)
from integrity.core.decode.record import Decoded, Decoder, Headers, Ignored, Limits, Record, Undecodable
from integrity.core.keys import GATES, UNAVAILABLE, Bounds, Exponential, FieldHint, Key, KeyRefused, KeyType, Scalar
from integrity.core.rules.model import Parent, Tombstones
from integrity.errors import Reason

NEW_KEY = "__debezium.newkey"
"""The header of a key change's `d` and of its tombstone: the key that the row has now."""
OLD_KEY = "__debezium.oldkey"
"""The header of a key change's `c`: the key that the row had. Only that it is there is of interest."""
TRACEPARENT = "traceparent"

_POSTGRESQL = "postgresql"
_UNSUPPORTED: Mapping[str, str] = {
    "mongodb": "Keys of the MongoDB connector are not supported yet",
    "sqlserver": "SQL Server sends key changes as deletions without a mark, which is not supported yet",
}
_PLAIN_NAME = re.compile("[A-Za-z0-9_]+", re.ASCII)
_LSN_MAX = 0x7FFF_FFFF_FFFF_FFFF
_LSN = re.compile("[0-9]{1,19}")
_SCALE = re.compile("-?[0-9]{1,9}")
_TRACEPARENT_MAX = 255
_OPS: Mapping[bytes, str] = {f'"{op}"'.encode(): op for op in "crudtm"}
_HINTS_MAX = 64
_DELETION, _TAIL = b'"op":"d"', 160
"""Where a deletion says so, as the JsonConverter writes it: a hint of what to read it as, no more."""
# The years 1 to 9999, in milliseconds since the epoch: what a store can keep as a time.
_OCCURRED_MIN, _OCCURRED_MAX = -62_135_596_800_000, 253_402_300_799_999

_UPDATED = Ignored("u", "An update keeps its key.")
_TRUNCATED = Ignored("t", "A truncate names no key.")
_MESSAGE = Ignored("m", "A logical message says nothing about a key.")
_HEARTBEAT = Ignored("heartbeat", "A heartbeat says nothing about a key.")
_TRANSACTION = Ignored("transaction", "A transaction marker says nothing about a key.")
_SAME_KEY = Ignored("d", "The key change leads to an equal key.")
_SAME_KEY_TOMBSTONE = Ignored("tombstone", "The key change leads to an equal key.")
_TOMBSTONE = Ignored("tombstone", "The rule says that null records say nothing.")
_SNAPSHOT = Ignored("r", "A snapshot read without a position cannot be placed in the order of changes.")

_WITHOUT_KEY: Mapping[str, Ignored] = {"t": _TRUNCATED, "m": _MESSAGE}

# Measured: an enumeration's attribute costs as much as a function call, and a named tuple made by name twice what it
# costs made from a tuple.
_tuple = tuple.__new__
_ALIVE, _ARRIVED = Op.ALIVE, Op.ARRIVED
_DELETED, _MOVED, _GONE = Op.DELETED, Op.MOVED, Op.GONE

Source = Mapping[str, object]
"""The fields of `source`; its connector is text, and one that is read here."""
Hints = Mapping[str, FieldHint]
_NO_HINTS: Hints = {}
_NO_SCHEMA = Raw()
_UNAVAILABLE_BYTES = b64encode(UNAVAILABLE.encode()).decode()
_WHOLE = ""
"""In hints: the schema of a key that is a bare scalar."""


def debezium_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return _Debezium(parent, limits, copied).decode


class _Refused(Exception):
    """A record becomes a dead letter: caught in `decode`, the only way in."""

    def __init__(self, reason: Reason, message: str, stage: str) -> None:
        super().__init__(message)
        self.undecodable = Undecodable(reason, message, stage)


class _Debezium:
    __slots__ = (
        "_bounds",
        "_condition",
        "_copied",
        "_entity",
        "_epoch",
        "_fields",
        "_hints",
        "_ignores_tombstones",
        "_limits",
        "_plain_key",
        "_row_hints",
    )

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        assert parent.events is not None
        self._entity = parent.entity
        self._fields = tuple((name, GATES[kind]) for name, kind in parent.key.fields)
        # Most keys are one whole number, and that text can be told at sight: nothing in it is left to parse or doubt.
        [(name, kind), *others] = parent.key.fields
        is_plain = not others and kind is KeyType.INT64 and _PLAIN_NAME.fullmatch(name)
        self._plain_key = (
            re.compile(rb'\{"%b":(-?[1-9][0-9]{0,17}|0)\}' % name.encode()).fullmatch if is_plain else None
        )
        deleted_when = parent.events.deleted_when
        self._condition = None if deleted_when is None else Condition(deleted_when)
        self._epoch = parent.events.epoch
        self._ignores_tombstones = parent.events.tombstones is Tombstones.IGNORE
        self._limits = limits
        self._bounds = Bounds(limits.key_text_max, limits.digits_max)
        # A topic's key schema is the same text in every record.
        self._hints: dict[bytes, Hints] = {}
        self._copied = None if copied is None else tuple(copied)
        self._row_hints: dict[bytes, Hints] = {}

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        value = record.value
        try:
            if value is None:
                return self._tombstone(record)
            try:
                if value.find(_DELETION, -_TAIL) >= 0 and (source := parse_deletion(value, self._limits)) is not None:
                    return self._gone(record, _known(source))
                envelope, text, schema = self._envelope(value)
                op = _OPS.get(bytes(envelope.op)) or self._odd_op(record, envelope)
                if op == "u" and self._condition is None and self._copied is None:
                    return _UPDATED
                check_depth(text, self._limits)
                if op == "d":
                    return self._gone(record, self._source(envelope))
                if self._condition is not None and (op == "u" or op == "c"):
                    return self._judged(record, op, envelope, schema, self._condition)
                if op == "c" or op == "r" or op == "u":
                    return self._alive(record, op, self._source(envelope), self._row_copied(envelope, schema))
                return op if isinstance(op, Ignored) else _WITHOUT_KEY[op]
            except JsonFault as fault:
                raise _Refused(fault.reason, f"The record value is refused: {fault.message}.", "value") from None
        except _Refused as refused:
            return refused.undecodable

    def _gone(self, record: Record, source: Source) -> Decoded:
        """A deletion, or, when the header of a new key is there, a key change."""
        key, hints = self._record_key(record)
        moved, header, traceparent = _headers(record.headers, self._limits)
        to: Key | None = None
        if moved:
            to = self._header_key(header, key, hints)
            if to == key:
                return _SAME_KEY
        version = self._placed(record, source)
        return self._change(record, _MOVED if moved else _DELETED, key, to, version, source, traceparent)

    def _judged(self, record: Record, op: str, envelope: Envelope, schema: Raw, condition: Condition) -> Decoded:
        """A create or update where the rule says which rows count as deleted."""
        source = self._source(envelope)
        after = self._row(envelope.after)
        if after is None:
            if op == "u" and self._copied is None:
                return _UPDATED
            return self._alive(record, op, source, self._row_copied(envelope, schema))
        values: dict[str, object] = {"after": after, "op": op}
        if "before" in condition.names:
            values["before"] = self._row(envelope.before)
        if "source" in condition.names:
            values["source"] = _plain(source)
        if "headers" in condition.names:
            values["headers"] = _texts(record.headers)
        try:
            if not condition.holds(values):
                return self._alive(record, op, source, self._row_copied(envelope, schema))
        except ConditionFault as fault:
            message = f"The condition deleted_when has no answer: {fault.message}."
            raise _Refused(Reason.BAD_ENVELOPE, message, "value") from None
        version = self._placed(record, source)
        if _is_arrival(record):
            # Deleted where the key change has led: just after it, so that it takes the rows that came along.
            version = version._replace(position=(*version.position, 1))
        key, _ = self._record_key(record)
        trace = _headers(record.headers, self._limits)[2]
        return self._change(record, _DELETED, key, None, version, source, trace)

    def _row(self, text: Raw) -> dict[str, object] | None:
        """A row's fields, without those that the source did not send; None when there is no row."""
        if not text or bytes(text) == b"null":
            return None
        return {
            name: _plain(value)
            for name, value in parse_object(bytes(text), self._limits).items()
            if value != UNAVAILABLE
        }

    def _row_copied(self, envelope: Envelope, schema: Raw) -> Row | None:
        """The fields of the row that a copy wants, with what the schema says of them."""
        wanted = self._copied
        if wanted is None:
            return None
        if not envelope.after or bytes(envelope.after) == b"null":
            raise _Refused(Reason.BAD_ENVELOPE, "The record value has no row (after), which a copy needs.", "value")
        row = parse(bytes(envelope.after), self._limits)
        if type(row) is not dict:
            raise _Refused(Reason.BAD_ENVELOPE, "The row (after) of the record value is no object.", "value")
        hints = self._hints_of_row(schema)
        found: dict[str, Cell | None] = {}
        for name in wanted:
            if name in row:
                value, hint = row[name], None if hints is None else hints.get(name)
                found[name] = None if _is_unsent(value, hint) else _tuple(Cell, (value, hint))
        return found

    def _hints_of_row(self, schema: Raw) -> Hints | None:
        """What the schema of an envelope says of the row `after`; None when there is none."""
        text = bytes(schema)
        if not text or text == b"null":
            return None
        hints = self._row_hints.get(text)
        if hints is None:
            if len(self._row_hints) >= _HINTS_MAX:
                self._row_hints.clear()
            whole = parse(text, self._limits)
            fields = whole.get("fields") if type(whole) is dict else None
            row = [f for f in fields if type(f) is dict and f.get("field") == "after"] if type(fields) is list else []
            hints = self._row_hints[text] = _hints(row[0]) if row else _NO_HINTS
        return hints

    def _alive(self, record: Record, op: str, source: Source, row: Row | None) -> Decoded:
        version = self._version(record, source) if op == "r" else self._placed(record, source)
        if version is None and row is None:
            return _SNAPSHOT
        key, _ = self._record_key(record)
        trace = _headers(record.headers, self._limits)[2]
        said = _ARRIVED if _is_arrival(record) else _ALIVE
        return self._change(record, said, key, None, version, source, trace, row)

    def _tombstone(self, record: Record) -> Decoded:
        if record.key is None:
            raise _Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
        if self._ignores_tombstones:
            return _TOMBSTONE
        key, hints = self._record_key(record)
        moved, header, traceparent = _headers(record.headers, self._limits)
        to: Key | None = None
        if moved:
            to = self._header_key(header, key, hints)
            if to == key:
                return _SAME_KEY_TOMBSTONE
        return self._change(record, _GONE, key, to, None, {}, traceparent)

    def _change(
        self,
        record: Record,
        op: Op,
        key: Key,
        to: Key | None,
        version: Version | None,
        source: Source,
        traceparent: str | None,
        row: Row | None = None,
    ) -> ParentChange:
        timestamp_ms = record.timestamp_ms
        occurred_ms = source.get("ts_ms")
        if type(occurred_ms) is not int or not _OCCURRED_MIN <= occurred_ms <= _OCCURRED_MAX:
            occurred_ms = min(max(timestamp_ms, _OCCURRED_MIN), _OCCURRED_MAX)
        topic, partition, offset = record[:3]
        origin = _tuple(Origin, (topic, partition, offset, timestamp_ms))
        return _tuple(ParentChange, (self._entity, op, key, to, version, origin, occurred_ms, traceparent, row))

    def _version(self, record: Record, source: Source) -> Version | None:
        """The place of a change in its source's order; None when a PostgreSQL source does not say it."""
        if source["connector"] != _POSTGRESQL:
            return Version(self._epoch, (record.offset,))
        lsn = source.get("lsn")
        if type(lsn) is str and _LSN.fullmatch(lsn):
            lsn = int(lsn)
        if type(lsn) is int and 0 <= lsn <= _LSN_MAX:
            return _tuple(Version, (self._epoch, (lsn,)))
        return None

    def _placed(self, record: Record, source: Source) -> Version:
        """The same for a change that has to have one."""
        version = self._version(record, source)
        if version is None:
            raise _Refused(Reason.BAD_VERSION, "source.lsn is no whole number from 0 to 2^63-1.", "value")
        return version

    def _envelope(self, value: bytes) -> tuple[Envelope, bytes, Raw]:
        """The envelope and its text, out of the schema wrapper if there is one, and the schema."""
        if not value:
            raise _Refused(Reason.EMPTY_VALUE, "The record value is empty; a deletion is a null value.", "value")
        if value == b"null":
            raise _flattened()
        check_text(value, self._limits)
        envelope = parse_envelope(value)
        if not envelope.payload or not envelope.schema or envelope.op:
            return envelope, value, _NO_SCHEMA
        payload = bytes(envelope.payload)
        if payload == b"null":
            raise _flattened()
        return parse_envelope(payload), payload, envelope.schema

    def _source(self, envelope: Envelope) -> Source:
        if not envelope.source:
            raise _Refused(Reason.BAD_ENVELOPE, "The record value has no source.", "value")
        return _known(parse_object(bytes(envelope.source), self._limits))

    def _odd_op(self, record: Record, envelope: Envelope) -> str | Ignored:
        """What an op is that stands there in no usual way, or not at all."""
        if not envelope.op:
            return self._without_op(record)
        op = parse(bytes(envelope.op), self._limits)
        if type(op) is not str:
            raise _Refused(Reason.BAD_ENVELOPE, "The op of the record value is not text.", "value")
        if op not in _OPS.values():
            raise _Refused(Reason.UNKNOWN_OP, "The record value has an op other than c r u d t m.", "value")
        return op

    def _without_op(self, record: Record) -> Ignored:
        """A heartbeat or transaction marker that has come onto the topic; otherwise no envelope at all."""
        fields = self._members(record.value)
        if fields.get("status") in ("BEGIN", "END") and {"id", "event_count", "data_collections"} <= fields.keys():
            return _TRANSACTION
        if "ts_ms" in fields and fields.keys() <= {"ts_ms", "ts_us", "ts_ns"}:
            try:
                if "serverName" in self._members(record.key):
                    return _HEARTBEAT
            except JsonFault:
                pass
        raise _flattened()

    def _members(self, text: bytes | None) -> dict[str, object]:
        document = None if text is None else parse(text, self._limits)
        if type(document) is dict and document.keys() == {"schema", "payload"}:
            document = document["payload"]
        return document if type(document) is dict else {}

    def _record_key(self, record: Record) -> tuple[Key, Hints | None]:
        text = record.key
        if text is None:
            raise _Refused(
                Reason.NULL_KEY,
                "The record has no key: does the table have a primary key, or message.key.columns?",
                "key",
            )
        if self._plain_key is not None and (plain := self._plain_key(text)) is not None:
            return (int(plain[1]),), None
        try:
            return self._read(text, None, None, control_characters=False)
        except (JsonFault, KeyRefused) as fault:
            raise _Refused(fault.reason, f"The record key is refused: {fault.message}.", "key") from None

    def _header_key(self, header: bytes | None, old: Key, hints: Hints | None) -> Key:
        """The key in the header; a field that it lacks keeps its old value.

        It is text as SimpleHeaderConverter prints it, with raw TAB and LF in strings, or JSON.
        """
        try:
            if header is None:
                raise KeyRefused(Reason.NULL_KEY, "null")
            return self._read(header, old, hints, control_characters=True)[0]
        except (JsonFault, KeyRefused) as fault:
            raise _Refused(fault.reason, f"The header {NEW_KEY} is refused: {fault.message}.", "header") from None

    def _read(
        self, text: bytes, old: Key | None, hints: Hints | None, *, control_characters: bool
    ) -> tuple[Key, Hints | None]:
        """The key in a text, and what the schema around it says; a field that is not there keeps its `old` value."""
        document = parse(text, self._limits, control_characters=control_characters)
        if type(document) is dict and len(document) == 2 and document.keys() == {"schema", "payload"}:
            schema = document["schema"]
            if schema is None or type(schema) is dict:
                document = document["payload"]
                hints = self._hints_of(text, schema)
        if type(document) is dict:
            return self._struct(document, old, hints), hints
        if len(self._fields) > 1:
            raise KeyRefused(Reason.MISSING_KEY, "it is no object, and the rule's key has several fields")
        _, gate = self._fields[0]
        hint = None if hints is None else hints.get(_WHOLE)
        return (gate(document, hint, self._bounds),), hints

    def _struct(self, document: dict[str, object], old: Key | None, hints: Hints | None) -> Key:
        parts: list[Scalar] = []
        kept = 0
        name = ""
        try:
            for name, gate in self._fields:
                if name in document:
                    parts.append(gate(document[name], None if hints is None else hints.get(name), self._bounds))
                elif old is not None:
                    parts.append(old[len(parts)])
                    kept += 1
                else:
                    raise KeyRefused(Reason.MISSING_KEY, "the field is not there")
        except KeyRefused as refused:
            raise KeyRefused(refused.reason, f"{name}: {refused.message}") from None
        if kept == len(parts):
            raise KeyRefused(Reason.MISSING_KEY, "it has none of the key's fields")
        return tuple(parts)

    def _hints_of(self, text: bytes, schema: object) -> Hints:
        # As the JsonConverter writes it: what stands before the last "payload" holds the whole schema.
        known, found, _ = text.rpartition(b'"payload":')
        if not found or not known.startswith(b'{"schema":'):
            return _hints(schema)
        hints = self._hints.get(known)
        if hints is None:
            if len(self._hints) >= _HINTS_MAX:
                self._hints.clear()
            hints = self._hints[known] = _hints(schema)
        return hints


def _known(source: Source) -> Source:
    """A source whose connector is read here."""
    connector = source.get("connector")
    if connector == _POSTGRESQL:
        return source
    if type(connector) is not str:
        raise _Refused(Reason.BAD_ENVELOPE, "The record value has no source.connector.", "value")
    if connector in _UNSUPPORTED:
        raise _Refused(Reason.BAD_ENVELOPE, f"{_UNSUPPORTED[connector]}.", "value")
    return source


def _hints(schema: object) -> Hints:
    """What a Connect schema says of each field. A schema of another shape says nothing."""
    if type(schema) is not dict:
        return _NO_HINTS
    if schema.get("type") != "struct":
        whole = _hint(schema)
        return _NO_HINTS if whole is None else {_WHOLE: whole}
    found: dict[str, FieldHint] = {}
    fields = schema.get("fields")
    for field in fields if type(fields) is list else ():
        hint = _hint(field)
        if hint is not None and type(field.get("field")) is str:
            found[field["field"]] = hint
    return found


def _hint(schema: object) -> FieldHint | None:
    if type(schema) is not dict or type(schema.get("type")) is not str:
        return None
    name, parameters = schema.get("name"), schema.get("parameters")
    scale = parameters.get("scale") if type(parameters) is dict else None
    return FieldHint(
        schema["type"],
        name if type(name) is str else None,
        int(scale) if type(scale) is str and _SCALE.fullmatch(scale) else None,
    )


def _is_unsent(value: object, hint: FieldHint | None) -> bool:
    """Whether it is what Debezium writes for a value that the source did not send, as text, bytes, list or map."""
    if type(value) is str:
        return value == UNAVAILABLE or (value == _UNAVAILABLE_BYTES and (hint is None or hint.type == "bytes"))
    return value in ([UNAVAILABLE], {UNAVAILABLE: UNAVAILABLE})


def _is_arrival(record: Record) -> bool:
    return any(name == OLD_KEY for name, _ in record.headers)


def _plain(value: object) -> object:
    """The value as conditions take it: a number with a point or exponent is a double there."""
    match value:
        case Decimal():
            return float(value)
        case Exponential():
            return float(value.text)
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case list():
            return [_plain(part) for part in value]
        case _:
            return value


def _texts(headers: Headers) -> dict[str, str | None]:
    """The headers that are UTF-8 text; of several with one name the last."""
    found: dict[str, str | None] = {}
    for name, value in headers:
        try:
            found[name] = None if value is None else value.decode()
        except UnicodeDecodeError:
            found.pop(name, None)
    return found


_NO_HEADERS = (False, None, None)


def _headers(headers: Headers, limits: Limits) -> tuple[bool, bytes | None, str | None]:
    """Whether there is a new key, its text (None: it is null), and the trace.

    All headers are looked through, however many: a key change must never pass for a deletion.
    """
    if not headers:
        return _NO_HEADERS
    moved, new_key, trace = False, None, None
    for name, value in headers:
        if name == NEW_KEY:
            moved, new_key = True, value
        elif name == TRACEPARENT:
            trace = value
    if trace is None or len(trace) > _TRACEPARENT_MAX or len(headers) > limits.headers_max or not trace.isascii():
        return moved, new_key, None
    return moved, new_key, trace.decode("ascii")


def _flattened() -> _Refused:
    return _Refused(
        Reason.BAD_ENVELOPE,
        "The record value is no Debezium envelope: it has no op. Is the topic flattened (ExtractNewRecordState)?",
        "value",
    )
