"""Whatever is read again, from whatever place, was enforced once: also where nobody knows whether the progress means
anything, as with a database a tenant, of which most have no event for long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest

from integrity.core import redrive
from integrity.core.batch import Batch, DeadLetterMark, Redrive, Span, TopicPartition
from integrity.core.change import Op, ParentChange, Version
from integrity.core.keys import Key
from integrity.core.outcome import Applied, Outcome, Rejected
from integrity.errors import Reason
from integrity.ports import Deadline, Store
from integrity.stores.memory import MemoryStore, Row
from integrity.stores.rule import StoreRule
from tests.property.histories import TOPIC, History, history, random_commands, random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one, rules_of
from tests.property.test_fold_equals_one_by_one import row as row_of

REDRIVES = TopicPartition("integrity.redrive", 0)
HISTORIES = 80
Rows = dict[str, list[Row]]
Open = Callable[[Sequence[StoreRule], Rows], Awaitable[Store]]
Look = Callable[[], Awaitable[Rows]]
Write = Callable[[Rows], Awaitable[None]]


def compacted_history(rng: random.Random, keys: Sequence[Key]) -> History:
    """Creations and deletions, of which compaction has removed some of the deletions' own records."""
    start = {number for number in range(len(keys)) if rng.random() < 0.6}
    commands = random_commands(rng, start, range(len(keys)), 30, partition_count=3, again=False)
    whole = history((c for c in commands if type(c).__name__ in ("Create", "Delete")), keys=keys, start=start)
    for records in whole.partitions:
        gone = {r.key for r in records if r.op is Op.GONE and rng.random() < 0.6}
        records[:] = [
            r
            for i, r in enumerate(records)
            if r.op is not Op.DELETED or r.key not in gone or i + 1 == len(records) or records[i + 1].op is not Op.GONE
        ]
    return whole


class Log:
    """What a lane reads, and reads again from any earlier place; each event's dead letters, which come back."""

    def __init__(self, store: Store, rng: random.Random, dependents: Sequence[str], events: History) -> None:
        self._store, self._rng, self._dependents = store, rng, dependents
        self._partitions = events.partitions
        self.at = [0] * len(events.partitions)
        self.redrives: list[tuple[ParentChange, str]] = []
        self.letters: dict[tuple[str, str], tuple[ParentChange, str]] = {}
        self.acted = 0

    async def read_on(self) -> bool:
        """Some records of a partition; False at the end of all."""
        open_now = [p for p, records in enumerate(self._partitions) if self.at[p] < len(records)]
        if not open_now:
            return False
        p = self._rng.choice(open_now)
        upto = min(len(self._partitions[p]), self.at[p] + self._rng.randint(1, 4))
        await self._read(p, self.at[p], upto)
        self.at[p] = upto
        if self.letters and self._rng.random() < 0.3:
            await self.retry(self._rng.choice(sorted(self.letters)))
        return True

    async def read_again(self) -> None:
        """From an earlier place up to where it was."""
        p = self._rng.randrange(len(self.at) + 1)
        if p < len(self.at):
            place = self._rng.randint(0, self.at[p])
            while place < self.at[p]:
                upto = min(self.at[p], place + self._rng.randint(1, 6))
                await self._read(p, place, upto)
                place = upto
        else:
            for offset in range(self._rng.randint(0, len(self.redrives)), len(self.redrives)):
                await self._redrive(offset)

    async def retry(self, name: tuple[str, str]) -> None:
        self.redrives.append(self.letters.pop(name))
        await self._redrive(len(self.redrives) - 1)

    async def _read(self, p: int, place: int, upto: int) -> None:
        records = self._partitions[p][place:upto]
        end = records[-1].origin.offset + 1
        happened = [i for i, r in enumerate(records) if r.op in (Op.DELETED, Op.MOVED, Op.GONE)]
        left_out = {(i, d) for i in happened for d in self._dependents if self._rng.random() < 0.05}
        await self._insist(Batch(tuple(records), {TopicPartition(TOPIC, p): Span(0, end, again=True)}, 0), left_out)

    async def _redrive(self, offset: int) -> None:
        change, dependent = self.redrives[offset]
        back = Redrive("letter", dependent, REDRIVES, offset)
        await self._insist(Batch((change,), {REDRIVES: Span(0, offset + 1, again=True)}, 0, redrives={0: back}), set())

    async def _insist(self, batch: Batch, left_out: set[tuple[int, str]]) -> None:
        marks = {
            (i, d): DeadLetterMark(Reason.STORE_REJECTED, f"{batch.changes[i].origin.event_id} {d}")
            for i, d in left_out
        }
        result = await self._store.apply(replace(batch, exceptions=marks), Deadline.after(30))
        if isinstance(result, Rejected) and len(batch.changes) > 1:
            for index, change in enumerate(batch.changes):
                spans = {at: span._replace(next=change.origin.offset + 1) for at, span in batch.spans.items()}
                alone = {(0, d) for i, d in left_out if i == index}
                await self._insist(replace(batch, changes=(change,), spans=spans), alone)
            return
        if isinstance(result, Rejected):
            assert (0, result.dependent) not in left_out, result
            return await self._insist(batch, {*left_out, (0, result.dependent)})
        assert isinstance(result, Applied), result
        for effect in result.effects:
            change = batch.changes[effect.change]
            if effect.outcome is Outcome.DEAD_LETTERED:
                self.letters[change.origin.event_id, effect.dependent] = change, effect.dependent
            self.acted += effect.rows


