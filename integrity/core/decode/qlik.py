"""The format `qlik`: the data messages of Qlik Replicate as JSON, in its envelope or bare.

The key of a change is the record key, or (`key_from: payload`) the row's columns. An update whose row before has
another key than its row after is a key change; it is only believed where the record key is the old key, which orders it
among that key's events. The position of a change is `changeSequence`, which all tables of a task share; a row of the
full load (REFRESH) has none. Metadata messages say nothing.

Built from the vendor's documentation: no record of Qlik Replicate was captured.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from integrity.core.change import Op, Version
from integrity.core.decode.domain import never_raising, object_in, value_of
from integrity.core.decode.json import JsonFault
from integrity.core.decode.key_reader import KeyReader
from integrity.core.decode.parent_reader import ParentReader
from integrity.core.decode.record import (
    TOMBSTONE,
    Decoded,
    Decoder,
    Ignored,
    Limits,
    Record,
    Refused,
    change_of,
    trace_of,
)
from integrity.core.decode.row import copied_row
from integrity.core.keys import FieldHint, Key, KeyRefused, KeyType
from integrity.core.rules.model import KeyFrom, Parent
from integrity.errors import Reason

_MAGIC = "atMSG"
_SEQUENCE = re.compile("[0-9]{1,36}", re.ASCII)
_PART = 10**18
"""A changeSequence has 35 digits; ledgers keep each part of a position in 64 bits."""
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_OPERATIONS = frozenset({"INSERT", "UPDATE", "DELETE", "REFRESH"})

_METADATA = Ignored("metadata", "A metadata message says nothing about a key.")
_REFRESH = Ignored("r", "A row of the full load without a position cannot be placed in the order of changes.")

Row = Mapping[str, object]


def qlik_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    return never_raising(_Qlik(parent, limits, copied).says, limits, followed=True)


class Message(NamedTuple):
    """What is of interest of a data message, besides what it is decoded to."""

    operation: object
    has_before: bool


def message_of(record: Record, limits: Limits) -> Message | None:
    """None for what is no data message."""
    try:
        document = None if record.value is None else value_of(record, limits)
        if document is None or _is_metadata(document):
            return None
        message = _message(document)
        headers = object_in(message["headers"], "headers of the message", limits)
    except (Refused, JsonFault):
        return None
    operation = headers.get("operation")
    return Message(operation, message.get("beforeData") is not None) if "data" in message and operation else None


def rows_of(document: object) -> tuple[Row | None, Row | None]:
    """The rows `data` and `beforeData` of a data message. Raises Refused."""
    message = _message(document)
    return _row(message, "data"), _row(message, "beforeData")


class _Qlik(ParentReader):
    __slots__ = ("_from_row", "_hints", "_keys")

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        super().__init__(parent, limits, copied)
        events = parent.events
        assert events is not None
        self._keys = KeyReader(parent.key, limits, events.key_format)
        # Numbers are text there, and never the bytes of a decimal.
        self._hints = {name: FieldHint("string") for name, kind in parent.key.fields if kind is KeyType.NUMERIC}
        self._from_row = events.key_from is KeyFrom.PAYLOAD

    def says(self, record: Record) -> Decoded:
        """What a record says. Raises JsonFault and Refused."""
        trace = trace_of(record.headers, self._limits)
        if record.value is None:
            if self._ignores_tombstones:
                return TOMBSTONE
            key = self._key(record, None)
            return change_of(record, self._entity, Op.GONE, key, None, None, None, trace)
        document = value_of(record, self._limits)
        if _is_metadata(document):
            return _METADATA
        message = _message(document)
        headers = object_in(message["headers"], "headers of the message", self._limits)
        operation = headers.get("operation")
        if type(operation) is not str or operation not in _OPERATIONS:
            raise Refused(Reason.UNKNOWN_OP, "The operation is none of INSERT UPDATE DELETE REFRESH.", "value")
        data, before = rows_of(document)
        occurred_ms = _milliseconds(headers.get("timestamp"))
        version = self._version(headers.get("changeSequence"))
        if version is None and operation != "REFRESH":
            raise Refused(Reason.BAD_VERSION, "changeSequence is no whole number of at most 36 digits.", "value")
        if operation == "DELETE":
            key = self._key(record, before if data is None else data)
            return change_of(record, self._entity, Op.DELETED, key, None, version, occurred_ms, trace)
        if data is None:
            raise Refused(Reason.BAD_ENVELOPE, f"The message of a {operation} has no data.", "value")
        if operation == "UPDATE" and before is not None and (moved := self._moved(record, before, data)) is not None:
            return change_of(record, self._entity, Op.MOVED, *moved, version, occurred_ms, trace)
        row = None if self._copied is None else copied_row(data, self._copied, None)
        if version is None and row is None:
            return _REFRESH
        return change_of(
            record, self._entity, Op.ALIVE, self._key(record, data), None, version, occurred_ms, trace, row
        )

    def _moved(self, record: Record, before: Row, data: Row) -> tuple[Key, Key] | None:
        """The key that an update took away and the one that it gave; None when it kept its key, or does not tell."""
        names = self._keys.names
        if any(name not in before or name not in data for name in names):
            return None
        old, new = self._in_row(before), self._in_row(data)
        if old == new:
            return None
        if self._from_row or self._key(record, data) != old:
            raise Refused(
                Reason.BAD_ENVELOPE,
                "The update changes the key, and the record key is not the old one, which would keep it in order.",
                "value",
            )
        return old, new

    def _key(self, record: Record, row: Row | None) -> Key:
        if not self._from_row:
            return self._keys.of(record)[0]
        if record.key is None:
            raise Refused(Reason.NULL_KEY, "The record has no key, so nothing orders the events of its parent.", "key")
        if row is None:
            raise Refused(Reason.MISSING_KEY, "The record has no row that the key could be read from.", "value")
        return self._in_row(row)

    def _in_row(self, row: Row) -> Key:
        try:
            return self._keys.in_object(row, None, self._hints)
        except KeyRefused as fault:
            raise Refused(fault.reason, f"The key in the row is refused: {fault.message}.", "value") from None

    def _version(self, sequence: object) -> Version | None:
        if type(sequence) is not str or not _SEQUENCE.fullmatch(sequence):
            return None
        return Version(self._epoch, divmod(int(sequence), _PART))


def _is_metadata(document: object) -> bool:
    return type(document) is dict and document.get("magic") == _MAGIC and document.get("type") == "MD"


def _message(document: object) -> Mapping[str, object]:
    """The message, out of its envelope if it has one."""
    if type(document) is dict and (document.get("magic") == _MAGIC or "message" in document):
        document = document.get("message")
    if type(document) is dict and type(document.get("headers")) is dict:
        return document
    raise Refused(
        Reason.BAD_ENVELOPE,
        "The record value is no data message of Qlik Replicate: it has no headers with an operation.",
        "value",
    )


def _row(message: Mapping[str, object], name: str) -> Row | None:
    row = message.get(name)
    if row is None:
        return None
    if type(row) is not dict:
        raise Refused(Reason.BAD_ENVELOPE, f"The {name} of the message is no object.", "value")
    return row


def _milliseconds(timestamp: object) -> int | None:
    """A `timestamp`, which is in UTC, in milliseconds since the epoch; None where it is no moment."""
    try:
        moment = datetime.fromisoformat(timestamp) if type(timestamp) is str else None
        if moment is None:
            return None
        return int(((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) / _MILLISECOND)
    except (ValueError, OverflowError):
        return None
