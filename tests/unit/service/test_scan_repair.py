"""A repair goes on with what it can do, and says what it left."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from integrity.core.batch import Batch, TopicPartition
from integrity.core.keys import Key
from integrity.core.outcome import Applied, ApplyResult, Broken, Diverged, Effect, Held, Outcome, Retry
from integrity.core.rules.model import Cascade
from integrity.core.scan import UNHEARD, Known, Page, Referenced
from integrity.errors import OperationError, Reason, UnreachableError
from integrity.ports import Deadline, Store
from integrity.service.scan import Found, Subject
from integrity.service.scan_repair import Mended, Repairer
from integrity.service.spool import Spool
from tests.contract.world import rule

RULE = rule(Cascade())


class Scanned:
    """Keys with a row each, and no parents."""

    name = "store"

    def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        raise AssertionError("a repair compares nothing")

    def keys(self, deadline: Deadline) -> AsyncGenerator[Sequence[Key]]:
        raise AssertionError("a repair compares nothing")

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        return [1 for _ in keys]

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        return [UNHEARD for _ in keys]

    async def present(self, keys: Sequence[Key], deadline: Deadline) -> Collection[Key]:
        return ()

    async def close(self) -> None: ...


class Scripted:
    """A store that answers as it is told."""

    name = "store"

    def __init__(self, answer: Callable[[list[Key]], ApplyResult | None]) -> None:
        self._answer = answer
        self.tried: list[list[Key]] = []
        self.taken_over = 0

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        keys = [change.key for change in batch.changes]
        self.tried.append(keys)
        done = [Effect(index, RULE.id, "cascade", Outcome.APPLIED, 1) for index, _ in enumerate(keys)]
        return self._answer(keys) or Applied(done)

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        self.taken_over += 1
        return {}


class Notes:
    """An audit."""

    def __init__(self) -> None:
        self.told: list[Effect] = []

    def write(self, batch: Batch, effects: Sequence[Effect], took_ms: float, actor: str = "") -> None:
        self.told += effects


async def mend(store: Any, keys: int, timeout_s: float = 30, audit: Notes | None = None) -> Mended:
    scanned = Scanned()
    found = Found(Subject("customer", RULE.spec, RULE.dependent, scanned, scanned, ""), Spool(RULE.spec))
    found.orphans.extend([Referenced((key,), 1) for key in range(keys)])

    async def yes(deadline: Deadline) -> bool:
        return True

    async def sleep(seconds: float) -> None: ...

    as_store: Store = store
    repairer = Repairer(found.subject, as_store, yes, audit, actor="ada", timeout_s=timeout_s, sleep=sleep)
    try:
        return await repairer.run(found)
    finally:
        found.orphans.close()


@pytest.mark.parametrize("refusal", [Held(RULE.id, "too many"), Retry("locked", contended=True, dependent=RULE.id)])
async def test_key_that_is_refused_stays_alone(refusal: ApplyResult) -> None:
    store = Scripted(lambda keys: refusal if (5,) in keys else None)
    mended = await mend(store, 12)
    assert (mended.keys, mended.left_keys, mended.left_rows) == (11, 1, 1)
    assert [each.key for each in mended.left] == [(5,)]


async def test_store_that_another_process_has_taken_is_taken_back() -> None:
    answers: list[ApplyResult | None] = [Diverged("taken over"), None]
    store = Scripted(lambda keys: answers.pop(0))
    assert (await mend(store, 3)).keys == 3
    assert store.taken_over == 1


async def test_what_nobody_can_do_now_ends_the_repair() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        await mend(Scripted(lambda keys: Retry("It does not answer.", unreachable=True)), 3, timeout_s=0)
    with pytest.raises(OperationError, match="no column"):
        await mend(Scripted(lambda keys: Broken(RULE.id, Reason.SCHEMA_MISMATCH, "There is no column.")), 3)


async def test_what_only_counts_below_is_told_as_it_is() -> None:
    below = Effect(0, "order.invoices", "restrict", Outcome.RESTRICTED, 4)
    store = Scripted(lambda keys: Applied([Effect(0, RULE.id, "cascade", Outcome.APPLIED, 1), below]))
    notes = Notes()
    mended = await mend(store, 1, audit=notes)
    assert mended.rows == {RULE.id: 1}
    assert [(each.outcome, each.rows) for each in notes.told] == [(Outcome.REPAIRED, 1), (Outcome.RESTRICTED, 4)]


async def test_portion_has_few_keys() -> None:
    store = Scripted(lambda keys: None)
    await mend(store, 450)
    assert [len(keys) for keys in store.tried] == [200, 200, 50]
