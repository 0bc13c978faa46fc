"""What a batch leaves of a copy: for each key, its newest event decides.

A copy's row is its parent's row, so nothing has to be traced: an event of a key concerns the row of that key alone. A
key change is a deletion of the old key and an event of the new one, which come in any order. What the ledger keeps of a
key is the newest version that was done, after a deletion too; older and equal ones do nothing.

A source may leave out a value that has not changed. It is then what the row holds, if nothing was missed in between: an
event that was left out for a dead letter is `missed`, until it is made up for or one comes that has all values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from integrity.core.batch import DeadLetterMark
from integrity.core.change import EARLIEST, Cell, Op, Origin, ParentChange, Version
from integrity.core.fold import Group, Marked, Removed
from integrity.core.keys import Key
from integrity.core.ledger import Fate, Head, LastRecord
from integrity.core.outcome import Effect, Outcome, Rejected
from integrity.core.rules.model import Copy, Tombstone
from integrity.errors import Reason

UPSERT = "upsert"
"""The action of an event that gives a copy its row."""


class Known(NamedTuple):
    """What the ledger keeps of a key of a copy: the newest version that was done (EARLIEST: none yet), whether the copy
    has a row of it, the key's last own record, late ones included (None: all were left out), and the
    events that dead letters stand for."""

    version: Version
    alive: bool
    last: LastRecord | None
    missed: tuple[Version, ...] = ()
    """Versions later than what was done, ascending."""

    @property
    def head(self) -> Head:
        """The same as a dependent's ledger says it of a key that lives, or has a version alone."""
        return Head(self.version if self.alive else None, (), self.last)


_NOTHING = Known(EARLIEST, False, None)
_REMOVED = Removed()


