"""Effects left out at random, and redriven at random: they end where every event at once would have ended."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import pytest

from integrity.core import redrive
from integrity.core.batch import Batch, DeadLetterMark, Redrive, Span, TopicPartition
from integrity.core.change import Op, ParentChange
from integrity.core.fold import Settled
from integrity.core.keys import Key
from integrity.core.ledger import Fate
from integrity.core.outcome import Applied, ApplyResult, Outcome, Rejected
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.memory import MemoryStore, Row
from tests.property.histories import TOPIC, random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one, rules_of

REDRIVES = TopicPartition("integrity.redrive", 0)
HISTORIES = 120


class Letter(NamedTuple):
    change: ParentChange
    dependent: str


class Delivery:
    """Applies one event a batch, as a lane does after it was halved, and keeps what it sets apart."""

    def __init__(self, store: MemoryStore, rng: random.Random, dependents: list[str]) -> None:
        self.store = store
        self.rng = rng
        self.dependents = dependents
        self.letters: dict[tuple[str, str], Letter] = {}
        self.redriven = 0

    async def event(self, change: ParentChange, span: Span) -> None:
        at = TopicPartition(TOPIC, change.origin.partition)
        left_out = {d for d in self.dependents if self.rng.random() < 0.15}
        if change.op not in (Op.DELETED, Op.MOVED, Op.GONE):
            left_out = set()
        batch = Batch((change,), {at: span}, 0)
        await self._insist(change, batch, left_out)

    async def redrive(self, name: tuple[str, str]) -> None:
        """Send one letter back. It may fail again, and is there again."""
        letter = self.letters.pop(name)
        offset, self.redriven = self.redriven, self.redriven + 1
        back = Redrive("letter", letter.dependent, REDRIVES, offset)
        batch = Batch((letter.change,), {REDRIVES: Span(offset, offset + 1)}, 0, redrives={0: back})
        await self._insist(letter.change, batch, set())

    async def _insist(self, change: ParentChange, batch: Batch, left_out: set[str]) -> None:
        while True:
            marks = {(0, d): DeadLetterMark(Reason.STORE_REJECTED, f"{change.origin.event_id} {d}") for d in left_out}
            result: ApplyResult = await self.store.apply(replace(batch, exceptions=marks), Deadline.after(5))
            if isinstance(result, Applied):
                for effect in result.effects:
                    if effect.outcome is Outcome.DEAD_LETTERED:
                        self.letters[change.origin.event_id, effect.dependent] = Letter(change, effect.dependent)
                return
            assert isinstance(result, Rejected) and result.dependent not in left_out, result
            left_out = {*left_out, result.dependent}


def run(seed: int) -> tuple[dict[str, list[Row]], dict[str, list[Row]], set[str], int]:
    """The rows after native foreign keys, the rows after us, the dependents of letters that stay, how many acted."""
    rng = random.Random(seed)
    keys = [(number,) for number in range(rng.randint(3, 8))]
    rules = rng.sample(rules_of(1), 3)
    history = random_history(rng, keys=keys, steps=rng.randint(1, 25))
    rows = initial_rows(rules, keys, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, rules, expected)
    store = MemoryStore("memory", {"customer": rules}, rows)
    delivery = Delivery(store, rng, [rule.id for rule in rules])

    async def deliver() -> int:
        at = [0] * len(history.partitions)
        while open_now := [p for p, records in enumerate(history.partitions) if at[p] < len(records)]:
            p = rng.choice(open_now)
            await delivery.event(history.partitions[p][at[p]], Span(at[p], at[p] + 1))
            at[p] += 1
            if delivery.letters and rng.random() < 0.2:
                await delivery.redrive(rng.choice(sorted(delivery.letters)))
        sent = len(delivery.letters)
        left = -1
        while left != len(delivery.letters):
            left = len(delivery.letters)
            for name in sorted(delivery.letters, key=lambda name: delivery.letters[name].change.origin[1:3]):
                if name in delivery.letters:
                    await delivery.redrive(name)
        return sent - len(delivery.letters)

    acted = asyncio.run(deliver())
    return expected, store.targets, {letter.dependent for letter in delivery.letters.values()}, acted


def faults(seed: int) -> tuple[list[str], Counter[str]]:
    """One line a row that is wrong, and what the history had. A letter that stays (its key was in use again) may leave
    rows as they were; it never takes one too many."""
    expected, found, unfinished, acted = run(seed)
    had = Counter({"acted": acted})
    lines = []
    for name in expected:
        if f"customer.{name}" in unfinished:
            had["stayed"] += 1
            gone = {row["id"] for row in expected[name]} - {row["id"] for row in found[name]}
            lines += [f"{name} lost row {id_}" for id_ in gone]
        else:
            had["whole"] += 1
            lines += [line for line in differences(expected, found) if line.startswith(f"{name} row")]
    return lines, had


def test_what_was_left_out_and_redriven_ends_where_every_event_at_once_ends() -> None:
    had: Counter[str] = Counter()
    for seed in range(HISTORIES):
        lines, of_seed = faults(seed)
        assert lines == [], f"seed {seed}"
        had += of_seed
    assert min(had.values()) > 40, had  # the histories have what they are for


def test_the_comparison_bites_when_later_events_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrive, "_waiting", lambda *_: None)
    assert any(faults(seed)[0] for seed in range(HISTORIES))


def test_the_comparison_bites_when_a_key_in_use_again_is_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_fate(settled: Settled, key: Key, event: str) -> Fate | None:
        return next((fate for fate in settled.fates.get(key, ()) if fate.event_id == event), None)

    monkeypatch.setattr(redrive, "_last_fate", any_fate)
    assert any(faults(seed)[0] for seed in range(HISTORIES))
