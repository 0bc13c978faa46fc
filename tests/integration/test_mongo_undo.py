"""Documents of a live MongoDB that are put back: byte for byte, and only where they are as the event left them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Rejected
from integrity.core.rules.model import Cascade, EventValue, Tombstone
from integrity.core.undo import Choice, Portion, Verdict
from integrity.ports import Deadline
from integrity.stores.mongo.values import CODECS
from tests.contract.undoing import ORDERS, event, kept, undo
from tests.contract.world import AT_MS, Events, apply
from tests.integration.mongo_shop import Document, Shop

pytestmark = pytest.mark.servers

NESTED = KeySpec((("id", KeyType.INT64),))
ODD: Document = {
    "z": 1,
    "a": [1, 2.0, Int64(3), Decimal128("1.10"), None, {"b": []}],
    "re": Regex("^x", "i"),
    "bin": Binary(b"\0\1", 5),
    "old_uuid": Binary(bytes(range(16)), 3),
    "code": Code("f()", {"x": 1}),
    "ts": Timestamp(5, 6),
    "max": MaxKey(),
    "nan": float("nan"),
    "at": datetime(2024, 2, 29, 1, 2, 3, 456000, tzinfo=UTC),
    "": "empty name",
}


@pytest.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


async def raws(shop: Shop) -> list[bytes]:
    collection: Any = shop.db["orders"].with_options(codec_options=CODECS.with_options(document_class=RawBSONDocument))
    return [document.raw async for document in collection.find().sort("customer.id", 1).sort("_id", 1)]


async def deleted(store: Any) -> None:
    events = Events()
    events.moved((1,), (2,), 5)
    events.deleted((2,), 10, partition=1)
    await apply(store, events.batch())


async def test_documents_come_back_byte_for_byte_under_any_id(shop: Shop) -> None:
    documents: list[Document] = [
        {"_id": id_, "customer": {"name": "x", "id": 2}, **ODD}
        for id_ in (ObjectId(), 7, "seven", {"a": 1, "b": 2}, datetime(2024, 1, 1, tzinfo=UTC), Binary(b"x"))
    ]
    store = await shop.open(kept(Cascade(), columns=("customer.id",)), documents={"orders": documents})
    before = await raws(shop)
    await deleted(store)
    assert await raws(shop) == []
    assert await undo(store, event(0, partition=1)) == {(ORDERS, Verdict.PUT_BACK): len(documents)}
    assert await raws(shop) == before


async def test_document_that_is_there_again_stays_and_the_others_come_back(shop: Shop) -> None:
    documents: list[Document] = [{"_id": n, "customer": {"id": 2.0}} for n in (1, 2)]
    store = await shop.open(kept(Cascade(), columns=("customer.id",)), documents={"orders": documents})
    await deleted(store)
    await shop.db["orders"].insert_one({"_id": 1, "new": True})
    found = await undo(store, event(0, partition=1))
    assert found == {(ORDERS, Verdict.EXISTS): 1, (ORDERS, Verdict.PUT_BACK): 1}
    assert await shop.all() == {1: {"new": True}, 2: {"customer": {"id": 2.0}}}


async def test_fields_that_were_not_there_are_taken_away_again_and_types_come_back(shop: Shop) -> None:
    mark = Tombstone({"gone.at": EventValue.TIME, "gone.by": EventValue.ID, "state": "gone"})
    documents: list[Document] = [
        {"_id": 1, "customer_id": Int64(1), "gone": {"why": "?"}},
        {"_id": 2, "customer_id": 1.0, "gone": {"by": None}, "state": {"a": 1}},
        {"_id": 3, "customer_id": Decimal128("1.00"), "gone": {}},
        {"_id": 4, "customer_id": 2, "gone": {}},
    ]
    store = await shop.open(kept(mark), documents={"orders": documents})
    before = await raws(shop)
    await deleted(store)
    await shop.db["orders"].update_one({"_id": 4}, {"$set": {"state": "kept"}})
    assert await undo(store, event(0, partition=1)) == {(ORDERS, Verdict.PUT_BACK): 3, (ORDERS, Verdict.CHANGED): 1}
    assert [document["customer_id"] for document in (await shop.all()).values()] == [2, 2.0, Decimal128("2"), 2]
    assert await undo(store, event(0)) == {(ORDERS, Verdict.PUT_BACK): 3}
    assert (await raws(shop))[:3] == before[:3]


async def test_what_a_unique_index_refuses_changes_nothing(shop: Shop) -> None:
    documents: list[Document] = [{"_id": n, "customer_id": 2, "number": n} for n in (1, 2)]
    store = await shop.open(kept(Cascade()), documents={"orders": documents})
    await shop.db["orders"].create_index("number", unique=True)
    await deleted(store)
    await shop.db["orders"].insert_one({"_id": 9, "number": 1})
    found = await store.put_back(Portion(Choice(event(0, partition=1)), 10, AT_MS + 1), Deadline.after(30))
    assert isinstance(found, Rejected)
    assert "a unique index refuses" in found.message
    assert await shop.ids() == [9]
    assert await shop.count("undo") == 2
