"""The PostgreSQL store when something goes wrong: what it answers, and that nothing is half done."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from integrity.core.batch import Span, TopicPartition
from integrity.core.keys import key_hash
from integrity.core.outcome import Applied, Broken, Outcome, Retry
from integrity.core.retry import Backoff
from integrity.core.rules.model import Cascade, Nullify, Place
from integrity.demo.servers import PostgresServer
from integrity.errors import LedgerError, Reason, SettingsError, UnreachableError
from integrity.ports import Deadline
from integrity.service.enforce import Enforcer
from integrity.service.halts import Halts
from integrity.service.work import Piece, Reader
from integrity.stores.postgres import PostgresStore
from tests.contract.world import Events, apply, rule, rules_of
from tests.integration.pg_shop import LANE, codes, fetch, run, store_of, wire_to
from tests.unit.service.doubles import TOPIC, Letters, Watched, decode, deleted

HANGS_S = 30.0
"""Only against hanging: how long a thing takes is no matter of these tests."""
pytestmark = pytest.mark.servers

SHOP = (
    "create table orders (id bigint primary key, customer_id bigint)",
    "create index on orders (customer_id)",
    "insert into orders values (1, 1), (2, 2)",
)
KILL = (
    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
    " where application_name like 'integrity %' and datname = current_database()"
)


def deletion(key: int = 1) -> Events:
    events = Events()
    events.deleted((key,), 10)
    return events


async def left(url: str) -> list[int]:
    return [int(str(row[0])) for row in await fetch(url, "select id from orders order by id")]


async def test_row_locked_by_another_is_contended_after_the_lock_timeout(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    other = await asyncpg.connect(pg_database)
    async with store_of(pg_database, rule(Cascade()), lock_timeout_s=0.3) as store:
        batch = deletion().batch()
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select from orders where id = 1 for update")
        result = await store.apply(batch, Deadline.after(60))
        assert isinstance(result, Retry) and result.contended and not result.unreachable
        await transaction.rollback()
        assert isinstance(await store.apply(batch, Deadline.after(20)), Applied)
    await other.close()
    assert await left(pg_database) == [2]


@pytest.mark.parametrize("code", ["42501", "53100", "23514"])
@pytest.mark.parametrize("deferred", [False, True])
async def test_trigger_that_refuses_one_row_sets_its_event_apart_whatever_code_it_raises(
    pg_database: str, code: str, deferred: bool
) -> None:
    await run(
        pg_database,
        *SHOP[:2],
        "insert into orders select n, n from generate_series(0, 7) n",
        "create function refuse() returns trigger language plpgsql as $$ begin"
        f" raise exception 'order % is secret', old.id using errcode = '{code}'; end $$",
        f"create constraint trigger refuse after delete on orders deferrable initially"
        f" {'deferred' if deferred else 'immediate'} for each row when (old.id = 5) execute function refuse()",
    )
    assert await enforced(pg_database) == [
        (5, Reason.CONSTRAINT_VIOLATION if code == "23514" else Reason.STORE_REJECTED)
    ]
    assert await left(pg_database) == [5]


async def test_row_locked_for_long_sets_its_event_apart(pg_database: str) -> None:
    await run(pg_database, *SHOP[:2], "insert into orders select n, n from generate_series(0, 7) n")
    other = await asyncpg.connect(pg_database)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select from orders where id = 5 for update")
    assert await enforced(pg_database, lock_timeout_s=0.02) == [(5, Reason.STORE_REJECTED)]
    await transaction.rollback()
    await other.close()
    assert await left(pg_database) == [5]


async def enforced(url: str, **more: float) -> list[tuple[int, Reason]]:
    """Deletions of keys 0 to 7 as one piece, to their end; the offsets of the dead letters, with their reasons."""
    letters, watch = Letters(), Watched()
    piece = Piece(spans={TopicPartition(TOPIC, 0): Span(0, 8)})
    Reader({TOPIC: ("customer", decode)}).read(TopicPartition(TOPIC, 0), [deleted(key, key) for key in range(8)], piece)
    async with store_of(url, rule(Cascade()), **more) as store:
        assert await codes(store) == []
        halts = Halts(store, watch, {"customer.orders": [Place("test.yaml", 1, 1)]}, recheck_s=0.001)
        backoff = Backoff(first_s=0.0005, cap_s=0.005)
        enforcer = Enforcer(
            store, letters, watch, system="postgresql", rules_hash="", timeout_s=5, halts=halts, backoff=backoff
        )
        await enforcer.enforce(piece)
    assert sum(effect.rows for effect in watch.effects) == 7
    assert not any("secret" in letter.message for letter in letters.published)
    return [(letter.record.offset, letter.reason) for letter in letters.published]


async def test_published_table_that_loses_its_replica_identity_breaks_the_rule(pg_database: str) -> None:
    await run(pg_database, *SHOP, "create publication p for table orders")
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        await run(pg_database, "alter table orders replica identity nothing")
        result = await store.apply(deletion().batch(), Deadline.after(10))
        assert isinstance(result, Broken)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.SCHEMA_MISMATCH)
        assert "replica identity" in result.message
        [finding] = await store.check(Deadline.after(10))
        await run(pg_database, finding.hint.partition(";")[0])
        assert await codes(store) == []
        await apply(store, deletion().batch())
    assert await left(pg_database) == [2]


@pytest.mark.parametrize(
    "change",
    ["alter table orders drop column customer_id", "alter table orders rename to orders_old", "drop table orders"],
)
async def test_table_changed_while_running_breaks_the_rule_and_blames_no_event(pg_database: str, change: str) -> None:
    await run(pg_database, *SHOP)
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        await apply(store, deletion().batch())
        await run(pg_database, change)
        events = Events()
        events.deleted((2,), 20, partition=1)
        batch = events.batch()
        result = await store.apply(batch, Deadline.after(10))
        if isinstance(result, Retry):  # a prepared statement learns of it by failing once
            result = await store.apply(batch, Deadline.after(10))
        assert isinstance(result, Broken)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.SCHEMA_MISMATCH)
    assert await fetch(pg_database, "select count(*) from integrity.keys") == [(1,)]


async def test_lost_privilege_breaks_the_rule(pg_database: str) -> None:
    role = pg_database.rpartition("/")[2] + "_role"
    await run(pg_database, *SHOP, f"create role {role} login")
    owner = PostgresStore("shop", pg_database, rules_of(rule(Cascade())), lane=LANE)
    await owner.migrate(Deadline.after(10))
    await owner.close()
    await run(
        pg_database,
        f"grant select, delete, update on orders to {role}",
        f"grant usage on schema integrity to {role}",
        f"grant select, insert, update, delete on all tables in schema integrity to {role}",
    )
    store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), rules_of(rule(Cascade())), lane=LANE)
    try:
        assert await codes(store) == []
        await run(pg_database, f"revoke delete on orders from {role}")
        result = await store.apply(deletion().batch(), Deadline.after(10))
        assert isinstance(result, Broken)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.PRIVILEGE)
        assert await codes(store) == ["privilege_missing"]
    finally:
        await store.close()
        await run(pg_database, f"drop owned by {role}", f"drop role {role}")


async def test_killed_connection_in_the_pool_is_replaced(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        await run(pg_database, KILL)
        for _ in range(3):
            result = await store.apply(deletion().batch(), Deadline.after(10))
            if isinstance(result, Applied):
                break
            assert isinstance(result, Retry) and result.unreachable
    assert await left(pg_database) == [2]


async def test_connection_killed_in_a_transaction_is_tried_again_and_counts_once(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    other = await asyncpg.connect(pg_database)
    async with store_of(pg_database, rule(Cascade()), lock_timeout_s=10) as store:
        batch = deletion().batch()
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select from orders where id = 1 for update")
        waiting = asyncio.create_task(store.apply(batch, Deadline.after(20)))
        await until_waiting(pg_database)
        await run(pg_database, KILL)
        result = await waiting
        assert isinstance(result, Retry) and result.unreachable
        await transaction.rollback()
        assert [e.outcome for e in await apply(store, batch)] == [Outcome.APPLIED]
    await other.close()
    assert await left(pg_database) == [2]


async def test_cancelled_batch_leaves_nothing_and_frees_its_locks_at_once(pg_database: str) -> None:
    """A partition that is revoked has to be let go within 3 s."""
    await run(pg_database, *SHOP)
    other = await asyncpg.connect(pg_database)
    rules = (rule(Nullify(("customer_id",)), name="first", target="notes"), rule(Cascade()))
    await run(
        pg_database,
        "create table notes (id bigint primary key, customer_id bigint)",
        "insert into notes values (1, 1)",
        "create index on notes (customer_id)",
    )
    async with store_of(pg_database, *rules, lock_timeout_s=10) as store:
        assert await codes(store) == []
        batch = deletion().batch()
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select from orders where id = 1 for update")
        waiting = asyncio.create_task(store.apply(batch, Deadline.after(20)))
        await until_waiting(pg_database)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # The row that the batch had changed before it waited is free again.
        await other.execute("set local lock_timeout = '1s'")
        await other.execute("update notes set id = 2")
        await transaction.rollback()
        assert await fetch(pg_database, "select * from notes") == [(1, 1)]
        assert isinstance(await store.apply(batch, Deadline.after(20)), Applied)
    await other.close()


async def test_keys_are_locked_in_one_order_whosever_event_it_is(pg_database: str) -> None:
    """Else a key change from a to b and one from b to a would wait for each other."""
    low, high = sorted([(1,), (2,)], key=lambda key: key_hash("customer", key))
    await run(pg_database, *SHOP)
    events = Events()
    for at, key in enumerate((low, high), 1):
        events.deleted(key, at)
    async with store_of(pg_database, rule(Cascade()), lock_timeout_s=HANGS_S) as store:
        await apply(store, events.batch())
        events.moved(high, low, 10)
        connection = await asyncpg.connect(pg_database)
        lock = "select from integrity.keys where key_hash = $1 for update nowait"
        async with asyncio.timeout(HANGS_S):
            async with connection.transaction():
                await connection.execute(lock, key_hash("customer", low))
                waiting = asyncio.create_task(apply(store, events.batch()))
                await until_waiting(pg_database)
                await connection.execute(lock, key_hash("customer", high))  # it is not locked yet
            await waiting
        await connection.close()


async def test_answer_to_commit_lost_on_the_way_is_found_done_by_the_next_attempt(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    async with wire_to(pg_database) as wire, store_of(wire.url, rule(Cascade())) as store:
        assert await codes(store) == []
        batch = deletion().batch()
        wire.cut_before_answer_to = b"commit\0"
        result = await store.apply(batch, Deadline.after(10))
        assert isinstance(result, Retry)
        assert await left(pg_database) == [2]
        assert [e.outcome for e in await apply(store, batch)] == [Outcome.DUPLICATE]


async def test_deadline_ends_a_batch_that_waits(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    other = await asyncpg.connect(pg_database)
    async with store_of(pg_database, rule(Cascade()), lock_timeout_s=10) as store:
        assert await codes(store) == []
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select from orders where id = 1 for update")
        async with asyncio.timeout(HANGS_S):
            result = await store.apply(deletion().batch(), Deadline.after(0.5))
        assert isinstance(result, Retry)
        await transaction.rollback()
        assert await left(pg_database) == [1, 2]
    await other.close()


async def test_statement_timeout_is_contended(pg_database: str) -> None:
    await run(
        pg_database,
        *SHOP,
        "create function public.slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(5); return old; end $$",
        "create trigger slow before delete on orders for each row execute function public.slow()",
    )
    async with store_of(pg_database, rule(Cascade()), timeout_s=0.4) as store:
        result = await store.apply(deletion().batch(), Deadline.after(20))
        assert isinstance(result, Retry) and result.contended
    assert await left(pg_database) == [1, 2]


async def test_server_that_turned_read_only_is_unreachable_until_it_takes_writes(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    name = pg_database.rpartition("/")[2]
    async with store_of(pg_database, rule(Cascade())) as store:
        assert await codes(store) == []
        await run(pg_database, f"alter database {name} set default_transaction_read_only = on", KILL)
        batch = deletion().batch()
        results = [await store.apply(batch, Deadline.after(10)) for _ in range(3)]
        assert all(isinstance(result, Retry) and result.unreachable for result in results)
        connection = await asyncpg.connect(pg_database)
        await connection.execute("set default_transaction_read_only = off")
        await connection.execute(f"alter database {name} reset default_transaction_read_only")
        await connection.close()
        assert isinstance(await store.apply(batch, Deadline.after(10)), Applied)
    assert await left(pg_database) == [2]


async def test_server_that_stops_and_starts_is_used_again() -> None:
    with PostgresServer() as server:
        url = server.create_database("shop")
        await run(url, *SHOP)
        async with store_of(url, rule(Cascade())) as store:
            assert await codes(store) == []
            server.kill()
            result = await store.apply(deletion().batch(), Deadline.after(5))
            assert isinstance(result, Retry) and result.unreachable
            with pytest.raises(UnreachableError, match=r"PostgreSQL at 127\.0\.0\.1:\d+ can't be used"):
                await store.check(Deadline.after(5))
            server.restart()
            for _ in range(3):
                result = await store.apply(deletion().batch(), Deadline.after(10))
                if isinstance(result, Applied):
                    break
            assert isinstance(result, Applied)
            assert await left(url) == [2]


async def test_frozen_server_costs_no_more_than_the_deadline_and_a_little() -> None:
    with PostgresServer(durable=False) as server:
        url = server.create_database("shop")
        await run(url, *SHOP)
        async with wire_to(url) as wire, store_of(wire.url, rule(Cascade())) as store:
            assert await codes(store) == []
            for writer in wire.writers:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(HANGS_S):
                result = await store.apply(deletion().batch(), Deadline.after(0.5))
            assert isinstance(result, Retry) and result.unreachable
            for writer in wire.writers:
                writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert isinstance(await store.apply(deletion().batch(), Deadline.after(10)), Applied)


async def test_unreachable_server_is_one_sentence_with_host_and_port_but_no_password() -> None:
    url = "postgresql://me:secret@127.0.0.1:1/shop"
    store = PostgresStore("shop", url, rules_of(rule(Cascade())), lane=LANE)
    for call in (store.check, store.migrate, lambda deadline: store.progress([], deadline)):
        with pytest.raises(UnreachableError) as caught:
            await call(Deadline.after(5))
        assert "127.0.0.1:1 " in caught.value.message and "secret" not in str(caught.value)
    result = await store.apply(deletion().batch(), Deadline.after(5))
    assert isinstance(result, Retry) and result.unreachable
    await store.close()


async def test_address_that_is_none_is_a_fault_of_the_settings() -> None:
    store = PostgresStore("shop", "postgresql://me:secret@127.0.0.1:port/shop", {}, lane=LANE)
    with pytest.raises(SettingsError, match="INTEGRITY_STORES__SHOP__URL") as caught:
        await store.check(Deadline.after(5))
    assert "secret" not in str(caught.value)
    await store.close()


async def test_missing_ledger_breaks_the_store_and_progress_says_so(pg_database: str) -> None:
    await run(pg_database, *SHOP)
    store = PostgresStore("shop", pg_database, rules_of(rule(Cascade())), lane=LANE)
    try:
        result = await store.apply(deletion().batch(), Deadline.after(5))
        assert isinstance(result, Broken) and result.dependent is None
        with pytest.raises(LedgerError, match="migrate"):
            await store.progress(list(deletion().batch().spans), Deadline.after(5))
    finally:
        await store.close()
    assert await left(pg_database) == [1, 2]


async def until_waiting(url: str) -> None:
    sql = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    async with asyncio.timeout(10):
        while not await fetch(url, sql):
            await asyncio.sleep(0.02)
