"""What events changed is put back by hand, from what was kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import asyncpg

from integrity.core.change import parse_version
from integrity.core.outcome import Retry
from integrity.core.undo import Choice, Kept, Looked, Portion, Verdict, not_done_yet, runs, undone_names
from integrity.stores.postgres.effects import Table, target_of
from integrity.stores.postgres.ledger import Connection
from integrity.stores.postgres.names import quoted

_NEWEST: Final = 2**63 - 1
_TOMBSTONE: Final = "tombstone"
_Verdicts = dict[int, tuple[Verdict, str]]


class Undoer:
    """The statements that put rows back, on tables that are known by dependent. `on_dependent` is told whose statement
    comes next, None for the ledger's."""

    def __init__(
        self, schema: str, tables: Mapping[str, Table], on_dependent: Callable[[str | None], None] = lambda _: None
    ) -> None:
        self._tables = tables
        self._on_dependent = on_dependent
        at = quoted(schema)
        self._undo_table = f"{at}.undo"
        self._lock_sql = f"select from {at}.keys where key_hash = any($1::bytea[]) order by key_hash for update"
        self._done_sql = f"delete from {at}.undo where id = any($1::int8[])"
        self._note_sql = (
            f"insert into {at}.undone (key_hash, dependent, event, at_ms, rows, actor, note)"
            " select u.key_hash, u.dependent, u.event, $5, u.rows, $6, $7"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::int8[]) u(key_hash, dependent, event, rows)"
            " on conflict (key_hash, dependent, event, at_ms) do update set rows = undone.rows + excluded.rows"
        )
        self._unfinished_sql = (
            f"select e.key from {at}.progress p cross join lateral pg_catalog.json_each(p.parts) e"
            " where p.parts is not null and e.key = any($1::text[]) limit 1"
        )
        self._forget_sql = (
            f"delete from {at}.undo where id in (select id from {at}.undo where expires_ms <= $1"
            " order by expires_ms limit $2 for update skip locked)"
        )

    async def look(self, connection: Connection, portion: Portion) -> Looked | Retry:
        """What would come of a portion. Locks and changes nothing."""
        found, before = await self._read(connection, portion)
        if unfinished := await self._unfinished(connection, found):
            return unfinished
        verdicts: _Verdicts = {}
        for rows in _runs(row for row in found if not row["follows"]):
            verdicts |= await self._of_run(connection, rows, acts=False)
        return _looked(found, verdicts, before)

    async def put_back(self, connection: Connection, portion: Portion) -> Looked | Retry:
        """Put a portion back, inside a transaction that the caller has begun and commits."""
        found, before = await self._read(connection, portion)
        await connection.execute(self._lock_sql, sorted({row["key_hash"] for row in found}))
        if unfinished := await self._unfinished(connection, found):
            return unfinished
        verdicts: _Verdicts = {}
        for rows in _runs(found):
            verdicts |= await self._of_run(connection, rows, acts=True)
        if found:
            # A deferred constraint would tell at the end, and not for whom: it may be about any row of the portion.
            self._on_dependent(found[-1]["dependent"])
            await connection.execute("set constraints all immediate")
        self._on_dependent(None)
        done = [row for row in found if verdicts[row["id"]][0] is Verdict.PUT_BACK]
        await connection.execute(self._done_sql, [row["id"] for row in done])
        await self._note(connection, done, portion)
        return _looked(found, verdicts, before)

    async def forget(self, connection: Connection, at_ms: int, rows_max: int) -> int:
        """Remove some of what has expired; how many it were."""
        status: str = await connection.execute(self._forget_sql, at_ms, rows_max)
        return int(status.rpartition(" ")[2])

    def page_sql(self, choice: Choice) -> tuple[str, list[object]]:
        """What reads the records of a portion: at the time $1, at most $2 of them, of the choice, whose arguments are
        given too, and before the number that is the last argument."""
        chosen, arguments = _chosen(choice, "u", 3)
        newer, _ = _chosen(choice, "n", 3)
        sql = (
            'select u.id, u.event, u.version, u.entity, u.key, u.dependent, u.key_hash, u.action, u."row"::text,'
            " u.was::text, u.image::text, u.after::text,"
            # "offset 0": found by the index on `was`. Without statistics another one looks as good, and reads them all.
            f' exists (select from (select * from {self._undo_table} w where w.was = u."row" offset 0) n'
            f" where n.dependent = u.dependent and n.id > u.id and n.expires_ms > $1 and {newer}) as follows"
            f" from {self._undo_table} u where u.expires_ms > $1 and u.id < ${len(arguments) + 3}::int8"
            f" and {chosen} order by u.id desc limit $2"
        )
        return sql, arguments

    async def _read(self, connection: Connection, portion: Portion) -> tuple[list[asyncpg.Record], int | None]:
        """The records of a portion, newest first, and where the next one begins."""
        sql, arguments = self.page_sql(portion.choice)
        before = _NEWEST if portion.before is None else int(portion.before)
        found = await connection.fetch(sql, portion.at_ms, portion.rows_max + 1, *arguments, before)
        rows = found[: portion.rows_max]
        return rows, rows[-1]["id"] if len(found) > portion.rows_max else None

    async def _unfinished(self, connection: Connection, found: Sequence[asyncpg.Record]) -> Retry | None:
        events = list({row["event"] for row in found})
        event = await connection.fetchval(self._unfinished_sql, events) if events else None
        return None if event is None else not_done_yet(event)

    async def _of_run(self, connection: Connection, rows: Sequence[asyncpg.Record], *, acts: bool) -> _Verdicts:
        """What comes of rows that are alike: of one dependent, all removed or all changed in the same columns."""
        first = rows[0]
        table = self._tables.get(first["dependent"])
        if table is None:
            return _refused(rows, "no rule names this dependent any more, or it does not fit the table")
        gone = sorted({*json.loads(first["image"]), *json.loads(first["row"])} - table.columns.keys())
        if gone:
            return _refused(rows, f"the table has no column {gone[0]} any more")
        self._on_dependent(first["dependent"])
        if first["after"] is None:
            return await self._insert(connection, table, rows, acts=acts)
        return await self._change(connection, table, rows, acts=acts)

    async def _insert(
        self, connection: Connection, table: Table, rows: Sequence[asyncpg.Record], *, acts: bool
    ) -> _Verdicts:
        known = await connection.fetch(
            "select u.id from unnest($1::int8[], $2::text[]::jsonb[]) u(id, r)"
            f" where exists (select from {target_of(table)} t where {_same_row(table, 3)})",
            [row["id"] for row in rows],
            [row["row"] for row in rows],
            list(table.primary_key),
        )
        there = {row["id"] for row in known}
        verdicts = {row["id"]: (Verdict.EXISTS if row["id"] in there else Verdict.PUT_BACK, "") for row in rows}
        absent = [row for row in rows if row["id"] not in there]
        if not acts or not absent:
            return verdicts
        columns = [c for c in json.loads(absent[0]["image"]) if not table.columns[c][1]]
        values = ", ".join(_value("u.image", 2, i, table.columns[c][0]) for i, c in enumerate(columns))
        named = ", ".join(quoted(column) for column in columns)
        pk = ", ".join(f"{quoted(column)}::text" for column in table.primary_key)
        inserted = await connection.fetch(
            f"insert into {quoted(table.schema, table.name)} ({named}) overriding system value"
            f" select {values} from unnest($1::text[]::jsonb[]) with ordinality u(image, n)"
            f" order by u.n returning pg_catalog.jsonb_object($3::text[], array[{pk}]::text[])::text",
            [row["image"] for row in absent],
            columns,
            list(table.primary_key),
        )
        came = {row[0] for row in inserted}
        for row in absent:
            if row["row"] not in came:
                verdicts[row["id"]] = Verdict.REFUSED, "a trigger of the table kept it out, or changed its key"
        return verdicts

    async def _change(
        self, connection: Connection, table: Table, rows: Sequence[asyncpg.Record], *, acts: bool
    ) -> _Verdicts:
        columns = list(json.loads(rows[0]["after"]))
        # A reference is compared as keys are; what a mark set may be of a type that has no equality.
        marks = rows[0]["action"] == _TOMBSTONE
        holds = " and ".join(
            f"t.{quoted(c)}{'::text' if marks else ''} is not distinct from"
            f" {_value('u.after', 4, i, 'text' if marks else table.columns[c][0])}"
            for i, c in enumerate(columns)
        )
        bound = "unnest($1::int8[], $2::text[]::jsonb[], $3::text[]::jsonb[]) u(id, r, after)"
        arguments: list[object] = [
            [row["id"] for row in rows],
            [row["row"] for row in rows],
            [row["after"] for row in rows],
            columns,
            list(table.primary_key),
        ]
        found = await connection.fetch(
            f"select u.id, {holds} as holds from {bound} join {target_of(table)} t on {_same_row(table, 5)}"
            f"{' for update of t' if acts else ''}",
            *arguments,
        )
        known = {row["id"]: Verdict.PUT_BACK if row["holds"] else Verdict.CHANGED for row in found}
        verdicts = {row["id"]: (known.get(row["id"], Verdict.GONE), "") for row in rows}
        chosen = [row for row in rows if verdicts[row["id"]][0] is Verdict.PUT_BACK]
        if not acts or not chosen:
            return verdicts
        sets = ", ".join(f"{quoted(c)} = {_value('u.image', 4, i, table.columns[c][0])}" for i, c in enumerate(columns))
        written = await connection.fetch(
            f"update {target_of(table)} t set {sets}"
            " from unnest($1::int8[], $2::text[]::jsonb[], $3::text[]::jsonb[]) u(id, r, image)"
            f" where {_same_row(table, 5)} returning u.id",
            [row["id"] for row in chosen],
            [row["row"] for row in chosen],
            [row["image"] for row in chosen],
            columns,
            list(table.primary_key),
        )
        came = {row["id"] for row in written}
        for row in chosen:
            if row["id"] not in came:
                verdicts[row["id"]] = Verdict.REFUSED, "a trigger of the table kept it as it is"
        return verdicts

    async def _note(self, connection: Connection, done: Sequence[asyncpg.Record], portion: Portion) -> None:
        counts: dict[tuple[bytes, str, str], int] = {}
        for row in done:
            for name in undone_names(row["entity"], row["key"], row["key_hash"], row["dependent"], row["event"]):
                counts[name] = counts.get(name, 0) + 1
        if counts:
            columns = [list(column) for column in zip(*counts, strict=True)]
            await connection.execute(
                self._note_sql, *columns, list(counts.values()), portion.at_ms, portion.actor, portion.note
            )


