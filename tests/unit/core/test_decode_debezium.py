"""One record at a time: what each shape of the `debezium` format says, and the reason of each dead letter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from integrity.core.change import Op, Origin, ParentChange, Truncation, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Headers, Ignored, Limits, Record, Undecodable
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones, Truncates
from integrity.errors import Reason, UsageError

SOURCE = {"connector": "postgresql", "name": "shop", "ts_ms": 1_795_470_742_997, "schema": "public", "lsn": 4711}
LSN_MAX = 2**63 - 1
RAW_TAB = b'{"id":"a\tb"}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIMESTAMP_MS = 1_795_470_743_000


def rule(tombstones: Tombstones = Tombstones.DELETE, form: str = "debezium", **key: KeyType) -> Parent:
    spec = KeySpec(tuple((key or {"id": KeyType.INT64}).items()))
    return Parent("customer", Events(("t",), form, spec, tombstones), (), Place("customer.yaml", 1, 1))


def text_of(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def envelope(op: object = "d", source: object = SOURCE, **more: object) -> bytes:
    return text_of({"before": None, "after": None, "source": source, "op": op, "ts_ms": 1, **more})


def record(value: bytes | None, key: bytes | None = b'{"id":10}', headers: Headers = ()) -> Record:
    return Record("shop.customers", 3, 42, TIMESTAMP_MS, key, value, headers)


def decode(
    value: bytes | None = None,
    key: bytes | None = b'{"id":10}',
    headers: Headers = (),
    limits: Limits | None = None,
    **fields: KeyType,
) -> Decoded:
    return decoder_for(rule(**fields), limits)(record(value, key, headers))


def change(decoded: Decoded) -> ParentChange:
    assert isinstance(decoded, ParentChange), decoded
    return decoded


def refusal(decoded: Decoded) -> tuple[Reason, str]:
    assert isinstance(decoded, Undecodable), decoded
    assert 0 < len(decoded.message) < 300
    return decoded.reason, decoded.stage


def new_key(text: bytes | None) -> Headers:
    return (("__debezium.context.taskId", b"0"), ("__debezium.newkey", text))


def wrapped(schema: object, payload: object) -> bytes:
    return text_of({"schema": schema, "payload": payload})


def struct(*fields: Mapping[str, object]) -> dict[str, object]:
    return {"type": "struct", "fields": list(fields), "optional": False, "name": "shop.customers.Key"}


def test_a_deletion() -> None:
    assert decode(envelope()) == ParentChange(
        entity="customer",
        op=Op.DELETED,
        key=(10,),
        to=None,
        version=Version(0, (4711,)),
        origin=Origin("shop.customers", 3, 42, TIMESTAMP_MS),
        occurred_ms=1_795_470_742_997,
        traceparent=None,
    )


@pytest.mark.parametrize("op", ["c", "r"])
def test_create_and_snapshot_read_say_alive(op: str) -> None:
    assert change(decode(envelope(op))).op is Op.ALIVE


@pytest.mark.parametrize("op", ["u", "t", "m"])
@pytest.mark.parametrize("key", [b'{"id":10}', None, b"junk"])
def test_update_truncate_and_message_say_nothing_whatever_their_key(op: str, key: bytes | None) -> None:
    decoded = decode(envelope(op), key)
    assert isinstance(decoded, Ignored)
    assert decoded.op == op


def test_truncate_is_one_of_all_keys_where_the_rule_says_so() -> None:
    parent = rule()
    assert parent.events is not None
    deleting = decoder_for(replace(parent, events=replace(parent.events, truncate=Truncates.DELETE_ALL, epoch=2)))
    origin = Origin("shop.customers", 3, 42, TIMESTAMP_MS)
    for value in (envelope("t"), wrapped({"type": "struct"}, json.loads(envelope("t")))):
        assert deleting(record(value, None)) == Truncation("customer", Version(2, (4711,)), origin, 1_795_470_742_997)


@pytest.mark.parametrize("source", [SOURCE | {"connector": "mysql"}, SOURCE | {"lsn": None}])
def test_truncate_without_a_place_among_all_keys_is_a_dead_letter(source: dict[str, object]) -> None:
    """A Kafka offset says nothing about the keys of other partitions."""
    parent = rule()
    assert parent.events is not None
    deleting = decoder_for(replace(parent, events=replace(parent.events, truncate=Truncates.DELETE_ALL)))
    assert refusal(deleting(record(envelope("t", source), None))) == (Reason.BAD_VERSION, "value")


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize("op", ["c", "d", "r", "u", "t", "m"])
def test_schemas_on_or_off_say_the_same(op: str, schemas: bool) -> None:
    value, key = envelope(op), b'{"id":10}'
    if schemas:
        value = wrapped({"type": "struct"}, json.loads(value))
        key = wrapped(struct({"type": "int64", "field": "id"}), {"id": 10})
    assert decode(value, key) == decode(envelope(op))


def test_white_space_and_field_order_do_not_matter() -> None:
    value = json.dumps(dict(reversed(json.loads(envelope()).items())), indent=2).encode()
    assert decode(value, b' { "id" : 10 } ') == decode(envelope())


# Bad input: values


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", Reason.EMPTY_VALUE),
        (b"null", Reason.BAD_ENVELOPE),
        (b"{}", Reason.BAD_ENVELOPE),
        (b"[]", Reason.BAD_ENVELOPE),
        (b"5", Reason.BAD_ENVELOPE),
        (b'"d"', Reason.BAD_ENVELOPE),
        (b'{"id":1,"name":"a"}', Reason.BAD_ENVELOPE),
        (b'{"id":1,"__deleted":"true","__op":"d"}', Reason.BAD_ENVELOPE),
        (wrapped({"type": "struct"}, None), Reason.BAD_ENVELOPE),
        (wrapped({"type": "struct"}, {"id": 1, "__deleted": "true"}), Reason.BAD_ENVELOPE),
        (wrapped({"type": "struct"}, 5), Reason.BAD_ENVELOPE),
        (text_of({"payload": json.loads(envelope())}), Reason.BAD_ENVELOPE),
        (text_of({"ts_ms": 5}), Reason.BAD_ENVELOPE),
        (envelope("z"), Reason.UNKNOWN_OP),
        (envelope(""), Reason.UNKNOWN_OP),
        (envelope("D"), Reason.UNKNOWN_OP),
        (envelope("x" * 1000), Reason.UNKNOWN_OP),
        (envelope(None), Reason.BAD_ENVELOPE),
        (envelope(["d"]), Reason.BAD_ENVELOPE),
        (envelope(5), Reason.BAD_ENVELOPE),
        (envelope(source=None), Reason.BAD_ENVELOPE),
        (envelope(source="postgresql"), Reason.BAD_ENVELOPE),
        (envelope(source={"lsn": 5}), Reason.BAD_ENVELOPE),
        (envelope(source={"connector": 5, "lsn": 5}), Reason.BAD_ENVELOPE),
        (envelope().replace(b'"source"', b'"origin"'), Reason.BAD_ENVELOPE),
        (envelope(source=SOURCE | {"connector": "sqlserver"}), Reason.BAD_VERSION),
        (b"\xef\xbb\xbf" + envelope(), Reason.BAD_ENCODING),
        (envelope().decode().encode("utf-16"), Reason.BAD_ENCODING),
        (envelope().decode().encode("utf-16-be"), Reason.BAD_ENCODING),
        (envelope(before={"name": "é"}).replace("é".encode(), b"\xe9"), Reason.BAD_ENCODING),
        (envelope(before={"name": "é"}).replace("é".encode(), b"\xc0\xaf"), Reason.BAD_ENCODING),
        (envelope(before={"name": "é"}).replace("é".encode(), b"\\ud800"), Reason.BAD_ENCODING),
        (envelope()[:-1], Reason.BAD_JSON),
        (envelope() + b"{}", Reason.BAD_JSON),
        (envelope() + b" " + envelope(), Reason.BAD_JSON),
        (envelope(before={"n": 0}).replace(b'"n":0', b'"n":NaN'), Reason.BAD_NUMBER),
        (envelope().replace(b'"lsn":4711', b'"lsn":1e999'), Reason.BAD_NUMBER),
        (envelope().replace(b'"lsn":4711', b'"lsn":' + b"9" * 5000), Reason.BAD_NUMBER),
        (envelope()[:-1] + b',"op":"u"}', Reason.DUPLICATE_FIELD),
        (envelope("u")[:-1] + b',"op":"d"}', Reason.DUPLICATE_FIELD),
        (envelope("d")[:-1] + b',"op":"d"}', Reason.DUPLICATE_FIELD),
        (envelope().replace(b'"lsn":4711', b'"lsn":4711,"lsn":9999'), Reason.DUPLICATE_FIELD),
        (envelope()[:-1] + b',"source":{}}', Reason.DUPLICATE_FIELD),
        (b'{"schema":{},"payload":' + envelope("u") + b',"payload":' + envelope() + b"}", Reason.DUPLICATE_FIELD),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b'{"before":' + b"[" * 100_000, Reason.TOO_DEEP),
        (envelope(before=0).replace(b'"before":0', b'"before":' + b"[" * 101 + b"]" * 101), Reason.TOO_DEEP),
        (b"\x00\x00\x00\x00\x07\x02\x0a", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (b" " * (8 * 1024 * 1024 + 1), Reason.TOO_LARGE),
    ],
)
def test_a_value_that_is_no_envelope_is_a_dead_letter(value: bytes, reason: Reason) -> None:
    assert refusal(decode(value)) == (reason, "value")


def test_a_megabyte_of_brackets_is_refused_by_size_or_depth_only() -> None:
    pairs = envelope(before=0).replace(b'"before":0', b'"before":[' + b"[]," * 350_000 + b"[]]")
    assert change(decode(pairs)).op is Op.DELETED
    assert refusal(decode(pairs, limits=Limits(record_bytes_max=1_000_000))) == (Reason.TOO_LARGE, "value")


def test_rows_are_not_read() -> None:
    """Whatever stands in `before` and `after`: the key is the record's."""
    for row in (None, {"id": 99}, {"id": "__debezium_unavailable_value"}, {"id": 1e308}, [], "x", 5):
        assert change(decode(envelope(before=row, after=row))).key == (10,)


