"""What the last scan of each dependent found, in a compacted topic: a scan writes it, and the services tell it as a
metric. Never fails and never waits for anything but Kafka on the reading side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from integrity.kafka.follow import follow
from integrity.kafka.producer import OutgoingRecord, Producer, WantedTopic, ensure_topics
from integrity.ports import Deadline

_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "compact"}


class ScanResult(NamedTuple):
    """The orphans of a dependent: their keys and rows, and when they were counted (RFC 3339)."""

    dependent: str
    keys: int
    rows: int
    at: str


class _Said(msgspec.Struct, frozen=True):
    keys: int
    rows: int
    at: str


_decode = msgspec.json.Decoder(_Said).decode


def scans_topic(group: str) -> str:
    """The topic of the scans of a group's stores: `integrity.scans`."""
    return f"{group}.scans"


async def publish(client: Mapping[str, Any], topic: str, results: Sequence[ScanResult], deadline: Deadline) -> None:
    """Return when all are acknowledged; makes the topic when it is missing. Raises OperationError."""
    await ensure_topics(client, [WantedTopic(topic, 1, _CONFIG)], deadline)
    producer = Producer(client, client_id="integrity-scan")
    try:
        records = [
            OutgoingRecord(
                topic, each.dependent.encode(), msgspec.json.encode(_Said(each.keys, each.rows, each.at)), None, (), 0
            )
            for each in results
        ]
        await producer.send_all(records, deadline)
    finally:
        await producer.close(deadline)


class ScanResults:
    """Run it in a task of its own; `told` hears of every change: how many rows of a dependent are orphans."""

    def __init__(self, client: Mapping[str, Any], topic: str, told: Callable[[str, int], None]) -> None:
        self._client = client
        self._topic = topic
        self._told = told

    async def run(self) -> None:
        """Follow the topic; ends only when it is cancelled."""
        await follow(self._client, self._topic, self.take, lambda: None)

    def take(self, key: bytes | None, value: bytes | None) -> None:
        """Note a record of the topic."""
        try:
            dependent, said = (key or b"").decode(), _decode(value or b"")
        except (UnicodeDecodeError, msgspec.DecodeError):
            return
        self._told(dependent, said.rows)
