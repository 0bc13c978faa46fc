"""What the real AvroConverter wrote is read as what the JsonConverter wrote of the same statements (wire/README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Ignored
from integrity.core.decode.wire import SchemaRef, WireSchema, unwrapped, wire_schema
from integrity.core.doctor import TopicLook
from integrity.core.keys import KeyType
from integrity.core.propose import propose
from integrity.core.rules.model import Parent, Tombstones
from tests.golden.records import load, rule

WIRE = Path(__file__).parent / "wire"
KEYS = {
    "customers": {"id": KeyType.INT64},
    "composite": {"tenant": KeyType.INT32, "code": KeyType.STRING},
    "numkeys": {"id": KeyType.NUMERIC},
    "uuids": {"id": KeyType.UUID},
    "times": {"id": KeyType.TIMESTAMP},
}
FIELDS = ("id", "email", "name", "amount", "free", "at", "day", "flag", "raw", "tags", "note", "tenant", "code")


@cache
def schemas(file: str) -> dict[SchemaRef, WireSchema]:
    found = json.loads((WIRE / f"{file}.schemas.json").read_text())
    return {int(ref): wire_schema(each["kind"], each["text"], each["references"]) for ref, each in found.items()}


def parent(table: str, form: str) -> Parent:
    made = rule(Tombstones.DELETE, **KEYS[table])
    assert made.events is not None
    return replace(made, events=replace(made.events, format=form))


@pytest.mark.parametrize("copied", [None, FIELDS], ids=["events", "copies"])
@pytest.mark.parametrize("table", KEYS)
@pytest.mark.parametrize(("suffix", "form"), [("", "debezium"), ("_flat", "debezium-flat")])
def test_a_record_says_the_same_as_the_one_in_json(
    suffix: str, form: str, table: str, copied: tuple[str, ...] | None
) -> None:
    of_json = decoder_for(parent(table, form), copied=copied)
    of_avro = decoder_for(parent(table, form), copied=copied, schemas=schemas(f"avro{suffix}"))
    pairs = [
        pair
        for pair in zip(load(f"avro{suffix}", WIRE), load(f"json{suffix}", WIRE), strict=True)
        if pair[0].topic.endswith(f".{table}")
    ]
    assert len(pairs) >= 2
    for avro, in_json in pairs:
        assert avro.topic.split(".")[1:] == in_json.topic.split(".")[1:] and avro.offset == in_json.offset
        said = of_avro(avro)
        expected = of_json(in_json._replace(topic=avro.topic, timestamp_ms=avro.timestamp_ms))
        if avro.offset == 0 and table == "customers":  # the snapshot's row: each connector took its own
            assert isinstance(said, ParentChange) and isinstance(expected, ParentChange)
            said, expected = (each._replace(version=None, occurred_ms=0) for each in (said, expected))
        assert said == expected, avro


def test_the_changes_of_the_statements_are_told() -> None:
    """By the statements, not by another decoder."""
    known = schemas("avro")
    told: dict[str, list[tuple[Op, object, object]]] = {table: [] for table in KEYS}
    for table in KEYS:
        decode = decoder_for(parent(table, "debezium"), schemas=known)
        for record in load("avro", WIRE):
            if record.topic == f"avro.public.{table}" and record.value is not None:
                said = decode(record)
                assert isinstance(said, ParentChange | Ignored)
                if isinstance(said, ParentChange) and said.op in (Op.DELETED, Op.MOVED):
                    told[table].append((said.op, said.key, said.to))
    deleted, moved = Op.DELETED, Op.MOVED
    assert told["customers"] == [(moved, (2,), (20,)), (deleted, (1,), None), (deleted, (9007199254740993,), None)]
    name = "ünï-日本-😀"
    assert told["composite"] == [
        (moved, (1, "A"), (1, "B")),
        (deleted, (-2147483648, name), None),
        (deleted, (1, "B"), None),
    ]
    assert told["numkeys"] == [
        (moved, (Decimal(1),), (Decimal("2.5"),)),
        (deleted, (Decimal("123456789012345678.9"),), None),
        (deleted, (Decimal("-0.01"),), None),
        (deleted, (Decimal("2.5"),), None),
    ]
    assert [key for _, key, _ in told["uuids"]] == [(UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001"),)]
    assert len(told["times"]) == 2


@pytest.mark.parametrize("table", KEYS)
@pytest.mark.parametrize(("suffix", "form"), [("", "debezium"), ("_flat", "debezium-flat")])
def test_init_proposes_the_rule_of_the_table(suffix: str, form: str, table: str) -> None:
    known = schemas(f"avro{suffix}")
    topic = f"avro{suffix}.public.{table}"
    last = [unwrapped(record, known) for record in load(f"avro{suffix}", WIRE) if record.topic == topic]
    found = propose(TopicLook(topic, 1, {}, last), 2_000_000_000_000)
    assert found.events is not None
    assert found.events["format"] == form
    assert found.events["key"] == {name: kind.value for name, kind in KEYS[table].items()}
    assert "types_guessed" not in {remark.code for remark in found.remarks}
