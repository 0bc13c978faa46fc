"""A reference matches its own key and nothing wider, whatever the documents hold."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import bson
import pytest
import pytest_asyncio
from bson import (
    Binary,
    Code,
    DatetimeMS,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)  # fmt: skip
from bson.raw_bson import RawBSONDocument

from integrity.core.batch import Batch
from integrity.core.keys import KeySpec, KeyType, Scalar
from integrity.core.outcome import Applied, Rejected
from integrity.core.rules.model import Cascade, EventValue, Ignore, Nullify, SetDefault, Tombstone
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.mongo.values import CODECS, element_key
from tests.contract.world import AT_MS, MARK, Events, rule
from tests.integration.mongo_shop import Document, Shop, apply

pytestmark = pytest.mark.servers


@pytest_asyncio.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


def spec(kind: KeyType) -> KeySpec:
    return KeySpec((("id", kind),))


UNTOUCHED: list[Document] = [
    {"_id": "missing"},
    {"_id": "null", "customer_id": None},
    {"_id": "array", "customer_id": [5, "5"]},
    {"_id": "nested array", "customer_id": [[5]]},
    {"_id": "document", "customer_id": {"id": 5}},
    {"_id": "operator", "customer_id": {"$gt": ""}},
    {"_id": "other", "customer_id": 6},
    {"_id": "nearly", "customer_id": 5.000000000000001},
    {"_id": "true", "customer_id": True},
    {"_id": "not a number", "customer_id": float("nan")},
    {"_id": "regex", "customer_id": Regex(".*")},
    {"_id": "text", "customer_id": "5"},
]


async def test_number_matches_equal_numbers_of_every_type_and_nothing_else(shop: Shop) -> None:
    numbers = [5, Int64(5), 5.0, Decimal128("5"), Decimal128("5.00")]
    documents = [{"_id": f"number {i}", "customer_id": number} for i, number in enumerate(numbers)]
    store = await shop.open(rule(Cascade()), documents={"orders": documents + UNTOUCHED})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [len(numbers)]
    assert await shop.ids() == sorted(document["_id"] for document in UNTOUCHED)


@pytest.mark.parametrize("text", ["5", ".*", "^", "$gt", '{"$gt": ""}', "", "$customer_id", "a\x00b", "é"])
async def test_text_is_taken_literally(shop: Shop, text: str) -> None:
    others: list[object] = ["A\x00B", "e\u0301", "E", "55", "abc", {"$gt": ""}, Regex(".*"), None, [text], 5]
    documents = [{"_id": i, "customer_id": other} for i, other in enumerate(others)]
    mine = [{"_id": 100, "customer_id": text}]
    store = await shop.open(rule(Cascade(), spec=spec(KeyType.STRING)), documents={"orders": documents + mine})
    events = Events()
    events.deleted((text,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.ids() == list(range(len(others)))


async def test_collection_that_ignores_case_does_not_widen_the_match(shop: Shop) -> None:
    await shop.db.create_collection("orders", collation={"locale": "en", "strength": 1})
    await shop.db.orders.create_index("customer_id", collation={"locale": "simple"})
    await shop.db.orders.insert_many([{"_id": "b", "customer_id": "ABC"}, {"_id": "a", "customer_id": "abc"}])
    rules = rule(Cascade(), spec=spec(KeyType.STRING))
    store = shop.store(rules)
    await store.migrate(Deadline.after(10))
    assert list(await store.check(Deadline.after(10))) == []
    events = Events()
    events.deleted(("abc",), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.ids() == ["b"]


UUID_A = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
OBJECT = ObjectId("64b000000000000000000001")
INSTANT = datetime(2024, 5, 6, 7, 8, 9, 123000, UTC)


@pytest.mark.parametrize(
    ("kind", "key", "same", "others"),
    [
        (KeyType.UUID, UUID_A, [UUID_A], [str(UUID_A), Binary(UUID_A.bytes, 0), Binary(UUID_A.bytes, 3)]),
        (KeyType.OBJECTID, str(OBJECT), [OBJECT], [str(OBJECT), OBJECT.binary]),
        (KeyType.NUMERIC, Decimal("1.5"), [1.5, Decimal128("1.50")], ["1.5", 1, 2, Decimal128("1.51")]),
        (KeyType.NUMERIC, Decimal("0.1"), [Decimal128("0.1")], [0.1, "0.1"]),
        (KeyType.NUMERIC, Decimal(2**53 + 1), [2**53 + 1], [float(2**53 + 2), float(2**53)]),
        (KeyType.BOOL, True, [True], [1, 1.0, "true", False, None]),
        (KeyType.BYTES, b"\x00\xff", [b"\x00\xff"], ["\x00\xff", Binary(b"\x00\xff", 5)]),
        (KeyType.DATE, date(2024, 5, 6), [datetime(2024, 5, 6, tzinfo=UTC)], [INSTANT, "2024-05-06"]),
        (KeyType.TIMESTAMP, INSTANT, [INSTANT], [datetime(2024, 5, 6, 7, 8, 9, 124000, UTC), INSTANT.isoformat()]),
        (KeyType.INT64, 2**63 - 1, [Int64(2**63 - 1)], [float(2**63), Decimal128(str(2**63))]),
        (KeyType.INT64, 2**53, [float(2**53), Int64(2**53)], [Int64(2**53 + 1), float(2**53 - 1), float(2**53 + 2)]),
        (KeyType.INT64, 2**53 + 1, [Decimal128(str(2**53 + 1))], [float(2**53), float(2**53 + 2)]),
        (KeyType.INT32, 0, [0, -0.0, 0.0], [False, None, "", "0", []]),
    ],
)
async def test_every_key_type_matches_its_bson_type(
    shop: Shop, kind: KeyType, key: Scalar, same: list[object], others: list[object]
) -> None:
    documents = [{"_id": i, "customer_id": value} for i, value in enumerate(others)]
    documents += [{"_id": 100 + i, "customer_id": value} for i, value in enumerate(same)]
    store = await shop.open(rule(Cascade(), spec=spec(kind)), documents={"orders": documents})
    events = Events()
    events.deleted((key,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [len(same)]
    assert await shop.ids() == list(range(len(others)))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (KeyType.TIMESTAMP, INSTANT.replace(microsecond=123456)),
        (KeyType.NUMERIC, Decimal("1." + "1" * 40)),
        (KeyType.NUMERIC, Decimal(10**35 + 1)),
    ],
)
async def test_key_that_mongodb_cannot_hold_is_rejected_and_changes_nothing(
    shop: Shop, kind: KeyType, key: Scalar
) -> None:
    store = await shop.open(rule(Cascade(), spec=spec(kind)), documents={"orders": [{"_id": 1, "customer_id": None}]})
    events = Events()
    events.deleted((key,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Rejected)
    assert (result.dependent, result.reason) == ("customer.orders", Reason.VALUE_REJECTED)
    assert str(key) not in result.message
    assert (await shop.count("progress"), await shop.count("keys")) == (0, 0)


def hostile(rng: random.Random, kind: KeyType) -> object:
    """What anybody may have written where a key is meant to be."""
    number = rng.choice([0, 1, 5, 2**31 - 1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1])
    scalars: list[object] = [
        number, Int64(number), float(number), Decimal128(str(number)), Decimal128("5.0"), 5.5, -0.0, float("nan"),
        Decimal128("Infinity"), str(number), "", "$gt", "a\x00", True, False, None, UUID(int=number % 2**64), OBJECT,
        UUID_A, Binary(UUID_A.bytes, 3), Binary(UUID_A.bytes, 0), b"5", Binary(b"5", 5), INSTANT, DatetimeMS(2**60),
        datetime(2024, 5, 6, tzinfo=UTC), Timestamp(5, 1), Regex(".*"), MinKey(), MaxKey(), Code("5"),
    ]  # fmt: skip
    value = rng.choice(scalars)
    match rng.randrange(8):
        case 0:
            return [value, rng.choice(scalars)]
        case 1:
            return {rng.choice(["$gt", "$in", "$ne", "id", "0"]): value}
        case 2:
            return [[value]]
        case _:
            return value


KEYS: list[tuple[KeyType, list[Scalar]]] = [
    (KeyType.INT64, [0, 1, 5, 2**31 - 1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]),
    (KeyType.NUMERIC, [Decimal("5.5"), Decimal(5), Decimal(2**53 + 1)]),
    (KeyType.STRING, ["5", "", "$gt", "a\x00"]),
    (KeyType.UUID, [UUID_A, UUID(int=5)]),
    (KeyType.BOOL, [True, False]),
    (KeyType.BYTES, [b"5", UUID_A.bytes]),
    (KeyType.OBJECTID, [str(OBJECT)]),
    (KeyType.TIMESTAMP, [INSTANT, datetime(2024, 5, 6, tzinfo=UTC)]),
    (KeyType.DATE, [date(2024, 5, 6)]),
]


@pytest.mark.parametrize(("kind", "keys"), KEYS)
@pytest.mark.parametrize("array", [False, True])
async def test_server_and_type_gate_agree_on_every_value_that_anybody_wrote(
    shop: Shop, kind: KeyType, keys: list[Scalar], array: bool
) -> None:
    """MongoDB finds exactly the documents that hold a key by the gate's own judgement, and nothing of the others."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    documents: list[Document] = [
        {
            "_id": n,
            "customer_id": [hostile(rng, kind) for _ in range(rng.randrange(4))] if array else hostile(rng, kind),
        }
        for n in range(400)
    ]
    store = await shop.open(rule(Cascade(), spec=spec(kind), array=array), documents={"orders": documents})
    raw = shop.db.orders.with_options(codec_options=CODECS.with_options(document_class=RawBSONDocument))
    before = {document["_id"]: document.raw async for document in raw.find()}
    events = Events()
    for n, key in enumerate(keys):
        events.deleted((key,), 10 + n)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied), result
    wanted: dict[int, bytes] = {}
    for each_raw in before.values():
        document = bson.decode(each_raw, CODECS)
        value = document["customer_id"]
        if array:
            value = [each for each in value if (part := element_key(kind, each)) is None or part not in keys]
        elif (part := element_key(kind, value)) is not None and part in keys:
            continue
        held = {"_id": document["_id"], "customer_id": value}
        wanted[document["_id"]] = bson.encode(held, codec_options=CODECS)
    assert {document["_id"]: document.raw async for document in raw.find()} == wanted
    assert sum(effect.rows for effect in result.effects) > 0


