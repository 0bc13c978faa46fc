"""Parents in MongoDB end to end: what both connectors wrote of one run, through Kafka, into PostgreSQL and MongoDB."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from bson import Decimal128, ObjectId
from pymongo import AsyncMongoClient

from integrity.demo.servers import KafkaServer
from integrity.stores.mongo.values import CODECS
from tests.conftest import CreateTopic
from tests.golden.records import of_topic
from tests.integration.pg_shop import fetch
from tests.integration.pg_shop import run as run_sql
from tests.integration.test_copies_of_captured_events import _produce, _run
from tests.integration.test_run_command import Installation

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: customer
events: {{topic: {topic}, format: {format}, key: {{_id: objectid}}}}
dependents:
  - store: orders_db
    table: orders
    references: {{customer_id: _id}}
    on_delete: cascade
  - store: reviews_db
    collection: reviews
    references: {{customerId: _id}}
    on_delete: nullify
copies:
  - store: orders_db
    table: customer_copy
    columns: {{id: _id, email: email, n64: n64, price: dec, at: at, uid: uid, f: f, nested: nested}}
  - name: documents
    store: reviews_db
    collection: customer_copy
    columns: {{_id: _id, email: email, n64: n64, price: dec, at: at, uid: uid, f: f, nested: nested}}
"""
SEED, DELETED = "65a1b2c3d4e5f60718293a01", "65a1b2c3d4e5f60718293a4b"
AT, UID = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC), UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001")
INSERTED = ("a@x.test", 9007199254740993, Decimal("1.5"), AT, UID, 1.5, {"a": [1, {"b": None}]})
"""The document as step 1 of the run inserted it."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("file", "format", "first"), [("mdb_env", "debezium", 3), ("mks_extended", "mongodb", 1)])
async def test_dependents_and_copies_of_documents_follow_them(
    tmp_path: Path,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    pg_database: str,
    mongo_database: str,
    file: str,
    format: str,
    first: int,
) -> None:
    """`first` records end with the insertion of the document that is deleted, and inserted again, by the others."""
    records = of_topic(file, "shop.customers")
    shop = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    shop.environment |= {
        "INTEGRITY_STORES__ORDERS_DB__URL": pg_database,
        "INTEGRITY_STORES__ORDERS_DB__TIMEOUT": "30s",
        "INTEGRITY_STORES__REVIEWS_DB__URL": mongo_database,
    }
    rules = tmp_path / "rules" / "customer.yaml"
    rules.parent.mkdir()
    rules.write_text(RULES.format(topic=shop.topic, format=format))
    await run_sql(
        pg_database,
        "create table orders(id bigint primary key, customer_id text)",
        "create index on orders(customer_id)",
        f"insert into orders values (1, '{SEED}'), (2, '{DELETED}'), (3, 'seed'), (4, null)",
        "create table customer_copy(id text primary key, email text, n64 bigint, price numeric, at timestamptz,"
        " uid uuid, f double precision, nested jsonb)",
    )
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    await _produce(client, shop.topic, records[:first])
    async with AsyncMongoClient[dict[str, Any]](mongo_database) as mongo:
        db = mongo.get_default_database(codec_options=CODECS)
        await db["reviews"].create_index("customerId")
        await db["reviews"].insert_many(
            [{"_id": at, "customerId": value} for at, value in enumerate([ObjectId(SEED), ObjectId(DELETED), DELETED])]
        )
        await _run(shop)
        [row] = await fetch(pg_database, f"select * from customer_copy where id = '{DELETED}'")
        assert (*row[1:-1], json.loads(row[-1])) == INSERTED
        document = await db["customer_copy"].find_one({"_id": ObjectId(DELETED)})
        assert document is not None
        kept = (*INSERTED[:2], Decimal128("1.5"), *INSERTED[3:])
        assert tuple(document[name] for name in ("email", "n64", "price", "at", "uid", "f", "nested")) == kept

        await _produce(client, shop.topic, records[first:])
        await _run(shop)
        assert await fetch(pg_database, "select id from orders order by id") == [(1,), (3,), (4,)]
        left = {each["_id"]: each["customerId"] async for each in db["reviews"].find()}
        assert left == {0: ObjectId(SEED), 1: None, 2: DELETED}
        query = f"select email, n64, at from customer_copy where id = '{DELETED}'"
        assert await fetch(pg_database, query) == [("again@x.test", None, None)]
        document = await db["customer_copy"].find_one({"_id": ObjectId(DELETED)})
        assert document is not None
        assert (document["email"], document["n64"]) == ("again@x.test", None)

        # The connector sends again what it has sent, as after a crash: the document was created again since.
        await run_sql(pg_database, f"insert into orders values (5, '{DELETED}')")
        deleted = [
            record for record in records if b'"op":"d"' in (record.value or b"") or b'"delete"' in (record.value or b"")
        ]
        await _produce(client, shop.topic, deleted)
        await _run(shop)
        assert await fetch(pg_database, "select id from orders order by id") == [(1,), (3,), (4,), (5,)]
        assert await db["customer_copy"].count_documents({"_id": ObjectId(DELETED)}) == 1