# Bad input: keys


@pytest.mark.parametrize(
    ("kind", "key", "reason"),
    [
        (KeyType.INT64, None, Reason.NULL_KEY),
        (KeyType.INT64, b"null", Reason.NULL_KEY),
        (KeyType.INT64, b'{"id":null}', Reason.NULL_KEY),
        (KeyType.INT64, b"{}", Reason.MISSING_KEY),
        (KeyType.INT64, b'{"ID":10}', Reason.MISSING_KEY),
        (KeyType.INT64, b"", Reason.BAD_JSON),
        (KeyType.INT64, b"Struct{id=1}", Reason.BAD_JSON),
        (KeyType.INT64, b"\x00\x00\x00\x00\x00\x00\x00\x05", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (KeyType.INT64, b'{"id":10', Reason.BAD_JSON),
        (KeyType.INT64, b'{"id":10}{}', Reason.BAD_JSON),
        (KeyType.STRING, RAW_TAB, Reason.BAD_JSON),
        (KeyType.STRING, b'"\xff"', Reason.BAD_ENCODING),
        (KeyType.STRING, b'"\xc0\xaf"', Reason.BAD_ENCODING),
        (KeyType.STRING, b'{"id":"\\ud800"}', Reason.BAD_ENCODING),
        (KeyType.INT64, b'\xef\xbb\xbf{"id":1}', Reason.BAD_ENCODING),
        (KeyType.INT64, '{"id":1}'.encode("utf-16"), Reason.BAD_ENCODING),
        (KeyType.INT64, b"[" * 100_000, Reason.TOO_DEEP),
        (KeyType.INT64, b'{"id":NaN}', Reason.BAD_NUMBER),
        (KeyType.INT64, b'{"id":-Infinity}', Reason.BAD_NUMBER),
        (KeyType.INT64, b'{"id":1e999}', Reason.BAD_NUMBER),
        (KeyType.INT64, b'{"id":' + b"1" * 5000 + b"}", Reason.BAD_NUMBER),
        (KeyType.NUMERIC, b'{"id":' + b"1" * 5000 + b"}", Reason.BAD_NUMBER),
        (KeyType.NUMERIC, b'{"id":' + b"1" * 140_000 + b"}", Reason.BAD_NUMBER),
        (KeyType.INT64, b'{"id":9223372036854775808}', Reason.OUT_OF_RANGE),
        (KeyType.INT32, b'{"id":2147483648}', Reason.OUT_OF_RANGE),
        (KeyType.INT64, b'{"id":5.7}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"id":5.0}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"id":5e0}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"id":true}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"id":"5"}', Reason.TYPE_MISMATCH),
        (KeyType.STRING, b'{"id":{"$gt":""}}', Reason.TYPE_MISMATCH),
        (KeyType.STRING, b'{"id":{"$regex":".*"}}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"id":{"$ne":null}}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b'{"$where":"1"}', Reason.MISSING_KEY),
        (KeyType.INT64, b'{"id":[1,2]}', Reason.TYPE_MISMATCH),
        (KeyType.INT64, b"[1,2]", Reason.TYPE_MISMATCH),
        (KeyType.STRING, b'{"id":"' + b"x" * 9000 + b'"}', Reason.TOO_LARGE),
        (KeyType.STRING, b'{"id":"__debezium_unavailable_value"}', Reason.UNAVAILABLE_KEY),
        (KeyType.TIMESTAMP, b'{"id":"2026-01-02T03:04:05"}', Reason.TYPE_MISMATCH),
        (KeyType.TIMESTAMP, b'{"id":"0000-01-02T03:04:05Z"}', Reason.OUT_OF_RANGE),
        (KeyType.INT64, b'{"id":1,"id":2}', Reason.DUPLICATE_FIELD),
        (KeyType.INT64, b'{"id":1,"other":2,"other":3}', Reason.DUPLICATE_FIELD),
        (KeyType.INT64, b" " * (8 * 1024 * 1024 + 1), Reason.TOO_LARGE),
    ],
)
def test_a_key_in_doubt_is_a_dead_letter(kind: KeyType, key: bytes | None, reason: Reason) -> None:
    for value in (envelope("d"), envelope("c"), None):
        assert refusal(decode(value, key, id=kind)) == (reason, "key")
    if key == RAW_TAB:  # which a header may have
        return
    old = {KeyType.STRING: b'"a"', KeyType.TIMESTAMP: b'"2026-01-02T03:04:05Z"'}.get(kind, b"10")
    for value in (envelope("d"), None):
        assert refusal(decode(value, old, new_key(key), id=kind)) == (reason, "header")


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        (KeyType.INT64, b"10", 10),
        (KeyType.STRING, b'"abc"', "abc"),
        (KeyType.STRING, b'{"id":""}', ""),
        (KeyType.STRING, b'{"id":"a\\u0000b"}', "a\0b"),
        (KeyType.STRING, b'{"id":"\'; DROP TABLE x;--"}', "'; DROP TABLE x;--"),
        (KeyType.STRING, '{"id":"e\u0301"}'.encode(), "e\u0301"),
        (KeyType.STRING, '{"id":"\u00e9"}'.encode(), "\u00e9"),
        (KeyType.NUMERIC, b'{"id":123456789012345678901}', 123456789012345678901),
        (KeyType.NUMERIC, b'{"id":-0.0}', 0),
        (KeyType.INT64, b'{"id":10,"__dbz__physicalTableIdentifier":"a","more":{"id":5}}', 10),
        (KeyType.INT64, b'{"id":10,"note":"12:30"}', 10),
    ],
)
def test_a_key_is_read_by_field_name_or_as_a_bare_scalar(kind: KeyType, key: bytes, expected: object) -> None:
    assert change(decode(envelope(), key, id=kind)).key == (expected,)


