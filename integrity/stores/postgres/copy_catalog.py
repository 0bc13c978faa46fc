"""A copy against the live catalogue: its columns are resolved once, and everything that does not fit is a finding.

What removes or marks its rows is looked at as a dependent is; here is what writing whole rows needs beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from integrity.core.copies import marks_of
from integrity.errors import Finding
from integrity.stores.postgres.catalog import resolve
from integrity.stores.postgres.cells import ToText, column_types, to_text
from integrity.stores.postgres.effects import Table
from integrity.stores.postgres.ledger import Connection
from integrity.stores.postgres.names import quoted
from integrity.stores.rule import CopyRule

_PLACE: Final = """
select s.nspname, c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relname = $2 and case when $1::text is null
    then s.nspname !~ '^pg_' and s.nspname not in ('information_schema', $3) else s.nspname = $1 end
"""

_COLUMNS: Final = """
select a.attname, b.typname, b.modifier, b.is_enum,
    case when n.nspname = 'pg_catalog' then pg_catalog.format_type(y.oid, -1)
        else pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(y.typname) end as type,
    a.attnotnull or b.not_null as not_null,
    a.atthasdef or a.attidentity <> '' or a.attgenerated <> '' as filled,
    a.attgenerated <> '' or a.attidentity = 'a' as generated,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'select') as readable,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'insert') as insertable,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'update') as writable
from pg_catalog.pg_attribute a
join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
join pg_catalog.pg_type y on y.oid = a.atttypid
join pg_catalog.pg_namespace n on n.oid = y.typnamespace
join lateral (
    with recursive base(oid, modifier, not_null) as (
        select a.atttypid, a.atttypmod, false
        union all
        select t.typbasetype, t.typtypmod, base.not_null or t.typnotnull
        from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype = 'd'
    )
    select t.typname, base.modifier, t.typtype = 'e' as is_enum, base.not_null
    from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype <> 'd'
) b on true
where s.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped
"""

# Which columns are unique together, and whether ON CONFLICT may name them: at once, of all rows.
_UNIQUE: Final = """
select x.relname, i.indimmediate and i.indpred is null and i.indexprs is null as whole,
    array(
        select a.attname from unnest((i.indkey::int2[])[:i.indnkeyatts - 1]) k(number)
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.number order by a.attname
    )::text[] as columns
