"""The PostgreSQL store against real tables: types, names, partitions, triggers, plans, round trips, what it records."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from integrity.core.batch import Batch
from integrity.core.change import Version
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.outcome import Applied, Outcome, Rejected, Retry, TooLarge
from integrity.core.rules.model import Cascade, EventValue, Nullify, SetDefault, Tombstone
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from integrity.stores.postgres.catalog import resolve
from integrity.stores.postgres.effects import Effects
from integrity.stores.rule import StoreRule
from tests.contract.world import COMPOSITE, MARK, Events, apply, rule, rules_of
from tests.integration.pg_shop import codes, fetch, run, store_of, wire_to

pytestmark = pytest.mark.servers

ORDERS = "create table orders (id bigint primary key, customer_id bigint)"
INDEX = "create index on orders (customer_id)"


def spec_of(kind: KeyType) -> KeySpec:
    return KeySpec((("id", kind),))


MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)
KINDS: list[tuple[KeyType, str, Key, Key]] = [
    (KeyType.INT32, "integer", (1,), (2,)),
    (KeyType.INT64, "smallint", (1,), (2,)),
    (KeyType.INT64, "integer", (1,), (2,)),
    (KeyType.INT64, "bigint", (2**62,), (2**62 + 1,)),
    (KeyType.INT64, "numeric", (1,), (2,)),
    (KeyType.NUMERIC, "numeric", (Decimal("1.5"),), (Decimal("123456789012345678901234567890.5"),)),
    (KeyType.NUMERIC, "bigint", (Decimal(1),), (Decimal(2),)),
    (KeyType.STRING, "text", ("ä'\"\\",), ("",)),
    (KeyType.STRING, "varchar(5)", ("abc",), ("abc ",)),
    (KeyType.UUID, "uuid", (UUID(int=1),), (UUID(int=2**127),)),
    (KeyType.BOOL, "boolean", (True,), (False,)),
    (KeyType.DATE, "date", (date(1, 1, 1),), (date(9999, 12, 31),)),
    (KeyType.TIMESTAMP, "timestamptz", (MOMENT,), (datetime(1969, 1, 1, tzinfo=UTC),)),
    (KeyType.TIMESTAMP, "timestamptz", (datetime.max.replace(tzinfo=UTC),), (datetime.min.replace(tzinfo=UTC),)),
    (KeyType.TIMESTAMP, "timestamp", (datetime.min.replace(tzinfo=UTC),), (datetime.max.replace(tzinfo=UTC),)),
    (KeyType.TIMESTAMP, "timestamp", (MOMENT,), (datetime(1969, 1, 1, tzinfo=UTC),)),
    (KeyType.BYTES, "bytea", (b"\x00\xff",), (b"",)),
    (KeyType.OBJECTID, "text", ("0" * 24,), ("f" * 24,)),
    (KeyType.INT64, "amount", (1,), (2,)),
    (KeyType.INT64, "numeric(5,0)", (1,), (2,)),
    (KeyType.STRING, "char(5)", ("ab",), ("abcde",)),
    (KeyType.STRING, "char(5)", ("ab   ",), ("ä    ",)),
    (KeyType.STRING, "code", ("ab",), ("",)),
    (KeyType.STRING, "kind", ("a",), ("it's",)),
]
TYPES = (
    "create domain public.amount as bigint check (value < 100)",
    "create domain public.name as varchar(4)",
    "create domain public.code as public.name check (value <> 'none')",
    "create type public.kind as enum ('a', 'it''s')",
)


@pytest.mark.parametrize(("kind", "column", "one", "two"), KINDS, ids=[f"{k.value}-{c}" for k, c, _, _ in KINDS])
async def test_every_key_type_moves_and_deletes_in_the_columns_it_goes_with(
    pg_database: str, kind: KeyType, column: str, one: Key, two: Key
) -> None:
    await run(
        pg_database,
        *TYPES,
        f"create table orders (id bigint primary key, customer_id {column})",
        INDEX,
    )
    connection = await asyncpg.connect(pg_database)
    for id, [key] in ((1, one), (2, two)):
        if isinstance(key, date):  # the driver makes infinities of the first and the last
            await connection.execute(f"insert into orders values ($1, $2::text::{column})", id, str(key))
        else:
            await connection.execute("insert into orders values ($1, $2)", id, key)
    endless = [(3,), (4,)] if isinstance(one[0], date) else []
    if endless:
        await connection.execute("insert into orders values (3, '-infinity'), (4, 'infinity')")
    await connection.close()
    chosen = rule(Cascade(), spec=spec_of(kind))
    async with store_of(pg_database, chosen) as store:
        assert await store.check(Deadline.after(10)) == []
        for statement in ("remove counted", "remove listed", "remove", "refer"):
            await assert_reads_by_index(store, chosen, statement)
        events = Events()
        events.deleted(two, 10)
        events.moved(one, two, 20)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
        assert await fetch(pg_database, "select id from orders order by id") == [(1,), *endless]
        events.arrived(two, 20)
        events.deleted(two, 30)
        assert [e.rows for e in await apply(store, events.batch())] == [1]
        assert await fetch(pg_database, "select id from orders order by id") == endless


@pytest.mark.parametrize(
    ("kind", "column", "held", "key"),
    [
        (KeyType.INT64, "integer", 1, 2**32 + 1),
        (KeyType.INT64, "smallint", 0, 2**16),
        (KeyType.NUMERIC, "integer", Decimal(5), Decimal("5.7")),
        (KeyType.NUMERIC, "bigint", Decimal(0), Decimal(10) ** 30),
        (KeyType.NUMERIC, "numeric(10,2)", Decimal("5.78"), Decimal("5.777")),
        (KeyType.STRING, "varchar(3)", "abc", "abc "),
        (KeyType.STRING, "text", "a", "a\0"),
        (KeyType.STRING, "char(3)", "abc", "abcd"),
        (KeyType.STRING, "kind", "a", "b"),
        (KeyType.TIMESTAMP, "timestamptz(3)", MOMENT.replace(microsecond=123000), MOMENT),
    ],
)
async def test_key_that_the_column_cannot_hold_matches_no_row_and_is_never_written_as_another(
    pg_database: str, kind: KeyType, column: str, held: object, key: object
) -> None:
    await run(pg_database, *TYPES, f"create table orders (id bigint primary key, customer_id {column})", INDEX)
    connection = await asyncpg.connect(pg_database)
    stored = int(held) if isinstance(held, Decimal) and "numeric" not in column else held
    await connection.execute("insert into orders values (1, $1)", stored)
    await connection.close()
    before = await fetch(pg_database, "select * from orders")
    async with store_of(pg_database, rule(Cascade(), spec=spec_of(kind))) as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.deleted((key,), 10)  # type: ignore[arg-type]
        assert [e.rows for e in await apply(store, events.batch())] == [0]
        events.moved((held,), (key,), 20)  # type: ignore[arg-type]
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.VALUE_REJECTED)
    assert await fetch(pg_database, "select * from orders") == before


async def test_names_are_taken_as_written_and_quoted(pg_database: str) -> None:
    await run(
        pg_database,
        'create schema "Sales Data"',
        'create table "Sales Data"."Order" ("Id" int primary key, "Customer Id" int, "select" text,'
        ' "Gone At" timestamptz)',
        'create index on "Sales Data"."Order" ("Customer Id")',
        """insert into "Sales Data"."Order" values (1, 1, 'it''s', null), (2, 1, 'x', null)""",
    )
    rules = rule(
        Tombstone({"Gone At": EventValue.NOW}),
        target="Sales Data.Order",
        columns=("Customer Id",),
        where={"select": "it's"},
    )
    async with store_of(pg_database, rules, schema="Our Ledger") as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.moved((1,), (2,), 10)
        events.deleted((2,), 20)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    found = await fetch(
        pg_database, 'select "Id", "Customer Id", "Gone At" is null from "Sales Data"."Order" order by 1'
    )
    assert found == [(1, 2, False), (2, 1, True)]


async def test_names_that_look_like_sql_are_names(pg_database: str) -> None:
    """63 bytes of letters of two, type names with quotes, and no schema: it is found wherever it is."""
    table, column = "ü" * 31 + "T", "$1 {0} %s '--"
    await run(
        pg_database,
        """create schema "it's %s {x}" """,
        """create type "it's %s {x}"."ki""nd'" as enum ('a', 'b')""",
        f"""create table "it's %s {{x}}"."{table}" ("{table}" int primary key,
            "{column}" "it's %s {{x}}"."ki""nd'", "select" "it's %s {{x}}"."ki""nd'")""",
        f"""create index on "it's %s {{x}}"."{table}" ("{column}")""",
        f"""insert into "it's %s {{x}}"."{table}" values (1, 'a', 'a'), (2, 'b', 'a'), (3, 'a', 'b')""",
    )
    chosen = rule(
        SetDefault({column: "b"}),
        target=table,
        columns=(column,),
        spec=spec_of(KeyType.STRING),
        where={"select": "a"},
    )
    async with store_of(pg_database, chosen, schema='o\'ur "ledger"') as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.moved(("b",), ("c",), 5)
        events.deleted(("a",), 10)
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected) and result.reason is Reason.VALUE_REJECTED  # no such word in the enum
        events.deleted(("a",), 10)
        batch = events.batch()
        batch = Batch(batch.changes, {p: s._replace(start=0) for p, s in batch.spans.items()}, batch.at_ms)
        assert [e.rows for e in await apply(store, batch)] == [1]
    found = await fetch(pg_database, f"""select * from "it's %s {{x}}"."{table}" order by 1""")
    assert found == [(1, "b", "a"), (2, "b", "a"), (3, "a", "b")]


async def test_rows_of_a_partitioned_table_move_between_its_partitions(pg_database: str) -> None:
    await run(
        pg_database,
        "create table orders (id bigint, customer_id bigint, primary key (id, customer_id))"
        " partition by list (customer_id)",
        "create table orders_odd partition of orders for values in (1, 3)",
        "create table orders_even partition of orders for values in (2, 4)",
        INDEX,
        "insert into orders values (1, 1), (2, 2), (3, 3)",
    )
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.moved((1,), (4,), 10)
        events.deleted((3,), 11)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
        assert await fetch(pg_database, "select tableoid::regclass::text, id from orders order by id") == [
            ("orders_even", 1),
            ("orders_even", 2),
        ]
        events.deleted((4,), 5, partition=1)  # older than the arrival
        assert [e.rows for e in await apply(store, events.batch())] == [0]
        assert await fetch(pg_database, "select count(*) from orders") == [(2,)]
        events.moved((2,), (5,), 30)  # no partition takes it
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected) and result.reason is Reason.CONSTRAINT_VIOLATION


async def test_word_that_an_enum_gets_while_running_finds_its_rows(pg_database: str) -> None:
    await run(pg_database, *TYPES, "create table orders (id bigint primary key, customer_id kind)", INDEX)
    async with store_of(pg_database, rule(Cascade(), spec=spec_of(KeyType.STRING))) as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.deleted(("new",), 10)
        assert [e.rows for e in await apply(store, events.batch())] == [0]
        await run(pg_database, "alter type kind add value 'new'", "insert into orders values (1, 'new')")
        events.alive(("new",), 20)
        events.deleted(("new",), 30)
        assert [e.rows for e in await apply(store, events.batch())] == [1]


async def test_text_whose_spaces_may_count_elsewhere_is_a_dead_letter_of_its_own(pg_database: str) -> None:
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id char(5))",
        INDEX,
        "insert into orders values (1, 'ab')",
    )
    async with store_of(pg_database, rule(Cascade(), spec=spec_of(KeyType.STRING))) as store:
        events = Events()
        events.deleted(("ab ",), 10)
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.VALUE_REJECTED)
    assert await fetch(pg_database, "select id from orders") == [(1,)]


async def test_rows_of_inheriting_tables_are_left_alone_as_by_a_native_foreign_key(pg_database: str) -> None:
    """Their primary keys are their own: the same one may stand in both tables."""
    native = "references customers on delete cascade on update cascade"
    await run(
        pg_database,
        "create schema n",
        "create table n.customers (id bigint primary key)",
        "insert into n.customers values (1), (2)",
    )
    for schema, reference in (("n", native.replace("customers", "n.customers")), ("public", "")):
        await run(
            pg_database,
            f"create table {schema}.orders (id bigint primary key, customer_id bigint {reference})",
            f"create table {schema}.old () inherits ({schema}.orders)",
            f"create index on {schema}.orders (customer_id)",
            f"insert into {schema}.orders values (1, 1), (2, 2)",
            f"insert into {schema}.old values (1, 1), (2, 2)",
        )
    await run(pg_database, "delete from n.customers where id = 1", "update n.customers set id = 3 where id = 2")
    async with store_of(pg_database, rule(Cascade(), target="public.orders")) as store:
        assert await codes(store) == ["inheriting_tables"]
        events = Events()
        events.deleted((1,), 10)
        events.moved((2,), (3,), 20)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 1]
    both = [
        await fetch(pg_database, f"select tableoid::regclass::text, id, customer_id from {s}.orders order by 1, 2")
        for s in ("n", "public")
    ]
    assert [row[1:] for row in both[0]] == [row[1:] for row in both[1]]
    assert {row[0] for row in both[1]} == {"old", "orders"}


async def test_tables_that_inherit_may_have_rules_of_their_own(pg_database: str) -> None:
    await run(
        pg_database,
        ORDERS,
        INDEX,
        "create table old (primary key (id)) inherits (orders)",
        "create index on old (customer_id)",
        "insert into orders values (1, 1)",
        "insert into old values (1, 1)",
    )
    async with store_of(pg_database, rule(Cascade()), rule(Cascade(), name="old")) as store:
        assert await codes(store) == []
        events = Events()
        events.deleted((1,), 10)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 1]


async def test_where_takes_columns_of_any_type(pg_database: str) -> None:
    await run(
        pg_database,
        "create type kind as enum ('Customer', 'Supplier')",
        "create table orders (id bigint primary key, customer_id bigint, kind kind, level smallint, open boolean,"
        " ratio float8, since date, code char(3))",
        INDEX,
        "insert into orders select n, 1, 'Customer', 2, true, 0.5, '2024-01-02', 'ab' from generate_series(1, 8) n",
        "update orders set kind = 'Supplier' where id = 1",
        "update orders set level = 3 where id = 2",
        "update orders set open = false where id = 3",
        "update orders set ratio = 0.25 where id = 4",
        "update orders set since = null where id = 5",
        "update orders set code = 'abc' where id = 6",
    )
    where = {"kind": ("Customer",), "level": (1, 2), "open": True, "ratio": 0.5, "since": "2024-01-02", "code": "ab"}
    async with store_of(pg_database, rule(Cascade(), where=where)) as store:  # type: ignore[arg-type]
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.deleted((1,), 10)
        assert [e.rows for e in await apply(store, events.batch())] == [2]
    assert await fetch(pg_database, "select id from orders order by id") == [(n,) for n in range(1, 7)]


async def test_tombstone_sets_columns_of_many_types(pg_database: str) -> None:
    await run(
        pg_database,
        "create type state as enum ('open', 'closed')",
        "create domain moment as timestamptz",
        "create table orders (id bigint primary key, customer_id bigint, at timestamptz, local timestamp, day date,"
        " at_text text, event text, state state, level smallint, open boolean, note text, now moment)",
        INDEX,
        "insert into orders values (1, 1), (2, 2)",
        "update orders set note = 'x', open = true",
    )
    settings = {
        "at": EventValue.TIME,
        "local": EventValue.TIME,
        "day": EventValue.TIME,
        "at_text": EventValue.TIME,
        "event": EventValue.ID,
        "state": "closed",
        "level": 7,
        "open": False,
        "note": None,
        "now": EventValue.NOW,
    }
    async with store_of(pg_database, rule(Tombstone(settings))) as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        change = events.deleted((1,), 10)
        batch = events.batch()
        assert [e.rows for e in await apply(store, batch)] == [1]
    at = datetime.fromtimestamp(change.occurred_ms / 1000, UTC)
    now = datetime.fromtimestamp(batch.at_ms / 1000, UTC)
    listed = ", ".join(settings)
    assert await fetch(pg_database, f"select {listed} from orders where id = 1") == [
        (
            at,
            at.replace(tzinfo=None),
            at.date(),
            at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            change.origin.event_id,
            "closed",
            7,
            False,
            None,
            now,
        )
    ]
    assert await fetch(pg_database, "select at, note, open from orders where id = 2") == [(None, "x", True)]


async def test_ledger_records_rows_times_and_trace_of_every_fate(pg_database: str) -> None:
    await run(pg_database, ORDERS, INDEX, "insert into orders values (1, 1), (2, 1), (3, 5)")
    async with store_of(pg_database, rule(Cascade())) as store:
        events = Events()
        first = events.moved((1,), (2,), 10)
        events.alive((1,), 15)
        second = events.deleted((1,), 20)
        third = events.deleted((5,), 21)
        await apply(store, events.batch())
    sql = "select fate, moved_to, %s, occurred_ms, rows, enforced_ms, trace_id"
    trace = "0" * 31 + "1"
    assert await fetch(pg_database, f"{sql % 'event'} from integrity.fates") == [
        (
            "0:10",
            "[2]",
            first.origin.event_id,
            first.occurred_ms,
            '{"customer.orders":["cascade",2]}',
            1_700_000_000_000,
            trace,
        )
    ]
    found = await fetch(
        pg_database,
        f"{sql % 'coalesce(event, last)'}, key, entity, older_fates from integrity.keys"
        " where fate is not null order by key",
    )
    assert [row[:3] + row[7:] for row in found] == [
        ("0:20", None, second.origin.event_id, "[1]", "customer", 1),
        ("0:21", None, third.origin.event_id, "[5]", "customer", 0),
    ]
    assert [json.loads(str(row[4])) for row in found] == [
        {"customer.orders": ["cascade", 0]},
        {"customer.orders": ["cascade", 1]},
    ]


async def test_long_key_is_cut_for_reading_only(pg_database: str) -> None:
    await run(pg_database, "create table orders (id bigint primary key, customer_id text)", INDEX)
    long = "ä" * 4096
    await run(pg_database, "insert into orders values (1, 'a')")
    async with store_of(pg_database, rule(Cascade(), spec=spec_of(KeyType.STRING))) as store:
        events = Events()
        events.moved((long,), ("z" * 4000,), 20)
        await apply(store, events.batch())
        events.moved(("a",), (long,), 10, partition=1)
        [effect] = await apply(store, events.batch())
        assert effect.outcome is Outcome.APPLIED
    assert await fetch(pg_database, "select customer_id from orders") == [("z" * 4000,)]
    assert await fetch(pg_database, "select max(length(key)) from integrity.keys") == [(1000,)]


async def test_lanes_share_the_fence_but_not_their_progress(pg_database: str) -> None:
    await run(pg_database, ORDERS, INDEX, "insert into orders values (1, 1)")
    events = Events()
    events.deleted((1,), 10)
    batch = events.batch()
    async with store_of(pg_database, rule(Cascade())) as one, store_of(pg_database, rule(Cascade()), lane="b") as other:
        assert [e.outcome for e in await apply(one, batch)] == [Outcome.APPLIED]
        assert await other.progress(list(batch.spans), Deadline.after(5)) == {}
        assert [e.outcome for e in await apply(other, batch)] == [Outcome.DUPLICATE]
        assert list((await other.progress(list(batch.spans), Deadline.after(5))).values()) == [1]


async def test_rows_of_an_identifying_reference_stay_arrivals_under_their_new_key(pg_database: str) -> None:
    await run(
        pg_database,
        "create table items (customer_id bigint, line int, primary key (customer_id, line))",
        "insert into items values (1, 1), (1, 2), (2, 3)",
    )
    async with store_of(pg_database, rule(Cascade(), name="items")) as store:
        assert await store.check(Deadline.after(10)) == []
        events = Events()
        events.moved((1,), (2,), 20)
        await apply(store, events.batch())
        events.deleted((2,), 10, partition=1)
        assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await fetch(pg_database, "select * from items order by line") == [(2, 1), (2, 2)]


async def test_deletions_of_2000_new_keys_take_at_most_ten_round_trips(pg_database: str) -> None:
    await run(pg_database, ORDERS, "insert into orders select n, n / 10 from generate_series(10, 61000) n", INDEX)
    async with wire_to(pg_database) as wire, store_of(wire.url, rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        turns = []
        for first in range(1, 6001, 2000):
            for key in range(first, first + 2000):
                events.deleted((key,), key)
            before = wire.turns
            assert sum(e.rows for e in await apply(store, events.batch())) == 20_000
            turns.append(wire.turns - before)
        # The first two prepare statements, too.
        assert turns[1] <= 10
        assert turns[2] == 8  # begin, progress, heads, delete, how many, heads, progress, commit


async def test_deletions_of_new_keys_leave_what_the_long_way_leaves(pg_database: str) -> None:
    """Keys without a head go straight (`straight`), all else goes the long way, which is made to take the same."""
    chosen = rule(Cascade()), rule(Cascade(), name="notes")
    ledger = ("select * from %s.keys order by key_hash", "select topic, partition, next_offset from %s.progress")
    left: list[list[object]] = []
    went: list[int] = []
    for schema in ("straight", "long"):
        await run(
            pg_database,
            "drop table if exists orders, notes",
            ORDERS,
            INDEX,
            "insert into orders select n, n % 40 from generate_series(1, 100) n",
            "create table notes (id bigint primary key, customer_id smallint)",
            "create index on notes (customer_id)",
            "insert into notes select n, n % 7 from generate_series(1, 50) n",
        )
        told: list[object] = []
        async with store_of(pg_database, *chosen, schema=schema, rows_max=30) as store:
            if schema == "long":
                store._straight = frozenset()
            taken = store._go_straight

            async def counted(*arguments: Any, way: Any = taken) -> Any:
                went.append(len(arguments[2]))
                return await way(*arguments)

            store._go_straight = counted  # type: ignore[method-assign, assignment]
            assert await codes(store) == []
            events = Events()
            # 100000 is beyond what notes can hold.
            for at, key in enumerate((3, 100_000, 39, 0, 77), 10):
                events.deleted((key,), at, at % 2)
            told.append(await store.apply(events.batch(), Deadline.after(30)))
            for at, key in enumerate((4, 3, 5), 20):  # one of them is known
                events.deleted((key,), at)
            told.append(await store.apply(events.batch(), Deadline.after(30)))
            for at, key in enumerate((6, 8, 6), 30):  # one of them twice
                events.deleted((key,), at, 1)
            told.append(await store.apply(events.batch(), Deadline.after(30)))
            for key in range(9, 38):  # more rows than a transaction may have
                events.deleted((key,), 40 + key)
            told.append(await store.apply(events.batch(), Deadline.after(30)))
        for sql in ("select * from orders order by id", "select * from notes order by id"):
            told.append(await fetch(pg_database, sql))
        for sql in ledger:
            told.append(await fetch(pg_database, sql % schema))
        left.append(told)
    assert went == [5, 29], "the batches without a key that is known or named twice, of the first way alone"
    assert left[0] == left[1]
    assert [type(each) for each in left[0][:4]] == [Applied, Applied, Applied, TooLarge]


async def test_batch_of_alive_records_reads_the_ledger_once_and_writes_only_the_progress(pg_database: str) -> None:
    await run(pg_database, ORDERS, INDEX)
    async with wire_to(pg_database) as wire, store_of(wire.url, rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        for _ in range(3):
            for key in range(100):
                events.alive((key,), key)
            before = wire.turns
            assert await apply(store, events.batch()) == []
        assert wire.turns - before == 5  # begin, progress, heads, progress, commit
    assert await fetch(pg_database, "select count(*) from integrity.keys") == [(0,)]


@pytest.mark.parametrize("kind", ["count", "remove counted", "remove listed", "remove", "mark", "refer"])
@pytest.mark.parametrize("width", [1, 2])
async def test_every_statement_finds_its_rows_by_the_index(pg_database: str, kind: str, width: int) -> None:
    if kind in ("remove counted", "remove listed") and width == 2:
        kind = "remove"
    columns = "customer_tenant text, customer_code bigint" if width == 2 else "customer_id bigint"
    values = "'t' || n % 3, n / 10" if width == 2 else "n / 10"
    await run(
        pg_database,
        f"create table orders (id bigint primary key, {columns}, deleted_at timestamptz, deleted_by text)",
        f"insert into orders select n, {values} from generate_series(1, 50000) n",
        f"create index on orders ({'customer_tenant, customer_code' if width == 2 else 'customer_id'})",
        "analyze orders",
    )
    chosen = rule(MARK if kind == "mark" else Cascade(), **({"spec": COMPOSITE} if width == 2 else {}))
    async with store_of(pg_database, chosen) as store:
        assert await codes(store) == []
        for split in (False,) if kind in ("remove counted", "remove listed") else (False, True):
            for extra in (False, True) if kind in ("mark", "refer") else (False,):
                await assert_reads_by_index(store, chosen, kind, split=split, extra=extra)


async def assert_reads_by_index(
    store: PostgresStore, chosen: StoreRule, kind: str, *, split: bool = False, extra: bool = False
) -> None:
    async with store._sessions.connection(Deadline.after(30)) as connection:
        resolved = await resolve(connection, [chosen], "integrity")
        effects = Effects(resolved.tables[chosen.id], "integrity.arrivals")
        sql = effects.sql_counted() if kind == "remove counted" else effects.sql(kind, split=split, extra=extra)
        count = max(int(part[: len(part) - len(part.lstrip("0123456789"))] or 0) for part in sql.split("$")[1:])
        await connection.execute(f"prepare p as {sql}")
        nulls = ", ".join(["null"] * count)
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain execute p({nulls})"))
        await connection.execute("deallocate p")
        assert "orders_customer" in plan, plan
        assert "Seq Scan on orders" not in plan, plan


async def test_refused_row_leaves_everything_as_it_was(pg_database: str) -> None:
    await run(
        pg_database,
        ORDERS,
        INDEX,
        "insert into orders values (1, 1), (2, 2)",
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'order % is secret', old.id; end $$",
        "create trigger refuse before delete on orders for each row when (old.id = 2) execute function public.refuse()",
    )
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        events.deleted((1,), 10)
        events.deleted((2,), 11)
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.STORE_REJECTED)
        assert "P0001" in result.message and "secret" not in result.message
    assert await fetch(pg_database, "select count(*) from orders") == [(2,)]
    for table in ("keys", "progress"):
        assert await fetch(pg_database, f"select count(*) from integrity.{table}") == [(0,)]


@pytest.mark.parametrize("deferred", ["", " deferrable initially deferred"])
async def test_foreign_key_in_the_store_refuses_without_telling_row_values(pg_database: str, deferred: str) -> None:
    await run(
        pg_database,
        ORDERS,
        INDEX,
        "create table notes (id bigint primary key, customer_id bigint)",
        "create index on notes (customer_id)",
        f"create table parcels (order_id bigint constraint parcel_order references orders{deferred})",
        "insert into orders values (424242, 1)",
        "insert into parcels values (424242)",
    )
    async with store_of(pg_database, rule(Cascade(), name="notes"), rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        events.deleted((1,), 10)
        batch = events.batch()
        result = await store.apply(batch, Deadline.after(10))
        if deferred:  # it tells at the commit, and not for whom: the next attempt asks after each dependent
            result = await store.apply(batch, Deadline.after(10))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.CONSTRAINT_VIOLATION)
        assert "23503" in result.message and "parcel_order" in result.message and "424242" not in result.message
        await run(pg_database, "delete from parcels")
        assert isinstance(await store.apply(batch, Deadline.after(10)), Applied)


async def test_unique_violation_of_a_swap_is_settled_one_event_at_a_time(pg_database: str) -> None:
    """Unique checks are made row by row: where the reference is unique, only bisecting gets a swap through."""
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id bigint unique)",
        "insert into orders values (1, 1), (2, 2)",
    )
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        changes = [events.moved((1,), (9,), 10), events.moved((2,), (1,), 11), events.moved((9,), (2,), 12)]
        whole = events.batch()
        result = await store.apply(whole, Deadline.after(10))
        assert isinstance(result, Rejected) and result.reason is Reason.CONSTRAINT_VIOLATION
        again = Events()
        for change in changes:
            assert change.to is not None and isinstance(change.version, Version)
            again.moved(change.key, change.to, change.version.position[0])
            await apply(store, again.batch())
    assert await fetch(pg_database, "select id, customer_id from orders order by id") == [(1, 2), (2, 1)]


async def test_default_that_a_column_takes_no_more_is_rejected_for_its_dependent_only(pg_database: str) -> None:
    await run(pg_database, ORDERS, INDEX, "insert into orders values (1, 1)")
    async with store_of(pg_database, rule(SetDefault({"customer_id": 100_000}), Nullify(("customer_id",)))) as store:
        assert await codes(store) == []
        await run(pg_database, "alter table orders alter customer_id type smallint")
        events = Events()
        events.deleted((1,), 10)
        result = await store.apply(events.batch(), Deadline.after(10))
        assert isinstance(result, Rejected) and result.reason is Reason.VALUE_REJECTED
        assert "22003" in result.message


async def test_store_connects_to_nothing_before_its_first_call() -> None:
    store = PostgresStore("shop", "postgresql://127.0.0.1:1/none", rules_of(rule(Cascade())), lane="l")
    assert "create table" in store.ddl()
    await store.close()


@pytest.mark.parametrize(
    ("kind", "reached", "left"),
    [
        (
            "timestamptz",
            ["2023-11-14 22:13:20.01Z", "2023-11-14 23:13:20.01+01", "-infinity", "0044-03-15 12:00Z BC"],
            ["2023-11-14 22:13:20.010001Z", "2023-11-15Z", "infinity", None],
        ),
        (
            "timestamp",
            ["2023-11-14 22:13:20.01", "-infinity"],
            ["2023-11-14 22:13:20.010001", "2023-11-14 23:00", "infinity", None],
        ),
        # A row of the event's own day may have been written after it.
        ("date", ["2023-11-13", "-infinity"], ["2023-11-14", "2023-11-15", "5874897-12-31", "infinity", None]),
    ],
)
async def test_row_is_as_old_as_its_column_says(
    pg_database: str, kind: str, reached: list[str], left: list[str | None]
) -> None:
    """Whatever the time zone of the session is."""
    texts = [*reached, *left]
    rows = [f"({n}, 1, {'null' if text is None else repr(text)})" for n, text in enumerate(texts)]
    zone = "do $$ begin execute format('alter database %I set timezone to Tokyo', current_database()); end $$"
    await run(
        pg_database,
        f"create table orders (id int primary key, customer_id bigint, at {kind})",
        INDEX,
        f"insert into orders values {', '.join(rows)}",
        zone.replace("Tokyo", '"Asia/Tokyo"'),
    )
    async with store_of(pg_database, rule(Cascade(), as_of="at")) as store:
        assert await codes(store) == ["as_of_nullable"]
        events = Events()
        events.deleted((1,), 10)
        assert [effect.rows for effect in await apply(store, events.batch())] == [len(reached)]
    found = await fetch(pg_database, "select id from orders order by id")
    assert found == [(n,) for n in range(len(reached), len(texts))]


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
async def test_rows_between_two_events_are_told_apart_by_their_column(pg_database: str, kind: str) -> None:
    """One statement removes both groups; the row that is younger than the first deletion goes by the second."""
    days = ["2023-11-13", "2023-11-15", "2023-11-16", "2023-11-19"]
    await run(
        pg_database,
        f"create table orders (id int primary key, customer_id bigint, at {kind} not null)",
        INDEX,
        f"insert into orders values {', '.join(f'({n}, 1, {day!r})' for n, day in enumerate(days))}",
    )
    async with store_of(pg_database, rule(Cascade(), as_of="at")) as store:
        assert await codes(store) == []
        events = Events()
        events.deleted((1,), 10)
        events.alive((1,), 11)
        events.deleted((1,), 20, occurred=3 * 86_400_000)
        assert [effect.rows for effect in await apply(store, events.batch())] == [1, 2]
    assert await fetch(pg_database, "select id from orders") == [(3,)]


async def test_rows_that_somebody_else_removes_meanwhile_are_not_counted(pg_database: str) -> None:
    """Rows are counted before they are removed: what others did to them in between is noticed, and counted again."""
    await run(pg_database, ORDERS, INDEX, "insert into orders values (1, 1), (2, 1), (3, 1), (4, 2)")
    other = await asyncpg.connect(pg_database)
    try:
        async with store_of(pg_database, rule(Cascade()), lock_timeout_s=30) as store:
            assert await codes(store) == []
            events = Events()
            events.deleted((1,), 10)
            events.deleted((2,), 20)
            batch = events.batch()
            await other.execute("begin; delete from orders where id = 2")
            applying = asyncio.create_task(store.apply(batch, Deadline.after(30)))
            waiting = (
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            )
            while await other.fetchval(waiting) == 0:
                await asyncio.sleep(0.01)
            await other.execute("commit")
            assert isinstance(await applying, Retry)
            assert [e.rows for e in await apply(store, batch)] == [2, 1]
    finally:
        await other.close()
    assert await fetch(pg_database, "select count(*) from orders") == [(0,)]


async def test_rows_that_a_trigger_keeps_are_not_counted(pg_database: str) -> None:
    await run(
        pg_database,
        ORDERS,
        INDEX,
        "insert into orders values (1, 1), (2, 1), (3, 2)",
        "create function public.keep() returns trigger language plpgsql as $$ begin return null; end $$",
        "create trigger keep before delete on orders for each row when (old.id = 2) execute function public.keep()",
    )
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        events = Events()
        events.deleted((1,), 10)
        batch = events.batch()
        assert isinstance(await store.apply(batch, Deadline.after(30)), Retry)
        assert [e.rows for e in await apply(store, batch)] == [1]
        events.deleted((2,), 20)
        assert [e.rows for e in await apply(store, events.batch())] == [1]
    assert await fetch(pg_database, "select id from orders") == [(2,)]
