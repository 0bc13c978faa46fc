"""A copy equals its parent's row, over every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from integrity.core.batch import Batch, DeadLetterMark, Discard, Redrive, Span, TopicPartition
from integrity.core.change import EARLIEST, ParentChange, Version
from integrity.core.copies import UPSERT
from integrity.core.outcome import Applied, ApplyResult, Effect, Outcome, Rejected, Retry
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.service import truncate as service
from tests.contract.copies import CopyHarness, opened, params, row
from tests.contract.truncates import Desk, back, said
from tests.contract.world import AT_MS, TOPIC, Events, apply

COPY = "customer.customer_copy"


@pytest_asyncio.fixture(params=params())
async def copies(request: pytest.FixtureRequest) -> AsyncIterator[CopyHarness]:
    async with opened(request, request.param) as made:
        yield made


async def test_copy_follows_creation_update_and_deletion(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada", "ada@x"))
    events.alive((2,), 11, row=row("Bob"))
    assert await apply(store, events.batch()) == [
        Effect(0, COPY, UPSERT, Outcome.APPLIED, 1),
        Effect(1, COPY, UPSERT, Outcome.APPLIED, 1),
    ]
    assert await copies.rows() == {1: ("Ada", "ada@x"), 2: ("Bob", None)}
    events.alive((1,), 20, row=row("Ada L.", None))
    events.deleted((2,), 21)
    events.deleted((3,), 22)
    effects = await apply(store, events.batch())
    assert [(e.action, e.rows) for e in effects] == [(UPSERT, 1), ("delete", 1), ("delete", 0)]
    assert await copies.rows() == {1: ("Ada L.", None)}


async def test_copy_moves_with_its_key_whichever_half_comes_first(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada"))
    events.alive((2,), 10, 1, row=row("Bob"))
    await apply(store, events.batch())
    events.moved((1,), (7,), 20)
    await apply(store, events.batch())
    assert await copies.rows() == {2: ("Bob", None)}
    events.arrived((7,), 20, 1, row=row("Ada"))
    events.arrived((8,), 30, row=row("Bob"))
    await apply(store, events.batch())
    assert await copies.rows() == {7: ("Ada", None), 2: ("Bob", None), 8: ("Bob", None)}
    events.moved((2,), (8,), 30, 1)
    await apply(store, events.batch())
    assert await copies.rows() == {7: ("Ada", None), 8: ("Bob", None)}


async def test_older_event_never_overwrites_a_newer_one_also_not_after_a_deletion(copies: CopyHarness) -> None:
    """A source emits again what it has emitted before, at new offsets."""
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("old"))
    events.alive((1,), 20, row=row("new"))
    events.alive((2,), 10, row=row("gone"))
    events.deleted((2,), 20)
    await apply(store, events.batch())
    events.alive((1,), 10, row=row("old"))
    events.alive((1,), 20, row=row("again"))
    events.alive((2,), 10, row=row("gone"))
    events.deleted((1,), 15)
    effects = await apply(store, events.batch())
    assert [effect.outcome for effect in effects] == [
        Outcome.STALE, Outcome.DUPLICATE, Outcome.STALE, Outcome.STALE
    ]  # fmt: skip
    assert await copies.rows() == {1: ("new", None)}


async def test_key_that_is_created_again_has_its_row_again(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("first"))
    await apply(store, events.batch())
    events.deleted((1,), 20)
    events.alive((1,), 30, row=row("second"))
    await apply(store, events.batch())
    assert await copies.rows() == {1: ("second", None)}


async def test_value_that_was_not_sent_stays_as_it_is(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada", "ada@x"))
    events.alive((2,), 10, row=row("Bob", "bob@x"))
    events.alive((2,), 11, row=row("Bert", ...))
    await apply(store, events.batch())
    events.alive((1,), 20, row=row(..., "new@x"))
    events.alive((2,), 20, row=row(..., ...))
    await apply(store, events.batch())
    assert await copies.rows() == {1: ("Ada", "new@x"), 2: ("Bert", "bob@x")}


async def test_value_that_was_not_sent_and_that_no_row_has_is_refused(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada", "ada@x"))
    events.deleted((1,), 20)
    await apply(store, events.batch())
    for key in (1, 2):
        events.alive((key,), 30, row=row("Ada", ...))
        result = await store.apply(events.batch(), Deadline.after(30))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == (COPY, Reason.VALUE_REJECTED)
        assert "mail" in result.message
        events = _again(events)
    assert await copies.rows() == {}


async def test_field_that_the_row_does_not_have_is_refused(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row={"name": row("Ada")["name"]})
    result = await store.apply(events.batch(), Deadline.after(30))
    assert isinstance(result, Rejected)
    assert result.message == "The row of the event has no field mail that can be copied."


async def test_event_left_out_is_made_up_for_by_its_redrive_unless_a_newer_one_came(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    first = events.alive((1,), 10, row=row("one"))
    second = events.alive((2,), 11, row=row("two"))
    mark = DeadLetterMark(Reason.VALUE_REJECTED, "letter")
    batch = events.batch(exceptions={(0, COPY): mark, (1, COPY): mark})
    effects = await apply(store, batch)
    assert [effect.outcome for effect in effects] == [Outcome.DEAD_LETTERED] * 2
    assert await copies.rows() == {}
    events.alive((2,), 20, row=row("newer"))
    await apply(store, events.batch())
    at = TopicPartition("integrity.redrive", 0)
    redrives = {index: Redrive("letter", COPY, at, index) for index in (0, 1)}
    effects = await apply(store, Batch((first, second), {at: Span(0, 2)}, AT_MS, redrives=redrives))
    assert [effect.outcome for effect in effects] == [Outcome.APPLIED, Outcome.STALE]
    assert await copies.rows() == {1: ("one", None), 2: ("newer", None)}
    await apply(store, Batch((), {at: Span(2, 3)}, AT_MS, discards=(Discard("letter", COPY, "t/0/1"),)))


async def test_row_that_missed_an_event_takes_whole_rows_only(copies: CopyHarness) -> None:
    """What the left-out event changed may be what the next one does not send."""
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada", "old@x"))
    events.alive((1,), 20, row=row("Ada", "new@x"))
    await apply(store, events.batch(exceptions={(1, COPY): DeadLetterMark(Reason.VALUE_REJECTED, "letter")}))
    events.alive((1,), 30, row=row("Ada L.", ...))
    result = await store.apply(events.batch(), Deadline.after(30))
    assert isinstance(result, Rejected)
    assert "dead letter" in result.message
    assert await copies.rows() == {1: ("Ada", "old@x")}
    events = _again(events)
    events.alive((1,), 40, row=row("Ada L.", "new@x"))
    await apply(store, events.batch())
    events.alive((1,), 50, row=row("A. L.", ...))
    await apply(store, events.batch())
    assert await copies.rows() == {1: ("A. L.", "new@x")}


async def test_missed_events_are_made_up_for_in_their_order_or_by_a_row_that_a_snapshot_reads(
    copies: CopyHarness,
) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("one", "one@x"))
    events.alive((2,), 10, row=row("one", "one@x"))
    whole = events.alive((1,), 20, row=row("two", "two@x"))
    part = events.alive((1,), 30, row=row("three", ...))
    other = events.alive((2,), 20, row=row("two", ...))
    mark = DeadLetterMark(Reason.VALUE_REJECTED, "letter")
    await apply(store, events.batch(exceptions={(index, COPY): mark for index in (2, 3, 4)}))
    at = TopicPartition("integrity.redrive", 0)

    def again(*changes: ParentChange, start: int) -> Batch:
        redrives = {index: Redrive("letter", COPY, at, start + index) for index in range(len(changes))}
        return Batch(changes, {at: Span(start, start + len(changes))}, AT_MS, redrives=redrives)

    assert isinstance(await store.apply(again(part, start=0), Deadline.after(30)), Rejected)
    effects = await apply(store, again(whole, part, start=0))
    assert [effect.outcome for effect in effects] == [Outcome.APPLIED, Outcome.APPLIED]
    events.read((2,), row=row("read", "read@x"))
    await apply(store, events.batch())
    effects = await apply(store, again(other, start=2))
    assert [effect.outcome for effect in effects] == [Outcome.STALE]
    assert await copies.rows() == {1: ("three", "two@x"), 2: ("read", "read@x")}


async def test_lone_null_record_is_a_deletion_and_one_after_a_deletion_is_none(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada"))
    events.alive((2,), 10, row=row("Bob"))
    events.deleted((2,), 20)
    await apply(store, events.batch())
    events.gone((1,))
    events.gone((2,))
    events.gone((3,))
    events.alive((2,), 30, row=row("Bert"))
    effects = await apply(store, events.batch())
    assert [(effect.change, effect.action) for effect in effects] == [(0, "delete"), (2, "delete"), (3, UPSERT)]
    assert await copies.rows() == {2: ("Bert", None)}


async def test_replay_by_another_process_changes_nothing(copies: CopyHarness) -> None:
    store = await copies.open()
    events = Events()
    events.alive((1,), 10, row=row("Ada"))
    events.alive((2,), 11, row=row("Bob"))
    events.deleted((2,), 12)
    batch = events.batch()
    await apply(store, batch)
    other = await copies.another()
    partition = TopicPartition(TOPIC, 0)
    assert await other.progress([partition], Deadline.after(20)) == {partition: 3}
    assert {effect.outcome for effect in await apply(other, batch)} == {Outcome.DUPLICATE}
    events.alive((1,), 20, row=row("Ada L."))
    await apply(other, events.batch())
    assert await copies.rows() == {1: ("Ada L.", None)}


async def test_marked_row_stays_and_loses_its_mark_when_its_key_lives_again(copies: CopyHarness) -> None:
    store = await copies.open(marks=True)
    events = Events()
    events.alive((1,), 10, row=row("Ada"))
    events.alive((2,), 10, row=row("Bob"))
    await apply(store, events.batch())
    events.deleted((1,), 20)
    effects = await apply(store, events.batch())
    assert [(effect.action, effect.rows) for effect in effects] == [("tombstone", 1)]
    rest: Any = (False,) if copies.marks else ()
    gone: Any = {1: ("Ada", None, True)} if copies.marks else {}
    assert await copies.rows() == {2: ("Bob", None, *rest)} | gone
    events.alive((1,), 30, row=row("Ada again"))
    await apply(store, events.batch())
    assert await copies.rows() == {1: ("Ada again", None, *rest), 2: ("Bob", None, *rest)}


def _again(events: Events) -> Events:
    """Events that go on behind a batch that was refused, as the lane does once it has left the event out."""
    fresh = Events()
    fresh._next = dict(events._next)
    fresh._start = {partition: end - 1 for partition, end in events._next.items()}
    return fresh


@pytest.mark.parametrize("name", params(["memory", "postgres", "mongo"]))
async def test_two_processes_with_the_same_keys_leave_the_newest_rows(
    request: pytest.FixtureRequest, name: str
) -> None:
    """A topic that was given more partitions has the events of one key in two of them."""
    async with opened(request, name) as copies:
        stores = [await copies.open(), await copies.another()]
        keys = range(20)

        async def enforce(number: int) -> None:
            events = Events()
            for at in range(1, 6):
                for key in keys:
                    version = 10 * at + (number + key + at) % 2
                    events.alive((key,), version, number, row=row(f"v{version}"))
                batch = events.batch()
                while isinstance(result := await stores[number].apply(batch, Deadline.after(30)), Retry):
                    pass
                assert isinstance(result, Applied), result

        await asyncio.gather(enforce(0), enforce(1))
        assert await copies.rows() == {key: ("v51", None) for key in keys}


async def test_what_is_known_of_a_key_is_told_beside_the_process_that_works(copies: CopyHarness) -> None:
    store = await copies.open()
    beside: Any = await copies.another()
    events = Events()
    events.alive((1,), 10, row=row("Ada"))
    events.deleted((2,), 11)
    events.alive((3,), 12, row=row("Cy"))
    left_out = {(2, COPY): DeadLetterMark(Reason.VALUE_REJECTED, "e" * 32)}
    await apply(store, events.batch(exceptions=left_out))
    found = [await beside.known_of((key,), Deadline.after(30)) for key in (1, 2, 3, 4)]
    assert [known and (known.version, known.alive, known.missed) for known in found] == [
        (Version(0, (10,)), True, ()),
        (Version(0, (11,)), False, ()),
        (EARLIEST, False, (Version(0, (12,)),)),
        None,
    ]
    events.deleted((1,), 20)
    await apply(store, events.batch())
    again = await beside.known_of((1,), Deadline.after(30))
    assert (again.version, again.alive) == (Version(0, (20,)), False)


@pytest.mark.parametrize("marks", [False, True])
async def test_truncate_ends_the_rows_of_all_that_is_not_newer(
    copies: CopyHarness, marks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KEYS_MAX", 2)
    store = await copies.open(marks=marks)
    desk = Desk(store, None)
    events = Events()
    for key in range(1, 6):
        events.alive((key,), key, row=row(f"n{key}"))
    events.truncated(50, partition=1)
    events.alive((2,), 60, row=row("new"))
    await apply(store, events.batch())
    assert len(await desk.waiting()) == 1
    desk.here.enforced = False
    await desk.round()
    assert len(await copies.rows()) == 5
    desk.here.enforced = True
    await desk.round()
    events.alive((3,), 40, row=row("late"))
    await apply(store, events.batch())
    events.alive((4,), 70, row=row("again"))
    await apply(store, events.batch())
    living = {key: name for key, (name, _, *gone) in (await copies.rows()).items() if gone != [True]}
    assert living == {2: "new", 4: "again"}
    assert desk.done() == {(COPY, Outcome.APPLIED): 4}
    assert await desk.waiting() == []


async def test_what_a_truncate_could_not_remove_from_a_copy_goes_when_its_dead_letter_comes_back(
    copies: CopyHarness,
) -> None:
    store: Any = await copies.open()
    desk = Desk(store, None)
    events = Events()
    for key in (1, 2, 3):
        events.alive((key,), key, row=row(f"n{key}"))
    note = events.truncated(50)
    await apply(store, events.batch())
    real = store.apply

    async def refusing(batch: Batch, deadline: Deadline) -> ApplyResult:
        if any(change.key == (2,) and (i, COPY) not in batch.exceptions for i, change in enumerate(batch.changes)):
            return Rejected(COPY, Reason.CONSTRAINT_VIOLATION, "Something refers to the row.")
        result: ApplyResult = await real(batch, deadline)
        return result

    store.apply = refusing
    await desk.round()
    assert await copies.rows() == {2: ("n2", None)}
    store.apply = real
    events.noted(said(note), back(desk.letters))
    await apply(store, events.batch())
    await desk.round()
    assert await copies.rows() == {}
    assert [letter.id for letter in desk.letters.published] == [change.id for change in desk.letters.marked]
    assert await desk.waiting() == []
