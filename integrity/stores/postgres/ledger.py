"""The ledger's tables, and every statement that reads and writes them.

One head a key, with its newest fate inline; older fates lie apart, since almost no key has two. Versions are int8[]:
the epoch, then the position; arrays compare as versions do.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from integrity.core.batch import Batch, TopicPartition
from integrity.core.change import EARLIEST, Version
from integrity.core.keys import Key, KeySpec, canonical, key_hash, parse_canonical
from integrity.core.ledger import Done, Fate, Head, HeadUpdate, LastRecord, Pending, done_by_fate
from integrity.core.outcome import Effect
from integrity.core.redrive import LeftOut, MadeUpFor
from integrity.stores.postgres.names import quoted

LEDGER_VERSION: Final = 1

if TYPE_CHECKING:
    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = PoolConnectionProxy

_KEY_TEXT_MAX: Final = 1000
"""A longer key is cut in `keys.key`, which is for people; its hash names it, and `moved_to` is never cut."""

_DDL: Final = """\
begin;
set local lock_timeout = '30s';
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('integrity ledger'));
do $$ begin
    -- Asking first: "if not exists" wants the privilege to create schemas even when this one is there.
    if not exists (select from pg_catalog.pg_namespace where nspname = {schema_text}) then
        create schema {schema};
    end if;
end $$;

create table if not exists {schema}.meta (
    one boolean primary key default true check (one),
    version integer not null,
    migrated_at timestamptz not null default now()
);
comment on table {schema}.meta is 'The version of this ledger: one row.';

create table if not exists {schema}.progress (
    lane text not null,
    topic text not null,
    partition integer not null,
    next_offset bigint not null,
    updated_at timestamptz not null,
    primary key (lane, topic, partition)
);
comment on table {schema}.progress is
    'The next offset to enforce, per consumer group (lane) and partition; written with the effects.';

create table if not exists {schema}.keys (
    key_hash bytea primary key,
    entity text not null,
    key text not null,
    seen bigint[],
    last_topic text,
    last_partition integer,
    last_offset bigint,
    last_alive boolean,
    fate bigint[],
    fate_kind text,
    moved_to text,
    event text,
    occurred_ms bigint,
    rows jsonb,
    enforced_at timestamptz,
    trace_id text,
    older_fates integer not null default 0
) with (fillfactor = 90);
create index if not exists keys_moved_to on {schema}.keys using hash (moved_to) where moved_to is not null;
comment on table {schema}.keys is
    'One row a parent key: the newest version seen of it, and what last happened to it (its newest fate).';
comment on column {schema}.keys.key is 'The key as JSON, cut to 1000 characters: for reading only.';
comment on column {schema}.keys.seen is 'The newest version of the key''s own events: epoch, then position.';
comment on column {schema}.keys.fate is 'The version of the newest deletion or key change; null: there was none.';
comment on column {schema}.keys.moved_to is 'The key that it changed to, as JSON; null: it was deleted.';
comment on column {schema}.keys.rows is 'Per dependent: the action and how many rows it was done to.';
comment on column {schema}.keys.older_fates is 'How many fates of this key are in the table fates.';

create table if not exists {schema}.fates (
    key_hash bytea not null,
    fate bigint[] not null,
    fate_kind text not null,
    moved_to text,
    event text not null,
    occurred_ms bigint not null,
    rows jsonb,
    enforced_at timestamptz not null,
    trace_id text,
    primary key (key_hash, fate)
);
create index if not exists fates_moved_to on {schema}.fates using hash (moved_to) where moved_to is not null;
comment on table {schema}.fates is 'Deletions and key changes of keys that had another one since.';

create table if not exists {schema}.arrivals (
    key_hash bytea not null,
    dependent text not null,
    "row" text not null,
    since bigint[] not null,
    primary key (key_hash, dependent, "row")
);
comment on table {schema}.arrivals is
    'Rows that came to a key by a key change while older events of that key may still be on their way.';
comment on column {schema}.arrivals."row" is 'The primary key of the row, as JSON.';

