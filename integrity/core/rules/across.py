"""What must hold over all rule files together: unique names, one parent a topic, one rule a column set, no cycle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from integrity.core.rules.dependents import DependentDraft
from integrity.core.rules.findings import FindingCode, Located, Report, shown
from integrity.core.rules.model import Parent, TargetKind
from integrity.core.rules.walk import Text

_Name = TypeVar("_Name")


@dataclass(slots=True)
class ParentDraft:
    """What could be read of one file; `parent` is whole or None."""

    report: Report
    entity: Text | None = None
    topics: Sequence[Text] = ()
    dependents: Sequence[DependentDraft] = ()
    parent: Parent | None = field(default=None)


def check_across(drafts: Sequence[ParentDraft]) -> None:
    """Reports every clash at its later place."""
    parents: dict[str, str] = {}
    topics: dict[str, str] = {}
    references: dict[tuple[object, ...], str] = {}
    for draft in drafts:
        if draft.entity is not None:
            first = _claim(parents, draft.entity.value, draft.report, draft.entity)
            message = f"the parent {shown(draft.entity.value)} is there twice"
            _clash(draft.report, FindingCode.DUPLICATE_PARENT, message, first, draft.entity)
        for topic in draft.topics:
            first = _claim(topics, topic.value, draft.report, topic)
            message = f"the topic {shown(topic.value)} feeds two parents, or one twice"
            _clash(draft.report, FindingCode.DUPLICATE_TOPIC, message, first, topic)
        _check_names(draft)
        for dependent in draft.dependents:
            if (
                dependent.store is None
                or not dependent.columns
                or dependent.target is None
                or not dependent.target.name
            ):
                continue
            claim = (dependent.store, dependent.target, frozenset(dependent.columns))
            first = _claim(references, claim, draft.report, dependent.references_at)
            message = f"two rules on the same columns of {shown(dependent.target.name)} in {dependent.store}"
            _clash(draft.report, FindingCode.DUPLICATE_REFERENCE, message, first, dependent.references_at)
    _check_cycles(drafts)


def _check_names(draft: ParentDraft) -> None:
    names: dict[str, str] = {}
    for dependent in draft.dependents:
        if dependent.name is not None:
            first = _claim(names, dependent.name.value, draft.report, dependent.name)
            message = f"the dependent {shown(dependent.name.value)} is there twice"
            hint = "Give one of them another name."
            _clash(draft.report, FindingCode.DUPLICATE_DEPENDENT, message, first, dependent.name, hint)


def _check_cycles(drafts: Iterable[ParentDraft]) -> None:
    # A null record in a topic that feeds a parent deletes that parent: such rules form a graph.
    fed_by = {topic.value: draft for draft in drafts for topic in draft.topics}
    for draft in drafts:
        for dependent in draft.dependents:
            target = dependent.target
            if target is None or target.kind is not TargetKind.TOPIC or target.name not in fed_by:
                continue
            if _reaches(fed_by[target.name], draft, fed_by):
                message = f"the topic {shown(target.name)} leads back to this parent: a cycle that never ends"
                draft.report.add(FindingCode.CYCLE, message, dependent.at)


def _reaches(start: ParentDraft, goal: ParentDraft, fed_by: dict[str, ParentDraft]) -> bool:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        draft = waiting.pop()
        if draft is goal:
            return True
        for dependent in draft.dependents:
            target = dependent.target
            if target is not None and target.kind is TargetKind.TOPIC and target.name not in seen:
                seen.add(target.name)
                waiting.extend([fed_by[target.name]] if target.name in fed_by else [])
    return False


def _claim(taken: dict[_Name, str], name: _Name, report: Report, at: Located) -> str | None:
    """Takes a name; returns where it was taken first, if it was."""
    if name in taken:
        return taken[name]
    taken[name] = f"{report.file}:{at.line}:{at.column}"
    return None


def _clash(report: Report, code: FindingCode, message: str, first: str | None, at: Located, hint: str = "") -> None:
    if first is not None:
        report.add(code, f"{message}; first at {first}", at, hint)