def test_a_long_key_is_allowed_by_its_limit() -> None:
    key = b'{"id":"' + b"x" * 9000 + b'"}'
    assert len(str(change(decode(envelope(), key, limits=Limits(key_text_max=9000), id=KeyType.STRING)).key[0])) == 9000


def test_composite_keys_are_mapped_by_name() -> None:
    fields = {"tenant": KeyType.STRING, "id": KeyType.INT64}
    for key in (b'{"tenant":"acme","id":5}', b'{"id":5,"x":null,"tenant":"acme"}'):
        assert change(decode(envelope(), key, **fields)).key == ("acme", 5)
    assert refusal(decode(envelope(), b'{"id":5}', **fields)) == (Reason.MISSING_KEY, "key")
    assert refusal(decode(envelope(), b'{"id":5,"tenant":null}', **fields)) == (Reason.NULL_KEY, "key")
    assert refusal(decode(envelope(), b"5", **fields)) == (Reason.MISSING_KEY, "key")


def test_the_schema_of_a_key_tells_what_a_value_means() -> None:
    at = {"type": "int64", "name": "io.debezium.time.Timestamp", "version": 1, "field": "id"}
    amount = {
        "type": "bytes",
        "name": "org.apache.kafka.connect.data.Decimal",
        "parameters": {"scale": "2"},
        "field": "id",
    }
    known = change(decode(envelope(), wrapped(struct(at), {"id": 1767323045000}), id=KeyType.TIMESTAMP))
    assert str(known.key[0]) == "2026-01-02 03:04:05+00:00"
    assert refusal(decode(envelope(), b'{"id":1767323045000}', id=KeyType.TIMESTAMP))[0] is Reason.TYPE_MISMATCH
    assert str(change(decode(envelope(), wrapped(struct(amount), {"id": "AJY="}), id=KeyType.NUMERIC)).key[0]) == "1.5"
    assert refusal(decode(envelope(), b'{"id":"AJY="}', id=KeyType.NUMERIC))[0] is Reason.TYPE_MISMATCH
    bare = wrapped({key: value for key, value in amount.items() if key != "field"}, "AJY=")
    assert str(change(decode(envelope(), bare, id=KeyType.NUMERIC)).key[0]) == "1.5"


