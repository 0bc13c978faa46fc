"""PostgreSQL's foreign keys by their documented behaviour: what a native constraint leaves, our store leaves.

Documented in "CREATE TABLE" (REFERENCES), "Constraints" and "Table Partitioning" of PostgreSQL's manual. Where we
differ on purpose, `DIFFERENT` says how and why, and docs/semantics.md says so too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from integrity.core.keys import KeyType
from integrity.core.rules.findings import FindingCode
from integrity.demo.servers import PostgresServer
from integrity.errors import Reason, RulesError
from integrity.ports import Deadline
from integrity.rules_files import load_rules
from integrity.stores.postgres import PostgresStore
from tests.conformance.foreign_keys import Case, Pace, Reference, Refused, Row, native, ours

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[str]:
    """One database and one ledger: every run has a schema, parents and a lane of its own."""
    yield postgres.create_database("foreign_keys")
    postgres.drop_database("foreign_keys")


@pytest.fixture
async def url(database: str) -> str:
    store = PostgresStore("store", database, {}, lane="setup")
    await store.migrate(Deadline.after(30))
    await store.close()
    return database


SIMPLE = """
    create table parent (id bigint primary key, name text);
    create table child (id bigint primary key, parent_id bigint default 0);
"""
SIMPLE_ROWS = """
    insert into parent select n, 'p' || n from generate_series(0, 9) n;
    insert into child select 10 * p + n, p from generate_series(0, 9) p, generate_series(1, p % 3) n;
    insert into child values (1000, null);
"""
# Deletes, key changes in chains, by three steps to and fro, of many rows, onto keys that died, and no change at all.
SIMPLE_STEPS = (
    "delete from parent where id in (1, 2)",
    "update parent set id = 11 where id = 4; update parent set id = 12 where id = 11",
    "insert into parent values (11, '')",
    "update parent set id = -1 where id = 5; update parent set id = 5 where id = 7;"
    " update parent set id = 7 where id = -1",
    "update parent set id = 1 where id = 8; delete from parent where id = 12",
    "update parent set name = 'x'; update parent set id = id where id < 5",
    "update parent set id = 100 + id where id in (5, 7); delete from parent where id = 107",
    "delete from parent where id = 1; insert into parent values (1, 'again'); delete from parent where id = 11",
)

COMPOSITE = """
    create table parent (a text, b bigint, primary key (a, b));
    create table child (id bigint primary key, x text default 'd', y bigint default 0);
    insert into parent values ('d', 0), ('d', 1), ('d', 2), ('a', 1), ('a', 2), ('b', 0), ('b', 1), ('b', 2);
"""
COMPOSITE_ROWS = """
    insert into child values (1, 'a', 1), (2, 'a', 2), (3, 'b', 1), (4, 'b', 2), (5, 'a', null), (6, null, 1),
        (7, null, null), (8, 'd', 1), (9, 'a', 1);
    -- MATCH SIMPLE: with a part that is null, the other parts need no parent.
    insert into child values (10, 'z', null), (11, null, 99);
"""
COMPOSITE_STEPS = (
    "delete from parent where a = 'a' and b = 1",
    "update parent set b = 7 where a = 'b' and b = 2; update parent set a = 'c' where b = 7",
    "update parent set a = 'z', b = 99 where a = 'a' and b = 2; delete from parent where a = 'b' and b = 1",
)
KEYS = (KeyType.STRING, KeyType.INT64)


def simple(on_delete: str, on_update: str = "cascade", **more: object) -> Case:
    reference = Reference(("parent_id",), on_delete, on_update, defaults={"parent_id": 0})
    return Case(SIMPLE, (replace(reference, **more),), SIMPLE_ROWS, SIMPLE_STEPS)  # type: ignore[arg-type]


def composite(on_delete: str, on_update: str = "cascade") -> Case:
    reference = Reference(("x", "y"), on_delete, on_update, ("a", "b"), KEYS, defaults={"x": "d", "y": 0})
    return Case(COMPOSITE, (reference,), COMPOSITE_ROWS, COMPOSITE_STEPS)


# MATCH FULL: a row is null in all of the reference, and needs no parent, or in none of it.
FULL_ROWS = """
    insert into child values (1, 'a', 1), (2, 'a', 2), (3, 'b', 1), (4, 'b', 2), (7, null, null), (8, 'd', 1),
        (9, 'a', 1), (10, 'b', 0), (11, null, null), (12, 'd', 2);
