"""The hash of a rule set: over what the rules say, not over their comments, layout, file names or order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import assert_never

from integrity.core.keys import KeySpec
from integrity.core.rules.model import (
    DEFAULT_PREFIX,
    Action,
    Cascade,
    Copy,
    Dependent,
    EventValue,
    Ignore,
    KeyFormat,
    KeyFrom,
    Literal,
    Match,
    Nullify,
    Parent,
    Restrict,
    SetDefault,
    Tombstone,
    Truncates,
    Types,
)

HASH_DIGITS = 12


def hash_of(parents: Iterable[Parent]) -> str:
    """12 hex digits; the same for two rule sets that mean the same."""
    dump = [_parent(parent) for parent in sorted(parents, key=lambda parent: parent.entity)]
    text = json.dumps(dump, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _parent(parent: Parent) -> Mapping[str, object]:
    events = parent.events
    source = None if events is None else events.source
    found: dict[str, object] = {
        "parent": parent.entity,
        "topics": None if events is None or events.pattern is not None else sorted(events.topics),
        "format": None if events is None else events.format,
        "key": _key(parent.key),
        "tombstones": None if events is None else events.tombstones,
        "deleted_when": None if events is None else events.deleted_when,
        "epoch": None if events is None else events.epoch,
        "sweeps": parent.sweeps_ms,
        "dependents": [_dependent(dependent) for dependent in sorted(parent.dependents, key=lambda d: d.name)],
    }
    if events is not None and events.types is not None:
        found["types"] = _types(events.types)
    if events is not None and events.key_from is not KeyFrom.RECORD:
        found["key_from"] = events.key_from
    if events is not None and events.key_format is not KeyFormat.JSON:
        found["key_format"] = events.key_format
    if events is not None and events.version is not None:
        found["version"] = list(events.version)
    if events is not None and events.truncate is not Truncates.IGNORE:
        found["truncate"] = events.truncate
    if events is not None and events.pair_by is not None:
        found["pair_by"] = events.pair_by
    if events is not None and events.prefix != DEFAULT_PREFIX:
        found["prefix"] = events.prefix
    if events is not None and events.pattern is not None:
        found["pattern"] = events.pattern
    if events is not None and events.tenant is not None:
        found["tenant"] = [events.tenant.place, events.tenant.name]
    if source is not None:
        found["source"] = [source.store, source.target.kind, source.target.name]
    if parent.copies:
        found["copies"] = [copy_meaning(copy) for copy in sorted(parent.copies, key=lambda copy: copy.id)]
    return found


def _types(types: Types) -> Mapping[str, object]:
    return {
        "deleted": sorted(types.deleted),
        "key_changed": sorted(types.key_changed),
        "upserted": sorted(types.upserted),
        "header": types.header,
        "field": types.field,
        "payload": types.payload,
        "new_key": sorted(types.new_key.items()),
    }


def copy_hash(parent: Parent, copy: Copy) -> str:
    """8 hex digits over what the rows of a copy are: when it changes, the copy has to be made anew."""
    dump = [parent.entity, copy_meaning(copy), _key(parent.key)]
    return hashlib.sha256(json.dumps(dump, sort_keys=True).encode()).hexdigest()[:8]


def copy_meaning(copy: Copy) -> Mapping[str, object]:
    """What a copy says, as values of JSON."""
    rows = copy.rows
    return {
        "name": rows.name,
        "store": rows.store,
        "target": [rows.target.kind, rows.target.name],
        "columns": sorted(copy.columns.items()),
        "on_delete": _action(rows.on_delete),
    }


def _dependent(dependent: Dependent) -> Mapping[str, object]:
    return (
        {
            "name": dependent.name,
            "store": dependent.store,
            "target": [dependent.target.kind, dependent.target.name],
            "references": list(dependent.references.items()),
            "on_delete": _action(dependent.on_delete),
            "on_update": _action(dependent.on_update),
            "where": {column: _condition(value) for column, value in dependent.where.items()},
            "entity": dependent.entity,
            "rows_key": None if dependent.key is None else _key(dependent.key),
        }
        | ({} if dependent.max_rows is None else {"max_rows": dependent.max_rows})
        | ({"array": True} if dependent.array else {})
        | ({} if dependent.match is Match.SIMPLE else {"match": dependent.match})
        | ({} if dependent.as_of is None else {"as_of": dependent.as_of})
        | ({} if dependent.undo_ms is None else {"undo": dependent.undo_ms})
    )


def _key(spec: KeySpec) -> object:
    return [[name, kind] for name, kind in spec.fields]


def _action(action: Action) -> object:
    match action:
        case Cascade():
            return ["cascade"]
        case Nullify():
            return ["nullify", list(action.columns)]
        case SetDefault():
            return ["set_default", dict(action.values)]
        case Tombstone():
            # In order, for the first column is the marker.
            return ["tombstone", [[column, _value(value)] for column, value in action.set.items()]]
        case Restrict():
            return ["restrict"]
        case Ignore():
            return ["ignore"]
        case _:
            assert_never(action)


def _value(value: Literal | EventValue) -> object:
    return {"event": str(value)} if isinstance(value, EventValue) else value


def _condition(value: Literal | tuple[Literal, ...]) -> object:
    return sorted(value, key=repr) if isinstance(value, tuple) else value
