"""What follows for rows that are parents themselves, from what happens to the rows' own parent.

The fold says where the rows of a dependent end. Where those rows are an entity, their own keys are deleted when the
rows are removed, and change when a column of their key is one of the reference that changes (an identifying
relationship). `journey` tells the stages of a group of rows, `derive` makes fates of their keys of them, which the fold
then traces for the next dependent, and so on down the graph. Nothing follows from any other update of a row.

Derived fates keep the versions of the events behind them, which order them among themselves. What is written down of
them, for a parent without events of its own, gets a version that counts per key (`numbered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, assert_never

from integrity.core.batch import DeadLetterMark
from integrity.core.change import EARLIEST, Origin, ParentChange, Version
from integrity.core.fold import (
    Count,
    Counted,
    Follow,
    Group,
    Leave,
    Mark,
    Policy,
    Referencing,
    Remove,
    Replace,
    Settled,
    Step,
    Values,
    next_fate,
    trace,
)
from integrity.core.keys import Key, KeySpec, canonical
from integrity.core.ledger import Done, Fate, Head, HeadUpdate
from integrity.core.outcome import Effect, Outcome


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of a dependent are: an entity that something depends on.

    `spec` is their key, whose names are columns. `shared` are its positions that a reference holds too, each with its
    position there. `recorded`: they have no events of their own, so the ledger keeps what happens to them. `published`:
    something depends on them in another store, which is told of it.
    """

    entity: str
    spec: KeySpec
    shared: tuple[tuple[int, int], ...]
    recorded: bool
    published: bool = False


class Stage(NamedTuple):
    """One step of a group's rows: by that fate their reference became `values`, or (None) they were removed. `change`
    is the change of the batch that is credited with it."""

    fate: Fate
    change: int
    values: Values | None


def journey(
    policy: Policy,
    settled: Settled,
    group: Group,
    *,
    left_out: Callable[[int], object] | None = None,
    first: Fate | None = None,
) -> list[Stage]:
    """The stages of a group that the fold gave, in order: how its rows came to the group's end. `first` is as in
    `follow`."""
    head = settled.heads.get(group.key)
    if head is None and left_out is None and first is None and isinstance(policy.on_delete, Remove):
        only = settled.fates.get(group.key, ())
        if len(only) == 1 and only[0].to is None and group.since is None and group.born is None:
            return [Stage(only[0], only[0].change, None)]
    since = group.since or (head.seen if head is not None and head.seen else EARLIEST)
    key, change = group.key, -1
    stages: list[Stage] = []
    while (fate := first or next_fate(settled.fates.get(key, ()), since, left_out)) is not None:
        first, since = None, fate.version
        step = policy.on_delete if fate.to is None else policy.on_update
        if isinstance(step, Leave | Count) or group.is_younger(fate):
            continue
        if fate.change >= 0:
            change = fate.change
        match step:
            case Remove():
                return [*stages, Stage(fate, change, None)]
            case Mark():
                return stages
            case Follow():
                assert fate.to is not None
                key = fate.to
                stages.append(Stage(fate, change, key))
            case Replace():
                stages.append(Stage(fate, change, step.of(key)))
                if not step.refers:
                    return stages
                key = step.key_of(key)
            case _:
                assert_never(step)
    return stages


@dataclass(slots=True)
class Derived:
    """The derived fates of one entity's keys; `change` of each is its index here. `roots[i]` is the event of the batch
    behind the i-th, by its index there, and `deletes[i]` tells whether it is a deletion."""

    fates: dict[Key, list[Fate]] = field(default_factory=dict)
    roots: list[int] = field(default_factory=list)
    deletes: list[bool] = field(default_factory=list)

    def settled(self) -> Settled:
        """The same for the fold, which takes every one of them as it is: they happen now."""
        fates = {key: tuple(found) for key, found in self.fates.items()}
        updates = {key: HeadUpdate(None, None, found) for key, found in fates.items()}
        return Settled([], updates, fates, {}, {})


