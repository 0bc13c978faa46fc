"""What it takes to put back what an event changed.

For a dependent with `undo`, the store keeps beside every effect what the rows were before: one record a row and event,
in the effect's transaction. A row that goes through several events of one batch has one for each, as if they had come
one at a time. Records are put back newest first, so that parents come before what depends on them, and a row goes back
through its events in reverse. Only what still is as the event left it is put back; anything else is a conflict, and
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

from integrity.core.change import Version
from integrity.core.derive import Stage
from integrity.core.fold import Group, Marked, Policy, Turn
from integrity.core.keys import Key, canonical, key_hash, key_hasher
from integrity.core.ledger import Fate
from integrity.core.outcome import Broken, Rejected, Retry

T = TypeVar("T")

Cause = tuple[str, str]
"""The entity and the canonical key of an event."""


def root_event(event_id: str) -> str:
    """The record behind an event: what happens to rows that are parents is named after it. No topic has a slash."""
    return "/".join(event_id.split("/", 3)[:3])


def trail(
    policy: Policy, entity: str, group: Group, stages: Sequence[Stage], causes: Mapping[str, Cause]
) -> tuple[Turn, ...]:
    """What happens to the rows of a group, event by event. `stages` are its journey; `causes` tells of an event whose
    it is, where that is not the key that the rows refer to."""
    turns: list[Turn] = []
    key = group.key

    def turn(fate: Fate, after: tuple[object, ...] | None, *, marks: bool = False) -> Turn:
        event = root_event(fate.event_id)
        of, named = causes.get(event, (entity, canonical(key)))
        action = policy.on_delete_action if fate.to is None else policy.on_update_action
        return Turn(event, fate.version, of, named, key_hash(entity, key), action, key, after, marks)  # type: ignore[arg-type]

    for fate, _, values in stages:
        turns.append(turn(fate, values))
        if values is not None:
            key = values  # type: ignore[assignment]
    if isinstance(group.end, Marked):
        turns.append(turn(group.end.fate, None, marks=True))
    return tuple(turns)


class Slot(NamedTuple):
    """An element of a list of keys, and what happens to it."""

    element: object
    trail: Sequence[Turn]


def list_states(
    slots: Sequence[Slot], value_of: Callable[[object, object], object]
) -> list[tuple[Turn, list[object], list[object]]]:
    """What a list of keys was before and after each event that acts on some of its elements. `value_of` gives the new
    value of an element: the element, and the key that it becomes."""
    turns = {(turn.version, turn.event): turn for slot in slots for turn in slot.trail}
    now: list[object | None] = [slot.element for slot in slots]
    here = [True] * len(slots)
    found: list[tuple[Turn, list[object], list[object]]] = []
    for name in sorted(turns):
        before = [value for value, there in zip(now, here, strict=True) if there]
        for index, slot in enumerate(slots):
            for turn in slot.trail:
                if (turn.version, turn.event) == name:
                    here[index] = turn.after is not None and turn.after[0] is not None
                    if here[index]:
                        assert turn.after is not None
                        now[index] = value_of(slot.element, turn.after[0])
        found.append((turns[name], before, [v for v, there in zip(now, here, strict=True) if there]))
    return found


# --- putting back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be put back: what one event changed, or what was changed since a time (in milliseconds). Of these
    dependents only, unless there are none."""

    event: str | None = None
    since_ms: int | None = None
    dependents: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Portion:
    """A portion of it: at most `rows_max` records, those before the place `before` (None: the newest), each put back in
    the same transaction. `at_ms` is the wall clock: what has expired by then is left out."""

    choice: Choice
    rows_max: int
    at_ms: int
    before: int | str | None = None
    actor: str = ""
    note: str = ""


class Verdict(StrEnum):
    """What comes of one record."""

    PUT_BACK = "put_back"
    EXISTS = "exists"
    """There is a row with that identity again."""
    CHANGED = "changed"
    """The row does not hold any more what the event set."""
    GONE = "gone"
    """The row that was changed is not there any more."""
    REFUSED = "refused"
    """The store refuses it, or the rules do not know its dependent any more."""


class Kept(NamedTuple):
    """One record: a row (named for people) that an event changed, and what comes of it."""

    dependent: str
    event: str
    version: Version
    entity: str
    key: str
    """That of the event, in canonical form."""
    action: str
    row: str
    verdict: Verdict
    message: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """A portion: its records, newest first, and the place where the next one begins; None: this was the last."""

    rows: tuple[Kept, ...]
    before: int | str | None


UndoResult = Looked | Retry | Rejected | Broken
"""What came of a portion. After all but Looked nothing was changed."""


def runs(
    found: Iterable[T], kind: Callable[[T], object], is_now: Callable[[T], object], was: Callable[[T], object]
) -> list[list[T]]:
    """Neighbours that are alike, for one statement each: none has a row that one before it puts back. `is_now` and
    `was` name the row after and before its event."""
    found_runs: list[list[T]] = []
    before, came = object(), set[object]()
    for each in found:
        alike = kind(each)
        if alike != before or is_now(each) in came:
            found_runs.append([])
            before, came = alike, set()
        found_runs[-1].append(each)
        came |= {is_now(each), was(each)}
    return found_runs


def not_done_yet(event: str) -> Retry:
    """What came of a portion with rows of an event that is being carried out in parts: the next part would take again
    what was put back."""
    return Retry(f"Event {event} has many rows and is not done yet.")


class Undone(NamedTuple):
    """What was put back of what an event had changed."""

    dependent: str
    event_id: str
    rows: int
    at_ms: int
    actor: str
    note: str


Names = tuple[bytes, str, str]
"""Under which a ledger notes what was put back: the hash of a key, the dependent, the event."""


def undone_names(entity: str, key: str, direct: bytes, dependent: str, event: str) -> set[Names]:
    """The key of the event, and the key that the row refers to: where it is not that, something of the graph lies
    between."""
    return {(key_hasher(entity)(key), dependent, event), (direct, dependent, event)}


def not_undone(
    acted: Iterable[tuple[Key, str, str]], undone: Collection[tuple[Key, str, str]]
) -> set[tuple[Key, str, str]]:
    """Of (key, event, dependent): those that nobody put back. No sweep does again what somebody has put back."""
    return {each for each in acted if (each[0], root_event(each[1]), each[2]) not in undone}
