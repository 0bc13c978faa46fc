"""`integrity dlq` beside a running service: what was refused is listed, mended, sent back, and done exactly once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from integrity.demo.events import ChangeRecord, Commit, Debezium
from integrity.demo.servers import KafkaServer
from integrity.kafka.scans import ScanResult, scans_topic
from integrity.kafka.scans import publish as publish_scans
from integrity.ports import Deadline
from tests.conftest import CreateTopic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import Installation

pytestmark = pytest.mark.servers

ORDERS = "customer.public.orders"
SOURCE = Debezium(server="shop", database="shop", table="customers")
SCHEMA = (
    "create table orders(id bigint primary key, customer_id bigint)",
    "create index on orders (customer_id)",
    "create table poison(customer_id bigint)",
    "create table effects(id bigint)",
    """create function refuse() returns trigger language plpgsql as $$ begin
        if exists (select from public.poison p where p.customer_id = old.customer_id) then
            raise exception 'not this one';
        end if;
        insert into public.effects values (old.id);
        return old; end $$""",
    "create trigger refuse before delete on orders for each row execute function refuse()",
    "insert into orders select i, (i - 1) / 2 from generate_series(1, 20) i",
    "insert into poison values (3), (7)",
)


@pytest.fixture
async def installation(tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Installation]:
    made = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    yield made
    for process in made.processes:
        process.kill()


async def publish(kafka: KafkaServer, topic: str, *records: ChangeRecord) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    try:
        for key, value, headers in records:
            await producer.send_and_wait(topic, key=key, value=value, headers=headers)
    finally:
        await producer.stop()


def deletion(key: int, lsn: int) -> ChangeRecord:
    return SOURCE.deleted({"id": key}, Commit(lsn, lsn))[0]


async def dlq(installation: Installation, *arguments: str, code: int = 0) -> Any:
    """Run `integrity dlq … --json`, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "integrity", "dlq", *arguments, "--json"),
        env={**os.environ, **installation.environment},
        cwd=installation.directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == code, err.decode()
    return json.loads(out)


async def until_metric(address: str, line: str) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as client:
        while line not in (await client.get(f"http://{address}/metrics")).text:
            await asyncio.sleep(0.1)


async def test_what_a_trigger_refused_is_listed_mended_sent_back_and_done_once(
    installation: Installation, kafka: KafkaServer, pg_database: str
) -> None:
    await run_sql(pg_database, *SCHEMA)
    installation.store(pg_database)
    torn = SOURCE.torn({"id": 9}, Commit(90, 90))
    await publish(kafka, installation.topic, *(deletion(key, 10 + key) for key in range(9)), torn)
    group = installation.environment["INTEGRITY_GROUP"]
    scanned = [ScanResult(ORDERS, 3, 7, "2026-03-01T12:00:00Z"), ScanResult("customer.gone", 1, 1, "")]
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    await publish_scans(client, scans_topic(group), scanned, Deadline.after(30))
    service = installation.start("run", "--migrate")
    await service.until_said("an event became a dead letter", times=3)

    listed = await dlq(installation, "list")
    assert [(one["offset"], one["dependent"], one["reason"], one["status"]) for one in listed["letters"]] == [
        (3, ORDERS, "store_rejected", "open"),
        (7, ORDERS, "store_rejected", "open"),
        (9, "*", "bad_json", "open"),
    ]
    three, seven, unread = (one["id"] for one in listed["letters"])
    shown = await dlq(installation, "show", three)
    assert shown["record"]["key"] == {"text": '{"id":3}'}
    address = service.said("enforcing")[0]["http"]
    await until_metric(address, f'integrity_dead_letters_open{{dependent="{ORDERS}",reason="store_rejected"}} 2.0')
    await until_metric(address, f'integrity_orphans{{dependent="{ORDERS}"}} 7.0')
    async with httpx.AsyncClient() as asking:
        assert "customer.gone" not in (await asking.get(f"http://{address}/metrics")).text, "no rule has it"
    await dlq(installation, "retry", "--all", code=2)  # nobody to ask, and no --yes

    await run_sql(pg_database, "delete from poison where customer_id = 3")
    assert (await dlq(installation, "retry", "--all", "--yes", "--note", "mended"))["retried"] == 3
    await service.until_said("a dead letter is resolved")
    await service.until_said("an event became a dead letter", times=5)
    letters = {one["id"]: one for one in (await dlq(installation, "list", "--all"))["letters"]}
    assert {id_: (one["status"], one["retries"]) for id_, one in letters.items()} == {
        three: ("resolved", 0),
        seven: ("open", 1),
        unread: ("open", 1),
    }

    await run_sql(pg_database, "delete from poison")
    assert (await dlq(installation, "retry", "--dependent", ORDERS, "--yes"))["retried"] == 1
    await service.until_said("a dead letter is resolved", times=2)
    again = await dlq(installation, "retry", "--id", seven, "--yes", code=1)
    assert (again["retried"], again["refused"]) == (0, 1)
    assert (await dlq(installation, "discard", "--id", unread, "--yes"))["discarded"] == 1
    assert (await dlq(installation, "list"))["total"] == 0

    await until_metric(address, f'integrity_dead_letters_open{{dependent="{ORDERS}",reason="store_rejected"}} 0.0')
    await until_metric(address, "integrity_dead_letter_oldest_seconds 0.0")
    assert await fetch(pg_database, "select customer_id, count(*) from orders group by 1") == [(9, 2)]
    assert await fetch(pg_database, "select count(*), count(distinct id) from effects") == [(18, 18)]
    assert await fetch(pg_database, "select count(*) from integrity.exceptions") == [(0,)]
