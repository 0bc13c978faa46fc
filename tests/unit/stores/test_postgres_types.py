"""A key part is compared and written as what it is, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from integrity.core.keys import KeyType
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.session import server_of
from integrity.stores.postgres.types import NO_MATCH, Codec, Enum, Unfit, codec, column_types

COLUMNS = (
    *("int2", "int4", "int8", "numeric", "float8", "text", "varchar", "bpchar", "citext", "uuid", "bool", "date"),
    *("timestamptz", "timestamp", "time", "bytea", "jsonb", "name", "oid"),
)
FIT = {
    KeyType.INT32: {"int2", "int4", "int8", "numeric"},
    KeyType.INT64: {"int2", "int4", "int8", "numeric"},
    KeyType.NUMERIC: {"int2", "int4", "int8", "numeric"},
    KeyType.STRING: {"text", "varchar", "bpchar"},
    KeyType.UUID: {"uuid"},
    KeyType.BOOL: {"bool"},
    KeyType.DATE: {"date"},
    KeyType.TIMESTAMP: {"timestamptz", "timestamp"},
    KeyType.BYTES: {"bytea"},
    KeyType.OBJECTID: {"text", "varchar", "bpchar"},
}


def of(kind: KeyType, column: str, modifier: int = -1) -> Codec:
    found = codec(kind, column, modifier)
    assert found is not None
    return found


def numeric(precision: int, scale: int) -> int:
    """The type modifier of numeric(precision, scale), as PostgreSQL packs it."""
    return (precision << 16 | scale & 0x7FF) + 4


@pytest.mark.parametrize("kind", KeyType)
def test_key_type_goes_with_these_columns_and_no_others(kind: KeyType) -> None:
    assert {column for column in COLUMNS if codec(kind, column, -1)} == FIT[kind]
    assert column_types(kind)


@pytest.mark.parametrize(
    "value", [Decimal("5.7"), Decimal("-0.5"), Decimal(2**63), Decimal(-(2**63) - 1), Decimal(10) ** 400]
)
def test_number_that_is_no_bigint_matches_nothing_in_an_integer_column(value: Decimal) -> None:
    fit = of(KeyType.NUMERIC, "int4")
    assert fit.match(value) is NO_MATCH
    with pytest.raises(Unfit):
        fit.assign(value)


def test_whole_number_is_bound_as_an_integer() -> None:
    fit = of(KeyType.NUMERIC, "int8")
    assert type(fit.match(Decimal(5))) is int
    assert fit.assign(Decimal(-(2**63))) == -(2**63)


@pytest.mark.parametrize(
    ("value", "precision", "scale", "fits"),
    [
        (Decimal("5.77"), 10, 2, True),
        (Decimal("5.777"), 10, 2, False),
        (Decimal("5"), 10, 0, True),
        (Decimal("5.1"), 10, 0, False),
        (1200, 3, -2, True),
        (1250, 3, -2, False),
        (Decimal("0"), 3, -2, True),
        (Decimal("0.001"), 3, 3, True),
    ],
)
def test_number_that_the_scale_would_round_is_not_written(
    value: object, precision: int, scale: int, fits: bool
) -> None:
    fit = of(KeyType.INT64 if isinstance(value, int) else KeyType.NUMERIC, "numeric", numeric(precision, scale))
    if fits:
        assert fit.assign(value) == value  # type: ignore[arg-type]
    else:
        with pytest.raises(Unfit):
            fit.assign(value)  # type: ignore[arg-type]


def test_text_that_the_column_would_cut_is_not_written() -> None:
    fit = of(KeyType.STRING, "varchar", 3 + 4)
    assert fit.assign("abc") == "abc"
    with pytest.raises(Unfit):
        fit.assign("abc ")
    assert of(KeyType.STRING, "text").assign("a" * 5000)


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("abcde", "abcde"),
        ("ab", "ab"),
        ("ab   ", "ab"),
        ("", ""),
        ("     ", ""),
        ("abcdef", NO_MATCH),
        ("a\0", NO_MATCH),
    ],
)
def test_text_in_padded_column_is_what_it_is_without_the_padding(value: str, bound: object) -> None:
    fit = of(KeyType.STRING, "bpchar", 5 + 4)
    assert fit.match(value) == bound
    if bound is NO_MATCH:
        with pytest.raises(Unfit):
            fit.assign(value)
    else:
        assert fit.assign(value) == bound


@pytest.mark.parametrize(("value", "length"), [("ab ", 5), ("ab       ", 5), ("ab ", None)])
def test_text_whose_spaces_may_count_elsewhere_is_in_doubt_for_a_padded_column(value: str, length: int | None) -> None:
    fit = of(KeyType.STRING, "bpchar", -1 if length is None else length + 4)
    for use in (fit.match, fit.assign):
        with pytest.raises(Unfit):
            use(value)


def test_only_text_goes_with_an_enum() -> None:
    assert [kind for kind in KeyType if codec(kind, Enum(1, '"s"."e"'), -1)] == [KeyType.STRING]


def test_text_with_a_null_character_is_in_no_column() -> None:
    fit = of(KeyType.STRING, "text")
    assert fit.match("a\0") is NO_MATCH
    with pytest.raises(Unfit):
        fit.assign("a\0")


def test_time_that_the_precision_would_round_is_not_written() -> None:
    moment = datetime(2024, 1, 1, 0, 0, 0, 1000, UTC)
    assert of(KeyType.TIMESTAMP, "timestamptz", 3).assign(moment) == "2024-01-01 00:00:00.001000+00"
    with pytest.raises(Unfit):
        of(KeyType.TIMESTAMP, "timestamptz", 3).assign(moment.replace(microsecond=1001))


def test_time_without_zone_is_in_utc() -> None:
    moment = datetime(2024, 1, 1, 2, 0, tzinfo=timezone(timedelta(hours=2)))
    assert of(KeyType.TIMESTAMP, "timestamp").match(moment) == "2024-01-01 00:00:00.000000"


def test_identifiers_cannot_end_their_quotes() -> None:
    assert quoted('a"b', "C d") == '"a""b"."C d"'


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("postgresql://me:secret@db.example:5432/shop", "db.example:5432"),
        ("postgresql://me:s%40cret@one:1,two:2/shop?sslmode=require", "one:1,two:2"),
        ("postgresql:///shop?host=/run", "localhost"),
        ("postgresql://me:p@ss@db/shop", "db"),
    ],
)
def test_server_of_an_address_has_no_password(url: str, server: str) -> None:
    assert server_of(url) == server
