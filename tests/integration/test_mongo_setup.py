"""What `check` finds, and how `migrate` makes the ledger."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from bson import Binary, ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Action, Cascade, Ignore, Nullify, SetDefault
from integrity.demo.servers import MongoServer
from integrity.demo.servers.process import free_port
from integrity.errors import LedgerError, UnfitStoreError, UnreachableError
from integrity.ports import Deadline
from integrity.stores.mongo import MongoStore, fitness
from integrity.stores.mongo.query import EXACT, referencing, within_reach
from tests.contract.world import MARK, rule, rules_of
from tests.integration.mongo_shop import UNREACHABLE, Shop, collected

pytestmark = pytest.mark.servers

BOTH = KeySpec((("tenant", KeyType.INT64), ("code", KeyType.INT64)))


@pytest_asyncio.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


async def codes(store: MongoStore) -> list[tuple[str, str]]:
    return [(finding.code, finding.severity) for finding in await store.check(Deadline.after(10))]


async def test_ledger_is_missing_until_migrated_and_two_processes_may_migrate_at_once(shop: Shop) -> None:
    await shop.db.orders.create_index("customer_id")
    stores = [shop.store(rule(Cascade())) for _ in range(2)]
    assert await codes(stores[0]) == [("ledger_missing", "error")]
    for _ in range(2):
        await asyncio.gather(*(store.migrate(Deadline.after(10)) for store in stores))
    assert await codes(stores[1]) == []
    assert await shop.count("meta") == 1, "the probe leaves nothing behind"


async def test_newer_ledger_is_refused(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()))
    await shop.db["integrity.meta"].update_one({"_id": "ledger"}, {"$set": {"version": 99}})
    assert await codes(store) == [("ledger_newer", "error")]
    with pytest.raises(LedgerError):
        await store.migrate(Deadline.after(10))


async def test_commands_that_are_printed_name_everything_that_migrate_creates(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()))
    text = store.ddl()
    names = [name for name in await shop.db.list_collection_names() if name.startswith("integrity.")]
    assert len(names) == 13
    assert all(f"db.createCollection({json.dumps(name)});" in text for name in names)
    for name in names:
        async for index in await shop.db[name].list_indexes():
            if index["name"] != "_id_":
                fields = ", ".join(f"{field}: 1" for field in index["key"])
                assert f"db.getCollection({json.dumps(name)}).createIndex({{{fields}}}" in text
    assert text.startswith(f"use({json.dumps(shop.db.name)});")


async def test_collection_that_does_not_exist_is_a_warning(shop: Shop) -> None:
    store = shop.store(rule(Cascade()))
    await store.migrate(Deadline.after(10))
    assert await codes(store) == [("collection_missing", "warning")]


@pytest.mark.parametrize(
    ("fields", "options", "fits"),
    [
        ([("customer_tenant", 1), ("customer_code", 1)], {}, True),
        ([("customer_code", -1), ("customer_tenant", 1), ("other", 1)], {}, True),
        ([("region", 1), ("customer_tenant", 1), ("customer_code", 1)], {}, True),
        ([("other", 1), ("customer_tenant", 1), ("customer_code", 1)], {}, False),
        ([("customer_code", 1)], {}, False),
        ([("customer_tenant", 1), ("customer_code", 1)], {"partialFilterExpression": {"n": {"$gt": 5}}}, False),
        ([("customer_tenant", 1), ("customer_code", 1)], {"hidden": True}, False),
        ([("region", 1), ("customer_tenant", 1), ("customer_code", 1)], {"collation": {"locale": "en"}}, False),
    ],
)
async def test_reference_needs_an_index_that_serves_it(
    shop: Shop, fields: list[tuple[str, int]], options: dict[str, Any], fits: bool
) -> None:
    await shop.db.orders.create_index(fields, **options)
    store = shop.store(rule(Cascade(), spec=BOTH, where={"region": "eu"}))
    await store.migrate(Deadline.after(10))
    found = await store.check(Deadline.after(10))
    assert [finding.code for finding in found] == ([] if fits else ["index_missing"])
    if not fits:
        assert 'createIndex({"customer_tenant": 1, "customer_code": 1})' in found[0].hint


async def test_look_up_of_a_batch_uses_the_index(shop: Shop) -> None:
    one = rule(Cascade(), spec=BOTH, where={"archived_at": None})
    await shop.db.orders.create_index([("customer_tenant", 1), ("customer_code", 1)])
    await shop.db.orders.insert_many(
        [{"customer_tenant": t, "customer_code": c} for t in range(20) for c in range(100)]
    )
    keys = {(t, c): (t, c) for t in range(2) for c in range(10)}
    filter_ = {"$and": [referencing(one.dependent.columns, keys), *within_reach(one.dependent)]}
    command = {"find": "orders", "filter": filter_, "collation": EXACT.document}
    plan = await shop.db.command("explain", command, verbosity="executionStats")
    assert plan["executionStats"]["nReturned"] == 20
    assert plan["executionStats"]["totalDocsExamined"] == 20


@pytest.mark.parametrize(
    ("on_delete", "on_update", "expected"),
    [
        (Cascade(), Ignore(), []),
        (Cascade(), Cascade(), ["immutable_reference"]),
        (Nullify(("_id",)), Ignore(), ["immutable_reference"]),
    ],
)
async def test_action_that_would_change_an_id_is_refused(
    shop: Shop, on_delete: Action, on_update: Action, expected: list[str]
) -> None:
    await shop.db.create_collection("orders")
    store = shop.store(rule(on_delete, on_update, columns=("_id",)))
    await store.migrate(Deadline.after(10))
    assert [finding.code for finding in await store.check(Deadline.after(10))] == expected


async def test_view_and_capped_collection_are_refused(shop: Shop) -> None:
    await shop.db.create_collection("people", viewOn="orders", pipeline=[])
    await shop.db.create_collection("log", capped=True, size=4096)
    store = shop.store(rule(Cascade(), name="people"), rule(Cascade(), name="log"))
    await store.migrate(Deadline.after(10))
    assert await codes(store) == [("not_a_collection", "error")] * 2


async def test_time_series_are_refused(shop: Shop) -> None:
    await shop.db.create_collection("ticks", timeseries={"timeField": "at", "metaField": "customer_id"})
    store = shop.store(rule(Cascade(), name="ticks"))
    await store.migrate(Deadline.after(10))
    assert await codes(store) == [("not_a_collection", "error")]


DEFAULT = SetDefault({"customer_id": 0})


@pytest.mark.parametrize(
    ("key", "on_delete", "on_update", "found"),
    [
        ({"customer_id": 1}, Cascade(), Ignore(), []),
        ({"customer_id": 1}, Cascade(), Cascade(), ["on_update: cascade"]),
        ({"region": 1, "customer_id": "hashed"}, DEFAULT, Cascade(), ["on_delete: set_default", "on_update: cascade"]),
        ({"region": 1}, Cascade(), Cascade(), []),
        ({"deleted_at": 1, "region": 1}, MARK, Ignore(), ["on_delete: tombstone"]),
    ],
)
async def test_action_that_would_change_a_shard_key_is_refused(
    shop: Shop, key: dict[str, object], on_delete: Action, on_update: Action, found: list[str]
) -> None:
    """The router's catalogue, written by hand: it is read the same way on every server."""
    catalogue, name = shop.client["config"]["collections"], f"{shop.db.name}.orders"
    await shop.db.orders.create_index("customer_id")
    await catalogue.insert_one({"_id": name, "key": key})
    try:
        store = shop.store(rule(on_delete, on_update))
        await store.migrate(Deadline.after(10))
        findings = await store.check(Deadline.after(10))
        await catalogue.update_one({"_id": name}, {"$set": {"dropped": True}})
        assert await codes(store) == []
    finally:
        await catalogue.delete_one({"_id": name})
    assert {finding.code for finding in findings} <= {"shard_key_reference"}
    assert [finding.message.removeprefix("customer.orders: ").partition(" would")[0] for finding in findings] == found


