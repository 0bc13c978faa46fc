"""The JSON Schema accepts what the parser accepts, and refuses what a schema can see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from integrity.core.rules.parse import parse_rules
from integrity.core.rules.schema import rules_schema
from integrity.core.rules.vocabulary import (
    DEPENDENT_LATER,
    EVENTS_LATER,
    KEY_TYPES,
    PARENT_LATER,
)
from integrity.errors import RulesError

FILES = sorted(Path("rules").glob("*.yaml"))
VALID = Path("rules/customer.yaml").read_text("utf-8")
VALIDATOR = Draft7Validator(rules_schema())


def _is_valid(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def _is_parsed(text: str) -> bool:
    try:
        parse_rules({"a.yaml": text})
    except RulesError:
        return False
    return True


def _changed(old: str, new: str) -> str:
    assert old in VALID
    return VALID.replace(old, new, 1)


def test_schema_is_a_draft_7_schema() -> None:
    schema = rules_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(schema)


def test_shipped_schema_is_the_one_of_this_version() -> None:
    assert Path("rules/schema.json").read_text("utf-8") == json.dumps(rules_schema(), indent=2) + "\n"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_shipped_rules_fit_the_schema(file: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(file.read_text("utf-8")))] == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_shipped_rules_name_the_schema_to_editors(file: Path) -> None:
    first = file.read_text("utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (file.parent / first.partition("=")[2]).resolve() == Path("rules/schema.json").resolve()


def _properties(schema: object, path: str = "") -> Iterator[tuple[str, object]]:
    match schema:
        case dict():
            for name, body in schema.items():
                if name in ("if", "then", "else"):
                    continue
                if name == "properties":
                    yield from ((f"{path}.{field}", value) for field, value in body.items())
                yield from _properties(body, f"{path}.{name}")
        case list():
            for number, body in enumerate(schema):
                yield from _properties(body, f"{path}[{number}]")
        case _:
            return


def test_every_property_has_a_description() -> None:
    found = dict(_properties(rules_schema()))
    assert len(found) > 25
    assert [path for path, body in found.items() if not (isinstance(body, dict) and body.get("description"))] == []


@pytest.mark.parametrize(
    "text",
    [
        _changed("version: 1", "version: 2"),
        _changed("version: 1", "version: '1'"),
        _changed("version: 1\n", ""),
        _changed("parent: customer", "parent: Customer"),
        _changed("parent:", "parnt:"),
        _changed("topic: shop.public.customers", "topic: a/b"),
        _changed("topic: shop.public.customers", "topics: []"),
        _changed("topic: shop.public.customers", "topic: a\n  topics: [b]"),
        _changed("format: debezium", "format: debezum"),
        _changed("{id: int64}", "{id: bigint}"),
        _changed("{id: int64}", "{}"),
        _changed("{id: int64}", "{id: int64}\n  tombstones: keep"),
        _changed("format: debezium", "format: debezium-flat\n  prefix: ''"),
        _changed("format: debezium", "format: debezium-flat\n  prefix: [m_]"),
        _changed("store: orders_db", "store: Orders"),
        _changed("store: orders_db", "stor: orders_db"),
        _changed("table: public.orders", "table: a.b.c"),
        _changed("table: public.orders", "table: 'a\"; drop table b; --'"),
        _changed("table: public.orders", "table: a\n    topic: b"),
        _changed("table: public.orders\n    ", ""),
        _changed("collection: reviews", "collection: system.users"),
        _changed("collection: reviews", "collection: $a"),
        _changed("topic: carts", "topic: a/b"),
        _changed("references: {customer_id: id}", "references: {}"),
        _changed("references: {customer_id: id}", "references: {customer_id: 5}"),
        _changed("on_delete: cascade", "on_delete: casade"),
        _changed("on_delete: cascade", "on_delete: {cascade: {columns: [a]}}"),
        _changed("on_delete: cascade", "on_delete: {cascade: {}, ignore: {}}"),
        _changed("on_delete: cascade", "on_delete: {}"),
        _changed("on_delete: cascade", "on_delete: set_default"),
        _changed("on_delete: cascade", "on_delete: {set_default: {}}"),
        _changed("on_delete: cascade", "on_delete: tombstone"),
        _changed("on_delete: cascade", "on_delete: {tombstone: {}}"),
        _changed("on_delete: cascade", "on_delete: {tombstone: {set: {}}}"),
        _changed("on_delete: cascade", "on_delete: {tombstone: {set: {a: $event.tme}}}"),
        _changed("on_delete: nullify", "on_delete: {nullify: {columns: []}}"),
        _changed("on_delete: nullify", "on_delete: {nullify: {columns: [a, a]}}"),
        _changed("on_update: cascade", "on_update: tombstone"),
        _changed("on_update: cascade", "array: true"),
        _changed("on_delete: nullify", "array: 1\n    on_delete: nullify"),
        _changed("on_update: cascade", "match: partial"),
        _changed("on_update: cascade", "as_of: [created_at]"),
        _changed("on_update: cascade", "undo: 30"),
        _changed("on_update: cascade", "undo: soon"),
        _changed("on_update: cascade", "where: {}"),
        _changed("on_update: cascade", "where: {a: {b: 1}}"),
        _changed("on_update: cascade", "where: {a: [1, x]}"),
        _changed("on_update: cascade", "where: {a: [null]}"),
        VALID.replace("on_delete: cascade", "on_delete: {tombstone: {set: {a: 1}}}"),
    ],
)
def test_fault_that_a_schema_can_see_is_refused_by_both(text: str) -> None:
    assert (_is_valid(text), _is_parsed(text)) == (False, False)


@pytest.mark.parametrize(
    "text",
    [
        VALID,
        _changed("topic: shop.public.customers", "topics: [a, b]"),
        *(_changed("int64", kind) for kind in KEY_TYPES),
        _changed("{id: int64}", "{id: int64}\n  tombstones: ignore\n  truncate: delete_all"),
        _changed("name: orders\n    ", ""),
        _changed("on_delete: cascade", "on_delete: {cascade: {}}"),
        _changed("on_delete: cascade", "on_delete: {ignore: {}}"),
        _changed("on_delete: cascade", "on_delete: {restrict: {}}"),
        _changed("on_update: cascade", "on_update: restrict"),
        _changed("on_delete: cascade", "on_delete: {set_default: {customer_id: null}}"),
        _changed("on_delete: cascade", "on_delete: {set_default: {customer_id: 0}}"),
        _changed("on_delete: cascade", "on_delete: {tombstone: {set: {a: $now, b: text, c: null, d: $5 off}}}"),
        _changed("on_delete: nullify", "on_delete: {nullify: {columns: [customerId]}}"),
        _changed("on_delete: nullify", "on_delete: {nullify: {}}"),
        _changed("on_delete: nullify", "array: true\n    on_delete: nullify"),
        _changed("on_update: cascade", "match: simple"),
        _changed("on_update: cascade", "match: full"),
        _changed("on_update: cascade", "as_of: created_at"),
        _changed("on_update: cascade", "undo: 30d"),
        _changed("on_update: cascade", "where: {a: 1, b: [x, z], c: null, d: true, e: [1, 2.5]}"),
        _changed("on_update: cascade", "on_update: {set_default: {customer_id: 0}}"),
        VALID.removesuffix("cascade\n") + "tombstone\n",
    ],
)
def test_what_the_parser_accepts_the_schema_accepts(text: str) -> None:
    assert (_is_valid(text), _is_parsed(text)) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        *(f"{VALID}{name}: x\n" for name in PARENT_LATER),
        *(_changed("  format:", f"  {name}: x\n  format:") for name in EVENTS_LATER),
        *(_changed("    store: orders_db", f"    {name}: x\n    store: orders_db") for name in DEPENDENT_LATER),
    ],
)
def test_schema_describes_this_version_only(text: str) -> None:
    assert not _is_valid(text)
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": text})
    assert {finding.code for finding in caught.value.findings} == {"not_supported_yet"}