async def test_dotted_path_does_not_look_into_arrays(shop: Shop) -> None:
    documents: list[Document] = [
        {"_id": "mine", "customer": {"ref": {"id": 5}}},
        {"_id": "list", "customer": [{"ref": {"id": 5}}]},
        {"_id": "inner list", "customer": {"ref": [{"id": 5}]}},
        {"_id": "values", "customer": {"ref": {"id": [5]}}},
        {"_id": "flat", "customer": 5},
        {"_id": "literal dots", "customer.ref.id": 5},
    ]
    store = await shop.open(
        rule(Nullify(("customer.ref.id",)), columns=("customer.ref.id",)), documents={"orders": documents}
    )
    events = Events()
    events.deleted((5,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    expected = {document["_id"]: {k: v for k, v in document.items() if k != "_id"} for document in documents}
    assert await shop.all() == expected | {"mine": {"customer": {"ref": {"id": None}}}}


async def test_moved_reference_keeps_its_number_type(shop: Shop) -> None:
    stored = {"int": 5, "long": Int64(5), "double": 5.0, "decimal": Decimal128("5")}
    documents = [{"_id": name, "customer_id": value} for name, value in stored.items()]
    store = await shop.open(rule(Cascade()), documents={"orders": documents})
    events = Events()
    events.moved((5,), (7,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    types = [
        {"$match": {"customer_id": {"$eq": 7}}},
        {"$project": {"type": {"$type": "$customer_id"}}},
    ]
    found = {document["_id"]: document["type"] async for document in await shop.db.orders.aggregate(types)}
    assert found == {name: name for name in stored}


async def test_number_too_large_for_the_old_type_is_written_as_a_wider_one(shop: Shop) -> None:
    documents = [{"_id": "int", "customer_id": 5}, {"_id": "double", "customer_id": 5.0}]
    store = await shop.open(rule(Cascade()), documents={"orders": documents})
    events = Events()
    events.moved((5,), (2**53 + 1,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.all() == {
        "int": {"customer_id": Int64(2**53 + 1)},
        "double": {"customer_id": Int64(2**53 + 1)},
    }


async def test_composite_reference_writes_only_the_part_that_changes(shop: Shop) -> None:
    both = KeySpec((("tenant", KeyType.INT64), ("code", KeyType.INT64)))
    documents = [
        {"_id": "mine", "customer_tenant": 1.0, "customer_code": 5},
        {"_id": "other tenant", "customer_tenant": 2, "customer_code": 5},
        {"_id": "other code", "customer_tenant": 1, "customer_code": 2},
        {"_id": "half", "customer_tenant": 1},
    ]
    store = await shop.open(rule(Nullify(("customer_code",)), spec=both), documents={"orders": documents})
    events = Events()
    events.deleted((1, 5), 10)
    events.deleted((2, 2), 11)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [1, 0]
    found = await shop.all()
    assert found["mine"] == {"customer_tenant": 1.0, "customer_code": None}
    assert type(found["mine"]["customer_tenant"]) is float
    assert [found[name]["customer_code"] for name in ("other tenant", "other code")] == [5, 2]


async def test_where_matches_literals_lists_and_null_or_missing_but_no_arrays(shop: Shop) -> None:
    base = {"customer_id": 5, "region": "eu", "kind": "a"}
    documents: list[Document] = [
        {"_id": "mine", **base, "archived_at": None},
        {"_id": "mine, missing", **base},
        {"_id": "archived", **base, "archived_at": AT_MS},
        {"_id": "archived in a list", **base, "archived_at": [None]},
        {"_id": "region", **base, "region": "us"},
        {"_id": "region list", **base, "region": ["eu"]},
        {"_id": "kind", **base, "kind": "c"},
        {"_id": "kind list", **base, "kind": ["a"]},
    ]
    where = {"region": "eu", "kind": ("a", "b"), "archived_at": None}
    store = await shop.open(rule(Cascade(), where=where), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    left = sorted(document["_id"] for document in documents if not document["_id"].startswith("mine"))
    assert await shop.ids() == left


async def test_marked_documents_are_out_of_reach_and_a_missing_marker_is_unmarked(shop: Shop) -> None:
    documents: list[Document] = [
        {"_id": "missing", "customer_id": 5},
        {"_id": "null", "customer_id": 5, "deleted_at": None},
        {"_id": "marked", "customer_id": 5, "deleted_at": "long ago"},
        {"_id": "marked by a list", "customer_id": 5, "deleted_at": [None]},
    ]
    store = await shop.open(rule(MARK), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [2]
    found = await shop.all()
    for name in ("missing", "null"):
        assert found[name]["deleted_at"] == datetime.fromtimestamp((AT_MS + 10) / 1000, UTC)
        assert found[name]["deleted_by"] == "shop.public.customers/0/0"
    assert "deleted_by" not in found["marked"] and "deleted_by" not in found["marked by a list"]


async def test_event_time_beyond_the_calendar_is_rejected_only_where_documents_would_be_marked(shop: Shop) -> None:
    action = Tombstone({"deleted_at": EventValue.TIME})
    store = await shop.open(rule(action), documents={"orders": [{"_id": 1, "customer_id": 5}]})
    events = Events()
    far = 10**17
    batch = _with_time(events, (6,), far)
    assert isinstance(await apply(store, batch), Applied)
    result = await apply(store, _with_time(events, (5,), far))
    assert isinstance(result, Rejected) and result.reason is Reason.VALUE_REJECTED
    assert await shop.all() == {1: {"customer_id": 5}}


async def test_documents_with_any_id_are_found_again(shop: Shop) -> None:
    ids: list[object] = [
        1, 2.5, Int64(3), "text", None, True, OBJECT, UUID_A, Binary(b"x", 0), Binary(UUID_A.bytes, 3), INSTANT,
        Decimal128("7.10"), {"a": 1, "b": {"c": [1, None]}}, {"b": 1, "a": 1},
    ]  # fmt: skip
    documents = [{"_id": id_, "customer_id": 5} for id_ in ids]
    store = await shop.open(rule(SetDefault({"customer_id": 0})), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [len(ids)]
    assert await shop.db.orders.count_documents({"customer_id": 0}) == len(ids)


async def test_arrivals_are_kept_of_documents_with_composite_ids(shop: Shop) -> None:
    documents = [{"_id": {"n": 1}, "customer_id": 1}, {"_id": {"n": 2}, "customer_id": 2}]
    store = await shop.open(rule(Cascade()), documents={"orders": documents})
    events = Events()
    events.moved((1,), (2,), 20)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.count("arrivals") == 1
    events.deleted((2,), 12, partition=1)  # older than the key change: only what was there before goes
    events.arrived((2,), 20, partition=1)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert [document async for document in shop.db.orders.find()] == [{"_id": {"n": 1}, "customer_id": 2}]
    assert await shop.count("arrivals") == 0


async def test_reference_in_the_id_cascades(shop: Shop) -> None:
    documents = [{"_id": 5, "bio": "x"}, {"_id": 6, "bio": "y"}]
    profile = rule(Cascade(), Ignore(), columns=("_id",))
    store = await shop.open(profile, documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    assert isinstance(await apply(store, events.batch()), Applied)
    assert await shop.ids() == [6]


async def test_reference_in_a_part_of_the_id_cascades(shop: Shop) -> None:
    documents: list[Document] = [{"_id": {"customer": 5, "n": 1}}, {"_id": {"customer": 6, "n": 1}}]
    await shop.db.orders.create_index("_id.customer")
    store = await shop.open(rule(Cascade(), Ignore(), columns=("_id.customer",)), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [1]
    assert await shop.ids() == [{"customer": 6, "n": 1}]


def _with_time(events: Events, key: tuple[int], occurred_ms: int) -> Batch:
    events.deleted(key, 10 + key[0])
    batch = events.batch()
    return replace(batch, changes=tuple(change._replace(occurred_ms=occurred_ms) for change in batch.changes))


async def test_document_is_as_old_as_a_date_says_and_any_other_value_says_nothing(shop: Shop) -> None:
    at = datetime.fromtimestamp((AT_MS + 10) / 1000, UTC)
    old: list[object] = [at, at - timedelta(days=1), DatetimeMS(-(2**60))]
    young: list[object] = [at + timedelta(milliseconds=1), DatetimeMS(2**60)]
    doubtful: list[object] = [
        None,
        AT_MS,
        "2020-01-01T00:00:00Z",
        [at - timedelta(days=1)],
        Timestamp(1, 1),
        {"at": at},
    ]
    documents = [{"_id": i, "customer_id": 5, "meta": {"at": v}} for i, v in enumerate([*old, *young, *doubtful])]
    documents += [{"_id": 100, "customer_id": 5}, {"_id": 101, "customer_id": 5, "meta": [{"at": old[1]}]}]
    store = await shop.open(rule(Cascade(), as_of="meta.at"), documents={"orders": documents})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [len(old)]
    assert await shop.ids() == [document["_id"] for document in documents[len(old) :]]
