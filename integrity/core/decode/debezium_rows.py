"""The format `debezium` where the parent's key is not the record key's (`key_from: before`): it is read from the rows.

A deletion's key is in `before`, which has to be known to be whole, or the event is a dead letter (`no_before`):

- MySQL and MariaDB send whole rows, or stop.
- PostgreSQL does under REPLICA IDENTITY FULL only; under any other Debezium makes columns up. An update shows it by its
  `before`, which it has under no other. A deletion shows it by a value that cannot be made up: that of a column which
  its schema says may be null, and has no default.
- Of other connectors it is not known.

An update has to show both rows, since its key may have changed: then it is a key change, and nothing else tells it. A
null record has no row; the rule ignores them. Where the record key itself changed (a deletion and a creation), nothing
tells whether the parent's key did: the deletion is a dead letter. Events of one key are in the partitions of their
record keys, which nothing orders: so the topic has one partition, and what is in another one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode.connectors import MYSQL, POSTGRESQL, refuse_folded
from integrity.core.decode.debezium import NEW_KEY, WITHOUT_KEY, Debezium
from integrity.core.decode.json import Envelope, JsonFault, check_depth, parse, parse_object
from integrity.core.decode.positions import Source
from integrity.core.decode.record import (
    SNAPSHOT,
    TOMBSTONE,
    UPDATED,
    Decoded,
    Decoder,
    Ignored,
    Limits,
    Record,
    Refused,
    trace_of,
)
from integrity.core.decode.row import is_unsent
from integrity.core.decode.schema import HINTS_MAX, Hints, hints_of, real_fields
from integrity.core.keys import Key, KeyRefused
from integrity.core.rules.model import Parent
from integrity.errors import Reason

_WHOLE = frozenset({MYSQL, "mariadb"})
"""The connectors whose rows are whole, always."""
_FULL = "REPLICA IDENTITY FULL"


def debezium_rows_decoder(parent: Parent, limits: Limits) -> Decoder:
    """The decoder of one parent's topics."""
    return _ByRow(parent, limits, None).decode


class RowSchema:
    """What the schema of an envelope says of its rows: hints for keys, and the fields that are never made up."""

    __slots__ = ("hints", "real")

    def __init__(self, schema: object) -> None:
        fields = schema.get("fields") if type(schema) is dict else None
        rows = [f for f in fields if type(f) is dict and f.get("field") == "before"] if type(fields) is list else []
        row = rows[0] if len(rows) == 1 else {}
        self.hints: Hints = hints_of(row)
        self.real = real_fields(row)


class _ByRow(Debezium):
    __slots__ = ("_schemas",)

    def __init__(self, parent: Parent, limits: Limits, copied: None) -> None:
        super().__init__(parent, limits, copied)
        self._schemas: dict[bytes, RowSchema] = {}

    def decode(self, record: Record) -> Decoded:
        """What a record says. Never raises."""
        if record.value is None:
            return TOMBSTONE
        try:
            try:
                envelope, text, schema = self._envelope(record.value)
                op = self._op_of(record, envelope)
                check_depth(text, self._limits)
                if isinstance(op, Ignored):
                    return op
                if op == "t" and self._truncates:
                    return self._truncated(record, self._source(envelope))
                if op in WITHOUT_KEY:
                    return WITHOUT_KEY[op]
                return self._said(record, op, envelope, self._schema_of(schema))
            except JsonFault as fault:
                raise Refused(fault.reason, f"The record value is refused: {fault.message}.", "value") from None
        except Refused as refused:
            return refused.undecodable

    def _said(self, record: Record, op: str, envelope: Envelope, schema: RowSchema | None) -> Decoded:
        if record.partition != 0:
            message = "The topic has several partitions, and nothing orders the events of a key: let it have one."
            raise Refused(Reason.BAD_VERSION, message, "value")
        source = self._source(envelope)
        match op:
            case "d":
                return self._ended(record, envelope, source, schema)
            case "u":
                return self._updated(record, envelope, source, schema)
            case _:
                version = self._placed_read(record, source) if op == "r" else self._placed(record, source)
                if version is None:
                    return SNAPSHOT
                key = self._key_in(envelope.after, "after", schema)
                return self._told(record, Op.ALIVE, key, None, version, source)

    def _ended(self, record: Record, envelope: Envelope, source: Source, schema: RowSchema | None) -> Decoded:
        if any(name == NEW_KEY for name, _ in record.headers):
            message = "The record key has changed, and nothing tells whether the parent's key has: it is in the row."
            raise Refused(Reason.NO_BEFORE, message, "value")
        before = self._fields(envelope.before, "before")
        if not is_whole(before, source, schema):
            message = (
                "Nothing shows that the row before is whole, so the key in it may be made up: the table needs "
                f"{_FULL}, the converter schemas.enable=true, and the row a value in a column that may be null."
            )
            raise Refused(Reason.NO_BEFORE, message, "value")
        key = self._key_in(envelope.before, "before", schema)
        return self._told(record, Op.DELETED, key, None, self._placed(record, source), source)

    def _updated(self, record: Record, envelope: Envelope, source: Source, schema: RowSchema | None) -> Decoded:
        if source["connector"] not in {*_WHOLE, POSTGRESQL}:
            raise Refused(Reason.NO_BEFORE, "It is not known of this connector that rows before are whole.", "value")
        old = self._key_in(envelope.before, "before", schema)
        new = self._key_in(envelope.after, "after", schema)
        if old == new:
            return UPDATED
        return self._told(record, Op.MOVED, old, new, self._placed(record, source), source)

    def _told(self, record: Record, op: Op, key: Key, to: Key | None, version: Version, source: Source) -> ParentChange:
        if self._folds:
            refuse_folded(self._folds, source["connector"], key, to)
        return self._change(record, op, key, to, version, source, trace_of(record.headers, self._limits))

    def _fields(self, text: Raw, name: str) -> dict[str, object]:
        if not text or bytes(text) == b"null":
            raise Refused(
                Reason.NO_BEFORE, f"The event has no row {name}, which the key is read from: {_FULL}.", "value"
            )
        return parse_object(bytes(text), self._limits)

    def _key_in(self, text: Raw, name: str, schema: RowSchema | None) -> Key:
        try:
            return self._keys.in_object(self._fields(text, name), None, None if schema is None else schema.hints)
        except KeyRefused as fault:
            raise Refused(fault.reason, f"The key in the row {name} is refused: {fault.message}.", "value") from None

    def _schema_of(self, text: Raw) -> RowSchema | None:
        known = bytes(text)
        if not known or known == b"null":
            return None
        found = self._schemas.get(known)
        if found is None:
            if len(self._schemas) >= HINTS_MAX:
                self._schemas.clear()
            found = self._schemas[known] = RowSchema(parse(known, self._limits))
        return found


def is_whole(before: Mapping[str, object], source: Source, schema: RowSchema | None) -> bool:
    """Whether it is sure that a row before is as it was, and no column of it made up."""
    if source["connector"] in _WHOLE:
        return True
    if source["connector"] != POSTGRESQL or schema is None:
        return False
    return any(
        before.get(name) is not None and not is_unsent(before[name], schema.hints.get(name)) for name in schema.real
    )