create table if not exists {schema}.exceptions (
    key_hash bytea not null,
    dependent text not null,
    event text not null,
    fate bigint[],
    dead_letter text not null,
    reason text not null,
    at timestamptz not null,
    primary key (key_hash, dependent, event)
);
comment on table {schema}.exceptions is 'Effects that were left out since a dead letter stands for them.';

insert into {schema}.meta (version) values ({version}) on conflict do nothing;
commit;
"""


def ddl(schema: str) -> str:
    """The statements that make a ledger, safe to repeat."""
    text = "'" + schema.replace("'", "''") + "'"
    return _DDL.format(schema=quoted(schema), schema_text=text, version=LEDGER_VERSION)


TABLES: Final = ("meta", "progress", "keys", "fates", "arrivals", "exceptions")
PRIVILEGES: Final[Mapping[str, tuple[str, ...]]] = {
    "meta": ("SELECT",),
    "progress": ("SELECT", "INSERT", "UPDATE"),
    "keys": ("SELECT", "INSERT", "UPDATE"),
    "fates": ("SELECT", "INSERT"),
    "arrivals": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "exceptions": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
"""What the service needs of each table."""


class Collision(Exception):
    """Another process wrote a row of the ledger at the same time: the transaction starts over."""


@dataclass(slots=True)
class Heads:
    """What was read of the keys of one entity. `known` have a row; `older` counts fates that were not read."""

    heads: dict[Key, Head] = field(default_factory=dict)
    older: dict[Key, int] = field(default_factory=dict)
    hashes: dict[Key, bytes] = field(default_factory=dict)


class Ledger:
    """The statements of one ledger. Each method is one round trip, or none when there is nothing to do."""

    def __init__(self, schema: str, lane: str) -> None:
        self.schema = schema
        self._lane = lane
        self.arrivals_table = quoted(schema, "arrivals")
        at = quoted(schema)
        self.version_sql = f"select version from {at}.meta"
        self._progress_sql = (
            f"select p.topic, p.partition, p.next_offset from {at}.progress p"
            " join unnest($2::text[], $3::int4[]) u(topic, partition)"
            " on p.topic = u.topic and p.partition = u.partition where p.lane = $1"
        )
        self._progress_lock_sql = f"{self._progress_sql} order by p.topic, p.partition for update of p"
        self._progress_insert_sql = (
            f"insert into {at}.progress (lane, topic, partition, next_offset, updated_at)"
            " select $1, u.topic, u.partition, u.next, $5 from unnest($2::text[], $3::int4[], $4::int8[])"
            " u(topic, partition, next) on conflict do nothing"
        )
        self._progress_update_sql = (
            f"update {at}.progress p set next_offset = u.next, updated_at = $5"
            " from unnest($2::text[], $3::int4[], $4::int8[]) u(topic, partition, next)"
            " where p.lane = $1 and p.topic = u.topic and p.partition = u.partition"
        )
        heads = (
            "select key_hash, seen, last_topic, last_partition, last_offset, last_alive, fate, moved_to, event,"
            f" occurred_ms, older_fates from {at}.keys where key_hash = any($1::bytea[]) order by key_hash"
        )
        # An event of a key excludes every other transaction from it. Transactions that only lead rows to the key
        # exclude such an event, but not one another.
        self._heads_own_sql = f"{heads} for update"
        self._heads_reached_sql = f"{heads} for key share"
        self._older_sql = (
            f"select key_hash, fate, moved_to, event, occurred_ms from {at}.fates"
            " where key_hash = any($1::bytea[]) and fate > $2::int8[] order by key_hash, fate"
        )
        self._arrivals_sql = (
            f"select distinct dependent, key_hash, since from {at}.arrivals"
            " where key_hash = any($1::bytea[]) and dependent = any($2::text[])"
        )
        self._arrivals_clear_sql = (
            f"delete from {at}.arrivals a using unnest($1::bytea[], $2::text[]) u(key_hash, seen)"
            " where a.key_hash = u.key_hash and a.dependent = any($3::text[]) and a.since <= u.seen::int8[]"
        )
        fate_columns = "fate, fate_kind, moved_to, event, occurred_ms, rows, enforced_at, trace_id"
        # What many rows share is sent once, and what follows from the rest not at all. Columns go as one text each: the
        # driver takes longer to bind twelve arrays than the server to split and store them. No text here holds a line
        # break (JSON escapes it, names of topics have none); an empty one stands for null.
        given = (
            "(select substring($1::bytea from 16 * (v.n::int4 - 1) + 1 for 16) as key_hash, v.*,"
            " ($11::text[])[v.place] as last_topic, ($12::int4[])[v.place] as last_partition,"
            " ($13::text[])[v.counted] as rows from unnest(string_to_array($2, E'\\n'),"
            " string_to_array($3, E'\\n', ''), $4::text::int4[], $5::text::int8[], $6::text::bool[],"
            " string_to_array($7, E'\\n', ''), string_to_array($8, E'\\n', ''), string_to_array($9, E'\\n', ''),"
            " $10::text::int8[], $16::text::int4[], $17::text::int4[]) with ordinality"
            " v(key, seen, place, last_offset, last_alive, fate, moved_to, event, occurred_ms, counted, older, n))"
        )
        seen = "coalesce(u.seen, u.fate)::int8[]"
        event = (
            "case when u.fate is null then null else coalesce(u.event,"
            " u.last_topic || '/' || u.last_partition || '/' || u.last_offset) end"
        )
        kind = "case when u.fate is null then null when u.moved_to is null then 'deleted' else 'moved' end"
        enforced = "case when u.fate is null then null else $14::timestamptz end"
        trace = "case when u.fate is null then null else $15::text end"
        self._insert_sql = (
            f"insert into {at}.keys (key_hash, entity, key, seen, last_topic, last_partition, last_offset, last_alive,"
            f" {fate_columns}, older_fates)"
            f" select u.key_hash, $18, u.key, {seen}, u.last_topic, u.last_partition, u.last_offset,"
            f" u.last_alive, u.fate::int8[], {kind}, u.moved_to, {event}, u.occurred_ms, u.rows::jsonb, {enforced},"
            f" {trace}, coalesce(u.older, 0) from {given} u on conflict do nothing"
        )
        # One statement, one snapshot: the fate that is replaced is read as it was.
        self._replace_sql = (
            f"with u as (select * from {given} w), replaced as (insert into {at}.fates (key_hash, {fate_columns})"
            " select h.key_hash, h.fate, h.fate_kind, h.moved_to, h.event, h.occurred_ms, h.rows, h.enforced_at,"
            f" h.trace_id from {at}.keys h join u on u.key_hash = h.key_hash where h.fate is not null)"
            f" update {at}.keys h set seen = {seen}, last_topic = u.last_topic,"
            " last_partition = u.last_partition, last_offset = u.last_offset, last_alive = u.last_alive,"
            f" fate = u.fate::int8[], fate_kind = {kind}, moved_to = u.moved_to, event = {event},"
            f" occurred_ms = u.occurred_ms, rows = u.rows::jsonb, enforced_at = {enforced}, trace_id = {trace},"
            " older_fates = h.older_fates + coalesce(u.older, 0) + (h.fate is not null)::int4"
            " from u where h.key_hash = u.key_hash"
        )
        self._touch_sql = (
            f"update {at}.keys h set seen = u.seen::int8[], last_topic = u.last_topic,"
            " last_partition = u.last_partition, last_offset = u.last_offset, last_alive = u.last_alive"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::int4[], $5::int8[], $6::bool[])"
            " u(key_hash, seen, last_topic, last_partition, last_offset, last_alive) where h.key_hash = u.key_hash"
        )
        self._fates_sql = (
            f"insert into {at}.fates (key_hash, {fate_columns}) select u.key_hash, u.fate::int8[],"
            " case when u.moved_to is null then 'deleted' else 'moved' end, u.moved_to, u.event, u.occurred_ms,"
            " u.rows::jsonb, $7, $8"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::text[])"
            " u(key_hash, fate, moved_to, event, occurred_ms, rows)"
        )
        self._exceptions_sql = (
            f"insert into {at}.exceptions (key_hash, dependent, event, fate, dead_letter, reason, at)"
            " select u.key_hash, u.dependent, u.event, u.fate::int8[], u.dead_letter, u.reason, $7"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])"
            " u(key_hash, dependent, event, fate, dead_letter, reason)"
            " on conflict (key_hash, dependent, event) do update"
            " set dead_letter = excluded.dead_letter, reason = excluded.reason, at = excluded.at"
        )
        self._done_sql = (
            f"update {at}.keys k set rows = coalesce(k.rows, '{{}}'::jsonb) || u.rows::jsonb"
            " from unnest($1::bytea[], $2::text[]) u(key_hash, rows) where k.key_hash = u.key_hash"
        )
        self._pending_sql = (
            f"select key_hash, dependent, event, fate, dead_letter, reason from {at}.exceptions"
            " where key_hash = any($1::bytea[])"
        )
        # There are few exceptions: those given up are looked for by name.
        self._exceptions_clear_sql = (
            f"delete from {at}.exceptions e using unnest($1::text[], $2::text[]) u(dependent, event)"
            " where e.dependent = u.dependent and e.event = u.event"
        )

    async def progress(
        self, connection: Connection, partitions: Collection[TopicPartition], *, lock: bool
    ) -> dict[TopicPartition, int]:
        """The next offset of each partition that has a progress."""
        found = await connection.fetch(
            self._progress_lock_sql if lock else self._progress_sql,
            self._lane,
            [partition.topic for partition in partitions],
            [partition.partition for partition in partitions],
        )
        return {TopicPartition(topic, partition): offset for topic, partition, offset in found}

    async def write_progress(
        self,
        connection: Connection,
        offsets: Mapping[TopicPartition, int],
        known: Collection[TopicPartition],
        at_ms: int,
    ) -> None:
        """Raises Collision when another process began with a partition meanwhile."""
        for sql, chosen in (
            (self._progress_update_sql, sorted(p for p in offsets if p in known)),
            (self._progress_insert_sql, sorted(p for p in offsets if p not in known)),
        ):
            if chosen:
                status = await connection.execute(
                    sql,
                    self._lane,
                    [partition.topic for partition in chosen],
                    [partition.partition for partition in chosen],
                    [offsets[partition] for partition in chosen],
                    moment(at_ms),
                )
                _expect(status, len(chosen))

    async def read_heads(
        self, connection: Connection, entity: str, spec: KeySpec, keys: Iterable[Key], into: Heads, *, own: bool
    ) -> None:
        """Lock and read the heads of these keys, in the order of their hashes. Fates other than the newest stay out."""
        key_of = {key_hash(entity, key): key for key in keys}
        if not key_of:
            return
        for hashed, key in key_of.items():
            into.hashes[key] = hashed
        sql = self._heads_own_sql if own else self._heads_reached_sql
        for row in await connection.fetch(sql, sorted(key_of)):
            hashed, seen, topic, partition, offset, alive, fate, moved_to, event, occurred_ms, older = row
            key = key_of[hashed]
            into.heads[key] = Head(
                None if seen is None else version_of(seen),
                () if fate is None else (fate_of(spec, fate, moved_to, event, occurred_ms),),
                None if topic is None else LastRecord(topic, partition, offset, alive),
            )
            if older:
                into.older[key] = older

    async def read_older_fates(
        self, connection: Connection, spec: KeySpec, keys: Collection[Key], after: Version, into: Heads
    ) -> None:
        """Put the fates after that version before the newest one, for keys that have any."""
        key_of = {into.hashes[key]: key for key in keys}
        older: dict[Key, list[Fate]] = {}
        for row in await connection.fetch(self._older_sql, list(key_of), flat(after)):
            hashed, fate, moved_to, event, occurred_ms = row
            older.setdefault(key_of[hashed], []).append(fate_of(spec, fate, moved_to, event, occurred_ms))
        for key, fates in older.items():
            head = into.heads[key]
            into.heads[key] = head._replace(fates=(*fates, *head.fates))

    async def read_arrivals(
        self, connection: Connection, keys: Collection[Key], hashes: Mapping[Key, bytes], dependents: Sequence[str]
    ) -> dict[str, dict[Key, list[Version]]]:
        """Dependent id -> key -> since when rows that count as arrivals are there."""
        key_of = {hashes[key]: key for key in keys}
        found: dict[str, dict[Key, list[Version]]] = {}
        for dependent, hashed, since in await connection.fetch(self._arrivals_sql, list(key_of), dependents):
            found.setdefault(dependent, {}).setdefault(key_of[hashed], []).append(version_of(since))
        return found

    async def clear_arrivals(
        self, connection: Connection, reached: Mapping[bytes, Version], dependents: Sequence[str]
    ) -> None:
        """Forget arrivals at keys whose own events have reached their time."""
        await connection.execute(
            self._arrivals_clear_sql, list(reached), [text(seen) for seen in reached.values()], dependents
        )

    async def write_heads(
        self,
        connection: Connection,
        entity: str,
        updates: Mapping[Key, HeadUpdate],
        read: Heads,
        effects: Sequence[Effect],
        batch: Batch,
    ) -> None:
        """Write what the batch adds to the heads. Raises Collision when a key was unknown and is not any more.

        The changes that `effects` and fates name are counted alike."""
        counted = done_by_fate(effects)
        fresh: list[_HeadRow] = []
        replaced: list[_HeadRow] = []
        touched: list[tuple[bytes, str | None, str | None, int | None, int | None, bool | None]] = []
        older: list[tuple[bytes, Fate]] = []
        places, rows = _Shared[tuple[str, int]](), _Shared[tuple[tuple[str, Done], ...]]()
        for key, update in updates.items():
            hashed, seen, last = read.hashes[key], update.seen, update.last
            if not update.fates:
                topic, partition, offset, alive = last or _NOTHING
                if key in read.heads:
                    touched.append((hashed, _text_or_none(seen), topic, partition, offset, alive))
                    continue
                fate = moved_to = event = occurred_ms = row_place = None
            else:
                newest = update.fates[-1]
                fate, occurred_ms = text(newest.version), newest.occurred_ms
                moved_to = None if newest.to is None else canonical(newest.to)
                # What the last record says already is not sent again.
                is_last = last is not None and newest.event[:3] == last[:3]
                event = None if is_last else newest.event_id
                of_change = counted.get(newest.change)
                row_place = rows.place(tuple(of_change.items())) if of_change else None
                if newest.version == seen:
                    seen = None
                older += [(hashed, fate) for fate in update.fates[:-1]]
            row = (
                hashed,
                canonical(key)[:_KEY_TEXT_MAX],
                _text_or_none(seen),
                None if last is None else places.place((last.topic, last.partition)),
                None if last is None else last.offset,
                None if last is None else last.alive,
                fate,
                moved_to,
                event,
                occurred_ms,
                row_place,
                len(update.fates) - 1 if len(update.fates) > 1 else None,
            )
            (replaced if key in read.heads else fresh).append(row)
        at, trace_id = moment(batch.at_ms), batch.trace_id or None
        shared = (
            [topic for topic, _ in places.values],
            [partition for _, partition in places.values],
            [_json(dict(counts)) for counts in rows.values],
            at,
            trace_id,
        )
        if fresh:
            fresh.sort(key=itemgetter(0))
            columns = _packed(fresh)
            status = await connection.execute(self._insert_sql, *columns[:10], *shared, *columns[10:], entity)
            _expect(status, len(fresh))
        if replaced:
            columns = _packed(replaced)
            await connection.execute(self._replace_sql, *columns[:10], *shared, *columns[10:])
        if touched:
            await connection.execute(self._touch_sql, *_columns(touched))
        if older:
            await connection.execute(
                self._fates_sql,
                [hashed for hashed, _ in older],
                [text(fate.version) for _, fate in older],
                [None if fate.to is None else canonical(fate.to) for _, fate in older],
                [fate.event_id for _, fate in older],
                [fate.occurred_ms for _, fate in older],
                [_json(counted[fate.change]) if fate.change in counted else None for _, fate in older],
                at,
                trace_id,
            )

    async def read_pending(
        self, connection: Connection, keys: Collection[Key], hashes: Mapping[Key, bytes]
    ) -> dict[Key, list[Pending]]:
        """The effects that were left out of these keys. Whoever writes them holds the lock of the key's head."""
        key_of = {hashes[key]: key for key in keys}
        found: dict[Key, list[Pending]] = {}
        for hashed, dependent, event, fate, letter, reason in await connection.fetch(self._pending_sql, list(key_of)):
            version = EARLIEST if fate is None else version_of(fate)
            found.setdefault(key_of[hashed], []).append(Pending(dependent, event, version, letter, reason))
        return found

    async def write_exceptions(
        self, connection: Connection, found: Sequence[LeftOut], hashes: Mapping[Key, bytes], at_ms: int
    ) -> None:
        """Record the effects that dead letters stand for."""
        if found:
            await connection.execute(
                self._exceptions_sql,
                [hashes[each.change.key] for each in found],
                [each.dependent for each in found],
                [each.change.origin.event_id for each in found],
                [text(each.version) for each in found],
                [each.mark.id for each in found],
                [each.mark.reason.value for each in found],
                moment(at_ms),
            )

    async def add_done(self, connection: Connection, found: Sequence[MadeUpFor], hashes: Mapping[Key, bytes]) -> None:
        """Add what redrives did to the newest fates of their keys."""
        if found:
            await connection.execute(
                self._done_sql, [hashes[each.key] for each in found], [_json(each.done) for each in found]
            )

    async def clear_exceptions(self, connection: Connection, over: Collection[tuple[str, str]]) -> None:
        """Forget exceptions (dependent, event): they were made up for, or given up."""
        if over:
            await connection.execute(
                self._exceptions_clear_sql, [dependent for dependent, _ in over], [event for _, event in over]
            )