def derive(
    rows: Rows, stages: Sequence[Sequence[Stage]], found: Iterable[tuple[int, Key]], roots: Sequence[int]
) -> Derived:
    """What happens to rows, each given as the index of its group in `stages`, and its own key. `roots` tells the event
    of the batch behind each change."""
    derived = Derived()
    fates, behind = derived.fates, derived.roots
    new_tuple = tuple.__new__
    for group, own in found:
        key = own
        for fate, change, values in stages[group]:
            if values is None:
                to = None
            else:
                to = moved(rows, key, values)
                if to == key:
                    continue
            of_key = fates.get(key)
            happened = new_tuple(Fate, (fate.version, to, fate.event, fate.occurred_ms, len(behind)))
            if of_key is None:
                fates[key] = [happened]
            else:
                of_key.append(happened)
            behind.append(roots[change])
            derived.deletes.append(to is None)
            if to is not None:
                key = to
    if rows.shared:
        for of_key in fates.values():
            of_key.sort(key=lambda fate: fate.version)
    return derived


def moved(rows: Rows, key: Key, values: Values) -> Key:
    """The own key of a row when its reference holds these values. No part of it is ever null."""
    parts = list(key)
    for own, position in rows.shared:
        value = values[position]
        assert value is not None, "a rule never makes a column of the rows' own key null"
        parts[own] = value
    return tuple(parts)


def trace_derived(policy: Policy, settled: Settled) -> list[Group]:
    """Where the rows of a dependent end by derived fates. They happen now, so no row is kept as an arrival, and rows
    that end where they are (a default may be that very key) are only counted: nothing would tell them from those that
    are still to come there."""
    return [
        group._replace(end=Counted() if group.end.values == group.key else Referencing(group.end.values, None))
        if isinstance(group.end, Referencing)
        else group
        for group in trace(policy, settled)
    ]


# --- what is written down -----------------------------------------------------------------------------------------


class Happened(NamedTuple):
    """One derived fate to record: its key, what happened to it, what that did, per dependent, and the name and trace of
    the event of the batch behind it."""

    key: Key
    fate: Fate
    done: Mapping[str, Done]
    cause: str
    traceparent: str | None


def recorded(
    derived: Derived, done: Mapping[int, Mapping[str, Done]], dependent: str, changes: Sequence[ParentChange]
) -> list[Happened]:
    """What to record of derived fates, in the order in which they happened. Their events get a stable name: that of the
    event behind them, the dependent whose rows they are, and the key."""
    nothing: Mapping[str, Done] = {}
    # This is done for every row that others depend on.
    new_tuple = tuple.__new__
    causes: dict[int, tuple[str, str | None]] = {}
    events: dict[Origin | str, str] = {}
    found: list[Happened] = []
    moves = False
    for key, fates in derived.fates.items():
        for version, to, event, occurred_ms, change in fates:
            root = derived.roots[change]
            cause = causes.get(root)
            if cause is None:
                cause = causes[root] = changes[root].origin.event_id, changes[root].traceparent
            behind = events.get(event)
            if behind is None:
                behind = events[event] = event if isinstance(event, str) else event.event_id
            name = f"{behind}/{dependent}/{canonical(key)}"
            fate = new_tuple(Fate, (version, to, name, occurred_ms, change))
            found.append(new_tuple(Happened, (key, fate, done.get(change, nothing), *cause)))
            moves = moves or to is not None
    if moves:
        found.sort(key=lambda each: each.fate.version)
    return found


