from __future__ import annotations

import json
from decimal import Decimal

import pytest

from integrity.core.decode.deletion import Deletions
from integrity.core.decode.json import (
    JsonFault,
    check_depth,
    check_text,
    parse,
    parse_envelope,
    parse_object,
)
from integrity.core.decode.record import Limits
from integrity.core.decode.shape import Shapes
from integrity.core.keys import Exponential
from integrity.errors import Reason

LIMITS = Limits()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"9223372036854775808", 9223372036854775808),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b"-0", 0),
        (b"1.50", Decimal("1.50")),
        (b"9.007199254740992E15", Exponential("9.007199254740992E15")),
        (b"5e0", Exponential("5e0")),
        (b'"\\uD83D\\uDE00"', "😀"),
        ('"😀"'.encode(), "😀"),
        (b' {"a" : [1, {"b": null}]}\n', {"a": [1, {"b": None}]}),
        (b'{"a":"b:c","d":"e:f"}', {"a": "b:c", "d": "e:f"}),
        (b'{"a":{"a":{"a":1}}}', {"a": {"a": {"a": 1}}}),
        (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
    ],
)
def test_values_are_exact(text: bytes, value: object) -> None:
    parsed = parse(text, LIMITS)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", Reason.BAD_JSON),
        (b"{", Reason.BAD_JSON),
        (b'{"id":1', Reason.BAD_JSON),
        (b'{"id":1} {}', Reason.BAD_JSON),
        (b'{"id":01}', Reason.BAD_JSON),
        (b"{'id':1}", Reason.BAD_JSON),
        (b'{"id":"a\tb"}', Reason.BAD_JSON),
        (b"plain", Reason.BAD_JSON),
        (b"007", Reason.BAD_JSON),
        (b'"\xff"', Reason.BAD_ENCODING),
        (b'"\xc0\xaf"', Reason.BAD_ENCODING),
        (b'"\xed\xa0\x80"', Reason.BAD_ENCODING),
        (b'{"id":1,"\xff":2}', Reason.BAD_ENCODING),
        (b'\xef\xbb\xbf{"id":1}', Reason.BAD_ENCODING),
        ('{"id":1}'.encode("utf-16"), Reason.BAD_ENCODING),
        ('{"id":1}'.encode("utf-16-le"), Reason.BAD_ENCODING),
        ('{"id":1}'.encode("utf-16-be"), Reason.BAD_ENCODING),
        (b'{"id":"\\ud800"}', Reason.BAD_ENCODING),
        (b'{"id":"\\udc00"}', Reason.BAD_ENCODING),
        (b'{"id":"\\ud800\\u0041"}', Reason.BAD_ENCODING),
        (b'{"id":NaN}', Reason.BAD_NUMBER),
        (b'{"id":-Infinity}', Reason.BAD_NUMBER),
        (b"Infinity", Reason.BAD_NUMBER),
        (b'{"id":' + b"9" * 5000 + b"}", Reason.BAD_NUMBER),
        (b'{"id":1,"id":2}', Reason.DUPLICATE_FIELD),
        (b'{"id":1,"i\\u0064":2}', Reason.DUPLICATE_FIELD),
        (b'{"id":1,"x":{"y":1,"y":1}}', Reason.DUPLICATE_FIELD),
        (b'[{"y":1,"y":1}]', Reason.DUPLICATE_FIELD),
        (b'{"a":"b:c","d":1,"d":1}', Reason.DUPLICATE_FIELD),
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b'{"a":' * 100_000, Reason.TOO_DEEP),
        (b"[" * 101 + b"]" * 101, Reason.TOO_DEEP),
        (b'{"a":' * 101 + b"1" + b"}" * 101, Reason.TOO_DEEP),
        (b'{"a":' + b"[" * 101 + b"]" * 101 + b"}", Reason.TOO_DEEP),
        (b"\x00\x00\x00\x00\x07\x02\x0a", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (b"\x00\x00\x00\x00\x01\x02abc\xff", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (b"\x00\x00\x00\x00\x00\x00\x00\x05", Reason.SCHEMA_REGISTRY_PAYLOAD),
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes, reason: Reason) -> None:
    with pytest.raises(JsonFault) as fault:
        parse(text, LIMITS)
    assert fault.value.reason is reason


def test_nesting_up_to_the_limit_is_read() -> None:
    parse(b"[" * 100 + b"]" * 100, LIMITS)
    parse(b'{"a":' * 100 + b"1" + b"}" * 100, LIMITS)


def test_brackets_beside_each_other_or_in_strings_are_no_nesting() -> None:
    check_depth(b"[" + b"[]," * 5000 + b"[]]", LIMITS)
    check_depth(b'{"a":"' + b"[{" * 5000 + b'\\"["}', LIMITS)
    with pytest.raises(JsonFault):
        check_depth(b'["]]]]",' * 101 + b"1" + b"]" * 101, LIMITS)


def test_a_text_beyond_the_limit_is_refused_unread() -> None:
    check_text(b"[" * 16, Limits(record_bytes_max=16))
    for text in (b"[" * 17, b"\xff" * 17, b"\x00" * 17):
        with pytest.raises(JsonFault) as fault:
            check_text(text, Limits(record_bytes_max=16))
        assert fault.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"id":"a\tb\nc\x01"}', {"id": "a\tb\nc\x01"}),
        (b'{"id":"\t\\"\\\\","n":1.50,"e":1e5}', {"id": '\t"\\', "n": Decimal("1.50"), "e": Exponential("1e5")}),
    ],
)
def test_raw_control_characters_are_read_where_they_are_expected(text: bytes, value: object) -> None:
    assert parse(text, LIMITS, control_characters=True) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"id":"\t"', Reason.BAD_JSON),
        (b'{"id":"\t","id":1}', Reason.DUPLICATE_FIELD),
        (b'{"id":"\t","n":NaN}', Reason.BAD_NUMBER),
        (b'{"id":"\t","n":' + b"9" * 5000 + b"}", Reason.BAD_NUMBER),
        (b'["\t",' + b"[" * 100 + b"]" * 101, Reason.TOO_DEEP),
        (b'["\t",' + b"[" * 100_000, Reason.TOO_DEEP),
        (b"\x00\x01", Reason.SCHEMA_REGISTRY_PAYLOAD),
        (b"plain", Reason.BAD_JSON),
    ],
)
def test_with_control_characters_all_else_stays_strict(text: bytes, reason: Reason) -> None:
    with pytest.raises(JsonFault) as fault:
        parse(text, LIMITS, control_characters=True)
    assert fault.value.reason is reason


