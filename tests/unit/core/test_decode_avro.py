"""Avro read strictly: what it gives, what it refuses, and what a few bytes may not stand for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integrity.core.decode.avro import AvroFault, AvroSchema, SchemaFault, connect_schema
from integrity.errors import Reason
from tests.wire import written

NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}


def schema(definition: Any, *references: Any) -> AvroSchema:
    return AvroSchema(json.dumps(definition), [json.dumps(each) for each in references])


def record(name: str = "R", **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": f, "type": t} for f, t in fields.items()]}


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("null", None),
        ("boolean", True),
        *[("long", n) for n in (0, -1, 63, 64, -64, -65, 2**31, 1795470742997488000, 2**63 - 1, -(2**63))],
        *[("int", n) for n in (2**31 - 1, -(2**31))],
        *[("string", text) for text in ("", "a\u0000b", "é" * 100, "x" * 20_000)],
        ("bytes", b"\xff\x00" * 100),
        ({"type": "fixed", "name": "F", "size": 3}, b"abc"),
        ({"type": "enum", "name": "E", "symbols": ["A", "B"]}, "B"),
        ({"type": "array", "items": {"type": "array", "items": "long"}}, [[1, 2], [], [3]]),
        ({"type": "map", "values": ["null", "string"]}, {"a": None, "b": "c"}),
        (record(a=["null", "long"], b=record("S", c=["string", "null"])), {"a": 5, "b": {"c": None}}),
        (NODE, {"next": {"next": {"next": None}}}),
        ("double", 1e300),
        ("float", 0.1),
    ],
)
def test_what_another_writer_wrote_is_read_exactly(type_: Any, value: object) -> None:
    data = written(type_, value)
    found = schema(type_).read(data, 0)
    assert found == value and type(found) is type(value)
    for end in range(len(data) if len(data) < 500 else 0):
        with pytest.raises(AvroFault):
            schema(type_).read(data[:end], 0)
    with pytest.raises(AvroFault, match="more bytes"):
        schema(type_).read(data + b"\0", 0)


@pytest.mark.parametrize(
    ("type_", "data", "reason"),
    [
        ("boolean", b"\x02", None),
        ("int", b"\xff\xff\xff\xff\x1f", None),  # 33 bits
        ("long", b"\xff" * 9 + b"\x02", None),  # 65 bits
        ("string", b"\x01", None),  # a length of -1
        ("string", b"\x03ab", None),
        ("bytes", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),  # a length of -2^63
        ("string", b"\x04\xff\xfe", Reason.BAD_ENCODING),
        (["null", "long"], b"\x04", None),
        (["null", "long"], b"\x01", None),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02", None),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x01", None),
        ({"type": "map", "values": "long"}, b"\x04\x02a\x02\x02a\x04\x00", None),  # a key twice
        ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", Reason.TOO_LARGE),
        ({"type": "array", "items": record()}, b"\x80\x80\x80\x80\x10\x00", Reason.TOO_LARGE),
        (NODE, b"\x02" * 5000 + b"\x00", Reason.TOO_DEEP),
        (record(itself="R"), b"", Reason.TOO_DEEP),
        ({"type": "fixed", "name": "F", "size": 2**31}, b"abc", None),
        ({"type": "fixed", "name": "F", "size": 16, "logicalType": "uuid"}, b"abc", None),
    ],
)
def test_bytes_that_are_no_value_or_stand_for_too_much_are_refused(
    type_: Any, data: bytes, reason: Reason | None
) -> None:
    with pytest.raises(AvroFault) as refused:
        schema(type_).read(data, 0)
    assert refused.value.reason is (reason or Reason.SCHEMA_REGISTRY_PAYLOAD)


def doubling(levels: int) -> Any:
    found: Any = record("L0", x="long")
    for level in range(1, levels):
        found = record(f"L{level}", a=found, b=f"L{level - 1}")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "5",
        '{"type": "record"}',
        '{"type": "record", "name": "A", "name": "B", "fields": []}',
        json.dumps(record(a="Unknown")),
        json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}] * 2}),
        json.dumps(record("R", a=record("R"))),
        json.dumps(record("a-b")),
        json.dumps({"type": "fixed", "name": "F", "size": -1}),
        json.dumps(["null", ["long"]]),
        json.dumps([]),
        json.dumps(doubling(40)),
        json.dumps(record(**{f"f{n}": "long" for n in range(10_001)})),
        " " * 1024 * 1024 + '"long"',
        '{"type": "array", "items": ' * 5000 + '"long"' + "}" * 5000,
    ],
)  # fmt: skip
def test_schemas_that_are_none_or_too_large_are_refused(text: str) -> None:
    with pytest.raises(SchemaFault):
        AvroSchema(text)


def test_a_name_of_a_schema_is_never_part_of_the_code_that_reads_it() -> None:
    name = "'); import os; ("
    found = schema(record(**{name: "long"})).read(b"\x02", 0)
    assert found == {name: 1}


def test_types_of_references_are_known_by_their_full_names() -> None:
    money = {**record("Money", cents="long"), "namespace": "shop"}
    order = {**record("Order", total="shop.Money", tax=["null", "Money"]), "namespace": "shop"}
    assert schema(order, money).read(b"\x02\x00", 0) == {"total": {"cents": 1}, "tax": None}
    with pytest.raises(SchemaFault):
        schema(order)


def test_bytes_among_other_types_never_pass_for_text() -> None:
    union = schema(["null", "bytes", "string"])
    assert union.read(b"\x04\x02A", 0) == "A"
    assert union.read(b"\x02\x02A", 0) == {"bytes": b"A"}


def test_numbers_that_are_not_finite_are_text() -> None:
    import struct

    for value, text in ((float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity")):
        assert schema("double").read(struct.pack("<d", value), 0) == text
        assert schema("float").read(struct.pack("<f", value), 0) == text


def test_fields_keep_what_their_schema_calls_them() -> None:
    decimal = {"type": "bytes", "logicalType": "decimal", "scale": 2, "precision": 9}
    days = {"type": "int", "connect.name": "io.debezium.time.Date", "connect.version": 1}
    micros = {"type": "long", "logicalType": "timestamp-micros"}
    described = connect_schema(schema(record(a=["null", decimal], b=days, c=micros, d="long")).type)
    fields: Any = described["fields"]
    assert fields[0] == {
        "type": "bytes", "optional": True, "field": "a", "name": "org.apache.kafka.connect.data.Decimal",
        "parameters": {"scale": "2"},
    }  # fmt: skip
    assert [(each["type"], each.get("name")) for each in fields[1:]] == [
        ("int32", "io.debezium.time.Date"),
        ("int64", "io.debezium.time.MicroTimestamp"),
        ("int64", None),
    ]


NUMBERS = [0, -1, 63, 64, -(2**31), 2**31 - 1, 1795470742997488000, 2**63 - 1, -(2**63)]
LONE = {f"l{i}": "long" for i in range(3)}
OPTIONAL: Any = ["null", "long"]
NULLABLE: dict[str, Any] = {f"n{i}": ["null", "long"] if i % 2 else ["long", "null"] for i in range(5)}
SKIPPING = record(
    **LONE,
    source=record(
        "Source",
        **NULLABLE,
        lsn=["null", "long"],
        text="string",
        other=["null", record("Inner", a="int", b=["int", "null"], c="string")],
    ),
    op="string",
    **{f"m{i}": OPTIONAL for i in range(3)},
    one="long",
    x="string",
    **{f"many{i}": "long" for i in range(40)},
)
TOLD = {"op": (), "source": ("lsn",)}


def skipping(at: int) -> dict[str, Any]:
    """A value of it: where the numbers are those from a place on, and every third that may be is null."""
    numbers = [NUMBERS[(at + i) % len(NUMBERS)] for i in range(60)]
    inner = {"a": numbers[5] % 1000 - 500, "b": None if at % 2 else 7, "c": "x" * (at * 20)}
    return {
        **{name: numbers[i] for i, name in enumerate(LONE)},
        "source": {
            **{name: None if (at + i) % 3 == 0 else numbers[i] for i, name in enumerate(NULLABLE)},
            "lsn": numbers[7] if at % 4 else None,
            "text": "t" * (at * 17),
            "other": None if at % 3 == 0 else inner,
        },
        "op": "d",
        **{f"m{i}": None if (at + i) % 2 else numbers[i + 3] for i in range(3)},
        "one": numbers[9],
        "x": "",
        **{f"many{i}": numbers[i + 10] for i in range(40)},
    }


@pytest.mark.parametrize("at", range(len(NUMBERS)))
def test_what_is_passed_over_ends_where_it_is_read_to(at: int) -> None:
    reader = AvroSchema(json.dumps(SKIPPING), told=TOLD)
    value = skipping(at)
    data = written(SKIPPING, value)
    assert reader.read(data, 0) == value
    assert reader.tell(b"?" + data, 1) == {"op": "d", "source": {"lsn": value["source"]["lsn"]}}
    for end in range(len(data)):
        with pytest.raises(AvroFault):
            reader.tell(data[:end], 0)
    with pytest.raises(AvroFault, match="more bytes follow"):
        reader.tell(data + b"\0", 0)


def test_a_union_of_no_such_type_among_numbers_that_are_passed_over_is_refused() -> None:
    reader = AvroSchema(json.dumps(SKIPPING), told=TOLD)
    value = skipping(1) | dict.fromkeys(LONE, 0)
    data = written(SKIPPING, value)
    for index in (1, 3, 4, 128, 255):
        broken = data[: len(LONE)] + bytes([index]) + data[len(LONE) + 1 :]
        for read in (reader.read, reader.tell):
            with pytest.raises(AvroFault, match="a union has no such type"):
                read(broken, 0)


def test_a_row_that_has_a_record_of_nothing_is_passed_over() -> None:
    definition = record(before=["null", record("Nothing")], op="string")
    reader = AvroSchema(json.dumps(definition), told={"op": ()})
    values: list[dict[str, Any]] = [{"before": None, "op": "d"}, {"before": {}, "op": "d"}]
    for value in values:
        assert reader.tell(written(definition, value), 0) == {"op": "d"}
