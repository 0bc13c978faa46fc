"""PostgreSQL in the contract suite: every test has a database of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg
import pytest

from integrity.core.change import Version, parse_version
from integrity.core.keys import Key, KeyType, canonical, key_hash, parse_canonical
from integrity.core.ledger import Fate, Head, LastRecord
from integrity.core.rules.model import TargetKind
from integrity.ports import Deadline, Scannable, Store
from integrity.stores.memory import Row
from integrity.stores.postgres import PostgresStore
from integrity.stores.postgres.ledger import removed_sql
from integrity.stores.postgres.scan import PostgresScanner
from integrity.stores.postgres.store import ROWS_MAX
from integrity.stores.rule import StoreRule
from tests.contract.harness import Feature, Rules, retarget, targets_of, whole

FEATURES = frozenset({Feature.OUTBOX, Feature.MARKS, Feature.NAMED, Feature.SHARED})

TYPES: Mapping[KeyType, str] = {
    KeyType.INT32: "integer",
    KeyType.INT64: "bigint",
    KeyType.NUMERIC: "numeric",
    KeyType.STRING: "text",
    KeyType.UUID: "uuid",
    KeyType.BOOL: "boolean",
    KeyType.DATE: "date",
    KeyType.TIMESTAMP: "timestamptz",
    KeyType.BYTES: "bytea",
    KeyType.OBJECTID: "text",
}


class PostgresHarness:
    """Tables in `public`, the ledger in `integrity`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._url: str = request.getfixturevalue("pg_database")
        self._stores: list[PostgresStore] = []
        self._scanners: list[PostgresScanner] = []
        self._rows_max = ROWS_MAX
        self._rules: Rules = {}
        self._columns: dict[str, dict[str, KeyType]] = {}

    async def open(self, rules: Rules, rows: Mapping[str, Sequence[Row]], *, rows_max: int | None = None) -> Store:
        self._rows_max = rows_max or ROWS_MAX
        self._rules = retarget(rules, TargetKind.TABLE)
        self._columns = targets_of(rules)
        connection = await asyncpg.connect(self._url)
        for name, columns in self._columns.items():
            never_null = {column for rule in _all(rules) if rule.rows for column in rule.rows.spec.names}
            listed = ", ".join(
                f"{column} {TYPES[kind]}{' not null' if column in never_null else ''}"
                for column, kind in columns.items()
            )
            await connection.execute(f"create table {name} ({listed}, primary key (id))")
            await self._write(connection, name, rows.get(name, ()))
        for name, column in {
            (rule.dependent.target.name, rule.dependent.columns[0]) for each in rules.values() for rule in each
        }:
            await connection.execute(f"create index on {name} ({column})")
        await connection.close()
        store = await self.another()
        await store.migrate(Deadline.after(30))
        findings = await store.check(Deadline.after(30))
        assert not [finding for finding in findings if finding.severity == "error"], findings
        return store

    async def another(self) -> Store:
        store = PostgresStore(
            "store", self._url, self._rules, lane="integrity.store", lock_timeout_s=2, rows_max=self._rows_max
        )
        self._stores.append(store)
        return store

    def scanner(self) -> Scannable:
        scanner = PostgresScanner("store", self._url, self._rules, schema="integrity", timeout_s=30)
        self._scanners.append(scanner)
        return scanner

    async def write(self, target: str, *rows: Row) -> None:
        connection = await asyncpg.connect(self._url)
        await self._write(connection, target, rows)
        await connection.close()

    async def _write(self, connection: asyncpg.Connection, target: str, rows: Sequence[Row]) -> None:
        columns = self._columns[target]
        values = [tuple(whole(row, columns).values()) for row in rows]
        await connection.copy_records_to_table(target, records=values, columns=list(columns))

    async def rows(self, target: str) -> list[Row]:
        columns = ", ".join(self._columns[target])
        return [dict(row) for row in await self._fetch(f"select {columns} from {target} order by id")]

    async def head(self, entity: str, key: Key) -> Head | None:
        spec = self._rules[entity][0].spec
        hashed = key_hash(entity, key)
        removed = await self._fetch(removed_sql("integrity"), hashed)
        went = tuple(
            Fate(Version(0, (n,)), None, f"{row[0]}/{canonical(key)}", row[1]) for n, row in enumerate(removed, 1)
        )
        found = await self._fetch("select * from integrity.keys where key_hash = $1", hashed)
        if not found:
            return Head(went[-1].version, went, None) if went else None
        assert not went, "a key is recorded in one way"
        older = await self._fetch("select * from integrity.fates where key_hash = $1", hashed)
        [row] = found
        assert len(older) == row["older_fates"]
        fates = sorted(
            Fate(
                parse_version(of["fate"]),
                None if of["moved_to"] is None else parse_canonical(of["moved_to"], spec),
                of["event"] or row["last"],
                of["occurred_ms"],
            )
            for of in [*older, row]
            if of["fate"] is not None
        )
        seen = row["seen"] or row["fate"]
        last = None
        if row["last"] is not None:
            topic, partition, offset = row["last"].rsplit("/", 2)
            last = LastRecord(topic, int(partition), int(offset), row["last_alive"])
        return Head(None if seen is None else parse_version(seen), tuple(fates), last)

    async def arrivals(self) -> int:
        return int((await self._fetch("select count(*) from integrity.arrivals"))[0][0])

    async def exceptions(self, entity: str, key: Key) -> set[str]:
        sql = "select dependent from integrity.exceptions where key_hash = $1"
        return {row["dependent"] for row in await self._fetch(sql, key_hash(entity, key))}

    async def close(self) -> None:
        for opened in (*self._stores, *self._scanners):
            await opened.close()

    async def _fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self._url)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


def _all(rules: Rules) -> list[StoreRule]:
    return [rule for of_entity in rules.values() for rule in of_entity]


HARNESS = PostgresHarness
