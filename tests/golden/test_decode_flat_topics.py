"""Every captured record of flattened topics and compacted tables, decoded as the statements say (`flat_histories`)."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from integrity.core.change import Cell, Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Decoder, Ignored, Record, Undecodable
from integrity.core.keys import FieldHint, Key, KeySpec, KeyType
from integrity.core.rules.model import Events, KeyFormat, Parent, Place, Tombstones
from integrity.errors import Reason
from tests.golden.flat_histories import TOPICS, Topic
from tests.golden.histories import ALIVE, BIGINT, DELETED, TENANT_CODE, TEXT, Fate
from tests.golden.records import load
from tests.golden.test_decode_captured_events import seen


def flat(
    form: str = "debezium-flat",
    *,
    key_format: KeyFormat = KeyFormat.JSON,
    deleted_when: str | None = None,
    copied: tuple[str, ...] | None = None,
    tombstones: Tombstones = Tombstones.DELETE,
    **key: KeyType,
) -> Decoder:
    spec = KeySpec(tuple(key.items()))
    events = Events(("t",), form, spec, tombstones, deleted_when, key_format=key_format)
    return decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)), copied=copied)


def reader(topic: Topic) -> Decoder:
    return flat(topic.form, key_format=topic.key_format, deleted_when=topic.deleted_when, **topic.key)


def of(file: str, topic: str, offset: int | None = None) -> list[Record]:
    return [each for each in load(file) if each.topic == topic and offset in (None, each.offset)]


def one(file: str, table: str, offset: int) -> Record:
    [found] = of(file, f"{file}.{table}", offset)
    return found


def change(decoded: Decoded) -> ParentChange:
    assert isinstance(decoded, ParentChange), decoded
    return decoded


def row_of(record: Record) -> dict[str, object]:
    assert record.value is not None
    return json.loads(record.value)  # type: ignore[no-any-return]


IDS = [f"{topic.file}:{topic.name.removeprefix(topic.file)}" for topic in TOPICS]


@pytest.mark.parametrize("topic", TOPICS, ids=IDS)
def test_each_record_of_a_topic_says_what_its_statement_did(topic: Topic) -> None:
    decode = reader(topic)
    assert [seen(decode(record)) for record in of(topic.file, topic.name)] == topic.records


@pytest.mark.parametrize("topic", TOPICS, ids=IDS)
def test_every_key_of_a_topic_ends_as_the_statements_left_it(topic: Topic) -> None:
    ends: dict[Key, Fate] = {}
    decode = reader(topic)
    for record in of(topic.file, topic.name):
        found = decode(record)
        if isinstance(found, ParentChange):
            is_alive = found.op is Op.ALIVE or found.op is Op.ARRIVED
            # A null record right after a deletion of its key repeats it.
            if found.op is not Op.GONE or ends.get(found.key, ALIVE) == ALIVE:
                ends[found.key] = ALIVE if is_alive else DELETED if found.to is None else found.to
    assert ends == topic.fates


@pytest.mark.parametrize("file", sorted({topic.file for topic in TOPICS}))
def test_every_record_of_a_file_is_of_a_known_topic_or_a_logical_message(file: str) -> None:
    known = Counter(topic.name for topic in TOPICS if topic.file == file for _ in topic.records)
    others = [record for record in load(file) if record.topic not in known]
    assert {record.topic for record in others} <= {f"{file}.message"}
    for record in others:
        decoded = flat(**BIGINT)(record)
        # The StringConverter's Struct{...} is no JSON.
        is_struct = record.value is not None and record.value.startswith(b"Struct{")
        assert seen(decoded).what == (Reason.BAD_JSON if is_struct else "m")
    assert known.total() + len(others) == len(load(file))


@pytest.mark.parametrize("file", ["pg_flat_rewrite", "pg_flat_rewrite_with_tombstone", "pg27_flat_rewrite"])
def test_a_rewritten_row_is_placed_by_the_lsn_that_add_fields_tells(file: str) -> None:
    for topic in TOPICS:
        if topic.file != file:
            continue
        decode = reader(topic)
        for record in of(file, topic.name):
            found = change(decode(record))
            if record.value is None:
                assert (found.version, found.occurred_ms) == (None, record.timestamp_ms)
            else:
                row = row_of(record)
                assert (found.version, found.occurred_ms) == (Version(0, (row["__lsn"],)), row["__source_ts_ms"])  # type: ignore[arg-type]


def test_a_row_of_mariadb_is_placed_by_the_number_of_its_file_the_position_and_the_row() -> None:
    found = change(flat(**BIGINT)(one("my_flat_rewrite", "shop.customers", 7)))
    assert (found.op, found.key, found.to, found.version) == (Op.MOVED, (10,), (11,), Version(0, (2, 50547, 0)))
    assert found.occurred_ms == 1_795_474_605_000


def test_without_a_position_rows_are_placed_by_their_offset_and_nulls_by_what_stands_before_them() -> None:
    decode = flat(**BIGINT)
    inserted, deleted, null = (change(decode(one("pg_insertfield_flat", "public.customers", n))) for n in (20, 61, 62))
    assert (inserted.version, deleted.version, null.version) == (Version(0, (20,)), Version(0, (61,)), None)
    assert (deleted.op, null.op) == (Op.DELETED, Op.GONE)


def test_no_key_goes_back_in_version_within_a_topic() -> None:
    for topic in TOPICS:
        last: dict[Key, Version] = {}
        decode = reader(topic)
        for record in of(topic.file, topic.name):
            found = decode(record)
            if isinstance(found, ParentChange) and found.version is not None:
                assert found.version >= last.get(found.key, found.version)
                last[found.key] = found.version


def test_fact_1_the_default_flattened_deletion_is_the_four_bytes_null_or_a_null_in_its_schema() -> None:
    decode = flat(**BIGINT)
    bare = one("pg_flat_tombstone", "public.customers", 14)
    wrapped = one("pg_flat_default_schemas", "public.customers", 14)
    real = one("pg_flat_delete_to_tombstone", "public.customers", 14)
    assert (bare.value, real.value) == (b"null", None)
    assert wrapped.value is not None
    assert wrapped.value.endswith(b'"payload":null}')
    assert {(change(decode(each)).op, change(decode(each)).key) for each in (bare, wrapped, real)} == {(Op.GONE, (12,))}


def test_fact_2_deleted_is_text_or_a_boolean_and_nothing_else() -> None:
    decode = flat(**BIGINT)
    record = one("pg27_flat_legacy_keep", "public.old_customers", 6)
    assert row_of(record)["__deleted"] == "true"
    said = {}
    for flag in ("true", "false", True, False, "True", 1, None, "yes"):
        row = json.dumps(row_of(record) | {"__deleted": flag}).encode()
        said[repr(flag)] = seen(decode(record._replace(value=row))).what
    bad = Reason.BAD_ENVELOPE
    assert said == {
        "'true'": Op.DELETED, "True": Op.DELETED, "'false'": Op.ALIVE, "False": Op.ALIVE,
        "'True'": bad, "1": bad, "None": bad, "'yes'": bad,
    }  # fmt: skip


def test_fact_3_the_old_default_drops_deletions_and_only_half_of_a_key_change_is_left() -> None:
    said = [
        seen(flat(**BIGINT)(record)) for record in of("pg27_flat_default", "pg27_flat_default.public.old_customers")
    ]
    assert {each.what for each in said} == {Op.ALIVE, Op.ARRIVED}


def test_fact_4_a_rewritten_row_is_made_up_but_for_its_key() -> None:
    """The row had name T and an email; its deletion says otherwise. A key is never looked for in it."""
    record = one("pg27_flat_rewrite", "public.old_customers", 5)
    assert (row_of(record)["name"], row_of(record)["email"]) == ("dflt", None)
    assert change(flat(**BIGINT)(record)).key == (3,)
    by_column = flat(name=KeyType.STRING)(record)
    assert isinstance(by_column, Undecodable)
    assert by_column.reason is Reason.MISSING_KEY


def test_fact_9_the_routers_field_is_in_the_key_and_not_in_the_header() -> None:
    record = one("pg_route_flat", "customers_all", 5)
    assert dict(record.headers)["__debezium.newkey"] == b'{"id":3}'
    by_id = change(flat(**BIGINT)(record))
    assert (by_id.op, by_id.key, by_id.to) == (Op.MOVED, (2,), (3,))


def test_fact_13_headers_that_are_there_twice_are_one_when_they_agree() -> None:
    record = one("pg_flat_rewrite_with_tombstone", "public.customers", 19)
    assert [value for name, value in record.headers if name == "__op"] == [b"d", b"d"]
    assert change(flat(**BIGINT)(record)).op is Op.GONE
    other = record._replace(headers=[*record.headers, ("__op", b"c")])
    assert seen(flat(**BIGINT)(other)).what is Reason.BAD_ENVELOPE


def test_fact_20_what_compaction_took_says_nothing_any_more() -> None:
    keys = {record.key for record in of("kt_after_compaction", "kt.customers")}
    assert b"2" not in keys
    assert b"2" in {record.key for record in of("kt_compacted", "kt.customers")}


def test_a_key_change_of_a_flattened_topic_is_never_a_deletion() -> None:
    """Not even where the header's key can't be read."""
    for file in ("pg_flat_tombstone", "pg_flat_delete_to_tombstone", "pg_flat_rewrite"):
        record = one(file, "public.customers", 6)
        for text in (b"{", b"null", b'{"id":"x"}', None, b""):
            headers = [("__debezium.newkey", text)]
            assert isinstance(flat(**BIGINT)(record._replace(headers=headers)), Undecodable)


def test_the_row_of_a_flattened_topic_feeds_a_copy() -> None:
    decode = flat(copied=("email", "big", "phone", "blob"), **BIGINT)
    found = change(decode(one("pg_flat_rewrite", "public.customers", 3)))
    assert found.row == {"email": Cell("ten@x.test"), "big": Cell({"scale": 0, "value": "AA=="}), "blob": Cell("b")}
    unsent = change(decode(one("pg_flat_rewrite", "public.customers", 41)))
    assert unsent.op is Op.ARRIVED
    assert unsent.row is not None
    assert unsent.row["blob"] is None
    deleted = change(decode(one("pg_flat_rewrite", "public.customers", 42)))
    assert (deleted.op, deleted.row) == (Op.DELETED, None)


def test_the_schema_around_a_flattened_row_tells_what_a_field_is() -> None:
    decode = flat(copied=("updated_at", "name"), **BIGINT)
    for _ in range(2):  # read, then remembered
        found = change(decode(one("pg_flat_default_schemas", "public.customers", 0)))
        assert found.row == {
            "updated_at": Cell("2026-01-02T03:04:05.678901Z", FieldHint("string", "io.debezium.time.ZonedTimestamp")),
            "name": Cell("One", FieldHint("string")),
        }
    schema_of_null = change(decode(one("pg_flat_default_schemas", "public.customers", 14)))
    assert schema_of_null.op is Op.GONE


def test_an_object_of_a_compacted_table_feeds_a_copy() -> None:
    [record] = of("kt_compacted", "kt.customers", 5)
    found = change(flat("json", copied=("email",), **BIGINT)(record))
    assert (found.op, found.row, found.version) == (Op.ALIVE, {"email": Cell("c1new@x.test")}, Version(0, (5,)))


def test_a_format_reads_nothing_that_another_one_wrote() -> None:
    """A flattened deletion would be a living row to `json`, an envelope one to both."""
    rewritten = one("pg_flat_rewrite", "public.customers", 14)
    moved = one("pg_flat_delete_to_tombstone", "public.customers", 6)
    [envelope] = of("pg_env", "pg_env.public.customers", 18)
    assert change(flat("debezium", **BIGINT)(envelope)).op is Op.DELETED
    for form, record in (("json", rewritten), ("json", moved), ("json", envelope), ("debezium-flat", envelope)):
        decoded = flat(form, **BIGINT)(record)
        assert isinstance(decoded, Undecodable)
        assert decoded.reason is Reason.BAD_ENVELOPE
        assert "write format: debezium" in decoded.message


def test_fact_2_flattened_documents_of_mongodb_are_refused_where_the_rule_does_not_name_their_id() -> None:
    """Their `__deleted` is a boolean, and `id` in their keys stands for `_id` (`test_decode_captured_documents`)."""
    records = load("mdb_flat_rewrite")
    assert {row_of(record)["__deleted"] for record in records if record.value is not None} == {True, False}
    for record in records:
        assert seen(flat(id=KeyType.STRING)(record)).what is Reason.TYPE_MISMATCH


@pytest.mark.parametrize(("file", "table", "key"), [
    ("pg_key_struct_string", "customers", BIGINT),
    ("pg_key_struct_string", "textkeys", TEXT),
    ("pg_key_struct_string", "composite", TENANT_CODE),
])  # fmt: skip
def test_a_struct_as_text_is_never_a_key(file: str, table: str, key: dict[str, KeyType]) -> None:
    """Nothing in it is quoted: `Struct{tenant=1,code=A}` may be a code of `A}` or a tenant of another field."""
    formats = [KeyFormat.JSON, KeyFormat.STRING] if len(key) == 1 else [KeyFormat.JSON]
    for key_format in formats:
        decode = flat("debezium", key_format=key_format, **key)
        for record in of(file, f"{file}.public.{table}"):
            found = decode(record)
            assert isinstance(found, Undecodable | Ignored)
            if isinstance(found, Undecodable):
                assert found.stage == "key"


def test_a_long_of_eight_bytes_is_a_key_where_the_rule_says_so() -> None:
    records = of("pg_key_long", "pg_key_long.public.customers")
    decode = flat("debezium", key_format=KeyFormat.LONG, **BIGINT)
    said = [(found.op, found.key, found.to) for record in records if isinstance(found := decode(record), ParentChange)]
    assert said == [
        (Op.ALIVE, (1,), None), (Op.ALIVE, (2,), None), (Op.ALIVE, (9007199254740993,), None), (Op.ALIVE, (10,), None),
        (Op.MOVED, (10,), (11,)), (Op.GONE, (10,), (11,)), (Op.ARRIVED, (11,), None),
        (Op.MOVED, (11,), (12,)), (Op.GONE, (11,), (12,)), (Op.ARRIVED, (12,), None),
        (Op.DELETED, (12,), None), (Op.GONE, (12,), None), (Op.ALIVE, (12,), None),
        (Op.DELETED, (9007199254740993,), None), (Op.GONE, (9007199254740993,), None),
    ]  # fmt: skip
    undeclared = {
        seen(found).what for record in records if not isinstance(found := flat("debezium", **BIGINT)(record), Ignored)
    }
    assert undeclared == {Reason.SCHEMA_REGISTRY_PAYLOAD}


def test_a_bare_json_scalar_is_the_key() -> None:
    for table, key in (("customers", BIGINT), ("textkeys", TEXT)):
        decode = flat("debezium", **key)
        for record in of("pg_key_bare_json", f"pg_key_bare_json.public.{table}"):
            found = decode(record)
            if isinstance(found, ParentChange):
                assert record.key is not None
                assert found.key == (json.loads(record.key),)
