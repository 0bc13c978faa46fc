"""What `copies` means, and every fault of it that is refused."""

from __future__ import annotations

import re

import pytest
import yaml
from jsonschema import Draft7Validator

from integrity.core.history import Impact
from integrity.core.plan import Plan
from integrity.core.rules.findings import FindingCode
from integrity.core.rules.graph import as_text, graph_of
from integrity.core.rules.meaning import copy_hash
from integrity.core.rules.model import Cascade, Copy, EventValue, Parent, Target, TargetKind, Tombstone
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.schema import rules_schema
from integrity.errors import Finding, RulesError

VALIDATOR = Draft7Validator(rules_schema())
HEAD = """\
version: 1
parent: customer
events:
  topic: shop.public.customers
  format: debezium
  key: {id: int64}
"""
TABLE = "store: orders_db, table: public.customer_copy"
COLUMNS = "columns: {id: id, name: name}"
COLLECTION = "store: reviews_db, collection: customers"
TOPIC = "store: carts, topic: customers-copy"
MARK = "on_delete: {tombstone: {set: {deleted_at: $event.time}}}"


def _file(*copies: str, head: str = HEAD, dependents: str = "") -> str:
    return f"{head}{dependents}copies:\n" + "".join(f"  - {{{copy}}}\n" for copy in copies)


def _parent(*copies: str, head: str = HEAD) -> Parent:
    return parse_rules({"a.yaml": _file(*copies, head=head)}).parents[0]


def _only(copy: str) -> Copy:
    [found] = _parent(copy).copies
    return found


def _findings(text: str) -> list[Finding]:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": text})
    return list(caught.value.findings)


def test_copy_has_the_key_as_its_reference_and_the_rest_as_values() -> None:
    copy = _only(f"{TABLE}, name: slim, columns: {{label: name, id: id}}")
    assert (copy.id, copy.store, copy.action) == ("customer.slim", "orders_db", "delete")
    assert copy.rows.target == Target(TargetKind.TABLE, "public.customer_copy")
    assert dict(copy.rows.references) == {"id": "id"}
    assert dict(copy.values) == {"label": "name"}
    assert isinstance(copy.rows.on_delete, Cascade)


def test_key_of_several_fields_is_referenced_in_its_own_order() -> None:
    head = HEAD.replace("{id: int64}", "{tenant: string, code: int64}")
    [copy] = _parent(f"{TABLE}, columns: {{code: code, name: name, t: tenant}}", head=head).copies
    assert copy.rows.columns == ("t", "code")


def test_tombstone_names_its_marker_and_on_a_topic_nothing() -> None:
    marked = _only(f"{TABLE}, {COLUMNS}, {MARK}").rows.on_delete
    assert isinstance(marked, Tombstone)
    assert dict(marked.set) == {"deleted_at": EventValue.TIME}
    bare = _only(f"{TOPIC}, {COLUMNS}, on_delete: tombstone").rows.on_delete
    assert isinstance(bare, Tombstone)
    assert not bare.set


def test_file_may_have_copies_and_no_dependents() -> None:
    parent = _parent(f"{TABLE}, {COLUMNS}", f"{COLLECTION}, columns: {{_id: id, name: name}}")
    assert parent.dependents == ()
    assert [copy.id for copy in parent.copies] == ["customer.public.customer_copy", "customer.customers"]


FAULTS: list[tuple[str, FindingCode, str, int]] = [
    (f"{TABLE}, columns: {{name: name}}", FindingCode.MISSING_KEY_FIELD, 'does not copy "id"', 8),
    (f"{TABLE}, columns: {{id: idd, name: name}}", FindingCode.MISSING_KEY_FIELD, 'id', 8),
    (f"{TABLE}, columns: {{id: id, again: id}}", FindingCode.REPEATED_KEY_FIELD, '"id" twice', 8),
    (f"{TABLE}, columns: {{}}", FindingCode.EMPTY, "columns is empty", 8),
    (f"{TABLE}, columns: {{id: id, name: 5}}", FindingCode.WRONG_TYPE, "must be text", 8),
    (f"{TABLE}, columns: {{id: id, 'a\"b': name}}", FindingCode.BAD_COLUMN, "must not contain", 8),
    (f"{COLLECTION}, columns: {{id: id, a.b: name}}", FindingCode.BAD_COLUMN, "without a dot", 8),
    (f"{COLLECTION}, columns: {{id: id, _id: name}}", FindingCode.IMMUTABLE_ID, "never changes", 8),
    (TABLE, FindingCode.MISSING_FIELD, "has no columns", 8),
    (f"store: orders_db, {COLUMNS}", FindingCode.ONE_OF_FIELDS, "the copy has no table", 8),
    (f"{TABLE}, {COLUMNS}, on_delete: cascade", FindingCode.UNKNOWN_VALUE, "delete or tombstone", 8),
    (f"{TABLE}, {COLUMNS}, on_delete: tombstone", FindingCode.WRONG_TYPE, "needs the columns to set", 8),
    (f"{TABLE}, {COLUMNS}, {MARK.replace('deleted_at', 'name')}", FindingCode.REFERENCE_COLUMN, "of colu", 8),
    (f"{TOPIC}, {COLUMNS}, {MARK}", FindingCode.WRONG_TYPE, "null record", 8),
    (f"{TABLE}, {COLUMNS}, colums: {{}}", FindingCode.UNKNOWN_FIELD, 'columns', 8),
    (f"{TABLE}, {COLUMNS}, where: {{a: 1}}", FindingCode.UNKNOWN_FIELD, 'unknown field "where" of the copy', 8),
    ("store: carts, topic: shop.public.customers, " + COLUMNS, FindingCode.COPY_TARGET, "feeds a parent", 8),
]  # fmt: skip


