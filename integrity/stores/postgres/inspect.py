"""What the ledger tells of a key, and what an event would do to the rows: read only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from integrity.core.change import parse_version
from integrity.core.history import (
    ROWS_COUNTED_MAX,
    SAMPLE_ROWS_MAX,
    CameFrom,
    Enforced,
    Impact,
    KeyHistory,
    LeftOut,
    Question,
    Repair,
)
from integrity.core.keys import Key, KeySpec, canonical, key_hash
from integrity.core.undo import Undone
from integrity.stores.postgres.choosing import own_columns
from integrity.stores.postgres.effects import Table, reach, target_of
from integrity.stores.postgres.ledger import Connection, fate_of, record_of, removed_sql
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import NO_MATCH, Codec, Unfit, scalar

_UNKNOWN: Final[Sequence[Any]] = (None,) * 10
"""The columns of a head that is not there."""
_PRIMARY_KEY: Final = """
select a.attname, pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'select') as readable
from pg_catalog.pg_class c join pg_catalog.pg_namespace s on s.oid = c.relnamespace
join pg_catalog.pg_constraint k on k.conrelid = c.oid and k.contype = 'p'
join lateral unnest(k.conkey) with ordinality u(number, n) on true
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = u.number
where s.nspname = $1 and c.relname = $2 order by u.n
"""


async def history(connection: Connection, schema: str, spec: KeySpec, entity: str, key: Key) -> KeyHistory | None:
    """Everything that the ledger in that schema knows of a key. All of it is of one moment."""
    at, hashed, text = quoted(schema), key_hash(entity, key), canonical(key)
    columns = "occurred_ms, rows, enforced_ms, trace_id"
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        head = await connection.fetchrow(
            f"select seen, last, last_alive, fate, moved_to, coalesce(event, last), {columns} from {at}.keys"
            " where key_hash = $1",
            hashed,
        )
        removed = await connection.fetch(removed_sql(schema), hashed)
        if head is None and not removed:
            return None
        older = await connection.fetch(
            f"select fate, moved_to, event, {columns} from {at}.fates where key_hash = $1", hashed
        )
        came = await connection.fetch(
            f"select key, fate, coalesce(event, last), enforced_ms from {at}.keys where entity = $1 and moved_to = $2"
            f" union all select k.key, f.fate, f.event, f.enforced_ms from {at}.fates f"
            f" join {at}.keys k on k.key_hash = f.key_hash where k.entity = $1 and f.moved_to = $2",
            entity,
            text,
        )
        left_out = await connection.fetch(
            f"select dependent, event, fate, reason, dead_letter, at from {at}.exceptions where key_hash = $1"
            " order by at, dependent",
            hashed,
        )
        repairs = await connection.fetch(
            f"select dependent, action, rows, event, at from {at}.repairs where key_hash = $1 order by at, dependent",
            hashed,
        )
        undone = await connection.fetch(
            f"select dependent, event, rows, at_ms, actor, note from {at}.undone where key_hash = $1"
            " order by at_ms, dependent",
            hashed,
        )
    seen, last, alive, *newest = _UNKNOWN if head is None else head
    told = seen or newest[0]
    rows: list[Sequence[Any]] = [*map(tuple, older), newest]
    went = [(f"0:{n}", None, f"{behind}/{text}", *rest) for n, (behind, *rest) in enumerate(removed, 1)]
    versions = [parse_version(each) for each in (told, *(row[0] for row in went)) if each is not None]
    rows += went
    return KeyHistory(
        max(versions, default=None),
        None if last is None else record_of(last, alive),
        tuple(sorted((_enforced(spec, row) for row in rows if row[0] is not None), key=lambda e: e.fate.version)),
        tuple(
            sorted((CameFrom(row[0], parse_version(row[1]), row[2], row[3]) for row in came), key=lambda c: c.version)
        ),
        tuple(
            LeftOut(dependent, event, None if fate is None else parse_version(fate), reason, letter, _ms(left_at))
            for dependent, event, fate, reason, letter, left_at in left_out
        ),
        tuple(
            Repair(dependent, action, count, event, _ms(repaired_at))
            for dependent, action, count, event, repaired_at in repairs
        ),
        tuple(Undone(*row) for row in undone),
    )


async def impact(connection: Connection, table: Table, question: Question) -> Impact:
    """What the events of these keys would do to the rows of one dependent."""
    policy = table.rule.policy
    action = policy.on_delete_action if question.deleted else policy.on_update_action
    counts = [0] * len(question.keys)
    places, columns = _bound(table.codecs, question.keys)
    if not places:
        return Impact(table.rule.id, action, tuple(counts))
    more, arguments = reach(table, len(columns))
    if table.age is not None:
        # What has no time is left alone by every event, and so is what is younger than all of them.
        more.append(f"t.{quoted(table.age.column)} < 'infinity'")
    names = [f"m{i}" for i in range(len(columns))]
    reference = table.rule.dependent.columns
    fits = [f"t.{quoted(column)} = k.{name}" for column, name in zip(reference, names, strict=True)]
    keys = ", ".join(codec.compared(f"${i}") for i, codec in enumerate(table.codecs, 1))
    chosen = (
        f"from {target_of(table)} t, unnest({keys}) with ordinality as k({', '.join(names)}, n)"
        f" where {' and '.join([*fits, *more])} limit ${len(columns) + len(arguments) + 1}::int8"
    )
    bound = (*columns, *arguments)
    for place, count in await connection.fetch(
        f"select n, count(*) from (select k.n {chosen}) c group by n", *bound, ROWS_COUNTED_MAX
    ):
        counts[places[place - 1]] = count
    rows = sum(counts)
    if not rows:
        return Impact(table.rule.id, action, tuple(counts))
    own: list[tuple[int, Key]] = []
    if table.rule.id in question.follow and table.rule.rows is not None:
        spec = table.rule.rows.spec
        read = ", ".join(own_columns(spec, table.own))
        for place, *parts in await connection.fetch(f"select k.n, {read} {chosen}", *bound, question.own_max):
            if None not in parts:
                own.append((places[place - 1], tuple(map(scalar, spec.types, parts))))
    sample = await _sample(connection, table, chosen, bound) if question.sample else ()
    return Impact(table.rule.id, action, tuple(counts), sample, rows >= ROWS_COUNTED_MAX, tuple(own))


def _bound(codecs: Sequence[Codec], keys: Sequence[Key]) -> tuple[list[int], list[list[object]]]:
    """The places of the keys that some row can refer to, and what their parts are compared with, column by column."""
    places: list[int] = []
    columns: list[list[object]] = [[] for _ in codecs]
    for place, key in enumerate(keys):
        try:
            parts = [codec.match(part) for codec, part in zip(codecs, key, strict=True)]
        except Unfit:
            continue
        if NO_MATCH not in parts:
            places.append(place)
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
    return places, columns


async def _sample(
    connection: Connection, table: Table, chosen: str, bound: Sequence[object]
) -> tuple[Mapping[str, object], ...]:
    identifying = [*await _readable_primary_key(connection, table)]
    if not identifying:
        return ()
    named = ", ".join(f"t.{quoted(column)}" for column in identifying)
    found = await connection.fetch(f"select jsonb_build_array({named})::text {chosen}", *bound, SAMPLE_ROWS_MAX)
    return tuple(dict(zip(identifying, json.loads(row[0], parse_float=str), strict=True)) for row in found)


async def _readable_primary_key(connection: Connection, table: Table) -> Sequence[str]:
    columns = await connection.fetch(_PRIMARY_KEY, table.schema, table.name)
    return [row["attname"] for row in columns] if all(row["readable"] for row in columns) else ()


def _enforced(spec: KeySpec, row: Sequence[Any]) -> Enforced:
    fate, moved_to, event, occurred_ms, rows, enforced_ms, trace_id = row
    done: Mapping[str, list[Any]] = {} if rows is None else json.loads(rows)
    return Enforced(
        fate_of(spec, fate, moved_to, event, occurred_ms),
        {dependent: (action, count) for dependent, (action, count) in done.items()},
        enforced_ms,
        trace_id or "",
    )


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
