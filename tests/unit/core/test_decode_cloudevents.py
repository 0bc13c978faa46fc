"""CloudEvents in Kafka: where their attributes are, and what is none."""

from __future__ import annotations

import json

import pytest

from integrity.core.change import Cell, Op, ParentChange
from integrity.core.decode.record import Headers, Record, Undecodable
from integrity.errors import Reason
from tests.golden.histories import Expected
from tests.golden.messages import decoder, seen
from tests.golden.records import at

TYPES = "types: {deleted: [shop.customer.deleted], key_changed: [shop.customer.renumbered], upserted: [shop.customer]}"
DOMAIN = ("format: cloudevents", "key: {id: int64}", TYPES, "new_key: {id: newId}")
WRAPPED = ("format: cloudevents", "key: {id: int64}")
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
BAD = Reason.BAD_ENVELOPE
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def attributes(type_: str = "shop.customer.deleted", **more: object) -> dict[str, object]:
    return {"id": "1", "source": "/shop", "specversion": "1.0", "type": type_, **more}


def structured(event: object, key: bytes | None = b"7", headers: Headers = STRUCTURED) -> Record:
    return Record("customers", 0, 5, 1_700_000_000_000, key, json.dumps(event).encode(), headers)


def binary(event: dict[str, object], value: bytes | None, content_type: bytes | None = None) -> Record:
    headers: list[tuple[str, bytes | None]] = [(f"ce_{name}", str(text).encode()) for name, text in event.items()]
    if content_type is not None:
        headers.append(("content-type", content_type))
    return Record("customers", 0, 5, 1_700_000_000_000, b"7", value, headers)


@pytest.mark.parametrize(
    ("type_", "data", "expected"),
    [
        ("shop.customer.deleted", {"reason": "gdpr"}, Expected(Op.DELETED, (7,))),
        ("shop.customer.renumbered", {"newId": 8}, Expected(Op.MOVED, (7,), (8,))),
        ("shop.customer.renumbered", {}, Expected(Reason.MISSING_KEY)),
        ("shop.customer", {"name": "x"}, Expected(Op.ALIVE, (7,))),
        ("shop.customer.archived", {}, Expected("other")),
    ],
)
def test_domain_event_says_the_same_structured_and_binary(type_: str, data: object, expected: Expected) -> None:
    read = decoder(*DOMAIN)
    text = json.dumps(data).encode()
    assert seen(read(structured(attributes(type_, data=data)))) == expected
    assert seen(read(structured(attributes(type_, data=json.dumps(data))))) == expected  # JSON in JSON
    assert seen(read(structured(attributes(type_, data=data), headers=()))) == expected  # as Debezium's converter does
    assert seen(read(binary(attributes(type_), text))) == expected
    assert seen(read(binary(attributes(type_), text, b"application/json; charset=utf-8"))) == expected
    assert seen(read(binary(attributes(type_), text, b"application/vnd.shop.v1+json"))) == expected


def test_null_record_is_an_event_if_it_has_the_headers_of_one() -> None:
    """The Kafka binding: a binary event without data is a null record, which is no word about what happened."""
    read = decoder(*DOMAIN)
    assert seen(read(binary(attributes(), None))) == Expected(Op.DELETED, (7,))
    assert seen(read(binary(attributes("shop.customer"), None))) == Expected(Op.ALIVE, (7,))
    assert seen(read(binary(attributes("shop.customer.archived"), None))) == Expected("other")
    assert seen(read(binary({}, None))) == Expected(Op.GONE, (7,))
    assert seen(read(binary({}, None, b"application/json"))) == Expected(Op.GONE, (7,))
    assert seen(decoder(*DOMAIN, "tombstones: ignore")(binary({}, None))) == Expected("tombstone")
    copied = decoder(*DOMAIN, copied=("name",))(binary(attributes("shop.customer"), None))
    assert seen(copied) == Expected(Reason.BAD_ENVELOPE)


def test_time_and_trace_are_those_of_the_event() -> None:
    event = attributes(time="2026-02-01T01:00:00.250+01:00", traceparent=TRACE, data={"name": "x"})
    for record in (structured(event), binary(event, b"{}")):
        change = decoder(*DOMAIN)(record)
        assert isinstance(change, ParentChange)
        assert (change.occurred_ms, change.traceparent) == (1_769_904_000_250, TRACE)


@pytest.mark.parametrize("time", ["yesterday", "2026-02-01T00:00:00", "0001-01-01T00:00:00+14:00", 5, None])
def test_time_that_is_no_moment_is_the_records(time: object) -> None:
    change = decoder(*DOMAIN)(structured(attributes(time=time)))
    assert isinstance(change, ParentChange)
    assert change.occurred_ms in (1_700_000_000_000, -62_135_596_800_000 - 14 * 3_600_000)


