"""One batch to its end: applied, or what can't be applied set apart as dead letters, in this order and no other.

Dead letters of records that can't be read are acknowledged first, then the store commits effects, ledger and progress
together; only then may the lane let the offset move. A transient failure waits and tries again for as long as it
takes. A permanent one is bisected to the single event and dependent, whose dead letter is acknowledged before the
batch goes on without it. A dependent whose rule is broken is halted: its events are dead letters, the others go on.
Cancelling at any await loses nothing: whatever was not committed is replayed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

from integrity.core.batch import ANY_DEPENDENT, Batch, DeadLetterMark, Redrive
from integrity.core.change import Op
from integrity.core.decode.record import Record
from integrity.core.outcome import (
    Applied,
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
from integrity.core.retry import CONTENDED_ATTEMPTS_MAX, Backoff
from integrity.errors import OperationError, Reason
from integrity.kafka.dead_letters import DeadLetter, Stage, Status, StatusChange
from integrity.ports import Deadline, Store
from integrity.service.halts import ATTEMPTS_MAX, REASONS, Halts
from integrity.service.waiting import sleep_or
from integrity.service.work import Piece, Refused, halves
from integrity.telemetry import BatchSpan

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 15.0
LETTERS_MAX = 500
"""Dead letters that are published at once."""

Exceptions = dict[tuple[int, str], DeadLetterMark]
"""(index of the change, dependent id) -> why that effect is left out."""

_HAPPENED = (Op.DELETED, Op.MOVED, Op.GONE, Op.MISSING)


class DeadLetterSink(Protocol):
    async def publish(self, letters: Sequence[DeadLetter], deadline: Deadline) -> None:
        """Returns when every letter is acknowledged. Raises OperationError when not."""
        ...

    async def mark(self, changes: Sequence[StatusChange], deadline: Deadline) -> None:
        """Returns when the new statuses are acknowledged. Raises OperationError when not."""
        ...


class Watch(Protocol):
    """What a lane tells the outside. Never blocks, never raises."""

    def batch(self, store: str, batch: Batch) -> AbstractContextManager[BatchSpan]:
        """Around one attempt at a batch; gives the trace id to write into the ledger."""
        ...

    def applied(self, store: str, batch: Batch, effects: Sequence[Effect], took_s: float) -> None: ...

    def dead_lettered(self, store: str, letter: DeadLetter) -> None: ...

    def store_up(self, store: str, up: bool) -> None: ...

    def halted(self, dependent: str, halted: bool) -> None: ...


class GaveUpError(Exception):
    """A store did not get well in the time that it is given: nothing of the piece is known to be durable."""

    def __init__(self, cause: Retry | Broken) -> None:
        super().__init__(cause.message)
        self.cause = cause


class Patience:
    """How long a store that fails is waited for, from its first failure on; no longer once `over` is set."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.over = asyncio.Event()
        self._seconds = seconds
        self._clock = clock
        self._since: float | None = None

    async def wait(self, seconds: float, cause: Retry | Broken) -> None:
        """Wait before the next attempt. Raises GaveUpError."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if not self.over.is_set():
            await sleep_or(self.over, min(seconds, max(0.0, self._seconds - (now - self._since))))
        if self.over.is_set() or self._clock() - self._since >= self._seconds:
            self.end()
            raise GaveUpError(cause)

    def end(self) -> None:
        """It is well again, or given up."""
        self._since = None
        self.over.clear()


class DivergedError(Exception):
    """The store's progress is not where this batch begins: read it again."""


@dataclass(slots=True)
class Trouble:
    """Why a lane does not get on, for /readyz; empty when it does."""

    message: str = ""


