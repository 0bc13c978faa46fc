"""Rules against the live catalogue: every name is resolved once, and everything that does not fit is a finding."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from integrity.core.derive import what_follows
from integrity.core.fold import Remove, Replace
from integrity.core.keys import KeyType, Scalar
from integrity.core.rules.model import EventValue, Literal, Tombstone
from integrity.errors import Finding
from integrity.stores.postgres.effects import Age, Condition, Setting, Table, changed_positions, may_arrive
from integrity.stores.postgres.faults import Kind, fault_of
from integrity.stores.postgres.ledger import LEDGER_VERSION, PRIVILEGES, TABLES, Connection
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import Codec, Enum, Unfit, codec, column_types
from integrity.stores.rule import StoreRule

_RELATIONS: Final = """
select u.n, c.oid::int8 as oid, s.nspname, c.relname, c.relkind::text as relkind,
    pg_catalog.row_security_active(c.oid) as secured,
    pg_catalog.has_schema_privilege(s.oid, 'usage') as usable,
    pg_catalog.has_table_privilege(c.oid, 'delete') as deletable,
    pg_catalog.has_table_privilege(c.oid, 'select') as readable,
    pg_catalog.has_table_privilege(c.oid, 'insert') as insertable,
    array(
        select r.ev_type::text || pg_catalog.quote_ident(r.rulename) from pg_catalog.pg_rewrite r
        where r.ev_class = c.oid and c.relkind in ('r', 'p') order by 1
    ) as rewrites
from unnest($1::text[], $2::text[]) with ordinality u(schema, name, n)
join pg_catalog.pg_class c on c.relname = u.name and c.relkind in ('r', 'p', 'v', 'm', 'f')
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
    and case when u.schema is null
        then s.nspname !~ '^pg_' and s.nspname not in ('information_schema', $3)
        else s.nspname = u.schema end
order by u.n, s.nspname
"""

# What lies below a table: its partitions, or the tables that inherit from it.
_BELOW: Final = """
with recursive below(root, oid) as (
    select inhparent, inhrelid from pg_catalog.pg_inherits where inhparent = any($1::int8[])
    union
    select below.root, i.inhrelid from below join pg_catalog.pg_inherits i on i.inhparent = below.oid
)
"""

_DESCENDANTS: Final = f"""{_BELOW}
select below.root::int8, c.oid::int8, c.relkind::text,
    pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(c.relname)
from below join pg_catalog.pg_class c on c.oid = below.oid join pg_catalog.pg_namespace s on s.oid = c.relnamespace
order by 1, 4
"""

# PostgreSQL refuses to delete from a published table, or to change its rows, when it could not tell subscribers which.
_UNIDENTIFIED: Final = f"""{_BELOW}
select u.root::int8, pg_catalog.quote_ident(s.nspname) || '.' || pg_catalog.quote_ident(c.relname),
    bool_or(p.pubdelete), bool_or(p.pubupdate)
from (select root, oid from below union all select oid, oid from unnest($1::int8[]) t(oid)) u
join pg_catalog.pg_class c on c.oid = u.oid and c.relkind = 'r'
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
join pg_catalog.pg_class r on r.oid = u.root and (r.relkind = 'p' or r.oid = c.oid)
join pg_catalog.pg_namespace rs on rs.oid = r.relnamespace
join pg_catalog.pg_publication_tables t
    on (t.schemaname, t.tablename) in ((s.nspname, c.relname), (rs.nspname, r.relname))
