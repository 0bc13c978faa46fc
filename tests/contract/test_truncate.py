"""A truncate that deletes all parents, over every store: noted with its batch, carried out page by page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from integrity.core.batch import Batch, TopicPartition
from integrity.core.change import Version
from integrity.core.keys import Key
from integrity.core.outcome import Applied, ApplyResult, Outcome, Rejected
from integrity.core.rules.model import (
    Action,
    Cascade,
    Nullify,
    Restrict,
)
from integrity.errors import Reason
from integrity.kafka.dead_letters import Status
from integrity.ports import Deadline
from integrity.service import truncate as service
from tests.contract.graph_rules import items, parts
from tests.contract.harness import Feature, Harness, Rules
from tests.contract.truncates import Desk, back, said
from tests.contract.world import AT_MS, ENTITY, TOPIC, Events, apply, orders, rule, rules_of

ORDERS = "customer.orders"


async def opened(harness: Harness, rules: Rules, rows: dict[str, list[dict[str, object]]]) -> Desk:
    store: Any = await harness.open(rules, rows)
    store.name = "store"
    return Desk(store, rules)


async def references(harness: Harness, target: str = "orders") -> list[object]:
    return [row["customer_id"] for row in await harness.rows(target)]


def kept(on_delete: Action | None = None, **more: Any) -> Any:
    return rule(on_delete or Cascade(), keeps_alive=True, **more)


async def test_every_parent_that_is_known_to_live_is_deleted_at_the_version_of_the_truncate(harness: Harness) -> None:
    """Key 3 lives in another topic, 4 was created since, 5 was never heard of; 6 had gone before, so that its row is a
    late one; 7 came by a key change."""
    rules = rules_of(kept(), kept(Nullify(("customer_id",)), name="notes"))
    rows = {"orders": orders(1, 2, 3, 4, 5, 6, 8)["orders"], "notes": [{"id": 1, "customer_id": 1}]}
    desk = await opened(harness, rules, rows)
    events = Events()
    for key in (1, 2, 4, 6):
        events.alive((key,), key)
    events.deleted((6,), 7)
    events.moved((8,), (7,), 8)
    events.arrived((7,), 8, partition=1)
    await apply(desk.store, events.batch())
    await harness.write("orders", {"id": 20, "customer_id": 6})
    other = Events(topic="shop.public.others")
    other.alive((3,), 3)
    await apply(desk.store, other.batch())
    note = events.truncated(10)
    events.alive((4,), 11, partition=1)
    await apply(desk.store, events.batch())
    assert await desk.waiting() == [note.id]
    desk.here.enforced = False
    await desk.round()
    assert len(await references(harness)) == 7, "it waits until everything is enforced"
    desk.here.enforced = True
    await desk.round()
    assert await references(harness) == [3, 4, 5, 6]
    assert await references(harness, "notes") == [None]
    head = await harness.head(ENTITY, (1,))
    assert head is not None and head.seen == head.fates[-1].version == Version(0, (10,))
    assert head.fates[-1].event_id == f"{TOPIC}/0/6"
    assert await harness.head(ENTITY, (5,)) is None
    assert await desk.waiting() == []
    assert desk.here.asked == [{TopicPartition(TOPIC, 1): 7}] * 2, "the ends are those of when it was found"
    assert desk.done() == {(ORDERS, Outcome.APPLIED): 3, ("customer.notes", Outcome.APPLIED): 1}


async def test_older_event_after_it_is_stale_and_a_newer_creation_is_like_any_other(harness: Harness) -> None:
    desk = await opened(harness, rules_of(kept()), orders(1, 2))
    events = Events()
    events.alive((1,), 1)
    events.alive((2,), 2)
    events.truncated(10)
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == []
    events.alive((1,), 20)
    await apply(desk.store, events.batch())
    await harness.write("orders", {"id": 3, "customer_id": 1}, {"id": 4, "customer_id": 2})
    events.deleted((1,), 5, partition=1)
    events.moved((2,), (1,), 6, partition=1)
    assert {effect.outcome for effect in await apply(desk.store, events.batch())} == {Outcome.STALE}
    assert await references(harness) == [1, 2]
    events.deleted((1,), 30)
    await apply(desk.store, events.batch())
    assert await references(harness) == [2]


async def test_rows_that_came_by_a_later_key_change_stay(harness: Harness) -> None:
    """1→2 comes after the truncate, of which 2's own partition has not said so yet when its rows are taken."""
    desk = await opened(harness, rules_of(kept()), orders(1, 2))
    events = Events()
    events.alive((2,), 1, partition=1)
    note = events.truncated(10)
    events.alive((1,), 11)
    events.moved((1,), (2,), 20)
    await apply(desk.store, events.batch())
    assert await references(harness) == [2, 2]
    await desk.round()
    assert [row["id"] for row in await harness.rows("orders")] == [1]
    assert note.id not in await desk.waiting()