FIELDS = {"before": None, "after": {"a": 1}, "source": {"b": 2}, "transaction": None, "op": "c", "ts_ms": 1}
LATER_FIELDS = {"ts_us": 2, "ts_ns": 3}


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "text",
    [
        compact(FIELDS | LATER_FIELDS),
        compact(FIELDS),
        compact({"op": "m", "message": {"prefix": "p"}, "source": {}}),
        json.dumps(FIELDS | LATER_FIELDS, indent=1).encode(),
        compact({"schema": {"type": "struct"}, "payload": FIELDS}),
        b"{}",
        compact(FIELDS | {"after": {"x": 1}, "new": "a:b"}),
        compact(FIELDS).replace(b'{"a":1}', b'{"a":1,"a":2}'),  # the row is read by nobody
    ],
)
def test_an_envelope_with_its_fields_once_is_read(text: bytes) -> None:
    envelope = parse_envelope(text)
    for name, value in json.loads(text).items():
        if name in envelope.__struct_fields__:
            assert json.loads(bytes(getattr(envelope, name))) == value


def test_an_absent_field_is_false() -> None:
    envelope = parse_envelope(b'{"op":null}')
    assert envelope.op
    assert not envelope.before
    assert not envelope.payload


@pytest.mark.parametrize("name", [*FIELDS, *LATER_FIELDS, "schema", "payload", "unknown"])
@pytest.mark.parametrize("whole", [FIELDS | LATER_FIELDS, FIELDS, {}])
def test_a_field_that_an_envelope_has_twice_is_refused(name: str, whole: dict[str, object]) -> None:
    once = whole | {name: whole.get(name, 1)}
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    for again in (name, escaped):
        for value in ("1", '"d"', '{"a":1}', '""'):
            text = compact(once)[:-1] + f',"{again}":{value}}}'.encode()
            with pytest.raises(JsonFault) as fault:
                parse_envelope(text)
            assert fault.value.reason is Reason.DUPLICATE_FIELD


