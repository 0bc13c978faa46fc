"""What decoding tells a copy of its parent's row, from captured events."""

from __future__ import annotations

from decimal import Decimal

import pytest

from integrity.core.change import Cell, Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Ignored, Record, Undecodable
from integrity.core.keys import FieldHint, KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from integrity.errors import Reason
from tests.golden.records import at
from tests.unit.core.test_decode_debezium import envelope, record


def decoded(read: Record, *fields: str, deleted_when: str | None = None) -> Decoded:
    spec = KeySpec((("id", KeyType.INT64),))
    events = Events(("t",), "debezium", spec, Tombstones.DELETE, deleted_when)
    return decoder_for(Parent("customer", events, (), Place("a.yaml", 1, 1)), copied=fields)(read)


def change(found: Decoded) -> ParentChange:
    assert isinstance(found, ParentChange), found
    return found


def test_update_is_a_change_only_where_a_copy_wants_the_row() -> None:
    update = at("pg_env", "public.customers", 4)
    spec = KeySpec((("id", KeyType.INT64),))
    plain = Parent("customer", Events(("t",), "debezium", spec, Tombstones.DELETE), (), Place("a.yaml", 1, 1))
    assert isinstance(decoder_for(plain)(update), Ignored)
    found = change(decoded(update, "email", "name"))
    assert (found.op, found.key, found.row) == (
        Op.ALIVE, (10,), {"email": Cell("ten+new@x.test"), "name": Cell("Ten")}
    )  # fmt: skip


def test_row_has_the_fields_that_are_wanted_and_that_the_event_has() -> None:
    found = change(decoded(at("pg_env", "public.customers", 2), "big", "phone"))
    assert found.row == {"big": Cell({"scale": 3, "value": "BhY+ZlvrfKai4aZCRMs="})}
    assert change(decoded(at("pg_env", "public.customers", 2))).row == {}


def test_schema_of_an_envelope_tells_what_a_field_is() -> None:
    found = change(decoded(at("pg_env_schemas", "public.customers", 0), "updated_at", "name"))
    assert found.row is not None
    cell = found.row["updated_at"]
    assert cell is not None
    assert cell.hint == FieldHint("string", "io.debezium.time.ZonedTimestamp")
    assert found.row["name"] == Cell("One", FieldHint("string"))


def test_value_that_the_source_did_not_send_is_none() -> None:
    found = change(decoded(at("pg_env", "public.customers", 57), "blob", "email"))
    assert (found.op, found.row) == (Op.ARRIVED, {"blob": None, "email": Cell("t2@x.test")})
    forms = ["X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==", ["__debezium_unavailable_value"]]
    for form in forms:
        assert change(decoded(record(envelope("u", after={"id": 10, "x": form})), "x")).row == {"x": None}


def test_numbers_keep_every_digit() -> None:
    value = envelope("c").replace(
        b'"after":null', b'"after":{"id":10,"n":0.10000000000000000001,"w":123456789012345678901}'
    )
    assert change(decoded(record(value), "n", "w")).row == {
        "n": Cell(Decimal("0.10000000000000000001")),
        "w": Cell(123456789012345678901),
    }


def test_row_that_an_incremental_snapshot_reads_has_no_place_in_the_order() -> None:
    read = at("pg_env", "public.customers", 70)
    found = change(decoded(read, "name"))
    assert (found.op, found.version, found.row) == (Op.ALIVE, None, {"name": Cell("kept")})


def test_soft_deleted_row_is_a_deletion_and_any_other_brings_its_row() -> None:
    soft = "after.status == 'deleted'"
    assert change(decoded(at("pg_env", "public.customers", 60), "name", deleted_when=soft)).op is Op.DELETED
    found = change(decoded(at("pg_env", "public.customers", 52), "name", deleted_when=soft))
    assert (found.op, found.row) == (Op.ALIVE, {"name": Cell("kept")})


@pytest.mark.parametrize("after", [None, [], 5])
@pytest.mark.parametrize("op", ["c", "r", "u"])
def test_event_without_a_row_is_a_dead_letter_of_a_copy(op: str, after: object) -> None:
    found = decoded(record(envelope(op, after=after)), "name")
    assert isinstance(found, Undecodable)
    assert (found.reason, found.stage) == (Reason.BAD_ENVELOPE, "value")
