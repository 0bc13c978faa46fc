"""Rules whose topics are named by a pattern: which topics of a cluster they are."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from types import MappingProxyType

from integrity.core.rules.model import TENANT, Parent, RuleSet
from integrity.errors import Finding, RulesError

PATTERN_CHARACTERS_MAX = 1000


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern without a `fault_of`. It is fulfilled by a whole name (`fullmatch`)."""
    return re.compile(pattern)


def fault_of(pattern: str) -> tuple[str, str] | None:
    """What is wrong with a pattern, and how to mend it."""
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        return f"has more than {PATTERN_CHARACTERS_MAX} characters", ""
    try:
        groups = re.compile(pattern).groupindex
    except (re.error, RecursionError, OverflowError) as exc:
        return f"is no regular expression: {exc}", "It is one of Python's: a point in a name is written \\\\."
    if others := sorted(groups.keys() - {TENANT}):
        return f"has a group {others[0]}: tenant is the only name that a group may have", "Write (?:...) for it."
    return None


def gives_tenant(pattern: str) -> bool:
    """Whether the name of a topic says whose it is."""
    return TENANT in compiled(pattern).groupindex


def has_patterns(rules: RuleSet) -> bool:
    """Whether the topics of some parent depend on what topics there are."""
    return any(parent.events is not None and parent.events.pattern is not None for parent in rules.parents)


def with_topics(rules: RuleSet, existing: Collection[str], others: Collection[str] = ()) -> RuleSet:
    """The rules with the topics that fulfil their patterns. Kafka's own topics (`__...`) never do, nor do `others`,
    those of this program.

    Raises RulesError where a topic would feed two parents.
    """
    topics = sorted(topic for topic in set(existing) - set(others) if not topic.startswith("__"))
    parents: list[Parent] = []
    by_topic: dict[str, Parent] = {}
    findings: list[Finding] = []
    for parent in rules.parents:
        events = parent.events
        if events is not None and events.pattern is not None:
            found = tuple(filter(compiled(events.pattern).fullmatch, topics))
            parent = replace(parent, events=replace(events, topics=found))
        parents.append(parent)
        for topic in () if parent.events is None else parent.events.topics:
            first = by_topic.setdefault(topic, parent)
            if first is not parent:
                message = f"topic {topic!r} feeds two parents, {first.entity} and {parent.entity}"
                place = parent.place
                hint = "let each pattern name the topics of one parent only"
                findings.append(Finding("duplicate_topic", message, hint, place.file, place.line, place.column))
    if findings:
        raise RulesError(findings)
    return replace(
        rules,
        parents=tuple(parents),
        by_topic=MappingProxyType(by_topic),
        by_entity=MappingProxyType({parent.entity: parent for parent in parents}),
    )
