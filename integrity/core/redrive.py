"""What a dead letter may still do when it comes back, and what has to wait for one that has not.

The ledger's head has seen the version of an event whose effect on one dependent was left out; the exception beside it
says so, and lets that one effect happen after all. It acts on the rows that are there since before it, as it would
have: when nothing else was heard of the key since, these are all rows that hold it (arrivals excepted, which are told
apart). When the key was in use again, no row tells whose it was, and nothing is done. From there the rows go on through
the later fates of the keys they come to, as always.

Until then nothing later of the same key acts on that dependent: the order of a key is kept. A deletion that overtook a
key change would remove rows that had left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from integrity.core.batch import ANY_DEPENDENT, DeadLetterMark, Share
from integrity.core.change import EARLIEST, Op, ParentChange, Version
from integrity.core.fold import Group, Leave, Policy, Settled, credit, follow
from integrity.core.keys import Key
from integrity.core.ledger import Done, Fate, Head, Pending, done_by_fate
from integrity.core.outcome import Effect, Outcome, Rejected
from integrity.core.sweep import Repaired, is_gone
from integrity.errors import Reason

_HAPPENED = (Op.DELETED, Op.MOVED, Op.GONE)


def aside(share: Share, heads: Mapping[Key, Head]) -> frozenset[int]:
    """The changes that `settle` must not look at: those done, redrives of one dependent, parents that are missing
    and known to be gone (`admit` decides on both), and redrives and repeated records that are no news of their key,
    which must not pass for its last record."""
    if not share.redrives and not share.only and not share.again:
        return share.done
    found = set(share.done)
    found.update(_no_news(share, heads))
    found.update(index for index, change in enumerate(share.changes) if _is_known(change, heads.get(change.key)))
    for index, redrive in share.redrives.items():
        change = share.changes[index]
        head = heads.get(change.key)
        if redrive.dependent != ANY_DEPENDENT:
            found.add(index)
        elif head is not None and change.version is not None:
            if head.seen is not None and change.version <= head.seen:
                found.add(index)
        elif head is not None and head.last is not None:
            topic, partition, offset, _ = head.last
            if (topic, partition) == (change.origin.topic, change.origin.partition) and change.origin.offset <= offset:
                found.add(index)
    return frozenset(found)


def _no_news(share: Share, heads: Mapping[Key, Head]) -> Iterator[int]:
    """The changes of `share.again` that the ledger knows as much of as they say.

    A key without a head was never acted on. Of one with a head the version tells; where either has none, the place: a
    record is news behind the last one of its key, in the same partition, and when it follows news here."""
    news: set[Key] = set()
    for index in sorted(share.again):
        change = share.changes[index]
        head = heads.get(change.key)
        if head is None or head.last is None or change.key in news:
            continue
        topic, partition, offset, _ = head.last
        origin = change.origin
        if change.version is not None and head.seen is not None and head.seen.position:
            is_news = change.version > head.seen
        else:
            is_news = (topic, partition) == (origin.topic, origin.partition) and origin.offset > offset
        if is_news:
            news.add(change.key)
        else:
            yield index


def _is_known(change: ParentChange, head: Head | None) -> bool:
    """A parent is missing, and what was heard of it says the same, or something else than was looked up beforehand."""
    if change.op is not Op.MISSING:
        return False
    return change.to is not None or (head is not None and is_gone(head))


def keys_in_question(share: Share, settled: Settled) -> set[Key]:
    """The keys whose exceptions `admit` has to know: of redrives, of missing parents, and of keys that have a new fate
    and a past."""
    missing, heads = Op.MISSING, settled.heads
    found = {key for key, update in settled.updates.items() if update.fates and key in heads} if heads else set[Key]()
    found.update([change.key for change in share.changes if change[1] is missing])
    found.update(share.changes[index].key for index in share.redrives if index not in share.done)
    return found


class LeftOut(NamedTuple):
    """An exception to record: a change that does not act on one dependent, and the version that it has."""

    change: ParentChange
    dependent: str
    mark: DeadLetterMark
    version: Version


@dataclass(frozen=True, slots=True)
class Admitted:
    """`starts` are the fates that act after all, by dependent; `only` names the one dependent that a change is about;
    `over` are exceptions (dependent, event) that are none any more; `left_out` are those to record. `again` are the
    changes by which a fate acts once more, on rows that were written late."""

    starts: Mapping[str, Sequence[tuple[Key, Fate]]] = field(default_factory=dict)
    only: Mapping[int, str] = field(default_factory=dict)
    over: Sequence[tuple[str, str]] = ()
    left_out: Sequence[LeftOut] = ()
    again: frozenset[int] = frozenset()

    @property
    def keys(self) -> set[Key]:
        """The keys whose rows are acted on after all."""
        return {key for of_dependent in self.starts.values() for key, _ in of_dependent}


_NOTHING = Admitted()


def admit(
    share: Share, settled: Settled, policies: Sequence[Policy], pending: Mapping[Key, Sequence[Pending]]
) -> Admitted | Rejected:
    """Which redrives act, once `settle` has decided on the rest. Sets the outcomes of redrives in `settled`.

    Rejected names the dependent for which an event of the share has to wait for a dead letter, or can't act."""
    if not pending and not share.redrives and not share.exceptions and not share.only:
        return _NOTHING
    outcomes = settled.outcomes
    starts: dict[str, list[tuple[Key, Fate]]] = {}
    only: dict[int, str] = {}
    if share.only:
        starts[share.only] = _missing(share, settled)
    over: list[tuple[str, str]] = []
    for index, redrive in share.redrives.items():
        change = share.changes[index]
        if index in share.done:
            only |= _about(index, redrive.dependent)
            continue
        if redrive.dependent == ANY_DEPENDENT:
            if outcomes[index] is Outcome.DUPLICATE and _is_older(settled.heads.get(change.key), share, index):
                outcomes[index] = Outcome.STALE
            continue
        only[index] = redrive.dependent
        if change.op not in _HAPPENED:
            outcomes[index] = None
            continue
        outcomes[index] = Outcome.DUPLICATE
        event = change.origin.event_id
        mine = _of(pending, change.key, redrive.dependent)
        if (redrive.dependent, event) in over or all(each.event != event for each in mine):
            continue
        outcomes[index] = Outcome.APPLIED
        if (index, redrive.dependent) in share.exceptions:
            continue
        if mine[0].event != event:
            return _behind(mine[0])
        fate = _last_fate(settled, change.key, event)
        if fate is None:
            return _in_use_again(mine[0])
        starts.setdefault(redrive.dependent, []).append((change.key, fate._replace(event=change.origin, change=index)))
        over.append((redrive.dependent, event))
    if pending and (behind := _waiting(share, settled, policies, pending, only)):
        return behind
    left_out = [
        LeftOut(share.changes[index], dependent, mark, _version_of(share, settled, index))
        for (index, dependent), mark in share.exceptions.items()
        # One dead letter stands for all keys of a page: what it left out is told by the keys' fates.
        if outcomes[index] is Outcome.APPLIED and share.page is None
    ]
    if not share.only:
        return Admitted(starts, only, over, left_out)
    again = frozenset(fate.change for _, fate in starts[share.only])
    return Admitted(starts, dict.fromkeys(range(len(share.changes)), share.only), over, left_out, again)


