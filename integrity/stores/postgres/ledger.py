"""The ledger's tables, and every statement that reads and writes them.

One head a key, with its newest fate inline; older fates lie apart, since almost no key has two. Rows that went with
their parents, and to whose keys nothing else ever happens, have no heads: they are many. Versions are text, as in the
audit (`0:25165824`); where rows are compared by them, int8[]: the epoch, then the position.

Heads are written for nearly every event, so what they cost is what a batch costs: new ones come by COPY, in columns
that neither side has to work on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from integrity.core.batch import Batch, NoteWrite, Share, TopicPartition
from integrity.core.change import EARLIEST, Origin, Version, parse_version
from integrity.core.copies import Known
from integrity.core.derive import Happened, Went
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import HASH_BYTES, Key, KeySpec, canonical, key_hasher, parse_canonical
from integrity.core.ledger import Done, Fate, Head, HeadUpdate, LastRecord, Pending
from integrity.core.outbox import Outgoing
from integrity.core.outcome import Effect, Outcome
from integrity.core.parts import Parts
from integrity.core.redrive import LeftOut, MadeUpFor
from integrity.core.sweep import Repaired
from integrity.core.truncate import KnownKeys
from integrity.ports import Waiting
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
    parts json,
    primary key (lane, topic, partition)
);
comment on table {schema}.progress is
    'The next offset to enforce, per consumer group (lane) and partition; written with the effects.';
comment on column {schema}.progress.parts is
    'Of an event that is carried out in parts: per dependent, how many rows these have acted on so far.';

create table if not exists {schema}.keys (
    key_hash bytea primary key,
    entity text not null,
    key text not null,
    seen text,
    last text,
    last_alive boolean,
    fate text,
    moved_to text,
    event text,
    occurred_ms bigint,
    rows json,
    enforced_ms bigint,
    trace_id text,
    older_fates integer not null
) with (fillfactor = 90);
create index if not exists keys_enforced_ms on {schema}.keys (enforced_ms) where fate is not null;
create index if not exists keys_moved_to on {schema}.keys using hash (moved_to) where moved_to is not null;
comment on table {schema}.keys is
    'One row a parent key: the newest version seen of it, and what last happened to it (its newest fate).';
comment on column {schema}.keys.key is 'The key as JSON, cut to 1000 characters: for reading only.';
comment on column {schema}.keys.seen is
    'The newest version of the key''s own events, epoch:position; null: that of its fate, if it has one.';
comment on column {schema}.keys.last is 'The last own record of the key: topic/partition/offset.';
comment on column {schema}.keys.last_alive is 'Whether that record said that the key is alive.';
comment on column {schema}.keys.fate is 'The version of the newest deletion or key change; null: there was none.';
comment on column {schema}.keys.moved_to is 'The key that it changed to, as JSON; null: it was deleted.';
comment on column {schema}.keys.event is 'The record that told of the fate, topic/partition/offset; null: the last.';
comment on column {schema}.keys.occurred_ms is 'When the source committed the fate, in milliseconds since 1970.';
comment on column {schema}.keys.rows is 'Per dependent: the action and how many rows it was done to.';
comment on column {schema}.keys.enforced_ms is 'When the fate was enforced, in milliseconds since 1970.';
comment on column {schema}.keys.older_fates is 'How many fates of this key are in the table fates.';

create table if not exists {schema}.fates (
    key_hash bytea not null,
    fate text not null,
    moved_to text,
    event text not null,
    occurred_ms bigint not null,
    rows json,
    enforced_ms bigint not null,
    trace_id text,
    primary key (key_hash, fate)
);
create index if not exists fates_moved_to on {schema}.fates using hash (moved_to) where moved_to is not null;
comment on table {schema}.fates is 'Deletions and key changes of keys that had another one since.';

create table if not exists {schema}.removals (
    id bigint generated always as identity primary key,
    entity text not null,
    behind text[] not null,
    occurred_ms bigint[] not null,
    done text[] not null,
    enforced_ms bigint not null,
    trace_id text
);
comment on table {schema}.removals is
    'What rows of the table removed have in common: rows that went with their parents, some thousands at a time.';
comment on column {schema}.removals.behind is 'The events and dependents by which they went: names, without the key.';
comment on column {schema}.removals.occurred_ms is 'When the source committed each of these events.';
comment on column {schema}.removals.done is
    'What that did to the rows below: objects of JSON, per dependent the action and how many rows.';
create table if not exists {schema}.removed (
    key_hash bytea not null,
    removal bigint not null,
    behind integer not null,
    done integer not null
);
create index if not exists removed_key_hash on {schema}.removed (key_hash);
comment on table {schema}.removed is
    'One row a row that others depended on, without events of its own, that went with its parent: its key by its hash.';
comment on column {schema}.removed.removal is 'The row of removals; behind and done are places in its arrays.';

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
    fate text,
    dead_letter text not null,
    reason text not null,
    at timestamptz not null,
    primary key (key_hash, dependent, event)
);
comment on table {schema}.exceptions is 'Effects that were left out since a dead letter stands for them.';

create table if not exists {schema}.sweeps (
    lane text not null,
    age_ms bigint not null,
    enforced_ms bigint not null,
    key_hash bytea not null,
    primary key (lane, age_ms)
);
comment on table {schema}.sweeps is
    'Per consumer group (lane) and age of a sweep: the last key that was looked at for rows written late.';

create table if not exists {schema}.repairs (
    key_hash bytea not null,
    dependent text not null,
    at timestamptz not null,
    action text not null,
    rows bigint not null,
    event text not null,
    primary key (key_hash, dependent, at)
);
comment on table {schema}.repairs is
    'Rows that were written late and went the way of a fate that had been enforced before.';

create table if not exists {schema}.truncates (
    lane text not null,
    id text not null,
    note bytea not null,
    primary key (lane, id)
);
comment on table {schema}.truncates is
    'Truncates that are to be carried out, per consumer group (lane): the event and its record, in MessagePack.';

create table if not exists {schema}.undo (
    id bigint generated always as identity primary key,
    event text not null,
    version text not null,
    entity text not null,
    key text not null,
    dependent text not null,
    key_hash bytea not null,
    action text not null,
    "row" jsonb not null,
    was jsonb not null,
    image jsonb not null,
    after jsonb,
    at_ms bigint not null,
    expires_ms bigint not null
);
create index if not exists undo_event on {schema}.undo (event, id);
create index if not exists undo_dependent on {schema}.undo (dependent, id);
create index if not exists undo_was on {schema}.undo using hash (was);
create index if not exists undo_expires_ms on {schema}.undo (expires_ms);
comment on table {schema}.undo is
    'What rows were before an event changed them, where the rule says undo: one record a row and event.';
comment on column {schema}.undo.event is 'The record behind it, topic/partition/offset; version, entity and key too.';
comment on column {schema}.undo.key_hash is 'The key that the row referred to.';
comment on column {schema}.undo."row" is 'The primary key of the row after the event, each value as text.';
comment on column {schema}.undo.was is 'The primary key of the row before the event.';
comment on column {schema}.undo.image is 'Columns before the event: all of a row that went, else those that were set.';
comment on column {schema}.undo.after is 'What they were set to; null: the row went.';
comment on column {schema}.undo.expires_ms is 'Until when it is kept, in milliseconds since 1970.';

create table if not exists {schema}.undone (
    key_hash bytea not null,
    dependent text not null,
    event text not null,
    at_ms bigint not null,
    rows bigint not null,
    actor text not null,
    note text not null,
    primary key (key_hash, dependent, event, at_ms)
);
comment on table {schema}.undone is
    'What was put back by hand, under the key of the event and the key that the rows refer to.';

create table if not exists {schema}.outbox (
    id bigint generated always as identity primary key,
    entity text not null,
    version bigint not null,
    key bytea not null,
    value bytea not null,
    traceparent text
);
create index if not exists outbox_version on {schema}.outbox (version, id);
comment on table {schema}.outbox is
    'Derived events that wait to be published: what happened to rows that others depend on in another store.';

create table if not exists {schema}.copied (
    key_hash bytea primary key,
    version text not null,
    alive boolean not null,
    missed text not null,
    last text,
    last_alive boolean,
    copy text not null,
    key text not null
) with (fillfactor = 90);
comment on table {schema}.copied is 'One row a copy and parent key: the newest version that was done, deletions too.';
comment on column {schema}.copied.key_hash is 'That of the copy and the key.';
comment on column {schema}.copied.copy is 'The copy, and eight digits that change when its rule does: for people only.';
comment on column {schema}.copied.key is 'The key as JSON, cut to 1000 characters: for reading only.';
comment on column {schema}.copied.missed is 'Versions of later events that dead letters stand for.';
comment on column {schema}.copied.last is 'The last own record of the key: topic/partition/offset.';
comment on column {schema}.copied.last_alive is 'Whether that record said that the key is alive.';

insert into {schema}.meta (version) values ({version}) on conflict do nothing;
commit;
"""


