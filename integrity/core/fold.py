"""The batch as a function on keys: settle which events count, then trace where every dependent ends.

`settle` compares the batch with what the ledger knows (heads): older and equal versions do nothing. `trace` follows,
for one dependent, every *original*: the rows that hold a key when the batch begins, in groups by (key, since). An
event of a key at version v acts on the rows that are there since before v. So a group goes from fate to fate, by the
next fate after its `since`, through fates of this batch and fates that the ledger knew before (a key change a→b may
be enforced after b's own deletion), until none is left. Originals are disjoint, so their ends commute: each kind of
end is one set-based statement, swaps and chains included.

Rows that came to a key at v while an event of that key older than v may still be on its way are *arrivals*: their
`since` is kept by the store until the key's own events have reached v.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, assert_never

from integrity.core.change import EARLIEST, Op, Origin, ParentChange, Version
from integrity.core.keys import Key, Scalar
from integrity.core.ledger import Fate, Head, HeadUpdate, LastRecord
from integrity.core.outcome import Effect, Outcome

Values = tuple[Scalar | None, ...]
"""What the reference columns hold, in the order of the parent's key; a None part means it is no reference."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Which events of a batch count. `outcomes` has one entry a change; None: says nothing that is audited (the key
    is alive, or a tombstone that repeats its deletion). `fates` holds old and new ones of every key, ascending."""

    outcomes: list[Outcome | None]
    updates: dict[Key, HeadUpdate]
    fates: dict[Key, tuple[Fate, ...]]
    heads: Mapping[Key, Head]
    seen_after: dict[Key, Version | None]


def settle(
    changes: Sequence[ParentChange],
    heads: Mapping[Key, Head],
    *,
    done: Collection[int] = frozenset(),
    keep_alive: bool = False,
) -> Settled:
    """Decide which changes of one entity count, given the heads of all keys they name.

    `done` are indexes below the store's progress: they are duplicates. Changes of one key come in the order of their
    partition. A key without a head is unknown to the ledger; being alive is then not worth a row, unless a key
    change leads there, or `keep_alive` says that events of one key come in several topics.
    """
    # A named tuple is made from a tuple in half the time that its name takes; this is done for every event.
    new_tuple = tuple.__new__
    alive_op, arrived, gone = Op.ALIVE, Op.ARRIVED, Op.GONE
    outcomes: list[Outcome | None] = [Outcome.APPLIED] * len(changes)
    seen_now: dict[Key, Version | None] = {key: head.seen for key, head in heads.items()}
    for change in changes:
        if change[1] is arrived or (keep_alive and change[1] is alive_op):
            seen_now.setdefault(change.key, None)
        elif change[3] is not None:
            seen_now.setdefault(change[3], None)
    fates = {key: head.fates for key, head in heads.items() if head.fates}
    updates: dict[Key, HeadUpdate] = {}
    for index, (_, op, key, to, version, origin, occurred_ms, _, _, _) in enumerate(changes):
        if done and index in done:
            outcomes[index] = None if op is alive_op or op is arrived or op is gone else Outcome.DUPLICATE
            continue
        topic, partition, offset, _ = origin
        if version is not None and op is not alive_op and op is not arrived and key not in seen_now:
            # What nearly all events of a backlog are: the first that is heard of a key is that it is gone.
            mine: tuple[Fate, ...] = (new_tuple(Fate, (version, to, origin, occurred_ms, index)),)
            record = new_tuple(LastRecord, (topic, partition, offset, False))
            seen_now[key], fates[key] = version, mine
            updates[key] = new_tuple(HeadUpdate, (version, record, mine))
            continue
        seen = seen_now.get(key)
        before = updates.get(key)
        if op is alive_op or op is arrived:
            assert version is not None
            outcomes[index] = None
            if key in seen_now:
                if seen is None or seen < version:
                    seen = seen_now[key] = version
                record = new_tuple(LastRecord, (topic, partition, offset, True))
                updates[key] = HeadUpdate(seen, record, () if before is None else before.fates)
            continue
        record = new_tuple(LastRecord, (topic, partition, offset, False))
        if version is None:
            placed = _version_of_tombstone(origin, seen, before, heads.get(key)) if op is gone else _after(seen)
            if isinstance(placed, Outcome):
                outcomes[index] = placed
                continue
            version = placed
            if version is None:
                outcomes[index] = None
                if key in seen_now:
                    updates[key] = HeadUpdate(seen, record, () if before is None else before.fates)
                continue
        assert version is not None
        if seen is not None and version <= seen:
            outcomes[index] = Outcome.DUPLICATE if version == seen else Outcome.STALE
            updates[key] = HeadUpdate(seen, record, () if before is None else before.fates)
            continue
        seen_now[key] = version
        mine = (new_tuple(Fate, (version, to, origin, occurred_ms, index)),)
        fates[key] = fates[key] + mine if key in fates else mine
        updates[key] = new_tuple(HeadUpdate, (version, record, mine if before is None else before.fates + mine))
    return Settled(outcomes, updates, fates, heads, seen_now)


def _version_of_tombstone(
    origin: Origin, seen: Version | None, update: HeadUpdate | None, head: Head | None
) -> Version | Outcome | None:
    """The version that a null record acts at, or None when it repeats what is known, or what came of it.

    It follows the key's last record at once: after a deletion it is that deletion's duplicate. After a record that
    said the key is alive it is a deletion of its own, just after everything seen of the key; unless it is read
    again, from below that record. Of a key never heard of, it is the oldest event. After a record of another topic that
    said so it has no place in the order: it is stale, and does nothing.
    """
    last = update.last if update is not None else head.last if head is not None else None
    if last is None:
        return Version(0, ()) if seen is None else None
    topic, partition, offset, alive = last
    if not alive or ((topic, partition) == (origin.topic, origin.partition) and origin.offset <= offset):
        return None
    if topic != origin.topic:
        return Outcome.STALE
    return _after(seen)


def _after(seen: Version | None) -> Version:
    """Just after everything seen of a key; of a key never heard of, before everything."""
    return Version(0, ()) if seen is None else Version(seen.epoch, (*seen.position, 1))


# --- what a dependent does at a fate -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remove:
    """The row goes."""


@dataclass(frozen=True, slots=True)
class Follow:
    """The reference becomes the key that the parent moved to."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Parts of the reference become fixed values (set default) or null (nullify)."""

    parts: tuple[tuple[int, Scalar | None], ...]

    @property
    def refers(self) -> bool:
        """False: some part becomes null, so that it is no reference any more (MATCH SIMPLE)."""
        return all(value is not None for _, value in self.parts)

    def of(self, key: Key) -> Values:
        """What the reference columns hold afterwards."""
        values: list[Scalar | None] = list(key)
        for position, value in self.parts:
            values[position] = value
        return tuple(values)

    def key_of(self, key: Key) -> Key:
        """The key that is referenced afterwards; only where `refers`."""
        parts = dict(self.parts)
        return tuple(value if (value := parts.get(position)) is not None else old for position, old in enumerate(key))


