"""Debezium's envelopes of the MongoDB connector.

They differ from those of tables: the record key holds the document's `_id` as Extended JSON, `before` and `after` are
text in an older dialect of it, an update may have no `after`, and keys never change.

A change is placed by `source.ts_ms` and `source.ord`, the number within the second: the cluster time, but for
versions 3 and later, whose `ts_ms` is the primary's clock. All changes of a transaction have the same; their
`transaction.total_order` tells them apart. Without it (`provide.transaction.metadata`) an insertion counts as its
transaction's last word on a key, so that a deletion before it, when it is sent again, is late: a document that is
inserted and deleted by one transaction was never there for anybody else. Copies can't do with that: they refuse the
insertion, and updates are refused altogether.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from integrity.core.change import Op, Row, Version
from integrity.core.decode.document_key import DocumentKeys
from integrity.core.decode.documents import document_of, document_row, is_deleted
from integrity.core.decode.json import Envelope, parse, parse_object
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.record import SNAPSHOT, Decoded, Limits, Record, Refused, change_of, trace_of
from integrity.core.keys import Key
from integrity.core.rules.model import Parent
from integrity.errors import Reason

MONGODB = "mongodb"
"""The connector, in `source.connector`."""
DOCUMENT_PLACE = ("ts_ms", "ord", "txnNumber")
"""The fields of the source that place a change."""
_INT64_MAX = 2**63 - 1
_LAST = 2**62
"""After every place within a transaction."""
_NO_DOCUMENT = (
    "The update has no document (after), which deleted_when and copies need: set capture.mode to one of"
    " change_streams_update_full and its kin. A document that was gone when it was looked up has none either."
)


class Documents(ParentReader):
    """What the envelopes of one parent's documents say. Raises Refused and JsonFault."""

    __slots__ = ("_keys",)

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        self._keys = DocumentKeys(parent.key, limits)

    def said(self, record: Record, op: str, envelope: Envelope, source: Mapping[str, object]) -> Decoded:
        """What an envelope with this op (c, r, u or d) says."""
        if op == "d":
            return self.ended(record, source, envelope)
        said: Op = Op.ALIVE
        row: Row | None = None
        is_judged = self._condition is not None and op != "r"
        if self._copied is not None:
            row = {}
        if is_judged or self._copied:
            after = self._document(envelope, "after")
            if after is None:
                raise Refused(Reason.BAD_ENVELOPE, _NO_DOCUMENT, "value")
            if is_judged and self._is_deleted(record, op, after, envelope, source):
                said, row = Op.DELETED, None
            elif self._copied is not None:
                row = document_row(after, self._copied)
        version = self._version(op, envelope, source) if op != "r" else None
        if row is not None and version is not None and version.position[-1] == _LAST:
            row = {}  # its transaction may have deleted it, or written it again: no copy can tell
        if version is None and row is None:
            return SNAPSHOT
        return self._change(record, said, self._keys.of_debezium(record), version, source, row)

    def ended(self, record: Record, source: Mapping[str, object], envelope: Envelope | None) -> Decoded:
        """What a deletion says. The envelope is not asked for outside of a transaction."""
        key, at = self._keys.of_debezium(record), self._version("d", envelope, source)
        return self._change(record, Op.DELETED, key, at, source, None)

    def holds(self, record: Record) -> bool:
        """Whether a null record whose headers tell no connector has a document's key."""
        return self._keys.is_debezium(record)

    def gone(self, record: Record) -> Decoded:
        """What a null record says."""
        return self._change(record, Op.GONE, self._keys.of_debezium(record), None, {}, None)

    def _is_deleted(
        self, record: Record, op: str, after: Mapping[str, object], envelope: Envelope, source: Mapping[str, object]
    ) -> bool:
        assert self._condition is not None
        before = self._document(envelope, "before") if "before" in self._condition.names else None
        return is_deleted(self._condition, record, op, after, before, source)

    def _document(self, envelope: Envelope, name: str) -> Mapping[str, object] | None:
        text = bytes(envelope.after if name == "after" else envelope.before)
        return document_of(parse(text, self._limits) if text else None, self._limits)

    def _version(self, op: str, envelope: Envelope | None, source: Mapping[str, object]) -> Version:
        at_ms, order = source.get("ts_ms"), source.get("ord")
        if (
            type(at_ms) is not int
            or type(order) is not int
            or not (0 <= at_ms <= _INT64_MAX and 0 <= order <= _INT64_MAX)
        ):
            raise Refused(Reason.BAD_VERSION, "source.ts_ms and source.ord are no place in MongoDB's log.", "value")
        index = 0
        if source.get("txnNumber") is not None:
            assert envelope is not None, "only a deletion of no transaction is read without"
            index = self._index(op, envelope)
        return Version(self._epoch, (at_ms, order, index))

    def _index(self, op: str, envelope: Envelope) -> int:
        """The place of a change within its transaction."""
        text = bytes(envelope.transaction)
        total = parse_object(text, self._limits).get("total_order") if text and text != b"null" else None
        if type(total) is int and 0 < total < _LAST:
            return total
        if op == "u":
            message = (
                "The update is one of a transaction, and does not tell its place in it (transaction.total_order), which"
                " deleted_when and copies need: set provide.transaction.metadata=true."
            )
            raise Refused(Reason.BAD_VERSION, message, "value")
        return _LAST if op == "c" else 0

    def _change(
        self, record: Record, op: Op, key: Key, version: Version | None, source: Mapping[str, object], row: Row | None
    ) -> Decoded:
        trace = trace_of(record.headers, self._limits)
        return change_of(record, self._entity, op, key, None, version, source.get("ts_ms"), trace, row)
