"""Mends orphans: what the rule says of a deletion is done to them, by the way that every event goes.

Before anything is changed everything that was in the parents' topics has to be enforced: a key change that is still on
its way would make orphans of rows that follow it. Then a few keys at a time: parent looked for again, ledger read, one
transaction of the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, assert_never

from integrity.core.batch import Batch, TopicPartition
from integrity.core.keys import Key
from integrity.core.outcome import (
    Applied,
    ApplyResult,
    Broken,
    Diverged,
    Effect,
    Held,
    Outcome,
    Rejected,
    Retry,
    TooLarge,
    Unfinished,
)
from integrity.core.rules.model import Dependent, Ignore, Restrict, action_name
from integrity.core.scan import SOURCE_TOPIC, Referenced, missing
from integrity.errors import OperationError, UnreachableError
from integrity.ports import Deadline, Store
from integrity.service.scan import Found, Subject, still_orphaned

PORTION_KEYS: Final = 200
PORTION_ROWS: Final = 20_000
LEFT_MAX: Final = 100
"""Keys that are named of those that stay as they are."""
TRIES_MAX: Final = 5
AGAIN_S: Final = 1.0
CAUGHT_UP_S: Final = 30.0


class RepairAudit(Protocol):
    """Takes note of what was done. Never blocks, never raises."""

    def write(self, batch: Batch, effects: Sequence[Effect], took_ms: float, actor: str = "") -> None: ...


class Left(NamedTuple):
    """A key whose rows stay as they are, and why."""

    key: Key
    why: str


@dataclass(slots=True)
class Mended:
    """`keys` went the way of a deleted parent, `rows` of them and of what depends on them by dependent. Of `returned`
    keys nothing was left to do: the parent is there again, or no row refers to it any more. `left` names the first of
    the `left_keys`, which have `left_rows`."""

    keys: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    returned: int = 0
    left_keys: int = 0
    left_rows: int = 0
    left: list[Left] = field(default_factory=list)

    def leave(self, key: Key, rows: int, why: str) -> None:
        self.left_keys += 1
        self.left_rows += rows
        if len(self.left) < LEFT_MAX:
            self.left.append(Left(key, why))


def refusal(found: Found, *, share_max: float, allow_no_parents: bool) -> str | None:
    """Why nothing may be done to these orphans, as a sentence with what to do; None when nothing speaks against it."""
    dependent = found.subject.dependent
    match dependent.on_delete:
        case Restrict() | Ignore():
            return f"Its rule says {action_name(dependent.on_delete)}: nothing is to be changed."
        case _:
            pass
    if not found.parents and not allow_no_parents:
        return (
            f"There is no parent at all in {found.subject.parents_at}: is that the right place? "
            "If there are none indeed, say --allow-no-parents."
        )
    if found.share > share_max:
        return (
            f"{found.share:.1%} of the keys are orphaned, more than {share_max:.0%}: is {found.subject.parents_at} the "
            "right place, and whole? If so, say --max-share with a higher one."
        )
    return None


class Repairer:
    """Mends the orphans of one dependent."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        caught_up: Callable[[Deadline], Awaitable[bool]],
        audit: RepairAudit | None,
        *,
        actor: str,
        timeout_s: float,
        done: Callable[[int], None] = lambda keys: None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`caught_up` tells whether everything that was in the parents' topics when it was asked is enforced in the
        store. `done` hears how many keys have been looked at. `timeout_s` bounds a question and a transaction."""
        self._subject = subject
        self._store = store
        self._caught_up = caught_up
        self._audit = audit
        self._actor = actor
        self._timeout_s = timeout_s
        self._done = done
        self._clock = clock
        self._sleep = sleep
        self.mended = Mended()
        """What was done so far."""
        self._begun: set[Key] = set()
        """Keys with more rows than one transaction is to have, some of whose rows are done."""

    async def run(self, found: Found) -> Mended:
        """Mend them. Raises OperationError, maybe when a part is done: the next scan finds the rest."""
        looked_at = 0
        for page in found.orphans.pages(PORTION_KEYS, PORTION_ROWS):
            keys = [key for key, _ in page]
            orphans = await still_orphaned(self._subject, keys, self._timeout_s)
            self.mended.returned += len(keys) - len(orphans)
            if orphans:
                await self._mend(orphans)
            looked_at += len(keys)
            self._done(looked_at)
        return self.mended

    async def _mend(self, orphans: Sequence[Referenced]) -> None:
        if not await self._caught_up(Deadline.after(CAUGHT_UP_S)):
            raise OperationError(
                f"Store {self._store.name} is behind the events of {self._subject.entity}: what seems an orphan may be "
                "on its way to a new key.",
                hint="Let `integrity run` catch up with this store, then scan again.",
            )
        waiting = [list(orphans)]
        while waiting:
            of_keys = waiting.pop()
            keys = [key for key, _ in of_keys]
            known = await self._subject.store.known(self._subject.entity, keys, Deadline.after(self._timeout_s))
            some = list(zip(of_keys, known, strict=True))
            at_ms = int(self._clock() * 1000)
            changes = missing(self._subject.entity, [(orphan.key, of_key) for orphan, of_key in some], at_ms)
            batch = Batch(changes, {}, at_ms, only=self._subject.dependent.id)
            began = time.monotonic()
            result = await self._tried(batch)
            match result:
                case Applied(effects):
                    self._take(batch, effects, [orphan.rows for orphan, _ in some], time.monotonic() - began)
                case Rejected(message=why) | Held(message=why) | Retry(message=why):
                    if len(of_keys) > 1:
                        waiting += _halves(of_keys)
                    else:
                        self.mended.leave(*of_keys[0], why)
                case TooLarge():
                    waiting += _halves(of_keys)
                case Unfinished(0):
                    self.mended.leave(*of_keys[0], "Its rows end where they are.")
                case Unfinished(_, effects):
                    # The rest is a repair of its own, if the parent has not come meanwhile.
                    self._begun.update(keys)
                    self._tell(batch, effects, time.monotonic() - began)
                    left = await still_orphaned(self._subject, keys, self._timeout_s)
                    self.mended.keys += not left
                    waiting += [left] if left else []
                case Broken(message=why):
                    raise OperationError(f"Store {self._store.name}: {why}", hint="See that the rule fits the store.")
                case Diverged(message=why):
                    raise OperationError(f"Store {self._store.name}: {why}", hint="Scan again.")
                case _:
                    assert_never(result)

    async def _tried(self, batch: Batch) -> ApplyResult:
        """The result of the last try. Raises UnreachableError."""
        deadline = Deadline.after(self._timeout_s)
        tries = 0
        while True:
            tries += 1
            result = await self._store.apply(batch, deadline)
            is_over = not deadline.remaining_s()
            match result:
                case Retry(contended=True):
                    # The fewer the keys, the fewer locks are waited for.
                    if is_over or len(batch.changes) > 1 or tries == TRIES_MAX:
                        return result
                case Retry(message=why):
                    if is_over:
                        raise UnreachableError(f"Store {self._store.name}: {why}")
                case Diverged():
                    # Another process has taken the store over; it takes it back with its next batch.
                    if is_over or tries == TRIES_MAX:
                        return result
                    await self._store.progress([TopicPartition(SOURCE_TOPIC, 0)], deadline)
                case _:
                    return result
            await self._sleep(AGAIN_S)

    def _take(self, batch: Batch, effects: Sequence[Effect], rows: Sequence[int], took_s: float) -> None:
        acted = self._tell(batch, effects, took_s)
        for index, change in enumerate(batch.changes):
            if index in acted or change.key in self._begun:
                self.mended.keys += 1
            else:
                self.mended.leave(change.key, rows[index], _why_nothing(self._subject.dependent, effects, index))

    def _tell(self, batch: Batch, effects: Sequence[Effect], took_s: float) -> set[int]:
        """Add up what was done and tell of it; the changes that had rows."""
        acted = {effect.change for effect in effects if effect.outcome is Outcome.APPLIED and effect.rows}
        told = [
            effect._replace(outcome=Outcome.REPAIRED) if effect.outcome is Outcome.APPLIED else effect
            for effect in effects
            if effect.change in acted
        ]
        for effect in told:
            if effect.rows and effect.outcome is Outcome.REPAIRED:
                self.mended.rows[effect.dependent] = self.mended.rows.get(effect.dependent, 0) + effect.rows
        if self._audit is not None and told:
            self._audit.write(batch, told, took_s * 1000, self._actor)
        return acted


def _halves(orphans: list[Referenced]) -> list[list[Referenced]]:
    """To be done one after the other, the last one first."""
    half = len(orphans) // 2
    return [orphans[half:], orphans[:half]]


def _why_nothing(dependent: Dependent, effects: Sequence[Effect], change: int) -> str:
    outcomes = {effect.outcome for effect in effects if effect.change == change}
    if not outcomes:
        return "Something was heard of it since it was looked up: scan again."
    if Outcome.RESTRICTED in outcomes or Outcome.SKIPPED in outcomes:
        return "Its key has changed, and the rule of a key change leaves the rows."
    if dependent.as_of is not None:
        return "Its rows are younger than its deletion, or do not say when they came to be (as_of)."
    return "Its rows came by a key change, and wait for the events of their key."
