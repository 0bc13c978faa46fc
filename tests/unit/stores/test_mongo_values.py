"""Key parts become BSON values exactly, or not at all."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import bson
import pytest
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp

from integrity.core.keys import KeyType, Scalar
from integrity.stores.mongo.values import CODECS, Unholdable, element_key, from_bson, in_the_type_of, to_bson

PARTS: list[tuple[KeyType, Scalar]] = [
    (KeyType.INT32, -(2**31)),
    (KeyType.INT64, 2**63 - 1),
    (KeyType.NUMERIC, Decimal("1234567890123456789012345678901234")),
    (KeyType.NUMERIC, Decimal("-0.000000000000000000000000000001")),
    (KeyType.STRING, "a\x00b\u00e9"),
    (KeyType.UUID, UUID(int=1)),
    (KeyType.BOOL, False),
    (KeyType.DATE, date(1, 1, 1)),
    (KeyType.DATE, date(9999, 12, 31)),
    (KeyType.TIMESTAMP, datetime(9999, 12, 31, 23, 59, 59, 999000, UTC)),
    (KeyType.BYTES, b"\x00\xff"),
    (KeyType.OBJECTID, "64b000000000000000000001"),
]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_every_type_survives_a_document(kind: KeyType, part: Scalar) -> None:
    document = bson.decode(bson.encode({"v": to_bson(kind, part)}, codec_options=CODECS), CODECS)
    assert from_bson(kind, document["v"]) == part
    assert hash(from_bson(kind, document["v"])) == hash(part)


@pytest.mark.parametrize("stored", [5, Int64(5), 5.0, Decimal128("5.00")])
def test_stored_number_of_any_type_is_the_same_key(stored: object) -> None:
    assert {(5,): "found"}[(from_bson(KeyType.INT64, stored),)] == "found"  # type: ignore[index]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_element_of_a_list_is_the_key_of_its_own_type_only(kind: KeyType, part: Scalar) -> None:
    document = bson.decode(bson.encode({"v": to_bson(kind, part)}, codec_options=CODECS), CODECS)
    assert element_key(kind, document["v"]) == part
    alike = {KeyType.INT32, KeyType.INT64, KeyType.NUMERIC}, {KeyType.DATE, KeyType.TIMESTAMP}
    for other in KeyType:
        if other is not kind and not any({kind, other} <= group for group in alike):
            assert element_key(other, document["v"]) is None, other


ODD_ELEMENTS: list[object] = [
    None, [5], {"id": 5}, {"$gt": ""}, float("nan"), float("inf"), Decimal128("NaN"), Decimal128("-Infinity"),
    Binary(b"x", 5), Binary(UUID(int=1).bytes, 3), Regex(".*"), MinKey(), MaxKey(), Code("x"), Timestamp(1, 1),
    DatetimeMS(2**60), True,
]  # fmt: skip


def test_element_that_is_no_key_equals_none() -> None:
    for kind in (KeyType.INT64, KeyType.NUMERIC, KeyType.STRING, KeyType.UUID, KeyType.BYTES, KeyType.TIMESTAMP):
        assert [element_key(kind, element) for element in ODD_ELEMENTS] == [None] * len(ODD_ELEMENTS), kind


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        (5.0, 5),
        (Int64(5), 5),
        (Decimal128("5.00"), 5),
        (float(2**53), 2**53),
        (float(2**53 + 2), 2**53 + 2),
        (Decimal128(str(2**53 + 1)), 2**53 + 1),
    ],
)
def test_number_in_a_list_is_exactly_its_own_key(stored: object, key: Scalar) -> None:
    assert element_key(KeyType.INT64, stored) == key


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (KeyType.INT64, 2**63),
        (KeyType.NUMERIC, Decimal("1" * 35)),
        (KeyType.NUMERIC, Decimal("1e7000")),
        (KeyType.TIMESTAMP, datetime(2024, 1, 1, 0, 0, 0, 1, UTC)),
    ],
)
def test_value_beyond_bson_is_refused_without_being_told(kind: KeyType, part: Scalar) -> None:
    with pytest.raises(Unholdable) as raised:
        to_bson(kind, part)
    assert str(part) not in raised.value.message


@pytest.mark.parametrize(
    ("old", "kind", "part", "expected"),
    [
        (Int64(1), KeyType.INT64, 2, Int64(2)),
        (1, KeyType.INT64, 2, 2),
        (1, KeyType.INT64, 2**40, 2**40),
        (1.0, KeyType.INT64, 2, 2.0),
        (1.0, KeyType.INT64, 2**53 + 1, 2**53 + 1),
        (Decimal128("1"), KeyType.INT64, 2, Decimal128("2")),
        (1, KeyType.NUMERIC, Decimal(2), 2),
        (1, KeyType.NUMERIC, Decimal("2.5"), Decimal128("2.5")),
        (1.5, KeyType.NUMERIC, Decimal("2.5"), 2.5),
        (1.5, KeyType.NUMERIC, Decimal("0.1"), Decimal128("0.1")),
        ("a", KeyType.STRING, "b", "b"),
        (ObjectId(b"0" * 12), KeyType.OBJECTID, "64b000000000000000000001", ObjectId("64b000000000000000000001")),
    ],
)
def test_new_reference_keeps_the_number_type_where_it_can_hold_the_value(
    old: object, kind: KeyType, part: Scalar, expected: object
) -> None:
    new = in_the_type_of(old, kind, part)
    assert (type(new), new) == (type(expected), expected)