def ddl(schema: str) -> str:
    """The statements that make a ledger, safe to repeat."""
    text = "'" + schema.replace("'", "''") + "'"
    return _DDL.format(schema=quoted(schema), schema_text=text, version=LEDGER_VERSION)


TABLES: Final = (
    "meta",
    "progress",
    "keys",
    "fates",
    "removals",
    "removed",
    "arrivals",
    "exceptions",
    "outbox",
    "sweeps",
    "repairs",
    "copied",
    "undo",
    "undone",
    "truncates",
)
PRIVILEGES: Final[Mapping[str, tuple[str, ...]]] = {
    "meta": ("SELECT",),
    "progress": ("SELECT", "INSERT", "UPDATE"),
    "keys": ("SELECT", "INSERT", "UPDATE"),
    "fates": ("SELECT", "INSERT"),
    "removals": ("SELECT", "INSERT"),
    "removed": ("SELECT", "INSERT"),
    "arrivals": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "outbox": ("SELECT", "INSERT", "DELETE"),
    "exceptions": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "sweeps": ("SELECT", "INSERT", "UPDATE"),
    "repairs": ("SELECT", "INSERT", "UPDATE"),
    "copied": ("SELECT", "INSERT", "UPDATE"),
    "undo": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "undone": ("SELECT", "INSERT", "UPDATE"),
    "truncates": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
"""What the service needs of each table."""


class Collision(Exception):
    """Another process wrote a row of the ledger at the same time: the transaction starts over."""


class Progress(NamedTuple):
    """The next offset of a partition, and what parts of an event have done already."""

    next: int
    parts: Parts = MappingProxyType({})


def offsets(found: Mapping[TopicPartition, Progress]) -> dict[TopicPartition, int]:
    """The next offset of each partition."""
    return {partition: progress.next for partition, progress in found.items()}


@dataclass(slots=True)
class Heads:
    """What was read of the keys of one entity. `older` counts fates that were not read; `hashes`, `ordered` (the same,
    one read after the other, each in order) and `written` are of every key that was asked for."""

    heads: dict[Key, Head] = field(default_factory=dict)
    older: dict[Key, int] = field(default_factory=dict)
    hashes: dict[Key, bytes] = field(default_factory=dict)
    ordered: list[bytes] = field(default_factory=list)
    written: dict[Key, str] = field(default_factory=dict)


class Ledger:
    """The statements of one ledger. Each method is one round trip, or none when there is nothing to do."""

    def __init__(self, schema: str, lane: str) -> None:
        self.schema = schema
        self._lane = lane
        self.arrivals_table = quoted(schema, "arrivals")
        self.undo_table = quoted(schema, "undo")
        at = quoted(schema)
        self.version_sql = f"select version from {at}.meta"
        self._progress_sql = (
            f"select p.topic, p.partition, p.next_offset, p.parts from {at}.progress p"
            " join unnest($2::text[], $3::int4[]) u(topic, partition)"
            " on p.topic = u.topic and p.partition = u.partition where p.lane = $1"
        )
        self._progress_lock_sql = f"{self._progress_sql} order by p.topic, p.partition for update of p"
        self._progress_insert_sql = (
            f"insert into {at}.progress (lane, topic, partition, next_offset, updated_at, parts)"
            " select $1, u.topic, u.partition, u.next, $5, u.parts::json"
            " from unnest($2::text[], $3::int4[], $4::int8[], $6::text[])"
            " u(topic, partition, next, parts) on conflict do nothing"
        )
        self._progress_update_sql = (
            f"update {at}.progress p set next_offset = u.next, updated_at = $5, parts = u.parts::json"
            " from unnest($2::text[], $3::int4[], $4::int8[], $6::text[]) u(topic, partition, next, parts)"
            " where p.lane = $1 and p.topic = u.topic and p.partition = u.partition"
        )
        self._note_sql = (
            f"insert into {at}.truncates as t (lane, id, note) values ($1, $2, $3)"
            " on conflict (lane, id) do update set note = excluded.note where not $4"
        )
        self._note_delete_sql = f"delete from {at}.truncates where lane = $1 and id = $2"
        self._notes_sql = f"select note from {at}.truncates where lane = $1"
        self.known_keys_sql = (
            "select key_hash, key, seen, last, last_alive, fate, moved_to, event, occurred_ms"
            f" from {at}.keys where entity = $1 and key_hash > $2 order by key_hash limit $3"
        )
        # An event of a key excludes every other transaction from it. Transactions that only lead rows to the key
        # exclude such an event, but not one another.
        # Hashes come in one piece: an array costs the driver four times as much, element by element.
        in_one = (
            f"array(select substring($1::bytea from n * {HASH_BYTES} + 1 for {HASH_BYTES})"
            " from pg_catalog.generate_series(0, $2::int4 - 1) n)"
        )
        heads = (
            "select key_hash, seen, last, last_alive, fate, moved_to, event, occurred_ms, older_fates"
            f" from {at}.keys where key_hash = any({in_one}) order by key_hash"
        )
        self._heads_own_sql = f"{heads} for update"
        self._heads_reached_sql = f"{heads} for key share"
        # Row by row in the order of the hashes: two transactions that lead rows to one another's keys would wait for
        # each other if each locked its own keys first.
        columns = "k.key_hash, k.seen, k.last, k.last_alive, k.fate, k.moved_to, k.event, k.occurred_ms, k.older_fates"
        one = f"select {columns} from {at}.keys k where k.key_hash = u.key_hash"
        self._heads_both_sql = (
            "select l.* from (select * from unnest($1::bytea[], $2::bool[]) u(key_hash, own) order by key_hash) u"
            f" cross join lateral (select * from ({one} and u.own for update) a"
            f" union all select * from ({one} and not u.own for key share) b) l"
        )
        self._older_sql = (
            f"select key_hash, fate, moved_to, event, occurred_ms from {at}.fates"
            f" where key_hash = any($1::bytea[]) and {_array_sql('fate')} > $2::int8[]"
            f" order by key_hash, {_array_sql('fate')}"
        )
        self._arrivals_sql = (
            f"select distinct dependent, key_hash, since from {at}.arrivals"
            " where key_hash = any($1::bytea[]) and dependent = any($2::text[])"
        )
        self._arrivals_clear_sql = (
            f"delete from {at}.arrivals a using unnest($1::bytea[], $2::text[]) u(key_hash, seen)"
            " where a.key_hash = u.key_hash and a.dependent = any($3::text[]) and a.since <= u.seen::int8[]"
        )
        self._outbox_sql = (
            f"insert into {at}.outbox (entity, version, key, value, traceparent)"
            " select * from unnest($1::text[], $2::int8[], $3::bytea[], $4::bytea[], $5::text[])"
        )
        self._waiting_sql = (
            f"select id, entity, version, key, value, traceparent from {at}.outbox order by version, id limit $1::int8"
        )
        self._published_sql = f"delete from {at}.outbox where id = any($1::int8[])"
        fate_columns = "fate, moved_to, event, occurred_ms, rows, enforced_ms, trace_id"
        # One statement, one snapshot: the fate that is replaced is read as it was.
        self._replace_sql = (
            "with u as (select * from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bool[],"
            " $7::text[], $8::text[], $9::text[], $10::int8[], $11::text[], $12::int8[], $13::text[], $14::int4[])"
            f" u({', '.join(_HEAD_COLUMNS)})),"
            f" replaced as (insert into {at}.fates (key_hash, {fate_columns})"
            " select h.key_hash, h.fate, h.moved_to, coalesce(h.event, h.last), h.occurred_ms, h.rows, h.enforced_ms,"
            f" h.trace_id from {at}.keys h join u on u.key_hash = h.key_hash where h.fate is not null)"
            f" update {at}.keys h set seen = u.seen, last = u.last, last_alive = u.last_alive, fate = u.fate,"
            " moved_to = u.moved_to, event = u.event, occurred_ms = u.occurred_ms, rows = u.rows::json,"
            " enforced_ms = u.enforced_ms, trace_id = u.trace_id,"
            " older_fates = h.older_fates + u.older_fates + (h.fate is not null)::int4"
            " from u where h.key_hash = u.key_hash"
        )
        # What the last record said of the fate is kept when another becomes the last.
        self._touch_sql = (
            f"update {at}.keys h set seen = u.seen, last = u.last, last_alive = u.last_alive,"
            " event = case when h.fate is null then null else coalesce(h.event, h.last) end"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::bool[])"
            " u(key_hash, seen, last, last_alive) where h.key_hash = u.key_hash"
        )
        self._fates_sql = (
            f"insert into {at}.fates (key_hash, {fate_columns}) select u.key_hash, u.fate, u.moved_to, u.event,"
            " u.occurred_ms, u.rows::json, $7, $8"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::int8[], $6::text[])"
            " u(key_hash, fate, moved_to, event, occurred_ms, rows)"
        )
        self._went_sql = (
            f"select d.key_hash, r.behind[d.behind], r.occurred_ms[d.behind] from {at}.removed d"
            f" join {at}.removals r on r.id = d.removal where d.key_hash = any($1::bytea[]) order by d.removal"
        )
        self._removed_sql = (
            f"with r as (insert into {at}.removals (entity, behind, occurred_ms, done, enforced_ms, trace_id)"
            " values ($4, $5, $6, $7, $8, $9) returning id)"
            f" insert into {at}.removed (key_hash, removal, behind, done)"
            f" select substring($1::bytea from (u.n::int4 - 1) * {HASH_BYTES} + 1 for {HASH_BYTES}), r.id, behind, done"
            " from r, unnest($2::text::int4[], $3::text::int4[]) with ordinality u(behind, done, n) order by 1"
        )
        self._exceptions_sql = (
            f"insert into {at}.exceptions (key_hash, dependent, event, fate, dead_letter, reason, at)"
            " select u.key_hash, u.dependent, u.event, u.fate, u.dead_letter, u.reason, $7"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])"
            " u(key_hash, dependent, event, fate, dead_letter, reason)"
            " on conflict (key_hash, dependent, event) do update"
            " set dead_letter = excluded.dead_letter, reason = excluded.reason, at = excluded.at"
        )
        self._repairs_sql = (
            f"insert into {at}.repairs (key_hash, dependent, at, action, rows, event)"
            " select u.key_hash, u.dependent, $6, u.action, u.rows, u.event"
            " from unnest($1::bytea[], $2::text[], $3::text[], $4::int8[], $5::text[])"
            " u(key_hash, dependent, action, rows, event)"
            " on conflict (key_hash, dependent, at) do update set rows = repairs.rows + excluded.rows"
        )
        self._done_sql = (
            f"update {at}.keys k set rows = (coalesce(k.rows::jsonb, '{{}}') || u.rows::jsonb)::json"
            " from unnest($1::bytea[], $2::text[]) u(key_hash, rows) where k.key_hash = u.key_hash"
        )
        self._pending_sql = (
            f"select key_hash, dependent, event, fate, dead_letter, reason from {at}.exceptions"
            " where key_hash = any($1::bytea[])"
        )
        self._known_sql = (
            f"select key_hash, version, alive, missed, last, last_alive from {at}.copied"
            " where key_hash = any($1::bytea[])"
        )
        self._copied_keys_sql = (
            f"select key_hash, key, version, last, last_alive from {at}.copied"
            " where copy = $1 and alive and key_hash > $2 order by key_hash limit $3"
        )
        self._known_update_sql = (
            f"update {at}.copied c set version = u.version, alive = u.alive, missed = u.missed, last = u.last,"
            " last_alive = u.last_alive from unnest($1::bytea[], $2::text[], $3::bool[], $4::text[], $5::text[],"
            " $6::bool[], $7::text[]) u(key_hash, version, alive, missed, last, last_alive, was)"
            " where c.key_hash = u.key_hash and c.version = u.was"
        )
        # There are few exceptions: those given up are looked for by name.
        self._exceptions_clear_sql = (
            f"delete from {at}.exceptions e using unnest($1::text[], $2::text[]) u(dependent, event)"
            " where e.dependent = u.dependent and e.event = u.event"
        )

    async def known(self, connection: Connection, hashes: Mapping[bytes, Key]) -> dict[Key, Known]:
        """What is known of these keys of a copy, by their hashes for that copy."""
        found = await connection.fetch(self._known_sql, list(hashes))
        known: dict[Key, Known] = {}
        for hashed, version, alive, missed, last, last_alive in found:
            at = None if last is None else record_of(last, last_alive)
            left_out = tuple(parse_version(each) for each in missed.split())
            known[hashes[hashed]] = Known(parse_version(version), alive, at, left_out)
        return known

    async def copied_keys(self, connection: Connection, spec: KeySpec, after: bytes, keys_max: int) -> KnownKeys:
        """What is known of the next living keys of the lane's copy, by their hashes."""
        rows = await connection.fetch(self._copied_keys_sql, self._lane, after, keys_max)
        hash_of = key_hasher(self._lane)
        found: list[tuple[Key, Head]] = []
        for hashed, text, version, last, last_alive in rows:
            key = key_of_ledger(text, spec)
            if key is not None and hash_of(canonical(key)) == hashed:
                at = None if last is None else record_of(last, last_alive)
                found.append((key, Known(parse_version(version), True, at).head))
        return KnownKeys(found, rows[-1][0] if len(rows) == keys_max else None, len(rows) - len(found))

    async def write_known(
        self,
        connection: Connection,
        hashes: Mapping[bytes, Key],
        before: Mapping[Key, Known],
        known: Mapping[Key, Known],
    ) -> None:
        """Write what is known of keys of the lane's copy. Raises Collision when it is not what it was `before`: nothing
        was locked when that was read."""
        fresh: list[_Row] = []
        changed: list[_Row] = []
        for hashed in sorted(hashes):
            key = hashes[hashed]
            if key in known:
                version, alive, at, missed = known[key]
                last = None if at is None else f"{at.topic}/{at.partition}/{at.offset}"
                left_out = " ".join([each.text for each in missed])
                row = hashed, version.text, alive, left_out, last, None if at is None else at.alive
                if key in before:
                    changed.append((*row, before[key].version.text))
                else:
                    fresh.append((*row, self._lane, canonical(key)[:_KEY_TEXT_MAX]))
        if changed:
            _expect(await connection.execute(self._known_update_sql, *_columns(changed)), len(changed))
        if fresh:
            columns = ("key_hash", "version", "alive", "missed", "last", "last_alive", "copy", "key")
            try:
                await connection.copy_records_to_table(
                    "copied", schema_name=self.schema, columns=columns, records=fresh
                )
            except asyncpg.UniqueViolationError as exc:
                raise Collision from exc

    async def write_outbox(self, connection: Connection, records: Sequence[Outgoing]) -> None:
        """Keep derived events until they are published."""
        if records:
            await connection.execute(self._outbox_sql, *_columns(records))

    async def waiting(self, connection: Connection, records_max: int) -> list[Waiting]:
        """What is to be published, lower versions first."""
        found = await connection.fetch(self._waiting_sql, records_max)
        return [Waiting(row[0], Outgoing(*row[1:])) for row in found]

    async def clear_outbox(self, connection: Connection, ids: Sequence[object]) -> None:
        """Forget what is published."""
        await connection.execute(self._published_sql, list(ids))

    async def progress(
        self, connection: Connection, partitions: Collection[TopicPartition], *, lock: bool
    ) -> dict[TopicPartition, Progress]:
        """How far each partition is that has a progress."""
        found = await connection.fetch(
            self._progress_lock_sql if lock else self._progress_sql,
            self._lane,
            [partition.topic for partition in partitions],
            [partition.partition for partition in partitions],
        )
        return {
            TopicPartition(topic, partition): Progress(offset, {} if parts is None else msgspec.json.decode(parts))
            for topic, partition, offset, parts in found
        }

    async def write_progress(
        self,
        connection: Connection,
        reached: Mapping[TopicPartition, Progress],
        known: Collection[TopicPartition],
        at_ms: int,
    ) -> None:
        """Raises Collision when another process began with a partition meanwhile."""
        for sql, chosen in (
            (self._progress_update_sql, sorted(p for p in reached if p in known)),
            (self._progress_insert_sql, sorted(p for p in reached if p not in known)),
        ):
            if chosen:
                status = await connection.execute(
                    sql,
                    self._lane,
                    [partition.topic for partition in chosen],
                    [partition.partition for partition in chosen],
                    [reached[partition].next for partition in chosen],
                    moment(at_ms),
                    [msgspec.json.encode(p).decode() if (p := reached[each].parts) else None for each in chosen],
                )
                _expect(status, len(chosen))

    async def read_heads(
        self,
        connection: Connection,
        entity: str,
        spec: KeySpec,
        into: Heads,
        *,
        own: Collection[Key] = (),
        reached: Collection[Key] = (),
    ) -> None:
        """Lock and read the heads of keys, in the order of their hashes: `own` are those that events are about, rows
        may come to the others. Fates other than the newest stay out."""
        if not own and not reached:
            return
        key_of: dict[bytes, Key] = {}
        hash_of, written_as = key_hasher(entity), into.written
        for key in (*own, *reached):
            written = written_as[key] = canonical(key)
            key_of[hash_of(written)] = key
        hashes = sorted(key_of)
        into.ordered += hashes
        # In the order in which keys were given, which is how they lie in memory.
        into.hashes.update({key: hashed for hashed, key in key_of.items()})
        if own and reached:
            of_events = set(own)
            is_own = [key_of[hashed] in of_events for hashed in hashes]
            found = await connection.fetch(self._heads_both_sql, hashes, is_own)
        else:
            sql = self._heads_own_sql if own else self._heads_reached_sql
            found = await connection.fetch(sql, b"".join(hashes), len(hashes))
        for row in found:
            hashed, seen, last, alive, fate, moved_to, event, occurred_ms, older = row
            key = key_of[hashed]
            into.heads[key] = Head(
                parse_version(told) if (told := seen or fate) else None,
                () if fate is None else (fate_of(spec, fate, moved_to, event or last, occurred_ms),),
                None if last is None else record_of(last, alive),
            )
            if older:
                into.older[key] = older

    async def read_older_fates(
        self, connection: Connection, spec: KeySpec, keys: Collection[Key], after: Version, into: Heads
    ) -> None:
        """Put the fates after that version before the newest one, for keys that have any."""
        key_of = {into.hashes[key]: key for key in keys}
        older: dict[Key, list[Fate]] = {}
        for row in await connection.fetch(self._older_sql, list(key_of), array(after)):
            hashed, fate, moved_to, event, occurred_ms = row
            older.setdefault(key_of[hashed], []).append(fate_of(spec, fate, moved_to, event, occurred_ms))
        for key, fates in older.items():
            head = into.heads[key]
            into.heads[key] = head._replace(fates=(*fates, *head.fates))

    async def read_removed(self, connection: Connection, keys: Collection[Key], into: Heads) -> None:
        """Put what `write_went` has recorded of these keys, which have been asked for, in place of heads."""
        key_of = {into.hashes[key]: key for key in keys}
        fates: dict[Key, list[Fate]] = {}
        for hashed, behind, occurred_ms in await connection.fetch(self._went_sql, list(key_of)):
            key = key_of[hashed]
            of_key = fates.setdefault(key, [])
            version = Version(0, (len(of_key) + 1,))
            of_key.append(Fate(version, None, f"{behind}/{into.written[key]}", occurred_ms))
        into.heads |= {key: Head(of_key[-1].version, tuple(of_key), None) for key, of_key in fates.items()}

    async def read_arrivals(
        self, connection: Connection, keys: Collection[Key], hashes: Mapping[Key, bytes], dependents: Sequence[str]
    ) -> dict[str, dict[Key, list[Version]]]:
        """Dependent id -> key -> since when rows that count as arrivals are there."""
        key_of = {hashes[key]: key for key in keys}
        found: dict[str, dict[Key, list[Version]]] = {}
        for dependent, hashed, since in await connection.fetch(self._arrivals_sql, list(key_of), dependents):
            found.setdefault(dependent, {}).setdefault(key_of[hashed], []).append(Version(since[0], tuple(since[1:])))
        return found

    async def clear_arrivals(
        self, connection: Connection, reached: Mapping[bytes, Version], dependents: Sequence[str]
    ) -> None:
        """Forget arrivals at keys whose own events have reached their time."""
        await connection.execute(
            self._arrivals_clear_sql, list(reached), [array_text(seen) for seen in reached.values()], dependents
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
        done = _rows_by_change(effects)
        at_ms, trace_id = batch.at_ms, batch.trace_id or None
        hashes, heads, texts = read.hashes, read.heads, read.written
        plain: dict[bytes, _Row] = {}
        fresh: list[_Row] = []
        replaced: list[_Row] = []
        touched: list[_Row] = []
        older: list[tuple[bytes, Fate]] = []
        # In the order in which the changes lie in memory; they are written in the order of their hashes.
        for key, (seen, last, fates) in updates.items():
            hashed, is_known = hashes[key], bool(heads) and key in heads
            if last is not None and len(fates) == 1 and not is_known:
                # What nearly all are: the first that is heard of a key is that it is gone.
                version, to, told, occurred_ms, change = fates[0]
                topic, partition, offset, alive = last
                if to is None and version is seen and type(told) is Origin and told[:3] == (topic, partition, offset):
                    plain[hashed] = (
                        hashed, entity, texts[key][:_KEY_TEXT_MAX], f"{topic}/{partition}/{offset}", alive,
                        version.text, occurred_ms, done.get(change), at_ms, trace_id, 0,
                    )  # fmt: skip
                    continue
            written = texts[key][:_KEY_TEXT_MAX]
            record = None if last is None else f"{last.topic}/{last.partition}/{last.offset}"
            at_last = None if last is None else last.alive
            if not fates:
                seen_text = None if seen is None else seen.text
                if is_known:
                    touched.append((hashed, seen_text, record, at_last))
                else:
                    fresh.append((hashed, entity, written, seen_text, record, at_last, *_NO_FATE, 0))
                continue
            newest = fates[-1]
            older += [(hashed, each) for each in fates[:-1]]
            (replaced if is_known else fresh).append(
                (
                    hashed,
                    entity,
                    written,
                    None if seen is None or seen == newest.version else seen.text,
                    record,
                    at_last,
                    newest.version.text,
                    None if newest.to is None else canonical(newest.to),
                    newest.event_id if last is None or newest.event[:3] != last[:3] else None,
                    newest.occurred_ms,
                    done.get(newest.change),
                    at_ms,
                    trace_id,
                    len(fates) - 1,
                )
            )
        if fresh:
            # In one statement, so that all come in the order of their hashes.
            fresh += [(*row[:3], None, *row[3:6], None, None, *row[6:]) for row in plain.values()]
            await self._copy_heads(connection, sorted(fresh), _HEAD_COLUMNS)
        elif plain:
            ordered = [row for hashed in sorted(read.ordered) if (row := plain.get(hashed)) is not None]
            assert len(ordered) == len(plain), "the head of every key was asked for"
            await self._copy_heads(connection, ordered, _PLAIN_COLUMNS)
        if replaced:
            await connection.execute(self._replace_sql, *_columns(sorted(replaced)))
        if touched:
            await connection.execute(self._touch_sql, *_columns(sorted(touched)))
        if older:
            await connection.execute(
                self._fates_sql,
                [hashed for hashed, _ in older],
                [fate.version.text for _, fate in older],
                [None if fate.to is None else canonical(fate.to) for _, fate in older],
                [fate.event_id for _, fate in older],
                [fate.occurred_ms for _, fate in older],
                [done.get(fate.change) for _, fate in older],
                at_ms,
                trace_id,
            )

    async def write_gone_heads(
        self, connection: Connection, share: Share, read: Heads, effects: Sequence[Effect], batch: Batch
    ) -> None:
        """As `write_heads`, of a share that only deletes keys without heads, read in the order of its changes; the
        changes that `effects` name are the batch's."""
        done, entity = _rows_by_change(effects), share.entity
        at_ms, trace_id, key_max = batch.at_ms, batch.trace_id or None, _KEY_TEXT_MAX
        rows: dict[bytes, _Row] = {}
        of_keys = zip(share.changes, share.indexes, read.hashes.values(), read.written.values(), strict=True)
        for change, index, hashed, written in of_keys:
            version, (topic, partition, offset, _), occurred_ms = change[4], change[5], change[6]
            assert version is not None
            rows[hashed] = (
                hashed, entity, written[:key_max], f"{topic}/{partition}/{offset}", False, version.text, occurred_ms,
                done[index], at_ms, trace_id, 0,
            )  # fmt: skip
        await self._copy_heads(connection, [rows[hashed] for hashed in read.ordered], _PLAIN_COLUMNS)

    async def write_went(self, connection: Connection, entity: str, went: Went, batch: Batch) -> None:
        """Record rows that went with their parents, and of whose keys nothing else is ever recorded."""
        place: dict[int, int] = {}
        behind = [place.setdefault(event, len(place) + 1) for event in went.event]
        fates = [went.fates[event] for event in place]
        await self._write_removed(
            connection,
            entity,
            went.keys,
            behind,
            [(f"{fate.event_id}/{went.dependent}", fate.occurred_ms) for fate in fates],
            [done + 1 for done in went.done],
            went.does,
            batch,
        )

    async def write_gone(self, connection: Connection, entity: str, happened: Sequence[Happened], batch: Batch) -> None:
        """The same of keys to which nothing happened but that they went."""
        behind: dict[tuple[str, int], int] = {}
        done: dict[tuple[tuple[str, Done], ...], int] = {}
        behinds: list[int] = []
        dones: list[int] = []
        for key, fate, does, *_ in happened:
            name = fate.event_id.removesuffix(f"/{canonical(key)}")
            behinds.append(behind.setdefault((name, fate.occurred_ms), len(behind) + 1))
            dones.append(done.setdefault(tuple(does.items()), len(done) + 1))
        keys = [each.key for each in happened]
        await self._write_removed(
            connection, entity, keys, behinds, list(behind), dones, [dict(each) for each in done], batch
        )

    async def _write_removed(
        self,
        connection: Connection,
        entity: str,
        keys: Sequence[Key],
        behind: Sequence[int],
        events: Sequence[tuple[str, int]],
        done: Sequence[int],
        does: Sequence[Mapping[str, Done]],
        batch: Batch,
    ) -> None:
        # As text and in one piece: an array costs the driver several times as much, element by element.
        hash_of = key_hasher(entity)
        await connection.execute(
            self._removed_sql,
            b"".join([hash_of(canonical(key)) for key in keys]),
            f"{{{','.join(map(str, behind))}}}",
            f"{{{','.join(map(str, done))}}}",
            entity,
            [name for name, _ in events],
            [occurred_ms for _, occurred_ms in events],
            [_json(each) for each in does],
            batch.at_ms,
            batch.trace_id or None,
        )

    async def _copy_heads(self, connection: Connection, rows: list[_Row], columns: Sequence[str]) -> None:
        # They come in the order of their hashes, as everybody locks them. A key that another transaction is just
        # writing is waited for; then it is there twice.
        try:
            await connection.copy_records_to_table("keys", schema_name=self.schema, columns=columns, records=rows)
        except asyncpg.UniqueViolationError as exc:
            raise Collision from exc

    async def write_notes(self, connection: Connection, notes: Sequence[NoteWrite]) -> None:
        """Keep or forget truncates that are to be carried out."""
        for id_, data, fresh in notes:
            if data is None:
                await connection.execute(self._note_delete_sql, self._lane, id_)
            else:
                await connection.execute(self._note_sql, self._lane, id_, data, fresh)

    async def notes(self, connection: Connection) -> list[bytes]:
        """The truncates that are to be carried out."""
        return [row[0] for row in await connection.fetch(self._notes_sql, self._lane)]

    async def known_keys(
        self, connection: Connection, entity: str, spec: KeySpec, after: bytes, keys_max: int
    ) -> KnownKeys:
        """What is known of the next keys of an entity, by their hashes: heads with their newest fate."""
        rows = await connection.fetch(self.known_keys_sql, entity, after, keys_max)
        hash_of = key_hasher(entity)
        found: list[tuple[Key, Head]] = []
        for hashed, text, seen, last, alive, fate, moved_to, event, occurred_ms in rows:
            key = key_of_ledger(text, spec)
            # A long key is cut there, and one of another type than the rule gives now means nothing.
            if key is None or hash_of(canonical(key)) != hashed:
                continue
            head = Head(
                parse_version(told) if (told := seen or fate) else None,
                () if fate is None else (fate_of(spec, fate, moved_to, event or last, occurred_ms),),
                None if last is None else record_of(last, alive),
            )
            found.append((key, head))
        return KnownKeys(found, rows[-1][0] if len(rows) == keys_max else None, len(rows) - len(found))

    async def read_pending(
        self, connection: Connection, keys: Collection[Key], hashes: Mapping[Key, bytes]
    ) -> dict[Key, list[Pending]]:
        """The effects that were left out of these keys. Whoever writes them holds the lock of the key's head."""
        key_of = {hashes[key]: key for key in keys}
        found: dict[Key, list[Pending]] = {}
        for hashed, dependent, event, fate, letter, reason in await connection.fetch(self._pending_sql, list(key_of)):
            version = EARLIEST if fate is None else parse_version(fate)
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
                [each.version.text for each in found],
                [each.mark.id for each in found],
                [each.mark.reason.value for each in found],
                moment(at_ms),
            )

    async def add_done(self, connection: Connection, found: Sequence[MadeUpFor], hashes: Mapping[Key, bytes]) -> None:
        """Add what redrives did to the newest fates of their keys."""
        if found:
            await connection.execute(
                self._done_sql,
                [hashes[each.key] for each in found],
                [msgspec.json.encode(each.done).decode() for each in found],
            )

    async def write_repairs(
        self, connection: Connection, repaired: Sequence[Repaired], hashes: Mapping[Key, bytes], at_ms: int
    ) -> None:
        """Keep what became of rows that were written late."""
        if repaired:
            await connection.execute(
                self._repairs_sql,
                [hashes[each.key] for each in repaired],
                [each.dependent for each in repaired],
                [each.action for each in repaired],
                [each.rows for each in repaired],
                [each.fate.event_id for each in repaired],
                moment(at_ms),
            )

    async def clear_exceptions(self, connection: Connection, over: Collection[tuple[str, str]]) -> None:
        """Forget exceptions (dependent, event): they were made up for, or given up."""
        if over:
            await connection.execute(
                self._exceptions_clear_sql, [dependent for dependent, _ in over], [event for _, event in over]
            )


