"""Rows of a live PostgreSQL that are put back: every type as it was, and what the database refuses."""

from __future__ import annotations

import asyncpg
import pytest

from integrity.core.outcome import Rejected
from integrity.core.rules.model import Action, Cascade, Tombstone
from integrity.core.undo import Choice, Looked, Portion, Verdict
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from integrity.stores.postgres.undo import Undoer
from tests.contract.graph_rules import LINE, comments
from tests.contract.undoing import event, keeping, kept, undo
from tests.contract.world import AT_MS, Events, apply, rule
from tests.integration.pg_shop import codes, fetch, run, store_of

pytestmark = pytest.mark.servers

ORDERS = "customer.orders"


async def deleted(store: PostgresStore, key: int = 1) -> None:
    events = Events()
    events.deleted((key,), 10)
    await apply(store, events.batch())


def page(rows_max: int = 100) -> Portion:
    return Portion(Choice(event(0)), rows_max, AT_MS + 1)


async def test_every_type_comes_back_as_it_was(pg_database: str) -> None:
    await run(
        pg_database,
        "create type mood as enum ('sad', 'ok')",
        "create type pair as (a integer, b text)",
        "create domain short as varchar(5) check (value <> 'no')",
        """create table "Orders" (
            id bigint generated always as identity primary key, customer_id bigint, "Total" numeric(12, 2),
            twice numeric generated always as ("Total" * 2) stored, ratio double precision, single real,
            padded char(6), s short, mood mood, pair pair, moods mood[], grid integer[][], late timestamptz,
            clock timestamp(3), day date, span interval, raw bytea, doc json, tree jsonb, flags bit(5), many varbit,
            address inet, price money, range int4range, search tsvector, point point, "quo""te'd" text)""",
        'create index on "Orders" (customer_id)',
        """insert into "Orders" (customer_id, "Total", ratio, single, padded, s, mood, pair, moods, grid)
            values (1, 10.50, 0.1 + 0.2, 1e-7, 'ab', 'x', 'ok', (1, 'a,"b')::pair, '{ok}', '[2:3][0:0]={{1},{2}}')""",
        """insert into "Orders" (customer_id, late, clock, day, span, raw, doc, tree, flags, many, address)
            values (1, 'infinity', '2024-02-29 01:02:03.456', '-infinity', '1 mon 2 days 00:00:03.000004', '\\x00ff',
            '{"a":1,  "a":2}', '{"b": 1.10}', b'10101', b'101', '10.1.2.3/8')""",
        """insert into "Orders" (customer_id, "Total", ratio, late, price, range, search, point, "quo""te'd")
            values (1, 'NaN', 'Infinity', '0044-03-15 BC', '12.34', '[1,5)', 'a:1 b:2', '(1.5,2)', E'line\\nbreak')""",
        """insert into "Orders" (customer_id, range, "quo""te'd") values (1, 'empty', ''), (2, null, null)""",
    )
    shown = 'select o::text from "Orders" o order by id'
    before = await fetch(pg_database, shown)
    async with store_of(pg_database, kept(Cascade(), target="Orders")) as store:
        assert await codes(store) == []
        await deleted(store)
        assert len(await fetch(pg_database, shown)) == 1
        assert await undo(store, event(0)) == {(ORDERS, Verdict.PUT_BACK): 4}
    assert await fetch(pg_database, shown) == before


async def test_rows_of_partitions_and_of_more_columns_than_a_function_takes_come_back(pg_database: str) -> None:
    columns = ", ".join(f"c{n} integer default {n}" for n in range(120))
    await run(
        pg_database,
        f"create table orders (id bigint, region text, customer_id bigint, {columns}, primary key (region, id))"
        " partition by list (region)",
        "create table orders_eu partition of orders for values in ('eu')",
        "create table orders_rest partition of orders default",
        "create index on orders (customer_id)",
        "insert into orders (id, region, customer_id) values (1, 'eu', 1), (1, 'uk', 1), (2, 'uk', 2)",
    )
    before = await fetch(pg_database, "select tableoid::regclass::text, o::text from orders o order by region, id")
    async with store_of(pg_database, kept(Cascade())) as store:
        await deleted(store)
        assert await undo(store, event(0)) == {(ORDERS, Verdict.PUT_BACK): 2}
    found = await fetch(pg_database, "select tableoid::regclass::text, o::text from orders o order by region, id")
    assert found == before


