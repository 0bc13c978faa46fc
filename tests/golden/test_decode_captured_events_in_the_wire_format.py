"""Captured events, as the registry's converters would have written them, say what they say as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from integrity.core.change import Cell, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoder, Record, Undecodable
from integrity.core.doctor import TopicLook
from integrity.core.keys import FieldHint, KeyType
from integrity.core.propose import as_yaml, propose
from integrity.core.rules.parse import parse_rules
from integrity.errors import Reason
from tests.golden import test_constructed_qlik as qlik
from tests.golden.histories import HISTORIES
from tests.golden.records import load, rule
from tests.golden.test_propose import DEPENDENTS, NOW_MS
from tests.protobuf import Nullables, left
from tests.wire import Converter

FILES = ("pg_env_schemas", "pg_keychange_schemas", "my_env_schemas")
FIELDS = ("id", "code", "name", "email", "amount", "num", "created_at", "updated_at", "d", "ts", "raw", "flag", "note")


def keys_of(file: str, topic: str) -> dict[str, KeyType]:
    table = HISTORIES[file].get(topic.split(".")[-1]) if file in HISTORIES else None
    return {"id": KeyType.INT64} if table is None else dict(table.key)


def decoders_of(
    file: str, copied: tuple[str, ...] | None, converter: Converter
) -> Callable[[str], tuple[Decoder, Decoder]]:
    """What reads the records of a topic as they were captured, and in the wire format."""

    @cache
    def of_topic(topic: str) -> tuple[Decoder, Decoder]:
        parent = rule(**keys_of(file, topic))
        return decoder_for(parent, copied=copied), decoder_for(parent, copied=copied, schemas=converter.schemas)

    return of_topic


@pytest.mark.parametrize("kind", ["AVRO", "JSON"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("copied", [None, FIELDS], ids=["events", "copies"])
def test_a_record_says_the_same_in_either_form(file: str, kind: str, copied: tuple[str, ...] | None) -> None:
    converter, told = Converter(kind), 0
    decoders = decoders_of(file, copied, converter)
    for record in load(file):
        as_json, decode = decoders(record.topic)
        in_wire = converter.record(record)
        assert (in_wire.value is None) is (record.value is None)
        assert decode(in_wire) == as_json(record), record
        told += in_wire.value != record.value
    assert told >= 10


FORMATS = (
    "pg_env", "my_env", "mdb_env", "pg_flat_rewrite", "pg_flat_tombstone", "my_flat_rewrite", "mdb_flat_rewrite",
    "kt_compacted", "pg_outbox_header", "pg_outbox_envelope", "pg_cloudevents",
    "pg_flat_default_schemas", "mdb_env_schemas", "mks_schema_infer",
)  # fmt: skip
"""Captures of each format, with schemas or without."""


def inferred(value: object) -> dict[str, Any]:
    """A Connect schema that takes a value of JSON."""
    match value:
        case dict():
            fields = [inferred(each) | {"field": name} for name, each in value.items()]
            return {"type": "struct", "fields": fields, "optional": True}
        case list():
            kinds = [inferred(each) for each in value if each is not None]
            if any(kind != kinds[0] for kind in kinds):
                raise ValueError("no Connect schema takes it")
            return {"type": "array", "items": kinds[0] if kinds else inferred(None), "optional": True}
        case bool():
            return {"type": "boolean", "optional": True}
        case int():
            return {"type": "int64", "optional": True}
        case float():
            return {"type": "double", "optional": True}
        case _:
            return {"type": "string", "optional": True}


def with_schema(part: bytes | None) -> bytes | None:
    """A JSON object with the schema that a source with a schema would have had; anything else as it is."""
    if part is None or not part.startswith(b"{") or b'"$' in part:  # Avro allows no such name
        return part
    value = json.loads(part)
    if value.keys() == {"schema", "payload"}:
        return part
    try:
        return json.dumps({"schema": inferred(value), "payload": value}).encode()
    except ValueError:
        return part


@pytest.mark.parametrize(
    ("kind", "nullables"),
    [("AVRO", None), ("JSON", None), ("PROTOBUF", Nullables.OPTIONAL), ("PROTOBUF", Nullables.PLAIN)],
)
@pytest.mark.parametrize("file", FORMATS)
def test_every_format_takes_its_records_in_the_wire_format(file: str, kind: str, nullables: Nullables | None) -> None:
    """Without the settings for nulls a key of Protobuf that may be one is none."""
    topics: dict[str, list[Record]] = {}
    for record in load(file):
        topics.setdefault(record.topic, []).append(record)
    told = 0
    for topic, records in topics.items():
        proposal = propose(TopicLook(topic, 1, {}, records), NOW_MS)
        if proposal.events is None:
            continue
        references = ", ".join(f"parent_{name}: {name}" for name in proposal.events["key"])  # type: ignore[attr-defined]
        text = f"version: 1\nparent: p\n{as_yaml(proposal)}{DEPENDENTS.format(references=references)}"
        [parent] = parse_rules({"a.yaml": text}).parents
        converter = Converter(kind, nullables or Nullables.OPTIONAL)
        as_json, decode = decoder_for(parent), decoder_for(parent, schemas=converter.schemas)
        for record in records:
            wrapped = record._replace(key=with_schema(record.key), value=with_schema(record.value))
            in_wire = converter.record(wrapped)
            said = decode(in_wire)
            if nullables is Nullables.PLAIN and isinstance(said, Undecodable) and said.reason is Reason.UNAVAILABLE_KEY:
                continue
            assert said == as_json(record), record
            told += in_wire.value != wrapped.value and isinstance(as_json(record), ParentChange)
    assert told


@pytest.mark.parametrize("kind", ["AVRO", "JSON"])
def test_a_message_of_qlik_is_taken_in_the_wire_format(kind: str) -> None:
    converter = Converter(kind)
    [parent] = parse_rules({"a.yaml": QLIK}).parents
    as_json, decode = decoder_for(parent), decoder_for(parent, schemas=converter.schemas)
    for inner in (qlik.message("DELETE", {"id": 7}), qlik.message("UPDATE", {"id": 8}, {"id": 7})):
        record = qlik.record(qlik.wrapped(inner))
        in_wire = converter.record(record._replace(key=with_schema(record.key), value=with_schema(record.value)))
        assert isinstance(as_json(record), ParentChange) and in_wire.value != record.value
        assert decode(in_wire) == as_json(record)


QLIK = """\
version: 1
parent: customer
events: {topic: customers, format: qlik, key: {id: int64}}
dependents:
  - {store: shop_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


@pytest.mark.parametrize("kind", ["AVRO", "JSON"])
def test_the_schema_of_a_cloudevent_says_what_its_rows_hold(kind: str) -> None:
    amount = {"type": "bytes", "name": DECIMAL, "version": 1, "parameters": {"scale": "2"}, "field": "amount"}
    row = {"type": "struct", "fields": [amount]}
    data = {"type": "struct", "name": "Data", "fields": [row | {"field": "after", "name": "Row"}], "field": "data"}
    texts = {"specversion": "1.0", "type": "io.debezium.connector.postgresql.DataChangeEvent", "iodebeziumop": "u",
             "iodebeziumconnector": "postgresql", "iodebeziumlsn": "7"}  # fmt: skip
    fields = [{"type": "string", "field": name} for name in texts]
    value = {
        "schema": {"type": "struct", "fields": [*fields, data]},
        "payload": {**texts, "data": {"after": {"amount": "BOI="}}},
    }
    converter = Converter(kind)
    [parent] = parse_rules({"a.yaml": QLIK.replace("qlik", "cloudevents")}).parents
    record = converter.record(Record("customers", 0, 0, 0, b'{"id":5}', json.dumps(value).encode(), ()))
    said = decoder_for(parent, copied=["amount"], schemas=converter.schemas)(record)
    assert isinstance(said, ParentChange)
    assert said.row == {"amount": Cell("BOI=", FieldHint("bytes", DECIMAL, 2))}


DECIMAL = "org.apache.kafka.connect.data.Decimal"


def left_by_protobuf(part: bytes | None) -> bytes | None:
    """A key or value whose schema says what it says in Protobuf."""
    document = json.loads(part) if part is not None and part.startswith(b'{"schema"') else None
    if not document or not document["schema"]:
        return part
    text = json.dumps({"schema": left(document["schema"]), "payload": document["payload"]}, separators=(",", ":"))
    return text.encode()


@pytest.mark.parametrize("nullables", [Nullables.OPTIONAL, Nullables.WRAPPER])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("copied", [None, FIELDS], ids=["events", "copies"])
def test_protobuf_that_tells_nulls_says_what_its_json_says(
    file: str, nullables: Nullables, copied: tuple[str, ...] | None
) -> None:
    """Constructed: no converter of Protobuf has written these. What Debezium's names of types say, it does not keep."""
    converter, told = Converter("PROTOBUF", nullables), 0
    decoders = decoders_of(file, copied, converter)
    for record in load(file):
        as_json, decode = decoders(record.topic)
        in_wire = converter.record(record)
        expected = as_json(record._replace(key=left_by_protobuf(record.key), value=left_by_protobuf(record.value)))
        assert decode(in_wire) == expected, record
        told += in_wire.value != record.value
    assert told >= 10


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("copied", [None, FIELDS], ids=["events", "copies"])
def test_protobuf_that_tells_no_nulls_says_the_same_or_nothing(file: str, copied: tuple[str, ...] | None) -> None:
    """As the converter writes without its settings for nulls: what may be one is no value that a copy gets."""
    converter, told = Converter("PROTOBUF", Nullables.PLAIN), 0
    for record in load(file):
        parent = rule(**keys_of(file, record.topic))
        said = decoder_for(parent, copied=copied, schemas=converter.schemas)(converter.record(record))
        if copied is not None and isinstance(said, Undecodable) and "optional.for.nullables" in said.message:
            continue
        plain = record._replace(key=left_by_protobuf(record.key), value=left_by_protobuf(record.value))
        assert said == decoder_for(parent, copied=copied)(plain), record
        told += isinstance(said, ParentChange)
    assert told >= 5
