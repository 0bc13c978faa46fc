"""The effects on one table: each kind of end is one statement over typed arrays, with rows counted per group.

Rows that are only counted are counted first. Deletes go next, marks before references: rows that a statement moves are
then never in reach of a later one (a marked row is out of reach for good). Within the statement that changes references
every row is chosen by the reference it had before, so swaps and chains need no order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, assert_never

from integrity.core.fold import (
    Count,
    Counted,
    Follow,
    Group,
    Leave,
    Mark,
    Marked,
    Referencing,
    Remove,
    Removed,
    Replace,
    Step,
)
from integrity.core.keys import Key, key_hash
from integrity.core.ledger import Fate
from integrity.core.parts import FULL_SHARE, TooManyRows
from integrity.core.rules.model import EventValue
from integrity.stores.postgres.ledger import Connection, array_text
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import NO_MATCH, Codec, cast
from integrity.stores.rule import StoreRule

if TYPE_CHECKING:
    from integrity.stores.postgres.keeping import Keeper

PLAIN: Final = "{}"
"""The `since` of rows that are no arrivals: an empty array, which no version is."""

_RANGES_SINCE: Final = 14
"""The version of the server that first reads a table from one place to another."""
_BLOCK_ROWS_MAX: Final = 291
"""No block has more rows (of 8 KiB, which nearly all servers have; in larger ones a part has more)."""
_BLOCK_ROWS_MIN: Final = 10
"""With fewer rows of a key in a block, they are found by index."""
UNBOUNDED: Final = 2**62
"""A bound that no number of rows reaches."""
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Condition:
    """One column of `where`: `values` is null, a text, or texts, to be read as the column's `type` by the server."""

    column: str
    type: str
    values: str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One column of `tombstone.set`: a literal (as text, or null), or what the event or the clock gives."""

    column: str
    type: str
    value: str | EventValue | None


@dataclass(frozen=True, slots=True)
class Age:
    """The column of `as_of`. `type` is timestamptz, timestamp (in UTC) or date."""

    column: str
    type: str

    def bound(self, ms: int | None) -> int | None:
        """A time of events as what the column is compared with: milliseconds, or days."""
        return ms // _DAY_MS if ms is not None and self.type == "date" else ms

    def sql(self) -> str:
        """Whether a row is of the age of its group. A date is in doubt for its whole day: a row is as old as the end of
        it."""
        column = f"t.{quoted(self.column)}"
        if self.type == "date":
            until, after = "< date 'epoch' + k.until::int4", ">= date 'epoch' + k.after::int4"
        else:
            until, after = (
                f"{sign} {self.type} 'epoch' + k.{bound} * interval '1 millisecond'"
                for sign, bound in (("<=", "until"), (">", "after"))
            )
        return f"{column} {until} and (k.after is null or {column} {after})"


@dataclass(frozen=True, slots=True)
class Table:
    """A dependent as the catalogue has it: names are real, types are checked.

    `primary_key` is empty where the table has none; arrivals then cannot be told apart. `partitioned` tells that its
    rows are those of its partitions. `own` are the codecs of the rows' own key, where something depends on them. Not
    `in_parts`: the role may read some of its columns only, hence not where a row lies, by which the rows of a part are
    chosen.
    """

    rule: StoreRule
    schema: str
    name: str
    codecs: tuple[Codec, ...]
    conditions: tuple[Condition, ...]
    settings: tuple[Setting, ...]
    primary_key: tuple[str, ...]
    partitioned: bool
    own: tuple[Codec, ...] = ()
    age: Age | None = None
    in_parts: bool = True
    columns: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Every column: its type as casts name it, and whether it is computed from others."""

    def ages(self, groups: Sequence[Group]) -> list[list[object]]:
        """The ages of groups, column by column; nothing where the rule does not ask for them."""
        if self.age is None:
            return []
        born = [group.born for group in groups if group.born is not None]
        return [[self.age.bound(each.after_ms) for each in born], [self.age.bound(each.until_ms) for each in born]]


