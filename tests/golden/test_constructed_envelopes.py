"""CONSTRUCTED records of connectors that nothing was captured of: SQL Server, Oracle and Db2.

Made by hand from the vendor's documentation and source of the `source` block, not seen on the wire. What they prove is
how such a record is read, not that a connector writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode.debezium import Debezium
from integrity.core.decode.record import Decoded, Half, Headers, Ignored, Limits, Record, Undecodable
from integrity.errors import Reason
from tests.golden.histories import BIGINT
from tests.golden.records import decode, rule

SQLSERVER: Mapping[str, object] = {
    "version": "3.5.0.Final", "connector": "sqlserver", "name": "server1", "ts_ms": 1795474605000, "snapshot": "false",
    "db": "testDB", "sequence": None, "schema": "dbo", "table": "customers", "change_lsn": "00000027:00000758:0003",
    "commit_lsn": "00000027:00000758:0005", "event_serial_no": 1,
}  # fmt: skip
ORACLE: Mapping[str, object] = {
    "version": "3.5.0.Final", "connector": "oracle", "name": "server1", "ts_ms": 1795474605000, "snapshot": "false",
    "db": "ORCLPDB1", "schema": "DEBEZIUM", "table": "CUSTOMERS", "txId": "6.28.807", "scn": "2122185",
    "commit_scn": "2122180", "rs_id": "001234.00012345.0124", "ssn": 1, "redo_thread": 1, "lcr_position": None,
}  # fmt: skip
DB2: Mapping[str, object] = {
    "version": "3.5.0.Final", "connector": "db2", "name": "myconnector", "ts_ms": 1795474605000, "snapshot": "false",
    "db": "mydatabase", "schema": "MYSCHEMA", "table": "CUSTOMERS",
    "change_lsn": "00000000:00000000:00000000009a3fb1", "commit_lsn": "00000000:00000000:0000000000bd1a2c",
}  # fmt: skip
OTHER: Mapping[str, object] = {"connector": "informix", "ts_ms": 5}


def record(op: str | None, source: Mapping[str, object], key: bytes = b'{"id":10}', headers: Headers = ()) -> Record:
    value = None if op is None else json.dumps({"before": None, "after": None, "source": source, "op": op}).encode()
    return Record("server1.customers", 0, 42, 1795474605100, key, value, headers)


def version(source: Mapping[str, object], op: str = "d") -> Version | None:
    decoded = decode(record(op, source), **BIGINT)
    assert isinstance(decoded, ParentChange), decoded
    return decoded.version


def reason(decoded: Decoded) -> Reason:
    assert isinstance(decoded, Undecodable), decoded
    return decoded.reason


def test_constructed_oracle_deletions_are_placed_by_scn_and_what_orders_the_changes_of_one() -> None:
    assert version(ORACLE) == Version(0, (2122185, 0x1234, 0x12345, 0x124, 1))
    assert version(ORACLE | {"rs_id": " 0x00009b.0000a4e4.0010 "}) == Version(0, (2122185, 0x9B, 0xA4E4, 0x10, 1))
    assert version(ORACLE | {"scn": 2122185, "ssn": None}) == Version(0, (2122185, 0x1234, 0x12345, 0x124, 0))
    xstream = ORACLE | {"rs_id": None, "ssn": None, "lcr_position": "00000000002061c90000000100000001"}
    assert version(xstream) == Version(0, (2122185, 0, 0x2061C9, 1, 1))
    assert version(ORACLE | {"rs_id": None, "scn_idx": 7}) == Version(0, (2122185, 7))
    assert version(ORACLE | {"rs_id": None}) == Version(0, (2122185,))


def test_constructed_db2_deletions_are_placed_by_the_log_of_their_commit_then_of_their_change() -> None:
    assert version(DB2) == Version(0, (0, 0, 0, 0xBD1A2C, 0, 0, 0, 0x9A3FB1))


def ascending(sources: Sequence[tuple[str, Mapping[str, object]]]) -> bool:
    versions = [version(source, op) for op, source in sources]
    return all(a is not None and b is not None and a < b for a, b in pairwise(versions))


def test_constructed_places_of_one_key_ascend_as_its_source_wrote_them() -> None:
    assert ascending(
        [
            ("r", ORACLE | {"scn": "999", "rs_id": None, "ssn": None}),
            ("d", ORACLE | {"scn": "999", "rs_id": "000009.0000ffff.0010"}),
            ("c", ORACLE | {"scn": "1000", "rs_id": "000009.00010000.0010"}),
            ("d", ORACLE | {"scn": "1000", "rs_id": "000009.00010000.0010", "ssn": 2}),
            ("c", ORACLE | {"scn": "1000", "rs_id": "00000a.00000001.0010", "commit_scn": "7"}),
        ]
    )
    assert ascending(
        [
            ("d", DB2 | {"commit_lsn": "00000000:00000000:00000000ffffffff"}),
            ("c", DB2 | {"commit_lsn": "00000000:00000000:0000000100000000"}),
            ("d", DB2 | {"commit_lsn": "00000000:00000000:0000000100000000", "change_lsn": DB2["commit_lsn"]}),
            ("r", DB2 | {"commit_lsn": "00000000:00000000:0000000100000000", "change_lsn": None}),
        ]
    )


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        (ORACLE, {"scn": None}),
        (ORACLE, {"scn": "12:1:0a"}),
        (ORACLE, {"scn": "-1"}),
        (ORACLE, {"scn": 1.5}),
        (ORACLE, {"scn": str(2**63)}),
        (ORACLE, {"rs_id": "1.2"}),
        (ORACLE, {"rs_id": 5}),
        (ORACLE, {"ssn": "x"}),
        (ORACLE, {"ssn": -1}),
        (ORACLE, {"rs_id": None, "lcr_position": "xyz"}),
        (ORACLE, {"rs_id": None, "lcr_position": "0" * 1000}),
        (ORACLE, {"rs_id": None, "scn_idx": "a"}),
        (DB2, {"commit_lsn": None}),
        (DB2, {"change_lsn": None}),
        (DB2, {"commit_lsn": "NULL"}),
        (DB2, {"commit_lsn": "00000027:00000758"}),
        (DB2, {"commit_lsn": 5}),
        (DB2, {"change_lsn": "00000027:00000758:000g"}),
        (SQLSERVER, {"commit_lsn": None}),
        (SQLSERVER, {"change_lsn": "NULL"}),
        (SQLSERVER, {"event_serial_no": None}),
        (SQLSERVER, {"event_serial_no": 1.5}),
    ],
)
def test_constructed_change_without_a_sound_place_is_a_dead_letter(
    source: Mapping[str, object], changed: Mapping[str, object]
) -> None:
    for op in ("d", "c"):
        assert reason(decode(record(op, source | changed), **BIGINT)) is Reason.BAD_VERSION
    moved = record("d", source | changed, headers=(("__debezium.newkey", b'{"id":11}'),))
    assert reason(decode(moved, **BIGINT)) is Reason.BAD_VERSION


def test_constructed_snapshot_read_without_a_place_says_nothing() -> None:
    for source in (ORACLE | {"scn": None}, DB2 | {"commit_lsn": None}):
        assert isinstance(decode(record("r", source), **BIGINT), Ignored)


@pytest.mark.parametrize("source", [ORACLE, DB2])
def test_constructed_key_change_is_told_by_its_headers(source: Mapping[str, object]) -> None:
    d = decode(record("d", source, headers=(("__debezium.newkey", b'{"id":11}'),)), **BIGINT)
    c = decode(record("c", source, b'{"id":11}', (("__debezium.oldkey", b'{"id":10}'),)), **BIGINT)
    assert isinstance(d, ParentChange)
    assert isinstance(c, ParentChange)
    assert (d.op, d.key, d.to, c.op, c.key) == (Op.MOVED, (10,), (11,), Op.ARRIVED, (11,))
    assert d.version == c.version


def test_constructed_sql_server_events_are_placed_by_the_log_of_their_commit_then_of_their_change() -> None:
    """A deletion or creation may be half of a key change there: nothing marks one."""
    for op in ("d", "c"):
        half = decode(record(op, SQLSERVER), **BIGINT)
        assert isinstance(half, Half)
        assert half.change.version == Version(0, (0x27, 0x758, 5, 0x27, 0x758, 3, 1))
        assert half.ends == (op == "d")
    assert version(SQLSERVER | {"change_lsn": None}, "r") == Version(0, (0x27, 0x758, 5, 2**32))


def test_constructed_deletion_of_sql_server_is_a_half_in_the_wire_format_too() -> None:
    """There its `op` and `source` are read without the rest."""
    half = Debezium(rule(**BIGINT), Limits(), None).decode_told(
        record("d", SQLSERVER), {"op": "d", "source": SQLSERVER}
    )
    assert half == decode(record("d", SQLSERVER), **BIGINT)
    assert isinstance(half, Half)


def test_constructed_null_record_of_sql_server_alone_is_refused() -> None:
    """It may be what compaction has left of a deletion, or of half a key change."""
    headers = (("__debezium.context.connectorName", b"sqlserver"),)
    assert reason(decode(record(None, {}, headers=headers), **BIGINT)) is Reason.BAD_ENVELOPE


def test_constructed_connector_that_nobody_knows_is_placed_by_its_offset() -> None:
    assert version(OTHER) == version(OTHER, "r") == Version(0, (42,))