def test_each_schema_is_its_own() -> None:
    """One decoder, topics of two schemas: what it remembers of one never reads the other."""
    decoder = decoder_for(rule(id=KeyType.TIMESTAMP))
    names = {"io.debezium.time.Timestamp": 1767323045000, "io.debezium.time.MicroTimestamp": 1767323045000000}
    for index in range(200):
        for name, value in names.items():
            schema = struct({"type": "int64", "name": name, "field": "id", "doc": str(index)})
            for text in (
                wrapped(schema, {"id": value}),
                text_of({"payload": {"id": value}, "schema": schema}),
                json.dumps({"schema": schema, "payload": {"id": value}}).encode(),
            ):
                key = change(decoder(record(envelope(), text))).key
                assert str(key[0]) == "2026-01-02 03:04:05+00:00"


@pytest.mark.parametrize(
    "schema",
    [None, {}, {"type": 5}, {"type": "struct", "fields": 5}, struct({"type": "int64"}), struct({"field": "id"})],
)
def test_a_schema_of_another_shape_says_nothing(schema: object) -> None:
    assert change(decode(envelope(), wrapped(schema, {"id": 10}))).key == (10,)


def test_columns_called_schema_and_payload_are_columns() -> None:
    fields = {"schema": KeyType.STRING, "payload": KeyType.INT64}
    assert change(decode(envelope(), b'{"schema":"public","payload":5}', **fields)).key == ("public", 5)


