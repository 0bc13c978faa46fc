"""What `integrity doctor` asks, and what it makes of silence."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from integrity.core.decode import decoder_for
from integrity.core.doctor import TopicLook
from integrity.core.keys import Key
from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding, OperationError, UnfitStoreError, UnreachableError
from integrity.ports import Deadline
from integrity.service.doctor import Examination, examine

RULES = parse_rules(
    {
        "category.yaml": """\
version: 1
parent: category
events: {topic: categories, format: debezium, key: {id: int64}, source: {store: a, table: categories}}
dependents:
  - {store: a, table: goods, references: {category_id: id}, on_delete: {set_default: {category_id: 0}}}
  - {store: b, collection: notes, references: {categoryId: id}, on_delete: nullify}
"""
    }
)
DOWN = UnreachableError("It does not answer.")


class Looked:
    """A store with these findings, whose clock is so far away; an error is raised instead."""

    def __init__(self, name: str, *findings: Finding, away_ms: int = 0, fault: OperationError | None = None) -> None:
        self.name = name
        self._findings = findings
        self._away_ms = away_ms
        self._fault = fault

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        if self._fault is not None:
            raise self._fault
        return self._findings

    async def clock_ms(self, deadline: Deadline) -> int | None:
        return round(time.time() * 1000) + self._away_ms


class Categories:
    """Which of them there are; an error is raised instead."""

    def __init__(self, *keys: Key, fault: OperationError | None = None) -> None:
        self._keys = keys
        self._fault = fault

    async def present(self, keys: Sequence[Key], deadline: Deadline) -> Collection[Key]:
        if self._fault is not None:
            raise self._fault
        return set(keys) & set(self._keys)


class Broker:
    def __init__(self, fault: OperationError | None = None) -> None:
        self._fault = fault

    async def topics(self, names: Sequence[str], deadline: Deadline) -> Mapping[str, TopicLook]:
        if self._fault is not None:
            raise self._fault
        return {}

    async def privileges(self, deadline: Deadline) -> Sequence[Finding]:
        return [Finding("kafka_privilege", "no ACL", severity="warning")]

    async def registry(self) -> None:
        if self._fault is not None:
            raise self._fault


async def examined(
    *stores: Looked, categories: Categories | None = None, fault: OperationError | None = None
) -> Examination:
    asked: dict[str, Any] = {store.name: store for store in stores}
    parents: dict[str, Any] = {"category": (categories or Categories((0,)), "table categories of a")}
    decoders = {parent.entity: decoder_for(parent) for parent in RULES.parents}
    return await examine(RULES, asked, parents, Broker(fault), decoders, lambda _: Deadline.after(5))


def codes(found: Examination) -> list[str]:
    return [finding.code for finding in found.findings]


async def test_findings_of_files_come_first_in_their_order() -> None:
    late, early = (Finding(code, "x", "", "category.yaml", line, 5) for code, line in (("late", 6), ("early", 2)))
    found = await examined(Looked("a", late, Finding("ledger_missing", "x")), Looked("b", early, away_ms=90_000))
    assert codes(found) == ["missing_topic", "early", "late", "ledger_missing", "clock_skew", "kafka_privilege"]
    assert not found.silent


async def test_what_does_not_answer_is_named_and_the_rest_is_told() -> None:
    found = await examined(Looked("a", fault=DOWN), Looked("b", away_ms=90_000), fault=DOWN)
    assert (codes(found), sorted(found.silent)) == (["clock_skew"], ["a", "kafka", "schema registry"])


async def test_default_is_told_where_its_parent_is_looked_for_and_not_found() -> None:
    assert "default_unreachable" in codes(await examined(Looked("a"), categories=Categories((7,))))
    assert "default_unreachable" not in codes(await examined(Looked("a"), categories=Categories((0,))))
    assert "default_unreachable" not in codes(await examined(Looked("b"))), "no rule of these stores has one"


async def test_parents_that_cannot_be_looked_up_are_not_missing() -> None:
    found = await examined(Looked("a"), categories=Categories(fault=DOWN))
    assert ("default_unreachable" in codes(found), list(found.silent)) == (False, ["table categories of a"])
    found = await examined(Looked("a"), categories=Categories(fault=UnfitStoreError([Finding("column_type", "x")])))
    assert ("default_unreachable" in codes(found), list(found.silent)) == (False, [])
