"""What the log of a parent's table tells of its deletions, looked at where the rule names its database."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding
from integrity.ports import Deadline
from integrity.stores.postgres.identity import ReplicaIdentities
from tests.integration.pg_shop import run as run_sql

pytestmark = pytest.mark.servers

RULES = """\
version: 1
parent: customer
events:
  topic: customers
  format: debezium
  key: %s
  source: {store: shop_db, table: %s}%s
dependents:
  - {store: orders_db, table: orders, references: %s, on_delete: cascade}
"""
ID = "{id: int64}"
KEYED = "{tenant: string, id: int64}"
TABLES = (
    "create table customers(id bigint primary key, email text not null unique)",
    "create table unkeyed(id bigint)",
    "create table parted(tenant text, id bigint, primary key (tenant, id)) partition by list (tenant)",
    "create table parted_a partition of parted for values in ('a')",
    "create table parted_b partition of parted for values in ('b')",
    "create unique index a_id on parted_a(id, tenant)",
    'create schema "S"',
    'create table "S"."T"(id bigint primary key, code text not null)',
    'create unique index "by code" on "S"."T"(code)',
)


async def check(url: str, table: str, key: str = ID, more: str = "") -> Sequence[Finding]:
    references = re.sub(r"(\w+): \w+", r"\1: \1", key)
    parent = parse_rules({"customer.yaml": RULES % (key, table, more, references)}).by_entity["customer"]
    identities = ReplicaIdentities("shop_db", url, [parent], schema="integrity", timeout_s=10)
    try:
        return await identities.check(Deadline.after(10))
    finally:
        await identities.close()


async def told(url: str, table: str, key: str = ID, more: str = "") -> list[tuple[str, str, str]]:
    return [(each.code, each.severity, each.hint) for each in await check(url, table, key, more)]


async def test_fact_5_identity_that_lacks_the_key_is_found_with_what_mends_it(pg_database: str) -> None:
    await run_sql(pg_database, *TABLES)
    assert await told(pg_database, "customers") == []
    assert await told(pg_database, "customers", KEYED) == [], "tenant is no column: it comes from elsewhere"
    await run_sql(pg_database, "alter table customers replica identity using index customers_email_key")
    [finding] = await check(pg_database, "public.customers")
    assert (finding.code, finding.severity, finding.file) == ("key_made_up", "error", "customer.yaml")
    assert '"public"."customers" has REPLICA IDENTITY USING INDEX "customers_email_key", without id' in finding.message
    assert finding.hint == 'ALTER TABLE "public"."customers" REPLICA IDENTITY DEFAULT;'
    await run_sql(pg_database, finding.hint)
    assert await told(pg_database, "customers") == []
    await run_sql(pg_database, 'alter table "S"."T" replica identity using index "by code"')
    assert await told(pg_database, "S.T", "{id: int64}") == [
        ("key_made_up", "error", 'ALTER TABLE "S"."T" REPLICA IDENTITY DEFAULT;')
    ]
    assert await told(pg_database, "S.T", "{code: string}") == [], "the index has it"


async def test_fact_6_key_that_is_not_the_primary_key_needs_whole_rows(pg_database: str) -> None:
    await run_sql(pg_database, *TABLES)
    full = 'ALTER TABLE "public"."customers" REPLICA IDENTITY FULL;'
    before = "\n  key_from: before\n  tombstones: ignore"
    assert await told(pg_database, "customers", "{email: string}") == [("key_made_up", "error", full)]
    assert await told(pg_database, "customers", "{email: string}", before) == [("before_missing", "error", full)]
    await run_sql(pg_database, full)
    assert await told(pg_database, "customers", "{email: string}") == []
    assert await told(pg_database, "customers", "{email: string}", before) == []


async def test_each_partition_has_an_identity_of_its_own(pg_database: str) -> None:
    await run_sql(pg_database, *TABLES)
    assert await told(pg_database, "parted", KEYED) == []
    await run_sql(
        pg_database,
        "alter table parted_a replica identity using index a_id",
        "alter table parted_b replica identity nothing",
    )
    full = 'ALTER TABLE "public"."parted_b" REPLICA IDENTITY FULL;'
    assert await told(pg_database, "parted", KEYED) == [("replica_identity", "warning", full)]
    assert [severity for _, severity, _ in await told(pg_database, "unkeyed")] == ["warning"]
