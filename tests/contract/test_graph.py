"""Rows that are parents themselves: what depends on them goes with them, over every store."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from integrity.core.batch import DeadLetterMark
from integrity.core.change import Version
from integrity.core.outcome import Effect, Held, Outcome
from integrity.core.rules.model import Action, Cascade, Ignore, Nullify, Restrict, SetDefault
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.memory import Row
from integrity.stores.rule import StoreRule
from tests.contract.graph_rules import LINE, comments, items, orders, parts
from tests.contract.harness import Feature, Harness
from tests.contract.test_redrive import again
from tests.contract.world import AT_MS, MARK, Events, apply, rule, rules_of

ROWS: dict[str, list[Row]] = {
    "orders": [{"id": 10, "customer_id": 1}, {"id": 11, "customer_id": 1}, {"id": 12, "customer_id": 2}],
    "items": [
        {"id": 100, "order_id": 10},
        {"id": 101, "order_id": 10},
        {"id": 102, "order_id": 11},
        {"id": 103, "order_id": 12},
    ],
    "parts": [{"id": 1000, "item_id": 100}, {"id": 1001, "item_id": 102}, {"id": 1002, "item_id": 103}],
}


async def ids(harness: Harness, target: str) -> list[object]:
    return [row["id"] for row in await harness.rows(target)]


async def references(harness: Harness, target: str, column: str) -> dict[object, object]:
    return {row["id"]: row[column] for row in await harness.rows(target)}


async def test_deletion_takes_every_level_along_and_counts_each(harness: Harness) -> None:
    rules = rules_of(orders(), items(rows="item"), parts())
    store = await harness.open(rules, ROWS)
    events = Events()
    events.deleted((1,), 10)
    events.deleted((3,), 11)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 2),
        Effect(0, "item.parts", "cascade", Outcome.APPLIED, 2),
        Effect(0, "order.items", "cascade", Outcome.APPLIED, 3),
        Effect(1, "customer.orders", "cascade", Outcome.APPLIED, 0),
        Effect(1, "item.parts", "cascade", Outcome.APPLIED, 0),
        Effect(1, "order.items", "cascade", Outcome.APPLIED, 0),
    ]
    assert [await ids(harness, name) for name in ("orders", "items", "parts")] == [[12], [103], [1002]]


async def test_what_happens_to_rows_without_events_of_their_own_is_kept_with_a_version_of_their_own(
    harness: Harness,
) -> None:
    store = await harness.open(rules_of(orders(), items()), ROWS)
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch())
    head = await harness.head("order", (10,))
    assert head is not None
    [fate] = head.fates
    assert (head.seen, head.last, fate.version, fate.to) == (Version(0, (1,)), None, Version(0, (1,)), None)
    assert fate.event_id == f"{change.origin.event_id}/customer.orders/[10]"
    assert await harness.head("order", (12,)) is None


async def test_row_that_was_written_again_and_went_again_has_both_in_its_history(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), items()), ROWS)
    events = Events()
    first = events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 10, "customer_id": 2})
    second = events.deleted((2,), 11)
    await apply(store, events.batch())
    found = await store.history("order", (10,), Deadline.after(10))
    assert found is not None
    assert found.seen == Version(0, (2,))
    assert [(each.fate.version, each.fate.event_id, dict(each.done)) for each in found.enforced] == [
        (Version(0, (1,)), f"{first.origin.event_id}/customer.orders/[10]", {"order.items": ("cascade", 2)}),
        (Version(0, (2,)), f"{second.origin.event_id}/customer.orders/[10]", {}),
    ]


async def test_every_action_is_carried_out_below_removed_rows(harness: Harness) -> None:
    below = {
        "notes": rule(Nullify(("order_id",)), name="notes", columns=("order_id",), entity="order"),
        "bills": rule(SetDefault({"order_id": 0}), name="bills", columns=("order_id",), entity="order"),
        "logs": rule(Ignore(), name="logs", columns=("order_id",), entity="order"),
    }
    rows = {name: [{"id": 1, "order_id": 10}, {"id": 2, "order_id": 12}] for name in below}
    store = await harness.open(rules_of(orders(), *below.values()), {"orders": ROWS["orders"], **rows})
    events = Events()
    events.deleted((1,), 10)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 2),
        Effect(0, "order.bills", "set_default", Outcome.APPLIED, 1),
        Effect(0, "order.logs", "ignore", Outcome.SKIPPED, 0),
        Effect(0, "order.notes", "nullify", Outcome.APPLIED, 1),
    ]
    found = {name: await references(harness, name, "order_id") for name in below}
    assert found == {"notes": {1: None, 2: 12}, "bills": {1: 0, 2: 12}, "logs": {1: 10, 2: 12}}


@pytest.mark.needs(Feature.MARKS)
async def test_rows_below_are_marked_with_the_time_and_id_of_the_event_behind(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), items(MARK)), ROWS)
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch())
    found = {row["id"]: row["deleted_by"] for row in await harness.rows("items")}
    event = change.origin.event_id
    assert found == {100: event, 101: event, 102: event, 103: None}


@pytest.mark.parametrize("action", [Nullify(("customer_id",)), SetDefault({"customer_id": 0}), Ignore()])
async def test_nothing_follows_below_rows_that_stay(harness: Harness, action: Action) -> None:
    store = await harness.open(rules_of(orders(action), items()), ROWS)
    events = Events()
    events.deleted((1,), 10)
    assert [effect.dependent for effect in await apply(store, events.batch())] == ["customer.orders"]
    assert len(await harness.rows("items")) == 4
    assert await harness.head("order", (10,)) is None


@pytest.mark.needs(Feature.MARKS)
async def test_nothing_follows_below_marked_rows(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(MARK), items()), ROWS)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert len(await harness.rows("items")) == 4


async def test_key_change_of_a_parent_is_none_of_its_rows_own(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), items()), ROWS)
    events = Events()
    events.moved((1,), (5,), 10)
    assert [effect.dependent for effect in await apply(store, events.batch())] == ["customer.orders"]
    assert await references(harness, "orders", "customer_id") == {10: 5, 11: 5, 12: 2}
    assert await references(harness, "items", "order_id") == {100: 10, 101: 10, 102: 11, 103: 12}


def lines(on_delete: Action | None = None, on_update: Action | None = None) -> list[StoreRule]:
    """order (of an own event) -> lines, whose key holds the order's -> stops, which refer to both parts."""
    return [
        rule(Cascade(), name="lines", columns=("order_id",), entity="order", rows="line", own=LINE),
        rule(
            on_delete or Cascade(), on_update, name="stops", spec=LINE, columns=("order_no", "line_no"), entity="line"
        ),
    ]