@dataclass(frozen=True, slots=True)
class Put:
    """The row of a key: the cells of its fields (those of the key aside). Fields in `kept` stay as the row has them,
    which is there then. `change` is the index of the event that decides."""

    key: Key
    cells: Mapping[str, Cell]
    kept: frozenset[str]
    change: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows are `removed` first, then written (`puts`), then `marked`: the groups are as a dependent's `on_delete` is
    carried out. `known` is what to write of each key. `effects` has one entry for each event that is done, late or left
    out."""

    removed: Sequence[Group]
    puts: Sequence[Put]
    marked: Sequence[Group]
    known: Mapping[Key, Known]
    effects: list[Effect]


def plan(
    copy: Copy,
    changes: Sequence[ParentChange],
    known: Mapping[Key, Known],
    *,
    done: Collection[int] = (),
    left_out: Mapping[tuple[int, str], DeadLetterMark],
) -> Plan | Rejected:
    """What the changes of one entity do to a copy. `done` are indexes below the store's progress. Rejected says that
    some change can never be done."""
    now: dict[Key, Known] = {}
    puts: dict[Key, Put] = {}
    gone: dict[Key, Group] = {}
    marks = marks_of(copy)
    effects: list[Effect] = []
    for index, change in enumerate(changes):
        key = change.key
        action = UPSERT if change.op is Op.ALIVE or change.op is Op.ARRIVED else copy.action
        if index in done:
            effects.append(Effect(index, copy.id, action, Outcome.DUPLICATE, 0))
            continue
        before = now.get(key) or known.get(key) or _NOTHING
        origin = change.origin
        version = change.version
        if version is None:
            version = _version_of_null(origin, before) if change.op is Op.GONE else _version_read(origin, before)
        if version is None:
            now[key] = before._replace(last=_later(before.last, origin, action == UPSERT))
            continue
        if version <= before.version:
            outcome = Outcome.DUPLICATE if version == before.version else Outcome.STALE
            effects.append(Effect(index, copy.id, action, outcome, 0))
            now[key] = before._replace(last=_later(before.last, origin, action == UPSERT))
            continue
        mark = left_out.get((index, copy.id)) if left_out else None
        if mark is not None:
            effects.append(Effect(index, copy.id, action, mark.outcome, 0))
            now[key] = before._replace(missed=tuple(sorted({*before.missed, version})))
            continue
        last = _later(before.last, origin, action == UPSERT)
        match change.op:
            case Op.ALIVE | Op.ARRIVED:
                put = _put(copy, change, index, version, before, puts.get(key))
                if isinstance(put, Rejected):
                    return put
                puts[key] = put
                if marks:
                    gone.pop(key, None)  # whoever lives has no mark
                # Without a value of its own it rests on all that was before it: nothing of that was missed.
                now[key] = Known(version, True, last, tuple(missed for missed in before.missed if missed > version))
                effects.append(Effect(index, copy.id, action, Outcome.APPLIED, 1))
            case Op.DELETED | Op.MOVED | Op.GONE:
                if marks:
                    fate = Fate(version, change.to, change.origin, change.occurred_ms, index)
                    gone[key] = Group(key, None, (index,), Marked(key, fate))
                else:
                    gone[key] = Group(key, None, (index,), _REMOVED)
                    puts.pop(key, None)
                now[key] = Known(version, False, last, tuple(m for m in before.missed if m > version))
                effects.append(Effect(index, copy.id, action, Outcome.APPLIED, int(before.alive)))
            case Op.MISSING:
                raise AssertionError("a scan asks for dependents, never for copies")
            case _:
                assert_never(change.op)
    ended = list(gone.values())
    return Plan([] if marks else ended, list(puts.values()), ended if marks else [], now, effects)


def marks_of(copy: Copy) -> Sequence[str]:
    """The columns that mark a row whose parent is gone; none where it is removed, as on a topic in any case."""
    action = copy.rows.on_delete
    return tuple(action.set) if isinstance(action, Tombstone) else ()


def _put(
    copy: Copy, change: ParentChange, index: int, version: Version, before: Known, earlier: Put | None
) -> Put | Rejected:
    row = change.row
    assert row is not None, "a copy's events are read with their rows"
    cells: dict[str, Cell] = {}
    unsent: set[str] = set()
    for field in copy.values.values():
        if field not in row:
            return _rejected(copy, f"The row of the event has no field {field} that can be copied.")
        cell = row[field]
        if cell is None:
            unsent.add(field)
        else:
            cells[field] = cell
    if not unsent:
        return Put(change.key, cells, frozenset(), index)
    unknown = f"The source did not send {', '.join(sorted(unsent))} (unchanged TOAST)"
    if not before.alive:
        return _rejected(copy, f"{unknown}, and the copy has no row that has it.")
    if any(missed < version for missed in before.missed):
        return _rejected(copy, f"{unknown}, and an earlier event of the key is a dead letter.")
    if earlier is not None:
        cells = {**earlier.cells, **cells}
    return Put(change.key, cells, frozenset(unsent - cells.keys()), index)


def _rejected(copy: Copy, message: str) -> Rejected:
    return Rejected(copy.id, Reason.VALUE_REJECTED, message)


def _version_of_null(origin: Origin, before: Known) -> Version | None:
    """The version of a null record, or None when it says nothing: it repeats a deletion, or is read again. Else it is a
    deletion of its own, just after what is known of the key."""
    newest = _newest(before)
    if newest == EARLIEST:
        return Version(0, ())
    says = before.last is None or before.last.alive  # else it repeats a deletion, perhaps one that was late
    if not (before.alive or before.missed) or not says or _is_read_again(origin, before):
        return None
    return Version(newest.epoch, (*newest.position, 1))


def _version_read(origin: Origin, before: Known) -> Version | None:
    """The version of a row that an incremental snapshot has read, or None when it says nothing. Debezium writes it
    where it belongs among the key's events in its partition: it is just after what is known of the key. A key that is
    gone it never brings back, and one that is read again it does not overwrite."""
    newest = _newest(before)
    if newest == EARLIEST:
        return Version(0, ())
    if not (before.alive or before.missed) or _is_read_again(origin, before):
        return None
    epoch, position = newest
    own = 1 if len(position) <= 2 else 3  # what the source gave: (lsn,), or MongoDB's three parts
    return Version(epoch, (*position[:own], (position[own] if len(position) > own else 0) + 1))


def _newest(before: Known) -> Version:
    """The newest version that was heard of a key, done or missed."""
    return before.missed[-1] if before.missed else before.version


def _is_read_again(origin: Origin, before: Known) -> bool:
    last = before.last
    return last is not None and last[:2] == origin[:2] and origin.offset <= last.offset


def _later(last: LastRecord | None, origin: Origin, says_alive: bool) -> LastRecord:
    """The last record of a key: redrives bring older ones again."""
    if last is not None and last[:2] == origin[:2] and origin.offset <= last.offset:
        return last
    return LastRecord(origin.topic, origin.partition, origin.offset, says_alive)
