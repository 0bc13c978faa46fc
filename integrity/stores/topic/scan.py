"""References in compacted topics looked through as a whole, and parents by the compacted topics of their events.

Each topic is read from its beginning into a view on disk, and read on with every later question.
"""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, assert_never

import msgspec

from integrity.core.change import Op, ParentChange, Truncation
from integrity.core.decode.record import Decoder, Half, Ignored, Record, Undecodable
from integrity.core.keys import Key, KeySpec, canonical, key_hash
from integrity.core.scan import Known, Page, known_of
from integrity.errors import LedgerError, OperationError, UnreachableError
from integrity.ports import Deadline, Learn
from integrity.stores.rule import StoreRule
from integrity.stores.topic.clients import Closer
from integrity.stores.topic.faults import CLIENT_ERRORS
from integrity.stores.topic.fitness import policies_of, unreachable
from integrity.stores.topic.keys import Held, KeyView
from integrity.stores.topic.reader import Reader, TopicGone, TopicMadeAnew
from integrity.stores.topic.records import ReadRecord
from integrity.stores.topic.scratch import Scratch
from integrity.stores.topic.state import State
from integrity.stores.topic.values import NoRow, RowRule, read_row

PAGE_KEYS: Final = 5_000
_T = TypeVar("_T")

Read = Callable[[ReadRecord], Sequence[Held]]
"""What a record says of keys."""


class TopicView:
    """The keys that some topics hold."""

    def __init__(
        self,
        client: Mapping[str, object],
        topics: Sequence[str],
        spec: KeySpec,
        read: Read,
        learn: Learn | None = None,
    ) -> None:
        self._client = client
        self._topics = topics
        self._spec = spec
        self._read = read
        self._learn = learn
        self._closer = Closer()
        self._reader = Reader(client, self._take, self._closer)
        self._scratch: Scratch | None = None
        self._view: KeyView | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scan")

    async def read_on(self, deadline: Deadline) -> None:
        """Read to where the topics end now. Raises as Inspectable does."""
        taken = self._reader.taken
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                try:
                    await self._reader.read_to_end(self._topics)
                except TopicMadeAnew:
                    self._reader.forget()
                    await self.in_thread(lambda view: view.clear())
                    await self._reader.read_to_end(self._topics)
        except TopicGone as exc:
            raise OperationError(f"Topic {exc.topic} does not exist.", hint="Create it, or mend the rule.") from exc
        except CLIENT_ERRORS as exc:
            if isinstance(exc, TimeoutError) and self._reader.taken > taken:
                raise UnreachableError(f"Reading {', '.join(self._topics)} took too long.") from exc
            raise unreachable(self._client) from exc
        except sqlite3.Error as exc:
            raise OperationError(f"The file of a view can't be used ({type(exc).__name__}).") from exc

    async def pages(self) -> AsyncGenerator[Page]:
        """Everything, as far as it has been read."""
        unreadable = await self.in_thread(lambda view: view.unreadable())
        pages = await self.in_thread(lambda view: view.pages(PAGE_KEYS))
        yield Page((), unreadable)
        while page := await self.in_thread(lambda view: next(pages, None)):
            yield Page(page)

    async def counts(self, keys: Sequence[Key]) -> list[int]:
        return await self.in_thread(lambda view: view.counts(keys))

    async def in_thread(self, call: Callable[[KeyView], _T]) -> _T:
        view = self._opened()
        # Shielded: the thread goes on with what was given up, and its file must not be closed under it.
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(call, view)))

    async def close(self) -> None:
        self._reader.close()
        await self._closer.wait()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._view is not None:
            self._view.close()
        if self._scratch is not None:
            self._scratch.close()

    async def _take(self, read: list[ReadRecord]) -> None:
        if self._learn is not None:
            await self._learn([_record(each) for each in read])
        await self.in_thread(lambda view: view.take(self._held(read)))

    def _held(self, read: Sequence[ReadRecord]) -> Iterator[Held]:
        for record in read:
            yield from self._read(record)

    def _opened(self) -> KeyView:
        if self._view is None:
            self._scratch = Scratch()
            self._view = KeyView(self._scratch.path / f"scan-{uuid.uuid4().hex}.sqlite", self._spec)
        return self._view


