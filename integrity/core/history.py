"""What the ledger of one store tells of one key, and what an event of it would do: answers for people.

Every store gives the same answers; they change nothing and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from integrity.core.change import Version
from integrity.core.keys import Key
from integrity.core.ledger import Done, Fate, LastRecord
from integrity.core.undo import Undone

SAMPLE_ROWS_MAX = 5
"""How many rows a sample names."""
ROWS_COUNTED_MAX = 1_000_000
"""How many rows of one dependent are counted for one question."""


class Enforced(NamedTuple):
    """A fate, what was done for it to each dependent (by id), and when (milliseconds since the epoch). `trace_id` is
    empty when there was none."""

    fate: Fate
    done: Mapping[str, Done]
    enforced_ms: int
    trace_id: str


class CameFrom(NamedTuple):
    """Another key that changed to this one. `key` is its canonical text, which a ledger may have cut."""

    key: str
    version: Version
    event_id: str
    enforced_ms: int


class LeftOut(NamedTuple):
    """An effect that a dead letter stands for. `version` is None for a null record."""

    dependent: str
    event_id: str
    version: Version | None
    reason: str
    dead_letter: str
    at_ms: int


class Repair(NamedTuple):
    """Rows that were written late and went the way of a fate that had been enforced before."""

    dependent: str
    action: str
    rows: int
    event_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """Everything that one ledger knows of a key. `enforced` ascends by version; the others by time."""

    seen: Version | None
    last: LastRecord | None
    enforced: tuple[Enforced, ...] = ()
    came_from: tuple[CameFrom, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    repairs: tuple[Repair, ...] = ()
    undone: tuple[Undone, ...] = ()

    @property
    def lives_again(self) -> bool:
        """The key's own events say that it is alive, and later than its newest fate."""
        return self.seen is not None and (not self.enforced or self.seen > self.enforced[-1].fate.version)


class Question(NamedTuple):
    """What deletions (or, not `deleted`, key changes) of these keys of an entity would do to its dependents.

    `follow` are the dependents (by id) whose rows' own keys are asked for, at most `own_max` of each. `sample`: some
    rows are to be named.
    """

    entity: str
    keys: Sequence[Key]
    deleted: bool = True
    follow: frozenset[str] = frozenset()
    own_max: int = 0
    sample: bool = True


class Impact(NamedTuple):
    """What that would do to the rows of one dependent: the action, on how many rows of each key, and the identifying
    columns of some (at most `SAMPLE_ROWS_MAX`; none where the rows have nothing that identifies them).

    `is_cut`: there may be more rows, since they were counted up to `ROWS_COUNTED_MAX`. `own` are the rows' own keys
    where they were asked for, each with the place of the key in the question that it refers to.
    """

    dependent: str
    action: str
    counts: tuple[int, ...]
    sample: tuple[Mapping[str, object], ...] = ()
    is_cut: bool = False
    own: tuple[tuple[int, Key], ...] = ()

    @property
    def rows(self) -> int:
        """How many rows of all keys."""
        return sum(self.counts)


def next_fate(enforced: Sequence[Enforced], after: Version) -> Enforced | None:
    """What happened next to rows that are at a key since that version; None: nothing has yet."""
    return next((each for each in enforced if each.fate.version > after), None)
