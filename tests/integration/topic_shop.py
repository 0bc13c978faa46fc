"""What the tests of the topic store share: a shop of carts on the real broker, its owner, and its readers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import ConsumerRecord
from aiokafka.structs import TopicPartition as KafkaPartition

from integrity.core.batch import TopicPartition
from integrity.core.keys import KeySpec, KeyType
from integrity.core.policy import policy_of
from integrity.core.rules.model import Action, Cascade, Dependent, Literal, Place, Target, TargetKind
from integrity.ports import Deadline
from integrity.stores.rule import StoreRule
from integrity.stores.topic import TopicStore
from tests.conftest import CreateTopic

INT = KeySpec((("id", KeyType.INT64),))
SOURCE = [TopicPartition("shop.public.customers", 0)]
COMPACTED = {"cleanup.policy": "compact"}
PLACE = Place("rules/customer.yaml", 12, 5)


def topic_rule(
    topic: str,
    on_delete: Action,
    on_update: Action | None = None,
    *,
    name: str = "carts",
    columns: Sequence[str] = ("customer_id",),
    spec: KeySpec = INT,
    where: Mapping[str, Literal | tuple[Literal, ...]] | None = None,
) -> StoreRule:
    dependent = Dependent(
        f"customer.{name}",
        name,
        "shop",
        Target(TargetKind.TOPIC, topic),
        dict(zip(columns, spec.names, strict=True)),
        on_delete,
        on_update or Cascade(),
        where or {},
        PLACE,
    )
    return StoreRule("customer", dependent, spec, policy_of(dependent, spec))


@dataclass
class Shop:
    """A topic of carts, its owner's producer, and the stores opened over it."""

    client: Mapping[str, Any]
    topic: str
    owner: AIOKafkaProducer
    stores: list[TopicStore] = field(default_factory=list)

    async def put(
        self, key: bytes, value: bytes | None, partition: int = 0, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """A write of the owner."""
        await self.owner.send_and_wait(self.topic, value, key, partition, headers=list(headers))

    async def store(self, *rules: StoreRule, timeout_s: float = 30.0, take_over: bool = True) -> TopicStore:
        """A store as a new process would have it."""
        store = TopicStore(
            "shop", self.client, {"customer": rules}, lane=self.topic, schema=self.topic, timeout_s=timeout_s
        )
        self.stores.append(store)
        await store.migrate(Deadline.after(20))
        if take_over:
            await store.progress(SOURCE, Deadline.after(20))
        return store

    async def records(self, topic: str = "", *, end: str = "read_uncommitted") -> list[ConsumerRecord]:
        """Every record of a topic that a committed reader sees, in the order of each partition."""
        return await read_all(self.client, topic or self.topic, end=end)

    async def rows(self, *, end: str = "read_uncommitted") -> dict[tuple[int, bytes], bytes]:
        """(partition, key) -> value, as compaction leaves them."""
        found: dict[tuple[int, bytes], bytes] = {}
        for record in await self.records(end=end):
            found.pop((record.partition, record.key), None)
            if record.value is not None:
                found[record.partition, record.key] = record.value
        return found


@asynccontextmanager
async def shop(
    client: Mapping[str, Any], create_topic: CreateTopic, *, partitions: int = 2, config: Mapping[str, str] = COMPACTED
) -> AsyncIterator[Shop]:
    topic = await create_topic(partitions=partitions, config=config)
    owner = AIOKafkaProducer(**client, acks="all")
    await owner.start()
    made = Shop(client, topic, owner)
    try:
        yield made
    finally:
        for store in made.stores:
            await store.close()
        await made.owner.stop()


async def read_all(client: Mapping[str, Any], topic: str, *, end: str = "read_uncommitted") -> list[ConsumerRecord]:
    """Every committed record, up to the end as that isolation level has it: the true one, for which a transaction that
    has just been committed is waited for, or (read_committed) the one before the first open transaction."""
    consumer = AIOKafkaConsumer(topic, **client, isolation_level="read_committed", auto_offset_reset="earliest")
    asking = AIOKafkaConsumer(**client, isolation_level=end)
    await consumer.start()
    await asking.start()
    try:
        partitions = [KafkaPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        assert partitions, "the topic exists"
        ends = await asking.end_offsets(partitions)
        found: list[ConsumerRecord] = []
        while any([await consumer.position(at) < end for at, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=100)).values():
                found += batch
        return found
    finally:
        await consumer.stop()
        await asking.stop()
