"""Rules against the live catalogue: every name is resolved once, and everything that does not fit is a finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from integrity.core.fold import Remove, Replace
from integrity.core.rules.model import EventValue, Literal, Tombstone
from integrity.errors import Finding
from integrity.stores.postgres.effects import Condition, Setting, Table, changed_positions, may_arrive
from integrity.stores.postgres.faults import Kind, fault_of
from integrity.stores.postgres.ledger import LEDGER_VERSION, PRIVILEGES, TABLES, Connection
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import Codec, codec, column_types
from integrity.stores.rule import StoreRule

_RELATIONS: Final = """
select u.n, c.oid::int8 as oid, s.nspname, c.relname, c.relkind::text as relkind,
    pg_catalog.row_security_active(c.oid) as secured,
    pg_catalog.has_schema_privilege(s.oid, 'usage') as usable,
    pg_catalog.has_table_privilege(c.oid, 'delete') as deletable
from unnest($1::text[], $2::text[]) with ordinality u(schema, name, n)
join pg_catalog.pg_class c on c.relname = u.name and c.relkind in ('r', 'p', 'v', 'm', 'f')
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
    and case when u.schema is null
        then s.nspname !~ '^pg_' and s.nspname not in ('information_schema', $3)
        else s.nspname = u.schema end
order by u.n, s.nspname
"""

# A domain is what it is made of; its own "not null" counts too.
_COLUMNS: Final = """
select a.attrelid::int8 as oid, a.attname, a.attnum, b.typname, b.category, b.modifier,
    a.attnotnull or b.not_null as not_null, a.attgenerated <> '' or a.attidentity = 'a' as generated,
    pg_catalog.format_type(a.atttypid, -1) as type, coalesce(l.collisdeterministic, true) as exact,
    a.attcollation::int8 as collation,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'select') as readable,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'update') as writable,
    pg_catalog.quote_ident(a.attname) as printed
from pg_catalog.pg_attribute a
join lateral (
    with recursive base(oid, modifier, not_null) as (
        select a.atttypid, a.atttypmod, false
        union all
        select t.typbasetype, t.typtypmod, base.not_null or t.typnotnull
        from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype = 'd'
    )
    select t.typname, t.typcategory::text as category, base.modifier, base.not_null
    from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype <> 'd'
) b on true
left join pg_catalog.pg_collation l on l.oid = a.attcollation
where a.attrelid = any($1::int8[]) and a.attnum > 0 and not a.attisdropped
"""

_INDEXES: Final = """
select i.indrelid::int8 as oid, i.indkey[0]::int2 as leading, i.indcollation[0]::int8 as collation,
    pg_catalog.pg_get_expr(i.indpred, i.indrelid) as predicate, false as is_primary, null::int2[] as columns
from pg_catalog.pg_index i
join pg_catalog.pg_class c on c.oid = i.indexrelid
join pg_catalog.pg_am m on m.oid = c.relam
where i.indrelid = any($1::int8[]) and i.indisvalid and i.indisready and m.amname in ('btree', 'hash')
union all
select conrelid::int8, null, null, null, true, conkey from pg_catalog.pg_constraint
where conrelid = any($1::int8[]) and contype = 'p'
"""

_LEDGER: Final = """
select u.name, u.privilege from unnest($2::text[], $3::text[]) u(name, privilege)
join pg_catalog.pg_namespace s on s.nspname = $1
join pg_catalog.pg_class c on c.relnamespace = s.oid and c.relname = u.name
where not pg_catalog.has_table_privilege(c.oid, u.privilege)
"""

_NUMBERS: Final = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8"})
_TIMES: Final = frozenset({"timestamptz", "timestamp", "date"})
_TEXTS: Final = frozenset({"text", "varchar", "bpchar"})


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as the catalogue has it. `base` is the type's name beneath domains, `type` what casts
    name, `printed` how expressions print the name."""

    name: str
    number: int
    base: str
    category: str
    modifier: int
    not_null: bool
    generated: bool
    type: str
    exact: bool
    collation: int
    readable: bool
    writable: bool
    printed: str


@dataclass(slots=True)
class _Relation:
    oid: int
    schema: str
    name: str
    kind: str
    secured: bool
    usable: bool
    deletable: bool
    columns: dict[str, _Column] = field(default_factory=dict)
    leading: list[tuple[int, int, str | None]] = field(default_factory=list)
    """Of each index that can serve a comparison: its first column, that one's collation, and its predicate."""
    primary_key: tuple[int, ...] = ()

    @property
    def quoted(self) -> str:
        return quoted(self.schema, self.name)


