"""`entity` and `key` of a dependent: rows that are parents themselves.

Where a column of the key is also one of the reference (an identifying relationship), a key change of the parent is a
key change of the row. Such a column is never null and never set by `tombstone`, so that a row can always be named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import assert_never

from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules import names
from integrity.core.rules.findings import FindingCode, Located, Report, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import Action, Cascade, Ignore, Nullify, Restrict, SetDefault, TargetKind, Tombstone


def check_rows(
    report: Report,
    key: KeyDraft,
    at: Located,
    references: Mapping[str, str],
    parent_key: KeyDraft | None,
    kind: TargetKind | None,
    actions: Collection[Action | None],
) -> KeySpec | None:
    """The key of the rows, or None when something was reported of it."""
    is_sound = True
    types: list[tuple[str, KeyType]] = []
    for column, type_ in key.items():
        if type_ is None:
            is_sound = False
            continue
        types.append((column, type_))
        referenced = (parent_key or {}).get(references.get(column, ""))
        if referenced is not None and referenced is not type_:
            message = f"{shown(column)} is {type_} in key, and references a key field that is {referenced}"
            report.add(FindingCode.KEY_CLASH, message, at, "A column has one type: write the same.")
            is_sound = False
    if kind is not None and (pair := names.overlapping(kind, (*dict.fromkeys((*key, *references)),))) is not None:
        message = f"the field {shown(pair[1])} of key or references lies in {shown(pair[0])}"
        report.add(FindingCode.OVERLAPPING_FIELDS, message, at)
        is_sound = False
    for column in [column for action in actions if action is not None for column in _unnamed(action)]:
        if column in key:
            message = f"an action would make {shown(column)} null or set it, and it is part of the rows' own key"
            report.add(FindingCode.KEY_COLUMN, message, at, "Choose other columns, or another action.")
            is_sound = False
    return KeySpec(tuple(types)) if is_sound else None


def _unnamed(action: Action) -> Collection[str]:
    """The columns that an action makes null, or sets to what no reference follows."""
    match action:
        case Nullify():
            return action.columns
        case SetDefault():
            return [column for column, value in action.values.items() if value is None]
        case Tombstone():
            return action.set
        case Cascade() | Ignore() | Restrict():
            return ()
        case _:
            assert_never(action)
