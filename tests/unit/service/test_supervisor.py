"""All lanes of a process: what they wait for, what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from integrity.core.batch import TopicPartition
from integrity.core.retry import Backoff
from integrity.errors import Finding, LedgerError, UnfitStoreError
from integrity.ports import Deadline
from integrity.service.lane import Lane
from integrity.service.supervisor import FIRST_CHECK_TIMEOUT_S, Member, Supervisor
from integrity.service.sweep import Sweeper
from integrity.service.waiting import unless
from tests.unit.service.doubles import (
    TOPIC,
    BentStore,
    Letters,
    ScriptedSource,
    Watched,
    decode,
    deleted,
    enforcers_of,
    memory_store,
    until,
)

P0 = TopicPartition(TOPIC, 0)
AT_ONCE = Backoff(first_s=0.0001, cap_s=0.001)
NO_COLUMN = Finding("missing_column", "orders has no column customer_id", "add it")
NO_INDEX = Finding("missing_index", "reviews has no index on customerId", "create it")
NO_LEDGER = Finding("ledger_missing", "the ledger is not there", "run integrity migrate")


class One:
    """A store of two rows with its lane, whose source holds the deletion of both parents."""

    def __init__(self, name: str, store: type[BentStore] = BentStore) -> None:
        self.store = store(memory_store(2))
        self.store.name = name
        self.source = ScriptedSource({P0: [deleted(0, 0), deleted(1, 1)]})
        self.watch = Watched()
        lane = Lane(
            store=self.store,  # type: ignore[arg-type]
            open_source=lambda: self.source,
            enforcers=enforcers_of(self.store, Letters(), self.watch)[:1],
            watch=self.watch,
            decoders={TOPIC: ("customer", decode)},
            batch_size=10,
        )
        sweeper = Sweeper(self.store.store, self.watch, {}, lane.caught_up, timeout_s=1)
        self.member = Member(self.store, lane, sweeper)  # type: ignore[arg-type]

    @property
    def joined(self) -> bool:
        return hasattr(self.source, "on_assigned")

    @property
    def rows(self) -> int:
        return len(self.store.store.targets["orders"])


def supervisor(*ones: One, migrate: bool = False) -> Supervisor:
    return Supervisor([one.member for one in ones], migrate=migrate, backoff=AT_ONCE)


@asynccontextmanager
async def running(supervised: Supervisor, *, to_end: bool = False) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(supervised.run(stop, to_end=to_end))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


# --- the look at the stores ------------------------------------------------------------------------------------


async def test_unreachable_store_is_looked_at_again_while_the_other_lane_works() -> None:
    dead, well = One("dead"), One("well")
    dead.store.down = True
    supervised = supervisor(dead, well)
    assert await supervised.check(asyncio.Event())
    assert supervised.ready()["dead"] == "the store does not answer"
    async with running(supervised):
        await until(lambda: well.joined)
        await well.source.assign(P0)
        await until(lambda: well.rows == 0 and len(dead.store.asked) > 3)
        assert (dead.rows, dead.joined) == (2, False)
        assert supervised.ready() == {"dead": "the store does not answer"}

        dead.store.down = False
        await until(lambda: dead.joined)
        await dead.source.assign(P0)
        await until(lambda: dead.rows == 0)
        await until(lambda: supervised.ready() == {})


async def test_no_store_is_ready_before_it_was_looked_at() -> None:
    assert supervisor(One("a")).ready() == {"a": "was not checked yet"}


async def test_what_does_not_fit_in_all_stores_comes_at_once() -> None:
    first, second, well = One("first"), One("second"), One("well")
    first.store.findings, second.store.findings = [NO_COLUMN], [NO_INDEX]
    with pytest.raises(UnfitStoreError) as caught:
        await supervisor(first, second, well).check(asyncio.Event())
    assert caught.value.findings == (NO_COLUMN, NO_INDEX)


async def test_missing_ledger_stops_the_start() -> None:
    one = One("a")
    one.store.findings = [NO_COLUMN, NO_LEDGER]
    with pytest.raises(LedgerError) as caught:
        await supervisor(one).check(asyncio.Event())
    assert str(caught.value) == "the ledger is not there run integrity migrate"


async def test_missing_ledger_of_one_store_hides_no_fault_of_another() -> None:
    first, second, third = One("first"), One("second"), One("third")
    first.store.findings, second.store.findings, third.store.findings = [NO_LEDGER], [NO_INDEX], [NO_LEDGER]
    with pytest.raises(ExceptionGroup) as caught:
        await supervisor(first, second, third).check(asyncio.Event())
    assert [type(fault) for fault in caught.value.exceptions] == [LedgerError, LedgerError, UnfitStoreError]


async def test_warning_stops_nothing() -> None:
    one = One("a")
    one.store.findings = [Finding("unknown_clock", "the clocks differ", severity="warning")]
    supervised = supervisor(one)
    assert await supervised.check(asyncio.Event())
    assert supervised.ready() == {"a": "has not joined its consumer group yet"}


async def test_ledger_is_migrated_before_the_look_and_only_when_asked() -> None:
    asked, unasked = One("asked"), One("unasked")
    await supervisor(asked, migrate=True).check(asyncio.Event())
    await supervisor(unasked).check(asyncio.Event())
    assert (asked.store.asked, unasked.store.asked) == (["migrate", "check"], ["check"])


async def test_store_that_comes_back_unfit_ends_the_run() -> None:
    one = One("a")
    one.store.down = True
    supervised = supervisor(one)
    await supervised.check(asyncio.Event())
    one.store.down, one.store.findings = False, [NO_COLUMN]
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(supervised.run(asyncio.Event()), 20)
    (fault,) = caught.value.exceptions
    assert isinstance(fault, UnfitStoreError)
    assert fault.findings == (NO_COLUMN,)


async def test_first_look_is_short_since_all_lanes_wait_for_it() -> None:
    budgets: list[float] = []

    class Hung(BentStore):
        async def check(self, deadline: Deadline) -> Sequence[Finding]:
            budgets.append(deadline.remaining_s())
            return () if len(budgets) == 2 else await super().check(deadline)

    one = One("a", Hung)
    one.store.down = True
    supervised = supervisor(one)
    await supervised.check()
    async with running(supervised):
        await until(lambda: one.joined)
    assert budgets[0] <= FIRST_CHECK_TIMEOUT_S < budgets[1]


# --- stopping --------------------------------------------------------------------------------------------------


async def test_stop_ends_the_look_at_a_store_that_hangs() -> None:
    hung, well = One("hung"), One("well")
    hung.store.gate.clear()
    stop = asyncio.Event()
    checking = asyncio.create_task(supervisor(hung, well).check(stop))
    await until(lambda: hung.store.asked == ["check"])
    assert not checking.done()
    stop.set()
    assert await asyncio.wait_for(checking, 2) is False


async def test_stop_before_the_look_starts_nothing() -> None:
    stop = asyncio.Event()
    stop.set()
    assert await supervisor(One("a")).check(stop) is False


async def test_stop_ends_a_run_whose_store_hangs_at_the_second_look() -> None:
    one = One("a")
    one.store.down = True
    supervised = supervisor(one)
    await supervised.check(asyncio.Event())
    one.store.gate.clear()
    async with running(supervised) as task:
        await until(lambda: len(one.store.asked) == 2)
        await asyncio.sleep(0)
        assert not task.done()
    assert not one.joined


async def test_stop_ends_every_lane() -> None:
    first, second = One("first"), One("second")
    supervised = supervisor(first, second)
    await supervised.check(asyncio.Event())
    async with running(supervised) as task:
        await until(lambda: first.joined and second.joined)
        assert not task.done()
    assert first.source.stopped and second.source.stopped


async def test_run_to_the_end_lasts_until_the_last_lane_is_there() -> None:
    quick, slow = One("quick"), One("slow")
    slow.store.gate.clear()
    supervised = supervisor(quick, slow)
    slow.member.fit = quick.member.fit = True
    async with running(supervised, to_end=True) as task:
        await until(lambda: quick.joined and slow.joined)
        await quick.source.assign(P0)
        await slow.source.assign(P0)
        await until(lambda: quick.source.stopped)
        assert (quick.rows, slow.rows) == (0, 2)
        assert not task.done()
        slow.store.gate.set()
        await asyncio.wait_for(asyncio.shield(task), 20)
    assert slow.rows == 0


# --- giving up -------------------------------------------------------------------------------------------------


async def test_work_is_cancelled_when_the_stop_comes_first() -> None:
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "done"

    assert await unless(stop, work()) is None
    assert cancelled.is_set()


async def test_work_that_does_not_let_itself_be_cancelled_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.service.waiting.GIVE_UP_TIMEOUT_S", 0.01)
    stop, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        stop.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    assert await asyncio.wait_for(unless(stop, work()), 5) is None
    go_on.set()


async def test_result_and_fault_of_work_that_ends_are_passed_on() -> None:
    async def fails() -> None:
        raise LedgerError("gone")

    async def works() -> int:
        return 7

    assert await unless(asyncio.Event(), works()) == 7
    with pytest.raises(LedgerError):
        await unless(asyncio.Event(), fails())
