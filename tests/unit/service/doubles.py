"""Doubles of what lies outside a lane. The store is the real model; only what it answers is bent."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

import pytest

from integrity.core.batch import Batch, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.decode.record import Ignored, Record, Undecodable
from integrity.core.fold import Follow, Policy, Remove
from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import ApplyResult, Effect
from integrity.core.retry import Backoff
from integrity.core.rules.model import Cascade, Dependent, Place, Target, TargetKind
from integrity.core.sweep import Repaired
from integrity.errors import Finding, Reason, UnreachableError
from integrity.kafka.dead_letters import DeadLetter, StatusChange
from integrity.ports import AssignmentListener, Bounds, Deadline, Fetch
from integrity.service import lane
from integrity.service.enforce import Enforcer
from integrity.service.halts import Halts
from integrity.service.lane import Lane
from integrity.service.work import Piece
from integrity.stores.memory import ROWS_MAX, MemoryStore, Row
from integrity.stores.rule import StoreRule
from integrity.telemetry import BatchSpan, Tracing

TOPIC = "shop.public.customers"
SPEC = KeySpec((("id", KeyType.INT64),))


def cascade_rule(name: str = "orders") -> StoreRule:
    """orders.customer_id references customer, cascade both ways."""
    dependent = Dependent(
        id=f"customer.{name}",
        name=name,
        store="memory",
        target=Target(TargetKind.TABLE, name),
        references={"customer_id": "id"},
        on_delete=Cascade(),
        on_update=Cascade(),
        where={},
        place=Place("customer.yaml", 1, 1),
    )
    return StoreRule("customer", dependent, SPEC, Policy(dependent.id, Remove(), Follow(), "cascade", "cascade"))


def memory_store(
    parents: int, rows_each: int = 1, names: Sequence[str] = ("orders",), rows_max: int = ROWS_MAX
) -> MemoryStore:
    tables: dict[str, list[Row]] = {
        name: [{"id": f"{key}-{n}", "customer_id": key} for key in range(parents) for n in range(rows_each)]
        for name in names
    }
    return MemoryStore("memory", {"customer": [cascade_rule(name) for name in names]}, tables, rows_max=rows_max)


def deleted(key: int, offset: int, *, partition: int = 0, lsn: int | None = None) -> Record:
    """A record as `decode` below reads it."""
    return Record(TOPIC, partition, offset, 1_700_000_000_000, b"%d" % key, b"d%d" % (lsn or 1000 + offset), ())


def broken(offset: int, *, partition: int = 0) -> Record:
    return Record(TOPIC, partition, offset, 1_700_000_000_000, b"?", b"x", ())


def decode(record: Record) -> ParentChange | Ignored | Undecodable:
    """A decoder of the smallest format there is: key digits, value `d<lsn>`, `c<lsn>` or anything else."""
    if record.key is None:
        return Undecodable(Reason.NULL_KEY, "no key", "key")
    if record.value is None:
        return Ignored("tombstone", "not of interest here")
    kind, lsn = record.value[:1], record.value[1:]
    if kind not in (b"d", b"c"):
        return Undecodable(Reason.BAD_JSON, "not readable", "value")
    origin = Origin(record.topic, record.partition, record.offset, record.timestamp_ms)
    op = Op.DELETED if kind == b"d" else Op.ALIVE
    return ParentChange("customer", op, (int(record.key),), None, Version(0, (int(lsn),)), origin, record.timestamp_ms)


class BentStore:
    """A MemoryStore whose answers are bent: `bend` gets each batch and may answer instead of it."""

    exclusive = False

    def __init__(self, store: MemoryStore, bend: Callable[[Batch], ApplyResult | None] | None = None) -> None:
        self.name = store.name
        self.store = store
        self.bend = bend or (lambda batch: None)
        self.calls: list[Batch] = []
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.findings: Sequence[Finding] = ()
        self.asked: list[str] = []

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        self.asked.append("check")
        await self.gate.wait()
        if self.down:
            raise UnreachableError("the store does not answer")
        return self.findings

    def ddl(self) -> str:
        return ""

    async def migrate(self, deadline: Deadline) -> None:
        self.asked.append("migrate")

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        if self.down:
            raise UnreachableError("the store does not answer")
        return await self.store.progress(partitions, deadline)

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        self.calls.append(batch)
        await self.gate.wait()
        await asyncio.sleep(0)
        bent = self.bend(batch)
        return bent if bent is not None else await self.store.apply(batch, deadline)

    async def close(self) -> None:
        return None


class Letters:
    """Keeps dead letters; fails the first `failures` times."""

    def __init__(self, failures: int = 0) -> None:
        self.published: list[DeadLetter] = []
        self.marked: list[StatusChange] = []
        self.failures = failures

    async def publish(self, letters: Sequence[DeadLetter], deadline: Deadline) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise UnreachableError("Kafka does not answer")
        self.published += letters

    async def mark(self, changes: Sequence[StatusChange], deadline: Deadline) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise UnreachableError("Kafka does not answer")
        self.marked += changes


class Watched:
    """Counts what a lane tells."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.letters: list[DeadLetter] = []
        self.repairs: list[Repaired] = []
        self.up: list[bool] = []
        self.registry: list[bool] = []
        self.halts: list[tuple[str, bool]] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def batch(self, store: str, batch: Batch) -> AbstractContextManager[BatchSpan]:
        return Tracing().batch_span(store, "group", batch.spans.keys(), len(batch.changes), ())

    def applied(self, store: str, batch: Batch, effects: Sequence[Effect], took_s: float) -> None:
        self.effects += effects

    def repaired(self, store: str, at_ms: int, repaired: Sequence[Repaired], took_s: float) -> None:
        self.repairs += repaired

    def dead_lettered(self, store: str, letter: DeadLetter) -> None:
        self.letters.append(letter)

    def store_up(self, store: str, up: bool) -> None:
        self.up.append(up)

    def halted(self, dependent: str, halted: bool) -> None:
        self.halts.append((dependent, halted))

    def registry_up(self, up: bool) -> None:
        self.registry.append(up)

    def read(self, store: str, piece: Piece) -> None:
        self.counts += piece.counts

    def position(self, store: str, lag: Mapping[TopicPartition, int], oldest_ms: int | None) -> None:
        return None

    def forget(self, store: str, partitions: Sequence[TopicPartition]) -> None:
        return None