"""


def full(on_delete: str, on_update: str = "cascade", *, default: tuple[str | None, int | None] = ("d", 0)) -> Case:
    reference = Reference(
        ("x", "y"), on_delete, on_update, ("a", "b"), KEYS, defaults=dict(zip("xy", default, strict=True)), full=True
    )
    tables = COMPOSITE if default[0] else COMPOSITE.replace(" default 'd'", "").replace(" default 0", "")
    return Case(tables, (reference,), FULL_ROWS, COMPOSITE_STEPS)


def types(parent: str, child: str, kind: KeyType, keys: str, refer: str, *steps: str, before: str = "") -> Case:
    """Columns of two types: `keys` are values of the parent, `refer` those that children have, as SQL."""
    tables = f"{before}; create table parent (id {parent} primary key); create table child (id int, parent_id {child});"
    tables += "alter table child add primary key (id)"
    rows = f"insert into parent select * from unnest(array[{keys}]::{parent}[]);"
    rows += f"insert into child select n, v from unnest(array[{refer}]::{child}[]) with ordinality u(v, n)"
    return Case(tables, (Reference(("parent_id",), "cascade", types=(kind,)),), rows, steps)


PARTITIONED = """
    create table parent (id bigint primary key);
    create table child (id bigint, parent_id bigint default 0, primary key (id, parent_id))
        partition by list (parent_id);
    create table low partition of child for values in (0, 1, 2, 3);
    create table high partition of child for values in (4, 5, 6) partition by hash (id);
    create table high_0 partition of high for values with (modulus 2, remainder 0);
    create table high_1 partition of high for values with (modulus 2, remainder 1);
    create table other partition of child default;
"""
PARTITIONED_ROWS = """
    insert into parent select n from generate_series(0, 9) n;
    insert into child select 10 * p + n, p from generate_series(0, 9) p, generate_series(1, 2) n;
"""
PARTITIONED_STEPS = (
    "delete from parent where id in (1, 4, 8)",
    "update parent set id = 4 where id = 2; update parent set id = 33 where id = 5",
    "update parent set id = 1 where id = 9",
    "update parent set id = 34 where id = 33; delete from parent where id = 6",
)

EMPLOYEES = """
    create table employee (id bigint primary key, manager_id bigint, deputy_id bigint);
"""
EMPLOYEE_ROWS = """
    insert into employee values (1, null, null), (2, 1, null), (3, 1, 2), (4, 2, 3), (5, 4, 5), (6, 6, 1), (7, 6, 4);
"""


def employees(on_delete: str, *steps: str, deputy: str = "") -> Case:
    references = [Reference(("manager_id",), on_delete, child="employee", parent="employee")]
    if deputy:
        references.append(Reference(("deputy_id",), deputy, child="employee", parent="employee"))
    return Case(EMPLOYEES, tuple(references), EMPLOYEE_ROWS, steps, compared=("employee",))


TWO_PARENTS = """
    create table parent (id bigint primary key);
    create table other (id uuid primary key);
    create table child (id bigint primary key, one bigint, two bigint, far uuid);
    insert into parent select n from generate_series(1, 9) n;
    insert into other select ('00000000-0000-0000-0000-00000000000' || n)::uuid from generate_series(1, 4) n;
"""
TWO_PARENTS_ROWS = """
    insert into child select 10 * a + b, a, b,
        ('00000000-0000-0000-0000-00000000000' || 1 + (a + b) % 4)::uuid
    from generate_series(1, 9) a, generate_series(1, 9) b where (a + b) % 3 = 0;
    insert into child values (1000, 1, null, null), (1001, null, 1, null), (1002, 5, 5, null);