@dataclass(frozen=True, slots=True)
class Went:
    """Rows that others depend on and that went, in columns. Each has a key of its own; `event` tells, as a place in
    `fates`, what it went by, and `done`, as a place in `does`, what that did, per dependent."""

    dependent: str
    keys: Sequence[Key]
    event: Sequence[int]
    fates: Sequence[Fate]
    done: Sequence[int]
    does: Sequence[Mapping[str, Done]]

    def one_by_one(self, causes: Sequence[ParentChange]) -> list[Happened]:
        """The same as `recorded` gives it. `causes` are the events of the batch behind `fates`."""
        found: list[Happened] = []
        for key, event, done in zip(self.keys, self.event, self.done, strict=True):
            fate, cause = self.fates[event], causes[event]
            name = f"{fate.event_id}/{self.dependent}/{canonical(key)}"
            fate = Fate(fate.version, None, name, fate.occurred_ms, len(found))
            found.append(Happened(key, fate, self.does[done], cause.origin.event_id, cause.traceparent))
        return found


def went_along(
    dependent: str,
    keys: Sequence[Key],
    fates: Sequence[Fate],
    event: Sequence[int],
    actions: Sequence[tuple[str, str]],
    counts: Sequence[Sequence[int]],
) -> Went:
    """What to record of removed rows of a dependent: `counts` are how many rows each took along, dependent by
    dependent, of which `actions` are the ids and actions."""
    place: dict[tuple[int, ...], int] = {}
    of_rows = zip(*counts, strict=True) if counts else ((),) * len(keys)
    done = [place.setdefault(of_row, len(place)) for of_row in of_rows]
    does = [
        {name: (action, count) for (name, action), count in zip(actions, of_row, strict=True) if count}
        for of_row in place
    ]
    return Went(dependent, keys, event, fates, done, does)


def keys_of(happened: Iterable[Happened]) -> set[Key]:
    """The keys whose heads `numbered` needs."""
    return {key for key, fate, *_ in happened for key in ((key,) if fate.to is None else (key, fate.to))}


_FIRST: Final = Version(0, (1,))


@dataclass(slots=True)
class Numbered:
    """The updates of the heads; the version of each fate, in the order given; the effects of each, whose changes are
    counted as `Fate.change` of the new fates."""

    updates: dict[Key, HeadUpdate]
    versions: list[Version]
    effects: list[Effect]


def numbered(happened: Sequence[Happened], heads: Mapping[Key, Head]) -> Numbered:
    """Give each fate a version: one above the newest of its key, of both keys for a key change."""
    seen: dict[Key, Version | None] = {}
    fates: dict[Key, list[Fate]] = {}
    effects: list[Effect] = []
    versions: list[Version] = []
    new_tuple = tuple.__new__
    for index, (key, fate, done, *_) in enumerate(happened):
        effects += [
            new_tuple(
                Effect,
                (index, name, action, Outcome.RESTRICTED if action == "restrict" else Outcome.APPLIED, rows),
            )
            for name, (action, rows) in done.items()
        ]
        if fate[1] is None and key not in heads and key not in seen:
            # Nearly all: the first that is heard of the key, and the last.
            versions.append(_FIRST)
            seen[key] = _FIRST
            fates[key] = [new_tuple(Fate, (_FIRST, None, fate[2], fate[3], index))]
            continue
        newest = _seen(seen, heads, key)
        if fate.to is not None:
            other = _seen(seen, heads, fate.to)
            newest = max(newest or EARLIEST, other or EARLIEST)
        version = _after(newest)
        versions.append(version)
        seen[key] = version
        fates.setdefault(key, []).append(fate._replace(version=version, change=index))
        if fate.to is not None:
            seen[fate.to] = version
    updates: dict[Key, HeadUpdate] = {
        key: new_tuple(HeadUpdate, (version, None, tuple(fates.get(key, ())))) for key, version in seen.items()
    }
    return Numbered(updates, versions, effects)


def _seen(seen: Mapping[Key, Version | None], heads: Mapping[Key, Head], key: Key) -> Version | None:
    if key in seen:
        return seen[key]
    head = heads.get(key)
    return None if head is None else head.seen