# Key changes


@pytest.mark.parametrize(
    ("header", "to"),
    [
        (b'{"id":11}', (11,)),
        (b'{"id":11,"other":"x"}', (11,)),
        (wrapped(struct({"type": "int64", "field": "id"}), {"id": 11}), (11,)),
        (b"11", (11,)),
    ],
)
def test_a_deletion_with_a_new_key_is_a_key_change(header: bytes, to: object) -> None:
    moved, gone = change(decode(envelope(), headers=new_key(header))), change(decode(None, headers=new_key(header)))
    assert (moved.op, moved.key, moved.to, moved.version) == (Op.MOVED, (10,), to, Version(0, (4711,)))
    assert (gone.op, gone.key, gone.to, gone.version) == (Op.GONE, (10,), to, None)


def test_the_last_new_key_counts() -> None:
    headers = (*new_key(b'{"id":11}'), *new_key(b'{"id":12}'))
    assert change(decode(envelope(), headers=headers)).to == (12,)


def test_a_field_that_the_new_key_lacks_keeps_its_old_value() -> None:
    """A transformation of the key (InsertField, a table router) does not touch the header."""
    fields = {"tenant": KeyType.STRING, "id": KeyType.INT64}
    moved = change(decode(envelope(), b'{"id":2,"tenant":"b"}', new_key(b'{"id":3}'), **fields))
    assert (moved.key, moved.to) == (("b", 2), ("b", 3))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, Reason.NULL_KEY),
        (b"", Reason.BAD_JSON),
        (b"Struct{id=11}", Reason.BAD_JSON),
        (b"{}", Reason.MISSING_KEY),
        (b'{"pk":11}', Reason.MISSING_KEY),
        (b'{"id":"11"}', Reason.TYPE_MISMATCH),
        (b'{"id":11,"id":12}', Reason.DUPLICATE_FIELD),
        (b"\xff\xfe", Reason.BAD_ENCODING),
        (b" " * (8 * 1024 * 1024 + 1), Reason.TOO_LARGE),
    ],
)
def test_a_new_key_that_cannot_be_read_never_makes_a_deletion(header: bytes | None, reason: Reason) -> None:
    for value in (envelope(), None):
        assert refusal(decode(value, headers=new_key(header))) == (reason, "header")


def test_a_new_key_equal_to_the_old_is_no_change() -> None:
    for value, op in ((envelope(), "d"), (None, "tombstone")):
        decoded = decode(value, b'{"id":1.50}', new_key(b'{"id":{"scale":1,"value":"Dw=="}}'), id=KeyType.NUMERIC)
        assert isinstance(decoded, Ignored)
        assert decoded.op == op


def test_the_new_key_is_found_behind_any_number_of_headers() -> None:
    """Missing it would turn a key change into a deletion."""
    many = tuple((f"h{index}", b"x") for index in range(10_000))
    moved = change(decode(envelope(), headers=(*many, *new_key(b'{"id":11}'), ("traceparent", b"00-aa-bb-01"))))
    assert (moved.op, moved.to, moved.traceparent) == (Op.MOVED, (11,), None)


def test_a_header_without_schema_is_read_with_the_schema_of_the_key() -> None:
    at = struct({"type": "int64", "name": "io.debezium.time.Timestamp", "field": "id"})
    moved = change(
        decode(envelope(), wrapped(at, {"id": 1767323045000}), new_key(b'{"id":1767323046000}'), id=KeyType.TIMESTAMP)
    )
    assert str(moved.to) == "(datetime.datetime(2026, 1, 2, 3, 4, 6, tzinfo=datetime.timezone.utc),)"


