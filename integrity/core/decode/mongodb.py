"""The `mongodb` format: records of MongoDB's own Kafka source connector.

A value is a change event of a change stream, or (`publish.full.document.only`) the document alone, whose null record is
its deletion; as JSON, as JSON inside a JSON string, or with a Connect schema. The key is the document key in the record
key. Keys of MongoDB never change, so nothing here is a key change. What happens to a whole collection (drop, rename)
names no document: it is told of, and deletes nothing.

A change event is placed by its resume token, which has the cluster time and the index within the transaction; a
document alone by the Kafka offset, its null record by nothing. Records keyed by resume tokens are refused: the events
of one document are then spread over the partitions, in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from integrity.core.change import Op, ParentChange, Row, Version
from integrity.core.condition import Condition
from integrity.core.decode.document_key import ID, DocumentKeys, is_bson
from integrity.core.decode.documents import document_of, document_row, is_deleted, schema_row
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.record import (
    TOMBSTONE,
    UPDATED,
    Decoded,
    Decoder,
    Ignored,
    Limits,
    Record,
    Refused,
    change_of,
    trace_of,
)
from integrity.core.decode.resume_token import Place, read_token, token_in
from integrity.core.decode.schema import Hints, hints_of
from integrity.core.keys import Key
from integrity.core.rules.model import Parent
from integrity.errors import Reason

_OPS: Mapping[str, str] = {"insert": "c", "update": "u", "replace": "u", "delete": "d"}
_ENDS = frozenset({"drop", "dropDatabase", "rename", "invalidate"})
_SETTINGS = frozenset(
    {
        "create", "createIndexes", "dropIndexes", "modify", "shardCollection", "reshardCollection",
        "refineCollectionShardKey", "endOfTransaction",
    }
)  # fmt: skip

_UINT32 = range(2**32)

_ENDED = Ignored("t", "A collection that is dropped or renamed names no document.")
_SET = Ignored("m", "A change of a collection's indexes or options says nothing about a key.")
_READ = Ignored("r", "A copied document without a position cannot be placed in the order of changes.")


def mongodb_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the document that are wanted, None: none is."""
    return _MongoDB(parent, limits, copied).decode


class _Value(NamedTuple):
    """A value without its wrappers. `schema` is the Connect schema of a struct, None for JSON."""

    fields: Mapping[str, object]
    schema: Mapping[str, object] | None


