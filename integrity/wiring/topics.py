"""Which topics there are: those that fulfil patterns, those that are missing, those of this program."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection

from integrity.core.retry import Backoff
from integrity.core.rules.graph import derived_topic
from integrity.core.rules.model import RuleSet
from integrity.core.rules.patterns import has_patterns, with_topics
from integrity.errors import Finding, OperationError, RulesError, UnreachableError
from integrity.kafka.consumer import existing_topics
from integrity.kafka.dead_letters import status_topic
from integrity.kafka.derived import ensure_derived
from integrity.kafka.producer import WantedTopic, ensure_topics
from integrity.kafka.redrives import redrive_topic
from integrity.kafka.scans import scans_topic
from integrity.ports import Deadline
from integrity.settings import Settings
from integrity.wiring.shared import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S

log = logging.getLogger(__name__)


def _our_topics(settings: Settings, rules: RuleSet) -> set[str]:
    """The topics of this program, which no pattern names."""
    dead, group = settings.dlq.topic, settings.group
    ours = {dead, status_topic(dead), redrive_topic(group), scans_topic(group), settings.audit.topic}
    return ours | {derived_topic(parent.entity) for parent in rules.parents}


async def with_known_topics(settings: Settings, rules: RuleSet) -> RuleSet:
    """The rules with the topics that fulfil their patterns now. Asks Kafka only where there are patterns.

    Raises UnreachableError, and RulesError where a topic would feed two parents.
    """
    return (await look_at_topics(settings, rules))[0] if has_patterns(rules) else rules


async def look_at_topics(settings: Settings, rules: RuleSet) -> tuple[RuleSet, Collection[str]]:
    known = await existing_topics(settings.kafka.client, Deadline.after(CLOSE_TIMEOUT_S))
    return with_topics(rules, known, _our_topics(settings, rules)), known


async def require_topics(settings: Settings, rules: RuleSet, chosen: Collection[str]) -> RuleSet:
    """The rules with the topics that fulfil their patterns now; with patterns it waits until Kafka answers.

    Raises RulesError for a topic that does not exist, with its place; says nothing when Kafka does not answer yet
    (the lanes wait for it)."""
    parents = {entity: rules.by_entity[entity] for store in chosen for entity in rules.of_store(store)}
    parents |= {parent.entity: parent for store in chosen for parent, _ in rules.copies_of(store)}
    wanted = {
        topic: parent
        for parent in parents.values()
        if parent.events and parent.events.pattern is None
        for topic in parent.events.topics
    }
    known: Collection[str] | None = None
    attempt = 0
    while known is None:
        try:
            rules, known = await look_at_topics(settings, rules)
        except UnreachableError as exc:
            log.warning("Kafka can't be reached and is waited for", extra={"error": exc.message})
            if not has_patterns(rules):
                return rules
            attempt += 1
            await asyncio.sleep(Backoff().delay_s(attempt, random.random()))
    for entity, parent in parents.items():
        events = rules.by_entity[entity].events
        if events is not None and events.pattern is not None and not events.topics:
            place = f"{parent.place.file}:{parent.place.line}"
            log.warning("no topic fulfils the pattern yet", extra={"pattern": events.pattern, "rule": place})
    findings = [
        Finding(
            "missing_topic",
            f"topic {topic!r} does not exist",
            "create it, or start the connector that writes it",
            parent.place.file,
            parent.place.line,
            parent.place.column,
        )
        for topic, parent in wanted.items()
        if topic not in known
    ]
    if findings:
        raise RulesError(findings)
    derived = {p.entity for store in chosen for p in (*rules.derived(store), *rules.follows_derived(store))}
    if missing := [entity for entity in sorted(derived) if derived_topic(entity) not in known]:
        await ensure_derived(settings.kafka.client, missing, Deadline.after(CONNECT_TIMEOUT_S))
    return rules


async def compacted_topics(settings: Settings, rules: RuleSet, chosen: Collection[str]) -> frozenset[str]:
    """Which topics of parents with copies are compacted, as far as Kafka answers."""
    copied = [parent for store in chosen for parent, _ in rules.copies_of(store)]
    topics = {topic for parent in copied if parent.events for topic in parent.events.topics}
    if not topics:
        return frozenset()
    client = settings.kafka.client
    try:
        known = topics & await existing_topics(client, Deadline.after(CLOSE_TIMEOUT_S))
        wanted_topics = [WantedTopic(topic, 1) for topic in sorted(known)]
        facts = await ensure_topics(client, wanted_topics, Deadline.after(CLOSE_TIMEOUT_S))
    except OperationError as exc:
        log.warning("Kafka does not say which topics are compacted", extra={"error": exc.message})
        return frozenset()
    return frozenset(topic for topic, fact in facts.items() if fact.compacted)