"""


def several(one: str, two: str, far: str) -> Case:
    return Case(
        TWO_PARENTS,
        (
            Reference(("one",), one),
            Reference(("two",), two),
            Reference(("far",), far, types=(KeyType.UUID,), parent="other"),
        ),
        TWO_PARENTS_ROWS,
        (
            "delete from parent where id in (1, 4)",
            "update parent set id = 20 where id = 5; update parent set id = 1 where id = 7",
            "delete from other where id = '00000000-0000-0000-0000-000000000002'",
            "update other set id = '00000000-0000-0000-0000-00000000000a' where id::text like '%3'",
            "delete from parent where id in (20, 9); delete from other where id::text like '%4'",
        ),
    )


SAME: Mapping[str, Case] = {
    # --- one column ---------------------------------------------------------------------------------------------
    "cascade": simple("cascade"),
    "set null": simple("set null"),
    "set default": simple("set default"),
    "set default that is null": Case(
        SIMPLE.replace(" default 0", ""), (Reference(("parent_id",), "set default"),), SIMPLE_ROWS, SIMPLE_STEPS
    ),
    "on update set null": simple("cascade", "set null"),
    "on update set default": simple("cascade", "set default"),
    "set null both ways": simple("set null", "set null"),
    "set default on delete, set null on update": simple("set default", "set null"),
    "deferrable initially deferred": simple("cascade", more="deferrable initially deferred"),
    "rows at the default follow it": Case(
        SIMPLE,
        (Reference(("parent_id",), "set default", defaults={"parent_id": 0}),),
        SIMPLE_ROWS,
        (
            "delete from parent where id in (1, 4)",
            "update parent set id = 50 where id = 0",
            "insert into parent values (0)",
        ),
    ),
    "a reference that is part of the child's key": Case(
        """create table parent (id bigint primary key);
           create table child (parent_id bigint, line int, note text, primary key (parent_id, line))""",
        (Reference(("parent_id",), "cascade"),),
        """insert into parent select n from generate_series(1, 5) n;
           insert into child select p, n, p || '/' || n from generate_series(1, 5) p, generate_series(1, 2) n""",
        (
            "delete from parent where id = 1",
            "update parent set id = 11 where id = 2; update parent set id = 12 where id = 3",
            "delete from parent where id = 12; update parent set id = 13 where id = 11",
        ),
    ),
    "a reference to unique columns that are not the primary key": Case(
        """create table parent (id bigint primary key, code text unique not null, number int unique not null);
           create table child (id bigint primary key, code text, number int)""",
        (
            Reference(("code",), "set null", fields=("code",), types=(KeyType.STRING,)),
            Reference(("number",), "cascade", fields=("number",), types=(KeyType.INT32,)),
        ),
        """insert into parent select n, 'c' || n, -n from generate_series(1, 6) n;
           insert into child values (1, 'c1', null), (2, 'c2', -3), (3, 'c3', -3), (4, null, -4), (5, 'c5', -6)""",
        (
            "update parent set id = id + 100",
            "update parent set code = 'C' || code where number > -3",
            "delete from parent where code = 'c3'; update parent set number = 7 where number = -4",
            "delete from parent where number in (-1, -6)",
        ),
    ),
    "names in quotes": Case(
        """create table "The Parent" ("Id" bigint primary key);
           create table "Child" (id bigint primary key, "parent's Id" bigint)""",
        (Reference(('"parent\'s Id"',), "set null", fields=('"Id"',), child='"Child"', parent='"The Parent"'),),
        """insert into "The Parent" values (1), (2), (3); insert into "Child" values (1, 1), (2, 2), (3, 3)""",
        ('delete from "The Parent" where "Id" = 1', 'update "The Parent" set "Id" = 9 where "Id" = 2'),
        compared=('"Child"',),
    ),
    # --- several columns, MATCH SIMPLE --------------------------------------------------------------------------
    "composite cascade": composite("cascade"),
    "composite set null": composite("set null"),
    "composite set null of one column": composite("set null (y)"),
    "composite set null of the other column": composite("set null (x)"),
    "composite set default": composite("set default"),
    "composite set default of one column": composite("set default (x)", "set null"),
    "composite on update set null": composite("cascade", "set null"),
    "composite on update set default": composite("set null (x)", "set default"),
    "columns in another order than the parent's": Case(
        COMPOSITE,
        (Reference(("y", "x"), "cascade", fields=("b", "a"), types=(KeyType.INT64, KeyType.STRING)),),
        COMPOSITE_ROWS,
        COMPOSITE_STEPS,
    ),
    # --- several columns, MATCH FULL ----------------------------------------------------------------------------
    "full cascade": full("cascade"),
    "full set null": full("set null"),
    "full set default": full("set default"),
    "full set default that is null": full("set default", default=(None, None)),
    "full on update set null": full("cascade", "set null"),
    "full on update set default": full("set null", "set default"),
    "full with every column in the list": full("set null (y, x)"),
    "full of one column": simple("set null", full=True),
    "full, deferrable initially deferred": replace(
        full("cascade"), references=(replace(full("cascade").references[0], more="deferrable initially deferred"),)
    ),
    "full that refers to its own table": Case(
        """create table node (a text, b bigint, x text, y bigint, primary key (a, b))""",
        (Reference(("x", "y"), "cascade", "cascade", ("a", "b"), KEYS, child="node", parent="node", full=True),),
        """insert into node values ('r', 0, null, null), ('r', 1, 'r', 0), ('r', 2, 'r', 1), ('s', 0, 's', 0),
               ('s', 1, 's', 0), ('t', 0, 'r', 2)""",
        (
            "update node set b = 10 where a = 'r' and b = 1",
            "update node set a = 'q' where a = 's' and b = 0",
            "delete from node where a = 'r' and b = 10",
        ),
        compared=("node",),
    ),
    "full beside simple in one row": Case(
        COMPOSITE.replace("y bigint default 0", "y bigint default 0, v text, w bigint"),
        (
            Reference(("x", "y"), "set null", "cascade", ("a", "b"), KEYS, full=True),
            Reference(("v", "w"), "set null (w)", "cascade", ("a", "b"), KEYS),
        ),
        """insert into child values (1, 'a', 1, 'a', 1), (2, 'a', 2, 'b', 1), (3, null, null, 'a', 2),
               (4, 'b', 1, 'z', null), (5, 'b', 2, null, 99), (6, 'd', 0, 'b', 2)""",
        COMPOSITE_STEPS,
    ),
    # --- several references -------------------------------------------------------------------------------------
    "two references to one parent, cascade and set null": several("cascade", "set null", "set null"),
    "two references to one parent, set null and cascade": several("set null", "cascade", "cascade"),
    "three references, set null": several("set null", "set null", "set null"),
    "two children of one parent": Case(
        SIMPLE + "create table second (id bigint primary key, parent_id bigint);",
        (Reference(("parent_id",), "set null"), Reference(("parent_id",), "cascade", child="second")),
        SIMPLE_ROWS + "insert into second select id, parent_id from child;",
        SIMPLE_STEPS,
        compared=("child", "second"),
    ),
    # --- a table that is its own parent -------------------------------------------------------------------------
    "self-reference cascade": employees("cascade", "delete from employee where id = 2"),
    "self-reference cascade from the root": employees("cascade", "delete from employee where id = 1"),
    "self-reference set null": employees("set null", "delete from employee where id in (1, 4)"),
    "self-reference of a row to itself": employees(
        "cascade",
        "update employee set id = 60 where id = 6",
        "update employee set id = 20 where id = 2",
        "delete from employee where id = 60",
    ),
    "two self-references": employees(
        "cascade", "update employee set id = 40 where id = 4", "delete from employee where id = 3", deputy="set null"
    ),
    # --- types --------------------------------------------------------------------------------------------------
    "bigint under smallint": types(
        "int2",
        "int8",
        KeyType.INT32,
        "1, 2, 3",
        "1, 2, 3",
        "delete from parent where id = 1",
        "update parent set id = 9 where id = 2",
    ),
    "integer under bigint, keys beyond it": types(
        "int8",
        "int4",
        KeyType.INT64,
        "1, 2, 3, 4294967297, 4294967298, -9223372036854775808",
        "1, 2, 3",
        "delete from parent where id in (4294967297, -9223372036854775808)",
        "update parent set id = 7 where id = 2",
        "delete from parent where id = 3",
    ),
    "smallint under bigint, keys beyond it": types(
        "int8", "int2", KeyType.INT64, "0, 1, 65536, 65537", "0, 1", "delete from parent where id in (1, 65536, 65537)"
    ),
    "bigint under numeric, fractions": types(
        "numeric",
        "int8",
        KeyType.NUMERIC,
        "1, 1.5, 2, 2.000000000000000001, 1e30",
        "1, 2",
        "delete from parent where id in (1.5, 2.000000000000000001, 1e30)",
        "update parent set id = 12 where id = 1",
        "delete from parent where id = 2",
    ),
    "numeric under numeric, scales": types(
        "numeric(10, 2)",
        "numeric",
        KeyType.NUMERIC,
        "1, 1.50, 2.25",
        "1.0, 1.5, 1.50000, 2.25",
        "delete from parent where id = 1.5",
        "delete from parent where id = 1",
    ),
    "long numbers": types(
        "numeric",
        "numeric",
        KeyType.NUMERIC,
        "123456789012345678901234567890, 123456789012345678901234567891, 0.1234567890123456789",
        "123456789012345678901234567890, 123456789012345678901234567891, 0.1234567890123456789",
        "delete from parent where id = 123456789012345678901234567890",
        "update parent set id = 0.1234567890123456788 where id < 1",
    ),
    "varchar under text": types(
        "text",
        "varchar(4)",
        KeyType.STRING,
        r"'a', 'A', 'a ', '', 'abcde', 'é', U&'e\0301'",
        r"'a', 'A', 'a ', '', 'é', U&'e\0301'",
        "delete from parent where id in ('a', 'abcde', 'é')",
        "update parent set id = 'b ' where id = ''",
    ),
    "text under varchar": types(
        "varchar(4)", "text", KeyType.STRING, "'a', 'b', 'a '", "'a', 'b', 'a '", "delete from parent where id = 'a'"
    ),
    "char under char": types(
        "char(4)",
        "char(4)",
        KeyType.STRING,
        "'a', 'b', 'abcd', ''",
        "'a', 'b', 'abcd', ''",
        "delete from parent where id in ('a ', '')",
        "update parent set id = 'c' where id = 'b'; update parent set id = 'dcba' where id = 'abcd'",
    ),
    "char under text": types(
        "text",
        "char(4)",
        KeyType.STRING,
        "'a', 'b', 'abcd', 'abcde', ' a'",
        "'a', 'b', 'abcd', ' a'",
        "delete from parent where id in ('a', 'abcde')",
        "update parent set id = 'cc' where id = 'b'",
    ),
    "a domain over a domain": types(
        "text",
        "code",
        KeyType.STRING,
        "'a', 'b', 'abcde'",
        "'a', 'b'",
        "delete from parent where id in ('a', 'abcde')",
        "update parent set id = 'cc' where id = 'b'",
        before="create domain short as varchar(4); create domain code as short check (value <> '')",
    ),
    "an enum": types(
        "kind",
        "kind",
        KeyType.STRING,
        "'a', 'b', 'c'",
        "'a', 'b', 'c'",
        "delete from parent where id = 'a'",
        "update parent set id = 'd''' where id = 'b'",
        before="create type kind as enum ('a', 'b', 'c', 'd''')",
    ),
    "uuid": types(
        "uuid",
        "uuid",
        KeyType.UUID,
        "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{a0eebc999c0b4ef8bb6d6bb9bd380a12}'",
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12'",
        "delete from parent where id = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "update parent set id = '00000000-0000-0000-0000-000000000000'",
    ),
    "boolean": types("bool", "bool", KeyType.BOOL, "true, false", "true, false, true", "delete from parent where id"),
    "bytes": types(
        "bytea",
        "bytea",
        KeyType.BYTES,
        r"'\x00', '\x0000', '', '\xff'",
        r"'\x00', '\x0000', '', '\xff'",
        r"delete from parent where id in ('\x00', '')",
        r"update parent set id = '\xfe00' where id = '\xff'",
    ),
    "date": types(
        "date",
        "date",
        KeyType.DATE,
        "'0001-01-01', '2024-02-29', '9999-12-31'",
        "'0001-01-01', '2024-02-29', '9999-12-31'",
        "delete from parent where id = '2024-02-29'",
        "update parent set id = '1970-01-01' where id < '1000-01-01'",
    ),
    "timestamps of unlike precision": types(
        "timestamptz",
        "timestamptz(3)",
        KeyType.TIMESTAMP,
        "'2024-01-01 00:00:00.123Z', '2024-01-01 00:00:00.123001Z', '2024-01-01 02:00:00+02'",
        "'2024-01-01 00:00:00.123Z', '2024-01-01 00:00:00Z'",
        "delete from parent where id = '2024-01-01 00:00:00.123001Z'",
        "update parent set id = '2024-01-01 00:00:00.5Z' where id = '2024-01-01Z'",
        "delete from parent where id = '2024-01-01 00:00:00.123Z'",
    ),
    "timestamps without a zone": types(
        "timestamp",
        "timestamp",
        KeyType.TIMESTAMP,
        "'2024-01-01 00:00:00.123456', '1969-12-31 23:59:59.999999'",
        "'2024-01-01 00:00:00.123456', '1969-12-31 23:59:59.999999'",
        "delete from parent where id < '1970-01-01'",
        "update parent set id = '2024-01-01'",
    ),
    # --- partitioned children -----------------------------------------------------------------------------------
    "partitions by the reference, cascade": Case(
        PARTITIONED, (Reference(("parent_id",), "cascade"),), PARTITIONED_ROWS, PARTITIONED_STEPS
    ),
    "partitions by the reference, set default": Case(
        PARTITIONED,
        (Reference(("parent_id",), "set default", defaults={"parent_id": 0}),),
        PARTITIONED_ROWS,
        PARTITIONED_STEPS,
    ),
    "partitions by the reference, set null": Case(
        PARTITIONED.replace(", primary key (id, parent_id)", "").replace("in (0,", "in (null, 0,"),
        (Reference(("parent_id",), "set null", "set null"),),
        PARTITIONED_ROWS,
        PARTITIONED_STEPS,
    ),
    "partitions by another column": Case(
        """create table parent (id bigint primary key);
           create table child (id bigint, parent_id bigint, day date, primary key (id, day)) partition by range (day);
           create table old partition of child for values from (minvalue) to ('2024-01-01');
           create table new partition of child for values from ('2024-01-01') to (maxvalue)""",
        (Reference(("parent_id",), "cascade"),),
        """insert into parent select n from generate_series(0, 9) n;
           insert into child select 10 * p + n, p, '2023-12-31'::date + n
           from generate_series(0, 9) p, generate_series(0, 1) n""",
        PARTITIONED_STEPS,
    ),
}


@pytest.mark.parametrize("name", SAME)
async def test_store_leaves_what_the_native_constraint_leaves(url: str, name: str) -> None:
    case = SAME[name]
    expected = await native(url, case)
    assert not isinstance(expected, Refused), "the case itself is refused natively"
    for pace in Pace:
        assert await ours(url, case, pace) == expected, pace


class Difference(NamedTuple):
    """What the native constraint and our store leave: the references by the ids of the rows, or what is refused."""

    why: str
    case: Case
    native: Mapping[int, object] | Refused
    ours: Mapping[int, object] | Refused
    paces: tuple[Pace, ...] = tuple(Pace)


def small(on_delete: str, *steps: str, default: int | None = None) -> Case:
    reference = Reference(("parent_id",), on_delete, defaults={"parent_id": default})
    tables = f"""create table parent (id bigint primary key);
        create table child (id bigint primary key, parent_id bigint default {default or "null"})"""
    rows = "insert into parent values (1), (2); insert into child values (1, 1), (2, 2)"
    return Case(tables, (reference,), rows, steps)


DIFFERENT: Mapping[str, Difference] = {
    "restrict": Difference(
        "An event tells what has happened: nothing can be refused any more.",
        small("restrict", "delete from parent where id = 1"),
        Refused("23001"),
        {1: 1, 2: 2},
    ),
    "no action": Difference(
        "The same.",
        small("no action", "delete from parent where id = 1"),
        Refused("23503"),
        {1: 1, 2: 2},
    ),
    "a default that no parent has": Difference(
        "The parents are in another database: whether the default is one of them is not known here.",
        small("set default", "delete from parent where id = 1", default=77),
        Refused("23503"),
        {1: 77, 2: 2},
    ),
    "the parent of the default is deleted": Difference(
        "It cannot be refused, and the default of its rows is the key that is gone.",
        small("set default", "delete from parent where id = 1", "delete from parent where id = 2", default=2),
        Refused("23503"),
        {1: 2, 2: 2},
    ),
    "a reference that is null in part under MATCH FULL": Difference(
        "No constraint keeps such a row out of a dependents' store. It refers to nothing: no event reaches it.",
        Case(
            "create table parent (a bigint, b bigint, primary key (a, b));"
            " create table child (id bigint primary key, x bigint, parent_id bigint)",
            (
                Reference(
                    ("x", "parent_id"), "cascade", "cascade", ("a", "b"), (KeyType.INT64, KeyType.INT64), full=True
                ),
            ),
            "insert into parent values (1, 1), (2, 2); insert into child values (1, 1, 1), (2, null, 1), (3, 2, null)",
            ("delete from parent where a = 1", "update parent set b = 3 where a = 2"),
        ),
        Refused("23503"),
        {2: 1, 3: None},
    ),
    "a key beyond the dependents' column": Difference(
        "It cannot be refused: a dead letter, and the rows stay.",
        types("int8", "int4", KeyType.INT64, "1, 2", "1, 2", "update parent set id = 4294967296 where id = 2"),
        Refused("22003"),
        Refused(Reason.VALUE_REJECTED),
    ),
    "char(n) under char of another length": Difference(
        "Spaces that do not fill the column may count where the key comes from: a dead letter.",
        types("char(3)", "char(5)", KeyType.STRING, "'a', 'abc'", "'a', 'abc'", "delete from parent where id = 'a'"),
        {2: "abc  "},
        Refused(Reason.VALUE_REJECTED),
    ),
    "text under char(n)": Difference(
        "To text, spaces at the end count; the events of char(n) have them.",
        types("char(3)", "text", KeyType.STRING, "'a', 'abc'", "'a', 'abc'", "delete from parent"),
        {},
        {1: "a"},
    ),
    "a parent's row moves to another partition": Difference(
        "PostgreSQL writes a deletion and an insertion to its log: the source says that the parent is gone.",
        Case(
            """create table parent (id bigint primary key) partition by list (id);
               create table odd partition of parent for values in (1, 3);
               create table even partition of parent for values in (2, 4);
               create table child (id bigint primary key, parent_id bigint)""",
            (Reference(("parent_id",), "cascade"),),
            "insert into parent values (1), (2); insert into child values (1, 1), (2, 2)",
            ("update parent set id = 3 where id = 1", "update parent set id = 1 where id = 2"),
        ),
        {1: 3, 2: 1},
        {1: 3},
    ),
    "truncate": Difference(
        "A truncate changes nothing here; it is counted.",
        small("cascade", "truncate parent cascade"),
        {},
        {1: 1, 2: 2},
    ),
    "a unique reference, an older event still on its way": Difference(
        "The rows of the key's former owner are still there when those of the new one come: a dead letter.",
        Case(
            """create table parent (id bigint primary key);
               create table child (id bigint, parent_id bigint primary key)""",
            (Reference(("parent_id",), "cascade"),),
            "insert into parent values (1), (2); insert into child values (1, 1), (2, 2)",
            ("delete from parent where id = 1", "update parent set id = 1 where id = 2"),
        ),
        {2: 1},
        Refused(Reason.CONSTRAINT_VIOLATION),
        (Pace.PARTITIONED,),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
async def test_store_differs_from_the_native_constraint_where_it_has_to(url: str, name: str) -> None:
    difference = DIFFERENT[name]
    assert references(await native(url, difference.case)) == difference.native
    for pace in difference.paces:
        assert references(await ours(url, difference.case, pace)) == difference.ours, pace


async def test_action_on_a_part_of_a_full_reference_is_refused_before_anything_is_done(
    url: str, tmp_path: Path
) -> None:
    """PostgreSQL takes such a constraint, and refuses the deletion: null and not null are not to be mixed."""
    assert await native(url, full("set null (y)")) == Refused("23503")
    rule = """
