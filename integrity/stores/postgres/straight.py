"""Shares of nothing but deletions, of keys that the ledger has never heard of: what nearly all of a backlog is.

What `settle`, `trace` and `credit` come to is known of them beforehand: every change is applied, the rows of its key
go, nothing leads on, and the head is the deletion. To say so at once takes half the time. All else goes the long way,
which is the model of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from integrity.core.batch import Share
from integrity.core.change import Op
from integrity.core.fold import Policy, Remove, Replace
from integrity.core.keys import Key
from integrity.stores.rule import StoreRule


def may_go_straight(rules: Sequence[StoreRule]) -> bool:
    """Whether the rules of an entity do nothing but remove rows, which nothing depends on, when a parent is deleted."""
    return all(
        rule.rows is None and rule.dependent.max_rows is None and not rule.keeps_alive and _removes(rule.policy)
        for rule in rules
    )


def _removes(policy: Policy) -> bool:
    # Where a key may lead to a default, that key's head is read and written too.
    leads_on = isinstance(policy.on_update, Replace) and policy.on_update.refers
    return isinstance(policy.on_delete, Remove) and not policy.by_age and not leads_on


def straight_keys(share: Share) -> list[Key] | None:
    """The keys of a share's changes, when these are deletions of different keys, and nothing else is asked for."""
    if share.done or share.again or share.exceptions or share.redrives or share.only or share.page is not None:
        return None
    changes, deleted = share.changes, Op.DELETED
    keys = [change[2] for change in changes if change[1] is deleted and change[3] is None and change[4] is not None]
    return keys if len(keys) == len(changes) and len(set(keys)) == len(keys) else None
