"""What a field of a parent's row becomes in a document."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from bson import Decimal128

from integrity.core.change import Cell
from integrity.core.keys import Exponential, FieldHint, KeyRefused
from integrity.core.plain import as_written
from integrity.stores.mongo.cells import to_value
from integrity.stores.mongo.values import Unholdable
from integrity.stores.topic.records import encode

DECIMAL = FieldHint("bytes", "org.apache.kafka.connect.data.Decimal", 2)
HELD: list[tuple[object, FieldHint | None, object]] = [
    (None, DECIMAL, None),
    (True, None, True),
    (2**63 - 1, FieldHint("int64"), 2**63 - 1),
    (12345678901234567890123, None, Decimal128("12345678901234567890123")),
    ("BM4=", DECIMAL, Decimal128("12.3")),
    (Decimal("0.1"), None, 0.1),
    (Decimal("0.1000000000000000055511151231"), FieldHint("double"), 0.1),
    (Decimal("0.1000000000000000055511151231"), None, Decimal128("0.1000000000000000055511151231")),
    (Exponential("1e3"), None, 1000.0),
    ("AP8Q", FieldHint("bytes"), b"\x00\xff\x10"),
    ("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001", FieldHint("string", "io.debezium.data.Uuid"), UUID(
        "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001"
    )),
    (20_000, FieldHint("int32", "io.debezium.time.Date"), datetime(2024, 10, 4, tzinfo=UTC)),
    (1_767_323_045_678, FieldHint("int64", "io.debezium.time.Timestamp"), datetime(
        2026, 1, 2, 3, 4, 5, 678_000, UTC
    )),
    (1_767_323_045_678_901, FieldHint("int64", "io.debezium.time.MicroTimestamp"), 1_767_323_045_678_901),
    ("2026-01-02T03:04:05.6Z", FieldHint("string", "io.debezium.time.ZonedTimestamp"), "2026-01-02T03:04:05.6Z"),
    ({"a": [Decimal("1.5"), {"$gt": 1}]}, None, {"a": [1.5, {"$gt": 1}]}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "held"), HELD)
def test_value_is_held_as_its_schema_says(value: object, hint: FieldHint | None, held: object) -> None:
    found = to_value(Cell(value, hint))
    assert (found, type(found)) == (held, type(held))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (10**40 + 1, None),
        (Decimal("0." + "1" * 40), None),
        ("no base64", DECIMAL),
        ("x", FieldHint("string", "io.debezium.data.Uuid")),
        (10**9, FieldHint("int32", "io.debezium.time.Date")),
    ],
)
def test_value_that_would_be_another_is_refused(value: object, hint: FieldHint | None) -> None:
    with pytest.raises((KeyRefused, Unholdable)):
        to_value(Cell(value, hint))


def test_value_of_a_topic_keeps_every_digit() -> None:
    value = {"a": [Decimal("1.50"), Decimal("0.00000001"), 10**30, Exponential("1E+400")], "b": None, "c": "1.0"}
    assert (
        encode(as_written(value))
        == b'{"a":[1.50,0.00000001,1000000000000000000000000000000,1E+400],"b":null,"c":"1.0"}'
    )
