"""`integrity init --from-topic` over every captured topic: the block names the format that the connector was set to."""

from __future__ import annotations

import json
import re

import pytest

from integrity.core.decode.record import Record
from integrity.core.doctor import TopicLook
from integrity.core.propose import Proposal, as_yaml, propose
from integrity.core.rules.model import TenantFrom, TenantIn
from integrity.core.rules.parse import parse_rules
from tests.golden.records import EVENTS, load, of_topic
from tests.golden.test_constructed_cloudevents import Wrap, binary, structured, whole
from tests.golden.test_constructed_qlik import message
from tests.golden.test_constructed_qlik import record as qlik

CONNECTOR = "__debezium.context.connectorLogicalName"
NOW_MS = 2_000_000_000_000
FILES = sorted(path.stem for path in EVENTS.glob("*.jsonl"))
DEPENDENTS = """
dependents:
  - {{store: db, table: orders, references: {{{references}}}, on_delete: cascade}}
"""
FORMS = {
    "pg_flat": "debezium-flat",
    "pg27_flat": "debezium-flat",
    "my_flat": "debezium-flat",
    "mdb_flat": "debezium-flat",
    "kt": "json",
}
UNTELLABLE = {
    "pg27_flat_default",  # rows alone: that release sends no header, and drops deletions
    "pg_flat_tombstone_stringconv",  # rows as Struct{...}
    "pg_outbox_default", "pg_outbox_expand", "pg_outbox_string",  # no type anywhere
    "pg_key_struct_string",  # keys as Struct{...}
    *("my_env_minimal", "mks_bson", "mks_schema_fulldoc_infer"),  # too little; BSON; documents without their names
    "mks_fulldoc_dockey_false",  # keys are resume tokens
}  # fmt: skip


def proposals(file: str) -> list[Proposal]:
    """Of the topics of tables, and of domain events."""
    topics: dict[str, list] = {}  # type: ignore[type-arg]
    for record in load(file):
        topics.setdefault(record.topic, []).append(record)
    aside = ("message", "transaction", "nopk", "dbz_signal")
    return [
        propose(TopicLook(topic, 1, {}, records), NOW_MS)
        for topic, records in topics.items()
        if not topic.endswith(aside) and "heartbeat" not in topic and topic != file
    ]


def expected(file: str) -> str:
    if "outbox" in file:
        return "outbox"
    if "cloudevents" in file:
        return "cloudevents"
    if file in ("pg_route_flat", "pg_insertfield_flat", "pg_key_bare_string", "pg_changed_headers"):
        return "debezium-flat"
    if file.startswith("mks"):
        return "mongodb"
    return next((form for start, form in FORMS.items() if file.startswith(start)), "debezium")


@pytest.mark.parametrize("file", [each for each in FILES if each not in UNTELLABLE])
def test_block_names_the_format_and_can_be_loaded(file: str) -> None:
    found = proposals(file)
    assert found
    for proposal in found:
        assert proposal.events is not None, proposal
        assert proposal.events["format"] == expected(file), proposal
        key = proposal.events["key"]
        assert isinstance(key, dict)
        references = ", ".join(f"parent_{name}: {name}" for name in key)
        text = f"version: 1\nparent: p\n{as_yaml(proposal)}{DEPENDENTS.format(references=references)}"
        [parent] = parse_rules({"a.yaml": text}).parents
        assert parent.events is not None and parent.events.topics == (proposal.topic,)


@pytest.mark.parametrize(
    ("file", "topic", "key"),
    [
        ("pg_env", "public.customers", {"id": "int64"}),
        ("pg_env", "public.uuids", {"id": "uuid"}),
        ("pg_env_schemas", "public.composite", {"tenant": "int32", "code": "string"}),
        ("pg_env_schemas", "public.numkeys", {"id": "numeric"}),
        ("pg_keychange_schemas", "public.kc_comp", {"tenant": "string", "id": "int64", "at": "timestamp"}),
        ("my_env_schemas", "shop.tskeys", {"id": "timestamp"}),
        ("pg_route", "customers_all", {"id": "int64"}),  # without the field that the router adds
        ("pg_key_long", "public.customers", {"id": "int64"}),
        ("mks_default", "shop.outbox", {"_id": "objectid"}),
        ("mdb_env_schemas", "shop.customers", {"_id": "objectid"}),
    ],
)
def test_key_has_the_fields_and_types_of_the_record_keys(file: str, topic: str, key: dict[str, str]) -> None:
    [found] = [each for each in proposals(file) if each.topic == f"{file}.{topic}"]
    assert found.events is not None and found.events["key"] == key


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("pg_flat_drop", "deletions_dropped"),
        ("pg_flat_tombstone", "deletions_unplaced"),
        ("pg_flat_plain_default", "kafka_position_only"),
        ("pg_strict", "replica_identity"),
        ("pg_strict", "no_truncates"),
        ("pg_env_strings", "types_guessed"),
        ("pg_outbox_default", "no_type"),
        ("pg_key_struct_string", "no_keys"),
        ("pg_flat_tombstone_stringconv", "not_json"),
        ("mdb_outbox", "kafka_position_only"),
        ("mks_fulldoc_default", "undecodable_events"),
        ("mks_fulldoc_default", "no_deletions"),
        ("pg_flat_drop", "no_deletions"),
        ("mks_fulldoc_dockey_false", "no_keys"),
    ],
)
def test_what_the_source_can_not_tell_is_said(file: str, code: str) -> None:
    assert code in {remark.code for proposal in proposals(file) for remark in proposal.remarks}