@pytest.mark.parametrize(("copy", "code", "said", "line"), FAULTS)
def test_fault_of_a_copy_is_told_at_its_place(copy: str, code: FindingCode, said: str, line: int) -> None:
    [finding] = _findings(_file(copy))
    assert (finding.code, finding.line) == (code, line)
    assert said.lower() in f"{finding.message} {finding.hint}".lower()


def test_target_of_a_copy_is_its_own() -> None:
    orders = (
        "dependents:\n  - {store: orders_db, table: public.customer_copy, references: {c: id}, on_delete: cascade}\n"
    )
    assert [f.code for f in _findings(_file(f"{TABLE}, name: x, {COLUMNS}", dependents=orders))] == [
        FindingCode.COPY_TARGET
    ]
    assert [f.code for f in _findings(_file(f"{TABLE}, {COLUMNS}", f"{TABLE}, name: x, {COLUMNS}"))] == [
        FindingCode.COPY_TARGET
    ]


def test_copy_and_dependent_of_one_name_are_told() -> None:
    orders = "dependents:\n  - {store: orders_db, table: x, references: {c: id}, on_delete: cascade}\n"
    [finding] = _findings(_file(f"{TABLE}, name: x, {COLUMNS}", dependents=orders))
    assert finding.code == FindingCode.DUPLICATE_DEPENDENT
    assert 'the copy "x" is there twice' in finding.message


def test_rows_without_events_are_not_copied() -> None:
    customers = HEAD + (
        "dependents:\n"
        "  - {store: s, table: o, references: {c: id}, on_delete: cascade, entity: order, key: {id: int64}}\n"
    )
    orders = f"version: 1\nparent: order\ncopies:\n  - {{{TABLE}, {COLUMNS}}}\n"
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": customers, "b.yaml": orders})
    [finding] = caught.value.findings
    assert (finding.code, finding.file, finding.line) == (FindingCode.NOT_SUPPORTED_YET, "b.yaml", 3)


def test_hash_of_the_rules_and_of_the_copy_change_with_what_its_rows_are() -> None:
    plain = parse_rules({"a.yaml": _file(f"{TABLE}, name: c, {COLUMNS}")})
    others = [
        f"{TABLE}, name: c, columns: {{id: id, name: full_name}}",
        f"{TABLE}, name: c, columns: {{id: id, name: name, email: email}}",
        f"{TABLE}2, name: c, {COLUMNS}",
        f"{TABLE}, name: c, {COLUMNS}, {MARK}",
        f"store: crm_db, table: public.customer_copy, name: c, {COLUMNS}",
    ]
    hashes = {plain.hash} | {parse_rules({"a.yaml": _file(each)}).hash for each in others}
    assert len(hashes) == len(others) + 1
    parents = [plain.parents[0], *(parse_rules({"a.yaml": _file(each)}).parents[0] for each in others)]
    assert len({copy_hash(parent, parent.copies[0]) for parent in parents}) == len(others) + 1
    same = parse_rules({"b.yaml": _file(f"{TABLE}, name: c, columns: {{name: name, id: id}}")})
    assert same.hash == plain.hash
    assert copy_hash(same.parents[0], same.parents[0].copies[0]) == copy_hash(parents[0], parents[0].copies[0])


def test_graph_shows_copies() -> None:
    graph = graph_of(parse_rules({"a.yaml": _file(f"{TABLE}, name: c, {COLUMNS}")}))
    assert as_text(graph).splitlines() == [
        "customer (id: int64) from shop.public.customers",
        "  customer.c: orders_db/public.customer_copy (id, name): copy, on delete delete",
    ]


@pytest.mark.parametrize(
    "copy",
    [
        f"{TABLE}, {COLUMNS}",
        f"{TABLE}, name: c, {COLUMNS}, on_delete: delete",
        f"{TABLE}, {COLUMNS}, on_delete: {{delete: {{}}}}",
        f"{TABLE}, {COLUMNS}, {MARK}",
        f"{TOPIC}, {COLUMNS}, on_delete: tombstone",
        f"{COLLECTION}, columns: {{_id: id, name: name}}",
    ],
)
def test_what_the_parser_accepts_the_schema_accepts(copy: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(_file(copy)))] == []
    assert _only(copy)


@pytest.mark.parametrize(
    "copy",
    [
        TABLE,
        f"store: orders_db, {COLUMNS}",
        f"{TABLE}, topic: x, {COLUMNS}",
        f"{TABLE}, columns: {{}}",
        f"{TABLE}, {COLUMNS}, on_delete: cascade",
        f"{TABLE}, {COLUMNS}, on_delete: tombstone",
        f"{TOPIC}, {COLUMNS}, {MARK}",
        f"{TABLE}, {COLUMNS}, where: {{a: 1}}",
    ],
)
def test_fault_that_a_schema_can_see_is_refused_by_both(copy: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(_file(copy)))
    assert _findings(_file(copy))


def test_schema_wants_dependents_or_copies() -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(HEAD))
    [finding] = _findings(HEAD)
    assert re.search("has no dependents", finding.message)


@pytest.mark.parametrize("to", [None, (9,)])
def test_plan_has_a_line_for_a_copy(to: tuple[int, ...] | None) -> None:
    """When the key changes, the row of the old key goes; that of the new one comes with an event of its own."""
    walk = Plan(parse_rules({"a.yaml": _file(f"{TABLE}, name: c, {COLUMNS}")}), "customer", [(7,)], to)
    portion = walk.ask()
    assert portion is not None
    assert portion.stores == ("orders_db",)
    walk.take(portion, [Impact("customer.c", "delete", (1,))])
    assert walk.ask() is None
    assert [(each.dependent.id, each.action, each.rows) for each in walk.found()] == [("customer.c", "delete", 1)]