class Resolved:
    """What came of resolving: the tables of the rules that fit, and the findings of the others."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.findings: list[Finding] = []


async def resolve(connection: Connection, rules: Iterable[StoreRule], ledger_schema: str) -> Resolved:
    """Look every dependent up. A rule with a finding of severity error has no table."""
    chosen = tuple(rules)
    resolved = Resolved()
    found = await _relations(connection, chosen, ledger_schema)
    user = await connection.fetchval("select pg_catalog.quote_ident(current_user)")
    for rule, relations in zip(chosen, found, strict=True):
        inspection = _Inspection(connection, rule, str(user))
        relation = inspection.one_of(relations)
        if relation is not None:
            table = await inspection.table(relation)
            if not any(finding.severity == "error" for finding in inspection.findings):
                resolved.tables[rule.id] = table
        resolved.findings += inspection.findings
    return resolved


async def ledger_findings(connection: Connection, schema: str) -> list[Finding]:
    """Whether the ledger is there, of this program's version, and open to this role."""
    missing = Finding(
        "ledger_missing",
        f"The ledger is missing: there is no table {quoted(schema, 'meta')}",
        "Run `integrity migrate`, or `integrity run --migrate`.",
    )
    present = await connection.fetchval(
        "select count(*) from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace"
        " where s.nspname = $1 and c.relname = any($2::text[])",
        schema,
        list(TABLES),
    )
    if present != len(TABLES):
        return [missing]
    user = await connection.fetchval("select pg_catalog.quote_ident(current_user)")
    if not await connection.fetchval("select pg_catalog.has_schema_privilege($1, 'usage')", schema):
        return [_ledger_privilege(f"schema {quoted(schema)}", "USAGE", str(user))]
    wanted = [(table, privilege) for table in TABLES for privilege in PRIVILEGES[table]]
    lacking = await connection.fetch(_LEDGER, schema, [table for table, _ in wanted], [p for _, p in wanted])
    if lacking:
        return [_ledger_privilege(quoted(schema, table), privilege, str(user)) for table, privilege in lacking]
    version = await connection.fetchval(f"select version from {quoted(schema, 'meta')}")
    if version is None:
        return [missing]
    if version < LEDGER_VERSION:
        return [
            Finding(
                "ledger_older",
                f"The ledger has version {version}, this program needs {LEDGER_VERSION}",
                "Run `integrity migrate`, or `integrity run --migrate`.",
            )
        ]
    if version > LEDGER_VERSION:
        return [
            Finding(
                "ledger_newer",
                f"The ledger has version {version}, this program knows {LEDGER_VERSION}",
                "Run the newer program that made it.",
            )
        ]
    return []


def _ledger_privilege(thing: str, privilege: str, user: str) -> Finding:
    return Finding(
        "ledger_privilege",
        f"The role {user} lacks {privilege} on {thing}",
        f"GRANT {privilege} ON {thing} TO {user};",
    )


async def _relations(connection: Connection, rules: Sequence[StoreRule], ledger_schema: str) -> list[list[_Relation]]:
    """Of each rule, the relations that its target may mean."""
    if not rules:
        return []
    names = [rule.dependent.target.name.rpartition(".") for rule in rules]
    found: list[list[_Relation]] = [[] for _ in rules]
    of_oid: dict[int, list[_Relation]] = {}
    for row in await connection.fetch(
        _RELATIONS, [schema or None for schema, _, _ in names], [name for _, _, name in names], ledger_schema
    ):
        n, oid, schema, name, kind, secured, usable, deletable = row
        relation = _Relation(oid, schema, name, kind, secured, usable, deletable)
        found[n - 1].append(relation)
        of_oid.setdefault(oid, []).append(relation)
    oids = list(of_oid)
    for row in await connection.fetch(_COLUMNS, oids):
        oid, name, number, base, category, modifier, *rest = row
        column = _Column(name, number, base, category, modifier, *rest)
        for relation in of_oid[oid]:
            relation.columns[name] = column
    for oid, leading, collation, predicate, is_primary, columns in await connection.fetch(_INDEXES, oids):
        for relation in of_oid[oid]:
            if is_primary:
                relation.primary_key = tuple(columns)
            else:
                relation.leading.append((leading, collation, predicate))
    return found


