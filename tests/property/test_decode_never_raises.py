"""Whatever the bytes, a record is decoded to a value; and only a `d` or a null record ever says that a key ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.debezium import WANTED
from integrity.core.decode.deletion import Deletions
from integrity.core.decode.json import check_depth, check_text, parse_envelope, parse_object
from integrity.core.decode.positions import PLACES
from integrity.core.decode.record import Decoded, Decoder, Half, Headers, Ignored, Limits, Record, Undecodable
from integrity.core.keys import KeySpec, KeyType, canonical, key_hash
from integrity.core.rules.model import (
    Events,
    KeyFormat,
    KeyFrom,
    PairBy,
    Parent,
    Place,
    TenantFrom,
    TenantIn,
    Tombstones,
)
from integrity.errors import Reason
from tests.golden import histories_relational as relational
from tests.golden.document_histories import FILES as DOCUMENT_FILES
from tests.golden.flat_histories import TOPICS
from tests.golden.histories import HISTORIES
from tests.golden.records import FILES, decoder, load, rule
from tests.golden.test_decode_flat_topics import flat

RULES: list[Mapping[str, KeyType]] = [
    *[{"id": kind} for kind in KeyType],
    {"tenant": KeyType.STRING, "id": KeyType.INT64},
]
_PAIRS = rule(id=KeyType.INT64)
assert _PAIRS.events is not None
DECODERS: list[Decoder] = [
    *[decoder(**key) for key in RULES],
    decoder_for(replace(_PAIRS, events=replace(_PAIRS.events, pair_by=PairBy.TRANSACTION))),
]
BY_TOPIC: dict[str, Decoder] = {
    f"{file}.public.{name}": decoder(**table.key) for file in FILES for name, table in HISTORIES[file].items()
} | {topic: decoder(**table.key) for tables in relational.HISTORIES.values() for topic, table in tables.items()}
CAPTURED = [record for file in (*FILES, *relational.HISTORIES) for record in load(file)]
OF_TOPIC = {topic: [each for each in CAPTURED if each.topic == topic] for topic in {each.topic for each in CAPTURED}}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["c", "d", "r", "u", "t", "m", "postgresql", "__debezium_unavailable_value", "AQ==", "1.50"])
)
names = st.sampled_from(
    [
        "before", "after", "source", "op", "ts_ms", "lsn", "connector", "id", "tenant", "schema", "payload", "fields",
        "field", "type", "name", "parameters", "scale", "value", "status", "serverName", "transaction", "x", "$gt",
    ]
)  # fmt: skip
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5))
texts = documents.map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))
PLACE_FIELDS = (
    "lsn", "file", "pos", "row", "commit_lsn", "change_lsn", "event_serial_no", "scn", "rs_id", "ssn", "lcr_position",
    "scn_idx",
)  # fmt: skip
places = scalars | st.sampled_from(
    [
        7, "7", "bin.000007", "00000027:00000758:0003", "00000000:00000000:0000000000bd1a2c", "001234.00012345.0124",
        "00ab", None,
    ]
)  # fmt: skip
envelopes = st.fixed_dictionaries(
    {
        "op": st.sampled_from("cdrutm") | scalars,
        "source": st.sampled_from([{"connector": "postgresql", "lsn": 5}, {"connector": "mysql", "ts_ms": 5}])
        | st.fixed_dictionaries({"connector": st.sampled_from(sorted(PLACES)), **dict.fromkeys(PLACE_FIELDS, places)})
        | documents,
    },
    optional={"before": documents, "after": documents, "ts_ms": scalars},
).map(lambda document: json.dumps(document).encode())
some_bytes = st.none() | st.binary(max_size=40) | texts
keys = st.fixed_dictionaries({"id": scalars}, optional={"tenant": scalars, "x": documents}).map(
    lambda document: json.dumps(document).encode()
)
some_headers = st.lists(
    st.tuples(st.sampled_from(["__debezium.newkey", "__debezium.oldkey", "traceparent", "x"]), keys | some_bytes),
    max_size=3,
)
integers = st.integers(-(2**63), 2**63 - 1)


def says_what_it_may(record: Record, decoded: Decoded) -> None:
    if isinstance(decoded, Half):
        assert decoded.ends == (decoded.change.op is Op.DELETED)
        decoded = decoded.change
    match decoded:
        case ParentChange(op=op):
            is_moved = any(name == "__debezium.newkey" for name, _ in record.headers)
            alive = [Op.ARRIVED if any(name == "__debezium.oldkey" for name, _ in record.headers) else Op.ALIVE]
            if record.value is None:
                assert op is Op.GONE
                assert decoded.version is None
            else:
                said = json.loads(record.value)
                said = said if "op" in said else said["payload"]
                allowed = {"c": alive, "r": alive, "d": [Op.MOVED if is_moved else Op.DELETED]}
                assert op in allowed[said["op"]]
                assert decoded.version is not None
                assert all(0 <= part < 2**63 for part in decoded.version.position)
            assert (decoded.to is not None) == (is_moved and op not in alive)
            assert decoded.to != decoded.key
            for key in (decoded.key, decoded.to):
                if key is not None:
                    assert len(key_hash(decoded.entity, key)) == 16
                    assert canonical(key).startswith("[")
            assert -62_135_596_800_000 <= decoded.occurred_ms <= 253_402_300_799_999
        case Ignored():
            pass
        case Undecodable():
            assert decoded.stage in ("key", "value", "header")
            assert len(decoded.message) < 300


@settings(max_examples=900, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys | some_bytes, envelopes | some_bytes, some_headers, integers, st.integers(0, 2**63 - 1))
def test_any_bytes_are_decoded_to_a_value(
    key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int, offset: int
) -> None:
    record = Record("t", 0, offset, timestamp_ms, key, value, headers)
    reads_alike(value)
    for decode in DECODERS:
        says_what_it_may(record, decode(record))


Edits = list[tuple[int, int, bytes | None]]
# Made once: a strategy that is made in each example costs more than the decoding.
edits: st.SearchStrategy[Edits] = st.lists(
    st.tuples(
        st.integers(0, 0xFFFF), st.integers(0, 40), st.sampled_from([b"", None, b"}", b'"']) | st.binary(max_size=3)
    ),
    max_size=3,
)
"""Where, how many bytes, and what stands there then; None: the same twice."""


def mutilated(text: bytes | None, edits: Edits) -> bytes | None:
    """The same text with a few bytes cut, doubled or replaced; also the text of nothing."""
    if text is None:
        return None
    for at, length, piece in edits:
        start = at % (len(text) + 1)
        end = min(start + length, len(text))
        text = text[:start] + (text[start:end] * 2 if piece is None else piece) + text[end:]
    return text


def broken(records: Sequence[Record]) -> st.SearchStrategy[Record]:
    """One of these records, mutilated in its parts, half of the time in its value. One draw of bytes says where and
    how: many draws cost more than the decoding."""

    def made(script: bytes) -> Record:
        record = records[int.from_bytes(script[:3], "big") % len(records)]
        parts = [record.value, record.key, *[text for _, text in record.headers]]
        for at in range(3, len(script) - 6, 7):
            which, where, length, kind, piece = (
                script[at],
                script[at + 1 : at + 3],
                script[at + 3],
                script[at + 4],
                at + 5,
            )
            part = 0 if which < 128 else 1 + which % (len(parts) - 1)
            pieces = (b"", None, b"}", b'"', script[piece : piece + 1], script[piece : piece + 2])
            edit = (int.from_bytes(where, "big"), length % 41, pieces[kind % len(pieces)])
            parts[part] = mutilated(parts[part], [edit])
        value, key, *texts = parts
        headers = [(name, text) for (name, _), text in zip(record.headers, texts, strict=True)]
        return record._replace(key=key, value=value, headers=headers)

    return st.binary(min_size=3, max_size=31).map(made)


def taught() -> tuple[Deletions, list[bytes]]:
    """What has read all deletions that were captured, and those, without their schemas."""
    taught, deletions = Deletions(Limits(), WANTED), []
    for record in (*CAPTURED, *(record for file in DOCUMENT_FILES for record in load(file))):
        text = record.value or b""
        if text.startswith(b'{"schema":'):
            text = bytes(parse_envelope(text).payload)
        if b'"op":"d"' in text:
            taught.learn(text, bytes(parse_envelope(text).before))
            assert taught.source(text) is not None
            deletions.append(text)
    return taught, deletions


TAUGHT, DELETIONS = taught()


def reads_alike(value: bytes | None) -> None:
    """The short way to a deletion's source takes nothing that the careful way refuses or reads otherwise."""
    if value and (told := TAUGHT.source(value)) is not None:
        check_text(value, Limits())
        check_depth(value, Limits())
        envelope = parse_envelope(value)
        assert json.loads(bytes(envelope.op)) == "d"
        source = parse_object(bytes(envelope.source), Limits())
        assert told == {name: source[name] for name in ("connector", *WANTED) if name in source}


