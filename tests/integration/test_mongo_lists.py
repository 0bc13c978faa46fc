"""Lists of keys in real documents: an element is exactly its key or nothing, and everything else stays as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import bson
import pytest
import pytest_asyncio
from bson import Binary, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.raw_bson import RawBSONDocument

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Applied, Rejected, Retry
from integrity.core.rules.model import Action, Cascade, Nullify, SetDefault
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.mongo.lists import ListEnforcer
from integrity.stores.mongo.query import EXACT, referencing, within_reach
from integrity.stores.mongo.values import CODECS
from integrity.stores.rule import StoreRule
from tests.contract.world import Events, rule
from tests.integration.mongo_shop import Document, Shop, apply

pytestmark = pytest.mark.servers

UUID_A = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")


@pytest_asyncio.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


def listed(on_delete: Action, on_update: Action | None = None, path: str = "ids", **more: Any) -> StoreRule:
    return rule(on_delete, on_update, columns=(path,), array=True, **more)


ODD: list[object] = [
    None, True, "5", [5], [[5]], {"id": 5}, {"$gt": ""}, 5.000000000000001, float("nan"), float("-inf"),
    Decimal128("NaN"), Binary(b"5", 0), Binary(b"5", 5), Binary(UUID_A.bytes, 3), UUID_A, Regex("5", "i"), MinKey(),
    MaxKey(), Timestamp(5, 1), DatetimeMS(2**60), datetime(2024, 1, 1, tzinfo=UTC), ObjectId(b"0" * 12),
    Int64(6), 6.0, Decimal128("6.00"), -0.0, {"b": 1, "a": Int64(1)}, bson.DBRef("customers", 5), "",
]  # fmt: skip


async def test_only_elements_that_are_the_key_are_acted_on_and_the_rest_keeps_its_bytes(shop: Shop) -> None:
    mine = [5, Int64(5), 5.0, Decimal128("5"), Decimal128("5.00")]
    mixed = [each for pair in zip(ODD, [*mine, *[5] * len(ODD)], strict=False) for each in pair]
    documents: list[Document] = [
        {"_id": "removed", "kind": "a", "ids": mixed},
        {"_id": "odd only", "kind": "a", "ids": ODD},
        {"_id": "scalar", "kind": "a", "ids": 5},
        {"_id": "document", "kind": "a", "ids": {"0": 5}},
        {"_id": "missing", "kind": "a"},
        {"_id": "null", "kind": "a", "ids": None},
    ]
    store = await shop.open(listed(Cascade()), documents={"orders": documents})
    raw = shop.db.orders.with_options(codec_options=CODECS.with_options(document_class=RawBSONDocument))
    before = {document["_id"]: document.raw async for document in raw.find()}
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [len(ODD)]
    after = {document["_id"]: document.raw async for document in raw.find()}
    left = bson.encode({"_id": "removed", "kind": "a", "ids": ODD}, codec_options=CODECS)
    assert after == before | {"removed": left}


async def test_new_key_keeps_the_number_type_of_the_element_it_replaces(shop: Shop) -> None:
    stored = [5, Int64(5), 5.0, Decimal128("5.0")]
    store = await shop.open(listed(Cascade()), documents={"orders": [{"_id": 1, "ids": stored}]})
    events = Events()
    events.moved((5,), (7,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    found = (await shop.all())[1]["ids"]
    assert [(type(each), each) for each in found] == [(int, 7), (Int64, 7), (float, 7.0), (Decimal128, Decimal128("7"))]


@pytest.mark.parametrize("action", [Nullify(("ids",)), SetDefault({"ids": None})])
async def test_null_never_comes_into_a_list(shop: Shop, action: Action) -> None:
    store = await shop.open(listed(action, Nullify(("ids",))), documents={"orders": [{"_id": 1, "ids": [5, 6, 7]}]})
    events = Events()
    events.deleted((5,), 10)
    events.moved((6,), (8,), 11)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.all() == {1: {"ids": [7]}}


async def test_path_to_a_list_leads_through_documents_only(shop: Shop) -> None:
    documents: list[Document] = [
        {"_id": "mine", "meta": {"ids": [5, 6], "ids_": [5]}, "ids": [5]},
        {"_id": "list on the way", "meta": [{"ids": [5]}]},
        {"_id": "list of documents", "meta": {"ids": [{"id": 5}]}},
    ]
    store = await shop.open(listed(Cascade(), path="meta.ids"), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    found = await shop.all()
    assert found["mine"] == {"meta": {"ids": [6], "ids_": [5]}, "ids": [5]}
    assert found["list on the way"] == {"meta": [{"ids": [5]}]}
    assert found["list of documents"] == {"meta": {"ids": [{"id": 5}]}}


async def test_rule_without_array_does_not_reach_into_a_list_of_documents(shop: Shop) -> None:
    documents: list[Document] = [{"_id": "list", "items": [{"id": 5}]}, {"_id": "mine", "items": {"id": 5}}]
    store = await shop.open(rule(Cascade(), columns=("items.id",)), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.ids() == ["list"]


async def test_list_of_texts_in_a_collection_that_ignores_case(shop: Shop) -> None:
    await shop.db.create_collection("orders", collation={"locale": "en", "strength": 1})
    await shop.db.orders.create_index("ids", collation={"locale": "simple"})
    await shop.db.orders.insert_many([{"_id": "a", "ids": ["abc", "ABC", "äbc"]}, {"_id": "b", "ids": ["ABC"]}])
    store = shop.store(listed(Cascade(), spec=KeySpec((("id", KeyType.STRING),))))
    await store.migrate(Deadline.after(10))
    assert list(await store.check(Deadline.after(10))) == []
    events = Events()
    events.deleted(("abc",), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.all() == {"a": {"ids": ["ABC", "äbc"]}, "b": {"ids": ["ABC"]}}


async def test_list_that_could_not_be_written_back_is_rejected_and_kept(shop: Shop) -> None:
    """BSON's type "undefined" is read as null."""
    undefined = bson.encode({"_id": 1, "ids": [None, 5]}).replace(b"\x0a0\x00", b"\x060\x00")
    store = await shop.open(listed(Cascade()), documents={"orders": [{"_id": 2, "ids": [5]}]})
    await shop.db.orders.with_options(codec_options=CODECS.with_options(document_class=RawBSONDocument)).insert_one(
        RawBSONDocument(undefined)
    )
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Rejected)
    assert (result.dependent, result.reason) == ("customer.orders", Reason.VALUE_REJECTED)
    assert (await shop.all())[2] == {"ids": [5]}


