"""Sweeps: keys that are gone are looked at again some time after, for rows that were written late.

A parent's deletion was enforced, and then a row that refers to it was written by somebody who did not know. Every store
looks for such rows in the same way; only where and how differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from integrity.core.change import Op, Origin, ParentChange
from integrity.core.fold import Counted, Group, Policy, Settled, follow
from integrity.core.keys import Key
from integrity.core.ledger import Fate, Head
from integrity.core.outcome import Broken, Held, Rejected, Retry, TooLarge
from integrity.errors import Reason


@dataclass(frozen=True, slots=True)
class Sweep:
    """One page of the keys whose newest fate was enforced at least `age_ms` ago, and at `until_ms` at the latest.

    `entities` are those whose rules name this age. `left_out` are dependents that such a page was refused for: they are
    passed over. `at_ms` is the wall clock, for `$now` and the ledger's times. `goes_on`: the same page, of one key, was
    unfinished before.
    """

    age_ms: int
    until_ms: int
    entities: frozenset[str]
    keys_max: int
    at_ms: int
    left_out: frozenset[str] = frozenset()
    goes_on: bool = False


class Repaired(NamedTuple):
    """Late rows of a key that went the way of its newest fate."""

    entity: str
    key: Key
    fate: Fate
    dependent: str
    action: str
    rows: int


@dataclass(frozen=True, slots=True)
class Swept:
    """The page is done, and durable. `more`: it was full, so that the next one may have keys as well. `unfinished`: it
    was of one key, which has more rows than one transaction is to have: the same page goes on with them."""

    repaired: tuple[Repaired, ...] = ()
    more: bool = False
    unfinished: bool = False


SweepResult = Swept | Retry | Rejected | Broken | TooLarge
"""As of `apply`. After all but Swept nothing was changed; a page of a single key is never too large."""


class Extent(Enum):
    """How much of a page one transaction tries."""

    WHOLE = "whole"
    """All of it, if it has few enough rows."""
    PART = "part"
    """Of a single key, as many rows as a transaction may have."""
    ANY = "any"
    """All of it, whatever it has: what is left of a key whose other rows can't go in parts."""


def extents(sweep: Sweep) -> tuple[Extent, ...]:
    """What to try, until one does."""
    if sweep.goes_on:
        return (Extent.PART, Extent.WHOLE, Extent.ANY)
    return (Extent.WHOLE, Extent.PART, Extent.ANY) if sweep.keys_max == 1 else (Extent.WHOLE,)


def is_gone(head: Head) -> bool:
    """Nothing later than the newest fate of the key was seen of it."""
    return bool(head.fates) and head.seen is not None and head.seen <= head.fates[-1].version


Acted = Collection[tuple[Key, str, str]]
"""Of fates, the key, the event and each dependent (by id) on which it was enforced."""


class Late(NamedTuple):
    """Late rows of one dependent: where they end, and what tells how they come there (as `Descent.branch` takes it)."""

    groups: list[Group]
    settled: Settled
    firsts: Mapping[Key, Fate]


def causes(entity: str, heads: Mapping[Key, Head], keys: Iterable[Key]) -> list[ParentChange]:
    """The newest fate of each key, as the change that it was: late rows go its way."""
    changes: list[ParentChange] = []
    for key in keys:
        fate = heads[key].fates[-1]
        op = Op.DELETED if fate.to is None else Op.MOVED
        changes.append(ParentChange(entity, op, key, fate.to, fate.version, _origin(fate), fate.occurred_ms))
    return changes


def _origin(fate: Fate) -> Origin:
    if not isinstance(fate.event, str):
        return fate.event
    topic, partition, offset = ("//" + fate.event).rsplit("/", 2)
    if not (partition.isdigit() and offset.isdigit()):
        return Origin(fate.event, 0, 0, fate.occurred_ms)  # no record's name: it stays a name that nothing else has
    return Origin(topic.removeprefix("//"), int(partition), int(offset), fate.occurred_ms)


def late_rows(
    policy: Policy, heads: Mapping[Key, Head], keys: Iterable[Key], acted: Acted, changes: Sequence[ParentChange]
) -> Late:
    """Where the rows of one dependent end that refer to keys which are gone, as far as anything happens to them.

    `heads` has the heads of all keys that these may lead to, `changes` what `causes` gave for all keys that are gone. A
    fate that was not enforced on the dependent does nothing here either: a dead letter stands for it, or somebody gave
    it up, or the rule came later. Nor does anything happen where the rule says restrict, or to rows that are too young
    for the fate.
    """
    fates = {
        key: tuple(fate for fate in head.fates if (key, fate.event_id, policy.dependent) in acted)
        for key, head in heads.items()
        if head.fates
    }
    settled = Settled([], {}, fates, heads, {key: head.seen for key, head in heads.items()})
    place = {change.key: index for index, change in enumerate(changes)}
    groups: list[Group] = []
    firsts: dict[Key, Fate] = {}
    for key in keys:
        newest = heads[key].fates[-1]
        if newest in fates[key]:
            firsts[key] = newest._replace(change=place[key])
            found = follow(policy, settled, key, newest, None)
            groups += [g._replace(path=(), counting=()) for g in found if not isinstance(g.end, Counted)]
    return Late(groups, settled, firsts)


class TooManyLate(Exception):
    """A key has more late rows than the rule's `max_rows`: nothing of the page may be done."""

    def __init__(self, dependent: str, rows_max: int) -> None:
        super().__init__(dependent)
        self.result = Rejected(
            dependent, Reason.TOO_MANY_ROWS, f"A key has more rows written late than max_rows allows ({rows_max})."
        )

    @classmethod
    def below(cls, held: Held) -> TooManyLate:
        """The same for rows that depend on late rows."""
        found = cls(held.dependent, 0)
        found.result = Rejected(held.dependent, Reason.TOO_MANY_ROWS, held.message)
        return found


def repairs(
    policy: Policy,
    entity: str,
    rows_max: int | None,
    heads: Mapping[Key, Head],
    groups: Iterable[Group],
    rows: Iterable[int],
) -> list[Repaired]:
    """What is to be told of groups that had rows. Raises TooManyLate."""
    found: list[Repaired] = []
    counts: dict[Key, int] = {}
    for group, count in zip(groups, rows, strict=True):
        counts[group.key] = counts.get(group.key, 0) + count  # rows of several ages are several groups
    for key, count in counts.items():
        if rows_max is not None and count > rows_max:
            raise TooManyLate(policy.dependent, rows_max)
        if count:
            fate = heads[key].fates[-1]
            action = policy.on_delete_action if fate.to is None else policy.on_update_action
            found.append(Repaired(entity, key, fate, policy.dependent, action, count))
    return found


class Below(NamedTuple):
    """Rows further down that went with late rows, for the change with that index."""

    change: int
    dependent: str
    action: str
    rows: int


def repairs_below(changes: Sequence[ParentChange], heads: Mapping[Key, Head], below: Iterable[Below]) -> list[Repaired]:
    """What is to be told of rows that depended on late rows."""
    return [
        Repaired(change.entity, change.key, heads[change.key].fates[-1], each.dependent, each.action, each.rows)
        for each in below
        for change in (changes[each.change],)
    ]
