"""Parents whose topics are named by a pattern: the rule, the topics, and the tenant that a topic's name gives."""

from __future__ import annotations

import json

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record, Undecodable
from integrity.core.rules.model import RuleSet
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.patterns import has_patterns, with_topics
from integrity.errors import Reason, RulesError
from integrity.stores.rule import store_rules

TENANTS = r"'^t\.(?P<tenant>[a-z0-9]+)\.customers$'"


def rule(
    parent: str, source: str, key: str = "{id: int64}", reference: str = "{customer_id: id}", more: str = ""
) -> str:
    return (
        f"version: 1\nparent: {parent}\nevents:\n  {source}\n  format: debezium\n  key: {key}\ndependents:\n"
        f"  - {{store: db, table: of_{parent}, references: {reference}, on_delete: cascade}}\n{more}"
    )


def tenants(key: str = "{tenant: string, id: int64}") -> str:
    return rule("customer", f"pattern: {TENANTS}", key, "{tenant: tenant, customer_id: id}")


def parsed(*files: str) -> RuleSet:
    return parse_rules({f"{number}.yaml": text for number, text in enumerate(files)})


def findings(*files: str) -> list[tuple[str, int]]:
    with pytest.raises(RulesError) as caught:
        parsed(*files)
    return [(finding.code, finding.line) for finding in caught.value.findings]


def topics(rules: RuleSet) -> list[str]:
    [parent] = rules.parents
    assert parent.events is not None
    return [*parent.events.topics]


def test_pattern_names_the_topics_that_fulfil_it_as_a_whole() -> None:
    rules = parsed(rule("customer", r"pattern: 'shop\.c.*'"))
    assert has_patterns(rules) and topics(rules) == []
    existing = ["shop.c1", "shop.customers", "a.shop.c1", "shop", "__shop.c", "integrity.dlq"]
    assert topics(with_topics(rules, existing)) == ["shop.c1", "shop.customers"]
    assert topics(with_topics(parsed(rule("customer", "pattern: '.*'")), existing, ["integrity.dlq"])) == [
        "a.shop.c1", "shop", "shop.c1", "shop.customers",
    ]  # fmt: skip


def test_topics_that_come_and_go_leave_the_meaning_of_the_rules_alone() -> None:
    rules = parsed(rule("customer", "pattern: 'a.*'"))
    assert with_topics(rules, ["a1", "a2"]).hash == rules.hash
    assert rules.hash != parsed(rule("customer", "pattern: 'b.*'")).hash


def test_topic_that_two_patterns_name_is_refused() -> None:
    rules = parsed(rule("customer", "pattern: 'a.*'"), rule("order", "pattern: '.*z'"))
    with pytest.raises(RulesError, match=r"1.yaml:1:1: topic 'az' feeds two parents, customer and order"):
        with_topics(rules, ["az", "a", "z"])


def test_pattern_that_names_a_topic_of_other_rules_is_refused() -> None:
    other = rule("order", "topic: shop.orders")
    assert findings(other, rule("customer", r"pattern: 'shop\..*'")) == [("duplicate_topic", 4)]
    written = "  - {store: t, topic: shop.carts, references: {id: id}, on_delete: cascade}\n"
    assert findings(rule("customer", r"pattern: 'shop\..*'", more=written)) == [("duplicate_topic", 4)]


@pytest.mark.parametrize(
    "source",
    ["pattern: 'a('", "pattern: 'a(?P<client>.*)'"],
)
def test_pattern_that_can_not_be_used_is_refused_at_its_place(source: str) -> None:
    assert findings(rule("customer", source)) == [("bad_pattern", 4)]


@pytest.mark.parametrize("key", ["{tenant: int64, id: int64}", "{tenant: string}"])
def test_tenant_that_the_key_does_not_take_is_refused(key: str) -> None:
    reference = "{a: tenant, b: id}" if "id" in key else "{a: tenant}"
    assert findings(rule("customer", f"pattern: {TENANTS}", key, reference)) == [("bad_tenant", 4)]


def test_pattern_beside_a_topic_is_refused() -> None:
    assert findings(rule("customer", "topic: a\n  pattern: 'b'")) == [("one_of_fields", 5)]


def record(topic: str, key: object, value: object, headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
    text = None if value is None else json.dumps(value).encode()
    return Record(topic, 0, 7, 1000, json.dumps(key).encode(), text, headers)


def deletion(lsn: int) -> object:
    return {"op": "d", "before": {"id": 5}, "after": None, "source": {"connector": "postgresql", "lsn": lsn}}


def test_topic_gives_the_tenant_of_deletions_key_changes_and_tombstones() -> None:
    decode = decoder_for(parsed(tenants()).parents[0])
    said = [
        decode(record("t.acme.customers", {"id": 5}, deletion(1))),
        decode(record("t.globex.customers", {"id": 5}, None)),
        decode(record("t.acme.customers", {"id": 5}, deletion(2), (("__debezium.newkey", b'{"id":6}'),))),
    ]
    assert [(each.op, each.key, each.to, each.tenant) for each in said if isinstance(each, ParentChange)] == [
        (Op.DELETED, ("acme", 5), None, "acme"),
        (Op.GONE, ("globex", 5), None, "globex"),
        (Op.MOVED, ("acme", 5), ("acme", 6), "acme"),
    ]


def test_topic_gives_the_tenant_of_a_key_that_does_not_hold_it() -> None:
    decode = decoder_for(parsed(rule("customer", f"pattern: {TENANTS}")).parents[0])
    said = decode(record("t.acme.customers", {"id": 5}, deletion(1)))
    assert isinstance(said, ParentChange) and (said.key, said.tenant) == ((5,), "acme")


def test_tenant_keeps_its_place_among_the_fields_of_the_key() -> None:
    decode = decoder_for(parsed(tenants("{id: int64, tenant: string}")).parents[0])
    said = decode(record("t.acme.customers", {"id": 5}, deletion(1)))
    assert isinstance(said, ParentChange) and said.key == (5, "acme")


def test_tenant_of_another_type_is_a_dead_letter() -> None:
    decode = decoder_for(parsed(tenants("{tenant: uuid, id: int64}")).parents[0])
    said = decode(record("t.acme.customers", {"id": 5}, deletion(1)))
    assert isinstance(said, Undecodable) and (said.reason, said.stage) == (Reason.UNKNOWN_TENANT, "key")


def test_events_of_a_key_are_in_one_topic_only_where_topics_are_tenants() -> None:
    [of_pattern] = store_rules(parsed(rule("customer", "pattern: 'a.*'")), "db")["customer"]
    [of_tenants] = store_rules(parsed(tenants()), "db")["customer"]
    assert (of_pattern.keeps_alive, of_tenants.keeps_alive) == (True, False)
