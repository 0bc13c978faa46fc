"""Random histories of parents: valid in the source, delivered in any order that keeps each key's own order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.keys import Key

TOPIC = "shop.public.customers"


@dataclass
class History:
    """`truth` is what happened, in the order of the source; `partitions` are the records as a connector writes them,
    tombstones and re-emissions included. `default` is the key that set_default points at."""

    entity: str
    truth: list[ParentChange]
    partitions: list[list[ParentChange]]
    start: set[Key] = field(default_factory=set)

    def batches(self, rng: random.Random, *, size_max: int = 6, lag: float = 0.5) -> Iterator[Batch]:
        """Split into batches. Each batch takes a few records from some partitions; with probability `lag` one
        partition is left to the end, so that everything else is enforced before it."""
        at = [0] * len(self.partitions)
        late = rng.randrange(len(self.partitions)) if rng.random() < lag else None
        while any(at[p] < len(records) for p, records in enumerate(self.partitions)):
            open_now = [p for p, records in enumerate(self.partitions) if at[p] < len(records)]
            if late in open_now and len(open_now) > 1 and rng.random() < 0.95:
                open_now.remove(late)
            changes: list[ParentChange] = []
            spans: dict[TopicPartition, Span] = {}
            for p in rng.sample(open_now, rng.randint(1, len(open_now))):
                count = rng.randint(1, size_max)
                taken = self.partitions[p][at[p] : at[p] + count]
                spans[TopicPartition(TOPIC, p)] = Span(at[p], at[p] + len(taken))
                at[p] += len(taken)
                changes += taken
            yield Batch(tuple(changes), spans, at_ms=1_700_000_000_000)


def random_history(
    rng: random.Random,
    *,
    keys: list[Key],
    steps: int,
    partition_count: int = 3,
    reemit: bool = True,
    entity: str = "customer",
) -> History:
    """Creates, deletes, key changes, swaps and chains over a few keys, so that keys are re-used again and again."""
    alive = {key for key in keys if rng.random() < 0.6}
    start = set(alive)
    records: list[list[ParentChange]] = [[] for _ in range(partition_count)]
    truth: list[ParentChange] = []
    lsn = 100

    def emit(op: Op, key: Key, to: Key | None = None, version: Version | None = None) -> ParentChange:
        partition = keys.index(key) % partition_count
        origin = Origin(TOPIC, partition, len(records[partition]), 1_700_000_000_000 + lsn)
        change = ParentChange(entity, op, key, to, version, origin, 1_700_000_000_000 + lsn)
        records[partition].append(change)
        return change

    def delete(key: Key) -> None:
        truth.append(emit(Op.DELETED, key, None, Version(0, (lsn,))))
        if rng.random() < 0.9:
            emit(Op.GONE, key)
        alive.discard(key)

    def move(key: Key, to: Key) -> None:
        truth.append(emit(Op.MOVED, key, to, Version(0, (lsn,))))
        if rng.random() < 0.9:
            emit(Op.GONE, key, to)
        emit(Op.ARRIVED, to, None, Version(0, (lsn,)))
        alive.discard(key)
        alive.add(to)

    for _ in range(steps):
        lsn += rng.randint(1, 5)
        free = [key for key in keys if key not in alive]
        choice = rng.random()
        if choice < 0.3 and free:
            key = rng.choice(free)
            emit(Op.ALIVE, key, None, Version(0, (lsn,)))
            alive.add(key)
        elif choice < 0.55 and alive:
            delete(rng.choice(sorted(alive)))
        elif choice < 0.9 and alive and free:
            move(rng.choice(sorted(alive)), rng.choice(free))
        elif len(alive) >= 2 and free:
            one, two = rng.sample(sorted(alive), 2)
            spare = rng.choice(free)
            for source, target in ((one, spare), (two, one), (spare, two)):
                lsn += 1
                move(source, target)
        if reemit and rng.random() < 0.1:
            partition = rng.randrange(partition_count)
            window = records[partition][-rng.randint(1, 6) :]
            while window and window[0].op is Op.GONE:  # a connector resumes before a deletion or after its tombstone
                window = window[1:]
            for old in window:
                again = old.origin._replace(offset=len(records[partition]))
                records[partition].append(old._replace(origin=again))
    return History(entity, truth, records, start)