@pytest.mark.parametrize(("sharded", "found"), [(True, ["shard_key_unknown"]), (False, [])])
async def test_shard_key_that_may_not_be_read_is_told_on_a_router_only(
    shop: Shop, sharded: bool, found: list[str]
) -> None:
    one = rule(Cascade())
    store = await shop.open(one)
    catalogue = store._ledger()
    async with shop.failing(["find"], "alwaysOn", errorCode=13, namespace="config.collections"):
        findings = await fitness.check(catalogue, one, {"type": "collection"}, sharded=sharded)
    assert [finding.code for finding in findings] == found


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"properties": {"customer_id": {"bsonType": "long"}}}, False),
        ({"properties": {"customer_id": {"bsonType": ["long", "null"]}}}, True),
        ({"properties": {"customer_id": {"type": "number"}}}, False),
        ({"properties": {"customer_id": {"enum": [1, 2]}}}, False),
        ({"properties": {"other": {"bsonType": "long"}}, "required": ["customer_id"]}, True),
        ({"required": ["customer_id"]}, True),
    ],
)
async def test_validator_that_takes_no_null_is_told_where_an_action_writes_one(
    shop: Shop, schema: dict[str, object], fits: bool
) -> None:
    await shop.db.create_collection("orders", validator={"$jsonSchema": schema})
    await shop.db.orders.create_index("customer_id")
    for on_delete, on_update, of in (
        (Nullify(("customer_id",)), Cascade(), "on_delete"),
        (Cascade(), SetDefault({"customer_id": None}), "on_update"),
        (Cascade(), DEFAULT, None),
    ):
        store = shop.store(rule(on_delete, on_update))
        await store.migrate(Deadline.after(10))
        findings = await store.check(Deadline.after(10))
        assert [f.code for f in findings] == ([] if fits or of is None else ["field_not_null"])
        assert all(str(of) in f.message for f in findings)


