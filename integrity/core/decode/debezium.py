"""The `debezium` format: envelopes as JSON, schemas on or off, of the relational connectors.

The key of a change is the record key, never the row `before`: under PostgreSQL's default replica identity Debezium
invents every column of it that is not of the key. A `d` with the header `__debezium.newkey` is a key change and never a
deletion, even when that header cannot be read. A `u` says nothing, a key change being a `d` and a `c`, unless the rule
says which rows count as deleted (`deleted_when`): then a `c` or `u` is a deletion, or says that the row lives; or a
copy wants the row `after`, which `c`, `r` and `u` then bring along. The position of a change is what its connector
gives (`positions`), else the Kafka offset. Envelopes of documents (MongoDB) are read in `debezium_documents`. Where key
changes have no header (SQL Server, and what `pair_by` is for), a `d` and a `c` are `halves`. Keys that MySQL and
MariaDB may have made of several rows are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Raw

from integrity.core.change import Op, ParentChange, Row, Version
from integrity.core.condition import Condition, ConditionFault
from integrity.core.decode.connectors import (
    POSTGRESQL,
    SQLSERVER,
    connector_in,
    folds_of,
    refuse_folded,
)
from integrity.core.decode.debezium_documents import DOCUMENT_PLACE, MONGODB, Documents
from integrity.core.decode.deletion import Deletions
from integrity.core.decode.halves import half_of, other_key, told_version
from integrity.core.decode.json import (
    Envelope,
    JsonFault,
    check_depth,
    check_text,
    parse,
    parse_envelope,
    parse_object,
    wrapping_of,
)
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.positions import PLACES, Source
from integrity.core.decode.record import (
    MESSAGE,
    SAME_KEY,
    SNAPSHOT,
    TOMBSTONE,
    TRACEPARENT,
    TRUNCATED,
    UPDATED,
    Decoded,
    Decoder,
    Headers,
    Ignored,
    Limits,
    Record,
    Refused,
    change_of,
    trace_of,
    traceparent_in,
    truncation_of,
)
from integrity.core.decode.row import copied_row, known, texts
from integrity.core.decode.schema import HINTS_MAX, NO_HINTS, Hints, hints_of
from integrity.core.decode.wire import Schemas, wire_decoder
from integrity.core.keys import Key
from integrity.core.rules.model import KeyFormat, Parent, Truncates
from integrity.errors import Reason

NEW_KEY = "__debezium.newkey"
"""The header of a key change's `d` and of its tombstone: the key that the row has now."""
OLD_KEY = "__debezium.oldkey"
"""The header of a key change's `c`: the key that the row had. Only that it is there is of interest."""
_PLACES = {name: each.of_change for name, each in PLACES.items() if name != SQLSERVER}
"""How a change is placed, of the connectors that say it and mark key changes."""
WANTED = frozenset({"ts_ms", *DOCUMENT_PLACE}.union(*[each.fields for each in PLACES.values()]))
"""The fields of `source` that a deletion is read for."""
_OPS: Mapping[bytes, str] = {f'"{op}"'.encode(): op for op in "crudtm"}
_SCHEMA = b'{"schema":'

_HEARTBEAT = Ignored("heartbeat", "A heartbeat says nothing about a key.")
_TRANSACTION = Ignored("transaction", "A transaction marker says nothing about a key.")
_SAME_KEY_TOMBSTONE = Ignored("tombstone", "The key change leads to an equal key.")

WITHOUT_KEY: Mapping[str, Ignored] = {"t": TRUNCATED, "m": MESSAGE}

# Measured: an enumeration's attribute costs as much as a function call, and a named tuple made by name twice what it
# costs made from a tuple.
_tuple = tuple.__new__
_ALIVE, _ARRIVED = Op.ALIVE, Op.ARRIVED
_DELETED, _MOVED, _GONE = Op.DELETED, Op.MOVED, Op.GONE

_NO_SCHEMA = Raw()


def debezium_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return Debezium(parent, limits, copied).decode


def debezium_wire_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None, schemas: Schemas) -> Decoder:
    """The same of topics whose records may be in the wire format of a schema registry."""
    made = Debezium(parent, limits, copied)
    assert parent.events is not None
    bare_key = parent.events.key_format is not KeyFormat.JSON
    return wire_decoder(made.decode, schemas, made.decode_told, repeated=True, bare_key=bare_key)


