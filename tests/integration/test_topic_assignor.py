"""One member of a group has every partition, and another takes over when it is gone."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from integrity.demo.servers import KafkaServer
from integrity.kafka.assignor import SingleOwnerAssignor
from tests.conftest import CreateTopic

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]


class Member:
    """A consumer that is polled all the time, as a lane's is."""

    def __init__(self, servers: str, group: str, assignor: SingleOwnerAssignor) -> None:
        self.consumer = AIOKafkaConsumer(
            bootstrap_servers=servers,
            group_id=group,
            partition_assignment_strategy=(assignor,),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=6000,
            heartbeat_interval_ms=500,
        )
        self.polling: asyncio.Task[None] | None = None

    async def start(self, topics: list[str]) -> None:
        await self.consumer.start()
        self.consumer.subscribe(topics)
        self.polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        if self.polling is not None:
            self.polling.cancel()
            await asyncio.wait({self.polling})
            self.polling = None
            await self.consumer.stop()

    def owned(self) -> int:
        return len(self.consumer.assignment())

    async def _poll(self) -> None:
        while True:
            await self.consumer.getmany(timeout_ms=100)


@asynccontextmanager
async def member(
    servers: str, group: str, topics: list[str], *, started_ns: int | None = None
) -> AsyncIterator[Member]:
    made = Member(servers, group, SingleOwnerAssignor(started_ns))
    await made.start(topics)
    try:
        yield made
    finally:
        await made.stop()


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def test_standby_takes_over_when_the_owner_stops_and_not_before(
    kafka: KafkaServer, create_topic: CreateTopic, topic_name: str
) -> None:
    topics = [await create_topic(partitions=3), await create_topic(partitions=2)]
    async with member(kafka.bootstrap_servers, topic_name, topics) as first:
        await until(lambda: first.owned() == 5)
        # Started long before by its clock: it must not take away what has an owner.
        async with member(kafka.bootstrap_servers, topic_name, topics, started_ns=1) as second:
            generation = second.consumer._coordinator
            await until(lambda: generation.generation > 0)
            await until(lambda: first.consumer._coordinator.generation == generation.generation)
            await until(lambda: first.owned() == 5)
            assert second.owned() == 0
            await first.stop()
            await until(lambda: second.owned() == 5)


async def test_member_that_started_first_takes_over(
    kafka: KafkaServer, create_topic: CreateTopic, topic_name: str
) -> None:
    topics = [await create_topic(partitions=3)]
    async with member(kafka.bootstrap_servers, topic_name, topics, started_ns=1) as owner:
        await until(lambda: owner.owned() == 3)
        async with (
            member(kafka.bootstrap_servers, topic_name, topics, started_ns=30) as late,
            member(kafka.bootstrap_servers, topic_name, topics, started_ns=20) as early,
        ):
            await until(lambda: late.consumer._coordinator.generation == early.consumer._coordinator.generation > 0)
            await owner.stop()
            await until(lambda: early.owned() == 3)
            assert late.owned() == 0


OWNER = """
import asyncio, sys
from tests.integration.test_topic_assignor import member, until

async def main():
    servers, group, topic = sys.argv[1:]
    async with member(servers, group, [topic]) as owner:
        await until(lambda: owner.owned() == 3)
        print("owner", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_standby_takes_over_when_the_owner_is_killed(
    kafka: KafkaServer, create_topic: CreateTopic, topic_name: str
) -> None:
    topic = await create_topic(partitions=3)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER,
        kafka.bootstrap_servers,
        topic_name,
        topic,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"owner\n"
    async with member(kafka.bootstrap_servers, topic_name, [topic]) as standby:
        await until(lambda: standby.consumer._coordinator.generation > 0)
        assert standby.owned() == 0
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await until(lambda: standby.owned() == 3)
