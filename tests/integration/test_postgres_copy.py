"""Copies in a real PostgreSQL: what a value becomes in a column, what is refused, and what is told at start."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Cell, Op, Origin, ParentChange, Version
from integrity.core.history import Question
from integrity.core.keys import Exponential, FieldHint, KeySpec, KeyType
from integrity.core.outcome import Applied, ApplyResult, Rejected
from integrity.core.rules.model import (
    Cascade,
    Copy,
    Dependent,
    Events,
    EventValue,
    Ignore,
    Parent,
    Place,
    Target,
    TargetKind,
    Tombstone,
    Tombstones,
)
from integrity.errors import Finding, Reason
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresCopy, PostgresStore
from integrity.stores.rule import copy_rule
from tests.integration.pg_shop import fetch, run

pytestmark = pytest.mark.servers

PLACE = Place("rules/customer.yaml", 9, 5)
SPEC = KeySpec((("id", KeyType.INT64),))


@asynccontextmanager
async def copy_in(
    url: str, columns: Mapping[str, str], *, table: str = "public.copy", spec: KeySpec = SPEC, mark: str = ""
) -> Any:
    on_delete: Any = Tombstone({mark: EventValue.TIME}) if mark else Cascade()
    reference = {column: field for column, field in columns.items() if field in spec.names}
    rows = Dependent(
        "customer.copy", "copy", "shop", Target(TargetKind.TABLE, table), reference, on_delete, Ignore(), {}, PLACE
    )
    source = Events(("customers",), "debezium", spec, Tombstones.DELETE)
    rule = copy_rule(Parent("customer", source, (), PLACE), Copy(rows, columns))
    store = PostgresCopy("shop", url, rule, lane="integrity.shop.copy@1")
    try:
        await store.migrate(Deadline.after(30))
        yield store
    finally:
        await store.close()


async def findings(url: str, columns: Mapping[str, str], **more: Any) -> list[Finding]:
    async with copy_in(url, columns, **more) as store:
        return list(await store.check(Deadline.after(30)))


def alive(number: int, **row: Cell | None) -> ParentChange:
    return ParentChange(
        "customer", Op.ALIVE, (number,), None, Version(0, (number,)), Origin("customers", 0, number, 1), 1, row=row
    )


async def applied(store: PostgresCopy, *changes: ParentChange) -> ApplyResult:
    offsets = [change.origin.offset for change in changes]
    spans = {TopicPartition("customers", 0): Span(0, max(offsets) + 1)}
    return await store.apply(Batch(changes, spans, 1), Deadline.after(30))


def hint(type: str, name: str | None = None, scale: int | None = None) -> FieldHint:
    return FieldHint(type, name, scale)


def unscaled(number: int) -> str:
    return b64encode(number.to_bytes(8, "big", signed=True)).decode()


MICROS = "io.debezium.time.MicroTimestamp"
DECIMAL = "org.apache.kafka.connect.data.Decimal"
EXACT: list[tuple[str, object, FieldHint | None, str]] = [
    ("smallint", 7, None, "7"),
    ("bigint", Decimal("7.0"), None, "7"),
    ("integer", unscaled(700), hint("bytes", DECIMAL, 2), "7"),
    ("numeric", 12345678901234567890123, None, "12345678901234567890123"),
    ("numeric(10,2)", unscaled(1230), hint("bytes", DECIMAL, 2), "12.30"),
    ("numeric", {"scale": 3, "value": unscaled(-1500)}, hint("struct"), "-1.5"),
    ("double precision", Decimal("0.1"), None, "0.1"),
    ("double precision", Exponential("1E+400"[:5]), hint("double"), "1e+40"),
    ("double precision", "NaN", hint("double"), "NaN"),
    ("real", Decimal("0.1"), hint("float"), "0.1"),
    ("text", "ünï 😀", None, "ünï 😀"),
    ("varchar(4)", "four", None, "four"),
    ("char(5)", "ab", None, "ab"),
    ("mood", "sad", hint("string", "io.debezium.data.Enum"), "sad"),
    ("uuid", "6F1C0F8E-2b43-4b9b-9b0a-1f0a3f3f0001", None, "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001"),
    ("boolean", True, None, "true"),
    ("date", 20_000, hint("int32", "io.debezium.time.Date"), "2024-10-04"),
    ("date", "0001-01-01", None, "0001-01-01"),
    ("timestamptz", "2026-01-02T03:04:05.678901+02:00", None, "2026-01-02 01:04:05.678901+00"),
    (
        "timestamp",
        1_767_323_045_678_901,
        hint("int64", "io.debezium.time.MicroTimestamp"),
        "2026-01-02 03:04:05.678901",
    ),
    ("timestamp(3)", 1_767_323_045_678, hint("int64", "io.debezium.time.Timestamp"), "2026-01-02 03:04:05.678"),
    ("time", 11_045_678_901, hint("int64", "io.debezium.time.MicroTime"), "03:04:05.678901"),
    ("bytea", "AP8Q", None, "\\x00ff10"),
    ("jsonb", '{"a": [1, 1.50]}', hint("string", "io.debezium.data.Json"), '{"a": [1, 1.50]}'),
    ("json", {"n": Decimal("0.10000000000000000001")}, None, '{"n":0.10000000000000000001}'),
    ("inet", "10.0.0.0/8", None, "10.0.0.0/8"),
    ("positive", 5, None, "5"),
]
REFUSED: list[tuple[str, object, FieldHint | None, Reason]] = [
    ("smallint", 40_000, None, Reason.VALUE_REJECTED),
    ("integer", Decimal("7.5"), None, Reason.VALUE_REJECTED),
    ("integer", "7", None, Reason.TYPE_MISMATCH),
    ("integer", True, None, Reason.TYPE_MISMATCH),
    ("numeric(10,1)", Decimal("1.25"), None, Reason.VALUE_REJECTED),
    ("numeric(3,0)", 12345, None, Reason.VALUE_REJECTED),
    ("numeric", "1234", None, Reason.TYPE_MISMATCH),
    ("double precision", Decimal("0.10000000000000000001"), None, Reason.VALUE_REJECTED),
    ("real", Decimal("0.123456789012"), hint("double"), Reason.VALUE_REJECTED),
    ("text", 5, None, Reason.TYPE_MISMATCH),
    ("text", "a\0b", None, Reason.VALUE_REJECTED),
    ("varchar(4)", "five ", None, Reason.VALUE_REJECTED),
    ("mood", "happy", None, Reason.VALUE_REJECTED),
    ("uuid", "no", None, Reason.TYPE_MISMATCH),
    ("boolean", 1, None, Reason.TYPE_MISMATCH),
    ("timestamp", 1_767_323_045_678, None, Reason.TYPE_MISMATCH),
    ("timestamp(3)", "2026-01-02T03:04:05.678901Z", None, Reason.VALUE_REJECTED),
    ("time", 5, None, Reason.TYPE_MISMATCH),
    ("bytea", "no base64!", None, Reason.TYPE_MISMATCH),
    ("jsonb", "{not json", None, Reason.VALUE_REJECTED),
    ("inet", "300.0.0.1", None, Reason.VALUE_REJECTED),
    ("positive", -5, None, Reason.CONSTRAINT_VIOLATION),
    ("text not null", None, None, Reason.CONSTRAINT_VIOLATION),
]
TYPES = ("create type mood as enum ('sad','ok')", "create domain positive as int check (value > 0)")


async def test_value_is_in_its_column_exactly_or_refused(pg_database: str) -> None:
    """One table with a column of each kind, one event for each value: whatever a column would round is not written."""
    cases = [*EXACT, *REFUSED]
    kinds = {f"c{number}": kind for number, (kind, *_) in enumerate(cases)}
    nullable = [f"{name} {kind}" for name, kind in kinds.items() if "not null" not in kind]
    await run(pg_database, *TYPES, f"create table copy (id bigint primary key, {', '.join(nullable)})")
    await run(pg_database, "create table strict (id bigint primary key, v text not null)")
    for number, (kind, value, said, expected) in enumerate(cases):
        name, table = (f"c{number}", "copy") if "not null" not in kind else ("v", "strict")
        async with copy_in(pg_database, {"id": "id", name: "f"}, table=f"public.{table}") as store:
            result = await applied(store, alive(1000 + number, f=Cell(value, said)))
        if isinstance(expected, Reason):
            assert isinstance(result, Rejected), (kind, value, result)
            assert (result.dependent, result.reason) == ("customer.copy", expected), (kind, value, result)
        else:
            assert isinstance(result, Applied), (kind, value, result)
            [(found,)] = await fetch(pg_database, f"select {name}::text from copy where id = {1000 + number}")
            assert found == expected, (kind, value)


async def test_what_does_not_fit_is_told_at_start_with_its_place_and_mend(pg_database: str) -> None:
    await run(
        pg_database,
        "create table copy (id bigint, name text, tags int[], due interval(0), code text not null,"
        " made int generated always as (5) stored)",
        "create unique index half on copy (id) where name is null",
        "create unique index mail on copy (name)",
    )
    columns = {"id": "id", "nam": "name", "tags": "tags", "due": "due", "made": "made"}
    found = {(each.code, each.severity): each for each in await findings(pg_database, columns)}
    assert {(code, severity) for code, severity in found} == {
        ("column_missing", "error"),
        ("column_type", "error"),
        ("column_not_null", "error"),
        ("column_generated", "error"),
        ("copy_key_not_unique", "error"),
        ("index_missing", "error"),
        ("copy_unique", "warning"),
    }
    assert {(each.file, each.line, each.column) for each in found.values()} == {("rules/customer.yaml", 9, 5)}
    mend = found["copy_key_not_unique", "error"].hint
    await run(
        pg_database,
        mend,
        "alter table copy alter code drop not null, alter tags type text using null, alter due type interval",
        "alter table copy drop made",
    )
    left = await findings(pg_database, {"id": "id", "name": "name", "tags": "tags", "due": "due"})
    assert [each.code for each in left] == ["copy_unique"]
    assert [each.code for each in await findings(pg_database, {"id": "id"}, table="nowhere")] == ["table_missing"]


async def test_plan_counts_the_row_of_a_copy(pg_database: str) -> None:
    await run(pg_database, "create table copy (id bigint primary key, name text)", "insert into copy values (1, 'Ada')")
    reference = {"id": "id"}
    rows = Dependent(
        "customer.copy", "copy", "shop", Target(TargetKind.TABLE, "copy"), reference, Cascade(), Ignore(), {}, PLACE
    )
    source = Events(("customers",), "debezium", SPEC, Tombstones.DELETE)
    rule = copy_rule(Parent("customer", source, (), PLACE), Copy(rows, {"id": "id", "name": "name"}))
    store = PostgresStore("shop", pg_database, {}, lane="integrity.shop", copies={"customer": (rule.rows,)})
    try:
        [impact] = await store.impact(Question("customer", [(1,), (2,)]), Deadline.after(30))
    finally:
        await store.close()
    assert (impact.dependent, impact.action, tuple(impact.counts)) == ("customer.copy", "delete", (1, 0))


async def test_missing_privileges_are_told_and_the_grants_suffice(pg_database: str) -> None:
    await run(
        pg_database,
        "create table copy (id bigint primary key, name text, note text default 'own', deleted_at timestamptz)",
    )
    async with copy_in(pg_database, {"id": "id", "name": "name"}, mark="deleted_at"):
        pass
    user = f"copier_{pg_database.rpartition('/')[2][-12:]}"
    await run(
        pg_database,
        f"create role {user} login password 'x'",
        f"grant usage on schema integrity to {user}",
        f"grant select, insert, update, delete on all tables in schema integrity to {user}",
    )
    url = pg_database.replace("://", f"://{user}:x@", 1) if "@" not in pg_database else _as(pg_database, user)
    columns = {"id": "id", "name": "name"}
    try:
        rule_hints = await _hints(url, columns)
        assert rule_hints
        await run(pg_database, *rule_hints)
        assert await _hints(url, columns) == []
        async with _as_role(url, columns) as store:
            result = await applied(store, alive(1, name=Cell("Ada")))
            assert isinstance(result, Applied), result
            gone = ParentChange("customer", Op.DELETED, (1,), None, Version(0, (9,)), Origin("customers", 0, 2, 1), 1)
            result = await store.apply(
                Batch((gone,), {TopicPartition("customers", 0): Span(2, 3)}, 1), Deadline.after(30)
            )
            assert isinstance(result, Applied), result
        [(name, note, marked)] = await fetch(pg_database, "select name, note, deleted_at is not null from copy")
        assert (name, note, marked) == ("Ada", "own", True)
    finally:
        await run(pg_database, f"drop owned by {user}", f"drop role {user}")


def _as(url: str, user: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:x@{rest.partition('@')[2]}"


@asynccontextmanager
async def _as_role(url: str, columns: Mapping[str, str]) -> Any:
    reference = {"id": "id"}
    mark = Tombstone({"deleted_at": EventValue.TIME})
    rows = Dependent(
        "customer.copy", "copy", "shop", Target(TargetKind.TABLE, "copy"), reference, mark, Ignore(), {}, PLACE
    )
    source = Events(("customers",), "debezium", SPEC, Tombstones.DELETE)
    rule = copy_rule(Parent("customer", source, (), PLACE), Copy(rows, columns))
    store = PostgresCopy("shop", url, rule, lane="integrity.shop.copy@1")
    try:
        yield store
    finally:
        await store.close()


async def _hints(url: str, columns: Mapping[str, str]) -> list[str]:
    async with _as_role(url, columns) as store:
        found = await store.check(Deadline.after(30))
    assert {each.code for each in found} <= {"privilege_missing"}, found
    return [each.hint for each in found]