class Enforcer:
    """Takes pieces of one store's lane to their end."""

    def __init__(
        self,
        store: Store,
        dead_letters: DeadLetterSink,
        watch: Watch,
        *,
        system: str,
        rules_hash: str,
        timeout_s: float,
        halts: Halts,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        unread: str = ANY_DEPENDENT,
        tenant: str = "",
        patience: Patience | None = None,
    ) -> None:
        """`system` is what the store is in traces: postgresql, mongodb or kafka. `timeout_s` bounds one attempt.
        `unread` is the dependent of the dead letter of a record that can't be decoded. `tenant` is whose the store is,
        for the log. With `patience` a failing store is given up, else it never is."""
        self._store = store
        self._named = {"store": store.name, "tenant": tenant} if tenant else {"store": store.name}
        self._patience = patience
        self._dead_letters = dead_letters
        self._watch = watch
        self._system = system
        self._rules_hash = rules_hash
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._unread = unread
        self.halts = halts
        self._waiting_for: set[str] = set()
        self.trouble = Trouble()
        self.letters = 0
        """How many dead letters it has written."""
        self.in_parts = False
        """An event is being worked off in parts, which takes its time: stopping loses the open part alone."""

    async def enforce(self, piece: Piece, exceptions: Exceptions | None = None) -> None:
        """Returns when everything in the piece is durable. Raises DivergedError; never gives up otherwise, but with
        patience: GaveUpError."""
        if piece.refused:
            await self.refuse(piece.refused)
        await self._enforce(piece, dict(exceptions or {}))

    async def refuse(self, refused: Sequence[Refused]) -> None:
        """Dead-letter what can't be enforced at all."""
        await self._publish([self._refused(each) for each in refused])

    async def park(self, piece: Piece, reason: Reason, message: str, tenant: str) -> None:
        """Dead-letter all changes of a piece until the database of their tenant can be used; what dead letters ask for
        beside changes is told to have failed."""
        letters: list[DeadLetter] = []
        for index, (change, record) in enumerate(zip(piece.changes, piece.records, strict=True)):
            redrive = piece.redrives.get(index)
            dependent, retries = (ANY_DEPENDENT, 0) if redrive is None else (redrive.dependent, redrive.retries)
            letter = self._letter(record, change.entity, dependent, reason, message, Stage.STORE, 1)
            letters.append(replace(letter, retries=retries, parked=tenant))
        for at in range(0, len(letters), LETTERS_MAX):
            await self._publish(letters[at : at + LETTERS_MAX])
        if piece.discards:
            now_ms, note = int(time.time() * 1000), "The tenant's database can't be used: discard it again."
            again = [
                StatusChange(each.letter, Status.OPEN, now_ms, each.dependent, self._store.name, note=note)
                for each in piece.discards
            ]
            await self._acknowledged(lambda deadline: self._dead_letters.mark(again, deadline))

    async def resolve(self, settled: Sequence[Redrive]) -> None:
        """Tell that what these dead letters asked for is nothing."""
        await self._resolve(Piece(settled=list(settled)), {})

    async def hold(self, record: Record, entity: str, dependent: str, message: str, retries: int = 0) -> str:
        """Dead-letter an event for one dependent until somebody approves it; the id of its dead letter."""
        letter = self._letter(record, entity, dependent, Reason.TOO_MANY_ROWS, message, Stage.STORE, 1)
        await self._publish([replace(letter, status=Status.HELD, retries=retries)])
        return letter.id

    async def _enforce(self, piece: Piece, exceptions: Exceptions | None = None) -> None:
        exceptions = exceptions or {}
        await self._leave_halted(piece, exceptions)
        try:
            await self._try(piece, exceptions)
        finally:
            self.in_parts = False

    async def _try(self, piece: Piece, exceptions: Exceptions) -> None:
        attempt = contended = broken = 0
        began: float | None = None
        while True:
            batch = Batch(
                tuple(piece.changes),
                piece.spans,
                int(time.time() * 1000),
                "",
                exceptions,
                piece.redrives,
                tuple(piece.discards),
                "" if piece.page is None else piece.page.only,
                tuple(piece.notes),
                piece.page,
            )
            began = began if self.in_parts and began is not None else time.monotonic()
            with self._watch.batch(self._store.name, batch) as span:
                batch = replace(batch, trace_id=span.trace_id)
                with span.store_span(self._system, "apply", batch_size=len(batch.changes)):
                    result = await self._store.apply(batch, Deadline.after(self._timeout_s))
                if not isinstance(result, Applied | Unfinished):
                    span.failed(type(result).__name__.lower())
            match result:
                case Applied(effects):
                    self._well()
                    self._watch.applied(self._store.name, batch, effects, time.monotonic() - began)
                    if piece.redrives or piece.settled:
                        await self._resolve(piece, exceptions)
                    return
                case Unfinished():
                    self._well()
                    if not self.in_parts:
                        self.in_parts = True
                        log.info("an event has many rows and is worked off in parts", extra=self._named)
                    attempt = contended = broken = 0
                case TooLarge():
                    return await self._halve(piece, exceptions, result.message)
                case Retry():
                    attempt += 1
                    contended = contended + 1 if result.contended else 0
                    if contended < CONTENDED_ATTEMPTS_MAX or result.dependent is None:
                        await self._wait(attempt, result)
                    elif len(piece.changes) > 1:
                        return await self._halve(piece, exceptions, result.message)
                    else:  # one event waits for rows that somebody holds: no other key may wait for it
                        await self._set_apart(
                            piece, exceptions, result.dependent, Reason.STORE_REJECTED, attempt, result
                        )
                case Rejected():
                    if len(piece.changes) > 1:
                        return await self._halve(piece, exceptions, result.message)
                    attempt += 1
                    await self._set_apart(piece, exceptions, result.dependent, result.reason, attempt, result)
                    contended = 0
                case Held():
                    if len(piece.changes) > 1:
                        return await self._halve(piece, exceptions, result.message)
                    attempt += 1
                    await self._set_apart(piece, exceptions, result.dependent, Reason.TOO_MANY_ROWS, attempt, result)
                    contended = 0
                case Broken():
                    attempt += 1
                    broken += 1
                    dependent = result.dependent
                    if dependent is None or result.reason not in REASONS:
                        self._wait_for(ANY_DEPENDENT, result.message)
                        await self._wait(attempt, result)
                    elif broken < ATTEMPTS_MAX and dependent not in self.halts.halted:
                        await self._wait(attempt, result)
                    else:
                        self.halts.halt(dependent, result.reason, result.message)
                        if not await self._leave_halted(piece, exceptions):
                            # It is left out already, and at fault all the same.
                            await self._wait(attempt, result)
                case Diverged():
                    raise DivergedError(result.message)
                case _:
                    assert_never(result)

    async def _leave_halted(self, piece: Piece, exceptions: Exceptions) -> bool:
        """Dead-letter what the piece asks of halted dependents, and tell whether there was anything; the batch goes on
        without them."""
        letters: list[DeadLetter] = []
        for dependent, halt in self.halts.halted.items():
            entity = dependent.partition(".")[0]
            for index, change in enumerate(piece.changes):
                redrive = piece.redrives.get(index) if piece.redrives else None
                about = "" if redrive is None else redrive.dependent
                if piece.page is not None:
                    about = piece.page.only
                about_others = about not in ("", ANY_DEPENDENT, dependent)
                if change.entity != entity or change.op not in _HAPPENED or about_others:
                    continue
                if (index, dependent) in exceptions:
                    continue
                record = piece.records[index]
                letter = self._letter(record, entity, dependent, halt.reason, halt.message, Stage.STORE, 1)
                letters.append(replace(letter, retries=_retries(piece, index, dependent)))
                exceptions[index, dependent] = DeadLetterMark(halt.reason, letter.id)
        if piece.page is not None:
            letters = list({letter.id: letter for letter in letters}.values())  # one for all keys
        if letters:
            await self._publish(letters)
        return bool(letters)

    async def _halve(self, piece: Piece, exceptions: Exceptions, cause: str) -> None:
        log.info(
            "a batch can't be applied as it is and is halved",
            extra={**self._named, "events": len(piece.changes), "error": cause},
        )
        first, second = halves(piece)
        middle = len(first.changes)
        await self._enforce(first, {at: mark for at, mark in exceptions.items() if at[0] < middle})
        await self._enforce(second, {(i - middle, d): mark for (i, d), mark in exceptions.items() if i >= middle})

    async def _set_apart(
        self,
        piece: Piece,
        exceptions: Exceptions,
        dependent: str,
        reason: Reason,
        attempts: int,
        cause: Retry | Rejected | Held,
    ) -> None:
        """Dead-letter the piece's only event for one dependent; the batch goes on without it."""
        change, record = piece.changes[0], piece.records[0]
        letter = self._letter(record, change.entity, dependent, reason, cause.message, Stage.STORE, attempts)
        letter = replace(letter, retries=_retries(piece, 0, dependent))
        outcome = Outcome.DEAD_LETTERED
        if isinstance(cause, Held):
            letter, outcome = replace(letter, status=Status.HELD), Outcome.HELD
        if (0, dependent) in exceptions:
            raise AssertionError(f"{dependent} was refused again although the event is left out")
        await self._publish([letter])
        exceptions[0, dependent] = DeadLetterMark(reason, letter.id, outcome)

    async def _wait(self, attempt: int, cause: Retry | Broken) -> None:
        unreachable = isinstance(cause, Retry) and cause.unreachable
        self._watch.store_up(self._store.name, not unreachable)
        self.trouble.message = cause.message
        if attempt == 1 or attempt % 20 == 0:
            level = logging.ERROR if isinstance(cause, Broken) else logging.WARNING
            log.log(
                level,
                "a batch waits for its store and is tried again",
                extra={**self._named, "attempt": attempt, "error": cause.message},
            )
        delay_s = self._backoff.delay_s(attempt, random.random())
        await (asyncio.sleep(delay_s) if self._patience is None else self._patience.wait(delay_s, cause))

    def _well(self) -> None:
        if self.trouble.message:
            log.info("the store applies batches again", extra=self._named)
            if self._patience is not None:
                self._patience.end()
        self._watch.store_up(self._store.name, True)
        for dependent in self._waiting_for:
            self._watch.halted(dependent, False)
        self._waiting_for.clear()
        self.trouble.message = ""

    def _wait_for(self, dependent: str, message: str) -> None:
        if dependent not in self._waiting_for:
            self._waiting_for.add(dependent)
            self._watch.halted(dependent, True)
            log.error(
                "a store does not fit its rules or ledger any more: mend it, and the lane goes on by itself",
                extra={**self._named, "dependent": dependent, "error": message},
            )

    async def _resolve(self, piece: Piece, exceptions: Mapping[tuple[int, str], DeadLetterMark]) -> None:
        """Tell of the dead letters that came back that what they asked for is done."""
        done = [redrive for index, redrive in piece.redrives.items() if (index, redrive.dependent) not in exceptions]
        now_ms, store = int(time.time() * 1000), self._store.name
        changes = [
            StatusChange(redrive.letter, Status.RESOLVED, now_ms, redrive.dependent, store)
            for redrive in (*done, *piece.settled)
        ]
        await self._acknowledged(lambda deadline: self._dead_letters.mark(changes, deadline))
        for change in changes:
            log.info("a dead letter is resolved", extra={**self._named, "id": change.id, "dependent": change.dependent})

    async def _acknowledged(self, send: Callable[[Deadline], Awaitable[None]]) -> None:
        attempt = 0
        while True:
            try:
                return await send(Deadline.after(PUBLISH_TIMEOUT_S))
            except OperationError as exc:
                attempt += 1
                self.trouble.message = f"dead letters can't be written: {exc.message}"
                log.warning(
                    "dead letters could not be written and are sent again",
                    extra={**self._named, "attempt": attempt, "error": exc.message},
                )
                await asyncio.sleep(self._backoff.delay_s(attempt, random.random()))

    async def _publish(self, letters: Sequence[DeadLetter]) -> None:
        """Until they are acknowledged: nothing moves past an event whose dead letter may be lost."""
        await self._acknowledged(lambda deadline: self._dead_letters.publish(letters, deadline))
        self.letters += len(letters)
        for letter in letters:
            self._watch.dead_lettered(self._store.name, letter)
            log.warning(
                "an event became a dead letter",
                extra={
                    **self._named,
                    "id": letter.id,
                    "reason": letter.reason.value,
                    "dependent": letter.dependent,
                    "topic": letter.record.topic,
                    "partition": letter.record.partition,
                    "offset": letter.record.offset,
                },
            )

    def _refused(self, refused: Refused) -> DeadLetter:
        record, why, entity, redrive = refused
        dependent = self._unread if redrive is None else redrive.dependent
        letter = self._letter(record, entity, dependent, why.reason, why.message, Stage(why.stage), 1)
        return letter if redrive is None else replace(letter, retries=redrive.retries)

    def _letter(
        self, record: Record, entity: str, dependent: str, reason: Reason, message: str, stage: Stage, attempts: int
    ) -> DeadLetter:
        return DeadLetter(
            record=record,
            reason=reason,
            message=message,
            entity=entity,
            dependent=dependent,
            store=self._store.name,
            attempts=attempts,
            stage=stage,
            rules=self._rules_hash,
            failed_at_ms=int(time.time() * 1000),
        )


def _retries(piece: Piece, index: int, dependent: str) -> int:
    """How often the dead letter of a change and dependent has come back."""
    if piece.page is not None:
        return piece.page.retries if piece.page.only in ("", dependent) else 0
    redrive = piece.redrives.get(index)
    return redrive.retries if redrive is not None and redrive.dependent == dependent else 0
