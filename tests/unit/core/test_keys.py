from __future__ import annotations

from base64 import b64encode
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.keys import (
    Bounds,
    Exponential,
    FieldHint,
    Key,
    KeyRefused,
    KeySpec,
    KeyType,
    Scalar,
    canonical,
    gate,
    key_hash,
    parse_canonical,
)
from integrity.errors import Reason

UNAVAILABLE = "__debezium_unavailable_value"
DECIMAL_2 = FieldHint("bytes", "org.apache.kafka.connect.data.Decimal", 2)
TEXT = FieldHint("string")
K = KeyType
U = UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001")


def variable(scale: object, value: object) -> dict[str, object]:
    return {"scale": scale, "value": value}


@pytest.mark.parametrize(
    ("kind", "value", "hint", "key"),
    [
        (K.INT32, 2147483647, None, 2147483647),
        (K.INT32, -2147483648, None, -2147483648),
        (K.INT64, 9223372036854775807, None, 9223372036854775807),
        (K.INT64, -9223372036854775808, None, -9223372036854775808),
        (K.NUMERIC, 123456789012345678901, None, Decimal("123456789012345678901")),
        (K.NUMERIC, Decimal("1.50"), None, Decimal("1.5")),
        (K.NUMERIC, Decimal("-0.0"), None, Decimal(0)),
        (K.NUMERIC, Decimal("1.23456789012345"), None, Decimal("1.23456789012345")),
        (K.NUMERIC, variable(1, "Dw=="), None, Decimal("1.5")),
        (K.NUMERIC, variable(3, "/w=="), None, Decimal("-0.001")),
        (K.NUMERIC, variable(-3, "AQ=="), None, Decimal(1000)),
        (K.NUMERIC, variable(1, "D5Uan6OihslPDnZsOQ=="), None, Decimal("123456789012345678901234567890.5")),
        (K.NUMERIC, "AJY=", DECIMAL_2, Decimal("1.5")),
        (K.NUMERIC, Decimal("123456789012345678.50"), DECIMAL_2, Decimal("123456789012345678.5")),
        (K.NUMERIC, Exponential("1.5E3"), DECIMAL_2, Decimal(1500)),
        (K.NUMERIC, "1.50", TEXT, Decimal("1.5")),
        (K.NUMERIC, "-18446744073709551615", TEXT, Decimal("-18446744073709551615")),
        (K.STRING, "", None, ""),
        (K.STRING, "a\0b", None, "a\0b"),
        (K.STRING, "'; DROP TABLE x;--", None, "'; DROP TABLE x;--"),
        (K.UUID, "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001", None, U),
        (K.UUID, "6F1C0F8E-2B43-4B9B-9B0A-1F0A3F3F0001", None, U),
        (K.UUID, "{6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001}", None, U),
        (K.UUID, "6f1c0f8e2b434b9b9b0a1f0a3f3f0001", None, U),
        (K.UUID, "urn:uuid:6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001", None, U),
        (K.BOOL, True, None, True),
        (K.BOOL, False, None, False),
        (K.DATE, 20455, None, date(2026, 1, 2)),
        (K.DATE, -1, FieldHint("int32", "io.debezium.time.Date"), date(1969, 12, 31)),
        (K.DATE, "2026-01-02", None, date(2026, 1, 2)),
        (K.DATE, "2026-01-02Z", None, date(2026, 1, 2)),
        (K.TIMESTAMP, "2026-01-02T03:04:05Z", None, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (K.TIMESTAMP, "2026-01-02T03:04:05.678901Z", None, datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)),
        (K.TIMESTAMP, "2026-01-02T03:04:05.600000000Z", None, datetime(2026, 1, 2, 3, 4, 5, 600000, UTC)),
        (K.TIMESTAMP, "2026-01-02T05:04:05+02:00", None, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (K.TIMESTAMP, "9999-12-31T23:59:59.999999Z", None, datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
        (K.TIMESTAMP, 1767323045000001, None, datetime(2026, 1, 2, 3, 4, 5, 1, UTC)),
        (
            K.TIMESTAMP,
            1767323045001,
            FieldHint("int64", "io.debezium.time.Timestamp"),
            datetime(2026, 1, 2, 3, 4, 5, 1000, UTC),
        ),
        (K.TIMESTAMP, 1, FieldHint("int64", "io.debezium.time.MicroTimestamp"), datetime(1970, 1, 1, 0, 0, 0, 1, UTC)),
        (
            K.TIMESTAMP,
            1767323045000001000,
            FieldHint("int64", "io.debezium.time.NanoTimestamp"),
            datetime(2026, 1, 2, 3, 4, 5, 1, UTC),
        ),
        (K.BYTES, "AP8Q", None, b"\x00\xff\x10"),
        (K.BYTES, "", FieldHint("bytes"), b""),
        (K.OBJECTID, "65A1b2c3d4e5f60718293a4b", None, "65a1b2c3d4e5f60718293a4b"),
    ],
)
def test_a_value_of_its_type_passes(kind: KeyType, value: object, hint: FieldHint | None, key: Scalar) -> None:
    passed = gate(kind, value, hint)
    assert passed == key
    assert type(passed) is type(key)


@pytest.mark.parametrize(
    ("kind", "value", "hint", "reason"),
    [
        *[(kind, None, None, Reason.NULL_KEY) for kind in KeyType],
        *[(kind, UNAVAILABLE, None, Reason.UNAVAILABLE_KEY) for kind in KeyType],
        (K.BYTES, b64encode(UNAVAILABLE.encode()).decode(), None, Reason.UNAVAILABLE_KEY),
        *[(kind, {"$gt": ""}, None, Reason.TYPE_MISMATCH) for kind in KeyType],
        *[(kind, {"$ne": None}, None, Reason.TYPE_MISMATCH) for kind in KeyType],
        *[(kind, [1, 2], None, Reason.TYPE_MISMATCH) for kind in KeyType],
        *[(kind, Exponential("1e999"), None, Reason.BAD_NUMBER) for kind in KeyType],
        (K.INT32, 2147483648, None, Reason.OUT_OF_RANGE),
        (K.INT32, -2147483649, None, Reason.OUT_OF_RANGE),
        (K.INT64, 9223372036854775808, None, Reason.OUT_OF_RANGE),
        (K.INT64, -9223372036854775809, None, Reason.OUT_OF_RANGE),
        *[
            (kind, value, None, Reason.TYPE_MISMATCH)
            for kind in (K.INT32, K.INT64)
            for value in (True, "5", Decimal("5.7"), Decimal("5.0"), Exponential("5e0"))
        ],
        (K.NUMERIC, True, None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "1", None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "AQ==", None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "AQ==", TEXT, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "1e5", TEXT, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "NAN", TEXT, Reason.BAD_NUMBER),
        (K.NUMERIC, "-Infinity", TEXT, Reason.BAD_NUMBER),
        (K.NUMERIC, "", DECIMAL_2, Reason.TYPE_MISMATCH),
        (K.NUMERIC, "1.50", DECIMAL_2, Reason.TYPE_MISMATCH),
        (K.NUMERIC, Decimal("1.234567890123456"), None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, Exponential("9.007199254740992E15"), None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, Exponential("1e-99999999999999999999"), DECIMAL_2, Reason.BAD_NUMBER),
        (K.NUMERIC, 10**1000, None, Reason.BAD_NUMBER),
        (K.NUMERIC, Decimal("0." + "1" * 1001), DECIMAL_2, Reason.BAD_NUMBER),
        (K.NUMERIC, "9" * 1001, TEXT, Reason.BAD_NUMBER),
        (K.NUMERIC, "9" * 140_000, TEXT, Reason.BAD_NUMBER),
        (K.NUMERIC, variable(0, b64encode(b"\x7f" * 60_000).decode()), None, Reason.BAD_NUMBER),
        (K.NUMERIC, variable(2_147_483_647, "AQ=="), None, Reason.BAD_NUMBER),
        (K.NUMERIC, variable(-2_147_483_648, "AQ=="), None, Reason.BAD_NUMBER),
        (K.NUMERIC, variable("0", "AQ=="), None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, variable(True, "AQ=="), None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, variable(0, 1), None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, variable(0, "AQ==") | {"$gt": 1}, None, Reason.TYPE_MISMATCH),
        (K.NUMERIC, variable(0, "A Q=="), None, Reason.TYPE_MISMATCH),
        (K.STRING, 5, None, Reason.TYPE_MISMATCH),
        (K.STRING, "a\ud800", None, Reason.BAD_ENCODING),
        (K.STRING, "x" * 4097, None, Reason.TOO_LARGE),
        *[
            (K.UUID, value, None, Reason.TYPE_MISMATCH)
            for value in (
                "",
                "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f000",
                "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001 ",
                "6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001\n",
                "{6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001",
                "6f1c-0f8e2b434b9b9b0a1f0a3f3f0001",
                "urn:uuid:6f1c0f8e2b434b9b9b0a1f0a3f3f0001",
                "٦f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001",
                5,
            )
        ],
        *[(K.BOOL, value, None, Reason.TYPE_MISMATCH) for value in (0, 1, "true", Decimal("1.0"))],
        (K.DATE, "2026-02-30", None, Reason.TYPE_MISMATCH),
        (K.DATE, "2026-1-2", None, Reason.TYPE_MISMATCH),
        (K.DATE, "0000-01-01", None, Reason.OUT_OF_RANGE),
        (K.DATE, "+10000-01-01", None, Reason.OUT_OF_RANGE),
        (K.DATE, 2932897, None, Reason.OUT_OF_RANGE),
        (K.DATE, 10**30, None, Reason.OUT_OF_RANGE),
        (K.DATE, 20455, FieldHint("int32"), Reason.TYPE_MISMATCH),
        (K.DATE, 20455, FieldHint("int64", "io.debezium.time.MicroTimestamp"), Reason.TYPE_MISMATCH),
        (K.DATE, True, None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T03:04:05", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02 03:04:05Z", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T03:04:05.1234567Z", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T24:00:00Z", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T03:04:60Z", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T03:04:05+24:00", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "2026-01-02T03:04:05+01:60", None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "0000-01-02T03:04:05Z", None, Reason.OUT_OF_RANGE),
        (K.TIMESTAMP, "+294276-12-31T23:59:59Z", None, Reason.OUT_OF_RANGE),
        (K.TIMESTAMP, "9999-12-31T23:59:59-01:00", None, Reason.OUT_OF_RANGE),
        (K.TIMESTAMP, "0001-01-01T00:00:00+01:00", None, Reason.OUT_OF_RANGE),
        (K.TIMESTAMP, 1767323045000, None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, -1767323045000000, None, Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, 10**30, None, Reason.OUT_OF_RANGE),
        (K.TIMESTAMP, 1767323045000000, FieldHint("int64"), Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, 1, FieldHint("int64", "io.debezium.time.NanoTimestamp"), Reason.TYPE_MISMATCH),
        (K.BYTES, "AP8Q=", None, Reason.TYPE_MISMATCH),
        (K.BYTES, "AP8", None, Reason.TYPE_MISMATCH),
        (K.BYTES, "AB==", None, Reason.TYPE_MISMATCH),
        (K.BYTES, "AP8Q\n", None, Reason.TYPE_MISMATCH),
        (K.BYTES, "é", None, Reason.TYPE_MISMATCH),
        (K.BYTES, "00ff10ff", TEXT, Reason.TYPE_MISMATCH),
        (K.BYTES, b64encode(b"x" * 4097).decode(), None, Reason.TOO_LARGE),
        (K.BYTES, "A" * 1_000_000, None, Reason.TOO_LARGE),
        (K.OBJECTID, "65a1b2c3d4e5f60718293a4", None, Reason.TYPE_MISMATCH),
        (K.OBJECTID, "65a1b2c3d4e5f60718293a4g", None, Reason.TYPE_MISMATCH),
    ],
)
def test_any_other_value_is_refused(kind: KeyType, value: object, hint: FieldHint | None, reason: Reason) -> None:
    with pytest.raises(KeyRefused) as refused:
        gate(kind, value, hint)
    assert refused.value.reason is reason
    assert len(refused.value.message) < 200


def test_bounds_are_the_callers() -> None:
    assert gate(K.STRING, "x" * 5000, None, Bounds(text_max=5000)) == "x" * 5000
    assert gate(K.BYTES, b64encode(b"x" * 10).decode(), None, Bounds(text_max=10)) == b"x" * 10
    with pytest.raises(KeyRefused):
        gate(K.NUMERIC, Decimal("1.234"), None, Bounds(digits_max=3))


def test_a_number_of_a_thousand_digits_is_kept_to_the_last() -> None:
    """Decimal arithmetic would round it to 28."""
    number = int("9" * 1000)
    assert gate(K.NUMERIC, number, None) == number
    text = "1" + "0" * 498 + "." + "0" * 500 + "7"
    assert format(gate(K.NUMERIC, text, TEXT), "f") == text  # type: ignore[str-format]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ((10,), "[10]"),
        ((-9223372036854775808,), "[-9223372036854775808]"),
        (("acme", 5), '["acme",5]'),
        (("a,b", "c"), '["a,b","c"]'),
        (('"', "\\", "\n\0"), '["\\"","\\\\","\\n\\u0000"]'),
        (("é",), '["é"]'),
        ((True, False), "[true,false]"),
        ((Decimal("1.50"),), "[1.5]"),
        ((Decimal("1E+3"),), "[1000]"),
        ((Decimal("-0.00"),), "[0]"),
        ((Decimal("0.00000001"),), "[0.00000001]"),
        ((U,), '["6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001"]'),
        ((date(2026, 1, 2),), '["2026-01-02"]'),
        ((datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),), '["2026-01-02T03:04:05Z"]'),
        ((datetime(2026, 1, 2, 5, 4, 5, 600000, timezone(timedelta(hours=2))),), '["2026-01-02T03:04:05.600000Z"]'),
        ((b"\x00\xff\x10",), '["AP8Q"]'),
    ],
)
def test_canonical_text(key: Key, text: str) -> None:
    assert canonical(key) == text


