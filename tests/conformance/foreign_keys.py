"""One history, run twice: with native foreign keys, and with the PostgreSQL store fed what the statements did.

A case holds tables, references, rows and statements on parents, nothing else. Natively the references are constraints.
On our side they are rules: the statements run on a copy without the constraints, a trigger takes down each change of a
parent's row as its write-ahead log has it, and the store gets these changes as Debezium sends them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from itertools import count
from typing import Any

import asyncpg

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.keys import FieldHint, Key, KeySpec, KeyType, gate
from integrity.core.outcome import Applied, Rejected
from integrity.core.rules.model import Action, Cascade, Ignore, Literal, Match, Nullify, SetDefault
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import StoreRule
from tests.contract.world import AT_MS, rule, rules_of

Row = tuple[str, Mapping[str, object]]
"""The table that holds a row, which may be a partition, and the row."""


@dataclass(frozen=True)
class Reference:
    """A foreign key. `defaults` are those of the columns, for SET DEFAULT. `full`: MATCH FULL. `more` stands behind the
    constraint."""

    columns: tuple[str, ...]
    on_delete: str = "no action"
    on_update: str = "cascade"
    fields: tuple[str, ...] = ("id",)
    types: tuple[KeyType, ...] = (KeyType.INT64,)
    child: str = "child"
    parent: str = "parent"
    defaults: Mapping[str, Literal] = field(default_factory=dict)
    full: bool = False
    more: str = ""

    @property
    def native(self) -> str:
        return (
            f"alter table {self.child} add foreign key ({', '.join(self.columns)}) references {self.parent}"
            f" ({', '.join(self.fields)}){' match full' * self.full}"
            f" on delete {self.on_delete} on update {self.on_update} {self.more}"
        )

    def action(self, words: str) -> Action:
        """What a rule says for these words of SQL."""
        verb, _, listed = words.partition("(")
        named = tuple(name.strip() for name in listed.rstrip(")").split(",")) if listed else self.columns
        columns = tuple(map(_bare, named))
        match verb.strip():
            case "cascade":
                return Cascade()
            case "set null":
                return Nullify(columns)
            case "set default":
                return SetDefault({column: self.defaults.get(column) for column in columns})
            case "no action" | "restrict":
                return Ignore()
            case _:
                raise AssertionError(words)


@dataclass(frozen=True)
class Case:
    """`tables` makes them without foreign keys; each of `steps` is one transaction on parents."""

    tables: str
    references: tuple[Reference, ...]
    rows: str
    steps: tuple[str, ...]
    compared: tuple[str, ...] = ("child",)


class Pace(Enum):
    """How the events of a history come."""

    ONE_BY_ONE = "one by one"
    AT_ONCE = "at once"
    PARTITIONED = "partition after partition"
    """Each key's own order is kept, and no other."""


@dataclass(frozen=True)
class Refused:
    """What the native constraint, or the store, refuses."""

    code: str | Reason


LOG = """
create table log (seq bigint generated always as identity, parent text, old jsonb, new jsonb);
create function note() returns trigger language plpgsql set search_path from current as
    $$ begin insert into log (parent, old, new) values (tg_argv[0], to_jsonb(old), to_jsonb(new)); return null; end $$;
"""
NOTE = "create trigger note after insert or update or delete on {parent} for each row execute function note('{parent}')"
_SCHEMAS = count(1)
_VERSIONS = count(1)


async def native(url: str, case: Case) -> dict[str, list[Row]] | Refused:
    """The tables after the statements, or the code of what PostgreSQL refused."""
    connection = await asyncpg.connect(url)
    try:
        await _new_schema(connection)
        await connection.execute(case.tables)
        for reference in case.references:
            await connection.execute(reference.native)
        await connection.execute(case.rows)
        for step in case.steps:
            await connection.execute(f"begin; {step}; commit")
        return await _tables(connection, case)
    except asyncpg.PostgresError as exc:
        await connection.execute("rollback")
        return Refused(str(exc.sqlstate))
    finally:
        await connection.close()


async def ours(url: str, case: Case, pace: Pace) -> dict[str, list[Row]] | Refused:
    """The same with rules in the place of constraints, or the reason of what the store refused; the ledger is there."""
    connection = await asyncpg.connect(url)
    schema = await _new_schema(connection)
    rules = [_rule(reference, schema) for reference in case.references]
    parents = {
        (made.entity, made.spec): reference.parent for reference, made in zip(case.references, rules, strict=True)
    }
    store = PostgresStore("store", url, rules_of(*rules), lane=schema)
    try:
        await connection.execute(case.tables)
        for child, columns in dict.fromkeys((r.child, r.columns) for r in case.references):
            await connection.execute(f"create index on {child} ({', '.join(columns)})")
        await connection.execute(case.rows)
        await connection.execute(LOG)
        for parent in dict.fromkeys(reference.parent for reference in case.references):
            await connection.execute(NOTE.format(parent=parent))
        errors = [f for f in await store.check(Deadline.after(30)) if f.severity == "error"]
        assert not errors, errors
        feed = _Feed(connection, store, parents, pace)
        for step in case.steps:
            await connection.execute(f"begin; {step}; commit")
            if pace is Pace.ONE_BY_ONE and isinstance(refused := await feed.drain(), Refused):
                return refused
        refused = await feed.drain()
        return refused if refused is not None else await _tables(connection, case)
    finally:
        await store.close()
        await connection.close()


