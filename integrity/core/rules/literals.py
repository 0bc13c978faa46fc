"""Whether a literal of a rule file fits a key type: the same gate as for values from events decides.

YAML has no word for dates, UUIDs or bytes: those are written as quoted text.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from integrity.core.keys import KeyRefused, KeyType, gate
from integrity.core.rules.model import Literal

_WRITTEN_AS: Mapping[KeyType, tuple[type, ...]] = {
    KeyType.INT32: (int,),
    KeyType.INT64: (int,),
    KeyType.NUMERIC: (int, float),
    KeyType.BOOL: (bool,),
    KeyType.STRING: (str,),
    KeyType.UUID: (str,),
    KeyType.DATE: (str,),
    KeyType.TIMESTAMP: (str,),
    KeyType.BYTES: (str,),
    KeyType.OBJECTID: (str,),
}

EXPECTED: Mapping[KeyType, str] = {
    KeyType.INT32: "a whole number of 32 bits",
    KeyType.INT64: "a whole number of 64 bits",
    KeyType.NUMERIC: "a number",
    KeyType.BOOL: "true or false",
    KeyType.STRING: "text, quoted if it looks like something else",
    KeyType.UUID: "a UUID such as 00000000-0000-0000-0000-000000000000",
    KeyType.DATE: 'a quoted date such as "1970-01-01"',
    KeyType.TIMESTAMP: 'a quoted moment such as "1970-01-01T00:00:00Z"',
    KeyType.BYTES: "bytes in base64, quoted",
    KeyType.OBJECTID: "24 hexadecimal digits, quoted",
}
"""What to write for a literal of each key type."""


def fits(kind: KeyType, value: Literal) -> bool:
    """Whether the literal is a key part of this type; null fits every type."""
    if value is None:
        return True
    if type(value) not in _WRITTEN_AS[kind]:
        return False
    try:
        gate(kind, Decimal(repr(value)) if isinstance(value, float) else value, None)
    except KeyRefused:
        return False
    return True