join pg_catalog.pg_publication p on p.pubname = t.pubname
where c.relreplident = 'n' or c.relreplident <> 'f' and not exists (
    select from pg_catalog.pg_index i where i.indrelid = c.oid
    and case when c.relreplident = 'd' then i.indisprimary else i.indisreplident end
)
group by 1, 2 order by 1, 2
"""

# A domain is what it is made of; its own "not null" counts too, and so does that of a partition or a check. Types are
# named in full: what a bare name means depends on the search path.
_COLUMNS: Final = """
select a.attrelid::int8 as oid, a.attname, a.attnum, b.typname, b.enum_oid, b.modifier,
    coalesce(
        (select pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', x.attrelid::regclass, a.attname)
            from (select relid from pg_catalog.pg_partition_tree(a.attrelid) union all select a.attrelid) p(oid)
            join pg_catalog.pg_attribute x on x.attrelid = p.oid and x.attname = a.attname and x.attnotnull
            order by x.attrelid <> a.attrelid limit 1),
        'ALTER DOMAIN ' || b.not_null::regtype || ' DROP NOT NULL',
        (select pg_catalog.format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname)
            from pg_catalog.pg_constraint k where k.conrelid = a.attrelid and k.contype = 'c'
            and pg_catalog.pg_get_expr(k.conbin, k.conrelid)
                = pg_catalog.format('(%I IS NOT NULL)', a.attname) order by k.conname limit 1),
        ''
    ) as not_null,
    a.attgenerated <> '' or a.attidentity = 'a' as generated, a.attgenerated::text = 'v' as virtual,
    a.attgenerated <> '' as computed,
    case when n.nspname = 'pg_catalog' then pg_catalog.format_type(y.oid, -1) else f.name end as type,
    case when n.nspname = 'pg_catalog' then pg_catalog.format_type(y.oid, a.atttypmod) else f.name end as full_type,
    case when not pg_catalog.has_schema_privilege(n.oid, 'usage') then n.nspname end as closed,
    coalesce(l.collisdeterministic, true) as exact, a.attcollation::int8 as collation,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'select') as readable,
    pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'update') as writable,
    pg_catalog.quote_ident(a.attname) as printed
