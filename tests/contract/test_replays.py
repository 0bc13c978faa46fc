"""Records that are read again, with no progress to go by: a store leaves alone what it has heard of before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from integrity.core.batch import Batch, TopicPartition
from integrity.core.keys import Key
from integrity.core.outcome import Applied, Outcome, Unfinished
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline, Store
from integrity.stores.rule import StoreRule
from tests.contract.harness import Harness
from tests.contract.test_histories import rules
from tests.contract.world import TOPIC, Events, apply, orders, rule, rules_of
from tests.property.test_replays_change_nothing import Rows, replayed

SEEDS = 4
P0 = TopicPartition(TOPIC, 0)


def again(batch: Batch) -> Batch:
    """The same, of which nobody knows whether the progress means anything."""
    return replace(batch, spans={at: span._replace(start=0, again=True) for at, span in batch.spans.items()})


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_what_is_read_again_changes_nothing(harness: Harness, seed: int) -> None:
    chosen = random.Random(seed).sample(rules(1, marks=False), 3)

    async def open_(rules: Sequence[StoreRule], rows: Rows) -> Store:
        return await harness.open(rules_of(*rules), rows)

    async def look() -> Rows:
        columns = ("id", "c0", "deleted_at", "deleted_by")
        names = [each.dependent.name for each in chosen]
        return {name: [{c: row[c] for c in columns} for row in await harness.rows(name)] for name in names}

    async def write(rows: Rows) -> None:
        for name, of_table in rows.items():
            if of_table:
                await harness.write(name, *of_table)

    keys: list[Key] = [(number,) for number in range(6)]
    assert await replayed(seed, chosen, keys, open_, look, write) == []


async def test_a_topic_that_was_made_anew_is_enforced_though_the_progress_is_ahead(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    former = Events()
    for at in range(1, 9):
        former.alive((9,), at)
    former.deleted((1,), 10)
    await apply(store, former.batch())
    anew = Events()
    anew.deleted((1,), 10)  # the connector reads its source from the beginning
    anew.deleted((2,), 20)
    anew.alive((3,), 25)
    assert [e.outcome for e in await apply(store, again(anew.batch()))] == [Outcome.DUPLICATE, Outcome.APPLIED]
    anew.deleted((3,), 30)
    anew.gone((3,))
    assert [e.outcome for e in await apply(store, again(anew.batch()))] == [Outcome.APPLIED]
    assert await harness.rows("orders") == []
    assert await store.progress([P0], Deadline.after(10)) == {P0: 9}, "it never goes back"


async def test_events_between_those_of_others_are_no_gap(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, again(events.batch()))
    events.alive((7,), 11)
    events.batch()  # of another tenant
    events.deleted((2,), 12)
    await apply(store, again(events.batch()))
    assert await harness.rows("orders") == []
    assert await store.progress([P0], Deadline.after(10)) == {P0: 3}


async def test_an_event_in_parts_is_counted_whole_when_it_is_read_again(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(*[1] * 7), rows_max=3)
    events = Events()
    events.alive((2,), 9)
    events.deleted((1,), 10)
    one, two = events.batch(), None
    batch = again(replace(one, changes=one.changes[1:]))
    assert isinstance(await store.apply(batch, Deadline.after(10)), Unfinished)
    two = await harness.another()  # the process is gone; another one reads from further back
    result: object = None
    while not isinstance(result, Applied):
        result = await two.apply(batch, Deadline.after(10))
    assert [(e.outcome, e.rows) for e in result.effects] == [(Outcome.APPLIED, 7)]
    assert await harness.rows("orders") == []
    assert [(e.outcome, e.rows) for e in await apply(two, batch)] == [(Outcome.DUPLICATE, 0)]
