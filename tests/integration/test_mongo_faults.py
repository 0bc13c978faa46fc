"""Whatever fails, and wherever: a batch takes effect once, or changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from bson import Int64

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Applied, Broken, Outcome, Rejected, Retry
from integrity.core.rules.model import Cascade, Nullify
from integrity.demo.servers import MongoServer
from integrity.errors import Reason
from integrity.ports import Deadline
from tests.contract.world import Events, rule
from tests.integration.mongo_shop import UNREACHABLE, Shop, apply, apply_until_applied, collected

HANGS_S = 30.0
"""Only against hanging: how long a thing takes is no matter of these tests."""
pytestmark = pytest.mark.servers

TRANSIENT = {"errorLabels": ["TransientTransactionError"]}


@pytest_asyncio.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


def two_orders() -> dict[str, list[dict[str, object]]]:
    return {"orders": [{"_id": 1, "customer_id": 5}, {"_id": 2, "customer_id": 6}]}


async def effects_in_ledger(shop: Shop) -> list[tuple[str, int]]:
    """(event, rows) of everything that the ledger says was done."""
    return sorted(
        [
            (fate["event"], effect["rows"])
            async for fate in shop.db["integrity.fates"].find()
            for effect in fate["effects"]
        ]
    )


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_connection_lost_at_commit_takes_effect_once(shop: Shop, times: int) -> None:
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    batch = events.batch()
    async with shop.failing(["commitTransaction"], {"times": times}, closeConnection=True):
        result = await apply(store, batch)
    assert isinstance(result, Applied) and [e.rows for e in result.effects] == [1]
    again = await apply(store, batch)
    assert isinstance(again, Applied) and [(e.outcome, e.rows) for e in again.effects] == [(Outcome.DUPLICATE, 0)]
    assert await shop.ids() == [2]
    assert await effects_in_ledger(shop) == [("shop.public.customers/0/0", 1)]


async def test_commit_whose_answer_is_lost_for_good_is_found_done_at_the_next_try(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    batch = events.batch()
    lost = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "the answer is lost"}
    async with shop.failing(["commitTransaction"], "alwaysOn", writeConcernError=lost):
        result = await apply(store, batch)
    assert isinstance(result, Retry), result
    assert await shop.ids() == [2]
    again = await apply(store, batch)
    assert isinstance(again, Applied) and [(e.outcome, e.rows) for e in again.effects] == [(Outcome.DUPLICATE, 0)]
    assert await effects_in_ledger(shop) == [("shop.public.customers/0/0", 1)]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"closeConnection": True}, id="connection closed"),
        pytest.param({"errorCode": 112, **TRANSIENT}, id="write conflict"),
        pytest.param({"errorCode": 50}, id="time limit"),
    ],
)
async def test_fault_at_the_nth_command_changes_nothing(shop: Shop, how: dict[str, object]) -> None:
    """First command, second, third ... until a run passes."""
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    events.moved((6,), (7,), 11)
    batch = events.batch()
    for nth in range(40):
        async with shop.failing(["find", "getMore", "insert", "update", "delete"], {"skip": nth}, **how):
            result = await apply(store, batch)
        if isinstance(result, Applied):
            break
        assert isinstance(result, Retry), (nth, result)
        assert result.unreachable == ("closeConnection" in how), (nth, result)
        assert await shop.all() == {1: {"customer_id": 5}, 2: {"customer_id": 6}}, nth
        assert [await shop.count(name) for name in ("progress", "keys", "fates", "arrivals")] == [0, 0, 0, 0], nth
    else:
        raise AssertionError("no run passed")
    assert nth >= 8
    assert await shop.all() == {2: {"customer_id": 7}}
    assert await effects_in_ledger(shop) == [("shop.public.customers/0/0", 1), ("shop.public.customers/0/1", 1)]


async def test_write_conflict_with_an_open_transaction_of_the_owner_is_retried(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    batch = events.batch()
    async with shop.client.start_session() as session, await session.start_transaction():
        await shop.db.orders.update_one({"_id": 1}, {"$set": {"note": "mine"}}, session=session)
        result = await apply(store, batch)
        assert isinstance(result, Retry) and not result.unreachable, result
    assert isinstance(await apply(store, batch), Applied)
    assert await shop.ids() == [2]


async def test_validator_of_the_collection_rejects_the_effect_and_names_the_dependent(shop: Shop) -> None:
    required = {"customer_id": {"$type": "long"}}
    await shop.db.create_collection("orders", validator=required)
    documents = {"orders": [{"_id": "secret-document", "customer_id": Int64(987654)}]}
    store = await shop.open(rule(Nullify(("customer_id",))), documents=documents)
    events = Events()
    events.moved((987654,), (876543,), 9)  # a long stays a long
    assert isinstance(await apply(store, events.batch()), Applied)
    events.deleted((876543,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Rejected), result
    assert (result.dependent, result.reason) == ("customer.orders", Reason.CONSTRAINT_VIOLATION)
    assert "secret" not in result.message and "876543" not in result.message
    assert await shop.all() == {"secret-document": {"customer_id": 876543}}


async def test_unique_index_rejects_the_effect_and_the_other_dependent_is_not_blamed(shop: Shop) -> None:
    one, two = rule(Cascade(), name="notes"), rule(Cascade(), name="profiles")
    await shop.db.profiles.create_index("customer_id", unique=True, name="one_each")
    documents = {
        "notes": [{"_id": 1, "customer_id": 5}],
        "profiles": [{"_id": 1, "customer_id": 5}, {"_id": 2, "customer_id": 6}],
    }
    store = await shop.open(one, two, documents=documents)
    events = Events()
    events.moved((5,), (6,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Rejected), result
    assert (result.dependent, result.reason) == ("customer.profiles", Reason.CONSTRAINT_VIOLATION)
    assert await shop.all("notes") == {1: {"customer_id": 5}}


_DOCUMENT_MAX = 16 * 1024 * 1024


async def test_reference_that_makes_a_document_too_large_is_rejected_alone(shop: Shop) -> None:
    text = KeySpec((("id", KeyType.STRING),))
    large = {"_id": 1, "customer_id": "a", "filler": "x" * (_DOCUMENT_MAX - 100)}
    store = await shop.open(rule(Cascade(), spec=text), documents={"orders": [large, {"_id": 2, "customer_id": "b"}]})
    events = Events()
    events.moved(("a",), ("c" * 200,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Rejected), result
    assert (result.dependent, result.reason) == ("customer.orders", Reason.VALUE_REJECTED)
    events = Events()
    events.deleted(("a",), 11)
    events.deleted(("b",), 12)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied) and [effect.rows for effect in result.effects] == [1, 1]


async def test_list_in_a_document_near_the_limit_is_written(shop: Shop) -> None:
    listed = rule(Cascade(), columns=("ids",), array=True)
    large = {"_id": 1, "ids": [5, "x" * (_DOCUMENT_MAX - 200), 6]}
    store = await shop.open(listed, documents={"orders": [large]})
    events = Events()
    events.deleted((5,), 10)
    result = await apply(store, events.batch())
    assert isinstance(result, Applied), result
    assert [len(str(each)) for each in (await shop.all())[1]["ids"]] == [_DOCUMENT_MAX - 200, 1]


async def test_lost_privilege_breaks_the_rule_and_no_event_is_blamed(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    namespace = f"{shop.db.name}.orders"
    async with shop.failing(["delete"], "alwaysOn", errorCode=13, namespace=namespace):
        result = await apply(store, events.batch())
    assert isinstance(result, Broken), result
    assert (result.dependent, result.reason) == ("customer.orders", Reason.PRIVILEGE)
    assert await shop.ids() == [1, 2]


async def test_cancelled_batch_is_rolled_back_at_once(shop: Shop) -> None:
    store = await shop.open(rule(Cascade()), documents=two_orders())
    events = Events()
    events.deleted((5,), 10)
    batch = events.batch()
    async with shop.failing(["delete"], {"times": 1}, blockConnection=True, blockTimeMS=3000):
        task = asyncio.create_task(apply(store, batch))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    result, _ = await apply_until_applied(store, batch, tries_max=400)
    assert [e.rows for e in result.effects] == [1]


@UNREACHABLE
async def test_frozen_server_costs_the_deadline_and_then_works_again() -> None:
    with collected(), MongoServer() as server:
        shop = Shop(server.url("frozen"))
        try:
            store = await shop.open(rule(Cascade()), documents=two_orders())
            events = Events()
            events.deleted((5,), 10)
            batch = events.batch()
            # What reaches the frozen server may begin a transaction, which it keeps for up to a minute and a half.
            await shop.client.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": 3})
            server.suspend()
            try:
                async with asyncio.timeout(HANGS_S):
                    result = await store.apply(batch, Deadline.after(1.5))
            finally:
                server.resume()
            assert isinstance(result, Retry) and result.unreachable, result
            again, _ = await apply_until_applied(store, batch, tries_max=400, pause_s=0.2)
            assert [e.rows for e in again.effects] == [1]
            assert await shop.ids() == [2]
        finally:
            await shop.close()


@UNREACHABLE
async def test_server_that_was_killed_is_found_again_with_what_was_committed() -> None:
    with collected(), MongoServer() as server:
        shop = Shop(server.url("killed"))
        try:
            store = await shop.open(rule(Cascade()), documents=two_orders())
            events = Events()
            events.deleted((5,), 10)
            first = events.batch()
            assert isinstance(await apply(store, first), Applied)
            server.kill()
            events.deleted((6,), 11)
            second = events.batch()
            result = await store.apply(second, Deadline.after(5))
            assert isinstance(result, Retry) and result.unreachable, result
            server.restart()
            again, _ = await apply_until_applied(store, second)
            assert [e.rows for e in again.effects] == [1]
            replayed = await apply(store, first)
            assert isinstance(replayed, Applied) and [e.outcome for e in replayed.effects] == [Outcome.DUPLICATE]
        finally:
            await shop.close()
