"""A reference that is a list of keys: each element goes the way that a row of a link table would go."""

from __future__ import annotations

import random
from typing import Any

import pytest

from integrity.core.keys import Key
from integrity.core.outcome import Effect, Held, Outcome
from integrity.core.rules.model import Action, Cascade, Ignore, Nullify, Restrict, SetDefault
from integrity.ports import Deadline
from integrity.stores.memory import Row
from tests.contract.harness import Feature, Harness
from tests.contract.world import Events, apply, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import one_by_one

pytestmark = pytest.mark.needs(Feature.ARRAYS)

NULL, DEFAULT = Nullify(("customer_ids",)), SetDefault({"customer_ids": 0})


def listed(on_delete: Action, on_update: Action | None = None, **more: Any) -> Any:
    return rule(on_delete, on_update, columns=("customer_ids",), array=True, **more)


def docs(*lists: list[int] | None) -> dict[str, list[Row]]:
    return {"orders": [{"id": number, "customer_ids": keys} for number, keys in enumerate(lists, start=1)]}


async def lists(harness: Harness, target: str = "orders") -> list[object]:
    return [row["customer_ids"] for row in await harness.rows(target)]


@pytest.mark.parametrize("action", [Cascade(), NULL], ids=["cascade", "nullify"])
async def test_key_of_a_deleted_parent_is_taken_out_and_the_row_stays(harness: Harness, action: Action) -> None:
    store = await harness.open(rules_of(listed(action)), docs([1, 2, 3], [1], [2], [], None, [1, 4, 1]))
    events = Events()
    events.deleted((1,), 10)
    [effect] = await apply(store, events.batch())
    assert (effect.outcome, effect.rows) == (Outcome.APPLIED, 4)
    assert await lists(harness) == [[2, 3], [], [2], [], None, [4]]


async def test_restrict_counts_the_keys_and_leaves_the_lists(harness: Harness) -> None:
    store = await harness.open(rules_of(listed(Restrict(), max_rows=1)), docs([1, 2, 1], [1, 3], [2]))
    events = Events()
    events.moved((3,), (2,), 5)
    events.deleted((1,), 10)
    effects = {e.change: (e.outcome, e.rows) for e in await apply(store, events.batch())}
    assert effects == {0: (Outcome.APPLIED, 1), 1: (Outcome.RESTRICTED, 3)}
    assert await lists(harness) == [[1, 2, 1], [1, 2], [2]]


async def test_set_default_puts_the_default_in_the_place_of_the_key(harness: Harness) -> None:
    store = await harness.open(rules_of(listed(DEFAULT)), docs([5, 1, 2]))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await lists(harness) == [[5, 0, 2]]


async def test_key_change_replaces_the_key_in_its_place_and_swaps_come_out_right(harness: Harness) -> None:
    store = await harness.open(rules_of(listed(Cascade())), docs([1, 2, 3], [2], [3, 1]))
    events = Events()
    events.moved((1,), (9,), 10)
    events.moved((2,), (1,), 11)
    events.moved((9,), (2,), 12)
    assert [effect.rows for effect in await apply(store, events.batch())] == [2, 2, 2]
    assert await lists(harness) == [[2, 1, 3], [1], [3, 2]]


async def test_ignore_leaves_the_list(harness: Harness) -> None:
    store = await harness.open(rules_of(listed(Ignore(), Ignore())), docs([1, 2]))
    events = Events()
    events.deleted((1,), 10)
    events.moved((2,), (3,), 11)
    await apply(store, events.batch())
    assert await lists(harness) == [[1, 2]]


async def test_key_that_moves_to_one_that_is_in_the_list_stays_apart_from_it(harness: Harness) -> None:
    """The older deletion of the key takes the element that was there, and leaves the one that came."""
    store = await harness.open(rules_of(listed(Cascade())), docs([1, 2], [2]))
    events = Events()
    events.moved((1,), (2,), 20)
    await apply(store, events.batch())
    assert await lists(harness) == [[2, 2], [2]]
    assert await harness.arrivals() == 1
    events.deleted((2,), 12, partition=1)
    assert [effect.rows for effect in await apply(store, events.batch())] == [2]
    assert await lists(harness) == [[2], []]
    events.arrived((2,), 20, partition=1)
    await apply(store, events.batch())
    assert await harness.arrivals() == 0
    events.deleted((2,), 30, partition=1)
    assert [effect.rows for effect in await apply(store, events.batch())] == [1]
    assert await lists(harness) == [[], []]


async def test_where_holds_for_lists(harness: Harness) -> None:
    rows: list[Row] = [
        {"id": 1, "customer_ids": [1, 2], "region": "eu"},
        {"id": 2, "customer_ids": [1, 2], "region": "us"},
    ]
    store = await harness.open(rules_of(listed(Cascade(), where={"region": "eu"})), {"orders": rows})
    events = Events()
    events.deleted((1,), 10)
    assert await apply(store, events.batch()) == [Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 1)]
    assert await lists(harness) == [[2], [1, 2]]


async def test_event_with_more_elements_than_max_rows_is_held(harness: Harness) -> None:
    store = await harness.open(rules_of(listed(Cascade(), max_rows=2)), docs([1, 2], [1, 1], [2, 3]))
    events = Events()
    events.deleted((1,), 10)
    assert isinstance(await store.apply(events.batch(), Deadline.after(30)), Held)
    assert await lists(harness) == [[1, 2], [1, 1], [2, 3]]
    events = Events()
    events.deleted((2,), 11)
    assert [effect.rows for effect in await apply(store, events.batch())] == [2]
    assert await lists(harness) == [[1], [1, 1], [3]]


PAIRS: dict[str, tuple[Action, Action]] = {
    "cascade": (Cascade(), Cascade()),
    "nullify_both": (NULL, NULL),
    "set_default": (DEFAULT, Cascade()),
    "set_default_both": (DEFAULT, DEFAULT),
    "cascade_ignore": (Cascade(), Ignore()),
    "ignore_follow": (Ignore(), Cascade()),
}


@pytest.mark.parametrize("seed", range(8))
async def test_random_history_ends_where_a_link_table_with_native_foreign_keys_ends(
    harness: Harness, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pool: list[Key] = [(number,) for number in range(rng.randint(2, 7))]
    history = random_history(rng, keys=pool, steps=rng.randint(5, 40))
    rows: dict[str, list[Row]] = {
        name: [
            {"id": number, "customer_ids": [rng.choice(pool)[0] for _ in range(rng.randint(0, 5))]}
            for number in range(6)
        ]
        for name in PAIRS
    }
    links: dict[str, list[Row]] = {
        name: [{"row": row["id"], "customer_ids": key} for row in of for key in row["customer_ids"]]  # type: ignore[attr-defined]
        for name, of in rows.items()
    }
    one_by_one(history.truth, [listed(*pair, name=name) for name, pair in PAIRS.items()], links)
    store = await harness.open(rules_of(*(listed(*pair, name=name) for name, pair in PAIRS.items())), rows)
    for batch in history.batches(rng):
        await apply(store, batch)
    for name in PAIRS:
        found = [(row["id"], key) for row in await harness.rows(name) for key in row["customer_ids"]]  # type: ignore[attr-defined]
        wanted = [(link["row"], link["customer_ids"]) for link in links[name] if link["customer_ids"] is not None]
        assert sorted(found) == sorted(wanted), name  # type: ignore[type-var]
