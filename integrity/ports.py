"""What the service asks of the outside. Every call that waits takes a Deadline; a store tries once and classifies."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from integrity.core.batch import Batch, TopicPartition
from integrity.core.copies import Known as Copied
from integrity.core.decode.record import Record
from integrity.core.decode.wire import SchemaRef
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.outbox import Outgoing
from integrity.core.outcome import ApplyResult
from integrity.core.scan import Known, Page
from integrity.core.sweep import Sweep, SweepResult
from integrity.core.truncate import KnownKeys
from integrity.core.undo import Portion, UndoResult
from integrity.errors import Finding


@dataclass(frozen=True, slots=True)
class Deadline:
    """One budget of time that several calls share."""

    ends_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now, by the monotonic clock."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.ends_s - time.monotonic())


class Store(Protocol):
    """A dependent store: its dependents, its ledger and its progress.

    `check`, `migrate` and `progress` raise UnreachableError when the server does not answer.
    """

    name: str
    exclusive: bool
    """True: one process of the consumer group does all the work (a topic has no locks)."""

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        """Everything in the live store that does not fit the rules. The ledger's absence is the one Finding with the
        code `ledger_missing` (or `ledger_older`, `ledger_newer`). Resolves what `apply` needs."""
        ...

    def ddl(self) -> str:
        """The statements that `migrate` runs, as text to read and to run by hand."""
        ...

    async def migrate(self, deadline: Deadline) -> None:
        """Create or upgrade the ledger. Safe to repeat and to run at once from two processes."""
        ...

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        """The next offset to enforce of each partition that has a progress. Called at each assignment; an exclusive
        store takes over from a former owner here."""
        ...

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        """Progress, fence, fold and effects in one transaction. Never raises for what an event or server did."""
        ...

    async def close(self) -> None:
        """Release everything; never waits longer than a few seconds."""
        ...


class SchemaSource(Protocol):
    """What knows the schemas of records in the wire format, which decoders look up."""

    def missing(self, records: Iterable[Record]) -> Collection[SchemaRef]:
        """The ids of these records that must be learned before they are decoded."""
        ...

    async def learn(self, refs: Collection[SchemaRef]) -> None:
        """Find out what these ids mean, or that they mean nothing. Raises UnreachableError; bounded in time."""
        ...


Learn = Callable[[Sequence[Record]], Awaitable[None]]
"""Finds out all that decoding these records needs. Raises UnreachableError."""


class Inspectable(Protocol):
    """A store that can be asked. Changes nothing, needs no `check` before, and never holds up `apply`.

    Both calls raise UnreachableError when the server does not answer in time, LedgerError when there is no ledger, and
    UnfitStoreError when a rule does not fit the store.
    """

    name: str

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        """Everything that the ledger knows of a key; None when it has never heard of it."""
        ...

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        """What it would do here if all that happened now: one for each dependent of the entity in this store."""
        ...

    async def close(self) -> None:
        """Release everything; never waits longer than a few seconds."""
        ...


class InspectableCopy(Protocol):
    """The store of a copy that can be asked; as `Inspectable`."""

    name: str

    async def known_of(self, key: Key, deadline: Deadline) -> Copied | None:
        """What the ledger knows of a key of the copy; None when it has never heard of it."""
        ...

    async def close(self) -> None:
        """Release everything; never waits longer than a few seconds."""
        ...


class Examinable(Protocol):
    """A store that `integrity doctor` looks at, beside `Store.check`. Changes nothing; raises as `Inspectable` does."""

    async def clock_ms(self, deadline: Deadline) -> int | None:
        """What the server's clock says, in milliseconds since the epoch; None where it has none to ask."""
        ...


class Sweepable(Protocol):
    """A store in which rows that were written late are looked for."""

    name: str

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        """Do one page of a sweep in one transaction, and remember where the next one begins. Never raises for what a
        row or server did. The first call of an age begins at its `until_ms`: older keys are not looked at. When
        another process is at the same sweep, or owns the store, nothing is done."""
        ...


class Truncatable(Protocol):
    """A store in which truncates are carried out: `Store.apply` keeps their notes. Both calls raise UnreachableError
    when the server does not answer, LedgerError when there is no ledger."""

    name: str

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """The notes that the lane keeps; none when another process owns the store."""
        ...

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """What the ledger knows of the next keys of an entity, in an order of its own; the first ones after b""."""
        ...


