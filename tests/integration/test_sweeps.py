"""Sweeps against real servers: the whole service once, and what the PostgreSQL store does beside others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from integrity.core.outcome import Rejected, Retry
from integrity.core.rules.model import Cascade
from integrity.core.sweep import Sweep, Swept
from integrity.demo.servers import KafkaServer
from integrity.errors import Reason
from integrity.ports import Deadline
from tests.conftest import CreateTopic
from tests.contract.world import AT_MS, ENTITY, Events, apply, rule
from tests.integration.pg_shop import fetch, store_of
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import ORDERS, Installation
from tests.integration.topic_shop import read_all

pytestmark = pytest.mark.servers

SWEEP = Sweep(60_000, AT_MS, frozenset({ENTITY}), 1000, AT_MS + 60_000)
TABLES = (ORDERS, "create index on orders(customer_id)")


async def began(store: object) -> None:
    await store.sweep(Sweep(60_000, AT_MS - 1, SWEEP.entities, 1000, AT_MS), Deadline.after(30))  # type: ignore[attr-defined]


@pytest_asyncio.fixture
async def installation(tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Installation]:
    made = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    yield made
    for process in made.processes:
        process.kill()


async def test_service_finds_a_row_that_was_written_late(
    installation: Installation, kafka: KafkaServer, pg_database: str
) -> None:
    await run_sql(pg_database, *TABLES, "insert into orders values (1, 7), (2, 8)")
    installation.store(pg_database)
    rules = installation.directory / "rules" / "customer.yaml"
    rules.write_text(rules.read_text() + "late_children: {sweeps: [1s]}\n")
    installation.environment["INTEGRITY_STORES__ORDERS_DB__TIMEOUT"] = "1s"
    process = installation.start("run", "--migrate")
    await process.until_said("enforcing")
    await until(lambda: fetch(pg_database, "select 1 from integrity.sweeps"), [(1,)])
    source = {"lsn": 10, "connector": "postgresql", "ts_ms": 1_700_000_000_000, "snapshot": "false"}
    value = json.dumps({"before": {"id": 7}, "after": None, "source": source, "op": "d", "ts_ms": 1})
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(installation.topic, value.encode(), json.dumps({"id": 7}).encode())
    await producer.stop()
    await until(lambda: fetch(pg_database, "select id from orders"), [(2,)])
    await run_sql(pg_database, "insert into orders values (3, 7)")
    await until(lambda: fetch(pg_database, "select id from orders"), [(2,)])
    said = await process.until_said("rows were written after their parent was gone; they went the same way")
    assert (said["dependent"], said["rows"]) == ("customer.public.orders", 1)
    process.terminate()
    assert await process.ended() == 0
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    audit = [json.loads(record.value) for record in await read_all(client, f"{installation.topic}.audit")]
    assert [(each["outcome"], each["rows"], each["key"]) for each in audit] == [
        ("applied", 1, {"id": 7}),
        ("repaired", 1, {"id": 7}),
    ]
    assert audit[0]["id"] == audit[1]["id"], "it is the same event on the same dependent"


async def until(ask: object, expected: object) -> None:
    async with asyncio.timeout(60):
        while await ask() != expected:  # type: ignore[operator]
            await asyncio.sleep(0.05)


async def test_sweep_that_another_process_is_at_is_passed_by(pg_database: str) -> None:
    await run_sql(pg_database, *TABLES)
    async with store_of(pg_database, rule(Cascade())) as store:
        await began(store)
        events = Events()
        events.deleted((1,), 10)
        await apply(store, events.batch())
        await run_sql(pg_database, "insert into orders values (1, 1)")
        other = await asyncpg.connect(pg_database)
        async with other.transaction():
            await other.execute("select from integrity.sweeps for update")
            assert await store.sweep(SWEEP, Deadline.after(30)) == Swept()
        await other.close()
        found = await store.sweep(SWEEP, Deadline.after(30))
        assert isinstance(found, Swept) and [each.rows for each in found.repaired] == [1]


async def test_sweep_waits_for_no_lock_for_long_and_says_whose_row_is_refused(pg_database: str) -> None:
    await run_sql(
        pg_database,
        *TABLES,
        "create table lines(order_id bigint references orders deferrable initially deferred)",
        "create index on lines(order_id)",
    )
    async with store_of(pg_database, rule(Cascade()), lock_timeout_s=0.2) as store:
        await began(store)
        events = Events()
        events.deleted((1,), 10)
        await apply(store, events.batch())
        await run_sql(pg_database, "insert into orders values (1, 1)", "insert into lines values (1)")
        result = await store.sweep(SWEEP, Deadline.after(30))
        assert isinstance(result, Rejected)
        assert (result.dependent, result.reason) == ("customer.orders", Reason.CONSTRAINT_VIOLATION)
        await run_sql(pg_database, "delete from lines")
        other = await asyncpg.connect(pg_database)
        async with other.transaction():
            await other.execute("select from orders for update")
            result = await store.sweep(SWEEP, Deadline.after(30))
            assert isinstance(result, Retry) and result.contended
        await other.close()
        found = await store.sweep(SWEEP, Deadline.after(30))
        assert isinstance(found, Swept) and [each.rows for each in found.repaired] == [1]


async def test_a_page_is_read_by_the_index_of_when_keys_were_enforced(pg_database: str) -> None:
    await run_sql(pg_database, *TABLES)
    async with store_of(pg_database, rule(Cascade())) as store:
        await began(store)
        await run_sql(
            pg_database,
            "insert into integrity.keys (key_hash, entity, key, fate, enforced_ms, older_fates)"
            " select decode(md5(n::text), 'hex'), 'customer', '[1]', '0:1', n / 500, 0"
            " from generate_series(1, 50000) n",
            "analyze integrity.keys",
        )
        connection = await asyncpg.connect(pg_database, server_settings={"plan_cache_mode": "force_generic_plan"})
        from integrity.stores.postgres.ledger import Ledger
        from integrity.stores.postgres.sweep import Sweeper

        sql = Sweeper(Ledger("integrity", "l"), "l", lambda _: None).page_sql
        await connection.execute(f"prepare page(bigint, bytea, bigint, bigint) as {sql}")
        plan = "\n".join(row[0] for row in await connection.fetch("explain execute page(5, '', 90, 100)"))
        await connection.close()
        assert "Incremental Sort" in plan and "keys_enforced_ms" in plan, plan
