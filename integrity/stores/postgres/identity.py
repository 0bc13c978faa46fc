"""What the log of PostgreSQL tells of a parent's deletions: the replica identity of its table.

PostgreSQL writes the old values of the identity's columns alone, and Debezium makes up the others: 0, "", the column's
default. A key that is not of the identity would so be another row's. Reads the catalogue, which every role may do.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from integrity.core.rules.model import KeyFrom, Parent
from integrity.errors import Finding, OperationError
from integrity.ports import Deadline
from integrity.stores.postgres.faults import DRIVER_ERRORS, Kind, fault_of
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.session import Sessions

LOGGED: Final = frozenset({"debezium", "debezium-flat", "cloudevents"})
"""The formats whose events come from the log of the parent's own table, unless they are domain events."""

# Of each table, what writes the log: itself, or its partitions, each with an identity of its own.
_IDENTITIES: Final = """
with recursive below(n, oid) as (
    select u.n, c.oid from unnest($1::text[], $2::text[]) with ordinality u(schema, name, n)
    join pg_catalog.pg_class c on c.relname = u.name and c.relkind in ('r', 'p')
    join pg_catalog.pg_namespace s on s.oid = c.relnamespace
        and case when u.schema is null
            then s.nspname !~ '^pg_' and s.nspname not in ('information_schema', $3)
            else s.nspname = u.schema end
    union
    select below.n, i.inhrelid from below join pg_catalog.pg_inherits i on i.inhparent = below.oid
    join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition
)
select below.n, s.nspname, c.relname, c.relreplident::text, x.relname,
    array(
        select a.attname::text from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    ),
    array(select a.attname::text from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum = any(i.indkey::int2[])),
    array(select a.attname::text from pg_catalog.pg_attribute a join pg_catalog.pg_index p on p.indrelid = c.oid
        where p.indisprimary and a.attrelid = c.oid and a.attnum = any(p.indkey::int2[]))
from below join pg_catalog.pg_class c on c.oid = below.oid and c.relkind = 'r'
join pg_catalog.pg_namespace s on s.oid = c.relnamespace
left join pg_catalog.pg_index i on i.indrelid = c.oid
    and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end
left join pg_catalog.pg_class x on x.oid = i.indexrelid
order by 1, 2, 3
"""


class Identity(NamedTuple):
    """A table that writes the log. `kind` is as pg_class has it (d, n, f, i), `index_name` the index that the identity
    is, if it is one, and `logged` the columns of that."""

    schema: str
    name: str
    kind: str
    index_name: str | None
    columns: Collection[str]
    logged: Collection[str]
    primary_key: Collection[str]


class ReplicaIdentities:
    """The tables of parents in one database, as `events.source` names them."""

    def __init__(self, name: str, url: str, parents: Sequence[Parent], *, schema: str, timeout_s: float) -> None:
        self.name = name
        self._parents = parents
        self._schema = schema
        self._sessions = Sessions(name, url, pool_size=1, timeout_s=timeout_s, lock_timeout_s=timeout_s)

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        """What keeps the events from naming the rows that were deleted. Raises UnreachableError, and OperationError
        where the catalogue can't be read."""
        sources = [_source(parent) for parent in self._parents]
        names = [source.rpartition(".") for source in sources]
        try:
            async with asyncio.timeout(deadline.remaining_s()), self._sessions.connection(deadline) as connection:
                schemas, tables = [schema or None for schema, _, _ in names], [table for _, _, table in names]
                rows = await connection.fetch(_IDENTITIES, schemas, tables, self._schema)
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.RULE:
                message = f"Store {self.name}: the catalogue can't be read. {fault.message}"
                raise OperationError(message, hint="See the privileges.") from exc
            raise self._sessions.unreachable(fault) from exc
        found: dict[int, list[Identity]] = defaultdict(list)
        for n, *rest in rows:
            found[n].append(Identity(*rest))
        return [finding for n, parent in enumerate(self._parents, 1) for finding in identity_findings(parent, found[n])]

    async def close(self) -> None:
        await self._sessions.close()


def is_logged(parent: Parent) -> bool:
    """Whether a parent's events come from the log of the table that its source names."""
    events = parent.events
    return events is not None and events.source is not None and events.types is None and events.format in LOGGED


def identity_findings(parent: Parent, identities: Iterable[Identity]) -> list[Finding]:
    """What these tables' identities do to the events of the parent."""
    assert parent.events is not None
    place = parent.place
    from_rows = parent.events.key_from is KeyFrom.BEFORE
    findings: list[Finding] = []

    def add(code: str, message: str, hint: str, severity: str = "error") -> None:
        findings.append(Finding(code, message, hint, place.file, place.line, place.column, severity))

    for each in identities:
        table = quoted(each.schema, each.name)
        full = f"ALTER TABLE {table} REPLICA IDENTITY FULL;"
        # A field that is no column comes from elsewhere, such as a router's.
        key = [name for name in parent.key.names if name in each.columns]
        lacking = [name for name in key if name not in each.logged]
        if each.kind == "f" or not key:
            continue
        if from_rows:
            message = f"the key is read from rows before, and the log of {table} does not have them whole"
            add("before_missing", message, full)
        elif each.index_name is None:
            message = f"{table} has no replica identity: PostgreSQL refuses to delete its rows while it is published"
            add("replica_identity", message, full, "warning")
        elif lacking:
            using = (
                f"USING INDEX {quoted(each.index_name)}" if each.kind == "i" else "DEFAULT, which is its primary key"
            )
            lacks = ", ".join(lacking)
            message = (
                f"{table} has REPLICA IDENTITY {using}, without {lacks}: deletions arrive with a key that is made up"
                ' (0, "") and may be that of another row'
            )
            by_default = f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"
            add("key_made_up", message, by_default if set(key) <= set(each.primary_key) else full)
    return findings


def _source(parent: Parent) -> str:
    assert parent.events is not None and parent.events.source is not None
    return parent.events.source.target.name