@pytest.mark.parametrize(
    ("kind", "array", "value", "said"),
    [
        (KeyType.INT64, False, "5", "text"),
        (KeyType.INT64, False, [5], "array: true"),
        (KeyType.INT64, False, True, "a truth value"),
        (KeyType.STRING, False, 5, "a number"),
        (KeyType.UUID, False, Binary(b"0" * 16, 3), "subtype 4"),
        (KeyType.OBJECTID, False, "64b000000000000000000001", "text"),
        (KeyType.INT64, True, 5, "a single value"),
        (KeyType.INT64, True, [5, "6"], "text"),
    ],
)
async def test_values_that_no_key_equals_are_told(
    shop: Shop, kind: KeyType, array: bool, value: object, said: str
) -> None:
    good: object = {KeyType.INT64: 5, KeyType.STRING: "a", KeyType.UUID: UUID(int=1)}.get(kind, ObjectId())
    documents = [{"customer_id": value}, {"customer_id": [good] if array else good}, {"customer_id": None}, {}]
    await shop.db.orders.create_index("customer_id")
    await shop.db.orders.insert_many(documents)
    store = shop.store(rule(Cascade(), spec=KeySpec((("id", kind),)), array=array))
    await store.migrate(Deadline.after(10))
    [finding] = await store.check(Deadline.after(10))
    assert (finding.code, finding.severity) == ("reference_types", "warning")
    assert "Of the first 4 documents of orders, 1 hold" in finding.message
    assert said in finding.message + finding.hint


async def test_list_of_documents_on_the_way_is_told(shop: Shop) -> None:
    await shop.db.orders.create_index("items.customer_id")
    await shop.db.orders.insert_one({"items": [{"customer_id": 5}]})
    store = shop.store(rule(Cascade(), columns=("items.customer_id",)))
    await store.migrate(Deadline.after(10))
    [finding] = await store.check(Deadline.after(10))
    assert finding.code == "reference_types" and "a list of documents" in finding.message


