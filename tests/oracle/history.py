"""One random history in its own range of keys and row ids: rounds of statements on parents with the events that tell
of them, and between the rounds, when everything is at rest, the children's own writes.

A history is a function of the seed and its number. What it writes on children depends on the rows that native foreign
keys left, so it is handed them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from aiokafka.partitioner import murmur2

from integrity.core.change import Op
from tests.oracle.dependents import ACCOUNT, PARENTS, TARGETS, Parent, Reference, Row, Target
from tests.oracle.events import Key, Record, Writer
from tests.property.histories import AT_MS, START, Source, Statement, random_commands

IDS = 10_000
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
        if self.parent is not ACCOUNT:
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
        self._targets = self._chosen()
        self._ids = iter(range(number * IDS, (number + 1) * IDS))

    def _chosen(self) -> list[Target]:
        """The dependents of this history: with rows that are parents come most of what depends on them."""
        chosen: list[Target] = []
        named = {self.parent}
        for target in TARGETS:
            if target.root is self.parent and target.parents <= named:
                chance = 0.7 if target.parents != {self.parent} else 0.4
                if self._rng.random() < chance:
                    chosen.append(target)
                    if target.rows is not None:
                        named.add(target.rows)
        return chosen

    @property
    def keys(self) -> list[Key]:
        """The keys that its parents may have."""
        return self._keys

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
        since = AT_MS + self._now + 1
        keys = range(len(self._keys))
        steps = rng.randint(1, 12)
        for command in random_commands(
            rng, source.alive, keys, steps, partition_count=self.parent.partitions, again=True
        ):
            source.do(command)
        sql = "".join(self._transactions(source.statements[done:], since))
        return Round(sql, self._phases())

    def told(self, each: Round) -> set[Key]:
        """The keys that something was told of in a round."""
        return {self._writer.said(record) for phase in each.phases for record in phase}

    @property
    def _now(self) -> int:
        """The place of the last statement."""
        return self._source.statements[-1].at if self._source.statements else START

    def _transactions(self, statements: list[Statement], since: int) -> Iterator[str]:
        """One to five statements a transaction; deletions, or key changes, of different parents are at times one."""
        rng = self._rng
        while statements:
            count = rng.randint(1, 5)
            ours, statements = statements[:count], statements[count:]
            yield f"begin; set local oracle.since = '{since}';\n"
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
        alive: dict[Parent, list[Key]] = {self.parent: [self._keys[key] for key in sorted(self._source.alive)]}
        for target in self._targets:
            if target.rows is not None:
                alive[target.rows] = [target.key_of(id_, row) for id_, row in sorted(rows.get(target, {}).items())]
        writes: list[Write] = []
        for target in self._targets:
            for id_, row in sorted(rows.get(target, {}).items()):
                chance = rng.random()
                if chance < 0.1:
                    # No row that others depend on: no event would tell of it.
                    if target.rows is None:
                        writes.append(Write(target, id_, None, new=False))
                elif chance < 0.3 and not target.is_identified:
                    writes.append(Write(target, id_, self._row(target, alive, row), new=False))
            for _ in range(rng.randint(0, 1 + min(5, len(alive[target.references[0].parent])))):
                if target.is_identified and not alive[target.references[0].parent]:
                    break
                id_ = next(self._ids)
                if target.rows is not None and not target.is_identified:
                    alive[target.rows].append((id_,))
                row = self._row(target, alive, None)
                if target.rows is not None and target.is_identified:
                    alive[target.rows].append(target.key_of(id_, row))
                writes.append(Write(target, id_, row, new=True))
        return writes

    def _row(self, target: Target, alive: Mapping[Parent, list[Key]], before: Row | None) -> Row:
        rng = self._rng
        if target.lists:
            keys = [*alive[self.parent], self.parent.default]
            return (tuple(rng.choice(keys)[0] for _ in range(rng.randint(0, 3))),)
        row: Row = ()
        for reference in target.references:
            row += self._reference(target, reference, alive[reference.parent])
        if target.marks:
            row += (None, None) if before is None else before[len(row) : len(row) + 2]
        if target.aged:
            row += (self._birth(),)
        if target.where:
            chance = rng.random()
            row += (
                rng.choice(["Customer"] * 4 + ["Vendor", None]),
                rng.choice(["eu", "uk"] * 3 + ["us", None]),
                datetime(2026, 1, 2, tzinfo=UTC) if chance < 0.15 else None,
            )
        return row

    def _reference(self, target: Target, reference: Reference, alive: Sequence[Key]) -> Key:
        rng = self._rng
        if target.is_identified:
            return rng.choice(alive)
        others = [reference.parent.default, *(self._always if reference.parent is self.parent else ())]
        key = rng.choice(alive) if alive and rng.random() < 0.9 else rng.choice(others)
        chance = rng.random()
        if chance < 0.05:
            key = (None,) * len(key)
        elif chance < 0.1 and len(key) > 1 and not reference.full:  # MATCH SIMPLE: a null part makes it no reference
            gone = rng.randrange(len(key))
            key = (*key[:gone], None, *key[gone + 1 :])
        assert len(reference.columns) == len(key)
        return key

    def _birth(self) -> datetime | None:
        """When a row came to be: at times later than what happens to its parent next, by some clock."""
        if self._rng.random() < 0.1:
            return None
        return datetime.fromtimestamp(AT_MS / 1000, UTC) + timedelta(
            milliseconds=self._now + self._rng.randint(-20, 40)
        )


def _disjoint(one: Statement, others: list[Statement]) -> bool:
    keys = {key for other in others for key in (other.key, other.to)}
    return keys.isdisjoint({one.key, one.to} - {None})


def _split(records: list[Record], cuts: list[int]) -> Iterator[list[Record]]:
    start = 0
    for end in [*cuts, len(records)]:
        yield records[start:end]
        start = end
