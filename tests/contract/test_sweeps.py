"""Rows that are written after their parent's deletion was enforced, over every store."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from integrity.core.batch import Batch, DeadLetterMark, Discard, Span, TopicPartition
from integrity.core.history import Repair
from integrity.core.outcome import Rejected
from integrity.core.rules.model import Cascade, Ignore, Nullify, SetDefault
from integrity.core.sweep import Sweep, Swept
from integrity.errors import Reason
from integrity.ports import Deadline
from tests.contract import graph_rules as graph
from tests.contract.harness import Feature, Harness
from tests.contract.world import AT_MS, COMPOSITE, ENTITY, MARK, TOPIC, Events, apply, orders, rule, rules_of

AGE_MS = 60_000


async def swept(store: Any, until_ms: int = AT_MS, **more: Any) -> list[tuple[object, ...]]:
    """What one page of a sweep did: (key, dependent, action, rows)."""
    sweep = replace(Sweep(AGE_MS, until_ms, frozenset({ENTITY}), 1000, AT_MS + AGE_MS), **more)
    result = await store.sweep(sweep, Deadline.after(30))
    assert isinstance(result, Swept), result
    return [(each.key, each.dependent, each.action, each.rows) for each in result.repaired]


async def began(store: Any) -> None:
    """The service begins to sweep before anything is enforced."""
    assert await swept(store, AT_MS - 1) == []


async def references(harness: Harness) -> dict[object, object]:
    return {row["id"]: row["customer_id"] for row in await harness.rows("orders")}


async def test_late_rows_of_a_deleted_parent_go_as_its_deletion_says_once(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await swept(store, AT_MS - 1) == [], "not before its age"
    await harness.write("orders", {"id": 8, "customer_id": 1}, {"id": 9, "customer_id": 1})
    assert await swept(store) == [((1,), "customer.orders", "cascade", 2)]
    assert await references(harness) == {2: 2}
    history = await store.history(ENTITY, (1,), Deadline.after(30))
    assert history is not None
    assert history.repairs == (Repair("customer.orders", "cascade", 2, f"{TOPIC}/0/0", AT_MS + AGE_MS),)
    await harness.write("orders", {"id": 7, "customer_id": 1})
    assert await swept(store, AT_MS + 1) == [], "the key was looked at in this sweep"
    assert await references(harness) == {2: 2, 7: 1}


async def test_every_sweep_looks_for_itself(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Nullify(("customer_id",)))), orders())
    await began(store)
    assert await swept(store, AT_MS - 1, age_ms=2 * AGE_MS) == []
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await swept(store) == []
    await harness.write("orders", {"id": 8, "customer_id": 1})
    assert await swept(store, age_ms=2 * AGE_MS) == [((1,), "customer.orders", "nullify", 1)]
    assert await references(harness) == {8: None}


async def test_late_rows_follow_a_key_change_to_its_end(harness: Harness) -> None:
    """1 became 2, 2 became 3, and 5 became 6, which was deleted."""
    store = await harness.open(rules_of(rule(Cascade())), orders())
    await began(store)
    events = Events()
    events.moved((1,), (2,), 10)
    events.moved((2,), (3,), 20, partition=1)
    events.moved((5,), (6,), 30)
    events.deleted((6,), 40, partition=1)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 1, "customer_id": 1}, {"id": 2, "customer_id": 2}, {"id": 5, "customer_id": 5})
    found = await swept(store)
    assert sorted(found) == [
        ((1,), "customer.orders", "cascade", 1),
        ((2,), "customer.orders", "cascade", 1),
        ((5,), "customer.orders", "cascade", 1),
    ]
    assert await references(harness) == {1: 3, 2: 3}
    assert await harness.arrivals() == 2, "3's own events have not said yet that it is there"
    events.deleted((3,), 15, partition=1)
    await apply(store, events.batch())
    assert await references(harness) == {1: 3, 2: 3}, "an older deletion of 3 is not theirs"


async def test_key_that_lives_again_is_left_alone(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(9))
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    events.alive((1,), 20)
    events.deleted((2,), 11)
    await apply(store, events.batch())
    # 9 became 2, which 2's own partition has not said yet.
    events.moved((9,), (2,), 30, partition=1)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 7, "customer_id": 1}, {"id": 8, "customer_id": 2})
    assert await swept(store) == []
    assert await references(harness) == {1: 2, 7: 1, 8: 2}


async def test_late_rows_of_an_effect_that_a_dead_letter_stands_for_wait_with_it(harness: Harness) -> None:
    rules = rules_of(rule(Cascade()), rule(Cascade(), name="reviews"))
    store = await harness.open(rules, orders(1) | {"reviews": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    letter = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "f" * 32)
    await apply(store, events.batch(exceptions={(0, "customer.orders"): letter}))
    await harness.write("reviews", {"id": 5, "customer_id": 1})
    assert await swept(store) == [((1,), "customer.reviews", "cascade", 1)]
    assert await references(harness) == {1: 1}


async def test_sweep_takes_no_more_than_a_page_and_goes_on_where_it_was(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders())
    await began(store)
    events = Events()
    for key in range(1, 6):
        events.deleted((key,), key)
    await apply(store, events.batch())
    await harness.write("orders", *({"id": key, "customer_id": key} for key in range(1, 7)))
    pages = [await swept(store, keys_max=2) for _ in range(3)]
    assert [len(page) for page in pages] == [2, 2, 1]
    another = await harness.another()
    assert await swept(another) == [], "where a sweep is is durable"
    assert await references(harness) == {6: 6}


async def test_rows_and_entities_beyond_the_rule_are_left_alone(harness: Harness) -> None:
    rules = rules_of(
        rule(Cascade(), where={"kind": "a"}),
        rule(Ignore(), name="notes"),
        rule(Cascade(), name="reviews", columns=("owner_id",), entity="owner"),
    )
    store = await harness.open(rules, {"orders": [], "notes": [], "reviews": []})
    await began(store)
    events, owners = Events(), Events("owner", "shop.public.owners")
    events.deleted((1,), 10)
    owners.deleted((1,), 10)
    await apply(store, events.batch())
    await apply(store, owners.batch())
    await harness.write("orders", {"id": 1, "customer_id": 1, "kind": "b"}, {"id": 2, "customer_id": 1, "kind": "a"})
    await harness.write("notes", {"id": 1, "customer_id": 1})
    await harness.write("reviews", {"id": 1, "owner_id": 1})
    assert await swept(store) == [((1,), "customer.orders", "cascade", 1)]
    assert [len(await harness.rows(name)) for name in ("orders", "notes", "reviews")] == [1, 1, 1]


async def test_dependent_that_is_left_out_is_passed_over(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders())
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 1, "customer_id": 1})
    assert await swept(store, left_out=frozenset({"customer.orders"})) == []
    assert await swept(store) == []
    assert await references(harness) == {1: 1}


async def test_late_composite_references_get_what_the_rule_says(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(SetDefault({"customer_code": 0}), spec=COMPOSITE)), orders(("eu", 0)))
    await began(store)
    events = Events()
    events.deleted(("eu", 1), 10)
    await apply(store, events.batch())
    late = [{"id": n, "customer_tenant": tenant, "customer_code": 1} for n, tenant in ((7, "eu"), (8, "uk"))]
    await harness.write("orders", *late)
    assert await swept(store) == [(("eu", 1), "customer.orders", "set_default", 1)]
    found = {row["id"]: (row["customer_tenant"], row["customer_code"]) for row in await harness.rows("orders")}
    assert found == {1: ("eu", 0), 7: ("eu", 0), 8: ("uk", 1)}


@pytest.mark.needs(Feature.MARKS)
async def test_late_rows_are_marked_with_the_event_that_was_enforced(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(MARK)), orders())
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 1, "customer_id": 1})
    assert await swept(store) == [((1,), "customer.orders", "tombstone", 1)]
    [row] = await harness.rows("orders")
    assert (row["deleted_by"], row["deleted_at"].timestamp()) == (f"{TOPIC}/0/0", (AT_MS + 10) / 1000)


async def test_late_rows_beyond_max_rows_stay(harness: Harness) -> None:
    limited = rule(Cascade())
    limited = replace(limited, dependent=replace(limited.dependent, max_rows=2))
    store = await harness.open(rules_of(limited), orders())
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", *({"id": n, "customer_id": 1} for n in range(3)))
    sweep = Sweep(AGE_MS, AT_MS, frozenset({ENTITY}), 1000, AT_MS)
    result = await store.sweep(sweep, Deadline.after(30))
    assert isinstance(result, Rejected)
    assert (result.dependent, result.reason) == ("customer.orders", Reason.TOO_MANY_ROWS)
    assert len(await harness.rows("orders")) == 3


async def test_late_rows_of_an_effect_that_was_given_up_stay(harness: Harness) -> None:
    """Who discarded the dead letter wants the rows to stay."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    letter = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "f" * 32)
    await apply(store, events.batch(exceptions={(0, "customer.orders"): letter}))
    discard = Discard(letter.id, "customer.orders", f"{TOPIC}/0/0")
    spans = {TopicPartition("integrity.redrive", 0): Span(0, 1)}
    await apply(store, Batch((), spans, at_ms=AT_MS, discards=(discard,)))
    assert await harness.exceptions(ENTITY, (1,)) == set()
    assert await swept(store) == []
    assert await references(harness) == {1: 1}


