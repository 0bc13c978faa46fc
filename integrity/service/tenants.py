"""The lane of a store that has a database for each tenant: what was read is split by tenant, and each part goes its own
way, in the order of its tenant.

A partition's offset moves only up to the first event, of whatever tenant, that is neither durable nor a dead letter. A
database that can't be used holds up its own tenant alone: what is for it waits for a while, in memory that is bounded,
and is parked then as dead letters, as is all that comes until the database can be used again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from integrity.core.batch import ANY_DEPENDENT, Batch, Span, TopicPartition
from integrity.core.change import Op
from integrity.core.decode.record import Undecodable
from integrity.core.outcome import Broken, Effect, Retry
from integrity.core.retry import Backoff
from integrity.errors import OperationError, Reason
from integrity.kafka.dead_letters import DeadLetter
from integrity.ports import Deadline, Store, Sweepable
from integrity.service.enforce import DivergedError, Enforcer, GaveUpError, Patience, Watch
from integrity.service.expiry import EVERY_S as EXPIRY_EVERY_S
from integrity.service.expiry import Expiry
from integrity.service.sweep import Sweeper, SweepWatch
from integrity.service.waiting import sleep_or, unless
from integrity.service.work import BUFFER_BYTES_MAX, Piece, Refused
from integrity.telemetry import BatchSpan

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether something is due beside the lane."""
PROBES_MAX: Final = 4
"""Databases that are asked at once whether they can be used again; a quarter of the connections when that is less."""
TENANTS_MAX: Final = 10_000
"""Tenants that are remembered with their halted dependents, and as parked: events may name any number."""
HALTS_EVERY_S: Final = 10.0
CARE_EVERY_S: Final = 60.0
"""How often the databases of tenants are opened in turn to look for rows that were written late."""

_HAPPENED: Final = (Op.DELETED, Op.MOVED, Op.GONE)


class TenantDatabase(Store, Sweepable, Protocol):
    """The store of one tenant."""

    tenant: str

    async def probe(self) -> str:
        """Why the database can't be used; empty when it can."""
        ...

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """See `Undoable.forget_kept`."""
        ...


class Databases(Protocol):
    """The databases of all tenants, of which some are open."""

    name: str
    connections_max: int

    @property
    def tenants(self) -> Collection[str]:
        """Those whose databases were fit when they were used last."""
        ...

    def of(self, tenant: str, *, aside: bool = False) -> TenantDatabase:
        """The store of one tenant. `aside`: for what is done beside the lane."""
        ...

    async def close_idle(self) -> None:
        """Close what has not been used for a while."""
        ...


class ParkedWatch(Protocol):
    def parked(self, store: str, tenants: int) -> None: ...


class TenantWatch:
    """What the parts of one store's lane tell: as the lane itself, and nothing that names a tenant.

    A dependent counts as halted when it is in the database of some tenant. That one of them does not answer is told by
    how many tenants are parked."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._halted: dict[str, set[str]] = {}

    def of(self, tenant: str) -> Watch:
        """What the enforcer of one tenant tells."""
        return _OneTenant(self, self._watch, tenant)

    def halted(self, tenant: str, dependent: str, *, halted: bool) -> None:
        tenants = self._halted.setdefault(dependent, set())
        (tenants.add if halted else tenants.discard)(tenant)
        self._watch.halted(dependent, bool(tenants))


class _OneTenant:
    def __init__(self, of_all: TenantWatch, watch: Watch, tenant: str) -> None:
        self._of_all = of_all
        self._watch = watch
        self._tenant = tenant

    def batch(self, store: str, batch: Batch) -> AbstractContextManager[BatchSpan]:
        return self._watch.batch(store, batch)

    def applied(self, store: str, batch: Batch, effects: Sequence[Effect], took_s: float) -> None:
        self._watch.applied(store, batch, effects, took_s)

    def dead_lettered(self, store: str, letter: DeadLetter) -> None:
        self._watch.dead_lettered(store, letter)

    def store_up(self, store: str, up: bool) -> None:
        return None

    def halted(self, dependent: str, halted: bool) -> None:
        if dependent != ANY_DEPENDENT:  # then the database is not fit as a whole, which ends in parking
            self._of_all.halted(self._tenant, dependent, halted=halted)


# --- what was read, by tenant ---------------------------------------------------------------------------------------


class Split(NamedTuple):
    """A piece by tenant, and what of it can't be told whose it is."""

    parts: dict[str, Piece]
    refused: list[Refused]