def _after(version: Version | None) -> Version:
    if version is None or version == EARLIEST:
        return _FIRST
    return Version(version.epoch, (version.position[0] + 1 if version.position else 1,))


# --- what an event may reach ----------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """A dependent, as far as the way down the graph is concerned."""

    policy: Policy
    rows: Rows | None


def reached(
    graph: Mapping[str, Sequence[Reference]], start: Reference, *, deleted: bool
) -> dict[str, tuple[str, Step]]:
    """The dependents below `start` that a deletion (or a key change) of its parent may reach in one store: id -> the
    action and its step."""
    found: dict[str, tuple[str, Step]] = {}
    visited: set[tuple[str, bool]] = set()
    waiting = [(start, deleted)]
    while waiting:
        reference, deletes = waiting.pop()
        rows, step = reference.rows, step_of(reference.policy, deletes)
        if rows is None or (follows := what_follows(rows, step)) is None:
            continue
        for below in graph.get(rows.entity, ()):
            policy = below.policy
            if (policy.dependent, follows) not in visited:
                visited.add((policy.dependent, follows))
                action = policy.on_delete_action if follows else policy.on_update_action
                if policy.dependent not in found or follows:
                    found[policy.dependent] = action, step_of(policy, follows)
                waiting.append((below, follows))
    return found


def step_of(policy: Policy, deletes: bool) -> Step:
    return policy.on_delete if deletes else policy.on_update


def what_follows(rows: Rows, step: Step) -> bool | None:
    """Whether a step on the rows deletes their keys (True), changes them (False), or does neither."""
    match step:
        case Remove():
            return True
        case Follow():
            return False if rows.shared else None
        case Replace():
            written = {position for position, _ in step.parts}
            return False if any(position in written for _, position in rows.shared) else None
        case Mark() | Leave() | Count():
            return None
        case _:
            assert_never(step)


def below(
    changes: Sequence[ParentChange],
    outcomes: Sequence[Outcome | None],
    references: Sequence[Reference],
    graph: Mapping[str, Sequence[Reference]],
    counted: Mapping[tuple[int, str], int],
    exceptions: Mapping[tuple[int, str], DeadLetterMark],
    only: Mapping[int, str],
) -> list[Effect]:
    """The effects on the dependents below those of the changes' entity: one for each audited change and dependent that
    it may reach. `counted` are their rows; `only` names the one dependent that a change is about."""
    ways = {
        deleted: [(ref.policy.dependent, reached(graph, ref, deleted=deleted)) for ref in references]
        for deleted in (True, False)
    }
    actions = {ref.policy.dependent: ref.policy.on_delete_action for of in graph.values() for ref in of}
    extra: dict[int, list[str]] = {}
    for change, dependent in counted:
        extra.setdefault(change, []).append(dependent)
    effects: list[Effect] = []
    for index, outcome in enumerate(outcomes):
        if outcome is None:
            continue
        found: dict[str, tuple[str, Outcome]] = {}
        for top, reaches in ways[changes[index].to is None]:
            if only.get(index, top) != top:
                continue
            mark = exceptions.get((index, top)) if outcome is Outcome.APPLIED else None
            for dependent, (action, step) in reaches.items():
                came = outcome if mark is None else mark.outcome
                if came is Outcome.APPLIED and isinstance(step, Leave):
                    came = Outcome.SKIPPED
                elif came is Outcome.APPLIED and isinstance(step, Count) and counted.get((index, dependent)):
                    came = Outcome.RESTRICTED
                if dependent not in found or found[dependent][1] in (Outcome.DEAD_LETTERED, Outcome.HELD):
                    found[dependent] = action, came
        for dependent in extra.get(index, ()):
            found.setdefault(dependent, (actions[dependent], outcome))
        effects += [
            Effect(index, dependent, action, came, counted.get((index, dependent), 0))
            for dependent, (action, came) in found.items()
        ]
    return effects
