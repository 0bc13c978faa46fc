"""An event with many rows in a live PostgreSQL: killed between its parts, and one of them refused."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import pytest

from integrity.core.batch import Batch, DeadLetterMark, Redrive, Span, TopicPartition
from integrity.core.outcome import Applied, Outcome, Rejected, Retry, Unfinished
from integrity.core.rules.model import Cascade
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import StoreRule
from tests.contract.graph_rules import items, orders
from tests.contract.world import AT_MS, Events, apply, rule
from tests.integration.parts_process import deletion
from tests.integration.pg_shop import fetch, run, store_of

pytestmark = pytest.mark.servers

ROWS, PART = 20_000, 500
TABLES = (
    "create table orders (id bigint primary key, customer_id bigint)",
    "create index on orders (customer_id)",
    f"insert into orders select n, case when n > {ROWS} then 2 else 1 end from generate_series(1, {ROWS + 10}) n",
    "analyze orders",
)
TOUCHED = (
    "create table touched (id bigint, at xid8 default pg_current_xact_id())",
    "create function touch() returns trigger language plpgsql as"
    " $$ begin insert into touched values (old.id); return old; end $$",
    "create trigger touch before delete on orders for each row execute function touch()",
)


async def to_the_end(store: PostgresStore, batch: Batch) -> Applied:
    result = await store.apply(batch, Deadline.after(60))
    while isinstance(result, Unfinished):
        assert result.rows <= PART
        result = await store.apply(batch, Deadline.after(60))
    assert isinstance(result, Applied), result
    return result


async def test_a_killed_process_is_followed_by_one_that_goes_on_where_it_was(pg_database: str) -> None:
    """Every row exactly once, no transaction with more than a part, and the whole count is told."""
    await run(pg_database, *TABLES, *TOUCHED)
    arguments = (sys.executable, "-m", "tests.integration.parts_process", pg_database, str(PART))
    victim = await asyncio.create_subprocess_exec(*arguments)
    watching = await asyncpg.connect(pg_database)
    async with asyncio.timeout(60):
        while (gone := await watching.fetchval("select count(*) from touched")) < 4 * PART:
            assert victim.returncode is None, gone
    victim.kill()
    await victim.wait()
    await watching.close()
    async with store_of(pg_database, rule(Cascade()), rows_max=PART) as store:
        [[rows]] = await fetch(pg_database, "select count(*) from orders where customer_id = 1")
        assert 0 < int(str(rows)) <= ROWS - 4 * PART, "its parts stay done"
        [effect] = (await to_the_end(store, deletion().batch())).effects
        assert (effect.outcome, effect.rows) == (Outcome.APPLIED, ROWS)
        [again] = await apply(store, deletion().batch())
        assert again.outcome is Outcome.DUPLICATE
    [counted] = await fetch(pg_database, "select count(*), count(distinct id), max(id) from touched")
    assert counted == (ROWS, ROWS, ROWS)
    [[largest]] = await fetch(pg_database, "select max(n) from (select count(*) n from touched group by at) s")
    assert int(str(largest)) <= PART
    assert await fetch(pg_database, "select count(*) from orders") == [(10,)]


async def test_a_part_that_is_refused_leaves_the_others_done_and_a_redrive_does_the_rest(pg_database: str) -> None:
    await run(
        pg_database,
        *TABLES,
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin if old.id = 1700 then raise exception 'kept'; end if; return old; end $$",
        "create trigger refuse before delete on orders for each row execute function refuse()",
        *TOUCHED,
    )
    async with store_of(pg_database, rule(Cascade()), rows_max=PART) as store:
        batch = deletion().batch()
        result = await store.apply(batch, Deadline.after(60))
        done = 0
        while isinstance(result, Unfinished):
            done += result.rows
            result = await store.apply(batch, Deadline.after(60))
        assert isinstance(result, Rejected), result
        mark = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "letter")
        events = Events()
        events.deleted((1,), 10)
        left_out = await to_the_end(store, events.batch(exceptions={(0, "customer.orders"): mark}))
        assert [(e.outcome, e.rows) for e in left_out.effects] == [(Outcome.DEAD_LETTERED, done)], "it is told"
        await run(pg_database, "drop trigger refuse on orders")
        again = TopicPartition("integrity.redrive", 0)
        redrive = Redrive("letter", "customer.orders", again, 0)
        redriven = Batch(deletion().batch().changes, {again: Span(0, 1)}, AT_MS, redrives={0: redrive})
        rest = await to_the_end(store, redriven)
        assert [(e.outcome, e.rows) for e in rest.effects] == [(Outcome.APPLIED, ROWS - done)]
    assert await fetch(pg_database, "select count(*), count(distinct id) from touched") == [(ROWS, ROWS)]
    assert await fetch(pg_database, "select parts from integrity.progress") == [(None,), (None,)]


async def test_rows_that_lie_apart_or_were_moved_are_removed_as_well(pg_database: str) -> None:
    """A part reads the table piece by piece as long as the rows lie close; what it passes over, the index finds."""
    await run(
        pg_database,
        *TABLES,
        "insert into orders select n, case when n % 100 = 0 then 1 else 3 end from generate_series(30001, 60000) n",
        "update orders set id = -id where customer_id = 1 and id < 5000",
        "vacuum analyze orders",
        "insert into orders select n, 1 from generate_series(60001, 63000) n",
    )
    [[ours]] = await fetch(pg_database, "select count(*) from orders where customer_id = 1")
    async with store_of(pg_database, rule(Cascade()), rows_max=3000) as store:
        batch, parts = deletion().batch(), 0
        result = await store.apply(batch, Deadline.after(60))
        while isinstance(result, Unfinished):
            assert result.rows <= 3000
            parts += 1
            result = await store.apply(batch, Deadline.after(60))
        assert isinstance(result, Applied), result
        assert [effect.rows for effect in result.effects] == [ours]
        assert parts <= 10, "they are nearly full"
        assert store._effects is not None
        near = store._effects["customer.orders"].sql("remove near")
    assert await fetch(pg_database, "select count(*) from orders where customer_id = 1") == [(0,)]
    assert await fetch(pg_database, "select count(*) from orders") == [(10 + 29_700,)]
    connection = await asyncpg.connect(pg_database, server_settings={"plan_cache_mode": "force_generic_plan"})
    try:
        await connection.execute("set enable_seqscan = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {near}", [1], "(0,0)", "(9,0)"))
    finally:
        await connection.close()
    assert "Tid Range Scan" in plan, plan


KEEP = (
    "create function keep() returns trigger language plpgsql as $$ begin return null; end $$",
    "create trigger keep before delete on orders for each row execute function keep()",
)


@pytest.mark.parametrize("rules", [(rule(Cascade()),), (orders(), items())])
async def test_rows_that_a_trigger_keeps_are_a_refusal_at_once(pg_database: str, rules: tuple[StoreRule, ...]) -> None:
    """Every part, and every chunk of rows that others depend on, would find the same rows for ever."""
    items_table = "create table items (id bigint primary key, order_id bigint)"
    await run(pg_database, *TABLES, items_table, "create index on items (order_id)", *KEEP)
    for rows_max in (PART, 10 * ROWS) if len(rules) > 1 else (PART,):
        async with store_of(pg_database, *rules, rows_max=rows_max) as store:
            result = await store.apply(deletion().batch(), Deadline.after(60))
            while isinstance(result, Retry):
                result = await store.apply(deletion().batch(), Deadline.after(60))
        assert isinstance(result, Rejected), result
        assert (result.dependent, result.reason) == ("customer.orders", Reason.STORE_REJECTED)
        assert "trigger" in result.message
    assert await fetch(pg_database, "select count(*) from orders") == [(ROWS + 10,)]


async def test_one_order_with_many_items_goes_in_transactions_of_a_part(pg_database: str) -> None:
    await run(
        pg_database,
        "create table orders (id bigint primary key, customer_id bigint)",
        "create table items (id bigint primary key, order_id bigint references orders)",
        "create index on orders (customer_id)",
        "create index on items (order_id)",
        "insert into orders select n, 1 from generate_series(1, 700) n",
        f"insert into items select n, case when n < {ROWS // 4} then 7 else n % 700 + 1 end"
        f" from generate_series(1, {ROWS // 2}) n",
        "analyze items",
        *TOUCHED,
        "create trigger touch before delete on items for each row execute function touch()",
    )
    async with store_of(pg_database, orders(), items(), rows_max=PART) as store:
        batch = deletion().batch()
        result = await store.apply(batch, Deadline.after(60))
        while isinstance(result, Unfinished):
            result = await store.apply(batch, Deadline.after(60))
        assert isinstance(result, Applied), result
        assert [(effect.dependent, effect.rows) for effect in result.effects] == [
            ("customer.orders", 700),
            ("order.items", ROWS // 2),
        ]
        history = await store.history("order", (7,), Deadline.after(30))
    assert history is not None
    [[counted]] = await fetch(
        pg_database, f"select count(*) from generate_series({ROWS // 4}, {ROWS // 2}) n where n % 700 = 6"
    )
    assert history.enforced[0].done == {"order.items": ("cascade", ROWS // 4 - 1 + int(str(counted)))}
    [[largest]] = await fetch(pg_database, "select max(n) from (select count(*) n from touched group by at) s")
    assert int(str(largest)) < 2 * PART
    assert await fetch(pg_database, "select parts from integrity.progress") == [(None,)]