# Null records


def test_a_null_record_says_gone() -> None:
    gone = change(decode(None))
    assert (gone.op, gone.key, gone.to, gone.version, gone.occurred_ms) == (Op.GONE, (10,), None, None, TIMESTAMP_MS)


def test_null_records_say_nothing_where_the_rule_says_so() -> None:
    decoder = decoder_for(rule(Tombstones.IGNORE))
    assert isinstance(decoder(record(None)), Ignored)
    assert isinstance(decoder(record(None, b"junk")), Ignored)
    assert change(decoder(record(envelope()))).op is Op.DELETED


@pytest.mark.parametrize("tombstones", list(Tombstones))
def test_a_record_with_neither_key_nor_value_is_a_dead_letter(tombstones: Tombstones) -> None:
    assert refusal(decoder_for(rule(tombstones))(record(None, None))) == (Reason.NULL_KEY, "key")


# Versions and times


@pytest.mark.parametrize(
    ("lsn", "position"), [(0, 0), (4711, 4711), ("4711", 4711), (LSN_MAX, LSN_MAX), (str(LSN_MAX), LSN_MAX)]
)
def test_the_version_is_the_lsn(lsn: object, position: int) -> None:
    for op in ("d", "c", "r"):
        assert change(decode(envelope(op, SOURCE | {"lsn": lsn}))).version == Version(0, (position,))


@pytest.mark.parametrize("lsn", [None, -1, 2**63, str(2**63), "", "-1", "0x10", "1.0", 1.5, True, [1], {"a": 1}, "٣"])
def test_a_change_without_a_usable_lsn_is_a_dead_letter_and_a_snapshot_read_says_nothing(lsn: object) -> None:
    source = SOURCE | {"lsn": lsn}
    assert refusal(decode(envelope("d", source))) == (Reason.BAD_VERSION, "value")
    assert refusal(decode(envelope("d", source), headers=new_key(b'{"id":11}'))) == (Reason.BAD_VERSION, "value")
    assert refusal(decode(envelope("c", source))) == (Reason.BAD_VERSION, "value")
    assert isinstance(decode(envelope("r", source)), Ignored)


@pytest.mark.parametrize("sequence", [None, "", "x", "[]", '["1"]', '["9","9"]', 5, ["1", "2"], {}])
def test_the_sequence_of_a_source_decides_nothing(sequence: object) -> None:
    assert change(decode(envelope("d", SOURCE | {"sequence": sequence}))).version == Version(0, (4711,))


def test_a_missing_lsn_is_no_version() -> None:
    source = {name: value for name, value in SOURCE.items() if name != "lsn"}
    assert refusal(decode(envelope("d", source))) == (Reason.BAD_VERSION, "value")


BINLOG = {"connector": "mysql", "ts_ms": 5, "file": "mysql-bin.000010", "pos": 4711, "row": 3}


@pytest.mark.parametrize("connector", ["mysql", "mariadb"])
@pytest.mark.parametrize(
    ("file", "number"),
    [("mysql-bin.000010", 10), ("binlog.1000000", 1_000_000), ("a.b.c.000001", 1), (".000000", 0), ("x.9\n.000002", 2)],
)
def test_a_change_of_mysql_is_placed_by_its_binary_log(connector: str, file: str, number: int) -> None:
    for op in ("d", "c", "r"):
        source = BINLOG | {"connector": connector, "file": file}
        assert change(decode(envelope(op, source))).version == Version(0, (number, 4711, 3))


def test_what_was_read_of_binary_logs_before_places_no_later_change() -> None:
    """Files roll over, a server gets another name for them, and one topic may be of several sources."""
    read = decoder_for(rule())
    sources = [
        ({"file": "mysql-bin.000009"}, (9, 4711, 3)),
        ({"file": "mysql-bin.000010"}, (10, 4711, 3)),
        ({"file": "mysql-bin.000010", "pos": 47_110, "row": 12}, (10, 47_110, 12)),
        ({"file": "binlog.000011", "connector": "mariadb"}, (11, 4711, 3)),
        ({"file": "mysql-bin.1000000"}, (1_000_000, 4711, 3)),
        ({"file": "mysql-bin.00001x"}, None),
        ({"file": "mysql-bin.0000100000000000000"}, None),
        ({"connector": "postgresql", "lsn": 20}, (20,)),
        ({"file": "mysql-bin.000009"}, (9, 4711, 3)),
    ]
    for _ in range(3):
        for changed, position in sources:
            said = read(record(envelope("d", BINLOG | {"thread": 17} | changed)))
            if position is None:
                assert refusal(said) == (Reason.BAD_VERSION, "value")
            else:
                assert change(said).version == Version(0, position)


