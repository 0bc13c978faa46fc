"""The wire format of a schema registry, in all its places: before the value, in headers, in some parts only."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.avro import SchemaFault
from integrity.core.decode.record import Decoded, Headers, Ignored, Record, Undecodable
from integrity.core.decode.wire import references, unwrapped, wire_schema
from integrity.core.keys import KeyType
from integrity.core.rules.model import KeyFormat
from integrity.core.rules.parse import parse_rules
from integrity.errors import Reason
from tests.golden.records import rule
from tests.wire import written

KEY = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}
SOURCE = {
    "type": "record",
    "name": "Source",
    "fields": [{"name": "connector", "type": "string"}, {"name": "lsn", "type": ["null", "long"]}],
}
ROW = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "string"}]}
VALUE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW]},
        {"name": "after", "type": ["null", "Row"]},
        {"name": "source", "type": SOURCE},
        {"name": "op", "type": "string"},
    ],
}
GUID = UUID("01234567-89ab-cdef-0123-456789abcdef")
SCHEMAS = {
    1: wire_schema("AVRO", json.dumps(KEY), ()),
    2: wire_schema("AVRO", json.dumps(VALUE), ()),
    str(GUID): wire_schema("AVRO", json.dumps(VALUE), ()),
    3: wire_schema("JSON", json.dumps({"type": "object", "properties": {"id": {"type": "integer"}}}), ()),
    4: SchemaFault("the schema registry does not know it"),
}
DECODE = decoder_for(rule(id=KeyType.INT64), schemas=SCHEMAS)


def envelope(op: str = "d", lsn: int = 7) -> bytes:
    row = {"id": 5, "name": "x"}
    source = {"connector": "postgresql", "lsn": lsn}
    return written(VALUE, {"before": row, "after": None, "source": source, "op": op})


def prefixed(ref: int | UUID, data: bytes) -> bytes:
    return (b"\1" + ref.bytes if isinstance(ref, UUID) else b"\0" + ref.to_bytes(4, "big")) + data


def said(key: bytes | None, value: bytes | None, headers: Headers = ()) -> Decoded:
    return DECODE(Record("customers", 0, 3, 1000, key, value, headers))


FIVE = written(KEY, {"id": 5})


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (prefixed(1, FIVE), prefixed(2, envelope()), ()),
        (prefixed(1, FIVE), prefixed(GUID, envelope()), ()),
        (b'{"id":5}', prefixed(2, envelope()), ()),
        (prefixed(3, b'{"id":5}'), prefixed(2, envelope()), ()),
        (FIVE, envelope(), [("__key_schema_id", prefixed(1, b"")), ("__value_schema_id", prefixed(GUID, b""))]),
        (prefixed(1, FIVE), envelope(), [("__value_schema_id", prefixed(2, b""))]),
    ],
    ids=["ids", "guid", "key as JSON", "key with a JSON Schema", "headers", "mixed"],
)
def test_an_id_is_found_wherever_serializers_put_it(key: bytes, value: bytes, headers: Headers) -> None:
    change = said(key, value, headers)
    assert isinstance(change, ParentChange)
    assert (change.op, change.key, change.version and change.version.position) == (Op.DELETED, (5,), (7,))


def test_a_null_value_is_a_deletion_whatever_its_key_is_written_in() -> None:
    for headers in ((), [("__value_schema_id", prefixed(2, b""))]):
        change = said(prefixed(1, FIVE), None, headers)
        assert isinstance(change, ParentChange) and change.op is Op.GONE and change.key == (5,)


def test_an_update_is_ignored_and_a_create_says_that_its_parent_lives() -> None:
    assert isinstance(said(prefixed(1, FIVE), prefixed(2, envelope("u"))), Ignored)
    change = said(prefixed(1, FIVE), prefixed(2, envelope("c")))
    assert isinstance(change, ParentChange) and change.op is Op.ALIVE


def test_a_key_change_is_read_from_a_header_in_either_form() -> None:
    for header in (prefixed(1, written(KEY, {"id": 6})), b'{"id":6}'):
        change = said(prefixed(1, FIVE), prefixed(2, envelope()), [("__debezium.newkey", header)])
        assert isinstance(change, ParentChange) and (change.op, change.to) == (Op.MOVED, (6,))


@pytest.mark.parametrize(
    ("key", "value", "headers", "stage"),
    [
        (prefixed(4, FIVE), prefixed(2, envelope()), (), "key"),
        (prefixed(1, FIVE), prefixed(4, envelope()), (), "value"),
        (prefixed(1, FIVE), prefixed(2, envelope())[:-1], (), "value"),
        (prefixed(1, FIVE) + b"\0", prefixed(2, envelope()), (), "key"),
        (b"\0\0", prefixed(2, envelope()), (), "key"),
        (FIVE, envelope(), [("__key_schema_id", b"\0\0")], "key"),
        (FIVE, envelope(), [("__value_schema_id", b"x" * 5), ("__key_schema_id", prefixed(1, b""))], "value"),
        (FIVE, envelope(), [("__key_schema_id", prefixed(1, b"")), ("__key_schema_id", prefixed(2, b""))], "header"),
        (prefixed(1, FIVE), prefixed(2, envelope()), [("__debezium.newkey", prefixed(4, FIVE))], "header"),
    ],
)
def test_what_can_t_be_read_is_a_dead_letter_and_the_null_record_behind_it_no_deletion(
    key: bytes, value: bytes, headers: Headers, stage: str
) -> None:
    refused = said(key, value, headers)
    assert isinstance(refused, Undecodable)
    assert (refused.reason, refused.stage, refused.repeated) == (Reason.SCHEMA_REGISTRY_PAYLOAD, stage, True)


@pytest.mark.parametrize(
    "text", [b'{"id":5},"id":7', b'{},"payload":{"id":7}', b'1,"id":7', b'{"id":5', b'{"id":5}}', b"", b"\xff"]
)
def test_half_a_json_value_never_passes_for_another_one(text: bytes) -> None:
    refused = said(prefixed(3, text), prefixed(2, envelope()))
    assert isinstance(refused, Undecodable) and refused.stage == "key", refused


def test_without_a_registry_the_dead_letter_names_the_setting() -> None:
    refused = decoder_for(rule(id=KeyType.INT64))(
        Record("customers", 0, 3, 1000, b'{"id":5}', prefixed(2, envelope("u")), ())
    )
    assert isinstance(refused, Undecodable) and refused.reason is Reason.SCHEMA_REGISTRY_PAYLOAD
    assert "INTEGRITY_SCHEMA_REGISTRY__URL" in refused.message


def test_all_ids_of_records_are_asked_for_before_they_are_decoded() -> None:
    records = [
        Record("t", 0, 0, 0, prefixed(1, FIVE), prefixed(GUID, b""), ()),
        Record("t", 0, 1, 0, b'{"id":5}', None, [("__value_schema_id", prefixed(2, b"")), ("x", prefixed(9, b""))]),
        Record("t", 0, 2, 0, None, b"\0\0", [("__debezium.newkey", prefixed(3, FIVE))]),
    ]
    assert references(records) == {1, 2, 3, str(GUID)}


def test_a_key_in_the_form_that_the_rule_says_is_never_taken_for_a_schema_id() -> None:
    parent = rule(id=KeyType.INT64)
    assert parent.events is not None
    parent = replace(parent, events=replace(parent.events, key_format=KeyFormat.LONG))
    key = (5).to_bytes(8, "big")
    change = decoder_for(parent, schemas=SCHEMAS)(Record("t", 0, 0, 0, key, prefixed(2, envelope()), ()))
    assert isinstance(change, ParentChange) and change.key == (5,)


def test_a_record_in_json_is_what_the_json_converter_would_have_written() -> None:
    found = unwrapped(Record("t", 0, 0, 0, prefixed(1, FIVE), None, [("__value_schema_id", prefixed(2, b""))]), SCHEMAS)
    document: Any = json.loads(found.key or b"")
    assert document["payload"] == {"id": 5} and document["schema"]["fields"][0]["type"] == "int64"
    assert not found.headers


def test_other_kinds_of_schemas_are_not_supported() -> None:
    with pytest.raises(SchemaFault, match="not supported"):
        wire_schema("XML", "", ())


def test_a_json_schema_says_what_its_texts_and_numbers_are() -> None:
    schema = {
        "type": "object",
        "title": "shop.Key",
        "definitions": {"money": {"type": "string", "connect.type": "bytes",
                                  "title": "org.apache.kafka.connect.data.Decimal",
                                  "connect.parameters": {"scale": "2"}}},
        "properties": {
            "amount": {"$ref": "#/definitions/money"},
            "day": {"oneOf": [{"type": "null"}, {"type": "integer", "title": "io.debezium.time.Date"}]},
            "loop": {"$ref": "#/properties/loop"},
        },
    }  # fmt: skip
    decode = decoder_for(
        rule(amount=KeyType.NUMERIC, day=KeyType.DATE), schemas={1: wire_schema("JSON", json.dumps(schema), ())}
    )
    change = decode(Record("customers", 0, 0, 0, prefixed(1, b'{"amount":"AJY=","day":2}'), None, ()))
    assert isinstance(change, ParentChange)
    assert [str(part) for part in change.key] == ["1.5", "1970-01-03"]


def test_domain_events_in_avro_say_what_their_json_says() -> None:
    """As an object, and as text that holds JSON, the way the outbox has it."""
    deleted = {"type": "record", "name": "CustomerDeleted", "fields": [
        {"name": "type", "type": "string"}, {"name": "note", "type": ["null", "string"]}]}  # fmt: skip
    schemas = {1: wire_schema("AVRO", json.dumps(KEY), ()), 2: wire_schema("AVRO", json.dumps(deleted), ()),
               3: wire_schema("AVRO", '"string"', ())}  # fmt: skip
    text = """\
version: 1
parent: customer
events:
  topic: customers
  format: {format}
  key: {{id: int64}}
  types: {{deleted: [CustomerDeleted]}}
  type_from: {type_from}
dependents:
  - {{store: db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade}}
"""
    value = {"type": "CustomerDeleted", "note": None}
    for format_, type_from, wire, plain in (
        ("json", "{field: type}", prefixed(2, written(deleted, value)), json.dumps(value).encode()),
        ("outbox", "{header: kind}", prefixed(3, written("string", '{"a":1}')), b'"{\\"a\\":1}"'),
    ):
        [parent] = parse_rules({"customer.yaml": text.format(format=format_, type_from=type_from)}).parents
        headers = [("kind", b"CustomerDeleted"), ("id", b"e1")]
        expected = decoder_for(parent)(Record("customers", 0, 0, 0, b'{"id":5}', plain, headers))
        assert isinstance(expected, ParentChange) and expected.op is Op.DELETED, expected
        decode = decoder_for(parent, schemas=schemas)
        assert decode(Record("customers", 0, 0, 0, prefixed(1, FIVE), wire, headers)) == expected
