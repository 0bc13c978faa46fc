"""References with null parts, several of one table to the same parent, and a table that refers to its own kind."""

from __future__ import annotations

import pytest

from integrity.core.outcome import Outcome
from integrity.core.rules.model import Action, Cascade, Match, Nullify, Restrict, SetDefault
from integrity.stores.memory import Row
from integrity.stores.rule import StoreRule
from tests.contract.harness import Harness
from tests.contract.world import COMPOSITE, Events, apply, rule, rules_of


def two(buyer: Action, payer: Action) -> tuple[StoreRule, StoreRule]:
    """Rules on two columns of one table."""
    return (
        rule(buyer, name="orders.buyer", target="orders", columns=("buyer_id",)),
        rule(payer, name="orders.payer", target="orders", columns=("payer_id",)),
    )


def orders(*pairs: tuple[int | None, int | None]) -> dict[str, list[Row]]:
    return {"orders": [{"id": n, "buyer_id": buyer, "payer_id": payer} for n, (buyer, payer) in enumerate(pairs, 1)]}


async def pairs(harness: Harness) -> dict[object, tuple[object, object]]:
    return {row["id"]: (row["buyer_id"], row["payer_id"]) for row in await harness.rows("orders")}


async def test_each_of_two_references_to_one_parent_has_its_own_action(harness: Harness) -> None:
    store = await harness.open(rules_of(*two(Cascade(), Nullify(("payer_id",)))), orders((1, 2), (2, 1), (2, 2)))
    events = Events()
    events.deleted((1,), 10)
    effects = {e.dependent: (e.outcome, e.rows) for e in await apply(store, events.batch())}
    assert effects == {"customer.orders.buyer": (Outcome.APPLIED, 1), "customer.orders.payer": (Outcome.APPLIED, 1)}
    assert await pairs(harness) == {2: (2, None), 3: (2, 2)}


@pytest.mark.parametrize(
    ("buyer", "payer", "left"),
    [
        (Cascade(), Nullify(("payer_id",)), None),
        (Nullify(("buyer_id",)), Cascade(), None),
        (Cascade(), Cascade(), None),
        (Nullify(("buyer_id",)), SetDefault({"payer_id": 9}), (None, 9)),
        (Restrict(), Nullify(("payer_id",)), (1, None)),
    ],
)
async def test_row_whose_two_references_are_hit_at_once_ends_as_both_actions_leave_it(
    harness: Harness, buyer: Action, payer: Action, left: tuple[object, object] | None
) -> None:
    """As the triggers of two native foreign keys do, one after the other: where one of them deletes, the row is gone,
    whichever fires first."""
    store = await harness.open(rules_of(*two(buyer, payer)), orders((1, 1), (2, 2)))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await pairs(harness) == ({1: left} if left else {}) | {2: (2, 2)}


async def test_two_references_follow_their_keys_apart_and_together(harness: Harness) -> None:
    store = await harness.open(rules_of(*two(Cascade(), Nullify(("payer_id",)))), orders((1, 1), (1, 2), (2, 1)))
    events = Events()
    events.moved((1,), (9,), 10)
    events.moved((2,), (1,), 11)
    events.moved((9,), (2,), 12)
    await apply(store, events.batch())
    assert await pairs(harness) == {1: (2, 2), 2: (2, 1), 3: (1, 2)}
    events.deleted((2,), 20)
    await apply(store, events.batch())
    assert await pairs(harness) == {3: (1, None)}


async def test_arrivals_of_two_references_in_one_row_are_told_apart(harness: Harness) -> None:
    """The buyer's reference came to 2 after the deletion that is on its way, the payer's was there before."""
    store = await harness.open(rules_of(*two(Nullify(("buyer_id",)), Nullify(("payer_id",)))), orders((1, 2)))
    events = Events()
    events.moved((1,), (2,), 20, partition=1)
    await apply(store, events.batch())
    events.deleted((2,), 10)
    await apply(store, events.batch())
    assert await pairs(harness) == {1: (2, None)}


def category(on_delete: Action, on_update: Action | None = None) -> StoreRule:
    return rule(on_delete, on_update, entity="category", name="categories", columns=("parent_id",))


def categories(*parents: int | None) -> dict[str, list[Row]]:
    return {"categories": [{"id": n, "parent_id": parent} for n, parent in enumerate(parents, 1)]}


async def test_table_may_refer_to_its_own_kind(harness: Harness) -> None:
    """The rows of one level go with their parent. That they are parents themselves is for their own events."""
    store = await harness.open(rules_of(category(Cascade())), categories(None, 1, 2, 2, 3))
    events = Events("category", "shop.public.categories")
    events.deleted((2,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [2]
    assert {row["id"]: row["parent_id"] for row in await harness.rows("categories")} == {1: None, 2: 1, 5: 3}
    events.deleted((3,), 20)
    await apply(store, events.batch())
    assert {row["id"]: row["parent_id"] for row in await harness.rows("categories")} == {1: None, 2: 1}


async def test_row_that_refers_to_itself_goes_and_moves_once(harness: Harness) -> None:
    store = await harness.open(rules_of(category(Cascade())), categories(1, 1, 3))
    events = Events("category", "shop.public.categories")
    events.moved((3,), (4,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    events.deleted((1,), 20)
    assert [e.rows for e in await apply(store, events.batch())] == [2]
    assert {row["id"]: row["parent_id"] for row in await harness.rows("categories")} == {3: 4}


@pytest.mark.parametrize("match", Match)
async def test_reference_that_is_null_in_part_is_reached_by_no_event(harness: Harness, match: Match) -> None:
    """No constraint keeps such rows out of a dependent store, whatever MATCH says of them."""
    both = ("customer_tenant", "customer_code")
    store = await harness.open(
        rules_of(rule(Nullify(both), spec=COMPOSITE, match=match)),
        {
            "orders": [
                {"id": n, "customer_tenant": tenant, "customer_code": code}
                for n, (tenant, code) in enumerate([("eu", 1), ("eu", None), (None, 1), (None, None), ("eu", 2)], 1)
            ]
        },
    )
    events = Events()
    events.moved(("eu", 2), ("eu", 3), 10)
    events.deleted(("eu", 1), 11)
    assert [effect.rows for effect in await apply(store, events.batch())] == [1, 1]
    found = {row["id"]: (row["customer_tenant"], row["customer_code"]) for row in await harness.rows("orders")}
    assert found == {1: (None, None), 2: ("eu", None), 3: (None, 1), 4: (None, None), 5: ("eu", 3)}
