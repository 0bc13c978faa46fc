"""Derived events on Kafka: a topic an entity, made when it is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from integrity.core.outbox import Outgoing
from integrity.core.rules.graph import derived_topic
from integrity.kafka.producer import BATCH_BYTES_MAX, OutgoingRecord, Producer, TopicFacts, WantedTopic, ensure_topics
from integrity.ports import Deadline

PARTITIONS: Final = 3
_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "delete", "retention.ms": str(30 * 24 * 3600 * 1000)}
"""30 days: a store may be away for that long and miss nothing. Not compacted, since every event of a key counts."""


async def ensure_derived(
    client: Mapping[str, Any], entities: Iterable[str], deadline: Deadline
) -> Mapping[str, TopicFacts]:
    """Make the topics of these entities that are missing. Raises PublishError or UnreachableError."""
    wanted = [WantedTopic(derived_topic(entity), PARTITIONS, _CONFIG) for entity in entities]
    return await ensure_topics(client, wanted, deadline)


class DerivedEvents:
    """Publishes what outboxes hold."""

    def __init__(self, client: Mapping[str, Any], entities: Sequence[str]) -> None:
        self._client = client
        self._entities = entities
        self._producer: Producer | None = None

    async def send(self, records: Sequence[Outgoing], deadline: Deadline) -> None:
        """Return when every record is acknowledged. Raises OperationError."""
        if self._producer is None:
            facts = await ensure_derived(self._client, self._entities, deadline)
            bytes_max = min(BATCH_BYTES_MAX, *(each.bytes_max for each in facts.values()))
            self._producer = Producer(self._client, client_id="integrity-derived", batch_bytes_max=bytes_max)
        await self._producer.send_all(
            [
                OutgoingRecord(
                    derived_topic(record.entity),
                    record.key,
                    record.value,
                    headers=() if record.traceparent is None else (("traceparent", record.traceparent.encode()),),
                )
                for record in records
            ],
            deadline,
        )

    async def close(self, deadline: Deadline) -> None:
        if self._producer is not None:
            await self._producer.close(deadline)
