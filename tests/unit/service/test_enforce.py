"""One batch to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.outcome import Broken, Diverged, Held, Outcome, Rejected, Retry
from integrity.errors import Finding, Reason
from integrity.kafka.dead_letters import Status
from integrity.service.enforce import DivergedError, Enforcer
from integrity.service.work import Piece, Reader
from tests.unit.service.doubles import (
    TOPIC,
    BentStore,
    Letters,
    Watched,
    broken,
    decode,
    deleted,
    enforcers_of,
    memory_store,
)

P0 = TopicPartition(TOPIC, 0)


def piece_of(*records: object) -> Piece:
    piece = Piece(spans={P0: Span(0, len(records))})
    Reader({TOPIC: ("customer", decode)}).read(P0, records, piece)  # type: ignore[arg-type]
    return piece


def enforcer(store: BentStore, letters: Letters, watch: Watched) -> Enforcer:
    return enforcers_of(store, letters, watch)[0]


def keys_left(store: BentStore, table: str = "orders") -> set[object]:
    return {row["customer_id"] for row in store.store.targets[table]}


async def test_one_poison_among_many_is_the_only_dead_letter() -> None:
    def bend(batch: Batch) -> Rejected | None:
        poison = [i for i, change in enumerate(batch.changes) if change.key == (37,)]
        if any((i, "customer.orders") not in batch.exceptions for i in poison):
            return Rejected("customer.orders", Reason.CONSTRAINT_VIOLATION, "refused by a trigger")
        return None

    store, letters, watch = BentStore(memory_store(100), bend), Letters(), Watched()
    await enforcer(store, letters, watch).enforce(piece_of(*(deleted(key, key) for key in range(100))))
    assert keys_left(store) == {37}
    assert [(x.record.offset, x.dependent, x.reason) for x in letters.published] == [
        (37, "customer.orders", Reason.CONSTRAINT_VIOLATION)
    ]
    assert sum(effect.rows for effect in watch.effects) == 99
    assert [e.outcome for e in watch.effects].count(Outcome.DEAD_LETTERED) == 1
    assert len(store.calls) < 20


async def test_poison_on_one_dependent_still_reaches_the_other() -> None:
    def bend(batch: Batch) -> Rejected | None:
        if any((i, "customer.orders") not in batch.exceptions for i in range(len(batch.changes))):
            return Rejected("customer.orders", Reason.VALUE_REJECTED, "no")
        return None

    store = BentStore(memory_store(1, names=("orders", "notes")), bend)
    letters = Letters()
    await enforcer(store, letters, Watched()).enforce(piece_of(deleted(0, 0)))
    assert keys_left(store, "orders") == {0}
    assert keys_left(store, "notes") == set()
    assert len(letters.published) == 1


async def test_an_event_with_too_many_rows_is_held_and_the_rest_goes_on() -> None:
    def bend(batch: Batch) -> Held | None:
        large = [i for i, change in enumerate(batch.changes) if change.key == (2,)]
        if any((i, "customer.orders") not in batch.exceptions for i in large):
            return Held("customer.orders", "more than max_rows")
        return None

    store, letters, watch = BentStore(memory_store(5), bend), Letters(), Watched()
    await enforcer(store, letters, watch).enforce(piece_of(*(deleted(key, key) for key in range(5))))
    assert keys_left(store) == {2}
    assert [(x.record.offset, x.reason, x.status) for x in letters.published] == [
        (2, Reason.TOO_MANY_ROWS, Status.HELD)
    ]
    assert [e.outcome for e in watch.effects if e.outcome is not Outcome.APPLIED] == [Outcome.HELD]


async def test_undecodable_records_are_acknowledged_before_the_store_moves_on() -> None:
    letters = Letters(failures=3)
    order: list[str] = []

    def bend(batch: Batch) -> None:
        order.append(f"apply after {len(letters.published)} letters")

    store = BentStore(memory_store(3), bend)
    await enforcer(store, letters, Watched()).enforce(piece_of(deleted(0, 0), broken(1), deleted(2, 2)))
    assert order == ["apply after 1 letters"]
    assert letters.published[0].dependent == "*"
    assert keys_left(store) == {1}


async def test_transient_failures_are_tried_until_they_end() -> None:
    left = [5]

    def bend(batch: Batch) -> Retry | None:
        left[0] -= 1
        return Retry("the server restarts", unreachable=True) if left[0] >= 0 else None

    store, letters, watch = BentStore(memory_store(2), bend), Letters(), Watched()
    one = enforcer(store, letters, watch)
    await one.enforce(piece_of(deleted(0, 0), deleted(1, 1)))
    assert keys_left(store) == set()
    assert letters.published == []
    assert watch.up == [False] * 5 + [True]
    assert one.trouble.message == ""


async def test_a_row_locked_for_ever_holds_up_its_own_event_only() -> None:
    def bend(batch: Batch) -> Retry | None:
        locked = [i for i, change in enumerate(batch.changes) if change.key == (2,)]
        if any((i, "customer.orders") not in batch.exceptions for i in locked):
            return Retry("lock timeout", contended=True, dependent="customer.orders")
        return None

    store, letters = BentStore(memory_store(8), bend), Letters()
    await enforcer(store, letters, Watched()).enforce(piece_of(*(deleted(key, key) for key in range(8))))
    assert keys_left(store) == {2}
    assert [x.reason for x in letters.published] == [Reason.STORE_REJECTED]


async def test_a_broken_ledger_dead_letters_nothing_and_goes_on_when_mended() -> None:
    left = [5]

    def bend(batch: Batch) -> Broken | None:
        left[0] -= 1
        return Broken(None, Reason.SCHEMA_MISMATCH, "table gone") if left[0] >= 0 else None

    store, letters, watch = BentStore(memory_store(1), bend), Letters(), Watched()
    await enforcer(store, letters, watch).enforce(piece_of(deleted(0, 0)))
    assert letters.published == []
    assert watch.halts == [("*", True), ("*", False)]
    assert keys_left(store) == set()


async def test_an_event_with_many_rows_goes_in_parts_and_is_told_of_once_with_all_its_rows() -> None:
    store, letters, watch = BentStore(memory_store(3, rows_each=10, rows_max=4)), Letters(), Watched()
    one = enforcer(store, letters, watch)
    await one.enforce(piece_of(*(deleted(key, key) for key in range(3))))
    assert (keys_left(store), letters.published, one.in_parts) == (set(), [], False)
    assert [effect.rows for effect in watch.effects] == [10, 10, 10]
    assert {len(batch.changes) for batch in store.calls} == {1, 2, 3}, "the batch was cut"


def breaking(dependent: str, times: int) -> Callable[[Batch], Broken | None]:
    """The first `times` batches that ask something of that dependent find its rule broken."""
    left = [times]

    def bend(batch: Batch) -> Broken | None:
        asked = any((i, dependent) not in batch.exceptions for i in range(len(batch.changes)))
        left[0] -= asked
        return Broken(dependent, Reason.SCHEMA_MISMATCH, "column gone") if asked and left[0] >= 0 else None

    return bend


async def test_a_rule_that_is_broken_for_a_moment_halts_nothing() -> None:
    store = BentStore(memory_store(1), breaking("customer.orders", 2))
    letters, watch = Letters(), Watched()
    await enforcer(store, letters, watch).enforce(piece_of(deleted(0, 0)))
    assert (letters.published, watch.halts, keys_left(store)) == ([], [], set())


async def test_a_broken_rule_halts_its_dependent_alone_until_it_is_mended() -> None:
    store = BentStore(memory_store(3, names=("orders", "notes")), breaking("customer.orders", 10**6))
    letters, watch = Letters(), Watched()
    one = enforcer(store, letters, watch)
    await one.enforce(piece_of(deleted(0, 0), deleted(1, 1)))
    calls = len(store.calls)
    await one.enforce(Piece([decode(deleted(2, 2))], [deleted(2, 2)], spans={P0: Span(2, 3)}))  # type: ignore[list-item]
    assert len(store.calls) == calls + 1  # left out at once
    assert (keys_left(store, "orders"), keys_left(store, "notes")) == ({0, 1, 2}, set())
    assert [(x.dependent, x.reason, x.record.offset) for x in letters.published] == [
        ("customer.orders", Reason.SCHEMA_MISMATCH, offset) for offset in range(3)
    ]
    assert "customer.orders is halted: column gone" in one.halts.trouble
    assert watch.halts == [("customer.orders", True)]
    for file in ("orders.yaml", "below_orders.yaml"):  # its own, or that of what depends on its rows
        store.findings = [Finding("column_missing", "gone", file=file, line=1, column=1)]
        await one.halts.recheck()
        assert list(one.halts.halted) == ["customer.orders"]
    store.findings = [Finding("index_missing", "customer.notes: none", file="notes.yaml", line=1, column=1)]
    await one.halts.recheck()
    assert (one.halts.trouble, watch.halts[1:]) == ("", [("customer.orders", False)])


async def test_letters_of_a_halted_dependent_are_sent_once_when_its_batch_is_halved() -> None:
    broken_rule = breaking("customer.orders", 10**6)

    def bend(batch: Batch) -> Broken | Rejected | None:
        poison = any(
            change.key == (3,) and (i, "customer.notes") not in batch.exceptions
            for i, change in enumerate(batch.changes)
        )
        return broken_rule(batch) or (Rejected("customer.notes", Reason.VALUE_REJECTED, "no") if poison else None)

    store, letters = BentStore(memory_store(5, names=("orders", "notes")), bend), Letters()
    await enforcer(store, letters, Watched()).enforce(piece_of(*(deleted(key, key) for key in range(5))))
    assert sorted((x.dependent, x.record.offset) for x in letters.published) == [
        ("customer.notes", 3),
        *(("customer.orders", offset) for offset in range(5)),
    ]
    assert keys_left(store, "notes") == {3}


async def test_a_dependent_that_is_broken_although_it_is_left_out_makes_the_lane_wait() -> None:
    """A topic store can't look at its other topics while one of them is gone."""
    left = [8]

    def bend(batch: Batch) -> Broken | None:
        left[0] -= 1
        return Broken("customer.orders", Reason.SCHEMA_MISMATCH, "topic gone") if left[0] >= 0 else None

    store, letters = BentStore(memory_store(1), bend), Letters()
    await enforcer(store, letters, Watched()).enforce(piece_of(deleted(0, 0)))
    assert [x.reason for x in letters.published] == [Reason.SCHEMA_MISMATCH]


