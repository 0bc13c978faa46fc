"""What a store remembers of a key: the fence, the history and the audit of record at once.

A head a key: the newest version seen of the key's own events, its fates, and what its last record said. Every store
writes the same things; only where and how differs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from integrity.core.change import Origin, Version
from integrity.core.keys import Key
from integrity.core.outcome import Effect, Outcome


class Fate(NamedTuple):
    """A key's deletion (`to` is None) or change to `to`, with the event that said so and when it occurred (in
    milliseconds since the epoch). `change` is the event's index in the batch, -1 when the fate is the ledger's."""

    version: Version
    to: Key | None
    event: Origin | str
    """Where the event stands, or its name as a ledger keeps it."""
    occurred_ms: int
    change: int = -1

    @property
    def event_id(self) -> str:
        """The event's stable name: `$event.id`."""
        return self.event if isinstance(self.event, str) else self.event.event_id


class LastRecord(NamedTuple):
    """The last own record of a key that was read, stale ones included; `alive` tells what it said."""

    topic: str
    partition: int
    offset: int
    alive: bool


class Head(NamedTuple):
    """What the ledger knows of a key. `fates` ascend; `seen` is the newest version of the key's own events, None
    when only key changes that lead there are known."""

    seen: Version | None
    fates: tuple[Fate, ...]
    last: LastRecord | None


class HeadUpdate(NamedTuple):
    """What a batch adds to a key's head. `fates` are the new ones, ascending."""

    seen: Version | None
    last: LastRecord | None
    fates: tuple[Fate, ...]


class Pending(NamedTuple):
    """An effect that was left out and that a dead letter stands for: an exception beside the fate of its event."""

    dependent: str
    event: str
    version: Version
    letter: str
    reason: str


Done = tuple[str, int]
"""What a fate did to a dependent: the action and how many rows it was done to (of restrict: how many still refer)."""


def done_by_fate(effects: Sequence[Effect]) -> dict[int, dict[str, Done]]:
    """For each change (by index): dependent id -> action and rows, of what was applied or restricted."""
    found: dict[int, dict[str, Done]] = {}
    applied, restricted = Outcome.APPLIED, Outcome.RESTRICTED
    for change, dependent, action, outcome, rows in effects:
        if outcome is applied or outcome is restricted:
            if change in found:
                found[change][dependent] = action, rows
            else:
                found[change] = {dependent: (action, rows)}
    return found


def heads_to_write(
    read: Collection[Key], own: Collection[Key], heads: Mapping[Key, Head], updates: Mapping[Key, HeadUpdate]
) -> Mapping[Key, HeadUpdate]:
    """Every head to write: the updates, and an empty one for each key that was read since a key change may lead there
    (not since it is an event's own, which being alive is not worth a row) and that the ledger does not have. Its row
    is what a later event of that key waits for and collides with."""
    if len(read) == len(own):
        return updates  # every event's own key was read, and no other
    empty = HeadUpdate(None, None, ())
    return {key: empty for key in read if key not in heads and key not in own} | dict(updates)
