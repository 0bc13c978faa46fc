"""Every captured record of Debezium's EventRouter and MongoEventRouter, decoded as the outbox statements say."""

from __future__ import annotations

import json

import pytest

from integrity.core.change import Cell, Op, ParentChange, Version
from integrity.core.decode.record import Record, Undecodable
from integrity.errors import Reason
from tests.golden.histories import Expected
from tests.golden.messages import decoder, seen
from tests.golden.records import load

TYPES = "types: {deleted: [CustomerDeleted], upserted: [CustomerEmailChanged]}"
OUTBOX = ("format: outbox", "key: {id: string}", TYPES)
ENVELOPE = (*OUTBOX, "type_from: {field: eventType}")
TYPED = [("pg_outbox_header", OUTBOX), ("pg_outbox_envelope", ENVELOPE)]
UNTYPED = ["pg_outbox_default", "pg_outbox_expand", "pg_outbox_string"]


def events(file: str) -> list[Record]:
    return [record for record in load(file) if record.topic.endswith(".Customer")]


@pytest.mark.parametrize(("file", "rule"), TYPED)
def test_each_event_says_what_its_row_of_the_outbox_said(file: str, rule: tuple[str, ...]) -> None:
    """Fact 19: the rows of 007 and 2 were deleted in the transaction that wrote them, and are events all the same; the
    row of 3 has no payload (fact 1: the text null), which a deletion needs none of."""
    assert [seen(decoder(*rule)(record)) for record in events(file)] == [
        Expected(Op.DELETED, ("1",)),
        Expected(Op.ALIVE, ("1",)),
        Expected(Op.DELETED, ("007",)),
        Expected(Op.DELETED, ("2",)),
        Expected(Op.DELETED, ("3",)),
    ]


def test_each_event_of_mongodb_says_what_its_document_said() -> None:
    assert [seen(decoder(*OUTBOX)(record)) for record in events("mdb_outbox")] == [
        Expected(Op.DELETED, ("007",)),
        Expected(Op.ALIVE, ("007",)),
    ]


@pytest.mark.parametrize("file", UNTYPED)
def test_event_without_a_type_is_a_dead_letter_that_names_the_option(file: str) -> None:
    """EventRouter writes no type unless it is told to. Fact 1: with the StringConverter the row without a payload is a
    null record, which might as well be the change of an e-mail address: no deletion."""
    refused = [decoder(*OUTBOX)(record) for record in events(file)]
    assert len(refused) == 5
    for each in refused:
        assert isinstance(each, Undecodable)
        assert each.reason is Reason.BAD_ENVELOPE
        assert "table.fields.additional.placement=type:header:eventType" in each.message


@pytest.mark.parametrize("file", [file for file, _ in TYPED] + UNTYPED)
def test_logical_messages_of_the_database_are_no_events(file: str) -> None:
    others = [record for record in load(file) if record not in events(file)]
    assert [record.topic for record in others] == [f"{file}.message"] * 2
    for record in others:
        assert seen(decoder(*OUTBOX)(record)) == Expected(Reason.BAD_ENVELOPE)


@pytest.mark.parametrize(("file", "rule"), TYPED)
def test_text_of_the_outbox_is_no_number_and_the_payload_may_have_one(file: str, rule: tuple[str, ...]) -> None:
    numbers = (rule[0], "key: {id: int64}", *rule[2:])
    assert [seen(decoder(*numbers)(record)).what for record in events(file)] == [Reason.TYPE_MISMATCH] * 5
    in_payload = decoder(*numbers, "key_from: payload")
    assert [seen(in_payload(record)) for record in events(file)] == [
        Expected(Op.DELETED, (1,)),
        Expected(Op.ALIVE, (1,)),
        Expected(Reason.TYPE_MISMATCH),  # {"id": "007"}
        Expected(Reason.MISSING_KEY),  # {}
        Expected(Reason.BAD_ENVELOPE),  # null
    ]


@pytest.mark.parametrize(("file", "rule"), TYPED)
def test_event_is_placed_by_its_offset_and_timed_by_its_record(file: str, rule: tuple[str, ...]) -> None:
    for record in events(file):
        change = decoder(*rule, "epoch: 2")(record)
        assert isinstance(change, ParentChange)
        assert (change.version, change.occurred_ms) == (Version(2, (record.offset,)), record.timestamp_ms)


@pytest.mark.parametrize(
    ("file", "rule", "expected"),
    [
        ("pg_outbox_header", OUTBOX, ["uno@x.test"]),
        ("pg_outbox_envelope", ENVELOPE, ["uno@x.test"]),
        ("mdb_outbox", OUTBOX, ["n@x.test"]),  # a text that holds the payload: JSON in JSON
    ],
)
def test_a_copy_takes_its_row_from_the_payload(file: str, rule: tuple[str, ...], expected: list[str]) -> None:
    decoded = [decoder(*rule, copied=("newEmail",))(record) for record in events(file)]
    rows = [change.row for change in decoded if isinstance(change, ParentChange) and change.op is Op.ALIVE]
    assert rows == [{"newEmail": Cell(email)} for email in expected]


def test_fact_19_keys_are_the_same_text_with_and_without_quotes() -> None:
    """The JsonConverter writes "007", the StringConverter 007."""
    rule = ("format: outbox", "key: {id: string}", "types: {deleted: [CustomerDeleted]}")
    said = [("eventType", b"CustomerDeleted")]
    quoted, bare = (
        [seen(decoder(*rule, *more)(record._replace(headers=said))) for record in events(file)]
        for file, more in (("pg_outbox_default", ()), ("pg_outbox_string", ("key_format: string",)))
    )
    assert quoted == bare == [Expected(Op.DELETED, (key,)) for key in ("1", "1", "007", "2", "3")]


def test_double_encoded_payload_holds_the_same_key() -> None:
    """As EventRouter writes it without table.expand.json.payload."""
    read = decoder("format: outbox", "key: {id: int64}", "types: {deleted: [D]}", "key_from: payload")
    double, expanded = events("pg_outbox_default")[0], events("pg_outbox_expand")[0]
    assert isinstance(json.loads(double.value or b""), str)
    for record in (double, expanded):
        assert seen(read(record._replace(headers=[("eventType", b"D")]))) == Expected(Op.DELETED, (1,))