async def test_a_diverged_store_is_left_to_the_lane() -> None:
    store = BentStore(memory_store(1), lambda batch: Diverged("behind"))
    with pytest.raises(DivergedError):
        await enforcer(store, Letters(), Watched()).enforce(piece_of(deleted(0, 0)))


async def test_cancelling_at_every_await_loses_nothing_and_does_nothing_twice() -> None:
    """Cancel after n steps of the loop, n = 0, 1, 2 … until a run ends by itself; then replay as after a crash."""
    for steps in range(200):
        rejected: set[tuple[object, ...]] = {(5,)}

        def bend(batch: Batch) -> Rejected | None:
            bad = [i for i, c in enumerate(batch.changes) if c.key in rejected]  # noqa: B023
            if any((i, "customer.orders") not in batch.exceptions for i in bad):
                return Rejected("customer.orders", Reason.CONSTRAINT_VIOLATION, "refused")
            return None

        store, letters, watch = BentStore(memory_store(9, rows_each=2), bend), Letters(), Watched()
        records = [*(deleted(key, key) for key in range(8)), broken(8)]
        task = asyncio.ensure_future(enforcer(store, letters, watch).enforce(piece_of(*records)))
        for _ in range(steps):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.wait({task})
        await enforcer(store, letters, watch).enforce(piece_of(*records))
        assert keys_left(store) == {5, 8}
        assert len({x.id for x in letters.published}) == 2
        assert sum(e.rows for e in watch.effects if e.outcome is Outcome.APPLIED) <= 14
        if ended:
            return
    raise AssertionError("the run never ended by itself")
