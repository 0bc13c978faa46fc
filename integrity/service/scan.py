"""Looks for orphans: rows whose parent is not there. And mends them, when somebody asks for it.

First everything is compared once, as of some moment. What seems to be an orphan then is looked up again after a grace
period: it is one only if its parent is still missing and rows still refer to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from integrity.core.keys import Key, KeySpec
from integrity.core.rules.model import Dependent
from integrity.core.scan import Difference, Heard, Known, OutOfOrder, Page, Referenced
from integrity.errors import OperationError
from integrity.ports import Deadline, Parents, Scannable
from integrity.service.spool import Spool

LOOK_KEYS: Final = 500
LOOK_ROWS: Final = 1_000_000
SAMPLE_KEYS: Final = 5

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scanned: a dependent in its store, and the parents that it refers to; `parents_at` says in words where
    these are, and `note` what has to be known of them."""

    entity: str
    spec: KeySpec
    dependent: Dependent
    store: Scannable
    parents: Parents
    parents_at: str
    note: str = ""


class Sample(NamedTuple):
    """An orphaned key, with its rows and what the ledger has heard of it."""

    key: Key
    rows: int
    known: Known


class Count(NamedTuple):
    keys: int
    rows: int


@dataclass(slots=True)
class Found:
    """What a scan of one dependent has found. `keys` and `rows` are all that was compared, `parents` how many parents
    were read for it, `candidates` the keys that seemed orphaned at first. `orphans` holds those that are; close it."""

    subject: Subject
    orphans: Spool
    keys: int = 0
    rows: int = 0
    parents: int = 0
    mistyped: int = 0
    candidates: int = 0
    took_s: float = 0.0
    """How long it took, the grace period left out."""
    heard: dict[Heard, Count] = field(default_factory=lambda: dict.fromkeys(Heard, Count(0, 0)))
    samples: list[Sample] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Which part of the keys is orphaned, from 0 to 1."""
        return self.orphans.keys / self.keys if self.keys else 0.0


class Watch(Protocol):
    """Hears how far a scan is. Never blocks, never raises."""

    def compared(self, dependent: str, rows: int) -> None: ...

    def waits(self, dependent: str, candidates: int, seconds: float) -> None: ...

    def looked_up(self, dependent: str, keys: int, of: int) -> None: ...


class ParentRows:
    """Parents that are rows of a store."""

    def __init__(self, store: Scannable, dependent: str) -> None:
        """`dependent` names the parents as rows that refer to themselves."""
        self._store = store
        self._dependent = dependent

    async def keys(self, deadline: Deadline) -> AsyncGenerator[Sequence[Key]]:
        """See `Parents`."""
        pages = self._store.references(self._dependent, deadline)
        try:
            async for page in pages:
                yield [key for key, _ in page.referenced]
        finally:
            await pages.aclose()

    async def present(self, keys: Sequence[Key], deadline: Deadline) -> Collection[Key]:
        """See `Parents`."""
        rows = await self._store.referring(self._dependent, keys, deadline)
        return {key for key, count in zip(keys, rows, strict=True) if count}

    async def close(self) -> None:
        """See `Parents`."""
        await self._store.close()


async def scan(
    subject: Subject,
    watch: Watch,
    deadline: Deadline,
    *,
    grace_s: float,
    timeout_s: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Found:
    """Scan one dependent. `timeout_s` bounds a question about some keys, the deadline all of it. Raises as `Scannable`
    and `Parents` do."""
    began_s = time.monotonic()
    found = Found(subject, Spool(subject.spec))
    candidates = Spool(subject.spec)
    try:
        await _compare(subject, found, candidates, watch, deadline)
        found.candidates = candidates.keys
        if candidates.keys:
            watch.waits(subject.dependent.id, candidates.keys, grace_s)
            waits_s = time.monotonic()
            await sleep(grace_s)
            began_s += time.monotonic() - waits_s
            await _confirm(subject, found, candidates, watch, timeout_s)
    except BaseException:
        found.orphans.close()
        raise
    finally:
        candidates.close()
    found.took_s = time.monotonic() - began_s
    return found


async def _compare(subject: Subject, found: Found, candidates: Spool, watch: Watch, deadline: Deadline) -> None:
    difference = Difference(subject.spec)
    async with AsyncExitStack() as stack:
        # Both servers sort at the same time.
        references = _Ahead(subject.store.references(subject.dependent.id, deadline))
        stack.push_async_callback(references.close)
        parents = _Ahead(subject.parents.keys(deadline))
        stack.push_async_callback(parents.close)
        try:
            page: Page | None = Page(())
            while page is not None:
                while difference.wants_parents:
                    keys = await parents.next()
                    found.parents += len(keys or ())
                    candidates.extend(difference.no_more_parents() if keys is None else difference.parents(keys))
                page = await references.next()
                if page is not None:
                    found.keys += len(page.referenced)
                    found.rows += sum([rows for _, rows in page.referenced]) + page.mistyped
                    found.mistyped += page.mistyped
                    candidates.extend(difference.references(page.referenced))
                    watch.compared(subject.dependent.id, found.rows)
        except OutOfOrder as exc:
            raise OperationError(
                f"{subject.dependent.id}: keys came in another order than was asked for.",
                hint="Is the encoding of both databases UTF-8?",
            ) from exc
        if not found.parents and await parents.next() is not None:
            found.parents = 1  # there are some: nothing refers to any


async def _confirm(subject: Subject, found: Found, candidates: Spool, watch: Watch, timeout_s: float) -> None:
    looked_up = 0
    for page in candidates.pages(LOOK_KEYS, LOOK_ROWS):
        orphans = await still_orphaned(subject, [key for key, _ in page], timeout_s)
        if orphans:
            known = await subject.store.known(subject.entity, [key for key, _ in orphans], Deadline.after(timeout_s))
            for (key, rows), of_key in zip(orphans, known, strict=True):
                before = found.heard[of_key.heard]
                found.heard[of_key.heard] = Count(before.keys + 1, before.rows + rows)
                if len(found.samples) < SAMPLE_KEYS:
                    found.samples.append(Sample(key, rows, of_key))
            found.orphans.extend(orphans)
        looked_up += len(page)
        watch.looked_up(subject.dependent.id, looked_up, candidates.keys)


async def still_orphaned(subject: Subject, keys: Sequence[Key], timeout_s: float) -> list[Referenced]:
    """Those of the keys whose parent is missing now, and that rows refer to now."""
    # Parents last: one that came with its rows in between is seen.
    rows = await subject.store.referring(subject.dependent.id, keys, Deadline.after(timeout_s))
    held = [Referenced(key, count) for key, count in zip(keys, rows, strict=True) if count]
    present = await subject.parents.present([key for key, _ in held], Deadline.after(timeout_s)) if held else ()
    return [each for each in held if each.key not in present]


class _Ahead(Generic[_T]):
    """Fetches a page while the one before is looked at."""

    def __init__(self, pages: AsyncGenerator[_T]) -> None:
        self._pages = pages
        self._next: asyncio.Future[_T | None] = asyncio.ensure_future(anext(pages, None))

    async def next(self) -> _T | None:
        """The next page; None at the end, once and again."""
        page = await self._next
        if page is not None:
            self._next = asyncio.ensure_future(anext(self._pages, None))
        return page

    async def close(self) -> None:
        self._next.cancel()
        await asyncio.wait({self._next})
        if not self._next.cancelled():
            self._next.exception()  # of no interest once nobody asks for the page
        await self._pages.aclose()


def totals(found: Sequence[Found]) -> Mapping[str, Count]:
    """Dependent id -> its orphans."""
    return {each.subject.dependent.id: Count(each.orphans.keys, each.orphans.rows) for each in found}