LINES: dict[str, list[Row]] = {
    "lines": [{"id": 1, "order_id": 1}, {"id": 2, "order_id": 1}, {"id": 3, "order_id": 2}],
    "stops": [
        {"id": 10, "order_no": 1, "line_no": 1},
        {"id": 11, "order_no": 1, "line_no": 2},
        {"id": 12, "order_no": 2, "line_no": 3},
        {"id": 13, "order_no": 1, "line_no": 3},
    ],
}


async def stops(harness: Harness) -> dict[object, tuple[object, object]]:
    return {row["id"]: (row["order_no"], row["line_no"]) for row in await harness.rows("stops")}


async def test_key_change_goes_on_down_where_the_rows_key_holds_the_reference(harness: Harness) -> None:
    store = await harness.open(rules_of(*lines()), LINES)
    events = Events("order", "shop.public.orders")
    events.moved((1,), (5,), 10)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "line.stops", "cascade", Outcome.APPLIED, 2),
        Effect(0, "order.lines", "cascade", Outcome.APPLIED, 2),
    ]
    assert await references(harness, "lines", "order_id") == {1: 5, 2: 5, 3: 2}
    assert await stops(harness) == {10: (5, 1), 11: (5, 2), 12: (2, 3), 13: (1, 3)}
    left, came = await harness.head("line", (1, 1)), await harness.head("line", (5, 1))
    assert left is not None and came is not None
    assert [(fate.version, fate.to) for fate in left.fates] == [(Version(0, (1,)), (5, 1))]
    assert (came.seen, came.fates) == (Version(0, (1,)), ())