_Row = tuple[Any, ...]
_HEAD_COLUMNS: Final = (
    "key_hash", "entity", "key", "seen", "last", "last_alive", "fate", "moved_to", "event", "occurred_ms", "rows",
    "enforced_ms", "trace_id", "older_fates",
)  # fmt: skip
_NO_FATE: Final = (None,) * 7
_NEVER_PLAIN: Final = ("seen", "moved_to", "event")
_PLAIN_COLUMNS: Final = tuple(column for column in _HEAD_COLUMNS if column not in _NEVER_PLAIN)
"""Of a head whose only record is a deletion; the others are null."""


def _columns(rows: Sequence[_Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _json(rows: Mapping[str, Done]) -> str:
    return msgspec.json.encode(rows).decode()


def _rows_by_change(effects: Sequence[Effect]) -> dict[int, str]:
    """What was done at each change that was applied, as JSON: dependent id -> action and rows."""
    applied, restricted = Outcome.APPLIED, Outcome.RESTRICTED
    one: dict[int, tuple[str, str, int]] = {}
    several: dict[int, tuple[tuple[str, str, int], ...]] = {}
    for change, dependent, action, outcome, rows in effects:
        if outcome is applied or outcome is restricted:
            if change in one:
                several[change] = (*several.get(change, (one[change],)), (dependent, action, rows))
            else:
                one[change] = dependent, action, rows
    texts = {part: _json({part[0]: part[1:]}) for part in set(one.values())}
    done = {change: texts[part] for change, part in one.items()}
    if several:
        merged = {
            parts: _json({dependent: (action, rows) for dependent, action, rows in parts})
            for parts in set(several.values())
        }
        done |= {change: merged[parts] for change, parts in several.items()}
    return done


def _expect(status: str, count: int) -> None:
    if int(status.rpartition(" ")[2]) != count:
        raise Collision


def removed_sql(schema: str) -> str:
    """How the rows went whose key has the hash $1, in order: the name of the event but for the key, when it occurred,
    what it did, when that was enforced, and the trace."""
    at = quoted(schema)
    return (
        "select r.behind[d.behind], r.occurred_ms[d.behind], r.done[d.done], r.enforced_ms, r.trace_id"
        f" from {at}.removed d join {at}.removals r on r.id = d.removal where d.key_hash = $1 order by d.removal"
    )


def fate_of(spec: KeySpec, version: str, moved_to: str | None, event: str, occurred_ms: int) -> Fate:
    """A fate from its columns."""
    to = None if moved_to is None else parse_canonical(moved_to, spec)
    return Fate(parse_version(version), to, event, occurred_ms)


def record_of(last: str, alive: bool) -> LastRecord:
    """The last record of a key from its columns."""
    topic, partition, offset = last.rsplit("/", 2)
    return LastRecord(topic, int(partition), int(offset), alive)


def _array_sql(version: str) -> str:
    """A version's text as an int8[], which compares as versions do."""
    return f"string_to_array(translate(rtrim({version}, ':'), ':.', ',,'), ',')::int8[]"


def array(version: Version) -> list[int]:
    """The same of a version."""
    return [version.epoch, *version.position]


def array_text(version: Version) -> str:
    """The same as PostgreSQL writes arrays: arrays of arrays of several lengths can't be bound."""
    return f"{{{','.join(map(str, array(version)))}}}"


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
