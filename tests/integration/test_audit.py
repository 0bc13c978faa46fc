"""The audit topic on a real broker, and the promise that writing never waits."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from integrity.core.batch import Batch
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import (
    Cascade,
    Dependent,
    Events,
    Parent,
    Place,
    RuleSet,
    Target,
    TargetKind,
    Tombstones,
)
from integrity.demo.servers import KafkaServer
from integrity.kafka.audit import AuditTrail
from integrity.ports import Deadline
from tests.conftest import CreateTopic

HANGS_S = 30.0
"""Only against hanging: how long a thing takes is no matter of these tests."""
pytestmark = pytest.mark.servers

EVENTS = 3000


def rule_set() -> RuleSet:
    place = Place("customer.yaml", 1, 1)
    target = Target(TargetKind.TABLE, "public.orders")
    orders = Dependent(
        "customer.orders", "orders", "orders_db", target, {"customer_id": "id"}, Cascade(), Cascade(), {}, place
    )
    events = Events(("customers",), "debezium", KeySpec((("id", KeyType.INT64),)), Tombstones.DELETE)
    parent = Parent("customer", events, (orders,), place)
    return RuleSet((parent,), "abcdef012345", {"customers": parent}, {"customer": parent})


def batch_of(events: int) -> tuple[Batch, list[Effect]]:
    changes = tuple(
        ParentChange("customer", Op.DELETED, (i % 500,), None, Version(0, (i,)), Origin("customers", 0, i, 1), 1)
        for i in range(events)
    )
    effects = [Effect(i, "customer.orders", "cascade", Outcome.APPLIED, i) for i in range(events)]
    return Batch(changes, {}, int(time.time() * 1000), "0af7651916cd43dd8448eb211c80319c"), effects


async def read(kafka: KafkaServer, topic: str, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", metadata_max_age_ms=200
    )
    await consumer.start()
    try:
        consumer.subscribe([topic])
        found: list[Any] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        assert sum((await consumer.end_offsets(partitions)).values()) == count
        return found
    finally:
        await consumer.stop()


class Dropped:
    def __init__(self) -> None:
        self.records = 0

    def __call__(self, records: int) -> None:
        self.records += records


async def test_every_effect_arrives_once_and_each_key_in_order(kafka: KafkaServer, topic_name: str) -> None:
    dropped = Dropped()
    trail = AuditTrail({"bootstrap_servers": kafka.bootstrap_servers}, rule_set(), topic=topic_name, on_dropped=dropped)
    trail.start()
    batch, effects = batch_of(EVENTS)
    for start in range(0, EVENTS, 700):
        trail.write(batch, effects[start : start + 700], 1.5)
        await asyncio.sleep(0.01)
    await trail.close(Deadline.after(20))
    assert dropped.records == 0
    records = await read(kafka, topic_name, EVENTS)
    values = [json.loads(record.value) for record in records]
    assert sorted(value["offset"] for value in values) == list(range(EVENTS))
    assert len({value["id"] for value in values}) == EVENTS
    by_key: dict[int, list[tuple[int, int]]] = {}
    for record, value in zip(records, values, strict=True):
        by_key.setdefault(value["key"]["id"], []).append((record.partition, value["offset"]))
    for places in by_key.values():
        assert len({partition for partition, _ in places}) == 1
        assert places == sorted(places)


async def test_the_topic_is_used_as_it_is_with_all_its_partitions_and_its_limit(
    kafka: KafkaServer, create_topic: CreateTopic
) -> None:
    topic = await create_topic(partitions=5, config={"max.message.bytes": "20000"})
    dropped = Dropped()
    trail = AuditTrail({"bootstrap_servers": kafka.bootstrap_servers}, rule_set(), topic=topic, on_dropped=dropped)
    trail.start()
    trail.write(*batch_of(EVENTS), 1.5)
    await trail.close(Deadline.after(20))
    assert dropped.records == 0
    assert {record.partition for record in await read(kafka, topic, EVENTS)} == set(range(5))


async def test_a_dead_broker_neither_blocks_nor_raises_and_the_drops_are_counted() -> None:
    from integrity.demo.servers.process import free_port

    dropped = Dropped()
    trail = AuditTrail(
        {"bootstrap_servers": f"127.0.0.1:{free_port()}"},
        rule_set(),
        topic="integrity.audit",
        on_dropped=dropped,
        queue_records_max=EVENTS,
    )
    trail.start()
    batch, effects = batch_of(EVENTS)
    for _ in range(50):
        trail.write(batch, effects, 1.5)
        await asyncio.sleep(0.01)
    assert dropped.records == 49 * EVENTS
    async with asyncio.timeout(HANGS_S):
        await trail.close(Deadline.after(1))
    assert dropped.records == 50 * EVENTS


async def test_a_hung_broker_delays_closing_by_no_more_than_the_deadline() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    dropped = Dropped()
    trail = AuditTrail(
        {"bootstrap_servers": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"},
        rule_set(),
        topic="integrity.audit",
        on_dropped=dropped,
    )
    trail.start()
    trail.write(*batch_of(10), 1.5)
    await asyncio.sleep(0.2)
    async with asyncio.timeout(HANGS_S):
        await trail.close(Deadline.after(0.5))
    assert dropped.records == 10
    server.close()


async def test_what_waits_while_the_broker_is_frozen_arrives_after_it(topic_name: str) -> None:
    kafka = KafkaServer()
    await asyncio.to_thread(kafka.start)
    try:
        dropped = Dropped()
        trail = AuditTrail(
            {"bootstrap_servers": kafka.bootstrap_servers}, rule_set(), topic=topic_name, on_dropped=dropped
        )
        trail.start()
        batch, effects = batch_of(30)
        trail.write(batch, effects[:10], 1.5)
        await read(kafka, topic_name, 10)
        kafka.suspend()
        trail.write(batch, effects[10:20], 1.5)
        await asyncio.sleep(3)
        trail.write(batch, effects[20:], 1.5)
        kafka.resume()
        records = await read(kafka, topic_name, 30)
        assert [
            json.loads(record.value)["offset"]
            for record in sorted(records, key=lambda r: json.loads(r.value)["offset"])
        ] == list(range(30))
        await trail.close(Deadline.after(10))
        assert dropped.records == 0
    finally:
        await asyncio.to_thread(kafka.stop)


async def test_the_loop_is_never_held_for_long_while_the_audit_is_encoded(kafka: KafkaServer, topic_name: str) -> None:
    """A lane polls and works in the same loop."""
    dropped = Dropped()
    trail = AuditTrail({"bootstrap_servers": kafka.bootstrap_servers}, rule_set(), topic=topic_name, on_dropped=dropped)
    trail.start()
    batch, effects = batch_of(20_000)
    trail.write(batch, effects[:1], 1.5)
    await asyncio.sleep(1)
    trail.write(batch, effects[1:], 1.5)
    waits: list[float] = []
    # A full collection walks through all that the test run holds, which has nothing to do with the audit.
    gc.disable()
    try:
        async with asyncio.timeout(30):
            while trail._waiting:
                began = time.thread_time()
                await asyncio.sleep(0)
                waits.append(time.thread_time() - began)
    finally:
        gc.enable()
    await trail.close(Deadline.after(10))
    assert dropped.records == 0
    # Processor time, since others use the machine too. All at once it takes 0.1 s and more, a slice a few milliseconds.
    assert max(waits) < 0.05
