"""What must hold over all rule files together: unique names, one parent a topic, one rule a column set, rows that are
one entity with one key everywhere, no cycle that never ends.

Dependents may lead back to a parent through `entity`: a row is removed, or its key changes, once, so such cycles end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from integrity.core.rules import patterns
from integrity.core.rules.copies import CopyDraft
from integrity.core.rules.dependents import DependentDraft
from integrity.core.rules.findings import FindingCode, Located, Report, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import Parent, Target, TargetKind
from integrity.core.rules.walk import Text

_Name = TypeVar("_Name")


@dataclass(slots=True)
class ParentDraft:
    """What could be read of one file; `parent` is whole or None. `key` is that of its own events."""

    report: Report
    entity: Text | None = None
    topics: Sequence[Text] = ()
    dependents: Sequence[DependentDraft] = ()
    key: KeyDraft | None = None
    parent: Parent | None = field(default=None)
    copies: Sequence[CopyDraft] = ()
    pattern: Text | None = None


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
    _check_patterns(drafts)
    _check_entities(drafts)
    _check_copies(drafts)
    _check_cycles(drafts)


def _targeted(draft: ParentDraft) -> tuple[DependentDraft | CopyDraft, ...]:
    return (*draft.dependents, *draft.copies)


def _check_patterns(drafts: Sequence[ParentDraft]) -> None:
    """No pattern names a topic that feeds another parent, or that rules write to."""
    fed = [(topic.value, draft, topic, "feeds another parent") for draft in drafts for topic in draft.topics]
    written = [
        (each.target.name, draft, each.at, "is written to")
        for draft in drafts
        for each in _targeted(draft)
        if each.target is not None and each.target.kind is TargetKind.TOPIC
    ]
    for draft in drafts:
        for topic, other, at, what in (*fed, *written) if draft.pattern is not None else ():
            assert draft.pattern is not None
            if topic and patterns.compiled(draft.pattern.value).fullmatch(topic):
                message = f"the pattern names {shown(topic)} too, which {what} at {other.report.file}:{at.line}"
                hint = "Let it name the topics of this parent only."
                draft.report.add(FindingCode.DUPLICATE_TOPIC, message, draft.pattern, hint)


def _check_copies(drafts: Sequence[ParentDraft]) -> None:
    """Nothing but its copy writes to the target of a copy, and nothing follows from what is written there."""
    taken: dict[tuple[str, Target], str] = {}
    for draft in drafts:
        for dependent in draft.dependents:
            if dependent.store is not None and dependent.target is not None and dependent.target.name:
                place = f"{draft.report.file}:{dependent.at.line}:{dependent.at.column}"
                taken.setdefault((dependent.store, dependent.target), place)
    sources = {topic.value: f"{draft.report.file}:{topic.line}" for draft in drafts for topic in draft.topics}
    hint = "A copy has a target of its own: what it holds is its parent's row."
    for draft in drafts:
        for copy in draft.copies:
            if copy.store is None or copy.target is None or not copy.target.name:
                continue
            name = shown(copy.target.name)
            first = _claim(taken, (copy.store, copy.target), draft.report, copy.at)
            message = f"{name} in {copy.store} is written twice"
            _clash(draft.report, FindingCode.COPY_TARGET, message, first, copy.at, hint)
            if copy.target.kind is TargetKind.TOPIC and copy.target.name in sources:
                message = f"the copy would write to {name}, which feeds a parent at {sources[copy.target.name]}"
                draft.report.add(FindingCode.COPY_TARGET, message, copy.at, hint)


def _check_entities(drafts: Sequence[ParentDraft]) -> None:
    """Rows of one target are one entity, an entity's rows are in one target, and its key is the same everywhere."""
    own = {draft.entity.value: draft.key for draft in drafts if draft.entity is not None and draft.key is not None}
    rows: dict[str, tuple[str, Target, KeyDraft]] = {}
    homes: dict[tuple[str, Target], str] = {}
    places: dict[str, str] = {}
    for draft in drafts:
        for dependent in draft.dependents:
            entity, store, target, key = dependent.entity, dependent.store, dependent.target, dependent.key
            if entity is None or store is None or target is None or not target.name or key is None:
                continue
            name, report = entity.value, draft.report
            first = rows.setdefault(name, (store, target, key))
            if first[:2] != (store, target) or list(first[2].items()) != list(key.items()):
                message = f"{shown(name)} is other rows, or has another key, at {places[name]}"
                hint = "Dependents that are one entity have the same store, target and key."
                report.add(FindingCode.ENTITY_CLASH, message, entity, hint)
            other = homes.setdefault((store, target), name)
            if other != name:
                message = f"the rows of {shown(target.name)} in {store} are {shown(other)} at {places[other]}"
                report.add(FindingCode.ENTITY_CLASH, message, entity, "The rows of one target are one entity.")
            types = own.get(name)
            if types is not None and list(types.values()) != list(key.values()):
                message = f"the key of {shown(name)} has other types in its own events"
                hint = "Fields and columns go together by their position."
                report.add(FindingCode.KEY_CLASH, message, dependent.key_at or entity, hint)
            places.setdefault(name, f"{report.file}:{entity.line}:{entity.column}")
    parents = {draft.entity.value for draft in drafts if draft.entity is not None}
    for draft in drafts:
        for dependent in draft.dependents:
            if dependent.entity is None and dependent.store is not None and dependent.target is not None:
                name = homes.get((dependent.store, dependent.target), "")
                if name in parents:
                    message = f"the rows are {shown(name)} at {places[name]}, and the dependent does not say so"
                    hint = f"Write entity: {name} and its key here too: what depends on the rows has to follow."
                    draft.report.add(FindingCode.UNNAMED_ENTITY, message, dependent.at, hint)