@dataclass(frozen=True, slots=True)
class Mark:
    """The row is marked, and out of reach from then on; its reference stays."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing happens to the row."""


@dataclass(frozen=True, slots=True)
class Count:
    """Nothing happens to the row, and it is counted: the rule restricts what has happened already."""


Step = Remove | Follow | Replace | Mark | Leave | Count


@dataclass(frozen=True, slots=True)
class Policy:
    """What one dependent does when its parent is deleted, and when its parent's key changes."""

    dependent: str
    on_delete: Step
    on_update: Step
    on_delete_action: str
    on_update_action: str
    by_age: bool = False
    """A fate is done to rows only that were there already when it occurred (`as_of`)."""


# --- where the rows of a dependent end ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removed:
    """The group's rows are deleted."""


@dataclass(frozen=True, slots=True)
class Marked:
    """The group's rows are marked by that fate; their reference becomes `key`, the last one their parent had."""

    key: Key
    fate: Fate


@dataclass(frozen=True, slots=True)
class Referencing:
    """The group's rows end with this reference. `arrival`: keep them as arrivals at it, there since that version."""

    values: Values
    arrival: Version | None


@dataclass(frozen=True, slots=True)
class Counted:
    """The group's rows stay as they are, and are only counted."""


End = Removed | Marked | Referencing | Counted

_REMOVED = Removed()
_COUNTED = Counted()


_ALWAYS_MS = -(2**62)
"""Before every time."""


class Born(NamedTuple):
    """When the rows of a group came to be, in milliseconds since the epoch: after `after_ms` (None: however long ago),
    up to `until_ms`."""

    after_ms: int | None
    until_ms: int

    def holds(self, micros: int | None) -> bool:
        """Whether a row of that time, in microseconds, is one of them. A row without a time is in no group."""
        if micros is None or micros > self.until_ms * 1000:
            return False
        return self.after_ms is None or micros > self.after_ms * 1000


class Turn(NamedTuple):
    """What one event makes of the rows of a group: their reference becomes `after`, or they are marked (`marks`), or
    (neither) removed. Of these rows the store keeps what they were, for `integrity undo`.

    `event` is the record behind it, an event of `key` of `entity`; `key_hash` is that of the key they refer to before.
    """

    event: str
    version: Version
    entity: str
    key: str
    key_hash: bytes
    action: str
    before: Key
    after: Values | None
    marks: bool = False