async def test_version_of_a_rows_key_counts_on_from_both_keys_of_a_change(harness: Harness) -> None:
    store = await harness.open(rules_of(*lines()), LINES)
    events = Events("order", "shop.public.orders")
    for at, (key, to) in enumerate(((1, 5), (5, 1), (1, 5)), 10):
        events.moved((key,), (to,), at)
        await apply(store, events.batch())
    events.deleted((5,), 20)
    await apply(store, events.batch())
    head, other = await harness.head("line", (5, 1)), await harness.head("line", (1, 1))
    assert head is not None and other is not None
    assert [(fate.version.position, fate.to) for fate in head.fates] == [((2,), (1, 1)), ((4,), None)]
    assert [(fate.version.position, fate.to) for fate in other.fates] == [((1,), (5, 1)), ((3,), (5, 1))]


async def test_swap_of_two_parents_swaps_what_depends_on_their_rows(harness: Harness) -> None:
    store = await harness.open(rules_of(*lines()), LINES)
    events = Events("order", "shop.public.orders")
    for at, (key, to) in enumerate(((1, 9), (2, 1), (9, 2)), 10):
        events.moved((key,), (to,), at)
    await apply(store, events.batch())
    assert await references(harness, "lines", "order_id") == {1: 2, 2: 2, 3: 1}
    assert await stops(harness) == {10: (2, 1), 11: (2, 2), 12: (1, 3), 13: (1, 3)}


async def test_row_that_moved_and_went_in_one_batch_does_both_to_what_depends_on_it(harness: Harness) -> None:
    store = await harness.open(rules_of(*lines(Cascade(), Nullify(("line_no",)))), LINES)
    events = Events("order", "shop.public.orders")
    events.moved((1,), (5,), 10)
    events.deleted((5,), 20)
    effects = sorted(await apply(store, events.batch()))
    assert [(e.change, e.dependent, e.action, e.rows) for e in effects if e.dependent == "line.stops"] == [
        (0, "line.stops", "nullify", 2),
        (1, "line.stops", "cascade", 0),
    ]
    assert await references(harness, "lines", "order_id") == {3: 2}
    assert await stops(harness) == {10: (1, None), 11: (1, None), 12: (2, 3), 13: (1, 3)}


async def test_chain_of_rows_that_refer_to_one_another_is_followed_to_its_end(harness: Harness) -> None:
    chain: list[Row] = [{"id": 1, "customer_id": 1, "answers_id": None}]
    chain += [{"id": i, "customer_id": None, "answers_id": i - 1} for i in range(2, 41)]
    chain += [{"id": 50, "customer_id": 2, "answers_id": None}]
    store = await harness.open(rules_of(*comments()), {"comments": chain})
    events = Events()
    events.deleted((1,), 10)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "comment.answers", "cascade", Outcome.APPLIED, 39),
        Effect(0, "customer.comments", "cascade", Outcome.APPLIED, 1),
    ]
    assert await ids(harness, "comments") == [50]


async def test_rows_that_refer_to_one_another_in_a_circle_end(harness: Harness) -> None:
    rows: list[Row] = [
        {"id": 1, "customer_id": 1, "answers_id": 3},
        {"id": 2, "customer_id": None, "answers_id": 1},
        {"id": 3, "customer_id": None, "answers_id": 2},
        {"id": 4, "customer_id": 1, "answers_id": 4},
        {"id": 5, "customer_id": None, "answers_id": 5},
    ]
    store = await harness.open(rules_of(*comments()), {"comments": rows})
    events = Events()
    events.deleted((1,), 10)
    effects = await apply(store, events.batch())
    assert sum(effect.rows for effect in effects) == 4
    assert await ids(harness, "comments") == [5]


