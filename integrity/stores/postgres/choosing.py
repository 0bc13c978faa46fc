"""Rows that are parents themselves: their own keys are read and locked, and exactly these rows are removed later.

Between the two the rows below are removed. A row that somebody writes under the same reference meanwhile is none of
those chosen: it stays, with what depends on it, as any dependent that is written after its parent's deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from integrity.core.fold import Group
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.stores.postgres.effects import PLAIN, UNBOUNDED, Miscounted, Table, reach, since_condition, target_of
from integrity.stores.postgres.keeping import Keeper
from integrity.stores.postgres.ledger import Connection, array_text
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import NO_MATCH, Codec, cast, scalar, scalars


class Chooser:
    """The statements of one dependent whose rows are an entity. `tangled`: what depends on these rows may take rows of
    the same table along."""

    def __init__(
        self, table: Table, arrivals_table: str, keeper: Keeper | None = None, *, tangled: bool = False
    ) -> None:
        assert table.rule.rows is not None
        self._table = table
        self._keeper = keeper
        self._rows = table.rule.rows
        self._arrivals_table = arrivals_table
        self._choose = {split: self._choose_sql(split) for split in (False, True)}
        self._remove = self._remove_sql()
        self._remove_named = "" if tangled else self._remove_named_sql()
        self._closure, self._lock = self._closure_sql() if table.rule.entity == self._rows.entity else ("", "")

    async def choose(
        self, connection: Connection, groups: Sequence[Group], hashes: Mapping[Key, bytes] | None, limit: int | None
    ) -> list[tuple[int, Key]]:
        """The index of the group and the own key of each row, which is locked. `hashes` of the groups' keys where
        arrivals have to be told from other rows. Raises Unfit for a key that its column has and its type has not."""
        places, columns = self._bound([group.key for group in groups])
        if not places:
            return []
        split = hashes is not None
        if hashes is not None:
            columns.append([hashes[groups[place].key] for place in places])
            columns.append([PLAIN if (s := groups[place].since) is None else array_text(s) for place in places])
        columns += self._table.ages([groups[place] for place in places])
        _, conditions = reach(self._table, 0)
        names = [self._table.rule.id] if split else []
        listed = len(columns) == 1
        found = await connection.fetchrow(
            self._choose[split], *columns, *conditions, UNBOUNDED if limit is None else limit, *names
        )
        assert found is not None, "an aggregate is one row"
        of, *parts = found
        if of is None:
            return []
        place_of = dict(zip(columns[0], places, strict=True)) if listed else dict(enumerate(places, 1))
        keys = zip(*(scalars(kind, part) for kind, part in zip(self._rows.spec.types, parts, strict=True)), strict=True)
        return list(zip(map(place_of.__getitem__, of), keys, strict=True))

    async def closure(
        self, connection: Connection, groups: Sequence[Group], limit: int
    ) -> list[tuple[Key, Key]] | None:
        """The rows of these groups, the rows that refer to those, and so on, locked: the key that each refers to, and
        its own. None when there are more than `limit`. Raises Unfit as `choose` does."""
        _, columns = self._bound([group.key for group in groups])
        _, conditions = reach(self._table, 0)
        found = await connection.fetch(self._closure, *columns, *conditions, limit + 1)
        if len(found) > limit:
            return None
        if not found:
            return []
        # Between the look and the lock a row may have got another reference: it is none of these then.
        kinds, width = (*self._table.rule.spec.types, *self._rows.spec.types), len(self._table.codecs)
        parts = zip(*[map(scalar, kinds, row) for row in found], strict=True)
        codecs = (*self._table.codecs, *self._table.own)
        bound = [[codec.match(part) for part in column] for codec, column in zip(codecs, parts, strict=True)]
        keys = [tuple(map(scalar, kinds, row)) for row in await connection.fetch(self._lock, *bound, *conditions)]
        return [(key[:width], key[width:]) for key in keys]

    async def remove(
        self, connection: Connection, groups: Sequence[Group], chosen: Sequence[tuple[int, Key]], at_ms: int
    ) -> list[int]:
        """Remove the rows that were chosen; the rows of each group. Raises Miscounted where fewer went."""
        _, conditions = reach(self._table, 0)
        rows = [0] * len(groups)
        numbers = [index for index, _ in chosen]
        if self._remove_named:
            [codec] = self._table.own
            status = await connection.execute(
                self._remove_named, [codec.match(own[0]) for _, own in chosen], *conditions
            )
            if int(status.rpartition(" ")[2]) != len(chosen):
                self._remove_named = ""
                raise Miscounted
            for index in numbers:
                rows[index] += 1
            return rows
        columns: list[list[object]] = [
            [codec.match(groups[index].key[position]) for index, _ in chosen]
            for position, codec in enumerate(self._table.codecs)
        ]
        columns += [[codec.match(own[i]) for _, own in chosen] for i, codec in enumerate(self._table.own)]
        kept: list[object] = []
        if self._keeper is not None:
            acted_on = [(index, groups[index]) for index in dict.fromkeys(numbers)]
            kept = self._keeper.arguments(acted_on, at_ms, removes=True)
        for index, count in await connection.fetch(self._remove, *columns, numbers, *conditions, *kept):
            rows[index] = count
        return rows

    def _bound(self, keys: Sequence[Key]) -> tuple[Sequence[int], list[list[object]]]:
        columns = [[codec.match(key[i]) for key in keys] for i, codec in enumerate(self._table.codecs)]
        places = [place for place, bound in enumerate(zip(*columns, strict=True)) if NO_MATCH not in bound]
        return places, [[column[place] for place in places] for column in columns]

    def _read(self, columns: Sequence[str], codecs: Sequence[Codec]) -> list[str]:
        return _readable(columns, codecs, (*self._table.rule.spec.types, *self._rows.spec.types)[-len(columns) :])

    def _choose_sql(self, split: bool) -> str:
        table = self._table
        arrays = [(f"m{i}", codec.compared) for i, codec in enumerate(table.codecs)]
        if split:
            arrays += [("hash", cast("bytea[]")), ("since", cast("text[]"))]
        if table.age is not None:
            arrays += [("after", cast("int8[]")), ("until", cast("int8[]"))]
        listed = len(arrays) == 1
        within, values = reach(table, len(arrays))
        limit = len(arrays) + len(values) + 1
        reference = table.rule.dependent.columns
        if listed:
            # One comparison with a list reads the table page by page, twice as fast as a join key by key.
            [codec] = table.codecs
            fits = [f"t.{quoted(reference[0])} = any({codec.compared('$1')})", *within]
            of, source = codec.read(f"t.{quoted(reference[0])}"), f"{target_of(table)} t"
        else:
            fits = [f"t.{quoted(column)} = k.m{i}" for i, column in enumerate(reference)]
            fits += [*([table.age.sql()] if table.age is not None else ()), *within]
            of, source = "k.n", f"{target_of(table)} t, {_unnested(arrays)}"
        if split:
            fits.append(since_condition(table, self._arrivals_table, f"${limit + 1}::text"))
        own = own_columns(self._rows.spec, table.own)
        shown = ", ".join(f"{column} as o{i}" for i, column in enumerate(own))
        chosen = (
            f"select {of} as n, {shown} from {source} where {' and '.join(fits)} limit ${limit}::int8 for update of t"
        )
        columns = ", ".join(f"array_agg(c.{name})" for name in ("n", *(f"o{i}" for i in range(len(own)))))
        return f"select {columns} from ({chosen}) c"

    def _closure_sql(self) -> tuple[str, str]:
        table = self._table
        reference = [f"t.{quoted(column)}" for column in table.rule.dependent.columns]
        own = [f"t.{quoted(column)}" for column in self._rows.spec.names]
        arrays = [(f"m{i}", codec.compared) for i, codec in enumerate(table.codecs)]
        within, values = reach(table, len(arrays))
        names = [*(f"m{i}" for i in range(len(reference))), *(f"o{i}" for i in range(len(own)))]
        target = target_of(table)
        tops = " and ".join([*(f"{column} = k.m{i}" for i, column in enumerate(reference)), *within])
        more = " and ".join([*(f"{column} = c.o{i}" for i, column in enumerate(reference)), *within])
        selected = f"select {', '.join([*reference, *own])} from {target} t"
        # By index for each row ("offset 0" forbids a join): a join would read the table once a level.
        both_codecs = (*table.codecs, *table.own)
        shown = ", ".join(self._read([f"c.{name}" for name in names], both_codecs))
        closure = (
            f"with recursive c({', '.join(names)}) as ({selected}, {_unnested(arrays)} where {tops}"
            f" union select l.* from c cross join lateral ({selected} where {more} offset 0) l)"
            f" select {shown} from c limit ${len(arrays) + len(values) + 1}::int8"
        )
        both = [*arrays, *((f"o{i}", codec.compared) for i, codec in enumerate(table.own))]
        fits = [f"{column} = k.{name}" for column, name in zip([*reference, *own], names, strict=True)]
        fits += reach(table, len(both))[0]
        locked = ", ".join(self._read([*reference, *own], both_codecs))
        return closure, (
            f"select {locked} from {target} t, {_unnested(both)} where {' and '.join(fits)} for update of t"
        )

    def _remove_named_sql(self) -> str:
        """Rows by nothing but their primary key, which takes a quarter of the time: they are locked since they were
        chosen. The number of all that go is the only answer. Empty where that can't be."""
        table = self._table
        if self._keeper is not None or len(table.own) > 1 or table.primary_key != self._rows.spec.names:
            return ""
        [codec], [name] = table.own, self._rows.spec.names
        fits = [f"t.{quoted(name)} = any({codec.compared('$1')})", *reach(table, 1)[0]]
        return f"delete from {target_of(table)} t where {' and '.join(fits)}"

    def _remove_sql(self) -> str:
        table = self._table
        arrays = [(f"m{i}", codec.compared) for i, codec in enumerate(table.codecs)]
        arrays += [(f"o{i}", codec.compared) for i, codec in enumerate(table.own)]
        arrays.append(("g", cast("int4[]")))
        fits = [f"t.{quoted(column)} = k.m{i}" for i, column in enumerate(table.rule.dependent.columns)]
        fits += [f"t.{quoted(column)} = k.o{i}" for i, column in enumerate(self._rows.spec.names)]
        within, values = reach(table, len(arrays))
        fits += within
        returned, kept = "k.g as n", ""
        if self._keeper is not None:
            base = len(arrays) + len(values)
            # In the order in which they were chosen, the last first: what was chosen from the top down is put back so.
            returned += self._keeper.returned(base, removes=True, order="k.n")
            kept = self._keeper.insert(base, removes=True)
        return (
            f"with acted as (delete from {target_of(table)} t using {_unnested(arrays)}"
            f" where {' and '.join(fits)} returning {returned}){kept} select n, count(*) from acted group by n"
        )


def own_columns(spec: KeySpec, codecs: Sequence[Codec]) -> list[str]:
    """The columns of a row `t`'s own key, as `scalar` takes them."""
    return _readable([f"t.{quoted(column)}" for column in spec.names], codecs, spec.types)


def _readable(columns: Sequence[str], codecs: Sequence[Codec], kinds: Sequence[KeyType]) -> list[str]:
    """Columns as `scalar` takes them: texts as texts, whatever type they have; all else as it is."""
    texts = (KeyType.STRING, KeyType.OBJECTID)
    return [
        codec.read(column) if kind in texts else column
        for column, codec, kind in zip(columns, codecs, kinds, strict=True)
    ]


def _unnested(arrays: Sequence[tuple[str, Callable[[str], str]]]) -> str:
    bound = ", ".join(made(f"${i}") for i, (_, made) in enumerate(arrays, 1))
    return f"unnest({bound}) with ordinality as k({', '.join(name for name, _ in arrays)}, n)"
