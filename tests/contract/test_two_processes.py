"""Several processes on one store at once, each with partitions of its own: they end where one alone would end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from copy import deepcopy
from itertools import count, cycle, product

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.ledger import Fate
from integrity.core.outcome import Applied, Effect, Retry
from integrity.core.rules.model import Cascade, Nullify, SetDefault
from integrity.ports import Deadline, Store
from integrity.stores.memory import Row
from tests.contract.graph_rules import items, parts
from tests.contract.graph_rules import orders as orders_of
from tests.contract.harness import Feature, Harness
from tests.contract.test_histories import rules
from tests.contract.world import AT_MS, Events, orders, rule, rules_of
from tests.property.histories import TOPIC, History, random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one
from tests.property.test_graph_equals_one_by_one import World, happens

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
    await shared(history, stores, rng)
    names = ["id", "c0", "deleted_at", "deleted_by"]
    found = {name: [{c: row[c] for c in names} for row in await harness.rows(name)] for name in expected}
    assert differences(expected, found) == []


async def shared(history: History, stores: Sequence[Store], rng: random.Random) -> None:
    """Each partition goes to one of the stores, in batches of its own; all at once."""

    async def deliver(store: Store, partition: int, records: Sequence[ParentChange]) -> None:
        at = 0
        while at < len(records):
            taken = tuple(records[at : at + rng.randint(1, 5)])
            span = Span(at, at + len(taken))
            await insist(store, Batch(taken, {TopicPartition(TOPIC, partition): span}, at_ms=AT_MS))
            at = span.next

    places = zip(range(len(history.partitions)), history.partitions, cycle(stores), strict=False)
    await asyncio.gather(*(deliver(store, p, records) for p, records, store in places))


AT = ("customer_no", "line_no")
CUSTOMERS_LINE = KeySpec((("customer_id", KeyType.INT64), ("id", KeyType.INT64)))


def graph() -> World:
    """Orders with items and notes, and lines whose key holds the customer's, with stops and seals."""
    world = World()
    for each in (
        orders_of(),
        items(rows="item"),
        parts(Nullify(("item_id",))),
        rule(SetDefault({"order_id": 0}), name="bills", columns=("order_id",), entity="order"),
        rule(Cascade(), name="lines", rows="line", own=CUSTOMERS_LINE),
        rule(Cascade(), name="stops", spec=CUSTOMERS_LINE, columns=AT, entity="line"),
        rule(Nullify(("line_no",)), name="seals", spec=CUSTOMERS_LINE, columns=AT, entity="line"),
    ):
        world.add(each, [])
    return world


@pytest.mark.parametrize("seed", range(2100, 2106))
async def test_random_history_of_a_graph_shared_by_two_processes_ends_where_one_event_at_a_time_ends(
    harness: Harness, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool: list[Key] = [(number,) for number in range(rng.randint(3, 6))]
    history = random_history(rng, keys=pool, steps=30)
    world, ids = graph(), count(1)
    tables = world.tables
    for key in (key for (key,) in pool for _ in range(rng.randint(1, 3))):
        tables["orders"].append({"id": next(ids), "customer_id": key})
        tables["lines"].append({"id": next(ids), "customer_id": key})
    for above, names in {"orders": ("items", "bills"), "lines": ("stops", "seals")}.items():
        for row, name in product(tables[above], names):
            at = {"customer_no": row["customer_id"], "line_no": row["id"]}
            tables[name].append({"id": next(ids), **({"order_id": row["id"]} if above == "orders" else at)})
    tables["parts"] = [{"id": next(ids), "item_id": row["id"]} for row in tables["items"]]
    stores = [await harness.open(world.rules, deepcopy(tables)), await harness.another()]
    await shared(history, stores, rng)
    for change in history.truth:
        assert change.version is not None
        fate = Fate(change.version, change.to, change.origin.event_id, change.occurred_ms)
        happens(world, change.entity, change.key, change.to, fate)
    columns = {"orders": ("customer_id",), "items": ("order_id",), "bills": ("order_id",), "parts": ("item_id",)}
    found = {
        name: [
            {c: row[c] for c in ("id", *columns.get(name, ("customer_id",) if name == "lines" else AT))}
            for row in await harness.rows(name)
        ]
        for name in tables
    }
    assert differences(tables, found) == []
