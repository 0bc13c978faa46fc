"""How many dead letters wait: follows the topic of their statuses, which is compacted and small, from its beginning.

What is open or held is kept in a private file of SQLite's, so that memory stays small however many there are. Never
fails and never waits for anything but Kafka: it is for the metrics alone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from integrity.kafka.dead_letters import Status, status_topic
from integrity.kafka.follow import follow


class Waiting(NamedTuple):
    """`open` counts by (reason, dependent), `held` by dependent. `oldest_ms` is when the oldest of the open ones failed
    (the last time), in milliseconds since the epoch; None when none is open. `parked` counts, by store, the open ones
    that wait for the database of a tenant, and those of them that were sent back and have not been answered."""

    open: Mapping[tuple[str, str], int]
    held: Mapping[str, int]
    oldest_ms: int | None
    parked: Mapping[str, int] = MappingProxyType({})


class OpenLetters:
    """Run it in a task of its own; `told` hears of every change, and first when the topic was read to its end."""

    def __init__(self, client: Mapping[str, Any], topic: str, told: Callable[[Waiting], None]) -> None:
        """`topic` is that of the dead letters."""
        self._client = client
        self._topic = status_topic(topic)
        self._told = told
        # A private file of SQLite's own, removed with the connection.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(
            "CREATE TABLE waiting (id BLOB PRIMARY KEY, status TEXT, reason TEXT, dependent TEXT, parked TEXT,"
            " at_ms INTEGER) WITHOUT ROWID"
        )
        self._db.execute("CREATE INDEX waiting_at ON waiting (status, at_ms)")
        self._counts: Counter[tuple[str, str, str, str]] = Counter()

    async def run(self) -> None:
        """Follow the topic; ends only when it is cancelled."""
        try:
            await follow(self._client, self._topic, self.take, lambda: self._told(self.waiting()))
        finally:
            self._db.close()

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """Note a record of the topic."""
        if key is None:
            return
        before = self._db.execute(
            "SELECT status, reason, dependent, parked FROM waiting WHERE id = ?", (key,)
        ).fetchone()
        if before is not None:
            self._counts[before] -= 1
            self._db.execute("DELETE FROM waiting WHERE id = ?", (key,))
        try:
            said = _decode(value or b"")
            at_ms = int(datetime.fromisoformat(said.at.replace("Z", "+00:00")).timestamp() * 1000)
        except (msgspec.DecodeError, ValueError):
            return
        if said.status in (Status.OPEN, Status.HELD) or (said.status == Status.RETRIED and said.parked):
            where = said.store if said.parked else ""
            self._counts[said.status, said.reason, said.dependent, where] += 1
            self._db.execute(
                "INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?)",
                (key, said.status, said.reason, said.dependent, where, at_ms),
            )

    def waiting(self) -> Waiting:
        """What waits now."""
        open_: Counter[tuple[str, str]] = Counter()
        held: Counter[str] = Counter()
        parked: Counter[str] = Counter()
        for (status, reason, dependent, where), count in self._counts.items():
            if where:
                parked[where] += count
            if status == Status.OPEN:
                open_[reason, dependent] += count
            elif status == Status.HELD:
                held[dependent] += count
        (oldest_ms,) = self._db.execute("SELECT min(at_ms) FROM waiting WHERE status = 'open'").fetchone()
        return Waiting(open_, held, oldest_ms, parked)


class _Said(msgspec.Struct, frozen=True):
    status: str
    at: str
    reason: str = ""
    dependent: str = ""
    store: str = ""
    parked: str = ""


_decode = msgspec.json.Decoder(_Said).decode