@pytest.mark.parametrize(
    ("kind", "index", "options", "fits"),
    [
        (KeyType.INT64, {"customer_id": "hashed"}, {}, True),
        (KeyType.INT64, {"customer_id": "2dsphere"}, {}, False),
        (KeyType.INT64, {"customer_id": 1}, {"collation": {"locale": "en"}}, True),
        (KeyType.STRING, {"customer_id": 1}, {"collation": {"locale": "en"}}, False),
    ],
)
async def test_index_that_check_accepts_is_one_that_serves_a_look_up(
    shop: Shop, kind: KeyType, index: dict[str, object], options: dict[str, Any], fits: bool
) -> None:
    await shop.db.orders.create_index(list(index.items()), **options)
    one = rule(Cascade(), spec=KeySpec((("id", kind),)))
    if index["customer_id"] != "2dsphere":
        await shop.db.orders.insert_many([{"customer_id": n if kind is KeyType.INT64 else f"{n}"} for n in range(100)])
        part = 7 if kind is KeyType.INT64 else "7"
        filter_ = {"$and": [referencing(one.dependent.columns, {(7,): [part]}), *within_reach(one.dependent)]}
        command = {"find": "orders", "filter": filter_, "collation": EXACT.document}
        plan = await shop.db.command("explain", command, verbosity="executionStats")
        assert plan["executionStats"]["nReturned"] == 1
        assert (plan["executionStats"]["totalDocsExamined"] == 1) is fits
    store = shop.store(one)
    await store.migrate(Deadline.after(10))
    assert [finding.code for finding in await store.check(Deadline.after(10))] == ([] if fits else ["index_missing"])


async def test_missing_privilege_is_told(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()))
    async with shop.failing(["listCollections"], "alwaysOn", errorCode=13):
        with pytest.raises(UnfitStoreError, match="lacks a privilege"):
            await store.check(Deadline.after(10))


async def test_server_that_refuses_transactions_is_refused(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()))
    async with shop.failing(["insert"], "alwaysOn", errorCode=20):
        assert await codes(store) == [("no_transactions", "error")]


async def test_server_that_answers_an_abort_and_keeps_the_write_is_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As imitations of MongoDB do: commit and abort are answered, and neither does anything."""
    store = await shop.open(rule(Cascade()))
    monkeypatch.setattr(AsyncClientSession, "abort_transaction", AsyncClientSession.commit_transaction)
    assert await codes(store) == [("no_transactions", "error")]


@UNREACHABLE
async def test_member_that_is_asked_directly_has_transactions(mongo: MongoServer) -> None:
    directly = mongo.url("alone").replace("replicaSet=rs0", "directConnection=true")
    store = MongoStore("shop", directly, rules_of(rule(Cascade())), lane="integrity.shop")
    with collected():
        assert ("no_transactions", "error") not in await codes(store)
        await store.close()


@UNREACHABLE
async def test_unreachable_server_is_one_sentence_without_credentials() -> None:
    url = f"mongodb://app:s3cret@127.0.0.1:{free_port()}/shop"
    store = MongoStore("reviews_db", url, rules_of(rule(Cascade())), lane="integrity.reviews_db")
    calls = [store.check, store.migrate, lambda deadline: store.progress([], deadline)]
    with collected():
        for call in calls:
            with pytest.raises(UnreachableError) as raised:
                await call(Deadline.after(1))
            assert "127.0.0.1" in raised.value.message and "reviews_db" in raised.value.message
            assert "s3cret" not in str(raised.value) and "app" not in raised.value.message
        await store.close()


async def test_two_lanes_and_schemas_share_a_database_without_touching(shop: Shop) -> None:
    await shop.db.orders.create_index("customer_id")
    one = shop.store(rule(Cascade()))
    other = shop.store(rule(Cascade()), schema="second")
    await one.migrate(Deadline.after(10))
    assert await codes(other) == [("ledger_missing", "error")]
    await other.migrate(Deadline.after(10))
    assert await codes(one) == await codes(other) == []


async def test_store_works_again_after_close(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()))
    await store.close()
    assert await codes(store) == []