class Debezium(ParentReader):
    """Reads the envelopes of one parent."""

    __slots__ = (
        "_deletions",
        "_documents",
        "_folds",
        "_keys",
        "_pairs",
        "_quick",
        "_row_hints",
        "_schema",
        "_truncates",
        "_wrapping",
    )

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        assert parent.events is not None
        self._keys = KeyReader(parent.key, limits, parent.events.key_format)
        self._deletions = Deletions(limits, WANTED)
        self._folds = folds_of(parent.key)
        self._truncates = parent.events.truncate is Truncates.DELETE_ALL
        self._pairs = parent.events.pair_by is not None
        self._quick = {} if self._pairs else _PLACES
        self._row_hints: dict[bytes, Hints] = {}
        self._documents = Documents(parent, limits, copied)
        # What stood around the last payload: the schema is the same text in every record of a table.
        self._wrapping, self._schema = _SCHEMA + _SCHEMA, _NO_SCHEMA

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        value = record.value
        try:
            if value is None:
                return self._tombstone(record)
            try:
                told = self._deletions.source(value)
                if told is None and value.startswith(_SCHEMA) and (known := self._unwrapped(value)) is not None:
                    told = self._deletions.source(known)
                if told is not None:
                    is_of_table = told["connector"] != MONGODB
                    return self._gone(record, told) if is_of_table else self._documents.ended(record, told, None)
                envelope, text, schema = self._envelope(value)
                op = self._op_of(record, envelope)
                if op == "u" and self._condition is None and self._copied is None:
                    return UPDATED
                check_depth(text, self._limits)
                if op == "t" and self._truncates:
                    return self._truncated(record, self._source(envelope))
                if op != "d" and op != "c" and op != "r" and op != "u":
                    return op if isinstance(op, Ignored) else WITHOUT_KEY[op]
                source = self._source(envelope)
                if op == "d" and self._is_plain(source):
                    self._deletions.learn(text, bytes(envelope.before))
                if source["connector"] == MONGODB:
                    return self._documents.said(record, op, envelope, source)
                if op == "d":
                    said = self._gone(record, source)
                elif self._condition is not None and op != "r":
                    said = self._judged(record, op, envelope, schema, source, self._condition)
                else:
                    said = self._alive(record, op, source, self._row_copied(envelope, schema))
                return self._half(record, op, source, said)
            except JsonFault as fault:
                raise Refused(fault.reason, f"The record value is refused: {fault.message}.", "value") from None
        except Refused as refused:
            # Debezium writes null records after deletions only: this may have been one.
            return refused.undecodable if value is None else refused.undecodable._replace(repeated=True)

    def decode_told(self, record: Record, value: Mapping[str, object]) -> Decoded | None:
        """What `decode` says of a deletion, or of an update that nobody reads, from the `op` and `source` of its value
        alone. None leaves all others to it."""
        op, source = value.get("op"), value.get("source")
        if op == "u" and self._condition is None and self._copied is None:
            return UPDATED
        if op != "d" or type(source) is not dict or source.get("connector") == MONGODB:
            return None
        try:
            return self._half(record, op, source, self._gone(record, _known(source)))
        except Refused as refused:
            return refused.undecodable._replace(repeated=True)

    def _gone(self, record: Record, source: Source) -> Decoded:
        """A deletion, or, when the header of a new key is there, a key change."""
        key, hints = self._keys.of(record)
        moved, header, traceparent = _headers(record.headers, self._limits)
        to: Key | None = None
        if moved:
            to = self._keys.in_header(NEW_KEY, header, key, hints)
        if self._folds:
            refuse_folded(self._folds, source["connector"], key, to)
        if to == key:
            return SAME_KEY
        # `_placed`, for nearly every record without its call.
        place = _PLACES.get(source["connector"])  # type: ignore[call-overload]
        position = None if place is None else place(source)
        version = self._placed(record, source) if position is None else _tuple(Version, (self._epoch, position))
        op, occurred_ms = _MOVED if moved else _DELETED, source.get("ts_ms")
        return change_of(record, self._entity, op, key, to, version, occurred_ms, traceparent)

    def _is_plain(self, source: Source) -> bool:
        """Whether a deletion is read for nothing but its source: no half of a key change, nor of a transaction of
        documents."""
        connector = source["connector"]
        return connector in self._quick or (connector == MONGODB and source.get("txnNumber") is None)

    def _half(self, record: Record, op: str, source: Source, said: Decoded) -> Decoded:
        """What is said, which may be half of a key change where nothing marks one; or is, when it comes back."""
        if not (self._pairs or source["connector"] == SQLSERVER) or (op != "d" and op != "c"):
            return said
        if not isinstance(said, ParentChange) or said.op is _MOVED or said.op is _ARRIVED:
            return said
        version = told_version(record)
        if version is None:
            return half_of(said, op, source, record)
        if op == "c":
            return said._replace(version=version)
        to, _ = self._keys.of(record._replace(key=other_key(record)))
        return SAME_KEY if to == said.key else said._replace(op=_MOVED, to=to, version=version)

    def _judged(
        self, record: Record, op: str, envelope: Envelope, schema: Raw, source: Source, condition: Condition
    ) -> Decoded:
        """A create or update where the rule says which rows count as deleted."""
        after = self._row(envelope.after)
        if after is None:
            if op == "u" and self._copied is None:
                return UPDATED
            return self._alive(record, op, source, self._row_copied(envelope, schema))
        values: dict[str, object] = {"after": after, "op": op}
        if "before" in condition.names:
            values["before"] = self._row(envelope.before)
        if "source" in condition.names:
            values["source"] = known(source)
        if "headers" in condition.names:
            values["headers"] = texts(record.headers)
        try:
            if not condition.holds(values):
                return self._alive(record, op, source, self._row_copied(envelope, schema))
        except ConditionFault as fault:
            message = f"The condition deleted_when has no answer: {fault.message}."
            raise Refused(Reason.BAD_ENVELOPE, message, "value") from None
        version = self._placed(record, source)
        if _is_arrival(record):
            # Deleted where the key change has led: just after it, so that it takes the rows that came along.
            version = version._replace(position=(*version.position, 1))
        key, _ = self._keys.of(record)
        if self._folds:
            refuse_folded(self._folds, source["connector"], key)
        trace = trace_of(record.headers, self._limits)
        return self._change(record, _DELETED, key, None, version, source, trace)

    def _row(self, text: Raw) -> dict[str, object] | None:
        """A row's fields, without those that the source did not send; None when there is no row."""
        if not text or bytes(text) == b"null":
            return None
        return known(parse_object(bytes(text), self._limits))

    def _row_copied(self, envelope: Envelope, schema: Raw) -> Row | None:
        """The fields of the row that a copy wants, with what the schema says of them."""
        wanted = self._copied
        if wanted is None:
            return None
        if not envelope.after or bytes(envelope.after) == b"null":
            raise Refused(Reason.BAD_ENVELOPE, "The record value has no row (after), which a copy needs.", "value")
        row = parse(bytes(envelope.after), self._limits)
        if type(row) is not dict:
            raise Refused(Reason.BAD_ENVELOPE, "The row (after) of the record value is no object.", "value")
        return copied_row(row, wanted, self._hints_of_row(schema))

    def _hints_of_row(self, schema: Raw) -> Hints | None:
        """What the schema of an envelope says of the row `after`; None when there is none."""
        text = bytes(schema)
        if not text or text == b"null":
            return None
        hints = self._row_hints.get(text)
        if hints is None:
            if len(self._row_hints) >= HINTS_MAX:
                self._row_hints.clear()
            whole = parse(text, self._limits)
            fields = whole.get("fields") if type(whole) is dict else None
            row = [f for f in fields if type(f) is dict and f.get("field") == "after"] if type(fields) is list else []
            hints = self._row_hints[text] = hints_of(row[0]) if row else NO_HINTS
        return hints

    def _alive(self, record: Record, op: str, source: Source, row: Row | None) -> Decoded:
        version = self._placed_read(record, source) if op == "r" else self._placed(record, source)
        if version is None and row is None:
            return SNAPSHOT
        key, _ = self._keys.of(record)
        if self._folds:
            refuse_folded(self._folds, source["connector"], key)
        trace = trace_of(record.headers, self._limits)
        said = _ARRIVED if _is_arrival(record) else _ALIVE
        return self._change(record, said, key, None, version, source, trace, row)

    def _truncated(self, record: Record, source: Source) -> Decoded:
        """A truncate that deletes: only where its place can be compared with those of all keys."""
        if source["connector"] != POSTGRESQL:
            message = "Nothing tells which events of other keys a truncate of this connector comes after."
            raise Refused(Reason.BAD_VERSION, message, "value")
        trace = trace_of(record.headers, self._limits)
        return truncation_of(record, self._entity, self._placed(record, source), source.get("ts_ms"), trace)

    def _tombstone(self, record: Record) -> Decoded:
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
        if self._ignores_tombstones:
            return TOMBSTONE
        connector = connector_in(record.headers)
        if connector == MONGODB or (connector is None and self._documents.holds(record)):
            return self._documents.gone(record)
        key, hints = self._keys.of(record)
        moved, header, traceparent = _headers(record.headers, self._limits)
        to: Key | None = None
        if moved:
            to = self._keys.in_header(NEW_KEY, header, key, hints)
        if (self._pairs or connector == SQLSERVER) and not moved:
            message = "A null record alone may be half of a key change, of a source that does not mark them."
            raise Refused(Reason.BAD_ENVELOPE, message, "value")
        if self._folds:
            refuse_folded(self._folds, connector, key, to)
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
        occurred_ms = source.get("ts_ms")
        return change_of(record, self._entity, op, key, to, version, occurred_ms, traceparent, row)

    def _placed(self, record: Record, source: Source) -> Version:
        """The place of a change in its source's order."""
        places = PLACES.get(source["connector"])  # type: ignore[call-overload]
        if places is None:
            return Version(self._epoch, (record.offset,))
        position = places.of_change(source)
        if position is None:
            raise Refused(Reason.BAD_VERSION, f"{places.fault}.", "value")
        return _tuple(Version, (self._epoch, position))

    def _placed_read(self, record: Record, source: Source) -> Version | None:
        """The same for a row that a snapshot has read; None when the source does not say it."""
        places = PLACES.get(source["connector"])  # type: ignore[call-overload]
        position = (record.offset,) if places is None else places.of_read(source)
        return None if position is None else Version(self._epoch, position)

    def _envelope(self, value: bytes) -> tuple[Envelope, bytes, Raw]:
        """The envelope and its text, out of the schema wrapper if there is one, and the schema."""
        if not value:
            raise Refused(Reason.EMPTY_VALUE, "The record value is empty; a deletion is a null value.", "value")
        if value == b"null":
            raise _flattened()
        known = self._unwrapped(value)
        if known is not None:
            try:
                check_text(known, self._limits)
                return parse_envelope(known), known, self._schema
            except JsonFault:
                pass  # the whole text tells better what is wrong with it
        check_text(value, self._limits)
        envelope = parse_envelope(value)
        if not envelope.payload or not envelope.schema or envelope.op:
            return envelope, value, _NO_SCHEMA
        payload = bytes(envelope.payload)
        if payload == b"null":
            raise _flattened()
        wrapping = wrapping_of(value, envelope)
        if wrapping is not None:
            self._wrapping, self._schema = wrapping, envelope.schema
        return parse_envelope(payload), payload, envelope.schema

    def _unwrapped(self, value: bytes) -> bytes | None:
        """The payload of a text that has the schema of the last one; None when it has another, or none."""
        wrapping = self._wrapping
        if not value.startswith(wrapping) or not value.endswith(b"}") or len(value) > self._limits.record_bytes_max:
            return None
        return value[len(wrapping) : -1]

    def _source(self, envelope: Envelope) -> Source:
        if not envelope.source:
            raise Refused(Reason.BAD_ENVELOPE, "The record value has no source.", "value")
        return _known(parse_object(bytes(envelope.source), self._limits))

    def _op_of(self, record: Record, envelope: Envelope) -> str | Ignored:
        return _OPS.get(bytes(envelope.op)) or self._odd_op(record, envelope)

    def _odd_op(self, record: Record, envelope: Envelope) -> str | Ignored:
        """What an op is that stands there in no usual way, or not at all."""
        if not envelope.op:
            return self._without_op(record)
        op = parse(bytes(envelope.op), self._limits)
        if type(op) is not str:
            raise Refused(Reason.BAD_ENVELOPE, "The op of the record value is not text.", "value")
        if op not in _OPS.values():
            raise Refused(Reason.UNKNOWN_OP, "The record value has an op other than c r u d t m.", "value")
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


def _known(source: Source) -> Source:
    """A source whose connector is read here."""
    connector = source.get("connector")
    if connector == POSTGRESQL:
        return source
    if type(connector) is not str:
        raise Refused(Reason.BAD_ENVELOPE, "The record value has no source.connector.", "value")
    return source


def _is_arrival(record: Record) -> bool:
    return any(name == OLD_KEY for name, _ in record.headers)


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
    return moved, new_key, None if trace is None else traceparent_in(trace, headers, limits)


def _flattened() -> Refused:
    return Refused(
        Reason.BAD_ENVELOPE,
        "The record value is no Debezium envelope: it has no op. Is the topic flattened (ExtractNewRecordState)?",
        "value",
    )
