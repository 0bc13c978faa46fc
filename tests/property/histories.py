"""Histories of parents: valid in the source, delivered in any order that keeps each key's own order.

A history is a list of small commands over a few keys. A command that makes no sense where it stands (the deletion of a
key that is not alive) does nothing, so that any command can be taken away and the rest is a history again: that is how
a failure shrinks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, assert_never

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.keys import Key

TOPIC = "shop.public.customers"
AT_MS = 1_700_000_000_000
START = 100
"""The place in the source's order before its first statement."""


class Create(NamedTuple):
    key: int


class Delete(NamedTuple):
    key: int
    tombstone: bool = True


class Move(NamedTuple):
    """The key of a parent changes."""

    key: int
    to: int
    tombstone: bool = True


class Swap(NamedTuple):
    """Two parents exchange their keys by way of a third one, the first that is free."""

    one: int
    two: int


class Snapshot(NamedTuple):
    """The connector reads every parent that is alive."""


class Again(NamedTuple):
    """The connector was killed: it emits the last records of a partition again, at new offsets."""

    partition: int
    count: int


Command = Create | Delete | Move | Swap | Snapshot | Again


class Event(NamedTuple):
    """A record of a connector. `other` is the key that a MOVED or its GONE leads to, and the one that an ARRIVED came
    from; `at` the place in the source's order, of which a null record (GONE) itself says nothing."""

    op: Op
    key: int
    other: int | None
    at: int


class Statement(NamedTuple):
    """What is done to one parent in the source: created (`op` ALIVE), DELETED, or MOVED `to` another key."""

    op: Op
    key: int
    to: int | None
    at: int


class Source:
    """The parent's table and its connector: carries out commands one after the other."""

    def __init__(self, keys: Sequence[int], alive: Collection[int], partition_of: Callable[[int], int]) -> None:
        self._keys = keys
        self.alive = set(alive)
        self.statements: list[Statement] = []
        self.partitions: dict[int, list[Event]] = {}
        self._partition_of = partition_of
        self._at = START

    def do(self, command: Command) -> None:
        """Carry it out, if it makes sense now."""
        match command:
            case Create(key):
                if key not in self.alive:
                    at = self._record(Op.ALIVE, key)
                    self._emit(Op.ALIVE, key, None, at)
                    self.alive.add(key)
            case Delete(key, tombstone):
                if key in self.alive:
                    at = self._record(Op.DELETED, key)
                    self._emit(Op.DELETED, key, None, at)
                    if tombstone:
                        self._emit(Op.GONE, key, None, at)
                    self.alive.discard(key)
            case Move(key, to, tombstone):
                if key in self.alive and to not in self.alive:
                    self._move(key, to, tombstone=tombstone)
            case Swap(one, two):
                spare = next((key for key in self._keys if key not in self.alive), None)
                if one != two and {one, two} <= self.alive and spare is not None:
                    for key, to in ((one, spare), (two, one), (spare, two)):
                        self._move(key, to, tombstone=True)
            case Snapshot():
                self._at += 3
                for key in sorted(self.alive):
                    self._emit(Op.ALIVE, key, None, self._at)
            case Again(partition, count):
                window = self.partitions.get(partition, [])[-count:] if count else []
                while window and window[0].op is Op.GONE:  # it resumes before a deletion or after its null record
                    window = window[1:]
                self.partitions.get(partition, []).extend(window)
            case _:
                assert_never(command)

    def _move(self, key: int, to: int, *, tombstone: bool) -> None:
        at = self._record(Op.MOVED, key, to)
        self._emit(Op.MOVED, key, to, at)
        if tombstone:
            self._emit(Op.GONE, key, to, at)
        self._emit(Op.ARRIVED, to, key, at)
        self.alive.discard(key)
        self.alive.add(to)

    def _record(self, op: Op, key: int, to: int | None = None) -> int:
        self._at += 3
        self.statements.append(Statement(op, key, to, self._at))
        return self._at

    def _emit(self, op: Op, key: int, other: int | None, at: int) -> None:
        records = self.partitions.setdefault(self._partition_of(key), [])
        records.append(Event(op, key, other, at))


def random_commands(
    rng: random.Random, alive: Collection[int], keys: Sequence[int], steps: int, *, partition_count: int, again: bool
) -> Iterator[Command]:
    """Commands that make sense, mostly: creations, deletions, key changes, chains, swaps, keys used again and again."""
    alive = set(alive)
    for _ in range(steps):
        free = [key for key in keys if key not in alive]
        tombstone = rng.random() < 0.9
        choice = rng.random()
        if choice < 0.3 and free:
            key = rng.choice(free)
            yield Create(key)
            alive.add(key)
        elif choice < 0.55 and alive:
            key = rng.choice(sorted(alive))
            yield Delete(key, tombstone)
            alive.discard(key)
        elif choice < 0.9 and alive and free:
            key, to = rng.choice(sorted(alive)), rng.choice(free)
            yield Move(key, to, tombstone)
            alive ^= {key, to}
        elif choice < 0.98 and len(alive) >= 2 and free:
            yield Swap(*rng.sample(sorted(alive), 2))
        else:
            yield Snapshot()
        if again and rng.random() < 0.1:
            yield Again(rng.randrange(partition_count), rng.randint(1, 6))