from pg_catalog.pg_index i
join pg_catalog.pg_class c on c.oid = i.indrelid
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
join pg_catalog.pg_class x on x.oid = i.indexrelid
where s.nspname = $1 and c.relname = $2 and i.indisunique and i.indisvalid order by x.relname
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A column that is written, the field it holds, how a value becomes text, and the type that reads it."""

    column: str
    field: str
    to_text: ToText
    type: str


@dataclass(frozen=True, slots=True)
class CopyTable:
    """A copy as the catalogue has it: `rows` is the table as what removes or marks its rows knows it."""

    rows: Table
    values: tuple[Value, ...]


async def resolve_copy(
    connection: Connection, rule: CopyRule, ledger_schema: str
) -> tuple[CopyTable | None, list[Finding]]:
    """Look a copy up. With a finding of severity error there is no table."""
    resolved = await resolve(connection, [rule.rows], ledger_schema)
    findings = list(resolved.findings)
    schema, _, name = rule.copy.rows.target.name.rpartition(".")
    places = await connection.fetch(_PLACE, schema or None, name, ledger_schema)
    if len(places) != 1:
        return None, findings  # which has been told
    [place] = places
    user = str(await connection.fetchval("select pg_catalog.quote_ident(current_user)"))
    inspection = _Inspection(rule, place[0], place[1], user)
    columns = {name: _Column(*rest) for name, *rest in await connection.fetch(_COLUMNS, *place)}
    values = inspection.values(columns)
    inspection.covered(columns)
    inspection.privileges(columns)
    inspection.unique([tuple(row) for row in await connection.fetch(_UNIQUE, *place)])
    findings += [finding for finding in inspection.findings if finding not in findings]
    table = resolved.tables.get(rule.id)
    if table is None or any(finding.severity == "error" for finding in findings):
        return None, findings
    return CopyTable(table, values), findings


@dataclass(frozen=True, slots=True)
class _Column:
    base: str
    modifier: int
    is_enum: bool
    type: str
    not_null: bool
    filled: bool
    generated: bool
    readable: bool
    insertable: bool
    writable: bool


class _Inspection:
    """One copy against its table; collects findings."""

    def __init__(self, rule: CopyRule, schema: str, name: str, user: str) -> None:
        self._rule = rule
        self._at = quoted(schema, name)
        self._user = user
        self.findings: list[Finding] = []

    def add(self, code: str, message: str, hint: str, severity: str = "error") -> None:
        place = self._rule.copy.rows.place
        text = f"{self._rule.id}: {message}"
        self.findings.append(Finding(code, text, hint, place.file, place.line, place.column, severity))

    def values(self, columns: dict[str, _Column]) -> tuple[Value, ...]:
        found: list[Value] = []
        for name, field in self._rule.copy.values.items():
            column = columns.get(name)
            if column is None:
                known = ", ".join(sorted(columns))
                self.add("column_missing", f"{self._at} has no column {name}", f"It has {known}.")
                continue
            made = to_text(column.base, column.modifier, is_enum=column.is_enum)
            if made is None:
                message = f"the column {name} is of type {column.type}, which cannot hold a field of the parent's row"
                self.add("column_type", message, f"It may be {column_types()}.")
                continue
            found.append(Value(name, field, made, column.type))
        for name in self._rule.copy.columns:
            if name in columns and columns[name].generated:
                self.add("column_generated", f"{name} is generated and cannot be written", "Leave it out of columns.")
        return tuple(found)

    def covered(self, columns: dict[str, _Column]) -> None:
        """A row can be inserted: what is NOT NULL is copied, or fills itself."""
        for name, column in columns.items():
            if column.not_null and not column.filled and name not in self._rule.copy.columns:
                self.add(
                    "column_not_null",
                    f"{name} is NOT NULL, has no default and is not copied, so no row could be inserted",
                    f"Copy a field to it, or ALTER TABLE {self._at} ALTER COLUMN {quoted(name)} DROP NOT NULL;",
                )

    def privileges(self, columns: dict[str, _Column]) -> None:
        names = [name for name in (*self._rule.copy.columns, *marks_of(self._rule.copy)) if name in columns]
        keys = self._rule.copy.rows.columns
        for privilege, wanted in (
            ("INSERT", [name for name in names if not columns[name].insertable]),
            ("UPDATE", [name for name in names if name not in keys and not columns[name].writable]),
            ("SELECT", [name for name in names if not columns[name].readable]),
        ):
            if wanted:
                listed = ", ".join(quoted(name) for name in wanted)
                self.add(
                    "privilege_missing",
                    f"the role {self._user} lacks {privilege} ({listed}) on {self._at}",
                    f"GRANT {privilege} ({listed}) ON {self._at} TO {self._user};",
                )

    def unique(self, found: Sequence[tuple[str, bool, list[str]]]) -> None:
        """The key names a row, and nothing else has to."""
        key = sorted(self._rule.copy.rows.columns)
        if not any(whole and sorted(columns) == key for _, whole, columns in found):
            listed = ", ".join(quoted(column) for column in self._rule.copy.rows.columns)
            self.add(
                "copy_key_not_unique",
                f"no primary key or unique index of {self._at} is over exactly {listed}",
                f"CREATE UNIQUE INDEX CONCURRENTLY ON {self._at} ({listed});",
            )
        for name, _, columns in found:
            if not set(key) <= set(columns):
                self.add(
                    "copy_unique",
                    f"the unique index {name} is over what a copy may hold twice for a moment, since keys of one topic"
                    " are read in any order: such an event becomes a dead letter",
                    f"DROP INDEX {quoted(name)}; or an index that is not unique in its place.",
                    "warning",
                )
