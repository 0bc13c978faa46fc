"""An event with more rows than one transaction is to have is carried out in parts, each a transaction of its own.

A part acts on some rows and writes no head of the event's key and no progress, so that the next try comes to the same
decision over the rows that are left. That it stays the same decision rests on two things: a row that comes to a key is
an arrival there unless the ledger itself, not this very event, says that its time has passed; and a key that rows have
come to has a head, without which nobody looks for arrivals. What the parts did is added up beside the progress; the
last try, which finds few enough rows, is a transaction as always and tells of them all.

Further down a graph a part takes the lowest rows first, and a row of a level above when nothing is left below it: then
what happened to that row is recorded, once, with all that went from below it. Until then that is added up, too, by the
name of what will have happened to it.

A batch of no partition has no progress. The parts of a sweep or of a repair stand for themselves: each tells of its own
rows, and the key's newest fate acts once more on those that are left. What is one key of a truncate is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from integrity.core.batch import Batch, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.fold import Counted, Group, Referencing, Settled
from integrity.core.keys import Key
from integrity.core.ledger import Head, HeadUpdate
from integrity.core.outcome import Effect

Parts = Mapping[str, Mapping[str, int]]
"""Event -> dependent -> how many rows the parts before have acted on. So it is kept of rows further down, while some of
what depends on them is left, by `name_of_row`."""


FULL_SHARE: Final = 0.9
"""A part that acted on so many of the rows that it may act on has probably left some."""


class TooManyRows(Exception):
    """A batch has more rows of a dependent than one transaction is to have; nothing is to be committed."""


def name_of_row(cause: str, derived: str) -> str:
    """What is kept of a row's derived event in `Parts`, beside the event of the batch that it follows from. The name of
    that one has no space; the other's may be that of an earlier event, whose fate the rows take."""
    return f"{cause} {derived}"


def in_part(settled: Settled) -> Settled:
    """The same for a part of an event: only what the ledger has seen of a key has passed."""
    return replace(settled, seen_after={key: head.seen for key, head in settled.heads.items()})


def acting(groups: Sequence[Group]) -> list[Group]:
    """The groups that a part carries out; rows that stay are counted when all others are done."""
    return [group for group in groups if not isinstance(group.end, Counted)]


def heads_of_part(groups: Sequence[Group], heads: Mapping[Key, Head]) -> dict[Key, HeadUpdate]:
    """The empty heads to write: of keys that rows come to as arrivals, and that the ledger does not know."""
    led_to: dict[Key, HeadUpdate] = {}
    for group in groups:
        if isinstance(group.end, Referencing) and group.end.arrival is not None:
            key = tuple(value for value in group.end.values if value is not None)
            if key not in heads:
                led_to[key] = HeadUpdate(None, None, ())
    return led_to


def changing(groups: Sequence[Group]) -> list[Group]:
    """The same without those whose rows end where they are, of which a next part would find all again."""
    return [g for g in acting(groups) if not (isinstance(g.end, Referencing) and g.end.values == g.key)]


def already(parts: Parts, changes: Sequence[ParentChange], dependent: str) -> dict[int, int]:
    """Change (by index) -> the rows of the dependent that parts before have acted on."""
    if not parts:
        return {}
    found = ((index, parts.get(change.origin.event_id, {})) for index, change in enumerate(changes))
    return {index: done[dependent] for index, done in found if dependent in done}


def added(parts: Parts, batch: Batch, effects: Sequence[Effect], cut_short: Parts) -> dict[str, dict[str, int]]:
    """What parts have done, with those of a part of the batch's one change. `effects` are those of the part alone, and
    `cut_short` is what went from below rows that it has not come to the end of."""
    [change] = batch.changes
    found = {event: dict(of) for event, of in parts.items()}
    done = found.setdefault(change.origin.event_id, {})
    # Of one that acted further down alone it is kept that it has begun.
    done |= {effect.dependent: 0 for effect in effects if effect.dependent not in done}
    for effect in effects:
        done[effect.dependent] += effect.rows
    for event, of in cut_short.items():
        before = found.setdefault(event, {})
        for dependent, count in of.items():
            before[dependent] = before.get(dependent, 0) + count
    return found


def remaining(parts: Parts, changes: Collection[ParentChange]) -> Parts:
    """What is to be kept when these changes are done."""
    if not parts:
        return parts
    done = {change.origin.event_id for change in changes}
    return {name: of for name, of in parts.items() if name.partition(" ")[0] not in done}


def place_of(batch: Batch) -> TopicPartition:
    """The partition beside whose progress it is kept what parts of the batch's one change have done."""
    [change] = batch.changes
    redrive = batch.redrives.get(0)
    return redrive.at if redrive is not None else TopicPartition(change.origin.topic, change.origin.partition)
