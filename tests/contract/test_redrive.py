"""What a dead letter may still do when it comes back, and what waits for one that has not, over every store."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from integrity.core.batch import Batch, DeadLetterMark, Discard, Redrive, Span, TopicPartition
from integrity.core.change import ParentChange, Version
from integrity.core.outcome import Effect, Outcome, Rejected
from integrity.core.rules.model import Cascade, Nullify
from integrity.errors import Reason
from integrity.ports import Deadline, Store
from integrity.stores.memory import Row
from tests.contract.harness import Feature, Harness, Rules
from tests.contract.world import AT_MS, ENTITY, Events, apply, orders, rule, rules_of

REDRIVE = TopicPartition("integrity.redrive", 0)
ORDERS, NOTES = "customer.orders", "customer.notes"


def two_dependents() -> Rules:
    return rules_of(rule(Cascade(), name="orders"), rule(Nullify(("customer_id",)), name="notes"))


def rows_of_two(*references: int) -> dict[str, list[Row]]:
    notes: list[Row] = [{"id": i, "customer_id": key} for i, key in enumerate(references, 1)]
    return {**orders(*references), "notes": notes}


def left_out(dependent: str = ORDERS, index: int = 0, letter: str = "dead-1") -> dict[tuple[int, str], DeadLetterMark]:
    return {(index, dependent): DeadLetterMark(Reason.CONSTRAINT_VIOLATION, letter)}


def again(
    *changes: ParentChange,
    dependent: str = ORDERS,
    first: int = 0,
    exceptions: dict[tuple[int, str], DeadLetterMark] | None = None,
) -> Batch:
    """The changes come back from their dead letters, read from offset `first` on of the topic of redrives."""
    redrives = {i: Redrive(f"dead-{i + 1}", dependent, REDRIVE, first + i) for i in range(len(changes))}
    return Batch(
        changes,
        {REDRIVE: Span(first, first + len(changes))},
        at_ms=AT_MS,
        exceptions=exceptions or {},
        redrives=redrives,
    )


async def references(harness: Harness, target: str = "orders") -> dict[object, object]:
    return {row["id"]: row["customer_id"] for row in await harness.rows(target)}


async def done(store: Store) -> Mapping[str, tuple[str, int]]:
    """What the ledger says that the newest fate of 1 did."""
    history = await store.history(ENTITY, (1,), Deadline.after(10))  # type: ignore[attr-defined]
    return history.enforced[-1].done


async def refused(store: Store, batch: Batch) -> Rejected:
    result = await store.apply(batch, Deadline.after(30))
    assert isinstance(result, Rejected), result
    return result


async def set_apart(store: Store, events: Events, change: ParentChange) -> ParentChange:
    """Apply one event with its effect on orders left out."""
    await apply(store, events.batch(exceptions=left_out()))
    return change


async def test_redrive_acts_on_its_dependent_alone_and_once(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1, 1, 2))
    events = Events()
    change = await set_apart(store, events, events.deleted((1,), 10))
    assert await references(harness) == {1: 1, 2: 1, 3: 2}
    before = await harness.head(ENTITY, (1,))
    assert await done(store) == {NOTES: ("nullify", 2)}
    assert await apply(store, again(change)) == [Effect(0, ORDERS, "cascade", Outcome.APPLIED, 2)]
    assert await references(harness) == {3: 2}
    assert await harness.exceptions(ENTITY, (1,)) == set()
    assert await harness.head(ENTITY, (1,)) == before
    assert await done(store) == {NOTES: ("nullify", 2), ORDERS: ("cascade", 2)}
    assert await apply(store, again(change, first=1)) == [Effect(0, ORDERS, "cascade", Outcome.DUPLICATE, 0)]
    assert await store.progress([REDRIVE], Deadline.after(10)) == {REDRIVE: 2}


@pytest.mark.needs(Feature.ARRAYS)
async def test_redrive_acts_on_the_elements_of_lists(harness: Harness) -> None:
    rows: list[Row] = [{"id": 1, "customer_ids": [1, 2, 1]}, {"id": 2, "customer_ids": [3]}]
    rules = rules_of(rule(Cascade(), columns=("customer_ids",), array=True))
    store = await harness.open(rules, {"orders": rows})
    events = Events()
    change = await set_apart(store, events, events.moved((1,), (3,), 10))
    assert [row["customer_ids"] for row in await harness.rows("orders")] == [[1, 2, 1], [3]]
    assert [effect.rows for effect in await apply(store, again(change))] == [2]
    assert [row["customer_ids"] for row in await harness.rows("orders")] == [[3, 2, 3], [3]]
    events.deleted((3,), 20, partition=1)
    assert [effect.rows for effect in await apply(store, events.batch())] == [3]
    assert [row["customer_ids"] for row in await harness.rows("orders")] == [[2], []]


async def test_redrive_that_was_enforced_is_not_enforced_again_on_replay(harness: Harness) -> None:
    """The progress that counts is that of the redrive, not that of the event's own partition."""
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = await set_apart(store, events, events.deleted((1,), 10))
    batch = again(change)
    await apply(store, batch)
    assert await apply(store, batch) == [Effect(0, ORDERS, "cascade", Outcome.DUPLICATE, 0)]