def _check_names(draft: ParentDraft) -> None:
    names: dict[str, str] = {}
    named: list[DependentDraft | CopyDraft] = [*draft.dependents, *draft.copies]
    for dependent in named:
        if dependent.name is not None:
            first = _claim(names, dependent.name.value, draft.report, dependent.name)
            what = "copy" if isinstance(dependent, CopyDraft) else "dependent"
            message = f"the {what} {shown(dependent.name.value)} is there twice"
            hint = "Give one of them another name."
            _clash(draft.report, FindingCode.DUPLICATE_DEPENDENT, message, first, dependent.name, hint)


def _check_cycles(drafts: Iterable[ParentDraft]) -> None:
    # A null record in a topic that feeds a parent deletes that parent: such rules form a graph.
    drafts = list(drafts)
    fed_by = {topic.value: draft for draft in drafts for topic in draft.topics}
    named = {draft.entity.value: draft for draft in drafts if draft.entity is not None}
    for draft in drafts:
        for dependent in draft.dependents:
            target = dependent.target
            if target is None or target.kind is not TargetKind.TOPIC or target.name not in fed_by:
                continue
            if _reaches(fed_by[target.name], draft, fed_by, named):
                message = f"the topic {shown(target.name)} leads back to this parent: a cycle that never ends"
                draft.report.add(FindingCode.CYCLE, message, dependent.at)


def _reaches(
    start: ParentDraft, goal: ParentDraft, fed_by: dict[str, ParentDraft], named: dict[str, ParentDraft]
) -> bool:
    """Whether one parent leads to another: by topics that are written to, and by what rows are."""
    seen = {id(start)}
    waiting = [start]
    while waiting:
        draft = waiting.pop()
        if draft is goal:
            return True
        for dependent in draft.dependents:
            target = dependent.target
            topic = target.name if target is not None and target.kind is TargetKind.TOPIC else ""
            entity = "" if dependent.entity is None else dependent.entity.value
            for next_ in (fed_by.get(topic), named.get(entity)):
                if next_ is not None and id(next_) not in seen:
                    seen.add(id(next_))
                    waiting.append(next_)
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
