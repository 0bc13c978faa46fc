"""What a rule file means, and every fault of it that is refused."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.keys import KeyType
from integrity.core.policy import policy_of
from integrity.core.rules.findings import FindingCode
from integrity.core.rules.model import (
    Action,
    Cascade,
    Dependent,
    Events,
    EventValue,
    Ignore,
    KeyFormat,
    KeyFrom,
    Match,
    Nullify,
    PairBy,
    Parent,
    Restrict,
    RuleSet,
    SetDefault,
    Target,
    TargetKind,
    Tombstone,
    Tombstones,
    Truncates,
)
from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding, RulesError

HEAD = """\
version: 1
parent: customer
events:
  topic: shop.public.customers
  format: debezium
  key: {id: int64}
"""
TABLE = "store: orders_db, table: orders, references: {customer_id: id}"
COLLECTION = "store: reviews_db, collection: reviews, references: {customerId: id}"
TOPIC = "store: carts, topic: carts, references: {customer_id: id}"
CASCADE = "on_delete: cascade"
VALID = f"{HEAD}dependents:\n  - {{{TABLE}, {CASCADE}}}\n"
SHIPPED = {file.name: file.read_text("utf-8") for file in sorted(Path("rules").glob("*.yaml"))}


def _file(*dependents: str, head: str = HEAD) -> str:
    return head + "dependents:\n" + "".join(f"  - {{{dependent}}}\n" for dependent in dependents)


def _only(*dependents: str, head: str = HEAD) -> Dependent:
    [dependent] = parse_rules({"a.yaml": _file(*dependents, head=head)}).parents[0].dependents
    return dependent


def _findings(*files: str) -> tuple[Finding, ...]:
    with pytest.raises(RulesError) as caught:
        parse_rules({f"{'abc'[n]}.yaml": file for n, file in enumerate(files)})
    return caught.value.findings


def _codes(*files: str) -> list[str]:
    return [str(finding.code) for finding in _findings(*files)]


def test_whole_file_becomes_the_model() -> None:
    text = """\
version: 1
parent: account
events:
  topics: [crm.accounts, crm.archive]
  format: debezium
  key: {tenant: string, code: int32}
  tombstones: ignore
  truncate: delete_all
dependents:
  - name: contacts
    store: crm_db
    table: crm.contacts
    references: {customer_code: code, tenant_name: tenant}
    match: simple
    where: {owner_type: Customer, region: [eu, uk], archived_at: null, level: 3}
    on_delete: {nullify: {columns: [customer_code]}}
    on_update: ignore
  - store: reviews_db
    collection: notes
    references: {owner.code: code, owner.tenant: tenant}
    on_delete: {tombstone: {set: {gone.at: $event.time, gone.by: account deleted, gone.event: $event.id, note: null}}}
