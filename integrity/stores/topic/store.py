"""Compacted topics as a dependent store.

Effects, ledger and progress of a batch are one Kafka transaction. The children of a key are found in a local view,
which before a batch is applied has read every child topic to the end it had after `apply` began. A topic has no locks:
one process at a time does the work, and taking over fences whoever did it before. A topic has no compare-and-set
either: what an owner wrote between look and act is noticed when the view reads on, mended and counted.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar, cast

import msgspec

from integrity.core.batch import Batch, TopicPartition, standing
from integrity.core.change import Op
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.outcome import Applied, ApplyResult, Broken, Diverged, Rejected, Retry, TooLarge, Unfinished
from integrity.core.parts import TooManyRows
from integrity.core.rules.graph import derived_topic
from integrity.core.sweep import Sweep, SweepResult, Swept, TooManyLate, extents
from integrity.core.truncate import KnownKeys
from integrity.core.undo import Portion, UndoResult
from integrity.errors import Finding, LedgerError, OperationError, Reason, UnreachableError
from integrity.ports import Deadline
from integrity.stores.rule import StoreRule, merged
from integrity.stores.topic import records, undo
from integrity.stores.topic.clients import Closer
from integrity.stores.topic.enforce import Enforcement, HeldBack, Refused
from integrity.stores.topic.faults import CLIENT_ERRORS, Unsent, meaning
from integrity.stores.topic.fitness import Fitness, unreachable
from integrity.stores.topic.inspect import Inspector
from integrity.stores.topic.reader import Reader, TopicGone, TopicMadeAnew
from integrity.stores.topic.records import Mark, ReadRecord, Write, WritesRecord
from integrity.stores.topic.scratch import Scratch
from integrity.stores.topic.state import State
from integrity.stores.topic.sweep import SweepWork
from integrity.stores.topic.values import RowRule
from integrity.stores.topic.writer import BATCH_BYTES, Writer

_T = TypeVar("_T")

ROWS_MAX: Final = 20_000
"""Children of one dependent that a transaction acts on: some seconds. Nobody who reads committed records only may read
past a transaction that is open."""
_READ_ON_S: Final = 30.0
"""How often an idle view reads on, so that it misses no null record and mends soon."""
_VIEW_AGE_MAX_S: Final = 300.0
"""A view that has not been at the end for longer is read anew: compaction may have removed null records unseen."""
_DESTRUCTIVE: Final = (Op.DELETED, Op.MOVED, Op.GONE, Op.MISSING)

_log = logging.getLogger(__name__)


class LedgerUnreadable(Exception):
    """A record of the ledger's topic is none of ours."""


