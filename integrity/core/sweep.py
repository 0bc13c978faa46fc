"""Sweeps: keys that are gone are looked at again some time after, for rows that were written late.

A parent's deletion was enforced, and then a row that refers to it was written by somebody who did not know. Every store
looks for such rows in the same way; only where and how differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from integrity.core.fold import Counted, Group, Policy, Settled, follow
from integrity.core.keys import Key
from integrity.core.ledger import Fate, Head
from integrity.core.outcome import Broken, Rejected, Retry
from integrity.errors import Reason


@dataclass(frozen=True, slots=True)
class Sweep:
    """One page of the keys whose newest fate was enforced at least `age_ms` ago, and at `until_ms` at the latest.

    `entities` are those whose rules name this age. `left_out` are dependents that such a page was refused for: they are
    passed over. `at_ms` is the wall clock, for `$now` and the ledger's times.
    """

    age_ms: int
    until_ms: int
    entities: frozenset[str]
    keys_max: int
    at_ms: int
    left_out: frozenset[str] = frozenset()


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
    """The page is done, and durable. `more`: it was full, so that the next one may have keys as well."""

    repaired: tuple[Repaired, ...] = ()
    more: bool = False


SweepResult = Swept | Retry | Rejected | Broken
"""As of `apply`. After all but Swept nothing was changed."""


def is_gone(head: Head) -> bool:
    """Nothing later than the newest fate of the key was seen of it."""
    return bool(head.fates) and head.seen is not None and head.seen <= head.fates[-1].version


Acted = Collection[tuple[Key, str, str]]
"""Of fates, the key, the event and each dependent (by id) on which it was enforced."""


def late_groups(policy: Policy, heads: Mapping[Key, Head], keys: Iterable[Key], acted: Acted) -> list[Group]:
    """Where the rows of one dependent end that refer to keys which are gone, as far as anything happens to them.

    `heads` has the heads of all keys that these may lead to. A fate that was not enforced on the dependent does nothing
    here either: a dead letter stands for it, or somebody gave it up, or the rule came later. Nor does anything happen
    where the rule says restrict, or to rows that are too young for the fate.
    """
    fates = {
        key: tuple(fate for fate in head.fates if (key, fate.event_id, policy.dependent) in acted)
        for key, head in heads.items()
        if head.fates
    }
    settled = Settled([], {}, fates, heads, {key: head.seen for key, head in heads.items()})
    groups: list[Group] = []
    for key in keys:
        newest = heads[key].fates[-1]
        if newest in fates[key]:
            found = follow(policy, settled, key, newest, None)
            groups += [g._replace(path=(), counting=()) for g in found if not isinstance(g.end, Counted)]
    return groups


class TooManyLate(Exception):
    """A key has more late rows than the rule's `max_rows`: nothing of the page may be done."""

    def __init__(self, dependent: str, rows_max: int) -> None:
        super().__init__(dependent)
        self.result = Rejected(
            dependent, Reason.TOO_MANY_ROWS, f"A key has more rows written late than max_rows allows ({rows_max})."
        )


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