def split(piece: Piece, fault_of: Callable[[str], str | None]) -> Split:
    """The changes and discards of a piece by tenant, each in the order in which they came.

    `fault_of` tells why a text is no tenant. An event of none is refused where it asks for something. The spans say
    that a tenant's progress may be of a former life of its topic: most tenants have no event for long."""
    parts: dict[str, Piece] = {}
    refused: list[Refused] = []
    faults: dict[str, str | None] = {}
    for index, change in enumerate(piece.changes):
        tenant, record = change.tenant, piece.records[index]
        redrive = piece.redrives.get(index)
        if tenant not in faults:
            faults[tenant] = fault_of(tenant) if tenant else "is not told by the event"
        if fault := faults[tenant]:
            if redrive is not None or change.op in _HAPPENED:
                why = Undecodable(Reason.UNKNOWN_TENANT, f"The tenant {fault}.", "key")
                refused.append(Refused(record, why, change.entity, redrive))
            continue
        part = parts.get(tenant)
        if part is None:
            part = parts[tenant] = Piece()
        if redrive is None:
            at, offset = TopicPartition(change.origin.topic, change.origin.partition), change.origin.offset
        else:
            part.redrives[len(part.changes)] = redrive
            at, offset = redrive.at, redrive.offset
        part.changes.append(change)
        part.records.append(record)
        part.spans[at] = Span(0, offset + 1, again=True)
        part.size += len(record.key or b"") + len(record.value or b"")
    for discard in piece.discards:
        if discard.tenant and not fault_of(discard.tenant):
            parts.setdefault(discard.tenant, Piece()).discards.append(discard)
    return Split(parts, refused)


class _Flight:
    """A piece of which parts are on their way."""

    __slots__ = ("left", "spans")

    def __init__(self, spans: Mapping[TopicPartition, Span], left: int) -> None:
        self.spans = spans
        self.left = left


class _Part(NamedTuple):
    piece: Piece
    flights: list[_Flight]

    @property
    def events(self) -> int:
        return len(self.piece.changes) + len(self.piece.discards)


class _Queue:
    """What waits for one tenant, what is being enforced included."""

    def __init__(self) -> None:
        self.parts: deque[_Part] = deque()
        self.events = 0
        self.size = 0

    def put(self, part: _Part) -> None:
        self.parts.append(part)
        self.events += part.events
        self.size += part.piece.size

    def take(self, events_max: int) -> _Part:
        """The next batch, at least one part."""
        batch = self.parts.popleft()
        while self.parts and batch.events + self.parts[0].events <= events_max:
            piece, flights = self.parts.popleft()
            batch.piece.append(piece)
            batch.flights.extend(flights)
        return batch

    def done(self, part: _Part) -> None:
        self.events -= part.events
        self.size -= part.piece.size


# --- the dispatcher ---------------------------------------------------------------------------------------------------


class Assignment(Protocol):
    """A session of the lane."""

    ending: asyncio.Event
    durable: dict[TopicPartition, int]

    async def take(self) -> Piece | None:
        """The next batch, or None when the session ends."""
        ...


@dataclass(slots=True)
class Parked:
    """Why what is for a tenant becomes dead letters at once, and when its database is asked again."""

    reason: Reason
    message: str
    attempts: int = 0
    next_s: float = 0.0


