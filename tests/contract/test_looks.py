"""What a store tells of a key, and of what an event would do, over every store."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from integrity.core.batch import DeadLetterMark
from integrity.core.change import Version
from integrity.core.history import CameFrom, Enforced, KeyHistory, LeftOut, Question
from integrity.core.ledger import Fate, LastRecord
from integrity.core.rules.model import Cascade, Ignore, Nullify
from integrity.errors import Reason
from integrity.ports import Deadline
from tests.contract.graph_rules import LINE
from tests.contract.harness import Feature, Harness
from tests.contract.world import AT_MS, COMPOSITE, ENTITY, TOPIC, Events, apply, orders, rule, rules_of

TRACE = "0" * 31 + "1"


def at(position: int) -> Version:
    return Version(0, (position,))


async def test_history_tells_every_fate_with_what_it_did_and_where_rows_came_from(harness: Harness) -> None:
    rules = rules_of(rule(Cascade()), rule(Nullify(("customer_id",)), Ignore(), name="reviews"))
    store = await harness.open(rules, orders(1, 1, 2) | {"reviews": [{"id": 1, "customer_id": 2}]})
    events = Events()
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    events.deleted((2,), 20, partition=1)
    events.alive((2,), 30, partition=1)
    await apply(store, events.batch())
    events.deleted((2,), 40, partition=1)
    await apply(store, events.batch())
    assert await store.history(ENTITY, (1,), Deadline.after(30)) == KeyHistory(
        seen=at(10),
        last=LastRecord(TOPIC, 0, 0, False),
        enforced=(
            Enforced(Fate(at(10), (2,), f"{TOPIC}/0/0", AT_MS + 10), {"customer.orders": ("cascade", 2)}, AT_MS, TRACE),
        ),
    )
    first = {"customer.orders": ("cascade", 3), "customer.reviews": ("nullify", 1)}
    second = {"customer.orders": ("cascade", 0), "customer.reviews": ("nullify", 0)}
    assert await store.history(ENTITY, (2,), Deadline.after(30)) == KeyHistory(
        seen=at(40),
        last=LastRecord(TOPIC, 1, 2, False),
        enforced=(
            Enforced(Fate(at(20), None, f"{TOPIC}/1/0", AT_MS + 20), first, AT_MS, TRACE),
            Enforced(Fate(at(40), None, f"{TOPIC}/1/2", AT_MS + 40), second, AT_MS, TRACE),
        ),
        came_from=(CameFrom("[1]", at(10), f"{TOPIC}/0/0", AT_MS),),
    )


async def test_history_knows_when_a_key_lives_again(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    gone = await store.history(ENTITY, (1,), Deadline.after(30))
    events.alive((1,), 20)
    await apply(store, events.batch())
    back = await store.history(ENTITY, (1,), Deadline.after(30))
    assert gone is not None and back is not None
    assert (gone.lives_again, back.lives_again, back.seen) == (False, True, at(20))


async def test_history_names_the_dead_letters_that_stand_for_effects(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    letter = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "f" * 32)
    await apply(store, events.batch(exceptions={(0, "customer.orders"): letter}))
    found = await store.history(ENTITY, (1,), Deadline.after(30))
    assert found is not None
    assert found.left_out == (
        LeftOut("customer.orders", f"{TOPIC}/0/0", at(10), "constraint_violation", "f" * 32, AT_MS),
    )
    assert [dict(each.done) for each in found.enforced] == [{}]


async def test_history_of_a_key_that_was_never_heard_of_is_none(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    assert await store.history(ENTITY, (1,), Deadline.after(30)) is None


async def test_impact_counts_the_rows_of_each_key(harness: Harness) -> None:
    rules = rules_of(
        rule(Cascade(), Nullify(("customer_id",))),
        rule(Nullify(("customer_id",)), Ignore(), name="reviews", where={"kind": ("a", "b")}),
    )
    reviews = [{"id": n, "customer_id": 1, "kind": kind} for n, kind in enumerate(["a", "b", "c", None])]
    store = await harness.open(rules, orders(*[1] * 7, 2) | {"reviews": reviews})
    deleted = await store.impact(Question(ENTITY, [(3,), (1,), (2,)]), Deadline.after(30))
    assert [(each.dependent, each.action, each.counts, each.rows) for each in deleted] == [
        ("customer.orders", "cascade", (0, 7, 1), 8),
        ("customer.reviews", "nullify", (0, 2, 0), 2),
    ]
    assert [len(each.sample) for each in deleted] == [5, 2], "some rows are named, not all"
    assert len({tuple(named.items()) for named in deleted[0].sample}) == 5
    moved = await store.impact(Question(ENTITY, [(1,)], deleted=False), Deadline.after(30))
    assert [(each.action, each.rows) for each in moved] == [("nullify", 7), ("ignore", 2)]
    assert not any(each.own or each.is_cut for each in (*deleted, *moved))
    assert len(await harness.rows("orders")) == 8, "nothing was changed"


async def test_impact_matches_all_parts_of_a_composite_key(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), spec=COMPOSITE)), orders(("eu", 1), ("eu", 2), ("eu", None)))
    [found] = await store.impact(Question(ENTITY, [("eu", 1), ("us", 2)]), Deadline.after(30))
    assert (found.counts, len(found.sample)) == ((1, 0), 1)


async def test_impact_names_the_own_keys_of_rows_that_are_parents(harness: Harness) -> None:
    lines = rule(Cascade(), name="lines", columns=("order_id",), rows="line", own=LINE, recorded=False)
    rows = [{"id": n, "order_id": n % 2} for n in range(6)]
    store = await harness.open(rules_of(lines), {"lines": rows})
    question = Question(ENTITY, [(7,), (0,), (1,)], follow=frozenset({lines.id}), own_max=100)
    [found] = await store.impact(question, Deadline.after(30))
    assert sorted(found.own) == [(1, (0, 0)), (1, (0, 2)), (1, (0, 4)), (2, (1, 1)), (2, (1, 3)), (2, (1, 5))]
    [some] = await store.impact(question._replace(own_max=4), Deadline.after(30))
    assert (some.counts, len(some.own)) == ((0, 3, 3), 4)
    assert set(some.own) <= set(found.own)


async def test_impact_leaves_out_rows_that_do_not_say_when_they_came_to_be(harness: Harness) -> None:
    """No event reaches them (as_of)."""
    born = datetime(2020, 1, 1, tzinfo=UTC)
    rows = [{"id": n, "customer_id": 1, "born_at": born if n else None} for n in range(3)]
    store = await harness.open(rules_of(rule(Cascade(), as_of="born_at")), {"orders": rows})
    [found] = await store.impact(Question(ENTITY, [(1,)]), Deadline.after(30))
    assert (found.counts, len(found.sample)) == ((2,), 2)


@pytest.mark.needs(Feature.ARRAYS)
async def test_impact_counts_each_element_of_a_list(harness: Harness) -> None:
    rows = [{"id": 1, "customer_id": [1, 2, 1]}, {"id": 2, "customer_id": [2]}, {"id": 3, "customer_id": None}]
    store = await harness.open(rules_of(rule(Cascade(), array=True)), {"orders": rows})
    [found] = await store.impact(Question(ENTITY, [(1,), (2,), (3,)]), Deadline.after(30))
    assert (found.counts, len(found.sample)) == ((2, 2, 0), 2)


async def test_clock_of_a_server_is_in_milliseconds(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    clock_ms = await store.clock_ms(Deadline.after(30))
    assert clock_ms is None or abs(clock_ms - time.time() * 1000) < 3_600_000