async def test_what_was_begun_is_carried_out_by_the_next_process_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KEYS_MAX", 3)
    desk = await opened(harness, rules_of(kept()), orders(*range(1, 11)))
    events = Events()
    for key in range(1, 11):
        events.alive((key,), key)
    events.truncated(50)
    await apply(desk.store, events.batch())
    real, calls = desk.store.apply, 0

    async def dying(batch: Batch, deadline: Deadline) -> ApplyResult:
        nonlocal calls
        calls += batch.page is not None
        if calls == 3:
            raise asyncio.CancelledError
        result: ApplyResult = await real(batch, deadline)
        return result

    desk.store.apply = dying
    with pytest.raises(asyncio.CancelledError):
        await desk.round()
    left = len(await references(harness))
    assert 0 < left < 10
    desk.store.apply = real
    store: Any = await harness.another()
    store.name = "store"
    second = Desk(store, rules_of(kept()))
    await second.round()
    assert await references(harness) == []
    assert second.done() == {(ORDERS, Outcome.APPLIED): left}
    assert await second.waiting() == []


async def test_rows_of_all_pages_are_counted_first_and_held_as_one_dead_letter_until_it_is_approved(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key has more rows than the rule allows; all together have. What is created meanwhile survives the approval."""
    monkeypatch.setattr(service, "KEYS_MAX", 2)
    rules = rules_of(kept(max_rows=3), kept(Nullify(("customer_id",)), name="notes", max_rows=3))
    rows = {"orders": orders(1, 2, 3, 4)["orders"], "notes": [{"id": n, "customer_id": n} for n in (1, 2, 3)]}
    desk = await opened(harness, rules, rows)
    events = Events()
    for key in (1, 2, 3, 4):
        events.alive((key,), key)
    note = events.truncated(10)
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == [1, 2, 3, 4]
    assert await references(harness, "notes") == [None, None, None], "three rows are as many as it allows"
    [letter] = desk.letters.published
    assert (letter.dependent, letter.status, letter.reason) == (ORDERS, Status.HELD, Reason.TOO_MANY_ROWS)
    assert letter.record == note.record
    assert await desk.waiting() == []
    await harness.write("orders", {"id": 9, "customer_id": 1})
    events.alive((2,), 20)
    events.noted(said(note), back(desk.letters))
    await apply(desk.store, events.batch())
    await desk.round()
    assert len(await references(harness)) == 5, "it is not approved, and there are four rows"
    assert [(each.status, each.retries) for each in desk.letters.published[1:]] == [(Status.HELD, 1)]
    assert not desk.letters.marked
    events.noted(said(note), back(desk.letters, approved=True, retries=2))
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == [2]
    assert [(each.id, each.status) for each in desk.letters.marked] == [(letter.id, Status.RESOLVED)]
    assert await desk.waiting() == []


async def test_limit_further_down_holds_the_whole_branch(harness: Harness) -> None:
    rules = rules_of(rule(Cascade(), name="orders", rows="order", keeps_alive=True), items(max_rows=3), parts())
    rows: dict[str, list[dict[str, object]]] = {
        "orders": [{"id": n, "customer_id": n} for n in (1, 2)],
        "items": [{"id": 10 * n + i, "order_id": n} for n in (1, 2) for i in (1, 2)],
    }
    desk = await opened(harness, rules, rows)
    events = Events()
    events.alive((1,), 1)
    events.alive((2,), 2)
    note = events.truncated(10)
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == [1, 2] and len(await harness.rows("items")) == 4
    [letter] = desk.letters.published
    assert letter.dependent == ORDERS and "order.items" in letter.message
    events.noted(said(note), back(desk.letters, approved=True))
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == [] and await harness.rows("items") == []


async def test_key_that_can_not_be_deleted_is_a_dead_letter_and_the_others_go(harness: Harness) -> None:
    desk = await opened(harness, rules_of(kept()), orders(1, 2, 3))
    events = Events()
    for key in (1, 2, 3):
        events.alive((key,), key)
    note = events.truncated(10)
    await apply(desk.store, events.batch())
    real = desk.store.apply

    async def refusing(batch: Batch, deadline: Deadline) -> ApplyResult:
        if any(change.key == (2,) and (i, ORDERS) not in batch.exceptions for i, change in enumerate(batch.changes)):
            return Rejected(ORDERS, Reason.CONSTRAINT_VIOLATION, "Something refers to the row.")
        result: ApplyResult = await real(batch, deadline)
        return result

    desk.store.apply = refusing
    await desk.round()
    assert await references(harness) == [2]
    assert [each.reason for each in desk.letters.published] == [Reason.CONSTRAINT_VIOLATION]
    desk.store.apply = real
    events.noted(said(note), back(desk.letters))
    await apply(desk.store, events.batch())
    await desk.round()
    assert await references(harness) == []
    assert [each.status for each in desk.letters.marked] == [Status.RESOLVED]


async def test_restrict_reports_and_rows_too_young_stay(harness: Harness) -> None:
    def born(second: int) -> datetime:
        return datetime.fromtimestamp(AT_MS / 1000 + second, UTC)

    rules = rules_of(kept(as_of="born_at"), kept(Restrict(), name="notes"))
    rows: dict[str, list[dict[str, object]]] = {
        "orders": [{"id": n, "customer_id": 1, "born_at": born(second)} for n, second in ((1, -5), (2, 5))],
        "notes": [{"id": 1, "customer_id": 1}],
    }
    desk = await opened(harness, rules, rows)
    events = Events()
    events.alive((1,), 1)
    events.truncated(10)
    await apply(desk.store, events.batch())
    await desk.round()
    assert [row["id"] for row in await harness.rows("orders")] == [2]
    assert desk.done() == {(ORDERS, Outcome.APPLIED): 1, ("customer.notes", Outcome.RESTRICTED): 1}


async def test_page_with_more_rows_than_a_transaction_is_to_have_is_cut(harness: Harness) -> None:
    rules = rules_of(kept())
    store: Any = await harness.open(rules, orders(*([1] * 4), *([2] * 4), *([3] * 12)), rows_max=5)
    store.name = "store"
    desk = Desk(store, rules)
    events = Events()
    for key in (1, 2, 3):
        events.alive((key,), key)
    events.truncated(10)
    await apply(desk.store, events.batch())
    sizes: list[int] = []
    real = desk.store.apply

    async def watched(batch: Batch, deadline: Deadline) -> ApplyResult:
        result: ApplyResult = await real(batch, deadline)
        if isinstance(result, Applied) and batch.page is not None:
            sizes.append(sum(effect.rows for effect in result.effects))
        return result

    desk.store.apply = watched
    await desk.round()
    assert await references(harness) == []
    assert sorted(sizes) == [4, 4, 12], "no more than one key at a time"


@pytest.mark.needs(Feature.SHARED)
async def test_two_processes_that_carry_out_one_truncate_do_it_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KEYS_MAX", 3)
    rules = rules_of(kept())
    desk = await opened(harness, rules, orders(*range(20)))
    other: Any = await harness.another()
    assert await other.check(Deadline.after(30)) == []
    other.name = "store"
    second = Desk(other, rules)
    events = Events()
    for key in range(20):
        events.alive((key,), key + 1)
    events.truncated(50)
    await apply(desk.store, events.batch())
    await asyncio.gather(desk.round(), second.round())
    assert await references(harness) == []
    done: list[Key] = [*desk.done().values(), *second.done().values()]  # type: ignore[list-item]
    assert sum(done) == 20  # type: ignore[arg-type]
    assert await desk.waiting() == []
