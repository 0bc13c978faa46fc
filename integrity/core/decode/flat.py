"""The format `debezium-flat`: rows that ExtractNewRecordState has taken out of their envelopes, in every delete mode.

A null is a deletion, or the record that repeats one: a real null record, the four bytes `null`, or a null inside a
schema, since the converter decides which of them the SMT's null becomes. A row with `__deleted` is a deletion whose row
may be made up: its key is the record key's and nothing else of it is read. A deletion or null with the header
`__debezium.newkey` is a key change and never a deletion. Every row else says that its key lives, updates included:
after compaction an update may be all that is left between two deletions.

A change is placed by what `add.fields` or `add.headers` tells of its source (`positions`), such as PostgreSQL's
`__lsn`, or by the rule's `version`. A row that tells nothing is placed by its Kafka offset, and a null by what stands
before it (`Op.GONE`). SQL Server marks no key changes: its deletions and creations are `halves`, and refused where they
tell too little for that. Documents (ExtractNewDocumentState) are rows like any other, but that a rule names their
`_id`, or the fields of an `_id` that is a document, where the record key says `id`.
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
from integrity.core.decode.halves import half_of, other_key, told_version
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.positions import PLACES, PLACING
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

OP = "op"
"""The field or header of the operation, behind the prefix that the rule names."""
DELETED = "__deleted"
"""Always called so, whatever the prefix."""
_TIME, _CONNECTOR = "source_ts_ms", "connector"
_DB2, _ORACLE = "db2", "oracle"
_TOLD_BY: Mapping[str, tuple[str, ...]] = {
    POSTGRESQL: ("lsn",),
    MYSQL: ("file", "pos", "row"),
    _ORACLE: ("scn",),
}
"""The fields that tell a place, by whose they are."""
_TOLD_TO: Mapping[object, tuple[str, ...]] = {
    SQLSERVER: ("commit_lsn", "change_lsn", "event_serial_no"),
    _DB2: ("commit_lsn", "change_lsn"),
}
"""The same where fields do not tell whose they are."""
_WHOSE: Mapping[str, str] = {
    "lsn": POSTGRESQL,
    "scn": _ORACLE,
    **dict.fromkeys(_TOLD_TO[SQLSERVER], SQLSERVER),
}
"""Whose a record is by a field that it tells, where nothing names the connector."""
_JSON_BEGINS = frozenset(bytes([byte]) for byte in b'"{[-0123456789tfn \t\r\n')


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
        "_names",
        "_op_name",
        "_time_name",
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
        prefix = events.prefix
        self._op_name, self._time_name = prefix + OP, prefix + _TIME
        # Add.fields=lsn and add.fields=source.lsn are called differently.
        self._names = {name: (prefix + name, f"{prefix}source_{name}") for name in (_CONNECTOR, *PLACING)}
        wanted = {self._op_name, self._time_name}.union(*self._names.values())
        self._headers = wanted if self._version_field is None else wanted | {self._version_field}

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
        op = self._op({}, told)
        if op is not None and op != "d":
            message = f"The value is null, and the header {self._op_name} is no d."
            raise Refused(Reason.BAD_ENVELOPE, message, "header")
        connector = self._connector({}, told)
        self._check_marks(connector, op, {}, told)
        version = self._position({}, told, op, connector)
        said = self._ended(record, told, connector, version, Op.GONE if version is None else Op.DELETED, {})
        return self._half(record, connector, "d", said)

    def _row(self, record: Record, fields: dict[str, object], hints: Hints | None) -> Decoded:
        told = self._told(record)
        op = self._op(fields, told)
        connector = self._connector(fields, told)
        self._check_marks(connector, op, fields, told)
        deleted = _deleted_flag(fields)
        if op == "t" or op == "m":
            return TRUNCATED if op == "t" else MESSAGE
        if deleted is not None and op is not None and deleted != (op == "d"):
            message = f"The row's {DELETED} and {self._op_name} contradict each other."
            raise Refused(Reason.BAD_ENVELOPE, message, "value")
        is_unplaced = op == "r" and self._is_unplaced(fields, told)
        version = None if is_unplaced else self._placed(record, fields, told, op, connector)
        if deleted or op == "d":
            said = self._ended(record, told, connector, version, Op.DELETED, fields)
            return self._half(record, connector, "d", said)
        return self._half(record, connector, op, self._living(record, told, connector, version, op, fields, hints))

    def _living(
        self,
        record: Record,
        told: _Told,
        connector: object,
        version: Version | None,
        op: str | None,
        fields: dict[str, object],
        hints: Hints | None,
    ) -> Decoded:
        """A row that is no deletion of its source; the rule may take it for one."""
        key, _ = self._key(record, connector)
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
        self,
        record: Record,
        told: _Told,
        connector: object,
        version: Version | None,
        op: Op,
        fields: Mapping[str, object],
    ) -> Decoded:
        """A deletion or null, or, when the header of a new key is there, a key change."""
        key, hints = self._key(record, connector)
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
        occurred_ms = self._said(self._time_name, fields, told)
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

    def _is_told(self, name: str, fields: Mapping[str, object], told: _Told) -> bool:
        """Whether a field of the source is said, under either name."""
        plain, full = self._names[name]
        return plain in fields or full in fields or plain in told.fields or full in told.fields

    def _op(self, fields: Mapping[str, object], told: _Told) -> str | None:
        """The op of the event behind the record, None when nothing tells it."""
        name = self._op_name
        op = self._said(name, fields, told)
        if op is None:
            return None
        if type(op) is not str or op not in "crudtm" or len(op) != 1:
            raise Refused(Reason.UNKNOWN_OP, f"The record has an {name} other than c r u d t m.", "value")
        if name in fields and name in told.fields and self._said(name, {}, told) != op:
            raise Refused(Reason.BAD_ENVELOPE, f"The row's {name} and the header's contradict each other.", "value")
        return op

    def _is_unplaced(self, fields: Mapping[str, object], told: _Told) -> bool:
        """Whether it is a row of an incremental snapshot, which PostgreSQL gives a position that is null."""
        name = self._version_field
        names = (name,) if name is not None else self._names["lsn"]
        return any(self._is_said(each, fields, told) and self._said(each, fields, told) is None for each in names)

    def _placed(
        self, record: Record, fields: Mapping[str, object], told: _Told, op: str | None, connector: object
    ) -> Version:
        """The place of a row; one that tells none is placed by its offset, unless the rule says that it tells one."""
        version = self._position(fields, told, op, connector)
        if version is not None:
            return version
        position = record.offset if self._version_field is None else version_number(None, self._version_field)
        return Version(self._epoch, (position,))

    def _position(self, fields: Mapping[str, object], told: _Told, op: str | None, connector: object) -> Version | None:
        """The place of a change in its source's order; None where nothing tells it. Refused where it can't be read."""
        name = self._version_field
        if name is not None:
            if not self._is_said(name, fields, told):
                return None
            return Version(self._epoch, (version_number(self._said(name, fields, told), name),))
        whose = _DB2 if connector == _DB2 else SQLSERVER if connector == SQLSERVER else None
        if whose is not None:
            return self._position_of(whose, _TOLD_TO[whose], fields, told, op)
        for whose, names in _TOLD_BY.items():
            if (found := self._position_of(whose, names, fields, told, op)) is not None:
                return found
        return None

    def _position_of(
        self, whose: str, needed: Collection[str], fields: Mapping[str, object], told: _Told, op: str | None
    ) -> Version | None:
        """The place as that connector tells it; None where not all that is needed is told."""
        for name in needed:
            if not self._is_told(name, fields, told):
                return None
        places = PLACES[whose]
        source: dict[str, object] = {}
        for name in places.fields:
            for each in self._names[name]:
                if self._is_said(each, fields, told):
                    source[name] = self._said(each, fields, told)
                    break
        position = places.of_read(source) if op == "r" else places.of_change(source)
        if position is None:
            raise Refused(Reason.BAD_VERSION, f"{places.fault}.", "value")
        return Version(self._epoch, position)

    def _connector(self, fields: Mapping[str, object], told: _Told) -> object:
        """The connector behind a record, as far as something tells it."""
        if told.connector is not None:
            return told.connector
        for name in self._names[_CONNECTOR]:
            if (connector := self._said(name, fields, told)) is not None:
                return connector
        # Db2 tells its place by some of SQL Server's fields: it has to be named.
        for name, whose in _WHOSE.items():
            if self._is_told(name, fields, told):
                return whose
        return None

    # --- halves of key changes ------------------------------------------------------------------------------------

    def _check_marks(self, connector: object, op: str | None, fields: Mapping[str, object], told: _Told) -> None:
        """Refuse what may be an unmarked half of a key change, and does not tell enough to be put together."""
        if connector != SQLSERVER:
            return
        may_be_placed = self._version_field is None and op is not None
        if not may_be_placed or not all(self._is_told(name, fields, told) for name in _TOLD_TO[SQLSERVER]):
            message = (
                "SQL Server sends key changes as deletions without a mark: let add.fields and add.headers tell op, "
                "source.commit_lsn, source.change_lsn and source.event_serial_no."
            )
            raise Refused(Reason.BAD_ENVELOPE, message, "value")

    def _half(self, record: Record, connector: object, op: str | None, said: Decoded) -> Decoded:
        """What is said, which may be half of a key change where nothing marks one; or is, when it comes back."""
        if connector != SQLSERVER or (op != "d" and op != "c"):
            return said
        if not isinstance(said, ParentChange) or said.op is Op.MOVED or said.op is Op.ARRIVED:
            return said
        version = told_version(record)
        if version is None:
            return half_of(said, op, {"connector": SQLSERVER}, record)
        if op == "c":
            return said._replace(version=version)
        to, _ = self._keys.of(record._replace(key=other_key(record)))
        return SAME_KEY if to == said.key else said._replace(op=Op.MOVED, to=to, version=version)


def _text_of(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused(Reason.BAD_ENCODING, f"The header {name} is not UTF-8.", "header") from None


def _is_rewritten(record: Record) -> bool:
    """Whether a record may be a rewritten deletion, which a null record repeats. Broken ones may be, too."""
    value = record.value
    return value is not None and b'"__deleted"' in value and b'"__deleted":"false"' not in value


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