def test_an_envelope_cannot_hide_a_second_field_in_the_room_of_an_absent_one() -> None:
    """`ts_us` is absent and `op` there twice: it fills what the name `ts_us` would."""
    text = compact(FIELDS | LATER_FIELDS).replace(b'"ts_us":2', b'"op":"d"')
    with pytest.raises(JsonFault) as fault:
        parse_envelope(text)
    assert fault.value.reason is Reason.DUPLICATE_FIELD


@pytest.mark.parametrize("text", [b"[]", b"5", b'"a"', b"null", b"true"])
def test_what_is_no_object_is_no_envelope(text: bytes) -> None:
    with pytest.raises(JsonFault) as fault:
        parse_envelope(text)
    assert fault.value.reason is Reason.BAD_ENVELOPE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, Reason.TOO_DEEP),
        (b"[", Reason.BAD_JSON),
        (b"[NaN]", Reason.BAD_NUMBER),
        (b"[] {}", Reason.BAD_JSON),
        (b"9" * 5000, Reason.BAD_NUMBER),
    ],
)
def test_the_fault_of_a_broken_text_comes_before_its_shape(text: bytes, reason: Reason) -> None:
    with pytest.raises(JsonFault) as fault:
        parse_envelope(text)
    assert fault.value.reason is reason


def test_a_source_names_no_field_twice() -> None:
    assert parse_object(b'{"lsn":1,"sequence":"[\\"1\\",\\"2\\"]","name":"a:b"}', LIMITS)["lsn"] == 1
    for text in (b'{"lsn":1,"lsn":1}', b'{"lsn":1,"ls\\u006e":2}', b'{"a":{"b":1,"b":2}}', b'{"a":"x:y","c":1,"c":1}'):
        with pytest.raises(JsonFault) as fault:
            parse_object(text, LIMITS)
        assert fault.value.reason is Reason.DUPLICATE_FIELD


SOURCE = {"connector": "postgresql", "name": "a1:b", "lsn": 20, "ts_ms": 15, "file": "f.1", "snapshot": None}
DELETION = compact(FIELDS | LATER_FIELDS | {"op": "d", "after": None, "before": {"a": {"b": [1]}}, "source": SOURCE})
ROW = b'{"a":{"b":[1]}}'


def told(text: bytes, limits: Limits = LIMITS) -> dict[str, object] | None:
    """What a deletion tells to what has read another one."""
    deletions = Deletions(limits, ("lsn", "ts_ms", "file", "pos"))
    deletions.learn(DELETION, ROW)
    return deletions.source(text)


@pytest.mark.parametrize(
    "text",
    [
        DELETION,
        DELETION.replace(b'"lsn":20', b'"lsn":90').replace(b"f.1", b"f.7").replace(b'"ts_ms":1,', b'"ts_ms":0,'),
        DELETION.replace(b"a1:b", b"a9:b"),
        DELETION.replace(ROW, b"null"),
        DELETION.replace(ROW, '{"a":"é😀","a":1}'.encode()),
        DELETION.replace(ROW, b' {"a": ",\\"after\\":null,"} '),
        DELETION.replace(ROW, b"[" * 99 + b"]" * 99),
    ],
)
def test_a_deletion_like_one_before_is_read_as_the_careful_way_reads_it(text: bytes) -> None:
    source = parse_object(bytes(parse_envelope(text).source), LIMITS)
    assert told(text) == {name: source[name] for name in ("connector", "lsn", "ts_ms", "file")}


