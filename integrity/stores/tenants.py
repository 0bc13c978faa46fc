"""The databases of tenants: opened when there is something to do in them, and never more than so many at once.

A lease is one connection. Who leases waits in turn until another one is given back; the database that was used longest
ago is closed to make room, and one that nobody has used for a while is closed too. What is wrong with one tenant's
database is an answer of that tenant alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

from integrity.core.batch import Batch, TopicPartition
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.outcome import ApplyResult, Broken, Retry
from integrity.core.sweep import Sweep, SweepResult
from integrity.errors import Finding, OperationError, Reason, UnreachableError
from integrity.ports import Deadline

log = logging.getLogger(__name__)

IDLE_S: Final = 60.0
"""How long a database that nobody works in stays open."""


class Database(Protocol):
    """What a lane does in the database of one tenant."""

    name: str

    async def check(self, deadline: Deadline) -> Sequence[Finding]: ...

    async def migrate(self, deadline: Deadline) -> None: ...

    async def progress(
        self, partitions: Sequence[TopicPartition], deadline: Deadline
    ) -> Mapping[TopicPartition, int]: ...

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult: ...

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult: ...

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int: ...

    async def close(self) -> None: ...


class _At(NamedTuple):
    """`aside`: what is done beside the lane has a connection of its own."""

    tenant: str
    aside: bool


class TenantStores:
    """One store that has a database for each tenant."""

    exclusive = False

    def __init__(
        self,
        name: str,
        open_: Callable[[str], Database],
        prepare: Callable[[Database], Awaitable[None]],
        *,
        connections_max: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open_` makes the store of a tenant, which has one connection at the most. `prepare` is awaited when a
        tenant's database is used for the first time, and again after trouble: it raises an OperationError when the
        database is not fit. `timeout_s` bounds one call."""
        self.name = name
        self._open = open_
        self._prepare = prepare
        self.connections_max = connections_max
        self._timeout_s = timeout_s
        self._clock = clock
        self._turns = asyncio.Semaphore(connections_max)
        self._busy = 0
        self._idle: OrderedDict[_At, tuple[Database, float]] = OrderedDict()
        """Those that nobody works in, the one used longest ago first, with when it was."""
        self._prepared: set[str] = set()

    def of(self, tenant: str, *, aside: bool = False) -> TenantStore:
        """The store of one tenant; nothing is opened before it is used."""
        return TenantStore(self, _At(tenant, aside))

    @property
    def tenants(self) -> Collection[str]:
        """Those whose databases were fit when they were used last."""
        return frozenset(self._prepared)

    @property
    def open_now(self) -> int:
        """How many databases are open."""
        return self._busy + len(self._idle)

    # --- what a lane and its supervisor ask of a store as a whole -----------------------------------------------

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        """Nothing: each database is looked at when it is used for the first time."""
        return []

    async def migrate(self, deadline: Deadline) -> None:
        """Nothing; see `check`."""

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        """None: hundreds of databases can't be asked. The lane begins where its group is committed."""
        return {}

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        """See `Inspectable.history`. Raises OperationError: a question is to be about one tenant."""
        raise self._whose()

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        """See `Inspectable.impact`. Raises OperationError, as `history` does."""
        raise self._whose()

    def _whose(self) -> OperationError:
        return OperationError(
            f"Store {self.name} has a database for each tenant.", hint="Ask by a command with --tenant T."
        )

    async def close(self) -> None:
        """Close what nobody works in."""
        idle, self._idle = self._idle, OrderedDict()
        await asyncio.gather(*(store.close() for store, _ in idle.values()))

    async def close_idle(self) -> None:
        """Close what has not been used for a while."""
        before = self._clock() - IDLE_S
        for at in [at for at, (_, used) in self._idle.items() if used <= before]:
            if at in self._idle:
                store, _ = self._idle.pop(at)
                await store.close()

    @asynccontextmanager
    async def lease(self, at: _At) -> AsyncIterator[Database]:
        """The database of a tenant, prepared. What raises while it is leased closes it."""
        async with self._turns:
            self._busy += 1
            store: Database | None = None
            try:
                store = await self._taken(at)
                if at.tenant not in self._prepared and not at.aside:
                    await self._prepare(store)
                    self._prepared.add(at.tenant)
                yield store
            except BaseException:
                self._prepared.discard(at.tenant)
                if store is not None:
                    await store.close()
                    store = None
                raise
            finally:
                self._busy -= 1
                if store is not None:
                    await self._put_back(at, store)

    async def _taken(self, at: _At) -> Database:
        if at in self._idle:
            return self._idle.pop(at)[0]
        # As many as there are turns are busy at the most: so there is one that nobody works in.
        while self.open_now > self.connections_max:
            _, (oldest, _) = self._idle.popitem(last=False)
            await oldest.close()
        return self._open(at.tenant)

    async def _put_back(self, at: _At, store: Database) -> None:
        if at in self._idle:  # two were at work in it
            await store.close()
        else:
            self._idle[at] = store, self._clock()


class _Spoiled(Exception):
    """The connection is not to be used again."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer


class TenantStore:
    """The database of one tenant as a store: opened for each call, when it is not open still.

    A call's deadline begins when its turn has come: nobody is in trouble because others work."""

    exclusive = False

    def __init__(self, stores: TenantStores, at: _At) -> None:
        self.name = stores.name
        self.tenant = at.tenant
        self._stores = stores
        self._at = at

    @property
    def _deadline(self) -> Deadline:
        return Deadline.after(self._stores._timeout_s)

    def ddl(self) -> str:
        return ""

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        async with self._stores.lease(self._at) as store:
            return await store.check(self._deadline)

    async def migrate(self, deadline: Deadline) -> None:
        async with self._stores.lease(self._at) as store:
            await store.migrate(self._deadline)

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        async with self._stores.lease(self._at) as store:
            return await store.progress(partitions, self._deadline)

    async def probe(self) -> str:
        """Why the database can't be used; empty when it can."""
        try:
            async with self._stores.lease(self._at) as store:
                await self._stores._prepare(store)
        except OperationError as exc:
            return exc.message
        return ""

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        try:
            async with self._stores.lease(self._at) as store:
                result = await store.apply(batch, self._deadline)
                if isinstance(result, Broken) or (isinstance(result, Retry) and result.unreachable):
                    raise _Spoiled(result)
                return result
        except _Spoiled as exc:
            assert isinstance(exc.answer, Broken | Retry)
            return exc.answer
        except UnreachableError as exc:
            if exc.unknown:
                return Broken(None, Reason.UNKNOWN_TENANT, exc.message)
            return Retry(exc.message, unreachable=True)
        except OperationError as exc:
            return Broken(None, Reason.SCHEMA_MISMATCH, exc.message)

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        try:
            async with self._stores.lease(self._at) as store:
                return await store.sweep(sweep, self._deadline)
        except OperationError as exc:
            return Retry(exc.message, unreachable=True)

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        async with self._stores.lease(self._at) as store:
            return await store.forget_kept(at_ms, rows_max, self._deadline)

    async def close(self) -> None:
        """Nothing is its own."""
