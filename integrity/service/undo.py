"""Puts back by hand what events changed, from what the stores kept: a portion a transaction, newest first.

What is not any more as the event left it stays as it is, and is told. A row that the store refuses is found by halving
its portion. What was put back until a failure stays put back: the next undo goes on from there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol, assert_never

from integrity.core.change import Version
from integrity.core.keys import Key, KeySpec, parse_canonical
from integrity.core.outcome import Broken, Outcome, Rejected, Retry
from integrity.core.retry import Backoff
from integrity.core.rules.model import RuleSet
from integrity.core.undo import Choice, Kept, Looked, Portion, UndoResult, Verdict
from integrity.errors import OperationError
from integrity.kafka.audit import ByHand
from integrity.kafka.dead_letters import dead_letter_id
from integrity.ports import Deadline, Undoable
from integrity.service.redrive import Person

ROWS_MAX: Final = 500
"""Rows of one transaction."""
LOOK_ROWS_MAX: Final = 2_000
ATTEMPTS_MAX: Final = 6
REFUSED_MAX: Final = 100
"""After so many rows that the store refuses in a row something is wrong with all of them."""
STAYED_KEPT: Final = 100
SAMPLE_ROWS: Final = 5
_AUDIT_MAX: Final = 1_000


class Audits(Protocol):
    def write_by_hand(self, done: Sequence[ByHand]) -> None: ...


class Stayed(NamedTuple):
    """A row that stays as it is, and why."""

    store: str
    row: Kept


@dataclass(slots=True)
class Found:
    """What came of it, or would: how many rows of each store and dependent, some rows of each that are put back, and
    the first that stay as they are. `stopped` says why it ended early."""

    counts: dict[tuple[str, str], Counter[Verdict]] = field(default_factory=dict)
    samples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    actions: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    stayed: list[Stayed] = field(default_factory=list)
    stopped: str = ""

    def add(self, store: str, rows: Sequence[Kept]) -> None:
        for row in rows:
            at = store, row.dependent
            self.counts.setdefault(at, Counter())[row.verdict] += 1
            self.actions.setdefault(at, set()).add(row.action)
            if row.verdict is Verdict.PUT_BACK:
                sample = self.samples.setdefault(at, [])
                if len(sample) < SAMPLE_ROWS:
                    sample.append(row.row)
            elif len(self.stayed) < STAYED_KEPT:
                self.stayed.append(Stayed(store, row))

    def total(self, *verdicts: Verdict) -> int:
        """How many rows have one of these verdicts."""
        return sum(counts[verdict] for counts in self.counts.values() for verdict in verdicts)


class _Event(NamedTuple):
    store: str
    dependent: str
    event: str
    version: Version
    entity: str
    key: str
    action: str


class Undoer:
    """What is chosen, in some stores. `timeout_of` gives how long one portion of a store may take."""

    def __init__(
        self,
        stores: Mapping[str, Undoable],
        choice: Choice,
        person: Person,
        *,
        rules: RuleSet,
        audit: Audits | None,
        timeout_of: Callable[[str], float],
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stores = stores
        self._choice = choice
        self._person = person
        self._specs: Mapping[str, KeySpec] = {parent.entity: parent.key for parent in rules.parents}
        self._audit = audit
        self._timeout_of = timeout_of
        self._backoff = backoff
        self._sleep = sleep
        self._at_ms = int(clock() * 1000)
        self._done: Counter[_Event] = Counter()

    async def foretell(self, told: Callable[[int], None] = lambda _: None) -> Found:
        """What would come of it. Changes nothing. Raises OperationError."""
        found, rows = Found(), 0
        for name, store in self._stores.items():
            portion = self._page(LOOK_ROWS_MAX)
            while True:
                result = await self._tried(store.kept, name, portion)
                if isinstance(result, Rejected):
                    raise OperationError(f"Store {name}: {result.message}")
                found.add(name, result.rows)
                rows += len(result.rows)
                told(rows)
                if result.before is None:
                    break
                portion = replace(portion, before=result.before)
        return found

    async def act(self, told: Callable[[int], None] = lambda _: None) -> Found:
        """Put back what is as its events left it. Raises OperationError; what was put back until then stays so."""
        found = Found()
        try:
            for name, store in self._stores.items():
                await self._act(name, store, found, told)
        finally:
            self._write_audit()
        return found

    async def _act(self, name: str, store: Undoable, found: Found, told: Callable[[int], None]) -> None:
        portion, refused = self._page(ROWS_MAX), 0
        while True:
            result = await self._tried(store.put_back, name, portion)
            if isinstance(result, Rejected):
                if portion.rows_max > 1:
                    portion = replace(portion, rows_max=portion.rows_max // 2)
                    continue
                looked = await self._tried(store.kept, name, portion)
                if isinstance(looked, Rejected):
                    raise OperationError(f"Store {name}: {looked.message}")
                why = result.message
                found.add(name, [row._replace(verdict=Verdict.REFUSED, message=why) for row in looked.rows])
                refused += 1
                if refused == REFUSED_MAX:
                    found.stopped = f"Store {name} refused {refused} rows one after the other. {why}"
                    return
                result = looked
            else:
                found.add(name, result.rows)
                refused = 0
                self._note(name, result.rows)
            told(found.total(*Verdict))
            if result.before is None:
                return
            portion = replace(portion, before=result.before, rows_max=min(ROWS_MAX, 2 * portion.rows_max))

    async def _tried(
        self, call: Callable[[Portion, Deadline], Awaitable[UndoResult]], name: str, portion: Portion
    ) -> Looked | Rejected:
        attempt = 0
        while True:
            result = await call(portion, Deadline.after(self._timeout_of(name)))
            match result:
                case Looked() | Rejected():
                    return result
                case Broken(message=message):
                    raise OperationError(f"Store {name}: {message}", hint="Mend it, and undo again: it goes on.")
                case Retry(message):
                    attempt += 1
                    if attempt == ATTEMPTS_MAX:
                        raise OperationError(f"Store {name}: {message}", hint="Undo again: it goes on from there.")
                    await self._sleep(self._backoff.delay_s(attempt, random.random()))
                case _:
                    assert_never(result)

    def _page(self, rows_max: int) -> Portion:
        return Portion(self._choice, rows_max, self._at_ms, actor=self._person.name, note=self._person.note)

    def _note(self, store: str, rows: Sequence[Kept]) -> None:
        for row in rows:
            if row.verdict is Verdict.PUT_BACK:
                event = _Event(store, row.dependent, row.event, row.version, row.entity, row.key, row.action)
                self._done[event] += 1
        if len(self._done) > _AUDIT_MAX:
            self._write_audit()

    def _write_audit(self) -> None:
        if self._audit is not None and self._done:
            self._audit.write_by_hand([self._by_hand(event, rows) for event, rows in self._done.items()])
        self._done.clear()

    def _by_hand(self, event: _Event, rows: int) -> ByHand:
        topic, partition, offset = event.event.split("/")
        return ByHand(
            dead_letter_id(topic, int(partition), int(offset), event.dependent, event.store),
            event.entity,
            event.dependent,
            event.store,
            topic,
            int(partition),
            int(offset),
            Outcome.UNDONE,
            self._at_ms,
            self._person.name,
            self._person.note,
            self._key(event),
            event.version,
            event.action,
            rows,
        )

    def _key(self, event: _Event) -> Key | None:
        """The event's key, if the rules read it as they did then."""
        spec = self._specs.get(event.entity)
        try:
            return None if spec is None else parse_canonical(event.key, spec)
        except ValueError:
            return None