PIECES = [b"0", b"\\u003a", b"\\u0022", b'"', b":", b",", b" ", b'"lsn":9,', b'"op":"d",', b"\\", b"1" * 5000]
nearly_deletions = st.builds(
    mutilated,
    st.sampled_from(DELETIONS),
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 2), st.sampled_from(PIECES)), min_size=1, max_size=3),
)
"""A captured deletion with a name, an escape, white space or a number put in anywhere."""


def test_the_short_way_takes_no_text_that_is_only_nearly_a_deletion_whatever_byte_is_another() -> None:
    """Each byte of the envelopes of each connector is left out, doubled, or is another. Some are still deletions."""
    taken = 0
    for at, text in enumerate({json.dumps(sorted(json.loads(text)["source"])): text for text in DELETIONS}.values()):
        for begin in range(len(text)):
            for piece in (b"", b"0", b"7", text[begin : begin + 1] * 2, b'"\\:{}[,e-.'[(at + begin) % 10 :][:1]):
                broken = text[:begin] + piece + text[begin + 1 :]
                reads_alike(broken)
                taken += TAUGHT.source(broken) is not None
    assert taken > 500


@settings(max_examples=400, deadline=None)
@given(nearly_deletions)
def test_the_short_way_takes_no_text_that_is_only_nearly_a_deletion(text: bytes) -> None:
    reads_alike(text)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken(CAPTURED), st.integers(0, 0xFFFF))
