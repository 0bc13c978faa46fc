"""The short way to read a deletion, which is what most records of a busy day are: as one like it was read before.

A row, then the rest of an envelope that is like one before (`shape`): that is what the careful way (`json`) reads
alike. Everything else, be it broken or only unusual, is left to that.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from integrity.core.decode.record import Limits
from integrity.core.decode.shape import Shapes

_ROW, _REST = b'{"before":', b',"after":null,'
_ROW_AT = len(_ROW)
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)

_decode = msgspec.json.Decoder(msgspec.Raw).decode


class Deletions:
    """Reads the envelopes of deletions, of which it tells the connector, and the wanted fields of the source."""

    __slots__ = ("_brackets_max", "_bytes_max", "_rests")

    def __init__(self, limits: Limits, wanted: Collection[str]) -> None:
        self._bytes_max, self._brackets_max = limits.record_bytes_max, 2 * limits.depth_max - 2
        self._rests = Shapes([("source", name) for name in ("connector", *wanted)], inside=1)

    def source(self, text: bytes) -> dict[str, object] | None:
        """What the source of an envelope tells that is a deletion beyond doubt; None when it is none, or is left to the
        careful way."""
        if text[:_ROW_AT] != _ROW or len(text) > self._bytes_max:
            return None
        before, _, rest = text.rpartition(_REST)
        told = self._rests.told(rest)
        if told is None:
            return None
        row = before[_ROW_AT:]
        try:
            if not row.isascii():
                row.decode()
            _decode(row)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        # Nearly every row is flat, which is told by looking for what is not there; and a level takes two brackets.
        if row.find(b"{", 1) < 0 and row.find(b"[", 1) < 0:
            return told
        return told if len(row.translate(None, _NO_BRACKETS)) <= self._brackets_max else None

    def learn(self, text: bytes, before: bytes) -> None:
        """Remember an envelope that is a deletion and was read with all care; `before` is its row."""
        at = _ROW_AT + len(before)
        if text.startswith(_REST, at) and text[:at] == _ROW + before:
            self._rests.learn(text[at + len(_REST) :])
