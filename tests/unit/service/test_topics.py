"""Topics that come and go: what the watch tells lanes, and what it does when it can't tell."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import pytest

from integrity.core.decode.record import Decoder
from integrity.core.rules.model import RuleSet
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.patterns import with_topics
from integrity.errors import Finding, RulesError, UnreachableError
from integrity.service.topics import TopicWatch
from tests.unit.service.doubles import decode

RULES = """version: 1
parent: customer
events: {pattern: 'a.*', format: debezium, key: {id: int64}}
dependents:
  - {store: db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


class Told:
    def __init__(self) -> None:
        self.topics: list[list[str]] = []

    def follow(self, decoders: Mapping[str, tuple[str, Decoder]]) -> None:
        self.topics.append(sorted(decoders))


def decoders_of(rules: RuleSet) -> dict[str, tuple[str, Decoder]]:
    return {topic: ("customer", decode) for topic in rules.by_topic}


async def watched(rules: RuleSet, *looks: Collection[str] | Exception) -> Told:
    """What a lane is told of these looks, one after the other."""
    told, left, done = Told(), list(looks), asyncio.Event()

    async def look() -> tuple[RuleSet, Collection[str]]:
        if not left:
            done.set()
            await asyncio.Event().wait()
        if isinstance(found := left.pop(0), Exception):
            raise found
        return with_topics(rules, found), found

    watch = asyncio.create_task(TopicWatch(look, [(told, decoders_of)], every_s=0).run())
    await asyncio.wait_for(done.wait(), 20)
    watch.cancel()
    await asyncio.wait({watch})
    return told


async def test_lanes_hear_of_topics_that_come_and_go() -> None:
    rules = parse_rules({"a.yaml": RULES})
    assert (await watched(rules, ["a1", "b"], ["a1", "a2"], ["a2"])).topics == [["a1"], ["a1", "a2"], ["a2"]]


async def test_a_look_that_fails_leaves_the_topics_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    rules = parse_rules({"a.yaml": RULES})
    clash = RulesError([Finding("duplicate_topic", "topic 'a3' feeds two parents")])
    told = await watched(rules, UnreachableError("away"), clash, clash, ["a1"])
    assert told.topics == [["a1"]]
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == [
        "new topics are not read: mend the patterns"
    ]


async def test_a_named_topic_that_is_gone_is_told_once_and_stays_read(caplog: pytest.LogCaptureFixture) -> None:
    rules = parse_rules({"a.yaml": RULES.replace("pattern: 'a.*'", "topic: a1")})
    assert (await watched(rules, ["a1"], [], [])).topics == [["a1"]] * 3
    assert [each.__dict__["topic"] for each in caplog.records if each.levelname == "ERROR"] == ["a1"]
