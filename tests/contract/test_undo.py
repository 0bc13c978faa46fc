"""What an event changed is put back, where the rule keeps what rows were, over every store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from integrity.core.keys import Key
from integrity.core.outcome import Applied, Outcome, Retry, Unfinished
from integrity.core.rules.model import Action, Cascade, Nullify, SetDefault
from integrity.core.undo import Choice, Looked, Portion, Undone
from integrity.ports import Deadline
from integrity.stores.memory import Row
from tests.contract.graph_rules import LINE, comments, items, parts
from tests.contract.graph_rules import orders as order_rows
from tests.contract.harness import Feature, Harness
from tests.contract.parting import in_parts, pieces
from tests.contract.test_graph import ROWS, ids
from tests.contract.test_graph import references as references_of
from tests.contract.test_histories import rules
from tests.contract.test_redrive import again, left_out
from tests.contract.test_scan import found_in, mend, parents, subject
from tests.contract.test_sweeps import began, swept
from tests.contract.undoing import BACK, CHANGED, DAY_MS, EXISTS, GONE, ORDERS, event, keeping, kept, undo
from tests.contract.world import AT_MS, COMPOSITE, ENTITY, MARK, Events, apply, orders, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import initial_rows


async def references(harness: Harness) -> dict[object, object]:
    return await references_of(harness, "orders", "customer_id")


async def test_deleted_rows_come_back_as_they_were_and_once(harness: Harness) -> None:
    store = await harness.open(
        rules_of(kept(Cascade())),
        {
            "orders": [
                {"id": 1, "customer_id": 1, "region": "eu", "priority": 2**62, "active": True},
                *orders(1, 2, first=2)["orders"],
            ]
        },
    )
    before = await harness.rows("orders")
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await references(harness) == {3: 2}
    assert await undo(store, event(0)) == {(ORDERS, BACK): 2}
    assert await harness.rows("orders") == before
    assert await undo(store, event(0)) == {}


async def test_history_of_the_key_tells_who_put_back_how_much_and_why(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1, 1, 1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await undo(store, event(0), rows_max=2)
    history = await store.history(ENTITY, (1,), Deadline.after(30))  # type: ignore[attr-defined]
    assert history.undone == (Undone(ORDERS, event(0), 3, AT_MS + 1, "ann", "a mistake"),)


@pytest.mark.parametrize(
    ("on_delete", "after"),
    [(Nullify(("customer_id",)), None), (SetDefault({"customer_id": 0}), 0)],
    ids=["nullify", "set_default"],
)
async def test_references_come_back(harness: Harness, on_delete: Action, after: object) -> None:
    store = await harness.open(rules_of(kept(on_delete)), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await references(harness) == {1: after, 2: 2}
    assert await undo(store, event(0)) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 1, 2: 2}


async def test_only_some_columns_of_a_composite_reference_come_back(harness: Harness) -> None:
    store = await harness.open(
        rules_of(kept(Nullify(("customer_code",)), spec=COMPOSITE)), orders(("eu", 1), ("uk", 1))
    )
    before = await harness.rows("orders")
    events = Events()
    events.deleted(("eu", 1), 10)
    await apply(store, events.batch())
    assert await undo(store, event(0)) == {(ORDERS, BACK): 1}
    assert await harness.rows("orders") == before


@pytest.mark.needs(Feature.MARKS)
async def test_marks_are_taken_off(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(MARK)), {"orders": [{"id": 1, "customer_id": 1, "deleted_by": "nobody"}]})
    before = await harness.rows("orders")
    events = Events()
    events.moved((1,), (2,), 9)
    events.deleted((2,), 10, partition=1)
    await apply(store, events.batch())
    assert await undo(store, event(0, partition=1)) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 2}, "the key change stays"
    assert await undo(store, event(0)) == {(ORDERS, BACK): 1}
    assert await harness.rows("orders") == before


@pytest.mark.parametrize("batches", [1, 2])
async def test_several_events_of_one_row_are_undone_from_the_last_to_the_first(harness: Harness, batches: int) -> None:
    """Whether they came in one batch or not."""
    store = await harness.open(rules_of(kept(Cascade())), orders(1, 3))
    events = Events()
    events.moved((1,), (2,), 10)
    if batches == 2:
        await apply(store, events.batch())
    events.deleted((2,), 20, partition=1)
    await apply(store, events.batch())
    first, last = event(0), event(0, partition=1)
    assert await references(harness) == {2: 3}
    assert await undo(store, first) == {(ORDERS, GONE): 1}
    assert await references(harness) == {2: 3}
    assert await undo(store, last) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 2, 2: 3}
    assert await undo(store, first) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 1, 2: 3}


async def test_what_a_later_event_changed_is_a_conflict_and_stays(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1))
    events = Events()
    events.moved((1,), (2,), 10)
    events.moved((2,), (3,), 20, partition=1)
    await apply(store, events.batch())
    assert await undo(store, event(0)) == {(ORDERS, CHANGED): 1}
    assert await references(harness) == {1: 3}


async def test_everything_since_a_time_is_undone_through_all_its_events(harness: Harness) -> None:
    rules = rules_of(kept(Cascade()), kept(Cascade(), name="notes"))
    store = await harness.open(rules, orders(1, 4) | {"notes": [{"id": 1, "customer_id": 1}]})
    before = await harness.rows("orders")
    events = Events()
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    events.moved((2,), (3,), 20)
    events.deleted((3,), 30, partition=1)
    events.deleted((4,), 40)
    await apply(store, events.batch())
    assert await undo(store, since_ms=AT_MS + 1, dependents=[ORDERS]) == {}
    assert await undo(store, since_ms=AT_MS, dependents=[ORDERS], rows_max=1) == {(ORDERS, BACK): 4}
    assert await harness.rows("orders") == before
    assert await harness.rows("notes") == []


@pytest.mark.needs(Feature.NAMED)
async def test_row_that_was_written_anew_is_left_as_it_is(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1, 1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 1, "customer_id": 7})
    assert await undo(store, event(0)) == {(ORDERS, EXISTS): 1, (ORDERS, BACK): 1}
    assert await references(harness) == {1: 7, 2: 1}


@pytest.mark.parametrize("rows_max", [None, 2])
async def test_every_level_of_a_graph_comes_back_by_the_event_behind_it(harness: Harness, rows_max: int | None) -> None:
    rules = keeping(order_rows(), items(rows="item"), parts())
    store = await harness.open(rules, ROWS, rows_max=rows_max)
    before = [await harness.rows(name) for name in ROWS]
    events = Events()
    events.deleted((1,), 10)
    _, tries = await in_parts(store, events.batch())
    assert (tries > 1) is (rows_max == 2)
    events.deleted((2,), 11)
    await in_parts(store, events.batch())
    assert await undo(store, event(0), rows_max=3) == {
        (ORDERS, BACK): 2,
        ("order.items", BACK): 3,
        ("item.parts", BACK): 2,
    }
    assert [await ids(harness, name) for name in ROWS] == [[10, 11], [100, 101, 102], [1000, 1001]]
    history = await store.history("order", (10,), Deadline.after(30))  # type: ignore[attr-defined]
    assert [(each.dependent, each.event_id, each.rows) for each in history.undone] == [("order.items", event(0), 2)]
    await undo(store, event(1))
    assert [await harness.rows(name) for name in ROWS] == before


async def test_only_the_levels_that_keep_come_back(harness: Harness) -> None:
    below = items()
    store = await harness.open(
        rules_of(order_rows(), replace(below, dependent=replace(below.dependent, undo_ms=DAY_MS))), ROWS
    )
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await undo(store, event(0)) == {("order.items", BACK): 3}
    assert await ids(harness, "orders") == [12]


async def test_key_change_that_went_down_the_graph_is_undone_on_every_level(harness: Harness) -> None:
    lines: list[Row] = [{"id": n, "order_id": 1} for n in (1, 2)]
    notes: list[Row] = [{"id": 7, "line_order": 1, "line_id": 2}]
    rules = keeping(
        rule(Cascade(), name="lines", columns=("order_id",), rows="line", own=LINE),
        rule(Cascade(), name="notes", columns=("line_order", "line_id"), entity="line", spec=LINE),
    )
    store = await harness.open(rules, {"lines": lines, "notes": notes})
    before = [await harness.rows(name) for name in ("lines", "notes")]
    events = Events()
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    assert await references_of(harness, "notes", "line_order") == {7: 2}
    assert await undo(store, event(0)) == {("customer.lines", BACK): 2, ("line.notes", BACK): 1}
    assert [await harness.rows(name) for name in ("lines", "notes")] == before


async def test_rows_that_refer_to_one_another_come_back(harness: Harness) -> None:
    rows: list[Row] = [{"id": 1, "customer_id": 1}, *({"id": n, "answers_id": n - 1} for n in range(2, 6))]
    store = await harness.open(keeping(*comments()), {"comments": rows})
    before = await harness.rows("comments")
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await harness.rows("comments") == []
    counts = await undo(store, event(0), rows_max=2)
    assert counts == {("customer.comments", BACK): 1, ("comment.answers", BACK): 4}
    assert await harness.rows("comments") == before


async def test_no_sweep_takes_away_again_what_was_put_back(harness: Harness) -> None:
    rules = rules_of(kept(Cascade()), kept(Cascade(), name="notes"))
    store = await harness.open(rules, orders(1) | {"notes": []})
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await undo(store, event(0))
    await harness.write("notes", {"id": 5, "customer_id": 1})
    assert await swept(store) == [((1,), "customer.notes", "cascade", 1)], "of another dependent nothing was put back"
    assert await references(harness) == {1: 1}


async def test_the_same_event_read_again_leaves_alone_what_was_put_back(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await undo(store, event(0))
    events.deleted((1,), 10)
    [effect] = await apply(store, events.batch())
    assert effect.outcome is Outcome.DUPLICATE
    assert await references(harness) == {1: 1}


async def test_a_later_event_acts_on_what_was_put_back(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await undo(store, event(0))
    events.alive((1,), 20)
    events.deleted((1,), 30)
    [effect] = await apply(store, events.batch())
    assert (effect.outcome, effect.rows) == (Outcome.APPLIED, 1)
    assert await undo(store, event(2)) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 1}


async def test_late_rows_that_went_as_their_event_said_come_back_with_it(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1))
    await began(store)
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 9, "customer_id": 1})
    assert await swept(store) == [((1,), ORDERS, "cascade", 1)]
    assert await undo(store, event(0)) == {(ORDERS, BACK): 2}
    assert await references(harness) == {1: 1, 9: 1}


async def test_what_a_redrive_did_is_undone_with_its_event_and_not_redone(harness: Harness) -> None:
    rules = rules_of(kept(Cascade()), kept(Nullify(("customer_id",)), name="notes"))
    store = await harness.open(rules, orders(1) | {"notes": [{"id": 1, "customer_id": 1}]})
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch(exceptions=left_out()))
    await apply(store, again(change))
    assert await references(harness) == {}
    assert await undo(store, event(0)) == {(ORDERS, BACK): 1, ("customer.notes", BACK): 1}
    [effect] = await apply(store, again(change, first=1))
    assert effect.outcome is Outcome.DUPLICATE
    assert await references(harness) == {1: 1}


async def test_row_goes_back_through_several_key_changes_at_once(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1, 1))
    events = Events()
    for key in (1, 2, 3):
        events.moved((key,), (key + 1,), 10 * key, partition=key % 2)
    await apply(store, events.batch())
    assert await references(harness) == {1: 4, 2: 4}
    assert await undo(store, since_ms=0) == {(ORDERS, BACK): 6}
    assert await references(harness) == {1: 1, 2: 1}


async def test_rows_that_met_an_earlier_deletion_on_their_way_come_back_where_they_met_it(harness: Harness) -> None:
    """2 was deleted before the key change of 1 to 2 was heard of: its rows went with both at once."""
    store = await harness.open(rules_of(kept(Cascade())), orders(1))
    events = Events()
    events.deleted((2,), 20, partition=1)
    await apply(store, events.batch())
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    assert await references(harness) == {}
    assert await undo(store, event(0, partition=1)) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 2}


async def test_what_has_expired_is_removed_in_portions_and_not_put_back(harness: Harness) -> None:
    store: Any = await harness.open(rules_of(kept(Cascade())), orders(1, 1, 1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await store.forget_kept(AT_MS + DAY_MS - 1, 2, Deadline.after(30)) == 0
    assert await undo(store, event(0), at_ms=AT_MS + DAY_MS) == {}
    assert [await store.forget_kept(AT_MS + DAY_MS, 2, Deadline.after(30)) for _ in range(3)] == [2, 1, 0]
    assert await undo(store, event(0)) == {}


async def test_rule_without_undo_keeps_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade()), kept(Cascade(), name="notes")), orders(1) | {"notes": []})
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await undo(store, event(0)) == {}
    assert await references(harness) == {}


async def test_another_process_puts_back_what_this_one_changed(harness: Harness) -> None:
    store = await harness.open(rules_of(kept(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    assert await undo(await harness.another(), event(0)) == {(ORDERS, BACK): 1}
    assert await references(harness) == {1: 1, 2: 2}


@pytest.mark.needs(Feature.ARRAYS)
async def test_keys_come_back_into_their_lists_unless_those_have_changed(harness: Harness) -> None:
    lists: Mapping[str, list[Row]] = {
        "orders": [{"id": 1, "customer_ids": [3, 1, 2, 1]}, {"id": 2, "customer_ids": [1]}]
    }
    store = await harness.open(rules_of(kept(Cascade(), columns=("customer_ids",), array=True)), lists)
    before = await harness.rows("orders")
    events = Events()
    events.moved((3,), (4,), 5)
    events.deleted((1,), 10)
    events.deleted((4,), 11, partition=1)
    await apply(store, events.batch())
    assert [row["customer_ids"] for row in await harness.rows("orders")] == [[2], []]
    assert await undo(store, event(1)) == {(ORDERS, CHANGED): 1, (ORDERS, BACK): 1}
    assert [row["customer_ids"] for row in await harness.rows("orders")] == [[2], [1]]
    assert await undo(store, since_ms=0) == {(ORDERS, BACK): 3}
    assert await harness.rows("orders") == before


@pytest.mark.parametrize("action", [Cascade(), Nullify(("customer_id",))], ids=["cascade", "nullify"])
async def test_event_in_parts_is_undone_as_a_whole_and_not_before_it_is_done(harness: Harness, action: Action) -> None:
    """The next part would take again what was put back."""
    store: Any = await harness.open(rules_of(kept(action)), orders(*[1] * 5, 2), rows_max=2)
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(30)), Unfinished)
    portion = Portion(Choice(event(0)), 10, AT_MS + 1)
    for call in (store.kept, store.put_back):
        found = await call(portion, Deadline.after(30))
        assert isinstance(found, Retry), found
        assert "is not done yet" in found.message
    await in_parts(store, batch)
    assert await undo(store, event(0)) == {(ORDERS, BACK): 5}
    assert await references(harness) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 2}


async def everything(harness: Harness, seed: int, *, marks: bool) -> None:
    """A random history, delayed and in parts, and back again."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    width, size = 1 + seed % 2, rng.randint(2, 6)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(size)]
    chosen = [each for of in keeping(*rules(width, marks=marks)).values() for each in of]
    history = random_history(rng, keys=pool, steps=rng.randint(5, 30))
    store = await harness.open(
        rules_of(*chosen), initial_rows(chosen, pool, rng), rows_max=rng.choice((None, rng.randint(1, 3)))
    )
    names = [each.dependent.name for each in chosen]
    before = [await harness.rows(name) for name in names]
    for batch in history.batches(rng):
        await pieces(store, replace(batch, at_ms=AT_MS))
    counts = await undo(store, since_ms=0, rows_max=rng.choice((3, 1000)))
    assert {verdict for _, verdict in counts} <= {BACK}
    assert [await harness.rows(name) for name in names] == before


