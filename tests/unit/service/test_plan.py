"""What an event would do down the graph and over the stores."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from integrity.core.history import Impact, Question
from integrity.core.plan import KEYS_MAX, Plan, Planned, reachable
from integrity.core.rules.parse import parse_rules
from integrity.errors import UnreachableError
from integrity.ports import Deadline
from integrity.service.plan import Planning, impact_document, plan
from integrity.stores.memory import MemoryStore
from integrity.stores.rule import store_rules
from tests.contract.world import Events, apply

CUSTOMER = """\
version: 1
parent: customer
events: {topic: customers, format: debezium, key: {id: int64}}
dependents:
  - {store: a, table: orders, references: {customer_id: id}, on_delete: cascade, entity: order, key: {id: int64}}
  - {store: a, table: notes, references: {customer_id: id}, on_delete: nullify, entity: note, key: {id: int64}}
"""
ORDER = """\
version: 1
parent: order
dependents:
  - {store: a, table: items, references: {order_id: id}, on_delete: cascade, max_rows: 4}
  - {store: b, collection: reviews, references: {orderId: id}, on_delete: cascade, max_rows: 2,
     entity: review, key: {id: int64}}
"""
NOTE = """\
version: 1
parent: note
dependents:
  - {store: a, table: pages, references: {note_id: id}, on_delete: cascade}
"""
REVIEW = """\
version: 1
parent: review
dependents:
  - {store: b, collection: votes, references: {reviewId: id}, on_delete: restrict}
"""
CATEGORY = """\
version: 1
parent: category
events: {topic: categories, format: debezium, key: {id: int64}}
dependents:
  - {store: a, table: categories, references: {parent_id: id}, on_delete: cascade, entity: category, key: {id: int64}}
"""
LINES = """\
version: 1
parent: order
events: {topic: orders, format: debezium, key: {id: int64}}
dependents:
  - {store: a, table: lines, references: {order_id: id}, on_delete: cascade, entity: line,
     key: {order_id: int64, line: int64}}
"""
PARTS = """\
version: 1
parent: line
dependents:
  - {store: b, collection: parts, references: {orderId: order_id, line: line}, on_delete: cascade}
"""
FOLLOWING = """\
version: 1
parent: order
dependents:
  - {store: a, table: items, references: {order_id: id}, on_delete: cascade}
  - {name: follows, store: a, table: orders, references: {follows_id: id}, on_delete: cascade, entity: order,
     key: {id: int64}}
