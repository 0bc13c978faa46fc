"""Keys as people write them: exact, or refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.key_text import key_text, parse_key
from integrity.core.keys import Key, KeyRefused, KeySpec, KeyType, Scalar

SAMPLES: dict[KeyType, tuple[str, Scalar]] = {
    KeyType.INT32: ("-5", -5),
    KeyType.INT64: ("9223372036854775807", 2**63 - 1),
    KeyType.NUMERIC: ("1.50", Decimal("1.5")),
    KeyType.STRING: ("a%2Cb%25%20%C3%BC", "a,b% ü"),
    KeyType.UUID: ("6BA7B810-9DAD-11D1-80B4-00C04FD430C8", UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
    KeyType.BOOL: ("true", True),
    KeyType.DATE: ("2024-02-29", date(2024, 2, 29)),
    KeyType.TIMESTAMP: ("2024-02-29T12:00:00%2B01:00", datetime(2024, 2, 29, 11, tzinfo=UTC)),
    KeyType.BYTES: ("AP8%3D", b"\x00\xff"),
    KeyType.OBJECTID: ("507F1F77BCF86CD799439011", "507f1f77bcf86cd799439011"),
}


def spec(*kinds: KeyType) -> KeySpec:
    return KeySpec(tuple((f"k{n}", kind) for n, kind in enumerate(kinds)))


@pytest.mark.parametrize("kind", KeyType)
def test_every_type_is_read_and_written_so_that_it_is_read_again(kind: KeyType) -> None:
    text, value = SAMPLES[kind]
    key = parse_key(text, spec(kind))
    assert key == (value,) and type(key[0]) is type(value)
    assert parse_key(key_text(key), spec(kind)) == key


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            (KeyType.INT64, text)
            for text in ("", "5.7", "5.0", "+5", " 5", "05", "-0", "0x5", "5e0", "\u0665", "9" * 19, "1_0")
        ),
        *((KeyType.INT32, text) for text in ("2147483648", "true")),
        *((KeyType.NUMERIC, text) for text in ("", "1e3", "NaN", ".5", "1,5", "9" * 1001)),
        *((KeyType.BOOL, text) for text in ("True", "1", "yes", "")),
        *((KeyType.STRING, text) for text in ("%", "%G0", "100%", "%FF", "a,b", "__debezium_unavailable_value")),
        (KeyType.UUID, "6ba7b810"),
        *((KeyType.DATE, text) for text in ("19000", "2024-02-30")),
        *((KeyType.TIMESTAMP, text) for text in ("2024-02-29T12:00:00", "1700000000000000")),
        (KeyType.BYTES, "AP8"),
        (KeyType.OBJECTID, "507f"),
    ],
)
def test_what_is_in_doubt_is_refused(kind: KeyType, text: str) -> None:
    with pytest.raises(KeyRefused):
        parse_key(text, spec(kind))


def test_wrong_number_of_parts_names_them() -> None:
    with pytest.raises(KeyRefused, match=r"1 part, it takes 2: k0,k1 \(a comma in a part is written %2C\)"):
        parse_key("a", spec(KeyType.STRING, KeyType.INT64))


@given(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(-(2**63), 2**63 - 1)))
def test_whatever_a_composite_key_holds_it_is_read_as_it_was_written(key: Key) -> None:
    assert parse_key(key_text(key), spec(KeyType.STRING, KeyType.INT64)) == key
