"""An event with more rows than one transaction is to have is carried out in parts, each a transaction of its own.

A part acts on some rows and writes no head and no progress, so that the next try comes to the same decision over the
rows that are left. That it stays the same decision rests on two things: a row that comes to a key is an arrival there
unless the ledger itself, not this very event, says that its time has passed; and a key that rows have come to has a
head, without which nobody looks for arrivals. What the parts did is added up beside the progress; the last try, which
finds few enough rows, is a transaction as always and tells of them all. A batch of no partition has no progress: it is
one transaction, whatever its size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from integrity.core.batch import Batch, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.fold import Counted, Group, Referencing, Settled
from integrity.core.keys import Key
from integrity.core.ledger import Head, HeadUpdate
from integrity.core.outcome import Effect

Parts = Mapping[str, Mapping[str, int]]
"""Event -> dependent -> how many rows the parts before have acted on."""


class TooManyRows(Exception):
    """A batch has more rows of a dependent than one transaction is to have; nothing is to be committed."""


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


def already(parts: Parts, changes: Sequence[ParentChange], dependent: str) -> dict[int, int]:
    """Change (by index) -> the rows of the dependent that parts before have acted on."""
    if not parts:
        return {}
    found = ((index, parts.get(change.origin.event_id, {})) for index, change in enumerate(changes))
    return {index: done[dependent] for index, done in found if dependent in done}


def added(parts: Parts, batch: Batch, effects: Sequence[Effect]) -> dict[str, dict[str, int]]:
    """What parts have done, with those of a part of the batch's one change. `effects` are those of the part alone."""
    [change] = batch.changes
    event = change.origin.event_id
    done = dict(parts.get(event, {}))
    for effect in effects:
        if effect.rows:
            done[effect.dependent] = done.get(effect.dependent, 0) + effect.rows
    return {**{other: dict(of) for other, of in parts.items()}, event: done}


def remaining(parts: Parts, changes: Collection[ParentChange]) -> Parts:
    """What is to be kept when these changes are done."""
    if not parts:
        return parts
    done = {change.origin.event_id for change in changes}
    return {event: of for event, of in parts.items() if event not in done}


def place_of(batch: Batch) -> TopicPartition:
    """The partition beside whose progress it is kept what parts of the batch's one change have done."""
    [change] = batch.changes
    redrive = batch.redrives.get(0)
    return redrive.at if redrive is not None else TopicPartition(change.origin.topic, change.origin.partition)
