"""Events as the bytes that Debezium writes for PostgreSQL (tests/golden/events): a key change is `d` with the header of
the new key, a null record with the same header, and `c` with the header of the old key."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from integrity.core.change import Op
from tests.oracle.dependents import Parent
from tests.property.histories import Event

Key = tuple[Any, ...]
EMAIL = "a@x.test"
"""What every parent's row holds beside its key."""


class Record(NamedTuple):
    """A record to publish, and what it says for people."""

    partition: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]
    text: str


class Writer:
    """Writes the events of one parent. `schemas`: keys and values come with their schemas around them."""

    def __init__(self, parent: Parent, keys: list[Key], *, schemas: bool) -> None:
        self._parent = parent
        self._keys = keys
        self._schemas = schemas

    def said(self, record: Record) -> Key:
        """The key that a record is of."""
        found = json.loads(record.key)
        return tuple((found["payload"] if self._schemas else found).values())

    def key(self, number: int) -> bytes:
        """The record key."""
        return _bytes(self._wrapped(self._fields(number), "Key"))

    def records(self, event: Event, partition: int, at_ms: int, rng: random.Random) -> list[Record]:
        """The record of an event; at times an update of other columns stands before it."""
        op, number, other, at = event
        key = self.key(number)
        text = f"{op.value} {self._keys[number]}" + ("" if other is None else f" ~ {self._keys[other]}") + f" at {at}"
        match op:
            case Op.GONE:
                return [Record(partition, key, None, self._header("newkey", other), text)]
            case Op.ALIVE | Op.ARRIVED:
                value = self._value(number, at, at_ms, "c" if op is Op.ARRIVED or rng.random() < 0.7 else "r")
                return [Record(partition, key, value, self._header("oldkey", other), text)]
            case _:
                gone = Record(partition, key, self._value(number, at, at_ms, "d"), self._header("newkey", other), text)
                if rng.random() < 0.9:
                    return [gone]
                update = self._value(number, at - 1, at_ms, "u")
                return [Record(partition, key, update, [], f"updated {self._keys[number]} at {at - 1}"), gone]

    def _fields(self, number: int) -> dict[str, Any]:
        return dict(zip(self._parent.key, self._keys[number], strict=True))

    def _header(self, name: str, other: int | None) -> list[tuple[str, bytes]]:
        key = [] if other is None else [(f"__debezium.{name}", _bytes(self._fields(other)))]
        return [*key, ("__debezium.context.connectorName", b"postgresql")]

    def _value(self, number: int, at: int, at_ms: int, op: str) -> bytes:
        # Replica identity default: a deletion knows the key alone.
        row = {**self._fields(number), "email": None if op == "d" else EMAIL}
        source = {
            "version": "3.7.0.Final",
            "connector": "postgresql",
            "name": "oracle",
            "ts_ms": at_ms,
            "snapshot": "true" if op == "r" else "false",
            "db": "source",
            "schema": "public",
            "table": self._parent.table,
            "txId": at,
            "lsn": at,
            "xmin": None,
        }
        envelope = {
            "before": row if op == "d" else None,
            "after": None if op == "d" else row,
            "source": source,
            "transaction": None,
            "op": op,
            "ts_ms": at_ms + 1,
        }
        return _bytes(self._wrapped(envelope, "Envelope"))

    def _wrapped(self, payload: dict[str, Any], name: str) -> dict[str, Any]:
        if not self._schemas:
            return payload
        kinds = self._parent.key if name == "Key" else {}
        fields = [{"type": kind, "optional": False, "field": field} for field, kind in kinds.items()]
        schema = {"type": "struct", "fields": fields, "optional": False, "name": f"oracle.{self._parent.table}.{name}"}
        return {"schema": schema, "payload": payload}


def _bytes(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