class DriverInt(int):
    """Like bson's Int64."""

    def __str__(self) -> str:
        return "DriverInt"


class DriverUUID(UUID):
    """Like asyncpg's UUID."""

    def __str__(self) -> str:
        return "DriverUUID"


def test_a_drivers_own_types_are_written_like_what_they_are() -> None:
    assert canonical((DriverInt(5),)) == "[5]"
    assert canonical((DriverUUID(int=U.int),)) == canonical((U,))


SCALARS: dict[KeyType, st.SearchStrategy[Scalar]] = {
    K.INT32: st.integers(-(2**31), 2**31 - 1),
    K.INT64: st.integers(-(2**63), 2**63 - 1),
    K.NUMERIC: st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.integers().map(Decimal),
    K.STRING: st.text(st.characters(exclude_categories=["Cs"])),
    K.UUID: st.uuids(),
    K.BOOL: st.booleans(),
    K.DATE: st.dates(),
    K.TIMESTAMP: st.datetimes(timezones=st.just(UTC)),
    K.BYTES: st.binary(),
    K.OBJECTID: st.binary(min_size=12, max_size=12).map(bytes.hex),
}


@st.composite
def specs_with_two_keys(draw: st.DrawFn) -> tuple[KeySpec, Key, Key]:
    kinds = draw(st.lists(st.sampled_from(KeyType), min_size=1, max_size=3))
    spec = KeySpec(tuple((f"f{index}", kind) for index, kind in enumerate(kinds)))
    one = tuple(draw(SCALARS[kind]) for kind in kinds)
    return spec, one, draw(st.just(one) | st.tuples(*[SCALARS[kind] for kind in kinds]))


