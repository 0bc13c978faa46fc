"""Kafka clients as this store uses them: the settings that were measured, started and stopped within a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.metadata import MetadataRequest

_COMMON: Final[Mapping[str, Any]] = {"request_timeout_ms": 10_000, "metadata_max_age_ms": 30_000}
_STOP_S: Final = 3.0

_log = logging.getLogger(__name__)


def consumer(client: Mapping[str, object], *, isolation: str) -> AIOKafkaConsumer:
    """A reader without a group. It is started without topics: `start` with a missing one never returns."""
    settings: dict[str, Any] = {
        **_COMMON,
        "retry_backoff_ms": 100,
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": isolation,
        "fetch_max_wait_ms": 100,
        "fetch_max_bytes": 8 * 1024 * 1024,
        "max_partition_fetch_bytes": 256 * 1024,
        **client,
    }
    return AIOKafkaConsumer(**settings)


def producer(client: Mapping[str, object], *, transactional_id: str, batch_bytes: int) -> AIOKafkaProducer:
    settings: dict[str, Any] = {
        **_COMMON,
        "retry_backoff_ms": 100,
        "acks": "all",
        "enable_idempotence": True,
        "transactional_id": transactional_id,
        "max_batch_size": batch_bytes,
        "compression_type": "lz4",
        **client,
    }
    return AIOKafkaProducer(**settings)


def admin(client: Mapping[str, object]) -> AIOKafkaAdminClient:
    settings: dict[str, Any] = {**_COMMON, "retry_backoff_ms": 500, **client}
    return AIOKafkaAdminClient(**settings)


class DescribedTopic(NamedTuple):
    """A topic as the server has it now; no partitions: it does not exist."""

    name: str
    partitions: tuple[int, ...]


async def describe(client: AIOKafkaAdminClient, topics: Sequence[str]) -> list[DescribedTopic]:
    """The partitions of topics. The client's own call would have the server create those that do not exist."""
    request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
    answer = await client._send_request(request)
    return [
        DescribedTopic(topic["topic"], tuple(sorted(each["partition"] for each in topic["partitions"])))
        for topic in answer.to_object()["topics"]
    ]


class Closer:
    """Stops clients in the background: a stop may last as long as a request to a frozen broker, and a cancelled one
    leaves the client running."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self, stopping: Awaitable[None], name: str) -> None:
        """Let it end by itself; what it raises is of no use to anyone."""

        async def run() -> None:
            await stopping

        task = asyncio.create_task(run(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Wait for the stops under way, a few seconds at most."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_STOP_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.debug("A Kafka client was stopped with an error.", exc_info=task.exception())
