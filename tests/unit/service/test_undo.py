"""How an undo goes through its portions, and what becomes of one that fails; over the store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from integrity.core.outcome import Broken, Rejected, Retry
from integrity.core.rules.model import Cascade, RuleSet
from integrity.core.undo import Choice, Looked, Portion, UndoResult, Verdict
from integrity.errors import OperationError, Reason
from integrity.kafka.audit import ByHand
from integrity.ports import Deadline
from integrity.service.expiry import ROWS_MAX as EXPIRY_ROWS_MAX
from integrity.service.expiry import Expiry
from integrity.service.redrive import Person
from integrity.service.undo import ATTEMPTS_MAX, REFUSED_MAX, ROWS_MAX, Undoer
from integrity.stores.memory import MemoryStore
from tests.contract.undoing import DAY_MS, ORDERS, event, kept
from tests.contract.world import AT_MS, Events, apply, orders, rules_of

Bend = Callable[[Portion], UndoResult | None]


class Asked:
    """A store that may answer otherwise than the model would."""

    name = "memory"

    def __init__(self, store: MemoryStore, bend: Bend) -> None:
        self.store = store
        self.bend = bend
        self.pages: list[Portion] = []

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        return await self.store.kept(portion, deadline)

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        self.pages.append(portion)
        return self.bend(portion) or await self.store.put_back(portion, deadline)

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        return await self.store.forget_kept(at_ms, rows_max, deadline)


class Audit:
    def __init__(self) -> None:
        self.done: list[ByHand] = []

    def write_by_hand(self, done: Sequence[ByHand]) -> None:
        self.done += done


class Rig:
    """Orders of customer 1, whose deletion was enforced."""

    def __init__(self, rows: int, bend: Bend = lambda portion: None) -> None:
        rules = rules_of(kept(Cascade()))
        self.store = MemoryStore("memory", rules, orders(*[1] * rows))
        self.asked = Asked(self.store, bend)
        self.audit = Audit()
        self.slept_s: list[float] = []
        self.undoer = Undoer(
            {"memory": self.asked},
            Choice(event(0)),
            Person("ann", "a mistake"),
            rules=RuleSet((), "abc", {}, {}),
            audit=self.audit,
            timeout_of=lambda name: 30.0,
            sleep=self._sleep,
            clock=lambda: AT_MS / 1000,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)

    async def deleted(self) -> Rig:
        events = Events()
        events.deleted((1,), 10)
        await apply(self.store, events.batch())
        return self

    def ids(self) -> list[Any]:
        return sorted(row["id"] for row in self.store.targets["orders"])


def refused(portion: Portion) -> Rejected:
    return Rejected(ORDERS, Reason.CONSTRAINT_VIOLATION, "No.")


async def test_rows_are_put_back_in_portions_and_audited_as_one() -> None:
    rig = await Rig(2 * ROWS_MAX + 1).deleted()
    foretold = await rig.undoer.foretell()
    assert foretold.total(Verdict.PUT_BACK) == 2 * ROWS_MAX + 1
    assert rig.ids() == []
    found = await rig.undoer.act()
    assert found.total(Verdict.PUT_BACK) == 2 * ROWS_MAX + 1
    assert [portion.rows_max for portion in rig.asked.pages] == [ROWS_MAX] * 3
    [audited] = rig.audit.done
    assert (audited.dependent, audited.outcome, audited.rows) == (ORDERS, "undone", 2 * ROWS_MAX + 1)
    assert (audited.actor, audited.note, audited.offset) == ("ann", "a mistake", 0)


async def test_portion_that_is_refused_is_halved_until_the_refused_row_stands_alone() -> None:
    rig = await Rig(9).deleted()
    refusing = await rig.store.kept(Portion(Choice(), 4, AT_MS), Deadline.after(1))
    assert isinstance(refusing, Looked)
    assert refusing.before is not None
    place = int(refusing.before)

    def bend(portion: Portion) -> UndoResult | None:
        first = 8 if portion.before is None else int(portion.before) - 1
        return refused(portion) if first - portion.rows_max < place <= first else None

    rig.asked.bend = bend
    found = await rig.undoer.act()
    assert (found.total(Verdict.PUT_BACK), found.total(Verdict.REFUSED)) == (8, 1)
    [stayed] = found.stayed
    assert (stayed.row.dependent, stayed.row.message) == (ORDERS, "No.")
    assert len(rig.ids()) == 8


async def test_undo_stops_when_every_row_is_refused() -> None:
    rig = await Rig(REFUSED_MAX + 50, refused).deleted()
    found = await rig.undoer.act()
    assert found.total(Verdict.REFUSED) == REFUSED_MAX
    assert "refused 100 rows one after the other. No." in found.stopped
    assert rig.audit.done == []


async def test_portion_is_tried_again_a_few_times_with_pauses() -> None:
    answers: list[UndoResult] = [Retry("Locked.")] * 2
    rig = await Rig(1, lambda portion: answers.pop() if answers else None).deleted()
    found = await rig.undoer.act()
    assert found.total(Verdict.PUT_BACK) == 1
    assert len(rig.slept_s) == 2
    rig = await Rig(1, lambda portion: Retry("Locked.")).deleted()
    with pytest.raises(OperationError, match="Locked"):
        await rig.undoer.act()
    assert len(rig.asked.pages) == ATTEMPTS_MAX


async def test_what_was_put_back_until_a_failure_is_audited() -> None:
    def bend(portion: Portion) -> UndoResult | None:
        return Broken(ORDERS, Reason.PRIVILEGE, "Not allowed.") if portion.before is not None else None

    rig = await Rig(ROWS_MAX + 5, bend).deleted()
    with pytest.raises(OperationError, match="Not allowed"):
        await rig.undoer.act()
    assert [each.rows for each in rig.audit.done] == [ROWS_MAX]
    assert len(rig.ids()) == ROWS_MAX


async def test_what_has_expired_is_removed_a_portion_at_a_time() -> None:
    rig = await Rig(EXPIRY_ROWS_MAX + 1).deleted()
    early = Expiry(rig.asked, timeout_s=1.0, clock=lambda: (AT_MS + DAY_MS) / 1000 - 1)
    late = Expiry(rig.asked, timeout_s=1.0, clock=lambda: (AT_MS + DAY_MS) / 1000)
    assert await early.round(asyncio.Event()) == 0
    assert await late.round(asyncio.Event()) == EXPIRY_ROWS_MAX + 1
    assert await late.round(asyncio.Event()) == 0
