"""Flattened rows and compacted tables, record by record: what each shape says, and the reason of each dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.halves import pair
from integrity.core.decode.record import Decoded, Decoder, Half, Headers, Ignored, Record, Undecodable
from integrity.core.fold import settle
from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Outcome
from integrity.core.rules.model import Events, KeyFormat, Parent, Place, Tombstones
from integrity.errors import Reason
from tests.unit.core.test_decode_debezium import change, new_key, record, refusal, text_of

FLAT, JSON = "debezium-flat", "json"


def reader(
    form: str = FLAT, kind: KeyType = KeyType.INT64, copied: Sequence[str] | None = None, **more: Any
) -> Decoder:
    events = Events(("t",), form, KeySpec((("id", kind),)), more.pop("tombstones", Tombstones.DELETE), **more)
    return decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)), copied=copied)


def flat(row: object, headers: Headers = (), key: bytes | None = b'{"id":10}', **more: Any) -> Decoded:
    return reader(**more)(record(None if row is None else text_of(row), key, headers))


def table(row: object, headers: Headers = (), key: bytes | None = b'{"id":10}', **more: Any) -> Decoded:
    return reader(JSON, **more)(record(None if row is None else text_of(row), key, headers))


ROW: dict[str, object] = {
    "id": 10,
    "email": "a@x.test",
    "__op": "u",
    "__lsn": 4711,
    "__source_ts_ms": 1_795_470_742_997,
}


DB2 = {
    "__connector": "db2",
    "__commit_lsn": "00000000:00000000:0000000000000009",
    "__change_lsn": "00000000:00000000:0000000000000007",
}
SQLSERVER: dict[str, object] = {
    "__source_commit_lsn": "00000027:00000758:0005",
    "__source_change_lsn": "00000027:00000758:0003",
    "__source_event_serial_no": 1,
}


def test_an_update_says_that_its_key_lives() -> None:
    found = change(flat(ROW))
    assert (found.op, found.key, found.version, found.occurred_ms) == (
        Op.ALIVE, (10,), Version(0, (4711,)), 1_795_470_742_997
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "headers", "version"),
    [
        ({"__lsn": 7}, (), (7,)),
        ({"__lsn": "7"}, (), (7,)),
        ({"__source_lsn": 7}, (), (7,)),
        ({}, [("__lsn", b"7")], (7,)),
        ({}, [("__source_lsn", b'{"schema":{"type":"int64"},"payload":7}')], (7,)),
        ({"__lsn": 7}, [("__lsn", b"8")], (7,)),
        ({"__source_file": "bin.000010", "__source_pos": 5, "__source_row": 2}, (), (10, 5, 2)),
        ({"__file": "a.b.000009", "__pos": 5, "__row": 0}, (), (9, 5, 0)),
        ({}, [("__source_file", b"bin.000010"), ("__source_pos", b"5"), ("__source_row", b"2")], (10, 5, 2)),
        ({"__scn": "99"}, (), (99,)),
        ({"__source_scn": "99", "__rs_id": "00000a.00000001.0010", "__ssn": 3}, (), (99, 10, 1, 16, 3)),
        ({}, [("__scn", b"99"), ("__rs_id", b"00000a.00000001.0010"), ("__ssn", b"3")], (99, 10, 1, 16, 3)),
        ({"__scn": "99", "__rs_id": None, "__lcr_position": "0000000f00000001"}, (), (99, 15, 1)),
        (DB2, (), (0, 0, 0, 9, 0, 0, 0, 7)),
        ({}, [(name, text.encode()) for name, text in DB2.items()], (0, 0, 0, 9, 0, 0, 0, 7)),
        ({"__source_file": "bin.000010", "__source_pos": 5}, (), (42,)),
        ({}, (), (42,)),
    ],
)
def test_a_row_is_placed_by_what_add_fields_and_add_headers_tell(
    row: dict[str, object], headers: Headers, version: tuple[int, ...]
) -> None:
    for deleted in ({}, {"__deleted": "true"}):
        found = change(flat({"id": 10} | row | deleted, headers))
        assert (found.op, found.version) == (Op.DELETED if deleted else Op.ALIVE, Version(0, version))
    assert change(flat({"id": 10} | row, headers, epoch=3)).version == Version(3, version)


@pytest.mark.parametrize("place", [None, -1, 2**63, 1.5, True, "x", "", [], {}, "1.5"])
def test_a_row_whose_position_is_none_is_a_dead_letter(place: object) -> None:
    assert refusal(flat({"id": 10, "__lsn": place, "__deleted": "true"})) == (Reason.BAD_VERSION, "value")
    assert refusal(flat({"id": 10, "__lsn": place})) == (Reason.BAD_VERSION, "value")
    for parts in (
        {"__source_file": "bin.1", "__source_pos": place, "__source_row": 0},
        {"__scn": place},
        DB2 | {"__change_lsn": place},
        SQLSERVER | {"__op": "d", "__source_event_serial_no": place},
    ):
        assert refusal(flat({"id": 10} | parts)) == (Reason.BAD_VERSION, "value")
    assert refusal(table({"id": 10, "rev": place}, version=("rev",))) == (Reason.BAD_VERSION, "value")


@pytest.mark.parametrize("file", [None, "bin", "bin.x", 5, "bin.1x", "bin." + "1" * 19, ""])
def test_a_binary_log_whose_file_has_no_number_is_a_dead_letter(file: object) -> None:
    row = {"id": 10, "__source_file": file, "__source_pos": 5, "__source_row": 0}
    assert refusal(flat(row)) == (Reason.BAD_VERSION, "value")


def test_a_row_of_an_incremental_snapshot_has_no_place() -> None:
    unplaced = {"id": 10, "__op": "r", "__lsn": None}
    assert isinstance(flat(unplaced), Ignored)
    copied = change(flat(unplaced, copied=("id",)))
    assert (copied.op, copied.version) == (Op.ALIVE, None)
    assert change(flat({"id": 10, "__op": "r", "__lsn": 5})).version == Version(0, (5,))


def test_a_row_of_a_snapshot_is_placed_by_what_it_has_of_a_place() -> None:
    """It has seen all that its source had committed: it is the last thing there."""
    unchanged = {"__op": "r", "__change_lsn": None}
    assert change(flat({"id": 10} | DB2 | unchanged)).version == Version(0, (0, 0, 0, 9, 2**32))
    unchanged = {"__op": "r", "__source_change_lsn": None, "__source_event_serial_no": None}
    assert change(flat({"id": 10} | SQLSERVER | unchanged)).version == Version(0, (0x27, 0x758, 5, 2**32))
    assert change(flat({"id": 10, "__op": "r", "__scn": "99", "__rs_id": None})).version == Version(0, (99,))


def test_the_rule_may_say_what_the_names_of_added_fields_begin_with() -> None:
    row = {"id": 10, "m_lsn": 7, "m_op": "u", "m_source_ts_ms": 5, "__lsn": 8, "__op": "d"}
    found = change(flat(row, prefix="m_"))
    assert (found.op, found.version, found.occurred_ms) == (Op.ALIVE, Version(0, (7,)), 5)
    assert change(flat({"id": 10, "__deleted": "true", "m_op": "d"}, prefix="m_")).op is Op.DELETED, "it has none"
    told: Headers = [("m_scn", b"99"), ("m_op", b"d")]
    assert change(flat(None, told, prefix="m_")).version == Version(0, (99,))
    assert change(flat({"id": 10, "m_rev": 3}, prefix="m_", version=("m_rev",))).version == Version(0, (3,))
    assert refusal(flat({"id": 10, "m_connector": "sqlserver"}, prefix="m_")) == (Reason.BAD_ENVELOPE, "value")


def test_deletions_and_creations_of_sql_server_are_halves_where_they_tell_their_place() -> None:
    place = (0x27, 0x758, 5, 0x27, 0x758, 3, 1)
    for ends, row in (True, SQLSERVER | {"__op": "d", "__deleted": "true"}), (False, SQLSERVER | {"__op": "c"}):
        half = flat({"id": 10} | row, from_connector("sqlserver"))
        assert isinstance(half, Half)
        assert (half.ends, half.group, half.serial) == (ends, place[:-1], 1)
        assert half.change.version == Version(0, place)
        assert flat({"id": 10} | row) == half, "what tells the place tells the connector"
    headers: Headers = [("__op", b"d"), *((name, str(value).encode()) for name, value in SQLSERVER.items())]
    half = flat(None, headers)
    assert isinstance(half, Half)
    assert (half.ends, half.change.op, half.change.version) == (True, Op.DELETED, Version(0, place))
    assert change(flat({"id": 10, "__op": "u"} | SQLSERVER)).op is Op.ALIVE
    for name in SQLSERVER:
        row = {each: value for each, value in SQLSERVER.items() if each != name} | {"__op": "d"}
        assert refusal(flat({"id": 10} | row)) == (Reason.BAD_ENVELOPE, "value"), "it may be half of a key change"
    assert refusal(flat({"id": 10} | SQLSERVER)) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(flat({"id": 10, "__op": "d", "__x": 1} | SQLSERVER, version=("__x",))) == (
        Reason.BAD_ENVELOPE, "value"
    )  # fmt: skip


def test_a_key_change_of_sql_server_is_one_in_a_flattened_topic_too() -> None:
    def at_(offset: int, key: int, row: dict[str, object] | None) -> Record:
        value = None if row is None else text_of({"id": key} | row)
        return Record("t", 0, offset, 0, b'{"id":%d}' % key, value, ())

    d, c = {"__op": "d", "__deleted": "true"}, {"__op": "c", "__source_event_serial_no": 2}
    later = {"__source_commit_lsn": "00000027:00000758:0009", "__source_change_lsn": "00000027:00000758:0008"}
    records = [
        at_(0, 10, SQLSERVER | d),
        at_(1, 10, None),
        at_(2, 11, SQLSERVER | c),
        at_(3, 12, SQLSERVER | d | later),
    ]
    decode = reader()
    paired = pair(records, decode, is_over=True, is_apart=False)
    said = [(each.op, each.key, each.to) for each in paired.said if isinstance(each, ParentChange)]
    assert said == [(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None), (Op.DELETED, (12,), None)]
    again = change(decode(paired.records[0]))
    assert (again.op, again.to, again.version) == (Op.MOVED, (11,), Version(0, (0x27, 0x758, 5, 0x27, 0x758, 3, 2))), (
        "a half that comes back from a dead letter is what it was found to be"
    )


@pytest.mark.parametrize("value", [None, b"null", b'{"schema":{"type":"struct","fields":[]},"payload":null}',
                                   b'{ "payload": null, "schema": {"type": "struct"} }'])  # fmt: skip
def test_every_null_is_one(value: bytes | None) -> None:
    decode = reader()
    found = change(decode(record(value)))
    assert (found.op, found.key, found.to, found.version) == (Op.GONE, (10,), None, None)
    moved = change(decode(record(value, headers=new_key(b'{"id":11}'))))
    assert (moved.op, moved.to) == (Op.GONE, (11,))
    assert isinstance(decode(record(value, headers=new_key(b'{"id":10}'))), Ignored)
    assert refusal(decode(record(value, None))) == (Reason.NULL_KEY, "key")
    assert isinstance(reader(tombstones=Tombstones.IGNORE)(record(value)), Ignored)
    placed = change(decode(record(value, headers=[("__lsn", b"7"), ("__op", b"d")])))
    assert (placed.op, placed.version) == (Op.DELETED, Version(0, (7,)))
    placed = change(decode(record(value, headers=[("__lsn", b"7"), *new_key(b'{"id":11}')])))
    assert (placed.op, placed.to, placed.version) == (Op.MOVED, (11,), Version(0, (7,)))
    assert refusal(decode(record(value, headers=[("__lsn", b"x")]))) == (Reason.BAD_VERSION, "value")
    assert refusal(decode(record(value, headers=[("__op", b"c")]))) == (Reason.BAD_ENVELOPE, "header")


@pytest.mark.parametrize(
    "value",
    [
        b'{"schema":null,"payload":null}',  # no converter writes it: a row with two columns
        b'{"schema":"x","payload":null}',
        b'{"schema":{"type":"struct"},"payload":null,"id":1}',
        b'{"payload":null}',
    ],
)
def test_a_null_that_no_converter_writes_is_no_deletion(value: bytes) -> None:
    assert change(reader()(record(value))).op is Op.ALIVE
    assert change(reader(JSON)(record(value))).op is Op.ALIVE


@pytest.mark.parametrize(
    "value",
    [
        b"", b"x", b"5", b'"x"', b"[]", b"true", b'{"id":1', b'{"id":1,"id":1}', b"\xff", b"\0\0\0\0\1x", b'{"a":NaN}',
        b'{"schema":{"type":"string"},"payload":null}', b'{"schema":{"type":"int32"},"payload":5}',
        b'{"schema":{"type":"struct"},"payload":{"a":1,"a":2}}',
    ],
)  # fmt: skip
def test_a_value_that_is_no_row_is_a_dead_letter(value: bytes) -> None:
    for form in (FLAT, JSON):
        for _ in range(2):
            decoded = reader(form)(record(value))
            assert isinstance(decoded, Undecodable)
            assert decoded.stage == "value"


def test_a_field_named_twice_is_told_from_colons_in_texts() -> None:
    texts = b'"at":"03:04:05","b":"\\\\\\":","c":{"d:":"x"}'
    for form in (FLAT, JSON):
        assert change(reader(form)(record(b'{"id":10,' + texts + b"}"))).op is Op.ALIVE
        for repeated in (b'"id":10,' + texts + b',"at":"03:04:05"', texts.replace(b'"x"', b'"x","d:":"y"')):
            decoded = reader(form)(record(b"{" + repeated + b"}"))
            assert refusal(decoded) == (Reason.DUPLICATE_FIELD, "value")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"__op": "d"}, None),
        ({"__op": "d", "__deleted": True}, None),
        ({"__op": "d", "__deleted": "false"}, Reason.BAD_ENVELOPE),
        ({"__op": "c", "__deleted": "true"}, Reason.BAD_ENVELOPE),
        ({"__op": "x"}, Reason.UNKNOWN_OP),
        ({"__op": ""}, Reason.UNKNOWN_OP),
        ({"__op": "cr"}, Reason.UNKNOWN_OP),
        ({"__op": 5}, Reason.UNKNOWN_OP),
        ({"__deleted": "true", "__commit_lsn": "0:0:1"}, Reason.BAD_ENVELOPE),
        ({"__deleted": "true", "__connector": "sqlserver"}, Reason.BAD_ENVELOPE),
    ],
)
def test_a_row_in_doubt_is_a_dead_letter_and_never_a_deletion(row: dict[str, object], reason: Reason | None) -> None:
    decoded = flat({"id": 10} | row)
    if reason is None:
        assert change(decoded).op is Op.DELETED
    else:
        assert refusal(decoded) == (reason, "value")


@pytest.mark.parametrize(
    ("value", "repeated"),
    [
        (b'{"id":10,"__deleted":"true","__lsn":null}', True),
        (b'{"id":10,"__deleted":"true"', True),
        (b'{"id":10,"__deleted":"false","__lsn":null}', False),
        (b'{"id":10,"__lsn":null}', False),
        (b"x", False),
    ],
)
def test_the_null_record_after_a_rewritten_deletion_in_doubt_is_no_deletion_of_its_own(
    value: bytes, repeated: bool
) -> None:
    """A row that was refused may have been half of a key change; elsewhere a null record is the deletion itself."""
    decoded = reader()(record(value))
    assert isinstance(decoded, Undecodable)
    assert decoded.repeated is repeated


def from_connector(name: str) -> Headers:
    return [("__debezium.context.connectorName", name.encode())]


@pytest.mark.parametrize("row", [None, {"id": 10}, {"id": 10, "__deleted": "true", "__lsn": 5}])
def test_a_connector_whose_key_changes_are_others_is_refused_where_it_can_be_told(
    row: dict[str, object] | None,
) -> None:
    connector = "sqlserver"
    assert refusal(flat(row, from_connector(connector))) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(flat(row, from_connector(connector), version=("__x",))) == (Reason.BAD_ENVELOPE, "value")
    assert refusal(flat({"id": 10, "__connector": connector})) == (Reason.BAD_ENVELOPE, "value")
    assert isinstance(flat(row, from_connector("postgresql")), ParentChange)


@pytest.mark.parametrize(("kind", "key"), [(KeyType.DATE, b'{"id":0}'), (KeyType.BOOL, b'{"id":true}')])
def test_a_key_that_mysql_may_have_made_of_several_rows_is_refused_unless_another_connector_is_told(
    kind: KeyType, key: bytes
) -> None:
    for headers in ((), from_connector("mysql"), from_connector("mariadb")):
        for row in (None, {"a": 1}, {"__deleted": "true"}):
            assert refusal(flat(row, headers, key, kind=kind)) == (Reason.TYPE_MISMATCH, "key")
    told = from_connector("postgresql")
    assert [change(flat(row, told, key, kind=kind)).op for row in (None, {"a": 1})] == [Op.GONE, Op.ALIVE]
    assert change(flat({"__deleted": "true", "__lsn": 5}, (), key, kind=kind)).op is Op.DELETED


def test_a_header_and_a_row_that_name_two_ops_are_a_dead_letter() -> None:
    assert refusal(flat({"id": 10, "__op": "c"}, [("__op", b"d")])) == (Reason.BAD_ENVELOPE, "value")
    assert change(flat({"id": 10, "__op": "c"}, [("__op", b'"c"')])).op is Op.ALIVE
    assert change(flat({"id": 10}, [("__op", b"d")])).op is Op.DELETED
    assert refusal(flat({"id": 10}, [("__op", b"\xff")])) == (Reason.BAD_ENCODING, "header")
    assert isinstance(flat({"id": 10, "__op": "t"}), Ignored)


def test_the_condition_is_asked_of_rows_but_not_of_a_snapshots() -> None:
    marked = {"id": 10, "status": "gone", "__lsn": 7}
    rule = {"deleted_when": "after.status == 'gone'"}
    assert change(flat(marked, **rule)).op is Op.DELETED
    assert change(flat(marked | {"__op": "r"}, **rule)).op is Op.ALIVE
    arrived = change(flat(marked, [("__debezium.oldkey", b'{"id":9}')], **rule))
    assert (arrived.op, arrived.version) == (Op.DELETED, Version(0, (7, 1)))
    assert refusal(flat({"id": 10}, **rule)) == (Reason.BAD_ENVELOPE, "value")
    asks_op = {"deleted_when": "op == 'u' && after.status == 'gone'"}
    assert change(flat(marked | {"__op": "u"}, **asks_op)).op is Op.DELETED
    assert refusal(flat(marked, **asks_op)) == (Reason.BAD_ENVELOPE, "value")


def test_a_rule_may_name_the_field_that_places_a_flattened_row() -> None:
    rule = {"version": ("__source_scn",)}
    assert change(flat({"id": 10, "__source_scn": "99", "__lsn": 5}, **rule)).version == Version(0, (99,))
    assert refusal(flat({"id": 10, "__lsn": 5}, **rule)) == (Reason.BAD_VERSION, "value")
    assert refusal(flat({}, **rule)) == (Reason.BAD_VERSION, "value")
    assert change(flat(None, [("__source_scn", b"99")], **rule)).version == Version(0, (99,))
    assert change(flat(None, [("__lsn", b"5")], **rule)).op is Op.GONE


def test_a_compacted_table_is_placed_by_its_own_field() -> None:
    assert change(table({"meta": {"rev": 7}}, version=("meta", "rev"))).version == Version(0, (7,))
    assert refusal(table({"meta": 5}, version=("meta", "rev"))) == (Reason.BAD_VERSION, "value")
    gone = change(table(None, version=("meta", "rev")))
    assert (gone.op, gone.version) == (Op.GONE, None)
    assert isinstance(table(None, tombstones=Tombstones.IGNORE), Ignored)
    assert refusal(table(None, key=None)) == (Reason.NULL_KEY, "key")


@pytest.mark.parametrize(
    ("kind", "text", "key"),
    [
        (KeyType.STRING, b"007", "007"),
        (KeyType.STRING, b"null", "null"),
        (KeyType.STRING, b'"a"', '"a"'),
        (KeyType.STRING, b"", ""),
        (KeyType.STRING, b'{"id":1}', '{"id":1}'),
        (KeyType.INT64, b"-7", -7),
        (KeyType.INT32, b"0", 0),
        (KeyType.BOOL, b"true", True),
        (KeyType.OBJECTID, b"123456789012345678901234", "123456789012345678901234"),
        (KeyType.INT64, b"007", None),
        (KeyType.INT64, b"-0", None),
        (KeyType.INT64, b"7.0", None),
        (KeyType.INT64, b" 7", None),
        (KeyType.INT64, "\u0667".encode(), None),
        (KeyType.INT64, b"9223372036854775808", None),
        (KeyType.INT64, b"Struct{id=7}", None),
        (KeyType.STRING, b"Struct{id=7}", None),
        (KeyType.STRING, b"\xff", None),
        (KeyType.BOOL, b"1", None),
        (KeyType.NUMERIC, b"1e5", None),
        (KeyType.UUID, b"x", None),
    ],
)
def test_bare_text_is_the_whole_key_where_the_rule_says_so(kind: KeyType, text: bytes, key: object) -> None:
    decoded = flat(ROW, key=text, kind=kind, key_format=KeyFormat.STRING)
    if key is None:
        assert refusal(decoded)[1] == "key"
    else:
        assert change(decoded).key == (key,)


@pytest.mark.parametrize("raw", [b"", b"1", b"\0" * 4, b"\0" * 9, b'{"id":1}x'])
def test_a_long_has_eight_bytes(raw: bytes) -> None:
    assert refusal(flat(ROW, key=raw, key_format=KeyFormat.LONG)) == (Reason.TYPE_MISMATCH, "key")


def test_eight_bytes_of_json_are_no_long() -> None:
    """Every eight bytes are a long: the rule has to say that they are."""
    assert change(flat(ROW, key=b'{"id":1}')).key == (1,)
    assert change(flat(ROW, key=b'{"id":1}', key_format=KeyFormat.LONG)).key == (0x7B226964223A317D,)


# --- what comes of an old deletion that the source emits again ----------------------------------------------------


def outcomes(decode: Decoder, *records: tuple[object, Headers]) -> list[Outcome | None]:
    changes: list[ParentChange] = []
    for offset, (row, headers) in enumerate(records):
        read = Record("t", 0, offset, 0, b'{"id":10}', None if row is None else text_of(row), headers)
        changes.append(change(decode(read)))
    return settle(changes, {}).outcomes


def at(lsn: int, deleted: str = "false") -> tuple[object, Headers]:
    return {"id": 10, "rev": lsn, "__lsn": lsn, "__deleted": deleted}, ()


APPLIED, STALE, DUPLICATE = Outcome.APPLIED, Outcome.STALE, Outcome.DUPLICATE


def test_old_deletion_that_is_emitted_again_acts_only_where_it_tells_no_place() -> None:
    """Created at 10, deleted at 20, created again at 30; then the deletion once more."""
    deletion = at(20, "true")
    assert outcomes(reader(), at(10), deletion, at(30), deletion) == [None, APPLIED, None, STALE]
    told: tuple[object, Headers] = (None, [("__lsn", b"20"), ("__op", b"d")])
    assert outcomes(reader(), at(10), told, at(30), told) == [None, APPLIED, None, STALE]
    # A null record that tells nothing, and a row that is placed by its offset, count as new.
    null: tuple[object, Headers] = (None, ())
    assert outcomes(reader(), at(10), null, at(30), null) == [None, APPLIED, None, APPLIED]
    alive: tuple[object, Headers] = ({"id": 10, "__deleted": "false"}, ())
    dead: tuple[object, Headers] = ({"id": 10, "__deleted": "true"}, ())
    assert outcomes(reader(), alive, dead, alive, dead) == [None, APPLIED, None, APPLIED]


def test_old_object_that_is_emitted_again_is_stale_where_the_rule_names_a_version() -> None:
    live: tuple[object, Headers] = ({"rev": 30, "gone": False}, ())
    dead: tuple[object, Headers] = ({"rev": 20, "gone": True}, ())
    condition = "after.gone"
    assert outcomes(reader(JSON, deleted_when=condition, version=("rev",)), dead, live, dead) == [APPLIED, None, STALE]
    assert outcomes(reader(JSON, deleted_when=condition), dead, live, dead) == [APPLIED, None, APPLIED]


def test_the_null_record_of_a_placed_deletion_says_nothing_more() -> None:
    null: tuple[object, Headers] = (None, [("__lsn", b"20")])
    assert outcomes(reader(), at(10), at(20, "true"), null) == [None, APPLIED, DUPLICATE]
    assert outcomes(reader(), at(10), at(20, "true"), (None, ())) == [None, APPLIED, None]


def test_an_update_between_two_null_records_keeps_the_second_one_a_deletion() -> None:
    """Compaction took the creation between them."""
    null: tuple[object, Headers] = (None, ())
    update: tuple[object, Headers] = ({"id": 10, "__op": "u", "__lsn": 30}, ())
    assert outcomes(reader(), null, update, null) == [APPLIED, None, APPLIED]