class Group(NamedTuple):
    """The rows that hold `key` when the batch begins, those there `since` (an arrival), or the plain ones (None).

    `path` are the indexes of the batch's changes that act on them, in order, and `counting` of those that only count
    them: each is credited with the rows.
    """

    key: Key
    since: Version | None
    path: tuple[int, ...]
    end: End
    born: Born | None = None
    """Only the rows of that age; None: of any."""
    counting: tuple[int, ...] = ()
    trail: tuple[Turn, ...] = ()
    """What happens to its rows, step by step, where that is kept."""

    def is_younger(self, fate: Fate) -> bool:
        """Whether its rows are too young for a fate on their way."""
        after_ms = None if self.born is None else self.born.after_ms
        return after_ms is not None and fate.occurred_ms <= after_ms

    def holds(self, micros: int | None) -> bool:
        """Whether a row of that time, in microseconds, is of the group's age."""
        return self.born is None or self.born.holds(micros)


def lookups(
    changes: Collection[ParentChange],
    heads: Collection[Key],
    fates: Mapping[Key, Sequence[Fate]],
    policies: Iterable[Policy],
) -> set[Key]:
    """The keys that `trace` may reach and that are not in `heads`, the keys read so far.

    `fates` are the ledger's, of the keys read. Read what is missing and call again, until nothing is.
    """
    defaults = [
        step
        for policy in policies
        for step in (policy.on_delete, policy.on_update)
        if isinstance(step, Replace) and step.refers
    ]
    wanted = {change[2] for change in changes}
    wanted.update([change[3] for change in changes if change[3] is not None])
    if defaults:
        acting = {change.key for change in changes if change.op is not Op.ALIVE}
        wanted.update(step.key_of(key) for key in acting for step in defaults)
    for key, ledgered in fates.items():
        wanted.update(fate.to for fate in ledgered if fate.to is not None)
        wanted.update(step.key_of(key) for step in defaults)
    return wanted.difference(heads) if heads else wanted


def trace(
    policy: Policy,
    settled: Settled,
    arrivals: Mapping[Key, Collection[Version]] = MappingProxyType({}),
    *,
    left_out: Callable[[int], object] | None = None,
) -> list[Group]:
    """Where the rows of one dependent end, as disjoint groups; groups that no change acts on or counts are left out.

    `arrivals` tells, per key, since when rows that count as arrivals are there. `left_out` tells the indexes of
    changes that are dead letters of this dependent: they do not act.
    """
    groups: list[Group] = []
    new_tuple = tuple.__new__
    heads = settled.heads
    plainly_removed = isinstance(policy.on_delete, Remove) and not policy.by_age and left_out is None and not arrivals
    for key, (_, _, fates) in settled.updates.items():
        if not fates:
            continue
        head = heads.get(key) if heads else None
        if plainly_removed and head is None and fates[0].to is None:
            # What `_follow` finds: the key's first fate is all that the ledger and the batch have of its rows.
            groups.append(new_tuple(Group, (key, None, (fates[0].change,), _REMOVED, None, (), ())))
            continue
        seen = head.seen if head is not None and head.seen else EARLIEST
        if policy.by_age:
            for since in (None, *arrivals.get(key, ())):
                groups += _by_age(policy, settled, key, since, seen if since is None else since, left_out)
            continue
        plain = _follow(policy, settled, key, seen, left_out)
        if plain is not None:
            groups.append(new_tuple(Group, (key, None, *plain, ())))
        if arrivals:
            for since in arrivals.get(key, ()):
                arrived = _follow(policy, settled, key, since, left_out)
                if arrived is not None:
                    groups.append(Group(key, since, *arrived))
    return groups


def _by_age(
    policy: Policy,
    settled: Settled,
    key: Key,
    since: Version | None,
    there_since: Version,
    left_out: Callable[[int], object] | None,
    first: Fate | None = None,
) -> Iterator[Group]:
    """The groups of the rows at a key, from the oldest to the youngest that some event still acts on.

    Each fate compares with its own time, and clocks may disagree with versions: so the rows are told apart by every
    time that makes a difference on their way, and by no other. Rows just after `after_ms` are followed; what they meet
    is what all meet up to the earliest time of the fates that acted on them.
    """
    after_ms = _ALWAYS_MS
    while (found := _follow(policy, settled, key, there_since, left_out, first=first, after_ms=after_ms)) is not None:
        group = Group(key, since, *found)
        assert group.born is not None
        yield group
        after_ms = group.born.until_ms


def follow(
    policy: Policy, settled: Settled, key: Key, fate: Fate, left_out: Callable[[int], object] | None
) -> list[Group]:
    """The groups of all rows at a key, however long they are there, that `fate` acts on first."""
    if policy.by_age:
        return list(_by_age(policy, settled, key, None, EARLIEST, left_out, fate))
    found = _follow(policy, settled, key, EARLIEST, left_out, first=fate)
    return [] if found is None else [Group(key, None, *found)]