@pytest.mark.parametrize("number", ["pos", "row", "thread", "ts_ms"])
def test_a_number_that_begins_with_a_zero_is_no_json_like_one_before_either(number: str) -> None:
    read = decoder_for(rule())
    text = envelope("d", BINLOG | {"pos": 4711, "row": 33, "thread": 17, "ts_ms": 55})
    assert read(record(text)) == read(record(text))
    digits = text.partition(f'"{number}":'.encode())[2][:2]
    broken = text.replace(b'"%b":%b' % (number.encode(), digits), b'"%b":0%b' % (number.encode(), digits[1:]), 1)
    assert broken != text
    assert refusal(read(record(broken))) == (Reason.BAD_JSON, "value")


@pytest.mark.parametrize(
    "changed",
    [
        {"file": value} for value in (None, 10, "", "mysql-bin", "mysql-bin.", "mysql-bin.00001x", "b.٣", "b.-1")
    ]
    + [{part: value} for part in ("pos", "row") for value in (None, -1, "5", 1.5, True, 2**63)],
)  # fmt: skip
def test_a_change_of_mysql_without_a_place_in_a_binary_log_is_a_dead_letter(changed: dict[str, object]) -> None:
    source = BINLOG | changed
    assert refusal(decode(envelope("d", source))) == (Reason.BAD_VERSION, "value")
    assert refusal(decode(envelope("d", source), headers=new_key(b'{"id":11}'))) == (Reason.BAD_VERSION, "value")
    assert refusal(decode(envelope("c", source))) == (Reason.BAD_VERSION, "value")
    assert isinstance(decode(envelope("r", source)), Ignored)


@pytest.mark.parametrize("connector", ["vitess", "informix"])
def test_another_connector_is_placed_by_its_offset(connector: str) -> None:
    for op in ("d", "c", "r"):
        assert change(decode(envelope(op, {"connector": connector, "pos": 5}))).version == Version(0, (42,))


@pytest.mark.parametrize(
    ("kind", "folded", "other"),
    [
        (KeyType.DATE, b'{"id":0}', b'{"id":1}'),
        (KeyType.DATE, b'{"id":"1970-01-01Z"}', b'{"id":"1970-01-02Z"}'),
        (KeyType.TIMESTAMP, b'{"id":"1970-01-01T00:00:00.000000Z"}', b'{"id":"1970-01-01T00:00:01Z"}'),
        (KeyType.BOOL, b'{"id":true}', b'{"id":false}'),
    ],
)
def test_a_key_that_mysql_may_have_made_of_several_rows_is_refused(kind: KeyType, folded: bytes, other: bytes) -> None:
    """Zero dates become 1970-01-01, and every number but 0 becomes true."""
    mysql = (("__debezium.context.connectorName", b"mysql"),)
    postgresql = (("__debezium.context.connectorName", b"postgresql"),)
    for op in ("d", "c", "r"):
        assert refusal(decode(envelope(op, BINLOG), folded, id=kind)) == (Reason.TYPE_MISMATCH, "key")
        assert change(decode(envelope(op, BINLOG), other, id=kind))
        assert change(decode(envelope(op), folded, id=kind))
    assert refusal(decode(envelope("d", BINLOG), other, new_key(folded), id=kind)) == (Reason.TYPE_MISMATCH, "key")
    for headers in ((), mysql, (*mysql, *new_key(folded))):
        assert refusal(decode(None, folded, headers, id=kind))[1] == "key"
    assert change(decode(None, folded, postgresql, id=kind)).op is Op.GONE
    assert change(decode(None, other, mysql, id=kind)).op is Op.GONE


def test_a_null_record_after_a_refused_record_is_no_event_of_its_own() -> None:
    """Debezium writes null records after deletions only: what nobody could read must not act by its null record."""
    for value in (envelope("d", SOURCE | {"lsn": None}), envelope("z"), b"{", b""):
        refused = decode(value)
        assert isinstance(refused, Undecodable)
        assert refused.repeated
    alone = decode(None, b"junk")
    assert isinstance(alone, Undecodable)
    assert not alone.repeated


@pytest.mark.parametrize("text", [b'{"id":"6f1c0f8e2b434b9b9b0a1f0a3f3f0001"}', b'{"id":"00FF"}', b'"abcd"'])
def test_bytes_that_may_be_hexadecimal_text_are_refused_without_a_schema(text: bytes) -> None:
    assert refusal(decode(envelope(), text, id=KeyType.BYTES)) == (Reason.TYPE_MISMATCH, "key")
    schema = struct({"type": "bytes", "field": "id"})
    payload = json.loads(text)
    known = wrapped(schema if isinstance(payload, dict) else {"type": "bytes"}, payload)
    assert change(decode(envelope(), known, id=KeyType.BYTES)).op is Op.DELETED