def enforcers_of(store: BentStore, letters: Letters, watch: Watched) -> list[Enforcer]:
    """Two of them, which wait hardly at all."""
    halts = Halts(
        store,  # type: ignore[arg-type]
        watch,
        {
            f"customer.{name}": [Place(f"{name}.yaml", 1, 1), Place(f"below_{name}.yaml", 1, 1)]
            for name in store.store.targets
        },
        recheck_s=0.001,
    )
    return [
        Enforcer(
            store,  # type: ignore[arg-type]
            letters,
            watch,
            system="memory",
            rules_hash="abc",
            timeout_s=5,
            halts=halts,
            backoff=Backoff(first_s=0.0005, cap_s=0.005),
        )
        for _ in range(2)
    ]


class ScriptedSource:
    """A group member over lists of records; the test moves its partitions."""

    def __init__(self, records: Mapping[TopicPartition, Sequence[Record]]) -> None:
        self.log = {partition: list(found) for partition, found in records.items()}
        self.committed: dict[TopicPartition, int] = {}
        self.first: dict[TopicPartition, int] = {}
        self.commits_taken = True
        self.stopped = False
        self.polls = 0
        self._at: dict[TopicPartition, int] = {}

    def follow(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)

    async def start(self, on_revoked: AssignmentListener, on_assigned: AssignmentListener) -> None:
        self.on_revoked, self.on_assigned = on_revoked, on_assigned

    async def assign(self, *partitions: TopicPartition) -> None:
        """A rebalance: everything is revoked, then these are given."""
        self._at.clear()
        await self.on_revoked(frozenset(partitions))
        await self.on_assigned(frozenset(partitions))

    async def poll(self, timeout_s: float, records_max: int, *, hold: Collection[TopicPartition]) -> Fetch:
        await asyncio.sleep(0.001)
        self.polls += 1
        records: dict[TopicPartition, Sequence[Record]] = {}
        positions: dict[TopicPartition, int] = {}
        left = records_max
        for partition, at in [(p, at) for p, at in self._at.items() if p not in hold]:
            taken = [r for r in self.log[partition] if r.offset >= at][:left]
            if taken:
                left -= len(taken)
                records[partition] = taken
                positions[partition] = self._at[partition] = taken[-1].offset + 1
        return Fetch(records, positions, {p: self._end(p) for p in self._at})

    def _end(self, partition: TopicPartition) -> int:
        return max((record.offset + 1 for record in self.log[partition]), default=0)

    async def seek(self, places: Mapping[TopicPartition, int]) -> None:
        self._at |= places

    async def bounds(
        self, partitions: Sequence[TopicPartition] | None, deadline: Deadline
    ) -> dict[TopicPartition, Bounds]:
        return {p: Bounds(self.committed.get(p), self.first.get(p, 0), self._end(p)) for p in (partitions or self.log)}

    def partitions(self, topic: str) -> int:
        return sum(partition.topic == topic for partition in self.log)

    async def commit(self, offsets: Mapping[TopicPartition, int], deadline: Deadline) -> bool:
        if self.commits_taken:
            self.committed |= offsets
        return self.commits_taken

    async def stop(self) -> None:
        self.stopped = True


class LaneRig(Protocol):
    """A lane that a test runs, what it reads from, and what stops it."""

    lane: Lane
    source: ScriptedSource
    stop: asyncio.Event


@asynccontextmanager
async def running(rig: LaneRig, *assigned: TopicPartition, to_end: bool = False) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(rig.lane.run(rig.stop, to_end=to_end))
    await until(lambda: hasattr(rig.source, "on_assigned"))
    await rig.source.assign(*assigned)
    try:
        yield task
    finally:
        rig.stop.set()
        await asyncio.wait_for(task, 20)


async def revoke_without_grace(rig: LaneRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all partitions away. The grace of open batches never ends: the lane has to give them up itself."""
    monkeypatch.setattr(lane, "REVOKE_GRACE_S", math.inf)
    await asyncio.wait_for(rig.source.assign(), 20)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)