_HeadRow = tuple[object, ...]
_NOTHING = (None, None, None, None)
_Value = TypeVar("_Value", bound=Hashable)


class _Shared(Generic[_Value]):
    """Values that many rows share, and the place of each, counted from 1 as SQL does."""

    def __init__(self) -> None:
        self._places: dict[_Value, int] = {}

    @property
    def values(self) -> Iterable[_Value]:
        return self._places

    def place(self, value: _Value) -> int:
        return self._places.setdefault(value, len(self._places) + 1)


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _packed(rows: Sequence[_HeadRow]) -> list[object]:
    """The columns of rows of the heads: hashes in a row, texts in lines, numbers as PostgreSQL writes arrays."""
    hashes, *columns = zip(*rows, strict=True)
    packed: list[object] = [b"".join(hashes)]
    for position, column in enumerate(columns):
        if position in _TEXT_COLUMNS:
            packed.append("\n".join([value or "" for value in column]))
        else:
            packed.append(f"{{{','.join(map(str, column)).replace('None', 'NULL')}}}")
    return packed


_TEXT_COLUMNS: Final = frozenset({0, 1, 5, 6, 7})
"""Which columns of a row of the heads, after its hash, are texts: key, seen, fate, moved_to, event."""


def _json(rows: Mapping[str, Done]) -> str:
    return msgspec.json.encode(rows).decode()


def _text_or_none(version: Version | None) -> str | None:
    return None if version is None else text(version)


def _expect(status: str, count: int) -> None:
    if int(status.rpartition(" ")[2]) != count:
        raise Collision


def fate_of(spec: KeySpec, version: Sequence[int], moved_to: str | None, event: str, occurred_ms: int) -> Fate:
    """A fate from its columns."""
    to = None if moved_to is None else parse_canonical(moved_to, spec)
    return Fate(version_of(version), to, event, occurred_ms)


def version_of(parts: Sequence[int]) -> Version:
    """The version that `flat` flattened."""
    return Version(parts[0], tuple(parts[1:]))


def flat(version: Version) -> list[int]:
    """The version as an array compares: the epoch, then the position."""
    return [version.epoch, *version.position]


def text(version: Version) -> str:
    """The same as PostgreSQL writes arrays: arrays of arrays of several lengths can't be bound."""
    if len(version.position) == 1:
        return f"{{{version.epoch},{version.position[0]}}}"
    return f"{{{','.join(map(str, flat(version)))}}}"


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
