"""A topic has no compare-and-set: what its owner writes between look and act is found again, and mended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from integrity.core.rules.model import Cascade, Nullify
from integrity.demo.servers import KafkaServer
from integrity.ports import Deadline
from integrity.stores.topic import TopicStore
from integrity.stores.topic.writer import Writer
from tests.conftest import CreateTopic
from tests.contract.world import Events, apply
from tests.integration.topic_shop import SOURCE, Shop, shop, topic_rule

pytestmark = pytest.mark.servers

CHILD = b'{"customer_id":7,"qty":1}'


@pytest_asyncio.fixture
async def carts(kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Shop]:
    async with shop({"bootstrap_servers": kafka.bootstrap_servers}, create_topic) as made:
        await made.put(b"k", CHILD)
        await made.put(b"other", CHILD, 1)
        yield made


def deleted(key: int) -> Events:
    events = Events()
    events.deleted((key,), at=10)
    return events


async def enforce_while_owner_writes(
    carts: Shop, store: TopicStore, monkeypatch: pytest.MonkeyPatch, value: bytes | None
) -> None:
    """Apply the deletion of 7, with a write of the owner after the store has looked and before it acts."""
    begin = Writer.begin

    async def interrupted(self: Writer) -> None:
        monkeypatch.setattr(Writer, "begin", begin)
        await carts.put(b"k", value)
        await begin(self)

    monkeypatch.setattr(Writer, "begin", interrupted)
    effects = await apply(store, deleted(7).batch())
    assert [effect.rows for effect in effects] == [2]


async def settled(store: TopicStore) -> None:
    """Wait until the background task has read on."""
    async with asyncio.timeout(20):
        while store._wake.is_set() or store._lock.locked():
            await asyncio.sleep(0.01)


async def test_owner_that_turned_to_another_parent_gets_its_record_back(
    carts: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    new = b'{"customer_id": 8, "qty":2}'
    with caplog.at_level(logging.WARNING, logger="integrity"):
        await enforce_while_owner_writes(carts, store, monkeypatch, new)
        await settled(store)
    assert await carts.rows() == {(0, b"k"): new}
    assert store.repairs == 1
    (logged,) = [record for record in caplog.records if getattr(record, "action", "") == "repair"]
    assert logged.levelno == logging.WARNING
    events = deleted(7)
    events.batch()
    events.deleted((8,), at=20)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1, "the record that came back is a child like any other"
    assert store.repairs == 1


async def test_owner_that_still_references_the_deleted_parent_goes_the_same_way(
    carts: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    await enforce_while_owner_writes(carts, store, monkeypatch, b'{"customer_id":7,"qty":2}')
    await settled(store)
    assert await carts.rows() == {}
    assert store.repairs == 0


async def test_owners_other_fields_survive_a_rewrite(carts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await carts.store(topic_rule(carts.topic, Nullify(("customer_id",))))
    await enforce_while_owner_writes(carts, store, monkeypatch, b'{"qty":2, "customer_id":7}')
    await settled(store)
    assert (await carts.rows())[0, b"k"] == b'{"qty":2, "customer_id":null}'
    assert store.repairs == 1


async def test_child_that_its_owner_deleted_is_not_brought_back(carts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await carts.store(topic_rule(carts.topic, Nullify(("customer_id",))))
    await enforce_while_owner_writes(carts, store, monkeypatch, None)
    await settled(store)
    assert sorted(await carts.rows()) == [(1, b"other")]
    assert store.repairs == 1


async def test_process_that_takes_over_mends_what_its_predecessor_hid(
    carts: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = topic_rule(carts.topic, Cascade())
    first = await carts.store(rule)
    await settled(first)
    assert first._attendant is not None
    first._attendant.cancel()
    await asyncio.wait({first._attendant})
    first._attendant = None
    new = b'{"customer_id":8}'
    await enforce_while_owner_writes(carts, first, monkeypatch, new)
    await first.close()
    assert await carts.rows() == {}
    second = await carts.store(rule)
    await settled(second)
    assert await carts.rows() == {(0, b"k"): new}
    assert second.repairs == 1
    third = await carts.store(rule)
    await settled(third)
    assert third.repairs == 0, "once"


async def test_mend_that_failed_is_made_by_the_next_try(carts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    await settled(store)
    new = b'{"customer_id":8}'
    commit, commits = Writer.commit, 0

    async def failing(self: Writer) -> None:
        nonlocal commits
        commits += 1
        if commits == 2:
            raise ConnectionError("rigged")
        await commit(self)

    monkeypatch.setattr(Writer, "commit", failing)
    await enforce_while_owner_writes(carts, store, monkeypatch, new)
    await settled(store)
    assert (commits, store.repairs) == (2, 0)
    await store.progress(SOURCE, Deadline.after(20))
    await settled(store)
    assert store.repairs == 1
    assert await carts.rows() == {(0, b"k"): new}