async def test_what_depends_on_late_rows_goes_with_them(harness: Harness) -> None:
    """In the ledger it is as if the deletion had met them; in the history of its key they are told level by level."""
    store = await harness.open(rules_of(graph.orders(), graph.items()), {"orders": [], "items": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 20, "customer_id": 1}, {"id": 21, "customer_id": 2})
    await harness.write("items", *({"id": n, "order_id": 20 + n % 2} for n in range(5)))
    assert sorted(await swept(store)) == [((1,), "customer.orders", "cascade", 1), ((1,), "order.items", "cascade", 3)]
    assert [row["id"] for row in await harness.rows("orders")] == [21]
    assert [row["id"] for row in await harness.rows("items")] == [1, 3]
    gone, history = await harness.head("order", (20,)), await store.history(ENTITY, (1,), Deadline.after(30))
    assert gone is not None and [(fate.to, fate.occurred_ms) for fate in gone.fates] == [(None, AT_MS + 10)]
    assert history is not None
    assert sorted((each.dependent, each.rows) for each in history.repairs) == [
        ("customer.orders", 1),
        ("order.items", 3),
    ]


async def test_late_row_of_a_moved_key_takes_its_own_key_along(harness: Harness) -> None:
    lines = rule(Cascade(), name="lines", columns=("order_id",), entity="order", rows="line", own=graph.LINE)
    parts = rule(Cascade(), name="parts", columns=("order_id", "line_id"), entity="line", spec=graph.LINE)
    store = await harness.open(rules_of(lines, parts), {"lines": [], "parts": []})
    assert await swept(store, AT_MS - 1, entities=frozenset({"order"})) == []
    events = Events("order", "shop.public.orders")
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    await harness.write("lines", {"id": 7, "order_id": 1})
    await harness.write("parts", {"id": 70, "order_id": 1, "line_id": 7}, {"id": 71, "order_id": 1, "line_id": 8})
    found = await swept(store, entities=frozenset({"order"}))
    assert sorted(found) == [((1,), "line.parts", "cascade", 1), ((1,), "order.lines", "cascade", 1)]
    assert [row["order_id"] for row in await harness.rows("lines")] == [2]
    assert {row["id"]: row["order_id"] for row in await harness.rows("parts")} == {70: 2, 71: 1}


