"""What counts when: versions, repeats, chains and arrivals, over every store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from integrity.core.batch import DeadLetterMark
from integrity.core.change import Version
from integrity.core.ledger import Fate, Head, LastRecord
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import Cascade, Nullify
from integrity.errors import Reason
from integrity.stores.memory import Row
from tests.contract.harness import Harness
from tests.contract.world import ENTITY, TOPIC, Events, apply, orders, rule, rules_of


async def references(harness: Harness) -> dict[object, object]:
    return {row["id"]: row["customer_id"] for row in await harness.rows("orders")}


def outcomes(effects: Sequence[Effect]) -> list[Outcome]:
    return [effect.outcome for effect in effects]


async def test_swap_exchanges_the_rows_of_two_parents(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 1, 2))
    events = Events()
    events.moved((1,), (9,), 10)
    events.moved((2,), (1,), 11)
    events.moved((9,), (2,), 12)
    effects = await apply(store, events.batch())
    assert [e.rows for e in effects] == [2, 1, 2]
    assert await references(harness) == {1: 2, 2: 2, 3: 1}


async def test_a_raised_epoch_makes_versions_that_count_anew_act_again(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 4000)
    await apply(store, events.batch())
    events.alive((1,), 10)
    events.deleted((2,), 20)
    batch = events.batch()
    raised = [
        change._replace(version=Version(1, change.version.position)) for change in batch.changes if change.version
    ]
    effects = await apply(store, replace(batch, changes=tuple(raised)))
    assert outcomes(effects) == [Outcome.APPLIED]
    head = await harness.head(ENTITY, (1,))
    assert head is not None
    assert head.seen == Version(1, (10,))


async def test_a_deletion_just_after_a_key_change_takes_the_rows_that_came_with_it(harness: Harness) -> None:
    """A row that is marked as deleted by the statement that changes its key: its position continues the change's."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    events = Events()
    events.moved((1,), (2,), 10)
    batch = events.batch()
    await apply(store, batch)
    late = events.deleted((2,), 10)
    batch = events.batch()
    await apply(store, replace(batch, changes=(late._replace(version=Version(0, (10, 1))),)))
    assert await references(harness) == {3: 3}


