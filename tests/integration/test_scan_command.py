"""`integrity scan` on real servers: what it finds, what it mends, and where it refuses to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from integrity.cli import main
from integrity.demo.events import Commit, Debezium
from integrity.demo.servers import KafkaServer
from integrity.kafka.scans import ScanResults
from integrity.service import scan_repair
from tests.conftest import CreateTopic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_dlq_command import publish
from tests.integration.topic_shop import read_all

pytestmark = pytest.mark.servers

SOURCE = Debezium(server="shop", database="shop", table="customers")
RULES = """\
version: 1
parent: customer
events:
  topic: {topic}
  format: debezium
  key: {{id: int64}}
  deleted_when: "after.deleted_at != null"
{source}dependents:
  - {{name: orders, store: orders_db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade,
     entity: order, key: {{id: int64}}}}
  - {{store: reviews_db, collection: reviews, references: {{customerId: id}}, on_delete: nullify}}
"""
ITEMS = """\
version: 1
parent: order
dependents:
  - {name: items, store: orders_db, table: public.items, references: {order_id: id}, on_delete: cascade}
"""


@pytest.fixture
def shop(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    mongo_database: str,
) -> str:
    """An installation in the working directory; the topic of its parents, which is compacted and empty."""
    topic = asyncio.run(create_topic(config={"cleanup.policy": "compact"}))
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/order.yaml").write_text(ITEMS)
    write_rules(topic)
    for name, value in {
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "GROUP": topic,
        "AUDIT__TOPIC": f"{topic}.audit",
        "STORES__ORDERS_DB__URL": pg_database,
        "STORES__REVIEWS_DB__URL": mongo_database,
    }.items():
        monkeypatch.setenv(f"INTEGRITY_{name}", value)
    asyncio.run(
        run_sql(
            pg_database,
            "create table customers(id bigint primary key, deleted_at timestamptz)",
            "create table orders(id bigint primary key, customer_id bigint)",
            "create table items(id bigint primary key, order_id bigint)",
            "create index on orders(customer_id)",
            "create index on items(order_id)",
            "insert into customers select n from generate_series(1, 100) n",
            # Customer 100 is marked as deleted; 101 and 102 are gone. Order 9999 is gone as well.
            "update customers set deleted_at = now() where id = 100",
            "insert into orders select n, n from generate_series(1, 102) n",
            "insert into items select n, n from generate_series(100, 102) n",
            "insert into items values (1, 9999)",
        )
    )
    with MongoClient[dict[str, Any]](mongo_database) as client:
        reviews = client.get_default_database().reviews
        reviews.create_index("customerId")
        reviews.insert_many([{"customerId": n} for n in (*range(1, 40), 101, 101, "7", 5.7, [101], None)])
    assert main(["migrate"]) == 0
    return topic


def write_rules(topic: str, source: str = "  source: {store: orders_db, table: public.customers}\n") -> None:
    Path("rules/customer.yaml").write_text(RULES.format(topic=topic, source=source))


def scan(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> dict[str, Any]:
    """The document of a scan, by dependent."""
    capsys.readouterr()
    assert main(["scan", "--grace", "0s", "--json", *arguments]) == code, capsys.readouterr().err
    out = json.loads(capsys.readouterr().out)
    return {each["dependent"]: each for each in out["scans"]} | {"failed": out["failed"]}


def test_orphans_are_found_mended_and_told(
    shop: str, pg_database: str, mongo_database: str, kafka: KafkaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scan(capsys)
    orders, reviews, items = found["customer.orders"], found["customer.reviews"], found["order.items"]
    assert (orders["orphans"]["keys"], orders["orphans"]["rows"], orders["keys"]) == (3, 3, 102)
    assert orders["samples"][0] == {"key": {"id": 100}, "rows": 1, "heard": "unheard"}
    assert (reviews["orphans"]["keys"], reviews["orphans"]["rows"], reviews["mistyped_rows"]) == (1, 2, 3)
    assert (items["orphans"]["keys"], items["parents_at"]) == (1, "table public.orders of orders_db")
    assert asyncio.run(metric(kafka, shop)) == {"customer.orders": 3, "customer.reviews": 2, "order.items": 1}

    # Orders 100 to 102 go with their items; the item of order 9999 is one of four, more than the share allows.
    mended = scan(capsys, "--repair", "--yes")
    assert mended["customer.orders"]["repair"]["rows"] == {"customer.orders": 3, "order.items": 3}
    assert mended["customer.reviews"]["repair"]["rows"] == {"customer.reviews": 2}
    assert mended["order.items"]["repair"]["refused"].startswith("25.0% of the keys are orphaned")
    assert asyncio.run(fetch(pg_database, "select max(id) from orders")) == [(99,)]
    assert asyncio.run(fetch(pg_database, "select order_id from items")) == [(9999,)]
    with MongoClient[dict[str, Any]](mongo_database) as client:
        assert client.get_default_database().reviews.count_documents({"customerId": None}) == 3
    assert asyncio.run(metric(kafka, shop)) == {"customer.orders": 0, "customer.reviews": 0, "order.items": 1}
    audited = [json.loads(record.value) for record in asyncio.run(audit(kafka, shop))]
    assert len([each for each in audited if each["dependent"] == "customer.orders"]) == 3
    assert {(each["outcome"], bool(each["actor"]), each["op"]) for each in audited} == {("repaired", True, "missing")}

    again = scan(capsys, "--repair", "--yes", "--max-share", "100%", "--dependent", "order.items")
    assert again["order.items"]["repair"]["rows"] == {"order.items": 1}
    assert scan(capsys, code=0)["failed"] == {}
    assert main(["scan", "--repair"]) == 2, "nobody can be asked"


def test_repair_waits_for_events_that_are_not_enforced(
    shop: str,
    pg_database: str,
    kafka: KafkaServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Customer 101 may have become 1: the event is there, the service has not read it yet."""
    monkeypatch.setattr(scan_repair, "CAUGHT_UP_S", 1.0)
    asyncio.run(publish(kafka, shop, *SOURCE.deleted({"id": 101}, Commit(1, 1))[:1]))
    found = scan(capsys, "--repair", "--yes", "--dependent", "customer.orders", code=3)
    assert "behind the events of customer" in found["failed"]["customer.orders"]
    assert asyncio.run(fetch(pg_database, "select count(*) from orders")) == [(102,)]