class TopicStore:
    """A Store over compacted topics.

    `client` are connection settings as aiokafka takes them. The view lies in a file below `state_dir` (a directory
    for temporary files when None), which is deleted on close. `timeout_s` bounds a single try of `apply` as its
    deadline does, `rows_max` the children of one dependent that a transaction acts on.
    """

    exclusive = True

    def __init__(
        self,
        name: str,
        client: Mapping[str, object],
        rules: Mapping[str, Sequence[StoreRule]],
        *,
        lane: str,
        schema: str = "integrity",
        timeout_s: float = 30.0,
        state_dir: Path | None = None,
        copies: Mapping[str, Sequence[StoreRule]] = MappingProxyType({}),
        rows_max: int = ROWS_MAX,
    ) -> None:
        """`copies` is what removes or marks rows of copies: only `impact` looks at it."""
        self.name = name
        self._rows_max = rows_max
        self._in_parts: set[str] = set()
        """Events of which the last part acted on as many children as it may."""
        self.repairs = 0
        """Records published again since an owner's write came between look and act."""
        self._client = client
        self._rules = rules
        self._lane = lane
        self._timeout_s = timeout_s
        self._state_dir = state_dir
        self._row_rules = [RowRule(rule) for of_entity in rules.values() for rule in of_entity]
        dependents = [each.rule.dependent for each in self._row_rules]
        self._ledger = TopicPartition(f"{schema}.ledger.{name}", 0)
        self._derived = sorted(
            {
                derived_topic(each.rule.rows.entity)
                for each in self._row_rules
                if each.rule.rows and each.rule.rows.published
            }
        )
        self._derived_partitions: Mapping[str, int] = {}
        self._children = sorted({dependent.target.name for dependent in dependents})
        self._fitness = Fitness(client, self._ledger.topic, dependents)
        self._inspector = Inspector(name, client, merged(rules, copies), self._ledger, lane=lane)
        self._closer = Closer()
        self._reader = Reader(client, self._take, self._closer)
        self._state: State | None = None
        self._scratch: Scratch | None = None
        # One thread: what is given up waiting for still ends before what comes after it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"view-{name}")
        self._lock = asyncio.Lock()
        self._writer: Writer | None = None
        self._undo_writer: Writer | None = None
        self._undo_lock = asyncio.Lock()
        self._fenced = False
        self._skipped_told = 0
        self._batch_bytes = BATCH_BYTES
        self._read_at_s: float | None = None
        self._wake = asyncio.Event()
        self._attendant: asyncio.Task[None] | None = None

    @property
    def skipped(self) -> int:
        """How often a rule has met a child record that is no row of it: no JSON object, a field missing or wrong."""
        return 0 if self._state is None else self._state.skipped

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        findings, bytes_max = await self._fitness.check(deadline)
        if bytes_max is not None:
            # A batch of small records must never be refused for its size.
            self._batch_bytes = min(BATCH_BYTES, bytes_max)
        return findings

    def ddl(self) -> str:
        return self._fitness.ddl()

    async def migrate(self, deadline: Deadline) -> None:
        await self._fitness.migrate(deadline)

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        async with self._lock:
            if not partitions:
                self._discard_writer()  # a process that stands by must not disturb the owner
                return {}
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._take_over()
                    known = await self._in_thread(self._opened().progress)
            except BaseException as exc:
                await self._give_up(exc)
                fault = self._fault(exc)
                if fault is None:
                    raise
                raise fault from exc
        if self._attendant is None or self._attendant.done():
            self._attendant = asyncio.create_task(self._attend(), name=f"view of {self.name}")
        self._wake.set()
        return {at: known[at] for at in partitions if at in known}

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        if self._attendant is not None and self._attendant.done():
            self._attendant.result()  # it is meant never to end
        return await self._tried(lambda: self._apply(batch), deadline)

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        result = await self._tried(lambda: self._sweep(sweep), deadline)
        # Fenced: the process that owns the store now sweeps.
        assert isinstance(result, Swept | Retry | Rejected | Broken | TooLarge | Diverged), "a sweep applies no batch"
        return Swept() if isinstance(result, Diverged) else result

    async def _tried(self, call: Callable[[], Awaitable[_T]], deadline: Deadline) -> _T | ApplyResult:
        """One try, alone on the store; what an event, record or server did becomes a result."""
        async with self._lock:
            taken = self._reader.taken
            try:
                async with asyncio.timeout(min(self._timeout_s, deadline.remaining_s())):
                    return await call()
            except TooManyLate as exc:
                await self._give_up(exc)
                return exc.result
            except Refused as exc:
                await self._give_up(exc)
                return Rejected(exc.dependent, exc.reason, exc.message)
            except HeldBack as exc:
                await self._give_up(exc)
                return exc.result
            except TopicGone as exc:
                await self._give_up(exc)
                return Broken(self._dependent_of(exc.topic), Reason.SCHEMA_MISMATCH, "The topic does not exist.")
            except LedgerUnreadable as exc:
                await self._give_up(exc)
                return Broken(None, Reason.STORE_REJECTED, str(exc))
            except sqlite3.Error as exc:
                await self._give_up(exc)
                return Retry(f"The file of the view cannot be used ({type(exc).__name__}).")
            except (Unsent, *CLIENT_ERRORS) as exc:
                result = self._slow(taken) if isinstance(exc, TimeoutError) else meaning(exc)
                await self._give_up(exc)
                self._fenced = isinstance(result, Diverged)
                return result
            except BaseException as exc:
                await self._give_up(exc)
                raise

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        return await self._inspector.history(entity, key, deadline)

    async def clock_ms(self, deadline: Deadline) -> int | None:
        return None

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        return await self._inspector.impact(question, deadline)

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """See `Truncatable.notes`."""
        return await self._of_state(lambda state: state.notes(), (), deadline)

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        spec = self._rules[entity][0].spec
        none = KnownKeys((), None)
        return await self._of_state(lambda state: state.known_keys(entity, spec, after, keys_max), none, deadline)

    async def _of_state(self, question: Callable[[State], _T], nothing: _T, deadline: Deadline) -> _T:
        """What the ledger holds, as its owner has it; `nothing` when another process owns the store."""

        async def ask() -> _T:
            if self._fenced or self._writer is None:
                return nothing
            state = self._opened()
            return await self._in_thread(lambda: question(state))

        result = await self._tried(ask, deadline)
        if isinstance(result, Retry | Broken | Rejected | Diverged):
            raise UnreachableError(f"Store {self.name}: the ledger can't be read.")
        return cast("_T", result)

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.kept`."""
        return await self._inspector.ask(
            [*self._children, self._ledger.topic], lambda s: undo.look(s, portion), deadline
        )

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.put_back`. Takes nothing over from the process that works on the store."""
        async with self._undo_lock:
            topics = [*self._children, self._ledger.topic]
            found = await self._inspector.ask(topics, lambda s: undo.put_back(s, portion, self._ledger), deadline)
            if not found.writes:
                return found.looked
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    if self._undo_writer is None:
                        await self._closer.wait()  # as in a take-over
                        writer = Writer(self._client, f"{self._lane}.{self.name}.undo", batch_bytes=self._batch_bytes)
                        self._undo_writer = writer
                        await writer.start()
                    await self._undo_writer.begin()
                    await self._undo_writer.send(found.writes)
                    await self._undo_writer.delivered()
                    await self._undo_writer.commit()
            except (Unsent, *CLIENT_ERRORS) as exc:
                self._discard_undo_writer()
                answer = meaning(exc)
                if isinstance(answer, Diverged):
                    return Retry("Another undo of this store has begun.")
                assert isinstance(answer, Retry | Rejected | Broken), "an error is no success"
                return answer
            return found.looked

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """See `Undoable.forget_kept`."""
        result = await self._tried(lambda: self._forget_kept(at_ms, rows_max), deadline)
        match result:
            case int():
                return result
            case Retry(message) | Rejected(message=message) | Broken(message=message):
                raise OperationError(f"Store {self.name}: what has expired could not be removed. {message}")
            case _:
                return 0  # fenced: the process that owns the store now does it

    async def _forget_kept(self, at_ms: int, rows_max: int) -> int:
        if self._fenced or self._writer is None:
            return 0
        state = self._opened()
        numbers = await self._in_thread(lambda: state.expired(at_ms, rows_max))
        if not numbers:
            return 0

        def work() -> Generator[list[Write], None, int]:
            for number in numbers:
                state.put_kept(number, None)
            yield [Write(self._ledger, records.undo_key(number), None, (), None) for number in numbers]
            return len(numbers)

        return await self._publish(work())

    def _discard_undo_writer(self) -> None:
        if self._undo_writer is not None:
            self._closer.stop(self._undo_writer.discard(), "stop the producer")
            self._undo_writer = None

    async def close(self) -> None:
        self._discard_undo_writer()
        await self._inspector.close()
        if self._attendant is not None:
            self._attendant.cancel()
            await asyncio.wait({self._attendant}, timeout=3)
        self._discard_writer()
        self._reader.close()
        await self._closer.wait()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._state is not None:
            self._state.close()
            self._state = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _slow(self, taken: int) -> Retry:
        """Why the time was not enough."""
        if self._reader.blocked is not None:
            return Retry(f"A transaction on topic {self._reader.blocked} is open: what follows it cannot be read yet.")
        if self._reader.taken > taken:
            return Retry("The view of the child topics is still being read.")
        return Retry("Kafka does not answer.", unreachable=True)

    def _fault(self, exc: BaseException) -> OperationError | None:
        """What `progress` raises for it; None: it as it is."""
        match exc:
            case TopicGone() if exc.topic == self._ledger.topic:
                return LedgerError(f"The ledger topic {exc.topic} does not exist.", hint="Run integrity migrate.")
            case TopicGone():
                return OperationError(f"Topic {exc.topic} does not exist.", hint="Create it, or mend the rule.")
            case LedgerUnreadable():
                return LedgerError(str(exc), hint="Look at its newest records: something else writes there.")
            case _ if isinstance(exc, CLIENT_ERRORS):
                return unreachable(self._client)
            case sqlite3.Error():
                return OperationError(f"The file of the view of {self.name} cannot be used ({type(exc).__name__}).")
            case _:
                return None

    # --- owning the store

    async def _take_over(self) -> None:
        """Fence whoever owned the store, and learn from the ledger what came of its last transaction."""
        self._discard_writer()
        # While the former writer is still aborting, the coordinator may take the new one for the fenced one.
        await self._closer.wait()
        writer = Writer(self._client, f"{self._lane}.{self.name}", batch_bytes=self._batch_bytes)
        self._writer = writer
        # Before it is written to: some servers make a topic that is missing.
        found = await self._reader.partitions([*self._children, self._ledger.topic, *self._derived])
        self._derived_partitions = {topic: sum(at.topic == topic for at in found) for topic in self._derived}
        await writer.start()
        self._fenced = False
        await self._read_ledger()

    def _discard_writer(self) -> None:
        if self._writer is not None:
            self._closer.stop(self._writer.discard(), "stop the producer")
            self._writer = None

    async def _give_up(self, exc: BaseException) -> None:
        """After a failed try: nothing of it stays, here or in Kafka; what is unknown is read from the ledger."""
        if isinstance(exc, sqlite3.Error):
            await self._lose_view()
        elif self._state is not None:
            rollback = self._thread.submit(self._state.rollback)
            await asyncio.shield(asyncio.wrap_future(rollback))
        self._discard_writer()
        _log.debug("A try to change the topics failed.", extra={"action": "give_up", "store": self.name}, exc_info=exc)

    async def _attend(self) -> None:
        """Read on after each batch and from time to time: to mend soon, and to keep the view from growing stale."""
        while True:
            try:
                async with asyncio.timeout(_READ_ON_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            async with self._lock:
                if self._writer is None:
                    continue
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._look()
                except (Unsent, TopicGone, LedgerUnreadable, sqlite3.Error, *CLIENT_ERRORS) as exc:
                    # The next batch meets the same and reports it.
                    fenced = isinstance(exc, (Unsent, *CLIENT_ERRORS)) and isinstance(meaning(exc), Diverged)
                    await self._give_up(exc)
                    self._fenced = self._fenced or fenced

    # --- the view

    def _opened(self) -> State:
        if self._state is None:
            directory = self._state_dir
            if directory is None:
                self._scratch = self._scratch or Scratch()
                directory = self._scratch.path
            file = directory / f"view-{self.name}-{uuid.uuid4().hex}.sqlite"
            self._state = State(file, self._row_rules, lane=self._lane)
        return self._state

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _lose_view(self) -> None:
        """The view's file is not to be trusted any more: a new one, elsewhere, is built from the topics."""
        self._reader.forget()
        self._read_at_s = None
        state, self._state = self._state, None
        if state is not None:
            closing = self._thread.submit(state.close)
            await asyncio.shield(asyncio.wrap_future(closing))
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    async def _take(self, read: list[ReadRecord]) -> None:
        state = self._opened()
        try:
            await self._in_thread(lambda: state.take(read, self._ledger.topic))
        except (msgspec.DecodeError, ValueError) as exc:
            raise LedgerUnreadable(f"A record of topic {self._ledger.topic} is none of this program's.") from exc

    async def _look(self) -> None:
        """Bring the view to the ends of the topics, owners' hidden writes mended."""
        await self._read_on()
        while await self._mend():
            await self._read_on()

    async def _read_on(self) -> None:
        """Read the child topics to their ends."""
        if self._read_at_s is not None and time.monotonic() - self._read_at_s > _VIEW_AGE_MAX_S:
            await self._forget()
            await self._read_ledger()
        began_s = time.monotonic()
        try:
            await self._reader.read_to_end([*self._children, self._ledger.topic])
        except TopicMadeAnew:
            await self._forget()
            await self._read_ledger()
            await self._reader.read_to_end([*self._children, self._ledger.topic])
        await self._in_thread(self._opened().at_end)
        self._read_at_s = began_s
        self._tell_skipped()

    def _tell_skipped(self) -> None:
        if self.skipped > self._skipped_told:
            _log.warning(
                "Records of child topics are no rows of their rule, and are left alone.",
                extra={"action": "skip", "store": self.name, "records": self.skipped},
            )
        self._skipped_told = self.skipped

    async def _read_ledger(self) -> None:
        """Read the ledger alone: it tells which records of the child topics are ours."""
        try:
            await self._reader.read_to_end([self._ledger.topic])
        except TopicMadeAnew:
            await self._forget()
            await self._reader.read_to_end([self._ledger.topic])

    async def _forget(self) -> None:
        self._reader.forget()
        await self._in_thread(self._opened().clear)
        self._read_at_s = None

    async def _mend(self) -> bool:
        """Publish again what an owner wrote between look and act; tell whether there was anything."""
        state = self._opened()
        if not state.overtaken:
            return False
        mends = await self._in_thread(lambda: list(state.mends()))
        if mends:
            writer = self._owned()
            await writer.begin()
            await writer.send(
                [
                    Write(
                        TopicPartition(at.topic, at.partition),
                        at.key,
                        value,
                        records.marked(overtaken.headers, Mark(overtaken.offset)),
                        self._dependent_of(at.topic),
                    )
                    for at, overtaken, value in mends
                ]
            )
            await self._commit(writer)
            self.repairs += len(mends)
            _log.warning(
                "An owner wrote to children while they were acted on; its records were published again.",
                extra={"action": "repair", "store": self.name, "records": len(mends)},
            )
        state.overtaken.clear()
        return bool(mends)

    # --- a batch

    def _owned(self) -> Writer:
        assert self._writer is not None, "the store is taken over"
        return self._writer

    async def _apply(self, batch: Batch) -> ApplyResult:
        if self._fenced:
            return Diverged("Another process has taken over this store.")
        if self._writer is None:
            await self._take_over()
        if any(change.op in _DESTRUCTIVE for change in batch.changes):
            await self._look()
        state = self._opened()
        counts = standing(batch, await self._in_thread(state.progress))
        if isinstance(counts, str):
            return Diverged(counts)
        enforcement = Enforcement(
            state,
            self._rules,
            batch,
            counts,
            ledger=self._ledger,
            lane=self._lane,
            starts=self._reader.starts,
            derived_partitions=self._derived_partitions,
            rows_max=self._rows_max,
        )
        event = batch.changes[0].origin.event_id if len(batch.changes) == 1 else ""
        if event not in self._in_parts:
            try:
                return Applied(await self._publish(enforcement.run()))
            except TooManyRows as exc:
                await self._back_out(exc)
            if not event:
                return TooLarge()
        effects = await self._publish(enforcement.part() if batch.spans else enforcement.part_alone())
        rows = sum(effect.rows for effect in effects)
        if not batch.spans:
            return Unfinished(rows, effects)
        # When there were fewer than there might be, it is probably done: a whole finds out.
        (self._in_parts.add if rows >= self._rows_max else self._in_parts.discard)(event)
        return Unfinished(rows)

    async def _back_out(self, exc: TooManyRows) -> None:
        """Nothing of what was done so far is to be committed."""
        if self._owned().is_open:
            await self._give_up(exc)
            await self._take_over()
        else:
            await self._in_thread(self._opened().rollback)

    async def _sweep(self, sweep: Sweep) -> Swept | TooLarge:
        if self._fenced or self._writer is None:
            return Swept()  # another process owns the store
        state = self._opened()
        place = await self._in_thread(lambda: state.swept(sweep.age_ms))
        if place is not None:
            if not await self._in_thread(lambda: state.fates_due(place, sweep.until_ms, 1)):
                return Swept()
            await self._look()
        batch = Batch((), {}, sweep.at_ms)
        enforcement = Enforcement(
            state,
            self._rules,
            batch,
            {},
            ledger=self._ledger,
            lane=self._lane,
            starts=self._reader.starts,
            derived_partitions=self._derived_partitions,
        )
        for extent in extents(sweep):
            try:
                work = SweepWork(state, self._rules, sweep, enforcement, self._lane, extent, self._rows_max)
                return await self._publish(work.run())
            except TooManyRows as exc:
                await self._back_out(exc)
        return TooLarge()

    async def _publish(self, work: Generator[list[Write], None, _T]) -> _T:
        state, writer = self._opened(), self._owned()
        ended: list[_T] = []

        def step() -> list[Write] | None:
            try:
                return next(work)
            except StopIteration as stopped:
                ended.append(stopped.value)
                return None

        await self._in_thread(state.begin)
        while (writes := await self._in_thread(step)) is not None:
            if writes and not writer.is_open:
                await writer.begin()
            await writer.send(writes)
        if not writer.is_open:
            await writer.begin()
        ours = await self._commit(writer)
        await self._in_thread(state.commit)
        if ours:
            self._wake.set()
        return ended[0]

    async def _commit(self, writer: Writer) -> bool:
        """End the open transaction; tell whether it wrote to a child topic. The ledger notes which records of the
        child topics are ours: whoever reads on must know."""
        ranges = await writer.delivered()
        for at in [at for at in ranges if at == self._ledger or at.topic in self._derived]:
            del ranges[at]  # nobody's children
        await writer.send(
            [
                Write(self._ledger, records.writes_key(at), records.encode(WritesRecord(tuple(runs))), (), None)
                for at, runs in ranges.items()
            ]
        )
        await writer.delivered()
        await writer.commit()
        for at, runs in ranges.items():
            self._opened().set_ours(at, tuple(runs))
        return bool(ranges)

    def _dependent_of(self, topic: str) -> str | None:
        for each in self._row_rules:
            if each.rule.dependent.target.name == topic:
                return each.rule.id
        return None
