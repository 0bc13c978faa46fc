"""Audit records, and what the trail does when nobody takes them: no broker is asked in this file."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from integrity.core.batch import Batch
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.decode.record import Record
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import (
    Cascade,
    Dependent,
    Events,
    Parent,
    Place,
    RuleSet,
    Target,
    TargetKind,
    Tombstones,
)
from integrity.errors import Reason
from integrity.kafka.audit import AuditEncoder, AuditRecord, AuditTrail
from integrity.kafka.dead_letters import DeadLetter, Stage, dead_letter_id
from integrity.kafka.producer import OutgoingRecord
from integrity.ports import Deadline

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
VERSION = Version(0, (25165824,))


def rule_set(*key: tuple[str, KeyType]) -> RuleSet:
    spec = KeySpec(key)
    place = Place("customer.yaml", 1, 1)
    dependent = Dependent(
        id="customer.orders",
        name="orders",
        store="orders_db",
        target=Target(TargetKind.TABLE, "public.orders"),
        references={f"customer_{name}": name for name in spec.names},
        on_delete=Cascade(),
        on_update=Cascade(),
        where={},
        place=place,
    )
    events = Events(("shop.public.customers",), "debezium", spec, Tombstones.DELETE)
    parent = Parent("customer", events, (dependent,), place)
    return RuleSet((parent,), "abcdef012345", {"shop.public.customers": parent}, {"customer": parent})


def change(key: Key, *, offset: int = 41, version: Version | None = VERSION) -> ParentChange:
    origin = Origin("shop.public.customers", 3, offset, 1_772_366_399_000)
    return ParentChange("customer", Op.DELETED, key, None, version, origin, 1_772_366_398_000)


def encoded(
    changes: Sequence[ParentChange], rules: RuleSet, hmac_key: bytes | None = None, partitions: int = 3
) -> list[OutgoingRecord]:
    batch = Batch(tuple(changes), {}, 1_772_366_400_123, TRACE_ID)
    effects = [Effect(i, "customer.orders", "cascade", Outcome.APPLIED, 10) for i in range(len(changes))]
    return list(AuditEncoder(rules, "integrity.audit", hmac_key).enforced(batch, effects, 12.34567, partitions))


def only(records: list[OutgoingRecord]) -> dict[str, Any]:
    assert len(records) == 1
    assert records[0].value is not None
    found: dict[str, Any] = json.loads(records[0].value)
    return found


def test_an_audit_record_has_exactly_the_fields_of_the_contract() -> None:
    rules = rule_set(("id", KeyType.INT64))
    assert only(encoded([change((9007199254740993,))], rules)) == {
        "id": dead_letter_id("shop.public.customers", 3, 41, "customer.orders", "orders_db"),
        "at": "2026-03-01T12:00:00.123Z",
        "entity": "customer",
        "op": "deleted",
        "key": {"id": 9007199254740993},
        "version": "0:25165824",
        "topic": "shop.public.customers",
        "partition": 3,
        "offset": 41,
        "dependent": "customer.orders",
        "store": "orders_db",
        "action": "cascade",
        "outcome": "applied",
        "rows": 10,
        "took_ms": 12.346,
        "trace_id": TRACE_ID,
        "rules": "abcdef012345",
    }


def test_every_type_of_key_is_written_exactly() -> None:
    types = [(kind.value, kind) for kind in KeyType]
    key: Key = (
        2147483647,
        -9223372036854775808,
        Decimal("12345678901234567890.5"),
        'ä\n"',
        UUID("0af76519-16cd-43dd-8448-eb211c80319c"),
        True,
        datetime(2026, 3, 1).date(),
        datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC),
        b"\x00\xff",
        "65f0c0ffee65f0c0ffee65f0",
    )
    assert only(encoded([change(key)], rule_set(*types)))["key"] == {
        "int32": 2147483647,
        "int64": -9223372036854775808,
        "numeric": "12345678901234567890.5",
        "string": 'ä\n"',
        "uuid": "0af76519-16cd-43dd-8448-eb211c80319c",
        "bool": True,
        "date": "2026-03-01",
        "timestamp": "2026-03-01T12:00:00.000001Z",
        "bytes": "AP8=",
        "objectid": "65f0c0ffee65f0c0ffee65f0",
    }


def test_a_key_that_json_cannot_hold_does_not_end_the_audit() -> None:
    rules = rule_set(("a", KeyType.STRING), ("b", KeyType.NUMERIC))
    assert only(encoded([change(("\ud800", 2**70))], rules))["key"] == {"a": "\\ud800", "b": str(2**70)}


def test_a_change_without_a_version_has_a_null_one() -> None:
    assert only(encoded([change((1,), version=None)], rule_set(("id", KeyType.INT64))))["version"] is None


def test_hashed_keys_leave_no_trace_of_the_key() -> None:
    record = encoded([change(("jane@example.com",))], rule_set(("email", KeyType.STRING)), b"secret")[0]
    assert record.value is not None and record.key is not None
    expected = hmac.new(b"secret", b'customer {"email":"jane@example.com"}', hashlib.sha256).hexdigest()
    assert json.loads(record.value)["key_hmac"] == expected
    assert "key" not in json.loads(record.value)
    assert record.key == expected.encode()
    assert b"jane" not in record.value


def test_records_of_one_key_share_key_and_partition_and_others_spread() -> None:
    rules = rule_set(("id", KeyType.INT64))
    records = encoded([change((i % 100,), offset=i) for i in range(300)], rules, partitions=6)
    places = {(record.key, record.partition) for record in records}
    assert len(places) == 100
    assert {partition for _, partition in places} == set(range(6))


def letter(offset: int = 5) -> DeadLetter:
    record = Record("shop.public.customers", 0, offset, 1, b"key", b"{", ())
    return DeadLetter(
        record, Reason.BAD_JSON, "not JSON", "customer", "*", "orders_db", 1, Stage.VALUE, "abcdef012345", 1000
    )


@pytest.mark.parametrize(("hmac_key", "there", "absent"), [(None, "key", "key_hmac"), (b"s", "key_hmac", "key")])
def test_what_could_not_be_decoded_is_null(hmac_key: bytes | None, there: str, absent: str) -> None:
    encoder = AuditEncoder(rule_set(("id", KeyType.INT64)), "integrity.audit", hmac_key)
    found = only(list(encoder.undecoded([letter()], TRACE_ID, 3)))
    assert {name for name, value in found.items() if value is None} == {"op", there, "version", "action"}
    assert absent not in found
    assert (found["id"], found["outcome"], found["dependent"]) == (letter().id, "dead_lettered", "*")


async def test_a_full_queue_drops_and_counts_the_newest() -> None:
    dropped: list[int] = []
    trail = AuditTrail(
        {"bootstrap_servers": "nowhere.invalid:1"},
        rule_set(("id", KeyType.INT64)),
        topic="integrity.audit",
        on_dropped=dropped.append,
        queue_records_max=5,
    )
    batch = Batch((change((1,)),), {}, 0)
    effect = Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 1)
    trail.write(batch, [], 1.0)
    trail.write(batch, [effect] * 4, 1.0)
    trail.write(batch, [effect] * 2, 1.0)
    trail.write_dead_letters([letter()])
    trail.write_dead_letters([letter()])
    assert dropped == [2, 1]
    await trail.close(Deadline.after(0))
    assert dropped == [2, 1, 5]
    trail.write(batch, [effect], 1.0)
    assert dropped == [2, 1, 5, 1]


async def test_a_batch_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    dropped: list[int] = []
    trail = AuditTrail({}, rule_set(("id", KeyType.INT64)), topic="a", on_dropped=dropped.append, queue_records_max=5)
    effect = Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 1)
    trail.write(Batch((change((1,)),), {}, 0), [effect] * 9, 1.0)
    assert dropped == []


def test_every_audit_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text()
    audit = text.split("## Audit")[1].split("## Dead letters")[0]
    documented = {
        name.strip(" `")
        for line in audit.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    assert documented == set(AuditRecord.__struct_fields__)
