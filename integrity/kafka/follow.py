"""Follows a small compacted topic from its beginning, for what this process tells of it; nothing rests on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import KafkaError

from integrity.kafka.consumer import CONSUMER_SETTINGS
from integrity.kafka.unpacking import bound_unpacking

log = logging.getLogger(__name__)

_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 15.0
"""How long a broker that fails, or a topic that is not there yet, is left alone."""
_POLL_MS: Final = 1_000


async def follow(
    client: Mapping[str, Any],
    topic: str,
    take: Callable[[bytes | None, bytes | None], None],
    told: Callable[[], None],
) -> None:
    """`take` every record, key and value; `told` is called after every change, and first when the topic was read to its
    end. Ends only when it is cancelled."""
    while True:
        try:
            await _follow(client, topic, take, told)
        except (KafkaError, OSError) as exc:
            log.info("a topic can't be read", extra={"topic": topic, "error": type(exc).__name__})
        await asyncio.sleep(_AGAIN_S)


async def _follow(
    client: Mapping[str, Any],
    topic: str,
    take: Callable[[bytes | None, bytes | None], None],
    told: Callable[[], None],
) -> None:
    """One connection, until it fails; from the beginning again, which changes nothing that is known."""
    bound_unpacking()
    consumer = AIOKafkaConsumer(**client, **CONSUMER_SETTINGS)
    try:
        await asyncio.wait_for(consumer.start(), _START_TIMEOUT_S)
        if topic not in await consumer.topics():
            return
        consumer.subscribe([topic])
        partitions = await _partitions(consumer)
        ends = await consumer.end_offsets(partitions)
        complete = False
        while True:
            changed = False
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    take(record.key, record.value)
                    changed = True
            if not complete:
                positions = [await consumer.position(at) >= end for at, end in ends.items()]
                complete = changed = all(positions)
            if changed and complete:
                told()
    finally:
        # Never cancelled: a cancelled stop() leaves tasks behind that go on fetching.
        await asyncio.wait({asyncio.create_task(consumer.stop(), name="stop following")}, timeout=_STOP_TIMEOUT_S)


async def _partitions(consumer: AIOKafkaConsumer) -> list[KafkaPartition]:
    """Without a group a subscription is assigned all partitions, once they are known."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        while not (found := list(consumer.assignment())):
            await asyncio.sleep(0.05)
    return found
