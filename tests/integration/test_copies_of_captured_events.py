"""Copies end to end: the events that Debezium wrote of one run of statements, through Kafka, into every kind of store.

The copy in PostgreSQL is added when the service has run for a while: it reads the topic from its first record.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from pymongo import AsyncMongoClient

from integrity.demo.servers import KafkaServer
from tests.conftest import CreateTopic
from tests.golden.records import of_topic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import Installation
from tests.integration.topic_shop import read_all

pytestmark = pytest.mark.servers

BEFORE = """\
version: 1
parent: customer
events: {{topic: {topic}, format: debezium, key: {{id: int64}}}}
dependents:
  - store: orders_db
    table: orders
    references: {{customer_id: id}}
    on_delete: cascade
copies:
  - store: reviews_db
    collection: customer_copy
    columns: {{_id: id, name: name, at: updated_at}}
  - store: carts
    topic: {topic}.copy
    columns: {{id: id, name: name, at: updated_at, big: big}}
"""
ADDED = """\
  - name: fresh
    store: orders_db
    table: customer_copy
    columns: {{id: id, name: name{more}, at: updated_at, big: big}}
    on_delete: {{tombstone: {{set: {{deleted_at: $event.time}}}}}}
"""
TABLES = (
    "create table orders(id bigint primary key, customer_id bigint)",
    "create index on orders(customer_id)",
    "create table customer_copy(id bigint primary key, name varchar(20) not null, email text, at timestamptz,"
    " big numeric, deleted_at timestamptz)",
)
LEFT = {
    1: ("Again2", "2026-11-23T21:52:31.937798Z", "1"),
    2: ("One", "2026-01-02T03:04:05.678901Z", "1.5"),
    20: ("kept", "2026-02-02T00:00:00.000000Z", "20"),
    50: ("IA", "2026-02-04T00:00:00.000000Z", "1"),
    51: ("IB", "2026-02-04T00:00:00.000000Z", "1"),
}
"""What the statements left in the table: id -> name, updated_at, big."""


async def test_copies_hold_what_the_statements_left_and_a_later_one_catches_up(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str, mongo_database: str
) -> None:
    records = of_topic("pg_env", "public.customers")
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic(partitions=3))
    await create_topic(f"{shop.topic}.copy", partitions=2, config={"cleanup.policy": "compact"})
    shop.environment |= {
        "INTEGRITY_STORES__ORDERS_DB__URL": pg_database,
        "INTEGRITY_STORES__ORDERS_DB__TIMEOUT": "30s",
        "INTEGRITY_STORES__REVIEWS_DB__URL": mongo_database,
        "INTEGRITY_STORES__CARTS__URL": "kafka:",
        "INTEGRITY_STORES__CARTS__SCHEMA": shop.topic,
    }
    rules = tmp_path / "rules" / "customer.yaml"
    rules.parent.mkdir()
    rules.write_text(BEFORE.format(topic=shop.topic))
    await run_sql(pg_database, *TABLES, "insert into orders values (1, 2), (2, 12)")
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    await _produce(client, shop.topic, records)
    await _run(shop)
    await _expect_documents(mongo_database)
    assert await _expect_records(client, f"{shop.topic}.copy") == LEFT
    # Rows written after the deletions of their parents were enforced: the new copy must not enforce them again.
    await run_sql(pg_database, "truncate orders", "insert into orders values (3, 12), (4, 30)")
    rules.write_text((BEFORE + ADDED).format(topic=shop.topic, more=""))
    ran = await _run(shop)
    (begun,) = {line["message"] for line in ran.said("a copy reads a partition from its first record")}
    assert begun
    live = "select id, name, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), big::text"
    rows = await fetch(pg_database, f"{live} from customer_copy where deleted_at is null")
    assert {id_: (name, at, str(Decimal(str(big)))) for id_, name, at, big in rows} == LEFT
    marked = await fetch(pg_database, "select id from customer_copy where deleted_at is not null order by id")
    assert [id_ for (id_,) in marked] == [-1, 10, 11, 12, 13, 14, 21, 22, 23, 30, 31, 60, 9007199254740993]
    assert await fetch(pg_database, "select id from orders order by id") == [(3,), (4,)]
    # With a column more its rows are others: it is made anew.
    rules.write_text((BEFORE + ADDED).format(topic=shop.topic, more=", email: email"))
    await _run(shop)
    emails = await fetch(pg_database, "select id, email from customer_copy where deleted_at is null order by id")
    assert emails == [
        (1, "again2@x.test"), (2, "one@x.test"), (20, "m20@x.test"), (50, "ia@x.test"), (51, "ib@x.test")
    ]  # fmt: skip
    audited = [json.loads(record.value) for record in await read_all(client, f"{shop.topic}.audit")]
    said = {(each["dependent"], each["action"]) for each in audited}
    assert ("customer.fresh", "tombstone") in said
    assert not [action for _, action in said if action == "upsert"], "rows that copies were given are counted only"


async def test_key_change_that_does_not_send_a_value_is_a_dead_letter_of_that_copy_alone(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    """Under the default replica identity a large value that has not changed is in no event. An incremental snapshot
    brings the row; the dead letter that is sent back then is older than it."""
    records = [record for record in of_topic("pg_env", "public.customers") if 53 <= record.offset <= 57]
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    shop.environment |= {"INTEGRITY_STORES__ORDERS_DB__URL": pg_database}
    rules = tmp_path / "rules" / "customer.yaml"
    rules.parent.mkdir()
    copies = [
        f"  - {{store: orders_db, table: {table}, columns: {{id: id, name: name{more}}}}}\n"
        for table, more in (("small", ""), ("large", ", blob: blob"))
    ]
    head = BEFORE.partition("dependents:")[0].format(topic=shop.topic)
    rules.write_text(f"{head}copies:\n{''.join(copies)}")
    await run_sql(
        pg_database,
        "create table small(id bigint primary key, name text)",
        "create table large(id bigint primary key, name text, blob text)",
    )
    await _produce({"bootstrap_servers": kafka.bootstrap_servers}, shop.topic, records[:2])
    await _run(shop)
    assert await fetch(pg_database, "select id, length(blob) from large") == [(30, 2500)]
    await _produce({"bootstrap_servers": kafka.bootstrap_servers}, shop.topic, records[2:])
    ran = await _run(shop)
    assert await fetch(pg_database, "select id, name from small") == [(31, "Toast")]
    assert await fetch(pg_database, "select id from large") == []
    (letter,) = ran.said("an event became a dead letter")
    assert (letter["dependent"], letter["reason"]) == ("customer.large", "value_rejected")
    source = {"connector": "postgresql", "lsn": None, "snapshot": "incremental", "ts_ms": 1}
    after = {"id": 31, "name": "Toast", "blob": "t" * 2500}
    read = json.dumps({"before": None, "after": after, "source": source, "op": "r", "ts_ms": 1}).encode()
    await _produce(
        {"bootstrap_servers": kafka.bootstrap_servers}, shop.topic, [records[-1]._replace(value=read, headers=())]
    )
    await _run(shop)
    retry = shop.start("dlq", "retry", "--all", "--yes")
    assert await retry.ended() == 0, retry.text
    ran = await _run(shop)
    (resolved,) = ran.said("a dead letter is resolved")
    assert (resolved["id"], resolved["dependent"]) == (letter["id"], "customer.large")
    assert await fetch(pg_database, "select id, length(blob) from large") == [(31, 2500)]


async def _run(shop: Installation) -> Any:
    process = shop.start("run", "--migrate", "--exit-at-end")
    async with asyncio.timeout(120):
        while process.running:
            await asyncio.sleep(0.05)
    assert await process.ended() == 0, process.text
    return process


async def _produce(client: dict[str, Any], topic: str, records: Any) -> None:
    producer = AIOKafkaProducer(**client)
    await producer.start()
    try:
        for record in records:
            await producer.send_and_wait(topic, record.value, record.key, headers=list(record.headers))
    finally:
        await producer.stop()


async def _expect_documents(url: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](url) as client:
        found = {each["_id"]: each async for each in client.get_default_database()["customer_copy"].find()}
    assert {id_: (each["name"], each["at"]) for id_, each in found.items()} == {
        id_: row[:2] for id_, row in LEFT.items()
    }


async def _expect_records(client: dict[str, Any], topic: str) -> dict[int, tuple[str, str, str]]:
    found: dict[int, tuple[str, str, str]] = {}
    for record in await read_all(client, topic):
        id_ = json.loads(record.key)["id"]
        found.pop(id_, None)
        if record.value is not None:
            row = json.loads(record.value)
            big = int.from_bytes(b64decode(row["big"]["value"]), "big", signed=True)
            found[id_] = row["name"], row["at"], str(Decimal(big).scaleb(-row["big"]["scale"]))
    return found
