"""Every captured envelope of MariaDB, and of further PostgreSQL connectors, decoded as the SQL statements say."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping

import pytest

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Ignored, Record, Undecodable
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from integrity.errors import Reason
from tests.golden.histories import ALIVE, BIGINT, DELETED, NUMERIC, TEXT, Fate
from tests.golden.histories_relational import BYTES, DATE, FATES, HISTORIES, OTHER_TOPICS, TIMESTAMP
from tests.golden.records import decode, decoder, load
from tests.golden.test_decode_captured_events import change_of, label, seen

TOPICS = [(file, topic) for file, tables in HISTORIES.items() for topic in tables]


def of(file: str, topic: str) -> list[Record]:
    return [record for record in load(file) if record.topic == topic]


def my_env(table: str, offset: int) -> Record:
    [found] = [record for record in of("my_env", f"my_env.{table}") if record.offset == offset]
    return found


def source_of(record: Record) -> Mapping[str, object]:
    assert record.value is not None
    value = json.loads(record.value)
    return (value.get("payload") or value)["source"]  # type: ignore[no-any-return]


def changes_of(file: str, topic: str) -> list[ParentChange]:
    decode_one = decoder(**HISTORIES[file][topic].key)
    return [change for record in of(file, topic) if isinstance(change := decode_one(record), ParentChange)]


def refusal_of(record: Record, **key: KeyType) -> Reason:
    decoded = decode(record, **key)
    assert isinstance(decoded, Undecodable), decoded
    return decoded.reason


@pytest.mark.parametrize(("file", "topic"), TOPICS)
def test_each_record_of_a_table_says_what_its_statement_did(file: str, topic: str) -> None:
    key, expected = HISTORIES[file][topic]
    decode_one = decoder(**key)
    assert [seen(decode_one(record)) for record in of(file, topic)] == list(expected)


@pytest.mark.parametrize(("file", "topic"), TOPICS)
def test_every_key_of_a_table_ends_as_the_statements_left_it(file: str, topic: str) -> None:
    endings: dict[Key, Fate] = {}
    for change in changes_of(file, topic):
        match change.op:
            case Op.ALIVE | Op.ARRIVED:
                endings[change.key] = ALIVE
            case Op.DELETED:
                endings[change.key] = DELETED
            case Op.MOVED:
                assert change.to is not None
                endings[change.key] = change.to
            case Op.GONE:
                assert endings[change.key] == (DELETED if change.to is None else change.to)
    assert endings == FATES[topic]


@pytest.mark.parametrize("file", HISTORIES)
def test_every_other_record_of_a_file_says_nothing_of_a_key(file: str) -> None:
    others = OTHER_TOPICS.get(file, {})
    assert {record.topic for record in load(file)} == {*HISTORIES[file], *others}
    decode_one = decoder(**BIGINT)
    for topic, said in others.items():
        assert {label(seen(decode_one(record))) for record in of(file, topic)} == {said}


@pytest.mark.parametrize(("file", "topic"), TOPICS)
def test_versions_of_a_key_grow_and_only_the_halves_of_a_key_change_share_one(file: str, topic: str) -> None:
    last: dict[Key, Version] = {}
    moved: Version | None = None
    for change in changes_of(file, topic):
        if change.version is None:
            continue
        if change.op is Op.ARRIVED and moved is not None:
            assert change.version == moved
        elif change.key in last:
            assert last[change.key] < change.version
        moved = change.version if change.op is Op.MOVED else None
        last[change.key] = change.version


@pytest.mark.parametrize("file", [file for file in HISTORIES if file.startswith("my")])
def test_a_change_of_mariadb_is_placed_by_its_binary_log(file: str) -> None:
    for topic in HISTORIES[file]:
        decode_one = decoder(**HISTORIES[file][topic].key)
        for record in of(file, topic):
            change = decode_one(record)
            if isinstance(change, ParentChange) and record.value is not None:
                source = source_of(record)
                number = int(str(source["file"]).removeprefix("mysql-bin."))
                assert change.version == Version(0, (number, int(str(source["pos"])), int(str(source["row"]))))


def test_fact_7_a_row_that_changes_its_partition_is_deleted_and_inserted_in_one_transaction() -> None:
    topic = "pg_partitioned_table.public.parted"
    d, _, c = of("pg_partitioned_table", topic)[1:4]
    assert source_of(d)["txId"] == source_of(c)["txId"]
    assert not any(name.startswith("__debezium.newkey") for name, _ in d.headers)


def test_fact_9_a_field_that_the_header_lacks_keeps_its_value_in_a_key_change() -> None:
    moved = [change for change in changes_of("pg_insertfield_key", "pg_insertfield_key.public.customers") if change.to]
    assert {(change.key[0], change.to[0]) for change in moved if change.to} == {("acme", "acme")}


def test_fact_21_children_that_go_with_their_parent_are_told_in_their_own_topic_of_the_same_transaction() -> None:
    """Here by a trigger. Nothing orders the two topics: whoever reads both may see either first."""
    parent, child = my_env("shop.parents", 8), my_env("shop.kids_trig", 1)
    transactions = [json.loads(record.value or b"")["transaction"] for record in (parent, child)]
    assert transactions[0]["id"] == transactions[1]["id"]
    assert [each["total_order"] for each in transactions] == [1, 2]
    gone, went = change_of(parent, **BIGINT), change_of(child, **BIGINT)
    assert [(each.op, each.key) for each in (gone, went)] == [(Op.DELETED, (1,)), (Op.DELETED, (30,))]
    assert gone.version is not None and went.version is not None and gone.version < went.version


def test_fact_22_a_parent_with_cascading_children_is_one_deletion_and_its_null_record() -> None:
    [first, second] = [my_env("shop.parents", offset) for offset in (8, 9)]
    assert (change_of(first, **BIGINT).op, change_of(second, **BIGINT).op) == (Op.DELETED, Op.GONE)
    assert [change.op for change in changes_of("my_env", "my_env.shop.grandkids")] == [Op.ALIVE]


def test_fact_23_replace_is_a_deletion_and_a_creation_after_it_of_the_same_key() -> None:
    """What native foreign keys make of it, too: the children go."""
    d, _, c = (change_of(my_env("shop.parents", offset), **BIGINT) for offset in (12, 13, 14))
    assert (d.op, c.op, d.key, c.key) == (Op.DELETED, Op.ALIVE, (3,), (3,))
    assert (d.version, c.version) == (Version(0, (2, 79252, 0)), Version(0, (2, 79308, 0)))
    assert source_of(my_env("shop.parents", 12))["gtid"] == source_of(my_env("shop.parents", 14))["gtid"]


def test_fact_23_one_row_that_replaces_two_is_a_deletion_and_a_key_change_onto_its_key() -> None:
    changes = [change_of(my_env("shop.upsert2", offset), **BIGINT) for offset in (8, 10, 12)]
    assert [(change.op, change.key, change.to) for change in changes] == [
        (Op.DELETED, (1,), None),
        (Op.MOVED, (3,), (1,)),
        (Op.ARRIVED, (1,), None),
    ]


def test_fact_24_a_prepared_deletion_is_told_whatever_comes_of_it() -> None:
    change = change_of(my_env("shop.customers", 78), **BIGINT)
    assert (change.op, change.key) == (Op.DELETED, (50,))


def test_fact_25_of_a_statement_based_session_only_empty_transactions_are_told() -> None:
    """Three statements, a deletion among them: it is for `integrity scan` to find what they left behind."""
    markers = [json.loads(r.value or b"") for r in of("my_env", "my_env.transaction") if 228 <= r.offset <= 231]
    assert [(each["status"], each["event_count"]) for each in markers] == [("BEGIN", None), ("END", 0)] * 2
    told = {each["id"] for each in markers}
    tables = [r for r in load("my_env") if r.value is not None and r.topic.startswith("my_env.shop.")]
    assert not [r for r in tables if source_of(r)["gtid"] in told]


def test_fact_26_keys_that_the_source_calls_equal_are_other_keys_here() -> None:
    """Letter case and trailing spaces are a key change, byte for byte as the source sends them."""
    for offset, key, to in ((7, "null", "NULL"), (13, "007", "007 "), (17, "e", "é")):
        change = change_of(my_env("shop.textkeys", offset), **TEXT)
        assert (change.op, change.key, change.to) == (Op.MOVED, (key,), (to,))


def test_fact_27_a_timestamp_is_one_key_however_many_digits_its_fraction_has() -> None:
    read, deleted = my_env("shop.tskeys", 1), my_env("shop.tskeys", 4)
    assert read.key != deleted.key
    assert change_of(read, **TIMESTAMP).key == change_of(deleted, **TIMESTAMP).key


def test_fact_28_zero_dates_are_refused_since_three_rows_have_one_key() -> None:
    """Their null record too, which the headers say is MariaDB's; of a connector that nobody names it is in doubt."""
    for offset in range(3, 8):
        assert refusal_of(my_env("shop.datekeys", offset), **DATE) is Reason.TYPE_MISMATCH
    null = my_env("shop.datekeys", 7)
    named = tuple((name, value) for name, value in null.headers if name != "__debezium.context.connectorName")
    assert refusal_of(null._replace(headers=named), **DATE) is Reason.TYPE_MISMATCH
    postgresql = (*named, ("__debezium.context.connectorName", b"postgresql"))
    assert change_of(null._replace(headers=postgresql), **DATE).op is Op.GONE


