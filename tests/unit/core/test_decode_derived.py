"""Derived events: what is written is read back, and nothing else is."""

from __future__ import annotations

import json

import pytest

from integrity.core.change import Op, Version
from integrity.core.decode.derived import derived_decoder, derived_key, derived_value
from integrity.core.decode.record import Limits, Record, Undecodable
from integrity.core.keys import KeySpec, KeyType
from integrity.errors import Reason

SPEC = KeySpec((("tenant", KeyType.STRING), ("id", KeyType.INT64)))
DECODE = derived_decoder("order", SPEC, Limits())
KEY, TO = ("eu", 7), ("uk", 7)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(op: Op = Op.MOVED, to: tuple[object, ...] | None = TO) -> Record:
    value = derived_value(
        "order", op, KEY, to, Version(0, (3,)), "a/0/1/customer.orders/[7]", "a/0/1", 1_700_000_000_000
    )  # type: ignore[arg-type]
    return Record("integrity.events.order", 1, 5, 99, derived_key(SPEC, KEY), value, (("traceparent", TRACE.encode()),))


@pytest.mark.parametrize(("op", "to"), [(Op.DELETED, None), (Op.MOVED, TO), (Op.ARRIVED, None)])
def test_what_is_written_is_read_back(op: Op, to: tuple[object, ...] | None) -> None:
    change = DECODE(record(op, to))
    assert not isinstance(change, Undecodable)
    assert change[:5] == ("order", op, KEY, to, Version(0, (3,)))
    assert (change.origin.event_id, change.occurred_ms, change.traceparent) == (  # type: ignore[union-attr]
        "integrity.events.order/1/5",
        1_700_000_000_000,
        TRACE,
    )


def test_key_of_a_record_is_an_object_of_the_keys_fields() -> None:
    assert record().key == b'{"tenant":"eu","id":7}'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entity": "item"}, Reason.BAD_ENVELOPE),
        ({"op": "moved"}, Reason.BAD_ENVELOPE),
        ({"op": "deleted"}, Reason.BAD_ENVELOPE),
        ({"to": None}, Reason.BAD_ENVELOPE),
        ({"to": ["eu", 7]}, Reason.BAD_ENVELOPE),
        ({"key": ["eu", "7"]}, Reason.TYPE_MISMATCH),
        ({"key": ["eu"]}, Reason.TYPE_MISMATCH),
        ({"key": ["eu", 8]}, Reason.BAD_ENVELOPE),
        ({"version": [0, -1]}, Reason.BAD_VERSION),
        ({"version": [0]}, Reason.BAD_ENVELOPE),
        ({"version": [0, 1.5]}, Reason.BAD_ENVELOPE),
        ({"occurred_ms": 10**18}, Reason.BAD_ENVELOPE),
        ({"more": 1}, Reason.BAD_ENVELOPE),
    ],
)
def test_what_this_program_would_not_have_written_is_refused(change: dict[str, object], reason: Reason) -> None:
    value = record().value
    assert value is not None
    decoded = DECODE(record()._replace(value=json.dumps(json.loads(value) | change, separators=(",", ":")).encode()))
    assert isinstance(decoded, Undecodable)
    assert decoded.reason is reason


@pytest.mark.parametrize(("value", "reason"), [(None, Reason.EMPTY_VALUE), (b"{", Reason.BAD_JSON), (b"\xff", None)])
def test_what_is_no_json_is_refused(value: bytes | None, reason: Reason | None) -> None:
    decoded = DECODE(record()._replace(value=value))
    assert isinstance(decoded, Undecodable)
    assert reason is None or decoded.reason is reason


def test_record_under_another_key_is_refused() -> None:
    assert isinstance(DECODE(record()._replace(key=b'{"tenant":"eu","id":8}')), Undecodable)
