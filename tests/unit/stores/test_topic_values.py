"""A child's value: read exactly, rewritten byte for byte but for its reference."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.fold import Values
from integrity.core.keys import Key, KeySpec, KeyType, Scalar
from integrity.core.policy import policy_of
from integrity.core.rules.model import Cascade, Dependent, Literal, Place, Target, TargetKind
from integrity.stores.rule import StoreRule
from integrity.stores.topic.values import NoRow, RowRule, Unwritable, read_row


def row_rule(
    references: Mapping[str, KeyType],
    where: Mapping[str, Literal | tuple[Literal, ...]] | None = None,
    as_of: str | None = None,
) -> RowRule:
    spec = KeySpec(tuple((f"k{i}", kind) for i, kind in enumerate(references.values())))
    dependent = Dependent(
        "customer.carts",
        "carts",
        "shop",
        Target(TargetKind.TOPIC, "carts"),
        dict(zip(references, spec.names, strict=True)),
        Cascade(),
        Cascade(),
        where or {},
        Place("test.yaml", 1, 1),
        as_of=as_of,
    )
    return RowRule(StoreRule("customer", dependent, spec, policy_of(dependent, spec)))


SINGLE = row_rule({"customer_id": KeyType.INT64})


def rewrite(rule: RowRule, text: bytes, new: Values) -> bytes:
    row = read_row(text)
    old = rule.reference(row)
    assert old is not None
    return rule.rewritten(text, row, old, new)


def test_rewrite_keeps_every_byte_but_the_reference() -> None:
    text = (
        b'{ "big":123456789012345678901234567890 ,\t"price" : 12.50,"tiny":1.5e-400,"zero":-0.0,'
        b'"na\\u006de":"caf\xc3\xa9 \\u00e9\\/ }{",  "customer_id" : 7 ,'
        b'"tags":["customer_id",{"customer_id":1}],"n":null}\n'
    )
    assert rewrite(SINGLE, text, (8,)) == text.replace(b'"customer_id" : 7 ', b'"customer_id" : 8 ')
    assert rewrite(SINGLE, text, (None,)) == text.replace(b'"customer_id" : 7 ', b'"customer_id" : null ')


def test_field_written_with_escapes_is_found() -> None:
    assert rewrite(SINGLE, b'{"customer\\u005fid":7}', (None,)) == b'{"customer\\u005fid":null}'


def test_dotted_path_leads_into_objects() -> None:
    rule = row_rule({"customer.ref.id": KeyType.INT64})
    text = b'{"id":1,"customer":{"id":2,"ref":{"x":{"id":3},"id":4}},"ref":{"id":5}}'
    assert rule.reference(read_row(text)) == (4,)
    assert rewrite(rule, text, (9,)) == text.replace(b'"id":4', b'"id":9')


def test_composite_rewrite_touches_only_the_parts_that_change() -> None:
    rule = row_rule({"tenant": KeyType.STRING, "code": KeyType.INT64})
    text = b'{"code": 5,"tenant":"\\u0061","x":1}'
    assert rewrite(rule, text, ("a", None)) == b'{"code": null,"tenant":"\\u0061","x":1}'
    assert rewrite(rule, text, ("b", 66)) == b'{"code": 66,"tenant":"b","x":1}'


@pytest.mark.parametrize(
    ("kind", "text", "old", "new", "expected"),
    [
        (KeyType.INT64, b"-9223372036854775808", -(2**63), 2**63 - 1, b"9223372036854775807"),
        (KeyType.NUMERIC, b"1.50", Decimal("1.5"), Decimal("2.25"), b"2.25"),
        (KeyType.NUMERIC, b"1", Decimal(1), Decimal(10) ** 30, b"1" + b"0" * 30),
        (KeyType.NUMERIC, b'{"scale":1,"value":"Dw=="}', Decimal("1.5"), Decimal("-2.5"),
         b'{"scale":1,"value":"5w=="}'),
        (KeyType.STRING, b'"a"', "a", 'q"\n\\é', b'"q\\"\\n\\\\\xc3\xa9"'),
        (KeyType.BOOL, b"true", True, False, b"false"),
        (KeyType.UUID, b'"6F9619FF8B86D011B42D00C04FC964FF"', UUID("6f9619ff8b86d011b42d00c04fc964ff"), UUID(int=1),
         b'"00000000-0000-0000-0000-000000000001"'),
        (KeyType.DATE, b"19000", date(2022, 1, 8), date(2022, 1, 9), b"19001"),
        (KeyType.DATE, b'"2022-01-08"', date(2022, 1, 8), date(2022, 1, 9), b'"2022-01-09"'),
        (KeyType.TIMESTAMP, b"1700000000000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
         datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC), b"1700000000000001"),
        (KeyType.TIMESTAMP, b'"2023-11-14T23:13:20+01:00"', datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
         datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), b'"2024-01-02T03:04:05Z"'),
        (KeyType.BYTES, b'"AAE="', b"\0\1", b"\xff", b'"/w=="'),
        (KeyType.OBJECTID, b'"' + b"A" * 24 + b'"', "a" * 24, "b" * 24, b'"' + b"b" * 24 + b'"'),
    ],
)  # fmt: skip
def test_reference_is_written_the_way_its_owner_wrote_it(
    kind: KeyType, text: bytes, old: Scalar, new: Scalar, expected: bytes
) -> None:
    rule = row_rule({"ref": kind})
    value = b'{"ref":' + text + b',"x":0}'
    assert rule.reference(read_row(value)) == (old,)
    rewritten = rewrite(rule, value, (new,))
    assert rewritten == b'{"ref":' + expected + b',"x":0}'
    assert rule.reference(read_row(rewritten)) == (new,)


@pytest.mark.parametrize(
    ("kind", "text", "new"),
    [
        (KeyType.NUMERIC, b"1.5", Decimal("1.2345678901234567")),  # a reader could not tell it from a rounded double
        (KeyType.TIMESTAMP, b"1700000000000000", datetime(1971, 1, 1, tzinfo=UTC)),  # could be milliseconds
    ],
)
def test_reference_that_could_not_be_read_back_is_refused(kind: KeyType, text: bytes, new: Scalar) -> None:
    with pytest.raises(Unwritable):
        rewrite(row_rule({"ref": kind}), b'{"ref":' + text + b"}", (new,))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"7", b"null", b"[]", b"\xff", b'"x"', b"{", b'{"customer_id":7}x', b'\0\0\0\0\1{"customer_id":7}',
        b'\xef\xbb\xbf{"customer_id":7}', b'{"customer_id":NaN}', b'{"customer_id":7,"customer_id":8}',
        b'{"customer_id":7,"customer\\u005fid":8}', b'{"customer_id":7,"a":"\xff"}', b"[" * 100_000,
        b'{"customer_id":' + b"[" * 200 + b"]" * 200 + b"}", b'{"customer_id":7,"n":' + b"9" * 5000 + b"}",
        b'{"customer_id":7,"a":"' + b"x" * (8 << 20) + b'"}',
    ],
)  # fmt: skip
def test_value_that_is_not_beyond_doubt_an_object_is_no_row(text: bytes) -> None:
    with pytest.raises(NoRow):
        SINGLE.reference(read_row(text))


@pytest.mark.parametrize(
    "text",
    [b"{}", b'{"Customer_id":7}', b'{"customer_id":"7"}', b'{"customer_id":7.0}', b'{"customer_id":7e0}',
     b'{"customer_id":true}', b'{"customer_id":{"$numberLong":"7"}}', b'{"customer_id":9223372036854775808}'],
)  # fmt: skip
def test_field_that_is_missing_or_of_another_type_makes_no_row(text: bytes) -> None:
    with pytest.raises(NoRow):
        SINGLE.reference(read_row(text))


SOURCE = b'{"connector":"postgresql","lsn":5,"table":"carts"}'
ENVELOPE = (
    b'{"before":null,"after":{"id":1,"customer_id":7},"source":' + SOURCE + b',"op":"u","ts_ms":1,"transaction":null}'
)
SCHEMA = (
    b'{"type":"struct","fields":[{"type":"int64","optional":false,"field":"id"},'
    b'{"type":"int32","optional":true,"field":"customer_id"}],"optional":false,"name":"carts.Value"}'
)


def wrapped(payload: bytes, schema: bytes = b"null") -> bytes:
    return b'{"schema":' + schema + b',"payload":' + payload + b"}"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (ENVELOPE, (7,)),
        (ENVELOPE.replace(b'"op":"u"', b'"op":"c"'), (7,)),
        (ENVELOPE.replace(b'"op":"u"', b'"op":"r"'), (7,)),
        (wrapped(ENVELOPE), (7,)),
        (wrapped(ENVELOPE, SCHEMA), (7,)),
        (ENVELOPE.replace(b'"before":null,"after"', b'"before"').replace(b'"u"', b'"d"'), None),
        (b'{"before":{"customer_id":7},"after":null,"source":{},"op":"d"}', None),
        (b'{"before":{"customer_id":7},"after":{"customer_id":null},"source":{},"op":"u"}', None),
        (wrapped(b'{"customer_id":7}'), (7,)),
        (wrapped(b'{"customer_id":7}', SCHEMA), (7,)),
        (wrapped(b"null", SCHEMA), None),
        (b'{"customer_id":7,"op":"u","after":{"customer_id":8},"source":{}}', (7,)),  # a row with fields of these names
        (b'{"customer_id":7,"schema":null,"payload":{"customer_id":8}}', (7,)),
    ],
)
def test_row_is_found_in_what_is_around_it(text: bytes, reference: Key | None) -> None:
    assert SINGLE.reference(read_row(text)) == reference


@pytest.mark.parametrize(
    "text",
    [
        ENVELOPE.replace(b'"op":"u"', b'"op":"t"'),
        ENVELOPE.replace(b'"op":"u"', b'"op":"d"'),  # a deletion with a row after it
        ENVELOPE.replace(b'"op":"u"', b'"op":1'),
        b'{"before":{"customer_id":7},"after":null,"source":{},"op":"u"}',
        b'{"after":"{\\"customer_id\\":7}","source":{},"op":"c"}',  # MongoDB's connector: JSON in text
        wrapped(b"7"),
        wrapped(b'[{"customer_id":7}]'),
        b'{"schema":{"customer_id":7},"payload":{"customer_id":7}}',  # no schema of Connect's
    ],
)
def test_envelope_in_doubt_is_no_row(text: bytes) -> None:
    with pytest.raises(NoRow):
        SINGLE.reference(read_row(text))


@pytest.mark.parametrize("text", [ENVELOPE, wrapped(ENVELOPE), wrapped(ENVELOPE, SCHEMA)])
@pytest.mark.parametrize("new", [None, 8])
def test_envelope_is_never_written(text: bytes, new: int | None) -> None:
    with pytest.raises(Unwritable, match="envelope"):
        rewrite(SINGLE, text, (new,))


@pytest.mark.parametrize("new", [None, 8, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("schema", [b"null", SCHEMA])
def test_payload_of_a_wrapper_is_rewritten_in_its_place(schema: bytes, new: int | None) -> None:
    text = wrapped(b'{ "id":1, "customer_id" : 7, "schema":{"customer_id":9}}', schema)
    written = b"null" if new is None else str(new).encode()
    assert rewrite(SINGLE, text, (new,)) == text.replace(b": 7", b": " + written)


@pytest.mark.parametrize(
    ("schema", "new"),
    [
        (SCHEMA, 2**31),
        (SCHEMA.replace(b'"optional":true', b'"optional":false'), None),
        (SCHEMA.replace(b'"customer_id"', b'"other"'), 8),
        (b'{"type":"struct"}', 8),
        (b'{"type":"struct","fields":7}', 8),
    ],
)
def test_schema_around_a_row_is_never_broken(schema: bytes, new: int | None) -> None:
    with pytest.raises(Unwritable, match="schema"):
        rewrite(SINGLE, wrapped(b'{"customer_id":7}', schema), (new,))


def test_captured_envelopes_of_a_table_are_rows() -> None:
    """Every value of Debezium's own, with schemas and without, is the row that its statement left, or gone."""
    rule, found = row_rule({"id": KeyType.INT64}), 0
    for name in ("pg_env", "pg_env_schemas"):
        for line in Path(f"tests/golden/events/{name}.jsonl").read_text("utf-8").splitlines():
            captured = json.loads(line)
            if not captured["topic"].endswith(".customers") or captured["value_b64"] is None:
                continue
            value = b64decode(captured["value_b64"])
            envelope = json.loads(value)
            envelope = envelope.get("payload", envelope)
            if envelope["op"] in "crud":
                after = envelope["after"]
                assert rule.reference(read_row(value)) == (None if after is None else (after["id"],))
                found += 1
    assert found > 50