async def test_redrive_beside_news_of_its_own_partition_is_not_taken_for_done(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1, 2))
    events = Events()
    change = await set_apart(store, events, events.deleted((1,), 10))
    events.deleted((2,), 11)
    news, back = events.batch(), again(change)
    both = Batch(
        news.changes + back.changes,
        {**news.spans, **back.spans},
        at_ms=AT_MS,
        redrives={1: back.redrives[0]},
    )
    assert {(e.change, e.dependent, e.outcome) for e in await apply(store, both)} == {
        (0, ORDERS, Outcome.APPLIED),
        (0, NOTES, Outcome.APPLIED),
        (1, ORDERS, Outcome.APPLIED),
    }
    assert await references(harness) == {}


async def test_event_that_was_never_left_out_does_not_act_again(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch())
    assert [e.outcome for e in await apply(store, again(change))] == [Outcome.DUPLICATE]
    assert [e.outcome for e in await apply(store, again(change, dependent=NOTES, first=1))] == [Outcome.DUPLICATE]


async def test_redriven_key_change_goes_on_through_later_fates(harness: Harness) -> None:
    """a→b at 10 was left out; b moved on to c at 20 meanwhile: the rows of a go to c."""
    store = await harness.open(two_dependents(), rows_of_two(1, 9))
    events = Events()
    change = await set_apart(store, events, events.moved((1,), (2,), 10))
    events.arrived((2,), 10, partition=1)
    events.moved((2,), (3,), 20, partition=1)
    await apply(store, events.batch())
    assert await references(harness) == {1: 1, 2: 9}
    assert [e.rows for e in await apply(store, again(change))] == [1]
    assert await references(harness) == {1: 3, 2: 9}


async def test_redriven_delete_leaves_rows_that_arrived_after_it_alone(harness: Harness) -> None:
    """b's deletion at 10 was left out; a→b came at 20: those rows are not b's to delete."""
    store = await harness.open(two_dependents(), rows_of_two(1, 2))
    events = Events()
    change = await set_apart(store, events, events.deleted((2,), 10))
    events.moved((1,), (2,), 20, partition=1)
    await apply(store, events.batch())
    assert await references(harness) == {1: 2, 2: 2}
    assert [e.rows for e in await apply(store, again(change))] == [1]
    assert await references(harness) == {1: 2}


