"""What came of a batch: closed unions, matched exhaustively by the lane.

A store tries once and returns one of these; it never raises for what an event, a rule or a server did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from integrity.errors import Reason


class Outcome(StrEnum):
    """What came of one event on one dependent (contract 8)."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """Done before: the progress, or an equal version in the ledger, says so."""
    STALE = "stale"
    """Older than what the ledger has seen of the key: never acts."""
    SKIPPED = "skipped"
    """A deliberate no-op, such as `ignore`."""
    HELD = "held"
    """More rows than the rule allows for one event: nothing is changed until somebody approves it."""
    RESTRICTED = "restricted"
    """The rule says `restrict`, and rows refer to the key all the same: nothing is written, `rows` says how many."""
    DEAD_LETTERED = "dead_lettered"
    UNDONE = "undone"
    """Somebody put back by hand what the event had changed."""
    REPAIRED = "repaired"
    """Rows that were written late went the way of an event that was enforced before."""


class Effect(NamedTuple):
    """One event on one dependent: `change` is the event's index in the batch, `dependent` the dependent's id."""

    change: int
    dependent: str
    action: str
    outcome: Outcome
    rows: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The batch is durable: progress, ledger and effects, in one transaction."""

    effects: list[Effect]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A part of the batch is durable, on `rows` rows, and no progress: apply it again, and it goes on from there.

    Of a batch of no partition the part stands for itself: `effects` are what it did, the ledger has it, and what is
    left is for another batch."""

    rows: int
    effects: list[Effect] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Nothing was changed: the batch has more rows than one transaction is to have. Cut it; a single change is never
    too large."""

    message: str = "The batch has more rows than one transaction is to have."


@dataclass(frozen=True, slots=True)
class Retry:
    """Nothing was changed, or it is unknown whether; the same batch may be applied again at any time.

    `contended` says that rows of `dependent` are locked by others: after some attempts the lane looks for the event
    that waits. `unreachable` says that the server, not the batch, is the cause. `message` is one sentence without row
    values.
    """

    message: str
    contended: bool = False
    unreachable: bool = False
    dependent: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """Nothing was changed: some event of the batch can never be applied to this dependent."""

    dependent: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing was changed: some event of the batch has more rows of this dependent than `max_rows` allows."""

    dependent: str
    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """Nothing was changed: a rule does not fit its store any more (column gone, privilege revoked).

    No event is to blame, so none is dead-lettered. `dependent` is None when the ledger itself is the cause.
    """

    dependent: str | None
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """Nothing was changed: the progress in the store is behind the batch's start. The lane reads progress again."""

    message: str


ApplyResult = Applied | Unfinished | TooLarge | Retry | Rejected | Held | Broken | Diverged
