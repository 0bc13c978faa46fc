"""Protobuf in the wire format: what its types become, what is unknown in it, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.avro import AvroFault, SchemaFault
from integrity.core.decode.protobuf import ProtobufSchema
from integrity.core.decode.record import Decoded, Headers, Ignored, Record, Undecodable
from integrity.core.decode.wire import Schemas
from integrity.core.keys import UNTOLD, KeyType
from integrity.core.rules.parse import parse_rules
from integrity.errors import Reason
from integrity.registry.protoc import compiled
from tests.golden.records import rule
from tests.protobuf import message_of

TYPES = """
syntax = "proto3";
package shop;
import "confluent/meta.proto";
import "confluent/type/decimal.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "google/type/date.proto";
import "google/type/timeofday.proto";

message All {
  int32 a_int32 = 1; int64 a_int64 = 2; uint32 a_uint32 = 3; uint64 a_uint64 = 4; sint32 a_sint32 = 5;
  sint64 a_sint64 = 6; fixed32 a_fixed32 = 7; fixed64 a_fixed64 = 8; sfixed32 a_sfixed32 = 9; sfixed64 a_sfixed64 = 10;
  float a_float = 11; double a_double = 12; bool a_bool = 13; string a_string = 14; bytes a_bytes = 15;
  Kind a_kind = 16;
  int32 small = 17 [(confluent.field_meta) = { params: [ { value: "int16", key: "connect.type" } ] }];
  confluent.type.Decimal amount = 18 [(confluent.field_meta) = {
    params: [ { value: "10", key: "precision" }, { value: "2", key: "scale" } ] }];
  confluent.type.Decimal free = 19;
  google.protobuf.Int64Value wrapped = 20;
  google.protobuf.Timestamp at = 21;
  google.type.Date day = 22;
  google.type.TimeOfDay clock = 23;
  repeated int32 many = 24; repeated Inner inners = 25;
  map<string, int64> by_name = 26; map<int32, Inner> by_number = 27;
  oneof choice { int64 one = 28; string other = 29; }
  optional int64 maybe = 30;
  Inner inner = 31;
}
message Inner { int64 id = 1; Inner inner = 2; }
enum Kind { NONE = 0; SOME = 5; }
"""
ALL = {
    "a_int32": -5, "a_int64": -(2**63), "a_uint32": 2**32 - 1, "a_uint64": 2**64 - 1, "a_sint32": -(2**31),
    "a_sint64": 2**63 - 1, "a_fixed32": 7, "a_fixed64": 2**64 - 2, "a_sfixed32": -8, "a_sfixed64": -9,
    "a_float": 0.1, "a_double": 1e300, "a_bool": True, "a_string": "ünï", "a_bytes": b"\xff\0", "a_kind": 5,
    "small": -7, "many": [1, -2], "one": 0, "maybe": 0,
}  # fmt: skip


@cache
def descriptors(text: str) -> bytes:
    return compiled(text, {})


def message(text: str, name: str, **fields: Any) -> Any:
    return message_of(descriptors(text), name)(**fields)


def read(text: str, data: bytes, indexes: bytes = b"\0") -> Any:
    """What a value holds, and its schema by field."""
    return json.loads(ProtobufSchema(descriptors(text)).json(indexes + data, 0))


def test_every_type_becomes_what_the_converter_makes_of_it() -> None:
    value = message(TYPES, "shop.All", **ALL)
    value.amount.value, value.amount.scale = b"\x04\xd2", 2
    value.free.value, value.free.scale = b"\xff", 3
    value.wrapped.SetInParent()
    value.at.seconds, value.at.nanos = -1, 250_000_000
    value.day.year, value.day.month, value.day.day = 2026, 1, 2
    value.clock.hours, value.clock.nanos = 1, 5_000_000
    value.inners.add(id=6)
    value.by_name["x"] = 0
    value.by_number[-1].id = 7
    value.inner.inner.id = 8
    found = read(TYPES, value.SerializeToString())
    nothing = {"id": UNTOLD, "inner": None}
    assert found["payload"] == ALL | {
        "a_bytes": "/wA=", "a_kind": "SOME", "amount": "BNI=", "free": {"scale": 3, "value": "/w=="}, "wrapped": 0,
        "at": -750, "day": 20455, "clock": 3_600_005, "inners": [{"id": 6, "inner": None}], "by_name": {"x": 0},
        "by_number": [[-1, {"id": 7, "inner": None}]], "other": None, "inner": nothing | {"inner": nothing | {"id": 8}},
    }  # fmt: skip
    fields = {each.pop("field"): each for each in found["schema"]["fields"]}
    assert {name: each["type"] for name, each in fields.items() if name.startswith("a_")} == {
        "a_int32": "int32", "a_int64": "int64", "a_uint32": "int64", "a_uint64": "int64", "a_sint32": "int32",
        "a_sint64": "int64", "a_fixed32": "int64", "a_fixed64": "int64", "a_sfixed32": "int32", "a_sfixed64": "int64",
        "a_float": "float", "a_double": "double", "a_bool": "boolean", "a_string": "string", "a_bytes": "bytes",
        "a_kind": "string",
    }  # fmt: skip
    connect = "org.apache.kafka.connect.data."
    assert fields["small"] == {"type": "int16"} and fields["wrapped"] == {"type": "int64"}
    assert fields["amount"] == {"type": "bytes", "name": f"{connect}Decimal", "parameters": {"scale": "2"}}
    assert fields["at"] == {"type": "int64", "name": f"{connect}Timestamp"}
    assert fields["day"] == {"type": "int32", "name": f"{connect}Date"}
    assert fields["clock"] == {"type": "int32", "name": f"{connect}Time"}


PRESENCE = """
syntax = "proto3";
import "google/protobuf/wrappers.proto";
message Plain { int64 id = 1; string name = 2; repeated int32 many = 3; bool flag = 4; }
message Mixed { int64 id = 1; optional string name = 2; repeated int32 many = 3; Kind kind = 4; }
message Wrapped { int64 id = 1; google.protobuf.StringValue name = 2; }
message Around { int64 id = 1; Mixed mixed = 2; }
message Envelope { Plain before = 1; Plain after = 2; Mixed source = 3; string op = 4; }
message Binlog { string file = 1; int64 pos = 2; int32 row = 3; }
message Flat { string __source_file = 1; int64 __source_pos = 2; int32 __source_row = 3; int64 id = 4; }
message VariableScaleDecimal { int32 scale = 1; bytes value = 2; }
message OfDocuments { string before = 1; string after = 2; Source source = 3; string op = 4; }
message Source { int64 txnNumber = 1; }
message Rewritten { bool __deleted = 1; int64 __lsn = 2; string __source_rs_id = 3; int64 __v = 4; }
enum Kind { NONE = 0; }
"""


@pytest.mark.parametrize(
    ("index", "payload"),
    [
        (0, {"id": UNTOLD, "name": UNTOLD, "many": UNTOLD, "flag": UNTOLD}),
        (1, {"id": 0, "name": None, "many": UNTOLD, "kind": "NONE"}),
        (2, {"id": 0, "name": None}),
        (3, {"id": UNTOLD, "mixed": None}),
        (4, {"before": None, "after": None, "source": None, "op": ""}),
        (8, {"before": None, "after": None, "source": None, "op": None}),
        (10, {"__deleted": False, "__lsn": None, "__source_rs_id": None, "__v": UNTOLD}),
        (5, {"file": UNTOLD, "pos": 0, "row": 0}),
        (6, {"__source_file": None, "__source_pos": 0, "__source_row": 0, "id": UNTOLD}),
        (7, {"scale": 0, "value": ""}),
    ],
)
def test_a_plain_field_that_is_not_there_is_unknown_but_where_it_can_t_be_null(index: int, payload: object) -> None:
    assert read(PRESENCE, b"", bytes([2, 2 * index]))["payload"] == payload


def test_rows_of_an_envelope_that_tells_nulls_have_none_that_are_not_told() -> None:
    row = message(PRESENCE, "Envelope", op="d")
    row.before.SetInParent()
    assert read(PRESENCE, row.SerializeToString(), b"\2\x08")["payload"]["before"] == {
        "id": 0, "name": "", "many": UNTOLD, "flag": False,
    }  # fmt: skip


# --- events -------------------------------------------------------------------------------------------------------

EVENTS = """
syntax = "proto3";
package pg;
message Key { int64 tenant = 1; int64 id = 2; }
message Envelope {
  Row before = 1; Row after = 2; Source source = 3; string op = 4;
  message Row { int64 tenant = 1; int64 id = 2; int64 deleted_at = 3; string note = 4; Inner inner = 5; }
  message Source { string connector = 1; int64 lsn = 2; string file = 3; int64 pos = 4; int32 row = 5; }
  message Inner { string by = 1; }
}
"""
SCHEMAS: Schemas = {1: ProtobufSchema(descriptors(EVENTS)), str(UUID(int=7)): ProtobufSchema(descriptors(EVENTS))}
SPEC = {"tenant": KeyType.INT64, "id": KeyType.INT64}


def key(tenant: int = 1, id: int = 5) -> bytes:
    return b"\0\0\0\0\1\0" + message(EVENTS, "pg.Key", tenant=tenant, id=id).SerializeToString()


def value(op: str = "d", connector: str = "postgresql", after: bool = False, **fields: Any) -> bytes:
    made = message(EVENTS, "pg.Envelope", op=op)
    made.source.connector = connector
    for name, each in fields.items():
        setattr(made.after if name in ("deleted_at", "note") else made.source, name, each)
    if after:
        made.after.SetInParent()
    return b"\0\0\0\0\1\2\2" + made.SerializeToString()


def said(
    key_: bytes | None,
    value_: bytes | None,
    headers: Headers = (),
    copied: tuple[str, ...] | None = None,
    more: str = "",
    schemas: Schemas = SCHEMAS,
) -> Decoded:
    text = f"""\
