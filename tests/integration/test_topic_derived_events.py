"""What a topic store tells others of its rows that are parents: derived events, in the transaction of the effects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.partitioner import murmur2

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Applied, Rejected
from integrity.core.policy import policy_of
from integrity.core.rules.graph import derived_topic
from integrity.core.rules.model import Cascade, Dependent, Nullify, Target, TargetKind
from integrity.demo.servers import KafkaServer
from integrity.ports import Deadline
from integrity.stores.rule import StoreRule, rows
from tests.conftest import CreateTopic
from tests.contract.world import Events
from tests.integration.topic_shop import INT, PLACE, Shop, shop, topic_rule

pytestmark = pytest.mark.servers
LINE = KeySpec((("customer_id", KeyType.INT64), ("id", KeyType.INT64)))
PARTITIONS = 3


@pytest_asyncio.fixture
async def carts(kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Shop]:
    async with shop({"bootstrap_servers": kafka.bootstrap_servers}, create_topic) as made:
        yield made


@pytest_asyncio.fixture
async def entity(unique_name: Callable[[str], str], create_topic: CreateTopic) -> str:
    """The entity that the lines of carts are, with its topic of derived events."""
    name = unique_name("line")
    await create_topic(derived_topic(name), partitions=PARTITIONS)
    return name


def lines(topic: str, entity: str) -> StoreRule:
    """Lines of a customer's cart: their key holds the customer's."""
    target = Target(TargetKind.TOPIC, topic)
    dependent = Dependent(
        "customer.carts", "carts", "shop", target, {"customer_id": "id"}, Cascade(), Cascade(), {}, PLACE,
        entity=entity, key=LINE,
    )  # fmt: skip
    found = rows(entity, LINE, dependent.columns, recorded=True, published=True)
    return StoreRule("customer", dependent, INT, policy_of(dependent, INT), found)


async def put_lines(carts: Shop, *lines: tuple[int, int]) -> None:
    for customer, line in lines:
        await carts.put(b"%d" % line, json.dumps({"customer_id": customer, "id": line}).encode())


async def told(carts: Shop, entity: str) -> list[dict[str, Any]]:
    """What readers of committed records are told, each key's records in their order. A key keeps its partition."""
    found = []
    for record in await carts.records(derived_topic(entity)):
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS
        found.append(json.loads(record.value))
    return sorted(found, key=lambda event: (event["key"], event["version"]))


async def test_removed_rows_are_told_once_however_often_the_batch_comes(carts: Shop, entity: str) -> None:
    await put_lines(carts, (1, 10), (1, 11), (2, 20))
    events = Events()
    events.deleted((1,), at=10)
    batch = events.batch()
    store = await carts.store(lines(carts.topic, entity))
    assert isinstance(await store.apply(batch, Deadline.after(30)), Applied)
    again = await carts.store(lines(carts.topic, entity))
    assert isinstance(await again.apply(batch, Deadline.after(30)), Applied)
    assert [(each["op"], each["key"], each["to"], each["version"]) for each in await told(carts, entity)] == [
        ("deleted", [1, 10], None, [0, 1]),
        ("deleted", [1, 11], None, [0, 1]),
    ]
    assert sorted(await carts.rows()) == [(0, b"20")]


async def test_key_change_is_told_under_both_keys_with_versions_that_go_on(carts: Shop, entity: str) -> None:
    await put_lines(carts, (1, 10))
    store = await carts.store(lines(carts.topic, entity))
    events = Events()
    events.moved((1,), (5,), at=10)
    await store.apply(events.batch(), Deadline.after(30))
    events.deleted((5,), at=20)
    await store.apply(events.batch(), Deadline.after(30))
    assert [(each["op"], each["key"], each["to"], each["version"]) for each in await told(carts, entity)] == [
        ("key_changed", [1, 10], [5, 10], [0, 1]),
        ("arrived", [5, 10], None, [0, 1]),
        ("deleted", [5, 10], None, [0, 2]),
    ]


async def test_nothing_is_told_of_a_batch_that_is_refused(carts: Shop, entity: str, create_topic: CreateTopic) -> None:
    """The other dependent's records are envelopes, which are never written again: nothing of the batch stays."""
    other = await create_topic(partitions=1, config={"cleanup.policy": "compact"})
    envelope = b'{"before":null,"after":{"customer_id":1},"source":{"lsn":5},"op":"c","ts_ms":1}'
    await carts.owner.send_and_wait(other, envelope, b"k")
    await put_lines(carts, (1, 10))
    store = await carts.store(lines(carts.topic, entity), topic_rule(other, Nullify(("customer_id",)), name="shadows"))
    events = Events()
    events.deleted((1,), at=10)
    assert isinstance(await store.apply(events.batch(), Deadline.after(30)), Rejected)
    assert await told(carts, entity) == []
    assert sorted(await carts.rows()) == [(0, b"10")]