async def test_redrive_leaves_a_recreated_parent_alone_and_stays_an_exception(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = await set_apart(store, events, events.deleted((1,), 10))
    events.alive((1,), 20)
    await apply(store, events.batch())
    result = await refused(store, again(change))
    assert (result.dependent, result.reason) == (ORDERS, Reason.CONSTRAINT_VIOLATION)
    assert await references(harness) == {1: 1}
    back = again(change, exceptions=left_out())
    assert await apply(store, back) == [Effect(0, ORDERS, "cascade", Outcome.DEAD_LETTERED, 0)]
    assert await harness.exceptions(ENTITY, (1,)) == {ORDERS}


async def test_later_event_waits_for_the_dead_letter_of_its_key_on_that_dependent(harness: Harness) -> None:
    """1→2 was left out on orders; deleting a new 1 would take rows that should have left."""
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    first = await set_apart(store, events, events.moved((1,), (2,), 10))
    events.alive((1,), 20)
    await apply(store, events.batch())
    events.deleted((1,), 30)
    batch = events.batch()
    result = await refused(store, batch)
    assert result.dependent == ORDERS and "dead-1" in result.message
    without = Batch(batch.changes, batch.spans, at_ms=AT_MS, exceptions=left_out(letter="dead-2"))
    assert {(e.dependent, e.outcome) for e in await apply(store, without)} == {
        (ORDERS, Outcome.DEAD_LETTERED),
        (NOTES, Outcome.APPLIED),
    }
    assert (await refused(store, again(batch.changes[0]))).dependent == ORDERS
    assert await references(harness) == {1: 1}
    # Given up, the first no longer stands in the way.
    discard = Discard("dead-1", ORDERS, first.origin.event_id)
    await apply(store, Batch((), {REDRIVE: Span(0, 1)}, at_ms=AT_MS, discards=(discard,)))
    assert [e.rows for e in await apply(store, again(batch.changes[0], first=1))] == [1]
    assert await references(harness) == {}


async def test_redrive_that_fails_again_stays_an_exception(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = await set_apart(store, events, events.deleted((1,), 10))
    await apply(store, again(change, exceptions=left_out()))
    assert await harness.exceptions(ENTITY, (1,)) == {ORDERS}
    assert await references(harness) == {1: 1}
    assert [e.rows for e in await apply(store, again(change, first=1))] == [1]


async def test_duplicate_that_is_left_out_is_no_exception(harness: Harness) -> None:
    """A replay, or a stale event, of a dependent that is set aside: there is nothing to make up for."""
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = events.deleted((1,), 10)
    batch = events.batch()
    await apply(store, batch)
    await apply(store, Batch(batch.changes, batch.spans, at_ms=AT_MS, exceptions=left_out()))
    assert await harness.exceptions(ENTITY, (1,)) == set()
    assert [e.outcome for e in await apply(store, again(change))] == [Outcome.DUPLICATE]


async def test_redriven_null_record_acts_at_its_own_fate(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1))
    events = Events()
    change = await set_apart(store, events, events.gone((1,)))
    assert [e.rows for e in await apply(store, again(change))] == [1]
    assert await harness.exceptions(ENTITY, (1,)) == set()


async def test_redrive_of_what_could_not_be_read_acts_on_every_dependent_by_its_version(harness: Harness) -> None:
    store = await harness.open(two_dependents(), rows_of_two(1, 2))
    events = Events()
    unread = [events.deleted((1,), 10), events.deleted((2,), 11)]
    events.batch()  # both were dead letters of all dependents
    events.moved((3,), (2,), 15, partition=1)
    await apply(store, events.batch())
    events.alive((2,), 20)
    await apply(store, events.batch())
    effects = await apply(store, again(*unread, dependent="*"))
    assert {(e.change, e.dependent, e.outcome) for e in effects} == {
        (0, ORDERS, Outcome.APPLIED),
        (0, NOTES, Outcome.APPLIED),
        (1, ORDERS, Outcome.STALE),
        (1, NOTES, Outcome.STALE),
    }
    assert await references(harness) == {2: 2}
    head = await harness.head(ENTITY, (2,))
    assert head is not None and head.seen == Version(0, (20,)) and head.last is not None and head.last.alive
