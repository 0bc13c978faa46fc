"""Runs histories side by side in a world: rounds in step, compared at every rest."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.oracle.dependents import PARENTS
from tests.oracle.events import Record
from tests.oracle.history import IDS, PHASES, History, Round
from tests.oracle.world import Rows, World

ROUNDS = 3

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What came of some histories. `differences`: per side and history, a line for each row that differs."""

    histories: int = 0
    statements: int = 0
    events: int = 0
    rows: int = 0
    differences: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.histories += other.histories
        self.statements += other.statements
        self.events += other.events
        self.rows += other.rows
        self.differences |= other.differences


async def run_wave(world: World, seed: int, numbers: range, *, say: Say | None = None) -> Outcome:
    """Run these histories. `say` is told every statement, write and event."""
    histories = [History(seed, number) for number in numbers]
    ids = range(numbers.start * IDS, numbers.stop * IDS)
    mixing = random.Random(f"{seed}/{numbers.start}/mixing")
    outcome = Outcome(histories=len(histories))
    for parent in PARENTS:
        rows = [row for history in histories if history.parent is parent for row in history.parents()]
        await world.native.copy_records_to_table(parent.table, records=rows)
    at_rest: Rows = {}
    for _ in range(ROUNDS):
        own = _by_history(at_rest)
        writes = [write for history in histories for write in history.writes(own.get(history.number, {}))]
        await world.write(writes)
        rounds = [history.round() for history in histories]
        for each in filter(lambda each: each.sql, rounds):
            await world.native.execute(each.sql)
            outcome.statements += each.sql.count("set local")
        if say is not None:
            _tell(say, histories, rounds, writes)
        for phase in range(PHASES):
            streams = [
                [(history.parent.entity, record) for record in each.phases[phase]]
                for history, each in zip(histories, rounds, strict=True)
            ]
            if records := list(_mixed(streams, mixing)):
                await world.publish(records)
                outcome.events += len(records)
        at_rest = await world.native_rows(ids)
        outcome.rows += sum(len(rows) for rows in at_rest.values())
        for side in world.sides:
            _compare(side.name, side.without, at_rest, await side.rows(ids), outcome)
    return outcome


def _by_history(rows: Rows) -> dict[int, Rows]:
    found: dict[int, Rows] = {}
    for target, of_target in rows.items():
        for id_, row in of_target.items():
            found.setdefault(id_ // IDS, {}).setdefault(target, {})[id_] = row
    return found


def _mixed(streams: Sequence[list[tuple[str, Record]]], rng: random.Random) -> Iterator[tuple[str, Record]]:
    """All streams, each in its order: one after the other, or in turns of a few records, so that a batch holds much of
    one history or a little of many."""
    size_max = rng.choice([1, 3, 1_000])
    left = [iter(stream) for stream in streams]
    while left:
        rng.shuffle(left)
        still = []
        for stream in left:
            taken = 0
            for taken, item in enumerate(stream, 1):
                yield item
                if taken == size_max:
                    still.append(stream)
                    break
        left = still


def _compare(side: str, without: str | None, native: Rows, ours: Rows, outcome: Outcome) -> None:
    name = side if without is None else f"without {without}"
    for target, found in ours.items():
        expected = native[target]
        if expected == found:
            continue
        for id_ in sorted(expected.keys() | found.keys()):
            if expected.get(id_) != found.get(id_):
                line = f"{target.name} {id_}: native {expected.get(id_)}, ours {found.get(id_)}"
                outcome.differences.setdefault((name, id_ // IDS), []).append(line)


def _tell(say: Say, histories: Sequence[History], rounds: Sequence[Round], writes: Sequence[object]) -> None:
    for write in writes:
        target, id_, row, _ = write  # type: ignore[misc]
        say(f"write   {target.name} {id_}: {row}")
    for each in rounds:
        say(each.sql)
        for number, phase in enumerate(each.phases):
            for record in phase:
                say(f"event   phase {number} partition {record.partition}: {record.text}")
