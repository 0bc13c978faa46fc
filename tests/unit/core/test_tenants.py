"""Whose an event is (`events.tenant`): the rule, what decoding makes of it, and where rules and stores meet."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Ignored, Record, Undecodable
from integrity.core.rules.model import Events, RuleSet, TenantFrom, TenantIn
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.schema import rules_schema
from integrity.core.tenants import tenant_faults
from integrity.errors import Reason, RulesError

FILE = """\
version: 1
parent: customer
events:
  topic: customers
  format: %s
  key: %s
  %s
dependents:
  - {store: db, table: orders, references: %s, on_delete: cascade}
"""
ID, WITH_TENANT = "{id: int64}", "{tenant: string, id: int64}"
OUTBOX = "outbox\n  types: {deleted: [D], key_changed: [K], upserted: [U]}\n  new_key: {id: to}"
SCHEMA = rules_schema()


def file(tenant: str, key: str = ID, form: str = "debezium") -> str:
    names = yaml.safe_load(key)
    return FILE % (form, key, tenant, json.dumps({f"of_{name}": name for name in names}))


def rules(tenant: str, key: str = ID, form: str = "debezium") -> RuleSet:
    text = file(tenant, key, form)
    jsonschema.validate(yaml.safe_load(text), SCHEMA)
    return parse_rules({"a.yaml": text})


def events(tenant: str, key: str = ID, form: str = "debezium") -> Events:
    found = rules(tenant, key, form).parents[0].events
    assert found is not None
    return found


def findings(text: str) -> list[tuple[str, int, int]]:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": text})
    return [(finding.code, finding.line, finding.column) for finding in caught.value.findings]


@pytest.mark.parametrize(
    ("tenant", "key", "told", "field"),
    [
        ("{header: X}", ID, TenantFrom(TenantIn.HEADER, "X"), None),
        ("{header: X}", WITH_TENANT, TenantFrom(TenantIn.HEADER, "X"), "tenant"),
        ("{field: client_id}", WITH_TENANT, TenantFrom(TenantIn.FIELD, "client_id"), "tenant"),
        ("{field: tenant}", "{tenant: int64, id: int64}", TenantFrom(TenantIn.FIELD, "tenant"), "tenant"),
        ("{key: id}", ID, TenantFrom(TenantIn.KEY, "id"), "id"),
        ("{key: client}", "{client: uuid, tenant: bool}", TenantFrom(TenantIn.KEY, "client"), "client"),
    ],
)
def test_rule_says_what_tells_the_tenant(tenant: str, key: str, told: TenantFrom, field: str | None) -> None:
    found = events(f"tenant: {tenant}", key)
    assert (found.tenant, found.tenant_field, found.gives_tenant) == (told, field, True)


@pytest.mark.parametrize(
    ("tenant", "key", "form", "code", "column"),
    [
        ("tenant: x", ID, "debezium", "wrong_type", 11),
        ("tenant: {}", ID, "debezium", "empty", 11),
        ("tenant: {heder: X}", ID, "debezium", "unknown_field", 12),
        ("tenant: {header: X, field: z}", ID, "debezium", "one_of_fields", 11),
        ('tenant: {header: ""}', ID, "debezium", "empty", 20),
        ("tenant: {header: 7}", ID, "debezium", "wrong_type", 20),
        ('tenant: {header: "a\\nb"}', ID, "debezium", "bad_name", 20),
        ("tenant: {key: client}", ID, "debezium", "unknown_key_field", 11),
        ("tenant: {key: at}", "{at: date, id: int64}", "debezium", "bad_tenant", 11),
        ("tenant: {header: X}", "{tenant: int64, id: int64}", "debezium", "bad_tenant", 11),
        ("tenant: {header: X}", "{tenant: string}", "debezium", "bad_tenant", 11),
        ("tenant: {field: id}", ID, "debezium", "bad_tenant", 11),
        ("tenant: {field: client_id}", ID, "integrity", "format_field", 3),
        ("tenant: {header: X}", ID, "integrity", "format_field", 3),
        ("truncate: delete_all\n  tenant: {header: X}", ID, "debezium", "bad_tenant", 3),
    ],
)
def test_tenant_that_can_not_be_told_is_refused_at_its_place(
    tenant: str, key: str, form: str, code: str, column: int
) -> None:
    assert findings(file(tenant, key, form)) == [(code, 7, column)]


def test_one_thing_tells_the_tenant() -> None:
    text = file("tenant: {header: X}").replace("topic: customers", r"pattern: '(?P<tenant>.*)\.c'")
    assert findings(text) == [("bad_tenant", 7, 3)]


def test_truncate_of_one_tenants_topic_would_be_one_of_all() -> None:
    text = file("truncate: delete_all").replace("topic: customers", r"pattern: '(?P<tenant>.*)\.c'")
    assert findings(text) == [("bad_tenant", 7, 3)]


def test_what_tells_the_tenant_is_part_of_what_the_rules_mean() -> None:
    hashes = {rules(t).hash for t in ("tenant: {header: a}", "tenant: {field: a}", "tenant: {header: b}", "epoch: 0")}
    assert len(hashes) == 4


# --- decoding ----------------------------------------------------------------------------------------------------


def record(
    value: object, headers: tuple[tuple[str, bytes | None], ...] = (), key: object = None, partition: int = 0
) -> Record:
    text = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Record("customers", partition, 7, 1000, json.dumps(key or {"id": 5}).encode(), text, headers)


def envelope(
    op: str, before: object = None, after: object = None, connector: str = "postgresql", **more: object
) -> dict[str, object]:
    source: dict[str, object] = {"connector": connector, "lsn": 9, "file": "b.000001", "pos": 4, "row": 0}
    source |= {"ts_ms": 1000, "ord": 1, "db": "shop"}
    return {"before": before, "after": after, "op": op, "source": source, **more}


def with_schema(value: object, *fields: object) -> dict[str, object]:
    row = {"type": "struct", "optional": True, "field": "before", "fields": [*fields]}
    return {"schema": {"type": "struct", "fields": [row]}, "payload": value}


def told(said: Decoded) -> object:
    match said:
        case ParentChange():
            return said.op, said.key, said.to, said.tenant
        case Undecodable():
            return said.reason
        case Ignored():
            return said.op
        case _:
            raise AssertionError(said)


UNKNOWN = Reason.UNKNOWN_TENANT
D = envelope("d", {"id": 5})
MOVE = ("__debezium.newkey", b'{"id":6}')


@pytest.mark.parametrize(
    ("key", "headers", "expected"),
    [
        (ID, [("X", b"acme")], (Op.DELETED, (5,), None, "acme")),
        (WITH_TENANT, [("X", b"acme")], (Op.DELETED, ("acme", 5), None, "acme")),
        ("{id: int64, tenant: string}", [MOVE, ("X", b"a")], (Op.MOVED, (5, "a"), (6, "a"), "a")),
        (ID, [("X", b'"acme"')], (Op.DELETED, (5,), None, "acme")),
        (ID, [("X", b'{"schema":{"type":"string"},"payload":"acme"}')], (Op.DELETED, (5,), None, "acme")),
        (ID, [("X", b"a"), ("Y", b"b"), ("X", b"a")], (Op.DELETED, (5,), None, "a")),
        (ID, [("X", b"a"), ("X", b"b")], UNKNOWN),
        (ID, [("x", b"a")], UNKNOWN),
        (ID, [("X", None)], UNKNOWN),
        (ID, [("X", b"a"), ("X", None)], UNKNOWN),
        (ID, [("X", b"\0\0\0\0\7\2a")], UNKNOWN),
        (ID, [("X", b"")], UNKNOWN),
        (ID, [("X", b"\xff")], UNKNOWN),
        (ID, [("X", b'{"a":1}')], UNKNOWN),
        (ID, [("X", b"7" * 5000)], UNKNOWN),
        ("{tenant: uuid, id: int64}", [("X", b"acme")], UNKNOWN),
    ],
)
def test_header_tells_the_tenant_or_the_deletion_is_a_dead_letter(
    key: str, headers: list[tuple[str, bytes | None]], expected: object
) -> None:
    decode = decoder_for(rules("tenant: {header: X}", key).parents[0])
    assert told(decode(record(D, tuple(headers)))) == expected


def test_header_that_was_read_before_is_no_less_in_doubt_beside_another() -> None:
    decode = decoder_for(rules("tenant: {header: X}").parents[0])
    a, b = ("X", b"a"), ("X", b"b")
    said = [told(decode(record(D, headers))) for headers in ((a,), (b,), (a, b), (b, a), (a,))]
    assert said == [(Op.DELETED, (5,), None, each) if each else UNKNOWN for each in ("a", "b", "", "", "a")]


def test_header_tells_the_tenant_of_a_null_record() -> None:
    decode = decoder_for(rules("tenant: {header: X}").parents[0])
    assert told(decode(record(None, (("X", b"acme"),)))) == (Op.GONE, (5,), None, "acme")
    assert told(decode(record(None))) == UNKNOWN


def test_null_record_after_a_deletion_of_nobody_is_none_of_its_own() -> None:
    decode = decoder_for(rules("tenant: {header: X}").parents[0])
    for value, repeated in ((D, True), (None, False)):
        said = decode(record(value))
        assert isinstance(said, Undecodable) and said.repeated is repeated


@pytest.mark.parametrize("headers", [(), (("__debezium.oldkey", b'{"id":4}'),)])
def test_parent_of_nobody_that_lives_changes_nothing_but_is_missed_by_a_copy(
    headers: tuple[tuple[str, bytes], ...],
) -> None:
    parent = rules("tenant: {header: X}").parents[0]
    created = record(envelope("c", None, {"id": 5, "name": "n"}), headers)
    assert told(decoder_for(parent)(created)) == "tenant"
    assert told(decoder_for(parent, copied=("name",))(created)) == UNKNOWN


@pytest.mark.parametrize(
    ("key", "value", "headers", "expected"),
    [
        ({"client": "acme", "id": 5}, D, (), (Op.DELETED, ("acme", 5), None, "acme")),
        ({"client": "acme", "id": 5}, None, (), (Op.GONE, ("acme", 5), None, "acme")),
        ({"client": "", "id": 5}, D, (), UNKNOWN),
        (
            {"client": "a", "id": 5},
            D,
            (("__debezium.newkey", b'{"client":"a","id":6}'),),
            (Op.MOVED, ("a", 5), ("a", 6), "a"),
        ),
        ({"client": "a", "id": 5}, D, (("__debezium.newkey", b'{"client":"b","id":5}'),), UNKNOWN),
    ],
)
def test_field_of_the_key_is_the_tenant_and_a_key_change_keeps_it(
    key: object, value: object, headers: tuple[tuple[str, bytes], ...], expected: object
) -> None:
    decode = decoder_for(rules("tenant: {key: client}", "{client: string, id: int64}").parents[0])
    assert told(decode(record(value, headers, key))) == expected


NULLABLE = {"field": "client_id", "type": "string", "optional": True}
NOT_NULL = {"field": "client_id", "type": "string", "optional": False}
OTHER = {"field": "note", "type": "string", "optional": True}
ROW = {"id": 5, "client_id": "acme"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (envelope("c", None, ROW), (Op.ALIVE, "acme")),
        (envelope("c", None, {"id": 5, "client_id": 42}), None),
        (envelope("c", None, {"id": 5}), None),
        (envelope("d", ROW, None, "mysql"), (Op.DELETED, "acme")),
        (envelope("d", ROW, None, "mariadb"), (Op.DELETED, "acme")),
        (envelope("d", {"id": 5, "client_id": 4.5}, None, "mysql"), UNKNOWN),
        (envelope("d", {"id": 5, "client_id": True}, None, "mysql"), UNKNOWN),
        (envelope("d", {"id": 5, "client_id": ["a"]}, None, "mysql"), UNKNOWN),
        (envelope("d", {"id": 5, "client_id": ""}, None, "mysql"), UNKNOWN),
        (envelope("d", {"id": 5, "client_id": None}, None, "mysql"), UNKNOWN),
        (envelope("d", {"id": 5, "client_id": "__debezium_unavailable_value"}, None, "mysql"), UNKNOWN),
        (envelope("d", ROW, None, "informix"), UNKNOWN),
        # PostgreSQL: a row before may be made up, unless something in it can't be.
        (envelope("d", ROW), UNKNOWN),
        (with_schema(envelope("d", ROW), NULLABLE), (Op.DELETED, "acme")),
        (with_schema(envelope("d", ROW), NOT_NULL), UNKNOWN),
        (with_schema(envelope("d", ROW), {**NULLABLE, "default": "acme"}), UNKNOWN),
        (with_schema(envelope("d", ROW | {"note": "n"}), NOT_NULL, OTHER), (Op.DELETED, "acme")),
        (with_schema(envelope("d", ROW | {"note": None}), NOT_NULL, OTHER), UNKNOWN),
        # InsertField puts it around the rows.
        (envelope("d", {"id": 5}, client_id="acme"), (Op.DELETED, "acme")),
        (envelope("d", ROW, client_id=None), UNKNOWN),
        (b'{"op":"d","before":{"id":5,"client_id":"a","client_id":"b"},"source":{"connector":"mysql","ts_ms":1,'
         b'"file":"b.000001","pos":4,"row":0}}', UNKNOWN),
        (None, UNKNOWN),
    ],
)  # fmt: skip
def test_field_of_the_row_tells_the_tenant_where_the_row_is_whole(value: object, expected: object) -> None:
    said = decoder_for(rules("tenant: {field: client_id}", WITH_TENANT).parents[0])(record(value))
    match said:
        case ParentChange():
            assert said.key == (said.tenant, 5)
            assert (said.op, said.tenant) == expected
        case Ignored():
            assert (said.op, expected) == ("tenant", None)
        case _:
            assert told(said) == expected


def test_document_before_is_the_servers_own() -> None:
    decode = decoder_for(rules("tenant: {field: client_id}", "{_id: int64}").parents[0])
    for before, expected in (('{"_id":5,"client_id":"a"}', (Op.DELETED, (5,), None, "a")), (None, UNKNOWN)):
        value = envelope("d", before, None, "mongodb")
        assert told(decode(record(value, (), {"id": "5"}))) == expected


FLAT = "debezium-flat"
DELETED_ROW = {**ROW, "__deleted": "true", "__lsn": 9, "__op": "d"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**ROW, "__deleted": "false", "__lsn": 9}, (Op.ALIVE, (5,), None, "acme")),
        (DELETED_ROW, UNKNOWN),
        (b"null", UNKNOWN),
        (
            {"schema": {"type": "struct", "fields": [NULLABLE]}, "payload": DELETED_ROW},
            (Op.DELETED, (5,), None, "acme"),
        ),
        ({"schema": {"type": "struct", "fields": [NOT_NULL]}, "payload": DELETED_ROW}, UNKNOWN),
        ({**ROW, "__deleted": "false", "__lsn": 9, "gone": True}, (Op.DELETED, (5,), None, "acme")),
        ({**ROW, "__lsn": 9, "gone": True}, UNKNOWN),
    ],
)
def test_field_of_a_flattened_row_tells_the_tenant_where_it_is_not_made_up(value: object, expected: object) -> None:
    text = 'deleted_when: "has(after.gone)"\n  tenant: {field: client_id}'
    assert told(decoder_for(rules(text, ID, FLAT).parents[0])(record(value))) == expected


@pytest.mark.parametrize(
    ("form", "value", "headers", "expected"),
    [
        (OUTBOX, {"client": "a"}, [("eventType", b"D")], (Op.DELETED, (5,), None, "a")),
        (OUTBOX, {"client": "a", "to": 6}, [("eventType", b"K")], (Op.MOVED, (5,), (6,), "a")),
        (OUTBOX, {}, [("eventType", b"D")], UNKNOWN),
        (OUTBOX, {}, [("eventType", b"U")], "tenant"),
        ("json", {"client": 7}, [], (Op.ALIVE, (5,), None, "7")),
        ("json", None, [], UNKNOWN),
    ],
)
def test_field_of_the_payload_or_object_tells_the_tenant(
    form: str, value: object, headers: list[tuple[str, bytes]], expected: object
) -> None:
    decode = decoder_for(rules("tenant: {field: client}", ID, form).parents[0])
    assert told(decode(record(value, tuple(headers)))) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"_id": 5, "client": "a"}, (Op.ALIVE, (5,), None, "a")),
        ({"_id": 5, "client": {"$oid": "0" * 24}}, "tenant"),
        (None, UNKNOWN),
    ],
)
def test_field_of_a_document_tells_the_tenant(value: object, expected: object) -> None:
    decode = decoder_for(rules("tenant: {field: client}", "{_id: int64}", "mongodb").parents[0])
    for written in (value, json.dumps(value) if value else None):
        assert told(decode(record(written, (), {"_id": 5}))) == expected


def cloud(type_: str, data: object, **more: object) -> dict[str, object]:
    return {"specversion": "1.0", "id": "1", "source": "/s", "type": type_, "data": data, **more}


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("cloudevents\n  types: {deleted: [D]}", cloud("D", {"client": "a"}), (Op.DELETED, (5,), None, "a")),
        ("cloudevents\n  types: {deleted: [D]}", cloud("D", {}), UNKNOWN),
        (
            "cloudevents",
            cloud("x", envelope("d", {"id": 5, "client": "a"}, None, "mysql")),
            (Op.DELETED, (5,), None, "a"),
        ),
        ("cloudevents", cloud("x", envelope("d", {"id": 5, "client": "a"})), UNKNOWN),
        ("cloudevents", cloud("x", envelope("c", None, {"id": 5, "client": "a"})), (Op.ALIVE, (5,), None, "a")),
    ],
)
def test_field_of_what_a_cloudevent_wraps_tells_the_tenant(form: str, value: object, expected: object) -> None:
    decode = decoder_for(rules("tenant: {field: client}", ID, form).parents[0])
    headers = (("content-type", b"application/cloudevents+json"),)
    assert told(decode(record(value, headers))) == expected


def qlik(operation: str, data: object, before: object = None) -> dict[str, object]:
    headers = {"operation": operation, "changeSequence": "20230911032325000000000000000000005"}
    return {"magic": "atMSG", "type": "DT", "message": {"data": data, "beforeData": before, "headers": headers}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (qlik("DELETE", ROW), (Op.DELETED, (5,), None, "acme")),
        (qlik("DELETE", None, ROW), (Op.DELETED, (5,), None, "acme")),
        (qlik("INSERT", ROW), (Op.ALIVE, (5,), None, "acme")),
        (qlik("UPDATE", {**ROW, "id": 6}, ROW), (Op.MOVED, (5,), (6,), "acme")),
        (qlik("UPDATE", {**ROW, "id": 6}, {"id": 5}), (Op.MOVED, (5,), (6,), "acme")),
        # One message is both ends of a key change.
        (qlik("UPDATE", {**ROW, "id": 6}, {**ROW, "client_id": "globex"}), UNKNOWN),
        (qlik("UPDATE", {**ROW, "id": 6}, {**ROW, "client_id": None}), UNKNOWN),
        (qlik("UPDATE", {"id": 6}, ROW), UNKNOWN),
        # A column that the source does not log is null.
        (qlik("DELETE", {**ROW, "client_id": None}), UNKNOWN),
        (qlik("DELETE", None), UNKNOWN),
        (qlik("INSERT", {"id": 5}), "tenant"),
        (None, UNKNOWN),
    ],
)
def test_field_of_a_message_of_qlik_tells_the_tenant(value: object, expected: object) -> None:
    decode = decoder_for(rules("tenant: {field: client_id}", ID, "qlik").parents[0])
    for written in (value, value["message"]) if isinstance(value, dict) else (value,):
        assert told(decode(record(written))) == expected


# --- where rules and stores meet -----------------------------------------------------------------------------------

GRAPH = (
    file("tenant: {header: X}").replace("on_delete", "entity: order, key: {id: int64}, on_delete")
    + "  - {store: other, collection: notes, references: {c: id}, on_delete: cascade}\n"
    + "copies:\n  - {store: third, table: copy, columns: {id: id}}\n"
)
ORDER = """\
version: 1
parent: order
dependents:
  - {store: db, table: lines, references: {order_id: id}, on_delete: cascade}
  - {store: other, collection: parcels, references: {order_id: id}, on_delete: cascade}