def _missing(share: Share, settled: Settled) -> list[tuple[Key, Fate]]:
    """The newest fates of keys that are gone: they act once more, on rows that were written late."""
    found: list[tuple[Key, Fate]] = []
    for index, change in enumerate(share.changes):
        head = settled.heads.get(change.key)
        if not _is_known(change, head):
            continue
        newest = head.fates[-1] if head is not None and is_gone(head) else None
        if newest is None or newest.to != change.to:
            settled.outcomes[index] = None  # the key was heard of since it was looked up
            continue
        settled.outcomes[index] = Outcome.APPLIED
        if (index, share.only) not in share.exceptions:
            found.append((change.key, newest._replace(change=index)))
    return found


class MadeUpFor(NamedTuple):
    """What redrives did at a fate that the ledger knows: by dependent, the action and how many rows."""

    key: Key
    fate: Fate
    done: Mapping[str, Done]


def made_up_for(admitted: Admitted, effects: Sequence[Effect]) -> list[MadeUpFor]:
    """What to add to the ledger's fates. `effects` count their changes within the share."""
    if not admitted.starts:
        return []
    done = done_by_fate(effects)
    found: dict[tuple[Key, Version], MadeUpFor] = {}
    for dependent, starts in admitted.starts.items():
        for key, fate in starts:
            if fate.change not in admitted.again and dependent in done.get(fate.change, {}):
                before = found.get((key, fate.version), MadeUpFor(key, fate, {})).done
                at_fate = {**before, **done[fate.change]}  # what depends on its rows too
                found[key, fate.version] = MadeUpFor(key, fate, at_fate)
    return list(found.values())


