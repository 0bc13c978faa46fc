"""Domain events: what a type says of a key, and what is refused because it might say something else."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from integrity.core.change import Cell, Op, ParentChange, Version
from integrity.core.decode.derived import derived_key, derived_value
from integrity.core.decode.record import Headers, Record, Undecodable
from integrity.core.keys import KeySpec, KeyType
from integrity.errors import Reason
from tests.golden.histories import Expected
from tests.golden.messages import decoder, rule, seen

TYPES = "types: {deleted: [Deleted], key_changed: [Renumbered], upserted: [Changed]}"
JSON = ("format: json", "key: {id: int64}", TYPES, "new_key: {id: newId}")
OUTBOX = ("format: outbox", *JSON[1:])
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(value: object, key: bytes | None = b"7", headers: Headers = (), partition: int = 0) -> Record:
    data = value if value is None or type(value) is bytes else json.dumps(value).encode()
    return Record("customers", partition, 5, 1_700_000_000_000, key, data, headers)  # type: ignore[arg-type]


def event(type_: object, key: bytes | None = b"7", partition: int = 0, **fields: object) -> Record:
    return record({"type": type_, **fields}, key, partition=partition)


def of_header(type_: bytes | None, value: object, key: bytes | None = b"7") -> Record:
    return record(value, key, [("eventType", type_)])


def refused(rules: Sequence[str], given: Record, fields: Sequence[str] = ("id",)) -> Undecodable:
    decoded = decoder(*rules, fields=fields)(given)
    assert isinstance(decoded, Undecodable), decoded
    return decoded


def test_each_type_says_what_the_rule_gives_it() -> None:
    read = decoder(*JSON)
    assert seen(read(event("Deleted"))) == Expected(Op.DELETED, (7,))
    assert seen(read(event("Renumbered", newId=8))) == Expected(Op.MOVED, (7,), (8,))
    assert seen(read(event("Changed", name="x"))) == Expected(Op.ALIVE, (7,))
    change = read(event("Deleted")._replace(headers=[("traceparent", TRACE)]))
    assert isinstance(change, ParentChange)
    assert (change.version, change.occurred_ms, change.traceparent) == (
        Version(0, (5,)),
        1_700_000_000_000,
        TRACE.decode(),
    )


@pytest.mark.parametrize("type_", ["Archived", "deleted", "Deleted ", "CustomerDeleted", "*"])
def test_type_that_the_rule_does_not_name_is_never_a_deletion(type_: str) -> None:
    """Nor is its key looked at, which may be of another make."""
    assert seen(decoder(*JSON)(event(type_, key=b'"x"'))) == Expected("other")


@pytest.mark.parametrize("value", [{"id": 7}, {"type": None}, {"type": ""}, {"type": ["Deleted"]}, [1], 5, b"null"])
def test_event_whose_type_cannot_be_found_is_a_dead_letter(value: object) -> None:
    assert refused(JSON, record(value)).reason is Reason.BAD_ENVELOPE


def test_key_change_names_its_new_key_or_is_a_dead_letter() -> None:
    """Never a deletion, and never a change to a key that is not there."""
    read = decoder(*JSON)
    assert seen(read(event("Renumbered"))) == Expected(Reason.MISSING_KEY)
    assert seen(read(event("Renumbered", newId=None))) == Expected(Reason.NULL_KEY)
    assert seen(read(event("Renumbered", newId="8"))) == Expected(Reason.TYPE_MISMATCH)
    assert seen(read(event("Renumbered", newId=7))) == Expected("key_changed")


def test_part_of_a_key_that_new_key_leaves_out_keeps_its_value() -> None:
    rules = ("format: json", "key: {tenant: string, id: int64}", TYPES, "new_key: {id: newId}")
    read = decoder(*rules, fields=("tenant", "id"))
    given = event("Renumbered", key=b'{"tenant":"eu","id":7}', newId=8)
    assert seen(read(given)) == Expected(Op.MOVED, ("eu", 7), ("eu", 8))


@pytest.mark.parametrize("type_", ["Deleted", "Renumbered", "Changed"])
def test_with_key_changes_nothing_of_a_second_partition_is_believed(type_: str) -> None:
    """Offsets of two partitions are in no order: an older deletion of the new key would take the rows along that a key
    change has led there."""
    found = refused(JSON, event(type_, partition=1, newId=8))
    assert (found.reason, "one" in found.message) == (Reason.BAD_VERSION, True)
    without = ("format: json", "key: {id: int64}", "types: {deleted: [Deleted]}")
    assert seen(decoder(*without)(event("Deleted", partition=1))) == Expected(Op.DELETED, (7,))


def test_null_record_of_a_json_topic_is_a_deletion_unless_it_has_a_type() -> None:
    assert seen(decoder(*JSON)(record(None))) == Expected(Op.GONE, (7,))
    assert seen(decoder(*JSON, "tombstones: ignore")(record(None))) == Expected("tombstone")
    in_header = decoder(*JSON, "type_from: {header: eventType}")
    assert seen(in_header(record(None))) == Expected(Op.GONE, (7,))
    assert seen(in_header(of_header(b"Changed", None))) == Expected(Op.ALIVE, (7,))
    assert seen(in_header(of_header(b"Other", None))) == Expected("other")
    assert seen(decoder(*JSON, "key_from: payload")(record(None))) == Expected(Reason.MISSING_KEY)


def test_null_record_of_an_outbox_is_what_its_type_says() -> None:
    """An event of every type may have an empty payload."""
    read = decoder(*OUTBOX)
    assert seen(read(of_header(b"Deleted", None))) == Expected(Op.DELETED, (7,))
    assert seen(read(of_header(b"Other", None))) == Expected("other")
    assert seen(read(record(None))) == Expected(Reason.BAD_ENVELOPE)
    assert seen(decoder(*OUTBOX, "tombstones: ignore")(record(None))) == Expected("tombstone")
    in_value = decoder(*OUTBOX, "type_from: {field: eventType}")
    assert seen(in_value(record(None))) == Expected(Reason.BAD_ENVELOPE)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Deleted", Expected(Op.DELETED, (7,))),
        (b'"Deleted"', Expected(Op.DELETED, (7,))),  # header.converter=JsonConverter
        (b'{"schema":{"type":"string","optional":false},"payload":"Deleted"}', Expected(Op.DELETED, (7,))),
        (b"", Expected(Reason.BAD_ENVELOPE)),
        (None, Expected(Reason.BAD_ENVELOPE)),
        (b"\xff", Expected(Reason.BAD_ENCODING)),
        (b'"Deleted', Expected(Reason.BAD_JSON)),
        (b'{"type":"Deleted"}', Expected(Reason.BAD_ENVELOPE)),
    ],
)
def test_type_of_a_header_is_text_as_it_is_or_as_json(header: bytes | None, expected: Expected) -> None:
    assert seen(decoder(*OUTBOX)(of_header(header, {}))) == expected


def test_two_types_are_none() -> None:
    twice = record({}, headers=[("eventType", b"Deleted"), ("eventType", b"Changed")])
    assert refused(OUTBOX, twice).reason is Reason.BAD_ENVELOPE
    same = record({}, headers=[("eventType", b"Deleted"), ("eventType", b"Deleted")])
    assert seen(decoder(*OUTBOX)(same)) == Expected(Op.DELETED, (7,))


@pytest.mark.parametrize(
    "value",
    [
        {"payload": {"newId": 8}, "eventType": "Renumbered"},
        {"payload": '{"newId": 8}', "eventType": "Renumbered"},
        {"schema": {"type": "struct"}, "payload": {"payload": {"newId": 8}, "eventType": "Renumbered"}},
        {"schema": {"type": "struct"}, "payload": {"payload": '{"newId":8}', "eventType": "Renumbered"}},
    ],
)
def test_payload_beside_its_type_is_read_in_every_form_that_the_converter_gives_it(value: object) -> None:
    read = decoder(*OUTBOX, "type_from: {field: eventType}")
    assert seen(read(record(value))) == Expected(Op.MOVED, (7,), (8,))


def test_payload_in_a_field_is_asked_for_by_name() -> None:
    read = decoder(*JSON, "payload: data")
    assert seen(read(event("Renumbered", newId=9, data={"newId": 8}))) == Expected(Op.MOVED, (7,), (8,))
    assert seen(read(event("Renumbered", newId=9))) == Expected(Reason.BAD_ENVELOPE)


@pytest.mark.parametrize("value", [b"\x00\x00\x00\x00\x07abc", b"gone", b'"x"', b"[1]"])
def test_payload_is_read_only_where_something_of_it_is_needed(value: bytes) -> None:
    """Of a deletion the header and the record key say all, whatever the serializer of the payload was."""
    assert seen(decoder(*OUTBOX)(of_header(b"Deleted", value))) == Expected(Op.DELETED, (7,))
    needing = decoder(*OUTBOX, "key_from: payload")(of_header(b"Deleted", value))
    assert isinstance(needing, Undecodable)


@pytest.mark.parametrize(
    ("key", "more", "raw", "expected"),
    [
        ("string", (), b'"c-1"', Expected(Op.DELETED, ("c-1",))),
        ("string", (), b"c-1", Expected(Reason.BAD_JSON)),
        ("string", (), b"7", Expected(Reason.TYPE_MISMATCH)),
        ("string", ("key_format: string",), b"7", Expected(Op.DELETED, ("7",))),
        ("int64", (), b'{"id":7,"x":1}', Expected(Op.DELETED, (7,))),
        ("int64", (), b'"7"', Expected(Reason.TYPE_MISMATCH)),
        ("int64", ("key_format: string",), b"7", Expected(Op.DELETED, (7,))),
        ("int64", (), None, Expected(Reason.NULL_KEY)),
    ],
)
def test_record_key_is_read_as_the_rule_says(
    key: str, more: tuple[str, ...], raw: bytes | None, expected: Expected
) -> None:
    read = decoder("format: json", f"key: {{id: {key}}}", "types: {deleted: [Deleted]}", *more)
    assert seen(read(event("Deleted", key=raw))) == expected


def test_version_of_the_payload_places_an_event_in_any_partition() -> None:
    read = decoder(*JSON, "version: meta.rev", "epoch: 1")
    for type_, rev in (("Deleted", 12), ("Renumbered", "12")):
        change = read(event(type_, partition=3, newId=8, meta={"rev": rev}))
        assert isinstance(change, ParentChange)
        assert change.version == Version(1, (12,))
    for rev in (None, -1, 1.5, "x", True):
        assert seen(read(event("Deleted", meta={"rev": rev}))) == Expected(Reason.BAD_VERSION)
    assert seen(read(event("Deleted"))) == Expected(Reason.BAD_VERSION)
    assert seen(decoder(*OUTBOX, "version: rev")(of_header(b"Deleted", None))) == Expected(Reason.BAD_ENVELOPE)


def test_key_that_is_of_another_type_is_refused_with_what_mends_it() -> None:
    found = refused(JSON, event("Deleted", key=b'"7"'))
    assert "key_from: payload" in found.message
    assert len(found.message) < 300


def test_key_of_the_payload_needs_a_record_key_that_orders_the_events() -> None:
    read = decoder(*JSON, "key_from: payload")
    assert seen(read(event("Deleted", key=b"x", id=7))) == Expected(Op.DELETED, (7,))
    assert seen(read(event("Deleted", key=b"x", id="7"))) == Expected(Reason.TYPE_MISMATCH)
    assert seen(read(event("Deleted", key=b"x"))) == Expected(Reason.MISSING_KEY)
    assert seen(read(event("Deleted", key=None, id=7))) == Expected(Reason.NULL_KEY)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, None, Reason.NULL_KEY),
        (b"7", b"", Reason.EMPTY_VALUE),
        (b"7", b'{"type":"Deleted","type":"Changed"}', Reason.DUPLICATE_FIELD),
        (b"7", b'{"type":"Deleted"', Reason.BAD_JSON),
        (b"7", b'{"type":"Deleted","x":NaN}', Reason.BAD_NUMBER),
        (b"7", b'{"type":"\xff"}', Reason.BAD_ENCODING),
        (b"7", b'{"type":"Deleted","x":' + b"[" * 200 + b"]" * 200 + b"}", Reason.TOO_DEEP),
        (b"7", b"\x00\x00\x00\x00\x07abc", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (b'{"id":{"$gt":""}}', b'{"type":"Deleted"}', Reason.TYPE_MISMATCH),
        (b"9223372036854775808", b'{"type":"Deleted"}', Reason.OUT_OF_RANGE),
        (b"7.0", b'{"type":"Deleted"}', Reason.TYPE_MISMATCH),
        (b"true", b'{"type":"Deleted"}', Reason.TYPE_MISMATCH),
    ],
)
def test_bad_input_is_a_dead_letter(key: bytes | None, value: bytes | None, reason: Reason) -> None:
    assert refused(JSON, record(value, key)).reason is reason


def test_copied_row_is_the_payload_with_exact_values() -> None:
    read = decoder(*JSON, copied=("name", "limit", "gone"))
    change = read(record(b'{"type":"Changed","name":null,"limit":9007199254740993}'))
    assert isinstance(change, ParentChange)
    assert change.row == {"name": Cell(None), "limit": Cell(9007199254740993)}
    assert isinstance(decoder(*OUTBOX, copied=("name",))(of_header(b"Changed", None)), Undecodable)


def test_derived_events_of_another_installation_are_read_as_a_format() -> None:
    """`format: integrity`: the entity is the rule's parent, and the epoch of the rule counts on top."""
    spec = KeySpec((("id", KeyType.INT64),))
    value = derived_value("customer", Op.DELETED, (7,), None, Version(1, (3,)), "id", "cause", 0)
    given = record(value, derived_key(spec, (7,)))
    change = decoder("format: integrity", "key: {id: int64}", "epoch: 2")(given)
    assert isinstance(change, ParentChange)
    assert (change.op, change.key, change.version) == (Op.DELETED, (7,), Version(3, (3,)))
    other = derived_value("order", Op.DELETED, (7,), None, Version(1, (3,)), "id", "cause", 0)
    assert refused(("format: integrity", "key: {id: int64}"), record(other, given.key)).reason is Reason.BAD_ENVELOPE


def test_only_rows_are_known_to_live_by_their_newest_event() -> None:
    """A scan must not take a parent for gone because no domain event names it."""
    told = {
        lines[0]: rule(*lines).events.tell_who_lives  # type: ignore[union-attr]
        for lines in (JSON, OUTBOX, ("format: integrity", JSON[1]), ("format: debezium", JSON[1]))
    }
    assert told == {
        "format: json": False,
        "format: outbox": False,
        "format: integrity": False,
        "format: debezium": True,
    }
