"""Messages of Qlik Replicate, CONSTRUCTED from the vendor's documentation: no record of it was captured.

The envelope, the headers and the forms of `changeSequence`, `timestamp` and numbers as text are those of its help and
of examples in its community.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from integrity.core.change import Cell, Op, ParentChange, Version
from integrity.core.decode.record import Record, Undecodable
from integrity.errors import Reason
from tests.golden.histories import Expected
from tests.golden.messages import decoder, seen

QLIK = ("format: qlik", "key: {id: int64}")
IN_ROW = (*QLIK, "key_from: payload")


def message(operation: str, data: Any, before: Any = None, sequence: object = 5, **headers: object) -> dict[str, Any]:
    text = f"2023091103232500{sequence:019d}" if type(sequence) is int else sequence
    return {
        "data": data,
        "beforeData": before,
        "headers": {
            "operation": operation,
            "changeSequence": text,
            "timestamp": "2023-09-11T03:23:25.000",
            "streamPosition": "00000000.00bb2531.00000001.0000.02.0000:154.6963.16",
            "transactionId": "00000000000000000000000000060008",
            "changeMask": "02",
            "columnMask": "07",
            "transactionEventCounter": 1,
            "transactionLastEvent": True,
            **headers,
        },
    }


def wrapped(inner: object, type_: str = "DT") -> dict[str, Any]:
    return {
        "magic": "atMSG",
        "type": type_,
        "headers": None,
        "messageSchemaId": None,
        "messageSchema": None,
        "message": inner,
    }


def record(value: object, key: bytes | None = b'{"id":7}') -> Record:
    data = value if value is None or type(value) is bytes else json.dumps(value).encode()
    return Record("customers", 3, 9, 1_700_000_000_000, key, data, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [wrapped, lambda inner: inner, lambda inner: {"message": inner}])
def test_each_operation_says_what_it_did(wrap: Any) -> None:
    read = decoder(*QLIK)
    row, other = {"id": 7, "name": "x"}, {"id": 8, "name": "x"}
    assert seen(read(record(wrap(message("INSERT", row))))) == Expected(Op.ALIVE, (7,))
    assert seen(read(record(wrap(message("UPDATE", row, {"id": 7, "name": "o"}))))) == Expected(Op.ALIVE, (7,))
    assert seen(read(record(wrap(message("UPDATE", row))))) == Expected(Op.ALIVE, (7,))
    assert seen(read(record(wrap(message("UPDATE", other, row))))) == Expected(Op.MOVED, (7,), (8,))
    assert seen(read(record(wrap(message("DELETE", row))))) == Expected(Op.DELETED, (7,))
    assert seen(read(record(wrap(message("DELETE", None, row))))) == Expected(Op.DELETED, (7,))


def test_metadata_and_rows_of_the_full_load_say_nothing_of_a_key() -> None:
    metadata = wrapped({"schemaId": "1", "lineage": {"table": "customers"}, "tableStructure": {}}, "MD")
    assert seen(decoder(*QLIK)(record(metadata, key=b"customers"))) == Expected("metadata")
    refresh = record(wrapped(message("REFRESH", {"id": 7, "name": "x"}, sequence="")))
    assert seen(decoder(*QLIK)(refresh)) == Expected("r")
    copied = decoder(*QLIK, copied=("name",))(refresh)
    assert isinstance(copied, ParentChange)
    assert (copied.op, copied.version, copied.row) == (Op.ALIVE, None, {"name": Cell("x")})


def test_change_is_placed_by_its_sequence_which_compares_as_a_number() -> None:
    def of(sequence: object) -> ParentChange:
        change = decoder(*QLIK, "epoch: 1")(record(message("DELETE", {"id": 7}, sequence=sequence)))
        assert isinstance(change, ParentChange)
        return change

    change = of("20230911032325000000000000000000005")
    assert change.version == Version(1, (20230911032325000, 5))
    assert change.occurred_ms == 1_694_402_605_000
    versions = [of(text).version for text in ("100", "9" * 18, "1" + "0" * 18, "20230911032325000000000000000000005")]
    assert versions == sorted(versions)  # type: ignore[type-var]


@pytest.mark.parametrize("sequence", [None, "", 5.5, "x", "-1", "1" * 37])
def test_change_without_a_sequence_is_a_dead_letter(sequence: object) -> None:
    given = record(message("DELETE", {"id": 7}, sequence=sequence))
    assert seen(decoder(*QLIK)(given)) == Expected(Reason.BAD_VERSION)


def test_key_change_is_believed_under_the_old_key_only() -> None:
    """Under the new one nothing orders it among the old key's events: a later deletion may be read first."""
    moves = message("UPDATE", {"id": 8}, {"id": 7})
    assert seen(decoder(*QLIK)(record(moves, b'{"id":8}'))) == Expected(Reason.BAD_ENVELOPE)
    assert seen(decoder(*IN_ROW)(record(moves, b"shop.customers"))) == Expected(Reason.BAD_ENVELOPE)


def test_key_may_be_in_the_row_and_a_number_may_be_text() -> None:
    row = {"id": "2", "name": "test"}
    in_row = decoder("format: qlik", "key: {id: numeric}", "key_from: payload")
    assert seen(in_row(record(message("DELETE", row), b"shop.customers"))) == Expected(Op.DELETED, (2,))
    assert seen(decoder(*IN_ROW)(record(message("DELETE", row), b"x"))) == Expected(Reason.TYPE_MISMATCH)
    assert seen(decoder(*IN_ROW)(record(message("DELETE", {"id": 2}), b"x"))) == Expected(Op.DELETED, (2,))
    assert seen(decoder(*IN_ROW)(record(message("DELETE", {"id": 2}), None))) == Expected(Reason.NULL_KEY)
    assert seen(decoder(*IN_ROW)(record(message("DELETE", None), b"x"))) == Expected(Reason.MISSING_KEY)


def test_null_record_is_a_deletion_unless_it_follows_what_was_refused() -> None:
    assert seen(decoder(*QLIK)(record(None))) == Expected(Op.GONE, (7,))
    assert seen(decoder(*QLIK, "tombstones: ignore")(record(None))) == Expected("tombstone")
    assert seen(decoder(*IN_ROW)(record(None))) == Expected(Reason.MISSING_KEY)
    refused = decoder(*QLIK)(record(message("DELETE", {"id": 7}, sequence=None)))
    assert isinstance(refused, Undecodable)
    assert refused.repeated


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", Reason.EMPTY_VALUE),
        (b"{", Reason.BAD_JSON),
        (b"[1]", Reason.BAD_ENVELOPE),
        ({"id": 7}, Reason.BAD_ENVELOPE),
        (wrapped("AAAA"), Reason.BAD_ENVELOPE),
        (wrapped({"data": {"id": 7}}), Reason.BAD_ENVELOPE),
        ({"headers_operation": "DELETE", "id": 7}, Reason.BAD_ENVELOPE),
        (message("TRUNCATE", None), Reason.UNKNOWN_OP),
        (message("delete", None), Reason.UNKNOWN_OP),
        (message("INSERT", None), Reason.BAD_ENVELOPE),
        (message("DELETE", "7"), Reason.BAD_ENVELOPE),
        (message("UPDATE", {"id": 8}, {"id": None}), Reason.NULL_KEY),
    ],
)
def test_what_is_no_data_message_beyond_doubt_is_a_dead_letter(value: object, reason: Reason) -> None:
    assert seen(decoder(*QLIK)(record(value))) == Expected(reason)
