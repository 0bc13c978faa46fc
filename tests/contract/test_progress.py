"""Progress: what is done is not done again, and nothing is skipped, over every store."""

from __future__ import annotations

from dataclasses import replace

from integrity.core.batch import TopicPartition
from integrity.core.outcome import Diverged, Outcome
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline
from tests.contract.harness import Harness
from tests.contract.world import ENTITY, TOPIC, Events, apply, orders, rule, rules_of

P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


async def test_progress_is_empty_before_the_first_batch(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    assert await store.progress([P0, P1], Deadline.after(10)) == {}


async def test_progress_follows_the_spans_and_outlives_the_store(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    events.alive((2,), 11, partition=1)
    events.alive((3,), 12, partition=1)
    await apply(store, events.batch())
    assert await store.progress([P0, P1], Deadline.after(10)) == {P0: 1, P1: 2}
    other = await harness.another()
    assert await other.progress([P1], Deadline.after(10)) == {P1: 2}


async def test_batch_of_nothing_but_a_span_moves_the_progress(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events("supplier")
    events.deleted((1,), 10)
    await apply(store, replace(events.batch(), changes=()))
    assert await store.progress([P0], Deadline.after(10)) == {P0: 1}


async def test_replay_of_a_batch_changes_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    events = Events()
    events.moved((1,), (2,), 10)
    events.deleted((3,), 11)
    batch = events.batch()
    await apply(store, batch)
    rows, head = await harness.rows("orders"), await harness.head(ENTITY, (1,))
    effects = await apply(store, batch)
    assert {(e.outcome, e.rows) for e in effects} == {(Outcome.DUPLICATE, 0)}
    assert await harness.rows("orders") == rows
    assert await harness.head(ENTITY, (1,)) == head
    assert await store.progress([P0], Deadline.after(10)) == {P0: 2}


async def test_replay_by_another_process_changes_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.moved((1,), (2,), 10)
    batch = events.batch()
    await apply(store, batch)
    other = await harness.another()
    await other.progress([P0], Deadline.after(10))
    assert [e.outcome for e in await apply(other, batch)] == [Outcome.DUPLICATE]
    assert [row["customer_id"] for row in await harness.rows("orders")] == [2, 2]


async def test_batch_that_overlaps_the_progress_applies_only_what_is_new(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    first = events.batch()
    await apply(store, first)
    events.deleted((2,), 11)
    second = events.batch()
    both = replace(second, changes=first.changes + second.changes, spans={P0: second.spans[P0]._replace(start=0)})
    assert [e.outcome for e in await apply(store, both)] == [Outcome.DUPLICATE, Outcome.APPLIED]
    assert await harness.rows("orders") == []


async def test_progress_never_goes_back(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.alive((1,), 10)
    early = events.batch()
    await apply(store, early)
    events.alive((1,), 11)
    await apply(store, events.batch())
    await apply(store, early)
    assert await store.progress([P0], Deadline.after(10)) == {P0: 2}


async def test_batch_ahead_of_the_progress_is_refused_whole(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    events.alive((3,), 11)
    events.batch()  # lost
    events.deleted((2,), 12)
    assert isinstance(await store.apply(events.batch(), Deadline.after(10)), Diverged)
    assert [row["id"] for row in await harness.rows("orders")] == [2]
    assert await store.progress([P0], Deadline.after(10)) == {P0: 1}


async def test_first_batch_of_a_partition_may_begin_anywhere(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.alive((2,), 1)
    events.batch()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await store.progress([P0], Deadline.after(10)) == {P0: 2}


async def test_reset_starts_a_partition_anew(harness: Harness) -> None:
    """The topic was made again: its offsets count from 0, below what was enforced of the old one."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    for at in range(1, 5):
        events.alive((9,), at)
    await apply(store, events.batch())
    again = Events()
    again.deleted((1,), 10)
    assert [e.outcome for e in await apply(store, again.batch(reset=True))] == [Outcome.APPLIED]
    assert [row["id"] for row in await harness.rows("orders")] == [2]
    assert await store.progress([P0], Deadline.after(10)) == {P0: 1}
