"""An event with more rows than one transaction is to have is carried out in parts, and ends where it ends in one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy

import pytest

from integrity.core.batch import Batch
from integrity.core.keys import Key
from integrity.core.outcome import Applied, Effect, Held, Outcome, TooLarge, Unfinished
from integrity.core.rules.model import Cascade, Nullify, SetDefault
from integrity.ports import Deadline, Store
from integrity.stores.memory import MemoryStore
from tests.contract.harness import Feature, Harness
from tests.contract.test_histories import rules
from tests.contract.world import Events, apply, orders, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one

SEEDS = 5


async def in_parts(store: Store, batch: Batch) -> tuple[list[Effect], int]:
    """The effects of a batch, and how many tries it took."""
    for tries in range(1, 1000):
        result = await store.apply(batch, Deadline.after(30))
        if isinstance(result, Applied):
            return result.effects, tries
        assert isinstance(result, Unfinished), result
    raise AssertionError("it never ends")


async def pieces(store: Store, batch: Batch) -> list[tuple[Batch, list[Effect]]]:
    """As a lane does it: a batch that is too large is cut, down to single events, which are applied in parts."""
    result = await store.apply(batch, Deadline.after(30))
    if isinstance(result, TooLarge):
        assert len(batch.changes) > 1
        return [each for half in batch_halves(batch) for each in await pieces(store, half)]
    if isinstance(result, Unfinished):
        return [(batch, (await in_parts(store, batch))[0])]
    assert isinstance(result, Applied), result
    return [(batch, result.effects)]


def batch_halves(batch: Batch) -> Sequence[Batch]:
    middle = len(batch.changes) // 2
    first, second = {}, {}
    for at, span in batch.spans.items():
        offsets = [c.origin.offset for c in batch.changes[middle:] if c.origin.partition == at.partition]
        if not offsets:
            first[at] = span
        else:
            first[at], second[at] = span._replace(next=offsets[0]), span._replace(start=offsets[0])
    return (
        Batch(batch.changes[:middle], first, batch.at_ms),
        Batch(batch.changes[middle:], second, batch.at_ms),
    )


async def run(harness: Harness, seed: int, *, marks: bool) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    width, size = 1 + seed % 2, rng.randint(2, 7)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(size)]
    chosen = rules(width, marks=marks)
    history = random_history(rng, keys=pool, steps=rng.randint(5, 20))
    rows = initial_rows(chosen, pool, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, chosen, expected)
    store = await harness.open(rules_of(*chosen), rows, rows_max=rng.randint(1, 3))
    model = MemoryStore("model", rules_of(*chosen), rows)
    for batch in history.batches(rng):
        for piece, effects in await pieces(store, batch):
            assert sorted(effects) == sorted(await apply(model, piece))
    found = {name: await harness.rows(name) for name in expected}
    columns = next((list(row) for table in rows.values() for row in table), [])
    found = {name: [{c: row[c] for c in columns} for row in table] for name, table in found.items()}
    assert differences(expected, found) == []


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_random_history_in_parts_ends_where_one_event_at_a_time_ends(harness: Harness, seed: int) -> None:
    await run(harness, seed, marks=False)


@pytest.mark.needs(Feature.MARKS)
@pytest.mark.parametrize("seed", range(2000, 2000 + SEEDS))
async def test_random_history_with_marks_in_parts_ends_there_too(harness: Harness, seed: int) -> None:
    await run(harness, seed, marks=True)


async def test_parts_stay_when_the_process_dies_and_the_whole_count_is_told(harness: Harness) -> None:
    events = Events()
    store = await harness.open(rules_of(rule(Cascade())), orders(*[1] * 7, 2), rows_max=2)
    events.deleted((1,), 10)
    batch = events.batch()
    assert await store.apply(batch, Deadline.after(30)) == Unfinished(2)
    assert await store.apply(batch, Deadline.after(30)) == Unfinished(2)
    assert len(await harness.rows("orders")) == 4
    assert await store.progress(list(batch.spans), Deadline.after(30)) != {p: s.next for p, s in batch.spans.items()}
    successor = await harness.another()
    [effect], _ = await in_parts(successor, batch)
    assert (effect.outcome, effect.rows) == (Outcome.APPLIED, 7)
    assert [row["id"] for row in await harness.rows("orders")] == [8]
    assert [each.outcome for each in await apply(successor, batch)] == [Outcome.DUPLICATE]


async def test_parts_of_an_event_do_not_take_each_others_rows_for_new_ones(harness: Harness) -> None:
    """The default is the deleted key itself: rows that a part has set to it are not found again by the next."""
    events = Events()
    default = rule(SetDefault({"customer_id": 1}))
    store = await harness.open(rules_of(default), orders(*[1] * 5), rows_max=2)
    events.deleted((1,), 10)
    [effect], tries = await in_parts(store, events.batch())
    assert effect.rows == 5 and tries in (3, 4)
    assert await harness.arrivals() == 0


async def test_other_events_between_two_parts_find_the_rows_where_they_are(harness: Harness) -> None:
    events, others = Events(), Events(topic="another")
    store = await harness.open(rules_of(rule(Cascade(), Cascade())), orders(*[1] * 5), rows_max=2)
    events.moved((1,), (2,), 20)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), Unfinished)
    others.deleted((2,), 10)  # older: it is not these rows' parent that was deleted
    [older] = await apply(store, others.batch())
    others.deleted((2,), 30)
    [newer] = await apply(store, others.batch())
    assert (older.rows, newer.rows) == (0, 2)
    [effect], _ = await in_parts(store, batch)
    assert effect.rows == 5
    assert await harness.rows("orders") == []


async def test_a_batch_with_too_many_rows_is_to_be_cut_and_changes_nothing(harness: Harness) -> None:
    events = Events()
    store = await harness.open(rules_of(rule(Nullify(("customer_id",)))), orders(1, 1, 2, 2), rows_max=3)
    events.deleted((1,), 10)
    events.deleted((2,), 11)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), TooLarge)
    assert {row["customer_id"] for row in await harness.rows("orders")} == {1, 2}
    assert [effect.rows for _, effects in await pieces(store, batch) for effect in effects] == [2, 2]


async def test_an_event_is_held_before_its_first_part_and_never_after_it(harness: Harness) -> None:
    events = Events()
    store = await harness.open(rules_of(rule(Cascade(), max_rows=4)), orders(*[1] * 5, *[2] * 4), rows_max=2)
    events.deleted((1,), 10)
    assert isinstance(await store.apply(events.batch(), Deadline.after(30)), Held)
    assert len(await harness.rows("orders")) == 9
    events = Events(topic="another")
    events.deleted((2,), 10)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), Unfinished)
    await harness.write("orders", *[{"id": 100 + n, "customer_id": 2} for n in range(9)])
    [effect], _ = await in_parts(store, batch)
    assert effect.rows == 13