def changed_positions(rule: StoreRule) -> tuple[int, ...]:
    """The positions of the reference's columns that some action of the rule writes."""
    positions: set[int] = set()
    for step in (rule.policy.on_delete, rule.policy.on_update):
        positions.update(_written(step, len(rule.spec.fields)))
    return tuple(sorted(positions))


def may_arrive(rule: StoreRule) -> bool:
    """Whether rows of this dependent ever come to a key."""
    return any(
        isinstance(step, Follow) or (isinstance(step, Replace) and step.refers)
        for step in (rule.policy.on_delete, rule.policy.on_update)
    )


def reach(table: Table, bound: int) -> tuple[list[str], list[object]]:
    """What every row `t` of a dependent meets beside its reference: `where`, not marked; and the values to bind for it,
    numbered on from `bound`."""
    fits: list[str] = []
    values: list[object] = []
    for condition in table.conditions:
        column = f"t.{quoted(condition.column)}"
        if condition.values is None:
            fits.append(f"{column} is null")
            continue
        place = bound + len(values) + 1
        if isinstance(condition.values, tuple):
            fits.append(f"{column} = any(${place}::text[]::{condition.type}[])")
            values.append(list(condition.values))
        else:
            fits.append(f"{column} = ${place}::text::{condition.type}")
            values.append(condition.values)
    if table.settings:
        fits.append(f"t.{quoted(table.settings[0].column)} is null")
    return fits, values


def target_of(table: Table) -> str:
    """What statements name. As a native foreign key: rows of tables that inherit from this one are not its rows."""
    return quoted(table.schema, table.name) if table.partitioned else f"only {quoted(table.schema, table.name)}"


def since_condition(table: Table, arrivals_table: str, dependent: str) -> str:
    """That a row `t` is there since `k.since`, at the key whose hash is `k.hash`."""
    return (
        f"coalesce((select a.since from {arrivals_table} a where a.key_hash = k.hash"
        f" and a.dependent = {dependent} and a.\"row\" = {_row_name(table)}), '{{}}'::int8[]) = k.since::int8[]"
    )


def _row_name(table: Table) -> str:
    return f"jsonb_build_array({', '.join(f't.{quoted(column)}' for column in table.primary_key)})::text"


def _written(step: Step, width: int) -> Sequence[int]:
    match step:
        case Follow():
            return range(width)
        case Replace():
            return [position for position, _ in step.parts]
        case Remove() | Mark() | Leave() | Count():
            return ()
        case _:
            assert_never(step)


class Bound(Enum):
    """How a statement is bounded by its last parameter."""

    NOT = "not"
    WHOLE = "whole"
    """All rows or none: the statement counts them up to the bound, and acts only if there are fewer."""
    SOME = "some"
    """Not more than so many rows, any of them."""


class Miscounted(Exception):
    """Rows were counted that others removed meanwhile; nothing is to be committed. The next try counts otherwise."""