def test_copied_row_is_the_data() -> None:
    change = decoder(*DOMAIN, copied=("name",))(structured(attributes("shop.customer", data={"name": "x", "y": 1})))
    assert isinstance(change, ParentChange)
    assert change.row == {"name": Cell("x")}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (structured([attributes()]), Reason.BAD_ENVELOPE),
        (structured({"type": "shop.customer.deleted"}), Reason.BAD_ENVELOPE),
        (structured(attributes() | {"type": ""}), Reason.BAD_ENVELOPE),
        (structured(attributes() | {"type": 5}), Reason.BAD_ENVELOPE),
        (structured(attributes() | {"specversion": "0.3"}), Reason.BAD_ENVELOPE),
        (structured(attributes(), headers=[("content-type", b"application/cloudevents-batch+json")]), BAD),
        (structured(attributes(), headers=[("content-type", b"application/cloudevents+avro")]), BAD),
        (structured(attributes(), key=b'"7"'), Reason.TYPE_MISMATCH),
        (structured(attributes(), key=None), Reason.NULL_KEY),
        (structured(attributes("shop.customer.renumbered", data_base64="e30=")), Reason.BAD_ENVELOPE),
        (binary(attributes("shop.customer.renumbered"), b"{}", b"application/x-protobuf"), Reason.BAD_ENVELOPE),
        (binary(attributes("shop.customer.renumbered"), b"{"), Reason.BAD_JSON),
        (binary({"type": "shop.customer.deleted"}, b"{}"), Reason.BAD_ENVELOPE),
        (binary({"specversion": "1.0"}, b"{}"), Reason.BAD_ENVELOPE),
        (binary(attributes(), b""), Reason.EMPTY_VALUE),
        (binary(attributes(), b"{}")._replace(headers=[("ce_type", b"\xff")]), Reason.BAD_ENCODING),
        (binary(attributes(), b"{}")._replace(headers=[("ce_type", b"a"), ("ce_type", b"b")]), Reason.BAD_ENVELOPE),
    ],
)
def test_what_is_no_event_beyond_doubt_is_a_dead_letter(record: Record, reason: Reason) -> None:
    assert seen(decoder(*DOMAIN)(record)) == Expected(reason)


def test_content_type_decides_where_both_forms_are_there() -> None:
    record = structured(
        attributes("shop.customer.archived"), headers=[*STRUCTURED, ("ce_type", b"shop.customer.deleted")]
    )
    assert seen(decoder(*DOMAIN)(record)) == Expected("other")


def test_domain_events_need_types_and_change_events_none() -> None:
    """Read with the other rule, a deletion would pass for nothing."""
    change = at("pg_cloudevents", "public.customers", 18)
    for decoded in (decoder(*WRAPPED)(structured(attributes())), decoder(*DOMAIN)(change)):
        assert isinstance(decoded, Undecodable)
        assert decoded.reason is Reason.BAD_ENVELOPE
        assert "types" in decoded.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iodebeziumop": "x"}, Expected(Reason.UNKNOWN_OP)),
        ({"iodebeziumop": None}, Expected(Reason.BAD_ENVELOPE)),
        ({"iodebeziumop": ["d"]}, Expected(Reason.BAD_ENVELOPE)),
        ({"iodebeziumlsn": None}, Expected(Reason.BAD_VERSION)),
        ({"iodebeziumlsn": "x"}, Expected(Reason.BAD_VERSION)),
        ({"iodebeziumlsn": {"a": 1.5}}, Expected(Reason.BAD_ENVELOPE)),
        ({"iodebeziumconnector": None}, Expected(Reason.BAD_ENVELOPE)),
        ({"iodebeziumconnector": "mongodb"}, Expected(Reason.MISSING_KEY)),  # the rule's key is no _id
        ({"data": None}, Expected(Reason.BAD_ENVELOPE)),
        ({"data": [1]}, Expected(Reason.BAD_ENVELOPE)),
        ({"data": {"schema": {}, "payload": 5}}, Expected(Reason.BAD_ENVELOPE)),
        ({"data": {}}, Expected(Op.DELETED, (12,))),  # the record key says who, the attributes say the rest
        ({"iodebeziumop": "t"}, Expected("t")),
        ({"iodebeziumop": "m"}, Expected("m")),
    ],
)
def test_change_event_is_read_as_strictly_as_an_envelope(changes: dict[str, object], expected: Expected) -> None:
    record = at("pg_cloudevents", "public.customers", 18)
    event = json.loads(record.value or b"") | changes
    assert seen(decoder(*WRAPPED)(record._replace(value=json.dumps(event).encode()))) == expected
