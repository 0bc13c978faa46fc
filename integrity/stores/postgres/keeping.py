"""What rows were before an event changed them is kept in the very statement that changes them.

Every value is kept as PostgreSQL writes it as text, so that it can be read again by its column's type, as a dump is:
whatever type it has, it comes back as it was. Of a row that goes all columns are kept, of any other those that are set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from integrity.core.fold import Group
from integrity.stores.postgres.effects import Table, changed_positions, target_of
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.types import cast

_HEADS: Final = ("n int8", "step int4", "kind text", "first bool", "event text", "version text", "entity text")
_HEADS_MORE: Final = ("key text", "key_hash bytea", "action text")


class Keeper:
    """What a statement of one dependent has to keep of the rows that it changes."""

    def __init__(self, table: Table, undo_table: str) -> None:
        self._table = table
        self._undo_table = undo_table
        self._reference = table.rule.dependent.columns
        self._positions = changed_positions(table.rule)
        self._marks = [setting.column for setting in table.settings]
        keyed = set(table.primary_key)
        self._keyed = [position for position in self._positions if self._reference[position] in keyed]

    def returned(self, base: int, *, removes: bool, order: str) -> str:
        """What the statement returns of each row `t` (and `o`: the same before it was changed), beside `n`. Its own
        arguments begin after `base`."""
        names = base + len(self._arrays()) + 3
        old = "t" if removes else "o"
        pk, ref, keyed = self._table.primary_key, [self._reference[i] for i in self._positions], self._keyed
        found = [
            f"{order} as o",
            f"{_object(names + 1, 't', pk)} as pk",
            f"{_object(names + 2, old, ref)} as ref",
            f"{_object(names + 3, old, [self._reference[i] for i in keyed])} as was",
        ]
        if removes:
            found.append(f"{_object(names + 4, 't', self._image)} as image")
        else:
            found.append(f"{_object(names + 4, 'o', self._marks)} as marks")
            found.append(f"{_object(names + 4, 't', self._marks)} as marked")
        return "".join(f", {each}" for each in found)

    def before(self) -> tuple[str, str]:
        """What an update reads the rows `o` from, and how they are the rows `t`."""
        same = " and ".join(f"o.{quoted(column)} = t.{quoted(column)}" for column in self._table.primary_key)
        return f"{target_of(self._table)} o", same

    def insert(self, base: int, *, removes: bool) -> str:
        """The part of the statement that keeps what is `acted` on."""
        arrays = self._arrays()
        more = base + len(arrays)
        dependent, at_ms, kept_ms, ref, keyed = (f"${more + i}" for i in (1, 2, 3, 5, 6))
        places = range(len(self._positions))
        before = _listed(ref, [f"u.b{i}" for i in places])
        after = _listed(ref, [f"u.f{i}" for i in places])
        own = [self._positions.index(position) for position in self._keyed]
        own_before = _listed(keyed, [f"u.b{i}" for i in own])
        own_after = _listed(keyed, [f"u.f{i}" for i in own])
        row = {"refers": f"a.pk || {own_after}"}
        was = {"refers": f"a.pk || case when u.first then a.was else {own_before} end"}
        image = {"refers": f"case when u.first then a.ref else {before} end"}
        now = {"refers": after}
        if removes:
            row["removed"] = was["removed"] = f"case when u.first then a.pk else a.pk || {own_before} end"
            image["removed"] = f"case when u.first then a.image else a.image || {before} end"
            now["removed"] = "null"
        else:
            row["marks"] = was["marks"] = "a.pk"
            image["marks"], now["marks"] = "a.marks", "a.marked"
        bound = ", ".join(made(f"${base + i}") for i, (_, made) in enumerate(arrays, 1))
        return (
            f", kept_rows as (insert into {self._undo_table} (event, version, entity, key, dependent, key_hash, action,"
            ' "row", was, image, after, at_ms, expires_ms)'
            f" select u.event, u.version, u.entity, u.key, {dependent}::text, u.key_hash, u.action,"
            f" {_case(row)}, {_case(was)}, {_case(image)}, {_case(now)}, {at_ms}::int8, {at_ms}::int8 + {kept_ms}::int8"
            f" from acted a join unnest({bound}) as u({', '.join(name for name, _ in arrays)}) on u.n = a.n"
            " order by u.step, a.o desc)"
        )

    def arguments(self, groups: Iterable[tuple[int, Group]], at_ms: int, *, removes: bool) -> list[object]:
        """The values of the arguments: for groups, each with its number in the statement. Raises Unfit."""
        table = self._table
        columns: list[list[object]] = [[] for _ in self._arrays()]
        for number, group in groups:
            for step, turn in enumerate(group.trail):
                kind = "marks" if turn.marks else "removed" if turn.after is None else "refers"
                values: list[object] = [number, step, kind, step == 0, turn.event, turn.version.text, turn.entity]
                values += [turn.key, turn.key_hash, turn.action]
                for held in (turn.before, turn.after or (None,) * len(turn.before)):
                    for i in self._positions:
                        part = held[i]
                        values.append(None if part is None else table.codecs[i].assign(part))
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        assert table.rule.dependent.undo_ms is not None
        names = [
            list(table.primary_key),
            [self._reference[i] for i in self._positions],
            [self._reference[i] for i in self._keyed],
            list(self._image) if removes else self._marks,
        ]
        return [*columns, table.rule.id, at_ms, table.rule.dependent.undo_ms, *names]

    @property
    def _image(self) -> Sequence[str]:
        return [column for column, (_, computed) in self._table.columns.items() if not computed]

    def _arrays(self) -> list[tuple[str, Callable[[str], str]]]:
        found = [each.split() for each in (*_HEADS, *_HEADS_MORE)]
        arrays = [(name, cast(f"{type}[]")) for name, type in found]
        for side in "bf":
            arrays += [(f"{side}{i}", self._table.codecs[p].written) for i, p in enumerate(self._positions)]
        return arrays


def _object(place: int, row: str, columns: Sequence[str]) -> str:
    """Columns of a row with their values as text; the names are bound."""
    return _listed(f"${place}", [f"{row}.{quoted(column)}" for column in columns])


def _listed(names: str, values: Sequence[str]) -> str:
    texts = ", ".join(f"{value}::text" for value in values)
    return f"pg_catalog.jsonb_object({names}::text[], array[{texts}]::text[])"


def _case(of_kind: Mapping[str, str]) -> str:
    return "case u.kind " + " ".join(f"when '{kind}' then {value}" for kind, value in of_kind.items()) + " end"