def test_parents_are_those_of_the_compacted_topic_where_no_table_is_named(
    shop: str, create_topic: CreateTopic, kafka: KafkaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rules(shop, source="")
    rows: list[dict[str, Any]] = [{"id": n, "deleted_at": None} for n in range(1, 101)]
    created = [record for row in rows for record in SOURCE.inserted(row, Commit(row["id"], row["id"]))]
    asyncio.run(publish(kafka, shop, *created, *SOURCE.deleted(rows[0], Commit(200, 200))))
    found = scan(capsys)
    assert [each["key"]["id"] for each in found["customer.orders"]["samples"]] == [1, 101, 102]
    assert (found["customer.reviews"]["orphans"]["keys"], found["customer.reviews"]["candidates"]) == (2, 2)
    # Of parent 102 compaction has left an update, which says that it lives as a creation does.
    rule = Path("rules/customer.yaml")
    rule.write_text("\n".join(line for line in rule.read_text().split("\n") if "deleted_when" not in line))
    asyncio.run(publish(kafka, shop, *SOURCE.updated({"id": 102}, Commit(201, 201))))
    assert [each["key"]["id"] for each in scan(capsys)["customer.orders"]["samples"]] == [1, 101]
    write_rules(asyncio.run(create_topic()), source="")
    failed = scan(capsys, "--dependent", "customer.orders", code=3)["failed"]
    assert "cleanup.policy=delete" in failed["customer.orders"]


async def metric(kafka: KafkaServer, group: str) -> dict[str, int]:
    """What a service tells of the last scans, once it has read all of them."""
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    newest = {r.key.decode(): json.loads(r.value)["rows"] for r in await read_all(client, f"{group}.scans")}
    told: dict[str, int] = {}
    complete = asyncio.Event()

    def hear(dependent: str, rows: int) -> None:
        told[dependent] = rows
        if told == newest:
            complete.set()

    running = asyncio.create_task(ScanResults(client, f"{group}.scans", hear).run())
    await asyncio.wait_for(complete.wait(), 20)
    running.cancel()
    await asyncio.wait({running})
    return told


async def audit(kafka: KafkaServer, group: str) -> list[Any]:
    return await read_all({"bootstrap_servers": kafka.bootstrap_servers}, f"{group}.audit")
