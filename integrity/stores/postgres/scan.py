"""References looked through as a whole: grouped and sorted by the server, which may take its time for it.

One read-only snapshot a stream, and no lock that a writer waits for. The plans are other ones than those of events: a
scan reads the whole table, in whatever way is fastest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import asyncpg

from integrity.core.change import parse_version
from integrity.core.keys import Key, KeyType, Scalar, key_hash, parse_canonical
from integrity.core.scan import UNHEARD, Heard, Known, Page, Referenced
from integrity.errors import LedgerError, OperationError, UnfitStoreError
from integrity.ports import Deadline
from integrity.stores.postgres.catalog import resolve
from integrity.stores.postgres.effects import Table, reach, target_of
from integrity.stores.postgres.faults import DRIVER_ERRORS, Kind, fault_of
from integrity.stores.postgres.ledger import Connection
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.session import Sessions
from integrity.stores.postgres.types import NO_MATCH, Codec, Unfit, scalar
from integrity.stores.rule import StoreRule

PAGE_KEYS: Final = 5_000
_TEXTS: Final = (KeyType.STRING, KeyType.OBJECTID)


class PostgresScanner:
    """See `Scannable`. `timeout_s` bounds a question; a stream is bounded by its deadline alone."""

    def __init__(
        self, name: str, url: str, rules: Mapping[str, Sequence[StoreRule]], *, schema: str, timeout_s: float
    ) -> None:
        self.name = name
        self._rules = {rule.id: rule for of_entity in rules.values() for rule in of_entity}
        self._specs = {entity: of_entity[0].spec for entity, of_entity in rules.items()}
        self._schema = schema
        # Streams wait for one another: none may be ended for being idle or slow.
        patient = {
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "plan_cache_mode": "auto",
            "enable_seqscan": "on",
            # A cursor is planned for its first rows unless it says that all of them are wanted.
            "cursor_tuple_fraction": "1",
        }
        self._streams = Sessions(name, url, pool_size=4, timeout_s=timeout_s, lock_timeout_s=timeout_s, more=patient)
        self._sessions = Sessions(name, url, pool_size=1, timeout_s=timeout_s, lock_timeout_s=timeout_s)
        self._tables: dict[str, Table] = {}

    async def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        table = await self._table(dependent, deadline)
        sql, values = references_sql(table)
        kinds = table.rule.spec.types
        async with self._streams.stream(deadline) as connection:
            with self._faults("a table can't be read", "See the privileges."):
                async with asyncio.timeout(deadline.remaining_s()):
                    await connection.execute("begin isolation level repeatable read read only")
                    cursor = await connection.cursor(sql, *values, timeout=deadline.remaining_s())
            while True:
                with self._faults("a table can't be read", "See the privileges."):
                    rows = await cursor.fetch(PAGE_KEYS, timeout=max(0.001, deadline.remaining_s()))
                if not rows:
                    break
                yield _page(kinds, rows)

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        table = await self._table(dependent, deadline)
        bound: list[list[object]] = [[] for _ in table.codecs]
        places: list[int] = []
        for place, key in enumerate(keys):
            parts = _matched(table.codecs, key)
            if parts is not None:
                places.append(place)
                for column, part in zip(bound, parts, strict=True):
                    column.append(part)
        rows = [0] * len(keys)
        if places:
            within, values = reach(table, len(bound))
            names = [f"m{i}" for i in range(len(bound))]
            columns = table.rule.dependent.columns
            fits = [f"t.{quoted(column)} = k.{name}" for column, name in zip(columns, names, strict=True)]
            arrays = ", ".join(codec.compared(f"${i}") for i, codec in enumerate(table.codecs, 1))
            sql = (
                f"select k.n, count(*) from unnest({arrays}) with ordinality as k({', '.join(names)}, n)"
                f" join {target_of(table)} t on {' and '.join([*fits, *within])} group by k.n"
            )
            async with self._asking(deadline, OperationError, "a table can't be read", "See the privileges.") as found:
                for n, count in await found.fetch(sql, *bound, *values):
                    rows[places[n - 1]] = count
        return rows

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        spec = self._specs[entity]
        hashes = [key_hash(entity, key) for key in keys]
        at = quoted(self._schema)
        # What went with its parent has gone, whatever a head says: that is of a repair, which knew less.
        sql = (
            f"select key_hash, fate, moved_to, seen from {at}.keys where key_hash = any($1::bytea[])"
            f" union all select key_hash, '0:1', null, null from {at}.removed where key_hash = any($1::bytea[])"
        )
        async with self._asking(deadline, LedgerError, "the ledger can't be read", "Run `integrity migrate`.") as asked:
            rows = await asked.fetch(sql, hashes)
        found: dict[bytes, Known] = {}
        for hashed, fate, moved_to, seen in rows:
            # What was seen is left out when it is the fate itself.
            if fate is None and seen is None:
                continue
            if fate is None or (seen is not None and parse_version(seen) > parse_version(fate)):
                found[hashed] = Known(Heard.ALIVE)
            elif moved_to is None:
                found[hashed] = Known(Heard.DELETED)
            else:
                found[hashed] = Known(Heard.MOVED, parse_canonical(moved_to, spec))
        return [found.get(hashed, UNHEARD) for hashed in hashes]

    async def close(self) -> None:
        await self._streams.close()
        await self._sessions.close()

    async def _table(self, dependent: str, deadline: Deadline) -> Table:
        if dependent not in self._tables:
            async with self._asking(deadline, OperationError, "a table can't be read", "See the privileges.") as found:
                resolved = await resolve(found, [self._rules[dependent]], self._schema)
            if faults := [finding for finding in resolved.findings if finding.severity == "error"]:
                raise UnfitStoreError(faults)
            for column, codec in zip(
                self._rules[dependent].dependent.columns, resolved.tables[dependent].codecs, strict=True
            ):
                if codec.padded:
                    raise OperationError(
                        f"{dependent}: the column {column} is char(n), whose spaces at the end may be a key's or not.",
                        hint="A scan can't compare it. Make the column text or varchar.",
                    )
            self._tables |= resolved.tables
        return self._tables[dependent]

    @asynccontextmanager
    async def _asking(
        self, deadline: Deadline, refused: type[OperationError], message: str, hint: str
    ) -> AsyncIterator[Connection]:
        with self._faults(message, hint, refused):
            async with self._sessions.connection(deadline) as connection:
                yield connection

    @contextmanager
    def _faults(self, message: str, hint: str, refused: type[OperationError] = OperationError) -> Iterator[None]:
        """`refused` is raised for what only a person can mend."""
        try:
            yield
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.RULE:
                raise refused(f"Store {self.name}: {message}. {fault.message}", hint=hint) from exc
            raise self._sessions.unreachable(fault) from exc


def references_sql(table: Table) -> tuple[str, list[object]]:
    """All keys that rows in reach refer to, each with its rows, in the order of all stores; and what to bind."""
    columns = [f"t.{quoted(column)}" for column in table.rule.dependent.columns]
    kinds = table.rule.spec.types
    within, values = reach(table, 0)
    parts = zip(columns, kinds, table.codecs, strict=True)
    read = [codec.read(column) if kind in _TEXTS else column for column, kind, codec in parts]
    order: list[str] = []
    for expression, kind in zip(read, kinds, strict=True):
        match kind:
            case KeyType.STRING | KeyType.OBJECTID:
                order.append(f'{expression} collate "C"')
            case KeyType.BYTES:
                order += [f"pg_catalog.octet_length({expression})", expression]
            case _:
                order.append(expression)
    fits = [*(f"{column} is not null" for column in columns), *within]
    return (
        f"select {', '.join(read)}, count(*) from {target_of(table)} t where {' and '.join(fits)}"
        f" group by {', '.join(columns)} order by {', '.join(order)}"
    ), values


def _page(kinds: Sequence[KeyType], rows: Sequence[asyncpg.Record]) -> Page:
    """What the rows say; those whose value no key of the type is are counted apart."""
    found: list[Referenced] = []
    mistyped = 0
    if len(kinds) == 1:
        [kind] = kinds
        if kind is KeyType.INT64 and {type(part) for part, _ in rows} == {int}:
            # Most keys are such, and a scan has millions: a named tuple is made from a tuple in a third of the time.
            new_tuple = tuple.__new__
            return Page([new_tuple(Referenced, ((part,), count)) for part, count in rows])
        for part, count in rows:
            try:
                found.append(Referenced((_part(kind, part),), count))
            except Unfit:
                mistyped += count
        return Page(found, mistyped)
    for *parts, count in rows:
        try:
            found.append(Referenced(tuple(map(_part, kinds, parts)), count))
        except Unfit:
            mistyped += count
    return Page(found, mistyped)


def _part(kind: KeyType, value: object) -> Scalar:
    found = scalar(kind, value)
    if kind is KeyType.OBJECTID and found != value:
        raise Unfit("an ObjectId in capitals is other text")
    return found


def _matched(codecs: Sequence[Codec], key: Key) -> list[object] | None:
    """What the columns are compared with; None where no row can hold the key."""
    try:
        parts = [codec.match(part) for codec, part in zip(codecs, key, strict=True)]
    except Unfit:
        return None
    return None if NO_MATCH in parts else parts