def test_fact_29_unsigned_keys_beyond_two_to_the_63_go_negative_one_to_one() -> None:
    keys = [change.key for change in changes_of("my_env", "my_env.shop.ukeys") if change.op is Op.DELETED]
    assert keys == [(18446744073709551615 // 2 + 1 - 2**64,), (18446744073709551615 - 2**64,)]


def test_fact_29_unsigned_keys_are_exact_where_the_schema_says_what_their_bytes_are() -> None:
    """bigint.unsigned.handling.mode=precise; this is the key as the schemas of the same connector would wrap it."""
    [record] = [record for record in of("my_env_strings", "my_env_strings.shop.ukeys") if record.offset == 3]
    assert record.key == b'{"id":"AQ=="}'
    change = change_of(record._replace(key=wrapped(record.key, DECIMAL)), **NUMERIC)
    assert (change.op, change.key, change.to) == (Op.MOVED, (1,), (9223372036854775809,))


def test_fact_30_decimals_are_exact_where_the_schema_gives_the_scale() -> None:
    """The key as the schemas of the same connector would wrap it; the header is a plain number."""
    record = my_env("shop.deckeys", 2)
    assert record.key == b'{"id":"AJY="}'
    scaled = DECIMAL | {"parameters": {"scale": "2", "connect.decimal.precision": "10"}}
    change = change_of(record._replace(key=wrapped(record.key, scaled)), **NUMERIC)
    assert (str(change.key[0]), str(change.to and change.to[0])) == ("1.5", "2.25")


def test_fact_31_hexadecimal_text_is_never_taken_for_base64() -> None:
    """Sixteen bytes in hexadecimal are also sound base64, of twenty-four others."""
    for record in of("my_env_strings", "my_env_strings.shop.uuid16"):
        if not isinstance(decode(record, **BYTES), Ignored):
            assert refusal_of(record, **BYTES) is Reason.TYPE_MISMATCH


def test_fact_31_bit_strings_are_refused_where_the_schema_tells_them() -> None:
    """66051 is AQID in the snapshot and AwIB in the deletion."""
    bits = {"type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": "20"}}
    read, deleted = my_env("shop.bit20keys", 0), my_env("shop.bit20keys", 1)
    assert (read.key, deleted.key) == (b'{"id":"AQID"}', b'{"id":"AwIB"}')
    assert b64encode((66051).to_bytes(3, "little")) == b"AwIB"
    for record in (read, deleted):
        assert record.key is not None
        assert refusal_of(record._replace(key=wrapped(record.key, bits)), **BYTES) is Reason.TYPE_MISMATCH


def test_fact_32_the_number_of_a_log_file_counts_before_the_place_in_it() -> None:
    before, after = (change_of(my_env(*at), **BIGINT) for at in (("tenant_b.customers", 5), ("shop.customers", 59)))
    assert (before.version, after.version) == (Version(0, (2, 83823, 0)), Version(0, (3, 624, 0)))
    record = my_env("shop.customers", 60)
    assert record.value is not None
    later = record._replace(value=record.value.replace(b"mysql-bin.000003", b"mysql-bin.1000000"))
    assert change_of(later, **BIGINT).version == Version(0, (1000000, 895, 0))


def test_fact_32_rows_of_one_statement_are_told_apart_by_their_row() -> None:
    changes = [change for change in changes_of("my_env", "my_env.shop.seqs") if change.op is Op.MOVED]
    assert [(change.key, change.version) for change in changes] == [
        ((3,), Version(0, (2, 55551, 0))),
        ((2,), Version(0, (2, 55551, 1))),
        ((1,), Version(0, (2, 55551, 2))),
    ]


def test_fact_32_a_time_that_goes_back_orders_nothing() -> None:
    late, early = (change_of(my_env("shop.customers", offset), **BIGINT) for offset in (54, 55))
    assert late.occurred_ms > early.occurred_ms
    assert late.version is not None
    assert early.version is not None
    assert late.version < early.version


def test_fact_32_an_incremental_snapshot_of_mariadb_has_a_place_unlike_postgresqls() -> None:
    change = change_of(my_env("shop.customers", 73), **BIGINT)
    assert (change.op, change.version) == (Op.ALIVE, Version(0, (3, 6180, 0)))


def test_fact_33_markers_of_transactions_say_nothing_and_their_times_are_not_their_own() -> None:
    records = of("my_env", "my_env.transaction")
    assert {seen(decode(each, **BIGINT)).what for each in records} == {"transaction"}
    begin, end = (json.loads(each.value or b"") for each in records if each.key == b'{"id":"0-184054-384"}')
    assert begin["ts_ms"] < end["ts_ms"] == source_of(my_env("shop.customers", 7))["ts_ms"]
    assert end["data_collections"] == [{"data_collection": "shop.customers", "event_count": 2}], "a d and a c"


def test_fact_34_a_table_that_is_truncated_renamed_or_dropped_deletes_no_key() -> None:
    truncated = my_env("shop.composite", 16)
    assert (truncated.key, seen(decode(truncated, **BIGINT)).what) == (None, "t")
    # Renamed: the rows go on in another topic. Dropped with row 9 in it: no record tells.
    assert [(change.op, change.key) for change in changes_of("my_env", "my_env.shop.seqs2")] == [(Op.ALIVE, (9,))]
    # The snapshot's own DROP TABLE IF EXISTS is in the topic of schema changes, where no key is found.
    dropped = [each for each in of("my_env", "my_env") if b"DROP TABLE" in (each.value or b"")]
    assert dropped
    assert {refusal_of(each, **BIGINT) for each in dropped} == {Reason.BAD_ENVELOPE}


def test_fact_34_a_key_of_another_shape_since_the_primary_key_was_altered_is_refused() -> None:
    tenant_code = {"tenant": KeyType.INT32, "code": KeyType.STRING}
    records = [my_env("shop.composite", offset) for offset in (13, 14, 15)]
    assert [each.key for each in records] == [b'{"code":"N"}'] * 3
    assert {refusal_of(each, **tenant_code) for each in records} == {Reason.MISSING_KEY}


def test_fact_35_the_row_before_is_whole_and_still_not_read() -> None:
    record = my_env("shop.customers", 19)
    assert record.value is not None
    blank = json.dumps(json.loads(record.value) | {"before": None}).encode()
    assert change_of(record._replace(value=blank), **BIGINT) == change_of(record, **BIGINT)


def test_fact_36_a_table_with_a_unique_column_is_keyed_by_it() -> None:
    change = change_of(my_env("shop.uniqonly", 3), email=KeyType.STRING)
    assert (change.op, change.key, change.to) == (Op.MOVED, ("r@x.test",), ("s@x.test",))


DECIMAL = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "0"}}


