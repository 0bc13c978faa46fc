"""`integrity history`, `why` and `plan` on a real store, beside one that is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from integrity.cli import main
from integrity.ports import Deadline
from integrity.rules_files import load_rules
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import store_rules
from tests.contract.world import Events, apply
from tests.integration.pg_shop import run as run_sql

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: customer
events: {topic: shop.public.customers, format: debezium, key: {id: int64}}
dependents:
  - {name: orders, store: orders_db, table: public.orders, references: {customer_id: id}, on_delete: cascade}
  - {store: reviews_db, collection: reviews, references: {customerId: id}, on_delete: nullify}
"""


async def enforce(url: str) -> None:
    """Orders of customers 1 and 2, and the deletion of 1."""
    await run_sql(
        url,
        "create table orders(id bigint primary key, customer_id bigint)",
        "create index on orders(customer_id)",
        "insert into orders select n, 1 + n % 2 from generate_series(1, 20) n",
    )
    store = PostgresStore("orders_db", url, store_rules(load_rules(Path("rules")), "orders_db"), lane="integrity.s")
    await store.migrate(Deadline.after(30))
    events = Events()
    events.deleted((1,), 10)
    await apply(store, events.batch())
    await store.close()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_a_real_store_knows_is_told_beside_one_that_is_away(
    pg_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", pg_database)
    monkeypatch.setenv("INTEGRITY_STORES__REVIEWS_DB__URL", "mongodb://127.0.0.1:1/shop")
    assert main(["history", "customer", "1"]) == 3, "there is no ledger yet, and the other store is away"
    said = capsys.readouterr().err
    assert "orders_db did not answer: Store orders_db: the ledger can't be read." in said
    assert "reviews_db did not answer: MongoDB at 127.0.0.1:1 (store reviews_db) does not answer" in said
    asyncio.run(enforce(pg_database))
    assert main(["why", "orders_db", "orders", "customer_id=1"]) == 0
    assert capsys.readouterr().out.endswith("cascade removed 10 rows of orders.\n")
    assert main(["plan", "customer", "2", "--json"]) == 3
    [orders] = json.loads(capsys.readouterr().out)["dependents"]
    assert (orders["rows"], len(orders["sample"])) == (10, 5)
    assert all(named.keys() == {"id"} and named["id"] % 2 for named in orders["sample"])