async def test_owner_that_adds_to_the_list_meanwhile_loses_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await shop.open(listed(Cascade()), documents={"orders": [{"_id": 1, "ids": [5, 6]}]})
    write = ListEnforcer._write

    async def after_the_owner(self: ListEnforcer, statements: Any) -> None:
        monkeypatch.setattr(ListEnforcer, "_write", write)
        await shop.db.orders.update_one({"_id": 1}, {"$push": {"ids": 7}})
        await write(self, statements)

    monkeypatch.setattr(ListEnforcer, "_write", after_the_owner)
    events = Events()
    events.deleted((5,), 10)
    batch = events.batch()
    assert isinstance(await apply(store, batch), Retry)
    assert isinstance(await apply(store, batch), Applied)
    assert await shop.all() == {1: {"ids": [6, 7]}}


async def test_look_up_of_lists_uses_the_index(shop: Shop) -> None:
    one = listed(Cascade(), path="meta.ids", where={"archived_at": None})
    await shop.db.orders.create_index("meta.ids")
    await shop.db.orders.insert_many([{"meta": {"ids": [n, n + 1, 10_000]}} for n in range(0, 2_000, 2)])
    keys = {(n,): (n,) for n in range(0, 20, 2)}
    filter_ = {"$and": [referencing(one.dependent.columns, keys), *within_reach(one.dependent)]}
    command = {"find": "orders", "filter": filter_, "collation": EXACT.document}
    plan = await shop.db.command("explain", command, verbosity="executionStats")
    assert plan["executionStats"]["nReturned"] == plan["executionStats"]["totalDocsExamined"] == 10


async def test_more_keys_than_one_filter_takes_act_on_a_list_once(shop: Shop) -> None:
    keys = list(range(2_500))
    store = await shop.open(listed(Cascade()), documents={"orders": [{"_id": 1, "ids": [*keys, 9_999]}]})
    events = Events()
    for key in keys:
        events.deleted((key,), 10 + key)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and sum(e.rows for e in result.effects) == len(keys)
    assert await shop.all() == {1: {"ids": [9_999]}}