async def test_marks_of_any_type_are_taken_off_unless_somebody_set_others(pg_database: str) -> None:
    mark: Action = Tombstone({"gone": "now", "doc": '{"by": 1}'})
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id bigint, gone char(5), doc json)",
        "create index on orders (customer_id)",
        """insert into orders values (1, 1, null, '{"a":  1}'), (2, 1, null, null), (3, 1, null, null)""",
    )
    before = await fetch(pg_database, "select o::text from orders o order by id")
    async with store_of(pg_database, kept(mark)) as store:
        assert await codes(store) == []
        await deleted(store)
        await run(pg_database, "update orders set gone = 'later' where id = 3", "delete from orders where id = 2")
        assert await undo(store, event(0)) == {
            (ORDERS, Verdict.PUT_BACK): 1,
            (ORDERS, Verdict.GONE): 1,
            (ORDERS, Verdict.CHANGED): 1,
        }
    found = await fetch(pg_database, "select o::text from orders o order by id")
    assert found == [before[0], ('(3,1,later,"{""by"": 1}")',)]


async def test_reference_that_is_part_of_the_primary_key_goes_back_with_all_that_follows_it(pg_database: str) -> None:
    await run(
        pg_database,
        "create table lines (order_id bigint, id bigint, primary key (order_id, id))",
        "create table stops (id bigint primary key, order_no bigint, line_no bigint,"
        " foreign key (order_no, line_no) references lines deferrable initially deferred)",
        "create index on stops (order_no, line_no)",
        "insert into lines values (1, 1), (1, 2), (2, 1)",
        "insert into stops values (10, 1, 1), (11, 1, 2), (12, 2, 1)",
    )
    lines = rule(Cascade(), name="lines", columns=("order_id",), rows="line", own=LINE)
    stops = rule(Cascade(), name="stops", spec=LINE, columns=("order_no", "line_no"), entity="line")
    rules = [each for of in keeping(lines, stops).values() for each in of]
    before = [await fetch(pg_database, f"select * from {name} order by 1, 2") for name in ("lines", "stops")]
    events = Events()
    events.moved((1,), (8,), 10)
    events.moved((8,), (9,), 20, partition=1)
    async with store_of(pg_database, *rules) as store:
        await apply(store, events.batch())
        assert await fetch(pg_database, "select id, order_no from stops order by id") == [(10, 9), (11, 9), (12, 2)]
        counts = await undo(store, since_ms=0)
    assert counts == {("customer.lines", Verdict.PUT_BACK): 4, ("line.stops", Verdict.PUT_BACK): 4}
    assert [await fetch(pg_database, f"select * from {name} order by 1, 2") for name in ("lines", "stops")] == before


async def test_rows_that_refer_to_one_another_come_back_over_a_foreign_key_of_the_database(pg_database: str) -> None:
    await run(
        pg_database,
        "create table comments (id bigint primary key, customer_id bigint, answers_id bigint references comments)",
        "create index on comments (customer_id)",
        "create index on comments (answers_id)",
        "insert into comments select n, case when n = 1 then 1 end, nullif(n - 1, 0) from generate_series(1, 40) n",
    )
    before = await fetch(pg_database, "select * from comments order by id")
    rules = [each for of in keeping(*comments()).values() for each in of]
    async with store_of(pg_database, *rules) as store:
        await deleted(store)
        assert await fetch(pg_database, "select * from comments") == []
        await undo(store, event(0), rows_max=3)
    assert await fetch(pg_database, "select * from comments order by id") == before


