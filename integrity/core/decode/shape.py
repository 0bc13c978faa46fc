"""JSON texts that are the same as one that was read with all care before, but for digits that stand where digits stood.

Nothing is left to doubt in such a text: its fields, their order, nesting and types are those of the other, since only
numbers and texts have digits (names, and escapes that are made of digits, are seen to). One look-up tells it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from struct import Struct
from typing import Any, NamedTuple

import msgspec

Path = tuple[str, ...]
"""The names of the fields that lead to a value."""

_TOKENS = re.compile(rb'"((?:[^"\\]|\\.)*+)"(\s*+:)?|(-?[0-9][0-9.eE+-]*+)|([{}\[\]]|null|true|false)', re.DOTALL)
_WHOLE = re.compile(rb"-?(?:0|[1-9][0-9]{0,30})")
_DIGIT = re.compile(rb"[0-9]")
_MASK = bytes.maketrans(b"123456789", b"000000000")
_OPENING, _CLOSING = (b"{", b"["), (b"}", b"]")
_IN_LIST = ""
"""Stands in a path for a list: no field has that name in a path that is told."""
_ZERO = ord("0")

_text = msgspec.json.Decoder(str).decode
_whole = msgspec.json.Decoder(int).decode
_value = msgspec.json.Decoder().decode


class _Shape(NamedTuple):
    """Where in a text the values stand that are told."""

    constant: dict[str, object]
    varying: tuple[tuple[str, int, Callable[[bytes], object]], ...]
    pieces: Callable[[bytes], tuple[bytes, ...]]
    """Cuts out the texts of the varying values."""
    first_digits: Callable[[bytes], tuple[int, ...]]
    """Those of its other numbers that must not be zeros."""


class Shapes:
    """What is remembered of texts, and what texts like them tell: the scalars at the paths of `told`, by the last name
    of each path. `inside`: how many objects the texts begin in."""

    __slots__ = ("_every", "_inside", "_missed", "_shapes", "_shapes_max", "_told")

    def __init__(self, told: Collection[Path], *, inside: int, shapes_max: int = 512) -> None:
        self._told = frozenset(told)
        self._inside = inside
        self._shapes: dict[bytes, _Shape] = {}
        self._shapes_max = shapes_max
        self._missed, self._every = 0, 1

    def told(self, text: bytes) -> dict[str, object] | None:
        """What a text tells that is like one that was learnt; None when it is like none."""
        shape = self._shapes.get(text.translate(_MASK))
        if shape is None:
            return None
        constant, varying, pieces, first_digits = shape
        if _ZERO in first_digits(text):
            return None
        told = constant.copy()
        try:
            cut = pieces(text)
            for name, index, read in varying:
                told[name] = read(cut[index])
        except msgspec.DecodeError:  # a number that begins with a zero
            return None
        return told

    def learn(self, text: bytes) -> None:
        """Remember a text that was read with all care. To learn costs as much as to read ten texts: where ever new
        ones come it happens ever less often."""
        self._missed += 1
        if self._missed % self._every:
            return
        if len(self._shapes) >= self._shapes_max:
            self._shapes.clear()
            self._every *= 2
        shape = _shape_of(text, self._told, self._inside)
        if shape is not None:
            self._shapes[text.translate(_MASK)] = shape


def _shape_of(text: bytes, told: Collection[Path], inside: int) -> _Shape | None:
    """The shape of a text; None when it is of no use as one."""
    path: list[str] = [_IN_LIST] * inside
    constant: dict[str, object] = {}
    varying: list[tuple[str, int, Callable[[bytes], object]]] = []
    pieces: list[tuple[int, int]] = []
    first_digits: list[tuple[int, int]] = []
    for token in _TOKENS.finditer(text):
        string, colon, number, other = token.groups()
        begin, end = token.span()
        if colon is not None:
            if b"\\" in string or _DIGIT.search(string) or not path:
                return None
            path[-1] = string.decode()
            continue
        is_told = tuple(path) in told
        if other in _OPENING:
            if is_told:
                return None
            path.append(_IN_LIST)
        elif other in _CLOSING:
            path.pop()
        elif number is not None:
            if not _WHOLE.fullmatch(number):
                return None
            if is_told:
                varying.append((path[-1], len(pieces), _whole))
                pieces.append((begin, end))
            elif end - begin > 1:
                first = begin + number.startswith(b"-")
                first_digits.append((first, first + 1))
        elif other is None and b"\\u" in string:
            return None
        elif is_told and other is None and _DIGIT.search(string):
            varying.append((path[-1], len(pieces), _text))
            pieces.append((begin, end))
        elif is_told:
            constant[path[-1]] = _value(token[0])
    return _Shape(constant, tuple(varying), _cutter(pieces, len(text), "s"), _cutter(first_digits, len(text), "B"))


def _cutter(places: Sequence[tuple[int, int]], length: int, code: str) -> Callable[[bytes], tuple[Any, ...]]:
    """What makes, of a text of this length, all that stands between two places each. One call that knows the places is
    much faster than as many slices."""
    format_, at = "", 0
    for begin, end in places:
        format_ += f"{begin - at}x{end - begin}{code}"
        at = end
    return Struct(f"{format_}{length - at}x").unpack