# --- as changes, for stores without decoding ----------------------------------------------------------------------


@dataclass
class History:
    """`truth` is what happened, in the order of the source; `partitions` are the records as a connector writes them,
    null records and repeated ones included; `start` are the keys that are alive before."""

    entity: str
    truth: list[ParentChange]
    partitions: list[list[ParentChange]]
    start: set[Key] = field(default_factory=set)

    def batches(self, rng: random.Random, *, size_max: int = 6, lag: float = 0.5) -> Iterator[Batch]:
        """Split into batches. Each batch takes a few records from some partitions; with probability `lag` one
        partition is left to the end, so that everything else is enforced before it."""
        left = [len(records) for records in self.partitions]
        late = rng.randrange(len(left)) if rng.random() < lag else None

        def takes() -> Iterator[Mapping[int, int]]:
            while any(left):
                open_now = [p for p, count in enumerate(left) if count]
                if late in open_now and len(open_now) > 1 and rng.random() < 0.95:
                    open_now.remove(late)
                take = {p: rng.randint(1, size_max) for p in rng.sample(open_now, rng.randint(1, len(open_now)))}
                for p, count in take.items():
                    left[p] = max(0, left[p] - count)
                yield take

        return self.deliver(takes())

    def in_order(self, rng: random.Random, *, size_max: int = 12) -> Iterator[Batch]:
        """Split into batches that arrive in the order of the source, over all partitions."""
        records = sorted((r for of_one in self.partitions for r in of_one), key=lambda r: r.origin.timestamp_ms)

        def takes() -> Iterator[Mapping[int, int]]:
            at = 0
            while at < len(records):
                taken = records[at : at + rng.randint(1, size_max)]
                at += len(taken)
                yield Counter(record.origin.partition for record in taken)

        return self.deliver(takes())

    def skewed(self, rng: random.Random, ms: int) -> History:
        """The same, told by a clock that is off by up to `ms`."""
        off_ms: dict[int, int] = {}

        def told(change: ParentChange) -> ParentChange:
            off = off_ms.setdefault(change.occurred_ms, rng.randint(-ms, ms))
            return change._replace(occurred_ms=change.occurred_ms + off)

        partitions = [[told(change) for change in records] for records in self.partitions]
        return History(self.entity, [told(change) for change in self.truth], partitions, self.start)

    def deliver(self, takes: Iterable[Mapping[int, int]]) -> Iterator[Batch]:
        """A batch for each entry of `takes` (partition -> how many records it takes); what is left then is one more."""
        at = [0] * len(self.partitions)
        for take in [*takes, dict.fromkeys(range(len(at)), 1 << 30)]:
            changes: list[ParentChange] = []
            spans: dict[TopicPartition, Span] = {}
            for p, count in take.items():
                if taken := self.partitions[p][at[p] : at[p] + count]:
                    spans[TopicPartition(TOPIC, p)] = Span(at[p], at[p] + len(taken))
                    at[p] += len(taken)
                    changes += taken
            if changes:
                yield Batch(tuple(changes), spans, at_ms=AT_MS)


def history(
    commands: Iterable[Command],
    *,
    keys: Sequence[Key],
    start: Collection[int],
    partition_count: int = 3,
    entity: str = "customer",
) -> History:
    """What comes of the commands, over keys numbered as in `keys`."""
    source = Source(range(len(keys)), start, lambda key: key % partition_count)
    for command in commands:
        source.do(command)

    def change(event: Event, partition: int, offset: int) -> ParentChange:
        op, key, other, at = event
        return ParentChange(
            entity,
            op,
            keys[key],
            None if other is None or op is Op.ARRIVED else keys[other],
            None if op is Op.GONE else Version(0, (at,)),
            Origin(TOPIC, partition, offset, AT_MS + at),
            AT_MS + at,
        )

    records = [
        [change(event, p, offset) for offset, event in enumerate(source.partitions.get(p, ()))]
        for p in range(partition_count)
    ]
    truth = [change(Event(*statement), 0, 0) for statement in source.statements if statement.op is not Op.ALIVE]
    return History(entity, truth, records, {keys[key] for key in start})


def random_history(
    rng: random.Random,
    *,
    keys: Sequence[Key],
    steps: int,
    partition_count: int = 3,
    reemit: bool = True,
    entity: str = "customer",
) -> History:
    """A history of random commands."""
    start = {number for number in range(len(keys)) if rng.random() < 0.6}
    commands = random_commands(rng, start, range(len(keys)), steps, partition_count=partition_count, again=reemit)
    return history(commands, keys=keys, start=start, partition_count=partition_count, entity=entity)
