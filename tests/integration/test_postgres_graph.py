"""The graph in a live PostgreSQL: its own foreign keys between the levels, long chains, refusals, what check finds."""

from __future__ import annotations

import pytest

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Rejected, Retry
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline
from integrity.stores.descent import Descent
from tests.contract.graph_rules import LINE, comments, items, orders
from tests.contract.world import Events, apply, rule
from tests.integration.pg_shop import codes, fetch, run, store_of

pytestmark = pytest.mark.servers

TABLES = (
    "create table orders (id bigint primary key, customer_id bigint)",
    "create table items (id bigint primary key, order_id bigint {reference})",
    "create index on orders (customer_id)",
    "create index on items (order_id)",
    "insert into orders select n, n % 2 + 1 from generate_series(1, 20) n",
    "insert into items select n, n % 20 + 1 from generate_series(1, 60) n",
)


def deletion() -> Events:
    events = Events()
    events.deleted((1,), 10)
    return events


@pytest.mark.parametrize("reference", ["references orders", "references orders on delete restrict"])
async def test_foreign_keys_of_the_database_between_the_levels_are_no_obstacle(
    pg_database: str, reference: str
) -> None:
    await run(pg_database, *(text.format(reference=reference) for text in TABLES))
    async with store_of(pg_database, orders(), items()) as store:
        effects = await apply(store, deletion().batch())
        assert [(effect.dependent, effect.rows) for effect in effects] == [("customer.orders", 10), ("order.items", 30)]
    assert await fetch(pg_database, "select count(*), (select count(*) from items) from orders") == [(10, 30)]


async def test_key_change_goes_down_where_the_database_lets_it(pg_database: str) -> None:
    await run(
        pg_database,
        "create table lines (order_id bigint, id bigint, primary key (order_id, id))",
        "create table stops (id bigint primary key, order_no bigint, line_no bigint,"
        " foreign key (order_no, line_no) references lines deferrable initially deferred)",
        "create index on stops (order_no, line_no)",
        "insert into lines values (1, 1), (1, 2), (2, 1)",
        "insert into stops values (10, 1, 1), (11, 1, 2), (12, 2, 1)",
    )
    lines = rule(Cascade(), name="lines", columns=("order_id",), entity="order", rows="line", own=LINE)
    stops = rule(Cascade(), name="stops", spec=LINE, columns=("order_no", "line_no"), entity="line")
    events = Events("order", "shop.public.orders")
    events.moved((1,), (9,), 10)
    async with store_of(pg_database, lines, stops) as store:
        await apply(store, events.batch())
    assert await fetch(pg_database, "select * from stops order by id") == [(10, 9, 1), (11, 9, 2), (12, 2, 1)]


async def test_chain_of_ten_thousand_rows_is_removed_in_one_transaction(pg_database: str) -> None:
    await run(
        pg_database,
        "create table comments (id bigint primary key, customer_id bigint, answers_id bigint references comments)",
        "create index on comments (customer_id)",
        "create index on comments (answers_id)",
        "insert into comments select n, case n when 1 then 1 end, nullif(n - 1, 0) from generate_series(1, 10000) n",
    )
    async with store_of(pg_database, *comments()) as store:
        effects = await apply(store, deletion().batch())
    assert sorted((effect.dependent, effect.rows) for effect in effects) == [
        ("comment.answers", 9999),
        ("customer.comments", 1),
    ]
    assert await fetch(pg_database, "select count(*) from comments") == [(0,)]
    assert await fetch(pg_database, "select count(*) from integrity.removed") == [(10_000,)]


async def test_refusal_further_down_is_one_of_the_whole_branch(pg_database: str) -> None:
    """What stands in the way of an item is a row that no rule names."""
    await run(
        pg_database,
        *(text.format(reference="") for text in TABLES),
        "create table sealed (item_id bigint references items)",
        "insert into sealed select id from items where order_id = 2 limit 1",
    )
    async with store_of(pg_database, orders(), items()) as store:
        result = await store.apply(deletion().batch(), Deadline.after(30))
    assert isinstance(result, Rejected)
    assert result.dependent == "customer.orders"
    assert result.message.startswith("order.items, which depends on these rows: ")
    assert await fetch(pg_database, "select count(*), (select count(*) from items) from orders") == [(20, 60)]


