"""Restrict writes nothing: it counts the rows that refer to a key when its event applies, over every store."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import Cascade, Nullify, Restrict
from integrity.ports import Deadline
from integrity.stores.memory import Row
from tests.contract.harness import Feature, Harness
from tests.contract.test_redrive import again, left_out
from tests.contract.test_sweeps import began, swept
from tests.contract.world import COMPOSITE, ENTITY, MARK, Events, apply, orders, rule, rules_of


async def references(harness: Harness) -> dict[object, object]:
    return {row["id"]: row["customer_id"] for row in await harness.rows("orders")}


def told(effects: list[Effect]) -> list[tuple[int, str, Outcome, int]]:
    return [(e.change, e.action, e.outcome, e.rows) for e in sorted(effects)]


async def test_restricted_deletion_leaves_its_rows_and_says_how_many(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict())), orders(1, 1, 2, None))
    events = Events()
    events.deleted((1,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 2)]
    assert await references(harness) == {1: 1, 2: 1, 3: 2, 4: None}
    history = await store.history(ENTITY, (1,), Deadline.after(30))
    assert history is not None
    assert [each.done for each in history.enforced] == [{"customer.orders": ("restrict", 2)}]


async def test_restrict_without_rows_is_applied(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict())), orders(1, None))
    events = Events()
    events.deleted((2,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.APPLIED, 0)]


async def test_restricted_key_change_leaves_its_rows_at_the_old_key(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), Restrict())), orders(1, 1, 2))
    events = Events()
    events.moved((1,), (3,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 2)]
    assert await references(harness) == {1: 1, 2: 1, 3: 2}


async def test_restricted_deletion_counts_the_rows_that_the_same_batch_led_to_its_key(harness: Harness) -> None:
    """And those that the batch leads away afterwards, which are there when the deletion applies."""
    store = await harness.open(rules_of(rule(Restrict())), orders(1, 2, 2))
    events = Events()
    events.moved((2,), (1,), 10)
    events.deleted((1,), 20)
    events.alive((1,), 30)
    events.moved((1,), (4,), 40)
    assert told(await apply(store, events.batch())) == [
        (0, "cascade", Outcome.APPLIED, 2),
        (1, "restrict", Outcome.RESTRICTED, 3),
        (3, "cascade", Outcome.APPLIED, 3),
    ]
    assert await references(harness) == {1: 4, 2: 4, 3: 4}


async def test_restricted_deletion_leaves_out_the_rows_that_came_to_its_key_later(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict())), orders(1, 2, 2))
    events = Events()
    events.moved((2,), (1,), 20, partition=1)
    await apply(store, events.batch())
    assert await harness.arrivals() == 2
    events.deleted((1,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 1)]
    assert await harness.arrivals() == 2
    events.deleted((1,), 30)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 3)]
    assert await references(harness) == {1: 1, 2: 1, 3: 1}


async def test_restrict_counts_beside_groups_that_come_to_the_same_key(harness: Harness) -> None:
    """Rows are counted before the statement of the same batch that leads others to their key."""
    store = await harness.open(rules_of(rule(Restrict())), orders(1, 2, 2))
    events = Events()
    events.deleted((1,), 10)
    events.alive((1,), 15)
    events.deleted((1,), 16)
    events.moved((2,), (1,), 20)
    assert told(await apply(store, events.batch())) == [
        (0, "restrict", Outcome.RESTRICTED, 1),
        (2, "restrict", Outcome.RESTRICTED, 1),
        (3, "cascade", Outcome.APPLIED, 2),
    ]


async def test_restrict_counts_within_where_and_whole_references_only(harness: Harness) -> None:
    rules = rules_of(rule(Restrict(), Restrict(), spec=COMPOSITE, where={"region": ("eu", "uk")}))
    key = {"customer_tenant": "a", "customer_code": 1}
    rows: list[Row] = [
        {"id": 1, **key, "region": "eu"},
        {"id": 2, **key, "region": "us"},
        {"id": 3, **key, "customer_code": None, "region": "eu"},
        {"id": 4, **key, "region": "uk"},
    ]
    store = await harness.open(rules, {"orders": rows})
    events = Events()
    events.deleted(("a", 1), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 2)]


@pytest.mark.needs(Feature.MARKS)
async def test_restricted_key_change_does_not_count_marked_rows(harness: Harness) -> None:
    rows: list[Row] = [
        {"id": 1, "customer_id": 1},
        {"id": 2, "customer_id": 1, "deleted_at": datetime(2020, 1, 1, tzinfo=UTC)},
    ]
    store = await harness.open(rules_of(rule(MARK, Restrict())), {"orders": rows})
    events = Events()
    events.moved((1,), (3,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 1)]


async def test_repeated_restricted_deletion_is_a_duplicate_and_not_counted_again(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    events.deleted((1,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.DUPLICATE, 0)]


async def test_restrict_of_one_dependent_does_not_hold_up_another(harness: Harness) -> None:
    """Unlike a native foreign key: the parent is gone already."""
    rules = rules_of(rule(Restrict(), name="orders"), rule(Nullify(("customer_id",)), name="notes"))
    store = await harness.open(rules, {**orders(1), "notes": [{"id": 1, "customer_id": 1}]})
    events = Events()
    events.deleted((1,), 10)
    assert sorted(await apply(store, events.batch())) == [
        Effect(0, "customer.notes", "nullify", Outcome.APPLIED, 1),
        Effect(0, "customer.orders", "restrict", Outcome.RESTRICTED, 1),
    ]


async def test_restricted_event_is_never_held_since_it_changes_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict(), max_rows=1)), orders(1, 1, 2))
    events = Events()
    events.deleted((1,), 10)
    assert told(await apply(store, events.batch())) == [(0, "restrict", Outcome.RESTRICTED, 2)]
    events.moved((2,), (1,), 20)
    events.deleted((1,), 30)
    assert told(await apply(store, events.batch())) == [
        (0, "cascade", Outcome.APPLIED, 1),
        (1, "restrict", Outcome.RESTRICTED, 3),
    ]


async def test_restricted_event_that_was_a_dead_letter_counts_when_it_comes_back(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Restrict())), orders(1, 1, 2))
    events = Events()
    change = events.deleted((1,), 10)
    assert told(await apply(store, events.batch(exceptions=left_out()))) == [
        (0, "restrict", Outcome.DEAD_LETTERED, 0),
    ]
    assert told(await apply(store, again(change))) == [(0, "restrict", Outcome.RESTRICTED, 2)]
    assert await references(harness) == {1: 1, 2: 1, 3: 2}


async def test_sweep_does_nothing_where_the_rule_says_restrict(harness: Harness) -> None:
    """Not to a key that was deleted, nor to rows that a key change leads to it."""
    store = await harness.open(rules_of(rule(Restrict())), {"orders": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    events.moved((2,), (3,), 20)
    events.deleted((3,), 30)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 1, "customer_id": 1}, {"id": 2, "customer_id": 2})
    assert await swept(store) == [((2,), "customer.orders", "cascade", 1)]
    assert {row["id"]: row["customer_id"] for row in await harness.rows("orders")} == {1: 1, 2: 3}
