"""The graph in a live MongoDB: long chains of documents that refer to one another."""

from __future__ import annotations

import sys

import pytest
from bson import Int64

from integrity.core.outcome import Applied, Retry
from integrity.ports import Deadline
from tests.contract.graph_rules import comments
from tests.contract.world import Events
from tests.integration.mongo_shop import Shop, apply

pytestmark = pytest.mark.servers
LENGTH = 10_000
TEXT = "x" * 4_000


async def test_chain_of_ten_thousand_documents_is_removed_in_one_transaction(mongo_database: str) -> None:
    """It neither recurses nor reads more of the documents than their keys."""
    shop = Shop(mongo_database)
    await shop.db["comments"].insert_many(
        [{"id": 1, "customer_id": 1, "text": TEXT}]
        + [{"id": n, "answers_id": n - 1, "text": TEXT} for n in range(2, LENGTH + 1)]
    )
    store = await shop.open(*comments())
    admin = shop.client.admin
    sent = (await admin.command("serverStatus"))["network"]["bytesOut"]
    events = Events()
    events.deleted((1,), 10)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    try:
        result = await store.apply(events.batch(), Deadline.after(30))
    finally:
        sys.setrecursionlimit(limit)
    assert isinstance(result, Applied)
    assert sorted((effect.dependent, effect.rows) for effect in result.effects) == [
        ("comment.answers", LENGTH - 1),
        ("customer.comments", 1),
    ]
    sent = (await admin.command("serverStatus"))["network"]["bytesOut"] - sent
    assert sent < LENGTH * len(TEXT) / 2
    assert await shop.ids("comments") == []
    assert await shop.db["integrity.keys"].count_documents({"entity": "comment"}) == LENGTH
    await shop.close()


async def test_server_that_refuses_to_look_far_ahead_is_asked_level_by_level(mongo_database: str) -> None:
    """It has a limit of memory for that, and does not look through every collection."""
    shop = Shop(mongo_database)
    await shop.db["comments"].insert_many(
        [{"id": 1, "customer_id": 1}] + [{"id": n, "answers_id": n - 1} for n in range(2, 11)]
    )
    store = await shop.open(*comments())
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    async with shop.failing(["aggregate"], "alwaysOn", errorCode=292):
        assert isinstance(await apply(store, batch), Retry)
        assert isinstance(await apply(store, batch), Applied)
    assert await shop.ids("comments") == []
    await shop.close()


async def test_look_ahead_finds_what_a_look_at_each_level_finds(mongo_database: str) -> None:
    """Numbers of other types are the same key; lists, texts and nulls are none."""
    shop = Shop(mongo_database)
    below = [{"id": 2, "answers_id": 1.0}, {"id": Int64(3), "answers_id": Int64(2)}, {"id": 4.0, "answers_id": 3}]
    others = [{"id": 12, "answers_id": [1]}, {"id": [13], "answers_id": 4}, {"id": 14, "answers_id": "4"}]
    others += [{"id": 15, "answers_id": 13}, {"answers_id": 4}, {"id": 17}, {"id": 18, "answers_id": None}]
    await shop.db["comments"].insert_many([{"id": 1, "customer_id": 1}, *below, *others])
    store = await shop.open(*comments())
    events = Events()
    events.deleted((1,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied)
    left = [document.get("id") async for document in shop.db["comments"].find().sort("_id", 1)]
    assert left == [12, 14, 15, 17, 18]
    await shop.close()