def repaired_by(entity: str, admitted: Admitted, effects: Sequence[Effect]) -> list[Repaired]:
    """What fates did that acted once more, to be kept as what a sweep does. `effects` count their changes within the
    share."""
    if not admitted.again:
        return []
    fates = {fate.change: (key, fate) for starts in admitted.starts.values() for key, fate in starts}
    return [
        Repaired(entity, *fates[change], dependent, action, rows)
        for change, dependent, action, outcome, rows in effects
        if change in admitted.again and outcome is Outcome.APPLIED and rows
    ]


def _about(index: int, dependent: str) -> dict[int, str]:
    return {} if dependent == ANY_DEPENDENT else {index: dependent}


def _is_older(head: Head | None, share: Share, index: int) -> bool:
    version = share.changes[index].version
    return head is not None and head.seen is not None and version is not None and version < head.seen


def _last_fate(settled: Settled, key: Key, event: str) -> Fate | None:
    """The fate that this event is, if it is the last thing that was heard of the key."""
    fates = settled.fates.get(key, ())
    if fates and fates[-1].event_id == event and fates[-1].version == settled.seen_after.get(key):
        return fates[-1]
    return None


def _waiting(
    share: Share,
    settled: Settled,
    policies: Sequence[Policy],
    pending: Mapping[Key, Sequence[Pending]],
    only: Mapping[int, str],
) -> Rejected | None:
    """An event that would overtake a dead letter of its key on some dependent."""
    for index, outcome in enumerate(settled.outcomes):
        change = share.changes[index]
        if outcome is not Outcome.APPLIED or index in only or change.key not in pending:
            continue
        for policy in policies:
            step = policy.on_delete if change.to is None else policy.on_update
            if share.only not in ("", policy.dependent):
                continue
            if isinstance(step, Leave) or (index, policy.dependent) in share.exceptions:
                continue
            if mine := _of(pending, change.key, policy.dependent):
                return _behind(mine[0])
    return None


def _of(pending: Mapping[Key, Sequence[Pending]], key: Key, dependent: str) -> list[Pending]:
    """What is left out of one key on one dependent, the oldest first."""
    return sorted([each for each in pending.get(key, ()) if each.dependent == dependent], key=lambda each: each.version)


def _behind(first: Pending) -> Rejected:
    return Rejected(
        first.dependent,
        Reason(first.reason),
        f"An earlier event of the same key is a dead letter of this dependent: retry or discard {first.letter} first.",
    )


def _in_use_again(pending: Pending) -> Rejected:
    return Rejected(
        pending.dependent,
        Reason(pending.reason),
        "The key was in use again since, and no row tells whose it was: mend the rows by hand, and discard this.",
    )


def _version_of(share: Share, settled: Settled, index: int) -> Version:
    """The version that a change has; of a null record, that of its fate."""
    change = share.changes[index]
    if change.version is not None:
        return change.version
    event = change.origin.event_id
    return next((fate.version for fate in settled.fates.get(change.key, ()) if fate.event_id == event), EARLIEST)


def retrace(
    policy: Policy,
    settled: Settled,
    admitted: Admitted,
    *,
    left_out: Callable[[int], object] | None = None,
) -> list[Group]:
    """Where the rows of one dependent end that redrives act on, as `trace` has it for those of other events."""
    groups: list[Group] = []
    for key, fate in admitted.starts.get(policy.dependent, ()):
        groups += follow(policy, settled, key, fate, left_out)
    return groups


def share_credit(
    policy: Policy,
    share: Share,
    settled: Settled,
    admitted: Admitted,
    groups: Sequence[Group],
    rows: Sequence[int],
    already: Mapping[int, int],
) -> list[Effect]:
    """The effects of a share on one dependent: `credit`, redriven changes included."""
    left_out = share.left_out(policy.dependent)
    return credit(
        policy,
        share.changes,
        settled.outcomes,
        groups,
        rows,
        left_out=left_out,
        only=admitted.only,
        already=already,
    )
