"""Keys that are not in the record key: what rows show of them, and where a row before is not known to be whole."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from integrity.core.change import Op, ParentChange, Truncation, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Headers, Ignored, Record, Undecodable
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, KeyFrom, Parent, Place, Tombstones, Truncates
from integrity.errors import Reason
from tests.golden.records import load
from tests.golden.test_decode_captured_events import seen
from tests.unit.core.test_decode_debezium import SOURCE, change, new_key, record, refusal, text_of

EMAIL = {"email": KeyType.STRING}
MYSQL = {"connector": "mysql", "file": "bin.000002", "pos": 5, "row": 1, "ts_ms": 1}


def by_row(read: Record, partition: int = 0, **key: KeyType) -> Decoded:
    spec = KeySpec(tuple((key or EMAIL).items()))
    events = Events(("t",), "debezium", spec, Tombstones.IGNORE, key_from=KeyFrom.BEFORE)
    decode = decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)))
    return decode(read._replace(partition=partition))


def event(op: str, before: object, after: object, source: object = SOURCE, headers: Headers = ()) -> Record:
    return record(text_of({"before": before, "after": after, "source": source, "op": op}), b'{"id":10}', headers)


def with_schema(before: object, *columns: dict[str, Any], op: str = "d") -> Record:
    row = {"type": "struct", "optional": True, "field": "before", "fields": list(columns)}
    payload = {"before": before, "after": None, "source": SOURCE, "op": op}
    return record(text_of({"schema": {"type": "struct", "fields": [row]}, "payload": payload}), b'{"id":10}')


def column(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "optional": False, "field": name} | more


ROW = {"id": 10, "email": "a@x.test", "name": "A"}


def test_rows_that_are_created_or_read_say_that_their_key_lives() -> None:
    for op in "cr":
        found = change(by_row(event(op, None, ROW)))
        assert (found.op, found.key, found.to, found.version) == (Op.ALIVE, ("a@x.test",), None, Version(0, (4711,)))
    assert isinstance(by_row(event("r", None, ROW, SOURCE | {"lsn": None})), Ignored)


def test_an_update_whose_rows_have_two_keys_is_a_key_change() -> None:
    moved = change(by_row(event("u", ROW, ROW | {"email": "b@x.test"})))
    assert (moved.op, moved.key, moved.to, moved.version) == (
        Op.MOVED, ("a@x.test",), ("b@x.test",), Version(0, (4711,))
    )  # fmt: skip
    assert isinstance(by_row(event("u", ROW, ROW | {"name": "B"})), Ignored)


def test_an_update_without_the_row_before_may_have_changed_the_key() -> None:
    assert refusal(by_row(event("u", None, ROW))) == (Reason.NO_BEFORE, "value")
    assert refusal(by_row(event("u", ROW, None))) == (Reason.NO_BEFORE, "value")
    assert refusal(by_row(event("d", None, None))) == (Reason.NO_BEFORE, "value")


def test_a_deletion_of_postgresql_needs_a_value_that_cannot_be_made_up() -> None:
    """Facts 4 and 6: under the default identity columns are made up, from their defaults too."""
    assert refusal(by_row(event("d", ROW, None))) == (Reason.NO_BEFORE, "value")  # no schema tells what may be null
    key, name = column("email"), column("name", optional=True)
    assert change(by_row(with_schema(ROW, key, name))).key == ("a@x.test",)
    doubts = [
        (ROW | {"name": None}, (key, name)),
        (ROW, (key, column("name"))),
        (ROW, (key, column("name", optional=True, default="A"))),
        (ROW | {"name": "__debezium_unavailable_value"}, (key, name)),
        (ROW, ()),
    ]
    for before, columns in doubts:
        assert refusal(by_row(with_schema(before, *columns))) == (Reason.NO_BEFORE, "value")


@pytest.mark.parametrize("connector", ["mysql", "mariadb"])
def test_rows_of_mysql_and_mariadb_are_whole(connector: str) -> None:
    source = MYSQL | {"connector": connector}
    deleted = change(by_row(event("d", ROW, None, source)))
    assert (deleted.op, deleted.key, deleted.version) == (Op.DELETED, ("a@x.test",), Version(0, (2, 5, 1)))
    assert change(by_row(event("u", ROW, ROW | {"email": "b"}, source))).op is Op.MOVED


def test_of_other_connectors_it_is_not_known() -> None:
    source = {"connector": "oracle", "scn": "5", "ts_ms": 1}
    assert refusal(by_row(event("d", ROW, None, source))) == (Reason.NO_BEFORE, "value")
    assert refusal(by_row(event("u", ROW, ROW | {"email": "b"}, source))) == (Reason.NO_BEFORE, "value")


def test_where_the_record_key_changed_nothing_tells_whether_the_parents_did() -> None:
    gone = event("d", ROW, None, MYSQL, new_key(b'{"id":11}'))
    assert refusal(by_row(gone)) == (Reason.NO_BEFORE, "value")
    came = event("c", None, ROW, MYSQL, [("__debezium.oldkey", b'{"id":9}')])
    assert change(by_row(came)).op is Op.ALIVE


def test_events_of_another_partition_are_refused_since_nothing_orders_a_key_over_them() -> None:
    for op in "cdu":
        assert refusal(by_row(event(op, ROW, ROW, MYSQL), partition=1)) == (Reason.BAD_VERSION, "value")


@pytest.mark.parametrize("key", [None, 5, "__debezium_unavailable_value"])
def test_a_key_in_doubt_is_a_dead_letter(key: object) -> None:
    for read in (event("d", ROW | {"email": key}, None, MYSQL), event("c", None, ROW | {"email": key}, MYSQL)):
        assert refusal(by_row(read))[1] == "value"
    assert refusal(by_row(event("c", None, {"id": 1}, MYSQL))) == (Reason.MISSING_KEY, "value")
    assert refusal(by_row(event("u", ROW, [], MYSQL)))[1] == "value"


def test_null_records_and_what_names_no_row_say_nothing() -> None:
    assert isinstance(by_row(record(None, b'{"id":10}')), Ignored)
    assert isinstance(by_row(record(None, None)), Ignored)
    assert isinstance(by_row(event("t", None, None)), Ignored)
    assert isinstance(by_row(event("m", None, None)), Ignored)


def test_a_truncate_deletes_all_where_the_rule_says_so() -> None:
    spec = KeySpec(tuple(EMAIL.items()))
    events = Events(
        ("t",), "debezium", spec, Tombstones.IGNORE, key_from=KeyFrom.BEFORE, truncate=Truncates.DELETE_ALL
    )  # fmt: skip
    decode = decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)))
    assert isinstance(decode(event("t", None, None)), Truncation)
    assert refusal(decode(event("t", None, None, MYSQL))) == (Reason.BAD_VERSION, "value")


def test_made_up_rows_of_the_captured_files_never_delete() -> None:
    """The table `strict` of fact 4, and `keyed` of fact 6: their identity is the default one."""
    for file, table, name in (("pg_strict", "strict", "email"), ("pg_keycolumns", "keyed", "tenant")):
        records = [each for each in load(file) if each.topic == f"{file}.public.{table}"]
        said = Counter(str(seen(by_row(each, **{name: KeyType.STRING})).what) for each in records)
        assert said.keys() <= {str(Op.ALIVE), str(Reason.NO_BEFORE), "tombstone"}
        assert said[str(Reason.NO_BEFORE)] > 0


def test_full_rows_of_a_captured_file_show_their_keys() -> None:
    """REPLICA IDENTITY FULL, schemas on: insert, update."""
    topic = "pg_env_schemas.public.customers_full"
    found = [by_row(each) for each in load("pg_env_schemas") if each.topic == topic]
    assert not [each for each in found if isinstance(each, Undecodable)]
    moved = [each for each in found if isinstance(each, ParentChange) and each.op is Op.MOVED]
    assert [(each.key, each.to) for each in moved] == [(("t@x.test",), ("t2@x.test",))]


def test_rows_of_a_captured_mariadb_file_show_their_keys() -> None:
    topic = "my_env_schemas.shop.customers"
    records = [each for each in load("my_env_schemas") if each.topic == topic]
    for each in records:
        if each.value is None or any(name == "__debezium.newkey" for name, _ in each.headers):
            continue
        payload = json.loads(each.value)["payload"]
        found = by_row(each)
        before, after = payload["before"], payload["after"]
        match payload["op"]:
            case "d":
                assert change(found)[1:4] == (Op.DELETED, (before["email"],), None)
            case "u" if before["email"] != after["email"]:
                assert change(found)[1:4] == (Op.MOVED, (before["email"],), (after["email"],))
            case "u":
                assert isinstance(found, Ignored)
            case _:
                assert change(found)[1:4] == (Op.ALIVE, (after["email"],), None)
