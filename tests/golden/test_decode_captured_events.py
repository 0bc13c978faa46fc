"""Every captured record of the PostgreSQL connector's envelopes, decoded as the SQL statements say (`histories`)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import assert_never

import pytest

from integrity.core.change import Op, ParentChange, Truncation, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Ignored, Record, Undecodable
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones, Truncates
from integrity.errors import Reason
from tests.golden.histories import ALIVE, COUNTS, DELETED, FATES, HISTORIES, NUMERIC, Expected, Fate
from tests.golden.records import FILES, at, decode, decoder, load, of_topic

TABLES = [(file, table) for file in FILES for table in HISTORIES[file]]
BIGINT = {"id": KeyType.INT64}


def seen(decoded: Decoded) -> Expected:
    match decoded:
        case ParentChange():
            return Expected(decoded.op, decoded.key, decoded.to)
        case Truncation():
            return Expected("t")
        case Ignored():
            return Expected(decoded.op)
        case Undecodable():
            return Expected(decoded.reason)
        case _:
            assert_never(decoded)


def label(expected: Expected) -> str:
    match expected.what:
        case Op() | Reason() as what:
            return what.value
        case str() as what:
            return what
        case _:
            assert_never(expected.what)


def change_of(record: Record, **key: KeyType) -> ParentChange:
    decoded = decode(record, **key)
    assert isinstance(decoded, ParentChange), decoded
    return decoded


def envelope_of(record: Record) -> dict[str, dict[str, object]]:
    assert record.value is not None
    return json.loads(record.value)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("file", "table"), TABLES)
def test_each_record_of_a_table_says_what_its_statement_did(file: str, table: str) -> None:
    key, expected = HISTORIES[file][table]
    decode_one = decoder(**key)
    records = of_topic(file, f"public.{table}")
    assert [seen(decode_one(record)) for record in records] == list(expected)


@dataclass
class Ending:
    """Follows one key through its topic. A null record after a fate repeats that fate and is no event of its own."""

    fate: Fate
    repeats: int = 0


@pytest.mark.parametrize(("file", "table"), TABLES)
def test_every_key_of_a_table_ends_as_the_statements_left_it(file: str, table: str) -> None:
    endings: dict[Key, Ending] = {}
    decode_one = decoder(**HISTORIES[file][table].key)
    for record in of_topic(file, f"public.{table}"):
        change = decode_one(record)
        if not isinstance(change, ParentChange):
            continue
        match change.op:
            case Op.ALIVE | Op.ARRIVED:
                endings[change.key] = Ending(ALIVE)
            case Op.DELETED:
                endings[change.key] = Ending(DELETED)
            case Op.MOVED:
                assert change.to is not None
                endings[change.key] = Ending(change.to)
            case Op.GONE:
                assert endings[change.key].fate == (DELETED if change.to is None else change.to)
                endings[change.key].repeats += 1
    assert {key: ending.fate for key, ending in endings.items()} == FATES[file, table]
    # Each deletion and key change has its null record, in these files at once.
    assert {ending.repeats for ending in endings.values() if ending.fate != ALIVE} <= {1}


@pytest.mark.parametrize("file", FILES)
def test_every_record_of_a_file_is_accounted_for(file: str) -> None:
    tables = {f"{file}.public.{table}": HISTORIES[file][table].key for table in HISTORIES[file]}
    others = {f"{file}.message": BIGINT, f"{file}.transaction": BIGINT, f"__debezium-heartbeat.{file}": BIGINT}
    decoders = {topic: decoder(**key) for topic, key in (tables | others).items()}
    counted = Counter(label(seen(decoders[record.topic](record))) for record in load(file))
    assert counted == COUNTS[file]
    assert counted.total() == len(load(file))


@pytest.mark.parametrize("file", FILES)
def test_a_change_is_placed_by_the_lsn_of_its_own_record(file: str) -> None:
    for table in HISTORIES[file]:
        decode_one = decoder(**HISTORIES[file][table].key)
        for record in of_topic(file, f"public.{table}"):
            change = decode_one(record)
            if not isinstance(change, ParentChange):
                continue
            assert change.origin == (record.topic, record.partition, record.offset, record.timestamp_ms)
            if record.value is None:
                assert change.version is None
                assert change.occurred_ms == record.timestamp_ms
            else:
                envelope = envelope_of(record)
                source = (envelope.get("payload") or envelope)["source"]
                assert isinstance(source, dict)
                assert change.version == Version(0, (source["lsn"],))
                assert change.occurred_ms == source["ts_ms"]


def test_a_key_never_goes_back_in_version_within_a_file() -> None:
    for file, table in TABLES:
        last: dict[Key, Version] = {}
        decode_one = decoder(**HISTORIES[file][table].key)
        for record in of_topic(file, f"public.{table}"):
            change = decode_one(record)
            if isinstance(change, ParentChange) and change.version is not None:
                assert change.version >= last.get(change.key, change.version)
                last[change.key] = change.version


def test_fact_4_fabricated_columns_of_before_are_never_read() -> None:
    """The row had email new@x.test, note 'real note', cnt 99; `before` of its delete says otherwise."""
    delete = at("pg_strict", "public.strict", 5)
    before = envelope_of(delete)["before"]
    assert (before["email"], before["note"], before["cnt"]) == ("", "dflt", 42)
    assert change_of(delete, **BIGINT).key == (2,)
    by_column = decode(delete, email=KeyType.STRING)
    assert isinstance(by_column, Undecodable)
    assert by_column.reason is Reason.MISSING_KEY


def test_fact_4_a_key_stands_though_before_is_null() -> None:
    delete = at("pg_env", "public.customers", 18)
    assert delete.value is not None
    blank = json.dumps(envelope_of(delete) | {"before": None}).encode()
    assert change_of(delete._replace(value=blank), **BIGINT).key == (12,)


def test_fact_5_identity_using_index_deletes_a_key_that_is_zero() -> None:
    deletes = [change_of(at("pg_env", "public.customers_idx", offset), **BIGINT) for offset in (2, 6)]
    assert [(change.op, change.key, change.to) for change in deletes] == [
        (Op.MOVED, (0,), (1,)),
        (Op.DELETED, (0,), None),
    ]


def test_fact_6_a_key_column_outside_the_primary_key_is_empty_in_deletes() -> None:
    delete = change_of(at("pg_keycolumns", "public.keyed", 6), tenant=KeyType.STRING, id=KeyType.INT64)
    assert (delete.op, delete.key) == (Op.DELETED, ("", 3))
    full = change_of(at("pg_keycolumns", "public.keyed_full", 8), tenant=KeyType.STRING, id=KeyType.INT64)
    assert (full.op, full.key) == (Op.DELETED, ("globex", 3))


def test_fact_8_the_new_key_is_on_the_deletion_and_on_its_null_record_and_the_create_has_the_same_lsn() -> None:
    d, null, c = (change_of(at("pg_env", "public.customers", offset), **BIGINT) for offset in (6, 7, 8))
    assert [(change.op, change.key, change.to) for change in (d, null, c)] == [
        (Op.MOVED, (10,), (11,)),
        (Op.GONE, (10,), (11,)),
        (Op.ARRIVED, (11,), None),
    ]
    assert d.version == c.version == Version(0, (27231576,))


def test_fact_9_header_text_with_raw_tab_and_newline_is_read() -> None:
    record = at("pg_keychange", "public.kc_text", 4)
    (header,) = [value for name, value in record.headers if name == "__debezium.newkey"]
    assert header == b'{"id":"tab\tnewline\n"}'
    with pytest.raises(json.JSONDecodeError):
        json.loads(header)
    assert change_of(record, id=KeyType.STRING).to == ("tab\tnewline\n",)


def test_fact_9_a_decimal_is_bytes_in_the_key_and_a_number_in_the_header() -> None:
    """The captured file has no schemas; this is the key as the schemas of the same connector would wrap it."""
    record = at("pg_keychange", "public.kc_num20", 1)
    assert record.key == b'{"id":"AQ=="}'
    schema = (
        b'{"schema":{"type":"struct","fields":[{"type":"bytes","optional":false,'
        b'"name":"org.apache.kafka.connect.data.Decimal","version":1,'
        b'"parameters":{"scale":"0","connect.decimal.precision":"20"},"field":"id"}],"optional":false},"payload":'
    )
    change = change_of(record._replace(key=schema + record.key + b"}"), **NUMERIC)
    assert (change.op, change.key, change.to) == (Op.MOVED, (1,), (18446744073709551615,))


def test_fact_10_escaped_and_raw_characters_are_the_same_key() -> None:
    escaped = at("pg_env", "public.textkeys", 3)
    assert escaped.key is not None
    raw = escaped._replace(key=escaped.key.replace(b"\\uD83D\\uDE00", "😀".encode()))
    lower = escaped._replace(key=escaped.key.replace(b"\\uD83D\\uDE00", b"\\ud83d\\ude00"))
    assert len({escaped.key, raw.key, lower.key}) == 3
    assert len({change_of(record, id=KeyType.STRING).key for record in (escaped, raw, lower)}) == 1


def test_fact_11_lsn_goes_back_in_a_topic() -> None:
    earlier, later = (change_of(at("pg_env", "public.customers", offset), **BIGINT) for offset in (63, 64))
    assert (earlier.version, later.version) == (Version(0, (27316216,)), Version(0, (27316040,)))


def test_fact_12_equal_numbers_of_another_scale_are_one_key() -> None:
    record = at("pg_env", "public.numkeys", 7)
    rescaled = record._replace(key=b'{"id":{"scale":2,"value":"AJY="}}')
    assert change_of(rescaled, **NUMERIC).key == change_of(record, **NUMERIC).key


def test_fact_12_a_change_of_scale_alone_is_no_key_change() -> None:
    """decimal.handling.mode=string sends 1.50 -> 1.5 as a key change; with schemas on its numbers can be told."""
    for offset, op in ((4, "d"), (5, "tombstone")):
        record = at("pg_env_strings", "public.numkeys", offset)
        assert record.key is not None
        schema = b'{"schema":{"type":"struct","fields":[{"type":"string","field":"id"}]},"payload":'
        decoded = decode(record._replace(key=schema + record.key + b"}"), **NUMERIC)
        assert isinstance(decoded, Ignored)
        assert decoded.op == op
    as_text = change_of(at("pg_env_strings", "public.numkeys", 4), id=KeyType.STRING)
    assert (as_text.op, as_text.key, as_text.to) == (Op.MOVED, ("1.50",), ("1.5",))


def test_fact_13_a_table_without_key_gives_dead_letters_only() -> None:
    """Its update is ignored like any other."""
    reasons = [
        decoded.reason if isinstance(decoded, Undecodable) else decoded
        for decoded in map(decoder(a=KeyType.INT32), of_topic("pg_env", "public.nopk"))
    ]
    assert reasons.count(Reason.NULL_KEY) == 4
    assert of_topic("pg_env", "public.nopk")[4][4:6] == (None, None)


def test_fact_14_a_table_without_replica_identity_tells_of_no_update_and_no_deletion() -> None:
    """PostgreSQL itself refused both, so that nothing was missed."""
    said = [seen(decode(record, **BIGINT)) for record in of_topic("pg_env", "public.customers_nothing")]
    assert [(each.what, each.key) for each in said] == [(Op.ALIVE, (key,)) for key in (1, 2, 9007199254740993, 40)]


@pytest.mark.parametrize("offset", [0, 1])
def test_fact_15_logical_messages_say_nothing(offset: int) -> None:
    decoded = decode(at("pg_env", "message", offset), **BIGINT)
    assert isinstance(decoded, Ignored)
    assert decoded.op == "m"


@pytest.mark.parametrize(
    ("table", "offset"), [("public.composite", 9), ("public.customers_idx", 8), ("public.customers_full", 17)]
)
def test_a_truncate_names_no_key_and_does_nothing(table: str, offset: int) -> None:
    record = at("pg_env", table, offset)
    assert record.key is None
    decoded = decode(record, **BIGINT)
    assert isinstance(decoded, Ignored)
    assert decoded.op == "t"


@pytest.mark.parametrize("table", ["public.composite", "public.customers_idx", "public.customers_full"])
def test_a_truncate_comes_after_everything_before_it_and_before_everything_after_it(table: str) -> None:
    """Of all keys: the statement holds the table for itself."""
    records = of_topic("pg_env", table)
    [place] = [n for n, record in enumerate(records) if record.key is None and record.value is not None]
    events = Events((table,), "debezium", KeySpec((("id", KeyType.INT64),)), Tombstones.DELETE)
    parent = Parent("customer", replace(events, truncate=Truncates.DELETE_ALL), (), Place("customer.yaml", 1, 1))
    found = decoder_for(parent)(records[place])
    assert isinstance(found, Truncation)
    lsns = [envelope_of(record)["source"]["lsn"] for record in records if record.value is not None]
    [lsn] = found.version.position
    assert lsns.count(lsn) == 1
    before = [envelope_of(r)["source"]["lsn"] for r in records[:place] if r.value is not None]
    assert max(int(str(each)) for each in before) < lsn
