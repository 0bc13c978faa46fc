"""Derived events end to end: orders in PostgreSQL go with their customer, what depends on them elsewhere follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from pymongo import AsyncMongoClient

from integrity.demo.servers import KafkaServer
from tests.conftest import CreateTopic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_run_command import Installation

pytestmark = pytest.mark.servers

CUSTOMER = """\
version: 1
parent: customer
events: {{topic: {topic}, format: debezium, key: {{id: int64}}}}
dependents:
  - store: orders_db
    table: lines
    references: {{customer_id: id}}
    on_delete: cascade
    entity: {entity}
    key: {{customer_id: int64, id: int64}}
"""
LINE = """\
version: 1
parent: {entity}
dependents:
  - store: reviews_db
    collection: reviews
    references: {{customer: customer_id, line: id}}
    on_delete: cascade
"""


def deleted(key: int, lsn: int) -> bytes:
    source = {"connector": "postgresql", "lsn": lsn, "ts_ms": 1_700_000_000_000}
    return json.dumps({"op": "d", "before": {"id": key}, "after": None, "source": source, "ts_ms": 1}).encode()


async def produce(servers: str, topic: str, *records: tuple[int, bytes, list[tuple[str, bytes]]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    try:
        for key, value, headers in records:
            await producer.send_and_wait(
                topic, value, key=json.dumps({"id": key}).encode(), headers=headers, partition=0
            )
    finally:
        await producer.stop()


async def test_what_depends_on_rows_in_another_store_follows_by_derived_events(
    tmp_path: Path,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    mongo_database: str,
    unique_name: Callable[[str], str],
) -> None:
    entity = unique_name("line").replace("-", "_").lower()
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    shop.environment |= {
        "INTEGRITY_STORES__ORDERS_DB__URL": pg_database,
        "INTEGRITY_STORES__ORDERS_DB__TIMEOUT": "30s",
        "INTEGRITY_STORES__REVIEWS_DB__URL": mongo_database,
    }
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "customer.yaml").write_text(CUSTOMER.format(topic=shop.topic, entity=entity))
    (rules / "line.yaml").write_text(LINE.format(entity=entity))
    await run_sql(
        pg_database,
        "create table lines (customer_id bigint, id bigint, primary key (customer_id, id))",
        "insert into lines values (1, 1), (1, 2), (2, 3), (3, 4)",
    )
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_database)
    reviews = client.get_default_database()["reviews"]
    await reviews.create_index({"customer": 1, "line": 1})
    await reviews.insert_many([{"_id": n, "customer": c, "line": n} for n, c in enumerate((1, 1, 2, 3), 1)])
    source = {"connector": "postgresql", "lsn": 20, "ts_ms": 1_700_000_000_000}
    moved = json.dumps({"op": "d", "before": {"id": 2}, "after": None, "source": source, "ts_ms": 1}).encode()
    await produce(
        kafka.bootstrap_servers,
        shop.topic,
        (1, deleted(1, 10), []),
        (2, moved, [("__debezium.newkey", b'{"id": 9}')]),
    )
    try:
        for store in ("orders_db", "reviews_db"):
            process = shop.start("run", "--migrate", "--exit-at-end", "--store", store)
            assert await process.ended() == 0, process.text
        assert await fetch(pg_database, "select * from lines order by id") == [(9, 3), (3, 4)]
        assert await fetch(pg_database, "select count(*) from integrity.outbox") == [(0,)]
        found = [(d["_id"], d["customer"]) async for d in reviews.find().sort("_id")]
        assert found == [(3, 9), (4, 3)]
        ledger = client.get_default_database()["integrity.keys"]
        assert await ledger.count_documents({"entity": entity}) == 4
    finally:
        for process in shop.processes:
            process.kill()
        await client.close()