"""
GRAPH = {"customer": CUSTOMER, "order": ORDER, "note": NOTE, "review": REVIEW}


def rules_of(**files: str) -> Any:
    return parse_rules({f"{name}.yaml": text for name, text in files.items()})


def stores_of(rules: Any, targets: Mapping[str, list[dict[str, object]]]) -> dict[str, Any]:
    return {name: MemoryStore(name, store_rules(rules, name), dict(targets)) for name in rules.stores}


async def planned(rules: Any, stores: Any, entity: str, key: Any, to: Any = None) -> Planning:
    until = Deadline.after(60)
    return await plan(rules, stores, entity, key, to, deadline=lambda _: until, until=until)


def told(planning: Planning) -> list[tuple[object, ...]]:
    return [(p.dependent.id, p.level, p.action, p.rows, p.held, p.at_least) for p in planning.found]


ROWS: dict[str, list[dict[str, object]]] = {
    "orders": [{"id": n, "customer_id": 7} for n in range(3)],
    "notes": [{"id": 1, "customer_id": 7}],
    "pages": [{"id": 1, "note_id": 1}],
    "items": [{"id": n, "order_id": n % 2} for n in range(4)],
    "reviews": [{"id": n, "orderId": n % 2} for n in range(5)],
    "votes": [{"id": n, "reviewId": 2} for n in range(6)],
}


async def test_plan_counts_every_level_over_all_stores_and_stops_where_rows_stay() -> None:
    """A review is deleted by an event of its order, so each order has its own limit.

    Notes are nullified: no pages go."""
    rules = rules_of(**GRAPH)
    planning = await planned(rules, stores_of(rules, ROWS), "customer", (7,))
    assert told(planning) == [
        ("customer.orders", 1, "cascade", 3, False, False),
        ("customer.notes", 1, "nullify", 1, False, False),
        ("order.items", 2, "cascade", 4, False, False),
        ("order.reviews", 2, "cascade", 5, True, False),
        ("review.votes", 3, "restrict", 6, False, False),
    ]
    document = impact_document(rules.by_entity["customer"], (7,), None, planning)
    assert (document["restricted"], document["held"], document["at_least"]) == (True, True, False)
    assert planning.found[3].sample == [{"id": 0}, {"id": 2}, {"id": 4}, {"id": 1}, {"id": 3}]


async def test_rows_further_down_hold_the_whole_branch_of_their_store() -> None:
    rules = rules_of(**GRAPH)
    rows = ROWS | {"items": [{"id": n, "order_id": n % 2} for n in range(5)], "reviews": []}
    planning = await planned(rules, stores_of(rules, rows), "customer", (7,))
    assert told(planning)[:4] == [
        ("customer.orders", 1, "cascade", 3, True, False),
        ("customer.notes", 1, "nullify", 1, False, False),
        ("order.items", 2, "cascade", 5, True, False),
        ("order.reviews", 2, "cascade", 0, False, False),
    ]


async def test_cycle_is_gone_round_once() -> None:
    rules = rules_of(category=CATEGORY)
    ring = [{"id": n, "parent_id": (n + 1) % 4} for n in range(4)]
    planning = await planned(rules, stores_of(rules, {"categories": ring}), "category", (0,))
    assert told(planning) == [("category.categories", 1, "cascade", 4, False, False)]


async def test_key_change_goes_down_identifying_references_only() -> None:
    rules = rules_of(order=LINES, line=PARTS)
    rows = {
        "lines": [{"order_id": 1, "line": n, "id": n} for n in range(3)],
        "parts": [{"id": n, "orderId": 1, "line": n % 2} for n in range(4)],
    }
    planning = await planned(rules, stores_of(rules, rows), "order", (1,), (2,))
    assert told(planning) == [
        ("order.lines", 1, "cascade", 3, False, False),
        ("line.parts", 2, "cascade", 4, False, False),
    ]
    rules = rules_of(**GRAPH)
    planning = await planned(rules, stores_of(rules, ROWS), "customer", (7,), (8,))
    assert [row[:3] for row in told(planning)] == [("customer.orders", 1, "cascade"), ("customer.notes", 1, "cascade")]


def gone_down(rows: int | None) -> list[Planned]:
    """A walk down rows of one table, each referring to the one before: that many, or without end."""
    walk = Plan(rules_of(category=CATEGORY), "category", [(0,)], None)
    while (portion := walk.ask()) is not None:
        own = [(place, (key[0] + 1,)) for place, key in enumerate(portion.question.keys)]  # type: ignore[operator]
        there = tuple(each for each in own if rows is None or each[1][0] <= rows)
        counts = tuple(1 if rows is None or key[0] < rows else 0 for key in portion.question.keys)  # type: ignore[operator]
        walk.take(portion, [Impact("category.categories", "cascade", counts, own=there[: portion.question.own_max])])
    return [*walk.found()]


def test_long_chain_is_gone_down_to_its_end() -> None:
    [found] = gone_down(10_000)
    assert (found.rows, found.at_least) == (10_000, False)


def test_chain_without_end_is_counted_up_to_a_cap_and_says_so() -> None:
    [found] = gone_down(None)
    assert (found.rows, found.at_least) == (KEYS_MAX, True)


async def test_what_was_not_looked_at_is_told_as_at_least() -> None:
    rules = rules_of(**GRAPH)
    until = Deadline.after(60)
    planning = await plan(
        rules, stores_of(rules, ROWS), "customer", (7,), None, deadline=lambda _: until, until=Deadline.after(0)
    )
    assert told(planning) == [
        ("customer.orders", 1, "cascade", 3, False, False),
        ("customer.notes", 1, "nullify", 1, False, False),
        ("order.items", 2, "cascade", 0, False, True),
        ("order.reviews", 2, "cascade", 0, False, True),
        ("review.votes", 3, "restrict", 0, False, True),
    ]


class Silent:
    name = "b"

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        raise UnreachableError("MongoDB does not answer.")


async def test_store_further_down_that_does_not_answer_is_named_once() -> None:
    rules = rules_of(**GRAPH)
    stores = stores_of(rules, ROWS) | {"b": Silent()}
    planning = await planned(rules, stores, "customer", (7,))
    assert list(planning.silent) == ["b"]
    assert [row[0] for row in told(planning)] == ["customer.orders", "customer.notes", "order.items"]


def test_reachable_stores_are_those_below_too() -> None:
    rules = rules_of(**GRAPH)
    assert [reachable(rules, entity) for entity in ("customer", "note", "review")] == [("a", "b"), ("a",), ("b",)]


async def test_plan_says_what_enforcing_then_does() -> None:
    """In one store, with cycles and several ways to a row. One that two references reach counts with both."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    rules = rules_of(customer=CUSTOMER, order=FOLLOWING)
    for _ in range(40):
        rows: dict[str, list[dict[str, object]]] = {
            "orders": [
                {"id": n, "customer_id": chance.randrange(3), "follows_id": chance.choice([None, *range(8)])}
                for n in range(8)
            ],
            "notes": [{"id": n, "customer_id": chance.randrange(3)} for n in range(3)],
            "items": [{"id": n, "order_id": chance.randrange(9)} for n in range(12)],
        }
        before = {name: len(of) for name, of in rows.items()}
        stores = stores_of(rules, rows)
        planning = await planned(rules, stores, "customer", (1,))
        events = Events()
        events.deleted((1,), 10)
        await apply(stores["a"], events.batch())
        counted = {p.dependent.id: p.rows for p in planning.found}
        gone = {name: before[name] - len(stores["a"].targets[name]) for name in before}
        assert counted.get("order.items", 0) == gone["items"]
        both = counted["customer.orders"], counted.get("order.follows", 0)
        assert max(both) <= gone["orders"] <= sum(both)


def test_a_plan_asks_about_no_key_twice() -> None:
    rules = rules_of(category=CATEGORY)
    walk = Plan(rules, "category", [(0,)], None)
    portion = walk.ask()
    assert portion is not None
    twice = ((0, (1,)), (0, (1,)), (0, (0,)))
    walk.take(portion, [Impact("category.categories", "cascade", (3,), own=twice)])
    portion = walk.ask()
    assert portion is not None and portion.question.keys == [(1,)]
    found: Sequence[Planned] = walk.found()
    assert found[0].rows == 3
