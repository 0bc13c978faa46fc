"""What `check` finds in a live PostgreSQL, each with the statement that mends it; and the ledger's own life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Applied, ApplyResult, Broken
from integrity.core.rules.model import Action, Cascade, EventValue, Ignore, Nullify, Restrict, SetDefault, Tombstone
from integrity.demo.servers import PostgresServer
from integrity.errors import LedgerError, Reason
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from tests.contract.world import COMPOSITE, MARK, Events, apply, rule, rules_of
from tests.integration.pg_shop import LANE, codes, fetch, run, store_of

pytestmark = pytest.mark.servers

ORDERS = "create table orders (id bigint primary key, customer_id bigint)"
INDEX = "create index on orders (customer_id)"
TEXT_KEY = KeySpec((("id", KeyType.STRING),))
# What the extension makes of itself; its programs need not be installed.
CITEXT = (
    "create type citext",
    "create function citextin(cstring) returns citext language internal immutable strict as 'textin'",
    "create function citextout(citext) returns cstring language internal immutable strict as 'textout'",
    "create type citext (input = citextin, output = citextout, like = text, category = 'S', collatable = true)",
    "create cast (citext as text) without function as implicit",
)
FOREIGN = ("create foreign data wrapper far", "create server elsewhere foreign data wrapper far")

CASES: Mapping[str, tuple[tuple[str, ...], Action, Action, dict[str, object], list[str]]] = {
    "sound": ((ORDERS, INDEX), Cascade(), Cascade(), {}, []),
    "no table": ((), Cascade(), Cascade(), {}, ["table_missing"]),
    "two tables": (
        ("create schema a", "create schema b", "create table a.orders (id int)", "create table b.orders (id int)"),
        Cascade(),
        Cascade(),
        {},
        ["table_ambiguous"],
    ),
    "a view": (
        (ORDERS, "create view o as select * from orders"),
        Cascade(),
        Cascade(),
        {"target": "o"},
        ["not_a_table"],
    ),
    "no column": (
        ("create table orders (id bigint primary key, customer bigint)",),
        Cascade(),
        Cascade(),
        {},
        ["column_missing"],
    ),
    "another type": ((ORDERS, INDEX), Cascade(), Cascade(), {"spec": TEXT_KEY}, ["column_type"]),
    "a float, in which unequal numbers are one": (
        ("create table orders (id bigint primary key, customer_id float8)", INDEX),
        Cascade(),
        Cascade(),
        {},
        ["column_type"],
    ),
    "citext, which calls a and A equal": (
        (*CITEXT, "create table orders (id bigint primary key, customer_id citext)", INDEX),
        Cascade(),
        Cascade(),
        {"spec": TEXT_KEY},
        ["column_collation"],
    ),
    "a condition that calls a and A equal": (
        (*CITEXT, "create table orders (id bigint primary key, customer_id bigint, kind citext)", INDEX),
        Cascade(),
        Cascade(),
        {"where": {"kind": "a"}},
        ["column_collation"],
    ),
    "a condition on what has no equality": (
        ("create table orders (id bigint primary key, customer_id bigint, kind json)", INDEX),
        Cascade(),
        Cascade(),
        {"where": {"kind": "{}"}},
        ["literal_type"],
    ),
    "a materialized view": (
        (ORDERS, "create materialized view o as select * from orders"),
        Cascade(),
        Cascade(),
        {"target": "o"},
        ["not_a_table"],
    ),
    "a foreign table": (
        (*FOREIGN, "create foreign table orders (id bigint, customer_id bigint) server elsewhere"),
        Cascade(),
        Cascade(),
        {},
        ["not_a_table"],
    ),
    "a partition that is a foreign table": (
        (
            *FOREIGN,
            "create table orders (id bigint, customer_id bigint) partition by list (customer_id)",
            "create index on orders (customer_id)",
            "create foreign table far partition of orders for values in (1) server elsewhere",
        ),
        Cascade(),
        Ignore(),
        {},
        ["not_a_table"],
    ),
    "tables that inherit": (
        (ORDERS, INDEX, "create table old () inherits (orders)", "create table older () inherits (old)"),
        Cascade(),
        Cascade(),
        {},
        ["inheriting_tables"],
    ),
    "a rewrite rule on what the rule does": (
        (ORDERS, INDEX, "create rule keep as on delete to orders do instead nothing"),
        Cascade(),
        Cascade(),
        {},
        ["rewrite_rule"],
    ),
    "a rewrite rule on what the rule does not do": (
        (ORDERS, INDEX, "create rule keep as on delete to orders do instead nothing"),
        Nullify(("customer_id",)),
        Cascade(),
        {},
        [],
    ),
    "published without a replica identity": (
        ("create table orders (customer_id bigint)", INDEX, "create publication p for table orders"),
        Cascade(),
        Ignore(),
        {},
        ["replica_identity"],
    ),
    "a partition published without a replica identity": (
        (
            "create table orders (id bigint primary key, customer_id bigint) partition by hash (id)",
            INDEX,
            "create table half partition of orders for values with (modulus 2, remainder 0)",
            "alter table half replica identity nothing",
            "create publication p for table orders with (publish_via_partition_root = true)",
        ),
        Cascade(),
        Ignore(),
        {},
        ["replica_identity"],
    ),
    "published without a replica identity, insertions only": (
        (
            "create table orders (customer_id bigint)",
            INDEX,
            "create publication p for table orders with (publish = 'insert')",
        ),
        Cascade(),
        Ignore(),
        {},
        [],
    ),
    "a collation that calls a and A equal": (
        (
            # A real one needs a server built with ICU.
            "create collation ci (provider = libc, locale = 'C')",
            "create table orders (id bigint primary key, customer_id text collate ci)",
            INDEX,
            "set allow_system_table_mods = on;"
            " update pg_collation set collisdeterministic = false where collname = 'ci'",
        ),
        Cascade(),
        Cascade(),
        {"spec": TEXT_KEY},
        ["column_collation"],
    ),
    "nullify of a not null column": (
        ("create table orders (id bigint primary key, customer_id bigint not null)", INDEX),
        Nullify(("customer_id",)),
        Cascade(),
        {},
        ["column_not_null"],
    ),
    "a null default of a not null column": (
        ("create table orders (id bigint primary key, customer_id bigint not null)", INDEX),
        SetDefault({"customer_id": None}),
        Ignore(),
        {},
        ["column_not_null"],
    ),
    "nullify of a column that one partition holds not null": (
        (
            "create table orders (id bigint, customer_id bigint, primary key (id)) partition by range (id)",
            INDEX,
            "create table new partition of orders (customer_id not null) for values from (0) to (9)",
        ),
        Nullify(("customer_id",)),
        Cascade(),
        {},
        ["column_not_null"],
    ),
    "nullify of a column that a check holds not null": (
        ("create table orders (id bigint primary key, customer_id bigint check (customer_id is not null))", INDEX),
        Nullify(("customer_id",)),
        Cascade(),
        {},
        ["column_not_null"],
    ),
    "a default beyond the column": (
        ("create table orders (id bigint primary key, customer_id smallint)", INDEX),
        SetDefault({"customer_id": 100_000}),
        Ignore(),
        {},
        ["literal_type"],
    ),
    "a default that the domain refuses": (
        (
            "create domain k as bigint check (value > 0)",
            "create table orders (id bigint primary key, customer_id k)",
            INDEX,
        ),
        SetDefault({"customer_id": 0}),
        Ignore(),
        {},
        ["literal_type"],
    ),
    "a default longer than the column": (
        ("create table orders (id bigint primary key, customer_id varchar(3))", INDEX),
        SetDefault({"customer_id": "none"}),
        Ignore(),
        {"spec": TEXT_KEY},
        ["literal_type"],
    ),
    "a default that the enum does not have": (
        ("create type k as enum ('a')", "create table orders (id bigint primary key, customer_id k)", INDEX),
        SetDefault({"customer_id": "b"}),
        Ignore(),
        {"spec": TEXT_KEY},
        ["literal_type"],
    ),
    "a mark longer than the column": (
        ("create table orders (id bigint primary key, customer_id bigint, gone varchar(3))", INDEX),
        Tombstone({"gone": "gone"}),
        Cascade(),
        {},
        ["literal_type"],
    ),
    "nullify of another column than the not null one": (
        (
            "create table orders (id bigint primary key, customer_tenant text not null, customer_code bigint)",
            "create index on orders (customer_tenant)",
        ),
        Nullify(("customer_code",)),
        Ignore(),
        {"spec": COMPOSITE},
        [],
    ),
    "a not null domain": (
        (
            "create domain k as bigint not null",
            "create table orders (id bigint primary key, customer_id k)",
            INDEX,
        ),
        Nullify(("customer_id",)),
        Cascade(),
        {},
        ["column_not_null"],
    ),
    "a generated column": (
        (
            "create table orders (id bigint primary key, n int, customer_id bigint generated always as (n + 1) stored)",
            INDEX,
        ),
        Cascade(),
        Cascade(),
        {},
        ["column_generated"],
    ),
    "a generated column that is only read": (
        (
            "create table orders (id bigint primary key, n int, customer_id bigint generated always as (n + 1) stored)",
            INDEX,
        ),
        Cascade(),
        Ignore(),
        {},
        [],
    ),
    "a generated column without a place": (
        ("create table orders (id bigint primary key, n int, customer_id bigint generated always as (n + 1))",),
        Cascade(),
        Ignore(),
        {},
        ["column_generated", "index_missing"],
    ),
    "a generated mark": (
        (
            "create table orders (id bigint primary key, customer_id bigint, n int,"
            " gone int generated always as (n) stored)",
            INDEX,
        ),
        Tombstone({"gone": 1}),
        Cascade(),
        {},
        ["column_generated"],
    ),
    "an identity column": (
        ("create table orders (id bigint, customer_id bigint generated always as identity primary key)",),
        Cascade(),
        Cascade(),
        {},
        ["column_generated"],
    ),
    "an identity column that takes values": (
        ("create table orders (id bigint, customer_id bigint generated by default as identity primary key)",),
        Cascade(),
        Cascade(),
        {},
        [],
    ),
    "no primary key": (
        ("create table orders (customer_id bigint)", INDEX),
        Cascade(),
        Cascade(),
        {},
        ["primary_key_missing"],
    ),
    "no primary key where no row ever arrives": (
        ("create table orders (customer_id bigint)", INDEX),
        Cascade(),
        Ignore(),
        {},
        [],
    ),
    "no primary key with a default": (
        ("create table orders (customer_id bigint)", INDEX),
        SetDefault({"customer_id": 0}),
        Ignore(),
        {},
        ["primary_key_missing"],
    ),
    "no column of as_of": ((ORDERS, INDEX), Cascade(), Cascade(), {"as_of": "at"}, ["column_missing"]),
    "a column of as_of that may be null": (
        (ORDERS, INDEX, "alter table orders add at timestamp"),
        Cascade(),
        Cascade(),
        {"as_of": "at"},
        ["as_of_nullable"],
    ),
    "a column of as_of that is no time": (
        (ORDERS, INDEX, "alter table orders add at text not null default ''"),
        Cascade(),
        Cascade(),
        {"as_of": "at"},
        ["column_type"],
    ),
    "a column of as_of in a domain": (
        (
            ORDERS,
            INDEX,
            "create domain moment as timestamptz not null",
            "alter table orders add at moment default now()",
        ),
        Cascade(),
        Cascade(),
        {"as_of": "at"},
        [],
    ),
    "no index": ((ORDERS,), Cascade(), Cascade(), {}, ["index_missing"]),
    "an index that the column does not lead": (
        (ORDERS, "create index on orders (id, customer_id)"),
        Cascade(),
        Cascade(),
        {},
        ["index_missing"],
    ),
    "an index for some rows only": (
        (ORDERS, "create index on orders (customer_id) where id > 5"),
        Cascade(),
        Cascade(),
        {},
        ["index_missing"],
    ),
    "an index on an expression": (
        (ORDERS, "create index on orders ((customer_id + 0))"),
        Cascade(),
        Cascade(),
        {},
        ["index_missing"],
    ),
    "an index that only sums up": (
        (ORDERS, "create index on orders using brin (customer_id)"),
        Cascade(),
        Cascade(),
        {},
        ["index_missing"],
    ),
    "an index by hash": ((ORDERS, "create index on orders using hash (customer_id)"), Cascade(), Cascade(), {}, []),
    "an index for rows of the condition": (
        (
            "create table orders (id bigint primary key, customer_id bigint, closed_at date)",
            "create index on orders (customer_id) where closed_at is null",
        ),
        Cascade(),
        Cascade(),
        {"where": {"closed_at": None}},
        [],
    ),
    "an index for rows with a reference": (
        (ORDERS, "create index on orders (customer_id) where customer_id is not null"),
        Cascade(),
        Cascade(),
        {},
        [],
    ),
    "an index for unmarked rows": (
        (
            "create table orders (id bigint primary key, customer_id bigint, deleted_at date, deleted_by text)",
            "create index on orders (customer_id) where deleted_at is null",
        ),
        MARK,
        Cascade(),
        {},
        [],
    ),
    "an index on one column of two": (
        (
            "create table orders (id bigint primary key, customer_tenant text, customer_code bigint)",
            "create index on orders (customer_code)",
        ),
        Cascade(),
        Cascade(),
        {"spec": COMPOSITE},
        [],
    ),
    "a marker that is never null": (
        ("create table orders (id bigint primary key, customer_id bigint, gone_at date not null)", INDEX),
        Tombstone({"gone_at": EventValue.TIME}),
        Cascade(),
        {},
        ["column_not_null"],
    ),
    "a marker of a type without times": (
        ("create table orders (id bigint primary key, customer_id bigint, gone boolean)", INDEX),
        Tombstone({"gone": EventValue.TIME}),
        Cascade(),
        {},
        ["literal_type"],
    ),
    "a literal of another type": (
        ("create table orders (id bigint primary key, customer_id bigint, gone boolean)", INDEX),
        Tombstone({"gone": "yes"}),
        Cascade(),
        {},
        ["literal_type"],
    ),
    "a literal beyond the column": (
        ("create table orders (id bigint primary key, customer_id bigint, level smallint)", INDEX),
        Cascade(),
        Cascade(),
        {"where": {"level": 70_000}},
        ["literal_type"],
    ),
    "a word that the enum does not have": (
        (
            "create type kind as enum ('a')",
            "create table orders (id bigint primary key, customer_id bigint, kind kind)",
            INDEX,
        ),
        Cascade(),
        Cascade(),
        {"where": {"kind": ("a", "b")}},
        ["literal_type"],
    ),
    "text that looks like a number": (
        ("create table orders (id bigint primary key, customer_id bigint, level int)", INDEX),
        Cascade(),
        Cascade(),
        {"where": {"level": "5"}},
        ["literal_type"],
    ),
}


@pytest.fixture(scope="module")
def checked(postgres: PostgresServer) -> Iterator[str]:
    """One database for all cases; each leaves it as it was."""
    yield postgres.create_database("checked")
    postgres.drop_database("checked")


@pytest.fixture
async def emptied(checked: str) -> AsyncIterator[str]:
    yield checked
    await run(
        checked,
        "drop publication if exists p",
        "drop foreign data wrapper if exists far cascade",
        "drop schema if exists a, b cascade",
        "drop schema public cascade",
        "create schema public",
    )


@pytest.mark.parametrize("case", CASES)
async def test_check_finds(emptied: str, case: str) -> None:
    statements, on_delete, on_update, more, expected = CASES[case]
    await run(emptied, *statements)
    async with store_of(emptied, rule(on_delete, on_update, **more)) as store:  # type: ignore[arg-type]
        findings = await store.check(Deadline.after(10))
        assert [finding.code for finding in findings] == expected
        warnings = [finding.code for finding in findings if finding.severity == "warning"]
        assert warnings == [code for code in expected if code in ("inheriting_tables", "as_of_nullable")]
        for finding in findings:
            if finding.code == "column_not_null":
                await run(emptied, finding.hint.partition(";")[0])
                assert await codes(store) == []
        assert all(finding.hint and finding.file == "test.yaml" and finding.line == 1 for finding in findings)


async def test_missing_index_is_mended_by_the_statement_of_the_finding(pg_database: str) -> None:
    await run(
        pg_database,
        'create table "Orders" (id bigint primary key, customer_id bigint)',
        "create table parts (id bigint, customer_id bigint, primary key (id, customer_id))"
        " partition by hash (customer_id)",
    )
    async with store_of(pg_database, rule(Cascade(), target="Orders"), rule(Cascade(), name="parts")) as store:
        findings = await store.check(Deadline.after(10))
        assert [finding.hint for finding in findings] == [
            'CREATE INDEX CONCURRENTLY ON "public"."Orders" ("customer_id");',
            'CREATE INDEX ON "public"."parts" ("customer_id");',
        ]
        for finding in findings:
            await run(pg_database, finding.hint)
        assert await store.check(Deadline.after(10)) == []


async def test_grants_of_the_findings_are_all_that_a_role_needs(pg_database: str) -> None:
    role = pg_database.rpartition("/")[2] + "_role"
    await run(
        pg_database,
        f"create role {role} login",
        "create schema app",
        "create table app.orders (id bigint primary key, customer_id bigint, region text, secret text)",
        "create index on app.orders (customer_id)",
        "create table app.notes (id bigint primary key, customer_id bigint, deleted_at date, deleted_by text)",
        "create index on app.notes (customer_id)",
        "insert into app.orders values (1, 1, 'eu', 'x'), (2, 2, 'eu', 'x')",
        "insert into app.notes values (1, 1)",
    )
    rules = rules_of(rule(Cascade(), target="app.orders", where={"region": "eu"}), rule(MARK, name="notes"))
    owner = PostgresStore("shop", pg_database, rules, lane=LANE)
    await owner.migrate(Deadline.after(10))
    await owner.close()
    store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), rules, lane=LANE)
    try:
        for _ in range(20):
            findings = await store.check(Deadline.after(10))
            if not findings:
                break
            assert {finding.code for finding in findings} <= {"ledger_privilege", "privilege_missing"}
            await run(pg_database, *(finding.hint for finding in findings))
        assert findings == []
        granted = await fetch(
            pg_database,
            "select table_name, privilege_type from information_schema.table_privileges where grantee = $1"
            " and table_schema = 'app'",
            role,
        )
        assert granted == [("orders", "DELETE")]
        events = Events()
        events.moved((2,), (1,), 20)
        assert [e.rows for e in await apply(store, events.batch())] == [1, 0]
        events.deleted((1,), 10, partition=1)
        assert sorted(e.rows for e in await apply(store, events.batch())) == [1, 1]
        events.alive((1,), 20, partition=1)
        events.deleted((1,), 30, partition=1)
        await apply(store, events.batch())
    finally:
        await store.close()
        await run(pg_database, f"drop owned by {role}", f"drop role {role}")


NEEDS: Mapping[str, tuple[Action, Action, set[tuple[str, str]]]] = {
    "cascade": (
        Cascade(),
        Cascade(),
        {("SELECT", "id"), ("SELECT", "customer_id"), ("UPDATE", "customer_id"), ("DELETE", "")},
    ),
    "cascade on delete only": (Cascade(), Ignore(), {("SELECT", "customer_id"), ("DELETE", "")}),
    "cascade on update only": (
        Ignore(),
        Cascade(),
        {("SELECT", "id"), ("SELECT", "customer_id"), ("UPDATE", "customer_id")},
    ),
    "nullify": (
        Nullify(("customer_id",)),
        Nullify(("customer_id",)),
        {("SELECT", "customer_id"), ("UPDATE", "customer_id")},
    ),
    "set_default": (
        SetDefault({"customer_id": 0}),
        Ignore(),
        {("SELECT", "id"), ("SELECT", "customer_id"), ("UPDATE", "customer_id")},
    ),
    "tombstone": (
        MARK,
        Ignore(),
        {
            ("SELECT", "customer_id"),
            ("SELECT", "deleted_at"),
            ("UPDATE", "deleted_at"),
            ("UPDATE", "deleted_by"),
        },
    ),
    "restrict": (Restrict(), Ignore(), {("SELECT", "customer_id")}),
    "restrict on parents": (Restrict(), Ignore(), {("SELECT", "customer_id")}),
    "cascade on parents": (
        Cascade(),
        Ignore(),
        {("SELECT", "id"), ("SELECT", "customer_id"), ("UPDATE", "customer_id"), ("DELETE", "")},
    ),
}


async def test_each_action_is_asked_for_the_privileges_that_it_cannot_do_without(pg_database: str) -> None:
    role = await role_for(pg_database)
    grants = (
        "select privilege_type, column_name from information_schema.column_privileges"
        " where grantee = $1 and table_name = $2 and privilege_type in ('SELECT', 'UPDATE')"
        " union all select privilege_type, '' from information_schema.table_privileges"
        " where grantee = $1 and table_name = $2"
    )
    for number, (name, (on_delete, on_update, needed)) in enumerate(NEEDS.items()):
        table = f"t{number}"
        await run(
            pg_database,
            f"create table app.{table} (id bigint primary key, customer_id bigint, region text, deleted_at date,"
            " deleted_by text, secret text)",
            f"create index on app.{table} (customer_id)",
        )
        rows = "order" if name.endswith("parents") else None
        chosen = rule(on_delete, on_update, target=f"app.{table}", name=table, where={"region": "eu"}, rows=rows)
        store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), rules_of(chosen), lane=LANE)
        trial = 1000 * number

        async def works(store: PostgresStore = store, table: str = table) -> ApplyResult:
            nonlocal trial
            trial += 10
            await run(
                pg_database,
                f"insert into app.{table} select n, n, 'eu' from generate_series({trial}, {trial + 1}) n",
            )
            events = Events(topic=f"{table}-{trial}")
            events.deleted((trial,), 10)
            events.moved((trial + 1,), (trial + 2,), 20)
            return await store.apply(events.batch(), Deadline.after(10))

        try:
            findings = await store.check(Deadline.after(10))
            assert {finding.code for finding in findings} == {"privilege_missing"}, name
            await run(pg_database, *(finding.hint for finding in findings))
            assert await store.check(Deadline.after(10)) == [], name
            found = {(str(p), str(c)) for p, c in await fetch(pg_database, grants, role, table)}
            assert found == needed | {("SELECT", "region")}, name
            result = await works()
            assert isinstance(result, Applied), (name, result)
            for privilege, column in sorted(found):
                what = f"{privilege} ({column})" if column else privilege
                await run(pg_database, f"revoke {what} on app.{table} from {role}")
                result = await works()
                assert isinstance(result, Broken) and result.reason is Reason.PRIVILEGE, (name, what, result)
                await run(pg_database, f"grant {what} on app.{table} to {role}")
            assert isinstance(await works(), Applied), name
        finally:
            await store.close()
    await run(pg_database, f"drop owned by {role}", f"drop role {role}")


async def test_type_in_a_schema_that_the_role_may_not_use_is_found(pg_database: str) -> None:
    role = await role_for(pg_database)
    await run(
        pg_database,
        "create schema types",
        "create type types.kind as enum ('a')",
        "create table app.orders (id bigint primary key, customer_id types.kind, kind types.kind)",
        "create index on app.orders (customer_id)",
        f"grant select, update, delete on app.orders to {role}",
    )
    chosen = rule(Cascade(), target="app.orders", spec=TEXT_KEY, where={"kind": "a"})
    store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), rules_of(chosen), lane=LANE)
    try:
        findings = await store.check(Deadline.after(10))
        assert [finding.hint for finding in findings] == [f'GRANT USAGE ON SCHEMA "types" TO {role};']
        await run(pg_database, findings[0].hint)
        assert await store.check(Deadline.after(10)) == []
    finally:
        await store.close()
        await run(pg_database, f"drop owned by {role}", f"drop role {role}")


async def test_row_level_security_never_hides_rows_in_silence(pg_database: str) -> None:
    role = await role_for(pg_database)
    await run(
        pg_database,
        "create table app.orders (id bigint primary key, customer_id bigint)",
        "create index on app.orders (customer_id)",
        "insert into app.orders values (1, 1)",
        f"grant all on app.orders to {role}",
    )
    chosen = rule(Cascade(), target="app.orders")
    store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), rules_of(chosen), lane=LANE)
    try:
        assert await codes(store) == []
        await run(pg_database, "alter table app.orders enable row level security")
        events = Events()
        events.deleted((1,), 10)
        batch = events.batch()
        result = await store.apply(batch, Deadline.after(10))
        assert isinstance(result, Broken) and result.reason is Reason.PRIVILEGE
        [finding] = await store.check(Deadline.after(10))
        assert finding.code == "row_security"
        await run(pg_database, finding.hint)
        assert await codes(store) == []
        assert [effect.rows for effect in await apply(store, batch)] == [1]
    finally:
        await store.close()
        await run(pg_database, f"drop owned by {role}", f"drop role {role}")


async def role_for(url: str) -> str:
    """A role that may use the ledger and the schema app, and nothing else."""
    role = url.rpartition("/")[2] + "_role"
    owner = PostgresStore("shop", url, {}, lane=LANE)
    await owner.migrate(Deadline.after(10))
    await owner.close()
    await run(
        url,
        f"create role {role} login",
        "create schema app",
        f"grant usage on schema app, integrity to {role}",
        f"grant select, insert, update, delete on all tables in schema integrity to {role}",
    )
    return role


async def test_search_path_in_which_our_statements_could_mean_something_else_is_found(pg_database: str) -> None:
    name = pg_database.rpartition("/")[2]
    await run(pg_database, "create schema app", "create schema other", ORDERS.replace("orders", "app.orders"))
    await run(pg_database, INDEX.replace("orders", "app.orders"))
    for path, expected in (("other", []), ("other, pg_catalog", ["search_path"]), ("pg_catalog, other", [])):
        await run(pg_database, f"alter database {name} set search_path = {path}")
        async with store_of(pg_database, rule(Cascade())) as store:
            assert await codes(store) == expected


async def test_missing_ledger_is_the_one_finding_until_it_is_migrated(pg_database: str) -> None:
    await run(pg_database, ORDERS, INDEX)
    store = PostgresStore("shop", pg_database, rules_of(rule(Cascade())), lane=LANE, schema="my ledger")
    try:
        assert await codes(store) == ["ledger_missing"]
        await store.migrate(Deadline.after(10))
        assert await codes(store) == []
    finally:
        await store.close()


async def test_ledger_of_another_version_is_found_and_a_newer_one_left_alone(pg_database: str) -> None:
    async with store_of(pg_database) as store:
        await run(pg_database, "update integrity.meta set version = 0")
        assert await codes(store) == ["ledger_older"]
        await run(pg_database, "update integrity.meta set version = 2")
        assert await codes(store) == ["ledger_newer"]
        with pytest.raises(LedgerError, match="version 2"):
            await store.migrate(Deadline.after(10))


async def test_migrations_at_once_and_repeated_make_one_ledger(pg_database: str) -> None:
    stores = [PostgresStore("shop", pg_database, {}, lane=LANE) for _ in range(4)]
    try:
        await asyncio.gather(*(store.migrate(Deadline.after(30)) for store in stores))
        await stores[0].migrate(Deadline.after(30))
        assert await codes(stores[0]) == []
        assert await fetch(pg_database, "select version from integrity.meta") == [(1,)]
    finally:
        for store in stores:
            await store.close()


async def test_ddl_run_by_hand_is_the_ledger(pg_database: str) -> None:
    store = PostgresStore("shop", pg_database, {}, lane=LANE)
    try:
        await run(pg_database, store.ddl())
        assert await codes(store) == []
    finally:
        await store.close()


async def test_role_that_may_not_create_is_told_what_to_run(pg_database: str) -> None:
    role = pg_database.rpartition("/")[2] + "_role"
    await run(pg_database, f"create role {role} login")
    store = PostgresStore("shop", pg_database.replace("postgres@", f"{role}@"), {}, lane=LANE)
    try:
        with pytest.raises(LedgerError, match="migrate --print"):
            await store.migrate(Deadline.after(10))
    finally:
        await store.close()
        await run(pg_database, f"drop role {role}")
