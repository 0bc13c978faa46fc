"""MongoDB as a store: one transaction a batch, over any number of processes.

A transaction reads a snapshot and takes no locks, so that two of them could each act on what the other is about to
change (a key moved to b here, b deleted there). Therefore everything that a decision rests on is not only read but
written: the progress, the head of every key of an event, and of every key that a key change or a default leads to.
Whoever comes second gets a write conflict, changes nothing, and the lane tries again. The price: two processes that
both lead references to the same default key are never at work at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

import pymongo
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import ConfigurationError, InvalidURI, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

from integrity.core.batch import Batch, TopicPartition
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.outcome import Applied, ApplyResult, Broken, Rejected, Retry, TooLarge, Unfinished
from integrity.core.parts import TooManyRows
from integrity.core.sweep import Sweep, SweepResult, Swept, TooManyLate, extents
from integrity.core.truncate import KnownKeys
from integrity.core.undo import Looked, Portion, UndoResult
from integrity.errors import Finding, SettingsError
from integrity.ports import Deadline, Waiting
from integrity.stores.descent import of_branch
from integrity.stores.mongo import inspect, setup
from integrity.stores.mongo.attempt import Attempt, LooksAhead
from integrity.stores.mongo.ledger import Document, Ledger, commands, offsets
from integrity.stores.mongo.sweep import Sweeper
from integrity.stores.mongo.undo import Undoer, forget
from integrity.stores.mongo.values import CODECS
from integrity.stores.mongo.verdict import CAUSES, verdict_of
from integrity.stores.rule import StoreRule, merged

ROWS_MAX: Final = 20_000
"""Documents of one dependent that a transaction acts on: a second or two, of the sixty that a server allows."""
SELECT_MS: Final = 3_000
"""How long the driver looks for a primary before it gives up; an election takes about a second."""
_SOCKET_MS: Final = 60_000
"""The last resort for a call outside every deadline; the server's own limit for a transaction."""
_ABORT_S: Final = 2.0
_COMMITS_MAX: Final = 4
"""How often one commit is sent while its result is unknown. It is the same commit, so it takes effect once."""


