"""MongoDB's resume tokens: the place of a change in a change stream, written so that text order is stream order.

A token is a KeyString in hexadecimal: the cluster time, the token's version and kind, the index of the change in its
transaction, and then the collection and the document, which are not read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.record import Limits

_FIELD = "_data"
_HEX = re.compile("(?:[0-9a-fA-F]{2})+")
_TIMESTAMP, _ZERO, _POSITIVE, _FALSE, _TRUE = 0x82, 0x29, range(0x2B, 0x33), 0x6E, 0x6F
"""KeyString's marks. A whole number above 0 has as many bytes as its mark says, and is written doubled."""
_EVENT = 128
_UUID = bytes([0x5A, 0x10, 0x04])
_UUID_BYTES = len(_UUID) + 16
_OBJECT, _END = 0x46, 0x04
_VERSIONS = (1, 2)
_OF_COLLECTION = b"operationType\0"
_PLAIN = re.compile(
    "82([0-9A-F]{8})([0-9A-F]{8})2B0[24]2C0100296[EF]5A1004[0-9A-F]{32}46[0-9A-F]{2}"
    "(?!6F7065726174696F6E5479706500)(?:[0-9A-F]{2})*04"
)
"""What nearly all are: of a change of a document that is the first of its transaction, or of none."""


class Place(NamedTuple):
    """Where a change stands: the cluster time (seconds, and the number within the second), its
    order within its transaction. Places compare as the changes happened."""

    seconds: int
    number: int
    order: int


class Token(NamedTuple):
    """What a resume token tells. `is_of_document`: the change is one of a document, not of its collection."""

    place: Place
    is_of_document: bool


def token_in(found: object, limits: Limits) -> str | None:
    """The resume token in a value that a connector calls `_id`; also when the object around it was printed as text."""
    if type(found) is str and found.startswith("{") and _FIELD in found:
        try:
            found = parse(found.encode("utf-8", "surrogatepass"), limits)
        except JsonFault:
            return None
    if type(found) is dict and type(found.get(_FIELD)) is str:
        token: str = found[_FIELD]
        return token
    return None


def read_token(text: str) -> Token | None:
    """What a token of a change tells; None when it is written in another way than this reads."""
    if (plain := _PLAIN.fullmatch(text)) is not None:
        return Token(Place(int(plain[1], 16), int(plain[2], 16), 0), True)
    return _read_slowly(text)


def _read_slowly(text: str) -> Token | None:
    if not _HEX.fullmatch(text):
        return None
    data = bytes.fromhex(text)
    if len(data) < 9 or data[0] != _TIMESTAMP or data[-1] != _END:
        return None
    seconds, number = int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big")
    try:
        version, at = _whole(data, 9)
        kind, at = _whole(data, at)
        order, at = _whole(data, at)
        if version not in _VERSIONS or kind != _EVENT or data[at] not in (_FALSE, _TRUE):
            return None
        return Token(Place(seconds, number, order), _is_of_document(data, at + 1))
    except (ValueError, IndexError):
        return None


def _is_of_document(data: bytes, at: int) -> bool:
    """Whether a document's key follows the collection's UUID, not the kind of an event of the collection."""
    if data[at : at + len(_UUID)] != _UUID:
        return False
    at += _UUID_BYTES
    return data[at] == _OBJECT and data[at + 2 : at + 2 + len(_OF_COLLECTION)] != _OF_COLLECTION


def _whole(data: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, and the place after it."""
    mark = data[at]
    if mark == _ZERO:
        return 0, at + 1
    end = at + 1 + mark - _POSITIVE.start + 1
    if mark not in _POSITIVE or end > len(data):
        raise ValueError
    doubled = int.from_bytes(data[at + 1 : end], "big")
    if doubled % 2:
        raise ValueError
    return doubled // 2, end
