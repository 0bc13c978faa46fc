"""The loop of a store, over a scripted group member and the in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.decode.record import Decoded, Decoder, Half, Record
from integrity.core.outcome import Outcome, Retry
from integrity.core.retry import Backoff
from integrity.errors import Reason, UnreachableError
from integrity.ports import Deadline
from integrity.service.lane import Lane
from tests.unit.service.doubles import (
    TOPIC,
    BentStore,
    Letters,
    ScriptedSource,
    Watched,
    broken,
    decode,
    deleted,
    enforcers_of,
    memory_store,
    revoke_without_grace,
    running,
    until,
)

P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


class Rig:
    def __init__(
        self,
        store: BentStore,
        source: ScriptedSource,
        batch_size: int = 10,
        schemas: Schemas | None = None,
        decode: Decoder = decode,
    ) -> None:
        self.store, self.source = store, source
        self.letters, self.watch = Letters(), Watched()
        self.stop = asyncio.Event()
        self.lane = Lane(
            store=store,  # type: ignore[arg-type]
            open_source=lambda: source,
            enforcers=enforcers_of(store, self.letters, self.watch),
            watch=self.watch,
            decoders={TOPIC: ("customer", decode)},
            batch_size=batch_size,
            schemas=schemas,
        )

    def keys_left(self) -> set[object]:
        return {row["customer_id"] for row in self.store.store.targets["orders"]}


def rows_applied(rig: Rig) -> int:
    return sum(e.rows for e in rig.watch.effects if e.outcome is Outcome.APPLIED)


async def test_everything_that_is_read_is_enforced_and_committed() -> None:
    records = {
        P0: [deleted(k, i) for i, k in enumerate(range(0, 50, 2))],
        P1: [deleted(k, i, partition=1) for i, k in enumerate(range(1, 50, 2))],
    }
    rig = Rig(BentStore(memory_store(60)), ScriptedSource(records))
    async with running(rig, P0, P1):
        await until(lambda: rig.keys_left() == set(range(50, 60)))
        await until(lambda: rig.source.committed == {P0: 25, P1: 25})
    assert rig.source.stopped
    assert rows_applied(rig) == 50


async def test_caught_up_when_this_process_and_the_others_have_enforced_what_was_there() -> None:
    records = {P0: [deleted(k, k) for k in range(3)], P1: [deleted(9, 0, partition=1)]}
    rig = Rig(BentStore(memory_store(10)), ScriptedSource(records))
    assert not await rig.lane.caught_up(Deadline.after(0)), "it has not joined"
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 3})
        assert not await rig.lane.caught_up(Deadline.after(0)), "nobody has enforced the other partition yet"
        rig.source.committed[P1] = 1
        assert await rig.lane.caught_up(Deadline.after(0))
        rig.store.gate.clear()
        rig.source.log[P0].append(deleted(7, 3))
        assert not await rig.lane.caught_up(Deadline.after(0)), "a new event is not enforced"
        rig.store.gate.set()
        assert await rig.lane.caught_up(Deadline.after(20)), "it waits for that"


def unmarked(record: Record) -> Decoded:
    """As of a source that marks no key changes: what has the places 2n and 2n+1 is of one transaction."""
    change = decode(record)
    if not isinstance(change, ParentChange) or record.value is None or change.version is None:
        return change
    [lsn] = change.version.position
    return Half(change, record.value[:1] == b"d", (lsn // 2,), None, record.key)


async def test_deletion_that_may_be_half_of_a_key_change_waits_and_is_not_committed_before() -> None:
    """Until then the next process would read it again, with what follows it."""
    records = [deleted(1, 0, lsn=10), deleted(2, 1, lsn=20), deleted(3, 2, lsn=30)]
    rig = Rig(BentStore(memory_store(6)), ScriptedSource({P0: records}), decode=unmarked)
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 2})
        polls = rig.source.polls
        await until(lambda: rig.source.polls > polls + 20)
        assert (rig.keys_left(), rig.source.committed) == ({0, 3, 4, 5}, {P0: 2})
        await rig.source.assign(P0)  # to another process, or this one again
        rig.source.log[P0].append(Record(TOPIC, 0, 3, 1_700_000_000_000, b"9", b"c31", ()))
        await until(lambda: rig.source.committed == {P0: 4})
        assert rig.keys_left() == {0, 9, 4, 5}


@pytest.mark.parametrize("has_registry", [False, True])
async def test_deletion_without_another_half_is_enforced_after_a_while_and_ends_the_way_to_the_end(
    has_registry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrity.service.lane.PAIR_WAIT_S", 0.0)
    records = [deleted(k, k) for k in range(3)]
    schemas = Schemas() if has_registry else None
    if schemas is not None:
        schemas.up = True
    rig = Rig(BentStore(memory_store(6)), ScriptedSource({P0: records}), schemas=schemas, decode=unmarked)
    async with running(rig, P0, to_end=True) as task:
        await asyncio.wait_for(asyncio.shield(task), 20)
    assert (rig.keys_left(), rig.source.committed) == ({3, 4, 5}, {P0: 3})


async def test_deletion_waits_for_what_the_broker_has_however_long_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.service.lane.PAIR_WAIT_S", 0.0)
    rig = Rig(BentStore(memory_store(3)), ScriptedSource({P0: [deleted(1, 0, lsn=10)]}), decode=unmarked)
    rig.source._end = lambda partition: 2  # type: ignore[method-assign]
    async with running(rig, P0):
        await until(lambda: rig.source.polls > 20)
        assert rig.keys_left() == {0, 1, 2}
        rig.source.log[P0].append(Record(TOPIC, 0, 1, 1_700_000_000_000, b"9", b"c11", ()))
        await until(lambda: rig.keys_left() == {0, 9, 2})


async def test_half_of_a_key_change_is_a_dead_letter_where_the_other_may_be_in_another_partition() -> None:
    rig = Rig(BentStore(memory_store(6)), ScriptedSource({P0: [deleted(1, 0)], P1: []}), decode=unmarked)
    async with running(rig, P0, P1):
        await until(lambda: rig.source.committed.get(P0) == 1)
    assert [letter.reason for letter in rig.letters.published] == [Reason.BAD_VERSION]
    assert rig.keys_left() == set(range(6))


async def test_to_the_end_stops_by_itself() -> None:
    rig = Rig(BentStore(memory_store(30)), ScriptedSource({P0: [deleted(k, k) for k in range(30)]}))
    async with running(rig, P0, to_end=True) as task:
        await asyncio.wait_for(asyncio.shield(task), 20)
    assert rig.keys_left() == set()
    assert rig.source.committed == {P0: 30}


async def test_a_member_without_partitions_ends_when_the_others_have_committed_the_end() -> None:
    rig = Rig(BentStore(memory_store(3)), ScriptedSource({P0: [deleted(k, k) for k in range(3)]}))
    async with running(rig, to_end=True) as task:
        await asyncio.sleep(0.05)
        assert not task.done()
        rig.source.committed[P0] = 3
        await asyncio.wait_for(asyncio.shield(task), 20)


async def test_an_empty_topic_is_at_its_end() -> None:
    rig = Rig(BentStore(memory_store(3)), ScriptedSource({P0: []}))
    async with running(rig, P0, to_end=True) as task:
        await asyncio.wait_for(asyncio.shield(task), 20)


async def test_a_rebalance_in_mid_batch_loses_nothing_and_repeats_nothing() -> None:
    store = BentStore(memory_store(40))
    rig = Rig(store, ScriptedSource({P0: [deleted(k, k) for k in range(40)]}), batch_size=7)
    async with running(rig, P0):
        for _ in range(6):
            await asyncio.sleep(0.004)
            await rig.source.assign(P0)
        await until(lambda: rig.keys_left() == set())
    assert rows_applied(rig) == 40


async def test_a_revoke_does_not_wait_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    store = BentStore(memory_store(4), lambda batch: Retry("gone", unreachable=True))
    rig = Rig(store, ScriptedSource({P0: [deleted(k, k) for k in range(4)]}))
    async with running(rig, P0):
        await until(lambda: len(store.calls) > 3)
        await revoke_without_grace(rig, monkeypatch)
        calls = len(store.calls)
        await asyncio.sleep(0.02)
        assert len(store.calls) == calls
    assert rig.keys_left() == {0, 1, 2, 3}
    assert rig.source.committed.get(P0, 0) == 0


async def test_reading_begins_where_the_store_is_not_where_the_group_is() -> None:
    """A store restored from a backup needs its effects again, whatever the group has committed."""
    source = ScriptedSource({P0: [deleted(k, k) for k in range(10)]})
    source.committed[P0] = 8
    rig = Rig(BentStore(memory_store(10)), source)
    rig.store.store._state.progress[P0] = 4
    async with running(rig, P0):
        await until(lambda: rig.keys_left() == {0, 1, 2, 3})


async def test_a_topic_made_anew_is_read_from_its_beginning() -> None:
    """The broker has erased the commit, the store still remembers the old topic's offsets."""
    rig = Rig(BentStore(memory_store(5)), ScriptedSource({P0: [deleted(k, k) for k in range(5)]}))
    rig.store.store._state.progress[P0] = 3
    async with running(rig, P0):
        await until(lambda: rig.keys_left() == set())
    assert rig.store.calls[0].spans[P0] == Span(0, 5, reset=True)
    assert rig.store.store._state.progress[P0] == 5


