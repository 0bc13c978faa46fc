"""Carries out truncates that delete all parents (`core.truncate`), beside a lane and by its own way of enforcing.

A truncate waits until everything that was in the topics when it was found is enforced: then every event that came
before it has been, and of what came after it the ledger knows. Where `max_rows` limits something, all of its rows are
counted before the first is touched. After a crash it begins anew: what is done is not alive any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from integrity.core.batch import DeadLetterMark, TopicPartition
from integrity.core.outcome import Outcome
from integrity.core.plan import Plan
from integrity.core.rules.model import RuleSet
from integrity.core.truncate import Note, limits, read_note
from integrity.errors import Reason
from integrity.ports import Deadline, Inspectable, Truncatable
from integrity.service.enforce import DivergedError, Enforcer, Exceptions
from integrity.service.work import Piece

log = logging.getLogger(__name__)

KEYS_MAX: Final = 1_000
"""Keys that are looked at together, and deleted in one transaction if it has room for their rows."""


class Place(Protocol):
    """What a lane tells of where it is."""

    def has(self, partition: TopicPartition) -> bool:
        """Whether this process has that partition now."""
        ...

    async def ends(self) -> Mapping[TopicPartition, int]:
        """Where the topics end now. Raises UnreachableError."""
        ...

    async def are_enforced(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Whether everything up to these ends is enforced, here or elsewhere. Raises UnreachableError."""
        ...


@dataclass(frozen=True, slots=True)
class Counting:
    """What rows are counted by, before a truncate of a parent with dependents touches the first."""

    store: Inspectable
    rules: RuleSet


class Truncator:
    """The truncates of one store's lane."""

    def __init__(
        self,
        store: Truncatable,
        enforcer: Enforcer,
        *,
        timeout_s: float,
        counting: Counting | None = None,
    ) -> None:
        """`enforcer` is its own. `timeout_s` bounds a question. Without `counting` the store is a copy: no rule limits
        it, and a dead letter of it is about all that it is."""
        self._store = store
        self._counting = counting
        self._enforcer = enforcer
        self._timeout_s = timeout_s
        self._ends: dict[str, Mapping[TopicPartition, int]] = {}
        """Note -> where the topics ended when it was found."""

    @property
    def trouble(self) -> str:
        """Why it does not get on; empty when it does."""
        return self._enforcer.trouble.message

    async def waiting(self) -> list[Note]:
        """The truncates that are not carried out, the oldest first. Raises OperationError."""
        notes = [read_note(data) for data in await self._store.notes(Deadline.after(self._timeout_s))]
        return sorted(notes, key=lambda note: (note.version, note.redrive is not None, note.id))

    async def round(self, place: Place) -> None:
        """Carry out what this process has to, as far as its time has come. Raises OperationError."""
        notes = await self.waiting()
        self._ends = {note.id: ends for note in notes if (ends := self._ends.get(note.id)) is not None}
        first: set[str] = set()
        for note in notes:
            # One that comes back acts on what the truncate itself did before.
            is_behind = note.event in first
            first.add(note.event)
            if is_behind or not place.has(note.at):
                continue
            if note.id not in self._ends:
                self._ends[note.id] = await place.ends()
                log.warning(
                    "a truncate deletes all parents: it waits until everything that is in the topics is enforced",
                    extra={"store": self._store.name, "entity": note.entity, "event": note.event},
                )
            if await place.are_enforced(self._ends[note.id]):
                try:
                    await self._carry_out(note, lambda at=note.at: place.has(at))  # type: ignore[misc]
                except DivergedError as exc:
                    log.info(
                        "another process has taken the store over, and the truncate with it",
                        extra={"store": self._store.name, "error": str(exc)},
                    )

    async def _carry_out(self, note: Note, is_ours: Callable[[], bool]) -> None:
        if note.held is None:
            held = await self._hold(note)
            if held is None or not is_ours():
                return
            note = msgspec.structs.replace(note, held=held)
            await self._enforcer.enforce(Piece(notes=[note.to_replace()]))
        letters, redrive = self._enforcer.letters, note.redrive
        if self._counting is None:
            note = note.of_all
        done = await self._pages(note, is_ours, lambda piece: self._enforcer.enforce(piece, _left_out(piece, note)))
        if not done:
            return
        over = Piece(notes=[note.to_forget()])
        if redrive is not None and not note.held and self._enforcer.letters == letters:
            over.settled.append(redrive)
        await self._enforcer.enforce(over)
        log.warning(
            "a truncate is carried out",
            extra={"store": self._store.name, "entity": note.entity, "event": note.event},
        )

    async def _hold(self, note: Note) -> dict[str, str] | None:
        """The dependents that have more rows than their rule allows, each with a dead letter; None: it was given up."""
        found: dict[str, str] = {}
        counting = self._counting
        if counting is None:
            return found
        rules, name = counting.rules, self._store.name
        bounded = limits(rules, note.entity, name)
        if note.only:
            bounded = {of: most for of, most in bounded.items() if of == note.only}
        if not bounded or note.page.approved:
            return found
        counts: dict[str, int] = {}
        unsure: set[str] = set()

        async def count(piece: Piece) -> None:
            walk = Plan(rules, note.entity, [change.key for change in piece.changes])
            elsewhere = set(rules.stores) - {name}
            while (portion := walk.ask(elsewhere)) is not None:
                walk.take(portion, await counting.store.impact(portion.question, Deadline.after(self._timeout_s)))
            for planned in walk.found():
                dependent = planned.dependent
                if dependent.store == name and planned.action not in ("ignore", "restrict"):
                    counts[dependent.id] = counts.get(dependent.id, 0) + planned.rows
                    unsure.update({dependent.id} if planned.at_least else ())

        if not await self._pages(note, lambda: True, count):
            return None
        for dependent, most in bounded.items():
            over = [each for each, rows in most.items() if counts.get(each, 0) > rows or each in unsure]
            if over:
                where = "" if over == [dependent] else f" ({', '.join(over)})"
                message = f"The truncate has more rows than max_rows allows{where}."
                retries = note.page.retries if note.only else 0
                letter = await self._enforcer.hold(note.record, note.entity, dependent, message, retries)
                found[dependent] = letter
        return found

    async def _pages(self, note: Note, is_ours: Callable[[], bool], act: Callable[[Piece], Awaitable[None]]) -> bool:
        """Every page of what the truncate concerns; False when this process has to leave it to another."""
        after: bytes | None = b""
        unreadable = 0
        while after is not None:
            if not is_ours():
                return False
            known = await self._store.known_keys(note.entity, after, KEYS_MAX, Deadline.after(self._timeout_s))
            changes = note.changes(key for key, head in known.found if note.concerns(head))
            if changes:
                await act(Piece(changes, [note.record] * len(changes), page=note.page))
            after = known.after
            unreadable += known.unreadable
        if unreadable:
            log.warning(
                "keys that are too long for the ledger are left alone by a truncate: a scan finds their rows",
                extra={"store": self._store.name, "entity": note.entity, "keys": unreadable},
            )
        return True


def _left_out(piece: Piece, note: Note) -> Exceptions:
    return {
        (index, dependent): DeadLetterMark(Reason.TOO_MANY_ROWS, letter, Outcome.HELD)
        for index in range(len(piece.changes))
        for dependent, letter in (note.held or {}).items()
    }