def _follow(
    policy: Policy,
    settled: Settled,
    key: Key,
    since: Version,
    left_out: Callable[[int], object] | None,
    *,
    first: Fate | None = None,
    after_ms: int | None = None,
) -> tuple[tuple[int, ...], End, Born | None, tuple[int, ...]] | None:
    """Path, end, age and countings of the rows at `key` since `since`; None when no event acts on them. `first` is a
    fate that acts on them whatever is known of the key. With `after_ms`, of those that came to be just after it, and
    which others go the same way."""
    path: list[int] = []
    counting: tuple[int, ...] = ()
    until_ms: int | None = None
    acted = False
    while True:
        fate = first or next_fate(settled.fates.get(key, ()), since, left_out)
        first = None
        if fate is None:
            if not acted:
                return ((), _COUNTED, _born(after_ms, until_ms), counting) if counting else None
            reached = settled.seen_after.get(key)
            settles = reached is not None and since <= reached
            return tuple(path), Referencing(key, None if settles else since), _born(after_ms, until_ms), counting
        step = policy.on_delete if fate.to is None else policy.on_update
        since = fate.version
        if isinstance(step, Leave):
            continue
        if after_ms is not None:
            if fate.occurred_ms <= after_ms:
                continue  # they are younger than that fate, which leaves them where they are
            until_ms = fate.occurred_ms if until_ms is None else min(until_ms, fate.occurred_ms)
        if isinstance(step, Count):
            if fate.change >= 0:
                counting += (fate.change,)
            continue
        acted = True
        if fate.change >= 0:
            path.append(fate.change)
        match step:
            case Remove():
                return tuple(path), _REMOVED, _born(after_ms, until_ms), counting
            case Mark():
                return tuple(path), Marked(key, fate), _born(after_ms, until_ms), counting
            case Follow():
                assert fate.to is not None
                key = fate.to
            case Replace():
                values = step.of(key)
                if not step.refers:
                    return tuple(path), Referencing(values, None), _born(after_ms, until_ms), counting
                key = step.key_of(key)
            case _:
                assert_never(step)


def _born(after_ms: int | None, until_ms: int | None) -> Born | None:
    if after_ms is None or until_ms is None:
        return None
    return Born(None if after_ms == _ALWAYS_MS else after_ms, until_ms)


def next_fate(fates: Sequence[Fate], since: Version, left_out: Callable[[int], object] | None) -> Fate | None:
    """The first of these fates after `since` that counts."""
    # Most keys have one fate, and a search for it costs more than a look.
    later = fates if len(fates) < 4 else fates[bisect_right(fates, since, key=_version_of) :]
    for fate in later:
        if fate.version > since and (left_out is None or fate.change < 0 or not left_out(fate.change)):
            return fate
    return None


def _version_of(fate: Fate) -> Version:
    return fate.version


def credit(
    policy: Policy,
    changes: Sequence[ParentChange],
    outcomes: Sequence[Outcome | None],
    groups: Sequence[Group],
    rows: Sequence[int],
    *,
    left_out: Callable[[int], Outcome | None] | None = None,
    only: Mapping[int, str] = MappingProxyType({}),
    already: Mapping[int, int] = MappingProxyType({}),
) -> list[Effect]:
    """One Effect for each audited change: `rows[i]` rows of `groups[i]` count for every change on its path, as they
    would if the changes were applied one at a time. `left_out` tells what a change is instead of applied; `only` the
    one dependent that a change is about; `already` how many rows it has acted on before."""
    counted = [0] * len(changes)
    for change, count in already.items():
        counted[change] = count
    for (_, _, path, _, _, counting, _), count in zip(groups, rows, strict=True):
        for change in path:
            counted[change] += count
        for change in counting:
            counted[change] += count
    new_tuple = tuple.__new__
    applied, dependent = Outcome.APPLIED, policy.dependent
    delete_action, update_action = policy.on_delete_action, policy.on_update_action
    delete_leaves, update_leaves = isinstance(policy.on_delete, Leave), isinstance(policy.on_update, Leave)
    delete_counts, update_counts = isinstance(policy.on_delete, Count), isinstance(policy.on_update, Count)
    effects: list[Effect] = []
    for index, (of, outcome, done) in enumerate(zip(changes, outcomes, counted, strict=True)):
        if outcome is None or (only and only.get(index, dependent) != dependent):
            continue
        if of[3] is None:
            action, leaves, counts = delete_action, delete_leaves, delete_counts
        else:
            action, leaves, counts = update_action, update_leaves, update_counts
        if outcome is applied:
            if left_out is not None and (instead := left_out(index)):
                outcome = instead
            elif leaves:
                outcome = Outcome.SKIPPED
            elif counts and done:
                outcome = Outcome.RESTRICTED
        effects.append(new_tuple(Effect, (index, dependent, action, outcome, done)))
    return effects