async def test_a_progress_beyond_the_end_is_a_topic_made_anew() -> None:
    source = ScriptedSource({P0: [deleted(k, k) for k in range(5)]})
    source.committed[P0] = 900
    rig = Rig(BentStore(memory_store(5)), source)
    rig.store.store._state.progress[P0] = 900
    async with running(rig, P0):
        await until(lambda: rig.keys_left() == set())


async def test_polling_goes_on_while_the_store_is_away_and_the_buffer_is_full() -> None:
    store = BentStore(memory_store(300), lambda batch: Retry("gone", unreachable=True))
    rig = Rig(store, ScriptedSource({P0: [deleted(k, k) for k in range(300)]}), batch_size=10)
    async with running(rig, P0):
        await until(lambda: rig.lane.trouble == "gone")
        store.bend = lambda batch: None
        await until(lambda: rig.keys_left() == set())
        await until(lambda: rig.lane.trouble == "")


async def test_a_session_waits_for_a_store_that_does_not_tell_its_progress() -> None:
    store = BentStore(memory_store(2))
    store.down = True
    rig = Rig(store, ScriptedSource({P0: [deleted(k, k) for k in range(2)]}))
    async with running(rig, P0):
        await until(lambda: "does not answer" in rig.lane.trouble)
        store.down = False
        await until(lambda: rig.keys_left() == set())


