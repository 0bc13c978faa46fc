"""The format `debezium-flat`: rows that ExtractNewRecordState has taken out of their envelopes, in every delete mode.

A null is a deletion, or the record that repeats one: a real null record, the four bytes `null`, or a null inside a
schema, since the converter decides which of them the SMT's null becomes. A row with `__deleted` is a deletion whose row
may be made up: its key is the record key's and nothing else of it is read. A deletion or null with the header
`__debezium.newkey` is a key change and never a deletion. Every row else says that its key lives, updates included:
after compaction an update may be all that is left between two deletions.

A change is placed by what `add.fields` or `add.headers` tells: PostgreSQL's `__lsn`, MySQL's and MariaDB's
`__source_file`, `__source_pos` and `__source_row`, or the rule's `version`. A row that tells nothing is placed by its
Kafka offset, and a null by what stands before it (`Op.GONE`). SQL Server marks no key changes, and is refused where
it can be told. Documents (ExtractNewDocumentState) are rows like any other, but that a rule names their `_id`, or the
fields of an `_id` that is a document, where the record key says `id`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from integrity.core.change import Op, ParentChange, Row, Version
from integrity.core.decode.connectors import (
    CONNECTOR,
    MYSQL,
    POSTGRESQL,
    SQLSERVER,
    folds_of,
    refuse_folded,
)
from integrity.core.decode.debezium import NEW_KEY, OLD_KEY
from integrity.core.decode.debezium_documents import MONGODB
from integrity.core.decode.document_key import DEBEZIUM_ID, DocumentKeys
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.positions import PLACES
from integrity.core.decode.record import (
    MESSAGE,
    SAME_KEY,
    SNAPSHOT,
    TOMBSTONE,
    TRACEPARENT,
    TRUNCATED,
    Decoded,
    Decoder,
    Limits,
    Record,
    Refused,
    change_of,
    traceparent_in,
)
from integrity.core.decode.row import copied_row
from integrity.core.decode.schema import Hints
from integrity.core.decode.value import ValueReader, is_deleted, is_envelope, refused, version_number
from integrity.core.keys import Key
from integrity.core.rules.model import KeyFormat, Parent
from integrity.errors import Reason

OP = "__op"
DELETED = "__deleted"
_LSN = ("__lsn", "__source_lsn")
_BINLOG = (("__source_file", "__source_pos", "__source_row"), ("__file", "__pos", "__row"))
_TIME = "__source_ts_ms"
_SQL_SERVER = ("__commit_lsn", "__source_commit_lsn", "__change_lsn", "__source_change_lsn")
_CONNECTOR = ("__connector", "__source_connector")
_UNSUPPORTED: Mapping[object, str] = {
    SQLSERVER: "SQL Server sends key changes as deletions without a mark, which is not supported in flattened topics.",
}
_JSON_BEGINS = frozenset(bytes([byte]) for byte in b'"{[-0123456789tfn \t\r\n')
_HEADERS = frozenset((OP, *_LSN, *_BINLOG[0], *_BINLOG[1], _TIME, *_SQL_SERVER, *_CONNECTOR))


def flat_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return _Flat(parent, limits, copied).decode


class _Told(NamedTuple):
    """What the headers of a record tell. `fields` are those that `add.headers` wrote, unread."""

    moved: bool
    new_key: bytes | None
    arrived: bool
    connector: str | None
    traceparent: str | None
    fields: Mapping[str, bytes | None]


class _Flat(ParentReader):
    __slots__ = (
        "_documents",
        "_folds",
        "_headers",
        "_keys",
        "_may_be_documents",
        "_values",
        "_version_field",
    )

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        events = parent.events
        assert events is not None
        self._keys = KeyReader(parent.key, limits, events.key_format)
        self._documents = DocumentKeys(parent.key, limits)
        # Where no connector is named: a document's key has the field id alone.
        self._may_be_documents = events.key_format is KeyFormat.JSON and DEBEZIUM_ID not in parent.key.names
        self._folds = folds_of(parent.key)
        self._values = ValueReader(limits)
        # The loader takes one name only, which a column of the row can't have.
        self._version_field = None if events.version is None else events.version[0]
        self._headers = _HEADERS if self._version_field is None else _HEADERS | {self._version_field}

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        try:
            if record.value is None:
                return self._null(record)
            try:
                document, hints = self._values.of(record.value)
            except JsonFault as fault:
                raise refused(fault) from None
            if document is None:
                return self._null(record)
            if type(document) is not dict:
                raise Refused(Reason.BAD_ENVELOPE, "The record value is no row: it is no JSON object.", "value")
            if is_envelope(document):
                return _of_envelope(document)
            return self._row(record, document, hints)
        except Refused as refusal:
            return refusal.undecodable._replace(repeated=_is_rewritten(record))

    def _null(self, record: Record) -> Decoded:
        """A deletion or key change, or the null record that repeats it."""
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has neither key nor value.", "key")
        if self._ignores_tombstones:
            return TOMBSTONE
        told = self._told(record)
        _check_connector(self._connector({}, told))
        op = self._op({}, told)
        if op is not None and op != "d":
            raise Refused(Reason.BAD_ENVELOPE, f"The value is null, and the header {OP} is no d.", "header")
        version = self._position({}, told)
        return self._ended(record, told, version, Op.GONE if version is None else Op.DELETED, {})

    def _row(self, record: Record, fields: dict[str, object], hints: Hints | None) -> Decoded:
        told = self._told(record)
        _check_connector(self._connector(fields, told))
        op = self._op(fields, told)
        deleted = _deleted_flag(fields)
        if op == "t" or op == "m":
            return TRUNCATED if op == "t" else MESSAGE
        if deleted is not None and op is not None and deleted != (op == "d"):
            raise Refused(Reason.BAD_ENVELOPE, f"The row's {DELETED} and {OP} contradict each other.", "value")
        is_unplaced = op == "r" and self._is_unplaced(fields, told)
        version = None if is_unplaced else self._placed(record, fields, told)
        if deleted or op == "d":
            return self._ended(record, told, version, Op.DELETED, fields)
        key, _ = self._key(record, self._connector(fields, told))
        if self._condition is not None and op != "r" and is_deleted(self._condition, record, fields, op):
            assert version is not None, "only a snapshot read has no place"
            if told.arrived:
                # Deleted where the key change has led: just after it, so that it takes the rows that came along.
                version = version._replace(position=(*version.position, 1))
            return self._change(record, Op.DELETED, key, None, version, fields, told)
        row = None if self._copied is None else copied_row(fields, self._copied, hints)
        if version is None and row is None:
            return SNAPSHOT
        return self._change(record, Op.ARRIVED if told.arrived else Op.ALIVE, key, None, version, fields, told, row)

    def _ended(
        self, record: Record, told: _Told, version: Version | None, op: Op, fields: Mapping[str, object]
    ) -> Decoded:
        """A deletion or null, or, when the header of a new key is there, a key change."""
        key, hints = self._key(record, self._connector(fields, told))
        if not told.moved:
            return self._change(record, op, key, None, version, fields, told)
        to = self._keys.in_header(NEW_KEY, told.new_key, key, hints)
        if to == key:
            return SAME_KEY
        return self._change(record, Op.MOVED if op is Op.DELETED else op, key, to, version, fields, told)

    def _key(self, record: Record, connector: object) -> tuple[Key, Hints | None]:
        """The key in the record key; of a document its `_id`, which stands there as `id`."""
        if connector == MONGODB:
            return self._documents.of_flattened(record), None
        try:
            return self._keys.of(record)
        except Refused as refusal:
            if not self._may_be_documents or connector is not None:
                raise
            if refusal.undecodable.reason is not Reason.MISSING_KEY:
                raise
            return self._documents.of_flattened(record), None

    def _change(
        self,
        record: Record,
        op: Op,
        key: Key,
        to: Key | None,
        version: Version | None,
        fields: Mapping[str, object],
        told: _Told,
        row: Row | None = None,
    ) -> ParentChange:
        if self._folds and (connector := self._connector(fields, told)) != MONGODB:
            refuse_folded(self._folds, connector, key, to)
        occurred_ms = self._said(_TIME, fields, told)
        return change_of(record, self._entity, op, key, to, version, occurred_ms, told.traceparent, row)

    # --- what add.fields and add.headers tell ---------------------------------------------------------------------

    def _told(self, record: Record) -> _Told:
        """All headers are looked through, however many: a key change must never pass for a deletion."""
        moved, new_key, arrived, connector, trace = False, None, False, None, None
        fields: dict[str, bytes | None] = {}
        wanted = self._headers
        for name, value in record.headers:
            if name == NEW_KEY:
                moved, new_key = True, value
            elif name == OLD_KEY:
                arrived = True
            elif name == CONNECTOR:
                connector = None if value is None else value.decode("ascii", "replace")
            elif name == TRACEPARENT:
                trace = value
            elif name in wanted and fields.setdefault(name, value) != value:
                # On a null record the SMT writes its headers twice.
                raise Refused(Reason.BAD_ENVELOPE, f"The header {name} is there twice, with two values.", "header")
        traceparent = traceparent_in(trace, record.headers, self._limits)
        return _Told(moved, new_key, arrived, connector, traceparent, fields)

    def _said(self, name: str, fields: Mapping[str, object], told: _Told) -> object:
        """What the row says under a name, or the header of that name; None when neither does."""
        if name in fields:
            return fields[name]
        raw = told.fields.get(name)
        if raw is None:
            return None
        # SimpleHeaderConverter writes text without quotes.
        if raw[:1] not in _JSON_BEGINS:
            return _text_of(name, raw)
        try:
            value = parse(raw, self._limits)
        except JsonFault:
            return _text_of(name, raw)
        if type(value) is dict and value.keys() == {"schema", "payload"}:
            return value["payload"]
        return value

    def _is_said(self, name: str, fields: Mapping[str, object], told: _Told) -> bool:
        return name in fields or name in told.fields

    def _op(self, fields: Mapping[str, object], told: _Told) -> str | None:
        """The op of the event behind the record, None when nothing tells it."""
        op = self._said(OP, fields, told)
        if op is None:
            return None
        if type(op) is not str or op not in "crudtm" or len(op) != 1:
            raise Refused(Reason.UNKNOWN_OP, f"The record has an {OP} other than c r u d t m.", "value")
        if OP in fields and OP in told.fields and self._said(OP, {}, told) != op:
            raise Refused(Reason.BAD_ENVELOPE, f"The row's {OP} and the header's contradict each other.", "value")
        return op

    def _is_unplaced(self, fields: Mapping[str, object], told: _Told) -> bool:
        """Whether it is a row of an incremental snapshot, which PostgreSQL gives a position that is null."""
        name = self._version_field
        names = (name,) if name is not None else _LSN
        return any(self._is_said(each, fields, told) and self._said(each, fields, told) is None for each in names)

    def _placed(self, record: Record, fields: Mapping[str, object], told: _Told) -> Version:
        """The place of a row; one that tells none is placed by its offset, unless the rule says that it tells one."""
        version = self._position(fields, told)
        if version is not None:
            return version
        position = record.offset if self._version_field is None else version_number(None, self._version_field)
        return Version(self._epoch, (position,))

    def _position(self, fields: Mapping[str, object], told: _Told) -> Version | None:
        """The place of a change in its source's order; None where nothing tells it. Refused where it can't be read."""
        for name in _LSN if self._version_field is None else (self._version_field,):
            if self._is_said(name, fields, told):
                return Version(self._epoch, (version_number(self._said(name, fields, told), name),))
        if self._version_field is not None:
            return None
        for names in _BINLOG:
            if all(self._is_said(name, fields, told) for name in names):
                file, pos, row = (self._said(name, fields, told) for name in names)
                places = PLACES[MYSQL]
                position = places.of_change({"file": file, "pos": pos, "row": row})
                if position is None:
                    raise Refused(Reason.BAD_VERSION, f"{places.fault}.", "value")
                return Version(self._epoch, position)
        return None

    def _connector(self, fields: Mapping[str, object], told: _Told) -> object:
        """The connector behind a record, as far as something tells it."""
        if told.connector is not None:
            return told.connector
        for name in _CONNECTOR:
            if (connector := self._said(name, fields, told)) is not None:
                return connector
        if any(self._is_said(name, fields, told) for name in _LSN):
            return POSTGRESQL
        return SQLSERVER if any(self._is_said(name, fields, told) for name in _SQL_SERVER) else None


def _text_of(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.BAD_ENCODING, f"The header {name} is not UTF-8.", "header") from None


def _is_rewritten(record: Record) -> bool:
    """Whether a record may be a rewritten deletion, which a null record repeats. Broken ones may be, too."""
    value = record.value
    return value is not None and b'"__deleted"' in value and b'"__deleted":"false"' not in value


def _check_connector(connector: object) -> None:
    if type(connector) is str and connector in _UNSUPPORTED:
        raise Refused(Reason.BAD_ENVELOPE, _UNSUPPORTED[connector], "value")


def _deleted_flag(fields: Mapping[str, object]) -> bool | None:
    """What a rewritten row says of itself; None when it says nothing. Text for relational connectors."""
    flag = fields.get(DELETED)
    if flag is None and DELETED not in fields:
        return None
    if flag is True or flag == "true":
        return True
    if flag is False or flag == "false":
        return False
    raise Refused(Reason.BAD_ENVELOPE, f"The row's {DELETED} is neither true nor false.", "value")


def _of_envelope(fields: Mapping[str, object]) -> Decoded:
    """A logical message passes the SMT as it is; any other envelope has not passed it."""
    if fields["op"] == "m":
        return MESSAGE
    raise Refused(
        Reason.BAD_ENVELOPE, "The record value is a whole envelope, no flattened row: write format: debezium.", "value"
    )