async def test_tables_that_refer_to_each_other_end(harness: Harness) -> None:
    rules = rules_of(
        rule(Cascade(), name="teams", rows="team"),
        rule(Cascade(), name="members", columns=("team_id",), entity="team", rows="member"),
        rule(Cascade(), name="led", target="teams", columns=("lead_id",), entity="member", rows="team"),
    )
    rows: dict[str, list[Row]] = {
        "teams": [
            {"id": 1, "customer_id": 1, "lead_id": 10},
            {"id": 2, "customer_id": None, "lead_id": 10},
            {"id": 3, "customer_id": None, "lead_id": 12},
        ],
        "members": [{"id": 10, "team_id": 1}, {"id": 11, "team_id": 2}, {"id": 12, "team_id": 3}],
    }
    store = await harness.open(rules, rows)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert [await ids(harness, name) for name in ("teams", "members")] == [[3], [12]]


async def test_event_left_out_for_a_dependent_leaves_everything_below_as_it_is(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), rule(Cascade(), name="notes"), items()), ROWS)
    events = Events()
    events.deleted((1,), 10)
    mark = DeadLetterMark(Reason.STORE_REJECTED, "a" * 32)
    effects = await apply(store, events.batch(exceptions={(0, "customer.orders"): mark}))
    assert sorted((e.dependent, e.outcome, e.rows) for e in effects) == [
        ("customer.notes", Outcome.APPLIED, 0),
        ("customer.orders", Outcome.DEAD_LETTERED, 0),
        ("order.items", Outcome.DEAD_LETTERED, 0),
    ]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[10, 11, 12], [100, 101, 102, 103]]
    assert await harness.head("order", (10,)) is None


async def test_replay_changes_nothing_on_any_level(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), items()), ROWS)
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    await apply(store, batch)
    head = await harness.head("order", (10,))
    effects = await apply(await harness.another(), batch)
    assert {(e.outcome, e.rows) for e in effects} == {(Outcome.DUPLICATE, 0)}
    assert await harness.head("order", (10,)) == head


async def test_rows_with_events_of_their_own_are_recorded_by_those(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(recorded=False), items()), ROWS)
    customers, own = Events(), Events("order", "shop.public.orders")
    customers.deleted((1,), 10)
    await apply(store, customers.batch())
    assert await ids(harness, "items") == [103]
    assert await harness.head("order", (10,)) is None
    own.deleted((10,), 500)
    assert await apply(store, own.batch()) == [Effect(0, "order.items", "cascade", Outcome.APPLIED, 0)]


async def test_what_follows_acts_on_the_rows_that_came_last_to_a_key(harness: Harness) -> None:
    """Order 11 became 10 at 30, and the events of the old 10 are still on their way: they act on its items."""
    rows = {
        "orders": [{"id": 10, "customer_id": 1}],
        "items": [{"id": 100, "order_id": 10}, {"id": 101, "order_id": 11}],
    }
    store = await harness.open(rules_of(orders(recorded=False), items()), rows)
    customers, own = Events(), Events("order", "shop.public.orders")
    own.moved((11,), (10,), 30)
    await apply(store, own.batch())
    assert await harness.arrivals() == 1
    customers.deleted((1,), 10)
    effects = await apply(store, customers.batch())
    assert [(e.dependent, e.rows) for e in effects] == [("customer.orders", 1), ("order.items", 1)]
    assert await ids(harness, "items") == [100]


async def test_where_holds_on_every_level(harness: Harness) -> None:
    rows: dict[str, list[Row]] = {
        "orders": [{"id": 10, "customer_id": 1, "region": "eu"}, {"id": 11, "customer_id": 1, "region": "us"}],
        "items": [
            {"id": 100, "order_id": 10, "kind": "a"},
            {"id": 101, "order_id": 10, "kind": "b"},
            {"id": 102, "order_id": 11, "kind": "a"},
        ],
    }
    rules = rules_of(rule(Cascade(), name="orders", rows="order", where={"region": "eu"}), items(where={"kind": "a"}))
    store = await harness.open(rules, rows)
    events = Events()
    events.deleted((1,), 10)
    assert [(e.dependent, e.rows) for e in await apply(store, events.batch())] == [
        ("customer.orders", 1),
        ("order.items", 1),
    ]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[11], [101, 102]]