class Scannable(Protocol):
    """A store in which references are looked through as a whole. Changes nothing, takes no lock that anybody waits for.

    Dependents are named by their ids. Raises as Inspectable does.
    """

    name: str

    def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        """All keys that rows in reach refer to, with how many rows do: as of one moment, in the order of `order_of`."""
        ...

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        """How many rows in reach refer to each of these keys now."""
        ...

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        """What the ledger has heard of each of these keys."""
        ...

    async def close(self) -> None:
        """Release everything; never waits longer than a few seconds."""
        ...


class Parents(Protocol):
    """Which parents of one entity there are. Raises as Inspectable does."""

    def keys(self, deadline: Deadline) -> AsyncGenerator[Sequence[Key]]:
        """The keys of all, as of one moment, in the order of `order_of`."""
        ...

    async def present(self, keys: Sequence[Key], deadline: Deadline) -> Collection[Key]:
        """Which of these keys are there now."""
        ...

    async def close(self) -> None:
        """Release everything; never waits longer than a few seconds."""
        ...


class Undoable(Protocol):
    """A store that can put back what events changed, where it kept what rows were. Another process may enforce
    meanwhile. All calls raise UnreachableError when the server does not answer."""

    name: str

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """What would come of a portion. Changes nothing. A row that several of the chosen events changed is compared
        with what the newest of them made of it, and the others are taken to follow."""
        ...

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """Put a portion back in one transaction: what is put back is not kept any more, and the ledger notes that it
        was undone, so that no sweep does it again. Never raises for what a row did."""
        ...

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """Remove at most so many records that have expired by then; how many it were. Nothing is done when another
        process owns the store. Raises OperationError."""
        ...


class Waiting(NamedTuple):
    """A record of an outbox, and its name there."""

    id: object
    record: Outgoing


class Outbox(Protocol):
    """What a store has written beside its effects for others to be told of. Both calls raise OperationError."""

    name: str

    async def waiting(self, records_max: int, deadline: Deadline) -> Sequence[Waiting]:
        """What has not been published, of each key lower versions first."""
        ...

    async def published(self, ids: Sequence[object], deadline: Deadline) -> None:
        """Remove these records: they are acknowledged. Some may be gone already."""
        ...


class Bounds(NamedTuple):
    """What the broker says of a partition: the group's committed offset, the first offset that is still there, and
    the end (the last stable offset)."""

    committed: int | None
    first: int
    end: int


class Fetch(NamedTuple):
    """What one poll brought: records per partition, and for each partition that moved on the position after it.

    A position may move without a record (compaction, transaction markers). `ends` are the ends of the partitions being
    read, as of the last answer of the broker."""

    records: Mapping[TopicPartition, Sequence[Record]]
    positions: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]


AssignmentListener = Callable[[frozenset[TopicPartition]], Awaitable[None]]


class Source(Protocol):
    """One member of a consumer group. Reads nothing of an assigned partition before `seek` named a place in it."""

    async def start(self, on_revoked: AssignmentListener, on_assigned: AssignmentListener) -> None:
        """Join the group; the listeners are awaited within rebalances, so they must be quick."""
        ...

    def follow(self, topics: Sequence[str]) -> None:
        """Read these topics, beside those that are read in any case: from the start on, or in place of those so far."""
        ...

    async def poll(self, timeout_s: float, records_max: int, *, hold: Collection[TopicPartition]) -> Fetch:
        """The next records, none of the partitions in `hold`. Call it all the time: it keeps the membership alive.
        Raises UnreachableError when this member can't go on; then it is stopped and another one made."""
        ...

    async def seek(self, places: Mapping[TopicPartition, int]) -> None:
        """Read on from there; partitions that are not named go on where they are."""
        ...

    async def bounds(
        self, partitions: Sequence[TopicPartition] | None, deadline: Deadline
    ) -> dict[TopicPartition, Bounds]:
        """Of these partitions, or of all partitions of all subscribed topics. Raises UnreachableError."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions a topic that is being read has, as far as this member knows."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> bool:
        """Tell the broker; False when it did not take it (a rebalance, a frozen broker): harmless, replay is safe."""
        ...

    async def stop(self) -> None:
        """Leave the group; bounded."""
        ...