class _MongoDB(ParentReader):
    __slots__ = ("_keys",)

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        self._keys = DocumentKeys(parent.key, limits)

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        try:
            if record.value is None:
                return self._tombstone(record)
            try:
                value = self._value(record.value)
                fields = value.fields
                token = token_in(fields.get(ID), self._limits)
                if token is not None and "operationType" in fields:
                    return self._event(record, value, token)
                if _is_copied(fields):
                    return self._said(record, "r", value, "fullDocument", None, None)
                if token is not None or ("operationType" in fields and ("ns" in fields or "documentKey" in fields)):
                    message = "The record value is a change event without its operationType or its resume token (_id)."
                    raise Refused(Reason.BAD_ENVELOPE, message, "value")
                if ID not in fields:
                    raise Refused(Reason.BAD_ENVELOPE, "The record value is no change event and no document.", "value")
                return self._said(record, "u", value, "", Version(self._epoch, (record.offset,)), None)
            except JsonFault as fault:
                raise Refused(fault.reason, f"The record value is refused: {fault.message}.", "value") from None
        except Refused as refused:
            return refused.undecodable

    def _tombstone(self, record: Record) -> Decoded:
        """The deletion of a document, or of all of them: the connector writes a null record for a drop too."""
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
        if self._ignores_tombstones:
            return TOMBSTONE
        key = self._keys.of_connector(record)
        if isinstance(key, str):
            token = read_token(key)
            if token is not None and not token.is_of_document:
                return _ENDED
            raise _keyed_by_token()
        return self._change(record, Op.GONE, key, None, None)

    def _event(self, record: Record, value: _Value, token: str) -> Decoded:
        """A change event."""
        fields = value.fields
        kind = fields["operationType"]
        if type(kind) is not str:
            raise Refused(Reason.BAD_ENVELOPE, "The operationType of the record value is not text.", "value")
        if kind in _ENDS:
            return _ENDED
        if kind in _SETTINGS:
            return _SET
        op = _OPS.get(kind)
        if op is None:
            raise Refused(Reason.UNKNOWN_OP, "The record value has an operationType that is not known here.", "value")
        if op == "u" and self._condition is None and self._copied is None:
            return UPDATED
        place = self._place(fields, token)
        occurred_ms = self._wall_time(fields, place)
        version = Version(self._epoch, tuple(place))
        if op == "d":
            return self._change(record, Op.DELETED, self._key(record), version, occurred_ms)
        return self._said(record, op, value, "fullDocument", version, occurred_ms)

    def _said(
        self, record: Record, op: str, value: _Value, at: str, version: Version | None, occurred_ms: int | None
    ) -> Decoded:
        """A document that is there: inserted (`c`), written (`u`) or copied before the stream (`r`). It stands in the
        field `at` of the value; "": it is the value."""
        document: Mapping[str, object] | None = None
        if self._copied or (self._condition is not None and op != "r"):
            document = document_of(value.fields.get(at), self._limits) if at else value.fields
            if document is None:
                raise Refused(Reason.BAD_ENVELOPE, _NO_DOCUMENT, "value")
        row = self._row({} if document is None else document, value, at)
        said: Op = Op.ALIVE
        if self._condition is not None and op != "r":
            assert document is not None
            if self._is_deleted(record, op, value, document, self._condition):
                said, row = Op.DELETED, None
        if version is None and row is None:
            return _READ
        return self._change(record, said, self._key(record), version, occurred_ms, row)

    def _row(self, document: Mapping[str, object], value: _Value, at: str) -> Row | None:
        if self._copied is None:
            return None
        if value.schema is None:
            return document_row(document, self._copied)
        return schema_row(document, self._copied, _hints_at(value.schema, at))

    def _is_deleted(
        self, record: Record, op: str, value: _Value, document: Mapping[str, object], condition: Condition
    ) -> bool:
        before: Mapping[str, object] | None = None
        if "before" in condition.names:
            before = document_of(value.fields.get("fullDocumentBeforeChange"), self._limits)
        return is_deleted(condition, record, op, document, before, value.fields.get("ns"))

    def _key(self, record: Record) -> Key:
        key = self._keys.of_connector(record)
        if isinstance(key, str):
            raise _keyed_by_token()
        return key

    def _place(self, fields: Mapping[str, object], text: str) -> Place:
        """The place of a change; the cluster time beside the token, where it is exact, has to be the same."""
        token = read_token(text)
        cluster_time = _timestamp(document_of(fields.get("clusterTime"), self._limits, or_none=True))
        if token is None:
            if cluster_time is None or fields.get("txnNumber") is not None:
                message = "The resume token (_id) is of an unknown make, and clusterTime does not place the change."
                raise Refused(Reason.BAD_VERSION, message, "value")
            return Place(*cluster_time, 0)
        if cluster_time is not None and cluster_time != token.place[:2]:
            raise Refused(Reason.BAD_VERSION, "The resume token (_id) and clusterTime name two places.", "value")
        return token.place

    def _wall_time(self, fields: Mapping[str, object], place: Place) -> int:
        """When the change was committed, in milliseconds since the epoch."""
        found = fields.get("wallTime")
        if type(found) is dict:
            found = found.get("$date")
        if type(found) is dict:
            found = found.get("$numberLong")
            found = (
                int(found) if type(found) is str and found.isascii() and found.isdigit() and len(found) < 16 else None
            )
        return found if type(found) is int else place.seconds * 1000

    def _change(
        self,
        record: Record,
        op: Op,
        key: Key,
        version: Version | None,
        occurred_ms: int | None,
        row: Row | None = None,
    ) -> ParentChange:
        trace = trace_of(record.headers, self._limits)
        return change_of(record, self._entity, op, key, None, version, occurred_ms, trace, row)

    def _value(self, data: bytes) -> _Value:
        if not data:
            raise Refused(Reason.EMPTY_VALUE, "The record value is empty; a deletion is a null value.", "value")
        if is_bson(data):
            message = "The record value is BSON: set output.format.value=json and a StringConverter for values."
            raise Refused(Reason.BAD_ENCODING, message, "value")
        parsed = parse(data, self._limits)
        schema: Mapping[str, object] | None = None
        if type(parsed) is dict and parsed.keys() == {"schema", "payload"}:
            around = parsed["schema"]
            schema = around if type(around) is dict and around.get("type") == "struct" else None
            parsed = parsed["payload"]
        if type(parsed) is str:  # a JSON text once more, as the JsonConverter writes it
            parsed = parse(parsed.encode("utf-8", "surrogatepass"), self._limits)
        if type(parsed) is not dict:
            raise Refused(Reason.BAD_ENVELOPE, "The record value is no JSON object.", "value")
        return _Value(parsed, schema)


_NO_DOCUMENT = (
    "The update has no document (fullDocument), which deleted_when and copies need: set"
    " change.stream.full.document=updateLookup. One that was gone when it was looked up has none either."
)


def _is_copied(fields: Mapping[str, object]) -> bool:
    """Whether it is an event that the connector makes itself of each document that is there when it begins
    (`startup.mode=copy_existing`)."""
    at = fields.get(ID)
    return type(at) is dict and at.get("copyingData") is True and fields.get("operationType") == "insert"


def _timestamp(found: Mapping[str, object] | None) -> tuple[int, int] | None:
    at = None if found is None else found.get("$timestamp")
    if type(at) is not dict:
        return None
    seconds, number = at.get("t"), at.get("i")
    if type(seconds) is not int or type(number) is not int or seconds not in _UINT32 or number not in _UINT32:
        return None
    return seconds, number


def _hints_at(schema: Mapping[str, object], at: str) -> Hints:
    """What a Connect schema says of the fields of the document at that field of it; "": it is the document's own."""
    if not at:
        return hints_of(schema)
    fields = schema.get("fields")
    for field in fields if type(fields) is list else ():
        if type(field) is dict and field.get("field") == at:
            return hints_of(field)
    return {}


def _keyed_by_token() -> Refused:
    message = (
        "The record key is a resume token, which names no document: set change.stream.document.key.as.key=true"
        " and output.format.key=json."
    )
    return Refused(Reason.MISSING_KEY, message, "key")