class MongoStore:
    """A Store over the collections of one database, the one that the URL names.

    `lane` is the consumer group whose progress this is. `schema` is the prefix of the ledger's collections in the
    same database. `timeout_s` bounds every call beside its deadline, `rows_max` the documents of one dependent that a
    transaction acts on. Raises SettingsError for a wrong URL.
    """

    exclusive = False

    def __init__(
        self,
        name: str,
        url: str,
        rules: Mapping[str, Sequence[StoreRule]],
        *,
        lane: str,
        schema: str = "integrity",
        pool_size: int = 4,
        timeout_s: float = 30.0,
        copies: Mapping[str, Sequence[StoreRule]] = MappingProxyType({}),
        rows_max: int = ROWS_MAX,
    ) -> None:
        """`copies` is what removes or marks rows of copies: only `impact` looks at it."""
        self.name = name
        self._rows_max = rows_max
        self._in_parts: set[str] = set()
        """Events of which the last part acted on as many documents as it may."""
        self._url = url
        self._rules = rules
        self._looked_at = merged(rules, copies)
        self._lane = lane
        self._schema = schema
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._database_name = database_of(name, url)
        self._at = f"MongoDB at {hosts_of(url)} (store {name})"
        self._client: AsyncMongoClient[Document] | None = None
        self._looks_ahead = LooksAhead()

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        """See `Store.check`: transactions that hold, collections, indexes, the ledger's version."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await setup.check(self._ledger(), self._rules)

    def ddl(self) -> str:
        """The commands of `migrate`, for mongosh."""
        return commands(self._database_name, self._schema)

    async def migrate(self, deadline: Deadline) -> None:
        """See `Store.migrate`. Raises LedgerError when the ledger is newer than this program."""
        with setup.reach(self._at, self._budget_s(deadline)):
            await setup.migrate(self._ledger())

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        """See `Store.progress`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return offsets(await self._ledger().progress(partitions))

    async def waiting(self, records_max: int, deadline: Deadline) -> Sequence[Waiting]:
        """See `Outbox.waiting`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await self._ledger().waiting(records_max)

    async def published(self, ids: Sequence[object], deadline: Deadline) -> None:
        """See `Outbox.published`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            await self._ledger().clear_outbox(ids)

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        """See `Store.apply`. Tries once; only a commit of unknown result is sent again, which is the same commit."""
        event = batch.changes[0].origin.event_id if len(batch.changes) == 1 else None
        if event not in self._in_parts:
            try:
                return await self._try(batch, deadline, part=False)
            except TooManyRows:
                if event is None:
                    return TooLarge()
        result = await self._try(batch, deadline, part=True)
        if isinstance(result, Unfinished) and batch.spans:
            assert event is not None
            # When there were fewer than there might be, it is probably done: a whole transaction finds out.
            (self._in_parts.add if result.rows >= self._rows_max else self._in_parts.discard)(event)
        return result

    async def _try(self, batch: Batch, deadline: Deadline, *, part: bool) -> ApplyResult:
        attempt = Attempt(self._ledger(), self._rules, batch, self._looks_ahead, self._rows_max, part=part)
        try:
            async with self._transaction(deadline) as session:
                result = await attempt.run(session)
                if isinstance(result, Applied | Unfinished):
                    await commit(session, deadline)
                return result
        except CAUSES as exc:
            return of_branch(verdict_of(exc, attempt.dependent), attempt.below)

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        """See `Inspectable.history`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await inspect.history(self._ledger(), self._looked_at[entity][0].spec, entity, key)

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        """See `Inspectable.impact`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return [await inspect.impact(self._ledger(), rule, question) for rule in self._looked_at[question.entity]]

    async def clock_ms(self, deadline: Deadline) -> int | None:
        """See `Examinable.clock_ms`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await inspect.clock_ms(self._ledger())

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        """See `Sweepable.sweep`."""
        sweeper = Sweeper(self._ledger(), self._rules, sweep, self._rows_max)
        try:
            with pymongo.timeout(self._budget_s(deadline)):
                page = await sweeper.look()
                if page is None:
                    return Swept()
                if not page.late:
                    return Swept(more=page.more) if await sweeper.move(page) else Swept()
            for extent in extents(sweep):
                try:
                    async with self._transaction(deadline) as session:
                        result = await sweeper.repair(page, extent, session)
                        if result is None:
                            return Swept()
                        await commit(session, deadline)
                        return result
                except TooManyRows:
                    continue
            return TooLarge()
        except TooManyLate as exc:
            return exc.result
        except CAUSES as exc:
            answer = of_branch(verdict_of(exc, sweeper.dependent), sweeper.below)
            assert isinstance(answer, Retry | Rejected | Broken), "an error is no success"
            return answer

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """See `Truncatable.notes`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await self._ledger().notes()

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await self._ledger().known_keys(entity, self._rules[entity][0].spec, after, keys_max)

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.kept`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await Undoer(self._ledger(), self._rules, portion).look()

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.put_back`."""
        undoer = Undoer(self._ledger(), self._rules, portion)
        try:
            async with self._transaction(deadline) as session:
                found = await undoer.put_back(session)
                if isinstance(found, Looked):
                    await commit(session, deadline)
                return found
        except CAUSES as exc:
            answer = verdict_of(exc, undoer.dependent)
            assert isinstance(answer, Retry | Rejected | Broken), "an error is no success"
            return answer

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """See `Undoable.forget_kept`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await forget(self._ledger(), at_ms, rows_max)

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @asynccontextmanager
    async def _transaction(self, deadline: Deadline) -> AsyncIterator[AsyncClientSession]:
        """A transaction that has begun; it is given up unless it is committed inside."""
        async with self._session() as session:
            with pymongo.timeout(self._budget_s(deadline)):
                await session.start_transaction(
                    ReadConcern("snapshot"), WriteConcern("majority", j=True), ReadPreference.PRIMARY
                )
                yield session

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncClientSession]:
        session = self._opened().start_session()
        try:
            yield session
        finally:
            # Gives an open transaction up. The deadline may be over: that has a little time of its own.
            with pymongo.timeout(_ABORT_S):
                await session.end_session()

    def _ledger(self) -> Ledger:
        database = self._opened().get_database(
            self._database_name,
            CODECS,
            ReadPreference.PRIMARY,
            WriteConcern("majority", j=True),
            ReadConcern("majority"),
        )
        return Ledger(database, self._schema, self._lane)

    def _opened(self) -> AsyncMongoClient[Document]:
        """The client; made here, since it belongs to the running event loop."""
        if self._client is None:
            self._client = AsyncMongoClient(
                self._url,
                appname="integrity",
                # One more: whoever asks never waits for a batch, nor a batch for it.
                maxPoolSize=self._pool_size + 1,
                serverSelectionTimeoutMS=SELECT_MS,
                connectTimeoutMS=SELECT_MS,
                socketTimeoutMS=_SOCKET_MS,
                timeoutMS=None,
                retryWrites=True,
                retryReads=True,
            )
        return self._client

    def _budget_s(self, deadline: Deadline) -> float:
        return max(0.001, min(deadline.remaining_s(), self._timeout_s))


async def commit(session: AsyncClientSession, deadline: Deadline) -> None:
    """Commit; what is unknown of it is asked for by the same commit."""
    for sent in range(1, _COMMITS_MAX + 1):
        try:
            await session.commit_transaction()
            return
        except PyMongoError as exc:
            unknown = exc.has_error_label("UnknownTransactionCommitResult")
            if not unknown or sent == _COMMITS_MAX or not deadline.remaining_s():
                raise


def database_of(store: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme == "mongodb":
            parse_uri(url)
    except (InvalidURI, ConfigurationError, ValueError):
        # Without its cause, which may quote the password.
        raise SettingsError(
            f"The URL of store {store} is no MongoDB URL.", hint="Write mongodb://HOST:PORT/DATABASE?replicaSet=NAME."
        ) from None
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("mongodb", "mongodb+srv") or not name or set(name) & set("/."):
        raise SettingsError(
            f"The URL of store {store} names no database.", hint="Write mongodb://HOST:PORT/DATABASE?replicaSet=NAME."
        )
    return name


def hosts_of(url: str) -> str:
    """The hosts of a URL, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]