from pg_catalog.pg_attribute a
join pg_catalog.pg_type y on y.oid = a.atttypid
join pg_catalog.pg_namespace n on n.oid = y.typnamespace
join lateral (select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(y.typname)) f(name) on true
join lateral (
    with recursive base(oid, modifier, not_null) as (
        select a.atttypid, a.atttypmod, null::oid
        union all
        select t.typbasetype, t.typtypmod, coalesce(base.not_null, case when t.typnotnull then t.oid end)
        from base join pg_catalog.pg_type t on t.oid = base.oid where t.typtype = 'd'
    )
    select t.typname, base.modifier, base.not_null, e.oid::int8 as enum_oid
    from base join pg_catalog.pg_type t on t.oid = base.oid
    -- PostgreSQL has no comparison for a domain over an enum.
    left join pg_catalog.pg_type e on e.oid = t.oid and e.typtype = 'e' and e.oid = a.atttypid
    where t.typtype <> 'd'
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

_NO_TABLES: Final = {
    "v": ("view", "Name the table that holds the rows."),
    "m": ("materialized view", "Name the tables that it is made of, and refresh it."),
    "f": ("foreign table", "Name the table in a store of the database that holds the rows."),
}
_EVENTS: Final = {"2": "UPDATE", "4": "DELETE"}
_NUMBERS: Final = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8"})
_TIMES: Final = frozenset({"timestamptz", "timestamp", "date"})
_CITEXT: Final = "citext"
_BENEATH: Final = {
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
    "date": "date",
}
"""What a column of a domain holds, for times of events."""
_TEXTS: Final = frozenset({"text", "varchar", "bpchar"})


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as the catalogue has it. `base` is the type's name beneath domains, `not_null` the statement that would
    let it be null (empty: it may be), `type` what casts name, `full_type`
    the same with length or precision, `closed` the type's schema where the role may not use it, `printed` how
    expressions print the name."""

    name: str
    number: int
    base: str
    enum_oid: int | None
    modifier: int
    not_null: str
    generated: bool
    virtual: bool
    computed: bool
    type: str
    full_type: str
    closed: str | None
    exact: bool
    collation: int
    readable: bool
    writable: bool
    printed: str

    @property
    def codec_type(self) -> str | Enum:
        return self.base if self.enum_oid is None else Enum(self.enum_oid, self.type)


@dataclass(slots=True)
class _Relation:
    oid: int
    schema: str
    name: str
    kind: str
    secured: bool
    usable: bool
    deletable: bool
    readable: bool
    insertable: bool
    rewrites: list[str]
    """Rewrite rules, each behind the number of its event: 2 is UPDATE, 4 is DELETE."""
    below: list[tuple[int, str, str]] = field(default_factory=list)
    """Partitions, or tables that inherit from this one: oid, kind, name as SQL writes it."""
    unidentified: list[tuple[str, bool, bool]] = field(default_factory=list)
    """Tables without a replica identity whose deletions, or updates, are published."""
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
    path = await connection.fetchval("select pg_catalog.current_schemas(true)")
    first = next(schema for schema in path if not schema.startswith("pg_temp"))
    if first != "pg_catalog":
        resolved.findings.append(
            Finding(
                "search_path",
                f"The search path of the role {user} has {first} before pg_catalog, which could give PostgreSQL's own"
                " names another meaning",
                f"Leave pg_catalog out of it, and it comes first: ALTER ROLE {user} SET search_path = ...;",
            )
        )
    named: dict[str, set[int]] = {}
    for rule, relations in zip(chosen, found, strict=True):
        named.setdefault(rule.entity, set()).update(relation.oid for relation in relations)
    for rule, relations in zip(chosen, found, strict=True):
        inspection = _Inspection(connection, rule, str(user), named[rule.entity])
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
        n, *rest = row
        relation = _Relation(*rest)
        found[n - 1].append(relation)
        of_oid.setdefault(relation.oid, []).append(relation)
    oids = list(of_oid)
    for row in await connection.fetch(_COLUMNS, oids):
        oid, *rest = row
        column = _Column(*rest)
        for relation in of_oid[oid]:
            relation.columns[column.name] = column
    for oid, leading, collation, predicate, is_primary, columns in await connection.fetch(_INDEXES, oids):
        for relation in of_oid[oid]:
            if is_primary:
                relation.primary_key = tuple(columns)
            else:
                relation.leading.append((leading, collation, predicate))
    for root, oid, kind, name in await connection.fetch(_DESCENDANTS, oids):
        for relation in of_oid[root]:
            relation.below.append((oid, kind, name))
    for root, name, deletes, updates in await connection.fetch(_UNIDENTIFIED, oids):
        for relation in of_oid[root]:
            relation.unidentified.append((name, deletes, updates))
    return found


class _Inspection:
    """One rule against its relation; collects findings."""

    def __init__(self, connection: Connection, rule: StoreRule, user: str, named: Collection[int]) -> None:
        """`named` are the tables that rules of the same parent name."""
        self._connection = connection
        self._rule = rule
        self._user = user
        self._named = named
        self.findings: list[Finding] = []

    def add(self, code: str, message: str, hint: str, severity: str = "error") -> None:
        place = self._rule.dependent.place
        message = f"{self._rule.id}: {message}"
        self.findings.append(Finding(code, message, hint, place.file, place.line, place.column, severity))

    def one_of(self, relations: Sequence[_Relation]) -> _Relation | None:
        name = self._rule.dependent.target.name
        match relations:
            case []:
                self.add("table_missing", f"there is no table {name}", "Correct the name, or create the table.")
            case [relation] if relation.kind in _NO_TABLES:
                what, mend = _NO_TABLES[relation.kind]
                self.add("not_a_table", f"{name} is a {what}", mend)
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
        self._below(relation)
        codecs = await self._reference(relation)
        conditions = await self._conditions(relation)
        settings = await self._settings(relation)
        primary_key = self._primary_key(relation)
        own = self._own(relation)
        age = self._age(relation)
        self._index(relation)
        self._privileges(relation, primary_key)
        self._refusals(relation)
        if relation.secured:
            self.add(
                "row_security",
                f"row-level security hides rows of {relation.quoted} from the role {self._user}",
                f"ALTER ROLE {self._user} BYPASSRLS;",
            )
        return Table(
            rule,
            relation.schema,
            relation.name,
            codecs,
            conditions,
            settings,
            primary_key,
            relation.kind == "p",
            own,
            age,
            relation.readable,
            {name: (column.type, column.computed) for name, column in relation.columns.items()},
        )

    def _below(self, relation: _Relation) -> None:
        if relation.kind == "p":
            for name in [name for _, kind, name in relation.below if kind == "f"]:
                self.add(
                    "not_a_table",
                    f"{name}, a partition of {relation.quoted}, is a foreign table",
                    f"ALTER TABLE {relation.quoted} DETACH PARTITION {name}; and name its table in a store of its own.",
                )
            return
        others = [name for oid, _, name in relation.below if oid not in self._named]
        if others:
            self.add(
                "inheriting_tables",
                f"rows of tables that inherit from {relation.quoted} are left alone, as a native foreign key leaves"
                f" them: {', '.join(others)}",
                "Write a rule for each of them whose rows refer to this parent.",
                "warning",
            )

    def _refusals(self, relation: _Relation) -> None:
        """What would make PostgreSQL refuse the statements of this rule, whatever the event."""
        for rewrite in relation.rewrites:
            if _EVENTS.get(rewrite[0]) in self._statements:
                self.add(
                    "rewrite_rule",
                    f"the rewrite rule {rewrite[1:]} of {relation.quoted} changes what statements do",
                    f"DROP RULE {rewrite[1:]} ON {relation.quoted}; a trigger can do what it did.",
                )
        for name, deletes, updates in relation.unidentified:
            published = {"DELETE": deletes, "UPDATE": updates}
            refused = sorted(statement for statement in self._statements if published[statement])
            if refused:
                self.add(
                    "replica_identity",
                    f"{name} is published without a replica identity: PostgreSQL refuses {' and '.join(refused)} on it",
                    f"ALTER TABLE {name} REPLICA IDENTITY FULL; or give it a primary key.",
                )

    @property
    def _statements(self) -> set[str]:
        """Which statements the rule's actions make."""
        policy, marks = self._rule.policy, isinstance(self._rule.dependent.on_delete, Tombstone)
        removes = any(isinstance(step, Remove) for step in (policy.on_delete, policy.on_update))
        writes = marks or bool(changed_positions(self._rule))
        return {name for name, made in (("DELETE", removes), ("UPDATE", writes)) if made}

    def _column(self, relation: _Relation, name: str) -> _Column | None:
        column = relation.columns.get(name)
        if column is None and not any(f.code == "column_missing" and f" {name}" in f.message for f in self.findings):
            known = ", ".join(sorted(relation.columns))
            self.add("column_missing", f"{relation.quoted} has no column {name}", f"It has {known}.")
        return column

    async def _reference(self, relation: _Relation) -> tuple[Codec, ...]:
        rule = self._rule
        codecs: list[Codec] = []
        written = changed_positions(rule)
        defaults: dict[int, list[Scalar | None]] = {}
        for step in (rule.policy.on_delete, rule.policy.on_update):
            if isinstance(step, Replace):
                for position, value in step.parts:
                    defaults.setdefault(position, []).append(value)
        for position, (name, kind) in enumerate(zip(rule.dependent.columns, rule.spec.types, strict=True)):
            column = self._column(relation, name)
            if column is None:
                continue
            found = self._codec(relation, column, kind)
            if found is None:
                continue
            codecs.append(found)
            if position in written and column.generated:
                self.add(
                    "column_generated", f"{name} is generated and cannot be written", "Name the column it is made of."
                )
            await self._defaults(column, found, defaults.get(position, ()))
        return tuple(codecs)

    def _own(self, relation: _Relation) -> tuple[Codec, ...]:
        """The columns of the rows' own key, by which what depends on them is found."""
        rows = self._rule.rows
        codecs: list[Codec] = []
        for name, kind in () if rows is None else rows.spec.fields:
            column = self._column(relation, name)
            found = None if column is None else codec(kind, column.codec_type, column.modifier)
            if column is None:
                continue
            if found is None:
                self.add(
                    "column_type",
                    f"the column {name} is of type {column.type}, the rows' own key of type {kind.value}",
                    f"A key column of type {kind.value} goes with a column of type {column_types(kind)}.",
                )
                continue
            codecs.append(found)
            if not column.exact:
                self._loose(relation, column)
            if not column.not_null:
                self.add(
                    "key_nullable",
                    f"{name} may be null, so that a row could not be named for what depends on it",
                    f"ALTER TABLE {relation.quoted} ALTER COLUMN {quoted(name)} SET NOT NULL;",
                )
        return tuple(codecs)

    def _codec(self, relation: _Relation, column: _Column, kind: KeyType) -> Codec | None:
        """How keys are compared with the column; what keeps them from being compared exactly is a finding."""
        found = codec(kind, column.codec_type, column.modifier)
        if found is None and column.base == _CITEXT and kind in (KeyType.STRING, KeyType.OBJECTID):
            self._loose(relation, column)
            return None
        if found is None:
            self.add(
                "column_type",
                f"the column {column.name} is of type {column.type}, the key field of type {kind.value}",
                f"A key field of type {kind.value} goes with a column of type {column_types(kind)}.",
            )
            return None
        if column.enum_oid is not None and not self._reach(column):
            return None
        if not column.exact:
            self._loose(relation, column)
        if column.virtual:
            self.add(
                "column_generated",
                f"{column.name} is generated when it is read, so no index can find its rows",
                "Name the column it is made of, or make it STORED.",
            )
        return found

    async def _defaults(self, column: _Column, codec: Codec, values: Collection[Scalar | None]) -> None:
        """Whether the column takes what actions write to it; whether a parent has that key is not known here."""
        for value in values:
            if value is not None and self._reach(column) and not await self._holds(codec, column, value):
                self.add(
                    "literal_type",
                    f"the column {column.name} of type {column.full_type} cannot hold its default value",
                    "Write a value that the column takes.",
                )
        if None in values and column.not_null:
            self.add(
                "column_not_null",
                f"{column.name} is NOT NULL, so the rule cannot set it to null",
                f"{column.not_null}; or take another action.",
            )

    def _loose(self, relation: _Relation, column: _Column) -> None:
        name = quoted(column.name)
        by = "type" if column.base == _CITEXT else "collation"
        to = "text" if column.base == _CITEXT else f'{column.full_type} COLLATE "C"'
        self.add(
            "column_collation",
            f"the {by} of {column.name} calls unequal texts equal: one key would match the rows of another",
            f"ALTER TABLE {relation.quoted} ALTER COLUMN {name} TYPE {to};",
        )

    def _reach(self, column: _Column) -> bool:
        """Whether statements may name the column's type: that needs its schema."""
        if column.closed is not None:
            self._lacks("USAGE", f"SCHEMA {quoted(column.closed)}", f"the schema {quoted(column.closed)}")
        return column.closed is None

    async def _holds(self, codec: Codec, column: _Column, value: Scalar) -> bool:
        """Whether the column takes this value as it is."""
        try:
            bound = [codec.assign(value)]
            await self._connection.fetchval(f"select ({codec.written('$1')})[1]::{column.full_type} is null", bound)
            return True
        except Unfit:
            return False
        except asyncpg.PostgresError as exc:
            if fault_of(exc).kind is Kind.EVENT:
                return False
            raise

    def _age(self, relation: _Relation) -> Age | None:
        name = self._rule.dependent.as_of
        column = None if name is None else self._column(relation, name)
        if column is None:
            return None
        if column.base not in _TIMES:
            self.add(
                "column_type",
                f"the column {column.name} of as_of is of type {column.type}",
                "It takes a column of type timestamptz, timestamp (in UTC) or date.",
            )
        if not column.not_null:
            quoted_name = quoted(column.name)
            self.add(
                "as_of_nullable",
                f"{column.name} may be null, and no event reaches a row that does not say when it came to be",
                f"Fill it, then ALTER TABLE {relation.quoted} ALTER COLUMN {quoted_name} SET NOT NULL;",
                severity="warning",
            )
        return Age(column.name, column.base)

    async def _conditions(self, relation: _Relation) -> tuple[Condition, ...]:
        found: list[Condition] = []
        for name, wanted in self._rule.dependent.where.items():
            column = self._column(relation, name)
            if column is None:
                continue
            if wanted is None:
                found.append(Condition(name, column.type, None))
                continue
            if not column.exact or column.base == _CITEXT:
                self._loose(relation, column)
            if isinstance(wanted, tuple):
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
                    f"{column.not_null};",
                )
            if isinstance(value, EventValue):
                fits = column.base in (_TEXTS if value is EventValue.ID else _TEXTS | _TIMES)
                if not fits:
                    self.add(
                        "literal_type",
                        f"the column {name} of type {column.type} cannot take {value.value}",
                        "It takes text." if value is EventValue.ID else "It takes a date, a timestamp or text.",
                    )
                found.append(Setting(name, _BENEATH.get(column.base, "text"), value))
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
        if not self._reach(column):
            return None
        if where == "set" and isinstance(value, str) and column.base in ("varchar", "bpchar") and column.modifier >= 4:
            fits = len(value) <= column.modifier - 4  # a cast would cut it
        if fits:
            read = f"$1::text::{column.type if where == 'where' else column.full_type}"
            try:
                await self._connection.fetchval(
                    f"select {read} = {read}" if where == "where" else f"select ({read}) is null", text
                )
                return text
            except asyncpg.UndefinedFunctionError:
                self.add(
                    "literal_type",
                    f"values of {column.name}, of type {column.type}, cannot be compared",
                    "Take another column.",
                )
                return None
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
        keeps = self._rule.dependent.undo_ms is not None
        if not may_arrive(self._rule) and not keeps:
            return ()
        if not relation.primary_key:
            why, instead = "key changes need to tell rows apart", "on_update: ignore"
            if keeps:
                why, instead = "undo needs to find a row again", "leave undo out"
            self.add(
                "primary_key_missing",
                f"{relation.quoted} has no primary key, which {why}",
                f"ALTER TABLE {relation.quoted} ADD PRIMARY KEY (...); or {instead}.",
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
        for name, wanted in self._rule.dependent.where.items():
            if wanted is None and (column := relation.columns.get(name)):
                harmless.add(f"({column.printed} IS NULL)")
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
        write = [dependent.columns[position] for position in changed_positions(rule)]
        if dependent.as_of is not None:
            read.append(dependent.as_of)
        if isinstance(dependent.on_delete, Tombstone):
            read.append(dependent.on_delete.marker)
            write += dependent.on_delete.set
        rows, steps = rule.rows, (rule.policy.on_delete, rule.policy.on_update)
        if rows is not None and any(what_follows(rows, step) is not None for step in steps):
            read += rows.spec.names
            if not write:  # rows are locked before what depends on them is removed
                write = [dependent.columns[0]]
        if "DELETE" in self._statements and not relation.deletable:
            self._lacks("DELETE", relation.quoted, relation.quoted)
        if dependent.undo_ms is not None and "DELETE" in self._statements:
            # The whole row is kept, and put back by the same role.
            read += [name for name, column in relation.columns.items() if not column.computed]
            if not relation.insertable:
                self._lacks("INSERT", relation.quoted, relation.quoted)
        elif dependent.undo_ms is not None:
            read += write
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
        grant = f"GRANT {privilege} ON {thing} TO {self._user};"
        if not any(finding.hint == grant for finding in self.findings):
            self.add("privilege_missing", f"the role {self._user} lacks {privilege} on {named}", grant)
