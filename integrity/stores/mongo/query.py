"""Which documents a rule reaches, as filters that never widen.

MongoDB's equality looks into arrays, at the end of a path and on the way; null also matches a missing field; and a
collection's collation can make different texts equal. Here a value matches only itself: `$in` takes operators and
patterns literally, arrays are excluded on every step of every path (but for the list itself that a rule with `array`
names), and `EXACT` is passed with each filter. Numbers
match across int32, int64, double and Decimal128 when exactly equal, as they do everywhere in MongoDB. In `where`, and
for the tombstone's marker, null means null or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from pymongo.collation import Collation

from integrity.core.keys import Key
from integrity.core.rules.model import Dependent, Tombstone

Filter = dict[str, object]

EXACT = Collation(locale="simple")
"""Texts are equal when their bytes are, whatever the collection's own collation says."""


def referencing(columns: Sequence[str], keys: Mapping[Key, Sequence[object]]) -> Filter:
    """Documents whose reference is one of `keys` (at least one), each given with its parts as BSON values.

    A composite reference is one branch for each combination of all parts but the last, so that an index serves it.
    """
    branches: dict[Key, Filter] = {}
    ends: dict[Key, list[object]] = {}
    for key, parts in keys.items():
        first = key[:-1]
        if first not in branches:
            ends[first] = []
            equal: Filter = {column: {"$in": [part]} for column, part in zip(columns[:-1], parts[:-1], strict=True)}
            branches[first] = equal | {columns[-1]: {"$in": ends[first]}}
        ends[first].append(parts[-1])
    return next(iter(branches.values())) if len(branches) == 1 else {"$or": list(branches.values())}


def within_reach(dependent: Dependent) -> list[Filter]:
    """What every document of a dependent meets beside its reference: no array on the way, `where`, not marked, and a
    date in `as_of`.

    A reference that is a list of keys has to be an array, and is the only one.
    """
    marker = [dependent.on_delete.marker] if isinstance(dependent.on_delete, Tombstone) else []
    as_of = [] if dependent.as_of is None else [dependent.as_of]
    paths = _steps([*dependent.columns, *dependent.where, *marker, *as_of])
    lists = dependent.columns if dependent.array else ()
    conditions: list[Filter] = [
        {path: {"$type": "array"} if path in lists else {"$not": {"$type": "array"}}} for path in paths
    ]
    for path, wanted in dependent.where.items():
        conditions.append({path: {"$in": list(wanted) if isinstance(wanted, tuple) else [wanted]}})
    conditions += [{path: {"$in": [None]}} for path in marker]
    conditions += [{path: {"$type": "date"}} for path in as_of]
    return conditions


def reader(path: str) -> Callable[[Mapping[str, Any]], object]:
    """What reads the value at a dotted path, given that it is there and no array is on the way."""
    first, *rest = path.split(".")
    if not rest:
        return itemgetter(first)

    def read(document: Mapping[str, Any]) -> object:
        value = document[first]
        for part in rest:
            value = value[part]
        return value

    return read


def path_reader(path: str) -> Callable[[Mapping[str, Any]], object]:
    """What reads the value at a dotted path, None where it is not there or an array is on the way."""
    parts = path.split(".")

    def read(document: Mapping[str, Any]) -> object:
        value: object = document
        for part in parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return read


def _steps(paths: Iterable[str]) -> list[str]:
    """Every path with all its beginnings, once each: `a.b` gives `a` and `a.b`."""
    found: dict[str, None] = {}
    for path in paths:
        parts = path.split(".")
        found.update((".".join(parts[:length]), None) for length in range(1, len(parts) + 1))
    return list(found)
