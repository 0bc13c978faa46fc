"""The loop of one store: poll, decode, enforce, commit.

One task only polls and decodes, whatever happens to the store: so the group never loses the member, and the next
batch is ready while the last is in the database. Others take batches to their end: each assignment is dealt out into
*sessions*, some partitions each, that work side by side as two processes would, so that one computes while another
waits for the database. What was read in a session is never enforced in a later one, and where to read on is what the
store says was enforced. The committed offset is a copy of that, for tools and for `--exit-at-end`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from integrity.core.batch import Span, TopicPartition
from integrity.core.decode.record import Decoder, Record
from integrity.core.decode.wire import SchemaRef
from integrity.core.retry import Backoff
from integrity.errors import OperationError, UnreachableError
from integrity.ports import Bounds, Deadline, Fetch, SchemaSource, Source
from integrity.service.enforce import DivergedError, Enforcer
from integrity.service.truncate import Truncator
from integrity.service.waiting import sleep_or, within
from integrity.service.work import Buffer, Piece, Reader, Returning

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.2
POLL_RECORDS_MAX = 500
"""Decoding holds the loop, and with it every answer of the store that has come: some milliseconds at a time."""
ROOM_TIMEOUT_S = 1.0
"""How long a full buffer is waited for before the fetch is paused, which throws away what was fetched ahead."""
COMMIT_EVERY_S = 1.0
"""A commit costs the broker several milliseconds, and the progress is in the store anyway."""
COMMIT_TIMEOUT_S = 5.0
REVOKE_GRACE_S = 3.0
"""A slow member stops the whole group: after this long the open batch is rolled back."""
STOP_GRACE_S = 10.0
DIVERGED_PAUSE_S = 1.0
TRUNCATES_EVERY_S = 1.0
"""How often it is looked whether the time of a truncate has come."""
LOOKUP_TIMEOUT_S = 30.0
PAIR_WAIT_S = 10.0
"""How long a deletion waits at the end of a partition for the other half of a key change, where the source marks none:
a connector sends both at once."""


class HasProgress(Protocol):
    """A store, as far as the loop itself asks it."""

    name: str

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        """See `Store.progress`."""
        ...


class LaneWatch(Protocol):
    """What the loop tells the outside. Never blocks, never raises."""

    def read(self, store: str, piece: Piece) -> None: ...

    def position(self, store: str, lag: Mapping[TopicPartition, int], oldest_ms: int | None) -> None: ...

    def forget(self, store: str, partitions: Sequence[TopicPartition]) -> None: ...

    def registry_up(self, up: bool) -> None: ...


class Held(NamedTuple):
    """Records that wait for what follows them in their partition, until `end`, where it is read on."""

    records: Sequence[Record]
    end: int
    until: Deadline


class Session:
    """Some partitions of one assignment, from the moment it is given to the moment it is taken away."""

    def __init__(
        self, partitions: Sequence[TopicPartition], enforcer: Enforcer, batch_size: int, room: asyncio.Event
    ) -> None:
        """`room` is set whenever a batch was taken out of the buffer."""
        self.partitions = tuple(partitions)
        self.enforcer = enforcer
        self.buffer = Buffer(batch_size)
        self.unread: deque[Fetch] = deque()
        """What was read and can't be decoded before the schema registry has answered; nothing more is read then."""
        self.learning: asyncio.Task[None] | None = None
        self.waits_for = ""
        self.next: dict[TopicPartition, int] = {}
        """Where each partition is read on; empty until the session has begun."""
        self.held: dict[TopicPartition, Held] = {}
        """What was read from there on and waits for what follows."""
        self.durable: dict[TopicPartition, int] = {}
        self.resets: set[TopicPartition] = set()
        self.changed = asyncio.Event()
        self.room = room
        self.ending = asyncio.Event()

    @property
    def full(self) -> bool:
        return self.buffer.full or bool(self.unread)

    @property
    def trouble(self) -> str:
        return self.enforcer.trouble.message or self.waits_for or ("" if self.next else "is reading its progress")

    def put(self, piece: Piece) -> None:
        self.buffer.put(piece)
        self.changed.set()

    async def take(self) -> Piece | None:
        """The next batch, or None when the session ends."""
        while not self.buffer and not self.ending.is_set():
            self.changed.clear()
            await self.changed.wait()
        if self.ending.is_set():
            return None
        piece = self.buffer.take()
        self.room.set()
        return piece

    def drop(self) -> None:
        """What was read and is not enforced will be read again."""
        self.next.clear()
        self.held.clear()
        self.buffer.clear()
        self.unread.clear()

    def end(self) -> None:
        self.ending.set()
        if self.learning is not None:
            self.learning.cancel()
        self.changed.set()
        self.room.set()


