"""Extended JSON in its three dialects: the exact scalar, or a refusal."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from integrity.core.decode.extended_json import cell_of, plain_of, scalar_of
from integrity.core.decode.json import parse
from integrity.core.decode.record import Limits
from integrity.core.keys import Bounds, KeyRefused, KeyType, Scalar
from integrity.errors import Reason

K, BOUNDS = KeyType, Bounds()
OID, U = "65a1b2c3d4e5f60718293a4b", UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001")
U64 = "bxwPjitDS5ubCh8KPz8AAQ=="
AT = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)


def read(text: str) -> object:
    return parse(text.encode(), Limits())


def reason_of(kind: KeyType, text: str, *, is_simplified: bool = False) -> Reason:
    with pytest.raises(KeyRefused) as refused:
        scalar_of(kind, read(text), BOUNDS, is_simplified=is_simplified)
    return refused.value.reason


@pytest.mark.parametrize(
    ("kind", "text", "scalar"),
    [
        (K.INT32, "7", 7),
        (K.INT32, '{"$numberInt": "7"}', 7),
        (K.INT32, '{"$numberLong": "7"}', 7),
        (K.INT64, "9007199254740993", 9007199254740993),
        (K.INT64, '{"$numberLong": "9007199254740993"}', 9007199254740993),
        (K.INT64, '{"$numberLong": "-9223372036854775808"}', -(2**63)),
        (K.NUMERIC, '{"$numberDecimal": "1.50"}', Decimal("1.5")),
        (K.NUMERIC, '{"$numberDecimal": "1E+3"}', Decimal(1000)),
        (K.NUMERIC, '{"$numberDecimal": "-0"}', Decimal(0)),
        (K.NUMERIC, '{"$numberDecimal": "0.1"}', Decimal("0.1")),
        (K.NUMERIC, '{"$numberLong": "5"}', Decimal(5)),
        (K.NUMERIC, "5.0", Decimal(5)),
        (K.NUMERIC, "1.5", Decimal("1.5")),
        (K.NUMERIC, '{"$numberDouble": "1.0E10"}', Decimal(10**10)),
        (K.NUMERIC, "9.007199254740992E15", Decimal(2**53)),
        (K.STRING, '""', ""),
        (K.STRING, '"null"', "null"),
        (K.STRING, '"7"', "7"),
        (K.STRING, '"{\\"$oid\\": 1}"', '{"$oid": 1}'),
        (K.BOOL, "true", True),
        (K.UUID, f'{{"$binary": "{U64}", "$type": "04"}}', U),
        (K.UUID, f'{{"$binary": "{U64}", "$type": "4"}}', U),
        (K.UUID, f'{{"$binary": {{"base64": "{U64}", "subType": "04"}}}}', U),
        (K.UUID, f'{{"$uuid": "{U}"}}', U),
        (K.UUID, f'"{U}"', U),
        (K.BYTES, '{"$binary": "AP8Q", "$type": "00"}', b"\x00\xff\x10"),
        (K.BYTES, '{"$binary": {"base64": "", "subType": "0"}}', b""),
        (K.OBJECTID, f'{{"$oid": "{OID.upper()}"}}', OID),
        (K.TIMESTAMP, '{"$date": 1767323045678}', AT),
        (K.TIMESTAMP, '{"$date": {"$numberLong": "1767323045678"}}', AT),
        (K.TIMESTAMP, '{"$date": "2026-01-02T03:04:05.678Z"}', AT),
        (K.TIMESTAMP, '{"$date": -1}', datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)),
        (K.DATE, '{"$date": 1767312000000}', date(2026, 1, 2)),
    ],
)
def test_a_scalar_is_read_in_every_dialect(kind: KeyType, text: str, scalar: Scalar) -> None:
    found = scalar_of(kind, read(text), BOUNDS)
    assert (found, type(found)) == (scalar, type(scalar))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (K.INT64, '"7"', Reason.TYPE_MISMATCH),
        (K.INT64, "7.0", Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberDouble": "7.0"}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberDecimal": "7"}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberLong": 7}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberLong": "7.0"}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberLong": "9223372036854775808"}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$numberLong": "7", "x": 1}', Reason.TYPE_MISMATCH),
        (K.INT64, "9223372036854775808", Reason.OUT_OF_RANGE),
        (K.INT32, '{"$numberLong": "2147483648"}', Reason.OUT_OF_RANGE),
        (K.INT64, "true", Reason.TYPE_MISMATCH),
        (K.INT64, "null", Reason.NULL_KEY),
        (K.INT64, '{"$date": 7}', Reason.TYPE_MISMATCH),
        (K.INT64, '{"$timestamp": {"t": 7, "i": 1}}', Reason.TYPE_MISMATCH),
        (K.NUMERIC, "0.1", Reason.TYPE_MISMATCH),
        (K.NUMERIC, '{"$numberDouble": "NaN"}', Reason.BAD_NUMBER),
        (K.NUMERIC, '{"$numberDouble": "-Infinity"}', Reason.BAD_NUMBER),
        (K.NUMERIC, "1e999999999999999999999", Reason.BAD_NUMBER),
        (K.NUMERIC, "1e-999999999999999999999", Reason.BAD_NUMBER),
        (K.NUMERIC, '{"$numberDecimal": "NaN"}', Reason.BAD_NUMBER),
        (K.NUMERIC, '{"$numberDecimal": "1E+6144"}', Reason.BAD_NUMBER),
        (K.NUMERIC, '"1.5"', Reason.TYPE_MISMATCH),
        (K.NUMERIC, "false", Reason.TYPE_MISMATCH),
        (K.STRING, "7", Reason.TYPE_MISMATCH),
        (K.STRING, f'{{"$oid": "{OID}"}}', Reason.TYPE_MISMATCH),
        (K.STRING, '{"$symbol": "a"}', Reason.TYPE_MISMATCH),
        (K.STRING, '{"$gt": ""}', Reason.TYPE_MISMATCH),
        (K.STRING, '{"$regularExpression": {"pattern": ".*", "options": ""}}', Reason.TYPE_MISMATCH),
        (K.BOOL, "1", Reason.TYPE_MISMATCH),
        (K.BOOL, '"true"', Reason.TYPE_MISMATCH),
        (K.UUID, f'{{"$binary": "{U64}", "$type": "03"}}', Reason.TYPE_MISMATCH),
        (K.UUID, f'{{"$binary": "{U64}", "$type": "00"}}', Reason.TYPE_MISMATCH),
        (K.UUID, '{"$binary": "AP8Q", "$type": "04"}', Reason.TYPE_MISMATCH),
        (K.UUID, f'"{U64}"', Reason.TYPE_MISMATCH),
        (K.BYTES, f'{{"$binary": "{U64}", "$type": "04"}}', Reason.TYPE_MISMATCH),
        (K.BYTES, '{"$binary": "A", "$type": "00"}', Reason.TYPE_MISMATCH),
        (K.BYTES, '{"$binary": "AP8Q", "$type": "zz"}', Reason.TYPE_MISMATCH),
        (K.BYTES, '"AP8Q"', Reason.TYPE_MISMATCH),
        (K.OBJECTID, f'"{OID}"', Reason.TYPE_MISMATCH),
        (K.OBJECTID, '{"$oid": "65a1"}', Reason.TYPE_MISMATCH),
        (K.OBJECTID, '{"$oid": "zza1b2c3d4e5f60718293a4b"}', Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, "1767323045678", Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, '{"$date": "2026-01-02T03:04:05.6789Z"}', Reason.TYPE_MISMATCH),
        (K.TIMESTAMP, '{"$date": 9223372036854775807}', Reason.OUT_OF_RANGE),
        (K.DATE, '{"$date": 1767323045678}', Reason.TYPE_MISMATCH),
        (K.DATE, "20455", Reason.TYPE_MISMATCH),
        (K.INT64, "[7]", Reason.TYPE_MISMATCH),
        (K.INT64, '{"a": 7}', Reason.TYPE_MISMATCH),
    ],
)
def test_what_is_not_exactly_a_scalar_of_the_type_is_refused(kind: KeyType, text: str, reason: Reason) -> None:
    assert reason_of(kind, text) is reason


def test_an_object_id_may_be_bare_text_in_simplified_json_alone() -> None:
    assert scalar_of(K.OBJECTID, OID, BOUNDS, is_simplified=True) == OID
    assert reason_of(K.BYTES, '"AP8Q"', is_simplified=True) is Reason.TYPE_MISMATCH


@pytest.mark.parametrize(
    "text",
    [
        '{"$numberDouble": "NaN"}',
        '{"$regex": "a", "$options": ""}',
        '{"a": {"$oid": "65a1b2c3d4e5f60718293a4b"}}',
        '[{"$date": 5}]',
        '[{"$numberDecimal": "1"}]',
        f'{{"$binary": "{U64}", "$type": "03"}}',
    ],
)
def test_a_copy_takes_no_value_that_it_could_not_give_exactly(text: str) -> None:
    with pytest.raises(KeyRefused):
        cell_of(read(text))


def test_integers_inside_of_lists_and_documents_are_integers_in_a_copy() -> None:
    cell = cell_of(read('{"a": [{"$numberLong": "9007199254740993"}, {"$numberInt": "1"}, null, "x", 1.5]}'))
    assert cell.value == {"a": [9007199254740993, 1, None, "x", Decimal("1.5")]}


def test_conditions_see_numbers_as_numbers_and_the_rest_as_text() -> None:
    text = (
        f'{{"n": {{"$numberLong": "5"}}, "d": {{"$numberDecimal": "1.50"}}, "at": {{"$date": 1767323045678}},'
        f' "o": {{"$oid": "{OID}"}}, "u": {{"$binary": "{U64}", "$type": "04"}}, "r": {{"$regex": "a"}}}}'
    )
    assert plain_of(read(text)) == {
        "n": 5, "d": 1.5, "at": "2026-01-02T03:04:05.678Z", "o": OID, "u": str(U), "r": {"$regex": "a"},
    }  # fmt: skip
