"""Every captured record of Debezium's CloudEventsConverter, decoded as the SQL statements say."""

from __future__ import annotations

import json

import pytest

from integrity.core.change import Cell, Op, ParentChange, Version
from integrity.core.decode.record import Record
from integrity.core.keys import FieldHint
from integrity.errors import Reason
from tests.golden.histories import (
    BEYOND_DOUBLE,
    BIGINT,
    TENANT_CODE,
    UPDATED,
    Expected,
    Table,
    deleted,
    inserted,
    moved,
    seeds,
    table,
)
from tests.golden.messages import decoder, seen
from tests.golden.records import at, load, of_topic

CUSTOMERS = ("format: cloudevents", "key: {id: int64}")
COMPOSITE = ("format: cloudevents", "key: {tenant: int32, code: string}")
HISTORIES: dict[tuple[str, str], Table] = {
    ("pg_cloudevents", "customers"): table(
        BIGINT,
        seeds(1, 2, BEYOND_DOUBLE), inserted(10), UPDATED, moved(10, 11, 12), deleted(12), inserted(12),
        deleted(22, 23), UPDATED, deleted(BEYOND_DOUBLE),
    ),
    ("pg_cloudevents", "composite"): table(
        TENANT_CODE, seeds((1, "A"), (2, "A")), inserted((1, "B")), moved((1, "B"), (1, "C")), deleted((1, "C")),
    ),
    ("pg_cloudevents_schemas", "customers"): table(BIGINT, inserted(10), UPDATED, moved(10, 11), deleted(12)),
}  # fmt: skip


def rule_of(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (CUSTOMERS, ("id",)) if name == "customers" else (COMPOSITE, ("tenant", "code"))


def customers(file: str, **more: object) -> list[Record]:
    return of_topic(file, "public.customers")


@pytest.mark.parametrize(("file", "name"), HISTORIES)
def test_each_record_of_a_table_says_what_its_statement_did(file: str, name: str) -> None:
    rule, fields = rule_of(name)
    decode = decoder(*rule, fields=fields)
    assert [seen(decode(record)) for record in of_topic(file, f"public.{name}")] == list(HISTORIES[file, name].records)


@pytest.mark.parametrize("file", ["pg_cloudevents", "pg_cloudevents_schemas"])
def test_every_record_of_a_file_is_accounted_for(file: str) -> None:
    tables = {f"{file}.public.{name}" for of_file, name in HISTORIES if of_file == file}
    others = [record for record in load(file) if record.topic not in tables]
    # Logical messages are null records there, with a key of another make.
    assert {record.topic for record in others} <= {f"{file}.message"}
    assert {seen(decoder(*CUSTOMERS)(record)) for record in others} <= {Expected(Reason.MISSING_KEY)}


@pytest.mark.parametrize("file", ["pg_cloudevents", "pg_cloudevents_schemas"])
def test_change_is_placed_and_timed_by_the_attributes_of_its_source(file: str) -> None:
    for record in customers(file):
        change = decoder(*CUSTOMERS, copied=("email",))(record)
        assert isinstance(change, ParentChange)
        if record.value is None:
            assert change.version is None
            continue
        event = json.loads(record.value)
        assert change.version == Version(0, (int(event["iodebeziumlsn"]),))
        assert change.occurred_ms == int(event["iodebeziumtsms"])


def test_fact_8_both_halves_of_a_key_change_have_one_id_and_both_count() -> None:
    """Whoever drops events of an id that was seen loses the second half."""
    halves = [at("pg_cloudevents", "public.customers", offset) for offset in (6, 8)]
    ids = [json.loads(record.value or b"")["id"] for record in halves]
    assert ids[0] == ids[1]
    decoded = [decoder(*CUSTOMERS)(record) for record in halves]
    assert [seen(each) for each in decoded] == [Expected(Op.MOVED, (10,), (11,)), Expected(Op.ARRIVED, (11,))]


def test_copy_takes_its_row_from_the_data_with_what_its_schema_says() -> None:
    bare, with_schema = (
        decoder(*CUSTOMERS, copied=("email", "updated_at"))(at(file, "public.customers", 3))
        for file in ("pg_cloudevents", "pg_cloudevents_schemas")
    )
    assert isinstance(bare, ParentChange)
    assert isinstance(with_schema, ParentChange)
    moment = "2026-02-01T00:00:00.000000Z"
    assert bare.row == {"email": Cell("ten@x.test"), "updated_at": Cell(moment)}
    zoned = FieldHint("string", "io.debezium.time.ZonedTimestamp")
    assert with_schema.row == {"email": Cell("ten@x.test", FieldHint("string")), "updated_at": Cell(moment, zoned)}


def test_condition_of_deletion_looks_into_the_data() -> None:
    decode = decoder(*CUSTOMERS, "deleted_when: \"after.status == 'gone' && source.table == 'customers'\"")
    update = at("pg_cloudevents", "public.customers", 4)
    assert seen(decode(update)) == Expected(Op.ALIVE, (10,))
    gone = update._replace(value=(update.value or b"").replace(b'"status":"active"', b'"status":"gone"'))
    assert seen(decode(gone)) == Expected(Op.DELETED, (10,))


def test_change_event_without_its_attributes_is_a_dead_letter() -> None:
    """As with extension.attributes.enable=false: nothing says any more whether it is a deletion."""
    record = at("pg_cloudevents", "public.customers", 18)
    event = json.loads(record.value or b"")
    bare = {name: value for name, value in event.items() if not name.startswith("iodebezium")}
    assert seen(decoder(*CUSTOMERS)(record._replace(value=json.dumps(bare).encode()))) == Expected(Reason.BAD_ENVELOPE)


@pytest.mark.parametrize("offset", [3, 4, 6, 7, 8, 18, 19])
def test_change_event_in_binary_form_says_the_same(offset: int) -> None:
    """As a bridge may write it: attributes as headers, the data as the value."""
    record = at("pg_cloudevents", "public.customers", offset)
    binary = record
    if record.value is not None:
        event = json.loads(record.value)
        data = json.dumps(event.pop("data")).encode()
        headers = [(f"ce_{name}", str(value).encode()) for name, value in event.items() if value is not None]
        binary = record._replace(value=data, headers=[*record.headers, *headers, ("content-type", b"application/json")])
    read = decoder(*CUSTOMERS, copied=("email",))
    assert read(binary) == read(record)