"""
    rules = parse_rules({"account.yaml": text})
    parent = rules.by_topic["crm.archive"]
    assert rules.parents == (parent,)
    assert rules.by_entity == {"account": parent}
    assert rules.stores == ("crm_db", "reviews_db")
    assert parent.events.topics == ("crm.accounts", "crm.archive")
    assert parent.events.key.fields == (("tenant", KeyType.STRING), ("code", KeyType.INT32))
    assert parent.events.tombstones is Tombstones.IGNORE
    assert parent.events.truncate is Truncates.DELETE_ALL
    contacts, notes = parent.dependents
    assert (contacts.id, contacts.name, contacts.store) == ("account.contacts", "contacts", "crm_db")
    assert contacts.target == Target(TargetKind.TABLE, "crm.contacts")
    assert contacts.where == {"owner_type": "Customer", "region": ("eu", "uk"), "archived_at": None, "level": 3}
    assert (contacts.on_delete, contacts.on_update) == (Nullify(("customer_code",)), Ignore())
    assert (contacts.place.file, contacts.place.line, contacts.place.column) == ("account.yaml", 10, 5)
    assert (notes.id, notes.on_update) == ("account.notes", Cascade())
    assert isinstance(notes.on_delete, Tombstone)
    assert notes.on_delete.marker == "gone.at"
    assert list(notes.on_delete.set.items()) == [
        ("gone.at", EventValue.TIME),
        ("gone.by", "account deleted"),
        ("gone.event", EventValue.ID),
        ("note", None),
    ]


def test_references_and_columns_follow_the_order_of_the_parent_key() -> None:
    head = HEAD.replace("{id: int64}", "{a: int64, b: string, c: int64}")
    dependent = _only(
        "store: s, table: t, references: {third: c, first: a, second: b}, "
        "on_delete: {nullify: {columns: [third, first]}}",
        head=head,
    )
    assert list(dependent.references.items()) == [("first", "a"), ("second", "b"), ("third", "c")]
    assert dependent.columns == ("first", "second", "third")
    assert dependent.on_delete == Nullify(("first", "third"))


@pytest.mark.parametrize(
    ("target", "written", "action"),
    [
        (TABLE, "cascade", Cascade()),
        (TABLE, "{cascade: {}}", Cascade()),
        (TABLE, "restrict", Restrict()),
        (TABLE, "{restrict: {}}", Restrict()),
        (TABLE, "ignore", Ignore()),
        (TABLE, "{ignore: }", Ignore()),
        (TABLE, "nullify", Nullify(("customer_id",))),
        (TABLE, "{nullify: {}}", Nullify(("customer_id",))),
        (TABLE, "{nullify: {columns: [customer_id]}}", Nullify(("customer_id",))),
        (TABLE, "{set_default: {customer_id: 0}}", SetDefault({"customer_id": 0})),
        (TABLE, "{set_default: {customer_id: null}}", SetDefault({"customer_id": None})),
        (TABLE, "{tombstone: {set: {gone: true}}}", Tombstone({"gone": True})),
        (TABLE, "{tombstone: {set: {at: $now}}}", Tombstone({"at": EventValue.NOW})),
        (TABLE, "{tombstone: {set: {price: $5 off}}}", Tombstone({"price": "$5 off"})),
        (TOPIC, "tombstone", Tombstone({})),
        (TOPIC, "{tombstone: {}}", Tombstone({})),
        (TOPIC, "cascade", Cascade()),
        (TOPIC, "nullify", Nullify(("customer_id",))),
        (TOPIC, "{set_default: {customer_id: 0}}", SetDefault({"customer_id": 0})),
        (COLLECTION, "nullify", Nullify(("customerId",))),
    ],
)
def test_action_is_read_in_its_bare_and_its_mapping_form(target: str, written: str, action: Action) -> None:
    assert _only(f"{target}, on_delete: {written}").on_delete == action


@pytest.mark.parametrize(
    ("written", "action"),
    [
        ("cascade", Cascade()),
        ("nullify", Nullify(("customer_id",))),
        ("{set_default: {customer_id: 5}}", SetDefault({"customer_id": 5})),
        ("restrict", Restrict()),
        ("ignore", Ignore()),
    ],
)
def test_on_update_takes_every_action_but_tombstone(written: str, action: Action) -> None:
    assert _only(f"{TABLE}, {CASCADE}, on_update: {written}").on_update == action


def test_name_defaults_to_the_target_as_it_is_written() -> None:
    assert _only(f"store: s, table: public.orders, references: {{a: id}}, {CASCADE}").id == "customer.public.orders"


@pytest.mark.parametrize("written", ["0", "-1", "1.5", "'5'", "true", "null", "many", "[5]"])
def test_max_rows_is_a_whole_number_from_one(written: str) -> None:
    assert _only(f"{TABLE}, {CASCADE}, max_rows: 5").max_rows == 5
    assert _only(f"{TABLE}, {CASCADE}").max_rows is None
    assert _codes(_file(f"{TABLE}, {CASCADE}, max_rows: {written}")) == [FindingCode.WRONG_TYPE]


def test_max_rows_is_part_of_what_the_rules_mean() -> None:
    hashes = {
        _parse({"a.yaml": _file(f"{TABLE}, {CASCADE}{more}")}).hash for more in ("", ", max_rows: 5", ", max_rows: 6")
    }
    assert len(hashes) == 3


FULL = "store: s, table: t, references: {a: x, b: z}, match: full"
TWO = HEAD.replace("{id: int64}", "{x: int64, z: int64}")


@pytest.mark.parametrize(
    ("written", "match"), [("", "simple"), (", match: simple", "simple"), (", match: full", "full")]
)
def test_match_is_simple_or_full(written: str, match: str) -> None:
    assert _only(f"{TABLE}, {CASCADE}{written}").match is Match(match)


@pytest.mark.parametrize(
    "actions",
    [
        "on_delete: nullify",
        "on_delete: {nullify: {columns: [b, a]}}, on_update: restrict",
        "on_delete: {set_default: {a: null, b: null}}",
        "on_delete: {set_default: {b: 0}}, on_update: {set_default: {a: 1, b: 0}}",
        "on_delete: cascade, on_update: ignore",
    ],
)
def test_match_full_takes_actions_that_leave_a_whole_reference_or_none(actions: str) -> None:
    assert _only(f"{FULL}, {actions}", head=TWO).match is Match.FULL


@pytest.mark.parametrize(
    "actions",
    [
        "on_delete: {nullify: {columns: [a]}}",
        "on_delete: {set_default: {b: null}}",
        "on_delete: {set_default: {a: null, b: 0}}",
        "on_delete: cascade, on_update: {nullify: {columns: [b]}}",
        "on_delete: cascade, on_update: {set_default: {a: null}}",
    ],
)
def test_match_full_refuses_actions_that_leave_a_reference_null_in_part(actions: str) -> None:
    [finding] = _findings(_file(f"{FULL}, {actions}", head=TWO))
    assert (finding.code, finding.line) == (FindingCode.MIXED_REFERENCE, 8)
    parse_rules({"a.yaml": _file(f"{FULL}, {actions}".replace("full", "simple"), head=TWO)})


def test_as_of_names_a_column_or_a_path() -> None:
    assert _only(f"{TABLE}, {CASCADE}").as_of is None
    assert _only(f"{TABLE}, {CASCADE}, as_of: created_at").as_of == "created_at"
    assert _only(f"{COLLECTION}, {CASCADE}, as_of: meta.created").as_of == "meta.created"
    assert _only(f"{TOPIC}, {CASCADE}, as_of: meta.created").as_of == "meta.created"


@pytest.mark.parametrize(
    ("dependent", "code"),
    [
        (f"{TABLE}, as_of: customer_id", FindingCode.REFERENCE_COLUMN),
        (f"{TABLE}, as_of: a.b", FindingCode.BAD_COLUMN),
        (f"{COLLECTION}, as_of: $natural", FindingCode.BAD_COLUMN),
        (f"{COLLECTION}, as_of: customerId.at", FindingCode.OVERLAPPING_FIELDS),
        ("store: s, topic: t, references: {a.b: id}, as_of: a", FindingCode.OVERLAPPING_FIELDS),
        (f"{TABLE}, as_of: [created_at]", FindingCode.WRONG_TYPE),
        (f"{TABLE}, as_of: 5", FindingCode.WRONG_TYPE),
        (f"{TABLE}, as_of: ''", FindingCode.EMPTY),
    ],
)
def test_as_of_that_cannot_say_when_a_row_came_to_be_is_refused(dependent: str, code: FindingCode) -> None:
    assert _codes(_file(f"{dependent}, {CASCADE}")) == [code]


@pytest.mark.parametrize(("written", "ms"), [("30d", 30 * 86_400_000), ("1m", 60_000), ("1.5h", 5_400_000)])
def test_undo_says_how_long_it_is_kept_what_rows_were(written: str, ms: int) -> None:
    assert _only(f"{TABLE}, {CASCADE}, undo: {written}").undo_ms == ms
    assert _only(f"{TABLE}, {CASCADE}").undo_ms is None
    assert _only(f"{TABLE}, on_delete: restrict, undo: {written}").undo_ms == ms, "key changes are kept"


@pytest.mark.parametrize("written", ["59s", "3651d", "soon", "'5'"])
def test_undo_that_is_no_such_duration_is_refused(written: str) -> None:
    assert _codes(_file(f"{TABLE}, {CASCADE}, undo: {written}")) == [FindingCode.UNKNOWN_VALUE]


@pytest.mark.parametrize("action", ["restrict", "ignore"])
def test_undo_of_a_rule_that_changes_nothing_is_refused(action: str) -> None:
    dependent = f"{TABLE}, on_delete: {action}, on_update: {action}, undo: 30d"
    assert _codes(_file(dependent)) == [FindingCode.NOTHING_TO_UNDO]


def _events_of(more: str, form: str = "json", key: str = "{id: int64}") -> Events:
    head = HEAD.replace("format: debezium", f"format: {form}").replace("{id: int64}", key) + f"  {more}\n"
    events = parse_rules({"a.yaml": _file(f"{TABLE}, {CASCADE}", head=head)}).parents[0].events
    assert events is not None
    return events


def _faults_of(more: str, form: str = "json", key: str = "{id: int64}") -> list[str]:
    try:
        _events_of(more, form, key)
    except RulesError as error:
        return [str(finding.code) for finding in error.findings]
    return []


def test_prefix_of_added_fields_is_read() -> None:
    assert _events_of("", form="debezium-flat").prefix == "__"
    assert _events_of("prefix: m.", form="debezium-flat").prefix == "m."
    assert _events_of("prefix: src_\n  version: src_rev", form="debezium-flat").version == ("src_rev",)
    assert _faults_of("prefix: src_\n  version: __rev", form="debezium-flat") == ["unknown_value"]
    assert _faults_of("prefix: src_") == ["format_field"]
    flat = _head("debezium", "debezium-flat\n  prefix: __")
    assert _hash(flat) == _hash(flat.replace("  prefix: __\n", "")) != _hash(flat.replace("prefix: __", "prefix: m_"))
    for wrong in ("''", "' m'", f"'{'m' * 64}'", "[m]", "5"):
        assert len(_faults_of(f"prefix: {wrong}", form="debezium-flat")) == 1


def test_key_format_and_version_are_read() -> None:
    assert _events_of("key_format: long").key_format is KeyFormat.LONG
    assert _events_of("key_format: string", key="{id: uuid}", form="debezium-flat").key_format is KeyFormat.STRING
    assert _events_of("key_format: json").key_format is KeyFormat.JSON
    by_row = _events_of("key_from: before\n  tombstones: ignore", form="debezium")
    assert (by_row.key_from, by_row.tell_who_lives) == (KeyFrom.BEFORE, False)
    assert _events_of("version: meta.rev").version == ("meta", "rev")
    assert _events_of("pair_by: transaction", form="debezium").pair_by is PairBy.TRANSACTION
    assert _events_of("version: __source_scn", form="debezium-flat").version == ("__source_scn",)


@pytest.mark.parametrize(
    ("more", "form", "key", "code"),
    [
        ("key_format: avro", "json", "{id: int64}", "unknown_value"),
        ("key_format: long", "json", "{id: int32}", "unknown_value"),
        ("key_format: string", "json", "{id: bytes}", "unknown_value"),
        ("key_format: string", "debezium", "{tenant: string, id: int64}", "unknown_value"),
        ("version: rev", "debezium", "{id: int64}", "format_field"),
        ("key_format: string", "integrity", "{id: int64}", "format_field"),
        ('types: {deleted: [x]}\n  deleted_when: "after.a"', "json", "{id: int64}", "format_field"),
        ("payload: data", "json", "{id: int64}", "format_field"),
        ("key_from: payload", "json", "{id: int64}", "format_field"),
        ("key_from: before", "debezium", "{id: int64}", "format_field"),
        ("pair_by: lsn", "debezium", "{id: int64}", "unknown_value"),
        ("pair_by: transaction", "debezium-flat", "{id: int64}", "format_field"),
        ("pair_by: transaction\n  key_from: before\n  tombstones: ignore", "debezium", "{id: int64}", "format_field"),
        ("key_from: before\n  tombstones: delete", "debezium", "{id: int64}", "format_field"),
        ("key_from: before\n  tombstones: ignore\n  key_format: string", "debezium", "{id: int64}", "format_field"),
        ("key_from: before\n  tombstones: ignore\n  deleted_when: after.a", "debezium", "{id: int64}", "format_field"),
        ("key_from: before\n  tombstones: ignore", "debezium-flat", "{id: int64}", "format_field"),
        ("key_from: payload", "debezium", "{id: int64}", "format_field"),
        ("version: rev", "debezium-flat", "{id: int64}", "unknown_value"),
        ("version: __a.b", "debezium-flat", "{id: int64}", "unknown_value"),
        ("version: a..b", "json", "{id: int64}", "bad_column"),
        ("version: 5", "json", "{id: int64}", "wrong_type"),
        ('deleted_when: "before.a == 1"', "json", "{id: int64}", "bad_condition"),
        ("deleted_when: \"op == 'u'\"", "json", "{id: int64}", "bad_condition"),
        ('deleted_when: "source.a == 1"', "debezium-flat", "{id: int64}", "bad_condition"),
    ],
)
def test_field_that_does_not_fit_the_format_or_the_key_is_refused(more: str, form: str, key: str, code: str) -> None:
    assert [each for each in _faults_of(more, form, key) if each != "missing_key_field"] == [code]


def test_copies_and_several_topics_of_a_parent_whose_key_is_in_its_rows_are_refused() -> None:
    head = f"{HEAD}  key_from: before\n  tombstones: ignore\n"
    several = head.replace("topic: shop.public.customers", "topics: [a, b]")
    assert _codes(_file(f"{TABLE}, {CASCADE}", head=several)) == [FindingCode.FORMAT_FIELD]
    paired = f"{HEAD}  pair_by: transaction\n".replace("topic: shop.public.customers", "topics: [a, b]")
    assert _codes(_file(f"{TABLE}, {CASCADE}", head=paired)) == [FindingCode.FORMAT_FIELD]
    copies = "copies:\n  - {store: orders_db, table: copy, columns: {id: id}}\n"
    assert _codes(head + copies) == [FindingCode.NO_ROW]


def test_file_without_events_is_told_what_it_continues() -> None:
    [finding] = _findings(f"version: 1\nparent: p\ndependents:\n  - {{{TABLE}, {CASCADE}}}\n")
    assert finding.code == FindingCode.UNNAMED_ENTITY
    assert "entity: p" in finding.hint


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (VALID.replace("parent:", "parnt:"), "Did you mean parent?"),
        (VALID.replace("topic:", "topik:"), "Did you mean topic?"),
        (VALID.replace("on_delete", "on_delet"), "Did you mean on_delete?"),
        (VALID.replace("cascade", "casade"), "Did you mean cascade?"),
        (VALID.replace("debezium", "debezum"), "Did you mean debezium?"),
        (VALID.replace("int64", "in64"), "Did you mean int64?"),
        (VALID.replace("int64", "bigint"), "Did you mean int64?"),
        (VALID.replace("int64", "varchar"), "Did you mean string?"),
        (VALID.replace("customer_id: id", "customer_id: ids"), "Did you mean id?"),
        (_file(f"{TABLE}, on_delete: {{nullify: {{column: [customer_id]}}}}"), "Did you mean columns?"),
        (_file(f"{TABLE}, on_delete: {{nullify: {{columns: [customr_id]}}}}"), "Did you mean customer_id?"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{at: $event.tme}}}}}}"), "Did you mean $event.time?"),
    ],
)
def test_misspelt_word_is_answered_with_the_nearest(wrong: str, hint: str) -> None:
    assert hint in [finding.hint for finding in _findings(wrong)]


def _head(old: str, new: str) -> str:
    assert old in VALID
    return VALID.replace(old, new)


@pytest.mark.parametrize(
    ("text", "code", "line", "begins"),
    [
        ("- a\n", "wrong_type", 1, "-"),
        ("just text\n", "wrong_type", 1, "just"),
        (_head("version: 1\n", ""), "missing_field", 1, "parent:"),
        (_head("version: 1", "version: 2"), "unknown_value", 1, "2"),
        (_head("version: 1", "version: '1'"), "wrong_type", 1, "'1'"),
        (_head("version: 1", "version: 1.0"), "wrong_type", 1, "1.0"),
        (_head("version: 1", "version: true"), "wrong_type", 1, "true"),
        (_head("parent: customer", "parent: Customer"), "bad_name", 2, "Customer"),
        (_head("parent: customer", "parent: 5"), "wrong_type", 2, "5"),
        (_head("parent: customer", "parent: ''"), "empty", 2, "''"),
        (_head("parent: customer", 'parent: "a\\n"'), "bad_name", 2, '"a'),
        (_head("parent: customer", "parent: " + "c" * 64), "bad_name", 2, "cccccccccccccccc"),
        (_head("topic: shop.public.customers", "topic: shop/customers"), "bad_topic", 4, "shop"),
        (_head("topic: shop.public.customers", "topic: ."), "bad_topic", 4, "."),
        (_head("topic: shop.public.customers", "topic: " + "t" * 250), "bad_topic", 4, "tttttttttttttttt"),
        (_head("topic: shop.public.customers", "topics: []"), "empty", 4, "["),
        (_head("topic: shop.public.customers", "topics: t"), "wrong_type", 4, "t"),
        (_head("topic: shop.public.customers", "topics: [t, t]"), "duplicate_topic", 4, "t"),
        (_head("topic: shop.public.customers", "topic: t\n  topics: [u]"), "one_of_fields", 5, "topics:"),
        (_head("  topic: shop.public.customers\n", ""), "one_of_fields", 4, "format:"),
        (_head("  format: debezium\n", ""), "missing_field", 4, "topic:"),
        (_head("  key: {id: int64}\n", ""), "missing_field", 4, "topic:"),
        (_head("{id: int64}", "id"), "wrong_type", 6, "id"),
        (_head("{id: int64}", "{}"), "empty", 6, "{"),
        (_head("{id: int64}", "{id: }"), "wrong_type", 6, "}"),
        (_head("{id: int64}", "{'a ': int64}").replace("customer_id: id", "customer_id: 'a '"), "bad_name", 6, "'a"),
        (_head("{id: int64}", "{id: int64}\n  tombstones: keep"), "unknown_value", 7, "keep"),
        (f"{HEAD}dependents: []\n", "empty", 7, "["),
        (f"{HEAD}dependents: orders\n", "wrong_type", 7, "orders"),
        (f"{HEAD}dependents:\n  - orders\n", "wrong_type", 8, "orders"),
        (HEAD, "missing_field", 1, "version:"),
        (_file(f"{TABLE}"), "missing_field", 8, "{store:"),
        (_file(f"table: t, references: {{a: id}}, {CASCADE}"), "missing_field", 8, "{table:"),
        (_file(f"store: s, table: t, {CASCADE}"), "missing_field", 8, "{store:"),
        (_file(f"store: s, references: {{a: id}}, {CASCADE}"), "one_of_fields", 8, "{store:"),
        (_file(f"store: s, table: t, topic: t, references: {{a: id}}, {CASCADE}"), "one_of_fields", 8, "topic:"),
        (_file(f"store: S, table: t, references: {{a: id}}, {CASCADE}"), "bad_name", 8, "S"),
        (_file(f"store: a__b, table: t, references: {{a: id}}, {CASCADE}"), "bad_name", 8, "a__b"),
        (_file(f"name: a b, {TABLE}, {CASCADE}"), "bad_name", 8, "a"),
        (_file(f"name: '*', {TABLE}, {CASCADE}"), "bad_name", 8, "'*'"),
        (_file(f"store: s, table: a b, references: {{a: id}}, {CASCADE}"), "bad_name", 8, "a"),
        (_file(f"store: s, table: t, references: {{}}, {CASCADE}"), "empty", 8, "{"),
        (_file(f"store: s, table: t, references: {{a: 5}}, {CASCADE}"), "wrong_type", 8, "5"),
        (_file(f"store: s, table: t, references: {{a: code}}, {CASCADE}"), "unknown_key_field", 8, "code"),
        (_file(f"store: s, table: t, references: {{a: id, b: id}}, {CASCADE}"), "repeated_key_field", 8, "id"),
        (_file(f"{TABLE}, {CASCADE}, where: {{}}"), "empty", 8, "{"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: []}}"), "empty", 8, "["),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: }}"), "wrong_type", 8, "}}"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: {{b: c}}}}"), "wrong_type", 8, "{b:"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: [x, null]}}"), "wrong_type", 8, "null"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: [x, 1]}}"), "wrong_type", 8, "1"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: [true, 1]}}"), "wrong_type", 8, "1"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: [x, x]}}"), "repeated", 8, "x"),
        (_file(f"{TABLE}, {CASCADE}, where: {{a: $now}}"), "unknown_value", 8, "$now"),
        (_file(f"{TABLE}, {CASCADE}, where: {{'': 1}}"), "bad_column", 8, "'':"),
        (_file(f"{TABLE}, {CASCADE}, match: partial"), "unknown_value", 8, "partial"),
        (_file(f"{TABLE}, {CASCADE}, on_update: tombstone"), "unknown_value", 8, "tombstone"),
        (_file(f"{TABLE}, on_delete: [cascade]"), "wrong_type", 8, "[cascade"),
        (_file(f"{TABLE}, on_delete: {{cascade: {{}}, ignore: {{}}}}"), "wrong_type", 8, "{cascade:"),
        (_file(f"{TABLE}, on_delete: {{}}"), "wrong_type", 8, "{"),
        (_file(f"{TABLE}, on_delete: "), "wrong_type", 8, "}"),
        (_file(f"{TABLE}, on_delete: true"), "wrong_type", 8, "true"),
        (_file(f"{TABLE}, on_delete: {{cascade: {{columns: [a]}}}}"), "unknown_field", 8, "columns:"),
        (_file(f"{TABLE}, on_delete: {{cascade: 5}}"), "wrong_type", 8, "5"),
        (_file(f"{TABLE}, on_delete: {{nullify: {{columns: []}}}}"), "empty", 8, "["),
        (_file(f"{TABLE}, on_delete: {{nullify: {{columns: customer_id}}}}"), "wrong_type", 8, "customer_id"),
        (_file(f"{TABLE}, on_delete: {{nullify: {{columns: [other]}}}}"), "not_a_reference", 8, "other"),
        (
            _file(f"{TABLE}, on_delete: {{nullify: {{columns: [customer_id, customer_id]}}}}"),
            "repeated",
            8,
            "customer_id",
        ),
        (_file(f"{TABLE}, on_delete: set_default"), "wrong_type", 8, "set_default"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{}}}}"), "empty", 8, "{"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{other: 1}}}}"), "not_a_reference", 8, "other:"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: '5'}}}}"), "literal_type", 8, "'5'"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: 5.5}}}}"), "literal_type", 8, "5.5"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: true}}}}"), "literal_type", 8, "true"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: $now}}}}"), "unknown_value", 8, "$now"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: }}}}"), "wrong_type", 8, "}}}"),
        (_file(f"{TABLE}, on_delete: {{set_default: {{customer_id: [1]}}}}"), "wrong_type", 8, "[1"),
        (_file(f"{TABLE}, on_delete: tombstone"), "wrong_type", 8, "tombstone"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{}}}}"), "empty", 8, "{"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{}}}}}}"), "empty", 8, "{"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{a: null}}}}}}"), "null_marker", 8, "null"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{a: }}}}}}"), "wrong_type", 8, "}}}}"),
        (
            _file(f"{TABLE}, on_delete: {{tombstone: {{set: {{customer_id: 1}}}}}}"),
            "reference_column",
            8,
            "customer_id:",
        ),
        (
            _file(f"{TABLE}, on_delete: {{tombstone: {{set: {{a: 1, customer_id: 1}}}}}}"),
            "reference_column",
            8,
            "customer_id:",
        ),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{'a\"b': 1}}}}}}"), "bad_column", 8, "'a"),
        (_file(f"{TABLE}, on_delete: {{tombstone: {{set: {{a: $event.when}}}}}}"), "unknown_value", 8, "$event.when"),
        (_file(f"{TOPIC}, on_delete: {{tombstone: {{set: {{a: 1}}}}}}"), "wrong_type", 8, "{set:"),
        (_file(f"{COLLECTION}, on_delete: {{tombstone: {{set: {{a: 1, a.b: 2}}}}}}"), "overlapping_fields", 8, "{a:"),
        (
            _file(f"{COLLECTION}, on_delete: {{tombstone: {{set: {{customerId.x: 1}}}}}}"),
            "overlapping_fields",
            8,
            "{customerId.x:",
        ),
        (_file(f"{COLLECTION}, on_delete: {{tombstone: {{set: {{_id: 1}}}}}}"), "immutable_id", 8, "{store:"),
        (_file(f"store: s, collection: c, references: {{_id: id}}, {CASCADE}"), "immutable_id", 8, "{store:"),
        (
            _file("store: s, collection: c, references: {_id: id}, on_delete: nullify, on_update: ignore"),
            "immutable_id",
            8,
            "{store:",
        ),
        (
            _file(
                "store: s, collection: c, references: {_id: id}, on_delete: {set_default: {_id: 1}}, on_update: ignore"
            ),
            "immutable_id",
            8,
            "{store:",
        ),
    ],
)
def test_fault_is_the_only_finding_and_stands_where_it_is(text: str, code: str, line: int, begins: str) -> None:
    findings = _findings(text)
    assert [(str(f.code), f.line) for f in findings] == [(code, line)], [str(finding) for finding in findings]
    assert text.splitlines()[line - 1][findings[0].column - 1 :].startswith(begins)


def test_composite_reference_names_every_key_field() -> None:
    head = HEAD.replace("{id: int64}", "{tenant: string, id: int64}")
    assert _codes(_file(f"{TABLE}, {CASCADE}", head=head)) == [FindingCode.MISSING_KEY_FIELD]


def test_document_that_is_referenced_by_its_own_id_may_be_deleted() -> None:
    assert _only(f"store: s, collection: c, references: {{_id: id}}, {CASCADE}, on_update: ignore").columns == ("_id",)


BAD_TABLES = [
    "a.b.c",
    "'a\"; drop table b; --'",
    "a;b",
    "''",
    ".a",
    "a.",
    "'a b '",
    '"a\\0b"',
    '"a\\nb"',
    "a" * 64,
    "ä" * 32,
]
SYSTEM_TABLES = ["pg_catalog.pg_class", "information_schema.tables", "pg_toast.x"]


@pytest.mark.parametrize("name", BAD_TABLES + SYSTEM_TABLES)
def test_table_name_that_cannot_be_one_table_is_refused(name: str) -> None:
    codes = _codes(_file(f"name: t, store: s, table: {name}, references: {{a: id}}, {CASCADE}"))
    assert codes == [FindingCode.EMPTY if name == "''" else FindingCode.BAD_TARGET]


@pytest.mark.parametrize("name", ["orders", "public.orders", "Shop.Order Lines", "bestellungen_ä", "a" * 63])
def test_table_name_is_kept_as_written(name: str) -> None:
    text = f"name: t, store: s, table: {name}, references: {{a: id}}, {CASCADE}"
    assert _only(text).target == Target(TargetKind.TABLE, name)


@pytest.mark.parametrize("name", ["a$b", "system.users", '"a\\0b"', ".a", "a.", "a..b", "'a '", "c" * 201])
def test_collection_name_that_mongodb_refuses_is_refused(name: str) -> None:
    codes = _codes(_file(f"name: t, store: s, collection: {name}, references: {{a: id}}, {CASCADE}"))
    assert codes == [FindingCode.BAD_TARGET]


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "'a\n'", "t" * 250])
def test_topic_name_that_kafka_refuses_is_refused(name: str) -> None:
    codes = _codes(_file(f"name: t, store: s, topic: {name}, references: {{a: id}}, {CASCADE}"))
    assert codes == [FindingCode.BAD_TOPIC]


@pytest.mark.parametrize("kind", ["collection", "topic"])
@pytest.mark.parametrize(
    "path", ["''", "a..b", ".a", "a.", "$where", "a.$b", "a.0.b", '"a\\0"', ".".join("a" * 33), "a" * 256]
)
def test_field_path_that_could_mean_something_else_is_refused(kind: str, path: str) -> None:
    codes = _codes(_file(f"store: s, {kind}: t, references: {{{path}: id}}, {CASCADE}"))
    assert codes == [FindingCode.BAD_COLUMN]


@pytest.mark.parametrize("name", ["'a\"b'", "a;b", "''", "orders.customer_id", "c" * 64, '"a\\tb"'])
def test_column_name_that_cannot_be_one_column_is_refused(name: str) -> None:
    codes = _codes(_file(f"store: s, table: t, references: {{{name}: id}}, {CASCADE}"))
    assert codes == [FindingCode.BAD_COLUMN]


LIST = "store: reviews_db, collection: reviews, references: {meta.customerIds: id}"


def test_list_of_keys_is_a_collections_only() -> None:
    assert _only(f"{LIST}, array: true, {CASCADE}").array
    assert _only(f"{LIST}, array: true, on_delete: nullify, on_update: {{set_default: {{meta.customerIds: 0}}}}").array
    assert not _only(f"{LIST}, array: false, {CASCADE}").array
    assert not _only(f"{LIST}, {CASCADE}").array
    for written in ("true", "false"):
        assert _codes(_file(f"{TABLE}, array: {written}, {CASCADE}")) == [FindingCode.BAD_ARRAY]
        assert _codes(_file(f"{TOPIC}, array: {written}, {CASCADE}")) == [FindingCode.NOT_SUPPORTED_YET]


@pytest.mark.parametrize(
    ("dependent", "said"),
    [
        (f"{LIST}, on_delete: {{tombstone: {{set: {{a: 1}}}}}}", "tombstone"),
        (f"{LIST}, where: {{meta.customerIds: 1}}, {CASCADE}", "where"),
        (f"{LIST}, where: {{meta.customerIds.kind: a}}, {CASCADE}", "where"),
        (f"{LIST}, where: {{meta: null}}, {CASCADE}", "where"),
        (f"{LIST}, as_of: created_at, {CASCADE}", "as_of"),
        (f"store: s, collection: c, references: {{_id.customers: id}}, on_update: ignore, {CASCADE}", "_id"),
    ],
)
def test_list_of_keys_that_could_not_be_enforced_is_refused(dependent: str, said: str) -> None:
    [finding] = _findings(_file(f"{dependent}, array: true"))
    assert finding.code == FindingCode.BAD_ARRAY
    assert said in finding.message
    assert finding.hint


def test_list_of_composite_keys_is_refused() -> None:
    head = HEAD.replace("{id: int64}", "{tenant: string, id: int64}")
    text = f"store: s, collection: c, references: {{tenants: tenant, ids: id}}, array: true, {CASCADE}"
    assert _codes(_file(text, head=head)) == [FindingCode.BAD_ARRAY]


@pytest.mark.parametrize("written", ["1", "'true'", "[true]", "null"])
def test_array_is_true_or_false(written: str) -> None:
    assert _codes(_file(f"{LIST}, array: {written}, {CASCADE}")) == [FindingCode.WRONG_TYPE]


def test_reference_fields_must_not_lie_in_each_other() -> None:
    head = HEAD.replace("{id: int64}", "{tenant: string, id: int64}")
    text = f"store: s, collection: c, references: {{o: tenant, o.id: id}}, {CASCADE}"
    assert _codes(_file(text, head=head)) == [FindingCode.OVERLAPPING_FIELDS]


DEFAULTS = [
    ("int32", "5", True),
    ("int32", "2147483648", False),
    ("int64", "2147483648", True),
    ("int64", "true", False),
    ("numeric", "5", True),
    ("numeric", "0.50", True),
    ("numeric", "'5'", False),
    ("string", "none", True),
    ("string", "'5'", True),
    ("string", "5", False),
    ("uuid", "00000000-0000-0000-0000-000000000000", True),
    ("uuid", "none", False),
    ("bool", "false", True),
    ("bool", "0", False),
    ("date", "'1970-01-01'", True),
    ("date", "'1970-02-30'", False),
    ("date", "0", False),
    ("timestamp", "'1970-01-01T00:00:00Z'", True),
    ("timestamp", "'1970-01-01'", False),
    ("timestamp", "0", False),
    ("bytes", "AAE=", True),
    ("bytes", "A", False),
    ("objectid", "'000000000000000000000000'", True),
    ("objectid", "zero", False),
]


@pytest.mark.parametrize(("kind", "literal", "fits"), DEFAULTS)
def test_default_is_exactly_of_its_key_type(kind: str, literal: str, fits: bool) -> None:
    head = HEAD.replace("int64", kind)
    text = f"{TABLE}, on_delete: {{set_default: {{customer_id: {literal}}}}}"
    if fits:
        rules = parse_rules({"a.yaml": _file(text, head=head)})
        # What was accepted here must pass the key gate when the rule is put to work.
        policy_of(rules.parents[0].dependents[0], rules.parents[0].events.key)
    else:
        assert _codes(_file(text, head=head)) == [FindingCode.LITERAL_TYPE]


OTHER_HEAD = HEAD.replace("customers", "others").replace("customer", "other")


def test_parent_is_unique_over_all_files() -> None:
    other = _file(f"store: s, table: t, references: {{a: id}}, {CASCADE}", head=HEAD.replace("customers", "others"))
    [finding] = _findings(VALID, other)
    assert (finding.code, finding.file, finding.line) == (FindingCode.DUPLICATE_PARENT, "b.yaml", 2)
    assert "a.yaml:2:9" in finding.message


def test_topic_feeds_one_parent() -> None:
    head = HEAD.replace("parent: customer", "parent: other")
    [finding] = _findings(VALID, _file(f"store: s, table: t, references: {{a: id}}, {CASCADE}", head=head))
    assert (finding.code, finding.file, finding.line) == (FindingCode.DUPLICATE_TOPIC, "b.yaml", 4)


def test_dependent_is_unique_in_its_file_but_not_over_all() -> None:
    assert _codes(_file(f"{TABLE}, {CASCADE}", f"store: s, table: orders, references: {{a: id}}, {CASCADE}")) == [
        FindingCode.DUPLICATE_DEPENDENT
    ]
    other = _file(f"store: s, table: orders, references: {{a: id}}, {CASCADE}", head=OTHER_HEAD)
    rules = parse_rules({"a.yaml": VALID, "b.yaml": other})
    assert {d.id for parent in rules.parents for d in parent.dependents} == {"customer.orders", "other.orders"}


@pytest.mark.parametrize("head", [HEAD, OTHER_HEAD])
def test_two_rules_on_one_column_set_are_refused(head: str) -> None:
    again = f"name: again, {TABLE}, on_delete: nullify, where: {{a: 1}}"
    if head is HEAD:
        assert _codes(_file(f"{TABLE}, {CASCADE}", again)) == [FindingCode.DUPLICATE_REFERENCE]
    else:
        assert _codes(VALID, _file(again, head=head)) == [FindingCode.DUPLICATE_REFERENCE]


def test_two_rules_on_different_columns_of_one_table_are_accepted() -> None:
    text = _file(
        f"{TABLE}, {CASCADE}", f"name: gifts, store: orders_db, table: orders, references: {{to_id: id}}, {CASCADE}"
    )
    assert len(parse_rules({"a.yaml": text}).parents[0].dependents) == 2


def test_rule_that_writes_to_its_own_source_is_a_cycle() -> None:
    text = _file(f"store: s, topic: shop.public.customers, references: {{a: id}}, {CASCADE}")
    assert _codes(text) == [FindingCode.CYCLE]


def test_rules_that_lead_back_over_another_parent_are_a_cycle() -> None:
    there = _file(f"store: s, topic: shop.public.others, references: {{a: id}}, {CASCADE}")
    back = _file(f"store: s, topic: shop.public.customers, references: {{a: id}}, {CASCADE}", head=OTHER_HEAD)
    onward = _file(f"{TABLE}, {CASCADE}", head=OTHER_HEAD)
    assert _codes(there, back) == [FindingCode.CYCLE, FindingCode.CYCLE]
    assert len(parse_rules({"a.yaml": there, "b.yaml": onward}).parents) == 2


def test_all_findings_come_in_the_order_of_files_and_lines() -> None:
    first = VALID.replace("debezium", "avro").replace("parent: customer", "parent: Customer").replace("cascade", "x")
    third = _file(f"store: s, table: t, references: {{a: id}}, {CASCADE}", head=OTHER_HEAD).replace(
        "version: 1", "version: 3"
    )
    found = [(finding.file, finding.line) for finding in _findings(first, "a: [", third)]
    assert found == [("a.yaml", 2), ("a.yaml", 5), ("a.yaml", 8), ("b.yaml", 2), ("c.yaml", 1)]


def test_wrong_key_type_does_not_hide_wrong_references() -> None:
    text = VALID.replace("int64", "int65").replace("customer_id: id", "customer_id: code")
    assert _codes(text) == [FindingCode.UNKNOWN_VALUE, FindingCode.UNKNOWN_KEY_FIELD]


def test_unknown_target_does_not_cause_false_findings() -> None:
    text = _file("store: s, references: {a.b: id}, on_delete: tombstone")
    assert _codes(text) == [FindingCode.ONE_OF_FIELDS]


def test_finding_reads_as_file_line_column_message() -> None:
    [finding] = _findings(VALID.replace("version: 1", "version: 2"))
    assert str(finding) == "a.yaml:1:10: version 2 is not known; this program reads version 1"


def test_no_file_is_a_finding() -> None:
    with pytest.raises(RulesError) as caught:
        parse_rules({})
    assert [finding.code for finding in caught.value.findings] == [FindingCode.NO_RULES]


def _hash(*files: str) -> str:
    return parse_rules({f"{n}.yaml": file for n, file in enumerate(files)}).hash


def test_hash_ignores_comments_layout_order_and_file_names() -> None:
    text = VALID.replace("{id: int64}", "{id: int64}  # the key").replace("version: 1", "version:   1")
    assert _hash(text) == _hash(VALID)
    assert _hash(VALID.replace("topic: shop.public.customers", "topics: [shop.public.customers]")) == _hash(VALID)
    assert _hash(VALID.replace("cascade", "cascade, on_update: {cascade: {}}")) == _hash(VALID)
    other = _file(f"store: s, table: t, references: {{a: id}}, {CASCADE}", head=OTHER_HEAD)
    assert _hash(VALID, other) == _hash(other, VALID)
    assert len(_hash(VALID)) == 12
    assert int(_hash(VALID), 16) >= 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cascade", "ignore"),
        ("cascade", "nullify"),
        ("cascade", "cascade, on_update: ignore"),
        ("cascade", "restrict"),
        ("cascade", "cascade, match: full"),
        ("cascade", "cascade, as_of: created_at"),
        ("cascade", "cascade, undo: 30d"),
        ("cascade", "cascade, where: {a: 1}"),
        ("cascade", "cascade, name: other"),
        ("int64", "int32"),
        ("table: orders", "table: public.orders"),
        ("table: orders", "topic: orders"),
        ("orders_db", "other_db"),
        ("customer_id: id", "customer: id"),
        ("shop.public.customers", "shop.customers"),
        ("{id: int64}", "{id: int64}\n  tombstones: ignore"),
        ("{id: int64}", "{id: int64}\n  truncate: delete_all"),
        ("{id: int64}", "{id: int64}\n  pair_by: transaction"),
    ],
)
def test_hash_changes_with_the_meaning(old: str, new: str) -> None:
    assert _hash(_head(old, new)) != _hash(VALID)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("where: {a: 1}", "where: {a: '1'}"),
        ("where: {a: 1}", "where: {a: true}"),
        ("where: {a: null}", "where: {a: 'null'}"),
        ("where: {a: [x]}", "where: {a: x}"),
    ],
)
def test_hash_tells_literals_of_different_types_apart(one: str, other: str) -> None:
    assert _hash(_file(f"{TABLE}, {CASCADE}, {one}")) != _hash(_file(f"{TABLE}, {CASCADE}, {other}"))


def test_hash_tells_a_list_of_keys_from_a_key() -> None:
    plain = _hash(_file(f"{LIST}, {CASCADE}"))
    assert _hash(_file(f"{LIST}, array: false, {CASCADE}")) == plain
    assert _hash(_file(f"{LIST}, array: true, {CASCADE}")) != plain


def test_hash_depends_on_which_column_is_the_marker() -> None:
    one = _file(f"{TABLE}, on_delete: {{tombstone: {{set: {{a: 1, b: 2}}}}}}")
    other = _file(f"{TABLE}, on_delete: {{tombstone: {{set: {{b: 2, a: 1}}}}}}")
    assert _hash(one) != _hash(other)


def test_rules_cannot_be_changed() -> None:
    dependent = _only(f"{TABLE}, on_delete: {{set_default: {{customer_id: 0}}}}, where: {{a: 1}}")
    assert isinstance(dependent.on_delete, SetDefault)
    for mapping in (dependent.references, dependent.where, dependent.on_delete.values):
        with pytest.raises(TypeError):
            mapping["x"] = "y"  # type: ignore[index]


def test_shipped_rules_are_valid_together() -> None:
    rules = parse_rules(SHIPPED)
    assert {parent.entity for parent in rules.parents} == {Path(name).stem for name in SHIPPED}
    shop: Parent = rules.by_entity["customer"]
    assert [(d.store, d.target.kind, d.target.name, d.columns) for d in shop.dependents] == [
        ("orders_db", TargetKind.TABLE, "public.orders", ("customer_id",)),
        ("reviews_db", TargetKind.COLLECTION, "reviews", ("customerId",)),
        ("carts", TargetKind.TOPIC, "carts", ("customer_id",)),
    ]


def _parse(files: dict[str, str | bytes]) -> RuleSet | None:
    try:
        return parse_rules(files)
    except RulesError as exc:
        assert exc.findings
        return None


@given(st.text())
def test_random_text_raises_nothing_but_rules_errors(text: str) -> None:
    _parse({"a.yaml": text})


_SNIPPETS = [
    "*x",
    "&x",
    "!t",
    "<<:",
    "?",
    "-",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "`",
    "~",
    "null",
    "yes",
    "012",
    "1.5",
    "---",
    "...",
    "$now",
    "\t",
    "\n",
    "\x00",
    "ä",
    "{}",
    "[]",
    "{a: b}",
    "restrict",
    "cascade",
    "tombstone",
    "nullify",
    "set_default",
    "max_rows:",
    "pattern:",
    "columns",
    "set",
    "id",
]


@given(st.sampled_from(sorted(SHIPPED)), st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_rules_raise_nothing_but_rules_errors(name: str, seed: int, mutations: int) -> None:
    chance = random.Random(seed)
    text = SHIPPED[name]
    for _ in range(mutations):
        start = chance.randrange(len(text) + 1)
        stop = min(len(text), start + chance.choice((0, 0, 1, 3, 12)))
        text = text[:start] + chance.choice(_SNIPPETS) + text[stop:]
    _parse({"a.yaml": text})


_NODES = st.recursive(
    st.sampled_from(
        ["", "null", "x", "id", "5", "1.5", "true", "'5'", "cascade", "tombstone", "$now", "no", "*x", "!t a"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(
            st.tuples(st.sampled_from(["columns", "set", "id", "nullify", "deleted", "header", "x"]), inner), max_size=3
        ).map(lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"),
    ),
    max_leaves=6,
)
_FIELDS = ["name", "store", "table", "collection", "topic", "references", "match", "where", "on_delete", "on_update"]


@given(st.dictionaries(st.sampled_from(_FIELDS), _NODES))
def test_any_value_in_any_field_of_a_dependent_raises_nothing_but_rules_errors(fields: dict[str, str]) -> None:
    base = {"store": "s", "table": "t", "references": "{a: id}", "on_delete": "cascade"}
    _parse({"a.yaml": _file(", ".join(f"{name}: {value}" for name, value in (base | fields).items()))})


_EVENTS = ["topic", "topics", "format", "key", "tombstones", "truncate", "types", "type_from", "new_key", "key_from"]


@given(st.dictionaries(st.sampled_from(_EVENTS), _NODES))
def test_any_value_in_any_field_of_events_raises_nothing_but_rules_errors(fields: dict[str, str]) -> None:
    base = {"topic": "t", "format": "debezium", "key": "{id: int64}"}
    events = ", ".join(f"{name}: {value}" for name, value in (base | fields).items())
    _parse({"a.yaml": _file(f"{TABLE}, {CASCADE}", head=f"version: 1\nparent: p\nevents: {{{events}}}\n")})


_LARGE = {
    "references": VALID.replace("{customer_id: id}", "{" + ", ".join(f"c{n}: f{n}" for n in range(60_000)) + "}"),
    "where": _file(f"{TABLE}, {CASCADE}, where: {{a: [{','.join(map(str, range(130_000)))}]}}"),
    "key": VALID.replace("{id: int64}", "{" + ", ".join(f"c{n}: x" for n in range(90_000)) + "}"),
    "fields": VALID + "".join(f"on_updat{n}: 1\n" for n in range(55_000)),
    "actions": HEAD + "dependents:\n" + "  - {on_delete: nulify}\n" * 40_000,
}


@pytest.mark.parametrize("name", _LARGE)
def test_file_of_a_mebibyte_is_judged_in_linear_time(name: str) -> None:
    start = time.process_time()
    _parse({"a.yaml": _LARGE[name]})
    # About a second; comparing every entry with every other would take minutes.
    assert time.process_time() - start < 20