version: 1
parent: parent
events: {topic: parents, format: debezium, key: {a: string, b: int64}}
dependents:
  - {store: store, table: child, references: {x: a, "y": b}, match: full, on_delete: {nullify: {columns: ["y"]}}}
"""
    (tmp_path / "parent.yaml").write_text(rule)
    with pytest.raises(RulesError) as refused:
        load_rules(tmp_path)
    assert [finding.code for finding in refused.value.findings] == [FindingCode.MIXED_REFERENCE]


def references(found: dict[str, list[Row]] | Refused) -> Mapping[int, object] | Refused:
    if isinstance(found, Refused):
        return found
    return {int(str(row["id"])): row["parent_id"] for _, row in found["child"]}


@pytest.mark.parametrize("pace", Pace)
async def test_the_comparison_bites(url: str, pace: Pace) -> None:
    """A wrong rule must be seen, at any pace."""
    for name, wrong in (
        ("cascade", simple("set null")),
        ("set null", simple("cascade")),
        ("set default", simple("set default", defaults={"parent_id": 3})),
        ("on update set null", simple("cascade")),
        ("composite set null of one column", composite("set null (x)")),
        ("full set null", composite("set null (x)")),
        (
            "partitions by another column",
            replace(SAME["partitions by another column"], references=(Reference(("id",)),)),
        ),
    ):
        assert await ours(url, wrong, pace) != await native(url, SAME[name]), name