async def test_too_many_rows_below_late_rows_leave_the_whole_branch(harness: Harness) -> None:
    store = await harness.open(rules_of(graph.orders(), graph.items(max_rows=2)), {"orders": [], "items": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 20, "customer_id": 1})
    await harness.write("items", *({"id": n, "order_id": 20} for n in range(3)))
    sweep = Sweep(AGE_MS, AT_MS, frozenset({ENTITY}), 1000, AT_MS + AGE_MS)
    result = await store.sweep(sweep, Deadline.after(30))  # type: ignore[attr-defined]
    assert isinstance(result, Rejected)
    assert (result.dependent, result.reason) == ("customer.orders", Reason.TOO_MANY_ROWS)
    assert "order.items" in result.message
    assert len(await harness.rows("items")) == 3


@pytest.mark.needs(Feature.OUTBOX)
async def test_others_are_told_of_late_rows_that_are_parents(harness: Harness) -> None:
    told = rule(Cascade(), name="orders", rows="order", published=True)
    store = await harness.open(rules_of(told), {"orders": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 20, "customer_id": 1})
    assert await swept(store) == [((1,), "customer.orders", "cascade", 1)]
    [waiting] = await store.waiting(100, Deadline.after(30))  # type: ignore[attr-defined]
    said = json.loads(waiting.record.value)
    assert (said["op"], said["key"], said["cause"]) == ("deleted", [20], f"{TOPIC}/0/0")