async def test_more_rows_than_a_chunk_are_removed_with_all_that_depends_on_them(pg_database: str) -> None:
    await run(
        pg_database,
        *(text.format(reference="references orders") for text in TABLES),
        "insert into orders select n, 1 from generate_series(100, 12000) n",
        "insert into items select n, n from generate_series(100, 12000) n",
    )
    async with store_of(pg_database, orders(), items()) as store:
        effects = await apply(store, deletion().batch())
    assert [(effect.dependent, effect.rows) for effect in effects] == [
        ("customer.orders", 11911),
        ("order.items", 11931),
    ]


async def test_rows_that_go_leave_the_same_as_they_do_row_by_row(
    pg_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways over the same rows: keys of several types, rows of nobody, several parents in one batch."""
    text, number = KeySpec((("code", KeyType.STRING),)), KeySpec((("nr", KeyType.INT64), ("line", KeyType.INT32)))
    rules = [
        rule(Cascade(), name="orders", rows="order", own=text),
        rule(Cascade(), name="items", spec=text, columns=("order_code",), entity="order", rows="item", own=number),
        rule(Cascade(), name="notes", spec=text, columns=("order_code",), entity="order"),
        rule(Cascade(), name="parts", spec=number, columns=("item_nr", "item_line"), entity="item"),
    ]
    statements = (
        "drop table if exists orders, items, notes, parts; drop schema if exists integrity cascade",
        "create table orders (code text primary key, customer_id bigint)",
        "create table items (nr numeric not null, line int not null, order_code text, primary key (nr, line))",
        "create table notes (id bigint primary key, order_code varchar(40))",
        "create table parts (id bigint primary key, item_nr bigint, item_line int)",
        "create index on orders (customer_id); create index on items (order_code); create index on notes (order_code)",
        "create index on parts (item_nr, item_line)",
        "insert into orders select 'o \" \\ é' || n, n % 7 from generate_series(1, 60) n",
        "insert into items select n % 90, n, 'o \" \\ é' || (n * n) % 70 from generate_series(1, 150) n",
        "insert into notes select n, 'o \" \\ é' || (n * 3) % 70 from generate_series(1, 100) n",
        "insert into parts select n, (n * n) % 95, n % 160 from generate_series(1, 900) n",
    )
    tables = ("select * from orders", "select * from items", "select * from notes", "select * from parts")
    found = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(Descent, "_goes", lambda *args: False)
        await run(pg_database, *statements)
        keys = [(str(code),) for [code] in await fetch(pg_database, "select code from orders order by 1")]
        lines = [(int(str(nr)), line) for nr, line in await fetch(pg_database, "select nr, line from items order by 2")]
        async with store_of(pg_database, *rules) as store:
            events = Events()
            for key in range(5):
                events.deleted((key,), 10 + key)
            effects = await apply(store, events.batch())
            told = [await store.history("order", key, Deadline.after(30)) for key in keys]
            told += [await store.history("item", key, Deadline.after(30)) for key in lines]
        left = [await fetch(pg_database, f"{sql} order by 1, 2") for sql in tables]
        found.append((left, sorted(effects), told))
    assert found[0] == found[1]
    rows = {effect.dependent: effect.rows for effect in effects if effect.rows}
    assert set(rows) == {rule.id for rule in rules}


async def test_rows_that_a_trigger_keeps_are_not_counted(pg_database: str) -> None:
    """Rows are removed by their primary keys and counted as chosen; that fewer went is found out, and tried again."""
    await run(
        pg_database,
        *(text.format(reference="") for text in TABLES),
        "create function keep() returns trigger language plpgsql as 'begin return null; end'",
        "create trigger keep before delete on orders for each row when (old.id = 6) execute function keep()",
    )
    async with store_of(pg_database, orders(), items()) as store:
        result = await store.apply(deletion().batch(), Deadline.after(30))
        assert isinstance(result, Retry)
        assert await fetch(pg_database, "select count(*) from orders") == [(20,)]
        effects = await apply(store, deletion().batch())
    assert [(effect.dependent, effect.rows) for effect in effects] == [("customer.orders", 9), ("order.items", 30)]


CASES = {
    "nullable": ("create table orders (id bigint, customer_id bigint, nr bigint primary key)", ["key_nullable"]),
    "missing": ("create table orders (nr bigint primary key, customer_id bigint)", ["column_missing"]),
    "of another type": ("create table orders (id text primary key, customer_id bigint)", ["column_type"]),
}


@pytest.mark.parametrize("case", CASES)
async def test_check_finds_rows_that_cannot_be_named(pg_database: str, case: str) -> None:
    table, expected = CASES[case]
    await run(pg_database, table, TABLES[1].format(reference=""), *TABLES[2:4])
    async with store_of(pg_database, orders(), items()) as store:
        assert await codes(store) == expected
