"""A key as people write it on a command line or in a path: its parts joined with commas, each percent-encoded.

Reading is exact: a part that is not beyond doubt of its type is refused, as it is in an event.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from integrity.core.keys import (
    DEFAULT_BOUNDS,
    FieldHint,
    Key,
    KeyRefused,
    KeySpec,
    KeyType,
    Scalar,
    canonical,
    gate,
    parse_canonical,
)
from integrity.errors import Reason

_ENCODED: Final = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*+", re.DOTALL)
_WHOLE: Final = re.compile(r"0|-?[1-9][0-9]{0,19}", re.ASCII)
_PLAIN_TEXT: Final = FieldHint("string")
"""Decimal numbers are written as they are read, which is what a schema says with this type."""


def parse_key(text: str, spec: KeySpec) -> Key:
    """The key that is written so. Raises KeyRefused, whose message says what was expected."""
    parts = text.split(",")
    if len(parts) != len(spec.fields):
        wanted = ",".join(spec.names)
        count = f"{len(parts)} part{'s' if len(parts) > 1 else ''}"
        raise KeyRefused(
            Reason.TYPE_MISMATCH,
            f"the key has {count}, it takes {len(spec.fields)}: {wanted} (a comma in a part is written %2C)",
        )
    return tuple(_part(name, kind, _decoded(name, part)) for (name, kind), part in zip(spec.fields, parts, strict=True))


def parse_parts(texts: Sequence[str], spec: KeySpec) -> Key:
    """The key whose parts are these texts, as they are. Raises KeyRefused."""
    return tuple(_part(name, kind, text) for (name, kind), text in zip(spec.fields, texts, strict=True))


def key_text(key: Key) -> str:
    """How the key is written; `parse_key` reads it."""
    return ",".join(quote(_plain(part), safe="") for part in key)


def key_of_ledger(text: str, spec: KeySpec) -> Key | None:
    """The key whose canonical text a ledger keeps; None when the text was cut there."""
    try:
        return parse_canonical(text, spec)
    except ValueError:
        return None


def _decoded(name: str, part: str) -> str:
    if _ENCODED.fullmatch(part) is None:
        raise KeyRefused(Reason.BAD_ENCODING, f"{name}: a percent sign is written %25")
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise KeyRefused(Reason.BAD_ENCODING, f"{name}: the percent-encoded bytes are no UTF-8") from None


def _part(name: str, kind: KeyType, text: str) -> Scalar:
    try:
        match kind:
            case KeyType.INT32 | KeyType.INT64:
                return gate(kind, int(text) if _WHOLE.fullmatch(text) else text, None)
            case KeyType.BOOL:
                return gate(kind, {"true": True, "false": False}.get(text, text), None)
            case KeyType.NUMERIC:
                return gate(kind, text, _PLAIN_TEXT)
            case _:
                return gate(kind, text, None, DEFAULT_BOUNDS)
    except KeyRefused as exc:
        raise KeyRefused(exc.reason, f"{name}: {exc.message}") from None


def _plain(part: Scalar) -> str:
    """A part alone: what `canonical` writes, without the quotes of a text."""
    if isinstance(part, str):
        return part
    return canonical((part,))[1:-1].strip('"')