@given(specs_with_two_keys())
def test_canonical_text_reads_back_as_the_key_and_tells_unequal_keys_apart(case: tuple[KeySpec, Key, Key]) -> None:
    spec, one, other = case
    assert parse_canonical(canonical(one), spec) == one
    assert (canonical(one) == canonical(other)) == (one == other)
    assert (key_hash("customer", one) == key_hash("customer", other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", [K.INT64]),
        ("10", [K.INT64]),
        ("[10", [K.INT64]),
        ("[10]", [K.INT64, K.INT64]),
        ("[10,11]", [K.INT64]),
        ("[ 10]", [K.INT64]),
        ("[10.0]", [K.INT64]),
        ("[9223372036854775808]", [K.INT64]),
        ("[1.50]", [K.NUMERIC]),
        ("[1e3]", [K.NUMERIC]),
        ('["10"]', [K.INT64]),
        ("[null]", [K.STRING]),
        ('["6F1C0F8E-2B43-4B9B-9B0A-1F0A3F3F0001"]', [K.UUID]),
        ('["2026-01-02T03:04:05.6Z"]', [K.TIMESTAMP]),
    ],
)
def test_text_that_canonical_did_not_write_is_refused(text: str, kinds: list[KeyType]) -> None:
    with pytest.raises(ValueError, match="text"):
        parse_canonical(text, KeySpec(tuple((f"f{index}", kind) for index, kind in enumerate(kinds))))


def test_a_key_hash_is_sixteen_bytes_that_stay_what_they_are() -> None:
    """Ledgers keep it: another value orphans every row of theirs."""
    assert key_hash("customer", (10,)).hex() == "ddba3cbeacaa468b1244e296dcccebac"
    assert key_hash("customer", (10,)) != key_hash("customers", (10,))


def test_a_key_spec_finds_a_field_by_name() -> None:
    spec = KeySpec((("tenant", K.STRING), ("id", K.INT64)))
    assert spec.names == ("tenant", "id")
    assert spec.types == (K.STRING, K.INT64)
    assert spec.position("id") == 1
