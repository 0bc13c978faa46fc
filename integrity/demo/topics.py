"""Topics of the demo's broker: made, and read to their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from integrity.errors import UnreachableError

PARTITIONS: Final = 4
_TIMEOUT_S: Final = 15.0
_LEADER_POLL_S: Final = 0.02
_POLL_MS: Final = 100


class Topics:
    """Questions to one broker about its topics and groups, as long as the `async with` lasts."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)

    async def __aenter__(self) -> Self:
        await self._admin.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._admin.close()

    async def create(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        """Create topics, and wait until every partition has a leader. Raises UnreachableError."""
        wanted = [NewTopic(name, PARTITIONS, 1, topic_configs=dict(config)) for name, config in configs.items()]
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for error in (await self._admin.create_topics(wanted)).topic_errors:
                    if error[1]:
                        raise UnreachableError(f"Kafka made no topic {error[0]}: {for_code(error[1]).__name__}.")
                while not all([await self._is_led(name) for name in configs]):
                    await asyncio.sleep(_LEADER_POLL_S)
        except (TimeoutError, KafkaError) as exc:
            raise UnreachableError(f"Kafka made no topics ({type(exc).__name__}).") from exc

    async def partitions(self, topic: str) -> list[TopicPartition]:
        """The partitions of a topic; none when it does not exist."""
        if topic not in await self._admin.list_topics():
            return []
        described = await self._admin.describe_topics([topic])
        return sorted(TopicPartition(topic, each["partition"]) for each in described[0]["partitions"])

    async def committed(self, group: str, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """What a group has committed; -1 for a partition without a commit."""
        found = await self._admin.list_consumer_group_offsets(group, partitions=partitions)
        return {partition: int(at.offset) for partition, at in found.items()}

    async def read(self, topic: str) -> list[ConsumerRecord[Any, Any]]:
        """All committed records up to the present end, those of a partition in order; none of a missing topic."""
        partitions = await self.partitions(topic)
        if not partitions:
            return []
        async with Tail(self._bootstrap_servers, partitions) as tail:
            return await tail.read_to_end()

    async def _is_led(self, topic: str) -> bool:
        described = (await self._admin.describe_topics([topic]))[0]["partitions"]
        return len(described) >= PARTITIONS and all(each["leader"] >= 0 for each in described)


class Tail:
    """Reads partitions from their beginning, in no consumer group."""

    def __init__(self, bootstrap_servers: str, partitions: list[TopicPartition]) -> None:
        self._partitions = partitions
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            enable_auto_commit=False,
            fetch_max_wait_ms=_POLL_MS,
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(self._partitions)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def read(self) -> list[ConsumerRecord[Any, Any]]:
        """What has come since the last call, waiting a moment for the first record."""
        found = await self._consumer.getmany(timeout_ms=_POLL_MS)
        return [record for records in found.values() for record in records]

    async def read_to_end(self) -> list[ConsumerRecord[Any, Any]]:
        """Everything up to the present end."""
        ends = await self._consumer.end_offsets(self._partitions)
        records: list[ConsumerRecord[Any, Any]] = []
        while any([await self._consumer.position(each) < ends[each] for each in self._partitions]):
            records += await self.read()
        return records
