"""One random history in its own range of keys and row ids: rounds of statements on parents with the events that tell
of them, and between the rounds, when everything is at rest, the children's own writes.

A history is a function of the seed and its number. What it writes on children depends on the rows that native foreign
keys left, so it is handed them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiokafka.partitioner import murmur2

from integrity.core.change import Op
from tests.oracle.dependents import CUSTOMER, PARENTS, TARGETS, Row, Target
from tests.oracle.events import Key, Record, Writer
from tests.property.histories import AT_MS, Source, Statement, random_commands

IDS = 1_000
"""Row ids of one history."""
PHASES = 3
"""How often a round publishes: what one phase publishes is enforced before the next begins."""


class Write(NamedTuple):
    """A child's write: its row from now on, None when it is deleted. `new`: there was no row of that id."""

    target: Target
    id: int
    row: Row | None
    new: bool


@dataclass
class Round:
    """`sql` runs in the database of the parents; `phases` are the records to publish, one after the other."""

    sql: str
    phases: list[list[Record]] = field(default_factory=list)


class History:
    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        self._rng = random.Random(f"{seed}/{number}")
        self.parent = self._rng.choice(PARENTS)
        size = self._rng.randint(2, 6)
        if self.parent is CUSTOMER:
            self._keys: list[Key] = [(number * 100 + key,) for key in range(1, size + 1)]
            self._always: list[Key] = []
        else:
            tenants = (f"t{number}a", f"t{number}b")
            self._keys = [(tenants[key % 2], 1 + key // 2) for key in range(size)]
            # Where set_default of a part leads.
            self._always = [(tenant, 0) for tenant in tenants]
        self._writer = Writer(self.parent, self._keys, schemas=self._rng.random() < 0.05)
        start = {key for key in range(size) if self._rng.random() < 0.6}
        self._source = Source(range(size), start, self._partition_of)
        self._times: dict[int, int] = {}  # of each statement's place: the place whose time it has
        self._told = dict.fromkeys(range(self.parent.partitions), 0)
        # Rows that are parents and what depends on them: all or none.
        levels = self._rng.random() < 0.45
        self._targets = [
            target
            for target in TARGETS
            if target.root is self.parent
            and (levels if target.entity or target.parent is not self.parent else self._rng.random() < 0.45)
        ]
        self._ids = iter(range(number * IDS, (number + 1) * IDS))

    def parents(self) -> list[tuple[Any, ...]]:
        """The parents that are there before: rows of the parent's table."""
        alive = [self._keys[key] for key in sorted(self._source.alive)]
        return [(*key, "seed") for key in alive + self._always]

    def _partition_of(self, key: int) -> int:
        # As Java's default partitioner.
        return (murmur2(self._writer.key(key)) & 0x7FFFFFFF) % self.parent.partitions

    # --- the parent's statements ----------------------------------------------------------------------------------

    def round(self) -> Round:
        rng, source = self._rng, self._source
        done = len(source.statements)
        keys = range(len(self._keys))
        steps = rng.randint(1, 12)
        for command in random_commands(
            rng, source.alive, keys, steps, partition_count=self.parent.partitions, again=True
        ):
            source.do(command)
        sql = "".join(self._transactions(source.statements[done:]))
        return Round(sql, self._phases())

    def _transactions(self, statements: list[Statement]) -> Iterator[str]:
        """One to five statements a transaction; deletions, or key changes, of different parents are at times one."""
        rng = self._rng
        while statements:
            count = rng.randint(1, 5)
            ours, statements = statements[:count], statements[count:]
            yield "begin;\n"
            while ours:
                together = [ours.pop(0)]
                while ours and ours[0].op is together[0].op is not Op.ALIVE and _disjoint(ours[0], together):
                    if rng.random() < 0.5:
                        break
                    together.append(ours.pop(0))
                at = together[0].at
                self._times |= {each.at: at for each in together}
                yield f"set local oracle.at = '{AT_MS + at}'; {self._statement(together)};\n"
            yield "commit;\n"

    def _statement(self, together: list[Statement]) -> str:
        table, fields = self.parent.table, self.parent.fields
        first = together[0]
        keys = ", ".join(self._literal(each.key) for each in together)
        if first.op is Op.ALIVE:
            return f"insert into {table} values ({self._values(first.key)}, 'new')"
        if first.op is Op.DELETED:
            return f"delete from {table} where row({fields}) in ({keys})"
        if first.to is not None and len(together) == 1:
            return f"update {table} set ({fields}) = {self._literal(first.to)} where row({fields}) = {keys}"
        names = list(self.parent.key)
        old, new = [f"old_{name}" for name in names], [f"new_{name}" for name in names]
        rows = ", ".join(
            f"({self._values(each.key)}, {self._values(each.to)})" for each in together if each.to is not None
        )
        return (
            f"update {table} set {', '.join(f'{name} = {to}' for name, to in zip(names, new, strict=True))} "
            f"from (values {rows}) moved({', '.join(old + new)}) where row({fields}) = row({', '.join(old)})"
        )

    def _values(self, key: int) -> str:
        return ", ".join(map(repr, self._keys[key]))

    def _literal(self, key: int) -> str:
        return f"row({self._values(key)})"

    # --- the events -----------------------------------------------------------------------------------------------

    def _phases(self) -> list[list[Record]]:
        """What the connector wrote in this round, spread over the phases, each partition in its order.

        Half of the time one partition is held back until all else is enforced, or a partition's records are cut into
        parts, each of which waits for the parts before it of all others.
        """
        rng = self._rng
        phases: list[list[Record]] = [[] for _ in range(PHASES)]
        late = rng.choice([None, *range(self.parent.partitions)])
        cut = rng.random() < 0.3
        for partition, events in sorted(self._source.partitions.items()):
            records = [
                record
                for event in events[self._told[partition] :]
                for record in self._writer.records(event, partition, AT_MS + self._times.get(event.at, event.at), rng)
            ]
            self._told[partition] = len(events)
            if cut:
                cuts = sorted(rng.randint(0, len(records)) for _ in range(PHASES - 1))
                for phase, part in zip(phases, _split(records, cuts), strict=True):
                    phase += part
            else:
                phases[PHASES - 1 if partition == late else 0] += records
        return phases

    # --- the children's writes ------------------------------------------------------------------------------------

    def writes(self, rows: Mapping[Target, Mapping[int, Row]]) -> list[Write]:
        """What children write on the rows that are there: some are inserted under keys that are alive, some refer to
        another one, some are deleted."""
        rng = self._rng
        parents = [self._keys[key] for key in sorted(self._source.alive)]
        named = {target.entity: [(id_,) for id_ in sorted(rows.get(target, {}))] for target in self._targets}
        writes: list[Write] = []
        for target in self._targets:
            alive = named.get(target.parent.entity, parents)
            for id_, row in sorted(rows.get(target, {}).items()):
                if target.entity:  # its owner deletes no row that others depend on: no event would tell of it
                    continue
                chance = rng.random()
                if chance < 0.1:
                    writes.append(Write(target, id_, None, new=False))
                elif chance < 0.3:
                    marks = row[len(target.columns) - 2 :] if target.marks else ()
                    writes.append(Write(target, id_, self._row(target, alive, marks), new=False))
            for _ in range(rng.randint(0, 1 + min(5, len(alive)))):
                marks = (None, None) * target.marks
                id_ = next(self._ids)
                named.get(target.entity, []).append((id_,))
                writes.append(Write(target, id_, self._row(target, alive, marks), new=True))
        return writes

    def _row(self, target: Target, alive: list[Key], marks: Row) -> Row:
        rng = self._rng
        if target.lists:
            keys = [*alive, self.parent.default]
            return (tuple(rng.choice(keys)[0] for _ in range(rng.randint(0, 3))),)
        row: Row = ()
        for reference in target.references:
            others = [self.parent.default, *self._always] if target.parent is self.parent else [(None,)]
            key = rng.choice(alive) if alive and rng.random() < 0.9 else rng.choice(others)
            chance = rng.random()
            if chance < 0.05:
                key = (None,) * len(key)
            elif chance < 0.1 and len(key) > 1:  # MATCH SIMPLE: a null part makes it no reference
                key = rng.choice([(key[0], None), (None, key[1])])
            assert len(reference.columns) == len(key)
            row += key
        if target.where:
            chance = rng.random()
            row += (
                rng.choice(["Customer"] * 4 + ["Vendor", None]),
                rng.choice(["eu", "uk"] * 3 + ["us", None]),
                datetime(2026, 1, 2, tzinfo=UTC) if chance < 0.15 else None,
            )
        return row + marks


def _disjoint(one: Statement, others: list[Statement]) -> bool:
    keys = {key for other in others for key in (other.key, other.to)}
    return keys.isdisjoint({one.key, one.to} - {None})


def _split(records: list[Record], cuts: list[int]) -> Iterator[list[Record]]:
    start = 0
    for end in [*cuts, len(records)]:
        yield records[start:end]
        start = end
