"""Durations as people write them."""

from __future__ import annotations

import re
from typing import Final

_WRITTEN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float | None:
    """Seconds of `500ms`, `30s`, `10m`, `1h`, `2d`; None for any other text."""
    match = _WRITTEN.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _UNITS_S[match[2]]


def duration_text(milliseconds: int) -> str:
    """It in words, exactly, in the largest unit that it is a whole number of: `90 min`, `24 h`, `7 d`."""
    for unit, size, least in (("d", 86_400_000, 2), ("h", 3_600_000, 1), ("min", 60_000, 1), ("s", 1000, 1)):
        if milliseconds % size == 0 and milliseconds >= least * size:
            return f"{milliseconds // size} {unit}"
    return f"{milliseconds} ms"
