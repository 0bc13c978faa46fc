"""The tenant of an event in a field of its value: of the row, or of the payload of a domain event.

The row is the one after, else the one before, where it is known that nothing in it is made up (`debezium_rows`); a row
that flattening has rewritten for a deletion tells it only if its schema says that the field is never made up. A field
that was put beside `before` and `after` in an envelope (InsertField) comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

from integrity.core.change import Op
from integrity.core.decode.cloudevents import change_event, data_of
from integrity.core.decode.debezium_documents import MONGODB
from integrity.core.decode.debezium_rows import RowSchema, is_whole
from integrity.core.decode.documents import document_of
from integrity.core.decode.domain import object_in, payload_of, unwrapped
from integrity.core.decode.flat import DELETED, OP
from integrity.core.decode.json import parse, parse_envelope, wrapping_of
from integrity.core.decode.qlik import rows_of
from integrity.core.decode.record import Limits, Record, Refused
from integrity.core.decode.row import is_unsent
from integrity.core.decode.schema import HINTS_MAX, real_fields
from integrity.core.rules.model import Events
from integrity.errors import Reason

_ENVELOPE = frozenset(("before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"))


class TenantField:
    """Reads the field of one parent's events."""

    __slots__ = ("_events", "_limits", "_name", "_schemas")

    def __init__(self, name: str, events: Events, limits: Limits) -> None:
        self._name = name
        self._events = events
        self._limits = limits
        # A topic's schema is the same text in every record.
        self._schemas: dict[bytes, object] = {}

    def of(self, record: Record, op: Op) -> object:
        """The value of the field. Raises Refused and JsonFault."""
        if record.value is None:
            raise unknown_tenant("A null record has no field that tells the tenant.", "value")
        types, form = self._events.types, self._events.format
        if types is not None:
            is_wrapped = form == "cloudevents"
            payload = data_of(record, self._limits) if is_wrapped else payload_of(record, types, self._limits)
            return self._in(object_in(payload, "payload", self._limits), "payload")
        if form == "cloudevents":
            record = change_event(record, self._limits) or record
        assert record.value is not None, "what wraps an event has it for its value"
        document, schema = self._read(record.value)
        if form == "mongodb" or (form == "cloudevents" and type(document) is dict and "op" not in document):
            return self._in_document(document_of(document, self._limits))
        if type(document) is not dict:
            raise unknown_tenant("The record value has no fields, one of which tells the tenant.", "value")
        match form:
            case "debezium" | "cloudevents":
                return self._in_envelope(document, schema)
            case "qlik":
                return self._in_message(document)
            case "debezium-flat" if op not in (Op.ALIVE, Op.ARRIVED) and not self._is_as_written(document):
                if self._name not in real_fields(schema):
                    raise unknown_tenant(
                        f"The field {self._shown} of a deleted row may be made up: let the record have its schema, in "
                        "which the field may be null and has no default, or name a header.",
                        "value",
                    )
        return self._in(document, "row")

    def _is_as_written(self, row: Mapping[str, object]) -> bool:
        """Whether a flattened row that counts as deleted says that it was not."""
        return row.get(DELETED) in (False, "false") or row.get(self._events.prefix + OP) in ("c", "u")

    @property
    def _shown(self) -> str:
        return self._name[:60]

    def _in(self, fields: Mapping[str, object], what: str) -> object:
        value = fields.get(self._name)
        if value is None or is_unsent(value, None):
            raise unknown_tenant(f"The {what} has no {self._shown}, which tells the tenant.", "value")
        return value

    def _in_envelope(self, envelope: Mapping[str, object], schema: object) -> object:
        if self._name in envelope and self._name not in _ENVELOPE:
            return self._in(envelope, "record value")
        after = document_of(envelope.get("after"), self._limits)
        if after is not None:
            return self._in(after, "row after")
        before, source = document_of(envelope.get("before"), self._limits), envelope.get("source")
        if before is None or type(source) is not dict:
            raise unknown_tenant("The event has no row that tells the tenant.", "value")
        # A document before is the server's own image of it.
        if source.get("connector") != MONGODB and not is_whole(before, source, RowSchema(schema)):
            raise unknown_tenant(
                "Nothing shows that the row before is whole, so the tenant in it may be made up: see docs/rules.md, "
                "Tenants.",
                "value",
            )
        return self._in(before, "row before")

    def _in_message(self, document: object) -> object:
        """Of Qlik Replicate: a row there is the source's, and null where the source does not tell. One message is both
        ends of a key change."""
        data, before = rows_of(document)
        if data is None or before is None:
            return self._in(data or before or {}, "row")
        tenant = self._in(data, "row")
        if before.get(self._name, tenant) != tenant:
            raise unknown_tenant("The row before is of another tenant than the row after.", "value")
        return tenant

    def _in_document(self, fields: Mapping[str, object] | None) -> object:
        """Of MongoDB's own connector: a change event, whose documents are the server's, or a document alone."""
        if fields is None:
            raise unknown_tenant("The record value has no document that tells the tenant.", "value")
        if "fullDocument" not in fields and "operationType" not in fields:
            return self._in(fields, "document")
        for name in ("fullDocument", "fullDocumentBeforeChange"):
            document = document_of(fields.get(name), self._limits)
            if document is not None:
                return self._in(document, name)
        raise unknown_tenant("The change event has no document that tells the tenant.", "value")

    def _read(self, text: bytes) -> tuple[object, object]:
        """What a value holds, and its schema, if it has one."""
        if text.startswith(b'{"schema":'):
            parts = parse_envelope(text)
            known = bytes(parts.schema)
            if parts.payload and wrapping_of(text, parts) is not None:
                schema = self._schemas.get(known)
                if schema is None:
                    if len(self._schemas) >= HINTS_MAX:
                        self._schemas.clear()
                    schema = self._schemas[known] = parse(known, self._limits)
                return parse(bytes(parts.payload), self._limits), schema
        whole = parse(text, self._limits)
        document = unwrapped(whole)
        return document, None if document is whole or type(whole) is not dict else whole["schema"]


def unknown_tenant(message: str, stage: str) -> Refused:
    return Refused(Reason.UNKNOWN_TENANT, message, stage)