@pytest.mark.parametrize("seed", range(2))
async def test_everything_that_a_random_history_did_is_undone(harness: Harness, seed: int) -> None:
    await everything(harness, seed, marks=False)


@pytest.mark.needs(Feature.MARKS)
@pytest.mark.parametrize("seed", [102])
async def test_everything_that_a_random_history_with_marks_did_is_undone(harness: Harness, seed: int) -> None:
    await everything(harness, seed, marks=True)


async def test_what_a_repair_of_orphans_did_is_undone_by_its_name(harness: Harness) -> None:
    of, parent = kept(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 1, 9) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    await mend(store, found)
    found.orphans.close()
    assert await references(harness) == {3: 9}
    assert await undo(store, since_ms=0, dependents=[ORDERS]) == {(ORDERS, BACK): 2}
    assert await references(harness) == {1: 1, 2: 1, 3: 9}
    history = await store.history(ENTITY, (1,), Deadline.after(30))  # type: ignore[attr-defined]
    [undone] = history.undone
    assert undone.event_id == history.enforced[-1].fate.event_id


async def test_undo_beside_a_lane_that_goes_on_loses_no_row_and_leaves_what_it_did_elsewhere(harness: Harness) -> None:
    """Another process puts rows back while the lane deletes others, and those that are back as well. Whatever comes
    first, a row is there or is kept: undoing all that was done brings every row back as it was."""
    keys = range(8)
    rows = orders(*[key for key in keys for _ in range(3)])
    rules = keeping(rule(Cascade()))
    store: Any = await harness.open(rules, rows)
    before = await harness.rows("orders")
    # A topic's other process would take the store over; what is put back there goes by a way of its own in any case.
    beside: Any = store if store.exclusive else await harness.another()
    events = Events()
    for key in keys[:4]:
        events.deleted((key,), 10)
    await apply(store, events.batch())
    batches = []
    for key in keys[4:]:
        events.deleted((key,), 20)
        events.alive((key - 4,), 20)
        events.deleted((key - 4,), 30)
        batches.append(events.batch())

    async def lane() -> None:
        for batch in batches:
            while not isinstance(result := await store.apply(batch, Deadline.after(30)), Applied):
                assert isinstance(result, Retry), result

    async def person() -> None:
        for offset in range(4):
            portion = Portion(Choice(event(offset), None, frozenset()), 1000, AT_MS + 1, actor="ann", note="")
            while not isinstance(result := await beside.put_back(portion, Deadline.after(30)), Looked):
                assert isinstance(result, Retry), result
            assert {row.verdict for row in result.rows} == {BACK}

    await asyncio.gather(lane(), person())
    left = {row["customer_id"] for row in await harness.rows("orders")}
    assert left <= set(keys[:4]), "what the lane deleted meanwhile is gone"
    assert set((await undo(store, since_ms=0, dependents=[ORDERS])).keys()) == {(ORDERS, BACK)}
    assert await harness.rows("orders") == before