async def test_several_references_to_one_entity_reach_the_same_rows_once(harness: Harness) -> None:
    rules = rules_of(
        orders(), rule(Cascade(), name="billed", target="orders", columns=("payer_id",), rows="order"), items()
    )
    rows = {
        "orders": [{"id": 10, "customer_id": 1, "payer_id": 1}, {"id": 11, "customer_id": 2, "payer_id": 1}],
        "items": [{"id": 100, "order_id": 10}, {"id": 101, "order_id": 11}],
    }
    store = await harness.open(rules, rows)
    events = Events()
    events.deleted((1,), 10)
    effects = await apply(store, events.batch())
    assert sorted((e.dependent, e.rows) for e in effects) == [
        ("customer.billed", 1),
        ("customer.orders", 1),
        ("order.items", 2),
    ]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[], []]


async def test_event_with_too_many_rows_further_down_is_held_for_its_branch(harness: Harness) -> None:
    rules = rules_of(orders(), rule(Cascade(), name="notes"), items(max_rows=2))
    store = await harness.open(rules, ROWS)
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    result = await store.apply(batch, Deadline.after(30))
    assert isinstance(result, Held)
    assert result.dependent == "customer.orders"
    assert "order.items" in result.message
    assert [await ids(harness, name) for name in ("orders", "items")] == [[10, 11, 12], [100, 101, 102, 103]]
    events = Events()
    events.deleted((2,), 10)
    assert [(e.dependent, e.rows) for e in await apply(store, events.batch())][1:] == [
        ("customer.notes", 0),
        ("order.items", 1),
    ]


async def test_redriven_event_takes_every_level_along_after_all(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(), rule(Cascade(), name="notes"), items()), ROWS)
    events = Events()
    change = events.deleted((1,), 10)
    mark = DeadLetterMark(Reason.STORE_REJECTED, "a" * 32)
    await apply(store, events.batch(exceptions={(0, "customer.orders"): mark}))
    effects = await apply(store, again(change))
    assert sorted((e.dependent, e.outcome, e.rows) for e in effects) == [
        ("customer.orders", Outcome.APPLIED, 2),
        ("order.items", Outcome.APPLIED, 3),
    ]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[12], [103]]


@pytest.mark.needs(Feature.OUTBOX)
async def test_what_others_have_to_be_told_waits_in_the_outbox_until_it_is_published(harness: Harness) -> None:
    line = rule(Cascade(), name="lines", columns=("order_id",), entity="order", rows="line", own=LINE, published=True)
    store = await harness.open(rules_of(line), LINES)
    events = Events("order", "shop.public.orders")
    events.moved((2,), (5,), 10)
    await apply(store, events.batch())
    events.deleted((5,), 20)
    await apply(store, events.batch())
    waiting = await store.waiting(100, Deadline.after(30))  # type: ignore[attr-defined]
    said = [(json.loads(each.record.value), json.loads(each.record.key)) for each in waiting]
    assert [(value["op"], value["key"], value["to"], value["version"], key) for value, key in said] == [
        ("key_changed", [2, 3], [5, 3], [0, 1], {"order_id": 2, "id": 3}),
        ("arrived", [5, 3], None, [0, 1], {"order_id": 5, "id": 3}),
        ("deleted", [5, 3], None, [0, 2], {"order_id": 5, "id": 3}),
    ]
    assert [each.record.version for each in await store.waiting(2, Deadline.after(30))] == [1, 1]  # type: ignore[attr-defined]
    await store.published([each.id for each in waiting[:2]], Deadline.after(30))  # type: ignore[attr-defined]
    assert await store.waiting(100, Deadline.after(30)) == waiting[2:]  # type: ignore[attr-defined]


async def test_rows_that_are_only_counted_stay_with_what_depends_on_them(harness: Harness) -> None:
    store = await harness.open(rules_of(orders(Restrict()), items()), ROWS)
    events = Events()
    events.deleted((1,), 10)
    events.moved((2,), (3,), 11)
    effects = await apply(store, events.batch())
    assert {(e.change, e.dependent): (e.outcome, e.rows) for e in effects} == {
        (0, "customer.orders"): (Outcome.RESTRICTED, 2),
        (1, "customer.orders"): (Outcome.APPLIED, 1),
    }
    assert [await ids(harness, name) for name in ("orders", "items")] == [[10, 11, 12], [100, 101, 102, 103]]