def test_a_record_is_decoded_as_if_it_were_the_first(record: Record, at: int) -> None:
    """A decoder remembers the schemas of records before; that changes nothing of what it says."""
    others = OF_TOPIC[record.topic]
    fresh, used = decoder(id=KeyType.INT64), decoder(id=KeyType.INT64)
    used(others[at % len(others)])
    assert used(record) == fresh(record)


@settings(max_examples=900, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(broken(CAPTURED), st.sampled_from(DECODERS))
def test_captured_records_with_broken_bytes_are_decoded_to_a_value(record: Record, other: Decoder) -> None:
    reads_alike(record.value)
    for decode in (BY_TOPIC.get(record.topic, other), other):
        says_what_it_may(record, decode(record))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CAPTURED), st.integers(0, 0xFFFF))
def test_a_record_cut_short_says_nothing(record: Record, at: int) -> None:
    if not record.value:
        return
    cut = record._replace(value=record.value[: at % len(record.value)])
    assert isinstance(BY_TOPIC.get(record.topic, DECODERS[0])(cut), Undecodable)


def of_tenants(told: TenantFrom) -> Decoder:
    key = KeySpec((("id", KeyType.INT64),))
    events = Events(("t",), "debezium", key, Tombstones.DELETE, tenant=told)
    return decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)))