def wrapped(key: bytes, field: Mapping[str, object]) -> bytes:
    """The key with a schema, as the JsonConverter writes it."""
    schema = {"type": "struct", "fields": [{**field, "field": "id", "optional": False}], "optional": False}
    return b'{"schema":%b,"payload":%b}' % (json.dumps(schema).encode(), key)


def test_fact_37_after_the_log_files_begin_anew_events_are_older_until_the_rule_raises_its_epoch() -> None:
    """RESET MASTER: the connector told nothing more until it was set up anew. CONSTRUCTED: no record of that was
    captured. What stopped it otherwise (a column of type inet6, a TIME as isostring) left no record either."""
    last = my_env("shop.seqs", 16)
    envelope = json.loads(last.value or b"")
    envelope["source"] |= {"file": "mysql-bin.000001", "pos": 500}
    anew = last._replace(offset=99, value=json.dumps(envelope).encode())
    before, after = change_of(last, **BIGINT).version, change_of(anew, **BIGINT).version
    assert before is not None and after is not None and after < before
    raised = decoder_for(
        Parent(
            "customer",
            Events(("t",), "debezium", KeySpec((("id", KeyType.INT64),)), Tombstones.DELETE, epoch=1),
            (),
            Place("customer.yaml", 1, 1),
        )
    )(anew)
    assert isinstance(raised, ParentChange) and raised.version is not None and raised.version > before