class _Inspection:
    """One rule against its relation; collects findings."""

    def __init__(self, connection: Connection, rule: StoreRule, user: str) -> None:
        self._connection = connection
        self._rule = rule
        self._user = user
        self.findings: list[Finding] = []

    def add(self, code: str, message: str, hint: str) -> None:
        place = self._rule.dependent.place
        self.findings.append(Finding(code, f"{self._rule.id}: {message}", hint, place.file, place.line, place.column))

    def one_of(self, relations: Sequence[_Relation]) -> _Relation | None:
        name = self._rule.dependent.target.name
        match relations:
            case []:
                self.add("table_missing", f"there is no table {name}", "Correct the name, or create the table.")
            case [relation] if relation.kind not in ("r", "p"):
                self.add("not_a_table", f"{name} is a view or foreign table", "Name the table that holds the rows.")
            case [relation] if not relation.usable:
                schema = quoted(relation.schema)
                self._lacks("USAGE", f"SCHEMA {schema}", f"the schema {schema}")
            case [relation]:
                return relation
            case _:
                schemas = ", ".join(relation.schema for relation in relations)
                self.add(
                    "table_ambiguous",
                    f"there is a table {name} in more than one schema ({schemas})",
                    f"Write {relations[0].schema}.{name}, for example.",
                )
        return None

    async def table(self, relation: _Relation) -> Table:
        rule = self._rule
        codecs = self._reference(relation)
        conditions = await self._conditions(relation)
        settings = await self._settings(relation)
        primary_key = self._primary_key(relation)
        self._index(relation)
        self._privileges(relation, primary_key)
        if relation.secured:
            self.add(
                "row_security",
                f"row-level security hides rows of {relation.quoted} from the role {self._user}",
                f"ALTER ROLE {self._user} BYPASSRLS;",
            )
        return Table(rule, relation.schema, relation.name, codecs, conditions, settings, primary_key)

    def _column(self, relation: _Relation, name: str) -> _Column | None:
        column = relation.columns.get(name)
        if column is None and not any(f.code == "column_missing" and f" {name}" in f.message for f in self.findings):
            known = ", ".join(sorted(relation.columns))
            self.add("column_missing", f"{relation.quoted} has no column {name}", f"It has {known}.")
        return column

    def _reference(self, relation: _Relation) -> tuple[Codec, ...]:
        rule = self._rule
        codecs: list[Codec] = []
        written = changed_positions(rule)
        nulled = {
            position
            for step in (rule.policy.on_delete, rule.policy.on_update)
            if isinstance(step, Replace)
            for position, value in step.parts
            if value is None
        }
        for position, (name, kind) in enumerate(zip(rule.dependent.columns, rule.spec.types, strict=True)):
            column = self._column(relation, name)
            if column is None:
                continue
            found = codec(kind, column.base, column.modifier)
            if found is None:
                self.add(
                    "column_type",
                    f"the column {name} is of type {column.type}, the key field of type {kind.value}",
                    f"A key field of type {kind.value} goes with a column of type {column_types(kind)}.",
                )
                continue
            codecs.append(found)
            if not column.exact:
                self.add(
                    "column_collation",
                    f"the collation of {name} calls unequal texts equal",
                    "Give the column a deterministic collation: one key would match the rows of another.",
                )
            if position in written and column.generated:
                self.add(
                    "column_generated", f"{name} is generated and cannot be written", "Name the column it is made of."
                )
            if position in nulled and column.not_null:
                self.add(
                    "column_not_null",
                    f"{name} is NOT NULL, so the rule cannot set it to null",
                    f"ALTER TABLE {relation.quoted} ALTER COLUMN {quoted(name)} DROP NOT NULL; or take another action.",
                )
        return tuple(codecs)

    async def _conditions(self, relation: _Relation) -> tuple[Condition, ...]:
        found: list[Condition] = []
        for name, wanted in self._rule.dependent.where.items():
            column = self._column(relation, name)
            if column is None:
                continue
            if wanted is None:
                found.append(Condition(name, column.type, None))
            elif isinstance(wanted, tuple):
                texts = [await self._literal(column, value, "where") for value in wanted]
                found.append(Condition(name, column.type, tuple(text for text in texts if text is not None)))
            else:
                text = await self._literal(column, wanted, "where")
                found.append(Condition(name, column.type, text))
        return tuple(found)

    async def _settings(self, relation: _Relation) -> tuple[Setting, ...]:
        action = self._rule.dependent.on_delete
        if not isinstance(action, Tombstone):
            return ()
        found: list[Setting] = []
        for name, value in action.set.items():
            column = self._column(relation, name)
            if column is None:
                continue
            if column.generated:
                self.add("column_generated", f"{name} is generated and cannot be written", "Name another column.")
            if column.not_null and (name == action.marker or value is None):
                self.add(
                    "column_not_null",
                    f"{name} is NOT NULL, but null is what the rule needs it to hold",
                    f"ALTER TABLE {relation.quoted} ALTER COLUMN {quoted(name)} DROP NOT NULL;",
                )
            if isinstance(value, EventValue):
                fits = column.base in (_TEXTS if value is EventValue.ID else _TEXTS | _TIMES)
                if not fits:
                    self.add(
                        "literal_type",
                        f"the column {name} of type {column.type} cannot take {value.value}",
                        "It takes text." if value is EventValue.ID else "It takes a date, a timestamp or text.",
                    )
                found.append(Setting(name, column.type, value))
            elif value is None:
                found.append(Setting(name, column.type, None))
            else:
                found.append(Setting(name, column.type, await self._literal(column, value, "set")))
        return tuple(found)

    async def _literal(self, column: _Column, value: Literal, where: str) -> str | None:
        """The literal as text that the server reads as the column's type; None after a finding."""
        if value is None:
            return None
        if isinstance(value, bool):
            fits, text = column.base == "bool", "true" if value else "false"
        elif isinstance(value, str):
            fits, text = column.base not in _NUMBERS | {"bool"}, value
        else:
            fits, text = column.base in _NUMBERS, repr(value)
        if fits:
            try:
                await self._connection.fetchval(f"select ($1::text::{column.type}) is null", text)
                return text
            except asyncpg.PostgresError as exc:
                if fault_of(exc).kind is not Kind.EVENT:
                    raise
        self.add(
            "literal_type",
            f"the column {column.name} of type {column.type} cannot hold a value of {where}",
            "Write a value of the column's type.",
        )
        return None

    def _primary_key(self, relation: _Relation) -> tuple[str, ...]:
        if not may_arrive(self._rule):
            return ()
        if not relation.primary_key:
            self.add(
                "primary_key_missing",
                f"{relation.quoted} has no primary key, which key changes need to tell rows apart",
                f"ALTER TABLE {relation.quoted} ADD PRIMARY KEY (...); or on_update: ignore.",
            )
        name_of = {column.number: name for name, column in relation.columns.items()}
        return tuple(name_of[number] for number in relation.primary_key)

    def _index(self, relation: _Relation) -> None:
        """An index that leads with a reference column; one for rows with a reference, or without a mark, serves too."""
        columns = [relation.columns.get(name) for name in self._rule.dependent.columns]
        if None in columns:
            return
        known = [column for column in columns if column is not None]
        action = self._rule.dependent.on_delete
        harmless = {f"({column.printed} IS NOT NULL)" for column in known} | {None}
        if isinstance(action, Tombstone) and (marker := relation.columns.get(action.marker)):
            harmless.add(f"({marker.printed} IS NULL)")
        for leading, collation, predicate in relation.leading:
            serves = any(leading == column.number and collation == column.collation for column in known)
            if serves and predicate in harmless:
                return
        listed = ", ".join(quoted(column.name) for column in known)
        at_once = "" if relation.kind == "p" else "CONCURRENTLY "
        self.add(
            "index_missing",
            f"no index of {relation.quoted} begins with {' or '.join(column.name for column in known)},"
            " so each event would read the whole table",
            f"CREATE INDEX {at_once}ON {relation.quoted} ({listed});",
        )

    def _privileges(self, relation: _Relation, primary_key: Sequence[str]) -> None:
        rule, dependent = self._rule, self._rule.dependent
        read = [*dependent.columns, *dependent.where, *primary_key]
        steps = (rule.policy.on_delete, rule.policy.on_update)
        write = [dependent.columns[position] for position in changed_positions(rule)]
        if isinstance(dependent.on_delete, Tombstone):
            read.append(dependent.on_delete.marker)
            write += dependent.on_delete.set
        if any(isinstance(step, Remove) for step in steps) and not relation.deletable:
            self._lacks("DELETE", relation.quoted, relation.quoted)
        for privilege, names in (("SELECT", read), ("UPDATE", write)):
            lacking = [
                name
                for name in dict.fromkeys(names)
                if (column := relation.columns.get(name))
                and not (column.readable if privilege == "SELECT" else column.writable)
            ]
            if lacking:
                listed = ", ".join(quoted(name) for name in lacking)
                self._lacks(f"{privilege} ({listed})", relation.quoted, relation.quoted)

    def _lacks(self, privilege: str, thing: str, named: str) -> None:
        self.add(
            "privilege_missing",
            f"the role {self._user} lacks {privilege} on {named}",
            f"GRANT {privilege} ON {thing} TO {self._user};",
        )