def _value(document: str, names: int, index: int, type: str) -> str:
    """A value of a document, by its place in a bound list of names, as one of that type."""
    return f"({document}->>(${names}::text[])[{index + 1}])::{type}"


def _same_row(table: Table, names: int) -> str:
    """That `t` is the row that `u.r` names; the primary key's columns are the argument of that number."""
    return " and ".join(
        f"t.{quoted(column)} = {_value('u.r', names, i, table.columns[column][0])}"
        for i, column in enumerate(table.primary_key)
    )


def _chosen(choice: Choice, row: str, first: int) -> tuple[str, list[object]]:
    """The condition of a choice, and its arguments, numbered from `first` on."""
    conditions: list[str] = []
    arguments: list[object] = []
    for value, condition in (
        (choice.event, f"{row}.event = ${{}}::text"),
        (choice.since_ms, f"{row}.at_ms >= ${{}}::int8"),
        (sorted(choice.dependents) or None, f"{row}.dependent = any(${{}}::text[])"),
    ):
        if value is not None:
            conditions.append(condition.format(first + len(arguments)))
            arguments.append(value)
    return " and ".join(conditions) or "true", arguments


def _runs(rows: Iterable[asyncpg.Record]) -> list[list[asyncpg.Record]]:
    def kind(row: Any) -> object:
        image, after = json.loads(row["image"]), row["after"]
        return row["dependent"], row["action"], sorted(image), None if after is None else sorted(json.loads(after))

    return runs(rows, kind, lambda row: row["row"], lambda row: row["was"])


def _refused(rows: Sequence[asyncpg.Record], why: str) -> _Verdicts:
    return {row["id"]: (Verdict.REFUSED, why) for row in rows}


def _looked(found: Sequence[asyncpg.Record], verdicts: Mapping[int, tuple[Verdict, str]], before: int | None) -> Looked:
    return Looked(
        tuple(
            Kept(
                row["dependent"],
                row["event"],
                parse_version(row["version"]),
                row["entity"],
                row["key"],
                row["action"],
                row["row"],
                *verdicts.get(row["id"], (Verdict.PUT_BACK, "")),
            )
            for row in found
        ),
        before,
    )
