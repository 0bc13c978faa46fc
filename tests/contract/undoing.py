"""What the tests of undo are written in: rules that keep, and what came of putting back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from integrity.core.rules.model import Action
from integrity.core.undo import Choice, Looked, Portion, Verdict
from integrity.ports import Deadline
from integrity.stores.rule import StoreRule
from tests.contract.world import AT_MS, TOPIC, rule, rules_of

DAY_MS = 86_400_000
ORDERS = "customer.orders"
BACK, EXISTS, CHANGED, GONE = Verdict.PUT_BACK, Verdict.EXISTS, Verdict.CHANGED, Verdict.GONE

Counts = dict[tuple[str, Verdict], int]


def kept(on_delete: Action, on_update: Action | None = None, **more: Any) -> StoreRule:
    return rule(on_delete, on_update, undo_ms=DAY_MS, **more)


def keeping(*rules: StoreRule) -> dict[str, tuple[StoreRule, ...]]:
    """The rules, each with `undo`."""
    return dict(rules_of(*[replace(each, dependent=replace(each.dependent, undo_ms=DAY_MS)) for each in rules]))


def event(offset: int, partition: int = 0) -> str:
    return f"{TOPIC}/{partition}/{offset}"


async def pages(call: Any, choice: Choice, rows_max: int, at_ms: int) -> Counts:
    """What came of all pages: how many rows of each dependent have each verdict."""
    counts: Counter[tuple[str, Verdict]] = Counter()
    portion = Portion(choice, rows_max, at_ms, actor="ann", note="a mistake")
    while True:
        found = await call(portion, Deadline.after(60))
        assert isinstance(found, Looked), found
        assert len(found.rows) <= rows_max
        counts.update((each.dependent, each.verdict) for each in found.rows)
        if found.before is None:
            return dict(counts)
        portion = replace(portion, before=found.before)


async def undo(
    store: Any,
    event_id: str | None = None,
    *,
    since_ms: int | None = None,
    dependents: Sequence[str] = (),
    rows_max: int = 1000,
    at_ms: int = AT_MS + 1,
) -> Counts:
    """Put it back, and see that it was foretold."""
    choice = Choice(event_id, since_ms, frozenset(dependents))
    foretold = await pages(store.kept, choice, rows_max, at_ms)
    found = await pages(store.put_back, choice, rows_max, at_ms)
    assert foretold == found
    return found