@pytest.mark.parametrize(
    "text",
    [
        DELETION.replace(b'"op":"d"', b'"op":"c"'),
        DELETION.replace(b'"lsn":20', b'"lsn":02'),
        DELETION.replace(b'"lsn":20', b'"lsn":2.0'),
        DELETION.replace(b'"lsn":20', b'"lsn":120'),
        DELETION.replace(b'"lsn":20', b'"lsn":20,"lsn":20'),
        DELETION.replace(b'"lsn":20', b'"lsn": 20'),
        DELETION.replace(b"a1:b", b"a1:c"),
        DELETION.replace(b"a1:b", b"\xff1:b"),
        DELETION.replace(ROW, ROW + b',"before":' + ROW),
        DELETION.replace(ROW, b'{"a":"\xff"}'),
        DELETION.replace(ROW, b'{"a":01}'),
        DELETION.replace(ROW, b'{"a":1'),
        DELETION.replace(ROW, b"[" * 101 + b"]" * 101),
        DELETION.replace(ROW, b"[" * 100_000),
        DELETION.replace(b'"after":null', b'"after":{}'),
        DELETION[:-1],
        DELETION + b" ",
        b"",
    ],
)
def test_what_is_not_beyond_doubt_like_the_one_before_is_left_to_the_careful_way(text: bytes) -> None:
    assert told(text) is None


def test_where_the_rest_of_the_last_one_began_is_only_where_it_is_looked_for_first() -> None:
    longer = DELETION.replace(b'"lsn":20', b'"lsn":2000')
    rest = DELETION.partition(b',"after":null,')[2]
    row = b'{"a":{"b":[1],"after":null,"c":"d"}}'
    deletions = Deletions(LIMITS, ("lsn",))
    for text in (DELETION, longer):
        deletions.learn(text, ROW)
    texts = [
        (DELETION, 20),
        (longer, 2000),
        (longer.replace(ROW, row), 2000),
        (DELETION.replace(ROW, row), 20),
        (DELETION.replace(ROW, b"null"), 20),
        (rest, None),
        (DELETION.replace(b',"after":null', b""), None),
        (b'{"before":' + rest, None),
        (b'{"before":{"a":1' + rest, None),
        (b"", None),
        (longer, 2000),
    ]
    for text, lsn in [*texts, *reversed(texts)]:
        said = deletions.source(text)
        assert (said and said["lsn"]) == lsn


def test_a_row_that_holds_what_stands_before_the_rest_is_never_cut_there() -> None:
    row = b'{"a":{"b":1,"after":null,"c":"ddddd"}}'
    inside = b'"c":"ddddd"}},"after":null,'
    longer = DELETION.replace(b"a1:b", b"a1:b" + b"y" * len(inside))
    text = DELETION.replace(ROW, row)
    deletions = Deletions(LIMITS, ("lsn",))
    deletions.learn(DELETION, ROW)
    deletions.learn(longer, ROW)
    assert deletions.source(longer) is not None
    assert deletions.source(text) is None  # looked for in the row, and left to the careful way
    deletions.learn(text, row)
    for each in (text, DELETION, text):
        assert deletions.source(each) == {"connector": "postgresql", "lsn": 20}


@pytest.mark.parametrize(
    "rest",
    [
        b'"source":{"lsn":1.5},"op":"d"}',
        b'"source":{"lsn":{"a":1}},"op":"d"}',
        b'"source":{"l1":1},"op":"d"}',
        b'"source":{"name":"\\u0041"},"op":"d"}',
    ],
)
def test_what_digits_could_make_another_is_not_remembered(rest: bytes) -> None:
    text = b'{"before":null,"after":null,' + rest
    deletions = Deletions(LIMITS, ("lsn",))
    deletions.learn(text, b"null")
    assert deletions.source(text) is None


def test_a_deletion_beyond_the_limit_is_left_to_the_careful_way() -> None:
    assert told(DELETION, Limits(record_bytes_max=len(DELETION) - 1)) is None


def test_ever_new_texts_are_remembered_ever_less_often() -> None:
    shapes = Shapes([("a",)], inside=0, shapes_max=2)
    texts = [b'{"a":%s}' % (b"1" * digits) for digits in range(1, 9)]
    for text in texts:
        shapes.learn(text)
    assert [shapes.told(text) is not None for text in texts] == [False] * 5 + [True, False, True]