def alive_at_last(events: History) -> set[Key]:
    """The keys that are in use at the end."""
    newest: dict[Key, tuple[Version, bool]] = {key: (Version(-1, ()), True) for key in events.start}
    for records in events.partitions:
        for r in records:
            seen, _ = newest.get(r.key, (Version(-1, ()), False))
            if r.version is None:
                newest[r.key] = seen, False
            elif r.version >= seen:
                newest[r.key] = r.version, r.op in (Op.ALIVE, Op.ARRIVED)
    return {key for key, (_, alive) in newest.items() if alive}


async def replayed(
    seed: int, rules: Sequence[StoreRule], keys: list[Key], open_: Open, look: Look, write: Write
) -> list[str]:
    """One line a row that is wrong."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    is_compacted = seed % 2 == 1
    events = compacted_history(rng, keys) if is_compacted else random_history(rng, keys=keys, steps=25)
    rows = initial_rows(rules, keys, rng)
    expected = deepcopy(rows)
    one_by_one(events.truth, rules, expected)
    log = Log(await open_(rules, rows), rng, [] if is_compacted else [rule.id for rule in rules], events)
    while await log.read_on():
        if rng.random() < 0.3:
            await log.read_again()
    left = -1
    while left != len(log.letters):
        left = len(log.letters)
        for name in sorted(log.letters, key=lambda name: log.letters[name][0].origin[1:3]):
            if name in log.letters:
                await log.retry(name)
    unfinished = {dependent for _, dependent in log.letters.values()}
    found = await look()
    checked = [rule.dependent.name for rule in rules if rule.id not in unfinished]
    lines = differences({name: expected[name] for name in checked}, {name: found[name] for name in checked})
    # Their owner writes rows of the parents that are there, which no event that is read again may touch.
    await write(
        {
            rule.dependent.name: [
                row_of(rule, 1000 * (1 + at) + i, key) for i, key in enumerate(sorted(alive_at_last(events)))
            ]
            for at, rule in enumerate(rules)
        }
    )
    before, acted = await look(), log.acted
    for _ in range(8):
        await log.read_again()
    for p, end in enumerate(log.at):
        if end:
            await log._read(p, 0, end)
    lines += differences(before, await look())
    return [*lines, *([f"{log.acted - acted} rows were acted on again"] if log.acted != acted else [])]


def in_memory(seed: int) -> list[str]:
    rng = random.Random(seed)
    rules = rng.sample(rules_of(1), 3)
    stores: list[MemoryStore] = []

    async def open_(rules: Sequence[StoreRule], rows: Rows) -> Store:
        stores.append(MemoryStore("memory", {"customer": rules}, rows))
        return stores[0]

    async def look() -> Rows:
        return deepcopy(stores[0].targets)

    async def write(rows: Mapping[str, list[Row]]) -> None:
        for name, of_table in rows.items():
            stores[0].targets[name] += of_table

    keys: list[Key] = [(number,) for number in range(rng.randint(3, 8))]
    return asyncio.run(replayed(seed, rules, keys, open_, look, write))


def test_what_is_read_again_changes_nothing() -> None:
    for seed in range(HISTORIES):
        assert in_memory(seed) == [], f"seed {seed}"


def test_the_comparison_bites_when_repeated_records_pass_for_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "_no_news", lambda *_: ())
    assert any(in_memory(seed) for seed in range(HISTORIES))
