"""`max_rows`: an event with more rows than its rule allows changes nothing of that dependent, over every store."""

from __future__ import annotations

from dataclasses import replace

from integrity.core.batch import Batch, DeadLetterMark, Redrive, Span, TopicPartition
from integrity.core.outcome import Effect, Held, Outcome
from integrity.core.rules.model import Cascade, Nullify
from integrity.errors import Reason
from integrity.ports import Deadline
from tests.contract.harness import Harness
from tests.contract.world import AT_MS, ENTITY, Events, apply, orders, rule, rules_of

REDRIVE = TopicPartition("integrity.redrive", 0)
ORDERS = "customer.orders"


async def references(harness: Harness) -> list[object]:
    return [row["customer_id"] for row in await harness.rows("orders")]


async def test_event_with_as_many_rows_as_the_rule_allows_acts_and_one_more_is_held(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), max_rows=2)), orders(1, 1, 2, 2, 2))
    events = Events()
    events.deleted((1,), 10)
    assert [effect.rows for effect in await apply(store, events.batch())] == [2]
    events.deleted((2,), 11)
    events.deleted((3,), 12)
    result = await store.apply(events.batch(), Deadline.after(30))
    assert isinstance(result, Held) and result.dependent == ORDERS
    assert await references(harness) == [2, 2, 2]
    assert await harness.head(ENTITY, (2,)) is None


async def test_the_rows_of_a_path_count_for_each_of_its_events(harness: Harness) -> None:
    """Two rows come from 1 to 2, where one is: the deletion of 2 has three."""
    store = await harness.open(rules_of(rule(Cascade(), max_rows=2)), orders(1, 1, 2))
    events = Events()
    events.moved((1,), (2,), 10)
    events.deleted((2,), 11)
    assert isinstance(await store.apply(events.batch(), Deadline.after(30)), Held)
    assert await references(harness) == [1, 1, 2]


async def test_what_is_held_is_left_out_beside_others_and_done_when_it_is_approved(harness: Harness) -> None:
    rules = rules_of(rule(Cascade(), max_rows=1), rule(Nullify(("customer_id",)), name="notes"))
    store = await harness.open(rules, {**orders(1, 1), "notes": [{"id": 1, "customer_id": 1}]})
    events = Events()
    change = events.deleted((1,), 10)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), Held)
    mark = DeadLetterMark(Reason.TOO_MANY_ROWS, "held-1", Outcome.HELD)
    assert sorted(await apply(store, replace(batch, exceptions={(0, ORDERS): mark}))) == [
        Effect(0, "customer.notes", "nullify", Outcome.APPLIED, 1),
        Effect(0, ORDERS, "cascade", Outcome.HELD, 0),
    ]
    assert await harness.exceptions(ENTITY, (1,)) == {ORDERS}
    back = Batch((change,), {REDRIVE: Span(0, 1)}, AT_MS, redrives={0: Redrive("held-1", ORDERS, REDRIVE, 0)})
    assert isinstance(await store.apply(back, Deadline.after(30)), Held)
    approved = replace(back, redrives={0: back.redrives[0]._replace(approved=True)})
    assert await apply(store, approved) == [Effect(0, ORDERS, "cascade", Outcome.APPLIED, 2)]
    assert await references(harness) == []
