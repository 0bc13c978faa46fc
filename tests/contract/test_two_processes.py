"""Several processes on one store at once, each with partitions of its own: they end where one alone would end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from copy import deepcopy

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.keys import Key
from integrity.core.outcome import Applied, Effect, Retry
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline, Store
from integrity.stores.memory import Row
from tests.contract.harness import Feature, Harness
from tests.contract.test_histories import rules
from tests.contract.world import AT_MS, Events, orders, rule, rules_of
from tests.property.histories import TOPIC, random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one

pytestmark = pytest.mark.needs(Feature.SHARED)
ROUNDS = 15
ATTEMPTS_MAX = 50


async def insist(store: Store, batch: Batch) -> list[Effect]:
    """Apply as the lane does: again after each Retry."""
    for _ in range(ATTEMPTS_MAX):
        result = await store.apply(batch, Deadline.after(30))
        if isinstance(result, Applied):
            return result.effects
        assert isinstance(result, Retry), result
        await asyncio.sleep(random.uniform(0, 0.05))
    raise AssertionError("the batch was never applied")


async def two(harness: Harness, rows: dict[str, list[Row]]) -> tuple[Store, Store]:
    one = await harness.open(rules_of(rule(Cascade())), rows)
    other = await harness.another()
    assert await other.check(Deadline.after(30)) == []
    return one, other


@pytest.mark.parametrize(("moved_at", "deleted_at"), [(10, 20), (20, 10)])
async def test_key_change_onto_a_key_and_its_deletion_do_not_pass_each_other(
    harness: Harness, moved_at: int, deleted_at: int
) -> None:
    one, other = await two(harness, orders(*(key for n in range(ROUNDS) for key in (2 * n, 2 * n + 1))))
    events = Events()
    for n in range(ROUNDS):
        a, b = (2 * n,), (2 * n + 1,)
        events.moved(a, b, moved_at, partition=0)
        moved = events.batch()
        events.deleted(b, deleted_at, partition=1)
        deleted = events.batch()
        await asyncio.gather(insist(one, moved), insist(other, deleted))
    left = sorted(row["customer_id"] for row in await harness.rows("orders"))  # type: ignore[type-var]
    assert left == ([] if deleted_at > moved_at else [2 * n + 1 for n in range(ROUNDS)])


async def test_two_processes_may_lead_rows_to_one_key_at_once(harness: Harness) -> None:
    one, other = await two(harness, orders(*range(1, 2 * ROUNDS + 1)))
    events = Events()
    for n in range(1, ROUNDS + 1):
        events.moved((n,), (0,), n, partition=0)
        first = events.batch()
        events.moved((ROUNDS + n,), (0,), n, partition=1)
        second = events.batch()
        await asyncio.gather(insist(one, first), insist(other, second))
    assert {row["customer_id"] for row in await harness.rows("orders")} == {0}


async def test_one_batch_applied_by_two_processes_at_once_counts_once(harness: Harness) -> None:
    """A process that was taken for dead and its successor."""
    one, other = await two(harness, orders(*range(2 * ROUNDS)))
    events = Events()
    rows = 0
    for n in range(ROUNDS):
        events.moved((n,), (ROUNDS + n,), 10)
        batch = events.batch()
        both = await asyncio.gather(insist(one, batch), insist(other, batch))
        rows += sum(effect.rows for effects in both for effect in effects)
    assert rows == ROUNDS
    assert sorted(row["customer_id"] for row in await harness.rows("orders")) == sorted(  # type: ignore[type-var]
        2 * list(range(ROUNDS, 2 * ROUNDS))
    )


@pytest.mark.parametrize("seed", range(2000, 2012))
async def test_random_history_shared_by_three_processes_ends_where_one_event_at_a_time_ends(
    harness: Harness, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool: list[Key] = [(number,) for number in range(rng.randint(3, 6))]
    chosen = rules(1, marks=True)
    history = random_history(rng, keys=pool, steps=30)
    rows = initial_rows(chosen, pool, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, chosen, expected)
    stores = [await harness.open(rules_of(*chosen), rows), await harness.another(), await harness.another()]

    async def deliver(store: Store, partition: int, records: Sequence[ParentChange]) -> None:
        at = 0
        while at < len(records):
            taken = tuple(records[at : at + rng.randint(1, 5)])
            span = Span(at, at + len(taken))
            await insist(store, Batch(taken, {TopicPartition(TOPIC, partition): span}, at_ms=AT_MS))
            at = span.next

    await asyncio.gather(
        *(deliver(store, p, records) for p, (store, records) in enumerate(zip(stores, history.partitions, strict=True)))
    )
    names = ["id", "c0", "deleted_at", "deleted_by"]
    found = {name: [{c: row[c] for c in names} for row in await harness.rows(name)] for name in expected}
    assert differences(expected, found) == []
