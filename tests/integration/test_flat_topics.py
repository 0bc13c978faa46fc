"""Flattened topics, compacted tables, key changes without a mark and keys in the rows end to end: through Kafka, into
PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from integrity.core.decode.record import Record
from integrity.demo.servers import KafkaServer
from tests.conftest import CreateTopic
from tests.golden.records import load
from tests.golden.test_unmarked_key_changes import records_of, row
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import Installation

pytestmark = pytest.mark.servers

RULE = """\
version: 1
parent: customer
events: {{topic: {topic}, format: {events}}}
dependents:
  - store: orders_db
    table: orders
    references: {{customer_id: id}}
    on_delete: cascade
copies:
  - store: orders_db
    table: customer_copy
    columns: {{id: id, email: email}}
"""
TABLES = (
    "create table orders(id serial primary key, customer_id {type})",
    "create index on orders(customer_id)",
    "create table customer_copy(id {type} primary key, email text)",
)
BIG = 9007199254740993
CUSTOMERS = [1, 2, 10, 11, 12, 20, 30, 31, BIG, 77]
"""Each has an order; 77 is nobody that the events know."""


@pytest.mark.parametrize("file", ["pg_flat_rewrite_with_tombstone", "pg_flat_tombstone"])
async def test_orders_go_with_the_customers_of_a_flattened_topic(
    file: str, tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    """10 became 11, then 12, which was deleted and created again; 30 became 31, which was deleted."""
    records = [record for record in load(file) if record.topic == f"{file}.public.customers"]
    left = await _end(
        "debezium-flat, key: {id: int64}", "bigint", CUSTOMERS, records, tmp_path, kafka, create_topic, pg_database
    )
    assert left == ([1, 2, 20, 77], [1, 2, 12, 20])


async def test_orders_go_with_the_customers_of_a_compacted_topic(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    """2, 3 and 99 have null records, 3 is there again, 4 is marked. Keys are bare text."""
    records = [record for record in load("kt_compacted") if record.topic == "kt.customers"]
    events = 'json, key: {id: int32}, key_format: string, deleted_when: "has(after.deleted) && after.deleted"'
    customers = [1, 2, 3, 4, 5, 99, 77]
    left = await _end(events, "integer", customers, records, tmp_path, kafka, create_topic, pg_database)
    assert left == ([1, 5, 77], [1, 3, 5])


async def test_orders_follow_a_key_change_that_sql_server_sends_without_a_mark(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    """10 becomes 11, 12 is deleted and 13 created by one transaction, 2 is replaced under its key. The halves come in
    the topic's one partition, each with the null record of its deletion."""
    records = records_of(
        *[row("c", 10, 1, 1, 4, email="x"), row("d", 10, 1), row("c", 11, 1, 2, email="x")],
        *[row("d", 12, 2), row("c", 13, 3, email="y"), row("d", 2, 4), row("c", 2, 4, 2, email="z")],
    )
    left = await _end(
        "debezium, key: {id: int64}",
        *("bigint", [2, 10, 12, 77], records, tmp_path, kafka, create_topic, pg_database),
        partitions=1,
    )
    assert left == ([2, 11, 77], [2, 11, 13])


async def test_orders_follow_an_email_that_only_the_rows_tell(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    """Ten gets another address, and twelve is deleted. That the primary key of ten changes, too, is a dead letter:
    nothing tells whether the address changed with it."""
    records = [each for each in load("my_env_schemas") if each.topic == "my_env_schemas.shop.customers"]
    left = await _end(
        "debezium, key: {email: string}, key_from: before, tombstones: ignore",
        *("text", [f"{name}@x.test" for name in ("one", "two", "big", "ten", "twelve", "nobody")], records),
        *(tmp_path, kafka, create_topic, pg_database),
        partitions=1,
        rule=RULE.partition("copies:")[0].replace("customer_id: id", "customer_id: email"),
        letters=["no_before"],
    )
    assert left[0] == [f"{name}@x.test" for name in ("big", "nobody", "one", "ten+new", "two")]


async def _end(
    events: str,
    type_: str,
    customers: Sequence[int | str],
    records: Sequence[Record],
    tmp_path: Path,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    partitions: int = 3,
    rule: str = RULE,
    letters: Sequence[str] = (),
) -> tuple[list[object], list[object]]:
    """Whose orders are left, and which customers the copy has."""
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic(partitions=partitions))
    shop.environment |= {"INTEGRITY_STORES__ORDERS_DB__URL": pg_database}
    rules = tmp_path / "rules" / "customer.yaml"
    rules.parent.mkdir()
    rules.write_text(rule.format(topic=shop.topic, events=events))
    held = ", ".join(f"({customer!r})" for customer in customers)
    await run_sql(
        pg_database,
        *(table.format(type=type_) for table in TABLES),
        f"insert into orders(customer_id) values {held}",
    )
    await _produce({"bootstrap_servers": kafka.bootstrap_servers}, shop.topic, records)
    process = shop.start("run", "--migrate", "--exit-at-end")
    async with asyncio.timeout(120):
        while process.running:
            await asyncio.sleep(0.05)
    assert await process.ended() == 0, process.text
    assert [line["reason"] for line in process.said("an event became a dead letter")] == list(letters)
    orders = await fetch(pg_database, "select customer_id from orders order by 1")
    copied = await fetch(pg_database, "select id from customer_copy order by 1")
    return [id_ for (id_,) in orders], [id_ for (id_,) in copied]


async def _produce(client: dict[str, Any], topic: str, records: Sequence[Record]) -> None:
    producer = AIOKafkaProducer(**client)
    await producer.start()
    try:
        for record in records:
            await producer.send_and_wait(topic, record.value, record.key, headers=list(record.headers))
    finally:
        await producer.stop()
