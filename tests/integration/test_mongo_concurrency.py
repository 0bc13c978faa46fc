"""Two processes at once, in different partitions: as if one had come after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from copy import deepcopy

import pytest
import pytest_asyncio

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.keys import Key
from integrity.core.outcome import Applied
from integrity.core.rules.model import Action, Cascade, Nullify, SetDefault
from integrity.ports import Deadline
from integrity.stores.mongo import MongoStore
from tests.contract.harness_mongo import MongoHarness
from tests.contract.world import AT_MS, TOPIC, Events, rule, rules_of
from tests.integration.mongo_shop import Shop, apply, apply_until_applied
from tests.property.histories import TOPIC as HISTORY_TOPIC
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one
from tests.property.test_fold_equals_one_by_one import rules_of as every_pair_of_actions

pytestmark = pytest.mark.servers

ROUNDS = 40


@pytest_asyncio.fixture
async def shop(mongo_database: str) -> AsyncIterator[Shop]:
    made = Shop(mongo_database)
    yield made
    await made.close()


async def two(shop: Shop, action: Action, on_update: Action | None = None) -> tuple[MongoStore, MongoStore]:
    one = rule(action, on_update)
    return await shop.open(one), shop.store(one)


@pytest.mark.parametrize("known", [False, True], ids=["unknown key", "key with a head"])
@pytest.mark.parametrize("deleted_later", [True, False])
async def test_key_change_and_deletion_of_its_new_key_never_pass_each_other(
    shop: Shop, deleted_later: bool, known: bool
) -> None:
    """a→b in one process, b's deletion in another: the rows of a go with b, or stay if b was deleted before."""
    first, second = await two(shop, Cascade())
    tries = 0
    for round_ in range(ROUNDS):
        a, b = (round_ * 2,), (round_ * 2 + 1,)
        await shop.db.orders.insert_many([{"_id": f"a{round_}", "customer_id": a[0]}])
        await shop.db.orders.insert_many([{"_id": f"b{round_}", "customer_id": b[0]}])
        moves, deletions = Events(topic=f"{TOPIC}.{round_}"), Events(topic=f"{TOPIC}.{round_}")
        if known:
            deletions.arrived(b, 1, partition=1)
            await apply_until_applied(second, deletions.batch())
        moves.moved(a, b, 20, partition=0)
        deletions.deleted(b, 30 if deleted_later else 10, partition=1)
        results = await asyncio.gather(
            apply_until_applied(first, moves.batch()), apply_until_applied(second, deletions.batch())
        )
        tries += sum(count for _, count in results)
    left = {} if deleted_later else {f"a{round_}": {"customer_id": round_ * 2 + 1} for round_ in range(ROUNDS)}
    assert await shop.all() == left
    assert tries > 2 * ROUNDS, "the two were never at work at once: nothing is proven"


async def test_default_key_that_dies_at_the_same_time_takes_what_came_to_it_before(shop: Shop) -> None:
    """Rows that get the default at 10 go on when the default itself is deleted at 20."""
    first, second = await two(shop, SetDefault({"customer_id": 0}), Cascade())
    fates: set[object] = set()
    for round_ in range(ROUNDS // 2):
        topic = f"{TOPIC}.{round_}"
        await shop.db.orders.insert_one({"_id": round_, "customer_id": 1})
        ordinary, default = Events(topic=topic), Events(topic=topic)
        at = 100 * (round_ + 1)
        ordinary.deleted((1,), at, partition=0)
        default.moved((0,), (1000 + round_,), at + 20, partition=1)
        await asyncio.gather(apply_until_applied(first, ordinary.batch()), apply_until_applied(second, default.batch()))
        document = await shop.db.orders.find_one({"_id": round_})
        assert document is not None
        fates.add(document["customer_id"] - 1000 - round_)
    assert fates == {0}


async def test_two_processes_with_one_partition_do_the_work_once(shop: Shop) -> None:
    first, second = await two(shop, Nullify(("customer_id",)))
    await shop.db.orders.insert_many([{"_id": n, "customer_id": n} for n in range(ROUNDS)])
    events = Events()
    for n in range(ROUNDS):
        events.deleted((n,), n + 1)
        batch = events.batch()
        results = await asyncio.gather(apply_until_applied(first, batch), apply_until_applied(second, batch))
        assert sorted(effect.rows for result, _ in results for effect in result.effects) == [0, 1]
    assert await shop.db.orders.count_documents({"customer_id": None}) == ROUNDS
    assert await shop.count("fates") == ROUNDS
    partition = TopicPartition(TOPIC, 0)
    assert await first.progress([partition], Deadline.after(5)) == {partition: ROUNDS}


async def test_batches_of_different_keys_do_not_collide(shop: Shop) -> None:
    first, second = await two(shop, Cascade())
    await shop.db.orders.insert_many([{"_id": n, "customer_id": n} for n in range(2 * ROUNDS)])
    left, right = Events(), Events()
    for n in range(ROUNDS):
        left.deleted((n,), n + 1, partition=0)
        right.deleted((ROUNDS + n,), n + 1, partition=1)
        results = await asyncio.gather(apply(first, left.batch()), apply(second, right.batch()))
        assert all(isinstance(result, Applied) for result in results), results
    assert await shop.ids() == []


@pytest.mark.parametrize("seed", range(10))
async def test_random_history_by_one_process_a_partition_ends_where_one_event_at_a_time_ends(
    request: pytest.FixtureRequest, seed: int
) -> None:
    """Every partition has its own process, at its own pace; all actions, chains, swaps and defaults included."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    width = 1 + seed % 2
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(5)]
    chosen = every_pair_of_actions(width)
    history = random_history(rng, keys=pool, steps=30)
    rows = initial_rows(chosen, pool, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, chosen, expected)
    harness = MongoHarness(request)
    await harness.open(rules_of(*chosen), rows)

    async def process(partition: int) -> None:
        store = await harness.another()
        records, at = history.partitions[partition], 0
        while at < len(records):
            size = random.Random(f"{seed} {partition} {at}").randint(1, 4)
            taken = records[at : at + size]
            spans = {TopicPartition(HISTORY_TOPIC, partition): Span(at, at + len(taken))}
            await apply_until_applied(store, Batch(tuple(taken), spans, at_ms=AT_MS), tries_max=2000)
            at += len(taken)

    try:
        await asyncio.gather(*(process(partition) for partition in range(len(history.partitions))))
        found = {name: await harness.rows(name) for name in expected}
        columns = list(next(row for table in rows.values() for row in table))
        found = {name: [{c: row[c] for c in columns} for row in table] for name, table in found.items()}
        assert differences(expected, found) == []
    finally:
        await harness.close()