version: 1
parent: customer
events: {{topic: t, format: debezium, key: {{tenant: int64, id: int64}}{more}}}
dependents:
  - {{store: db, table: orders, references: {{t: tenant, c: id}}, on_delete: cascade}}
"""
    [parent] = parse_rules({"a.yaml": text}).parents
    return decoder_for(parent, copied=copied, schemas=schemas)(Record("t", 0, 3, 1000, key_, value_, headers))


def test_a_deletion_is_told() -> None:
    change = said(key(), value(lsn=7))
    assert isinstance(change, ParentChange)
    assert (change.op, change.key, change.version and change.version.position) == (Op.DELETED, (1, 5), (7,))
    gone = said(key(), None)
    assert isinstance(gone, ParentChange) and gone.op is Op.GONE
    assert isinstance(said(key(), value("u", lsn=7)), Ignored)


def test_the_first_row_of_an_event_of_mysql_has_the_place_0() -> None:
    change = said(key(), value(connector="mysql", file="bin.000003", pos=4))
    assert isinstance(change, ParentChange)
    assert change.version is not None and change.version.position == (3, 4, 0)


@pytest.mark.parametrize("part", [{"tenant": 0}, {"id": 0}])
def test_a_key_part_that_may_be_null_or_zero_is_a_dead_letter(part: dict[str, int]) -> None:
    for value_ in (value(lsn=7), None):
        refused = said(key(**part), value_)
        assert isinstance(refused, Undecodable) and refused.reason is Reason.UNAVAILABLE_KEY
        assert "Protobuf" in refused.message


def test_a_new_key_with_a_zero_never_keeps_the_old_part() -> None:
    """A header that lacks a field says that it did not change: zero is not that."""
    refused = said(key(), value(lsn=7), [("__debezium.newkey", key(tenant=0))])
    assert isinstance(refused, Undecodable) and refused.reason is Reason.UNAVAILABLE_KEY
    moved = said(key(), value(lsn=7), [("__debezium.newkey", key(tenant=2))])
    assert isinstance(moved, ParentChange) and (moved.op, moved.to) == (Op.MOVED, (2, 5))


@pytest.mark.parametrize(
    "condition",
    [
        "after.deleted_at != null", "after.deleted_at != 0", "!(after.deleted_at == 0)", "after.note != 'x'",
        "after.inner.by != 'x'",
    ],
)  # fmt: skip
def test_no_condition_holds_of_what_is_unknown(condition: str) -> None:
    """A row is marked as deleted by a value, never by bytes that may be null."""
    made = message(EVENTS, "pg.Envelope", op="u")
    made.source.connector = "postgresql" if "lsn" not in condition else "other"
    made.source.lsn = 7 if "lsn" not in condition else 0
    made.after.inner.SetInParent()
    more = f', deleted_when: "{condition}"'
    refused = said(key(), b"\0\0\0\0\1\2\2" + made.SerializeToString(), more=more)
    assert isinstance(refused, Undecodable) and refused.reason is Reason.BAD_ENVELOPE, refused
    if "deleted_at" in condition:
        found = said(key(), value("u", lsn=7, deleted_at=9), more=more)
        assert isinstance(found, ParentChange) and found.op is Op.DELETED


def test_a_copy_gets_no_zero_that_may_be_a_null() -> None:
    refused = said(key(), value("u", lsn=7, after=True), copied=("note",))
    assert isinstance(refused, Undecodable) and "optional.for.nullables" in refused.message
    found = said(key(), value("u", lsn=7, note="x"), copied=("note",))
    assert isinstance(found, ParentChange) and found.row is not None


def test_a_tenant_is_never_read_of_what_is_unknown() -> None:
    text = """\
