"""`events.types` and what goes with it: what the types of domain events say, and where the parts of an event are."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from integrity.core.rules.findings import FindingCode
from integrity.core.rules.model import Events, KeyFrom, Types
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.schema import rules_schema
from integrity.errors import RulesError

FILE = """\
version: 1
parent: customer
events:
  topic: customers
  key: {id: int64}
%s
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""
COPY = "copies:\n  - {store: orders_db, table: copy, columns: {id: id, name: name}}\n"
DELETED = "types: {deleted: [CustomerDeleted]}"
MOVES = "types: {deleted: [D], key_changed: [K]}"
SCHEMA = rules_schema()


def file(*lines: str) -> str:
    return FILE % "\n".join(f"  {line}" for line in lines)


def events(*lines: str) -> Events:
    text = file(*lines)
    jsonschema.validate(yaml.safe_load(text), SCHEMA)
    found = parse_rules({"a.yaml": text}).parents[0].events
    assert found is not None
    return found


def codes(text: str) -> list[str]:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": text})
    return [finding.code for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("lines", "header", "field", "payload"),
    [
        (("format: outbox", DELETED), "eventType", None, None),
        (("format: outbox", DELETED, "type_from: {header: type}"), "type", None, None),
        (("format: outbox", DELETED, "type_from: {header: type}", "payload: payload"), "type", None, "payload"),
        (("format: outbox", DELETED, "type_from: {field: eventType}"), None, "eventType", "payload"),
        (("format: outbox", DELETED, "type_from: {field: eventType}", "payload: body"), None, "eventType", "body"),
        (("format: json", DELETED), None, "type", None),
        (("format: json", DELETED, "type_from: {header: kind}", "payload: data"), "kind", None, "data"),
    ],
)
def test_parts_of_an_event_are_where_the_format_or_the_rule_says(
    lines: tuple[str, ...], header: str | None, field: str | None, payload: str | None
) -> None:
    types = events(*lines).types
    assert types == Types(("CustomerDeleted",), (), (), header, field, payload, {})


def test_types_and_new_key_are_read() -> None:
    found = events(
        "format: json",
        "types: {deleted: [D, Erased], key_changed: [K], upserted: [C, U]}",
        "new_key: {id: newId}",
        "key_from: payload",
    )
    assert found.types == Types(("D", "Erased"), ("K",), ("C", "U"), None, "type", None, {"id": "newId"})
    assert found.key_from is KeyFrom.PAYLOAD


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (("format: outbox",), FindingCode.MISSING_FIELD),
        (("format: outbox", "types: {}"), FindingCode.EMPTY),
        (("format: outbox", "types: [D]"), FindingCode.WRONG_TYPE),
        (("format: outbox", "types: {deleted: D}"), FindingCode.WRONG_TYPE),
        (("format: outbox", "types: {deleted: []}"), FindingCode.EMPTY),
        (("format: outbox", "types: {deleted: [5]}"), FindingCode.WRONG_TYPE),
        (("format: outbox", "types: {deleted: ['']}"), FindingCode.EMPTY),
        (("format: outbox", "types: {delete: [D]}"), FindingCode.UNKNOWN_FIELD),
        (("format: outbox", "types: {deleted: [D, D]}"), FindingCode.REPEATED),
        (("format: outbox", "types: {deleted: [D], upserted: [D]}"), FindingCode.REPEATED),
        (("format: outbox", f"types: {{deleted: [{', '.join(f'T{n}' for n in range(101))}]}}"), FindingCode.WRONG_TYPE),
        (("format: outbox", MOVES), FindingCode.MISSING_FIELD),
        (("format: outbox", DELETED, "new_key: {id: newId}"), FindingCode.MISSING_FIELD),
        (("format: outbox", MOVES, "new_key: {}"), FindingCode.EMPTY),
        (("format: outbox", MOVES, "new_key: {ids: newId}"), FindingCode.UNKNOWN_KEY_FIELD),
        (("format: outbox", MOVES, "new_key: {id: 5}"), FindingCode.WRONG_TYPE),
        (("format: outbox", DELETED, "type_from: eventType"), FindingCode.WRONG_TYPE),
        (("format: outbox", DELETED, "type_from: {header: a, field: b}"), FindingCode.ONE_OF_FIELDS),
        (("format: outbox", DELETED, "type_from: {headers: a}"), FindingCode.UNKNOWN_FIELD),
        (("format: outbox", DELETED, "type_from: {header: ' a'}"), FindingCode.BAD_NAME),
        (("format: outbox", DELETED, "payload: ''"), FindingCode.EMPTY),
        (("format: outbox", DELETED, "key_from: before"), FindingCode.FORMAT_FIELD),
        (("format: outbox", DELETED, "deleted_when: after.x == 1"), FindingCode.FORMAT_FIELD),
        (("format: debezium", DELETED), FindingCode.FORMAT_FIELD),
        (("format: debezium", "key_from: payload"), FindingCode.FORMAT_FIELD),
        (("format: integrity", "tombstones: ignore"), FindingCode.FORMAT_FIELD),
        (("format: cloudevents", DELETED, "type_from: {header: a}"), FindingCode.FORMAT_FIELD),
        (("format: cloudevents", DELETED, "deleted_when: after.x == 1"), FindingCode.FORMAT_FIELD),
        (("format: cloudevents", "new_key: {id: newId}"), FindingCode.FORMAT_FIELD),
        (("format: cloudevents", "key_from: payload"), FindingCode.FORMAT_FIELD),
        (("format: cloudevents", "version: rev"), FindingCode.FORMAT_FIELD),
    ],
)
def test_what_would_be_guessed_at_is_refused(lines: tuple[str, ...], code: FindingCode) -> None:
    assert codes(file(*lines)) == [code]


def test_key_changes_over_several_topics_are_refused() -> None:
    """Their offsets say nothing of each other, and a key change leads from one key's events to another's."""
    text = file("format: outbox", MOVES, "new_key: {id: newId}").replace("topic: customers", "topics: [a, b]")
    assert codes(text) == [FindingCode.FORMAT_FIELD]
    parse_rules({"a.yaml": text.replace("  format:", "  version: rev\n  format:")})


def test_copy_needs_events_that_hold_the_row() -> None:
    assert codes(file("format: outbox", DELETED) + COPY) == [FindingCode.NO_ROW]
    assert codes(file("format: integrity") + COPY) == [FindingCode.NO_ROW]
    parse_rules({"a.yaml": file("format: outbox", "types: {deleted: [D], upserted: [C]}") + COPY})


@pytest.mark.parametrize(
    "other",
    [
        ("types: {deleted: [K], key_changed: [D]}", "new_key: {id: newId}"),
        (MOVES, "new_key: {id: next}"),
        (MOVES, "new_key: {id: newId}", "type_from: {header: kind}"),
        (MOVES, "new_key: {id: newId}", "payload: data"),
        (MOVES, "new_key: {id: newId}", "key_from: payload"),
    ],
)
def test_hash_changes_with_what_types_mean(other: tuple[str, ...]) -> None:
    one = parse_rules({"a.yaml": file("format: json", MOVES, "new_key: {id: newId}")}).hash
    assert one != parse_rules({"a.yaml": file("format: json", *other)}).hash


def test_hash_does_not_depend_on_the_order_of_types() -> None:
    one, other = (file("format: json", f"types: {{deleted: [{names}]}}") for names in ("A, B", "B, A"))
    assert parse_rules({"a.yaml": one}).hash == parse_rules({"a.yaml": other}).hash
