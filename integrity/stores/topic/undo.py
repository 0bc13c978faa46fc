"""What children were before an event changed them: kept in the ledger's topic, and put back by hand.

A child is put back as its owner would write it: whoever works on the topic reads it before it acts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from integrity.core.batch import TopicPartition
from integrity.core.fold import Group
from integrity.core.outcome import Retry
from integrity.core.undo import Kept, Looked, Portion, Verdict, not_done_yet, undone_names
from integrity.stores.rule import StoreRule
from integrity.stores.topic import records
from integrity.stores.topic.records import MARK, ChildKey, UndoneRecord, UndoRecord, Write
from integrity.stores.topic.state import Child, State
from integrity.stores.topic.values import RowRule, read_row

_GONE: Final = "no rule names this dependent any more"


class PutBack(NamedTuple):
    """What comes of a portion, and what is to be published for it."""

    looked: Looked | Retry
    writes: list[Write]


def images(rule: StoreRule, row: RowRule, group: Group, child: Child, at_ms: int) -> Iterator[UndoRecord]:
    """What a child is before each event that changes it. Raises Unwritable."""
    if rule.dependent.undo_ms is None:
        return
    value: bytes | None = child.value
    headers = tuple((name, data) for name, data in child.headers if name != MARK)
    for turn in group.trail:
        before, value = value, None
        if turn.after is not None:
            value = row.rewritten(child.value, read_row(child.value), group.key, turn.after)
        yield UndoRecord(
            turn.event,
            turn.version,
            turn.entity,
            turn.key,
            rule.id,
            turn.key_hash,
            turn.action,
            child.at,
            before,
            headers,
            value,
            at_ms,
            at_ms + rule.dependent.undo_ms,
        )


def look(state: State, portion: Portion) -> Looked | Retry:
    """What would come of a portion."""
    found, before = _page(state, portion)
    if unfinished := _unfinished(state, found):
        return unfinished
    rows = [
        _kept(
            each, Verdict.PUT_BACK if state.is_followed(number, each, portion) else _verdict(state, each, state.value)
        )
        for number, each in found
    ]
    return Looked(tuple(rows), before)


def put_back(state: State, portion: Portion, ledger: TopicPartition) -> PutBack:
    """What to publish so that a portion is put back. The state learns it when it is read."""
    found, before = _page(state, portion)
    if unfinished := _unfinished(state, found):
        return PutBack(unfinished, [])
    now: dict[ChildKey, bytes | None] = {}
    children: dict[ChildKey, Write] = {}
    writes: list[Write] = []
    rows: list[Kept] = []
    counts: dict[tuple[bytes, str, str], int] = {}
    for number, each in found:
        verdict = _verdict(state, each, lambda child: now[child] if child in now else state.value(child))
        rows.append(_kept(each, verdict))
        if verdict is not Verdict.PUT_BACK:
            continue
        at = each.child
        now[at] = each.before
        children[at] = Write(TopicPartition(at.topic, at.partition), at.key, each.before, each.headers, each.dependent)
        writes.append(Write(ledger, records.undo_key(number), None, (), None))
        for name in undone_names(each.entity, each.key, each.at, each.dependent, each.event):
            counts[name] = counts.get(name, 0) + 1
    for (digest, dependent, event), count in counts.items():
        key = records.undone_key(digest, dependent, event, portion.at_ms)
        known = next(
            (
                u.rows
                for u in state.undone(digest)
                if (u.dependent, u.event, u.at_ms) == (dependent, event, portion.at_ms)
            ),
            0,
        )
        undone = UndoneRecord(dependent, event, known + count, portion.at_ms, portion.actor, portion.note)
        writes.append(Write(ledger, key, records.encode(undone), (), None))
    return PutBack(Looked(tuple(rows), before), [*children.values(), *writes])


def _page(state: State, portion: Portion) -> tuple[list[tuple[int, UndoRecord]], int | None]:
    found = state.kept(portion, portion.rows_max + 1)
    rows = found[: portion.rows_max]
    return rows, rows[-1][0] if len(found) > portion.rows_max else None


def _unfinished(state: State, found: Sequence[tuple[int, UndoRecord]]) -> Retry | None:
    events = {event for at in state.progress() for event in state.parts(at)}
    return next((not_done_yet(each.event) for _, each in found if each.event in events), None)


def _verdict(state: State, each: UndoRecord, value_of: Callable[[ChildKey], bytes | None]) -> Verdict:
    if state.number(each.dependent) is None:
        return Verdict.REFUSED
    value = value_of(each.child)
    if each.after is None:
        return Verdict.PUT_BACK if value is None else Verdict.EXISTS
    if value is None:
        return Verdict.GONE
    return Verdict.PUT_BACK if value == each.after else Verdict.CHANGED


def _kept(each: UndoRecord, verdict: Verdict) -> Kept:
    named = {"partition": each.child.partition, "key": records.shown(each.child.key)}
    row = msgspec.json.encode(named).decode()
    why = _GONE if verdict is Verdict.REFUSED else ""
    return Kept(each.dependent, each.event, each.version, each.entity, each.key, each.action, row, verdict, why)