TENANTS = [
    of_tenants(TenantFrom(place, name)) for place in TenantIn for name in ("id", "x", "tenant") if place != "key"
]
TENANTS.append(of_tenants(TenantFrom(TenantIn.KEY, "id")))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    broken(CAPTURED)
    | st.builds(Record, st.just("t"), st.just(0), st.just(5), st.just(0), keys | some_bytes, envelopes, some_headers)
)
def test_what_tells_a_tenant_adds_it_or_refuses_and_changes_nothing_else(record: Record) -> None:
    bare = decoder(id=KeyType.INT64)(record)
    for decode in TENANTS:
        said = decode(record)
        if isinstance(bare, Half):  # never passed over: the deletion before it would be one
            assert not isinstance(said, Ignored)
            said = said._replace(change=said.change._replace(tenant="")) if isinstance(said, Half) else said
            assert said == bare or (isinstance(said, Undecodable) and said.reason is Reason.UNKNOWN_TENANT)
        elif isinstance(bare, ParentChange) and isinstance(said, ParentChange):
            assert said.tenant and said._replace(tenant="") == bare
        elif isinstance(bare, ParentChange) and isinstance(said, Undecodable):
            assert said.reason is Reason.UNKNOWN_TENANT and len(said.message) < 300
        elif isinstance(bare, ParentChange):
            assert isinstance(said, Ignored) and bare.op in (Op.ALIVE, Op.ARRIVED)
        else:
            assert said == bare


def by_row(**key: KeyType) -> Decoder:
    """Of a rule whose keys are read from the rows."""
    events = Events(("t",), "debezium", KeySpec(tuple(key.items())), Tombstones.IGNORE, key_from=KeyFrom.BEFORE)
    return decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(envelopes | some_bytes, some_headers, st.sampled_from([by_row(**key) for key in RULES]))
def test_rows_that_a_key_is_read_from_never_raise_and_end_no_key_but_in_deletions_and_updates(
    value: bytes | None, headers: Headers, decode: Decoder
) -> None:
    decoded = decode(Record("t", 0, 5, 0, b"{}", value, headers))
    assert value is not None or isinstance(decoded, Ignored)
    if isinstance(decoded, ParentChange):
        said = json.loads(value or b"null")
        said = said if "op" in said else said["payload"]
        op = {Op.DELETED: "d", Op.MOVED: "u"}.get(decoded.op)
        assert said["op"] == op if op else decoded.op is Op.ALIVE and said["op"] in "cr"
        assert decoded.version is not None


# --- flattened topics and compacted tables ------------------------------------------------------------------------

FLAT: list[tuple[str, Decoder]] = [
    *[(form, flat(form, **key)) for form in ("debezium-flat", "json") for key in RULES],
    *[
        (form, flat(form, key_format=KeyFormat.STRING, id=kind))
        for form in ("debezium-flat", "json")
        for kind in KeyType
    ],
    ("debezium-flat", flat(key_format=KeyFormat.LONG, id=KeyType.INT64)),
    ("debezium-flat", flat(copied=("id", "x"), id=KeyType.INT64)),
]
FLAT_CAPTURED = [record for file in sorted({topic.file for topic in TOPICS}) for record in load(file)]
told = st.sampled_from(["true", "false", True, False, None, "d", "c", "r", "u", 5, "7", "bin.000001", 1.5])
marks = st.sampled_from(
    [
        "__deleted", "__op", "__lsn", "__source_file", "__source_pos", "__source_row", "__source_ts_ms", "__commit_lsn",
        "__scn", "__rs_id", "__connector",
    ]
)  # fmt: skip
lsns = st.sampled_from(["00000027:00000758:0003", None, 5, "x"])
of_sqlserver = st.fixed_dictionaries(
    {"__commit_lsn": lsns, "__change_lsn": lsns, "__op": st.sampled_from("cdru")},
    optional={
        "__event_serial_no": st.sampled_from([1, 2, "1", None]),
        "__connector": st.sampled_from(["db2", "sqlserver"]),
    },
)
"""What tells places that few rows have by chance."""
rows = (
    (st.dictionaries(marks, told, max_size=4) | of_sqlserver).flatmap(
        lambda said: st.fixed_dictionaries({"id": scalars}, optional={"x": documents}).map(lambda row: row | said)
    )
    | st.none()
).flatmap(
    lambda row: st.sampled_from([row, {"schema": {"type": "struct", "fields": []}, "payload": row}, {"payload": row}])
)
flat_values = rows.map(lambda row: json.dumps(row).encode()) | some_bytes
flat_headers = st.lists(
    st.tuples(st.sampled_from(["__debezium.newkey", "__debezium.oldkey", "__op", "__lsn"]), keys | some_bytes)
    | st.tuples(marks, told.map(lambda value: json.dumps(value).encode())),
    max_size=3,
)