async def _new_schema(connection: asyncpg.Connection[Any]) -> str:
    schema = f"s{next(_SCHEMAS)}"
    await connection.execute(f"create schema {schema}; set search_path = {schema}; set timezone = 'UTC'")
    return schema


async def _tables(connection: asyncpg.Connection[Any], case: Case) -> dict[str, list[Row]]:
    found = {}
    for name in case.compared:
        sql = f"select c.relname, to_jsonb(t) from {name} t join pg_class c on c.oid = t.tableoid order by 2, 1"
        found[name] = [(row[0], json.loads(row[1], parse_float=Decimal)) for row in await connection.fetch(sql)]
    return found


def _rule(reference: Reference, schema: str) -> StoreRule:
    return rule(
        reference.action(reference.on_delete),
        reference.action(reference.on_update),
        name=f"{reference.child}.{'.'.join(reference.columns)}",
        target=f"{schema}.{_bare(reference.child)}",
        spec=KeySpec(tuple(zip(map(_bare, reference.fields), reference.types, strict=True))),
        columns=tuple(map(_bare, reference.columns)),
        entity=f"{schema}_{reference.parent}_{'_'.join(reference.fields)}",
        match=Match.FULL if reference.full else Match.SIMPLE,
    )


def _bare(name: str) -> str:
    return name[1:-1] if name.startswith('"') else name


class _Feed:
    """Gives the store what was taken down, until that makes nothing new: a table may be its own parent."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        store: PostgresStore,
        parents: Mapping[tuple[str, KeySpec], str],
        pace: Pace,
    ) -> None:
        self._connection = connection
        self._store = store
        self._parents = parents
        self._pace = pace
        self._partitions = 3 if pace is Pace.PARTITIONED else 1
        self._read = 0
        self._next: dict[TopicPartition, int] = {}

    async def drain(self) -> Refused | None:
        while changes := await self._changes():
            for part in self._parts(changes):
                result = await self._store.apply(self._batch(part), Deadline.after(30))
                if isinstance(result, Rejected):
                    return Refused(result.reason)
                assert isinstance(result, Applied), result
        return None

    def _parts(self, changes: Sequence[ParentChange]) -> Iterable[Sequence[ParentChange]]:
        match self._pace:
            case Pace.ONE_BY_ONE:
                return [[change] for change in changes]
            case Pace.AT_ONCE:
                return [changes]
            case Pace.PARTITIONED:
                parts = [[c for c in changes if c.origin.partition == p] for p in reversed(range(self._partitions))]
                return [part for part in parts if part]

    def _batch(self, changes: Sequence[ParentChange]) -> Batch:
        spans: dict[TopicPartition, Span] = {}
        for change in changes:
            at = TopicPartition(change.origin.topic, change.origin.partition)
            first = spans[at].start if at in spans else change.origin.offset
            spans[at] = Span(first, change.origin.offset + 1)
        return Batch(tuple(changes), spans, AT_MS)

    async def _changes(self) -> list[ParentChange]:
        found: list[ParentChange] = []
        log = await self._connection.fetch("select * from log where seq > $1 order by seq", self._read)
        for seq, name, old_text, new_text in log:
            self._read = seq
            version = Version(0, (next(_VERSIONS),))
            for (entity, spec), parent in self._parents.items():
                if parent == name:
                    found += self._events(entity, _key(old_text, spec), _key(new_text, spec), version)
        return found

    def _events(self, entity: str, old: Key | None, new: Key | None, version: Version) -> list[ParentChange]:
        """A deletion is a `d` and a null record, a key change a `d` that names the new key, a null record and a `c`."""
        if old is None or old == new:
            assert new is not None
            return [self._change(entity, Op.ALIVE, new, None, version)]
        if new is None:
            return [
                self._change(entity, Op.DELETED, old, None, version),
                self._change(entity, Op.GONE, old, None, None),
            ]
        return [
            self._change(entity, Op.MOVED, old, new, version),
            self._change(entity, Op.GONE, old, new, None),
            self._change(entity, Op.ARRIVED, new, None, version),
        ]

    def _change(self, entity: str, op: Op, key: Key, to: Key | None, version: Version | None) -> ParentChange:
        at = TopicPartition(entity, sum(repr(key).encode()) % self._partitions)
        offset = self._next.get(at, 0)
        self._next[at] = offset + 1
        return ParentChange(entity, op, key, to, version, Origin(*at, offset, AT_MS), AT_MS)


_HINTS = {KeyType.NUMERIC: FieldHint("bytes", "org.apache.kafka.connect.data.Decimal")}


def _key(row: str | None, spec: KeySpec) -> Key | None:
    if row is None:
        return None
    values = json.loads(row, parse_float=Decimal)
    return tuple(gate(kind, _sent(kind, values[name]), _HINTS.get(kind)) for name, kind in spec.fields)


def _sent(kind: KeyType, value: object) -> object:
    """What Debezium makes of a value that PostgreSQL wrote as JSON."""
    if kind is KeyType.BYTES:
        return b64encode(bytes.fromhex(str(value).removeprefix("\\x"))).decode()
    if kind is KeyType.TIMESTAMP and "+" not in str(value):
        return f"{value}Z"
    return value