class TopicScanner:
    """See `Scannable`: the children of compacted topics."""

    def __init__(
        self,
        name: str,
        client: Mapping[str, object],
        rules: Mapping[str, Sequence[StoreRule]],
        *,
        lane: str,
        schema: str,
    ) -> None:
        self.name = name
        self._client = client
        self._lane = lane
        self._rules = {rule.id: rule for of_entity in rules.values() for rule in of_entity}
        self._specs = {entity: of_entity[0].spec for entity, of_entity in rules.items()}
        self._ledger = f"{schema}.ledger.{name}"
        self._views: dict[str, TopicView] = {}
        self._closer = Closer()
        self._ledger_reader = Reader(client, self._take_ledger, self._closer)
        self._state: State | None = None
        self._scratch: Scratch | None = None

    async def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        view = self._view_of(dependent)
        await view.read_on(deadline)
        pages = view.pages()
        try:
            async for page in pages:
                yield page
        finally:
            await pages.aclose()

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        view = self._view_of(dependent)
        await view.read_on(deadline)
        return await view.counts(keys)

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        spec = self._specs[entity]
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                try:
                    await self._ledger_reader.read_to_end([self._ledger])
                except TopicMadeAnew:
                    self._ledger_reader.forget()
                    self._opened().clear()
                    await self._ledger_reader.read_to_end([self._ledger])
            return [known_of(self._opened().head(key_hash(entity, key), spec)) for key in keys]
        except TopicGone as exc:
            raise LedgerError(f"The ledger topic {exc.topic} does not exist.", hint="Run integrity migrate.") from exc
        except CLIENT_ERRORS as exc:
            raise unreachable(self._client) from exc
        except (msgspec.DecodeError, ValueError) as exc:
            raise LedgerError(
                f"A record of topic {self._ledger} is none that this program can read with these rules.",
                hint="Was the type of the key changed? Does something else write there?",
            ) from exc

    async def close(self) -> None:
        for view in self._views.values():
            await view.close()
        self._ledger_reader.close()
        await self._closer.wait()
        if self._state is not None:
            self._state.close()
        if self._scratch is not None:
            self._scratch.close()

    def _view_of(self, dependent: str) -> TopicView:
        if dependent not in self._views:
            rule = self._rules[dependent]
            topics = [rule.dependent.target.name]
            self._views[dependent] = TopicView(self._client, topics, rule.spec, _reading(RowRule(rule)))
        return self._views[dependent]

    async def _take_ledger(self, read: list[ReadRecord]) -> None:
        self._opened().take(read, self._ledger)

    def _opened(self) -> State:
        if self._state is None:
            self._scratch = Scratch()
            self._state = State(self._scratch.path / f"scan-{uuid.uuid4().hex}.sqlite", [], lane=self._lane)
        return self._state


class TopicParents:
    """See `Parents`: those whose events a compacted topic keeps. Of a parent whose newest record says that it lives, in
    whatever partition, it is taken that it does. `is_telling`: each record says whether its parent lives."""

    def __init__(
        self,
        client: Mapping[str, object],
        topics: Sequence[str],
        spec: KeySpec,
        decoder: Decoder,
        *,
        is_telling: bool = True,
        learn: Learn | None = None,
    ) -> None:
        self._is_telling = is_telling
        self._client = client
        self._topics = topics
        self._view = TopicView(client, topics, spec, _decoding(topics, decoder), learn)

    async def keys(self, deadline: Deadline) -> AsyncGenerator[Sequence[Key]]:
        """Raises OperationError where a topic does not keep all that lives, or holds what can't be read."""
        await self._check(deadline)
        await self._read_on(deadline)
        pages = self._view.pages()
        try:
            async for page in pages:
                yield [key for key, _ in page.referenced]
        finally:
            await pages.aclose()

    async def present(self, keys: Sequence[Key], deadline: Deadline) -> Collection[Key]:
        await self._read_on(deadline)
        return {key for key, count in zip(keys, await self._view.counts(keys), strict=True) if count}

    async def close(self) -> None:
        await self._view.close()

    async def _read_on(self, deadline: Deadline) -> None:
        await self._view.read_on(deadline)
        if unreadable := await self._view.in_thread(lambda view: view.unreadable()):
            raise OperationError(
                f"{unreadable} records of {', '.join(self._topics)} can't be read, and may be parents that live.",
                hint="Mend them at their source, or name the parents' own table: events.source.",
            )

    async def _check(self, deadline: Deadline) -> None:
        if not self._is_telling:
            raise OperationError(
                f"The events of {', '.join(self._topics)} do not say of every parent whether it lives.",
                hint="Name the parents' own table: events.source: {store: ..., table: ...}.",
            )
        policies = await policies_of(self._client, self._topics, deadline)
        for topic in self._topics:
            policy = policies.get(topic)
            if policy is None:
                raise OperationError(f"Topic {topic} does not exist.", hint="Create it, or mend the rule.")
            if policy != "compact":
                raise OperationError(
                    f"Topic {topic} has cleanup.policy={policy}: a parent that it does not name may live all the same.",
                    hint="Name the parents' own table: events.source: {store: ..., table: ...}; or have the topic "
                    "compacted only, and the connector make a new snapshot.",
                )


def _reading(row_rule: RowRule) -> Read:
    def read(record: ReadRecord) -> Sequence[Held]:
        if record.key is None:
            return ()
        name = b"%d:%b" % (record.partition, record.key)
        if record.value is None:
            return (Held(name, None),)
        try:
            return (Held(name, row_rule.reference(read_row(record.value))),)
        except NoRow:
            return (Held(name, None, is_readable=False),)

    return read


def _record(read: ReadRecord) -> Record:
    return Record(read.topic, read.partition, read.offset, 0, read.key, read.value, read.headers)


def _decoding(topics: Sequence[str], decoder: Decoder) -> Read:
    def read(record: ReadRecord) -> Sequence[Held]:
        at = b"%d/%d" % (topics.index(record.topic), record.partition)
        unread = at + b"?" + (record.key or b"")
        found = decoder(_record(record))
        if isinstance(found, Half):
            found = found.change  # its other half is about another key, or comes after it
        match found:
            case ParentChange():
                lives = found.op in (Op.ALIVE, Op.ARRIVED)
                name = at + canonical(found.key).encode()
                # What could not be read under the same key counts no more.
                return (Held(unread, None), Held(name, found.key if lives else None))
            case Undecodable():
                return (Held(unread, None, is_readable=False),)
            case Ignored() | Truncation():
                return ()  # a topic of which the last record of a key counts takes none without a key
            case _:
                assert_never(found)

    return read
