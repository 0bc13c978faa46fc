"""An event with more rows than one transaction is to have is carried out in parts, and ends where it ends in one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest

from integrity.core.keys import Key
from integrity.core.outcome import Applied, Held, Outcome, TooLarge, Unfinished
from integrity.core.rules.model import Action, Cascade, Nullify, Restrict, SetDefault
from integrity.core.sweep import Repaired, Sweep
from integrity.ports import Deadline
from integrity.service.sweep import Sweeper
from integrity.stores.memory import MemoryStore, Row
from tests.contract import graph_rules as graph
from tests.contract.harness import Feature, Harness
from tests.contract.parting import in_parts, pieces
from tests.contract.test_histories import rules
from tests.contract.test_scan import Notes, found_in, mend, parents, subject
from tests.contract.world import AT_MS, Events, apply, orders, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one

SEEDS = 5


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


# --- a graph, repairs, sweeps

BELOW: dict[str, list[Row]] = {
    "orders": [*({"id": n, "customer_id": 1} for n in (10, 11, 12)), {"id": 19, "customer_id": 2}],
    "items": [
        *({"id": n, "order_id": 10} for n in range(100, 107)),
        {"id": 110, "order_id": 11},
        {"id": 190, "order_id": 19},
    ],
    "parts": [*({"id": n, "item_id": 103} for n in range(1000, 1009)), {"id": 1900, "item_id": 190}],
}


async def orphaned(harness: Harness) -> list[Row]:
    """Rows whose row above is not there any more."""
    found: list[Row] = []
    for above, below, column in (("orders", "items", "order_id"), ("items", "parts", "item_id")):
        there = {row["id"] for row in await harness.rows(above)}
        found += [row for row in await harness.rows(below) if row[column] not in there]
    return found


async def done_by(store: Any, entity: str, keys: Sequence[int]) -> list[Any]:
    """What the ledger tells of what happened to these keys."""
    found = [await store.history(entity, (key,), Deadline.after(30)) for key in keys]
    return [None if of is None else [(each.fate, dict(each.done)) for each in of.enforced] for of in found]


async def test_all_that_depends_on_a_key_goes_in_parts_the_lowest_first_and_is_told_once(harness: Harness) -> None:
    rules = rules_of(graph.orders(), graph.items(rows="item"), graph.parts())
    store = await harness.open(rules, BELOW, rows_max=2)
    model = MemoryStore("model", rules, deepcopy(BELOW))
    events = Events()
    events.deleted((1,), 10)
    batch, tries = events.batch(), 0
    while isinstance(result := await store.apply(batch, Deadline.after(30)), Unfinished):
        tries += 1
        assert result.rows <= 4, "as many as there is room for, and the row above the last of them"
        # After a part that was full a store may need one that finds nothing to know that it was the last.
        assert result.rows > 0 or [len(await harness.rows(name)) for name in BELOW] == [1, 1, 1]
        assert await orphaned(harness) == []
        if tries == 3:
            store = await harness.another()
    assert isinstance(result, Applied), result
    assert tries >= 7, "there are twenty rows"
    assert sorted(result.effects) == sorted(await apply(model, batch))
    assert [effect.rows for effect in sorted(result.effects)] == [3, 9, 8]
    assert [len(await harness.rows(name)) for name in BELOW] == [1, 1, 1]
    for entity, keys in (("customer", [1]), ("order", [10, 11, 12, 19]), ("item", [*range(100, 107), 110, 190])):
        assert await done_by(store, entity, keys) == await done_by(model, entity, keys), entity
    assert [each.outcome for each in await apply(store, batch)] == [Outcome.DUPLICATE] * 3


@pytest.mark.parametrize("action", [Nullify(("order_id",)), SetDefault({"order_id": 19}), Restrict()])
async def test_rows_that_stay_below_those_that_go_end_as_in_one_transaction(harness: Harness, action: Action) -> None:
    """They are set to null, to an order that stays, or only counted."""
    rules = rules_of(graph.orders(), graph.items(action))
    rows = {name: BELOW[name] for name in ("orders", "items")}
    store, model = await harness.open(rules, rows, rows_max=2), MemoryStore("model", rules, deepcopy(rows))
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    effects, tries = await in_parts(store, batch)
    assert tries > 1
    assert sorted(effects) == sorted(await apply(model, batch))
    assert [(r["id"], r["order_id"]) for r in await harness.rows("items")] == [
        (row["id"], row["order_id"]) for row in model.targets["items"]
    ]
    assert await done_by(store, "order", [10, 11, 12]) == await done_by(model, "order", [10, 11, 12])


async def test_rows_whose_default_goes_itself_are_not_taken_up_for_ever(harness: Harness) -> None:
    rows: dict[str, list[Row]] = {"orders": [{"id": 10, "customer_id": 1}], "items": BELOW["items"][:7]}
    store = await harness.open(rules_of(graph.orders(), graph.items(SetDefault({"order_id": 10}))), rows, rows_max=2)
    events = Events()
    events.deleted((1,), 10)
    effects, _ = await in_parts(store, events.batch())
    assert [effect.rows for effect in effects] == [1, 7]
    assert {row["order_id"] for row in await harness.rows("items")} == {10}


async def test_where_rows_further_down_are_limited_they_are_counted_before_the_first_goes(harness: Harness) -> None:
    rules = rules_of(graph.orders(), graph.items(max_rows=7))
    store = await harness.open(rules, {name: BELOW[name] for name in ("orders", "items")}, rows_max=2)
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), Held)
    assert [len(await harness.rows(name)) for name in ("orders", "items")] == [4, 9]
    events = Events(topic="another")
    events.deleted((2,), 10)
    effects, tries = await in_parts(store, events.batch())
    assert ([effect.rows for effect in effects], tries) == ([1, 1], 1)


async def test_events_with_many_rows_together_are_cut_apart_in_a_graph_too(harness: Harness) -> None:
    rows: dict[str, list[Row]] = {
        "orders": [{"id": n, "customer_id": n} for n in range(1, 31)],
        "items": [{"id": n, "order_id": n} for n in range(1, 31)],
    }
    store = await harness.open(rules_of(graph.orders(), graph.items()), rows, rows_max=2)
    events = Events()
    for key in range(1, 31):
        events.deleted((key,), key)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), TooLarge)
    assert len(await harness.rows("items")) == 30
    assert sum(effect.rows for _, effects in await pieces(store, batch) for effect in effects) == 60
    assert await harness.rows("orders") == await harness.rows("items") == []


async def test_late_rows_of_a_key_go_in_parts_with_all_below_them(harness: Harness) -> None:
    store = await harness.open(rules_of(graph.orders(), graph.items(rows="item"), graph.parts()), {}, rows_max=2)
    sweep = Sweep(60_000, AT_MS - 1, frozenset({"customer"}), 1000, AT_MS + 60_000)
    await store.sweep(sweep, Deadline.after(30))  # type: ignore[attr-defined]
    events = Events()
    for key in (1, 2, 3):
        events.deleted((key,), key)
    await apply(store, events.batch())
    for name, rows in BELOW.items():
        await harness.write(name, *rows)
    watch = Told()
    sweeper = Sweeper(
        store,  # type: ignore[arg-type]
        watch,
        {60_000: frozenset({"customer"})},
        lambda deadline: yes(),
        timeout_s=30,
        clock=lambda: (AT_MS + 60_000) / 1000,
    )
    await sweeper.round()
    assert [await harness.rows(name) for name in BELOW] == [[], [], []]
    assert watch.rows == {"customer.orders": 4, "order.items": 9, "item.parts": 10}
    assert watch.pages > 10
    history = await store.history("customer", (1,), Deadline.after(30))  # type: ignore[attr-defined]
    told = {name: sum(r.rows for r in history.repairs if r.dependent == name) for name in watch.rows}
    assert told == {"customer.orders": 3, "order.items": 8, "item.parts": 9}
    await sweeper.round()
    assert watch.rows["item.parts"] == 10, "where the sweep is, is behind them"


async def yes() -> bool:
    return True


class Told:
    """What a sweep tells."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.pages = 0

    def repaired(self, store: str, at_ms: int, repaired: Sequence[Repaired], took_s: float) -> None:
        self.pages += 1
        for each in repaired:
            self.rows[each.dependent] = self.rows.get(each.dependent, 0) + each.rows