class Dispatch(Protocol):
    """What takes the pieces of a session to their end in place of the lane."""

    @property
    def trouble(self) -> str:
        """As that of the lane."""
        ...

    async def work(self, session: Session) -> None:
        """Until the session ends. Tells it what is durable."""
        ...


class Lane:
    """One store's lane. `run` returns when it was asked to stop, or everything up to the end seen at start is
    enforced."""

    def __init__(
        self,
        *,
        store: HasProgress,
        open_source: Callable[[], Source],
        enforcers: Sequence[Enforcer],
        watch: LaneWatch,
        decoders: Mapping[str, tuple[str, Decoder]],
        batch_size: int,
        returning: Returning | None = None,
        complete: Collection[str] | None = None,
        truncator: Truncator | None = None,
        schemas: SchemaSource | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        """As many sessions work side by side as there are enforcers, which share their halts.

        With `complete`, a partition of which the store has no progress is read from its first record, whatever the
        group has committed; it names the topics that are compacted, so that nothing of their keys is missed. The
        `truncator` carries out truncates, where a rule says that they delete. What decoding a record needs to know is
        asked of `schemas`. With `dispatch`, that takes what was read to the store, or to many."""
        self._store = store
        self._open_source = open_source
        self._source: Source | None = None
        self._enforcers = tuple(enforcers)
        self._watch = watch
        self._decoders = dict(decoders)
        self._reader = Reader(self._decoders, returning, self._partitions)
        self._batch_size = batch_size
        self._topics = frozenset(decoders)
        self._complete = complete
        self._truncator = truncator
        self._schemas = schemas
        self._dispatch = dispatch
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._committed: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] | None = None
        """Where each partition that holds records ended when the lane first joined."""
        self._joined = False
        self._turn = asyncio.Lock()
        self._backoff = Backoff()

    @property
    def trouble(self) -> str:
        """Why the lane does not get on; empty when it does, also when it stands by without a partition."""
        if not self._joined:
            return "has not joined its consumer group yet"
        found = next((session.trouble for session in self._sessions if session.trouble), "")
        found = found or ("" if self._truncator is None else self._truncator.trouble)
        found = found or ("" if self._dispatch is None else self._dispatch.trouble)
        return found or self._enforcers[0].halts.trouble

    def follow(self, decoders: Mapping[str, tuple[str, Decoder]]) -> None:
        """Read these topics from now on, new ones from their first record, and no others."""
        topics, before = frozenset(decoders), self._topics
        for topic in sorted(topics - before):
            log.info("a topic is new and is read", extra={"store": self._store.name, "topic": topic})
        for topic in sorted(before - topics):
            log.warning(
                "a topic is gone: events that it held and that were not read are lost; integrity scan finds their rows",
                extra={"store": self._store.name, "topic": topic},
            )
        if topics == before:
            return
        # What is known of a topic stays, also of one that is gone: its partitions are given back a moment later.
        self._decoders |= {topic: decoders[topic] for topic in topics - self._decoders.keys()}
        self._topics = topics
        # What is left of the ends seen at start: nothing of a topic that is gone can be waited for.
        gone = {partition for partition in self._ends or () if partition.topic in before - topics}
        self._ends = None if self._ends is None else {p: end for p, end in self._ends.items() if p not in gone}
        if self._source is not None:
            self._source.follow(sorted(topics))

    async def caught_up(self, deadline: Deadline) -> bool:
        """Whether all that was in the topics when it was asked is enforced, by this process or others of the group.
        Waits for it, but not beyond the deadline."""
        ends: dict[TopicPartition, int] | None = None
        while self._joined and self._source is not None:
            try:
                found = await self._source.bounds(None, deadline)
            except UnreachableError:
                return False
            ends = ends or {partition: at.end for partition, at in found.items() if at.end > at.first}
            durable = self._durable()
            is_read = all(durable.get(p, found[p].committed or 0) >= end for p, end in ends.items() if p in found)
            if is_read and not await self._truncates_wait():
                return True
            if deadline.remaining_s() <= COMMIT_EVERY_S:
                return False
            await asyncio.sleep(COMMIT_EVERY_S)
        return False

    async def run(self, stop: asyncio.Event, *, to_end: bool = False) -> None:
        """Until `stop` is set; with `to_end`, sets it when this lane has come to the end seen at its first join."""
        failures = 0
        while not stop.is_set():
            try:
                await self._membership(stop, to_end)
            except* UnreachableError as group:
                failures += 1
                error = group.exceptions[0]
                log.warning("Kafka can't be reached", extra={"store": self._store.name, "error": str(error)})
                await sleep_or(stop, self._backoff.delay_s(failures, random.random()))

    async def _membership(self, stop: asyncio.Event, to_end: bool) -> None:
        """One membership in the group, from join to leave. Raises UnreachableError (in a group) when Kafka fails it;
        the next one is made anew, since a failed client can't be mended."""
        source = self._source = self._open_source()
        source.follow(sorted(self._topics))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await source.start(self._on_revoked, self._on_assigned)
                if self._ends is None:
                    found = await source.bounds(None, Deadline.after(LOOKUP_TIMEOUT_S))
                    self._ends = {partition: at.end for partition, at in found.items() if at.end > at.first}
                self._joined = True
                poll = tasks.create_task(self._poll(source, stop), name=f"{self._store.name}: poll")
                aside = [tasks.create_task(self._enforcers[0].halts.watch(), name=f"{self._store.name}: halts")]
                if self._truncator is not None:
                    truncates = self._carry_out_truncates(self._truncator)
                    aside.append(tasks.create_task(truncates, name=f"{self._store.name}: truncates"))
                await self._commit_regularly(stop, to_end)
                for task in aside:
                    task.cancel()
                await poll
                await self._end_sessions(STOP_GRACE_S)
        finally:
            self._joined = False
            await self._end_sessions(0)
            await source.stop()

    # --- truncates ----------------------------------------------------------------------------------------------

    async def _carry_out_truncates(self, truncator: Truncator) -> None:
        """For ever; what it has not finished when it is cancelled is done anew."""
        failures = 0
        while True:
            await asyncio.sleep(TRUNCATES_EVERY_S if not failures else self._backoff.delay_s(failures, random.random()))
            try:
                await truncator.round(self)
                failures = 0
            except OperationError as exc:
                failures += 1
                log.warning(
                    "truncates can't be carried out yet", extra={"store": self._store.name, "error": exc.message}
                )

    async def _truncates_wait(self) -> bool:
        """Whether there is a truncate that is not carried out, or nobody knows."""
        try:
            waiting = [] if self._truncator is None else await self._truncator.waiting()
            # Nobody carries out what a topic told that is gone.
            return any(note.redrive is not None or note.at.topic in self._topics for note in waiting)
        except OperationError:
            return True

    def has(self, partition: TopicPartition) -> bool:
        """See `Place.has`."""
        return any(partition in session.partitions for session in self._sessions)

    async def ends(self) -> Mapping[TopicPartition, int]:
        """See `Place.ends`."""
        assert self._source is not None
        found = await self._source.bounds(None, Deadline.after(LOOKUP_TIMEOUT_S))
        return {partition: at.end for partition, at in found.items() if at.end > at.first}

    async def are_enforced(self, ends: Mapping[TopicPartition, int]) -> bool:
        """See `Place.are_enforced`. Of partitions that another process has, the store says how far they are."""
        assert self._source is not None
        durable, deadline = self._durable(), Deadline.after(LOOKUP_TIMEOUT_S)
        bounds = await self._source.bounds(None, deadline)
        # Nothing can be waited for of a topic that is gone, or was made anew since.
        wanted = {partition: min(end, bounds[partition].end) for partition, end in ends.items() if partition in bounds}
        others = sorted(partition for partition in wanted if partition not in durable)
        if others:
            progress = await self._store.progress(others, deadline)
            # Without a progress the lane begins where the group is committed, as `_place` has it.
            durable |= {p: progress.get(p, bounds[p].committed or 0) for p in others}
        return all(durable[partition] >= end for partition, end in wanted.items())

    # --- the polling side ---------------------------------------------------------------------------------------

    async def _poll(self, source: Source, stop: asyncio.Event) -> None:
        while not stop.is_set():
            full = self._full()
            if full and len(full) == len(self._sessions):
                self._room.clear()
                await within(self._room.wait(), ROOM_TIMEOUT_S)
                full = self._full()
            hold = frozenset(partition for session in full for partition in session.partitions)
            fetch = await source.poll(POLL_TIMEOUT_S, min(POLL_RECORDS_MAX, self._batch_size), hold=hold)
            # The sessions of now, not of before: these records are the first ones that follow their places.
            for session in self._sessions:
                self._take(session, fetch)
            self._tell(fetch)

    def _full(self) -> list[Session]:
        return [session for session in self._sessions if session.full]

    def _take(self, session: Session, fetch: Fetch) -> None:
        """Decode what is the session's, or put it aside until the schemas that it needs are known."""
        if self._schemas is None:
            return self._read(session, fetch)
        positions = {partition: at for partition, at in fetch.positions.items() if partition in session.next}
        if not positions and (session.unread or not session.held):
            return
        records = {partition: found for partition, found in fetch.records.items() if partition in positions}
        own = Fetch(records, positions, fetch.ends)
        if not session.unread and not self._unknown(own):
            return self._read(session, own)
        session.unread.append(own)
        if session.learning is None or session.learning.done():
            assert self._tasks is not None
            session.learning = self._tasks.create_task(
                self._learn(session, self._schemas), name=f"{self._store.name}: schemas"
            )

    def _unknown(self, fetch: Fetch) -> Collection[SchemaRef]:
        assert self._schemas is not None
        return self._schemas.missing(self._reader.originals(fetch.records))

    async def _learn(self, session: Session, schemas: SchemaSource) -> None:
        """Ask for the schemas of what was put aside, however long the registry is away, and decode it in its order."""
        attempt = 0
        while session.unread and not session.ending.is_set():
            unknown = self._unknown(session.unread[0])
            if not unknown:
                self._read(session, session.unread.popleft())
                continue
            try:
                await schemas.learn(unknown)
            except UnreachableError as exc:
                attempt += 1
                session.waits_for = str(exc)
                self._watch.registry_up(False)
                if attempt == 1 or attempt % 20 == 0:
                    log.warning(
                        "records wait for their schemas",
                        extra={"store": self._store.name, "attempt": attempt, "error": str(exc)},
                    )
                await sleep_or(session.ending, self._backoff.delay_s(attempt, random.random()))
            else:
                if attempt:
                    log.info("the schema registry answers again", extra={"store": self._store.name})
                attempt, session.waits_for = 0, ""
                self._watch.registry_up(True)
        session.waits_for = ""
        session.room.set()

    def _read(self, session: Session, fetch: Fetch) -> None:
        piece = Piece()
        for partition, start in session.next.items():
            position = fetch.positions.get(partition, start)
            records = fetch.records.get(partition, ())
            held = session.held.pop(partition, None) if session.held else None
            if held is None:
                if position <= start:
                    continue
                left = self._reader.read(partition, records, piece)
            else:
                position = max(position, held.end)
                # What the broker has and can't give at the moment is waited for.
                is_at_end = not records and position >= fetch.ends.get(partition, position + 1)
                is_over = is_at_end and held.until.remaining_s() <= 0
                if not records and not is_over:
                    session.held[partition] = held._replace(end=position)
                    continue
                left = self._reader.read(partition, (*held.records, *records), piece, is_over=is_over)
            if left:
                is_longer = held is not None and held.records[0].offset == left[0].offset
                until = held.until if held is not None and is_longer else Deadline.after(PAIR_WAIT_S)
                session.held[partition] = Held(left, position, until)
                position = left[0].offset
                if position <= start:
                    continue
            piece.spans[partition] = Span(start, position, reset=partition in session.resets)
            session.resets.discard(partition)
            session.next[partition] = position
        if piece.spans:
            session.put(piece)
            self._watch.read(self._store.name, piece)

    def _partitions(self, topic: str) -> int:
        return 0 if self._source is None else self._source.partitions(topic)

    def _tell(self, fetch: Fetch) -> None:
        durable = self._durable()
        lag = {p: max(0, end - durable.get(p, end)) for p, end in fetch.ends.items()}
        oldest = [at for session in self._sessions if (at := session.buffer.oldest_ms) is not None]
        self._watch.position(self._store.name, lag, min(oldest, default=None))

    def _durable(self) -> dict[TopicPartition, int]:
        """What is enforced of each partition, as far as the sessions have begun."""
        return {p: offset for session in self._sessions for p, offset in session.durable.items()}

    # --- the assignment -----------------------------------------------------------------------------------------

    async def _on_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        await self._end_sessions(REVOKE_GRACE_S)

    async def _on_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        await self._end_sessions(REVOKE_GRACE_S)
        log.info("partitions were assigned", extra={"store": self._store.name, "partitions": len(partitions)})
        if self._tasks is None:
            return
        ordered = sorted(partitions)
        for number, enforcer in enumerate(self._enforcers):
            if dealt := ordered[number :: len(self._enforcers)]:
                session = Session(dealt, enforcer, self._batch_size, self._room)
                self._sessions[session] = self._tasks.create_task(
                    self._work(session), name=f"{self._store.name}: work {number}"
                )

    async def _end_sessions(self, grace_s: float) -> None:
        """Let the open batches finish within the grace, else roll them back; then commit what is durable."""
        async with self._turn:
            ended, self._sessions = self._sessions, {}
            if not ended:
                return
            for session in ended:
                session.end()
            _, late = await asyncio.wait(ended.values(), timeout=grace_s)
            for worker in late:
                worker.cancel()
            if late:
                await asyncio.wait(late)
            await self._commit({p: offset for session in ended for p, offset in session.durable.items()})
            self._watch.forget(self._store.name, [p for session in ended for p in session.partitions])

    # --- the enforcing side -------------------------------------------------------------------------------------

    async def _work(self, session: Session) -> None:
        await self._begin(session)
        if self._dispatch is not None:
            return await self._dispatch.work(session)
        while (piece := await session.take()) is not None:
            try:
                await self._until(session, piece)
            except DivergedError as exc:
                log.warning(
                    "the store's progress is not where this lane reads; it reads on from there",
                    extra={"store": self._store.name, "error": str(exc)},
                )
                session.drop()
                # Perhaps another process owns these partitions by now: it is not fought over them while Kafka says so.
                await sleep_or(session.ending, DIVERGED_PAUSE_S * random.uniform(0.5, 1.0))
                await self._begin(session)
            else:
                session.durable |= {partition: span.next for partition, span in piece.spans.items()}

    async def _until(self, session: Session, piece: Piece) -> None:
        """Enforce; when the session ends while a failing store is waited for, or an event is worked off in parts, do
        not wait on."""
        enforcing = asyncio.ensure_future(session.enforcer.enforce(piece))
        ending = asyncio.ensure_future(session.ending.wait())
        try:
            await asyncio.wait({enforcing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not enforcing.done() and (session.enforcer.trouble.message or session.enforcer.in_parts):
                enforcing.cancel()
            await enforcing
        finally:
            ending.cancel()
            if not enforcing.done():
                enforcing.cancel()
                await asyncio.wait({enforcing})

    async def _begin(self, session: Session) -> None:
        """Find where each partition is read on, however long the store or Kafka is away."""
        assert self._source is not None
        partitions = sorted(session.partitions)
        progress: Mapping[TopicPartition, int] = {}
        bounds: Mapping[TopicPartition, Bounds] = {}
        attempt = 0
        while not bounds:
            try:
                deadline = Deadline.after(LOOKUP_TIMEOUT_S)
                progress = await self._store.progress(partitions, deadline)
                bounds = await self._source.bounds(partitions, deadline)
            except UnreachableError as exc:
                attempt += 1
                session.enforcer.trouble.message = exc.message
                log.warning("the progress can't be read yet", extra={"store": self._store.name, "error": exc.message})
                await sleep_or(session.ending, self._backoff.delay_s(attempt, random.random()))
            if session.ending.is_set():
                return
        session.enforcer.trouble.message = ""
        self._reader.forget()
        places: dict[TopicPartition, int] = {}
        for partition in partitions:
            place, reset = self._place(partition, progress.get(partition), bounds[partition])
            places[partition] = place
            if reset:
                session.resets.add(partition)
        session.durable = dict(places)
        await self._source.seek(places)
        session.next.update(places)

    def _place(self, partition: TopicPartition, enforced: int | None, bounds: Bounds) -> tuple[int, bool]:
        """Where to read on, and whether that overrules the store's progress."""
        fields = {
            "store": self._store.name,
            "topic": partition.topic,
            "partition": partition.partition,
            "enforced": enforced,
            "committed": bounds.committed,
            "first": bounds.first,
            "end": bounds.end,
        }
        place = bounds.committed if enforced is None and self._complete is None else enforced
        if place is None:
            if self._complete is not None and partition.topic in self._topics:
                self._begin_whole(partition, bounds.first, fields)
            return bounds.first, False
        if enforced is not None and bounds.committed is None:
            # The broker erases the commits of a topic that is deleted. A replay is safe where sources give versions.
            log.warning(
                "the group has no commit of this partition (made anew?): it is read from its beginning", extra=fields
            )
            return bounds.first, True
        if enforced is not None and bounds.committed is not None and bounds.committed > enforced:
            # A store that was restored from a backup needs the effects again: its ledger is the truth.
            log.warning("the group's commit is ahead of what the store has enforced: the store counts", extra=fields)
        if place > bounds.end:
            log.warning(
                "the partition ends before what is enforced (made anew?): it is read from its beginning", extra=fields
            )
            return bounds.first, True
        if place < bounds.first:
            log.error("records were removed by retention before they were read: their deletions are lost", extra=fields)
            place = bounds.first
        return place, enforced is not None and place != enforced

    def _begin_whole(self, partition: TopicPartition, first: int, fields: Mapping[str, object]) -> None:
        """Say that everything of a partition is read, and when that is not all that there was."""
        assert self._complete is not None
        log.info("a copy reads a partition from its first record", extra=fields)
        if first > 0 and partition.topic not in self._complete:
            log.warning(
                "the topic is not compacted and has lost its first records: parents that have not changed since are not"
                " in the copy until a snapshot reads them again",
                extra=fields,
            )

    # --- offsets ------------------------------------------------------------------------------------------------

    async def _commit_regularly(self, stop: asyncio.Event, to_end: bool) -> None:
        while not stop.is_set():
            await sleep_or(stop, 0.2 if to_end else COMMIT_EVERY_S)
            await self._commit(self._durable())
            if to_end and await self._at_end():
                stop.set()

    async def _commit(self, durable: Mapping[TopicPartition, int]) -> None:
        news = {p: offset for p, offset in durable.items() if self._committed.get(p) != offset}
        if news and self._source is not None and await self._source.commit(news, Deadline.after(COMMIT_TIMEOUT_S)):
            self._committed |= news

    async def _at_end(self) -> bool:
        """Is everything up to the ends seen at start enforced, by this process or by another of the group?"""
        durable = self._durable()
        ends = self._ends or {}
        others = [p for p, end in ends.items() if durable.get(p, -1) < end]
        if not others:
            return not await self._truncates_wait()
        mine = {partition for session in self._sessions for partition in session.partitions}
        if not mine.isdisjoint(others):
            return False
        assert self._source is not None
        try:
            bounds = await self._source.bounds(others, Deadline.after(COMMIT_TIMEOUT_S))
        except UnreachableError:
            return False
        return all((bounds[p].committed or 0) >= ends[p] for p in others) and not await self._truncates_wait()
