"""A truncate ends where the deletion of every parent ends, in any batching and delay between partitions.

It is carried out when everything is enforced that a connector has written by then. What is created again, or comes by a
key change, between the truncate and that moment is left alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Truncation, Version
from integrity.core.decode.record import Record
from integrity.core.keys import Key
from integrity.core.outcome import Applied
from integrity.core.truncate import Note
from integrity.ports import Deadline
from integrity.service import truncate as service
from integrity.stores.memory import MemoryStore
from integrity.stores.rule import StoreRule
from tests.contract.truncates import Desk
from tests.property.histories import AT_MS, TOPIC, Event, Snapshot, Source, Statement, random_commands
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one, rules_of

KEYS: Sequence[Key] = [(number,) for number in range(6)]
PARTITIONS = 3
CASES = 150


class Table(Source):
    """A parent's table that is truncated now and then. A record of that is an event of no key: -1."""

    def truncate(self, partition: int) -> None:
        at = self._record(Op.DELETED, -1)
        self.partitions.setdefault(partition, []).append(Event(Op.DELETED, -1, None, at))
        self.alive.clear()


def change(event: Event | Statement, partition: int, offset: int) -> ParentChange:
    op, key, other, at = event
    to = None if other is None or op is Op.ARRIVED else KEYS[other]
    version = None if op is Op.GONE else Version(0, (at,))
    origin = Origin(TOPIC, partition, offset, AT_MS + at)
    return ParentChange("customer", op, () if key < 0 else KEYS[key], to, version, origin, AT_MS + at)


def batch_of(records: Sequence[ParentChange], spans: Mapping[TopicPartition, Span]) -> Batch:
    notes = tuple(
        Note.of(
            Truncation("customer", record.version, record.origin, record.occurred_ms),
            Record(*record.origin, None, b"t", ()),
        ).to_keep()
        for record in records
        if not record.key and record.version is not None
    )
    return Batch(tuple(record for record in records if record.key), spans, AT_MS, notes=notes)


def truth(statements: Sequence[Statement], alive: set[int]) -> list[ParentChange]:
    """What the statements of one stretch come to; `alive` are the keys before it, and after it."""
    found: list[ParentChange] = []
    for index, (op, key, to, at) in enumerate(statements):
        if key >= 0:
            if op is not Op.ALIVE:
                found.append(change(Statement(op, key, to, at), 0, 0))
                alive.discard(key)
            alive |= {key} if op is Op.ALIVE else set() if to is None else {to}
            continue
        later = {number for each in statements[index + 1 :] for number in (each.key, each.to)}
        found += [change(Statement(Op.DELETED, gone, None, at), 0, 0) for gone in sorted(alive - later)]
        alive.clear()
    return found


def run(seed: int, *, waits: bool = True) -> list[str]:
    rng = random.Random(seed)
    rules: list[StoreRule] = [_kept(each) for each in rules_of(1)]
    start = {number for number in range(len(KEYS)) if rng.random() < 0.6}
    rows = initial_rows(rules, KEYS, rng)
    expected = deepcopy(rows)
    store: Any = MemoryStore("memory", {"customer": rules}, rows)
    desk = Desk(store, {"customer": rules})
    source, alive = Table(range(len(KEYS)), start, lambda key: key % PARTITIONS), set(start)
    source.do(Snapshot())
    at = [0] * PARTITIONS

    async def stretch() -> None:
        """Some statements, a truncate among them; then everything is delivered, and the truncate carried out."""
        told = len(source.statements)
        commands = [*random_commands(rng, source.alive, range(len(KEYS)), 14, partition_count=PARTITIONS, again=True)]
        cut = rng.randint(0, len(commands))
        for command in commands[:cut]:
            source.do(command)
        source.truncate(rng.randrange(PARTITIONS))
        for command in commands[cut:]:
            source.do(command)
        one_by_one(truth(source.statements[told:], alive), rules, expected)
        late = rng.randrange(PARTITIONS) if rng.random() < 0.5 else None
        while any(at[p] < len(source.partitions.get(p, ())) for p in range(PARTITIONS)):
            open_now = [p for p in range(PARTITIONS) if at[p] < len(source.partitions.get(p, ()))]
            if late in open_now and len(open_now) > 1:
                open_now.remove(late)
            records: list[ParentChange] = []
            spans: dict[TopicPartition, Span] = {}
            for p in rng.sample(open_now, rng.randint(1, len(open_now))):
                taken = source.partitions[p][at[p] : at[p] + rng.randint(1, 6)]
                records += [change(event, p, at[p] + n) for n, event in enumerate(taken)]
                spans[TopicPartition(TOPIC, p)] = Span(at[p], at[p] + len(taken))
                at[p] += len(taken)
            assert isinstance(await store.apply(batch_of(records, spans), Deadline.after(5)), Applied)
            if not waits:
                await desk.round()
        await desk.round()
        assert await desk.waiting() == []

    async def all_stretches() -> None:
        for _ in range(rng.randint(1, 3)):
            await stretch()

    asyncio.run(all_stretches())
    return differences(expected, store.targets)


def _kept(rule: StoreRule) -> StoreRule:
    return replace(rule, keeps_alive=True)


def test_truncate_ends_where_the_deletion_of_every_parent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "KEYS_MAX", 2)
    for seed in range(CASES):
        assert run(seed) == [], f"seed {seed}"


def test_the_comparison_bites_when_a_truncate_does_not_look_at_what_was_heard_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Note, "concerns", lambda note, head: head.seen is not None and head.seen < note.version)
    assert any(run(seed) for seed in range(CASES))


def test_the_comparison_bites_when_a_truncate_does_not_wait_for_what_came_before_it() -> None:
    assert any(run(seed, waits=False) for seed in range(CASES))
