"""Key changes that a source tells as a deletion and a creation, without a mark: which two belong together.

SQL Server sends every change of a primary key so, PostgreSQL a row that an update moves to another partition of its
table. Their deletions and creations are *halves*: the two of one row follow each other in the log, so in the one
partition of their topic too, but for the null record that repeats the deletion. So a deletion waits for the next event.
When that is its other half, the two become a key change, at the version of the creation; or nothing at all where the
parent's key is the same, for the row lives on. When it is another one, or none comes for a while, it is a deletion.
What could be either is refused: no row is deleted, nor given to another parent, by a guess.

What a half was found to be is in headers of its dead letter, for when it comes back alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from integrity.core.change import Op, ParentChange, Version, parse_version
from integrity.core.decode.connectors import POSTGRESQL, SQLSERVER
from integrity.core.decode.positions import Source
from integrity.core.decode.record import Decoded, Decoder, Half, Ignored, Record, Refused, Undecodable
from integrity.errors import Reason

OTHER_KEY: Final = "integrity.pair.key"
"""On a deletion that is half of a key change: the record key of its other half."""
VERSION: Final = "integrity.pair.version"
"""On a half of a key change: its version, which its own record does not tell."""

HELD_MAX: Final = 100
"""So many records are kept at most while a deletion waits. All but its null records say nothing of a row."""

_VERSION = re.compile(r"[0-9]{1,9}:[0-9]{1,19}(?:\.[0-9]{1,19}){0,15}", re.ASCII)
_GOES_BY = frozenset({"heartbeat", "transaction", "m"})

_LIVES_ON = Ignored("d", "The row was moved and has kept its key: it is created again at once.")
_AGAIN = Ignored("d", "The source emits the same deletion again at once.")
_REPEATS = Ignored("tombstone", "It repeats the deletion before it.")


def _doubt(why: str) -> Undecodable:
    mend = "If the row is gone, integrity scan --repair does what the rule says. Discard this dead letter."
    return Undecodable(Reason.BAD_ENVELOPE, f"Is it half of a key change? {why} {mend}", "value", repeated=True)


_UNREADABLE = _doubt("The event right after it can't be read.")
_BEGUN_ANEW = _doubt("The source goes on with an earlier event: it may emit this one again, with its other half.")
_MISCOUNTED = _doubt("By its event_serial_no it does not stand where the deletion of a key change does.")
_UNLIKE = _doubt("A creation of the same transaction comes right after it, which has no part of its key.")
_OF_ANOTHER = _doubt("What comes right after it, and belongs to it, is of another tenant.")
ALONE: Final = _doubt("It comes back alone, and nothing tells any more what came after it.")
_APART = Undecodable(
    Reason.BAD_VERSION,
    "It may be half of a key change, and the other half in another partition: let the topic have one, or the events "
    "of this source mark key changes.",
    "value",
    repeated=True,
)


def half_of(said: ParentChange, op: str, source: Source, record: Record) -> Decoded:
    """What a deletion (`op` d) or creation is, of SQL Server or of a rule that pairs by transaction. Raises Refused."""
    ends = op == "d"
    if source["connector"] == SQLSERVER:
        assert said.version is not None
        *place, serial = said.version.position
        return Half(said, ends, tuple(place), serial, record.key)
    transaction = source.get("txId")
    if source["connector"] == POSTGRESQL and transaction is not None:
        return Half(said, ends, (transaction,), None, record.key)
    if not ends:
        return said
    message = "pair_by: transaction is for PostgreSQL, where source.txId tells the transaction of an event."
    raise Refused(Reason.BAD_ENVELOPE, message, "value")


def told_version(record: Record) -> Version | None:
    """The version of a half that comes back as such. Raises Refused."""
    for name, value in record.headers:
        if name == VERSION:
            text = "" if value is None else value.decode("ascii", "replace")
            if _VERSION.fullmatch(text) is None:
                raise Refused(Reason.BAD_VERSION, f"The header {VERSION} is no version.", "header")
            return parse_version(text)
    return None


def other_key(record: Record) -> bytes | None:
    """The record key of the other half of a deletion that comes back."""
    return next((value for name, value in record.headers if name == OTHER_KEY), None)


class Paired(NamedTuple):
    """Records of one partition and what each of them says: no Half is left. `held` are the records after them, which
    are to be read again together with what follows."""

    records: Sequence[Record]
    said: Sequence[Decoded]
    held: Sequence[Record]


def pair(records: Sequence[Record], decode: Decoder, *, is_over: bool, is_apart: bool) -> Paired:
    """Decode what follows in one partition, halves put together. `is_over`: a deletion that still waits at the end has
    waited long enough. `is_apart`: the topic has other partitions, where the other half may be."""
    read: list[Record] = []
    said: list[Decoded] = []
    waiting: int | None = None
    for record in records:
        if waiting is not None and record.value is None and record.key == read[waiting].key:
            found: Decoded = _REPEATS
        else:
            found = decode(record)
            if isinstance(found, Half) and is_apart:
                found = _APART if found.ends else found.change
            if waiting is not None and not (isinstance(found, Ignored) and found.op in _GOES_BY):
                record, found = _settle(read, said, waiting, record, found)
                waiting = None
            if isinstance(found, Half):
                if found.ends:
                    waiting = len(read)
                else:
                    found = found.change
        read.append(record)
        said.append(found)
    if waiting is None:
        return Paired(read, said, ())
    if is_over or len(read) - waiting > HELD_MAX:
        said[waiting] = _alone(said[waiting])
        return Paired(read, said, ())
    return Paired(read[:waiting], said[:waiting], read[waiting:])


def _settle(
    read: list[Record], said: list[Decoded], waiting: int, record: Record, found: Decoded
) -> tuple[Record, Decoded]:
    """Say what the deletion is that waits, now that the next event is there; that event, as it is then."""
    gone = said[waiting]
    assert isinstance(gone, Half)
    if isinstance(found, Undecodable):
        said[waiting] = _UNREADABLE
    elif isinstance(found, Half) and found.ends and _is_same(gone.change, found.change):
        said[waiting] = _AGAIN
    elif _is_earlier(found, gone):
        said[waiting] = _BEGUN_ANEW
    elif not isinstance(found, Half) or found.ends or found.group != gone.group:
        said[waiting] = _alone(gone)
    elif gone.serial is not None and (gone.serial != 1 or found.serial != 2):
        said[waiting] = _MISCOUNTED
    elif found.change.tenant != gone.change.tenant:
        said[waiting] = _OF_ANOTHER
    elif found.change.key == gone.change.key:
        said[waiting] = _LIVES_ON
        return record, _arrived(found.change, _version(found))
    elif gone.serial is None and _are_unlike(gone, found):
        said[waiting] = _UNLIKE
    else:
        version = _version(found)
        said[waiting] = gone.change._replace(op=Op.MOVED, to=found.change.key, version=version)
        marks = [(OTHER_KEY, found.key), (VERSION, version.text.encode())]
        read[waiting] = _marked(read[waiting], marks)
        arrived = _arrived(found.change, version)
        assert arrived.version is not None
        return _marked(record, [(VERSION, arrived.version.text.encode())]), arrived
    return record, found


def _alone(said: Decoded) -> Decoded:
    """What a deletion is that has no other half."""
    assert isinstance(said, Half)
    return said.change if said.serial in (None, 1) else _MISCOUNTED


def _version(half: Half) -> Version:
    assert half.change.version is not None
    return half.change.version


def _is_same(one: ParentChange, other: ParentChange) -> bool:
    return one.key == other.key and one.version == other.version


def _is_earlier(found: Decoded, gone: Half) -> bool:
    """Whether an event that follows is one of before: all of SQL Server are in order, and those of one transaction."""
    change = found.change if isinstance(found, Half) else found
    if not isinstance(change, ParentChange) or change.version is None:
        return False
    is_ordered = gone.serial is not None or (isinstance(found, Half) and found.group == gone.group)
    return is_ordered and change.version <= _version(gone)


def _are_unlike(gone: Half, made: Half) -> bool:
    """Whether two keys of several fields have none in common. A row that moves keeps those that its partition does not
    depend on. Keys of one field say nothing: there the rule's word counts."""
    old, new = gone.change.key, made.change.key
    return len(old) > 1 and all(a != b for a, b in zip(old, new, strict=True))


def _arrived(change: ParentChange, version: Version) -> ParentChange:
    """The creation of a pair; where the rule takes the row for deleted, that is just after it came."""
    if change.op is Op.DELETED:
        return change._replace(version=version._replace(position=(*version.position, 1)))
    return change._replace(op=Op.ARRIVED)


def _marked(record: Record, marks: list[tuple[str, bytes | None]]) -> Record:
    return record._replace(headers=(*record.headers, *marks))
