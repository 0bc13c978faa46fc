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
_ROW_AT, _REST_AT = len(_ROW), len(_REST)
_BRACKETS = b"[]{}"
_BRACE, _BRACKET = b"{["  # as numbers: to look for one in bytes is much faster than for bytes of one
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)

_decode = msgspec.json.Decoder(msgspec.Raw).decode


class Deletions:
    """Reads the envelopes of deletions, of which it tells the connector, and the wanted fields of the source."""

    __slots__ = ("_brackets_max", "_bytes_max", "_rest_bytes", "_rests")

    def __init__(self, limits: Limits, wanted: Collection[str]) -> None:
        self._bytes_max, self._brackets_max = limits.record_bytes_max, 2 * limits.depth_max - 2
        self._rests = Shapes([("source", name) for name in ("connector", *wanted)], inside=1)
        self._rest_bytes = 0
        """How long the last rest was: where it began, the next one nearly always begins."""

    def source(self, text: bytes) -> dict[str, object] | None:
        """What the source of an envelope tells that is a deletion beyond doubt; None when it is none, or is left to the
        careful way."""
        if text[:_ROW_AT] != _ROW or len(text) > self._bytes_max:
            return None
        rest_at = len(text) - self._rest_bytes
        if text[rest_at - _REST_AT : rest_at] != _REST:
            row_ends = text.rfind(_REST)
            if row_ends < 0:
                return None
            rest_at = row_ends + _REST_AT
            self._rest_bytes = len(text) - rest_at
        told = self._rests.told(text[rest_at:])
        if told is None:
            return None
        row = text[_ROW_AT : rest_at - _REST_AT]
        try:
            if not row.isascii():
                row.decode()
            _decode(row)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None
        # Nearly every row is flat, which is told by looking for what is not there; and a level takes two brackets.
        inner = row[1:]
        if _BRACE not in inner and _BRACKET not in inner:
            return told
        return told if len(row.translate(None, _NO_BRACKETS)) <= self._brackets_max else None

    def learn(self, text: bytes, before: bytes) -> None:
        """Remember an envelope that is a deletion and was read with all care; `before` is its row."""
        at = _ROW_AT + len(before)
        if text.startswith(_REST, at) and text[:at] == _ROW + before:
            rest = text[at + _REST_AT :]
            self._rest_bytes = len(rest)
            self._rests.learn(rest)
