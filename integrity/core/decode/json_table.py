"""The format `json`: a compacted topic used as a table. A JSON object says that its key lives, a null record that it is
gone, and the rule's `deleted_when` which objects count as gone.

The key is the record key's. An object is placed by the rule's `version`, else by its Kafka offset; a null record by
what stands before it (`Op.GONE`). What other formats write, and would be misread here, is refused: Debezium's
envelopes, rows that are marked `__deleted`, nulls that are a key change.
"""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.change import Op, Version
from integrity.core.condition import Condition
from integrity.core.decode.debezium import NEW_KEY, TRACEPARENT
from integrity.core.decode.flat import DELETED
from integrity.core.decode.json import JsonFault
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.record import (
    Decoded,
    Decoder,
    Ignored,
    Limits,
    Record,
    Refused,
    change_of,
    traceparent_in,
)
from integrity.core.decode.row import copied_row
from integrity.core.decode.value import ValueReader, at_path, is_deleted, is_envelope, refused, version_number
from integrity.core.rules.model import Parent, Tombstones
from integrity.errors import Reason

_TOMBSTONE = Ignored("tombstone", "The rule says that null records say nothing.")


def json_table_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return _Table(parent, limits, copied).decode


class _Table:
    __slots__ = (
        "_condition",
        "_copied",
        "_entity",
        "_epoch",
        "_ignores_tombstones",
        "_keys",
        "_limits",
        "_values",
        "_version_path",
    )

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        events = parent.events
        assert events is not None
        self._entity = parent.entity
        self._keys = KeyReader(parent.key, limits, events.key_format)
        self._condition = None if events.deleted_when is None else Condition(events.deleted_when)
        self._epoch = events.epoch
        self._ignores_tombstones = events.tombstones is Tombstones.IGNORE
        self._limits = limits
        self._copied = None if copied is None else tuple(copied)
        self._values = ValueReader(limits)
        self._version_path = events.version

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
            return _TOMBSTONE
        if any(name == NEW_KEY for name, _ in record.headers):
            message = "The null record is one of Debezium's key changes: write format: debezium-flat, or debezium."
            raise Refused(Reason.BAD_ENVELOPE, message, "header")
        key, _ = self._keys.of(record)
        return change_of(record, self._entity, Op.GONE, key, None, None, None, self._traceparent(record))

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
        trace = self._traceparent(record)
        if self._condition is not None and is_deleted(self._condition, record, fields, None):
            return change_of(record, self._entity, Op.DELETED, key, None, version, None, trace)
        row = None if self._copied is None else copied_row(fields, self._copied, hints)
        return change_of(record, self._entity, Op.ALIVE, key, None, version, None, trace, row)

    def _placed(self, record: Record, fields: dict[str, object]) -> Version:
        path = self._version_path
        if path is None:
            return Version(self._epoch, (record.offset,))
        return Version(self._epoch, (version_number(at_path(fields, path), ".".join(path)),))

    def _traceparent(self, record: Record) -> str | None:
        trace = next((value for name, value in record.headers if name == TRACEPARENT), None)
        return traceparent_in(trace, record.headers, self._limits)
