"""When sweeps are made, and what becomes of one that fails; over the store in memory and a clock of the test's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from integrity.core.batch import Batch
from integrity.core.change import Version
from integrity.core.ledger import Fate
from integrity.core.outcome import Broken, Effect, Outcome, Rejected, Retry
from integrity.core.rules.model import RuleSet
from integrity.core.sweep import Repaired, Sweep, SweepResult, Swept
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.service.report import Report
from integrity.service.sweep import KEYS_MAX, Sweeper
from integrity.stores.memory import MemoryStore
from integrity.telemetry import Metrics, Tracing
from tests.contract.world import AT_MS, Events, apply
from tests.unit.service.doubles import Watched, memory_store

AGES = {60_000: frozenset({"customer"}), 600_000: frozenset({"customer"})}


class Asked:
    """A store that may answer otherwise than the model would."""

    name = "memory"

    def __init__(self, store: MemoryStore, bend: Callable[[Sweep], SweepResult | None] | None = None) -> None:
        self.store = store
        self.bend = bend or (lambda sweep: None)
        self.sweeps: list[Sweep] = []

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        self.sweeps.append(sweep)
        return self.bend(sweep) or await self.store.sweep(sweep, deadline)


class Rig:
    def __init__(self, bend: Callable[[Sweep], SweepResult | None] | None = None, timeout_s: float = 2.0) -> None:
        self.store = memory_store(0)
        self.asked = Asked(self.store, bend)
        self.watch = Watched()
        self.now_s = AT_MS / 1000
        self.is_caught_up = True
        self.sweeper = Sweeper(
            self.asked, self.watch, AGES, self._caught_up, timeout_s=timeout_s, clock=lambda: self.now_s
        )

    async def _caught_up(self, deadline: Deadline) -> bool:
        return self.is_caught_up

    async def deleted(self, *keys: int) -> None:
        """They are deleted, and a late row of each is written."""
        events = Events()
        for key in keys:
            events.deleted((key,), 10)
        await apply(self.store, events.batch())
        self.store.targets["orders"] += [{"id": f"late {key}", "customer_id": key} for key in keys]

    @property
    def left(self) -> list[object]:
        return [row["customer_id"] for row in self.store.targets["orders"]]


async def test_each_age_finds_what_was_written_until_then_and_tells_it() -> None:
    rig = Rig()
    await rig.sweeper.round()
    await rig.deleted(1)
    rig.now_s += 59
    await rig.sweeper.round()
    assert rig.left == [1]
    rig.now_s += 1
    await rig.sweeper.round()
    assert rig.left == []
    assert [(each.key, each.dependent, each.rows) for each in rig.watch.repairs] == [((1,), "customer.orders", 1)]
    rig.store.targets["orders"].append({"id": "later", "customer_id": 1})
    rig.now_s += 500
    await rig.sweeper.round()
    assert rig.left == [1]
    rig.now_s += 40
    await rig.sweeper.round()
    assert rig.left == []


async def test_no_round_is_made_while_the_lane_is_behind() -> None:
    """The creation of a key may be among what was not read yet: its rows are no late rows of the former one."""
    rig = Rig()
    await rig.sweeper.round()
    await rig.deleted(1)
    rig.now_s += 60
    rig.is_caught_up = False
    await rig.sweeper.round()
    assert rig.left == [1]
    rig.is_caught_up = True
    await rig.sweeper.round()
    assert rig.left == []


async def test_a_transaction_that_may_still_be_open_is_not_passed_over() -> None:
    rig = Rig(timeout_s=90)
    await rig.sweeper.round()
    assert [AT_MS - sweep.until_ms for sweep in rig.asked.sweeps] == [90_000, 600_000]


async def test_rows_that_are_refused_stay_and_hold_up_no_other_key(caplog: pytest.LogCaptureFixture) -> None:
    poison = 3

    def bend(sweep: Sweep) -> SweepResult | None:
        page = rig.due(sweep)
        if poison in page and "customer.orders" not in sweep.left_out:
            return Rejected("customer.orders", Reason.CONSTRAINT_VIOLATION, "No.")
        return None

    class Refusing(Rig):
        def due(self, sweep: Sweep) -> list[int]:
            """The keys of the page, as the model will take them."""
            draft = self.store._state
            after = draft.swept.get(sweep.age_ms, (sweep.until_ms, b""))
            from integrity.core.keys import key_hash

            places = sorted((found[-1].enforced_ms, key_hash(*of), of[1][0]) for of, found in draft.enforced.items())
            due = [key for *place, key in places if after < tuple(place) and place[0] <= sweep.until_ms]
            return due[: sweep.keys_max]

    rig = Refusing(bend)
    await rig.sweeper.round()
    await rig.deleted(*range(1, 9))
    rig.now_s += 60
    with caplog.at_level(logging.ERROR):
        await rig.sweeper.round()
    assert rig.left == [poison]
    [said] = caplog.records
    assert (said.message, said.dependent, said.reason) == (  # type: ignore[attr-defined]
        "rows that were written late can't be changed and stay",
        "customer.orders",
        "constraint_violation",
    )
    assert rig.asked.sweeps[-2].keys_max == KEYS_MAX, "after the poison the pages are whole again"


@pytest.mark.parametrize("failure", [Retry("It is away.", unreachable=True), Broken(None, Reason.PRIVILEGE, "No.")])
async def test_a_sweep_that_fails_is_made_again_in_the_next_round(failure: SweepResult) -> None:
    failures = [failure]
    rig = Rig(lambda sweep: failures.pop() if failures and sweep.until_ms >= AT_MS else None)
    await rig.sweeper.round()
    await rig.deleted(1)
    rig.now_s += 60
    await rig.sweeper.round()
    assert rig.left == [1]
    await rig.sweeper.round()
    assert rig.left == []


async def test_pages_follow_one_another_until_one_is_not_full() -> None:
    answers = [Swept(more=True), Swept(more=True), Swept()]
    rig = Rig(lambda sweep: answers.pop(0) if sweep.age_ms == 60_000 and answers else None)
    await rig.sweeper.round()
    assert [sweep.age_ms for sweep in rig.asked.sweeps] == [60_000] * 3 + [600_000]


async def test_without_ages_nothing_is_ever_asked() -> None:
    rig = Rig()
    sweeper = Sweeper(rig.asked, rig.watch, {}, rig._caught_up, timeout_s=1)
    await sweeper.run(asyncio.Event())
    assert rig.asked.sweeps == []


async def test_stop_ends_the_sweeps() -> None:
    rig, stop = Rig(), asyncio.Event()
    running = asyncio.create_task(rig.sweeper.run(stop))
    async with asyncio.timeout(20):
        while len(rig.asked.sweeps) < 2:
            await asyncio.sleep(0)
        stop.set()
        await running


@pytest.mark.parametrize(
    ("event", "place"),
    [
        ("shop.public.customers/2/17", ("shop.public.customers", 2, 17)),
        ("order of shop/2/17/derived", ("order of shop/2/17/derived", 0, 0)),
    ],
)
def test_report_tells_repaired_rows_under_the_event_that_was_enforced(event: str, place: tuple[str, int, int]) -> None:
    audit, metrics = Audit(), Metrics(version="1", rules="r")
    rules = RuleSet((), "r", {}, {})
    report = Report(metrics, Tracing(), audit, rules, None)  # type: ignore[arg-type]
    fate = Fate(Version(0, (10,)), None, event, AT_MS)
    report.repaired("s", AT_MS, [Repaired("customer", (1,), fate, "customer.orders", "cascade", 3)], 0.5)
    [(batch, effects)] = audit.written
    assert batch.changes[0].origin[:3] == place
    assert effects == [Effect(0, "customer.orders", "cascade", Outcome.REPAIRED, 3)]
    shown = metrics.render("")[0].decode()
    assert 'integrity_rows_total{action="cascade",dependent="customer.orders"} 3.0' in shown


class Audit:
    def __init__(self) -> None:
        self.written: list[tuple[Batch, list[Effect]]] = []

    def write(self, batch: Batch, effects: list[Effect], took_ms: float) -> None:
        self.written.append((batch, effects))