def test_path_through_something_else_than_an_object_makes_no_row() -> None:
    for text in (b'{"a":7}', b'{"a":[{"b":7}]}', b'{"a":null}'):
        with pytest.raises(NoRow):
            row_rule({"a.b": KeyType.INT64}).reference(read_row(text))


def test_null_part_is_no_reference() -> None:
    rule = row_rule({"a": KeyType.INT64, "b": KeyType.INT64})
    assert rule.reference(read_row(b'{"a":null,"b":1}')) is None
    assert rule.reference(read_row(b'{"a":0,"b":1}')) == (0, 1)


@pytest.mark.parametrize(
    ("wanted", "text", "fits"),
    [
        (1, b"1", True), (1, b"1.0", True), (1, b"1e0", True), (1, b"true", False), (1, b'"1"', False),
        (1, b"null", False), (True, b"true", True), (True, b"1", False), (0, b"false", False), (1.5, b"1.50", True),
        (1.5, b"1.5000001", False), (0.1, b"0.1", True), ("a", b'"a"', True), ("a", b'"A"', False),
        (None, b"null", True), (None, b"0", False), (1, b"1e99999999999999999999", False), (1, b"1e-9999999999", False),
        (("a", None), b"null", True), (("a", "b"), b'"b"', True), (("a", "b"), b'"c"', False), ("a", b'["a"]', False),
    ],
)  # fmt: skip
def test_where_compares_as_json_does(wanted: Literal | tuple[Literal, ...], text: bytes, fits: bool) -> None:
    rule = row_rule({"ref": KeyType.INT64}, {"f": wanted})
    found = rule.reference(read_row(b'{"ref":7,"f":' + text + b"}"))
    assert (found == (7,)) is fits


