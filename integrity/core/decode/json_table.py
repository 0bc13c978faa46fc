"""The format `json`: a compacted topic used as a table. A JSON object says that its key lives, a null record that it is
gone, and the rule's `deleted_when` which objects count as gone.

The key is the record key's. An object is placed by the rule's `version`, else by its Kafka offset; a null record by
what stands before it (`Op.GONE`). What other formats write, and would be misread here, is refused: Debezium's
envelopes, rows that are marked `__deleted`, nulls that are a key change.
"""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.change import Op, Version
from integrity.core.decode.debezium import NEW_KEY
from integrity.core.decode.flat import DELETED
from integrity.core.decode.json import JsonFault
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.record import TOMBSTONE, Decoded, Decoder, Limits, Record, Refused, change_of, trace_of
from integrity.core.decode.row import copied_row
from integrity.core.decode.value import ValueReader, at_path, is_deleted, is_envelope, refused, version_number
from integrity.core.rules.model import Parent
from integrity.errors import Reason


def json_table_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return _Table(parent, limits, copied).decode


class _Table(ParentReader):
    __slots__ = ("_keys", "_values", "_version_path")

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        assert parent.events is not None
        self._keys = KeyReader(parent.key, limits, parent.events.key_format)
        self._values = ValueReader(limits)
        self._version_path = parent.events.version

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        try:
            return self._null(record) if record.value is None else self._row(record, record.value)
        except Refused as refusal:
            return refusal.undecodable

    def _null(self, record: Record) -> Decoded:
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
        if self._ignores_tombstones:
            return TOMBSTONE
        if any(name == NEW_KEY for name, _ in record.headers):
            message = "The null record is one of Debezium's key changes: write format: debezium-flat, or debezium."
            raise Refused(Reason.BAD_ENVELOPE, message, "header")
        key, _ = self._keys.of(record)
        return change_of(record, self._entity, Op.GONE, key, None, None, None, trace_of(record.headers, self._limits))

    def _row(self, record: Record, value: bytes) -> Decoded:
        try:
            fields, hints = self._values.of(value)
        except JsonFault as fault:
            raise refused(fault) from None
        if type(fields) is not dict:
            raise Refused(Reason.BAD_ENVELOPE, "The record value is no JSON object.", "value")
        if is_envelope(fields) or DELETED in fields:
            name = "debezium-flat" if DELETED in fields else "debezium"
            raise Refused(Reason.BAD_ENVELOPE, f"The record value is one of Debezium's: write format: {name}.", "value")
        key, _ = self._keys.of(record)
        version = self._placed(record, fields)
        trace = trace_of(record.headers, self._limits)
        if self._condition is not None and is_deleted(self._condition, record, fields, None):
            return change_of(record, self._entity, Op.DELETED, key, None, version, None, trace)
        row = None if self._copied is None else copied_row(fields, self._copied, hints)
        return change_of(record, self._entity, Op.ALIVE, key, None, version, None, trace, row)

    def _placed(self, record: Record, fields: dict[str, object]) -> Version:
        path = self._version_path
        if path is None:
            return Version(self._epoch, (record.offset,))
        return Version(self._epoch, (version_number(at_path(fields, path), ".".join(path)),))