version: 1
parent: customer
events: {topic: t, format: debezium, key: {id: int64}, tenant: {field: note}}
dependents:
  - {store: db, table: orders, references: {c: id}, on_delete: cascade}
"""
    [parent] = parse_rules({"a.yaml": text}).parents
    made = message(EVENTS, "pg.Envelope", op="d")
    made.source.connector, made.source.file, made.source.pos = "mysql", "bin.000003", 4
    made.before.SetInParent()
    record = Record("t", 0, 3, 1000, key(), b"\0\0\0\0\1\2\2" + made.SerializeToString(), ())
    refused = decoder_for(parent, schemas=SCHEMAS)(record)
    assert isinstance(refused, Undecodable) and refused.reason is Reason.UNKNOWN_TENANT, refused


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("numeric", "confluent.type.Decimal", Decimal("12.34")),
        ("timestamp", "google.protobuf.Timestamp", datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)),
    ],
)
def test_keys_of_other_types_are_exact(kind: str, fields: str, expected: object) -> None:
    imports = 'import "confluent/type/decimal.proto"; import "google/protobuf/timestamp.proto";'
    text = f'syntax = "proto3"; {imports} message Key {{ {fields} id = 1; }}'
    made = message(text, "Key")
    if kind == "numeric":
        made.id.value, made.id.scale = b"\x04\xd2", 2
    else:
        made.id.seconds, made.id.nanos = 1, 5_000
    decode = decoder_for(rule(id=KeyType(kind)), schemas={1: ProtobufSchema(descriptors(text))})
    prefix = b"\0\0\0\0\1\0"
    change = decode(Record("t", 0, 0, 0, prefix + made.SerializeToString(), None, ()))
    assert isinstance(change, ParentChange) and change.key == (expected,)
    if kind == "timestamp":
        made.id.nanos = 5_001
        refused = decode(Record("t", 0, 0, 0, prefix + made.SerializeToString(), None, ()))
        assert isinstance(refused, Undecodable) and refused.reason is Reason.TYPE_MISMATCH


# --- message indexes ----------------------------------------------------------------------------------------------

INDEXES = """
syntax = "proto3";
message First { map<string, int64> counts = 1; message Inner { int64 id = 1; } message Last { int64 id = 1; } }
message Second { message Inner { message Deep { int64 id = 1; } } int64 id = 1; }
"""


@pytest.mark.parametrize(
    ("indexes", "name"),
    [(b"\0", "First"), (b"\2\0", "First"), (b"\2\2", "Second"), (b"\6\2\0\0", "Second.Inner.Deep")],
)
def test_the_message_indexes_lead_to_a_message(indexes: bytes, name: str) -> None:
    assert read(INDEXES, b"", indexes)["schema"]["name"] == name


@pytest.mark.parametrize(
    "indexes",
    [b"", b"\1", b"\3\0", b"\2", b"\2\1", b"\2\4", b"\4\2\2", b"\x80", b"\x7e" + b"\0" * 63, b"\4\0\0", b"\4\0\2"],
)
def test_message_indexes_that_lead_nowhere_are_refused(indexes: bytes) -> None:
    """Also those inside a message with a map: serializers count differently there."""
    with pytest.raises(AvroFault, match="indexes"):
        read(INDEXES, b"", indexes)


def test_the_indexes_follow_the_id_in_a_header_too() -> None:
    ref = b"\1" + UUID(int=7).bytes
    bare_key, bare = key()[6:], value(lsn=7)[7:]
    headers = [("__key_schema_id", ref + b"\0"), ("__value_schema_id", ref + b"\2\2")]
    change = said(bare_key, bare, headers)
    assert isinstance(change, ParentChange) and change.key == (1, 5)
    for header in (ref, ref + b"\2", ref + b"\0\0", ref + b"\2\2\0"):
        refused = said(bare_key, bare, [headers[0], ("__value_schema_id", header)])
        assert isinstance(refused, Undecodable) and refused.stage == "value", header


def test_a_wrapper_alone_is_the_scalar_in_it() -> None:
    text = """
    syntax = "proto3";
    package google.protobuf;
    message BoolValue { bool value = 1; }
    message Int64Value { int64 value = 1; }
    """
    decode = decoder_for(rule(id=KeyType.INT64), schemas={1: ProtobufSchema(descriptors(text))})
    for data, expected in ((b"\x08\x05", 5), (b"", 0)):
        change = decode(Record("t", 0, 0, 0, b"\0\0\0\0\1\2\2" + data, None, ()))
        assert isinstance(change, ParentChange) and change.key == (expected,), "a wrapper is null where it is not there"


# --- what is refused ----------------------------------------------------------------------------------------------

PROTO2 = """
syntax = "proto2";
message Old {
  required int64 id = 1; optional string name = 2 [default = "x"]; optional group Part = 3 { optional int64 a = 1; }
  extensions 100 to 199; optional Kind kind = 4;
}
enum Kind { A = 1; }
extend Old { optional int64 more = 100; }
"""
_PAYLOAD = Reason.SCHEMA_REGISTRY_PAYLOAD


@pytest.mark.parametrize(
    ("data", "reason", "match"),
    [
        (b"\x08", _PAYLOAD, "too early"),
        (b"\x72\x05abc", _PAYLOAD, "too early"),
        (b"\x59\0\0", _PAYLOAD, "lacks"),  # a float as 8 bytes
        (b"\x5d\0\0", _PAYLOAD, "too early"),
        (b"\xfa\x01\x01\x08", _PAYLOAD, "too early"),  # a message whose field goes beyond it
        (b"\xfa\x01\x01\x08\x05", _PAYLOAD, "too early"),
        (b"\xc2\x01\x01\x80\x01", _PAYLOAD, "too early"),
        (b"\x72\x01\xff", Reason.BAD_ENCODING, "UTF-8"),
        (b"\x72\x03\xed\xa0\x80", Reason.BAD_ENCODING, "UTF-8"),
        (b"\x08" + b"\xff" * 9 + b"\x02", _PAYLOAD, "64 bits"),
        (b"\x08" + b"\xff" * 10 + b"\x01", _PAYLOAD, "64 bits"),
        (b"\x08\x80\x80\x80\x80\x10", _PAYLOAD, "fit its type"),
        (b"\x18\x80\x80\x80\x80\x10", _PAYLOAD, "fit its type"),
        (b"\x68\x02", _PAYLOAD, "boolean"),
        (b"\x80\x01\x03", _PAYLOAD, "no such symbol"),
        (b"\x10\x05\x10\x05", _PAYLOAD, "twice"),
        (b"\xe0\x01\x05\xea\x01\x01x", _PAYLOAD, "only one"),
        (b"\xd2\x01\x03\x0a\x01x\xd2\x01\x03\x0a\x01x", _PAYLOAD, "key twice"),
        (b"\xb8\x3e\x05", _PAYLOAD, "lacks"),  # a number that the schema does not know
        (b"\x0a\x01x", _PAYLOAD, "lacks"),
        (b"\x0b\x0c", _PAYLOAD, "lacks"),  # a group
        (b"\0\0", _PAYLOAD, "lacks"),
        (b"\x92\x01\x02\x18\x02", _PAYLOAD, "no bytes"),
        (b"\xaa\x01\x06\x10\x80\x94\xeb\xdc\x03", _PAYLOAD, "timestamp"),
        (b"\xb2\x01\x02\x08\x05", _PAYLOAD, "date"),
        (b"\xba\x01\x02\x08\x18", _PAYLOAD, "time of day"),
        (b"\xca\x01\0" * 300_000, Reason.TOO_LARGE, "stands for more"),
        (b"\xc2\x01\xf0\xc8\x21" + b"\0" * 550_000, Reason.TOO_LARGE, "stands for more"),
    ],
)
def test_bytes_that_no_writer_of_the_schema_writes_are_refused(data: bytes, reason: Reason, match: str) -> None:
    with pytest.raises(AvroFault, match=match) as fault:
        read(TYPES, data)
    assert fault.value.reason is reason


def test_messages_inside_one_another_end() -> None:
    data = b""
    for _ in range(150):
        size = len(data)
        data = b"\x12" + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + data
    with pytest.raises(AvroFault) as fault:
        read(TYPES, data, b"\2\2")
    assert fault.value.reason is Reason.TOO_DEEP


def test_a_number_that_is_not_finite_is_the_text_that_connect_writes() -> None:
    value_ = message(TYPES, "shop.All", a_double=float("nan"), a_float=float("-inf"))
    payload = read(TYPES, value_.SerializeToString())["payload"]
    assert (payload["a_double"], payload["a_float"]) == ("NaN", "-Infinity")


def test_proto2_tells_what_is_there() -> None:
    assert read(PROTO2, b"\x08\0")["payload"] == {"id": 0, "name": None, "part": None, "kind": None}
    for data, match in (
        (b"", "requires"),
        (b"\x08\0\x1b\x1c", "lacks"),
        (b"\x08\0\xa0\x06\0", "lacks"),
        (b"\x08\0\x20\0", "symbol"),
    ):
        with pytest.raises(AvroFault, match=match):
            read(PROTO2, data)


def test_editions_tell_presence_by_a_feature() -> None:
    text = 'edition = "2023"; message M { int64 a = 1; int64 b = 2 [features.field_presence = IMPLICIT]; }'
    assert read(text, b"")["payload"] == {"a": None, "b": 0}
    text = 'edition = "2023"; message M { int64 b = 2 [features.field_presence = IMPLICIT]; }'
    assert read(text, b"")["payload"] == {"b": UNTOLD}


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\x09\x0a\x01a\x1a\x04gone", b"\x0a\x01"])
def test_descriptors_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(SchemaFault):
        ProtobufSchema(data)


def test_a_message_with_very_many_fields_is_refused() -> None:
    fields = " ".join(f"int64 f{number} = {number};" for number in range(1, 1_002))
    others = " ".join(f"message O{number} {{ {fields} }} O{number} o{number} = {number};" for number in range(1, 11))
    with pytest.raises(AvroFault, match="10000 fields"):
        read(f'syntax = "proto3"; message M {{ {others} }}', b"")
