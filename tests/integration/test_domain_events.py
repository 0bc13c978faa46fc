"""Domain events end to end: an outbox as Debezium's EventRouter writes it, through Kafka, into PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from integrity.demo.servers import KafkaServer
from tests.conftest import CreateTopic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import Installation

pytestmark = pytest.mark.servers

RULE = """\
version: 1
parent: customer
events:
  topic: {topic}
  format: outbox
  key: {{id: int64}}
  types: {{deleted: [CustomerDeleted], key_changed: [CustomerRenumbered], upserted: [CustomerRegistered]}}
  new_key: {{id: newId}}
dependents:
  - store: orders_db
    table: orders
    references: {{customer_id: id}}
    on_delete: cascade
copies:
  - store: orders_db
    table: customer_copy
    columns: {{id: id, name: name}}
"""
TABLES = (
    "create table orders(id bigint primary key, customer_id bigint)",
    "create index on orders(customer_id)",
    "create table customer_copy(id bigint primary key, name text)",
    "insert into orders select n, n from generate_series(1, 9) n",
)
EVENTS: list[tuple[int, str | None, object]] = [
    *((n, "CustomerRegistered", {"name": f"c{n}"}) for n in range(1, 10)),
    (1, "CustomerDeleted", None),
    (2, "CustomerRenumbered", json.dumps({"newId": 20})),  # not expanded: JSON in JSON
    (20, "CustomerRegistered", {"name": "c20"}),
    (3, "CustomerRenumbered", {"newId": 30}),
    (30, "CustomerDeleted", {}),
    (4, "CustomerDeleted", {}),
    (4, "CustomerRegistered", {"name": "again"}),
    (5, "CustomerDeletionRequested", {}),  # a type that the rule does not name
    (6, None, {}),  # the router was not told to place the type
    (7, "CustomerRenumbered", {"newNumber": 70}),  # no new key
]


async def test_orders_follow_the_events_of_an_outbox(
    tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic, pg_database: str
) -> None:
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic(partitions=1))
    shop.environment |= {
        "INTEGRITY_STORES__ORDERS_DB__URL": pg_database,
        "INTEGRITY_STORES__ORDERS_DB__TIMEOUT": "30s",
    }
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "customer.yaml").write_text(RULE.format(topic=shop.topic))
    await run_sql(pg_database, *TABLES)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    for key, type_, payload in EVENTS:
        headers = [] if type_ is None else [("eventType", type_.encode())]
        await producer.send_and_wait(shop.topic, json.dumps(payload).encode(), str(key).encode(), headers=headers)
    await producer.stop()
    process = shop.start("run", "--migrate", "--exit-at-end")
    async with asyncio.timeout(120):
        while process.running:
            await asyncio.sleep(0.05)
    assert await process.ended() == 0, process.text
    # Of 1, 3 (as 30) and 4 the orders are gone; those of 2 are at 20; all others are as they were.
    assert await fetch(pg_database, "select id, customer_id from orders order by id") == [
        (2, 20), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9),
    ]  # fmt: skip
    assert await fetch(pg_database, "select id, name from customer_copy order by id") == [
        (4, "again"), (5, "c5"), (6, "c6"), (7, "c7"), (8, "c8"), (9, "c9"), (20, "c20"),
    ]  # fmt: skip
    refused = process.said("an event became a dead letter")
    assert {each["offset"]: each["reason"] for each in refused} == {17: "bad_envelope", 18: "missing_key"}