def is_told_gone(record: Record) -> bool:
    """Whether a flattened record says that its key has ended."""
    row = None if record.value is None else json.loads(record.value)
    if isinstance(row, dict) and row.keys() == {"schema", "payload"}:
        schema = row["schema"]
        if isinstance(schema, dict) and isinstance(schema.get("type"), str):
            row = row["payload"] if isinstance(row["payload"], dict) or schema["type"] == "struct" else row
        elif schema is None and isinstance(row["payload"], dict):
            row = row["payload"]
    if row is None:
        return True
    if row.get("__deleted") in (True, "true") or row.get("__op") == "d":
        return True
    ops = [value for name, value in record.headers if name == "__op" and value is not None]
    return "__op" not in row and any(op in (b"d", b'"d"') or b'"payload"' in op for op in ops)


def says_no_more_than_it_may(form: str, record: Record, decoded: Decoded) -> None:
    match decoded:
        case ParentChange(op=op):
            is_moved = any(name == "__debezium.newkey" for name, _ in record.headers)
            if op is Op.ALIVE or op is Op.ARRIVED:
                assert record.value is not None
                assert decoded.to is None
            elif form == "json":
                assert (op, record.value, is_moved) == (Op.GONE, None, False)
            else:
                assert is_told_gone(record)
                assert (decoded.to is not None) == is_moved
                assert decoded.to != decoded.key
                assert op is not Op.MOVED or is_moved
                assert op is not Op.DELETED or not is_moved
                assert (decoded.version is None) == (op is Op.GONE)
        case Half():
            assert form == "debezium-flat"
            assert decoded.ends == (decoded.change.op is Op.DELETED)
            says_no_more_than_it_may(form, record, decoded.change)
        case Ignored():
            pass
        case Undecodable():
            assert decoded.stage in ("key", "value", "header")
            assert len(decoded.message) < 300


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(keys | some_bytes, flat_values, flat_headers, integers, st.integers(0, 2**63 - 1))
def test_any_bytes_on_a_flattened_topic_are_decoded_to_a_value(
    key: bytes | None, value: bytes | None, headers: Headers, timestamp_ms: int, offset: int
) -> None:
    record = Record("t", 0, offset, timestamp_ms, key, value, headers)
    for form, decode in FLAT:
        says_no_more_than_it_may(form, record, decode(record))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(broken(FLAT_CAPTURED))
def test_captured_flattened_records_with_broken_bytes_are_decoded_to_a_value(record: Record) -> None:
    for form, decode in FLAT:
        says_no_more_than_it_may(form, record, decode(record))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from([each for each in FLAT_CAPTURED if each.value]), st.integers(0, 0xFFFF))
def test_a_flattened_record_cut_short_says_nothing(record: Record, at: int) -> None:
    assert record.value
    cut = record._replace(value=record.value[: at % len(record.value)])
    assert all(isinstance(decode(cut), Undecodable) for _, decode in FLAT)