def test_field_that_is_not_there_is_null_to_where() -> None:
    assert row_rule({"ref": KeyType.INT64}, {"f": None}).reference(read_row(b'{"ref":7}')) == (7,)
    assert row_rule({"ref": KeyType.INT64}, {"f": "a"}).reference(read_row(b'{"ref":7}')) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(
    fields=st.dictionaries(st.text(), JSON, max_size=6),
    place=st.integers(0, 6),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    new=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_any_other_field_reads_the_same_after_a_rewrite(
    fields: dict[str, object], place: int, ascii_only: bool, indent: int | None, new: int | None
) -> None:
    pairs = [(name, value) for name, value in fields.items() if name != "customer_id"]
    pairs.insert(place, ("customer_id", 7))
    text = json.dumps(dict(pairs), ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    try:
        key: Key | None = SINGLE.reference(read_row(text))
    except NoRow:  # half of a surrogate pair, which strict JSON refuses
        assert any("\ud800" <= char <= "\udfff" for char in json.dumps(dict(pairs), ensure_ascii=False))
        return
    assert key == (7,)
    rewritten = rewrite(SINGLE, text, (new,))
    before = json.loads(text, parse_float=str, parse_int=str)
    after = json.loads(rewritten, parse_float=str, parse_int=str)
    assert after["customer_id"] == (None if new is None else str(new))
    assert list(after) == list(before)
    del before["customer_id"], after["customer_id"]
    assert after == before


@pytest.mark.parametrize(
    ("written", "micros"),
    [
        ('"2023-11-14T22:13:20Z"', 1_700_000_000_000_000),
        ('"2023-11-14T23:13:20.5+01:00"', 1_700_000_000_500_000),
        ('"2023-11-14T22:13:20.123456789Z"', 1_700_000_000_123_456),
        ("1700000000123", 1_700_000_000_123_000),
        ("1700000000123456", 1_700_000_000_123_456),
        ('"1969-12-31T23:59:59.999999Z"', -1),
        # could be seconds
        ("1700000000", None),
        ("99999999999", None),
        # without a zone, without a time of day, no moment
        ('"2023-11-14T22:13:20"', None),
        ('"2023-11-14"', None),
        ('"2023-13-14T22:13:20Z"', None),
        ('"__debezium_unavailable_value"', None),
        ('"1700000000123"', None),
        ("1700000000123.0", None),
        ("-1700000000123", None),
        ("99999999999999999999", None),
        ("1e12", None),
        ("true", None),
        ("null", None),
        ("[1700000000123]", None),
        ("{}", None),
    ],
)
def test_time_of_a_row_is_read_when_it_is_beyond_doubt(written: str, micros: int | None) -> None:
    rule = row_rule({"customer_id": KeyType.INT64}, as_of="meta.at")
    row = read_row(b'{"customer_id":7,"meta":{"at":%s}}' % written.encode())
    assert rule.reference(row) == (7,)
    assert rule.born(row) == micros


def test_row_without_the_field_of_as_of_has_no_time() -> None:
    assert row_rule({"customer_id": KeyType.INT64}, as_of="at").born(read_row(b'{"customer_id":7}')) is None