class Dispatcher:
    """Takes what a lane has read to the databases of the tenants."""

    def __init__(
        self,
        databases: Databases,
        general: Enforcer,
        enforcer_of: Callable[[TenantDatabase, Watch, Patience], Enforcer],
        watch: TenantWatch,
        parked_watch: ParkedWatch,
        fault_of: Callable[[str], str | None],
        *,
        batch_size: int,
        wait_s: float,
        backoff: Backoff = Backoff(first_s=1.0, cap_s=30.0),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`general` writes what is of no tenant; `enforcer_of` makes the enforcer of one. `wait_s` is how long what is
        for a database that can't be used is kept; at most half of what may be kept at all is for such."""
        self._databases = databases
        self._general = general
        self._enforcer_of = enforcer_of
        self._watch = watch
        self._parked_watch = parked_watch
        self._fault_of = fault_of
        self.batch_size = batch_size
        self.events_max = 2 * batch_size
        self._wait_s = wait_s
        self._backoff = backoff
        self._clock = clock
        self._enforcers: OrderedDict[str, tuple[Enforcer, Patience]] = OrderedDict()
        """By tenant, the one asked for longest ago first."""
        self._at_work: set[str] = set()
        self.parked: dict[str, Parked] = {}
        self.back = asyncio.Event()
        """The database of some tenant can be used again."""
        self.worked_s: dict[str, float] = {}
        """When something was enforced last, by tenant."""
        self._halts_s = 0.0

    @property
    def trouble(self) -> str:
        """What /readyz says."""
        if count := len(self.parked):
            return (
                f"the databases of {count} tenant{'s' if count > 1 else ''} can't be used; what is for them is parked"
            )
        halted = sorted({d for enforcer, _ in self._enforcers.values() for d in enforcer.halts.halted})
        return f"{', '.join(halted)}: halted in the databases of some tenants" if halted else ""

    async def work(self, session: Assignment) -> None:
        """Until the session ends: then what has not begun, or waits for a failing database, is left alone."""
        desk = _Desk(self, session)
        async with asyncio.TaskGroup() as tasks:
            while await desk.has_room() and (piece := await session.take()) is not None:
                await self._tell(piece)
                found = split(piece, self._fault_of)
                if found.refused:
                    await self._general.refuse(found.refused)
                desk.put(piece, found.parts, tasks)
            for tenant, task in desk.tasks.items():
                enforcer, _ = self.enforcer(tenant)
                if enforcer.trouble.message or enforcer.in_parts:
                    task.cancel()

    async def _tell(self, piece: Piece) -> None:
        """What needs no database."""
        if piece.refused:
            await self._general.refuse(piece.refused)
        if piece.settled:
            await self._general.resolve(piece.settled)
        for discard in piece.discards:
            if not discard.tenant:
                log.warning(
                    "a dead letter that was given up does not say of which tenant it is: its effect stays left out",
                    extra={"store": self._databases.name, "id": discard.letter},
                )

    async def finish(self, tenant: str, piece: Piece) -> None:
        """Enforce it, or park it. Of one tenant, one after the other."""
        self._at_work.add(tenant)
        try:
            await self._finish(tenant, piece)
        finally:
            self._at_work.discard(tenant)

    async def _finish(self, tenant: str, piece: Piece) -> None:
        enforcer, _ = self.enforcer(tenant)
        while (parked := self.parked.get(tenant)) is None:
            try:
                await enforcer.enforce(piece)
            except DivergedError as exc:
                log.warning(
                    "a tenant's progress went back while it was worked on; it is tried again",
                    extra={"store": self._databases.name, "tenant": tenant, "error": str(exc)},
                )
            except GaveUpError as exc:
                enforcer.trouble.message = ""
                self.suspend(tenant, exc.cause)
            else:
                self.worked_s[tenant] = self._clock()
                return
        await self._general.park(piece, parked.reason, parked.message, tenant)

    def enforcer(self, tenant: str) -> tuple[Enforcer, Patience]:
        """The tenant's own; it remembers which dependents are halted there."""
        found = self._enforcers.get(tenant)
        if found is not None:
            self._enforcers.move_to_end(tenant)
        else:
            self._forget_some()
            patience = Patience(self._wait_s, self._clock)
            made = self._enforcer_of(self._databases.of(tenant), self._watch.of(tenant), patience)
            found = self._enforcers[tenant] = made, patience
        return found

    def _forget_some(self) -> None:
        """Make room for another tenant."""
        surplus = len(self._enforcers) + 1 - TENANTS_MAX
        if surplus > 0:
            idle = [t for t, (each, _) in self._enforcers.items() if t not in self._at_work and not each.halts.halted]
            for tenant in idle[:surplus]:
                del self._enforcers[tenant]

    def hurry(self, queues: Mapping[str, _Queue]) -> None:
        """Give up the tenant that most is kept for, when what is kept for failing databases is half of all."""
        failing = {t: q for t, q in queues.items() if self.enforcer(t)[0].trouble.message}
        if not failing:
            return
        events, size = sum(q.events for q in failing.values()), sum(q.size for q in failing.values())
        if 2 * events > self.events_max or 2 * size > BUFFER_BYTES_MAX:
            heaviest = max(
                failing, key=lambda t: max(failing[t].events / self.events_max, failing[t].size / BUFFER_BYTES_MAX)
            )
            self.enforcer(heaviest)[1].over.set()

    # --- beside the lane ------------------------------------------------------------------------------------------

    def suspend(self, tenant: str, cause: Retry | Broken) -> None:
        """Park what is for this tenant from now on."""
        reason = Reason.STORE_REJECTED if isinstance(cause, Retry) else cause.reason
        self.parked[tenant] = Parked(
            reason, cause.message, 0, self._clock() + self._backoff.delay_s(1, random.random())
        )
        if len(self.parked) > TENANTS_MAX:
            # Its next event waits again; its dead letters are in their topic.
            del self.parked[next(iter(self.parked))]
        self._parked_watch.parked(self._databases.name, len(self.parked))
        log.error(
            "the database of a tenant can't be used: its events become dead letters, which come back by themselves",
            extra={"store": self._databases.name, "tenant": tenant, "reason": reason.value, "error": cause.message},
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Ask parked tenants' databases again, and close those that nobody uses, until `stop`."""
        while not stop.is_set():
            await self.look()
            await sleep_or(stop, LOOK_EVERY_S)

    async def look(self) -> None:
        """Once what is due now."""
        now = self._clock()
        turns = asyncio.Semaphore(max(1, min(PROBES_MAX, self._databases.connections_max // 4)))

        async def ask(tenant: str, parked: Parked) -> None:
            async with turns:
                found = await self._databases.of(tenant).probe()
            if not found:
                self._resume(tenant)
                return
            parked.message = found
            parked.attempts += 1
            parked.next_s = self._clock() + self._backoff.delay_s(parked.attempts + 1, random.random())

        due = [(tenant, parked) for tenant, parked in self.parked.items() if parked.next_s <= now]
        await asyncio.gather(*(ask(tenant, parked) for tenant, parked in due))
        await self._databases.close_idle()
        if now - self._halts_s >= HALTS_EVERY_S:
            self._halts_s = now
            for tenant, (enforcer, _) in list(self._enforcers.items()):
                if enforcer.halts.halted and tenant not in self.parked:
                    await enforcer.halts.recheck()

    def _resume(self, tenant: str) -> None:
        self.parked.pop(tenant, None)
        self._parked_watch.parked(self._databases.name, len(self.parked))
        self.back.set()
        log.warning(
            "the database of a tenant can be used again: its dead letters come back",
            extra={"store": self._databases.name, "tenant": tenant},
        )


class _Desk:
    """What one session keeps, and how far it has come."""

    def __init__(self, lane: Dispatcher, session: Assignment) -> None:
        self._lane = lane
        self._session = session
        self._queues: dict[str, _Queue] = {}
        self._flights: deque[_Flight] = deque()
        self._moved = asyncio.Event()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def has_room(self) -> bool:
        """Wait until there is room for another piece; False when the session ends."""
        while not self._session.ending.is_set():
            events, size = (sum(getattr(q, what) for q in self._queues.values()) for what in ("events", "size"))
            if events < self._lane.events_max and size < BUFFER_BYTES_MAX:
                return True
            self._lane.hurry(self._queues)
            self._moved.clear()
            await unless(self._session.ending, self._moved.wait())
        return False

    def put(self, piece: Piece, parts: Mapping[str, Piece], tasks: asyncio.TaskGroup) -> None:
        flight = _Flight(piece.spans, len(parts))
        self._flights.append(flight)
        for tenant, part in parts.items():
            queue = self._queues.get(tenant)
            if queue is None:
                queue = self._queues[tenant] = _Queue()
                self.tasks[tenant] = tasks.create_task(self._serve(tenant, queue), name=f"tenant {tenant}")
            queue.put(_Part(part, [flight]))
        self._lane.hurry(self._queues)
        self._advance()

    async def _serve(self, tenant: str, queue: _Queue) -> None:
        """All that waits for one tenant, in its order."""
        while queue.parts and not self._session.ending.is_set():
            part = queue.take(self._lane.batch_size)
            await self._lane.finish(tenant, part.piece)
            queue.done(part)
            for flight in part.flights:
                flight.left -= 1
            self._advance()
        del self._queues[tenant], self.tasks[tenant]

    def _advance(self) -> None:
        """What is done up to the first piece that is not."""
        while self._flights and not self._flights[0].left:
            flight = self._flights.popleft()
            self._session.durable |= {partition: span.next for partition, span in flight.spans.items()}
        self._moved.set()


# --- rows that were written late, and what has expired ----------------------------------------------------------------


class TenantCare:
    """Sweeps and expiry in the databases that this process has worked in, one after the other."""

    def __init__(
        self,
        databases: Databases,
        dispatcher: Dispatcher,
        watch: SweepWatch,
        ages: Mapping[int, frozenset[str]],
        caught_up: Callable[[Deadline], Awaitable[bool]],
        *,
        timeout_s: float,
        keeps: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ages` are as those of a Sweeper; `keeps`: rules keep what rows were, for an undo."""
        self._databases = databases
        self._dispatcher = dispatcher
        self._watch = watch
        self._ages = ages
        self._caught_up = caught_up
        self._timeout_s = timeout_s
        self._keeps = keeps
        self._clock = clock
        self._expired_s = clock()

    async def run(self, stop: asyncio.Event) -> None:
        """A round now and then, until `stop`."""
        while not stop.is_set():
            await sleep_or(stop, CARE_EVERY_S)
            await self.round(stop)

    async def round(self, stop: asyncio.Event) -> None:
        """Sweep where something was enforced within the greatest age; let expire in every database."""
        now = self._clock()
        if self._ages and await self._caught_up(Deadline.after(CARE_EVERY_S)):
            since = now - max(self._ages) / 1000 - self._timeout_s - 3 * CARE_EVERY_S
            for tenant in sorted(t for t, at in self._dispatcher.worked_s.items() if at >= since):
                if not stop.is_set() and tenant not in self._dispatcher.parked:
                    store = self._databases.of(tenant, aside=True)
                    await Sweeper(store, self._watch, self._ages, _yes, timeout_s=self._timeout_s).round()
        if self._keeps and now - self._expired_s >= EXPIRY_EVERY_S:
            self._expired_s = now
            for tenant in sorted(self._databases.tenants):
                try:
                    await Expiry(self._databases.of(tenant, aside=True), timeout_s=self._timeout_s).round(stop)
                except OperationError as exc:
                    log.info(
                        "what was kept for an undo and has expired is removed later",
                        extra={"store": self._databases.name, "tenant": tenant, "error": exc.message},
                    )


async def _yes(deadline: Deadline) -> bool:
    return True
