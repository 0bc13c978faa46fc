"""Whatever the bytes of a message, it is decoded to a value; and only a type that the rule names ever ends a key."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.derived import derived_key, derived_value
from integrity.core.decode.record import Decoded, Decoder, Headers, Ignored, Record, Undecodable
from integrity.core.keys import canonical, key_hash
from tests.golden.messages import decoder, rule
from tests.golden.records import load
from tests.golden.test_constructed_cloudevents import TABLES, WRAPS
from tests.property.test_decode_never_raises import (
    Edits,
    broken,
    documents,
    edits,
    integers,
    keys,
    mutilated,
    scalars,
    some_bytes,
)

FILES = (
    "mdb_outbox", "pg_cloudevents", "pg_cloudevents_schemas", "pg_outbox_default", "pg_outbox_envelope",
    "pg_outbox_expand", "pg_outbox_header", "pg_outbox_string",
)  # fmt: skip
CAPTURED = [record for file in FILES for record in load(file)]
DELETED, MOVED, ALIVE = "CustomerDeleted", "CustomerRenumbered", "CustomerEmailChanged"
TYPES = f"types: {{deleted: [{DELETED}], key_changed: [{MOVED}], upserted: [{ALIVE}]}}"
RULES = [
    (kind, f"key: {{id: {type_}}}", TYPES, "new_key: {id: newId}", *more)
    for kind in ("outbox", "json")
    for type_ in ("int64", "string", "uuid")
    for more in ((), ("type_from: {field: eventType}", "key_from: payload"), ("type_from: {header: eventType}",))
]
DECODERS: list[Decoder] = [
    decoder(f"format: {kind}", *rule, copied=copied) for kind, *rule in RULES for copied in (None, ("newEmail",))
] + [
    decoder("format: cloudevents", "key: {id: int64}", TYPES, "new_key: {id: newId}", *more)
    for more in ((), ("key_from: payload",))
]
QLIK = [
    decoder("format: qlik", "key: {id: int64}", *more, copied=copied)
    for more in ((), ("key_from: payload",))
    for copied in (None, ("name",))
]
WRAPPED = [decoder("format: cloudevents", "key: {id: int64}", copied=copied) for copied in (None, ("email",))]
OPS = {DELETED: Op.DELETED, MOVED: Op.MOVED, ALIVE: Op.ALIVE}

types = st.sampled_from([*OPS, "Other", ""])
media = st.sampled_from([b"1.0", b"d", b"application/cloudevents+json", b"application/json", b"text/plain"])
headers = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "eventType",
                "traceparent",
                "ce_type",
                "ce_specversion",
                "ce_iodebeziumop",
                "content-type",
                "__debezium.newkey",
            ]
        ),
        types.map(str.encode) | media | types.map(lambda type_: json.dumps(type_).encode()) | some_bytes,
    ),
    max_size=3,
)
payloads = st.fixed_dictionaries(
    {"id": scalars}, optional={"newId": scalars, "newEmail": documents, "eventType": types, "type": types}
)
texts = payloads | payloads.map(json.dumps) | documents
values = st.one_of(
    texts,
    st.fixed_dictionaries({"payload": texts}, optional={"eventType": types, "schema": documents}),
    st.fixed_dictionaries(
        {"specversion": st.just("1.0"), "type": types, "data": texts},
        optional={
            "iodebeziumop": st.sampled_from("crudtm") | scalars,
            "iodebeziumconnector": st.just("postgresql") | scalars,
            "iodebeziumlsn": st.just("5") | documents,
            "time": scalars,
            "traceparent": scalars,
        },
    ),
).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))


rows = st.fixed_dictionaries({"id": scalars}, optional={"name": documents}) | documents
qlik_messages = st.fixed_dictionaries(
    {
        "headers": st.fixed_dictionaries(
            {"operation": st.sampled_from(["INSERT", "UPDATE", "DELETE", "REFRESH"]) | scalars},
            optional={"changeSequence": st.just("20230911032325000000000000000000005") | scalars, "timestamp": scalars},
        ),
        "data": rows,
    },
    optional={"beforeData": rows},
)
qlik_values = (
    qlik_messages
    | st.fixed_dictionaries({"magic": st.just("atMSG"), "message": qlik_messages}, optional={"type": scalars})
).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))


def says_what_a_row_may(record: Record, decoded: Decoded) -> None:
    match decoded:
        case ParentChange(op=op):
            assert (op is Op.GONE) == (record.value is None)
            assert op not in (Op.DELETED, Op.MOVED) or (b"DELETE" if op is Op.DELETED else b"UPDATE") in record.value  # type: ignore[operator]
            assert decoded.version is not None or op is Op.GONE or decoded.row is not None
            assert decoded.to != decoded.key
        case Ignored():
            pass
        case Undecodable():
            assert decoded.stage in ("key", "value", "header")
            assert len(decoded.message) < 300


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys | some_bytes, st.builds(mutilated, qlik_values, edits))
def test_any_message_of_qlik_is_decoded_to_a_value(key: bytes | None, value: bytes | None) -> None:
    record = Record("t", 0, 5, 0, key, value, ())
    for decode in QLIK:
        says_what_a_row_may(record, decode(record))


def says_what_an_envelope_may(record: Record, decoded: Decoded) -> None:
    match decoded:
        case ParentChange(op=op):
            written = b" ".join([record.value or b"", *(value or b"" for _, value in record.headers)])
            moves = any(name == "__debezium.newkey" for name, _ in record.headers)
            assert record.value is not None or op is Op.GONE
            assert op not in (Op.DELETED, Op.MOVED) or b'"d"' in written or b" d" in written
            assert (op is Op.MOVED) <= moves
            assert op is not Op.DELETED or not moves
        case Ignored():
            pass
        case Undecodable():
            assert decoded.stage in ("key", "value", "header")
            assert len(decoded.message) < 300


def says_what_it_may(record: Record, decoded: Decoded) -> None:
    match decoded:
        case ParentChange(op=Op.GONE):
            assert record.value is None
            assert (decoded.to, decoded.version) == (None, None)
        case ParentChange(op=op):
            written = b" ".join([record.value or b"", *(value or b"" for _, value in record.headers)])
            [type_] = [type_ for type_, said in OPS.items() if said is op]
            assert type_.encode() in written.replace(b"\\", b"") or b"\\u" in written
            assert (decoded.to is not None) == (op is Op.MOVED)
            assert decoded.to != decoded.key
            assert decoded.version is not None
            assert (decoded.row is not None) <= (op is Op.ALIVE)
            for key in (decoded.key, decoded.to):
                assert key is None or (len(key_hash("customer", key)) == 16 and canonical(key).startswith("["))
        case Ignored():
            pass
        case Undecodable():
            assert decoded.stage in ("key", "value", "header")
            assert len(decoded.message) < 300


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys | some_bytes, values | some_bytes, headers, integers, st.integers(0, 1))
def test_any_bytes_are_decoded_to_a_value(
    key: bytes | None, value: bytes | None, some_headers: Headers, timestamp_ms: int, partition: int
) -> None:
    record = Record("t", partition, 5, timestamp_ms, key, value, some_headers)
    for decode in DECODERS:
        says_what_it_may(record, decode(record))
    for decode in WRAPPED:
        says_what_an_envelope_may(record, decode(record))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(broken(CAPTURED))
def test_captured_records_with_broken_bytes_are_decoded_to_a_value(record: Record) -> None:
    for decode in DECODERS:
        says_what_it_may(record, decode(record))
    for decode in WRAPPED:
        says_what_an_envelope_may(record, decode(record))


ORDER = rule("format: integrity", "key: {tenant: string, id: int64}", fields=("tenant", "id"))
DERIVED = decoder_for(ORDER)
WRAPPED_CHANGES: list[tuple[Record, Decoder]] = [
    (wrap(each), decode)
    for records, (name, kind) in TABLES.values()
    for decode in [decoder("format: cloudevents", f"key: {{{name}: {kind}}}", fields=(name,))]
    for wrap in WRAPS
    for each in records
    if each.value is not None
]
"""Change events of every connector inside of CloudEvents."""


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WRAPPED_CHANGES), edits, edits)
def test_wrapped_changes_with_broken_bytes_are_decoded_to_a_value(
    wrapped: tuple[Record, Decoder], of_key: Edits, of_value: Edits
) -> None:
    record, decode = wrapped
    broken_one = record._replace(key=mutilated(record.key, of_key), value=mutilated(record.value, of_value))
    says_what_an_envelope_may(broken_one, decode(broken_one))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(WRAPPED_CHANGES), st.integers(0, 0xFFFF))
def test_a_wrapped_change_cut_short_says_nothing(wrapped: tuple[Record, Decoder], at: int) -> None:
    record, decode = wrapped
    assert record.value
    assert isinstance(decode(record._replace(value=record.value[: at % len(record.value)])), Undecodable)


ORDERS = [
    Record("t", 0, 5, 0, derived_key(ORDER.key, ("eu", 7)), value, ())
    for op, to in ((Op.DELETED, None), (Op.MOVED, ("uk", 7)), (Op.ARRIVED, None))
    for value in [derived_value("customer", op, ("eu", 7), to, Version(0, (3,)), "a/0/1/o/[7]", "a/0/1", 17)]
]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    broken(ORDERS) | st.builds(Record, st.just("t"), st.just(0), integers, integers, keys | some_bytes, values, headers)
)
def test_derived_events_with_broken_bytes_are_decoded_to_a_value(record: Record) -> None:
    match DERIVED(record):
        case ParentChange(op=op, to=to):
            assert record.value is not None
            assert {Op.DELETED: b"deleted", Op.MOVED: b"key_changed"}.get(op, b"") in record.value
            assert (to is not None) == (op is Op.MOVED)
        case Ignored() | Undecodable():
            pass
