"""`as_of`: a row that is younger than an event is left alone by it, over every store."""

from __future__ import annotations

import random
from copy import deepcopy
from datetime import UTC, datetime, timedelta

import pytest

from integrity.core.keys import Key
from integrity.core.outcome import Effect, Held, Outcome
from integrity.core.rules.model import Action, Cascade, Nullify, Restrict, SetDefault
from integrity.ports import Deadline
from integrity.stores.memory import MemoryStore, Row
from integrity.stores.rule import StoreRule
from tests.contract.harness import Feature, Harness
from tests.contract.test_redrive import again, left_out
from tests.contract.test_sweeps import began, swept
from tests.contract.world import AT_MS, MARK, Events, apply, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_ages_and_counts import born as a_moment
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one


def born(at: int | None) -> datetime | None:
    """The time of an event that is at that place in the source's order."""
    return None if at is None else datetime.fromtimestamp(AT_MS / 1000, UTC) + timedelta(milliseconds=at)


def aged(on_delete: Action, on_update: Action | None = None, *, name: str = "orders") -> StoreRule:
    return rule(on_delete, on_update, name=name, as_of="born_at")


def orders(*rows: tuple[int, int | None]) -> dict[str, list[Row]]:
    """Rows with a reference, and when they came to be."""
    return {"orders": [{"id": n, "customer_id": key, "born_at": born(at)} for n, (key, at) in enumerate(rows, 1)]}


async def references(harness: Harness) -> dict[object, object]:
    return {row["id"]: row["customer_id"] for row in await harness.rows("orders")}


def rows_of(effects: list[Effect]) -> dict[int, int]:
    return {effect.change: effect.rows for effect in effects}


async def test_row_of_a_key_in_use_again_outlives_the_late_deletion_of_its_former_owner(harness: Harness) -> None:
    """It is there before the deletion is enforced, and no event says so."""
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 5), (1, 30)))
    events = Events()
    events.deleted((1,), 10)
    events.alive((1,), 20)
    assert rows_of(await apply(store, events.batch())) == {0: 1}
    assert await references(harness) == {2: 1}


async def test_row_as_old_as_the_event_is_reached_and_one_without_a_time_is_not(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 9), (1, 10), (1, 11), (1, None)))
    events = Events()
    events.deleted((1,), 10)
    assert rows_of(await apply(store, events.batch())) == {0: 2}
    assert await references(harness) == {3: 1, 4: 1}


async def test_younger_row_stays_at_a_key_whose_parent_moved(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 5), (1, 15)))
    events = Events()
    events.moved((1,), (2,), 10)
    assert rows_of(await apply(store, events.batch())) == {0: 1}
    assert await references(harness) == {1: 2, 2: 1}


@pytest.mark.parametrize("apart", [False, True], ids=["one batch", "a batch each"])
async def test_every_event_compares_with_its_own_time(harness: Harness, apart: bool) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 5), (1, 15), (1, 25), (1, 35), (1, 45)))
    events = Events()
    events.moved((1,), (2,), 10)
    events.alive((1,), 11)
    first = events.batch() if apart else None
    events.moved((1,), (3,), 20)
    events.alive((1,), 21)
    second = events.batch() if apart else None
    events.deleted((1,), 30)
    events.alive((1,), 31)
    third = events.batch() if apart else None
    events.deleted((3,), 40)
    rows = [
        effect.rows for batch in (first, second, third, events.batch()) if batch for effect in await apply(store, batch)
    ]
    assert rows == [1, 1, 1, 1]
    assert await references(harness) == {1: 2, 4: 1, 5: 1}


async def test_clock_that_goes_back_on_the_way_leaves_a_row_at_the_key_it_had_come_to(harness: Harness) -> None:
    """The key changed at 50 by one clock; the new key was deleted later, at 20 by another."""
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 10), (1, 30), (1, 60)))
    events = Events()
    events.moved((1,), (2,), 50)
    events.deleted((2,), 60, occurred=20)
    assert rows_of(await apply(store, events.batch())) == {0: 2, 1: 1}
    assert await references(harness) == {2: 2, 3: 1}


async def test_chain_to_a_fate_that_was_enforced_before_compares_with_that_fates_time(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 3), (1, 8), (1, 15)))
    events = Events()
    events.deleted((2,), 20, partition=1, occurred=5)
    await apply(store, events.batch())
    events.moved((1,), (2,), 10)
    assert rows_of(await apply(store, events.batch())) == {0: 2}
    assert await references(harness) == {2: 2, 3: 1}


