"""Runs histories side by side in a world: rounds in step, compared at every rest."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from integrity.core.keys import canonical, key_hash
from tests.oracle.dependents import PARENTS, Parent
from tests.oracle.events import EMAIL, Key, Record
from tests.oracle.history import IDS, PHASES, History, Round
from tests.oracle.world import Restricted, Rows, World

ROUNDS = 3

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What came of some histories. `restricted` are the events that native foreign keys would have refused.
    `differences`: per side and history, a line for each row that differs."""

    histories: int = 0
    statements: int = 0
    events: int = 0
    rows: int = 0
    restricted: int = 0
    differences: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.histories += other.histories
        self.statements += other.statements
        self.events += other.events
        self.rows += other.rows
        self.restricted += other.restricted
        self.differences |= other.differences


async def run_wave(world: World, seed: int, numbers: range, *, say: Say | None = None) -> Outcome:
    """Run these histories. `say` is told every statement, write and event."""
    histories = [History(seed, number) for number in numbers]
    ids = range(numbers.start * IDS, numbers.stop * IDS)
    keys = {
        (history.parent.entity, canonical(key)): (key_hash(history.parent.entity, key), history.number, key)
        for history in histories
        for key in history.keys
    }
    mixing = random.Random(f"{seed}/{numbers.start}/mixing")
    outcome = Outcome(histories=len(histories))
    await world.begin({parent: [r for h in histories if h.parent is parent for r in h.parents()] for parent in PARENTS})
    told: dict[Parent, set[Key]] = {parent: set() for parent in PARENTS}
    at_rest: Rows = {}
    refused: Restricted = {}
    for _ in range(ROUNDS):
        own = _by_history(at_rest)
        writes = [write for history in histories for write in history.writes(own.get(history.number, {}))]
        await world.write(writes)
        rounds = [history.round() for history in histories]
        await world.execute("".join(each.sql for each in rounds))
        outcome.statements += sum(each.sql.count("set local oracle.at") for each in rounds)
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
        for history, each in zip(histories, rounds, strict=True):
            told[history.parent] |= history.told(each)
        await world.settle(mixing)
        at_rest = await world.native_rows(ids)
        outcome.rows += sum(len(rows) for rows in at_rest.values())
        refused = await world.native_restricted({at: hash_ for at, (hash_, _, _) in keys.items()})
        number_of = {hash_: number for hash_, number, _ in keys.values()}
        for side in world.sides:
            name = side.name if side.without is None else f"without {side.without}"
            _compare(name, at_rest, await side.rows(ids), outcome)
            for parent in side.copied:
                numbers_of = {key: number for (entity, _), (_, number, key) in keys.items() if entity == parent.entity}
                lives = (await world.native_parents(parent)) & told[parent]
                _compare_copy(name, parent, lives, await side.copy(parent), numbers_of, outcome)
            _compare_restricted(
                name, refused, await side.restricted(number_of.keys()), number_of, side.dependents, outcome
            )
    outcome.restricted = len(refused)
    await world.forget(ids)
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


def _compare(side: str, native: Rows, ours: Rows, outcome: Outcome) -> None:
    for target, found in ours.items():
        expected = native[target]
        if expected == found:
            continue
        for id_ in sorted(expected.keys() | found.keys()):
            if expected.get(id_) != found.get(id_):
                line = f"{target.name} {id_}: native {expected.get(id_)}, ours {found.get(id_)}"
                outcome.differences.setdefault((side, id_ // IDS), []).append(line)


def _compare_copy(
    side: str,
    parent: Parent,
    lives: Collection[Key],
    copy: Mapping[Key, str],
    number_of: Mapping[Key, int],
    outcome: Outcome,
) -> None:
    """A copy has a row of every parent that lives, of those that anything was told of."""
    expected = dict.fromkeys(lives, EMAIL)
    for key, number in number_of.items():
        if expected.get(key) != copy.get(key):
            line = f"copy of {parent.entity} {key}: native {expected.get(key)}, ours {copy.get(key)}"
            outcome.differences.setdefault((side, number), []).append(line)


def _compare_restricted(
    side: str,
    native: Restricted,
    ours: Restricted,
    number_of: Mapping[bytes, int],
    dependents: Collection[str],
    outcome: Outcome,
) -> None:
    """An event reports the rows that refer when it applies: those that were at the key when the round began, and of
    those that a key change led there as many as came before it."""
    for at in sorted(native.keys() | ours.keys()):
        there, held = native.get(at, (0, 0))
        rows = ours.get(at, 0)
        if at[0] in dependents and not there <= rows <= held:
            line = f"{at[0]} restricted at {at[2]}: native {there} to {held}, ours {rows}"
            outcome.differences.setdefault((side, number_of[at[1]]), []).append(line)


def _tell(say: Say, histories: Sequence[History], rounds: Sequence[Round], writes: Sequence[object]) -> None:
    for write in writes:
        target, id_, row, _ = write  # type: ignore[misc]
        say(f"write   {target.name} {id_}: {row}")
    for each in rounds:
        say(each.sql)
        for number, phase in enumerate(each.phases):
            for record in phase:
                say(f"event   phase {number} partition {record.partition}: {record.text}")
