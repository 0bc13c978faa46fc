"""A copy equals its source: whatever the batches, the delays between partitions and what a connector emits again.

Real stores are compared with the model by the contract suite; here histories are many and short.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Cell, Op, Origin, ParentChange, Row, Version
from integrity.core.outcome import Applied
from integrity.core.rules.model import TargetKind
from integrity.ports import Deadline
from integrity.stores.memory_copy import MemoryCopy
from tests.contract.copies import copy_of
from tests.contract.world import ENTITY, TOPIC

KEYS = 4
PARTITIONS = 3
STEPS = 25


@dataclass
class Source:
    """A table of customers and what a connector writes of it. `name` changes; `mail` is large, and not sent when it has
    not changed."""

    seed: int
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    log: list[tuple[Op, int, int | None, int | None, Row | None]] = field(default_factory=list)
    """What is written, in the order of the source: op, key, new key, version, row."""

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        for at in range(1, STEPS + 1):
            self._step(chance, 10 * at)
        self.emitted = list(self.log)
        # After a crash a connector goes on from an older place, at new offsets; a null record comes with its deletion.
        starts = [place for place, (op, *_) in enumerate(self.log) if op is not Op.GONE]
        for _ in range(chance.randrange(3)):
            start = chance.choice(starts)
            self.emitted += self.log[start : start + chance.randrange(len(self.log) + 1)]

    def _step(self, chance: random.Random, at: int) -> None:
        key, free = chance.randrange(KEYS), [key for key in range(KEYS) if key not in self.rows]
        if key not in self.rows:
            self.rows[key] = at, at
            self._write(Op.ALIVE, key, None, at, self._row(key))
            return
        _, mail = self.rows[key]
        match chance.randrange(5):
            case 0:
                del self.rows[key]
                self._write(Op.DELETED, key, None, at, None)
                self._write(Op.GONE, key, None, None, None)
            case 1 if free:
                to = chance.choice(free)
                self.rows[to] = self.rows.pop(key)
                self._write(Op.MOVED, key, to, at, None)
                self._write(Op.GONE, key, to, None, None)
                self._write(Op.ARRIVED, to, None, at, self._row(to))
            case 2:
                self.rows[key] = at, at
                self._write(Op.ALIVE, key, None, at, self._row(key))
            case 3:
                self._write(Op.ALIVE, key, None, None, self._row(key))  # an incremental snapshot
            case _:
                self.rows[key] = at, mail
                self._write(Op.ALIVE, key, None, at, self._row(key) | {"mail": None})

    def _row(self, key: int) -> dict[str, Cell | None]:
        name, mail = self.rows[key]
        return {"name": Cell(name), "mail": Cell(mail)}

    def _write(self, op: Op, key: int, to: int | None, at: int | None, row: Row | None) -> None:
        self.log.append((op, key, to, at, row))

    def batches(self) -> Iterator[Batch]:
        """The partitions, each in its order, delayed against one another and cut anywhere."""
        chance = random.Random(self.seed + 1)
        partitions: dict[int, list[ParentChange]] = {number: [] for number in range(PARTITIONS)}
        # A snapshot's read is written once: a connector that starts again reads anew.
        events = [
            e for n, e in enumerate(self.emitted) if n < len(self.log) or e[0] is not Op.ALIVE or e[3] is not None
        ]
        for op, key, to, at, row in events:
            of = partitions[key % PARTITIONS]
            origin = Origin(TOPIC, key % PARTITIONS, len(of), 1)
            version = None if at is None else Version(0, (at,))
            of.append(ParentChange(ENTITY, op, (key,), None if to is None else (to,), version, origin, 1, row=row))
        read = dict.fromkeys(partitions, 0)
        while left := [number for number, of in partitions.items() if read[number] < len(of)]:
            changes: list[ParentChange] = []
            spans: dict[TopicPartition, Span] = {}
            for number in chance.sample(left, chance.randrange(1, len(left) + 1)):
                start, end = read[number], read[number] + chance.randrange(1, 9)
                found = partitions[number][start:end]
                changes += found
                read[number] = start + len(found)
                spans[TopicPartition(TOPIC, number)] = Span(start, start + len(found))
            yield Batch(tuple(changes), spans, 1)


async def copied(source: Source, *, marks: bool) -> Mapping[int, tuple[object, object]]:
    store = MemoryCopy("store", copy_of(TargetKind.TABLE, "customer_copy", marks=marks))
    for batch in source.batches():
        result = await store.apply(batch, Deadline.after(30))
        assert isinstance(result, Applied), result
    return {
        int(str(key[0])): (row["name"], row["email"])
        for key, row in store.rows.items()
        if not marks or row["deleted_at"] is None
    }


@pytest.mark.parametrize("marks", [False, True])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_copy_equals_the_source_in_any_batching_and_delay(seed: int, marks: bool) -> None:
    source = Source(seed)
    assert asyncio.run(copied(source, marks=marks)) == source.rows
