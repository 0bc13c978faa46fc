"""Which names a rule file may use. Each check returns what is wrong with a name, or None.

Names of tables, columns and fields are wide where databases are, but hold nothing that could end a quoted identifier
or act as an operator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from integrity.core.rules.model import TargetKind

IDENTIFIER_BYTES_MAX = 63
COLLECTION_BYTES_MAX = 200
KEY_FIELDS_MAX = 32
SWEEPS_MAX = 10
SWEEP_MIN_S, SWEEP_MAX_S = 1.0, 30 * 86400.0
UNDO_MIN_S, UNDO_MAX_S = 60.0, 3650 * 86400.0
PATH_PARTS_MAX = 32
PATH_BYTES_MAX = 255

ENTITY_PATTERN = r"^[a-z][a-z0-9_]*$"
STORE_PATTERN = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
DEPENDENT_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
TOPIC_PATTERN = r"^[A-Za-z0-9._-]+$"
NAME_CHARACTERS_MAX = 63
TOPIC_CHARACTERS_MAX = 249
PREFIX_CHARACTERS_MAX = 63


def entity_fault(name: str) -> str | None:
    if not re.fullmatch(ENTITY_PATTERN, name) or name.endswith("\n"):
        return "must be lower-case letters, digits and _, and begin with a letter"
    return _too_long(name, NAME_CHARACTERS_MAX)


def store_fault(name: str) -> str | None:
    if not re.fullmatch(STORE_PATTERN, name) or name.endswith("\n"):
        return "must be lower-case letters, digits and single _, and begin with a letter"
    return _too_long(name, NAME_CHARACTERS_MAX)


def dependent_fault(name: str) -> str | None:
    if not re.fullmatch(DEPENDENT_PATTERN, name) or name.endswith("\n"):
        return "must be letters, digits, '_', '.' and '-'"
    return _too_long(name, TOPIC_CHARACTERS_MAX)


def topic_fault(name: str) -> str | None:
    """Kafka's own rule for topic names."""
    if not re.fullmatch(TOPIC_PATTERN, name) or name.endswith("\n") or name in (".", ".."):
        return "must be letters, digits, '.', '_' and '-'"
    return _too_long(name, TOPIC_CHARACTERS_MAX)


def table_fault(name: str) -> str | None:
    """`name` or `schema.name`; the catalogue has the last word when a store is opened."""
    parts = name.split(".")
    if len(parts) > 2:
        return "must be name or schema.name"
    for part in parts:
        if fault := _identifier_fault(part):
            return fault
    if len(parts) == 2 and (parts[0].startswith("pg_") or parts[0] == "information_schema"):
        return "is in a schema of the system"
    return None


def collection_fault(name: str) -> str | None:
    """MongoDB's rule for collection names, and its driver's."""
    if fault := _text_fault(name):
        return fault
    if "$" in name:
        return "must not contain '$'"
    if name.startswith("system."):
        return "must not begin with 'system.'"
    if name.startswith(".") or name.endswith(".") or ".." in name:
        return "has an empty part between dots"
    return _too_large(name, COLLECTION_BYTES_MAX)


def column_fault(kind: TargetKind, name: str) -> str | None:
    """A column of a table, or a field path (`address.city`) of a document or of a topic's JSON value."""
    if kind is TargetKind.TABLE:
        return "must be one column name, without a dot" if "." in name else _identifier_fault(name)
    parts = name.split(".")
    if len(parts) > PATH_PARTS_MAX:
        return f"has more than {PATH_PARTS_MAX} parts"
    if not all(parts):
        return "has an empty part" if name else "is empty"
    if any(part.startswith("$") for part in parts):
        return "must not have a part that begins with '$'"
    if any(part.isdecimal() for part in parts):
        return "must not have a part of digits only: it could be a position in a list"
    return _text_fault(name) or _too_large(name, PATH_BYTES_MAX)


def key_field_fault(name: str) -> str | None:
    """A field of a record key."""
    return _text_fault(name) or _too_large(name, PATH_BYTES_MAX)


def prefix_fault(name: str) -> str | None:
    """What names of added fields begin with."""
    return _text_fault(name) or _too_long(name, PREFIX_CHARACTERS_MAX)


def overlapping(kind: TargetKind, names: Sequence[str]) -> tuple[str, str] | None:
    """Two field paths of which one lies in the other (`a` and `a.b`): they cannot be written at once."""
    if kind is TargetKind.TABLE:
        return None
    for outer, inner in pairwise(sorted(tuple(name.split(".")) for name in names)):
        if inner[: len(outer)] == outer:
            return ".".join(outer), ".".join(inner)
    return None


def _identifier_fault(name: str) -> str | None:
    if fault := _text_fault(name):
        return fault
    if '"' in name or ";" in name:
        return "must not contain '\"' or ';'"
    return _too_large(name, IDENTIFIER_BYTES_MAX)


def _text_fault(name: str) -> str | None:
    if not name:
        return "is empty or has an empty part"
    if not name.isprintable():
        return "contains a control character"
    if name != name.strip():
        return "begins or ends with a space"
    return None


def _too_long(name: str, characters_max: int) -> str | None:
    return f"has more than {characters_max} characters" if len(name) > characters_max else None


def _too_large(name: str, bytes_max: int) -> str | None:
    return f"has more than {bytes_max} bytes" if len(name.encode("utf-8", "replace")) > bytes_max else None
