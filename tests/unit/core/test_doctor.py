"""What `integrity doctor` makes of topics, their last records, defaults and clocks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from integrity.core.decode import decoder_for
from integrity.core.decode.record import Headers, Record
from integrity.core.doctor import TopicLook, defaults, of_clock, of_default, of_topics
from integrity.core.rules.parse import parse_rules
from tests.golden.records import load
from tests.golden.test_constructed_cloudevents import structured

NOW_MS = 1_800_000_000_000
FLAT = "debezium-flat"
CUSTOMER = """\
version: 1
parent: customer
events: {topics: [customers, customers_eu], format: debezium, key: {id: int64}%s}
dependents:
  - {store: a, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


def rules_of(more: str = "") -> Any:
    return parse_rules({"customer.yaml": CUSTOMER % more})


def record(op: str, *, before: object = None, connector: str = "postgresql", key: object = None, at: int = 1) -> Record:
    source = {
        "connector": connector,
        "lsn": 5,
        "schema": "shop",
        "table": "customers",
        "file": "b.1",
        "pos": 4,
        "row": 0,
    }
    after = None if op == "d" else {"id": 1, "name": "x", "deleted_at": None}
    value = {"op": op, "before": before, "after": after, "source": source}
    text = None if op == "t" else json.dumps({"id": 1} if key is None else key).encode()
    return Record("customers", 0, 0, at, text, json.dumps(value).encode(), ())


def look(*last: Record, name: str = "customers", partitions: int = 3, **config: str) -> TopicLook:
    told: Mapping[str, str] = {key.replace("_", "."): value for key, value in config.items()}
    return TopicLook(name, partitions, told, last)


def found(*looks: TopicLook, more: str = "") -> list[tuple[str, str]]:
    parent = rules_of(more).by_entity["customer"]
    of = of_topics(parent, {each.name: each for each in looks}, decoder_for(parent), NOW_MS)
    assert all((each.file, each.line) == ("customer.yaml", parent.place.line) and each.hint for each in of)
    return [(each.code, each.severity) for each in of]


EU = look(record("c"), name="customers_eu")


def test_sound_topics_have_no_findings() -> None:
    assert found(look(record("c"), record("d"), cleanup_policy="delete", retention_ms="604800000"), EU) == []


def test_topic_that_does_not_exist_is_an_error() -> None:
    assert found(EU) == [("missing_topic", "error")]


@pytest.mark.parametrize(
    ("config", "more", "told"),
    [
        (
            {"cleanup_policy": "delete", "retention_ms": "5400000"},
            "",
            "90 min are gone from topic 'customers' (retention.ms)",
        ),
        ({"cleanup_policy": "delete", "retention_ms": "604799999"}, "", "604799999 ms"),
        ({"cleanup_policy": "delete", "retention_ms": "604800000"}, "", None),
        ({"cleanup_policy": "delete", "retention_ms": "-1", "delete_retention_ms": "1"}, "", None),
        ({"cleanup_policy": "delete", "retention_ms": "-1", "retention_bytes": "5000"}, "", "keeps 5000 bytes"),
        ({"cleanup_policy": "compact", "retention_ms": "3600000", "retention_bytes": "5"}, "", None),
        (
            {"cleanup_policy": "compact", "delete_retention_ms": "86400000"},
            "",
            "24 h are gone from topic 'customers' (delete.retention.ms)",
        ),
        ({"cleanup_policy": "compact,delete", "retention_ms": "172800000"}, "", "2 d are gone"),
    ],
)
def test_how_long_deletions_are_kept_is_told(config: dict[str, str], more: str, told: str | None) -> None:
    parent = rules_of(more).by_entity["customer"]
    looks = {each.name: each for each in (look(record("c"), **config), EU)}
    of = of_topics(parent, looks, decoder_for(parent), NOW_MS)
    assert [(each.code, each.severity) for each in of] == ([("retention_short", "warning")] if told else [])
    assert told is None or (told in of[0].message and "run integrity scan" in of[0].hint)


def test_null_records_of_a_compacted_topic_are_not_to_be_ignored() -> None:
    compacted = look(record("c"), cleanup_policy="compact")
    assert found(compacted, EU, more=", tombstones: ignore") == [("deletions_compacted", "error")]


DOMAIN = """\
version: 1
parent: customer
events: {topic: customers, format: outbox, key: {id: int64}, %s}
dependents:
  - {store: a, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


@pytest.mark.parametrize(
    ("types", "partitions", "policy", "expected"),
    [
        ("types: {deleted: [D]}", 3, "delete", []),
        ("types: {deleted: [D]}", 3, "compact", [("events_compacted", "error")]),
        ("types: {key_changed: [K]}, new_key: {id: to}", 1, "delete", []),
        ("types: {key_changed: [K]}, new_key: {id: to}, version: rev", 3, "delete", []),
        ("types: {key_changed: [K]}, new_key: {id: to}", 3, "delete", [("key_changes_unordered", "error")]),
    ],
)
def test_what_domain_events_lack_is_told(
    types: str, partitions: int, policy: str, expected: list[tuple[str, str]]
) -> None:
    parent = parse_rules({"customer.yaml": DOMAIN % types}).by_entity["customer"]
    event = Record("customers", 0, 0, 1, b"7", b"{}", [("eventType", b"Other")])
    of = of_topics(
        parent, {"customers": look(event, partitions=partitions, cleanup_policy=policy)}, decoder_for(parent), NOW_MS
    )
    placed = [] if "version" in types else [("kafka_position_only", "warning")]
    assert [(each.code, each.severity) for each in of] == [*expected, *placed]


def test_topic_of_several_partitions_is_told_where_keys_are_in_the_rows() -> None:
    text = (CUSTOMER % ", key_from: before, tombstones: ignore").replace(
        "topics: [customers, customers_eu]", "topic: customers"
    )
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    for partitions, expected in ((1, []), (2, ["key_changes_unordered"])):
        of = of_topics(parent, {"customers": look(record("c"), partitions=partitions)}, decoder_for(parent), NOW_MS)
        assert [each.code for each in of] == expected


@pytest.mark.parametrize(
    ("file", "form", "expected"),
    [
        ("pg_flat_rewrite_with_tombstone", "debezium-flat", []),
        ("pg_flat_rewrite", "debezium-flat", []),
        ("my_flat_rewrite", "debezium-flat", []),
        ("pg_flat_drop", "debezium-flat", ["deletions_dropped"]),
        ("pg_flat_tombstone", "debezium-flat", ["deletions_unplaced"]),
        ("pg_insertfield_flat", "debezium-flat", ["kafka_position_only"]),
        ("kt_compacted", "json", ["kafka_position_only"]),
    ],
)
def test_what_flattened_topics_and_tables_do_not_tell_is_told(file: str, form: str, expected: list[str]) -> None:
    topic = "kt.customers" if form == "json" else f"{file}.{'shop' if file.startswith('my') else 'public'}.customers"
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("format: debezium", f"format: {form}")
    parent = parse_rules({"customer.yaml": text % ""}).by_entity["customer"]
    seen = TopicLook(topic, 1, {}, [each for each in load(file) if each.topic == topic])
    of = of_topics(parent, {topic: seen}, decoder_for(parent), NOW_MS)
    assert [each.code for each in of] == expected


@pytest.mark.parametrize(
    ("file", "topic", "form", "key", "expected"),
    [
        ("pg_env", "pg_env.public.customers", "debezium", "{id: int64}", False),
        ("mdb_env_deltas", "mdb_env_deltas.shop.customers", "debezium", "{_id: objectid}", True),
        ("pg_flat_rewrite", "pg_flat_rewrite.public.customers", "debezium-flat", "{id: int64}", True),
        ("pg_flat_tombstone", "pg_flat_tombstone.public.customers", "debezium-flat", "{id: int64}", True),
        ("pg_flat_rewrite_with_tombstone", "pg_flat_rewrite_with_tombstone.public.customers", "debezium-flat",
         "{id: int64}", False),
        ("mks_default", "mks_default.shop.customers", "mongodb", "{_id: objectid}", True),
        ("mks_fulldoc_tombstone", "mks_fulldoc_tombstone.shop.customers", "mongodb", "{_id: objectid}", False),
        ("kt_compacted", "kt.customers", "json", "{id: int64}", False),
    ],
)  # fmt: skip
def test_deleted_keys_that_a_compacted_topic_keeps_for_ever_are_told(
    file: str, topic: str, form: str, key: str, expected: bool
) -> None:
    """The default of flattening is the four bytes `null`, which Kafka takes for a value."""
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("{id: int64}", key) % ""
    text = text.replace("format: debezium", f"format: {form}").replace("{customer_id: id}", key_of(key))
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    seen = [each for each in load(file) if each.topic == topic]
    for policy in ("compact", "delete"):
        looks = {topic: TopicLook(topic, 1, {"cleanup.policy": policy}, seen)}
        of = [each.code for each in of_topics(parent, looks, decoder_for(parent), NOW_MS)]
        assert ("no_tombstones" in of) is (expected and policy == "compact"), of


def test_topics_of_one_parent_with_different_partitions_are_told() -> None:
    assert found(look(record("c"), partitions=4), EU) == [("partitions_differ", "warning")]


@pytest.mark.parametrize(
    ("last", "finding"),
    [
        ((), ("no_events", "warning")),
        ((record("c"), record("d", key={"ID": 1})), ("undecodable_events", "error")),
        ((record("c", at=NOW_MS + 120_000),), ("clock_ahead", "warning")),
        ((record("c", connector="vitess"),), ("kafka_position_only", "warning")),
        ((record("c", connector="mysql", key={"id": -1}),), ("keys_negative", "warning")),
        ((record("c"), record("t")), ("truncate_seen", "warning")),
    ],
)
def test_last_records_tell_what_is_wrong_with_their_source(last: Sequence[Record], finding: tuple[str, str]) -> None:
    assert found(look(*last), EU) == [finding]


@pytest.mark.parametrize(("connector", "told"), [("mariadb", ["keys_collated"]), ("postgresql", [])])
def test_text_keys_of_a_source_with_collations_are_told(connector: str, told: list[str]) -> None:
    topic = "customers"
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("int64", "string") % ""
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    seen = look(record("c", connector=connector, key={"id": "abc"}))
    assert [each.code for each in of_topics(parent, {topic: seen}, decoder_for(parent), NOW_MS)] == told


def wrapped(file: str, table: str) -> list[Record]:
    return [structured(each) for each in load(file) if each.topic == f"{file}.{table}"]


@pytest.mark.parametrize(
    ("file", "table", "key", "expected"),
    [
        ("pg_env", "public.customers", "{id: int64}", []),
        ("pg_env", "public.customers_idx", "{id: int64}", ["key_made_up", "truncate_seen"]),
        ("my_env", "shop.textkeys", "{id: string}", ["keys_collated"]),
        ("mdb_env", "shop.customers", "{_id: objectid}", []),
        ("mdb_env_deltas", "shop.customers", "{_id: objectid}", ["no_tombstones"]),
    ],
)
def test_what_cloudevents_wrap_is_told_like_the_bare_events(
    file: str, table: str, key: str, expected: list[str]
) -> None:
    text = CUSTOMER.replace("[customers, customers_eu]", "[t]").replace("{id: int64}", key) % ""
    text = text.replace("{customer_id: id}", key_of(key))
    bare = [each for each in load(file) if each.topic == f"{file}.{table}"]
    for form, records in (("debezium", bare), ("cloudevents", wrapped(file, table))):
        parent = parse_rules({"a.yaml": text.replace("format: debezium", f"format: {form}")}).by_entity["customer"]
        seen = TopicLook("t", 1, {"cleanup.policy": "compact"}, records)
        of = of_topics(parent, {"t": seen}, decoder_for(parent), NOW_MS)
        assert sorted(each.code for each in of if each.code != "undecodable_events") == expected, form


def test_deletions_that_the_connector_skips_are_told_where_key_changes_arrive() -> None:
    arrived = record("c")._replace(headers=[("__debezium.oldkey", b'{"id":2}')])
    assert found(look(record("c"), arrived), EU) == [("deletions_dropped", "warning")]
    assert found(look(record("d"), arrived), EU) == []


@pytest.mark.parametrize(
    ("more", "partitions", "expected"),
    [
        ("", 1, ["moves_unpaired"]),
        (", pair_by: transaction", 1, []),
        (", pair_by: transaction", 2, ["key_changes_unordered"]),
    ],
)
def test_rows_that_move_between_the_partitions_of_a_table_are_told(
    more: str, partitions: int, expected: list[str]
) -> None:
    """Fact 7: without a mark they look like a deletion and a creation."""
    topic = "pg_partitioned_table.public.parted"
    key = "{tenant: int64, id: int64}%s}\n"
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("{id: int64}%s}\n", key)
    text = text.replace("{customer_id: id}", "{tenant: tenant, customer_id: id}") % more
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    seen = TopicLook(topic, partitions, {}, [each for each in load("pg_partitioned_table") if each.topic == topic])
    of = of_topics(parent, {topic: seen}, decoder_for(parent), NOW_MS)
    assert [each.code for each in of] == expected


@pytest.mark.parametrize(
    ("more", "headers", "expected"),
    [
        ("", (), ["null_records_unmarked"]),
        (", tombstones: ignore", (), []),
        ("", (("__debezium.context.connectorName", b"sqlserver"),), []),
    ],
)
def test_null_records_of_sql_server_that_do_not_tell_their_source_are_told(
    more: str, headers: Headers, expected: list[str]
) -> None:
    text = CUSTOMER.replace("[customers, customers_eu]", "[customers]") % more
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    lsn = "00000027:00000758:0003"
    source = {"connector": "sqlserver", "commit_lsn": lsn, "change_lsn": lsn, "event_serial_no": 1}
    value = json.dumps({"op": "c", "before": None, "after": {"id": 1}, "source": source}).encode()
    seen = look(record("c")._replace(value=value, headers=headers), partitions=1)
    of = of_topics(parent, {"customers": seen}, decoder_for(parent), NOW_MS)
    assert [each.code for each in of] == expected


def test_null_records_of_a_flattened_topic_of_sql_server_that_do_not_tell_their_source_are_told() -> None:
    text = (
        CUSTOMER.replace("[customers, customers_eu]", "[customers]").replace("format: debezium", f"format: {FLAT}") % ""
    )
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    lsn = "00000027:00000758:0003"
    row = {"__op": "d", "__deleted": "true", "__commit_lsn": lsn, "__change_lsn": lsn, "__event_serial_no": 1}
    deletion = record("c")._replace(value=json.dumps({"id": 1} | row).encode())
    null = deletion._replace(value=None, offset=1)
    marked = null._replace(headers=(("__debezium.context.connectorName", b"sqlserver"),))
    for last, expected in (
        ([deletion], []),
        ([deletion, marked], []),
        ([deletion, null], ["null_records_unmarked"]),
    ):
        of = of_topics(parent, {"customers": look(*last, partitions=1)}, decoder_for(parent), NOW_MS)
        assert [each.code for each in of] == expected
    of = of_topics(parent, {"customers": look(deletion, partitions=2)}, decoder_for(parent), NOW_MS)
    assert "key_changes_unordered" in [each.code for each in of]


@pytest.mark.parametrize(
    ("file", "topic", "form"),
    [
        ("pg_env", "pg_env.public.customers", "debezium"),
        ("my_env", "my_env.shop.customers", "debezium"),
        ("pg_flat_rewrite", "pg_flat_rewrite.public.customers", FLAT),
        ("my_flat_rewrite", "my_flat_rewrite.shop.customers", FLAT),
    ],
)
def test_key_changes_whose_headers_were_dropped_are_told(file: str, topic: str, form: str) -> None:
    text = (
        CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("format: debezium", f"format: {form}") % ""
    )
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    whole = [each for each in load(file) if each.topic == topic]
    for last, expected in ((whole, False), ([each._replace(headers=()) for each in whole], True)):
        of = of_topics(parent, {topic: TopicLook(topic, 1, {}, last)}, decoder_for(parent), NOW_MS)
        assert ("key_changes_unmarked" in [each.code for each in of if each.severity == "error"]) is expected


def test_truncate_is_told_whatever_it_does() -> None:
    parent = rules_of(", truncate: delete_all").by_entity["customer"]
    told = {each.name: each for each in (look(record("c"), record("t")), EU)}
    [finding] = of_topics(parent, told, decoder_for(parent), NOW_MS)
    assert (finding.code, finding.severity) == ("truncate_seen", "warning")
    assert "deletes the parents that are known to live" in finding.message


@pytest.mark.parametrize(
    ("condition", "before", "told"),
    [
        (
            "op == 'u' && before.deleted_at == null",
            None,
            [("undecodable_events", "error"), ("before_missing", "error")],
        ),
        ("op == 'u' && before.deleted_at == null", {"id": 1, "deleted_at": None}, []),
        ("after.deleted_at != null", None, []),
    ],
)
def test_replica_identity_matters_where_the_condition_asks_for_the_row_before(
    condition: str, before: object, told: list[tuple[str, str]]
) -> None:
    assert found(look(record("u", before=before)), EU, more=f', deleted_when: "{condition}"') == told


def test_captured_events_have_no_findings() -> None:
    topic = "pg_env.public.customers"
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]") % ""
    parent = parse_rules({"customer.yaml": text}).by_entity["customer"]
    seen = TopicLook(topic, 1, {}, [each for each in load("pg_env") if each.topic == topic][-50:])
    assert [each.code for each in of_topics(parent, {topic: seen}, decoder_for(parent), NOW_MS)] == []


@pytest.mark.parametrize(
    ("file", "table", "key", "told"),
    [
        ("pg_env", "customers_idx", "{id: int64}", ["error"]),
        ("pg_env", "textkeys", "{id: string}", ["warning"]),
        ("pg_keycolumns", "keyed", "{tenant: string, id: int64}", ["warning"]),
        ("pg_keycolumns", "keyed_full", "{tenant: string, id: int64}", []),
    ],
)
def test_fact_5_and_6_keys_that_are_made_up_are_told(file: str, table: str, key: str, told: list[str]) -> None:
    """That the key "" of `textkeys` was a row's own can't be told."""
    topic = f"{file}.public.{table}"
    text = CUSTOMER.replace("[customers, customers_eu]", f"[{topic}]").replace("{id: int64}", key) % ""
    parent = parse_rules({"customer.yaml": text.replace("{customer_id: id}", key_of(key))}).by_entity["customer"]
    seen = TopicLook(topic, 1, {}, [each for each in load(file) if each.topic == topic and each.value is not None])
    of = of_topics(parent, {topic: seen}, decoder_for(parent), NOW_MS)
    found = {each.code: each for each in of if each.code != "truncate_seen"}
    assert [(each.code, each.severity) for each in found.values()] == [("key_made_up", each) for each in told]
    if told:
        assert f"ALTER TABLE public.{table} REPLICA IDENTITY" in found["key_made_up"].hint


def key_of(key: str) -> str:
    """The fields of a key, as references of the same names."""
    return re.sub(r"(\w+): \w+", r"\1: \1", key)


CATEGORY = """\
version: 1
parent: category
events: {topic: categories, format: debezium, key: {id: int64}}
dependents:
  - {store: a, table: categories, references: {parent_id: id}, on_delete: {set_default: {parent_id: 0}},
     on_update: {set_default: {parent_id: 5}}, entity: category, key: {id: int64}}
  - {store: b, table: goods, references: {category_id: id}, on_delete: {set_default: {category_id: 0}}}
  - {store: b, table: notes, references: {category_id: id}, on_delete: {set_default: {category_id: null}}}
"""


def test_defaults_are_asked_for_where_the_rows_of_their_parent_are() -> None:
    asked = defaults(parse_rules({"category.yaml": CATEGORY}))
    assert [(each.dependent.id, each.key) for each in asked] == [
        ("category.categories", (0,)),
        ("category.categories", (5,)),
        ("category.goods", (0,)),
    ]
    unseen = CATEGORY.replace(", entity: category, key: {id: int64}", "")
    assert defaults(parse_rules({"category.yaml": unseen})) == []
    named = unseen.replace("key: {id", "source: {store: a, table: categories}, key: {id")
    assert len(defaults(parse_rules({"category.yaml": named}))) == 3
    [finding] = [finding for each in asked for finding in of_default(each, [(0,)], "table categories of a")]
    assert (finding.code, finding.line, finding.severity) == ("default_unreachable", 5, "error")
    assert "category.categories" in finding.message


@pytest.mark.parametrize(("away_ms", "told"), [(1_900, ""), (2_500, "2.5 s ahead of"), (-90_000, "90.0 s behind")])
def test_clock_that_is_away_is_told(away_ms: int, told: str) -> None:
    findings = of_clock("orders_db", away_ms)
    assert [told in finding.message for finding in findings] == ([True] if told else [])