async def test_restrict_below_removed_rows_reports_those_that_stay_behind(harness: Harness) -> None:
    """Native foreign keys would refuse the whole deletion, which has happened already. No limit holds what is only
    counted."""
    store = await harness.open(rules_of(orders(), items(Restrict(), max_rows=1)), ROWS)
    events = Events()
    events.deleted((1,), 10)
    events.deleted((5,), 11)
    effects = await apply(store, events.batch())
    assert {(e.change, e.dependent): (e.outcome, e.rows) for e in effects} == {
        (0, "customer.orders"): (Outcome.APPLIED, 2),
        (0, "order.items"): (Outcome.RESTRICTED, 3),
        (1, "customer.orders"): (Outcome.APPLIED, 0),
        (1, "order.items"): (Outcome.APPLIED, 0),
    }
    assert [await ids(harness, name) for name in ("orders", "items")] == [[12], [100, 101, 102, 103]]
    history = await store.history("order", (10,), Deadline.after(30))  # type: ignore[attr-defined]
    assert [dict(each.done) for each in history.enforced] == [{"order.items": ("restrict", 2)}]


def born(second: int) -> datetime:
    """Before (or, from 10 on, after) the events of these tests."""
    return datetime.fromtimestamp(AT_MS / 1000 + second, UTC)


async def test_rows_that_are_too_young_stay_with_what_depends_on_them(harness: Harness) -> None:
    aged = rule(Cascade(), name="orders", rows="order", as_of="born_at")
    rows = ROWS | {"orders": [{**row, "born_at": born(20 if row["id"] == 11 else 0)} for row in ROWS["orders"]]}
    store = await harness.open(rules_of(aged, items()), rows)
    events = Events()
    events.deleted((1,), 10_000)
    effects = await apply(store, events.batch())
    assert sorted((e.dependent, e.rows) for e in effects) == [("customer.orders", 1), ("order.items", 2)]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[11, 12], [102, 103]]


async def test_age_counts_on_every_level(harness: Harness) -> None:
    rows = ROWS | {"items": [{**row, "born_at": born(20 if row["id"] == 100 else 0)} for row in ROWS["items"]]}
    store = await harness.open(rules_of(orders(), items(as_of="born_at")), rows)
    events = Events()
    events.deleted((1,), 10_000)
    effects = await apply(store, events.batch())
    assert sorted((e.dependent, e.rows) for e in effects) == [("customer.orders", 2), ("order.items", 2)]
    assert [await ids(harness, name) for name in ("orders", "items")] == [[12], [100, 103]]


async def test_age_counts_in_rows_that_refer_to_one_another(harness: Harness) -> None:
    """A young answer stays, and what answers it."""
    answers = rule(
        Cascade(),
        name="answers",
        target="comments",
        columns=("answers_id",),
        entity="comment",
        rows="comment",
        as_of="born_at",
    )
    told = [(1, 1, None, 0), (2, None, 1, 0), (3, None, 2, 20), (4, None, 3, 0), (5, None, 2, 0)]
    rows: dict[str, list[Row]] = {
        "comments": [{"id": n, "customer_id": c, "answers_id": a, "born_at": born(s)} for n, c, a, s in told]
    }
    store = await harness.open(rules_of(rule(Cascade(), name="comments", rows="comment"), answers), rows)
    events = Events()
    events.deleted((1,), 10_000)
    await apply(store, events.batch())
    assert await ids(harness, "comments") == [3, 4]


@pytest.mark.needs(Feature.ARRAYS)
async def test_key_of_a_removed_row_is_taken_out_of_lists(harness: Harness) -> None:
    listed = rule(Cascade(), name="bundles", columns=("order_ids",), entity="order", array=True)
    rows = ROWS | {"bundles": [{"id": 1, "order_ids": [10, 12, 11]}, {"id": 2, "order_ids": [12]}]}
    store = await harness.open(rules_of(orders(), listed), rows)
    events = Events()
    events.deleted((1,), 10)
    effects = await apply(store, events.batch())
    assert sorted((e.dependent, e.rows) for e in effects) == [("customer.orders", 2), ("order.bundles", 2)]
    assert [row["order_ids"] for row in await harness.rows("bundles")] == [[12], [12]]
