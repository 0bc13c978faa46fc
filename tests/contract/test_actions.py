"""What each action leaves behind, over every store."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import Cascade, Ignore, Nullify, SetDefault
from integrity.stores.memory import Row
from tests.contract.harness import Feature, Harness
from tests.contract.world import AT_MS, COMPOSITE, ENTITY, MARK, Events, apply, orders, rule, rules_of


async def references(harness: Harness, target: str = "orders", column: str = "customer_id") -> dict[object, object]:
    return {row["id"]: row[column] for row in await harness.rows(target)}


async def test_cascade_removes_the_rows_of_a_deleted_parent_and_no_other(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 1, 2, None))
    events = Events()
    events.deleted((1,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 2)]
    assert await references(harness) == {3: 2, 4: None}


async def test_deletion_of_a_parent_without_rows_is_applied_with_no_rows(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((2,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 0)]
    assert await references(harness) == {1: 1}


async def test_nullify_keeps_the_rows_and_empties_their_reference(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Nullify(("customer_id",)))), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "nullify", Outcome.APPLIED, 1)]
    assert await references(harness) == {1: None, 2: 2}


async def test_nullify_of_some_columns_keeps_the_rest_of_a_composite_reference(harness: Harness) -> None:
    rules = rules_of(rule(Nullify(("customer_code",)), spec=COMPOSITE))
    store = await harness.open(rules, orders(("eu", 1), ("eu", 2), ("uk", 1), ("eu", None)))
    events = Events()
    events.deleted(("eu", 1), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    found = {row["id"]: (row["customer_tenant"], row["customer_code"]) for row in await harness.rows("orders")}
    assert found == {1: ("eu", None), 2: ("eu", 2), 3: ("uk", 1), 4: ("eu", None)}


async def test_composite_reference_with_a_null_part_is_no_reference(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), spec=COMPOSITE)), orders(("eu", None), (None, 1), ("eu", 1)))
    events = Events()
    events.deleted(("eu", 1), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert [row["id"] for row in await harness.rows("orders")] == [1, 2]


async def test_composite_reference_follows_a_key_change_in_all_its_parts(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), spec=COMPOSITE)), orders(("eu", 1), ("eu", 2)))
    events = Events()
    events.moved(("eu", 1), ("uk", 7), 10)
    await apply(store, events.batch())
    found = {row["id"]: (row["customer_tenant"], row["customer_code"]) for row in await harness.rows("orders")}
    assert found == {1: ("uk", 7), 2: ("eu", 2)}


async def test_set_default_points_the_rows_at_the_default(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(SetDefault({"customer_id": 0}))), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "set_default", Outcome.APPLIED, 1)]
    assert await references(harness) == {1: 0, 2: 2}


async def test_set_default_of_one_column_keeps_the_others(harness: Harness) -> None:
    rules = rules_of(rule(SetDefault({"customer_code": 0}), spec=COMPOSITE))
    store = await harness.open(rules, orders(("eu", 1)))
    events = Events()
    events.deleted(("eu", 1), 10)
    await apply(store, events.batch())
    [row] = await harness.rows("orders")
    assert (row["customer_tenant"], row["customer_code"]) == ("eu", 0)


async def test_set_default_with_null_is_no_reference_any_more(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(SetDefault({"customer_id": None}))), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await references(harness) == {1: None}


async def test_deletion_of_the_default_key_acts_on_rows_that_the_same_batch_pointed_at_it(harness: Harness) -> None:
    rules = rules_of(
        rule(SetDefault({"customer_id": 0}), name="orders"),
        rule(Cascade(), SetDefault({"customer_id": 0}), name="notes"),
    )
    store = await harness.open(
        rules, {**orders(1), "notes": [{"id": 1, "customer_id": 1}, {"id": 2, "customer_id": 5}]}
    )
    events = Events()
    events.moved((1,), (9,), 10)
    events.deleted((0,), 20)
    effects = await apply(store, events.batch())
    assert await references(harness) == {1: 9}
    assert await references(harness, "notes") == {2: 5}
    assert [(e.change, e.action, e.rows) for e in effects if e.dependent == "customer.notes"] == [
        (0, "set_default", 1),
        (1, "cascade", 1),
    ]


async def test_ignore_leaves_the_rows_and_says_skipped(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Ignore(), Ignore())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    events.moved((2,), (3,), 11)
    assert await apply(store, events.batch()) == [
        Effect(0, "customer.orders", "ignore", Outcome.SKIPPED, 0),
        Effect(1, "customer.orders", "ignore", Outcome.SKIPPED, 0),
    ]
    assert await references(harness) == {1: 1, 2: 2}


async def test_key_change_takes_the_rows_along(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 1, 2))
    events = Events()
    events.moved((1,), (3,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 2)]
    assert await references(harness) == {1: 3, 2: 3, 3: 2}


async def test_key_change_may_nullify(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), Nullify(("customer_id",)))), orders(1, 2))
    events = Events()
    events.moved((1,), (3,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "nullify", Outcome.APPLIED, 1)]
    assert await references(harness) == {1: None, 2: 2}


@pytest.mark.needs(Feature.MARKS)
async def test_tombstone_marks_unmarked_rows_only(harness: Harness) -> None:
    before = datetime(2020, 1, 1, tzinfo=UTC)
    rows: list[Row] = [
        {"id": 1, "customer_id": 1},
        {"id": 2, "customer_id": 1, "deleted_at": before, "deleted_by": "somebody"},
        {"id": 3, "customer_id": 2},
    ]
    store = await harness.open(rules_of(rule(MARK)), {"orders": rows})
    events = Events()
    change = events.deleted((1,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "tombstone", Outcome.APPLIED, 1)]
    found = {
        row["id"]: (row["customer_id"], row["deleted_at"], row["deleted_by"]) for row in await harness.rows("orders")
    }
    at = datetime.fromtimestamp((AT_MS + 10) / 1000, UTC)
    assert found == {1: (1, at, change.origin.event_id), 2: (1, before, "somebody"), 3: (2, None, None)}


@pytest.mark.needs(Feature.MARKS)
async def test_marked_rows_stay_out_of_later_key_changes(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(MARK)), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    events.alive((1,), 20)
    events.moved((1,), (2,), 30)
    assert [e.rows for e in await apply(store, events.batch())] == [0]
    assert await references(harness) == {1: 1}


@pytest.mark.needs(Feature.MARKS)
async def test_marked_rows_keep_the_last_key_their_parent_had(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(MARK)), orders(1, 2, 3))
    events = Events()
    events.moved((1,), (9,), 10)
    events.deleted((9,), 20)
    events.moved((2,), (1,), 30)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 1, 1]
    found = {row["id"]: (row["customer_id"], row["deleted_at"] is not None) for row in await harness.rows("orders")}
    assert found == {1: (9, True), 2: (1, False), 3: (3, False)}


async def test_where_holds_the_rule_to_rows_that_equal_are_listed_or_are_null(harness: Harness) -> None:
    rules = rules_of(rule(Cascade(), where={"kind": "Customer", "region": ("eu", "uk"), "archived_at": None}))
    fits: Row = {"customer_id": 1, "kind": "Customer", "region": "eu"}
    rows: list[Row] = [
        {"id": 1, **fits},
        {"id": 2, **fits, "region": "uk"},
        {"id": 3, **fits, "region": "us"},
        {"id": 4, **fits, "kind": "Supplier"},
        {"id": 5, **fits, "archived_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"id": 6, **fits, "region": None},
        {"id": 7, **fits, "kind": None},
    ]
    store = await harness.open(rules, {"orders": rows})
    events = Events()
    events.deleted((1,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [2]
    assert [row["id"] for row in await harness.rows("orders")] == [3, 4, 5, 6, 7]


async def test_where_holds_for_key_changes_too(harness: Harness) -> None:
    rows: list[Row] = [{"id": 1, "customer_id": 1, "priority": 1}, {"id": 2, "customer_id": 1, "priority": 2}]
    store = await harness.open(rules_of(rule(Cascade(), where={"priority": (1, 3)})), {"orders": rows})
    events = Events()
    events.moved((1,), (5,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await references(harness) == {1: 5, 2: 1}


async def test_every_dependent_has_its_own_action(harness: Harness) -> None:
    rules = rules_of(rule(Cascade(), name="orders"), rule(Nullify(("customer_id",)), name="notes"))
    store = await harness.open(rules, {**orders(1, 2), "notes": [{"id": 1, "customer_id": 1}]})
    events = Events()
    events.deleted((1,), 10)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "customer.notes", "nullify", Outcome.APPLIED, 1),
        Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 1),
    ]
    assert await references(harness) == {2: 2}
    assert await references(harness, "notes") == {1: None}


async def test_entities_with_equal_keys_are_apart(harness: Harness) -> None:
    rules = rules_of(rule(Cascade()), rule(Cascade(), entity="product", name="prices"))
    store = await harness.open(rules, {**orders(1), "prices": [{"id": 1, "customer_id": 1}]})
    products = Events("product", "shop.public.products")
    products.deleted((1,), 10)
    await apply(store, products.batch())
    assert await references(harness) == {1: 1}
    assert await harness.rows("prices") == []
    assert await harness.head(ENTITY, (1,)) is None


async def test_events_of_an_entity_without_a_rule_do_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events("supplier")
    events.deleted((1,), 10)
    assert await apply(store, events.batch()) == []
    assert await references(harness) == {1: 1}
