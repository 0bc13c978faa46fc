"""Orphans: rows whose parent is not there, found by comparing two sorted streams of keys, page by page.

Every store sorts keys in the one order of `order_of`, so that memory is that of two pages whatever the size of both
sides. What comes in another order is refused: a wrong order would make orphans of rows that have a parent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import islice
from operator import lt
from typing import Any, Final, NamedTuple
from uuid import UUID

from integrity.core.change import Op, Origin, ParentChange
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.ledger import Head
from integrity.core.rules.model import Dependent, Ignore, Place, Source
from integrity.core.sweep import is_gone

SOURCE_TOPIC: Final = "integrity.scan"
"""The topic of the events that a repair makes up. There is none: their names tell who did it, and when."""


class Referenced(NamedTuple):
    """A key that rows refer to, and how many."""

    key: Key
    rows: int


class Page(NamedTuple):
    """The next keys, ascending by `order_of`, each once. `mistyped` rows were passed over, whose reference is no key of
    the parent's type: they refer to nothing."""

    referenced: Sequence[Referenced]
    mistyped: int = 0


class OutOfOrder(Exception):
    """A stream of keys does not ascend."""


def order_of(spec: KeySpec) -> Callable[[Key], Any]:
    """The order of all stores: by value, part by part; texts by their code points, bytes by their length first."""
    lengths = [position for position, kind in enumerate(spec.types) if kind is KeyType.BYTES]
    if not lengths:
        return lambda key: key

    def place(key: Key) -> tuple[object, ...]:
        return tuple((len(part), part) if isinstance(part, bytes) else part for part in key)

    return place


class Difference:
    """The keys of one sorted stream that are not in another. Give it pages of whichever side `wants` one."""

    def __init__(self, spec: KeySpec) -> None:
        self._order = order_of(spec)
        self._referenced: list[Referenced] = []
        self._parents: list[Key] = []
        self._last: list[Any] = [None, None]
        self._ended = False

    @property
    def wants_parents(self) -> bool:
        """Whether nothing can be told before more parents are known."""
        return bool(self._referenced) and not self._parents and not self._ended

    def parents(self, keys: Sequence[Key]) -> list[Referenced]:
        """The next parents; the orphans that are known thereby. Raises OutOfOrder."""
        self._check(1, keys)
        self._parents.extend(keys)
        return self._compare()

    def no_more_parents(self) -> list[Referenced]:
        """There are none beyond; the orphans that are known thereby."""
        self._ended = True
        return self._compare()

    def references(self, referenced: Sequence[Referenced]) -> list[Referenced]:
        """The next references, once `wants_parents` is false; the orphans that are known thereby. Raises OutOfOrder."""
        self._check(0, [key for key, _ in referenced])
        self._referenced.extend(referenced)
        return self._compare()

    def _compare(self) -> list[Referenced]:
        if self._ended and not self._parents:
            found, self._referenced = self._referenced, []
            return found
        if not self._referenced or not self._parents:
            return []
        # Up to here both sides are known.
        order = self._order
        last_parent, last_reference = order(self._parents[-1]), order(self._referenced[-1].key)
        count = bisect_right(self._referenced, last_parent, key=lambda each: order(each.key))
        known = set(self._parents)
        found = [each for each in islice(self._referenced, count) if each.key not in known]
        del self._referenced[:count]
        del self._parents[: bisect_right(self._parents, last_reference, key=order)]
        return found + (self._compare() if self._ended and not self._parents else [])

    def _check(self, side: int, keys: Sequence[Key]) -> None:
        if not keys:
            return
        places: Sequence[Any] = list(map(self._order, keys))
        before = self._last[side]
        if (before is not None and not before < places[0]) or not all(map(lt, places, places[1:])):
            raise OutOfOrder
        self._last[side] = places[-1]


# --- an order for bytes -------------------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def place_of(spec: KeySpec) -> Callable[[Key], bytes]:
    """Bytes that compare as keys do in `order_of`, and are equal for equal keys only."""
    parts = [_PLACES[kind] for kind in spec.types]

    def place(key: Key) -> bytes:
        return b"".join([part(value) for part, value in zip(parts, key, strict=True)])

    return place


def _of_int(value: Any) -> bytes:
    return (int(value) + 2**63).to_bytes(8)


def _of_text(value: Any) -> bytes:
    # Ends below every character: what goes on is greater.
    return str(value).encode().replace(b"\0", b"\0\xff") + b"\0\0"


def _of_bytes(value: Any) -> bytes:
    return len(value).to_bytes(4) + bytes(value)


def _of_decimal(value: Any) -> bytes:
    """Sign, size, digits; those of negative numbers the other way round."""
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return b"\x01"
    size = (len(text) + exponent + 2**31).to_bytes(4)
    written: bytes = size + text.rstrip("0").encode()
    if not sign:
        return b"\x02" + written + b"\0"
    return b"\0" + bytes(255 - byte for byte in written) + b"\xff"


def _of_time(value: Any) -> bytes:
    moment: datetime = value
    since = moment.astimezone(UTC) - _EPOCH
    return _of_int((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


_PLACES: Final[dict[KeyType, Callable[[Any], bytes]]] = {
    KeyType.INT32: _of_int,
    KeyType.INT64: _of_int,
    KeyType.NUMERIC: _of_decimal,
    KeyType.STRING: _of_text,
    KeyType.UUID: lambda value: UUID(int=value.int).bytes,
    KeyType.BOOL: lambda value: b"\1" if value else b"\0",
    KeyType.DATE: lambda value: _of_int(date.toordinal(value)),
    KeyType.TIMESTAMP: _of_time,
    KeyType.BYTES: _of_bytes,
    KeyType.OBJECTID: _of_text,
}


# --- what a repair asks for ---------------------------------------------------------------------------------------


class Heard(StrEnum):
    """What a ledger has heard of a key whose parent is missing."""

    NOTHING = "unheard"
    """No event of it was ever enforced here, and no sign of life was worth keeping."""
    ALIVE = "alive"
    """The last that was heard is that it lives."""
    DELETED = "deleted"
    MOVED = "moved"
    """Its key has changed."""


class Known(NamedTuple):
    """What a ledger knows of a key. `to` is the key that it has changed to."""

    heard: Heard
    to: Key | None = None


UNHEARD: Final = Known(Heard.NOTHING)


def known_of(head: Head | None) -> Known:
    """The same of a head."""
    if head is None or (head.seen is None and not head.fates):
        return UNHEARD
    if not is_gone(head):
        return Known(Heard.ALIVE)
    to = head.fates[-1].to
    return Known(Heard.DELETED) if to is None else Known(Heard.MOVED, to)


def missing(entity: str, keys: Iterable[tuple[Key, Known]], at_ms: int) -> tuple[ParentChange, ...]:
    """The changes that a repair makes up, for parents that were looked for at that time and are not there."""
    origin = Origin(SOURCE_TOPIC, 0, at_ms, at_ms)
    return tuple(ParentChange(entity, Op.MISSING, key, known.to, None, origin, at_ms) for key, known in keys)


def parents_as_dependent(
    entity: str, source: Source, columns: Mapping[str, str], place: Place, live: str | None = None
) -> Dependent:
    """Parents as rows that refer to themselves, so that they are looked up as references are. `columns` name the key
    fields, in order; `live` is a column that is null in those that live."""
    return Dependent(
        id=f"{entity}@{source.target.name}",
        name=entity,
        store=source.store,
        target=source.target,
        references=columns,
        on_delete=Ignore(),
        on_update=Ignore(),
        where={} if live is None else {live: None},
        place=place,
    )