class Effects:
    """The statements of one dependent. `keeper`: it is kept what the rows were."""

    def __init__(self, table: Table, arrivals_table: str, keeper: Keeper | None = None) -> None:
        self._table = table
        self._keeper = keeper
        self._arrivals_table = arrivals_table
        self._positions = changed_positions(table.rule)
        self._width = len(table.codecs)
        self._marks = [
            (setting, _event_array(setting)) for setting in table.settings if isinstance(setting.value, EventValue)
        ]
        self._texts: dict[tuple[str, bool, bool, Bound], str] = {}
        # What a partitioned table removes is told of its partitions.
        self._counts_first = not table.partitioned
        self._counting_text = ""
        self._goes_on_at: tuple[object, int] = (None, 0)
        """A key of which a part has removed rows, and the block where more of them may be."""

    @property
    def id(self) -> str:
        return self._table.rule.id

    @property
    def in_parts(self) -> bool:
        """Whether the rows of an event can be taken in parts."""
        return self._table.in_parts

    async def execute(
        self,
        connection: Connection,
        groups: Sequence[Group],
        hashes: Mapping[Key, bytes],
        at_ms: int,
        *,
        split: bool,
        rows_max: int | None = None,
        part: bool = False,
    ) -> list[int]:
        """Carry out all groups; the rows of each. `split` tells that arrivals are among the rows of some group, so that
        they have to be told from the others. With more than `rows_max` rows TooManyRows is raised or, in a `part`, no
        more than so many rows are acted on (a few more of a partitioned table). Raises Unfit, or what the driver
        raises."""
        rows = [0] * len(groups)
        counted: list[int] = []
        removed: list[int] = []
        marked: list[int] = []
        referencing: list[int] = []
        for index, (_, _, _, end, _, _, _) in enumerate(groups):
            match end:
                case Removed():
                    removed.append(index)
                case Marked():
                    marked.append(index)
                case Referencing():
                    referencing.append(index)
                case Counted():
                    counted.append(index)
                case _:
                    assert_never(end)
        bound = Bound.NOT if rows_max is None else Bound.SOME if part else Bound.WHOLE
        runs = (counted, self._count), (removed, self._remove), (marked, self._mark), (referencing, self._refer)
        for indexes, run in runs:
            limit = None if rows_max is None else rows_max - sum(rows) if part else rows_max + 1
            if indexes and (limit is None or limit > 0):
                # A key that no row of these columns can hold has no rows.
                asked = groups if len(indexes) == len(groups) else [groups[index] for index in indexes]
                places, columns = self._chosen(asked, hashes, split)
                if places:
                    every = len(places) == len(asked)
                    found = indexes if every else [indexes[place] for place in places]
                    chosen = asked if every else [asked[place] for place in places]
                    for place, count in await run(connection, chosen, columns, at_ms, split, bound, limit):
                        rows[found[place - 1]] = count
        return rows

    async def count(
        self,
        connection: Connection,
        groups: Sequence[Group],
        hashes: Mapping[Key, bytes],
        limit: int | None,
        *,
        split: bool,
    ) -> list[int]:
        """How many rows each group has, at most `limit` each. Changes nothing."""
        rows = [0] * len(groups)
        places, columns = self._chosen(groups, hashes, split)
        if places:
            for place, count in await self._run(connection, "count", split, False, columns, Bound.NOT, limit):
                rows[places[place - 1]] = count
        return rows

    async def referenced(self, connection: Connection, keys: Sequence[Key]) -> list[Key]:
        """Which of the keys some row in reach refers to. Reads only."""
        places, columns = self._bound(keys)
        if not places:
            return []
        within, values = reach(self._table, len(columns))
        reference = self._table.rule.dependent.columns
        names = [f"m{i}" for i in range(len(columns))]
        fits = [f"t.{quoted(column)} = k.{name}" for column, name in zip(reference, names, strict=True)]
        bound = ", ".join(codec.compared(f"${i}") for i, codec in enumerate(self._table.codecs, 1))
        target = quoted(self._table.schema, self._table.name)
        found = await connection.fetch(
            f"select k.n from unnest({bound}) with ordinality as k({', '.join(names)}, n)"
            f" where exists (select from {target} t where {' and '.join([*fits, *within])})",
            *columns,
            *values,
        )
        return [keys[places[row[0] - 1]] for row in found]

    async def _count(
        self,
        connection: Connection,
        groups: Sequence[Group],
        columns: list[list[object]],
        at_ms: int,
        split: bool,
        bound: Bound,
        limit: int | None,
    ) -> Sequence[tuple[int, int]]:
        return await self._run(connection, "count", split, False, columns, Bound.NOT, None)

    async def _remove(
        self,
        connection: Connection,
        groups: Sequence[Group],
        columns: list[list[object]],
        at_ms: int,
        split: bool,
        bound: Bound,
        limit: int | None,
    ) -> Sequence[tuple[int, int]]:
        if self._width > 1 or split or self._table.age is not None or self._keeper is not None:
            kept = self._kept(groups, at_ms, removes=True)
            return await self._run(connection, "remove", split, False, columns, bound, limit, kept)
        if bound is Bound.SOME and len(columns[0]) == 1:
            assert limit is not None
            return [(1, await self._remove_some(connection, columns[0], limit))]
        place_of = {bound: place for place, bound in enumerate(columns[0], 1)}
        found = await self._remove_listed(connection, columns, bound, limit)
        return [(place_of[bound], count) for bound, count in found]

    async def _remove_listed(
        self, connection: Connection, columns: list[list[object]], bound: Bound, limit: int | None
    ) -> Sequence[tuple[Any, int]]:
        """Rows per value. One comparison with a list reads the table page by page, twice as fast as a join key by
        key."""
        if bound is not Bound.SOME and self._counts_first:
            return await self._remove_counted(connection, columns[0], limit)
        return await self._run(connection, "remove listed", False, False, columns, bound, limit)

    @property
    def removes_plainly(self) -> bool:
        """Whether `remove` can be called: keys have one part, and rows neither an age nor a past that is kept."""
        return self._width == 1 and self._table.age is None and self._keeper is None

    async def remove(self, connection: Connection, keys: Sequence[Key], rows_max: int | None) -> list[int]:
        """As `execute`, of groups that are all removed, and of which none are arrivals."""
        places, columns = self._bound(keys)
        if not places:
            return [0] * len(keys)
        bound = Bound.NOT if rows_max is None else Bound.WHOLE
        limit = None if rows_max is None else rows_max + 1
        found = dict(await self._remove_listed(connection, columns, bound, limit))
        # Keys that are one to the column (padded text): the rows count once, as where places are looked up.
        rows = [found.pop(value, 0) for value in reversed(columns[0])]
        rows.reverse()
        if len(places) == len(keys):
            return rows
        all_rows = [0] * len(keys)
        for place, count in zip(places, rows, strict=True):
            all_rows[place] = count
        return all_rows

    async def _remove_some(self, connection: Connection, keys: Sequence[object], limit: int) -> int:
        """Remove not more than so many of one key's rows, of which there are many; how many they were. Naming each to
        count it would cost a third of the time.

        As long as most of what a piece of the table holds are such rows, it is read from one end to the other as one
        statement would: to choose rows first costs half as much again. What is left, since it moved or lies apart, is
        found by index. A piece is never larger than that all of it may go."""
        _, conditions = reach(self._table, 0)
        removed = 0
        if not self._table.partitioned and connection.get_server_version().major >= _RANGES_SINCE:
            key, block = self._goes_on_at
            if key != keys[0]:
                first = await connection.fetchval(self.sql("find one"), keys, *conditions)
                block = 0 if first is None else first[0]
            dense = True
            while dense and removed < limit * FULL_SHARE and (blocks := (limit - removed) // _BLOCK_ROWS_MAX):
                status = await connection.execute(
                    self.sql("remove near"), keys, *conditions, f"({block},0)", f"({block + blocks},0)"
                )
                count = int(status.rpartition(" ")[2])
                removed, block, dense = removed + count, block + blocks, count >= blocks * _BLOCK_ROWS_MIN
            self._goes_on_at = (keys[0], block) if dense else (None, 0)
            if removed >= limit * FULL_SHARE:
                return removed
        status = await connection.execute(self.sql("remove one", bound=Bound.SOME), keys, *conditions, limit - removed)
        return removed + int(status.rpartition(" ")[2])

    async def _remove_counted(
        self, connection: Connection, keys: Sequence[object], limit: int | None
    ) -> Sequence[tuple[Any, int]]:
        """Remove rows that were counted just before, in the same statement: a third less work than naming each removed
        row. Gives rows per key. What others do to the rows meanwhile only makes fewer of them go: then the numbers
        differ (so they do where triggers keep rows, or remove more). Raises Miscounted, and counts the removed rows
        themselves from then on."""
        if not self._counting_text:
            self._counting_text = self.sql_counted()
        _, conditions = reach(self._table, 0)
        name = quoted(self._table.schema, self._table.name)
        bound = UNBOUNDED if limit is None else limit
        found = await connection.fetchrow(self._counting_text, keys, *conditions, bound, name)
        assert found is not None, "an aggregate is one row"
        counted, rows, total, before = found
        if total == bound:
            raise TooManyRows
        after = await connection.fetchval("select pg_stat_get_xact_tuples_deleted($1::text::regclass)", name)
        if after - before != total:
            self._counts_first = False
            raise Miscounted
        return list(zip(counted or (), rows or (), strict=True))

    async def _mark(
        self,
        connection: Connection,
        groups: Sequence[Group],
        columns: list[list[object]],
        at_ms: int,
        split: bool,
        bound: Bound,
        limit: int | None,
    ) -> Sequence[tuple[int, int]]:
        ends = [group.end for group in groups if isinstance(group.end, Marked)]
        moved = any(end.key != group.key for end, group in zip(ends, groups, strict=True))
        if moved:
            columns += self._assigned([end.key for end in ends])
        columns += [[get(end.fate, at_ms) for end in ends] for _, (_, get) in self._marks]
        kept = self._kept(groups, at_ms, removes=False)
        return await self._run(connection, "mark", split, moved, columns, bound, limit, kept)

    async def _refer(
        self,
        connection: Connection,
        groups: Sequence[Group],
        columns: list[list[object]],
        at_ms: int,
        split: bool,
        bound: Bound,
        limit: int | None,
    ) -> Sequence[tuple[int, int]]:
        ends = [group.end for group in groups if isinstance(group.end, Referencing)]
        columns += self._assigned([end.values for end in ends])
        arriving = any(end.arrival is not None for end in ends)
        if arriving:
            columns.append([self._arrival_hash(end) for end in ends])
            columns.append([None if end.arrival is None else array_text(end.arrival) for end in ends])
        kept = self._kept(groups, at_ms, removes=False)
        return await self._run(connection, "refer", split, arriving, columns, bound, limit, kept)

    def _kept(self, groups: Sequence[Group], at_ms: int, *, removes: bool) -> list[object]:
        """The last arguments of a statement: what is to be kept of the rows of these groups."""
        return [] if self._keeper is None else self._keeper.arguments(enumerate(groups, 1), at_ms, removes=removes)

    def _arrival_hash(self, end: Referencing) -> bytes | None:
        if end.arrival is None:
            return None
        return key_hash(self._table.rule.entity, tuple(value for value in end.values if value is not None))

    def _chosen(
        self, groups: Sequence[Group], hashes: Mapping[Key, bytes], split: bool
    ) -> tuple[Sequence[int], list[list[object]]]:
        """The places of the groups that may have rows, and what chooses these rows, column by column."""
        places, columns = self._bound([group[0] for group in groups])
        chosen = groups if len(places) == len(groups) else [groups[place] for place in places]
        if split:
            columns.append([hashes[group.key] for group in chosen])
            columns.append([PLAIN if group.since is None else array_text(group.since) for group in chosen])
        return places, columns + self._table.ages(chosen)

    def _bound(self, keys: Sequence[Key]) -> tuple[Sequence[int], list[list[object]]]:
        """The places of the keys that some row of these columns can hold, and their parts, column by column."""
        columns = [[codec.match(key[position]) for key in keys] for position, codec in enumerate(self._table.codecs)]
        if not any(NO_MATCH in column for column in columns):
            return range(len(keys)), columns
        places = [place for place, bound in enumerate(zip(*columns, strict=True)) if NO_MATCH not in bound]
        return places, [[column[place] for place in places] for column in columns]

    def _assigned(self, values: Sequence[Sequence[object]]) -> list[list[object]]:
        codecs = self._table.codecs
        return [
            [None if part is None else codecs[position].assign(part) for part in (row[position] for row in values)]  # type: ignore[arg-type]
            for position in self._positions
        ]

    async def _run(
        self,
        connection: Connection,
        kind: str,
        split: bool,
        extra: bool,
        columns: list[list[object]],
        bound: Bound,
        limit: int | None,
        last: Sequence[object] = (),
    ) -> Sequence[tuple[Any, int]]:
        sql = self._texts.get((kind, split, extra, bound))
        if sql is None:
            sql = self._texts[kind, split, extra, bound] = self.sql(kind, split=split, extra=extra, bound=bound)
        _, conditions = reach(self._table, 0)
        literals = [setting.value for setting in self._table.settings if _is_literal(setting)] if kind == "mark" else []
        names = [self.id] if split or (kind == "refer" and extra) else []
        limits = [limit] if kind == "count" or bound is not Bound.NOT else []
        found = await connection.fetchrow(sql, *columns, *conditions, *literals, *names, *limits, *last)
        if bound is Bound.WHOLE and found is not None and found[2] == limit:
            raise TooManyRows
        if found is None or found[0] is None:
            return ()
        return list(zip(found[0], found[1], strict=True))

    def sql_counted(self) -> str:
        """The text of the statement that counts and removes: keys, how many rows of each, of all up to the bound, and
        how many rows of the table this session says that it has removed before."""
        table = self._table
        codec, column = table.codecs[0], f"t.{quoted(table.rule.dependent.columns[0])}"
        within, values = reach(table, 1)
        fits = " and ".join([f"{column} = any({codec.compared('$1')})", *within])
        limit, target = f"${len(values) + 2}::int8", target_of(table)
        return (
            f"with counted as materialized (select n, count(*) as c from (select {codec.read(column)} as n"
            f" from {target} t where {fits} limit {limit}) r group by n),"
            " gate as materialized (select coalesce(sum(c), 0)::int8 as n from counted),"
            f" acted as (delete from {target} t where {fits} and (select n from gate) < {limit})"
            " select array_agg(n), array_agg(c), (select n from gate),"
            f" pg_stat_get_xact_tuples_deleted(${len(values) + 3}::text::regclass) from counted"
        )

    def sql(self, kind: str, *, split: bool = False, extra: bool = False, bound: Bound = Bound.NOT) -> str:
        """The text of a statement, which gives rows per place in the arrays (remove listed: per value), and of one that
        is bound to be whole, how many rows there are, up to the bound.

        `kind` is count, remove, remove listed, remove one (as listed, and gives nothing), remove near (the same between
        two places), find one (a place of a row of one key), mark or refer; `extra` says
        of a mark that references change too, and of refer that arrivals are recorded."""
        table = self._table
        reference = table.rule.dependent.columns
        arrays = [(f"m{i}", codec.compared) for i, codec in enumerate(table.codecs)]
        if split:
            arrays += [("hash", cast("bytea[]")), ("since", cast("text[]"))]
        sets: list[str] = []
        if table.age is not None:
            arrays += [("after", cast("int8[]")), ("until", cast("int8[]"))]
        if kind == "refer" or (kind == "mark" and extra):
            arrays += [(f"a{i}", table.codecs[i].written) for i in self._positions]
            sets += [f"{quoted(reference[i])} = k.a{i}" for i in self._positions]
        if kind == "mark":
            arrays += [(f"e{i}", cast(array)) for i, (_, (array, _)) in enumerate(self._marks)]
            sets += [f"{quoted(setting.column)} = k.e{i}" for i, (setting, _) in enumerate(self._marks)]
        if kind == "refer" and extra:
            arrays += [("to_hash", cast("bytea[]")), ("to_since", cast("text[]"))]
        count = len(arrays)
        listed = kind in ("remove listed", "remove one", "remove near", "find one")
        fits = [
            f"t.{quoted(column)} = any({table.codecs[0].compared('$1')})" if listed else f"t.{quoted(column)} = k.m{i}"
            for i, column in enumerate(reference)
        ]
        within, values = reach(table, count)
        fits += within
        count += len(values)
        if table.age is not None:
            fits.append(table.age.sql())
        for setting in table.settings if kind == "mark" else ():
            if setting.value is None:
                sets.append(f"{quoted(setting.column)} = null")
            elif _is_literal(setting):
                count += 1
                sets.append(f"{quoted(setting.column)} = ${count}::text::{setting.type}")
        if kind == "find one":
            return f"select t.ctid from {target_of(table)} t where {' and '.join(fits)} limit 1"
        if kind == "remove near":
            # "is true" keeps the index out: by it, every piece would cost a look at all of the key's rows.
            near = f"t.ctid >= ${count + 1}::text::tid and t.ctid < ${count + 2}::text::tid"
            return f"delete from {target_of(table)} t where ({' and '.join(fits)}) is true and {near}"
        row = _row_name(table)
        dependent = f"${count + 1}::text"
        if split:
            fits.append(since_condition(table, self._arrivals_table, dependent))
        bindings = ", ".join(made(f"${i}") for i, (_, made) in enumerate(arrays, 1))
        keys = f"unnest({bindings}) with ordinality as k({', '.join(name for name, _ in arrays)}, n)"
        target = target_of(table)
        named = split or (kind == "refer" and extra)
        limit = f"${count + 1 + named}::int8"
        if kind == "count":
            counted = f"(select count(*) from (select from {target} t where {' and '.join(fits)} limit {limit}) r)"
            return f"select array_agg(n), array_agg(c) from (select k.n, {counted} as c from {keys}) s where c > 0"
        returned = f"{table.codecs[0].read(f't.{quoted(reference[0])}')} as n" if listed else "k.n"
        kept = ""
        if kind == "refer" and extra:
            returned += f', k.to_hash, k.to_since, {row} as "row"'
            kept = (
                f', kept as (insert into {self._arrivals_table} (key_hash, dependent, "row", since)'
                f' select to_hash, {dependent}, "row", to_since::int8[] from acted where to_hash is not null'
                ' on conflict (key_hash, dependent, "row") do update set since = excluded.since)'
            )
        # The bound is that of the very rows that are acted on, or the same event would be found too large for ever.
        chosen = f"from {target} t{'' if listed else f', {keys}'} where {' and '.join(fits)} limit {limit}"
        gate = result = ""
        match bound:
            case Bound.WHOLE:
                gate = f"gate as materialized (select count(*) as n from (select {chosen}) r), "
                fits.append(f"(select n from gate) < {limit}")
                result = ", (select n from gate)"
            case Bound.SOME:
                # Meanwhile changed rows are found by their conditions, or not at all: then the next part has them.
                fits.append(f"t.ctid = any(array(select t.ctid {chosen}))")
            case Bound.NOT:
                pass
            case _:
                assert_never(bound)
        if self._keeper is not None:
            removes = kind == "remove"
            base = count + named + (bound is not Bound.NOT)
            returned += self._keeper.returned(base, removes=removes, order="0")
            kept += self._keeper.insert(base, removes=removes)
            if not removes:
                before, same = self._keeper.before()
                keys = f"{keys}, {before}"
                fits.append(same)
        if listed:
            act = f"delete from {target} t"
        elif kind == "remove":
            act = f"delete from {target} t using {keys}"
        else:
            act = f"update {target} t set {', '.join(sets)} from {keys}"
        if kind == "remove one":
            return f"{act} where {' and '.join(fits)}"
        return (
            f"with {gate}acted as ({act} where {' and '.join(fits)} returning {returned}){kept}"
            f" select array_agg(n), array_agg(c){result} from (select n, count(*) c from acted group by n) s"
        )


def _is_literal(setting: Setting) -> bool:
    return setting.value is not None and not isinstance(setting.value, EventValue)


def _event_array(setting: Setting) -> tuple[str, Callable[[Fate, int], object]]:
    value = setting.value
    assert isinstance(value, EventValue)

    def at(fate: Fate, at_ms: int) -> datetime:
        return datetime.fromtimestamp((at_ms if value is EventValue.NOW else fate.occurred_ms) / 1000, UTC)

    if value is EventValue.ID:
        return "text[]", lambda fate, _: fate.event_id
    match setting.type:
        case "timestamp with time zone":
            return "timestamptz[]", at
        case "timestamp without time zone":
            return "timestamp[]", lambda fate, at_ms: at(fate, at_ms).replace(tzinfo=None)
        case "date":
            return "date[]", lambda fate, at_ms: at(fate, at_ms).date()
        case _:
            return (
                "text[]",
                lambda fate, at_ms: at(fate, at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            )
