"""Change records as Debezium's PostgreSQL connector writes them (default envelope, JSON without schemas).

The demo has no connector: it runs the SQL itself and then publishes what Debezium would, field by field.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_VERSION: Final = "3.7.0.Final"
_NEW_KEY: Final = "__debezium.newkey"
_OLD_KEY: Final = "__debezium.oldkey"

Row = Mapping[str, object]


class ChangeRecord(NamedTuple):
    """A record for the parent's topic."""

    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Commit:
    """Where a change stands in the source's log, and when it was committed (nanoseconds since the epoch)."""

    lsn: int
    transaction: int
    at_ns: int = field(default_factory=time.time_ns)


class Debezium:
    """Makes the records of one table's changes. The table has the key `id` and the default replica identity."""

    def __init__(self, *, server: str, database: str, table: str) -> None:
        self._server = server
        self._database = database
        self._table = table
        self._context = [
            ("__debezium.context.connectorLogicalName", server.encode()),
            ("__debezium.context.taskId", b"0"),
            ("__debezium.context.connectorName", b"postgresql"),
            ("__debezium.context.runId", str(uuid.uuid4()).encode()),
        ]

    @property
    def topic(self) -> str:
        return f"{self._server}.public.{self._table}"

    def inserted(self, row: Row, commit: Commit) -> list[ChangeRecord]:
        return [self._record(row["id"], self._value("c", None, row, commit))]

    def updated(self, row: Row, commit: Commit) -> list[ChangeRecord]:
        return [self._record(row["id"], self._value("u", None, row, commit))]

    def deleted(self, row: Row, commit: Commit) -> list[ChangeRecord]:
        """The deletion, then the null record that lets a compacted topic forget the key."""
        return [
            self._record(row["id"], self._value("d", _identity(row), None, commit)),
            self._record(row["id"], None),
        ]

    def moved(self, old_id: int, row: Row, commit: Commit) -> list[ChangeRecord]:
        """A key change to `row`: for Debezium a deletion and an insertion, which name each other in headers."""
        leaves = (_NEW_KEY, _key(row["id"]))
        before = _identity({**row, "id": old_id})
        return [
            self._record(old_id, self._value("d", before, None, commit), leaves),
            self._record(old_id, None, leaves),
            self._record(row["id"], self._value("c", None, row, commit), (_OLD_KEY, _key(old_id))),
        ]

    def torn(self, row: Row, commit: Commit) -> ChangeRecord:
        """A deletion whose value ends in its middle: nobody can read it."""
        record, _ = self.deleted(row, commit)
        assert record.value is not None
        return record._replace(value=record.value[: len(record.value) // 2])

    def _record(self, key: object, value: bytes | None, *headers: tuple[str, bytes]) -> ChangeRecord:
        return ChangeRecord(_key(key), value, [*headers, *self._context])

    def _value(self, op: str, before: Row | None, after: Row | None, commit: Commit) -> bytes:
        now_ns = time.time_ns()
        source = {
            "version": _VERSION,
            "connector": "postgresql",
            "name": self._server,
            "ts_ms": commit.at_ns // 1_000_000,
            "snapshot": "false",
            "db": self._database,
            "sequence": json.dumps([str(commit.lsn), str(commit.lsn)], separators=(",", ":")),
            "ts_us": commit.at_ns // 1_000,
            "ts_ns": commit.at_ns,
            "schema": "public",
            "table": self._table,
            "txId": commit.transaction,
            "lsn": commit.lsn,
            "xmin": None,
            "origin": None,
            "origin_lsn": None,
        }
        envelope = {
            "before": before,
            "after": after,
            "source": source,
            "transaction": None,
            "op": op,
            "ts_ms": now_ns // 1_000_000,
            "ts_us": now_ns // 1_000,
            "ts_ns": now_ns,
        }
        return json.dumps(envelope, separators=(",", ":")).encode()


def _key(value: object) -> bytes:
    return json.dumps({"id": value}, separators=(",", ":")).encode()


def _identity(row: Row) -> Row:
    """What is left of a row that was deleted: with the default replica identity its key alone."""
    return {name: value if name == "id" else None for name, value in row.items()}
