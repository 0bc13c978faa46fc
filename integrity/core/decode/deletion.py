"""The short way to read a deletion, which is what most records of a busy day are.

It takes only what is beyond doubt, and what the careful way (`json`) reads alike. Everything else, be it broken or only
unusual, it leaves to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from integrity.core.decode.record import Limits

_ABSENT = Raw()


class _Deletion(Struct, gc=False):
    """What nearly every deletion is: an envelope without a schema. Its row, and the rest, stay unread."""

    op: Literal["d"]
    source: Raw
    before: Raw = _ABSENT
    after: Raw = _ABSENT
    transaction: Raw = _ABSENT
    ts_ms: Raw = _ABSENT
    ts_us: Raw = _ABSENT
    ts_ns: Raw = _ABSENT


# What a field costs beside its value when there is no white space: its name, two quotes, a colon, a comma. Braces
# around all of them, and one comma less, make one more.
_COSTS = tuple(len(name) + 4 for name in _Deletion.__struct_fields__[1:])
_OP_COST = len('"op":"d",') + 1
_ALL_COST = _OP_COST + sum(_COSTS)

_decode = msgspec.json.Decoder(_Deletion).decode
_decode_flat = msgspec.json.Decoder(dict[str, str | int | float | bool | None]).decode

_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def parse_deletion(data: bytes, limits: Limits) -> Mapping[str, object] | None:
    """The source of an envelope that is a deletion beyond doubt: what `check_text`, `parse_envelope`, `check_depth` and
    `parse_object` make of it. None: it is none, or it is left to them."""
    if len(data) > limits.record_bytes_max:
        return None
    try:
        if not data.isascii():
            data.decode()
        found = _decode(data)
        text = bytes(found.source)
        source = _decode_flat(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    # The parts and their names fill the text: there is no room for a second field of one name, nor for another field.
    before, after, transaction = found.before, found.after, found.transaction
    ms, us, ns = found.ts_ms, found.ts_us, found.ts_ns
    room = len(data) - len(text) - len(before) - len(after) - len(transaction) - len(ms) - len(us) - len(ns)
    if room != _ALL_COST or not (before and after and transaction and ms and us and ns):
        parts = (text, before, after, transaction, ms, us, ns)
        if room != _OP_COST + sum(compress(_COSTS, parts)):
            return None
    # Every field has a colon, and an escape could hide one of a text.
    colons = text.count(b":") - len(source)
    if colons and (b"\\" in text or colons != sum([part.count(":") for part in source.values() if type(part) is str])):
        return None
    # Nearly every row is flat, which is told by looking for what is not there; and a level takes two brackets.
    row = bytes(before)
    is_flat = row.find(b"{", 1) < 0 and row.find(b"[", 1) < 0
    if is_flat and len(after) + len(transaction) < 2 * limits.depth_max - 2:
        return source
    return source if len(data.translate(None, _NO_BRACKETS)) <= 2 * limits.depth_max else None