async def test_orphans_of_a_key_go_in_parts_each_of_which_tells_of_its_own(harness: Harness) -> None:
    of, parent = graph.orders(), parents()
    rules = rules_of(of, graph.items(rows="item"), graph.parts(), parent)
    store = await harness.open(rules, BELOW | {"customers": [{"id": 2}]}, rows_max=2)
    found = await found_in(subject(harness.scanner(), of, parent))
    notes = Notes()
    mended = await mend(store, found, notes)
    found.orphans.close()
    assert (mended.keys, mended.rows) == (1, {"customer.orders": 3, "order.items": 8, "item.parts": 9})
    assert (mended.left, mended.returned) == ([], 0)
    assert len(notes.told) > 8
    assert [len(await harness.rows(name)) for name in BELOW] == [1, 1, 1]
    assert await orphaned(harness) == []
    history = await store.history("customer", (1,), Deadline.after(30))  # type: ignore[attr-defined]
    [enforced] = history.enforced
    done = {name: rows for name, (_, rows) in enforced.done.items()}
    for each in history.repairs:
        done[each.dependent] = done.get(each.dependent, 0) + each.rows
    assert done == mended.rows


async def test_orphans_that_end_where_they_are_are_told_and_left(harness: Harness) -> None:
    """The default is a parent that is missing itself."""
    of, parent = rule(SetDefault({"customer_id": 1})), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 1, 1) | {"customers": [{"id": 2}]}, rows_max=2)
    found = await found_in(subject(harness.scanner(), of, parent))
    mended = await mend(store, found)
    found.orphans.close()
    assert (mended.keys, mended.left_keys, mended.left_rows) == (0, 1, 3)
