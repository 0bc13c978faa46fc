"""`integrity undo` on real stores: what an event changed in all of them comes back, once, and is told everywhere."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymongo import AsyncMongoClient

from integrity.cli import main
from integrity.demo.servers import KafkaServer
from integrity.ports import Deadline
from integrity.rules_files import load_rules
from integrity.stores.mongo import MongoStore
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import store_rules
from tests.contract.undoing import event
from tests.contract.world import Events, apply
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_audit import read

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: customer
events: {topic: shop.public.customers, format: debezium, key: {id: int64}}
dependents:
  - {name: orders, store: orders_db, table: public.orders, references: {customer_id: id}, on_delete: cascade,
     undo: 30d, entity: order, key: {id: int64}}
  - {store: reviews_db, collection: reviews, references: {customerId: id}, on_delete: nullify, undo: 30d}
  - {name: notes, store: orders_db, table: notes, references: {customer_id: id}, on_delete: cascade}
"""
ITEMS = """\
version: 1
parent: order
dependents:
  - {name: items, store: orders_db, table: items, references: {order_id: id}, on_delete: cascade, undo: 30d}
"""
SCHEMA = (
    "create table orders(id bigint primary key, customer_id bigint)",
    "create table items(id bigint primary key, order_id bigint references orders)",
    "create table notes(id bigint primary key, customer_id bigint)",
    "create index on orders(customer_id)",
    "create index on items(order_id)",
    "create index on notes(customer_id)",
    "insert into orders select n, 1 + n % 2 from generate_series(1, 20) n",
    "insert into items select n, n from generate_series(1, 20) n",
    "insert into notes values (1, 1)",
)


async def enforce(url: str, mongo_url: str) -> None:
    """The deletion of customer 1, in both stores."""
    await run_sql(url, *SCHEMA)
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
    reviews = client.get_default_database()["reviews"]
    await reviews.create_index("customerId")
    await reviews.insert_many([{"_id": n, "customerId": n % 3} for n in range(6)])
    await client.close()
    rules = load_rules(Path("rules"))
    events = Events()
    events.deleted((1,), 10)
    batch = replace(events.batch(), at_ms=int(time.time() * 1000))
    for store in (
        PostgresStore("orders_db", url, store_rules(rules, "orders_db"), lane="integrity.orders_db"),
        MongoStore("reviews_db", mongo_url, store_rules(rules, "reviews_db"), lane="integrity.reviews_db"),
    ):
        await store.migrate(Deadline.after(30))
        assert not [found for found in await store.check(Deadline.after(30)) if found.severity == "error"]
        await apply(store, batch)
        await store.close()


async def count(url: str) -> tuple[object, ...]:
    [found] = await fetch(
        url, "select (select count(*) from orders), (select count(*) from items), count(*) from notes"
    )
    return found


def test_what_an_event_changed_comes_back_in_all_stores_once(
    pg_database: str,
    mongo_database: str,
    kafka: KafkaServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)
    Path("rules/order.yaml").write_text(ITEMS)
    audit = f"audit-{uuid4().hex[:8]}"
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", pg_database)
    monkeypatch.setenv("INTEGRITY_STORES__REVIEWS_DB__URL", mongo_database)
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("INTEGRITY_AUDIT__TOPIC", audit)
    asyncio.run(enforce(pg_database, mongo_database))
    assert asyncio.run(count(pg_database)) == (10, 10, 0)

    assert main(["undo", "--event", event(0), "--no-input"]) == 2
    said = capsys.readouterr().err
    assert "Put back: 22 rows." in said
    assert "10  order.items  (orders_db; cascade)" in said
    assert "Nothing was changed: this needs --yes" in said
    assert asyncio.run(count(pg_database)) == (10, 10, 0)

    asyncio.run(run_sql(pg_database, "insert into orders values (2, 7)"))
    assert main(["undo", "--event", event(0), "--yes", "--json", "--reason", "wrong customer"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {name: document[name] for name in ("event", "put_back", "exists", "changed", "gone", "refused")} == {
        "event": event(0),
        "put_back": 21,
        "exists": 1,
        "changed": 0,
        "gone": 0,
        "refused": 0,
    }
    [stayed] = document["stayed"]
    assert (stayed["dependent"], stayed["row"], stayed["why"]) == ("customer.orders", {"id": "2"}, "exists")
    assert asyncio.run(count(pg_database)) == (20, 20, 0), "what has no undo is gone"

    records = asyncio.run(read(kafka, audit, 3))
    found = {(each["dependent"], each["rows"]): each for each in (json.loads(record.value) for record in records)}
    assert found.keys() == {("customer.orders", 9), ("order.items", 10), ("customer.reviews", 2)}
    assert {(e["outcome"], e["note"], e["version"], e["key"]["id"], e["entity"]) for e in found.values()} == {
        ("undone", "wrong customer", "0:10", 1, "customer")
    }

    assert main(["undo", "--event", event(0), "--dependent", "order.items", "--yes"]) == 0
    assert "Nothing is kept of it" in capsys.readouterr().err
    assert main(["history", "customer", "1"]) == 0
    assert ": wrong customer  (order.items, 10 rows, event shop.public.customers/0/0)" in capsys.readouterr().out
    assert main(["why", "orders_db", "orders", "customer_id=1"]) == 0
    assert "put back 9 rows of orders" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say which: --event ID, or --since TIME with --dependent D."),
        (["--event", "a/0/1", "--since", "2h"], "Say which"),
        (["--since", "2h"], "--since needs --dependent"),
        (["--event", "5"], "an event is written topic/partition/offset"),
        (["--event", "a/0/1", "--dependent", "customer.order"], "no rule has it. Did you mean"),
    ],
)
def test_what_is_not_said_clearly_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)
    Path("rules/order.yaml").write_text(ITEMS)
    for store in ("ORDERS_DB", "REVIEWS_DB"):
        monkeypatch.setenv(f"INTEGRITY_STORES__{store}__URL", "postgresql://127.0.0.1:1/x")
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert main(["undo", *arguments]) == 2
    assert message in capsys.readouterr().err
