"""Values of strict JSON as they were written, ready to be written again: every digit of a number stays."""

from __future__ import annotations

from decimal import Decimal

from msgspec import Raw

from integrity.core.keys import Exponential


def as_written(value: object) -> object:
    """The value with numbers as raw JSON where an encoder would write them in another way."""
    match value:
        case Decimal():
            return Raw(format(value, "f").encode())
        case Exponential():
            return Raw(value.text.encode())
        case int() if not isinstance(value, bool):
            return Raw(str(value).encode())  # beyond 64 bits too
        case dict():
            return {name: as_written(part) for name, part in value.items()}
        case list():
            return [as_written(part) for part in value]
        case _:
            return value