async def test_chain_of_key_changes_is_followed_to_its_end(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    events = Events()
    events.moved((3,), (4,), 10)
    events.moved((2,), (3,), 11)
    events.moved((1,), (2,), 12)
    await apply(store, events.batch())
    assert await references(harness) == {1: 2, 2: 3, 3: 4}


async def test_key_change_there_and_back_leaves_the_reference(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.moved((1,), (2,), 10)
    events.moved((2,), (1,), 11)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    assert await references(harness) == {1: 1}


async def test_key_change_onto_a_key_deleted_in_the_same_batch_keeps_the_rows_that_came(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((2,), 10)
    events.moved((1,), (2,), 11)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    assert await references(harness) == {1: 2}


async def test_rows_moved_onto_a_key_that_is_deleted_later_in_the_batch_go_with_it(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    events = Events()
    events.moved((1,), (2,), 10)
    events.deleted((2,), 11)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 2]
    assert await references(harness) == {3: 3}


async def test_stale_delete_leaves_recreated_parent_alone(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(2))
    events = Events()
    events.deleted((1,), 10)
    events.gone((1,))
    events.alive((1,), 20)
    await apply(store, events.batch())
    events.deleted((1,), 15)
    assert outcomes(await apply(store, events.batch())) == [Outcome.STALE]
    assert await references(harness) == {1: 2}


async def test_repeated_delete_of_a_recreated_parent_leaves_its_new_rows_alone(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.deleted((1,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    events.alive((1,), 20)
    await apply(store, events.batch())
    events.moved((2,), (1,), 30)  # the rows of 2 now are 1's: what an old delete of 1 must not reach
    events.deleted((1,), 10)
    assert outcomes(await apply(store, events.batch())) == [Outcome.APPLIED, Outcome.STALE]
    assert await references(harness) == {2: 1}


async def test_equal_version_is_a_duplicate(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    events.deleted((1,), 10)
    assert outcomes(await apply(store, events.batch())) == [Outcome.APPLIED, Outcome.DUPLICATE]
    events.deleted((1,), 10)
    assert outcomes(await apply(store, events.batch())) == [Outcome.DUPLICATE]


async def test_lone_tombstone_of_an_unknown_key_is_a_deletion(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.gone((1,))
    assert outcomes(await apply(store, events.batch())) == [Outcome.APPLIED]
    assert await references(harness) == {2: 2}


async def test_lone_tombstone_after_an_alive_record_is_a_deletion(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    events.alive((1,), 20)
    await apply(store, events.batch())
    events.gone((1,))
    assert outcomes(await apply(store, events.batch())) == [Outcome.APPLIED]
    head = await harness.head(ENTITY, (1,))
    assert head is not None and head.seen == Version(0, (20, 1))


async def test_older_delete_of_another_topic_leaves_a_parent_alone_that_was_only_seen_alive(harness: Harness) -> None:
    """Nothing orders two topics: what the one says of a key's life must be known when the other's old delete comes."""
    store = await harness.open(rules_of(rule(Cascade(), keeps_alive=True)), orders(1, 2))
    here, there = Events(), Events(topic="archive.public.customers")
    here.alive((1,), 20)
    await apply(store, here.batch())
    there.deleted((1,), 10)
    there.deleted((2,), 11)
    assert outcomes(await apply(store, there.batch())) == [Outcome.STALE, Outcome.APPLIED]
    assert await references(harness) == {1: 1}
    here.deleted((1,), 30)
    assert outcomes(await apply(store, here.batch())) == [Outcome.APPLIED]
    assert await references(harness) == {}


async def test_what_two_topics_say_twice_is_done_once(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade(), keeps_alive=True)), orders(1, 2))
    here, there = Events(), Events(topic="archive.public.customers")
    for events in (here, there):
        events.deleted((1,), 10)
        events.alive((1,), 20)
        events.moved((2,), (1,), 30)
    assert outcomes(await apply(store, here.batch())) == [Outcome.APPLIED, Outcome.APPLIED]
    assert outcomes(await apply(store, there.batch())) == [Outcome.STALE, Outcome.DUPLICATE]
    assert await references(harness) == {2: 1}


async def test_lone_tombstone_of_another_topic_leaves_a_living_parent_alone(harness: Harness) -> None:
    """It has no version, and no place in the order of the topic that said that the key lives."""
    store = await harness.open(rules_of(rule(Cascade(), keeps_alive=True)), orders(1))
    here, there = Events(), Events(topic="archive.public.customers")
    here.alive((1,), 20)
    await apply(store, here.batch())
    there.gone((1,))
    assert outcomes(await apply(store, there.batch())) == [Outcome.STALE]
    assert await references(harness) == {1: 1}
    here.gone((1,))
    assert outcomes(await apply(store, here.batch())) == [Outcome.APPLIED]


async def test_tombstone_after_its_deletion_in_another_batch_says_nothing(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    events.gone((1,))
    assert await apply(store, events.batch()) == []


async def test_key_change_onto_a_key_whose_later_deletion_was_enforced_before_takes_the_rows_along(
    harness: Harness,
) -> None:
    """b's deletion (20) travels in another partition and is enforced before a→b (10)."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2, 3))
    events = Events()
    events.deleted((2,), 20, partition=1)
    await apply(store, events.batch())
    events.moved((1,), (2,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await references(harness) == {3: 3}


async def test_chain_goes_on_through_key_changes_enforced_before(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 9))
    events = Events()
    events.moved((3,), (4,), 30, partition=2)
    await apply(store, events.batch())
    events.moved((2,), (3,), 20, partition=1)
    await apply(store, events.batch())
    events.moved((1,), (2,), 10)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await references(harness) == {1: 4, 2: 9}


async def test_chain_takes_the_next_fate_of_the_key_not_its_last(harness: Harness) -> None:
    """b moved to c at 20, came back, and was deleted at 40: the rows that come to b at 10 follow to c."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.moved((2,), (3,), 20, partition=1)
    await apply(store, events.batch())
    events.alive((2,), 30, partition=1)
    events.deleted((2,), 40, partition=1)
    await apply(store, events.batch())
    events.alive((2,), 50, partition=1)
    events.deleted((2,), 60, partition=1)
    await apply(store, events.batch())
    events.moved((1,), (2,), 10)
    await apply(store, events.batch())
    assert await references(harness) == {1: 3}


async def test_late_older_delete_leaves_rows_that_arrived_after_it_alone(harness: Harness) -> None:
    """a→b (20) is enforced before b's own older delete (12): what came at 20 is not b's to delete."""
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.moved((1,), (2,), 20)
    await apply(store, events.batch())
    assert await references(harness) == {1: 2, 2: 2}
    assert await harness.arrivals() == 1
    events.deleted((2,), 12, partition=1)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await references(harness) == {1: 2}
    assert await harness.arrivals() == 1
    events.arrived((2,), 20, partition=1)
    await apply(store, events.batch())
    assert await harness.arrivals() == 0
    events.deleted((2,), 30, partition=1)
    assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await references(harness) == {}


async def test_arrivals_go_on_with_a_later_key_change_and_the_others_with_an_earlier(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 2))
    events = Events()
    events.moved((1,), (2,), 20)
    await apply(store, events.batch())
    events.moved((2,), (3,), 12, partition=1)
    events.arrived((2,), 20, partition=1)
    events.moved((2,), (4,), 25, partition=1)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    assert await references(harness) == {1: 4, 2: 3}


async def test_arrivals_of_two_times_are_told_apart(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1, 5, 2))
    events = Events()
    events.moved((1,), (2,), 20)
    await apply(store, events.batch())
    events.moved((5,), (2,), 40)
    await apply(store, events.batch())
    assert await harness.arrivals() == 2
    events.deleted((2,), 12, partition=1)
    events.alive((2,), 20, partition=1)
    events.moved((2,), (7,), 30, partition=1)
    assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    assert await references(harness) == {1: 7, 2: 2}
    events.alive((2,), 40, partition=1)
    events.moved((2,), (8,), 50, partition=1)
    await apply(store, events.batch())
    assert await references(harness) == {1: 7, 2: 8}


async def test_dead_lettered_effect_is_left_out_and_recorded(harness: Harness) -> None:
    rules = rules_of(rule(Cascade(), name="orders"), rule(Nullify(("customer_id",)), name="notes"))
    store = await harness.open(rules, {**orders(1, 2), "notes": [{"id": 1, "customer_id": 1}]})
    events = Events()
    events.deleted((1,), 10)
    events.deleted((2,), 11)
    mark = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "dead-1")
    effects = await apply(store, events.batch(exceptions={(0, "customer.orders"): mark}))
    assert sorted(effects) == [
        Effect(0, "customer.notes", "nullify", Outcome.APPLIED, 1),
        Effect(0, "customer.orders", "cascade", Outcome.DEAD_LETTERED, 0),
        Effect(1, "customer.notes", "nullify", Outcome.APPLIED, 0),
        Effect(1, "customer.orders", "cascade", Outcome.APPLIED, 1),
    ]
    assert await references(harness) == {1: 1}
    assert await harness.exceptions(ENTITY, (1,)) == {"customer.orders"}
    assert await harness.exceptions(ENTITY, (2,)) == set()


async def test_ledger_tells_what_happened_to_a_key(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.alive((1,), 5)
    events.moved((1,), (2,), 10)
    events.alive((1,), 20)
    events.deleted((1,), 30)
    batch = events.batch()
    await apply(store, batch)
    moved, deleted = batch.changes[1], batch.changes[3]
    fates = (
        Fate(Version(0, (10,)), (2,), moved.origin.event_id, moved.occurred_ms),
        Fate(Version(0, (30,)), None, deleted.origin.event_id, deleted.occurred_ms),
    )
    assert await harness.head(ENTITY, (1,)) == Head(Version(0, (30,)), fates, LastRecord(TOPIC, 0, 3, alive=False))
    assert await harness.head(ENTITY, (2,)) == Head(None, (), None)


async def test_being_alive_is_not_worth_a_row_unless_the_key_is_known(harness: Harness) -> None:
    store = await harness.open(rules_of(rule(Cascade())), orders(1))
    events = Events()
    events.alive((1,), 10)
    assert await apply(store, events.batch()) == []
    assert await harness.head(ENTITY, (1,)) is None
    events.moved((3,), (1,), 20, partition=1)
    await apply(store, events.batch())
    events.alive((1,), 30)
    await apply(store, events.batch())
    assert await harness.head(ENTITY, (1,)) == Head(Version(0, (30,)), (), LastRecord(TOPIC, 0, 1, alive=True))


async def test_each_event_of_a_path_is_credited_with_the_rows(harness: Harness) -> None:
    rows: list[Row] = [{"id": i, "customer_id": 1 + i % 2} for i in range(1, 6)]
    store = await harness.open(rules_of(rule(Cascade())), {"orders": rows})
    events = Events()
    events.moved((1,), (3,), 10)
    events.moved((2,), (1,), 11)
    events.moved((3,), (4,), 12)
    events.deleted((4,), 13)
    assert [e.rows for e in await apply(store, events.batch())] == [2, 3, 2, 2]
    assert sorted((await references(harness)).values()) == [1, 1, 1]  # type: ignore[type-var]