@pytest.mark.parametrize("ts_ms", [None, "5", True, 1.5, -(2**62), 2**62])
def test_without_a_usable_time_the_records_counts(ts_ms: object) -> None:
    assert change(decode(envelope("d", SOURCE | {"ts_ms": ts_ms}))).occurred_ms == TIMESTAMP_MS


@pytest.mark.parametrize(
    ("ts_ms", "occurred_ms"), [(-1, -1), (0, 0), (253_402_300_799_999, 253_402_300_799_999), (-(10**10), -(10**10))]
)
def test_a_time_in_the_past_or_future_is_kept(ts_ms: int, occurred_ms: int) -> None:
    assert change(decode(envelope("d", SOURCE | {"ts_ms": ts_ms}))).occurred_ms == occurred_ms


def test_a_time_of_a_record_that_no_calendar_has_is_the_nearest_that_one_has() -> None:
    decoder = decoder_for(rule())
    assert change(decoder(record(None)._replace(timestamp_ms=2**62))).occurred_ms == 253_402_300_799_999
    assert change(decoder(record(None)._replace(timestamp_ms=-(2**62)))).occurred_ms == -62_135_596_800_000


@pytest.mark.parametrize(
    ("headers", "traceparent"),
    [
        ((("traceparent", TRACE.encode()),), TRACE),
        ((("traceparent", b"not a trace"),), "not a trace"),
        ((("traceparent", b"\xff\xfe"),), None),
        ((("traceparent", None),), None),
        ((("traceparent", b"x" * 1_000_000),), None),
        ((("Traceparent", b"00"),), None),
    ],
)
def test_the_trace_is_taken_as_it_came_or_not_at_all(headers: Headers, traceparent: str | None) -> None:
    for value in (envelope("d"), envelope("c"), None):
        assert change(decode(value, headers=headers)).traceparent == traceparent


def test_other_headers_of_any_shape_do_not_matter() -> None:
    headers = (("", b""), ("a", None), ("b", b"\xff" * 1_000_000), ("__debezium.oldkey", b"junk"))
    assert decode(envelope(), headers=headers) == decode(envelope())


# What is not for a table's topic


@pytest.mark.parametrize("schemas", [False, True])
def test_heartbeats_and_transaction_markers_say_nothing(schemas: bool) -> None:
    def text(value: object) -> bytes:
        return wrapped({"type": "struct"}, value) if schemas else text_of(value)

    beat = decode(text({"ts_ms": 5}), text({"serverName": "shop"}))
    begin = decode(
        text({"status": "BEGIN", "id": "1:2", "event_count": None, "data_collections": None, "ts_ms": 5}),
        text({"id": "1:2"}),
    )
    assert isinstance(beat, Ignored)
    assert isinstance(begin, Ignored)
    assert (beat.op, begin.op) == ("heartbeat", "transaction")
    assert refusal(decode(text({"ts_ms": 5}), text({"id": 5}))) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(decode(text({"ts_ms": 5}), b"junk")) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(decode(text({"ts_ms": 5}), None)) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(decode(text({"status": "BEGIN", "id": "1:2"}))) == (Reason.BAD_ENVELOPE, "value")


def test_a_format_that_is_not_read_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="nothing"):
        decoder_for(rule(form="nothing"))


def test_the_second_half_of_a_key_change_tells_that_the_key_was_reached() -> None:
    """The ledger keeps what leads to a key until the key's own events have come this far."""
    created = envelope("c")
    arrived = change(decode(created, headers=[("__debezium.oldkey", b'{"id":9}')]))
    assert (arrived.op, arrived.to) == (Op.ARRIVED, None)
    assert change(decode(created)).op is Op.ALIVE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"id":0}', 0),
        (b'{"id":-7}', -7),
        (b'{"id":999999999999999999}', 999_999_999_999_999_999),
        (b'{"id":9223372036854775807}', 2**63 - 1),
        (b'{ "id" : 7 }', 7),
        (b'{"id":-0}', 0),
        (b'{"id":9223372036854775808}', Reason.OUT_OF_RANGE),
        (b'{"id":07}', Reason.BAD_JSON),
        (b'{"id":7}}', Reason.BAD_JSON),
        (b'{"id":7}\n', 7),
        (b'{"id":7.0}', Reason.TYPE_MISMATCH),
    ],
)
def test_whole_number_keys_told_at_sight_are_read_as_all_others(text: bytes, expected: object) -> None:
    decoded = decode(envelope("d"), key=text)
    assert (decoded.key[0] if isinstance(decoded, ParentChange) else decoded.reason) == expected