async def test_dead_letters_do_not_hold_up_what_stands_around_them() -> None:
    records = [deleted(0, 0), broken(1), deleted(2, 2), broken(3), deleted(4, 4)]
    rig = Rig(BentStore(memory_store(6)), ScriptedSource({P0: records}))
    async with running(rig, P0):
        await until(lambda: rig.keys_left() == {1, 3, 5})
        await until(lambda: rig.source.committed == {P0: 5})
    assert [letter.record.offset for letter in rig.letters.published] == [1, 3]


class Schemas:
    """A registry that knows each record's id, its value, once it was asked while it was up."""

    def __init__(self) -> None:
        self.up = False
        self.asked = 0
        self.known: set[int | str] = set()

    def missing(self, records: Iterable[Record]) -> set[int | str]:
        return {str(record.value) for record in records} - self.known

    async def learn(self, refs: Collection[int | str]) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.up:
            raise UnreachableError("the registry does not answer")
        self.known |= set(refs)


async def test_records_wait_for_their_schemas_while_the_lane_polls_on() -> None:
    schemas = Schemas()
    records = {P0: [deleted(k, k) for k in range(60)], P1: [deleted(60 + k, k, partition=1) for k in range(40)]}
    rig = Rig(BentStore(memory_store(100)), ScriptedSource(records), schemas=schemas)
    rig.lane._backoff = Backoff(first_s=0.001, cap_s=0.01)
    async with running(rig, P0, P1):
        await until(lambda: "the registry does not answer" in rig.lane.trouble)
        polls = rig.source.polls
        await until(lambda: rig.source.polls > polls + 3 and schemas.asked > 3)
        assert not rig.store.calls, "nothing is enforced that can't be read"
        await rig.source.assign(P0, P1)  # a rebalance in the middle of it
        schemas.up = True
        await until(lambda: rig.keys_left() == set())
        await until(lambda: rig.lane.trouble == "" and rig.source.committed == {P0: 60, P1: 40})
    assert rows_applied(rig) == 100
    assert rig.watch.registry[0] is False and rig.watch.registry[-1] is True


async def test_a_lane_that_waits_for_schemas_stops_at_once() -> None:
    rig = Rig(BentStore(memory_store(2)), ScriptedSource({P0: [deleted(0, 0)]}), schemas=Schemas())
    async with running(rig, P0):
        await until(lambda: "the registry does not answer" in rig.lane.trouble)
    assert rig.source.committed.get(P0, 0) == 0


async def test_stopping_finishes_the_open_batch_and_commits_it() -> None:
    store = BentStore(memory_store(5))
    store.gate.clear()
    rig = Rig(store, ScriptedSource({P0: [deleted(k, k) for k in range(5)]}))

    async def open_gate(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        store.gate.set()

    async with running(rig, P0):
        await until(lambda: bool(store.calls))
        rig.stop.set()
        opening = asyncio.create_task(open_gate(lambda: asyncio.sleep(0.05)))
    await opening
    assert rig.keys_left() == set()
    assert rig.source.committed == {P0: 5}


async def test_a_session_that_waits_holds_up_its_own_partitions_only() -> None:
    """Two sessions work side by side: the store refuses what is in partition 0 for as long as it likes."""

    def bend(batch: Batch) -> Retry | None:
        return Retry("a lock is held", contended=True) if P0 in batch.spans else None

    records = {
        P0: [deleted(key, key) for key in range(0, 100)],
        P1: [deleted(100 + key, key, partition=1) for key in range(100)],
    }
    rig = Rig(BentStore(memory_store(200), bend), ScriptedSource(records), batch_size=5)
    async with running(rig, P0, P1):
        await until(lambda: rig.keys_left() == set(range(100)))
        assert rig.lane.trouble == "a lock is held"
        await until(lambda: rig.source.committed.get(P1) == 100)
        assert rig.source.committed.get(P0, 0) == 0
        rig.store.bend = lambda batch: None
        await until(lambda: rig.keys_left() == set())


async def test_a_stop_does_not_wait_for_the_parts_of_an_event_that_are_left() -> None:
    """They take as long as they take; what is done of them stays, and the progress is that of before."""
    rig = Rig(BentStore(memory_store(1, rows_each=2_000, rows_max=1)), ScriptedSource({P0: [deleted(0, 0)]}))
    async with running(rig, P0):
        await until(lambda: len(rig.store.store.targets["orders"]) < 1_990)
    assert 0 < len(rig.store.store.targets["orders"]) < 1_990
    assert (rig.source.committed.get(P0, 0), rig.watch.effects) == (0, [])