async def test_what_the_database_refuses_changes_nothing_and_is_told(pg_database: str) -> None:
    await run(
        pg_database,
        "create table customers (id bigint primary key)",
        "create table orders (id bigint primary key, customer_id bigint references customers on delete cascade)",
        "create index on orders (customer_id)",
        "insert into customers values (1), (2)",
        "insert into orders values (1, 1), (2, 1)",
    )
    async with store_of(pg_database, kept(Cascade())) as store:
        await deleted(store)
        await run(pg_database, "delete from customers where id = 1")
        found = await store.put_back(page(), Deadline.after(30))
        assert isinstance(found, Rejected)
        assert (found.dependent, "foreign key" in found.message) == (ORDERS, True)
        await run(pg_database, "insert into customers values (1)")
        await run(
            pg_database,
            "create function keep_out() returns trigger language plpgsql as"
            " $$ begin if new.id = 1 then return null; end if; return new; end $$",
            "create trigger keep_out before insert on orders for each row execute function keep_out()",
        )
        looked = await store.put_back(page(), Deadline.after(30))
        assert isinstance(looked, Looked)
        assert {(each.row, each.verdict) for each in looked.rows} == {
            ('{"id": "1"}', Verdict.REFUSED),
            ('{"id": "2"}', Verdict.PUT_BACK),
        }
        await run(pg_database, "drop trigger keep_out on orders", "alter table orders drop column customer_id")
        looked = await store.put_back(page(), Deadline.after(30))
        assert isinstance(looked, Looked)
        assert [each.verdict for each in looked.rows] == [Verdict.REFUSED], "what it was has no place any more"


async def test_dependent_whose_table_is_gone_is_told(pg_database: str) -> None:
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id bigint)",
        "create index on orders (customer_id)",
        "insert into orders values (1, 1)",
    )
    async with store_of(pg_database, kept(Cascade())) as store:
        await deleted(store)
        await run(pg_database, "drop table orders")
        assert await undo(store, event(0)) == {(ORDERS, Verdict.REFUSED): 1}


async def test_table_without_a_primary_key_cannot_have_undo(pg_database: str) -> None:
    await run(
        pg_database,
        "create table orders (id bigint, customer_id bigint)",
        "create index on orders (customer_id)",
    )
    async with store_of(pg_database, kept(Cascade())) as store:
        assert await codes(store) == ["primary_key_missing"]


async def test_rule_without_undo_has_the_statements_it_would_have_anyway(pg_database: str) -> None:
    """Who keeps nothing pays nothing."""
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id bigint)",
        "create index on orders (customer_id)",
    )
    async with store_of(pg_database, rule(Cascade())) as plain, store_of(pg_database, kept(Cascade())) as keeping_store:
        texts = []
        for store in (plain, keeping_store):
            await store.check(Deadline.after(30))
            [effects] = (store._effects or {}).values()
            texts.append(effects.sql("remove", split=False, extra=False))
    assert ["undo" in text for text in texts] == [False, True]


async def test_portion_is_found_by_index_with_or_without_statistics(pg_database: str) -> None:
    sql, _ = Undoer("integrity", {}).page_sql(Choice(event(0)))
    async with store_of(pg_database):
        pass
    connection = await asyncpg.connect(pg_database)
    try:
        await connection.execute("set plan_cache_mode = force_generic_plan; set enable_seqscan = off")
        await connection.execute(f"prepare page as {sql}")
        for _ in range(2):
            plan = "\n".join(row[0] for row in await connection.fetch("explain execute page(5, 500, 'a/0/1', 9)"))
            assert "undo_was" in plan, plan
            assert "undo_event" in plan, plan
            await connection.execute(
                """insert into integrity.undo (event, version, entity, key, dependent, key_hash, action, "row", was,
                    image, at_ms, expires_ms)
                select 'a/0/' || n / 100, '0:1', 'c', '[1]', 'c.o', '', 'cascade', row, row, row, 1, 9
                from (select n, jsonb_build_object('id', n::text) row from generate_series(1, 20000) n) r;
                analyze integrity.undo"""
            )
    finally:
        await connection.close()