@pytest.mark.parametrize("file", ["pg_outbox_header", "pg_outbox_envelope", "mdb_outbox"])
def test_types_of_domain_events_are_sorted_by_their_names(file: str) -> None:
    [found] = proposals(file)
    assert found.events is not None
    assert found.events["types"] == {"deleted": ["CustomerDeleted"], "upserted": ["CustomerEmailChanged"]}
    assert found.events.get("type_from") == ({"field": "eventType"} if file == "pg_outbox_envelope" else None)


def test_keys_as_long_or_bare_text_say_how_they_are_written() -> None:
    forms = {
        each.topic: each.events.get("key_format")
        for file in ("pg_key_long", "pg_key_bare_string", "kt_compacted")
        for each in proposals(file)
        if each.events is not None
    }
    assert forms == {
        "pg_key_long.public.customers": "long",
        "pg_key_bare_string.public.customers": None,
        "pg_key_bare_string.public.textkeys": "string",
        "pg_key_bare_string.public.uuids": "string",
        "kt.customers": None,
        "kt.customers-store-changelog": "long",
    }


def test_types_of_cloudevents_are_found_and_change_events_have_none() -> None:
    events = [
        Record(
            "t", 0, n, 1, b"7", json.dumps({"specversion": "1.0", "type": type_, "id": "1", "source": "/"}).encode(), ()
        )
        for n, type_ in enumerate(["CustomerDeleted", "CustomerCreated", "CustomerDeleted"])
    ]
    found = propose(TopicLook("t", 1, {}, events), NOW_MS).events
    assert found is not None
    assert found["types"] == {"deleted": ["CustomerDeleted"], "upserted": ["CustomerCreated"]}
    assert all("types" not in (each.events or {}) for each in proposals("pg_cloudevents"))


def change_events(*wrapped: Record) -> Proposal:
    return propose(TopicLook("t", 1, {"cleanup.policy": "compact"}, wrapped), NOW_MS)


@pytest.mark.parametrize("wrap", [structured, binary, whole])
def test_what_cloudevents_wrap_is_looked_at(wrap: Wrap) -> None:
    rows = change_events(*[wrap(each) for each in of_topic("pg_strict", "public.strict")])
    assert rows.events is not None and (rows.events["format"], "types" in rows.events) == ("cloudevents", False)
    assert {"replica_identity", "no_truncates"} <= {each.code for each in rows.remarks}
    documents = change_events(*[wrap(each) for each in of_topic("mdb_env_deltas", "shop.customers")])
    assert documents.events is not None and documents.events["key"] == {"_id": "string"}, "most are"
    assert "no_tombstones" in {each.code for each in documents.remarks}


def test_what_messages_of_qlik_do_not_tell_is_said() -> None:
    update, deletion = (qlik(message(*each)) for each in (("UPDATE", {"id": 7}), ("DELETE", {"id": 7})))
    found = change_events(update, update, deletion)
    assert found.events is not None and found.events["format"] == "qlik"
    assert {each.code for each in found.remarks} == {"types_guessed", "key_changes_untold", "no_tombstones"}
    assert "no_deletions" in {each.code for each in change_events(update, update).remarks}
    whole_rows = qlik(message("UPDATE", {"id": 7}, {"id": 7}))
    told = change_events(whole_rows, deletion, qlik(None)).remarks
    assert {each.code for each in told} == {"types_guessed"}


def test_the_key_of_flattened_documents_is_named_as_the_rule_names_it() -> None:
    found = [each for each in proposals("mdb_flat_rewrite") if each.events is not None]
    assert [list(each.events["key"]) for each in found if each.events is not None] == [["_id"]] * len(found)  # type: ignore[call-overload]
    assert found


def test_connectors_that_write_to_one_topic_are_told_apart_as_tenants() -> None:
    one = of_topic("pg_env", "public.customers")
    other = [
        each._replace(headers=tuple((name, b"globex" if name == CONNECTOR else text) for name, text in each.headers))
        for each in one
    ]
    found = propose(TopicLook("t", 1, {}, [*one, *other]), NOW_MS)
    assert found.events is not None and found.events["tenant"] == {"header": CONNECTOR}
    assert "several_connectors" in {each.code for each in found.remarks}
    references = DEPENDENTS.format(references="parent_id: id")
    [parent] = parse_rules({"a.yaml": f"version: 1\nparent: p\n{as_yaml(found)}{references}"}).parents
    assert parent.events is not None and parent.events.tenant == TenantFrom(TenantIn.HEADER, CONNECTOR)
    alone = propose(TopicLook("t", 1, {}, other), NOW_MS)
    assert alone.events is not None and "tenant" not in alone.events
    told = of_topic("pg_env", "public.composite")  # its key holds a tenant
    both = [*told, *(each._replace(headers=((CONNECTOR, b"globex"),)) for each in told)]
    keyed = propose(TopicLook("t", 1, {}, both), NOW_MS)
    assert keyed.events is not None and "tenant" not in keyed.events


@pytest.mark.parametrize("file", ["pg_flat_rewrite", "my_flat_rewrite"])
def test_another_prefix_of_added_fields_is_found(file: str) -> None:
    table = "shop" if file.startswith("my") else "public"
    records = [
        each._replace(
            value=None if each.value is None else re.sub(rb'"__(?!deleted)', b'"meta_', each.value), headers=()
        )
        for each in of_topic(file, f"{table}.customers")
    ]
    found = propose(TopicLook("t", 1, {}, records), NOW_MS)
    assert found.events is not None
    assert (found.events["format"], found.events["prefix"]) == ("debezium-flat", "meta_")
    assert "kafka_position_only" not in {each.code for each in found.remarks}
    text = f"version: 1\nparent: p\n{as_yaml(found)}{DEPENDENTS.format(references='parent_id: id')}"
    assert parse_rules({"a.yaml": text}).parents[0].events.prefix == "meta_"  # type: ignore[union-attr]