async def test_rows_that_arrived_keep_their_age(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 5), (1, 15), (2, 1), (2, 35)))
    events = Events()
    events.moved((1,), (2,), 20, partition=1)
    await apply(store, events.batch())
    events.deleted((2,), 10)
    assert rows_of(await apply(store, events.batch())) == {0: 1}
    assert await references(harness) == {1: 2, 2: 2, 4: 2}
    events.deleted((2,), 30, occurred=10)
    assert rows_of(await apply(store, events.batch())) == {0: 1}
    assert await references(harness) == {2: 2, 4: 2}


@pytest.mark.parametrize(
    ("action", "left"),
    [(Nullify(("customer_id",)), None), (SetDefault({"customer_id": 0}), 0), (Restrict(), 1)],
    ids=["nullify", "set_default", "restrict"],
)
async def test_every_action_leaves_younger_rows_alone(harness: Harness, action: Action, left: int | None) -> None:
    store = await harness.open(rules_of(aged(action)), orders((1, 5), (1, 15)))
    events = Events()
    events.deleted((1,), 10)
    [effect] = await apply(store, events.batch())
    assert effect.rows == 1
    assert (effect.outcome is Outcome.RESTRICTED) == isinstance(action, Restrict)
    assert await references(harness) == {1: left, 2: 1}


@pytest.mark.needs(Feature.MARKS)
async def test_younger_rows_are_not_marked(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(MARK)), orders((1, 5), (1, 15)))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert {row["id"]: row["deleted_at"] for row in await harness.rows("orders")} == {1: born(10), 2: None}


async def test_dead_letter_that_comes_back_leaves_younger_rows_alone(harness: Harness) -> None:
    store = await harness.open(rules_of(aged(Cascade())), orders((1, 5), (1, 15)))
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch(exceptions=left_out()))
    assert rows_of(await apply(store, again(change))) == {0: 1}
    assert await references(harness) == {2: 1}


async def test_event_is_held_for_the_rows_that_it_reaches_only(harness: Harness) -> None:
    store = await harness.open(
        rules_of(rule(Cascade(), as_of="born_at", max_rows=1)), orders((1, 5), (1, 15), (1, 25), (1, 26))
    )
    events = Events()
    events.deleted((1,), 10)
    assert rows_of(await apply(store, events.batch())) == {0: 1}
    events.deleted((1,), 40, occurred=30)
    assert isinstance(await store.apply(events.batch(), Deadline.after(30)), Held)
    assert await references(harness) == {2: 1, 3: 1, 4: 1}


@pytest.mark.parametrize("seed", range(3000, 3010))
async def test_random_history_with_ages_ends_where_one_event_at_a_time_ends(harness: Harness, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool: list[Key] = [(number,) for number in range(rng.randint(2, 6))]
    steps = rng.randint(10, 40)
    null, default = Nullify(("customer_id",)), SetDefault({"customer_id": 0})
    pairs: dict[str, tuple[Action, Action]] = {
        "cascade": (Cascade(), Cascade()),
        "nullify": (null, Cascade()),
        "set_default": (default, default),
        "restrict": (Restrict(), Cascade()),
    }
    chosen = [aged(*pair, name=name) for name, pair in pairs.items()]
    history = random_history(rng, keys=pool, steps=steps).skewed(rng, rng.choice((0, 20)))
    rows = initial_rows(chosen, pool, rng)
    for row in (row for table in rows.values() for row in table):
        row["born_at"] = a_moment(rng, steps)
    expected = deepcopy(rows)
    one_by_one(history.truth, chosen, expected)
    store = await harness.open(rules_of(*chosen), rows)
    model = MemoryStore("model", rules_of(*chosen), rows)
    for batch in history.batches(rng):
        assert sorted(await apply(store, batch)) == sorted(await apply(model, batch))
    names = ["id", "customer_id", "deleted_at", "deleted_by", "born_at"]
    found = {name: [{c: row[c] for c in names} for row in await harness.rows(name)] for name in expected}
    assert differences(expected, found) == []


async def test_sweep_leaves_rows_alone_that_are_younger_than_the_event(harness: Harness) -> None:
    """1 was deleted at 20; 2 became 3 at 50, and 3 was deleted later, at 20 by another clock."""
    store = await harness.open(rules_of(aged(Cascade())), orders())
    await began(store)
    events = Events()
    events.deleted((1,), 20)
    events.moved((2,), (3,), 50)
    events.deleted((3,), 60, occurred=20)
    await apply(store, events.batch())
    written = orders((1, 15), (1, 25), (1, None), (2, 10), (2, 30), (2, 60))["orders"]
    await harness.write("orders", *written)
    found = await swept(store)
    assert sorted(found) == [((1,), "customer.orders", "cascade", 1), ((2,), "customer.orders", "cascade", 2)]
    assert await references(harness) == {2: 1, 3: 1, 5: 3, 6: 2}
