"""What PostgreSQL's own foreign keys do where the rules of this program take them as the model."""

from __future__ import annotations

import asyncpg
import pytest


@pytest.mark.parametrize(
    ("action", "refused"), [("set null", False), ("set null (code)", True), ("set default (code)", True)]
)
async def test_native_match_full_refuses_what_would_leave_a_reference_null_in_part(
    pg_database: str, action: str, refused: bool
) -> None:
    """Only when a parent is deleted, whatever its rows; the rules refuse it when they are loaded."""
    connection = await asyncpg.connect(pg_database)
    try:
        await connection.execute(
            "create table parent (tenant text, code int, primary key (tenant, code));"
            "create table child (tenant text, code int,"
            f" foreign key (tenant, code) references parent match full on delete {action});"
            "insert into parent values ('eu', 1); insert into child values ('eu', 1), (null, null)"
        )
        if refused:
            with pytest.raises(asyncpg.ForeignKeyViolationError, match="MATCH FULL"):
                await connection.execute("delete from parent")
        else:
            await connection.execute("delete from parent")
            assert await connection.fetchval("select count(*) from child where tenant is null and code is null") == 2
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="MATCH FULL"):
            await connection.execute("insert into child values ('eu', null)")
    finally:
        await connection.close()


@pytest.mark.parametrize(("first", "second"), [("cascade", "set null"), ("set null", "cascade")])
async def test_native_row_whose_two_references_are_hit_at_once_is_deleted(
    pg_database: str, first: str, second: str
) -> None:
    """The triggers fire in the order of the constraints' names; the row is gone either way."""
    connection = await asyncpg.connect(pg_database)
    try:
        await connection.execute(
            "create table parent (id int primary key); create table child (a int, b int,"
            f" constraint a foreign key (a) references parent on delete {first},"
            f" constraint b foreign key (b) references parent on delete {second});"
            "insert into parent values (1), (2); insert into child values (1, 1), (2, 2);"
            "delete from parent where id = 1"
        )
        assert [tuple(row) for row in await connection.fetch("select * from child")] == [(2, 2)]
    finally:
        await connection.close()