"""
OWN_EVENTS = ORDER.replace(
    "dependents:", "events: {topic: orders, format: debezium, key: {id: int64}, tenant: {header: X}}\ndependents:"
)


@pytest.mark.parametrize(
    ("files", "apart", "expected"),
    [
        ((file("epoch: 0"),), set(), []),
        ((file("epoch: 0"),), {"db"}, [("no_tenant", "0.yaml", 9)]),
        ((file("tenant: {header: X}"),), {"db"}, []),
        ((file("tenant: {header: X}"),), set(), [("shared_store", "0.yaml", 9)]),
        ((file("tenant: {header: X}", WITH_TENANT),), set(), []),
        ((file("tenant: {header: X}", WITH_TENANT),), {"db"}, []),
        ((file("tenant: {key: id}"),), set(), []),
        (
            (GRAPH, ORDER),
            {"db"},
            [("shared_store", "0.yaml", 10), ("shared_store", "0.yaml", 12), ("derived_tenant", "1.yaml", 5)],
        ),
        ((GRAPH, ORDER), {"db", "other", "third"}, [("tenant_copy", "0.yaml", 12), ("derived_tenant", "1.yaml", 5)]),
        ((GRAPH, OWN_EVENTS), {"db", "other", "third"}, [("tenant_copy", "0.yaml", 12)]),
        ((GRAPH, OWN_EVENTS), {"db", "other"}, [("shared_store", "0.yaml", 12)]),
    ],
)
def test_rules_and_stores_of_tenants_have_to_fit(
    files: tuple[str, ...], apart: set[str], expected: list[tuple[str, str, int]]
) -> None:
    found = tenant_faults(parse_rules({f"{n}.yaml": text for n, text in enumerate(files)}), apart)
    assert [(finding.code, finding.file, finding.line) for finding in found] == expected
    assert all(finding.hint for finding in found)
