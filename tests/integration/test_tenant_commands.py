"""The commands on the databases of two tenants, on one server: each looks at, and changes, that of its own alone."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from integrity.cli import main
from integrity.demo.servers import PostgresServer
from integrity.ports import Deadline
from integrity.rules_files import load_rules
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import store_rules
from tests.contract.world import Events, apply
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: customer
events:
  topic: customers
  format: debezium
  key: {id: int64}
  tenant: {header: __debezium.context.connectorLogicalName}
  source: {store: orders_db, table: customers}
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade, undo: 30d}
"""
SHOP = (
    "create table customers(id bigint primary key)",
    "insert into customers values (2)",
    "create table orders(id bigint primary key, customer_id bigint)",
    "create index on orders(customer_id)",
    "insert into orders select n, 1 + n % 2 from generate_series(1, 20) n",
)


async def enforce(url: str) -> str:
    """The deletion of customer 1; the id of the event."""
    store = PostgresStore("orders_db", url, store_rules(load_rules(Path("rules")), "orders_db"), lane="integrity.s")
    events = Events()
    events.deleted((1,), 10)
    batch = replace(events.batch(), at_ms=int(time.time() * 1000))  # what is kept for undo has an end
    await store.check(Deadline.after(30))
    await apply(store, batch)
    await store.close()
    return batch.changes[0].origin.event_id


def test_commands_work_on_the_database_of_the_tenant_they_name(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = {tenant: postgres.create_database(f"shop_{tenant}") for tenant in ("Acme", "globex-1")}
    template = urls["Acme"].replace("shop_Acme", "shop_{tenant}")
    assert template.replace("{tenant}", "globex-1") == urls["globex-1"]
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", template)
    monkeypatch.setenv("INTEGRITY_AUDIT__TOPIC", "")

    def says(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code, capsys.readouterr().err
        printed = capsys.readouterr()
        return printed.out if code in (0, 1) else printed.err

    try:
        for url in urls.values():
            asyncio.run(run_sql(url, *SHOP))
        for command in (["migrate"], ["history", "customer", "1"], ["scan"], ["undo", "--event", "t/0/0", "--yes"]):
            assert "Say whose it is: --tenant T." in says(*command, code=2)
        for tenant in urls:
            assert says("migrate", "--tenant", tenant) == "orders_db: the ledger is there\n"
        event = asyncio.run(enforce(urls["Acme"]))
        assert "deleted" in says("history", "customer", "1", "--tenant", "Acme")
        assert "knows nothing of it" in says("history", "customer", "1", "--tenant", "globex-1")
        assert "removed 10 rows of orders" in says("why", "orders_db", "orders", "customer_id=1", "--tenant", "Acme")
        planned = json.loads(says("plan", "customer", "1", "--json", "--tenant", "globex-1"))
        assert planned["dependents"][0]["rows"] == 10
        says("scan", "--grace", "0s", "--tenant", "Acme")
        [found] = json.loads(says("scan", "--grace", "0s", "--json", "--tenant", "globex-1", code=1))["scans"]
        assert found["orphans"]["rows"] == 10
        assert "Put back: 10" in says("undo", "--event", event, "--yes", "--tenant", "Acme")
        assert asyncio.run(fetch(urls["Acme"], "select count(*) from orders")) == [(20,)]
        assert asyncio.run(fetch(urls["globex-1"], "select count(*) from orders")) == [(20,)]
        assert main(["history", "customer", "1", "--tenant", "nobody"]) == 3
        assert "orders_db did not answer" in capsys.readouterr().err
    finally:
        for tenant in urls:
            postgres.drop_database(f"shop_{tenant}")
